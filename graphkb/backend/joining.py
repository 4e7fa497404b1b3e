"""Joining, repeating, selecting and padding: K functions that move elements about."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from graphkb.backend import sparse
from graphkb.backend.config import normalize_data_format
from graphkb.backend.indexing import positions_from
from graphkb.backend.promotion import Handle, as_node, as_nodes, items
from graphkb.backend.reductions import normalize_axis
from graphkb.backend.sizes import as_dims, check_sizes, size_list, to_dim, to_dims
from graphkb.backend.sparse import SparseTensor
from graphkb.backend.tensors import Tensor
from graphkb.ir.dims import Dim, show_shape
from graphkb.ir.errors import CheckError, ShapeError, UnsupportedError, shown
from graphkb.ir.graph import built_at
from graphkb.ir.node import Node
from graphkb.ops import index
from graphkb.ops import shape as shape_ops


def _several(what: str, tensors: Any) -> list[Any]:
    found = items(what, "a sequence of tensors", tensors)
    if not found:
        raise ValueError(f"{what}: expected at least one tensor, not an empty list")
    return found


def concatenate(tensors: Sequence[Any], axis: int = -1) -> Tensor:
    """Tensors one after the other along an axis.

    Args:
        tensors: one or more tensors of one rank whose other sizes are equal; their dtypes promote.
        axis: an int.

    Returns:
        A tensor; a sparse one where all of them are sparse.

    Raises:
        ShapeError: the shapes do not fit, or there is no such axis. ValueError: there are no tensors.

    >>> from graphkb import backend as K
    >>> K.concatenate([K.placeholder((None, 2)), K.placeholder((None, 3))]).shape
    (None, 5)
    """
    tensors = _several("concatenate", tensors)
    if all(isinstance(x, SparseTensor) for x in tensors):
        return sparse.concatenate(tensors, normalize_axis("concatenate", axis, 2))
    nodes = as_nodes(tensors)
    at = normalize_axis("concatenate", axis, nodes[0].ndim)
    return Tensor(shape_ops.concatenate(nodes, at))


def stack(x: Sequence[Any], axis: int = 0) -> Tensor:
    """Tensors of one shape along a new axis.

    Args:
        x: one or more tensors and numbers of one shape; their dtypes promote.
        axis: where the new axis stands in the result.

    Raises:
        ShapeError: the shapes differ, or there is no such axis. ValueError: there are no tensors.

    >>> from graphkb import backend as K
    >>> K.stack([K.placeholder((2,)), K.placeholder((2,))], axis=1).shape
    (2, 2)
    """
    if isinstance(x, Handle):
        if not x.node.ndim:
            raise ShapeError("stack: expected a sequence of tensors, not a scalar")
        return Tensor(_move_axis(x.node, 0, normalize_axis("stack", axis, x.node.ndim)))
    nodes = as_nodes(_several("stack", x))
    for node in nodes[1:]:
        if node.ndim != nodes[0].ndim or any(
            isinstance(a, int) and isinstance(b, int) and a != b for a, b in zip(node.shape, nodes[0].shape)
        ):
            raise ShapeError(
                f"stack: expected tensors of one shape, not {show_shape(nodes[0].shape)} and {show_shape(node.shape)}"
            )
    return Tensor(shape_ops.stack(nodes, normalize_axis("stack", axis, nodes[0].ndim + 1)))


def _move_axis(x: Node, source: int, target: int) -> Node:
    rest = [a for a in range(x.ndim) if a != source]
    return shape_ops.transpose(x, (*rest[:target], source, *rest[target:]))


def _repeat_blocks(x: Node, repeats: Sequence[Dim]) -> Node:
    """Each axis repeated as a whole, one block after the other."""
    wide: list[Dim] = []
    spread: list[Dim] = []
    final: list[Dim] = []
    for n, times in zip(x.shape, repeats):
        if times == 1:
            wide.append(n)
            spread.append(n)
        else:
            wide += [1, n]
            spread += [times, n]
        final.append(n * times)
    blocks = shape_ops.broadcast_to(shape_ops.reshape(x, tuple(wide)), tuple(spread))
    return shape_ops.reshape(blocks, tuple(final))


def tile(x: Any, n: Any) -> Tensor:
    """A tensor repeated as a whole along its axes.

    Args:
        x: a tensor of any shape.
        n: how often along each axis: an int, integers and scalar tensors computed from `K.shape`, or an integer
            vector. Fewer numbers than axes count for the last axes.

    Returns:
        A tensor of the same rank.

    Raises:
        UnsupportedError: there are more numbers than axes (a ValueError, and as in Keras a NotImplementedError).
            ShapeError: a number is negative, or depends on values.

    >>> from graphkb import backend as K
    >>> K.eval(K.tile(K.variable([[1, 2]]), (2, 2))).tolist()
    [[1.0, 2.0, 1.0, 2.0], [1.0, 2.0, 1.0, 2.0]]
    """
    node = as_node(x)
    if isinstance(n, (int, np.integer)) or (isinstance(n, Handle) and not n.node.ndim):
        n = (n,)
    times = to_dims(n, "tile")
    if len(times) > node.ndim:
        raise UnsupportedError(f"tile: {len(times)} numbers for the {node.ndim} axes of {show_shape(node.shape)}")
    if any(isinstance(t, int) and t < 0 for t in times):
        raise ShapeError(f"tile: the numbers {show_shape(times)} must not be negative")
    return Tensor(_repeat_blocks(node, (1,) * (node.ndim - len(times)) + times))


def repeat_elements(x: Any, rep: Any, axis: int) -> Tensor:
    """Each element repeated along an axis, as `numpy.repeat` does it.

    Args:
        x: a tensor of rank 1 or more.
        rep: how often: an int, or a scalar tensor computed from `K.shape`.
        axis: an int.

    Raises:
        ShapeError: there is no such axis, or `rep` is negative.

    >>> from graphkb import backend as K
    >>> K.eval(K.repeat_elements(K.variable([1, 2]), 2, axis=0)).tolist()
    [1.0, 1.0, 2.0, 2.0]
    """
    node = as_node(x)
    at = normalize_axis("repeat_elements", axis, node.ndim)
    times = to_dim(rep, "repeat_elements")
    if isinstance(times, int) and times < 0:
        raise ShapeError(f"repeat_elements: the number {times} is negative")
    wide = shape_ops.expand_dims(node, at + 1)
    spread = shape_ops.broadcast_to(wide, (*node.shape[: at + 1], times, *node.shape[at + 1 :]))
    result = Tensor(shape_ops.reshape(spread, (*node.shape[:at], node.shape[at] * times, *node.shape[at + 1 :])))
    result._keras_shape = result.shape  # type: ignore[attr-defined]
    return result


def repeat(x: Any, n: Any) -> Tensor:
    """A matrix repeated along a new axis in the middle.

    Args:
        x: a tensor of shape (samples, features).
        n: how often: an int, or a scalar tensor computed from `K.shape`.

    Returns:
        A tensor of shape (samples, n, features).

    Raises:
        CheckError: the rank is not 2 (a ValueError, and as in Keras an AssertionError). ShapeError: `n` is negative.

    >>> from graphkb import backend as K
    >>> K.repeat(K.placeholder((None, 4)), 3).shape
    (None, 3, 4)
    """
    node = as_node(x)
    if node.ndim != 2:
        raise CheckError(f"repeat: expected a matrix, not a tensor of shape {show_shape(node.shape)}")
    times = to_dim(n, "repeat")
    check_sizes("repeat", (times,))
    return Tensor(shape_ops.broadcast_to(shape_ops.expand_dims(node, 1), (node.shape[0], times, node.shape[1])))


def slice(x: Any, start: Any, size: Any) -> Tensor:
    """A block of a tensor.

    Args:
        x: a tensor of any shape.
        start: the first position along each axis: integers, scalar integer tensors, or an integer vector.
        size: the number of elements along each axis, -1 for all that are left; integers, scalar tensors computed
            from `K.shape`, or an integer vector.

    Returns:
        A tensor of shape `size`.

    Raises:
        ValueError: the number of positions or sizes is not the rank. ShapeError: the block reaches too far.

    >>> from graphkb import backend as K
    >>> K.eval(K.slice(K.variable([[1, 2, 3], [4, 5, 6]]), (0, 1), (2, -1))).tolist()
    [[2.0, 3.0], [5.0, 6.0]]
    """
    node = as_node(x)
    firsts: list[Any]
    if isinstance(start, Tensor):
        length = start.node.shape[0] if start.ndim else 0
        firsts = [start[i] for i in range(length if isinstance(length, int) else node.ndim)]
    else:
        firsts = size_list(start, "slice")
    counts = list(to_dims(size, "slice"))
    if not len(firsts) == len(counts) == node.ndim:
        raise ValueError(
            f"slice: expected one start and one size for each of the {node.ndim} axes, "
            f"not {len(firsts)} and {len(counts)}"
        )
    starts: list[Dim] = []
    late: list[tuple[int, Node]] = []
    for axis, first in enumerate(firsts):
        known = as_dims(first.node) if isinstance(first, Handle) else None
        if isinstance(first, Handle) and known is None:
            if counts[axis] == -1:
                raise ShapeError(f"slice: axis {axis}: the size -1 needs a start that is known from shapes")
            late.append((axis, first.node))
            starts.append(0)
            continue
        begin: Dim = known.item() if known is not None else to_dim(first, "slice")
        if isinstance(begin, int) and begin < 0:
            raise ShapeError(f"slice: axis {axis}: the start {begin} is negative")
        if isinstance(begin, int) and isinstance(node.shape[axis], int) and begin > node.shape[axis]:
            raise ShapeError(f"slice: axis {axis} of {show_shape(node.shape)}: the start {begin} lies behind its end")
        starts.append(begin)
        if counts[axis] == -1:
            counts[axis] = node.shape[axis] - begin
    for axis, count in enumerate(counts):
        if isinstance(count, int) and count < 0:
            raise ShapeError(f"slice: axis {axis} of {show_shape(node.shape)}: the size {count} is negative")
    moving = [axis for axis, _ in late]
    block = shape_ops.slice_(
        node, tuple(starts), tuple([node.shape[i] if i in moving else c for i, c in enumerate(counts)])
    )
    for axis, begin_node in late:
        block = index.gather(block, positions_from(begin_node, counts[axis]), axis)
    return Tensor(block)


def gather(reference: Any, indices: Any) -> Tensor:
    """The rows of a tensor at some positions.

    Args:
        reference: a tensor of rank 1 or more.
        indices: an integer tensor or array of any shape; 0 or more. A position out of range is a PositionError when
            it runs.

    Returns:
        A tensor of shape `indices.shape + reference.shape[1:]`.

    Raises:
        DTypeError: the indices are no integers. ShapeError: the reference is a scalar.

    >>> from graphkb import backend as K
    >>> K.eval(K.gather(K.variable([10, 20, 30]), [2, 0])).tolist()
    [30.0, 10.0]
    """
    x = as_node(reference)
    if not x.ndim:
        raise ShapeError("gather: expected a reference of rank 1 or more, not a scalar")
    return Tensor(index.gather(x, as_node(indices), 0))


def _padded(x: Node, padding: Sequence[tuple[Any, Any]], what: str) -> Tensor:
    """Zeros around a tensor: (before, after) for each axis."""
    starts: list[Dim] = []
    sizes: list[Dim] = []
    for axis, (before, after) in enumerate(padding):
        first, last = to_dim(before, what), to_dim(after, what)
        if (isinstance(first, int) and first < 0) or (isinstance(last, int) and last < 0):
            raise ShapeError(f"{what}: the padding ({first}, {last}) is negative")
        starts.append(first)
        sizes.append(x.shape[axis] + first + last)
    return Tensor(shape_ops.pad(x, tuple(starts), (1,) * x.ndim, tuple(sizes)))


def check_rank(what: str, x: Node, rank: int) -> None:
    if x.ndim != rank:
        raise ShapeError(
            f"{what}: expected a tensor of rank {rank}, not one of shape {show_shape(x.shape)}{built_at(x)}"
        )


def temporal_padding(x: Any, padding: tuple[int, int] = (1, 1)) -> Tensor:
    """Zeros before and after the middle axis.

    Args:
        x: a tensor of shape (samples, time, features).
        padding: how many before and after.

    Raises:
        CheckError: the padding is no pair (a ValueError, and as in Keras an AssertionError). ShapeError: the rank is
            not 3, or a number is negative.

    >>> from graphkb import backend as K
    >>> K.temporal_padding(K.placeholder((2, 3, 4)), (1, 2)).shape
    (2, 6, 4)
    """
    _check_pairs("temporal_padding", (padding,), 1)
    node = as_node(x)
    check_rank("temporal_padding", node, 3)
    return _padded(node, [(0, 0), padding, (0, 0)], "temporal_padding")


def _check_pairs(what: str, padding: Any, count: int) -> None:
    sequences = (list, tuple, np.ndarray)
    if (
        not isinstance(padding, sequences)
        or len(padding) != count
        or not all(isinstance(p, sequences) and len(p) == 2 for p in padding)
    ):
        given = padding[0] if count == 1 else padding
        raise CheckError(f"{what}: expected {count} pair{'s' * (count > 1)} of numbers as padding, not {shown(given)}")


def _spatial_padding(x: Any, padding: Any, data_format: str | None, axes: int) -> Tensor:
    what = f"spatial_{axes}d_padding"
    _check_pairs(what, padding, axes)
    layout = normalize_data_format(data_format)
    node = as_node(x)
    check_rank(what, node, axes + 2)
    none = (0, 0)
    inner = [tuple(p) for p in padding]
    return _padded(node, [none, none, *inner] if layout == "channels_first" else [none, *inner, none], what)


def spatial_2d_padding(x: Any, padding: Any = ((1, 1), (1, 1)), data_format: str | None = None) -> Tensor:
    """Zeros around images.

    Args:
        x: a tensor of shape (samples, rows, columns, channels), or (samples, channels, rows, columns).
        padding: (before, after) for rows and for columns.
        data_format: "channels_last" or "channels_first"; None takes `image_data_format()`.

    Raises:
        ValueError: the data format is not known. CheckError: the padding is not made of two pairs (a ValueError, and
            as in Keras an AssertionError). ShapeError: the rank is not 4, or a number is negative.

    >>> from graphkb import backend as K
    >>> K.spatial_2d_padding(K.placeholder((None, 3, 3, 2))).shape
    (None, 5, 5, 2)
    """
    return _spatial_padding(x, padding, data_format, 2)


def spatial_3d_padding(x: Any, padding: Any = ((1, 1), (1, 1), (1, 1)), data_format: str | None = None) -> Tensor:
    """Zeros around volumes.

    Args:
        x: a tensor of shape (samples, depth, rows, columns, channels), or with the channels second.
        padding: (before, after) for depth, rows and columns.
        data_format: "channels_last" or "channels_first"; None takes `image_data_format()`.

    Raises:
        ValueError: the data format is not known. CheckError: the padding is not made of three pairs (a ValueError,
            and as in Keras an AssertionError). ShapeError: the rank is not 5, or a number is negative.

    >>> from graphkb import backend as K
    >>> K.spatial_3d_padding(K.placeholder((None, 3, 3, 3, 2))).shape
    (None, 5, 5, 5, 2)
    """
    return _spatial_padding(x, padding, data_format, 3)
