"""Compiled programs in guarded memory, and matrix products with the bound on their errors, for tests of kernels."""

from __future__ import annotations

import ctypes
import itertools
import mmap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, TypeAlias

import numpy as np
import pytest

from graphkb.codegen.builder import Builder
from graphkb.codegen.engine import Engine, compile_module
from graphkb.codegen.gemm import Gemm
from graphkb.codegen.planner import make_program
from graphkb.codegen.program import Program
from graphkb.codegen.target import TARGETS, Target, host_target, named_target
from graphkb.ir.dims import Dim, free_symbols, substitute
from graphkb.ir.graph import Graph
from graphkb.ir.node import Node
from graphkb.ops import linalg
from graphkb.ops.leaf import placeholder
from graphkb.passes.fuse import Fuse

Array: TypeAlias = np.ndarray[Any, Any]
LEVELS = ["x86-64-v4", "x86-64-v3", "x86-64-v2"]
EPSILON = {"float16": 2.0**-11, "float32": 2.0**-24, "float64": 2.0**-53}


def runnable() -> list[Target]:
    """The levels of this machine's processor family that it can run, its own first."""
    host = host_target()
    if not host.is_x86:
        return [host]
    order = list(TARGETS)
    return [named_target(name) for name in LEVELS if order.index(name) <= order.index(host.name)]


def without_vectors() -> Target:
    """This machine as if it had no vector registers."""
    return replace(named_target("host"), name="scalar", vector_bits=0, has_masked_memory=False)


targets = pytest.mark.parametrize("target", runnable(), ids=lambda t: t.name)
all_targets = pytest.mark.parametrize("target", [*runnable(), without_vectors()], ids=lambda t: t.name)


