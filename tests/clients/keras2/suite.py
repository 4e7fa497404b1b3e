"""Runs the listed tests of Keras, one process per file, and says for each file how many passed."""

from __future__ import annotations

import contextlib
import fnmatch
import json
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path

from tests.clients.keras2.sdist import fetch_sdist

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent.parent
PATIENCE = 300.0  # seconds for one test
GRACE = 120.0  # seconds more for what is no test: importing, collecting, ending


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
    """What became of one test, or of one example program."""

    id: str
    outcome: str  # passed, retried (passed when retried), failed, skipped, crashed, stuck, or missing
    seconds: float = 0.0
    error: str = ""  # of the first attempt

    @property
    def good(self) -> bool:
        return self.outcome in ("passed", "retried")


@dataclass(frozen=True)
class Part:
    """The chosen tests of one file under one setting."""

    setting: Setting
    file: str
    ids: Sequence[str]

    @property
    def label(self) -> str:
        if self.setting.tfname:
            return f"{self.file} (tfname)"
        if self.setting.data_format != "channels_last":
            return f"{self.file} ({self.setting.data_format})"
        return self.file


def list_parts(only: Sequence[str]) -> list[Part]:
    """The tests whose ids match or contain one of the patterns, or all, by file; the longest files first."""
    parts = []
    for setting in SETTINGS:
        files: dict[str, list[str]] = defaultdict(list)
        for line in (HERE / setting.ids).read_text(encoding="utf-8").splitlines():
            if line and (not only or any(p in line or fnmatch.fnmatch(line, p) for p in only)):
                files[line.partition("::")[0]].append(line)
        parts += [Part(setting, file, ids) for file, ids in files.items()]
    return sorted(parts, key=lambda part: -len(part.ids))


def run_part(folder: Path, part: Part, mode: str, seed_shift: int = 0) -> list[Outcome]:
    """Run tests of one file; one that kills or blocks the process is named, and the rest runs without it.

    `seed_shift` is added to the seeds that the tests give NumPy.
    """
    outcomes: dict[str, Outcome] = {}
    left = list(part.ids)
    while left:
        found, unfinished, log = _run_process(folder, replace(part, ids=left), mode, seed_shift)
        outcomes.update(found)
        if unfinished is None:
            reason = log.strip()[-400:]
            for name in left:
                if name not in outcomes:
                    outcomes[name] = Outcome(name, "missing", error=reason)
                    reason = "as above"
            break
        outcomes[unfinished.id] = unfinished
        left = [name for name in left if name not in outcomes]
    return [outcomes[name] for name in part.ids]


def _run_process(
    folder: Path, part: Part, mode: str, seed_shift: int
) -> tuple[dict[str, Outcome], Outcome | None, str]:
    """The outcomes of one pytest process, the test that it did not finish, and the end of its output."""
    with tempfile.TemporaryDirectory() as work:
        home = Path(work) / "home"
        home.mkdir()
        values = {"floatx": "float32", "epsilon": 1e-7, "backend": "graphkb.backend"}
        (home / "keras.json").write_text(json.dumps({**values, "image_data_format": part.setting.data_format}))
        list_file, results, output = (Path(work) / name for name in ("ids", "results", "output"))
        list_file.write_text("\n".join(part.ids), encoding="utf-8")
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
            "SUITE_TFNAME": "1" if part.setting.tfname else "",
            "SUITE_SEED_SHIFT": str(seed_shift),
            "MPLBACKEND": "agg",
        }
        command = [sys.executable, "-m", "pytest", "-q", "-p", "tests.clients.keras2.plugin", "-p", "no:cacheprovider"]
        command += ["--disable-warnings", "--rootdir", str(folder), "--tb=short", part.file]
        with output.open("wb") as stream:
            process = subprocess.Popen(
                command, cwd=folder, env=environment, stdout=stream, stderr=stream, start_new_session=True
            )
            try:
                stuck = _watch(process, results)
            finally:
                _end_group(process)
        log = output.read_text(encoding="utf-8", errors="replace")
        found, running = _read_results(results)
        if running is None:
            return found, None, f"no end after {stuck:.0f} seconds\n{log[-300:]}" if stuck else log
        if stuck:
            stack = log[log.rfind("most recent call first") :] if "most recent call first" in log else log[-300:]
            return found, Outcome(running, "stuck", stuck, f"no end after {stuck:.0f} seconds: {stack[:600]}"), log
        return found, Outcome(running, "crashed", error=log.strip()[-400:]), log


