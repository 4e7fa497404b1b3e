"""Lowering: a fused graph becomes a kernel of the loop language, scheduled for a target."""

from __future__ import annotations

from graphkb.codegen.blocks import reduce_in_blocks
from graphkb.codegen.extrema import schedule_position
from graphkb.codegen.gemm import match_gemm
from graphkb.codegen.loops import (
    POSITIONS,
    Accumulator,
    Affine,
    Buffer,
    Combine,
    Const,
    Deposit,
    For,
    Kernel,
    NativeKernel,
    Reduce,
    Running,
    Stmt,
    Store,
    Var,
    affine,
)
from graphkb.codegen.parallel import parallelize
from graphkb.codegen.reading import REDUCTIONS, Reader, accumulator_dtype, along, as_dtype, linear, strides
from graphkb.codegen.schedule import (
    MOST_NEIGHBORS,
    collapse,
    interleave,
    schedule_deposit,
    schedule_map,
    schedule_running,
)
from graphkb.codegen.several import lower_rows, lower_several
from graphkb.codegen.target import Target
from graphkb.ir.dims import Dim, minimum
from graphkb.ir.graph import Graph
from graphkb.ir.node import Node
from graphkb.ir.origin import Origin


# ---------------------------------------------------------------------------------------------- kernels
def lower(body: Graph, name: str, target: Target) -> NativeKernel:
    """The kernel of a fused graph: its inputs become the first buffers, its outputs the last."""
    buffers = [Buffer(i, f"in{i}", p.dtype, p.type.size) for i, p in enumerate(body.inputs)]
    named = dict(zip(body.inputs, buffers))
    origins = tuple(dict.fromkeys(n.origin for n in body.nodes if n.origin is not None))
    if len(body.outputs) > 1:
        outs = [
            Buffer(len(buffers) + i, f"out{i}", n.dtype, n.type.size, written=True) for i, n in enumerate(body.outputs)
        ]
        return Kernel(name, (*buffers, *outs), parallelize(lower_several(body, named, outs, target), target), origins)
    (root,) = body.outputs
    out = Buffer(len(buffers), "out", root.dtype, root.type.size, written=True)
    if any(is_matrix_product(n) for n in body.nodes) and not rows_of(body):
        return _lower_product(root, name, named, out, origins, target)
    if root.op.name in ("pad", "pad_value") and root not in named:
        statements = _lower_pad(root, named, out, target)
    elif root.op.name == "concatenate" and root not in named:
        statements = _lower_concatenate(root, named, out, target)
    elif root.op.name == "scatter_add" and root not in named:
        statements = _lower_scatter_add(root, named, out, target)
    elif root.op.name in ("cumsum", "cumprod") and root not in named:
        statements = _lower_running(root, named, out, target)
    elif rows_of(body):
        statements = lower_rows(body, named, out, target)
    else:
        statements = _lower_nest(root, named, out, Affine(), strides(root.shape), target)
    return Kernel(name, (*buffers, out), parallelize(statements, target), origins)


def is_matrix_product(node: Node) -> bool:
    """Whether a sum of products may be a matrix kernel; groups of channels are too small for one."""
    return node.op.name == "dot" or (node.op.name == "conv" and node.ndim == len(node.attrs["strides"]) + 2)


def rows_of(body: Graph) -> bool:
    """Whether a kernel runs row by row: it holds several reductions, or spreads one over its row again."""
    cores = [n for n in body.nodes if n.op.name in REDUCTIONS]
    return len(cores) > 1 or (len(cores) == 1 and cores[0].type.size != body.outputs[0].type.size)


def _lower_pad(root: Node, named: dict[Node, Buffer], out: Buffer, target: Target) -> list[Stmt]:
    (x,) = root.inputs
    var = Var("z", root.type.size)
    value = Const(root.attrs.get("value", False if root.dtype == "bool" else 0), root.dtype)
    fill = schedule_map([var], [Store(out, affine(var), value)], target)
    steps = strides(root.shape)
    offset: Dim = 0
    for start, step in zip(root.attrs["starts"], steps):
        offset = offset + start * step
    scaled = tuple([s * step for s, step in zip(steps, root.attrs.get("steps", (1,) * root.ndim))])
    return [*fill, *_lower_nest(x, named, out, Affine((), offset), scaled, target)]


def _lower_scatter_add(root: Node, named: dict[Node, Buffer], out: Buffer, target: Target) -> list[Stmt]:
    updates, indices = root.inputs
    var = Var("z", root.type.size)
    zero = Const(False if root.dtype == "bool" else 0, root.dtype)
    fill = schedule_map([var], [Store(out, affine(var), zero)], target)
    reader = Reader(named)
    axes = [Var(f"i{axis}", n) for axis, n in enumerate(updates.shape)]
    index = tuple(map(along, axes))
    axis = root.attrs["axis"]
    end = axis + indices.ndim
    place = linear(root.shape, (*index[:axis], Affine(), *index[end:]))
    position = as_dtype(reader.read(indices, index[axis:end]), "int64")
    deposit = Deposit(out, place, strides(root.shape)[axis], position, reader.read(updates, index))
    kept, (moved,) = collapse([v for v in axes if v.extent != 1], [deposit])
    assert isinstance(moved, Deposit)
    return [*fill, *schedule_deposit(kept, moved, target)]


