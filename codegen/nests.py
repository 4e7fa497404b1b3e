"""One loop nest: all elements of a node, computed and stored at places of their own."""

from __future__ import annotations

from collections.abc import Sequence

from graphkb.codegen.blocks import reduce_in_blocks
from graphkb.codegen.extrema import schedule_position
from graphkb.codegen.gemm import Gemm, match_gemm
from graphkb.codegen.loops import (
    POSITIONS,
    Affine,
    Apply,
    Buffer,
    Combine,
    Const,
    Result,
    Stmt,
    Store,
    Var,
    expressions,
)
from graphkb.codegen.padding import Region, regions
from graphkb.codegen.reading import Reader, along
from graphkb.codegen.repeats import schedule_stores
from graphkb.codegen.schedule import collapse, replace_expr, runs_along_kept
from graphkb.codegen.shared_sums import schedule_shared_sums
from graphkb.codegen.sweeps import suits_sweeps
from graphkb.codegen.target import Target
from graphkb.codegen.windows import schedule_window
from graphkb.ir.dims import Dim
from graphkb.ir.node import Node
from graphkb.ir.origin import Origin
from graphkb.ir.record import record


@record
class Nest:
    """The loops that compute `root` and store element i at offset + i . steps."""

    root: Node
    offset: Affine
    steps: tuple[Dim, ...]


def lower_nest(nest: Nest, named: dict[Node, Buffer], out: Buffer, target: Target) -> list[Stmt]:
    """A nest as statements; what reads padding or another operand of a concatenation is told apart."""
    statements: list[Stmt] = []
    variables: dict[tuple[int, Dim], Var] = {}
    for begins, sizes in _regions(nest.root, named):
        for axis, (begin, n) in enumerate(zip(begins, sizes)):
            variables.setdefault((axis, begin), Var(f"i{axis}", n))
        axes = [variables[key] for key in enumerate(begins)]
        statements += _lower(*read_nest(nest, named, out, axes, begins), target)
    return statements


def _regions(root: Node, named: dict[Node, Buffer]) -> list[Region]:
    """The parts of a node between which it matters whether padding is read, or which operand; mostly one."""
    axes = [Var(f"i{axis}", n) for axis, n in enumerate(root.shape)]
    reader = Reader(named)
    reader.read(root, tuple(map(along, axes)))
    return regions(axes, reader.edges, reader.joints)


def _lower(kept: list[Var], reduced: list[Var], store: Store, combine: Combine | None, target: Target) -> list[Stmt]:
    """The loops of one part."""
    if combine is None:
        return schedule_stores(kept, [store], target)
    if combine.accumulator.op in POSITIONS:
        return schedule_position(kept, reduced, store, combine, target)
    sweeps = runs_along_kept(kept, reduced, [combine]) and suits_sweeps(kept, reduced, [combine], target)
    shared = None if sweeps else schedule_shared_sums(kept, reduced, store, combine, target)
    window = None if sweeps or shared else schedule_window(kept, reduced, store, combine, target)
    return shared or window or reduce_in_blocks(kept, reduced, [combine], [], [store], target)


def lower_product(
    nest: Nest, name: str, named: dict[Node, Buffer], out: Buffer, origins: tuple[Origin, ...], target: Target
) -> Gemm | list[Stmt]:
    """The matrix kernel of a nest that sums products, or plain loops where none fits."""
    kept, reduced, store, combine = read_nest(nest, named, out)
    assert combine is not None
    if not reduced:
        # One product each: memory takes the result in its own order, and a sum that begins at 0 has no negative zero.
        (result,) = [e for e in expressions([store]) if isinstance(e, Result)]
        single = Apply("add", (Const(0, combine.accumulator.dtype), combine.value), combine.accumulator.dtype)
        return schedule_stores(kept, replace_expr([store], {0}, result, single), target)
    matrix = match_gemm(name, (*named.values(), out), origins, kept, reduced, store, combine, target)
    return matrix or reduce_in_blocks(kept, reduced, [combine], [], [store], target)


def read_nest(
    nest: Nest, named: dict[Node, Buffer], out: Buffer, axes: Sequence[Var] = (), begins: Sequence[Dim] = ()
) -> tuple[list[Var], list[Var], Store, Combine | None]:
    """The loops over the result and over what is summed, and what they store and combine, merged where possible.

    Args:
        nest, named, out: what is computed, from what, and into what.
        axes: the loops over the axes of the result, where only a part of it is computed.
        begins: where that part begins along each axis.
    """
    root = nest.root
    reader = Reader(named)
    if not axes:
        axes, begins = [Var(f"i{axis}", n) for axis, n in enumerate(root.shape)], [0] * root.ndim
    index = tuple([along(v).shifted(begin) for v, begin in zip(axes, begins)])
    value = reader.read(root, index)
    assert not reader.joints, "a part that reads two operands of a concatenation"
    place = nest.offset
    for i, step in zip(index, nest.steps):
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
