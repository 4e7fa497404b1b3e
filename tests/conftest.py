"""Options and fixtures of all tests: golden files, and a kernel cache of their own."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Callable
from pathlib import Path

import pytest

GOLDEN = Path(__file__).parent / "golden"


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--update-golden", action="store_true", help="write the golden files anew instead of comparing")


def pytest_configure(config: pytest.Config) -> None:
    """Tests and the processes that they start never meet the user's kernel cache."""
    folder = tempfile.TemporaryDirectory(prefix="graphkb-tests-")
    patch = pytest.MonkeyPatch()
    patch.setenv("GRAPHKB_CACHE", os.path.join(folder.name, "kernels"))
    config.add_cleanup(patch.undo)
    config.add_cleanup(folder.cleanup)


@pytest.fixture
def golden(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Compare a text with the file of a name in tests/golden, or write it with --update-golden."""

    def check(name: str, text: str) -> None:
        path = GOLDEN / name
        if request.config.getoption("--update-golden"):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(text, encoding="utf-8")
            return
        assert path.exists(), f"there is no {path.name}: run pytest with --update-golden and read what it writes"
        assert text == path.read_text(encoding="utf-8"), "if the change is meant, run pytest with --update-golden"

    return check
