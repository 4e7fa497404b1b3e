"""Concatenations of views of memory that element-wise kernels read in place: which, and in how many boxes."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from itertools import accumulate
from math import prod

from graphkb.ir.dims import Dim
from graphkb.ir.node import Node
from graphkb.passes.row_axes import Axes, result_axes, row_axes

# The most boxes of a result, the most kernels that read one concatenation, its least columns where columns are joined.
_MOST_BOXES, MOST_READERS, _LEAST_COLUMNS = 27, 2, 64

# Along each axis of more than one place where the operands of concatenations begin.
Cuts = Mapping[int, set[Dim]]


def is_cut_well(node: Node) -> bool:
    """Whether a concatenation of known sizes leaves vectors long enough."""
    if node.op.name != "concatenate" or not all(isinstance(n, int) and n for n in node.shape):
        return False
    columns = node.shape[-1]
    return node.attrs["axis"] < node.ndim - 1 or (isinstance(columns, int) and columns >= _LEAST_COLUMNS)


def with_cuts(cuts: Cuts, node: Node) -> Cuts | None:
    """The cuts of a kernel that reads one more concatenation; None where that makes too many boxes."""
    axis: int = node.attrs["axis"]
    number = sum(n != 1 for n in node.shape[:axis])
    more = {**cuts, number: {*cuts.get(number, ()), *accumulate([x.shape[axis] for x in node.inputs[:-1]])}}
    return more if prod([len(begins) + 1 for begins in more.values()]) <= _MOST_BOXES else None


def runs_along(node: Node, users: Mapping[Node, Axes], tops: Iterable[Node]) -> bool:
    """Whether element-wise users read a node where what they are computed for is written.

    Args:
        node: the concatenation.
        users: who reads it, and along which axes of the result they run.
        tops: the results.
    """
    if not all(user.op.kind == "elementwise" for user in users):
        return False
    wide = {tuple([n for n in one.shape if n != 1]) for one in (node, *users, *tops)}
    axes = {row_axes(result_axes(top)) for top in tops} | {row_axes(a) for a in users.values()}
    return len(wide) == len(axes) == 1
