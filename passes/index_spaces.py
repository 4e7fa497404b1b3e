"""Index spaces: what the loops of a kernel run over, and where in them results lie and operands are read."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphkb.ir.dims import Shape, product
from graphkb.ir.node import Node
from graphkb.ir.record import record
from graphkb.passes.row_axes import OTHER, Axes, operand_axes

# Where a value lies: at every point of a space, or once for all points along its reduced axes.
FULL, KEPT = "full", "kept"


@record
class Space:
    """The index space of a kernel. Its axes are numbered by those of its shape.

    Attributes:
        shape: of all points.
        reduced: the axes that its reductions run over; empty where there are none.
        rows: whether the reduced axis is a row that stays in the cache, so that reductions may follow one another.
    """

    shape: Shape
    reduced: tuple[int, ...] = ()
    rows: bool = False

    def level(self, shape: Shape) -> str:
        """Where a value of a shape lies in the space; empty for one that does not belong to it."""
        if shape == self.shape:
            return FULL
        if self.reduced and shape in (self.kept_shape(False), self.kept_shape(True)):
            return KEPT
        return ""

    def kept_shape(self, keepdims: bool) -> Shape:
        """The shape of a reduction's result."""
        if keepdims:
            return tuple([1 if axis in self.reduced else n for axis, n in enumerate(self.shape)])
        return tuple([n for axis, n in enumerate(self.shape) if axis not in self.reduced])

    def axes(self, shape: Shape) -> Axes:
        """The axes along which a value that belongs to the space runs."""
        numbers = self._numbers(shape)
        return tuple([None if n == 1 else axis for axis, n in zip(numbers, shape)])

    def translated(self, axes: Axes, shape: Shape) -> Axes:
        """Axes of this space for those that count the axes of a value that belongs to it."""
        numbers = self._numbers(shape)
        return tuple([axis if axis is None or axis == OTHER else numbers[axis] for axis in axes])

    def _numbers(self, shape: Shape) -> Sequence[int]:
        if len(shape) == len(self.shape):
            return range(len(self.shape))
        return [axis for axis in range(len(self.shape)) if axis not in self.reduced]


def map_space(root: Node) -> Space:
    """The space of a kernel without reductions."""
    return Space(root.shape)


def reduction_space(core: Node, root: Node, longest_row: int) -> Space | None:
    """The space of a kernel with a reduction; None where its result does not belong to it.

    Args:
        longest_row: the length up to which a row stays in the cache.
    """
    x = core.inputs[0]
    reduced = tuple(sorted(core.attrs["axes"]))
    sizes = [x.shape[axis] for axis in reduced]
    if product(sizes) == 1:
        return None
    rows = reduced == (x.ndim - 1,) and isinstance(sizes[0], int) and sizes[0] <= longest_row
    space = Space(x.shape, reduced, rows)
    level = space.level(root.shape)
    return space if level == KEPT or (level == FULL and rows) else None


def axes_in(
    space: Space, root: Node, members: Sequence[Node], stands: Callable[[Node, Node], bool]
) -> dict[Node, Axes] | None:
    """The axes of a space along which a kernel reads each member and each operand; None where reductions do not fit.

    Args:
        members: in topological order.
        stands: whether an operand is read at other places than the member that reads it.
    """
    found: dict[Node, Axes] = {root: space.axes(root.shape)}
    for node in reversed(members):
        axes = found[node]
        reduces = node.op.kind == "reduce" and "axes" in node.attrs
        if reduces and (node.inputs[0].shape != space.shape or tuple(sorted(node.attrs["axes"])) != space.reduced):
            return None
        if reduces and axes != space.axes(node.shape):
            return None
        for i in dict.fromkeys(node.inputs):
            if stands(i, node):
                read: Axes = (OTHER,) * i.ndim
            elif reduces:
                read = space.axes(i.shape)
            else:
                read = operand_axes(node, axes, i)
            found[i] = read if found.get(i, read) == read else (OTHER,) * i.ndim
    return found


__all__ = ["FULL", "KEPT", "Space", "axes_in", "map_space", "reduction_space"]