def _watch(process: subprocess.Popen[bytes], results: Path) -> float:
    """Wait for a process; the seconds for which it had said nothing when it was given up, or 0."""
    since, size = time.monotonic(), 0
    while True:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(0.2)
            return 0.0
        if results.stat().st_size != size:
            since, size = time.monotonic(), results.stat().st_size
        quiet = time.monotonic() - since
        in_a_test = quiet > PATIENCE and _read_results(results)[1] is not None
        if quiet > PATIENCE + (0 if in_a_test else GRACE):
            process.send_signal(signal.SIGABRT)  # pytest's faulthandler writes where each thread stands
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(5)
            return quiet


def _end_group(process: subprocess.Popen[bytes]) -> None:
    """End what the process left behind: it leads a session of its own."""
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()


def _read_results(results: Path) -> tuple[dict[str, Outcome], str | None]:
    """What ended and what runs, from the lines that the plugin wrote; the last may still be incomplete."""
    found: dict[str, Outcome] = {}
    running = None
    for line in results.read_text(encoding="utf-8").split("\n")[:-1]:
        facts = json.loads(line)
        if facts["outcome"] == "started":
            running = facts["id"]
            continue
        running = None
        if facts["id"] not in found or facts["outcome"] != "passed":
            found[facts["id"]] = Outcome(**facts)
    return found, running if running not in found else None


def run_suite(mode: str, only: Sequence[str], jobs: int, sdist: str | None = None) -> dict[str, list[Outcome]]:
    """Run the suite and print a line for each file as it ends.

    What fails runs once more at the end, by itself, then with other seeds: some tests demand luck of a training.

    Args:
        mode: the option `mode` of graphkb: auto, native or interpret.
        only: patterns for ids, or parts of them; all run where there is none.
        jobs: how many processes run at a time.
        sdist: an unpacked source distribution of Keras; None fetches it.

    Returns:
        The outcomes by file and list.
    """
    folder = fetch_sdist(sdist)
    parts = list_parts(only)
    reports: dict[str, list[Outcome]] = {}

    def run(part: Part) -> None:
        start = time.perf_counter()
        outcomes = reports[part.label] = run_part(folder, part, mode)
        passed = sum(outcome.good for outcome in outcomes)
        print(f"{passed:4} of {len(outcomes):3}  {time.perf_counter() - start:6.1f} s  {part.label}", flush=True)
        for outcome in outcomes:
            if not outcome.good:
                print(f"      {outcome.outcome}: {outcome.id}\n          {outcome.error}", flush=True)

    with ThreadPoolExecutor(jobs) as pool:
        list(pool.map(run, parts))
    for part in parts:
        for outcome in reports[part.label]:
            if not outcome.good and outcome.outcome != "skipped":
                for shift, how in enumerate(("", ", with other seeds")):
                    (again,) = run_part(folder, replace(part, ids=[outcome.id]), mode, shift)
                    print(f"again by itself{how}: {again.outcome}: {outcome.id}", flush=True)
                    if again.outcome == "passed":
                        outcome.outcome = "retried"
                        break
    return dict(sorted(reports.items()))


def summarize(reports: dict[str, list[Outcome]]) -> str:
    """A table with a row for each file, and the names of the tests that passed only when retried, or not at all."""
    width = max(map(len, [*reports, "file"]))
    columns = ("tests", "passed", "retried", "other", "seconds")
    lines = ["", "file".ljust(width) + "".join(f"{name:>9}" for name in columns)]
    total = [0, 0, 0, 0, 0.0]
    for label, outcomes in [*reports.items(), ("all", [])]:
        count = Counter(outcome.outcome for outcome in outcomes)
        row = [len(outcomes), count["passed"], count["retried"]]
        row = [*row, row[0] - row[1] - row[2], sum(outcome.seconds for outcome in outcomes)]
        total = [a + b for a, b in zip(total, row)]
        cells = total if label == "all" else row
        lines.append(label.ljust(width) + "".join(f"{cell:9}" for cell in cells[:4]) + f"{cells[4]:9.1f}")
    every = [outcome for outcomes in reports.values() for outcome in outcomes]
    lines += [f"passed when retried: {o.id}\n    first: {o.error}" for o in every if o.outcome == "retried"]
    lines += [f"{o.outcome}: {o.id}\n    {o.error}" for o in every if not o.good]
    return "\n".join(lines)
