"""The options in force: environment variables give the defaults, `options(...)` overrides them for a block."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from contextlib import ContextDecorator, suppress
from contextvars import ContextVar, Token
from dataclasses import replace
from types import TracebackType
from typing import Any

from graphkb.ir.errors import OptionError
from graphkb.ir.record import record

MODES = ("auto", "native", "interpret")
ON_RECOMPILE = ("silent", "warn", "error")


@record
class Options:
    """How functions are compiled and run. A function keeps the options that were in force when it was made.

    Attributes:
        mode: "auto" compiles what is worth it and can be native, and interprets the rest; without llvmlite it
            interprets everything. "native" compiles everything that can be native, however small; nodes that
            can not be are interpreted. "interpret" compiles nothing.
        debug: verify the graph after every pass.
        dump: a folder that receives the text of every stage of each compilation; None writes nothing.
        target: the instruction set that code is made for, such as "x86-64-v3"; "host" takes all that this machine has.
        on_recompile: what happens when a function that was specialized already meets new input shapes: nothing,
            a RecompileWarning, or a RecompileError.
        dynamic_after: the number of values of an unknown size from which on the code is made for any value of it; 0 for
            never. Until then, and where that can not be done, each value gets code of its own.
        cache_size: how many specializations a function keeps; beyond that the one longest unused is dropped.
        fastmath: let passes use algebra that holds for real numbers but not for every float.
        kernel_cache: the folder that keeps machine code for later processes. "auto" is graphkb/kernels in
            `$XDG_CACHE_HOME` or `~/.cache`; "off" keeps nothing.
        threads: how many threads a function may use, its caller among them; results do not depend on it. 0, or "auto",
            is what `graphkb.thread_count` says.
        recycle: whether outputs of several megabytes take memory that earlier ones gave back.
        pack_weights: whether kernels may keep a second copy of variables and constants that they multiply by, in the
            order in which they read it.
        progress: whether a compilation of more than a second shows on the terminal what it is doing.
    """

    mode: str = "auto"
    debug: bool = False
    dump: str | None = None
    target: str = "host"
    on_recompile: str = "silent"
    dynamic_after: int = 3
    cache_size: int = 64
    fastmath: bool = False
    kernel_cache: str = "auto"
    threads: int = 0
    recycle: bool = True
    pack_weights: bool = True
    progress: bool = True


VARIABLES = {
    "mode": "GRAPHKB_MODE",
    "debug": "GRAPHKB_DEBUG",
    "dump": "GRAPHKB_DUMP",
    "target": "GRAPHKB_TARGET",
    "on_recompile": "GRAPHKB_ON_RECOMPILE",
    "dynamic_after": "GRAPHKB_DYNAMIC_AFTER",
    "cache_size": "GRAPHKB_CACHE_SIZE",
    "fastmath": "GRAPHKB_FASTMATH",
    "kernel_cache": "GRAPHKB_CACHE",
    "threads": "GRAPHKB_NUM_THREADS",
    "recycle": "GRAPHKB_RECYCLE",
    "pack_weights": "GRAPHKB_PACK_WEIGHTS",
    "progress": "GRAPHKB_PROGRESS",
}
"""The environment variable of each option. One that is not set, or empty, leaves the default."""


def _choice(allowed: tuple[str, ...]) -> Callable[[object], str]:
    def check(value: object) -> str:
        if isinstance(value, str) and value in allowed:
            return value
        raise ValueError(f"expected {_alternatives(allowed)}")

    return check


def _flag(value: object) -> bool:
    if isinstance(value, bool):
        return value
    known = {"1": True, "true": True, "yes": True, "on": True, "0": False, "false": False, "no": False, "off": False}
    word = value.lower() if isinstance(value, str) else str(value) if isinstance(value, int) else ""
    if word in known:
        return known[word]
    raise ValueError("expected True or False (in the environment: 1 or 0)")


def _folder(value: object) -> str | None:
    if value is None:
        return None
    if isinstance(value, (str, os.PathLike)):
        path = os.fspath(value)
        if isinstance(path, str) and path:
            return path
    raise ValueError("expected the path of a folder, or None")


def _kernel_cache(value: object) -> str:
    with suppress(ValueError):
        return "auto" if _flag(value) else "off"
    if isinstance(value, (str, os.PathLike)):
        path = os.fspath(value)
        if isinstance(path, str) and path and "\0" not in path:
            return path
    raise ValueError('expected "auto", "off" or the path of a folder')


def _target(value: object) -> str:
    from graphkb.codegen.target import TARGETS

    return _choice(("host", *TARGETS))(value)


def _count(least: int) -> Callable[[object], int]:
    def check(value: object) -> int:
        try:
            count = int(value) if isinstance(value, (int, str)) and not isinstance(value, bool) else least - 1
        except ValueError:
            count = least - 1
        if count < least:
            raise ValueError(f"expected an integer of at least {least}")
        return count

    return check


def _threads(value: object) -> int:
    with suppress(ValueError):
        return 0 if value in ("auto", "0") or (value == 0 and value is not False) else _count(1)(value)
    raise ValueError('expected an integer of at least 1, or "auto"')


_CHECKS: dict[str, Callable[[object], Any]] = {
    "mode": _choice(MODES),
    "debug": _flag,
    "dump": _folder,
    "target": _target,
    "on_recompile": _choice(ON_RECOMPILE),
    "dynamic_after": _count(0),
    "cache_size": _count(1),
    "fastmath": _flag,
    "kernel_cache": _kernel_cache,
    "threads": _threads,
    "recycle": _flag,
    "pack_weights": _flag,
    "progress": _flag,
}

_override: ContextVar[Mapping[str, Any] | None] = ContextVar("graphkb_options", default=None)


def current() -> Options:
    """The options in force here: the defaults, the environment over them, and the blocks around this call over both.

    Raises:
        OptionError: an environment variable has a value that its option does not take.
    """
    inner = _override.get() or {}
    chosen = dict(inner)
    for name, variable in VARIABLES.items():
        text = os.environ.get(variable)
        if text and name not in inner:
            chosen[name] = _checked(name, text, f"the environment variable {variable}")
    return Options(**chosen)


class options(ContextDecorator):  # noqa: N801 - it reads as a function
    """Override options for a block, in this thread (or task) only; blocks nest, and it may decorate a function.

        with graphkb.options(mode="interpret"):
            f = K.function([x], [y])

    Args:
        **chosen: attributes of `Options`.

    Raises:
        OptionError: there is no such option, or it does not take that value.
    """

    def __init__(self, **chosen: Any) -> None:
        self._chosen = {name: _checked(name, value, f"options: {name}") for name, value in chosen.items()}
        self._tokens: list[Token[Mapping[str, Any] | None]] = []

    def __enter__(self) -> Options:
        self._tokens.append(_override.set({**(_override.get() or {}), **self._chosen}))
        return current()

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        _override.reset(self._tokens.pop())

    def _recreate_cm(self) -> options:
        """A decorated function may run in several threads at once: each call gets tokens of its own."""
        fresh = options()
        fresh._chosen = self._chosen
        return fresh


def resolve(given: Options | Mapping[str, Any] | None) -> Options:
    """The options meant by an argument: all of them, some as a mapping over the current ones, or the current ones."""
    if isinstance(given, Options):
        return given
    if given is None:
        return current()
    return replace(current(), **{name: _checked(name, value, f"options: {name}") for name, value in given.items()})


def _checked(name: str, value: object, where: str) -> Any:
    check = _CHECKS.get(name)
    if check is None:
        raise OptionError(f"options: there is no option {name!r}; expected one of {', '.join(_CHECKS)}")
    try:
        return check(value)
    except ValueError as error:
        raise OptionError(f"{where} is {value!r}: {error}") from None


def _alternatives(words: tuple[str, ...]) -> str:
    return f"{', '.join(map(repr, words[:-1]))} or {words[-1]!r}"
