"""What moves memory more than it computes: transposes, joins, gathers, running sums, extrema, random draws."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from benchmarks.peers.base import Arrays
from benchmarks.workloads.base import Forward

f32 = np.float32
DECILES = np.arange(1, 10) / 10


def floats(*shape: int, count: int = 1) -> Callable[[], Arrays]:
    """Arrays of normally distributed numbers, named x, y, z, …"""
    rng = np.random.default_rng(6)
    return lambda: {"xyzw"[i]: rng.standard_normal(shape).astype(f32) for i in range(count)}


def classes(count: int, n: int) -> Callable[[], Arrays]:
    return lambda: {"i": np.random.default_rng(7).integers(0, n, count).astype(np.int32)}


def rows_and_positions(shape: tuple[int, int], count: int, n: int) -> Callable[[], Arrays]:
    return lambda: {**floats(*shape)(), **classes(count, n)()}


def move(
    name: str,
    what: str,
    inputs: Callable[[], Arrays],
    reference: Callable[..., np.ndarray],
    tolerance: float = 0.0,
    summary: Callable[[np.ndarray], np.ndarray] | None = None,
    **expressions: Any,
) -> Forward:
    """A workload whose answer is exact unless a tolerance says otherwise."""
    return Forward(name, what, inputs, reference, tolerance, expressions, summary=summary)


def deciles(x: np.ndarray) -> np.ndarray:
    """Nine quantiles: what one draw has in common with another."""
    return np.quantile(x.astype(np.float64), DECILES)


def dropped(x: np.ndarray) -> np.ndarray:
    """The share of zeros, and what the other elements have been multiplied by if they were ones."""
    return np.array([np.mean(x == 0), x.max(), x[x != 0].min()])


def embedding_gradient(K: Any, gradient: Any, i: Any) -> Any:
    table = K.zeros((10_000, 256))
    return K.gradients(K.sum(K.gather(table, i) * gradient), [table])[0]


def numpy_embedding_gradient(gradient: np.ndarray, i: np.ndarray) -> np.ndarray:
    out = np.zeros((10_000, 256), gradient.dtype)
    np.add.at(out, i.astype(np.int64), gradient)
    return out


def extremum(name: str, shape: tuple[int, ...], axis: int) -> Forward:
    """The position of the largest element along an axis."""
    return move(
        name,
        f"argmax over axis {axis} of {shape}",
        floats(*shape),
        lambda x: np.argmax(x, axis),
        graphkb=lambda K, x: K.argmax(x, axis),
        numpy=lambda np, x: np.argmax(x, axis),
        jax=lambda jax, x: jax.numpy.argmax(x, axis),
        pytensor=lambda pt, x: pt.argmax(x, axis),
        torch=lambda torch, x: torch.argmax(x, axis),
        onnx=lambda g, x: g.ArgMax(x, axis=axis, keepdims=0),
        tensorflow=lambda tf, x: tf.argmax(x, axis),
    )


def transposed(name: str, shape: tuple[int, ...], axes: tuple[int, ...]) -> Forward:
    """A copy with permuted axes."""
    return move(
        name,
        f"transpose {axes} of {shape}",
        floats(*shape),
        lambda x: np.transpose(x, axes),
        graphkb=lambda K, x: K.permute_dimensions(x, axes),
        numpy=lambda np, x: np.ascontiguousarray(np.transpose(x, axes)),
        jax=lambda jax, x: jax.numpy.transpose(x, axes),
        # Adding 0 makes PyTensor copy; a view alone would move nothing.
        pytensor=lambda pt, x: pt.transpose(x, axes) + f32(0),
        torch=lambda torch, x: x.permute(axes).contiguous(),
        onnx=lambda g, x: g.Transpose(x, perm=axes),
        tensorflow=lambda tf, x: tf.transpose(x, axes),
    )


def joined(name: str, shape: tuple[int, ...], count: int, axis: int) -> Forward:
    """Arrays of one shape one after the other along an axis."""
    return move(
        name,
        f"concatenation of {count} arrays {shape} along axis {axis}",
        floats(*shape, count=count),
        lambda *x: np.concatenate(x, axis),
        graphkb=lambda K, *x: K.concatenate(list(x), axis),
        numpy=lambda np, *x: np.concatenate(x, axis),
        jax=lambda jax, *x: jax.numpy.concatenate(x, axis),
        pytensor=lambda pt, *x: pt.concatenate(x, axis),
        torch=lambda torch, *x: torch.cat(x, axis),
        onnx=lambda g, *x: g.Concat(*x, axis=axis),
        tensorflow=lambda tf, *x: tf.concat(x, axis),
    )


def running(name: str, shape: tuple[int, ...], axis: int) -> Forward:
    """Running sums along an axis."""
    return move(
        name,
        f"running sums along axis {axis} of {shape}",
        floats(*shape),
        lambda x: np.cumsum(x, axis),
        1e-5,
        graphkb=lambda K, x: K.cumsum(x, axis),
        numpy=lambda np, x: np.cumsum(x, axis),
        jax=lambda jax, x: jax.numpy.cumsum(x, axis),
        pytensor=lambda pt, x: pt.cumsum(x, axis),
        torch=lambda torch, x: torch.cumsum(x, axis),
        onnx=lambda g, x: g.CumSum(x, np.array(axis)),
        tensorflow=lambda tf, x: tf.cumsum(x, axis),
    )


def numpy_in_top(x: np.ndarray, i: np.ndarray) -> np.ndarray:
    own = np.take_along_axis(x, i.astype(np.int64)[:, None], 1)
    return np.asarray((x > own).sum(1) < 5)


def draw(name: str, what: str, reference: Sequence[float], **expressions: Any) -> Forward:
    """A million random numbers, compared by their deciles; the input only keeps libraries from folding the draw."""
    return move(
        name,
        f"{what}, n = 1,000,000",
        lambda: {"x": np.zeros(1, f32)},
        lambda x: np.asarray(reference),
        1e-2,
        deciles,
        **expressions,
    )


def jax_key(jax: Any, x: Any) -> Any:
    return jax.random.key(x[0].astype("uint32"))


# The deciles of the normal distribution.
NORMAL = (-1.2815516, -0.8416212, -0.5244005, -0.2533471, 0.0, 0.2533471, 0.5244005, 0.8416212, 1.2815516)
SIZE = 1_000_000

WORKLOADS = (
    extremum("argmax", (4096, 1024), 1),
    extremum("argmax_columns", (4096, 1024), 0),
    transposed("transpose", (1024, 1024), (1, 0)),
    transposed("transpose_heads", (32, 128, 8, 32), (0, 2, 1, 3)),
    transposed("transpose_images", (32, 28, 28, 40), (0, 3, 1, 2)),
    joined("concatenate", (500, 512), 4, 1),
    joined("concatenate_narrow", (100_000, 3), 3, 1),
    move(
        "gather_rows",
        "4,000 rows of (10000, 256)",
        rows_and_positions((10_000, 256), 4_000, 10_000),
        lambda x, i: np.take(x, i.astype(np.int64), 0),
        graphkb=lambda K, x, i: K.gather(x, i),
        numpy=lambda np, x, i: np.take(x, i, 0),
        jax=lambda jax, x, i: jax.numpy.take(x, i, 0, mode="clip"),
        pytensor=lambda pt, x, i: x[i],
        torch=lambda torch, x, i: torch.index_select(x, 0, i),
        onnx=lambda g, x, i: g.Gather(x, i, axis=0),
        tensorflow=lambda tf, x, i: tf.gather(x, i),
    ),
    move(
        "scatter_add",
        "the gradient of an embedding: 4,000 rows added into (10000, 256)",
        rows_and_positions((4_000, 256), 4_000, 10_000),
        numpy_embedding_gradient,
        1e-6,
        graphkb=embedding_gradient,
        numpy=lambda np, x, i: numpy_embedding_gradient(x, i),
        jax=lambda jax, x, i: jax.numpy.zeros((10_000, 256), x.dtype).at[i].add(x),
        pytensor=lambda pt, x, i: pt.inc_subtensor(pt.zeros((10_000, 256), "float32")[i], x),
        torch=lambda torch, x, i: torch.zeros(10_000, 256).index_add_(0, i, x),
        tensorflow=lambda tf, x, i: tf.scatter_nd(i[:, None], x, (10_000, 256)),
    ),
    move(
        "one_hot",
        "one-hot rows, (100000,) of 10 classes",
        classes(100_000, 10),
        lambda i: np.eye(10)[i.astype(np.int64)],
        graphkb=lambda K, i: K.one_hot(i, 10),
        numpy=lambda np, i: np.eye(10, dtype=f32)[i],
        jax=lambda jax, i: jax.nn.one_hot(i, 10),
        pytensor=lambda pt, i: pt.eq(i[:, None], np.arange(10)).astype("float32"),
        torch=lambda torch, i: torch.nn.functional.one_hot(i.long(), 10).float(),
        onnx=lambda g, i: g.OneHot(i, np.array(10, np.int32), np.array([0, 1], f32)),
        tensorflow=lambda tf, i: tf.one_hot(i, 10),
    ),
    running("cumsum_rows", (1000, 1000), 1),
    running("cumsum_columns", (1000, 1000), 0),
    move(
        "in_top_k",
        "whether the target is among the 5 largest, (1000, 1000)",
        rows_and_positions((1000, 1000), 1000, 1000),
        numpy_in_top,
        graphkb=lambda K, x, i: K.in_top_k(x, i, 5),
        numpy=lambda np, x, i: numpy_in_top(x, i),
        jax=lambda jax, x, i: (x > jax.numpy.take_along_axis(x, i[:, None], 1)).sum(1) < 5,
        torch=lambda torch, x, i: (x > x.gather(1, i[:, None].long())).sum(1) < 5,
        tensorflow=lambda tf, x, i: tf.math.in_top_k(i, x, 5),
    ),
    move(
        "dropout",
        "dropout of (1000, 1000), rate 0.25",
        lambda: {"x": np.ones((1000, 1000), f32)},
        lambda x: np.array([0.25, 4 / 3, 4 / 3]),
        5e-3,
        dropped,
        graphkb=lambda K, x: K.dropout(x, 0.25, seed=1),
        numpy=lambda np, x: x * (np.random.default_rng(1).random(x.shape, f32) >= f32(0.25)) * f32(4 / 3),
        jax=lambda jax, x: jax.numpy.where(
            jax.random.bernoulli(jax_key(jax, x[0]), 0.75, x.shape), x / f32(0.75), f32(0)
        ),
        torch=lambda torch, x: torch.nn.functional.dropout(x, 0.25, True),
        tensorflow=lambda tf, x: tf.nn.dropout(x, 0.25),
    ),
    draw(
        "random_uniform",
        "uniform random numbers",
        DECILES.tolist(),
        graphkb=lambda K, x: K.random_uniform((SIZE,), seed=1) + x,
        numpy=lambda np, x: np.random.default_rng(1).random(SIZE, f32),
        jax=lambda jax, x: jax.random.uniform(jax_key(jax, x), (SIZE,)),
        torch=lambda torch, x: torch.rand(SIZE),
        tensorflow=lambda tf, x: tf.random.uniform((SIZE,)),
    ),
    draw(
        "random_normal",
        "normal random numbers",
        NORMAL,
        graphkb=lambda K, x: K.random_normal((SIZE,), seed=1) + x,
        numpy=lambda np, x: np.random.default_rng(1).standard_normal(SIZE, f32),
        jax=lambda jax, x: jax.random.normal(jax_key(jax, x), (SIZE,)),
        torch=lambda torch, x: torch.randn(SIZE),
        tensorflow=lambda tf, x: tf.random.normal((SIZE,)),
    ),
)
