"""Lowering: a fused graph becomes a kernel of the loop language, scheduled for a target."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from graphkb.codegen.loops import (
    Accumulator,
    Affine,
    Apply,
    Buffer,
    Combine,
    Const,
    For,
    IndexValue,
    Kernel,
    Load,
    LoopExpr,
    Reduce,
    Result,
    SizeValue,
    Stmt,
    Store,
    Var,
    affine,
    expressions,
    walk,
)
from graphkb.codegen.target import Target
from graphkb.ir.dims import Dim, Shape, product
from graphkb.ir.graph import Graph
from graphkb.ir.node import Node
from graphkb.ir.op import find_op
from graphkb.ir.types import NUMPY_DTYPE

# Reductions that a Reduce statement can express, with the name of their accumulator's operation.
REDUCTIONS = {"sum", "prod", "max", "min", "any", "all", "argmax", "argmin"}
# A float sum of more elements than this runs in blocks of so many, whose results add up in float64.
BLOCK = 2048


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


class _Reader:
    """Turns nodes at an index into expressions; every (node, index) pair is one shared expression."""

    def __init__(self, buffers: dict[Node, Buffer]) -> None:
        self.buffers = buffers
        self.reduction: tuple[Accumulator, list[Var], LoopExpr, Affine | None] | None = None
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
            case "stop_gradient":
                return self.read(node.inputs[0], index)
            case name if name in REDUCTIONS:
                return self._reduce(node, index)
            case "dot":
                return self._dot(node, index)
            case name if node.op.kind == "elementwise":
                args = tuple([self.read(x, _broadcast(x, node, index)) for x in node.inputs])
                return Apply(name, args, node.dtype)
            case name:
                raise AssertionError(f"{name} can not stand inside a fused kernel")

    def _dot(self, node: Node, index: tuple[Affine, ...]) -> LoopExpr:
        """A product as a sum over the contracted axes, for the dtypes and ranks that no matrix kernel takes."""
        x, y = node.inputs
        batch_x, batch_y, contract_x, contract_y = (node.attrs[p] for p in node.op.params)
        reduced = [Var(f"r{i}", x.shape[axis]) for i, axis in enumerate(contract_x)]
        left, right = [Affine()] * x.ndim, [Affine()] * y.ndim
        for var, a, b in zip(reduced, contract_x, contract_y):
            left[a] = right[b] = _along(var)
        rest = iter(index)
        for a, b in zip(batch_x, batch_y):
            left[a] = right[b] = next(rest)
        for axis in range(x.ndim):
            if axis not in batch_x and axis not in contract_x:
                left[axis] = next(rest)
        for axis in range(y.ndim):
            if axis not in batch_y and axis not in contract_y:
                right[axis] = next(rest)
        wide = _accumulator_dtype(node.dtype, "sum")
        args = tuple([_as(self.read(n, tuple(i)), wide) for n, i in ((x, left), (y, right))])
        return self._begin(Accumulator("acc", "sum", wide), reduced, Apply("mul", args, wide), None, node.dtype)

    def _begin(
        self, accumulator: Accumulator, reduced: list[Var], value: LoopExpr, position: Affine | None, dtype: str
    ) -> LoopExpr:
        if self.reduction is not None:
            raise AssertionError("a fused kernel holds one reduction at most")
        self.reduction = (accumulator, reduced, value, position)
        return _as(Result(accumulator), dtype)

    def _reduce(self, node: Node, index: tuple[Affine, ...]) -> LoopExpr:
        (x,) = node.inputs
        axes = (node.attrs["axis"],) if "axis" in node.attrs else node.attrs["axes"]
        keepdims = node.attrs.get("keepdims", False)
        reduced: list[Var] = []
        inner: list[Affine] = []
        kept = iter(index)
        for axis, dim in enumerate(x.shape):
            if axis in axes:
                if keepdims:
                    next(kept)
                var = Var(f"r{len(reduced)}", dim)
                reduced.append(var)
                inner.append(_along(var))
            else:
                inner.append(next(kept))
        accumulator = Accumulator("acc", node.op.name, _accumulator_dtype(x.dtype, node.op.name))
        value = _as(self.read(x, tuple(inner)), accumulator.dtype)
        position = _along(reduced[0]) if node.op.name in ("argmax", "argmin") else None
        return self._begin(accumulator, reduced, value, position, node.dtype)


def _along(var: Var) -> Affine:
    """The index that runs along a loop; loops of one round do not exist."""
    return Affine() if var.extent == 1 else affine(var)


def _as(expr: LoopExpr, dtype: str) -> LoopExpr:
    """The expression, converted where it must be."""
    return expr if expr.dtype == dtype else Apply("cast", (expr,), dtype)


def _accumulator_dtype(dtype: str, op: str) -> str:
    """float16 sums and products run in float32, as NumPy's do."""
    return "float32" if dtype == "float16" and op in ("sum", "prod") else dtype


