"""Functions of one output. They stand apart so that importing K does not import the machinery that runs functions."""

from __future__ import annotations

from typing import Any

from graphkb.ir.serialize import unflatten_graph
from graphkb.runtime.function import Function


class SingleFunction(Function):
    """A function of one output that returns it alone, not in a list."""

    def __call__(self, inputs: Any = ()) -> Any:
        # Function keeps its entry, which changes as it compiles, in the attribute of this name.
        return self.__dict__["__call__"](inputs)[0]

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore_single, (Function.__reduce__(self)[1],)


def _restore_single(form: tuple[Any, ...]) -> SingleFunction:
    return SingleFunction(unflatten_graph(*form))
