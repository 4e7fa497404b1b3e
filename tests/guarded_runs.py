"""Run the C functions of programs on arrays between pages that nobody may touch; a step outside ends the process.

`python tests/guarded_runs.py [SHARE]` prints the name of every program before it runs; 0 < SHARE <= 1 is the part of
the ops' sample cases to run.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
from collections.abc import Iterator
from typing import Any

import numpy as np
from contracts import all_contracts
from evaluate import placeholders

from graphkb import backend as K
from graphkb.codegen.aot import CModule, make_c_module
from graphkb.codegen.engine import Engine, compile_module
from graphkb.codegen.target import TARGETS, Target, host_target
from graphkb.ir.errors import CompileError
from graphkb.ir.graph import Graph
from graphkb.runtime.interpreter import Program as Interpreted

Array = np.ndarray[Any, np.dtype[Any]]
PAGE = mmap.PAGESIZE
BATCHES = (1, 2, 3, 5, 7, 8, 15, 16, 17, 31, 33, 64, 65)
_libc = ctypes.CDLL(None, use_errno=True)


class Guarded:
    """Memory with an untouchable page at either side; it ends, or begins, where that page does."""

    def __init__(self, nbytes: int, at_end: bool, alignment: int = 1) -> None:
        room = -(-max(1, nbytes) // PAGE) * PAGE
        self.mapped = mmap.mmap(-1, room + 2 * PAGE)
        start = ctypes.addressof(ctypes.c_char.from_buffer(self.mapped))
        for page in (start, start + PAGE + room):
            if _libc.mprotect(ctypes.c_void_p(page), PAGE, 0):
                raise OSError(ctypes.get_errno(), "mprotect")
        offset = PAGE + (room - -(-nbytes // alignment) * alignment if at_end else 0)
        self.address = start + offset
        self.array = np.frombuffer(self.mapped, np.uint8, nbytes, offset)

    def holding(self, values: Array) -> Guarded:
        self.array[:] = np.frombuffer(np.ascontiguousarray(values).tobytes(), np.uint8)
        return self


def run(module: CModule, engine: Engine, arrays: list[Array], sizes: list[int], at_end: bool) -> list[Array]:
    """The outputs of one call of the C function, in guarded memory all of it."""
    prefix = module.prefix

    def function(name: str, result: Any) -> Any:
        return ctypes.CFUNCTYPE(result)(engine.address(f"{prefix}_{name}"))

    numbers = [ctypes.c_int64(n) for n in sizes]
    needed = function("workspace_size", ctypes.c_int64)(*numbers)
    memory = [Guarded(a.nbytes, at_end).holding(a) for a in arrays]
    outputs = []
    for i, output in enumerate(module.outputs):
        dims = (ctypes.c_int64 * max(1, len(output.shape)))()
        function("output_shape", ctypes.c_int32)(ctypes.c_int32(i), *numbers, dims)
        empty = np.empty(tuple(dims[: len(output.shape)]), output.dtype)
        outputs.append((Guarded(empty.nbytes, at_end), empty))
    state = Guarded(module.state_bytes, at_end, 64)
    if module.state_bytes:
        function("state_init", None)(ctypes.c_void_p(state.address))
    workspace = Guarded(needed, at_end, 64)
    pointers = [ctypes.c_void_p(m.address) for m in (*memory, *[m for m, _ in outputs])]
    states = [ctypes.c_void_p(state.address)] if module.state_bytes else []
    code = function("run", ctypes.c_int32)(*pointers, *numbers, *states, ctypes.c_void_p(workspace.address))
    if code:
        raise AssertionError(f"returned {code}")
    return [np.frombuffer(m.array.tobytes(), e.dtype).reshape(e.shape) for m, e in outputs]


def check(name: str, graph: Graph, feeds: list[list[Array]], target: Target) -> bool:
    """Compile and run a graph for lists of inputs; False where it has nodes without a kernel."""
    print(name, target.name, flush=True)
    try:
        module = make_c_module(graph, "guarded", target, {})
    except CompileError:
        return False
    engine = compile_module(module.text, target)
    before = [(cell, cell.array.copy()) for cell, _ in graph.updates]
    for arrays in feeds:
        known = {}
        for node, array in zip(graph.inputs, arrays):
            for dim, size in zip(node.shape, array.shape):
                known[str(dim)] = size
        sizes = [known[s.name] for s in module.sizes]
        expected = Interpreted(graph.bind({s: known[s.name] for s in module.sizes})).run(arrays)
        for cell, value in before:
            cell.array[...] = value
        for at_end in (True, False):
            for actual, right in zip(run(module, engine, arrays, sizes, at_end), expected):
                if right.dtype.kind == "f":
                    near = 2e-2 if right.dtype == np.float16 else 1e-4
                    np.testing.assert_allclose(actual, right, near, near, err_msg=name)
                else:
                    np.testing.assert_array_equal(actual, right, err_msg=name)
    return True


def cases(share: float) -> Iterator[tuple[str, Graph, list[list[Array]]]]:
    """Sample cases of all ops, of known sizes."""
    rng = np.random.default_rng(0)
    for contract in all_contracts():
        for dtype in contract.dtypes:
            for i, case in enumerate(contract.cases(dtype, np.random.default_rng(5))):
                if rng.random() <= share:
                    inputs = placeholders(list(case.inputs))
                    graph = Graph(tuple(inputs), (contract.apply(tuple(inputs), case.attrs),))
                    yield f"{contract.op} {dtype} {i}", graph, [list(case.inputs)]


def programs() -> Iterator[tuple[str, Graph, list[list[Array]]]]:
    """Whole programs with an open batch, each with inputs for odd batches."""
    rng = np.random.default_rng(1)

    def weights(*shape: int) -> Any:
        return K.variable(rng.normal(size=shape) / 4)

    def of(name: str, shape: tuple[int, ...], build: Any, dtype: str = "float32") -> Any:
        x = K.placeholder((None, *shape), dtype=dtype)
        outputs, updates = build(x)
        graph = K.function([x], outputs, updates=updates).definition
        high = 5 if dtype.startswith("int") else 2
        feeds = [[np.asarray(rng.uniform(0, high, (n, *shape))).astype(dtype)] for n in BATCHES]
        return name, graph, feeds

    def network(x: Any) -> Any:
        hidden = K.relu(K.dot(x, weights(13, 37)) + weights(37))
        return [K.softmax(K.dot(hidden, weights(37, 10)))], []

    def training(x: Any) -> Any:
        w = weights(13, 19)
        loss = K.mean(K.square(K.tanh(K.dot(x, w))))
        (gradient,) = K.gradients(loss, [w])
        return [loss, gradient], [(w, w - 0.1 * gradient)]

    def normalized(x: Any) -> Any:
        mean = K.mean(x, axis=-1, keepdims=True)
        return [(x - mean) / K.sqrt(K.var(x, axis=-1, keepdims=True) + 1e-3), K.logsumexp(x, axis=-1)], []

    def convolved(x: Any) -> Any:
        y = K.relu(K.conv2d(x, weights(3, 3, 3, 5), padding="same"))
        return [K.pool2d(y, (2, 2), strides=(2, 2), pool_mode="max"), *K.gradients(K.sum(K.square(y)), [x])], []

    def moved(x: Any) -> Any:
        turned = K.permute_dimensions(x, (2, 1, 0))
        return [turned, K.concatenate([x, K.reverse(x, 1)], axis=2), K.cumsum(x, axis=1), K.argmax(x, axis=-1)], []

    def columns(x: Any) -> Any:
        return [K.sum(x, axis=0), K.max(x, axis=0), K.mean(x), K.prod(x, axis=-1)], []

    def embedded(x: Any) -> Any:
        table = weights(5, 7)
        rows = K.gather(table, x)
        return [rows, *K.gradients(K.sum(K.square(rows)), [table])], []

    yield of("network", (13,), network)
    yield of("training", (13,), training)
    yield of("training float64", (13,), training, "float64")
    yield of("normalized", (19,), normalized)
    yield of("normalized half", (19,), normalized, "float16")
    yield of("convolved", (7, 9, 3), convolved)
    yield of("moved", (5, 7), moved)
    yield of("moved bytes", (5, 7), moved, "int8")
    yield of("columns", (11,), columns)
    yield of("embedded", (3,), embedded, "int32")


def main(share: float) -> None:
    """All programs and the share of the cases, for every level of this processor's vectors."""
    order = [name for name, target in TARGETS.items() if target.is_x86]
    host = host_target().name
    targets = [host_target(name) for name in order[: order.index(host) + 1]] if host in order else [host_target()]
    compiled = 0
    for target in targets:
        for name, graph, feeds in programs():
            compiled += check(name, graph, feeds, target)
    for i, (name, graph, feeds) in enumerate(cases(share)):
        compiled += check(name, graph, feeds, targets[i % len(targets)])
    print(f"{compiled} programs stayed within their arrays")


if __name__ == "__main__":
    main(float(sys.argv[1]) if len(sys.argv) > 1 else 1.0)
