"""Gradients of what is built on reductions: softmax, layer normalization, cross-entropy, the statistics of a batch."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.peers.base import Arrays
from benchmarks.workloads import formulas
from benchmarks.workloads.base import Forward

f32 = np.float32
EPSILON = 1e-3


def pair(*dims: int) -> Arrays:
    rng = np.random.default_rng(8)
    return {name: rng.standard_normal(dims).astype(f32) for name in ("x", "g")}


def scores() -> Arrays:
    rng = np.random.default_rng(9)
    return {"x": rng.standard_normal((4096, 1000)).astype(f32), "labels": rng.integers(0, 1000, 4096)}


# ---------------------------------------------------------------------------------------------- formulas
def softmax_slope(x: np.ndarray, g: np.ndarray) -> np.ndarray:
    y = formulas.softmax(x)
    slope: np.ndarray = y * (g - (g * y).sum(axis=-1, keepdims=True))
    return slope


def normalized_slope(x: np.ndarray, g: np.ndarray, axes: tuple[int, ...]) -> np.ndarray:
    """Of (x - mean) / sqrt(variance + EPSILON), with the statistics over some axes."""
    centered = x - x.mean(axis=axes, keepdims=True)
    deviation = np.sqrt((centered * centered).mean(axis=axes, keepdims=True) + x.dtype.type(EPSILON))
    y = centered / deviation
    slope: np.ndarray = (g - g.mean(axis=axes, keepdims=True) - y * (g * y).mean(axis=axes, keepdims=True)) / deviation
    return slope


def cross_entropy_slope(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    y = formulas.softmax(x)
    y[np.arange(len(x)), labels.astype(np.int64)] -= 1
    slope: np.ndarray = y / x.dtype.type(len(x))
    return slope


# ---------------------------------------------------------------------------------------------- peers
def graphkb_slope(K: Any, y: Any, x: Any, g: Any) -> Any:
    return K.gradients(K.sum(y * g), [x])[0]


def graphkb_layernorm(K: Any, x: Any, g: Any) -> Any:
    d = x - K.mean(x, axis=-1, keepdims=True)
    return graphkb_slope(K, d / K.sqrt(K.mean(K.square(d), axis=-1, keepdims=True) + EPSILON), x, g)


def graphkb_batchnorm(K: Any, x: Any, g: Any) -> Any:
    y, _, _ = K.normalize_batch_in_training(x, K.ones((64,)), K.zeros((64,)), [0, 1, 2], EPSILON)
    return graphkb_slope(K, y, x, g)


def graphkb_cross_entropy(K: Any, x: Any, labels: Any) -> Any:
    return K.gradients(K.mean(K.sparse_categorical_crossentropy(labels, x, from_logits=True)), [x])[0]


def jax_normalized(jax: Any, x: Any, g: Any, axes: tuple[int, ...]) -> Any:
    def loss(x: Any) -> Any:
        d = x - x.mean(axes, keepdims=True)
        return (d * jax.lax.rsqrt((d * d).mean(axes, keepdims=True) + EPSILON) * g).sum()

    return jax.grad(loss)(x)


def jax_cross_entropy(jax: Any, x: Any, labels: Any) -> Any:
    rows = np.arange(len(labels))
    return jax.grad(lambda x: -jax.nn.log_softmax(x, -1)[rows, labels].mean())(x)


def torch_layernorm(torch: Any, x: Any, g: Any) -> Any:
    _, mean, scale = torch.native_layer_norm(x, (1024,), None, None, EPSILON)
    return torch.ops.aten.native_layer_norm_backward(g, x, (1024,), mean, scale, None, None, (True, False, False))[0]


def torch_batchnorm(torch: Any, x: Any, g: Any) -> Any:
    x, g = x.permute(0, 3, 1, 2), g.permute(0, 3, 1, 2)
    _, mean, scale = torch.native_batch_norm(x, None, None, None, None, True, 0.1, EPSILON)
    slope = torch.ops.aten.native_batch_norm_backward(
        g, x, None, None, None, mean, scale, True, EPSILON, (True, False, False)
    )[0]
    return slope.permute(0, 2, 3, 1)


def torch_cross_entropy(torch: Any, x: Any, labels: Any) -> Any:
    y = torch.softmax(x, -1)
    y[torch.arange(len(x)), labels] -= 1
    return y / len(x)


WORKLOADS = (
    Forward(
        name="softmax_grad",
        what="the gradient of softmax, (4096, 1024), from its input",
        inputs=lambda: pair(4096, 1024),
        reference=softmax_slope,
        tolerance=1e-5,
        expressions={
            "graphkb": lambda K, x, g: graphkb_slope(K, K.softmax(x), x, g),
            "numpy": lambda np, x, g: softmax_slope(x, g),
            "jax": lambda jax, x, g: jax.grad(lambda x: (jax.nn.softmax(x, -1) * g).sum())(x),
            "torch": lambda torch, x, g: torch._softmax_backward_data(g, torch.softmax(x, -1), -1, x.dtype),
        },
    ),
    Forward(
        name="layernorm_grad",
        what="the gradient of layer normalization, (4096, 1024), from its input",
        inputs=lambda: pair(4096, 1024),
        reference=lambda x, g: normalized_slope(x, g, (1,)),
        tolerance=1e-5,
        expressions={
            "graphkb": graphkb_layernorm,
            "numpy": lambda np, x, g: normalized_slope(x, g, (1,)),
            "jax": lambda jax, x, g: jax_normalized(jax, x, g, (1,)),
            "torch": torch_layernorm,
        },
    ),
    Forward(
        name="crossentropy_grad",
        what="the gradient of the mean sparse cross-entropy of logits (4096, 1000)",
        inputs=scores,
        reference=cross_entropy_slope,
        tolerance=1e-5,
        expressions={
            "graphkb": graphkb_cross_entropy,
            "numpy": lambda np, x, labels: cross_entropy_slope(x, labels),
            "jax": jax_cross_entropy,
            "torch": torch_cross_entropy,
        },
    ),
    Forward(
        name="batchnorm_grad",
        what="batch normalization in training with its gradient, (32, 56, 56, 64), channels last",
        inputs=lambda: pair(32, 56, 56, 64),
        reference=lambda x, g: normalized_slope(x, g, (0, 1, 2)),
        tolerance=3e-5,
        expressions={
            "graphkb": graphkb_batchnorm,
            "numpy": lambda np, x, g: normalized_slope(x, g, (0, 1, 2)),
            "jax": lambda jax, x, g: jax_normalized(jax, x, g, (0, 1, 2)),
            "torch": torch_batchnorm,
        },
    ),
)
