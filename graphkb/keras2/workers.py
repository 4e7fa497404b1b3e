"""Worker processes that start from nothing (spawn, forkserver) are mended before they unpickle their first object.

A worker that can not import Keras dies, and the pools of `multiprocessing` replace a dead worker for ever: the parent
would hang. Forked workers need nothing, they inherit the mended modules.
"""

from __future__ import annotations

import functools
import sys
from typing import Any

_KEY = "graphkb.keras2"


class _Revival:
    """Unpickles by importing graphkb.keras2 with the parent's search path.

    The worker reads it among the first values that it is sent, when nothing but built-in functions can be relied upon:
    the search path arrives in the same message.
    """

    def __init__(self, path: list[str]) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        code = f"import sys; sys.path[:] = {self.path!r}; import graphkb.keras2"
        return exec, (code,)


def send_mends_ahead(spawn: Any) -> None:
    """Let a module that prepares new workers send the mends ahead of their work.

    Args:
        spawn: `multiprocessing.spawn`, which `concurrent.futures` uses too, or a module made after it.
    """
    original = spawn.get_preparation_data
    if hasattr(original, "__wrapped__"):
        return

    @functools.wraps(original)
    def get_preparation_data(*args: Any, **kwargs: Any) -> dict[str, Any]:
        # The worker ignores keys that it does not know; unpickling this one has done the work by then.
        return {_KEY: _Revival([str(entry) for entry in sys.path]), **original(*args, **kwargs)}

    spawn.get_preparation_data = get_preparation_data
