"""Indexing of tensors with NumPy's rules: integers, slices, `...`, None, scalar tensors, integer and bool arrays."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from graphkb.backend.promotion import Handle, to_array
from graphkb.backend.sizes import as_dim, to_dim
from graphkb.ir.dims import Dim, Expr, Shape, maximum, minimum, product, show_shape
from graphkb.ir.errors import PositionError, ShapeError
from graphkb.ir.leaves import Array
from graphkb.ir.node import Node, make
from graphkb.ir.types import INTEGERS, UNSIGNED
from graphkb.ops import index, leaf, shape
from graphkb.ops.elementwise import broadcast_shapes, cast, const_like, greater_equal, less, or_, select


class _Part(NamedTuple):
    """What one item of the key does: `kind` is "new", "slice", "int" or "array"."""

    kind: str
    axis: int = -1
    start: Dim = 0
    size: Dim = 1
    step: int = 1
    positions: Node | None = None


def getitem(x: Node, key: Any) -> Node:
    """`x[key]`.

    Args:
        x: a node of any shape and dtype.
        key: one item or a tuple of items: integers and slices of them, scalar integer tensors, integer tensors
            and arrays (which index together, as in NumPy), constant bool arrays, one `...`, None for a new axis.

    Raises:
        PositionError: too many items, an integer that is out of range, a bool array that does not fit.
        ShapeError: bounds of a slice that depend on values.
        TypeError: any other item.
    """
    items = _expand(x, key)
    parts: list[_Part] = []
    axis = 0
    for item in items:
        if item is None:
            parts.append(_Part("new"))
        else:
            parts.append(_part(x, axis, item))
            axis += 1
    arrays = any(p.kind == "array" and p.positions is not None and p.positions.ndim for p in parts)
    if arrays:  # integers beside arrays index together with them
        parts = [_array_of(x, p) if p.kind == "int" else p for p in parts]
    sliced = _slice(x, parts)
    taken, dims = _take(sliced, parts)
    result = shape.reshape(taken, dims)
    if not dims and x.op is shape.CONCATENATE and x.dtype in INTEGERS:  # an element of K.shape
        dim = as_dim(result)
        if dim is not None:
            return leaf.size(dim, x.dtype)
    return result


def _expand(x: Node, key: Any) -> list[Any]:
    """The items of a key with bool arrays replaced by positions and `...` by full slices: one for each axis."""
    items: list[Any] = []
    for item in key if isinstance(key, tuple) else (key,):
        if item is None or item is Ellipsis or isinstance(item, (slice, Handle, int, np.integer)):
            if isinstance(item, bool):
                raise TypeError("a tensor can not be indexed with True or False; use K.switch")
            items.append(item)
            continue
        if not isinstance(item, (list, np.ndarray, np.bool_)):
            raise TypeError(
                f"a tensor can not be indexed with {item!r}: expected integers, slices, ..., None, "
                "integer tensors or arrays"
            )
        array = to_array(item) if np.size(item) else np.zeros(np.shape(item), np.int64)
        items += _positions(x, array, items) if array.dtype.kind == "b" else [array]
    count = sum(1 for i in items if i is not None and i is not Ellipsis)
    if count > x.ndim:
        raise PositionError(f"too many indices for a tensor of shape {show_shape(x.shape)}: {count} for {x.ndim} axes")
    dots = [i for i, item in enumerate(items) if item is Ellipsis]
    if len(dots) > 1:
        raise PositionError("an index can have only one ellipsis ('...')")
    at = dots[0] if dots else len(items)
    return items[:at] + [slice(None)] * (x.ndim - count) + items[at + 1 :]


def _positions(x: Node, mask: Array, before: list[Any]) -> list[Array]:
    """The positions where a constant bool array is true, one array for each of its axes."""
    first = sum(1 for i in before if i is not None)
    axes = x.shape[first : first + mask.ndim]
    if Ellipsis in [i for i in before if not isinstance(i, np.ndarray)] or not mask.ndim:
        raise TypeError("a bool array as an index: expected rank 1 or more and no '...' before it")
    if tuple(axes) != mask.shape:
        raise PositionError(
            f"a bool array of shape {mask.shape} as an index does not fit the axes of sizes {show_shape(tuple(axes))}"
        )
    return list(np.nonzero(mask))


def wrap(value: Dim, n: Dim) -> Dim:
    """A position that counts from the end where it is negative, exact for unknown sizes."""
    if isinstance(value, int):
        return value + n if value < 0 else value
    if maximum(value, 0) == value:
        return value
    return value + n * maximum(minimum(-value, 1), 0)


def _part(x: Node, axis: int, item: Any) -> _Part:
    n = x.shape[axis]
    if isinstance(item, slice):
        start, size, step = shape.slice_bounds(n, _with_dims(item, n))
        return _Part("slice", axis, start, size, step)
    if isinstance(item, (int, np.integer)):
        return _integer(x, axis, int(item))
    if isinstance(item, Handle):
        node = item.node
        if node.dtype == "bool":
            raise TypeError(
                f"{item!r} as an index: the shape of the result would depend on values; use K.switch, or multiply "
                "with the mask"
            )
        if node.dtype not in INTEGERS:
            raise TypeError(f"a tensor used as an index must hold integers, not {node.dtype}; use K.cast")
        dim = as_dim(node) if node.ndim == 0 else None
        if dim is not None:
            return _integer(x, axis, dim)
        return _Part("array", axis, 0, n, 1, _from_end(node, n))
    if item.dtype.kind not in "iu":
        raise TypeError(f"an array used as an index must hold integers, not {item.dtype}")
    return _Part("array", axis, 0, n, 1, _constant_positions(item, n, axis))


def _integer(x: Node, axis: int, value: Dim) -> _Part:
    n = x.shape[axis]
    if isinstance(value, int) and isinstance(n, int) and not -n <= value < n:
        raise PositionError(f"index {value} is out of bounds for axis {axis} with size {n}")
    return _Part("int", axis, wrap(value, n))


def _with_dims(item: slice, n: Dim) -> slice:
    """The slice with tensors replaced by dims that are not negative."""
    step = 1 if item.step is None else to_dim(item.step, "slice")
    if not isinstance(step, int):
        raise ShapeError("slice: the step must be a known integer")

    def bound(value: Any) -> Dim | None:
        if value is None:
            return None
        dim = to_dim(value, "slice")
        if isinstance(dim, Expr) and maximum(dim, 0) != dim:
            return maximum(wrap(dim, n), 0 if step > 0 else -1)
        return dim

    return slice(bound(item.start), bound(item.stop), step)


def _constant_positions(array: Array, n: Dim, axis: int) -> Node:
    if not isinstance(n, int):
        return _from_end(leaf.constant(array.astype(np.int64)), n)
    if array.size and not (-n <= int(array.min()) and int(array.max()) < n):
        bad = array[(array < -n) | (array >= n)].flat[0]
        raise PositionError(f"index {int(bad)} is out of bounds for axis {axis} with size {n}")
    return leaf.constant(np.where(array < 0, array + n, array).astype(np.int64))


def _from_end(positions: Node, n: Dim) -> Node:
    """Positions as int64, negative ones counted from the end."""
    if positions.dtype in UNSIGNED or (leaf.is_constant(positions) and (leaf.constant_value(positions) >= 0).all()):
        return cast(positions, "int64")
    positions = cast(positions, "int64")
    return select(less(positions, 0), positions + leaf.size(n, "int64"), positions)


def _array_of(x: Node, part: _Part) -> _Part:
    n = x.shape[part.axis]
    return _Part("array", part.axis, 0, n, 1, leaf.size(part.start, "int64"))


def _slice(x: Node, parts: list[_Part]) -> Node:
    kept = [p for p in parts if p.kind != "new"]
    return shape.slice_(x, tuple([p.start for p in kept]), tuple([p.size for p in kept]), tuple([p.step for p in kept]))


def _take(x: Node, parts: list[_Part]) -> tuple[Node, Shape]:
    """Gather along the axes that arrays index; also the shape of the result, new axes included, integers dropped."""
    chosen = [p for p in parts if p.kind == "array"]
    if not chosen:
        return x, tuple([p.size for p in parts if p.kind != "int"])
    arrays = [p.positions for p in chosen if p.positions is not None]
    where = [i for i, p in enumerate(parts) if p.kind == "array"]
    together = where[-1] - where[0] + 1 == len(where)
    common = broadcast_shapes("index", *[a.shape for a in arrays])
    axes = tuple([p.axis for p in chosen])
    if len(chosen) == 1:
        taken = index.gather(x, arrays[0], axes[0])
    else:
        rest = tuple([a for a in range(x.ndim) if a not in axes])
        sizes = [x.shape[a] for a in axes]
        moved = shape.transpose(x, (*axes, *rest))
        flat = shape.reshape(moved, (product(sizes), *[x.shape[a] for a in rest]))
        taken = index.gather(flat, _linear(arrays, sizes, common), 0)
        # The axes of the arrays stand in front; they belong where the first array stood.
        front = axes[0] if together else 0
        count = len(common)
        order = (*range(count, count + front), *range(count), *range(count + front, taken.ndim))
        taken = shape.transpose(taken, order)
    dims: list[Dim] = [] if together else list(common)
    for i, p in enumerate(parts):
        if p.kind == "array":
            dims += common if together and i == where[0] else ()
        elif p.kind != "int":
            dims.append(p.size)
    return taken, tuple(dims)


def _linear(arrays: list[Node], sizes: list[Dim], common: Shape) -> Node:
    """Row-major positions; -1, which gather refuses, where one of the indices is out of range."""
    total: Node | None = None
    bad: Node | None = None
    for positions, n in zip(arrays, sizes):
        size = leaf.size(n, "int64")
        total = positions if total is None else total * size + positions
        if not (leaf.is_constant(positions) and isinstance(n, int)):
            outside = make(or_, (less(positions, 0), greater_equal(positions, size)))
            bad = outside if bad is None else make(or_, (bad, outside))
    assert total is not None
    total = shape.broadcast_to(total, common)
    return total if bad is None else select(bad, const_like(-1, total), total)


def positions_from(start: Node, count: Dim) -> Node:
    """The positions start, start + 1 … of a slice whose start is known only when it runs."""
    return cast(start, "int64") + leaf.iota(count, "int64")


__all__ = ["getitem", "positions_from", "wrap"]
