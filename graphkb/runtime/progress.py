"""A line on the terminal that tells what a long compilation is doing, and how long it has been."""

from __future__ import annotations

import sys
import threading
import time
from contextvars import ContextVar, Token
from types import TracebackType
from typing import TextIO

# Seconds until a compilation counts as long, and between two states of its line.
PATIENCE, _EVERY = 1.0, 0.25


class Progress:
    """What one compilation is doing, shown while its block runs, if it takes long; the line is gone afterwards.

    Args:
        name: of the graph.
        shown: False shows nothing; nor does a standard error that is no terminal.
        stream: in place of standard error.
    """

    def __init__(self, name: str, shown: bool = True, stream: TextIO | None = None) -> None:
        self._name = name
        self._stage = "reading the graph"
        self._stream = stream or sys.stderr
        self._shown = shown and self._stream is not None and self._stream.isatty()
        self._done = threading.Event()
        self._thread: threading.Thread | None = None
        self._tokens: list[Token[Progress | None]] = []

    def __enter__(self) -> Progress:
        self._tokens.append(_current.set(self))
        if self._shown and self._thread is None:
            self._thread = threading.Thread(target=self._show, args=(time.monotonic(),), daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _current.reset(self._tokens.pop())
        self._done.set()
        if self._thread is not None:
            self._thread.join()

    def tell(self, stage: str) -> None:
        """Note what is being done now."""
        self._stage = stage

    def _show(self, start: float) -> None:
        if self._done.wait(PATIENCE):
            return
        try:
            while not self._done.is_set():
                seconds = time.monotonic() - start
                self._write(f"\r\x1b[Kgraphkb: {self._name}: {self._stage}, {seconds:.0f} s")
                self._done.wait(_EVERY)
            self._write("\r\x1b[K")
        except (OSError, ValueError):
            pass  # the terminal is gone: nobody is there to be told

    def _write(self, text: str) -> None:
        self._stream.write(text)
        self._stream.flush()


_current: ContextVar[Progress | None] = ContextVar("graphkb_progress", default=None)


def tell(stage: str) -> None:
    """Note what the compilation in this thread is doing now, if one has a line."""
    progress = _current.get()
    if progress is not None:
        progress.tell(stage)
