"""The cost of a call: x + y on four floats."""

import numpy as np

from benchmarks.peers.base import Arrays
from benchmarks.workloads.base import Forward


def four_floats() -> Arrays:
    x = np.arange(4, dtype=np.float32)
    return {"x": x, "y": x + 1}


CALL = Forward(
    name="call",
    what="x + y on 4 floats",
    inputs=four_floats,
    reference=lambda x, y: x + y,
    tolerance=0.0,
    expressions={
        "graphkb": lambda K, x, y: x + y,
        "numpy": np.add,
        "numexpr": "x + y",
        "jax": lambda jax, x, y: x + y,
        "pytensor": lambda pt, x, y: x + y,
        "torch": lambda torch, x, y: x + y,
        "onnx": lambda g, x, y: g.Add(x, y),
        "tensorflow": lambda tf, x, y: x + y,
    },
)

WORKLOADS = (CALL,)
