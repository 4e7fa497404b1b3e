"""The contracts of ops whose result is a tuple, or is cut where it leaves: loops, branches, beam search, trim.

A tuple is no array: what is held to the contract is a tensor that its values are joined to.
"""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import numpy as np
from contracts import Array, Case, Contract, Rng, sample

from graphkb.ir.node import Node, make, record
from graphkb.ir.types import DTYPES, FLOATS, NUMBERS
from graphkb.ops import elementwise as ew
from graphkb.ops import leaf, shape
from graphkb.ops.control import ITEM, branch, loop
from graphkb.ops.ctc import CTC_BEAMS
from graphkb.ops.values import trim


# ---------------------------------------------------------------------------------------------- loops
def _scans(dtype: str, rng: Rng) -> Iterator[Case]:
    for (steps, rest), reverse in itertools.product(
        ((4, (3,)), (1, (2, 2)), (0, (3,)), (6, (0,)), (5, ())), (False, True)
    ):
        # Positive numbers, so that nothing cancels.
        parts = (rest, (steps, *rest), rest)
        yield Case(tuple(sample(dtype, part, rng, 0.5, 1.5) for part in parts), {"reverse": reverse})


def _build_scan(state: Node, xs: Node, factor: Node, reverse: bool) -> Node:
    """The states before the steps, and below them the last state."""
    before, x = leaf.placeholder(state.shape, state.dtype, "s"), leaf.placeholder(xs.shape[1:], xs.dtype, "x")
    (last,), (stack,) = loop([before, x], [before * factor + x], [before], [state], [xs], xs.shape[0], reverse)
    return shape.concatenate([stack, shape.expand_dims(last, 0)], 0)


def _scan_reference(state: Array, xs: Array, factor: Array, reverse: bool) -> Array:
    stack = np.empty((len(xs) + 1, *state.shape), state.dtype)
    for i in reversed(range(len(xs))) if reverse else range(len(xs)):
        stack[i] = state
        state = state * factor + xs[i]
    stack[-1] = state
    return stack


def _build_item(state: Node, xs: Node, factor: Node, reverse: bool) -> Node:
    """The stacked outputs alone."""
    stack = _build_scan(state, xs, factor, reverse).inputs[0]
    assert stack.op is ITEM
    return stack


def _item_reference(state: Array, xs: Array, factor: Array, reverse: bool) -> Array:
    return _scan_reference(state, xs, factor, reverse)[:-1]


# ---------------------------------------------------------------------------------------------- branches
def _conds(dtype: str, rng: Rng) -> Iterator[Case]:
    for size, test in itertools.product(((), (7,), (0, 2), (3, 5)), (False, True)):
        yield Case((sample(dtype, size, rng), sample(dtype, size, rng), np.array(test)))


def _build_cond(x: Node, y: Node, test: Node) -> Node:
    with record() as made_then:
        then = [ew.maximum(x, y), x]
    with record() as made_other:
        other = [ew.minimum(x, y), y]
    first, second = branch(test, then, other, made_then, made_other)
    return shape.concatenate([shape.expand_dims(first, 0), shape.expand_dims(second, 0)], 0)


def _cond_reference(x: Array, y: Array, test: Array) -> Array:
    return np.stack([np.maximum(x, y), x] if test else [np.minimum(x, y), y])


# ---------------------------------------------------------------------------------------------- beam search
def _beams(dtype: str, rng: Rng) -> Iterator[Case]:
    for steps, classes, paths, merge in ((4, 3, 3, False), (4, 3, 3, True), (3, 4, 1, False), (1, 2, 2, False)):
        scores = rng.uniform(-3, 0, (3, steps, classes)).astype(dtype)
        lengths = np.array([steps, max(steps - 1, 1), steps])
        yield Case((scores, lengths), {"width": classes**steps, "paths": paths, "merge_repeated": merge})
    yield Case((np.zeros((0, 2, 3), dtype), np.zeros(0, int)), {"width": 9, "paths": 1, "merge_repeated": False})


def _build_beams(scores: Node, lengths: Node, **attrs: Any) -> Node:
    found = make(CTC_BEAMS, (scores, lengths), attrs)
    labels, totals = (make(ITEM, (found,), {"index": i}) for i in (0, 1))
    return shape.concatenate([ew.cast(labels, scores.dtype), shape.expand_dims(totals, 2)], 2)


def _beams_reference(scores: Array, lengths: Array, width: int, paths: int, merge_repeated: bool) -> Array:
    """Every path there is, its probability added to that of what it spells."""
    samples, steps, classes = scores.shape
    out = np.full((samples, paths, steps + 1), -1, scores.dtype)
    for i in range(samples):
        p = np.exp(scores[i, : lengths[i]])
        p /= p.sum(axis=1, keepdims=True)
        totals: dict[tuple[int, ...], Any] = defaultdict(float)
        for path in itertools.product(range(classes), repeat=len(p)):
            spelled = tuple(c for c, _ in itertools.groupby(path) if c != classes - 1)
            totals[spelled] += np.prod([row[c] for row, c in zip(p, path)])
        best = sorted(totals.items(), key=lambda item: -item[1])[:paths]
        for k, (labels, total) in enumerate(best):
            shown = [c for c, _ in itertools.groupby(labels)] if merge_repeated else labels
            out[i, k, : len(shown)] = shown
            out[i, k, -1] = np.log(total)
    return out


# ---------------------------------------------------------------------------------------------- trim
def _rows(dtype: str, rng: Rng) -> Iterator[Case]:
    for size in ((0, 0), (2, 3), (1, 7)):
        yield Case((sample(dtype, size, rng),))


def _build_trimmed(x: Node) -> Node:
    """Not an output itself, it keeps all columns."""
    return shape.transpose(trim(x), (1, 0))


CONTROL = (
    Contract("scan", _scans, _scan_reference, NUMBERS, 16, smooth=(0, 1, 2), build=_build_scan),
    Contract(
        "item",
        _scans,
        lambda *xs, **a: _scan_reference(*xs, **a)[:-1],
        NUMBERS,
        16,
        build=_build_item,
        smooth=(0, 1, 2),
    ),
    Contract("cond", _conds, _cond_reference, DTYPES, 0, smooth=(0, 1), build=_build_cond),
    Contract("ctc_beams", _beams, _beams_reference, FLOATS, 64, build=_build_beams),
    Contract("trim", _rows, np.transpose, ("int64",), build=_build_trimmed),
)
