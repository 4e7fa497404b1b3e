"""The contracts of the sparse ops, each against the dense matrix that is put together entry by entry."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from contracts import Array, Case, Contract, Rng, sample

from graphkb.ir.types import NUMBERS

# Sums of up to 12 products, some of which cancel.
ULP = 16.0


def _cases(*operands: str) -> Callable[[str, Rng], Iterator[Case]]:
    """Entries of matrices of some sizes, a fifth of them standing for nothing, among the other operands."""

    def cases(dtype: str, rng: Rng) -> Iterator[Case]:
        for count, height, width, depth in (
            (0, 0, 0, 2),
            (0, 3, 2, 1),
            (1, 1, 1, 1),
            (5, 2, 3, 4),
            (12, 4, 5, 3),
            (7, 3, 4, 0),
        ):
            rows = np.where(rng.random(count) < 0.2, -1, rng.integers(0, max(height, 1), count))
            shapes = {"values": (count,), "left": (height, depth), "right": (width, depth), "matrix": (height, width)}
            made = {name: sample(dtype, shape, rng) for name, shape in shapes.items()}
            made |= {"rows": rows, "columns": rng.integers(0, max(width, 1), count)}
            attrs: dict[str, Any] = {"height": height} if "right" in operands and "values" in operands else {}
            if operands == ("values", "rows", "columns"):
                attrs = {"shape": (height, width)}
            yield Case(tuple(made[name] for name in operands), attrs)

    return cases


def _dense(values: Array, rows: Array, columns: Array, shape: tuple[int, int]) -> Array:
    out = np.zeros(shape, values.dtype)
    for value, row, column in zip(values, rows, columns):
        if row >= 0:
            out[row, column] += value
    return out


def _dot(values: Array, rows: Array, columns: Array, dense: Array, height: int) -> Array:
    return np.asarray(_dense(values, rows, columns, (height, dense.shape[0])) @ dense)


def _pick(x: Array, rows: Array, columns: Array) -> Array:
    picked = [x[row, column] if row >= 0 else 0 for row, column in zip(rows, columns)]
    return np.asarray(picked, x.dtype).reshape(rows.shape)


def _sample(left: Array, rows: Array, columns: Array, right: Array) -> Array:
    return _pick(left @ right.T, rows, columns)


SPARSE = (
    Contract(
        "sparse_dot",
        _cases("values", "rows", "columns", "right"),
        _dot,
        NUMBERS,
        ULP,
        lambda v, r, c, x, height: _dot(np.abs(v), r, c, np.abs(x), height),
        smooth=(0, 3),
    ),
    Contract(
        "sparse_sample",
        _cases("left", "rows", "columns", "right"),
        _sample,
        NUMBERS,
        ULP,
        lambda a, r, c, b: _sample(np.abs(a), r, c, np.abs(b)),
        smooth=(0, 3),
    ),
    Contract(
        "sparse_dense",
        _cases("values", "rows", "columns"),
        _dense,
        NUMBERS,
        ULP,
        lambda v, r, c, shape: _dense(np.abs(v), r, c, shape),
        smooth=(0,),
    ),
    Contract("sparse_pick", _cases("matrix", "rows", "columns"), _pick, NUMBERS, 0, smooth=(0,)),
)
