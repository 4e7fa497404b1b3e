"""Runs the listed tests of Keras, one process per file, and says for each file how many passed."""

from __future__ import annotations

import fnmatch
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from tests.clients.keras2.sdist import fetch_sdist

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent.parent
PATIENCE = 600  # seconds for one file


@dataclass(frozen=True)
class Setting:
    """A list of ids and how its tests are run."""

    ids: str
    tfname: bool = False
    data_format: str = "channels_last"


SETTINGS = (
    Setting("attainable.txt"),
    Setting("attainable_tfname.txt", tfname=True),
    Setting("attainable_channels_first.txt", data_format="channels_first"),
)


@dataclass
class Outcome:
    """What became of one test."""

    id: str
    outcome: str  # passed, failed, skipped, crashed, or missing
    seconds: float = 0.0
    error: str = ""


def listed_ids(setting: Setting, only: str | None) -> dict[str, list[str]]:
    """The ids of a list by file, those that match a pattern or contain it."""
    files: dict[str, list[str]] = defaultdict(list)
    for line in (HERE / setting.ids).read_text(encoding="utf-8").splitlines():
        if line and (only is None or only in line or fnmatch.fnmatch(line, only)):
            files[line.partition("::")[0]].append(line)
    return dict(files)


def run_file(folder: Path, setting: Setting, ids: Sequence[str], mode: str) -> list[Outcome]:
    """Run the tests of one file; a test that kills or hangs the process is named and the rest runs without it."""
    outcomes: dict[str, Outcome] = {}
    left = list(ids)
    while left:
        found, running, log = _run_process(folder, setting, left, mode)
        outcomes.update(found)
        if running is None:
            reason = log.strip()[-400:]
            for name in left:
                if name not in outcomes:
                    outcomes[name] = Outcome(name, "missing", error=reason)
                    reason = "as above"
            break
        outcomes[running] = Outcome(running, "crashed", error=log.strip()[-400:])
        left = [name for name in left if name not in outcomes]
    return [outcomes[name] for name in ids]


def _run_process(
    folder: Path, setting: Setting, ids: Sequence[str], mode: str
) -> tuple[dict[str, Outcome], str | None, str]:
    """The outcomes of one pytest process, the test in which it died or hung, and the end of its output."""
    with tempfile.TemporaryDirectory() as work:
        home = Path(work) / "home"
        home.mkdir()
        values = {"floatx": "float32", "epsilon": 1e-7, "backend": "graphkb.backend"}
        (home / "keras.json").write_text(json.dumps({**values, "image_data_format": setting.data_format}))
        list_file, results = Path(work) / "ids", Path(work) / "results"
        list_file.write_text("\n".join(ids), encoding="utf-8")
        results.touch()
        path = os.pathsep.join([str(ROOT), str(folder), os.environ.get("PYTHONPATH", "")])
        environment = {
            **os.environ,
            "PYTHONPATH": path.rstrip(os.pathsep),
            "KERAS_HOME": str(home),
            "KERAS_BACKEND": "graphkb.backend",
            "GRAPHKB_MODE": mode,
            "SUITE_IDS": str(list_file),
            "SUITE_RESULTS": str(results),
            "SUITE_TFNAME": "1" if setting.tfname else "",
            "MPLBACKEND": "agg",
        }
        command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.clients.keras2.plugin", "-p", "no:cacheprovider"]
        command += ["--disable-warnings", "--rootdir", str(folder), "--tb=short", ids[0].partition("::")[0]]
        try:
            done = subprocess.run(
                command, cwd=folder, env=environment, capture_output=True, text=True, timeout=PATIENCE, check=False
            )
            log = done.stdout + done.stderr
        except subprocess.TimeoutExpired as error:
            log = f"no end after {error.timeout:.0f} seconds"
        found: dict[str, Outcome] = {}
        running = None
        for line in results.read_text(encoding="utf-8").splitlines():
            facts = json.loads(line)
            if facts["outcome"] == "started":
                running = facts["id"]
                continue
            running = None
            if facts["id"] not in found or facts["outcome"] != "passed":
                found[facts["id"]] = Outcome(**facts)
        return found, running if running not in found else None, log


def run_suite(mode: str, only: str | None, jobs: int, sdist: str | None = None) -> dict[str, list[Outcome]]:
    """Run the suite and print a line for each file as it ends.

    Args:
        mode: the option `mode` of graphkb: auto, native or interpret.
        only: a pattern for ids, or a part of them.
        jobs: how many processes run at a time.
        sdist: an unpacked source distribution of Keras; None fetches it.

    Returns:
        The outcomes by file and list.
    """
    folder = fetch_sdist(sdist)
    work = [(setting, file, ids) for setting in SETTINGS for file, ids in listed_ids(setting, only).items()]
    work.sort(key=lambda item: -len(item[2]))  # long files first, so that the jobs end together
    reports: dict[str, list[Outcome]] = {}

    def run(item: tuple[Setting, str, list[str]]) -> None:
        setting, file, ids = item
        start = time.perf_counter()
        outcomes = run_file(folder, setting, ids, mode)
        label = file + (" (tfname)" if setting.tfname else "")
        if setting.data_format != "channels_last":
            label = f"{file} ({setting.data_format})"
        reports[label] = outcomes
        passed = sum(outcome.outcome == "passed" for outcome in outcomes)
        print(f"{passed:4} of {len(ids):3}  {time.perf_counter() - start:6.1f} s  {label}", flush=True)
        for outcome in outcomes:
            if outcome.outcome != "passed":
                print(f"      {outcome.outcome}: {outcome.id}\n          {outcome.error}", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(run, work))
    return dict(sorted(reports.items()))
