"""How many threads: the option, environment variables, affinity and control groups of both versions."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

import graphkb
from graphkb.runtime.threads import cgroup_limit, explain_threads, thread_count

ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(autouse=True)
def bare_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("GRAPHKB_NUM_THREADS", "OMP_NUM_THREADS"):
        monkeypatch.delenv(name, raising=False)


def test_the_option_comes_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "3,2")
    assert (explain_threads().count, explain_threads().reason) == (3, "OMP_NUM_THREADS")
    monkeypatch.setenv("GRAPHKB_NUM_THREADS", "5")
    assert (thread_count(), explain_threads().reason) == (5, "the option threads")
    with graphkb.options(threads=2):
        assert graphkb.thread_count() == 2
    with graphkb.options(threads="auto"):
        assert graphkb.thread_count() == 3


@pytest.mark.parametrize("text", ["", "many", "0", "-1", "2.5"])
def test_what_openmp_would_not_take_is_ignored(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    automatic = thread_count()
    monkeypatch.setenv("OMP_NUM_THREADS", text)
    assert thread_count() == automatic >= 1


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity here")
def test_affinity_counts() -> None:
    code = "import os, graphkb; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]); print(graphkb.thread_count())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "1\n"


def group(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("_", ".", 1)).write_text(text)


CASES = [
    ("no limit", "0::/a/b", {"a/b": "max 100000"}, None),
    ("whole", "0::/a/b", {"a/b": "200000 100000"}, 2),
    ("rounded up", "0::/a/b", {"a/b": "150000 100000"}, 2),
    ("less than one", "0::/a/b", {"a/b": "50000 100000"}, 1),
    ("of a group around", "0::/a/b", {"a/b": "max 100000", "a": "300000 100000"}, 3),
    ("the least", "0::/a/b", {"a/b": "400000 100000", "a": "300000 100000", ".": "500000 100000"}, 3),
    ("in a container", "0::/not/here", {".": "100000 100000"}, 1),
    ("nonsense", "0::/a", {"a": "some thing"}, None),
    ("no such group", "garbage", {"a": "100000 100000"}, None),
    ("outside", "0::/../a", {"a": "100000 100000"}, 1),
]


@pytest.mark.parametrize(("line", "groups", "limit"), [c[1:] for c in CASES], ids=[c[0] for c in CASES])
def test_control_groups_of_version_2(tmp_path: Path, line: str, groups: dict[str, str], limit: int | None) -> None:
    for name, text in groups.items():
        group(tmp_path / name, cpu_max=text)
    (tmp_path / "self").write_text(f"{line}\n")
    assert cgroup_limit(tmp_path / "self", tmp_path) == limit


@pytest.mark.parametrize(("quota", "limit"), [("-1", None), ("250000", 3), ("100000", 1), ("x", None)])
@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
def test_control_groups_of_version_1(tmp_path: Path, quota: str, limit: int | None, mount: str) -> None:
    folder = tmp_path / mount / "docker" / "1f"
    folder.mkdir(parents=True)
    (folder / "cpu.cfs_quota_us").write_text(f"{quota}\n")
    (folder / "cpu.cfs_period_us").write_text("100000\n")
    (tmp_path / "self").write_text("12:memory:/x\n4:cpu,cpuacct:/docker/1f\n")
    assert cgroup_limit(tmp_path / "self", tmp_path) == limit


def test_no_control_groups(tmp_path: Path) -> None:
    assert cgroup_limit(tmp_path / "missing", tmp_path) is None


def test_the_doctor_tells_the_number_and_why(monkeypatch: pytest.MonkeyPatch) -> None:
    from graphkb.doctor import examine

    monkeypatch.setenv("GRAPHKB_NUM_THREADS", "2")
    lines = [line for line in examine().lines if line.startswith("threads")]
    assert lines == ["threads         2: the option threads"]
