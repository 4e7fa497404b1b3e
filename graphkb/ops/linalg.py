"""The general dot product: batch axes, contracted axes, free axes."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphkb.ir.dims import Dim, show_shape
from graphkb.ir.errors import DTypeError, ShapeError
from graphkb.ir.leaves import Array
from graphkb.ir.node import Node, make
from graphkb.ir.op import define
from graphkb.ir.types import NUMBERS, TensorType
from graphkb.ops import shape

Axes = tuple[int, ...]


def _free(ndim: int, batch: Axes, contract: Axes) -> Axes:
    return tuple([a for a in range(ndim) if a not in batch and a not in contract])


def _known(a: Dim, b: Dim) -> Dim:
    return a if isinstance(a, int) else b


def _infer_dot(
    x: TensorType, y: TensorType, batch_x: Axes, batch_y: Axes, contract_x: Axes, contract_y: Axes
) -> TensorType:
    if x.dtype != y.dtype:
        raise DTypeError(f"dot: the operands must have one dtype, not {x.dtype} and {y.dtype}")
    if x.dtype not in NUMBERS:
        raise DTypeError(f"dot: {x.dtype} is not allowed, expected a number type")
    for batch, contract, t in ((batch_x, contract_x, x), (batch_y, contract_y, y)):
        axes = (*batch, *contract)
        if len(set(axes)) != len(axes) or not all(0 <= a < t.ndim for a in axes):
            raise ShapeError(f"dot: batch axes {batch} and contracted axes {contract} do not fit the rank {t.ndim}")
    if len(batch_x) != len(batch_y) or len(contract_x) != len(contract_y):
        raise ShapeError("dot: both operands need as many batch axes and as many contracted axes")
    for a, b in (*zip(batch_x, batch_y), *zip(contract_x, contract_y)):
        m, n = x.shape[a], y.shape[b]
        if isinstance(m, int) and isinstance(n, int) and m != n:
            raise ShapeError(
                f"dot: shapes {show_shape(x.shape)} and {show_shape(y.shape)} do not fit: "
                f"axis {a} of the first has {m}, axis {b} of the second has {n}"
            )
    shared = [_known(x.shape[a], y.shape[b]) for a, b in zip(batch_x, batch_y)]
    left = [x.shape[a] for a in _free(x.ndim, batch_x, contract_x)]
    right = [y.shape[a] for a in _free(y.ndim, batch_y, contract_y)]
    return TensorType(x.dtype, (*shared, *left, *right))


def _numpy_dot(x: Array, y: Array, batch_x: Axes, batch_y: Axes, contract_x: Axes, contract_y: Axes) -> Array:
    left, right = _free(x.ndim, batch_x, contract_x), _free(y.ndim, batch_y, contract_y)
    batch = [x.shape[a] for a in batch_x]
    m, n = [x.shape[a] for a in left], [y.shape[a] for a in right]
    k = int(np.prod([x.shape[a] for a in contract_x], dtype=np.int64))
    wide: Any = np.float32 if x.dtype == np.float16 else x.dtype
    a = x.transpose(*batch_x, *left, *contract_x).reshape(*batch, int(np.prod(m, dtype=np.int64)), k)
    b = y.transpose(*batch_y, *contract_y, *right).reshape(*batch, k, int(np.prod(n, dtype=np.int64)))
    result = np.matmul(a.astype(wide, copy=False), b.astype(wide, copy=False))
    return np.asarray(result).astype(x.dtype, copy=False).reshape((*batch, *m, *n))


def _dot_vjp(
    g: Node, z: Node, x: Node, y: Node, batch_x: Axes, batch_y: Axes, contract_x: Axes, contract_y: Axes
) -> tuple[Node, Node]:
    left, right = _free(x.ndim, batch_x, contract_x), _free(y.ndim, batch_y, contract_y)
    b, m, n = len(batch_x), len(left), len(right)
    g_batch = tuple(range(b))
    # dx[batch, left, contract] = g[batch, left, right] . y[batch, contract, right]
    dx = dot(g, y, g_batch, batch_y, tuple(range(b + m, b + m + n)), right)
    rest_y = [a for a in range(y.ndim) if a not in batch_y and a not in right]  # y's order of the contracted axes
    order = (*batch_x, *left, *[contract_x[contract_y.index(a)] for a in rest_y])
    dx = shape.transpose(dx, tuple(order.index(a) for a in range(x.ndim)))
    # dy[batch, contract, right] = x[batch, left, contract] . g[batch, left, right]
    dy = dot(x, g, batch_x, g_batch, left, tuple(range(b, b + m)))
    rest_x = [a for a in range(x.ndim) if a not in batch_x and a not in left]
    order = (*batch_y, *[contract_y[contract_x.index(a)] for a in rest_x], *right)
    dy = shape.transpose(dy, tuple(order.index(a) for a in range(y.ndim)))
    return dx, dy


DOT = define(
    "dot",
    kind="dot",
    params=("batch_x", "batch_y", "contract_x", "contract_y"),
    infer=_infer_dot,
    numpy=_numpy_dot,
    vjp=_dot_vjp,
    doc="Sums of products over the contracted axes; the result has the batch axes, the rest of x, the rest of y.",
)


def dot(x: Node, y: Node, batch_x: Axes, batch_y: Axes, contract_x: Axes, contract_y: Axes) -> Node:
    """The general dot product of two nodes of one dtype; axes are non-negative."""
    attrs = {"batch_x": batch_x, "batch_y": batch_y, "contract_x": contract_x, "contract_y": contract_y}
    return make(DOT, (x, y), attrs)
