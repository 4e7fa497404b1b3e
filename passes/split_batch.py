"""Splitting: the body of a loop over a batch becomes the same body over some of its samples."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace

from graphkb.ir.graph import Graph
from graphkb.ir.node import Node, make, remake
from graphkb.ir.origin import set_override
from graphkb.ir.record import record
from graphkb.ir.types import TupleType
from graphkb.ops.leaf import placeholder
from graphkb.ops.shape import broadcast_to

# How often a parameter may turn out to belong to the samples after it was taken to be the same for all of them.
_MOST_TRIALS = 8


@record
class SplitBody:
    """A body that computes some samples.

    Attributes:
        body: the body; its results, and the parameters that differ from sample to sample, have fewer rows.
        varying: the parameters that differ from sample to sample, by their places; samples are their first axis.
    """

    body: Graph
    varying: frozenset[int]


def split_body(body: Graph, states: int, sequences: int, count: int) -> SplitBody | None:
    """The body for `count` samples of the batch; None where samples depend on one another, or where that is not sure.

    The first axis of the states is the batch. Every op must compute a sample of its result from that sample of its
    operands alone, and every result of the body must have the batch as its first axis.

    Args:
        body: the body of a fused loop.
        states, sequences: how many of its parameters are states, and how many slices of sequences.
        count: samples, fewer than the batch has.
    """
    if not states or not body.outputs:
        return None
    batch = body.inputs[0].shape[0] if body.inputs[0].ndim else 0
    if not isinstance(batch, int) or batch <= count:
        return None
    if any(not p.ndim or p.shape[0] != batch for p in (*body.inputs[:states], *body.outputs)):
        return None
    varying = {i for i, p in enumerate(body.inputs[: states + sequences]) if p.ndim and p.shape[0] == batch}
    previous = set_override(None)
    try:
        for _ in range(_MOST_TRIALS):
            given = {p: 0 if i in varying else None for i, p in enumerate(body.inputs)}
            try:
                return SplitBody(_Splitter(batch, count).graph(body, given), frozenset(varying))
            except _NarrowError as error:
                more = {i for i, p in enumerate(body.inputs) if p is error.node}
                if not more or more <= varying:
                    return None
                varying |= more
    except _DependError:
        return None
    finally:
        set_override(previous)
    return None


def splits(node: Node, axes: Sequence[int | None], batch: int) -> bool:
    """Whether every sample of a kernel's results depends on that sample of its operands alone, and lies along axis 0.

    Args:
        node: a fused node.
        axes: along which axis of each operand the samples lie; None where it is the same for all of them.
        batch: how many samples there are.
    """
    body: Graph = node.attrs["body"]
    if any(inner.op.name == "guard" for inner in body.nodes):
        return False
    previous = set_override(None)
    try:
        splitter = _Splitter(batch, 1)
        splitter.graph(body, dict(zip(body.inputs, axes)), first=False)
        return {splitter.axes[out] for out in body.outputs} == {0}
    except _DependError:
        return False
    finally:
        set_override(previous)


def split_samples(body: Graph, varying: Collection[int], count: int) -> Graph:
    """The body of a chain for `count` samples.

    Args:
        body: for all samples of a batch.
        varying: the places of the parameters that have the samples as their first axis.
    """
    batch = body.outputs[0].shape[0]
    assert isinstance(batch, int)
    previous = set_override(None)
    try:
        return _Splitter(batch, count).graph(body, {p: 0 if i in varying else None for i, p in enumerate(body.inputs)})
    finally:
        set_override(previous)


class _DependError(Exception):
    """An op mixes samples, or is not known to keep them apart."""


class _NarrowError(_DependError):
    """A value that was taken to be the same for all samples has the samples as its first axis."""

    def __init__(self, node: Node) -> None:
        self.node = node


@dataclass
class _Splitter:
    """The new values of one body, or of a kernel within it.

    Attributes:
        batch, count: the samples before and after.
        axes: along which axis of an old value the samples lie; None where it is the same for all of them.
        new: what stands for an old value.
        outer: in a kernel, the values that its parameters stand for.
    """

    batch: int
    count: int
    axes: dict[Node, int | None] = field(default_factory=dict)
    new: dict[Node, Node] = field(default_factory=dict)
    outer: Mapping[Node, Node] = field(default_factory=dict)
    _tuples: dict[Node, list[int | None]] = field(default_factory=dict)

    def graph(self, graph: Graph, given: Mapping[Node, int | None], first: bool = True) -> Graph:
        """The graph with the samples of its parameters along the given axes; with `first`, its results have them first.

        Results of kernels tell by `axes` where theirs are.
        """
        inputs = []
        for node in graph.inputs:
            axis = self.axes[node] = given[node]
            name = node.attrs["key"].name
            set_override(node.origin)
            self.new[node] = node if axis is None else placeholder(self.cut(node.shape, axis), node.dtype, name)
            inputs.append(self.new[node])
        for node in graph.nodes:
            if node not in self.new:
                self._visit(node)
        if first and not {self.axes[out] for out in graph.outputs} <= {0, None}:
            raise _DependError
        outputs = [self._narrow(out, 0) if first and self.axes[out] is None else self.new[out] for out in graph.outputs]
        return replace(graph, inputs=tuple(inputs), outputs=tuple(outputs), _order=None)

    def cut(self, shape: Sequence[object], axis: int) -> tuple[int, ...]:
        """A shape with fewer samples along an axis."""
        return tuple([self.count if i == axis else n for i, n in enumerate(shape)])  # type: ignore[misc]

    def _visit(self, node: Node) -> None:
        if node.op.kind == "leaf":
            self.axes[node], self.new[node] = None, node
            return
        set_override(node.origin)
        axes = [self.axes[i] for i in node.inputs]
        if node.op.name == "item":
            self._item(node)
        elif node.op.kind == "fused":
            self._fused(node)
        elif all(axis is None for axis in axes):
            self.axes[node] = None
            self.new[node] = remake(node, tuple([self.new[i] for i in node.inputs]))
        else:
            self._apply(node, axes)

    def _apply(self, node: Node, axes: Sequence[int | None]) -> None:
        """An op some of whose operands differ from sample to sample."""
        rule = _elementwise if node.op.kind in ("elementwise", "marker") else _RULES.get(node.op.name)
        if rule is None:
            raise _DependError
        axis, attrs = rule(self, node, axes)
        inputs = []
        for i, x in enumerate(node.inputs):
            along = self._needed(node, i, axis)
            inputs.append(self.new[x] if self.axes[x] is not None or along is None else self._narrow(x, along))
        made = make(node.op, tuple(inputs), attrs, None, node.origin)
        if made.shape != self.cut(node.shape, axis) or node.shape[axis] != self.batch:
            raise _DependError
        self.axes[node], self.new[node] = axis, made

    def _needed(self, node: Node, index: int, axis: int) -> int | None:
        """The axis along which an operand without samples must be narrowed to meet the others; None if none."""
        x = node.inputs[index]
        if node.op.kind == "elementwise":
            along = axis - (node.ndim - x.ndim)
            return along if along >= 0 and x.shape[along] != 1 else None
        return axis if node.op.name == "concatenate" else None

    def _narrow(self, node: Node, axis: int) -> Node:
        """A value that is the same for all samples, but as long as the batch: with fewer of its equal rows."""
        if self.axes[node] is not None or node.shape[axis] != self.batch:
            raise _DependError
        if node in self.outer or node.op.name == "placeholder":
            raise _NarrowError(self.outer.get(node, node))
        if node.op.name == "broadcast_to":
            (x,) = node.inputs
            along = axis - (node.ndim - x.ndim)
            if along < 0 or x.shape[along] == 1:
                return broadcast_to(self.new[x], self.cut(node.shape, axis))
        if node.op.kind in ("elementwise", "marker"):
            inputs = []
            for x in node.inputs:
                along = axis - (node.ndim - x.ndim)
                inputs.append(self.new[x] if along < 0 or x.shape[along] == 1 else self._narrow(x, along))
            return make(node.op, tuple(inputs), node.attrs, None, node.origin)
        raise _DependError

    # ------------------------------------------------------------------ kernels
    def _fused(self, node: Node) -> None:
        body: Graph = node.attrs["body"]
        inner = _Splitter(self.batch, self.count, outer=dict(zip(body.inputs, node.inputs)))
        new = inner.graph(body, dict(zip(body.inputs, [self.axes[i] for i in node.inputs])), first=False)
        found = [inner.axes[out] for out in body.outputs]
        if isinstance(node.type, TupleType):
            self._tuples[node] = found
        self.axes[node] = found[0]
        self.new[node] = make(node.op, tuple([self.new[i] for i in node.inputs]), {"body": new}, None, node.origin)

    def _item(self, node: Node) -> None:
        (source,) = node.inputs
        if source not in self._tuples:
            raise _DependError
        self.axes[node] = self._tuples[source][node.attrs["index"]]
        self.new[node] = remake(node, (self.new[source],))


# ---------------------------------------------------------------------------------------------- rules
_Attrs = Mapping[str, object]
_Rule = Callable[[_Splitter, Node, Sequence[int | None]], tuple[int, _Attrs]]


def _only(axes: Sequence[int | None]) -> int:
    """The one axis of the samples; the operands that have them must agree."""
    (axis,) = {axis for axis in axes if axis is not None} if len({a for a in axes if a is not None}) == 1 else (None,)
    if axis is None:
        raise _DependError
    return axis


def _elementwise(s: _Splitter, node: Node, axes: Sequence[int | None]) -> tuple[int, _Attrs]:
    aligned = [None if a is None else a + node.ndim - x.ndim for a, x in zip(axes, node.inputs)]
    return _only(aligned), node.attrs


def _dot(s: _Splitter, node: Node, axes: Sequence[int | None]) -> tuple[int, _Attrs]:
    found = set()
    for side, axis, x in zip("xy", axes, node.inputs):
        batch, contract = node.attrs[f"batch_{side}"], node.attrs[f"contract_{side}"]
        if axis is None:
            continue
        if axis in contract:
            raise _DependError
        if axis in batch:
            found.add(batch.index(axis))
            if axes["xy".index("y" if side == "x" else "x")] is None:
                raise _DependError
            continue
        free = [a for a in range(x.ndim) if a not in (*batch, *contract)]
        before = len(batch)
        if side == "y":
            before += node.inputs[0].ndim - before - len(node.attrs["contract_x"])
        found.add(before + free.index(axis))
    return _only(list(found)), node.attrs


def _conv(s: _Splitter, node: Node, axes: Sequence[int | None]) -> tuple[int, _Attrs]:
    if axes[0] != 0 or axes[1] is not None:
        raise _DependError
    return 0, node.attrs


def _window(s: _Splitter, node: Node, axes: Sequence[int | None]) -> tuple[int, _Attrs]:
    axis = _only(axes)
    if node.attrs["window"][axis] != 1 or node.attrs["strides"][axis] != 1:
        raise _DependError
    return axis, node.attrs


def _reduction(s: _Splitter, node: Node, axes: Sequence[int | None]) -> tuple[int, _Attrs]:
    axis, reduced = _only(axes), node.attrs["axes"]
    if axis in reduced:
        raise _DependError
    return axis if node.attrs["keepdims"] else axis - sum(a < axis for a in reduced), node.attrs


def _search(s: _Splitter, node: Node, axes: Sequence[int | None]) -> tuple[int, _Attrs]:
    axis, searched = _only(axes), node.attrs["axis"]
    if axis == searched:
        raise _DependError
    return axis - (searched < axis), node.attrs


def _along(s: _Splitter, node: Node, axes: Sequence[int | None]) -> tuple[int, _Attrs]:
    axis = _only(axes)
    if axis == node.attrs["axis"]:
        raise _DependError
    return axis, node.attrs


def _transpose(s: _Splitter, node: Node, axes: Sequence[int | None]) -> tuple[int, _Attrs]:
    return node.attrs["axes"].index(_only(axes)), node.attrs


def _reshape(s: _Splitter, node: Node, axes: Sequence[int | None]) -> tuple[int, _Attrs]:
    axis, (x,) = _only(axes), node.inputs
    size = 1
    for n in x.shape[:axis]:
        size *= n
    before = 1
    for found, n in enumerate(node.shape):
        if before == size and n == s.batch:
            return found, {"shape": s.cut(node.shape, found)}
        before *= n
    raise _DependError


def _broadcast(s: _Splitter, node: Node, axes: Sequence[int | None]) -> tuple[int, _Attrs]:
    axis = _only(axes) + node.ndim - node.inputs[0].ndim
    return axis, {"shape": s.cut(node.shape, axis)}


def _slice(s: _Splitter, node: Node, axes: Sequence[int | None]) -> tuple[int, _Attrs]:
    axis, attrs = _only(axes), node.attrs
    if attrs["starts"][axis] != 0 or attrs["steps"][axis] != 1:
        raise _DependError
    return axis, {**attrs, "sizes": s.cut(attrs["sizes"], axis)}


def _pad(s: _Splitter, node: Node, axes: Sequence[int | None]) -> tuple[int, _Attrs]:
    axis, attrs = _only(axes), node.attrs
    if attrs["starts"][axis] != 0 or attrs.get("steps", {axis: 1})[axis] != 1:
        raise _DependError
    return axis, {**attrs, "shape": s.cut(attrs["shape"], axis)}


def _interleave(s: _Splitter, node: Node, axes: Sequence[int | None]) -> tuple[int, _Attrs]:
    axis, attrs = _only(axes), node.attrs
    if attrs["steps"][axis] != 1 or None in axes:
        raise _DependError
    return axis, {**attrs, "shape": s.cut(attrs["shape"], axis)}


def _gather(s: _Splitter, node: Node, axes: Sequence[int | None]) -> tuple[int, _Attrs]:
    taken = node.attrs["axis"]
    if axes[0] is None and axes[1] is not None:
        return taken + axes[1], node.attrs
    if axes[0] is None or axes[1] is not None or axes[0] == taken:
        raise _DependError
    return axes[0] + (node.inputs[1].ndim - 1 if axes[0] > taken else 0), node.attrs


_RULES: dict[str, _Rule] = {
    "dot": _dot,
    "conv": _conv,
    "window_sum": _window,
    "window_max": _window,
    "window_argmax": _window,
    **dict.fromkeys(("sum", "prod", "max", "min", "any", "all"), _reduction),
    "argmax": _search,
    "argmin": _search,
    "cumsum": _along,
    "cumprod": _along,
    "transpose": _transpose,
    "reshape": _reshape,
    "broadcast_to": _broadcast,
    "slice": _slice,
    "pad": _pad,
    "pad_value": _pad,
    "concatenate": _along,
    "interleave": _interleave,
    "gather": _gather,
}

__all__ = ["SplitBody", "split_body", "split_samples", "splits"]
