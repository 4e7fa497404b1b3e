"""The process-wide reader/writer lock over the values of variables: `state_lock`.

Native calls try the same word without ever waiting and take the slow path when they miss; only Python code waits.
Until native code exists the word is a Python integer, afterwards it lies where that code finds it.

An interrupt from the keyboard may arrive between any two calls. So that the word and what Python knows of it never
differ, a list (`taken`) is filled in the very step that takes the lock, and emptied in the one that gives it back.
"""

import os
import threading
import time
from collections.abc import Callable
from types import TracebackType
from typing import ParamSpec, Protocol, TypeVar

from graphkb.codegen.lock import HELD, READER, WAITING, Lock

P = ParamSpec("P")
R = TypeVar("R")

_SPINS = 20
_LONGEST_SLEEP = 1e-3
_FORK_PATIENCE = 1.0


class Word(Protocol):
    """The lock's word and its three operations, each of them one atomic step."""

    def attempt(self, kind: int, taken: list[int] | None = None) -> bool: ...

    def release(self, kind: int, taken: list[int] | None = None) -> None: ...

    def mark(self, waiting: bool) -> None: ...

    def read(self) -> int: ...

    def write(self, value: int) -> None: ...


class PythonWord:
    """The word as an integer: `StateLock` serializes all access to it."""

    def __init__(self) -> None:
        self._value = 0

    def attempt(self, kind: int, taken: list[int] | None = None) -> bool:
        taken = [] if taken is None else taken
        free = {Lock.SHARED: not self._value & (HELD | WAITING), Lock.EXCLUSIVE: self._value == 0}
        if not free.get(Lock(kind), self._value & ~WAITING == 0):
            return False
        value = self._value + READER if kind == Lock.SHARED else HELD
        self._value = value
        taken.append(1)
        return True

    def release(self, kind: int, taken: list[int] | None = None) -> None:
        value = self._value - READER if kind == Lock.SHARED else self._value & ~HELD
        if taken is not None:
            del taken[:]
        self._value = value

    def mark(self, waiting: bool) -> None:
        self._value = self._value | WAITING if waiting else self._value & ~WAITING

    def read(self) -> int:
        return self._value

    def write(self, value: int) -> None:
        self._value = value


class _Holds(threading.local):
    """What this thread holds: how deep it is nested, and the kind that the outermost `with` took."""

    depth = 0
    kind = Lock.NONE


class _Section:
    """One `with state_lock.shared()` or `with state_lock.exclusive()` block; it may be reused and nested."""

    __slots__ = ("_kind", "_lock")

    def __init__(self, lock: "StateLock", kind: Lock) -> None:
        self._lock = lock
        self._kind = kind

    def __enter__(self) -> None:
        self._lock.acquire(self._kind)

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._lock.release()


