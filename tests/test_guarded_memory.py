"""Compiled functions touch nothing outside of their arrays, at any batch and any level of vectors."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("llvmlite")
FOLDER = Path(__file__).parent


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the pages are guarded by Linux's calls")
def test_nothing_outside_of_the_arrays_is_touched() -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(FOLDER.parent), str(FOLDER)])}
    done = subprocess.run(
        [sys.executable, FOLDER / "guarded_runs.py", "0.03"],
        env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    lines = done.stdout.splitlines()
    assert done.returncode == 0, f"in {lines[-1] if lines else 'the imports'}: {done.stderr}"
    assert lines[-1].endswith("programs stayed within their arrays")
    assert int(lines[-1].split()[0]) > 200
