"""ONNX Runtime as a contestant: expressions write ONNX graphs through GraphBuilder."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.harness import Contestant
from benchmarks.peers.base import Arrays, Peer

OPSET = 17


class GraphBuilder:
    """Writes ONNX nodes: `g.Add(x, y)` adds one and returns its output's name; arrays become constants."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.constants: list[Any] = []
        self.dtypes: dict[str, int] = {}

    def constant(self, array: Any) -> str:
        from onnx import numpy_helper

        name = f"c{len(self.constants)}"
        self.constants.append(numpy_helper.from_array(np.ascontiguousarray(array), name))
        return name

    def add(self, op: str, outputs: int, *operands: Any, **attributes: Any) -> list[str]:
        """Add a node with so many outputs; returns their names."""
        from onnx import helper

        names = [o if isinstance(o, str) else self.constant(o) for o in operands]
        results = [f"t{len(self.nodes)}_{i}" for i in range(outputs)]
        self.nodes.append(helper.make_node(op, names, results, **attributes))
        return results

    def __getattr__(self, op: str) -> Any:
        if op.startswith("_"):
            raise AttributeError(op)
        return lambda *operands, **attributes: self.add(op, 1, *operands, **attributes)[0]


class OnnxRuntime(Peer):
    name = "onnxruntime"
    dialect = "onnx"
    modules = ("onnxruntime", "onnx")
    package = "onnxruntime"
    threads = 1

    def setup(self, threads: int) -> None:
        self.threads = threads

    def forward(self, expression: Any, inputs: Arrays, params: Sequence[np.ndarray]) -> Contestant:
        import onnxruntime
        from onnx import helper

        g = GraphBuilder()
        output = expression(g, *[g.constant(p) for p in params], *inputs)
        kind = helper.np_dtype_to_tensor_dtype
        places = [helper.make_tensor_value_info(n, kind(a.dtype), a.shape) for n, a in inputs.items()]
        result = helper.make_empty_tensor_value_info(output)  # the session infers its type
        graph = helper.make_graph(g.nodes, "workload", places, [result], g.constants)
        model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=9)
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 3
        options.intra_op_num_threads = self.threads
        session = onnxruntime.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        return Contestant("run(None, feeds)[0]", {"run": session.run, "feeds": dict(inputs)})
