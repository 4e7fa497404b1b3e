"""Reading: the element of a node at an index, as an expression of the loop language."""

from __future__ import annotations

from collections.abc import Sequence

from graphkb.codegen.loops import (
    Accumulator,
    Affine,
    Apply,
    Buffer,
    Const,
    IndexValue,
    Load,
    Lookup,
    LoopExpr,
    Result,
    SizeValue,
    Var,
    affine,
)
from graphkb.codegen.padding import Edge, Joint, is_inside, limits, padded_load
from graphkb.ir.dims import Dim, Shape
from graphkb.ir.node import Node
from graphkb.ir.record import record

# Reductions that a Reduce statement can express, with the name of their accumulator's operation.
REDUCTIONS = {"sum", "prod", "max", "min", "any", "all", "argmax", "argmin"}
# Reductions over sliding windows, with the name of their accumulator's operation.
WINDOWS = {"window_sum": "sum", "window_max": "max", "window_argmax": "argmax"}


def strides(shape: Shape) -> tuple[Dim, ...]:
    """Row-major strides, in elements."""
    out: list[Dim] = []
    step: Dim = 1
    for dim in reversed(shape):
        out.append(step)
        step = step * dim
    return tuple(reversed(out))


def linear(shape: Shape, index: Sequence[Affine]) -> Affine:
    """The position of an element in row-major order."""
    total = Affine()
    for dim, step, i in zip(shape, strides(shape), index):
        if dim != 1:
            total = total.plus(i.scaled(step))
    return total


@record
class Reduction:
    """A reduction that a reader met: what it combines, over which variables."""

    accumulator: Accumulator
    reduced: list[Var]
    value: LoopExpr
    position: Affine | None


