"""Long chains of element-wise nodes on 1,000 floats: what a compiler's own costs per node are."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from benchmarks.workloads.base import Forward

f32 = np.float32
NUMEXPR_LONGEST = 100  # numexpr parses nested calls, and Python's parser limits their depth


def chain(length: int) -> Forward:
    """x*1.01, +0.02, tanh, -0.01, and again, `length` nodes in all."""

    def build(tanh: Callable[[Any], Any], constant: Callable[[float], Any] = float) -> Callable[..., Any]:
        scale, up, down = constant(1.01), constant(0.02), constant(0.01)

        def expression(library: Any, x: Any) -> Any:
            for _ in range(length // 4):
                x = tanh(x * scale + up) - down
            return x

        return expression

    def numexpr_pair() -> tuple[str, dict[str, np.float32]]:
        text = "x"
        for _ in range(length // 4):
            text = f"(tanh({text}*scale+up)-down)"
        return text, {"scale": f32(1.01), "up": f32(0.02), "down": f32(0.01)}

    def onnx(g: Any, x: Any) -> Any:
        for _ in range(length // 4):
            x = g.Sub(g.Tanh(g.Add(g.Mul(x, f32(1.01)), f32(0.02))), f32(0.01))
        return x

    expressions: dict[str, Any] = {
        "graphkb": lambda K, x: build(K.tanh)(K, x),
        "numpy": build(np.tanh),
        "jax": lambda jax, x: build(jax.numpy.tanh)(jax, x),
        "pytensor": lambda pt, x: build(pt.tanh, f32)(pt, x),
        "torch": lambda torch, x: build(torch.tanh)(torch, x),
        "onnx": onnx,
        "tensorflow": lambda tf, x: build(tf.tanh)(tf, x),
    }
    if length <= NUMEXPR_LONGEST:
        expressions["numexpr"] = numexpr_pair()
    return Forward(
        name=f"chain_{length}",
        what=f"{length:,} element-wise nodes in a row on 1,000 floats",
        inputs=lambda: {"x": np.random.default_rng(17).standard_normal(1000).astype(f32)},
        reference=lambda x: build(np.tanh)(np, x),
        tolerance=1e-5,
        expressions=expressions,
    )


WORKLOADS = (chain(100), chain(1000), chain(10_000))
