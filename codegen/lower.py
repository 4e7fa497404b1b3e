"""Lowering: a fused graph becomes a kernel of the loop language, scheduled for a target."""

from __future__ import annotations

from graphkb.codegen.loops import (
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
from graphkb.codegen.nests import Nest, lower_nest
from graphkb.codegen.parallel import parallelize
from graphkb.codegen.parts import PARTS, is_matrix_product, join, lower_parts
from graphkb.codegen.reading import REDUCTIONS, Reader, accumulator_dtype, along, as_dtype, linear, strides
from graphkb.codegen.running import schedule_running
from graphkb.codegen.schedule import (
    collapse,
    schedule_deposit,
    schedule_map,
)
from graphkb.codegen.several import lower_rows, lower_several
from graphkb.codegen.target import Target
from graphkb.ir.dims import minimum
from graphkb.ir.graph import Graph
from graphkb.ir.node import Node


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
    if root.op.name in PARTS and root not in named:
        return lower_parts(root, name, named, out, origins, target)
    if any(is_matrix_product(n) for n in body.nodes) and not rows_of(body):
        return join(name, (*buffers, out), [Nest(root, Affine(), strides(root.shape))], named, origins, target)
    if root.op.name == "scatter_add" and root not in named:
        statements = _lower_scatter_add(root, named, out, target)
    elif root.op.name in ("cumsum", "cumprod") and root not in named:
        statements = _lower_running(root, named, out, target)
    elif rows_of(body):
        statements = lower_rows(body, named, out, target)
    else:
        statements = lower_nest(Nest(root, Affine(), strides(root.shape)), named, out, target)
    return Kernel(name, (*buffers, out), parallelize(statements, target), origins)


def rows_of(body: Graph) -> bool:
    """Whether a kernel runs row by row: it holds several reductions, or spreads one over its row again."""
    cores = [n for n in body.nodes if n.op.name in REDUCTIONS]
    return len(cores) > 1 or (len(cores) == 1 and cores[0].type.size != body.outputs[0].type.size)


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
    accumulator = Accumulator("acc", op, accumulator_dtype(root.dtype))
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
