"""The source distribution of Keras 2.3.1: its tests, examples and documents, fetched with pip and kept in a cache."""

from __future__ import annotations

import os
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

VERSION = "2.3.1"
PARTS = ("tests", "examples", "docs")  # not keras: the installed package is what is tested


def cache_folder() -> Path:
    """Where fetched things stay: graphkb/keras2 in $XDG_CACHE_HOME or ~/.cache."""
    root = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    return Path(root) / "graphkb" / "keras2"


def fetch_sdist(given: str | None = None) -> Path:
    """The folder with the tests and examples, fetched if it is not there yet.

    Args:
        given: an unpacked source distribution to take instead.
    """
    folder = cache_folder() / f"Keras-{VERSION}"
    if folder.is_dir():
        return folder
    with tempfile.TemporaryDirectory() as work:
        if given is None:
            archive = _download(Path(work))
            with tarfile.open(archive) as tar:
                tar.extractall(work, filter="data")
            given = str(Path(work) / f"Keras-{VERSION}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder.parent) as fresh:
            whole = Path(fresh) / "whole"
            whole.mkdir()
            for part in PARTS:
                subprocess.run(["cp", "-r", str(Path(given) / part), str(whole / part)], check=True)
            os.replace(whole, folder)  # all or nothing: an interrupted copy leaves no half folder
    return folder


def _download(folder: Path) -> Path:
    command = ["pip", "download", "--retries", "1", "--timeout", "15", "--no-deps", "--no-binary", "keras"]
    command += ["--dest", str(folder), f"keras=={VERSION}"]
    subprocess.run([sys.executable, "-m", *command], check=True, stdout=sys.stderr)
    (archive,) = folder.glob("*.tar.gz")
    return archive