def _broadcast(x: Node, y: Node, index: tuple[Affine, ...]) -> tuple[Affine, ...]:
    """The index into an operand that NumPy broadcasting gives for an index into the result."""
    offset = y.ndim - x.ndim
    return tuple([Affine() if n == 1 else index[offset + axis] for axis, n in enumerate(x.shape)])


def _reshaped(node: Node, index: tuple[Affine, ...]) -> tuple[Affine, ...]:
    """The index before a reshape that only adds and removes axes of size 1."""
    rest = iter([i for i, n in zip(index, node.shape) if n != 1])
    return tuple([Affine() if n == 1 else next(rest) for n in node.inputs[0].shape])


# ---------------------------------------------------------------------------------------------- kernels
def lower(body: Graph, name: str, target: Target) -> Kernel:
    """The kernel of a fused graph: its inputs become the first buffers, its one output the last."""
    (root,) = body.outputs
    buffers = [Buffer(i, f"in{i}", p.dtype, p.type.size) for i, p in enumerate(body.inputs)]
    out = Buffer(len(buffers), "out", root.dtype, root.type.size, written=True)
    named = dict(zip(body.inputs, buffers))
    origins = tuple(dict.fromkeys(n.origin for n in body.nodes if n.origin is not None))
    if root.op.name == "pad" and root not in named:
        statements = _lower_pad(root, named, out, target)
    elif root.op.name == "concatenate" and root not in named:
        statements = _lower_concatenate(root, named, out, target)
    else:
        statements = _lower_nest(root, named, out, Affine(), strides(root.shape), target)
    return Kernel(name, (*buffers, out), tuple(statements), origins)


def _lower_pad(root: Node, named: dict[Node, Buffer], out: Buffer, target: Target) -> list[Stmt]:
    (x,) = root.inputs
    var = Var("z", root.type.size)
    zero = Const(False if root.dtype == "bool" else 0, root.dtype)
    fill = _schedule_map([var], [Store(out, affine(var), zero)], target)
    steps = strides(root.shape)
    offset: Dim = 0
    for start, step in zip(root.attrs["starts"], steps):
        offset = offset + start * step
    scaled = tuple([s * step for s, step in zip(steps, root.attrs["steps"])])
    return [*fill, *_lower_nest(x, named, out, Affine((), offset), scaled, target)]


def _lower_concatenate(root: Node, named: dict[Node, Buffer], out: Buffer, target: Target) -> list[Stmt]:
    axis = root.attrs["axis"]
    steps = strides(root.shape)
    offset: Dim = 0
    statements: list[Stmt] = []
    for x in root.inputs:
        statements += _lower_nest(x, named, out, Affine((), offset), steps, target)
        offset = offset + x.shape[axis] * steps[axis]
    return statements


def _lower_nest(
    root: Node, named: dict[Node, Buffer], out: Buffer, offset: Affine, steps: tuple[Dim, ...], target: Target
) -> list[Stmt]:
    """The loops that compute `root` and store element i at offset + i . steps."""
    reader = _Reader(named)
    axes = [Var(f"i{axis}", n) for axis, n in enumerate(root.shape)]
    index = tuple(map(_along, axes))
    value = reader.read(root, index)
    place = offset
    for i, step in zip(index, steps):
        place = place.plus(i.scaled(step))
    kept = [v for v in axes if v.extent != 1]
    if reader.reduction is None:
        kept, (store,) = _collapse(kept, [Store(out, place, value)])
        return _schedule_map(kept, [store], target)
    accumulator, reduced, inner, position = reader.reduction
    reduced = [v for v in reduced if v.extent != 1]
    combine = Combine(accumulator, inner, position)
    kept, statements = _collapse(kept, [Store(out, place, value), combine])
    reduced, statements = _collapse(reduced, statements)
    store, combine = statements  # type: ignore[assignment]
    return _schedule_reduction(kept, reduced, store, combine, target)