class StateLock:
    """A reader/writer lock that threads re-enter freely, except from shared to exclusive.

    A thread that holds the lock in either kind may take it shared again, and one that holds it exclusively may
    take either kind again. Asking for exclusive while holding shared raises RuntimeError: two such threads would
    wait for each other. Waiting writers keep new readers out, so that a stream of readers cannot starve them.
    Waiting releases the interpreter's lock. A forked child keeps what the forking thread held and nothing else.
    """

    def __init__(self) -> None:
        self._word: Word = PythonWord()
        self._mutex = threading.RLock()
        self._holds = _Holds()
        self._shared = _Section(self, Lock.SHARED)
        self._exclusive = _Section(self, Lock.EXCLUSIVE)
        self._fork_held = False
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(
                before=self._before_fork, after_in_parent=self._after_fork, after_in_child=self._in_child
            )

    def shared(self) -> _Section:
        """A context manager for reading variables."""
        return self._shared

    def exclusive(self) -> _Section:
        """A context manager for writing variables. Raises RuntimeError inside a shared section of this thread."""
        return self._exclusive

    def section(self, kind: Lock) -> _Section:
        """The section of this `kind`, which is `Lock.SHARED` or `Lock.EXCLUSIVE`."""
        return self._exclusive if kind == Lock.EXCLUSIVE else self._shared

    def held(self) -> Lock:
        """The kind that the calling thread holds, or `Lock.NONE`."""
        return self._holds.kind

    def acquire(self, kind: Lock, patience: float | None = None) -> bool:
        """Take the lock, waiting at most `patience` seconds (None: for ever); False when that did not suffice."""
        holds = self._holds
        if holds.depth:
            if kind == Lock.EXCLUSIVE and holds.kind == Lock.SHARED:
                raise RuntimeError(
                    "state_lock: exclusive access inside a shared section of the same thread would wait for itself; "
                    "write the variable before or after the function call that reads it"
                )
            holds.depth += 1
            return True
        taken: list[int] = []
        try:
            if not self._attempt(kind, taken) and not self._wait(kind, patience, taken):
                return False
            holds.kind = kind
            holds.depth = 1
        except BaseException:
            self._give_back(kind, taken)
            raise
        return True

    def run(self, kind: Lock, work: Callable[P, R], *args: P.args, **kwargs: P.kwargs) -> R:
        """`work(*args, **kwargs)` while this thread holds the lock.

        Unlike a `with` block, which an interrupt can keep from being left, it gives the lock back whatever happens.
        """
        if self._holds.depth:
            with self.section(kind):
                return work(*args, **kwargs)
        taken: list[int] = []
        try:
            if not self._attempt(kind, taken):
                self._wait(kind, None, taken)
            self._holds.kind = kind
            self._holds.depth = 1
            return work(*args, **kwargs)
        finally:
            try:
                self._give_back(kind, taken)
            except BaseException:
                self._give_back(kind, taken)
                raise

    def release(self) -> None:
        """Leave the innermost section of the calling thread."""
        holds = self._holds
        if not holds.depth:
            raise RuntimeError("state_lock: released by a thread that does not hold it")
        holds.depth -= 1
        if not holds.depth:
            kind, holds.kind = holds.kind, Lock.NONE
            with self._mutex:
                self._word.release(kind)

    def move(self, word: Word) -> None:
        """Continue on another `word`, which takes over the state of the present one."""
        with self._mutex:
            word.write(self._word.read())
            self._word = word

    def _attempt(self, kind: int, taken: list[int]) -> bool:
        with self._mutex:
            return self._word.attempt(kind, taken)

    def _give_back(self, kind: Lock, taken: list[int]) -> None:
        """Leave the outermost section, unless that has been done."""
        with self._mutex:
            self._holds.depth = 0
            self._holds.kind = Lock.NONE
            if taken:
                self._word.release(kind, taken)

    def _mark(self, waiting: bool) -> None:
        with self._mutex:
            self._word.mark(waiting)

    def _wait(self, kind: Lock, patience: float | None, taken: list[int]) -> bool:
        """Try again and again; each round of a writer renews the mark that the lucky one has wiped."""
        deadline = None if patience is None else time.monotonic() + patience
        writer = kind == Lock.EXCLUSIVE
        pause = 0.0
        spins = 0
        try:
            while True:
                if writer:
                    self._mark(True)
                if self._attempt(Lock.INSIST if writer else kind, taken):
                    return True
                if deadline is not None and time.monotonic() > deadline:
                    return False
                time.sleep(pause)
                spins += 1
                if spins > _SPINS:
                    pause = min(_LONGEST_SLEEP, 2 * pause + 1e-5)
        finally:
            if writer and not taken:
                try:
                    self._mark(False)
                except BaseException:
                    self._mark(False)
                    raise

    def _before_fork(self) -> None:
        """Let updates under way finish, so that the child finds whole values; do not wait for ever."""
        self._fork_held = self.acquire(Lock.SHARED, _FORK_PATIENCE)

    def _after_fork(self) -> None:
        if self._fork_held:
            self.release()

    def _in_child(self) -> None:
        """Only the forking thread lives on: the word shows what it holds, the mutex is made anew."""
        self._mutex = threading.RLock()
        self._word.write({Lock.NONE: 0, Lock.SHARED: READER, Lock.EXCLUSIVE: HELD}[self._holds.kind])
        self._after_fork()


state_lock = StateLock()
"""Guards the values of all variables of the process."""
