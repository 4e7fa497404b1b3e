"""Reductions and what is built on them, over matrices of (4096, 1024) and (4096, 4096) floats."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.peers.base import Arrays
from benchmarks.workloads import formulas
from benchmarks.workloads.base import Forward

f32 = np.float32


def matrix(rows: int, cols: int, seed: int) -> Callable[[], Arrays]:
    return lambda: {"x": np.random.default_rng(seed).standard_normal((rows, cols)).astype(f32)}


def scale_and_shift() -> Sequence[np.ndarray]:
    rng = np.random.default_rng(4)
    return [rng.standard_normal(1024).astype(f32) for _ in range(2)]


def graphkb_layernorm(K: Any, scale: Any, shift: Any, x: Any) -> Any:
    d = x - K.mean(x, axis=-1, keepdims=True)
    return d / K.sqrt(K.mean(K.square(d), axis=-1, keepdims=True) + 1e-5) * scale + shift


def jax_layernorm(jax: Any, scale: Any, shift: Any, x: Any) -> Any:
    d = x - x.mean(-1, keepdims=True)
    return d * jax.lax.rsqrt((d * d).mean(-1, keepdims=True) + 1e-5) * scale + shift


def pytensor_layernorm(pt: Any, scale: Any, shift: Any, x: Any) -> Any:
    d = x - x.mean(-1, keepdims=True)
    return d / pt.sqrt((d * d).mean(-1, keepdims=True) + f32(1e-5)) * scale + shift


def tensorflow_layernorm(tf: Any, scale: Any, shift: Any, x: Any) -> Any:
    mean, variance = tf.nn.moments(x, -1, keepdims=True)
    return tf.nn.batch_normalization(x, mean, variance, shift, scale, 1e-5)


def total(name: str, what: str, axis: int | None) -> Forward:
    """Sums of (4096, 4096) over one axis or over all."""
    axes = [0, 1] if axis is None else [axis]
    expressions: Mapping[str, Any] = {
        "graphkb": lambda K, x: K.sum(x, axis=axis),
        "numpy": lambda np, x: x.sum(axis=axis),
        "numexpr": "sum(x)" if axis is None else f"sum(x, {axis})",
        "jax": lambda jax, x: x.sum(axis),
        "pytensor": lambda pt, x: x.sum(axis),
        "torch": lambda torch, x: x.sum() if axis is None else x.sum(axis),
        "onnx": lambda g, x: g.ReduceSum(x, np.array(axes, np.int64), keepdims=0),
        "tensorflow": lambda tf, x: tf.reduce_sum(x, axis),
    }
    return Forward(
        name=name,
        what=what,
        inputs=matrix(4096, 4096, seed=5),
        reference=lambda x: x.sum(axis=axis),
        tolerance=5e-4 if axis is None else 1e-5,  # the full sum cancels: its terms are 1e4 times its value
        expressions=expressions,
    )


WORKLOADS = (
    Forward(
        name="softmax",
        what="softmax over the last axis of (4096, 1024)",
        inputs=matrix(4096, 1024, seed=3),
        reference=formulas.softmax,
        tolerance=5e-6,
        expressions={
            "graphkb": lambda K, x: K.softmax(x),
            "numpy": lambda np, x: formulas.softmax(x),
            "jax": lambda jax, x: jax.nn.softmax(x, -1),
            "pytensor": lambda pt, x: pt.special.softmax(x, -1),
            "torch": lambda torch, x: torch.softmax(x, -1),
            "onnx": lambda g, x: g.Softmax(x, axis=-1),
            "tensorflow": lambda tf, x: tf.nn.softmax(x),
        },
    ),
    Forward(
        name="layernorm",
        what="layer normalization of (4096, 1024), scale and shift",
        inputs=matrix(4096, 1024, seed=3),
        params=scale_and_shift,
        reference=formulas.layernorm,
        tolerance=5e-6,
        expressions={
            "graphkb": graphkb_layernorm,
            "numpy": lambda np, scale, shift, x: formulas.layernorm(scale, shift, x),
            "jax": jax_layernorm,
            "pytensor": pytensor_layernorm,
            "torch": lambda torch, scale, shift, x: torch.layer_norm(x, (1024,), scale, shift, 1e-5),
            "onnx": lambda g, scale, shift, x: g.LayerNormalization(x, scale, shift, axis=-1, epsilon=1e-5),
            "tensorflow": tensorflow_layernorm,
        },
    ),
    Forward(
        name="logsumexp",
        what="logsumexp over the last axis of (4096, 1024)",
        inputs=matrix(4096, 1024, seed=3),
        reference=formulas.logsumexp,
        tolerance=1e-5,
        expressions={
            "graphkb": lambda K, x: K.logsumexp(x, axis=-1),
            "numpy": lambda np, x: formulas.logsumexp(x),
            "jax": lambda jax, x: jax.nn.logsumexp(x, -1),
            "pytensor": lambda pt, x: pt.logsumexp(x, -1),
            "torch": lambda torch, x: torch.logsumexp(x, -1),
            "onnx": lambda g, x: g.ReduceLogSumExp(x, axes=[1], keepdims=0),
            "tensorflow": lambda tf, x: tf.reduce_logsumexp(x, -1),
        },
    ),
    total("rowsum", "row sums of (4096, 4096)", axis=1),
    total("colsum", "column sums of (4096, 4096)", axis=0),
    total("fullsum", "the sum of (4096, 4096)", axis=None),
)
