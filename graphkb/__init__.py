"""graphkb: a symbolic graph compiler with lazy evaluation for the CPU; its language is the Keras 2 backend API.

    from graphkb import backend as K

    x = K.placeholder((None, 4))
    f = K.function([x], [K.softmax(x)])

`graphkb.dump` shows a graph at any stage of its compilation, `graphkb.compile` makes a C library of a function,
`graphkb.load` calls such a library, `graphkb.options` chooses how functions are compiled, and `graphkb.thread_count`
tells how many threads they use.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from graphkb.aot import compile, load
    from graphkb.dumps import dump
    from graphkb.runtime.options import options
    from graphkb.runtime.threads import thread_count

__version__ = "0.1.0"
__all__ = ["__version__", "backend", "compile", "dump", "load", "options", "thread_count"]

# Where the public names live; each is imported when it is first asked for.
_HOMES = {
    "compile": "graphkb.aot",
    "load": "graphkb.aot",
    "dump": "graphkb.dumps",
    "options": "graphkb.runtime.options",
    "thread_count": "graphkb.runtime.threads",
}


def __getattr__(name: str) -> Any:
    import importlib

    if name == "backend":
        return importlib.import_module("graphkb.backend")
    if name in _HOMES:
        value = getattr(importlib.import_module(_HOMES[name]), name)
        globals()[name] = value
        return value
    raise AttributeError(f"module 'graphkb' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
