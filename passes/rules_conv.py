"""Convolutions and sums over windows of spread operands: each phase of the result meets only some of the taps.

The zeros between the elements are not multiplied: that shows where a kernel has infinities or NaN, which then meet only
what they belong to.
"""

from __future__ import annotations

import itertools
from math import gcd

from graphkb.ir.dims import Shape
from graphkb.ir.node import Node
from graphkb.ir.record import record
from graphkb.ops import shape as sh
from graphkb.ops.conv import conv
from graphkb.ops.elementwise import const_like
from graphkb.ops.window import window_sum
from graphkb.passes.rewrite import rule

Sizes = tuple[int, ...]


@record
class _Phase:
    """What every s-th place of a result along one axis reads of an operand whose elements lie s apart, from place 0 on.

    Place number q reads elements first + q + j * apart for j < taps, which meet tap start + j * step.
    """

    places: int
    first: int
    apart: int
    taps: int
    start: int
    step: int

    @property
    def end(self) -> int:
        """One beyond the last element that is read."""
        return self.first + self.places + (self.taps - 1) * self.apart


def _phases(places: int, taps: int, dilation: int, begin: int, apart: int) -> list[_Phase]:
    """The phases along an axis: i + t * dilation = begin + p * apart tells which element p meets tap t at place i."""
    common = gcd(apart, dilation)
    step = apart // common
    found = []
    for r in range(apart):
        count = (places - r + apart - 1) // apart
        start = next((t for t in range(step) if (r + t * dilation - begin) % apart == 0), taps)
        first = (r + start * dilation - begin) // apart
        found.append(_Phase(count, first, dilation // common, len(range(start, taps, step)), start, step))
    return found


@record
class _Spread:
    """An operand whose elements lie apart in zeros: the operand, surrounded by zeros, and the phases of each axis.

    Attributes:
        x: the operand as far as any phase reads it.
        shape: of the result along the axes with phases.
        axes: for each of them the phases and how many zeros stand before the operand.
    """

    x: Node
    shape: Sizes
    axes: tuple[tuple[tuple[_Phase, ...], int], ...]


def _spread(node: Node, first: int, taps: Sizes, dilations: Sizes) -> _Spread | None:
    """The phases of a sum over taps of unit stride along the axes from `first` on, where its operand is spread.

    The operand may be transposed, as that of a kernel's gradient is: what is built of it keeps its order in memory.
    """
    (spread, *_) = node.inputs
    order = tuple(range(spread.ndim))
    if spread.op is sh.TRANSPOSE:
        order, (spread,) = spread.attrs["axes"], spread.inputs
    if spread.op is not sh.PAD or max(spread.attrs["steps"]) == 1 or min(spread.attrs["steps"]) < 1:
        return None
    (x,) = spread.inputs
    starts, steps, last = spread.attrs["starts"], spread.attrs["steps"], first + len(taps)
    rest = [a for i, a in enumerate(order) if not first <= i < last]
    if any(steps[a] != 1 or starts[a] != 0 or spread.shape[a] != x.shape[a] for a in rest):
        return None
    axes: list[tuple[tuple[_Phase, ...], int]] = []
    begins, totals, shape = [0] * x.ndim, list(x.shape), []
    for place, count, dilation in zip(range(first, last), taps, dilations):
        axis = order[place]
        size, begin, places = x.shape[axis], starts[axis], node.shape[place]
        if not (isinstance(size, int) and isinstance(begin, int) and isinstance(places, int)):
            return None
        phases = _phases(places, count, dilation, begin, steps[axis])
        read = [p for p in phases if p.taps and p.places]
        before = max([0, *[-p.first for p in read]])
        begins[axis] = before
        totals[axis] = before + max([size, *[p.end for p in read]])
        axes.append((tuple(phases), before))
        shape.append(places)
    padded = sh.pad(x, tuple(begins), (1,) * x.ndim, tuple(totals))
    return _Spread(sh.transpose(padded, order), tuple(shape), tuple(axes))


@rule("conv")
def conv_spread(node: Node) -> Node | None:
    """conv(pad(x) with steps, kernel) -> interleave(conv(x, every few taps of the kernel), ...)"""
    _, kernel = node.inputs
    n = len(node.attrs["strides"])
    taps = kernel.shape[:n]
    if any(s != 1 for s in node.attrs["strides"]) or not all(isinstance(k, int) for k in taps):
        return None
    found = _spread(node, 1, taps, node.attrs["dilations"])
    if found is None:
        return None
    rest = kernel.shape[n:]
    parts = []
    for phases in itertools.product(*[phases for phases, _ in found.axes]):
        places = (node.shape[0], *[p.places for p in phases], *node.shape[n + 1 :])
        if any(p.taps == 0 or p.places == 0 for p in phases):
            parts.append(sh.broadcast_to(const_like(0, node), places))
            continue
        seen = _seen(found, phases, (found.x.shape[0],), found.x.shape[n + 1 :])
        some = sh.slice_(
            kernel,
            (*[p.start for p in phases], *[0 for _ in rest]),
            (*[p.taps for p in phases], *rest),
            (*[p.step for p in phases], *[1 for _ in rest]),
        )
        parts.append(conv(seen, some, (1,) * n, tuple([p.apart for p in phases])))
    steps = (1, *[len(phases) for phases, _ in found.axes], *[1 for _ in node.shape[n + 1 :]])
    return sh.interleave(parts, steps, node.shape)


def _seen(found: _Spread, phases: tuple[_Phase, ...], before: Shape, after: Shape) -> Node:
    """The part of the operand that one phase along each axis reads."""
    starts = [p.first + zeros for p, (_, zeros) in zip(phases, found.axes)]
    sizes = [p.end - p.first for p in phases]
    ends = [0 for _ in after]
    return sh.slice_(found.x, (*[0 for _ in before], *starts, *ends), (*before, *sizes, *after))


@rule("window_sum")
def window_sum_spread(node: Node) -> Node | None:
    """window_sum(pad(x) with steps) -> interleave(window_sum(x) over fewer elements, ...)"""
    window, strides = node.attrs["window"], node.attrs["strides"]
    if any(s != 1 for s in strides) or node.inputs[0].op is not sh.PAD:
        return None
    wide = [a for a, s in enumerate(node.inputs[0].attrs["steps"]) if s != 1]
    if not wide:
        return None
    first, last = min(wide), max(wide) + 1
    # Axes outside of these keep their windows.
    found = _spread(node, first, window[first:last], (1,) * (last - first))
    if found is None:
        return None
    parts = []
    for phases in itertools.product(*[phases for phases, _ in found.axes]):
        places = (*node.shape[:first], *[p.places for p in phases], *node.shape[last:])
        if any(p.taps == 0 or p.places == 0 for p in phases):
            parts.append(sh.broadcast_to(const_like(0, node), places))
            continue
        seen = _seen(found, phases, found.x.shape[:first], found.x.shape[last:])
        fewer = (*window[:first], *[p.taps for p in phases], *window[last:])
        parts.append(window_sum(seen, fewer, (1,) * node.ndim) if any(w != 1 for w in fewer) else seen)
    steps = (*[1] * first, *[len(phases) for phases, _ in found.axes], *[1] * (node.ndim - last))
    return sh.interleave(parts, steps, node.shape)


CONVS = (conv_spread, window_sum_spread)
