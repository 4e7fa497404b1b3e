"""The prologue of a matrix product: element-wise work on A, done for some rows at a time into scratch memory."""

from __future__ import annotations

from collections.abc import Sequence

from graphkb.codegen.loops import (
    Affine,
    Buffer,
    IndexValue,
    Load,
    Lookup,
    LoopExpr,
    Store,
    Var,
    affine,
    operands_first,
)
from graphkb.codegen.parallel import picoseconds
from graphkb.codegen.target import Target
from graphkb.ir.dims import Dim, product
from graphkb.ir.record import record
from graphkb.ir.types import NUMPY_DTYPE
from graphkb.passes.prologues import FEW_ELEMENTS

# Bytes of A that are computed at a time, and the rows that these are: enough that B is seldom read again.
_BYTES, _FEWEST, _MOST = 1 << 16, 24, 192
# Bytes between rows that fall on the same few lines of the first-level cache.
_PAGE = 4096


@record(eq=False)
class Prologue:
    """How the elements of A come about.

    Attributes:
        value: the element at the loop variables of rows and of the contracted axis.
        rows: how many rows are computed at a time, about; 0: all, before anything else.
        pitch: elements from one row to the next in scratch memory.
        turned: the rows lie side by side there, as they do in the memory that they come from.
        picoseconds: what one element takes, about.
    """

    value: LoopExpr
    rows: int
    pitch: Dim
    turned: bool
    picoseconds: int

    @property
    def read(self) -> set[int]:
        """The buffers that it reads."""
        return {e.buffer.position for e in operands_first(self.value, set()) if isinstance(e, Load | Lookup)}


def computed_operand(value: LoopExpr, b: Load, kept: Sequence[Var], k: Var, target: Target) -> tuple[Load, Prologue]:
    """An operand that has to be computed as one that lies in scratch memory.

    Args:
        value: its element.
        b: the other operand's.
        kept, k: the loops over the result, and that over the sum.
        target: the machine.
    """
    indices = [e.index for e in operands_first(value, set()) if isinstance(e, Load | Lookup | IndexValue)]
    own = [v for v in kept if any(index.factor(v) != 0 for index in indices)]
    left = [v for v in own if b.index.factor(v) == 0]
    near = [v for v in (k, *left) if any(index.factor(v) == 1 for index in indices)]
    m, size = product([v.extent for v in left]), NUMPY_DTYPE[value.dtype].itemsize
    rows = min(_MOST, max(_FEWEST, _BYTES // max(1, size * k.extent))) if isinstance(k.extent, int) else _FEWEST
    elements = m * k.extent
    pitch = _pitch(k.extent, size, target.lanes(value.dtype))
    buffer = Buffer(-1, "a", value.dtype, m * pitch)
    turned = bool(near) and k not in near
    index, step = affine(k), pitch
    if turned:
        index, step = affine(k, m), 1
    for var in reversed([*[v for v in own if v not in left], *left]):
        index = index.plus(affine(var, step))
        step = step * var.extent
    time = picoseconds(Store(buffer, Affine(), value), target.lanes(value.dtype), k, target)
    every = 0 if isinstance(elements, int) and elements <= FEW_ELEMENTS else rows
    return Load(buffer, index), Prologue(value, every, pitch, turned, time)


def _pitch(k: Dim, size: int, lanes: int) -> Dim:
    """Elements from row to row, so that rows do not lie pages apart."""
    return k + lanes if isinstance(k, int) and k * size % _PAGE == 0 else k


__all__ = ["Prologue", "computed_operand"]