def _lower_running(root: Node, named: dict[Node, Buffer], out: Buffer, target: Target) -> list[Stmt]:
    """Running sums or products: an exclusive one begins with the empty sum and is stored one step behind."""
    (x,) = root.inputs
    axis, count = root.attrs["axis"], root.shape[root.attrs["axis"]]
    late = 1 if root.attrs["exclusive"] else 0
    reader = Reader(named)
    axes = [Var(f"i{i}", n) for i, n in enumerate(root.shape)]
    step = Var(f"i{axis}", count - late)

    def at(position: Affine) -> tuple[Affine, ...]:
        if root.attrs["reverse"]:
            position = position.scaled(-1).shifted(count - 1)
        return tuple([position if i == axis else along(v) for i, v in enumerate(axes)])

    op = "sum" if root.op.name == "cumsum" else "prod"
    accumulator = Accumulator("acc", op, accumulator_dtype(root.dtype, op))
    value = as_dtype(reader.read(x, at(along(step))), accumulator.dtype)
    held = as_dtype(Running(accumulator), root.dtype)
    statements: list[Stmt] = [
        Combine(accumulator, value),
        Store(out, linear(root.shape, at(along(step).shifted(late))), held),
    ]
    if late:
        empty = Const(0 if op == "sum" else 1, root.dtype)
        statements.append(Store(out, linear(root.shape, at(Affine())), empty))
    kept, statements = collapse([v for i, v in enumerate(axes) if i != axis and v.extent != 1], statements)
    body = tuple(statements[:2])
    rounds = Reduce(accumulator, body if step.extent == 1 else (For(step, body),))
    # There is a first element only where there are any.
    first = [For(Var("first", minimum(count, 1)), tuple(statements[2:]))] if late and count != 0 else []
    return schedule_running(kept, first, rounds, target)


def _lower_concatenate(root: Node, named: dict[Node, Buffer], out: Buffer, target: Target) -> list[Stmt]:
    axis = root.attrs["axis"]
    steps = strides(root.shape)
    offset: Dim = 0
    statements: list[Stmt] = _interleave(root, named, out, target)
    if statements:
        return statements
    for x in root.inputs:
        statements += _lower_nest(x, named, out, Affine((), offset), steps, target)
        offset = offset + x.shape[axis] * steps[axis]
    return statements


def _interleave(root: Node, named: dict[Node, Buffer], out: Buffer, target: Target) -> list[Stmt]:
    """Few columns joined along the last axis, as one nest that stores them side by side; else nothing."""
    width = root.shape[-1] if root.ndim else 0
    few = isinstance(width, int) and width <= MOST_NEIGHBORS and root.ndim > 1 and root.type.size != width
    if not few or root.attrs["axis"] != root.ndim - 1 or not target.vector_bits or 0 in root.shape:
        return []
    reader = Reader(named)
    axes = [Var(f"i{axis}", n) for axis, n in enumerate(root.shape[:-1])]
    index = tuple(map(along, axes))
    stores: list[Stmt] = []
    for x in root.inputs:
        for column in range(x.shape[-1]):
            at = linear(root.shape, (*index, Affine((), len(stores))))
            stores.append(Store(out, at, reader.read(x, (*index, Affine((), column)))))
    kept, stores = collapse([v for v in axes if v.extent != 1], stores)
    return interleave(kept, [s for s in stores if isinstance(s, Store)], [], target)


def _lower_product(
    root: Node, name: str, named: dict[Node, Buffer], out: Buffer, origins: tuple[Origin, ...], target: Target
) -> NativeKernel:
    """A matrix kernel, or plain loops where none fits."""
    kept, reduced, store, combine = _read_nest(root, named, out, Affine(), strides(root.shape))
    buffers = (*named.values(), out)
    assert combine is not None
    matrix = match_gemm(name, buffers, origins, kept, reduced, store, combine, target)
    if matrix is not None:
        return matrix
    return Kernel(name, buffers, parallelize(reduce_in_blocks(kept, reduced, store, combine, target), target), origins)


def _lower_nest(
    root: Node, named: dict[Node, Buffer], out: Buffer, offset: Affine, steps: tuple[Dim, ...], target: Target
) -> list[Stmt]:
    """The loops that compute `root` and store element i at offset + i . steps."""
    kept, reduced, store, combine = _read_nest(root, named, out, offset, steps)
    if combine is None:
        return schedule_map(kept, [store], target)
    if combine.accumulator.op in POSITIONS:
        return schedule_position(kept, reduced, store, combine, target)
    return reduce_in_blocks(kept, reduced, store, combine, target)


def _read_nest(
    root: Node, named: dict[Node, Buffer], out: Buffer, offset: Affine, steps: tuple[Dim, ...]
) -> tuple[list[Var], list[Var], Store, Combine | None]:
    """The loops over the result and over what is summed, and what they store and combine, merged where possible."""
    reader = Reader(named)
    axes = [Var(f"i{axis}", n) for axis, n in enumerate(root.shape)]
    index = tuple(map(along, axes))
    value = reader.read(root, index)
    place = offset
    for i, step in zip(index, steps):
        place = place.plus(i.scaled(step))
    kept = [v for v in axes if v.extent != 1]
    statements: list[Stmt] = [Store(out, place, value)]
    reduced: list[Var] = []
    if reader.reductions:
        (reduction,) = reader.reductions
        reduced = [v for v in reduction.reduced if v.extent != 1]
        statements.append(Combine(reduction.accumulator, reduction.value, reduction.position))
    kept, statements = collapse(kept, statements)
    reduced, statements = collapse(reduced, statements)
    store, *rest = statements
    combine = rest[0] if rest else None
    assert isinstance(store, Store)
    assert combine is None or isinstance(combine, Combine)
    return kept, reduced, store, combine