# ---------------------------------------------------------------------------------------------- index sets
def _affines(statements: Iterable[Stmt]) -> list[Affine]:
    found = []
    for statement in walk(statements):
        if isinstance(statement, Store):
            found.append(statement.index)
        elif isinstance(statement, Combine) and statement.position is not None:
            found.append(statement.position)
    found.extend(expr.index for expr in expressions(statements) if isinstance(expr, Load | IndexValue))
    return found


def _collapse(axes: list[Var], statements: list[Stmt]) -> tuple[list[Var], list[Stmt]]:
    """Merge neighboring loops wherever every index runs through both as through one."""
    position = len(axes) - 2
    while position >= 0:
        outer, inner = axes[position], axes[position + 1]
        if all(a.factor(outer) == a.factor(inner) * inner.extent for a in _affines(statements)):
            merged = Var(outer.name, outer.extent * inner.extent)
            statements = substitute(statements, {outer: Affine(), inner: affine(merged)})
            axes = [*axes[:position], merged, *axes[position + 2 :]]
        position -= 1
    return axes, statements


def substitute(statements: Sequence[Stmt], new: dict[Var, Affine]) -> list[Stmt]:
    """The statements with loop variables replaced by affine functions; loops themselves must not be replaced."""
    known: dict[LoopExpr, LoopExpr] = {}
    for expr in expressions(statements):
        match expr:
            case Load(buffer=buffer, index=index):
                known[expr] = Load(buffer, index.substituted(new))
            case IndexValue(index=index, dtype=dtype):
                known[expr] = IndexValue(index.substituted(new), dtype)
            case Apply(op=op, args=args, dtype=dtype):
                known[expr] = Apply(op, tuple([known[a] for a in args]), dtype)
            case _:
                known[expr] = expr

    def visit(statement: Stmt) -> Stmt:
        match statement:
            case Store(buffer=buffer, index=index, value=value):
                return Store(buffer, index.substituted(new), known[value])
            case Combine(accumulator=acc, value=value, position=position):
                return Combine(acc, known[value], None if position is None else position.substituted(new))
            case Reduce(accumulator=acc, body=body):
                return Reduce(acc, tuple(map(visit, body)))
            case For(var=var, body=body, lanes=lanes):
                return For(var, tuple(map(visit, body)), lanes)

    return [visit(s) for s in statements]


# ---------------------------------------------------------------------------------------------- schedules
@dataclass(frozen=True)
class _Work:
    """What one element costs: scalar operations, and the widest item that is computed with, in bits."""

    cost: int
    bits: int


def work_of(statements: Iterable[Stmt]) -> _Work:
    """The cost of one round of the innermost loop."""
    cost, bits = 0, 8
    for expr in expressions(statements):
        if isinstance(expr, Apply):
            cost += find_op(expr.op).cost
        width = NUMPY_DTYPE[expr.dtype].itemsize * 8
        bits = max(bits, 32 if expr.dtype == "float16" else width)
    return _Work(cost, bits)


