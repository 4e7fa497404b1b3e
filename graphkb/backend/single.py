"""Functions of one output or of sparse inputs, apart so that importing K does not import what runs functions."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from graphkb.backend.sparse import SparseTensor
from graphkb.ir.errors import InputError
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


class SparseFunction(Function):
    """A function some of whose inputs are sparse: each of them goes in as several arrays."""

    _layout: tuple[SparseTensor | None, ...]
    _single: bool

    def lay_out(self, inputs: Sequence[Any], single: bool) -> None:
        """Remember which inputs are sparse, and whether there is one output that is returned alone."""
        self._layout = tuple([x if isinstance(x, SparseTensor) else None for x in inputs])
        self._single = single

    def __call__(self, inputs: Any = ()) -> Any:
        if not isinstance(inputs, (list, tuple)):
            raise TypeError(
                f"{self.name}: expected a list or tuple of {len(self._layout)} inputs, got {type(inputs).__name__}: "
                "call it as f([x, …])"
            )
        if len(inputs) != len(self._layout):
            raise InputError(f"{self.name}: expected {len(self._layout)} inputs, got {len(inputs)}")
        arrays: list[Any] = []
        for value, sparse in zip(inputs, self._layout):
            arrays += [value] if sparse is None else sparse.entries(value)
        results = self.__dict__["__call__"](arrays)
        return results[0] if self._single else results

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore_sparse, (Function.__reduce__(self)[1], self._layout, self._single)


def _restore_sparse(form: tuple[Any, ...], layout: tuple[SparseTensor | None, ...], single: bool) -> SparseFunction:
    made = SparseFunction(unflatten_graph(*form))
    made.lay_out(layout, single)
    return made
