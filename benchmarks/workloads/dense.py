"""Matrix products, and a 784-512-512-10 classifier in use and in training."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from benchmarks.peers.base import Arrays
from benchmarks.workloads import formulas
from benchmarks.workloads.base import Forward, TrainingStep

f32 = np.float32


def product(
    name: str,
    a: tuple[int, ...],
    b: tuple[int, ...],
    expressions: Mapping[str, Any] | None = None,
    what: str = "a @ b",
    dtype: str = "float32",
) -> Forward:
    """One product of two arrays of normal numbers, written `a @ b` where no expressions are given."""

    def inputs() -> Arrays:
        rng = np.random.default_rng(6)
        return {n: rng.standard_normal(s).astype(dtype) for n, s in (("a", a), ("b", b))}

    chosen = dict(expressions or MATMUL)
    written = chosen["numpy"]
    if dtype == "float64":
        del chosen["jax"]  # computes in float64 only where the whole process does
    return Forward(
        name=name,
        what=f"{what}, {a} and {b}" + (f", {dtype}" if dtype != "float32" else ""),
        inputs=inputs,
        reference=written if written is np.matmul else partial(written, np),
        tolerance=5e-6,
        expressions=chosen,
    )


MATMUL: dict[str, Any] = {
    "graphkb": lambda K, a, b: K.dot(a, b),
    "numpy": np.matmul,
    "jax": lambda jax, a, b: a @ b,
    "pytensor": lambda pt, a, b: a @ b,
    "torch": lambda torch, a, b: a @ b,
    "onnx": lambda g, a, b: g.MatMul(a, b),
    "tensorflow": lambda tf, a, b: a @ b,
}
TURN_A: dict[str, Any] = {
    "graphkb": lambda K, a, b: K.dot(K.transpose(a), b),
    "numpy": lambda np, a, b: a.T @ b,
    "jax": lambda jax, a, b: a.T @ b,
    "pytensor": lambda pt, a, b: a.T @ b,
    "torch": lambda torch, a, b: a.T @ b,
    "onnx": lambda g, a, b: g.Gemm(a, b, transA=1),
    "tensorflow": lambda tf, a, b: tf.matmul(a, b, transpose_a=True),
}
TURN_B: dict[str, Any] = {
    "graphkb": lambda K, a, b: K.dot(a, K.transpose(b)),
    "numpy": lambda np, a, b: a @ b.T,
    "jax": lambda jax, a, b: a @ b.T,
    "pytensor": lambda pt, a, b: a @ b.T,
    "torch": lambda torch, a, b: a @ b.T,
    "onnx": lambda g, a, b: g.Gemm(a, b, transB=1),
    "tensorflow": lambda tf, a, b: tf.matmul(a, b, transpose_b=True),
}
BATCHED: dict[str, Any] = {
    **MATMUL,
    "graphkb": lambda K, a, b: K.batch_dot(a, b),
    "pytensor": lambda pt, a, b: pt.matmul(a, b),
}

PRODUCTS = (
    *[product(f"matmul_{n}", (n, n), (n, n)) for n in (64, 256, 1024, 2048)],
    product("matmul_256_f64", (256, 256), (256, 256), dtype="float64"),
    product("matmul_ta", (512, 512), (512, 512), TURN_A, "a.T @ b"),
    product("matmul_tb", (512, 512), (512, 512), TURN_B, "a @ b.T"),
    product("matmul_batch", (64, 64, 64), (64, 64, 64), BATCHED),
    product("matmul_n8", (4096, 256), (256, 8)),
    product("gemv", (4096, 1024), (1024, 1)),
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


def deep(layers: int) -> Forward:
    """Narrow dense layers in a row, where what a library does around each product shows."""

    def params() -> list[np.ndarray]:
        rng = np.random.default_rng(12)
        weights: list[np.ndarray] = []
        for _ in range(layers):
            # Of this variance, relu layers neither grow nor fade.
            weights.append((rng.standard_normal((64, 64)) * np.sqrt(2 / 64)).astype(f32))
            weights.append((0.01 * rng.standard_normal(64)).astype(f32))
        return weights

    def through(matmul_add: Any, relu: Any) -> Callable[..., Any]:
        def expression(library: Any, *arrays: Any) -> Any:
            *weights, x = arrays
            for w, b in zip(weights[::2], weights[1::2]):
                x = relu(library, matmul_add(library, x, w, b))
            return x

        return expression

    def sum_of(library: Any, x: Any, w: Any, b: Any) -> Any:
        return x @ w + b

    rows = through(sum_of, lambda np, x: np.maximum(x, 0))
    return Forward(
        name=f"deep_{layers}",
        what=f"{layers} times relu(x @ w + b), all (64, 64)",
        inputs=lambda: {"x": np.random.default_rng(13).standard_normal((64, 64)).astype(f32)},
        params=params,
        reference=lambda *arrays: rows(np, *arrays),
        tolerance=2e-5,
        expressions={
            "graphkb": through(lambda K, x, w, b: K.dot(x, w) + b, lambda K, x: K.relu(x)),
            "numpy": through(sum_of, lambda np, x: np.maximum(x, f32(0))),
            "jax": through(sum_of, lambda jax, x: jax.nn.relu(x)),
            "pytensor": through(sum_of, lambda pt, x: pt.maximum(x, f32(0))),
            "torch": through(lambda torch, x, w, b: torch.addmm(b, x, w), lambda torch, x: torch.relu(x)),
            "onnx": through(lambda g, x, w, b: g.Gemm(x, w, b), lambda g, x: g.Relu(x)),
            "tensorflow": through(sum_of, lambda tf, x: tf.nn.relu(x)),
        },
    )


WORKLOADS = (
    *PRODUCTS,
    DENSE_B1,
    deep(10),
    deep(100),
    mlp_inference(1),
    mlp_inference(32),
    mlp_inference(256),
    MLP_TRAIN,
)
