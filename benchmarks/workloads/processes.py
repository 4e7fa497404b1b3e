"""Costs outside a call: compiling from nothing, importing, and memory after many compiled functions."""

from __future__ import annotations

from typing import Any

import numpy as np

from benchmarks.peers.base import Arrays
from benchmarks.workloads import calls, dense, formulas
from benchmarks.workloads.base import Compile, Figure, Memory, Process, Size, TrainingStep

f32 = np.float32
IMPORT_LINES = {
    "graphkb": "import graphkb",
    "numpy": "import numpy",
    "numexpr": "import numexpr",
    "jax": "import jax",
    "pytensor": "import pytensor",
    "torch": "import torch",
    "onnx": "import onnxruntime",
    "tensorflow": "import tensorflow",
}

BACKEND_LINES = {"graphkb": "from graphkb import backend as K", "numpy": "import numpy"}

ADD = "import numpy as np; x = np.arange(4, dtype='f'); "
START_LINES = {
    "graphkb": ADD + "from graphkb import backend as K; a = K.placeholder((4,)); b = K.placeholder((4,)); "
    "K.function([a, b], [a + b])([x, x])",
    "numpy": ADD + "x + x",
    "numexpr": ADD + "import numexpr; numexpr.evaluate('x + x')",
    "jax": ADD + "import jax; jax.jit(lambda a, b: a + b)(x, x).block_until_ready()",
    "torch": ADD + "import torch; t = torch.from_numpy(x); (t + t).numpy()",
}

DISTRIBUTIONS = {
    "graphkb": "graphkb",
    "numexpr": "numexpr",
    "jax": "jax",
    "pytensor": "pytensor",
    "torch": "torch",
    "onnx": "onnxruntime",
    "tensorflow": "tensorflow-cpu",
}

# What getrusage tells would be the benchmark's own peak, which a new process inherits.
PEAK = "; print(next(int(l.split()[1]) * 1024 / 1e6 for l in open('/proc/self/status') if l.startswith('VmHWM')))"

MEMORY_CODE = {
    "graphkb": """
import numpy as np
from graphkb import backend as K
a = np.ones((4, 4), np.float32)
def make(i):
    x = K.placeholder((None, 4))
    K.function([x], [K.exp(x * (i + 1.5)) + K.sum(x)])([a])
""",
    "onnx": """
import numpy as np, onnxruntime
from onnx import TensorProto, helper
a = np.ones((4, 4), np.float32)
def make(i):
    x, y = (helper.make_tensor_value_info(n, TensorProto.FLOAT, [4, 4]) for n in "xy")
    c = helper.make_node("Constant", [], ["c"], value_float=i + 1.5)
    nodes = [c, helper.make_node("Mul", ["x", "c"], ["m"]), helper.make_node("Exp", ["m"], ["y"])]
    graph = helper.make_graph(nodes, "g", [x], [y])
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    session.run(None, {"x": a})
""",
    "jax": """
import numpy as np, jax
a = np.ones((4, 4), np.float32)
def make(i):
    jax.jit(lambda x: jax.numpy.exp(x * (i + 1.5)) + x.sum())(a).block_until_ready()
""",
}


def digits_weights() -> list[np.ndarray]:
    rng = np.random.default_rng(12)
    shapes = ((64, 128), (128,), (128, 10), (10,))
    return [(0.1 * rng.standard_normal(shape)).astype(f32) for shape in shapes]


def digits_batch() -> Arrays:
    rng = np.random.default_rng(13)
    x = rng.uniform(0, 1, (32, 64)).astype(f32)
    return {"x": x, "y": np.eye(10, dtype=f32)[rng.integers(0, 10, 32)]}


def digits_gradients(params: list[np.ndarray], x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    w1, b1, w2, b2 = params
    h = np.maximum(x @ w1 + b1, 0)
    d2 = (formulas.softmax(h @ w2 + b2) - y) / x.dtype.type(len(x))
    d1 = (d2 @ w2.T) * (h > 0)
    return [x.T @ d1, d1.sum(axis=0), h.T @ d2, d2.sum(axis=0)]


def graphkb_digits_loss(K: Any, params: list[Any], x: Any, y: Any) -> Any:
    w1, b1, w2, b2 = params
    p = K.softmax(K.dot(K.relu(K.dot(x, w1) + b1), w2) + b2)
    return K.mean(K.categorical_crossentropy(y, p))


def jax_digits_loss(jax: Any, params: list[Any], x: Any, y: Any) -> Any:
    w1, b1, w2, b2 = params
    return -(y * jax.nn.log_softmax(jax.nn.relu(x @ w1 + b1) @ w2 + b2)).sum(-1).mean()


def torch_digits_loss(torch: Any, params: list[Any], x: Any, y: Any) -> Any:
    w1, b1, w2, b2 = params
    return -(y * torch.log_softmax(torch.relu(x @ w1 + b1) @ w2 + b2, -1)).sum(-1).mean()


DIGITS_TRAIN = TrainingStep(
    name="digits_train",
    what="the training step of examples/digits.py: 64-128-10, batch 32, SGD with momentum",
    inputs=digits_batch,
    params=digits_weights,
    gradients=digits_gradients,
    tolerance=1e-4,
    losses={"graphkb": graphkb_digits_loss, "jax": jax_digits_loss, "torch": torch_digits_loss},
)

WORKLOADS = (
    DIGITS_TRAIN,
    Compile("compile_call", calls.CALL),
    Compile("compile_digits", DIGITS_TRAIN),
    Compile("compile_mlp", dense.MLP_TRAIN),
    Process("import", "a fresh Python that imports the library", IMPORT_LINES),
    Process("import_backend", "the same for `from graphkb import backend as K`", BACKEND_LINES),
    Process("start", "a fresh Python up to its first x + y", START_LINES),
    Size("size", "MB on disk of the library and what it needs, NumPy aside", DISTRIBUTIONS),
    Figure(
        "start_memory",
        "MB of memory that a fresh Python has used at most after its first x + y",
        {dialect: line + PEAK for dialect, line in START_LINES.items()},
        "MB",
    ),
    Memory(
        "memory",
        "kB that stay behind per compiled function, 1,000 made, called once and dropped",
        MEMORY_CODE,
    ),
)
