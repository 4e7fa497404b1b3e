"""Element-wise work: one fused expression at three sizes, and single functions with their accuracy."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.peers.base import Arrays
from benchmarks.workloads import formulas
from benchmarks.workloads.base import Forward

f32 = np.float32


def fused(name: str, size: int) -> Forward:
    """tanh(a*x + b) * sigmoid(c*x) + exp(-x*x), all four operands arrays."""

    def inputs() -> Arrays:
        rng = np.random.default_rng(1)
        return {n: rng.standard_normal(size).astype(f32) for n in "xabc"}

    return Forward(
        name=name,
        what=f"tanh(a*x+b)*sigmoid(c*x)+exp(-x*x), n = {size:,}",
        inputs=inputs,
        reference=lambda x, a, b, c: np.tanh(a * x + b) * formulas.sigmoid(c * x) + np.exp(-x * x),
        tolerance=2e-6,
        expressions={
            "graphkb": lambda K, x, a, b, c: K.tanh(a * x + b) * K.sigmoid(c * x) + K.exp(-x * x),
            "numpy": lambda np, x, a, b, c: np.tanh(a * x + b) * formulas.sigmoid(c * x) + np.exp(-x * x),
            "numexpr": "tanh(a*x+b) / (1 + exp(-(c*x))) + exp(-x*x)",
            "jax": lambda jax, x, a, b, c: jax.numpy.tanh(a * x + b) * jax.nn.sigmoid(c * x) + jax.numpy.exp(-x * x),
            "pytensor": lambda pt, x, a, b, c: pt.tanh(a * x + b) * pt.sigmoid(c * x) + pt.exp(-x * x),
            "torch": lambda torch, x, a, b, c: torch.tanh(a * x + b) * torch.sigmoid(c * x) + torch.exp(-x * x),
            "onnx": lambda g, x, a, b, c: g.Add(
                g.Mul(g.Tanh(g.Add(g.Mul(a, x), b)), g.Sigmoid(g.Mul(c, x))), g.Exp(g.Neg(g.Mul(x, x)))
            ),
            "tensorflow": lambda tf, x, a, b, c: tf.tanh(a * x + b) * tf.sigmoid(c * x) + tf.exp(-x * x),
        },
    )


def unary(
    name: str,
    sample: Callable[[np.random.Generator, int], np.ndarray],
    reference: Callable[[np.ndarray], np.ndarray],
    **expressions: Any,
) -> Forward:
    """One function on a million floats drawn by `sample`."""
    return Forward(
        name=name,
        what=f"{name}, n = 1,000,000",
        inputs=lambda: {"x": sample(np.random.default_rng(2), 1_000_000).astype(f32)},
        reference=reference,
        tolerance=1e-5,
        expressions=expressions,
        ulps=True,
    )


WORKLOADS = (
    fused("ew_1e3", 1_000),
    fused("ew_1e5", 100_000),
    fused("ew_1e7", 10_000_000),
    unary(
        "exp",
        lambda rng, n: rng.uniform(-20, 20, n),
        np.exp,
        graphkb=lambda K, x: K.exp(x),
        numpy=np.exp,
        numexpr="exp(x)",
        jax=lambda jax, x: jax.numpy.exp(x),
        pytensor=lambda pt, x: pt.exp(x),
        torch=lambda torch, x: torch.exp(x),
        onnx=lambda g, x: g.Exp(x),
        tensorflow=lambda tf, x: tf.exp(x),
    ),
    unary(
        "tanh",
        lambda rng, n: rng.uniform(-5, 5, n),
        np.tanh,
        graphkb=lambda K, x: K.tanh(x),
        numpy=np.tanh,
        numexpr="tanh(x)",
        jax=lambda jax, x: jax.numpy.tanh(x),
        pytensor=lambda pt, x: pt.tanh(x),
        torch=lambda torch, x: torch.tanh(x),
        onnx=lambda g, x: g.Tanh(x),
        tensorflow=lambda tf, x: tf.tanh(x),
    ),
    unary(
        "log",
        lambda rng, n: np.exp(rng.uniform(-14, 14, n)),
        np.log,
        graphkb=lambda K, x: K.log(x),
        numpy=np.log,
        numexpr="log(x)",
        jax=lambda jax, x: jax.numpy.log(x),
        pytensor=lambda pt, x: pt.log(x),
        torch=lambda torch, x: torch.log(x),
        onnx=lambda g, x: g.Log(x),
        tensorflow=lambda tf, x: tf.math.log(x),
    ),
    unary(
        "sigmoid",
        lambda rng, n: rng.uniform(-10, 10, n),
        formulas.sigmoid,
        graphkb=lambda K, x: K.sigmoid(x),
        numpy=lambda np, x: formulas.sigmoid(x),
        numexpr="1 / (1 + exp(-x))",
        jax=lambda jax, x: jax.nn.sigmoid(x),
        pytensor=lambda pt, x: pt.sigmoid(x),
        torch=lambda torch, x: torch.sigmoid(x),
        onnx=lambda g, x: g.Sigmoid(x),
        tensorflow=lambda tf, x: tf.sigmoid(x),
    ),
    unary(
        "erf",
        lambda rng, n: rng.uniform(-3.5, 3.5, n),
        formulas.erf,
        graphkb=lambda K, x: K.erf(x),
        numpy=lambda np, x: formulas.erf(x),
        jax=lambda jax, x: jax.lax.erf(x),
        pytensor=lambda pt, x: pt.erf(x),
        torch=lambda torch, x: torch.erf(x),
        onnx=lambda g, x: g.Erf(x),
        tensorflow=lambda tf, x: tf.math.erf(x),
    ),
)
