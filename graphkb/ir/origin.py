"""Provenance: which line of the user's program built a node, and inside which name scopes."""

from __future__ import annotations

import linecache
import os
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple

_PACKAGE = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
# Frames of these folders are machinery, not the user's lines. The symlinked packages are listed by their real folders.
INTERNAL_FOLDERS: list[str] = [
    _PACKAGE + os.sep,
    os.path.realpath(os.path.join(_PACKAGE, "passes")) + os.sep,
    os.path.realpath(os.path.join(_PACKAGE, "codegen")) + os.sep,
]
# Libraries above graphkb, such as Keras: their lines count only where no line of the user's does.
LIBRARY_FOLDERS: list[str] = []
_internal_files: dict[str, bool] = {}
_library_files: dict[str, bool] = {}


class Origin(NamedTuple):
    """A line of the user's program, and the name scope that was open when it ran."""

    file: str
    line: int
    scope: str = ""

    @property
    def short(self) -> str:
        """`train.py:35`, with the scope before it where there is one."""
        place = f"{os.path.basename(self.file)}:{self.line}"
        return f"{self.scope} {place}" if self.scope else place

    @property
    def text(self) -> str:
        """The line itself, empty when the source is not at hand."""
        return linecache.getline(self.file, self.line).strip()


class _State(threading.local):
    override: Origin | None = None
    scope: str = ""
    in_library: bool = False  # no user's program is running


_state = _State()


def is_internal(file: str) -> bool:
    """Whether a file is one of graphkb's own."""
    known = _internal_files.get(file)
    if known is None:
        known = _internal_files[file] = any(file.startswith(folder) for folder in INTERNAL_FOLDERS)
    return known


def is_library(file: str) -> bool:
    """Whether a file belongs to a library that builds graphs for the user."""
    known = _library_files.get(file)
    if known is None:
        known = _library_files[file] = any(file.startswith(folder) for folder in LIBRARY_FOLDERS)
    return known


def add_library(folder: str) -> None:
    """Look behind the lines of a library for those of the user."""
    if folder + os.sep not in LIBRARY_FOLDERS:
        LIBRARY_FOLDERS.append(folder + os.sep)
        _library_files.clear()


@contextmanager
def library_lines() -> Iterator[None]:
    """Let nodes built inside carry the lines of libraries: they are built for a file, not for a program."""
    previous = _state.in_library
    _state.in_library = True
    try:
        yield
    finally:
        _state.in_library = previous


def current_origin() -> Origin | None:
    """The innermost line outside of graphkb and libraries, or the override of a pass or of the gradient walk."""
    if _state.override is not None:
        return _state.override
    frame = sys._getframe(1)
    library = None
    while frame is not None:
        file = frame.f_code.co_filename
        if not is_internal(file):
            if not is_library(file):
                return Origin(file, frame.f_lineno, _state.scope)
            if library is None:
                library = Origin(file, frame.f_lineno, _state.scope)
                if _state.in_library:
                    break
        frame = frame.f_back  # type: ignore[assignment]
    return library


def set_override(origin: Origin | None) -> Origin | None:
    """Make every new node carry this origin (None: look at the call stack); returns the previous override."""
    previous = _state.override
    _state.override = origin
    return previous


@contextmanager
def name_scope(name: str) -> Iterator[str]:
    """Open a name scope: nodes built inside carry it; scopes nest as `outer/inner`."""
    previous = _state.scope
    _state.scope = f"{previous}/{name}" if previous else name
    try:
        yield _state.scope
    finally:
        _state.scope = previous
