"""Matrix products, and a 784-512-512-10 classifier in use and in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.peers.base import Arrays
from benchmarks.workloads import formulas
from benchmarks.workloads.base import Forward, TrainingStep

f32 = np.float32


def matmul(size: int) -> Forward:
    def inputs() -> Arrays:
        rng = np.random.default_rng(6)
        return {n: rng.standard_normal((size, size)).astype(f32) for n in "ab"}

    return Forward(
        name=f"matmul_{size}",
        what=f"a @ b, both ({size}, {size})",
        inputs=inputs,
        reference=np.matmul,
        tolerance=5e-6,
        expressions={
            "graphkb": lambda K, a, b: K.dot(a, b),
            "numpy": np.matmul,
            "jax": lambda jax, a, b: a @ b,
            "pytensor": lambda pt, a, b: a @ b,
            "torch": lambda torch, a, b: a @ b,
            "onnx": lambda g, a, b: g.MatMul(a, b),
            "tensorflow": lambda tf, a, b: a @ b,
        },
    )


DENSE_B1 = Forward(
    name="dense_b1",
    what="(1, 784) @ (784, 512)",
    inputs=lambda: {"x": np.random.default_rng(7).standard_normal((1, 784)).astype(f32)},
    params=lambda: [np.random.default_rng(8).standard_normal((784, 512)).astype(f32)],
    reference=lambda w, x: x @ w,
    tolerance=5e-6,
    expressions={
        "graphkb": lambda K, w, x: K.dot(x, w),
        "numpy": lambda np, w, x: x @ w,
        "jax": lambda jax, w, x: x @ w,
        "pytensor": lambda pt, w, x: x @ w,
        "torch": lambda torch, w, x: x @ w,
        "onnx": lambda g, w, x: g.MatMul(x, w),
        "tensorflow": lambda tf, w, x: x @ w,
    },
)


def mlp_weights() -> Sequence[np.ndarray]:
    """Glorot uniform matrices and small biases of the three layers."""
    rng = np.random.default_rng(9)
    weights: list[np.ndarray] = []
    for rows, cols in ((784, 512), (512, 512), (512, 10)):
        limit = np.sqrt(6 / (rows + cols))
        weights.append(rng.uniform(-limit, limit, (rows, cols)).astype(f32))
        weights.append((0.01 * rng.standard_normal(cols)).astype(f32))
    return weights


def images(batch: int) -> Arrays:
    return {"x": np.random.default_rng(10).uniform(0, 1, (batch, 784)).astype(f32)}


def labeled_images() -> Arrays:
    classes = np.random.default_rng(11).integers(0, 10, 128)
    return {**images(128), "y": np.eye(10, dtype=f32)[classes]}


def logits(matmul_add: Any, relu: Any, params: Sequence[Any], x: Any) -> Any:
    """The classifier before its softmax, from a library's `x @ w + b` and relu."""
    w1, b1, w2, b2, w3, b3 = params
    h = relu(matmul_add(x, w1, b1))
    h = relu(matmul_add(h, w2, b2))
    return matmul_add(h, w3, b3)


def plain(x: Any, w: Any, b: Any) -> Any:
    return x @ w + b


def graphkb_logits(K: Any, params: Sequence[Any], x: Any) -> Any:
    return logits(lambda x, w, b: K.dot(x, w) + b, K.relu, params, x)


def jax_logits(jax: Any, params: Sequence[Any], x: Any) -> Any:
    return logits(plain, jax.nn.relu, params, x)


def pytensor_logits(pt: Any, params: Sequence[Any], x: Any) -> Any:
    return logits(plain, lambda x: pt.maximum(x, f32(0)), params, x)


def torch_logits(torch: Any, params: Sequence[Any], x: Any) -> Any:
    return logits(lambda x, w, b: torch.addmm(b, x, w), torch.relu, params, x)


def onnx_logits(g: Any, params: Sequence[Any], x: Any) -> Any:
    return logits(g.Gemm, g.Relu, params, x)


def tensorflow_logits(tf: Any, params: Sequence[Any], x: Any) -> Any:
    return logits(plain, tf.nn.relu, params, x)


def mlp_inference(batch: int) -> Forward:
    return Forward(
        name=f"mlp_inf_{batch}",
        what=f"784-512-512-10 relu softmax, batch {batch}",
        inputs=lambda: images(batch),
        params=mlp_weights,
        reference=formulas.mlp,
        tolerance=5e-6,
        expressions={
            "graphkb": lambda K, *a: K.softmax(graphkb_logits(K, a[:6], a[6])),
            "numpy": lambda np, *a: formulas.mlp(*a),
            "jax": lambda jax, *a: jax.nn.softmax(jax_logits(jax, a[:6], a[6])),
            "pytensor": lambda pt, *a: pt.special.softmax(pytensor_logits(pt, a[:6], a[6]), -1),
            "torch": lambda torch, *a: torch.softmax(torch_logits(torch, a[:6], a[6]), -1),
            "onnx": lambda g, *a: g.Softmax(onnx_logits(g, a[:6], a[6]), axis=-1),
            "tensorflow": lambda tf, *a: tf.nn.softmax(tensorflow_logits(tf, a[:6], a[6])),
        },
    )


def torch_loss(torch: Any, params: Sequence[Any], x: Any, y: Any) -> Any:
    return -(y * torch.log_softmax(torch_logits(torch, params, x), -1)).sum(-1).mean()


MLP_TRAIN = TrainingStep(
    name="mlp_train",
    what="784-512-512-10, batch 128, one step of SGD with momentum",
    inputs=labeled_images,
    params=mlp_weights,
    gradients=formulas.mlp_gradients,
    tolerance=1e-4,
    losses={
        "graphkb": lambda K, params, x, y: K.mean(
            K.categorical_crossentropy(y, graphkb_logits(K, params, x), from_logits=True)
        ),
        "jax": lambda jax, params, x, y: -(y * jax.nn.log_softmax(jax_logits(jax, params, x))).sum(-1).mean(),
        "pytensor": lambda pt, params, x, y: (
            -(y * pt.special.log_softmax(pytensor_logits(pt, params, x), -1)).sum(-1).mean()
        ),
        "torch": torch_loss,
        "tensorflow": lambda tf, params, x, y: tf.reduce_mean(
            tf.nn.softmax_cross_entropy_with_logits(y, tensorflow_logits(tf, params, x))
        ),
    },
)

WORKLOADS = (
    matmul(64),
    matmul(256),
    matmul(1024),
    DENSE_B1,
    mlp_inference(1),
    mlp_inference(32),
    mlp_inference(256),
    MLP_TRAIN,
)
