"""The contracts of convolutions, of reductions over windows, and of padding with a number."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from contracts import Array, Case, Contract, Rng, sample

from graphkb.ir.types import DTYPES, FLOATS, NUMBERS
from graphkb.ops.window import lowest

Axes = tuple[int, ...]

# The operand's shape, the kernel's shape, strides and dilations.
CONVS: tuple[tuple[Axes, Axes, Axes, Axes], ...] = (
    ((1, 3, 1), (2, 1, 2), (1,), (1,)),
    ((2, 7, 2), (3, 2, 2), (2,), (1,)),
    ((1, 6, 2), (2, 2, 1), (1,), (3,)),
    ((1, 4, 2), (1, 2, 3), (3,), (2,)),
    ((0, 5, 2), (2, 2, 3), (1,), (1,)),
    ((1, 1, 2), (3, 2, 2), (2,), (1,)),
    ((2, 4, 0), (2, 0, 3), (1,), (1,)),
    ((1, 4, 3, 1), (2, 2, 1, 2), (1, 1), (1, 1)),
    ((1, 5, 5, 1), (2, 2, 1, 1), (2, 3), (2, 1)),
    ((2, 4, 5, 3), (3, 2, 3, 4), (1, 2), (1, 2)),
    ((1, 9, 8, 5), (3, 3, 5, 17), (1, 1), (1, 1)),
    ((2, 3, 3, 4), (1, 1, 4, 2), (1, 1), (1, 1)),
    ((1, 3, 2, 2, 1), (2, 2, 1, 1, 2), (1, 1, 1), (1, 1, 1)),
    ((1, 3, 2, 2), (2, 2, 2, 1), (1,), (1,)),
    ((1, 3, 3, 3, 1), (2, 2, 3, 1, 1), (1, 1), (1, 1)),
    ((2, 4, 4, 2, 3), (3, 2, 2, 3, 2), (1, 2), (1, 1)),
)


def _convs(dtype: str, rng: Rng) -> Iterator[Case]:
    for x, kernel, strides, dilations in CONVS:
        yield Case((sample(dtype, x, rng), sample(dtype, kernel, rng)), {"strides": strides, "dilations": dilations})
    moved = sample(dtype, (3, 6, 2), rng).T[::-1, ::2], sample(dtype, (2, 3, 2), rng).T
    yield Case(moved, {"strides": (1,), "dilations": (1,)})


def definition(x: Array, kernel: Array, strides: Axes, dilations: Axes) -> Array:
    """The definition: for every place and tap, a product of the channels."""
    n = len(strides)
    if x.ndim == n + 2:
        result = definition(np.expand_dims(x, -2), np.expand_dims(kernel, -3), strides, dilations)
        return result[..., 0, :]
    taps = kernel.shape[:n]
    counts = [(s - (k - 1) * d - 1) // t + 1 for s, k, d, t in zip(x.shape[1:], taps, dilations, strides)]
    out = np.zeros((x.shape[0], *counts, kernel.shape[n], kernel.shape[-1]), x.dtype)
    for place in np.ndindex(*counts):
        for tap in np.ndindex(*taps):
            at = tuple(p * s + t * d for p, s, t, d in zip(place, strides, tap, dilations))
            out[(slice(None), *place)] += np.einsum("bgi,gio->bgo", x[(slice(None), *at)], kernel[tap])
    return out


# ---------------------------------------------------------------------------------------------- windows
WINDOWS: tuple[tuple[Axes, Axes, Axes], ...] = (
    ((), (), ()),
    ((7,), (2,), (2,)),
    ((7,), (3,), (1,)),
    ((6,), (2,), (3,)),
    ((5,), (5,), (1,)),
    ((9,), (2,), (20,)),
    ((4,), (1,), (1,)),
    ((1,), (3,), (2,)),
    ((0, 3), (1, 2), (1, 1)),
    ((4, 5), (2, 3), (2, 1)),
    ((2, 4, 3), (1, 3, 2), (1, 2, 1)),
    ((5, 6), (3, 4), (3, 4)),
    ((1, 5, 5, 1), (1, 3, 3, 1), (1, 2, 2, 1)),
    ((2, 6, 5, 3), (1, 2, 2, 1), (1, 2, 2, 1)),
    ((1, 4, 7, 6), (1, 1, 5, 5), (1, 1, 1, 1)),
    ((2, 9, 33), (1, 2, 1), (1, 1, 1)),
)


def _windows(low: float, high: float) -> Callable[[str, Rng], Iterator[Case]]:
    def cases(dtype: str, rng: Rng) -> Iterator[Case]:
        for dims, window, strides in WINDOWS:
            yield Case((sample(dtype, dims, rng, low, high),), {"window": window, "strides": strides})
        yield Case((sample(dtype, (6, 10), rng, low, high).T[::-2],), {"window": (2, 2), "strides": (1, 2)})

    return cases


def _positions(dtype: str, rng: Rng) -> Iterator[Case]:
    yield from _windows(-4, 4)(dtype, rng)
    yield Case((np.ones((3, 4), dtype),), {"window": (2, 2), "strides": (1, 1)})
    if np.dtype(dtype).kind == "f":
        x = sample(dtype, (5, 9), rng)
        x[1, 2] = x[1, 4] = x[3, 0] = np.nan
        x[4] = -np.inf
        yield Case((x,), {"window": (2, 3), "strides": (1, 1)})


def _over_windows(reduction: Callable[[Array], Any]) -> Callable[..., Array]:
    """A reduction of each window, flattened."""

    def evaluate(x: Array, window: Axes, strides: Axes) -> Array:
        counts = [(n - w) // s + 1 for n, w, s in zip(x.shape, window, strides)]
        out = np.zeros(counts, object)
        for place in np.ndindex(*counts):
            cells = x[tuple(slice(p * s, p * s + w) for p, s, w in zip(place, strides, window))]
            out[place] = reduction(np.asarray(cells).ravel())
        return out

    return evaluate


def _first_largest(cells: Array) -> int:
    best = 0
    for i, value in enumerate(cells):
        if cells[best] == cells[best] and (value != value or value > cells[best]):
            best = i
    return best


def _pads(dtype: str, rng: Rng) -> Iterator[Case]:
    for dims, starts, total in (
        ((), (), ()),
        ((3,), (0,), (3,)),
        ((3,), (2,), (7,)),
        ((2, 3), (1, 0), (4, 3)),
        ((0, 2), (0, 1), (3, 4)),
        ((1, 2, 3), (0, 1, 1), (1, 4, 5)),
    ):
        for value in (-1e4 if dtype in FLOATS else lowest(dtype), True if dtype == "bool" else 7):
            yield Case((sample(dtype, dims, rng),), {"starts": starts, "shape": total, "value": value})


def _pad(x: Array, starts: Axes, shape: Axes, value: float) -> Array:
    out = np.full(shape, value, x.dtype)
    for index in np.ndindex(x.shape):
        out[tuple(s + i for s, i in zip(starts, index))] = x[index]
    return out


CONVOLUTIONS = (
    Contract(
        "conv",
        _convs,
        definition,
        NUMBERS,
        16.0,
        lambda x, kernel, **attrs: definition(np.abs(x), np.abs(kernel), **attrs),
        smooth=(0, 1),
    ),
    Contract(
        "window_sum",
        _windows(-4, 4),
        _over_windows(np.sum),
        NUMBERS,
        16.0,
        lambda x, **attrs: _over_windows(np.sum)(np.abs(x), **attrs),
        smooth=(0,),
    ),
    Contract("window_max", _windows(-4, 4), _over_windows(np.max), DTYPES, smooth=(0,)),
    Contract("window_argmax", _positions, _over_windows(_first_largest), DTYPES),
    Contract("pad_value", _pads, _pad, DTYPES, 0, smooth=(0,)),
)