def _lanes(statements: Sequence[Stmt], extent: Dim, target: Target, unroll: Callable[[_Work], int]) -> int:
    """The vector length: native registers times an unroll factor, no longer than the loop needs."""
    if not target.vector_bits:
        return 1
    work = work_of(statements)
    lanes = max(1, target.vector_bits // work.bits) * unroll(work)
    if isinstance(extent, int):
        while lanes > 1 and lanes // 2 >= extent:
            lanes //= 2
    return lanes


def _schedule_map(axes: list[Var], statements: list[Stmt], target: Target) -> list[Stmt]:
    if not axes:
        return statements
    lanes = _lanes(statements, axes[-1].extent, target, lambda w: 1 if w.cost > 60 else 2 if w.cost > 4 else 4)
    body: tuple[Stmt, ...] = (For(axes[-1], tuple(statements), lanes),)
    return list(_nest(axes[:-1], body))


def _nest(axes: Sequence[Var], body: tuple[Stmt, ...]) -> tuple[Stmt, ...]:
    for var in reversed(axes):
        body = (For(var, body),)
    return body


def _unit_loads(statements: Sequence[Stmt], var: Var) -> int:
    """How well a loop suits vectors: loads that run along it, less loads that would have to be gathered."""
    score = 0
    for expr in expressions(statements):
        if isinstance(expr, Load):
            factor = expr.index.factor(var)
            score += 1 if factor == 1 else 0 if factor == 0 else -1
    return score


def _schedule_reduction(
    kept: list[Var], reduced: list[Var], store: Stmt, combine: Combine, target: Target
) -> list[Stmt]:
    """Vectors run along the innermost reduced or the innermost kept axis, whichever the loads follow."""
    along_kept = bool(kept) and (not reduced or _unit_loads([combine], kept[-1]) > _unit_loads([combine], reduced[-1]))
    accumulator = combine.accumulator
    if along_kept or not reduced:
        lanes = _lanes([combine, store], kept[-1].extent, target, lambda w: 4 if w.cost <= 30 else 2) if kept else 1
        inner = _blocked(accumulator, reduced[:-1], reduced[-1] if reduced else None, combine, 1, store)
        return list(_nest(kept[:-1], (For(kept[-1], inner, lanes),))) if kept else list(inner)
    lanes = _lanes([combine], reduced[-1].extent, target, lambda w: 4 if w.cost <= 30 else 2)
    if accumulator.op in ("argmax", "argmin"):
        lanes = _lanes([combine], reduced[-1].extent, target, lambda w: 2)
    return list(_nest(kept, _blocked(accumulator, reduced[:-1], reduced[-1], combine, lanes, store)))


def _blocked(
    accumulator: Accumulator, outer: list[Var], var: Var | None, combine: Combine, lanes: int, store: Stmt
) -> tuple[Stmt, ...]:
    """A reduction, then the store of its result; long float32 sums add blocks up in float64."""
    if var is None:
        return (Reduce(accumulator, (combine,)), store)
    count = product([v.extent for v in (*outer, var)])
    short = isinstance(count, int) and count <= BLOCK
    if accumulator.op != "sum" or accumulator.dtype != "float32" or short:
        return (Reduce(accumulator, _nest(outer, (For(var, (combine,), lanes),))), store)
    total = Accumulator("total", "sum", "float64")
    extent = var.extent
    pieces: list[Stmt] = []
    blocks = extent // BLOCK
    if blocks != 0:
        block, inside = Var("b", blocks), Var(var.name, BLOCK)
        part = Accumulator("part", "sum", "float32")
        pieces.append(For(block, _part(part, total, combine, var, affine(block, BLOCK), inside, lanes)))
    rest = extent - blocks * BLOCK
    if rest != 0:
        part = Accumulator("part", "sum", "float32")
        tail = Var(var.name, rest)
        pieces += _part(part, total, combine, var, Affine((), blocks * BLOCK), tail, lanes)
    result: LoopExpr = Apply("cast", (Result(total),), "float32")
    return (Reduce(total, _nest(outer, tuple(pieces))), _with_result(store, accumulator, result))


def _part(
    part: Accumulator, total: Accumulator, combine: Combine, var: Var, base: Affine, inside: Var, lanes: int
) -> tuple[Stmt, ...]:
    """One block of a long sum: its own accumulator, added to the total."""
    (moved,) = substitute([combine], {var: base.plus(affine(inside))})
    assert isinstance(moved, Combine)
    loop = For(inside, (Combine(part, moved.value),), lanes)
    return (Reduce(part, (loop,)), Combine(total, Apply("cast", (Result(part),), "float64")))


def _with_result(store: Stmt, accumulator: Accumulator, result: LoopExpr) -> Stmt:
    """The store with the result of an accumulator replaced by an expression."""
    assert isinstance(store, Store)
    known: dict[LoopExpr, LoopExpr] = {}
    for expr in expressions([store]):
        match expr:
            case Result(accumulator=acc) if acc is accumulator:
                known[expr] = result
            case Apply(op=op, args=args, dtype=dtype):
                known[expr] = Apply(op, tuple([known[a] for a in args]), dtype)
            case _:
                known[expr] = expr
    return Store(store.buffer, store.index, known[store.value])


# ---------------------------------------------------------------------------------------------- facts
def in_place(kernel: Kernel) -> set[int]:
    """The inputs whose memory the output may take: each element is read only where it is then written."""
    stores = [s for s in walk(kernel.body) if isinstance(s, Store)]
    if len(stores) != 1 or any(isinstance(s, Reduce) for s in walk(kernel.body)):
        return set()
    (store,) = stores
    fits: dict[int, bool] = {}
    for expr in expressions(kernel.body):
        if isinstance(expr, Load):
            same = expr.index == store.index and _width(expr.dtype) == _width(store.buffer.dtype)
            fits[expr.buffer.position] = fits.get(expr.buffer.position, True) and same
    return {position for position, fit in fits.items() if fit}


def _width(dtype: str) -> int:
    return NUMPY_DTYPE[dtype].itemsize
