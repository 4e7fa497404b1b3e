"""A small function with an unknown batch size and an update, for tests of functions."""

from __future__ import annotations

from typing import Any

import numpy as np

from graphkb.ir.dims import symbol
from graphkb.ir.graph import Graph
from graphkb.ir.leaves import VariableCell
from graphkb.ops import leaf
from graphkb.runtime.function import Function

MODES = ("interpret", "auto")


def batch_function(mode: str = "auto", **chosen: Any) -> Function:
    """x: (batch, 4), y: (batch, 4) -> x + y; w <- w + 1."""
    n = symbol("batch")
    x, y = leaf.placeholder((n, 4), "float32", "x"), leaf.placeholder((n, 4), "float32", "y")
    w = leaf.variable(VariableCell(np.zeros(2, np.float32), "w"))
    graph = Graph((x, y), (x + y,), ((w.attrs["cell"], w + 1),))
    return Function(graph, "step", {"mode": mode, **chosen})


def state(function: Function) -> list[Any]:
    return [cell.array.tolist() for cell, _ in function.updates]


def ones(*dims: int) -> np.ndarray[Any, Any]:
    return np.ones(dims, np.float32)