class Reader:
    """Turns nodes at an index into expressions; every (node, index) pair is one shared expression."""

    def __init__(self, buffers: dict[Node, Buffer], reduced: Sequence[Var] = ()) -> None:
        self.buffers = buffers
        # Where a kernel has several reductions, all of them run along these variables.
        self.reduced = reduced
        self.reductions: list[Reduction] = []
        # Where elements of padding may be read: positions along an axis, and how many elements that has.
        self.edges: list[Edge] = []
        # Where concatenations are read, if it depends on loops which operand that is.
        self.joints: list[Joint] = []
        self._known: dict[tuple[Node, tuple[Affine, ...]], LoopExpr] = {}
        self._loads: dict[tuple[Buffer, Affine], Load] = {}

    def load(self, node: Node, index: tuple[Affine, ...]) -> Load:
        buffer = self.buffers[node]
        place = linear(node.shape, index)
        return self._loads.setdefault((buffer, place), Load(buffer, place))

    def read(self, node: Node, index: tuple[Affine, ...]) -> LoopExpr:
        """The element of a node at an index, one affine function for each of its axes."""
        key = (node, index)
        expr = self._known.get(key)
        if expr is None:
            expr = self._known[key] = self._read(node, index)
        return expr

    def _read(self, node: Node, index: tuple[Affine, ...]) -> LoopExpr:
        if node in self.buffers:
            return self.load(node, index)
        attrs = node.attrs
        match node.op.name:
            case "constant":
                return Const(attrs["value"].array.item(), node.dtype)
            case "size":
                return SizeValue(attrs["dim"], node.dtype)
            case "iota":
                return IndexValue(index[0], node.dtype)
            case "positions":
                return IndexValue(linear(node.shape, index), node.dtype)
            case "reshape":
                return self.read(node.inputs[0], _reshaped(node, index))
            case "transpose":
                inner = [Affine()] * node.ndim
                for position, axis in enumerate(attrs["axes"]):
                    inner[axis] = index[position]
                return self.read(node.inputs[0], tuple(inner))
            case "broadcast_to" | "broadcast_like":
                return self.read(node.inputs[0], _broadcast(node.inputs[0], node, index))
            case "slice":
                ranges = zip(index, attrs["starts"], attrs["steps"])
                moved = tuple([i.scaled(step).shifted(start) for i, start, step in ranges])
                return self.read(node.inputs[0], moved)
            case "stop_gradient" | "guard":
                return self.read(node.inputs[0], index)
            case "pad" | "pad_value":
                return self._padded(node, index)
            case "concatenate":
                return self._joined(node, index)
            case "gather":
                return self._gather(node, index)
            case name if name in REDUCTIONS:
                return self._reduce(node, index)
            case "dot":
                return self._dot(node, index)
            case "conv":
                return self._conv(node, index)
            case name if name in WINDOWS:
                return self._window(node, index)
            case name if node.op.kind == "elementwise":
                args = tuple([self.read(x, _broadcast(x, node, index)) for x in node.inputs])
                return Apply(name, args, node.dtype)
            case name:
                raise AssertionError(f"{name} can not stand inside a fused kernel")

    def _padded(self, node: Node, index: tuple[Affine, ...]) -> LoopExpr:
        """An element of what lies in memory, or of the padding around it."""
        (x,) = node.inputs
        place = tuple([i.shifted(-start) for i, start in zip(index, node.attrs["starts"])])
        fill = Const(node.attrs.get("value", False if node.dtype == "bool" else 0), node.dtype)
        edges: dict[int, Edge] = {}
        for axis, (n, total) in enumerate(zip(x.shape, node.shape)):
            if n == total:
                continue
            assert isinstance(n, int), "padding of unknown sizes is copied"
            inside = is_inside((place[axis], n))
            if inside is False:
                return fill
            if inside is None:
                edges[axis] = place[axis], n
        if not edges:
            return self.read(x, place)
        self.edges += edges.values()
        return padded_load(lambda at: self.load(x, at), place, edges, strides(x.shape), fill)

    def _joined(self, node: Node, index: tuple[Affine, ...]) -> LoopExpr:
        """An element of the operand that the position along the axis lies in; of the first where that depends."""
        axis: int = node.attrs["axis"]
        found, begin, begins = limits(index[axis]), 0, list[int]()
        for x in node.inputs:
            n = x.shape[axis]
            assert isinstance(n, int), "operands of unknown sizes are joined in memory"
            if found is not None and begin <= found[0] and found[1] < begin + n:
                return self.read(x, tuple([p.shifted(-begin) if i == axis else p for i, p in enumerate(index)]))
            begins.append(begin)
            begin += n
        self.joints.append((index[axis], tuple(begins)))
        return self.read(node.inputs[0], index)

    def _gather(self, node: Node, index: tuple[Affine, ...]) -> LoopExpr:
        x, indices = node.inputs
        axis = node.attrs["axis"]
        end = axis + indices.ndim
        place = linear(x.shape, (*index[:axis], Affine(), *index[end:]))
        position = as_dtype(self.read(indices, index[axis:end]), "int64")
        return Lookup(self.buffers[x], place, strides(x.shape)[axis], position)

    def _dot(self, node: Node, index: tuple[Affine, ...]) -> LoopExpr:
        """A product as a sum over the contracted axes, for the dtypes and ranks that no matrix kernel takes."""
        x, y = node.inputs
        batch_x, batch_y, contract_x, contract_y = (node.attrs[p] for p in node.op.params)
        reduced = [Var(f"r{i}", x.shape[axis]) for i, axis in enumerate(contract_x)]
        left, right = [Affine()] * x.ndim, [Affine()] * y.ndim
        for var, a, b in zip(reduced, contract_x, contract_y):
            left[a] = right[b] = along(var)
        rest = iter(index)
        for a, b in zip(batch_x, batch_y):
            left[a] = right[b] = next(rest)
        for axis in range(x.ndim):
            if axis not in batch_x and axis not in contract_x:
                left[axis] = next(rest)
        for axis in range(y.ndim):
            if axis not in batch_y and axis not in contract_y:
                right[axis] = next(rest)
        return self._sum_of_products(node, reduced, tuple(left), tuple(right))

    def _conv(self, node: Node, index: tuple[Affine, ...]) -> LoopExpr:
        """A convolution as a sum over taps and channels: element p of the result reads p * stride + t * dilation."""
        x, kernel = node.inputs
        strides, dilations = node.attrs["strides"], node.attrs["dilations"]
        n = len(strides)
        taps = [Var(f"r{i}", size) for i, size in enumerate(kernel.shape[:n])]
        channel = Var(f"r{n}", x.shape[-1])
        groups = index[n + 1 : -1]
        places = [
            p.scaled(s).plus(along(t).scaled(d)) for p, s, t, d in zip(index[1 : n + 1], strides, taps, dilations)
        ]
        left = (index[0], *places, *groups, along(channel))
        right = (*map(along, taps), *groups, along(channel), index[-1])
        return self._sum_of_products(node, [*taps, channel], left, right)

    def _sum_of_products(
        self, node: Node, reduced: list[Var], left: tuple[Affine, ...], right: tuple[Affine, ...]
    ) -> LoopExpr:
        """The sum over `reduced` of the first operand at one index times the second at another."""
        wide = accumulator_dtype(node.dtype)
        args = tuple([as_dtype(self.read(n, i), wide) for n, i in zip(node.inputs, (left, right))])
        return self._begin(Accumulator("acc", "sum", wide), reduced, Apply("mul", args, wide), None, node.dtype)

    def _window(self, node: Node, index: tuple[Affine, ...]) -> LoopExpr:
        """A reduction over the cells of a window, numbered in row-major order."""
        (x,) = node.inputs
        window = node.attrs["window"]
        op = WINDOWS[node.op.name]
        reduced = [Var(f"r{axis}", size) for axis, size in enumerate(window)]
        inner = [p.scaled(s).plus(along(c)) for p, s, c in zip(index, node.attrs["strides"], reduced)]
        dtype = accumulator_dtype(x.dtype)
        position = linear(window, tuple(map(along, reduced))) if op == "argmax" else None
        value = as_dtype(self.read(x, tuple(inner)), dtype)
        return self._begin(Accumulator("acc", op, dtype), reduced, value, position, node.dtype)

    def _begin(
        self, accumulator: Accumulator, reduced: list[Var], value: LoopExpr, position: Affine | None, dtype: str
    ) -> LoopExpr:
        self.reductions.append(Reduction(accumulator, reduced, value, position))
        return as_dtype(Result(accumulator), dtype)

    def _reduce(self, node: Node, index: tuple[Affine, ...]) -> LoopExpr:
        (x,) = node.inputs
        axes = (node.attrs["axis"],) if "axis" in node.attrs else node.attrs["axes"]
        keepdims = node.attrs.get("keepdims", False)
        reduced: list[Var] = []
        inner: list[Affine] = []
        kept = iter(index)
        # Other reductions of the kernel may have more or fewer axes of size 1.
        given = iter([var for var in self.reduced if var.extent != 1])
        for axis, dim in enumerate(x.shape):
            if axis in axes:
                if keepdims:
                    next(kept)
                var = next(given) if self.reduced and dim != 1 else Var(f"r{len(reduced)}", dim)
                reduced.append(var)
                inner.append(along(var))
            else:
                inner.append(next(kept))
        dtype = accumulator_dtype(x.dtype)
        value = as_dtype(self.read(x, tuple(inner)), dtype)
        count = len(self.reductions)
        accumulator = Accumulator(f"acc{count or ''}", node.op.name, dtype)
        position = along(reduced[0]) if node.op.name in ("argmax", "argmin") else None
        return self._begin(accumulator, reduced, value, position, node.dtype)


def along(var: Var) -> Affine:
    """The index that runs along a loop; loops of one round do not exist."""
    return Affine() if var.extent == 1 else affine(var)


def as_dtype(expr: LoopExpr, dtype: str) -> LoopExpr:
    """The expression, converted where it must be."""
    return expr if expr.dtype == dtype else Apply("cast", (expr,), dtype)


def accumulator_dtype(dtype: str) -> str:
    """float16 reductions run in float32: sums and products as NumPy's do, comparisons because machines have those."""
    return "float32" if dtype == "float16" else dtype


def _broadcast(x: Node, y: Node, index: tuple[Affine, ...]) -> tuple[Affine, ...]:
    """The index into an operand that NumPy broadcasting gives for an index into the result."""
    offset = y.ndim - x.ndim
    return tuple([Affine() if n == 1 else index[offset + axis] for axis, n in enumerate(x.shape)])


def _reshaped(node: Node, index: tuple[Affine, ...]) -> tuple[Affine, ...]:
    """The index before a reshape that only adds and removes axes of size 1."""
    rest = iter([i for i, n in zip(index, node.shape) if n != 1])
    return tuple([Affine() if n == 1 else next(rest) for n in node.inputs[0].shape])