# ---------------------------------------------------------------------------------------------- guarded memory
class Guarded:
    """Memory that ends, or begins, exactly where an inaccessible page does."""

    def __init__(self, nbytes: int, at_end: bool) -> None:
        page = mmap.PAGESIZE
        room = -(-max(nbytes, 1) // page) * page
        self.map = mmap.mmap(-1, room + 2 * page)
        self.view = np.frombuffer(self.map, np.uint8)
        base = self.view.ctypes.data
        protect = ctypes.CDLL(None, use_errno=True).mprotect
        protect.argtypes = [ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int]
        for edge in (base, base + page + room):
            assert protect(edge, page, 0) == 0
        start = page + (room - nbytes if at_end else 0)
        self.inside = self.view[page : page + room]
        self.bytes = self.view[start : start + nbytes]

    def intact(self, fill: int) -> bool:
        """Whether everything outside the array still holds a byte."""
        start = self.bytes.ctypes.data - self.inside.ctypes.data if len(self.bytes) else 0
        return bool(np.all(self.inside[:start] == fill) and np.all(self.inside[start + len(self.bytes) :] == fill))


# ---------------------------------------------------------------------------------------------- programs
@dataclass
class Compiled:
    program: Program
    engine: Engine

    def __call__(self, feeds: Sequence[Array], at_end: bool = True) -> list[Array]:
        """Run on guarded memory; the outputs, after a check that nothing around them was written."""
        graph = self.program.graph
        sizes = {}
        for node, value in zip(graph.inputs, feeds):
            for dim, n in zip(node.shape, value.shape):
                if not isinstance(dim, int):
                    (unknown,) = free_symbols(dim)
                    sizes[unknown] = n

        def known(dim: Dim) -> int:
            n = substitute(dim, sizes)
            assert isinstance(n, int)
            return n

        held = []
        for value in feeds:
            memory = Guarded(value.nbytes, at_end)
            memory.bytes[:] = np.ascontiguousarray(value).reshape(-1).view(np.uint8)
            held.append(memory)
        outputs = []
        for node in graph.outputs:
            memory = Guarded(known(node.type.nbytes), at_end)
            memory.inside[:] = 0x5A
            outputs.append(memory)
        bound = [np.asarray(n.op.numpy(**n.attrs)) for n in self.program.bound]  # type: ignore[misc]
        workspace = Guarded(-(-known(self.program.memory.total) // 64) * 64, at_end)
        pointers = [m.bytes.ctypes.data for m in held] + [b.ctypes.data for b in bound]
        pointers += [m.bytes.ctypes.data for m in outputs]
        args = (ctypes.c_void_p * len(pointers))(*pointers)
        symbols = self.program.symbols
        kinds = [ctypes.c_void_p, ctypes.c_void_p, *[ctypes.c_int64] * len(symbols)]
        function = ctypes.CFUNCTYPE(None, *kinds)(self.engine.address("run"))
        function(ctypes.addressof(args), workspace.bytes.ctypes.data, *[sizes[s] for s in symbols])
        results = []
        for node, memory in zip(graph.outputs, outputs):
            assert memory.intact(0x5A), "written outside of the result"
            shape_ = tuple(known(d) for d in node.shape)
            results.append(memory.bytes.view(node.dtype).reshape(shape_).copy())
        return results


def build(inputs: Sequence[Node], outputs: Sequence[Node], target: Target) -> Compiled:
    program = make_program(Fuse().apply(Graph(tuple(inputs), tuple(outputs))), target)
    b = Builder(target)
    program.emit(b, "run")
    return Compiled(program, compile_module(b.module(), target))


def products(program: Program) -> list[Gemm]:
    return [k for k in program.kernels.by_signature.values() if isinstance(k, Gemm)]


# ---------------------------------------------------------------------------------------------- cases
@dataclass(frozen=True)
class Case:
    """A product of (batch..., m, k) and (batch..., k, n), either operand stored transposed."""

    m: int
    k: int
    n: int
    dtype: str = "float32"
    turn_x: bool = False
    turn_y: bool = False
    batch: tuple[int, ...] = ()

    def shapes(self) -> tuple[tuple[int, ...], tuple[int, ...]]:
        x = (self.k, self.m) if self.turn_x else (self.m, self.k)
        y = (self.n, self.k) if self.turn_y else (self.k, self.n)
        return (*self.batch, *x), (*self.batch, *y)

    def node(self, x: Node, y: Node) -> Node:
        count = len(self.batch)
        batch = tuple(range(count))
        return linalg.dot(x, y, batch, batch, (count + (not self.turn_x),), (count + self.turn_y,))

    def feeds(self) -> list[Array]:
        rng = np.random.default_rng([self.m, self.k, self.n])
        return [rng.uniform(-1, 1, s).astype(self.dtype) for s in self.shapes()]

    def exact(self, x: Array, y: Array) -> tuple[Array, Array]:
        """The product, and the classic bound on the error of a float sum: k units of the summed magnitudes."""
        exact = np.longdouble if self.dtype == "float64" else np.float64
        x, y = x.astype(exact), y.astype(exact)
        if self.turn_x:
            x = x.swapaxes(-1, -2)
        if self.turn_y:
            y = y.swapaxes(-1, -2)
        product = np.matmul(x, y)
        wide = "float32" if self.dtype == "float16" else self.dtype
        bound = (self.k + 1) * EPSILON[wide] * np.matmul(np.abs(x), np.abs(y))
        rounding = EPSILON["float16"] * np.abs(product) + 2.0**-25 if self.dtype == "float16" else 0
        return product, bound + rounding


def build_cases(cases: Sequence[Case], target: Target) -> tuple[Compiled, list[list[Array]]]:
    """All cases in one module, and values for them."""
    inputs: list[Node] = []
    outputs: list[Node] = []
    for case in cases:
        x, y = (placeholder(s, case.dtype, "x") for s in case.shapes())
        inputs += [x, y]
        outputs.append(case.node(x, y))
    return build(inputs, outputs, target), [case.feeds() for case in cases]


def check(cases: Sequence[Case], target: Target) -> None:
    """The products are exact within the bound, with guards behind and before every array."""
    compiled, feeds = build_cases(cases, target)
    for at_end in (True, False):
        results = compiled(list(itertools.chain(*feeds)), at_end)
        for case, pair, got in zip(cases, feeds, results):
            exact, bound = case.exact(*pair)
            assert got.shape == exact.shape
            excess = np.max(np.abs(got - exact) - bound, initial=0)
            assert excess <= 0, f"{case}: beyond its error bound by {excess}"
