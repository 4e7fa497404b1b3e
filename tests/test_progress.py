"""The line that a long compilation shows on a terminal."""

from __future__ import annotations

import io
import threading

import numpy as np
import pytest

from graphkb import backend as K
from graphkb import options
from graphkb.runtime import progress
from graphkb.runtime.progress import Progress, tell


class Terminal(io.StringIO):
    """A stream that says when something has been written."""

    def __init__(self, is_terminal: bool = True) -> None:
        super().__init__()
        self.written = threading.Event()
        self._is_terminal = is_terminal

    def isatty(self) -> bool:
        return self._is_terminal

    def write(self, text: str) -> int:
        count = super().write(text)
        self.written.set()
        return count


def test_a_long_compilation_tells_what_it_does_and_cleans_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    terminal = Terminal()
    with Progress("net", stream=terminal):
        tell("generating the code of 3 kernels")
        assert terminal.written.wait(10)
    assert "\r\x1b[Kgraphkb: net: " in terminal.getvalue()
    assert terminal.getvalue().endswith(" s\r\x1b[K")
    tell("nothing")  # nobody listens any more
    assert "nothing" not in terminal.getvalue()


def test_a_short_one_shows_nothing() -> None:
    terminal = Terminal()
    with Progress("net", stream=terminal):
        tell("optimizing")
    assert terminal.getvalue() == ""


@pytest.mark.parametrize(("shown", "is_terminal"), [(False, True), (True, False)])
def test_nothing_is_shown_unasked_or_where_no_terminal_is(
    shown: bool, is_terminal: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress, "PATIENCE", 0.0)
    terminal = Terminal(is_terminal)
    with Progress("net", shown, terminal) as line:
        assert line._thread is None
    assert terminal.getvalue() == ""


def test_functions_have_one(monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    monkeypatch.setattr(Progress, "tell", lambda self, stage: told.append(stage))
    x = K.placeholder((3, 4))
    with options(mode="native", kernel_cache="off"):
        f = K.function([x], [K.exp(x) * 3])
        np.testing.assert_allclose(f([np.zeros((3, 4))])[0], 3)
    assert told[0].startswith("optimizing ")
    assert any(stage == "generating the code of 1 kernel" for stage in told)
