"""Matrix products on several threads: the same bits for any number of them; special values; shared code."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from gemm_tools import Case, build, build_cases, products

import graphkb
from graphkb import backend as K
from graphkb.codegen.builder import Builder
from graphkb.codegen.gemm import Gemm
from graphkb.codegen.parts import Joined
from graphkb.codegen.planner import make_program
from graphkb.codegen.target import host_target
from graphkb.ir.dims import symbol
from graphkb.ir.graph import Graph
from graphkb.ir.node import Node
from graphkb.ops import elementwise, linalg, shape
from graphkb.ops.leaf import placeholder
from graphkb.passes.fuse import Fuse

pytest.importorskip("llvmlite")

Array = np.ndarray[Any, Any]

# (x, y, transposed x, transposed y): cut by columns, rows and matrices; with copies of A and B; partial sums; streams.
SHARED = {
    "columns": ((130, 300), (300, 700), False, False),
    "rows": ((900, 200), (200, 70), False, False),
    "few columns": ((3000, 300), (300, 3), False, False),
    "vector": ((700, 900), (900, 1), False, False),
    "stream": ((1, 900), (900, 700), False, False),
    "stream in parts": ((1, 6007), (6007, 70), False, False),
    "stream of rows in parts": ((3, 9001), (9001, 130), False, False),
    "copied B": ((300, 300), (300, 300), False, True),
    "copied A": ((800, 601), (800, 260), True, False),
    "long": ((40, 1600), (1600, 130), False, False),
    "row blocks": ((1100, 130), (130, 250), False, False),
    "batch": ((40, 33, 65), (40, 65, 47), False, False),
}


def run_on(threads: int, name: str, epilogue: bool) -> Array:
    x_shape, y_shape, turn_x, turn_y = SHARED[name]
    rng = np.random.default_rng(len(name))
    values = [rng.uniform(-1, 1, s).astype(np.float32) for s in (x_shape, y_shape)]
    with graphkb.options(threads=threads):
        x, y = (K.placeholder(shape=s) for s in (x_shape, y_shape))
        if len(x_shape) == 3:
            z = K.batch_dot(x, y)
        else:
            z = K.dot(K.transpose(x) if turn_x else x, K.transpose(y) if turn_y else y)
        if epilogue:
            z = K.relu(z * 2.0) + 1.0
        result: Array = K.function([x, y], [z])(values)[0]
    a, b = (v.astype(np.float64) for v in values)
    exact = np.matmul(a.T if turn_x else a, b.T if turn_y else b)
    np.testing.assert_allclose(result, np.maximum(exact * 2, 0) + 1 if epilogue else exact, atol=2e-4)
    return result


@pytest.mark.parametrize("name", SHARED)
@pytest.mark.parametrize("epilogue", [False, True], ids=["plain", "epilogue"])
def test_bits_do_not_depend_on_threads(name: str, epilogue: bool) -> None:
    alone = run_on(1, name, epilogue)
    for threads in (2, 3):
        np.testing.assert_array_equal(run_on(threads, name, epilogue), alone)


def test_large_products_are_shared_and_small_ones_are_not() -> None:
    cases = [Case(130, 300, 700), Case(900, 200, 70), Case(33, 65, 47, batch=(40,)), Case(1, 6007, 70), Case(8, 8, 8)]
    kernels = products(build_cases(cases, host_target())[0].program)
    assert [k.parts.axis for k in kernels] == ["columns", "rows", "outer", "depth", ""]


def layers(count: int, size: int) -> tuple[list[Node], Node]:
    """Products with a bias and an activation, one after another, each of its own weights."""
    x = y = placeholder((size, size), "float32", "x")
    weights = [placeholder((size, size), "float32", f"w{i}") for i in range(count)]
    for w in weights:
        y = elementwise.relu(linalg.dot(y, w, (), (), (1,), (0,)))
    return [x, *weights], y


def axes_of(count: int, size: int) -> set[str]:
    inputs, result = layers(count, size)
    program = make_program(Fuse().apply(Graph(tuple(inputs), (result,))), host_target())
    return {kernel.parts.axis for kernel in products(program)}


def test_few_columns_are_shared_though_they_are_copied() -> None:
    (kernel,) = products(build_cases([Case(64, 1024, 10)], host_target())[0].program)
    assert kernel.parts.axis == "rows"
    assert kernel.parts.group == 1


def test_smaller_products_are_shared_where_many_follow_one_another() -> None:
    assert axes_of(1, 64) == axes_of(3, 64) == {""}
    assert axes_of(12, 64) == {"rows"}
    assert axes_of(100, 16) == {""}


def test_smaller_products_that_write_into_padding_are_shared_as_well() -> None:
    inputs, result = layers(12, 64)
    padded = shape.pad(result, (1, 1), (1, 1), (66, 66))
    program = make_program(Fuse().apply(Graph(tuple(inputs), (padded,))), host_target())
    *_, last = program.kernels.by_signature.values()
    assert isinstance(last, Joined)
    assert [kernel.parts.axis for kernel in last.parts if isinstance(kernel, Gemm)] == ["rows"]


def test_a_chain_of_small_products_has_the_same_bits_on_any_number_of_threads() -> None:
    rng = np.random.default_rng(3)
    values = [rng.uniform(-1, 1, (60, 60)).astype(np.float32) / 4 for _ in range(13)]
    results = []
    for threads in (1, 2, 3):
        with graphkb.options(threads=threads):
            x, *weights = (K.placeholder(shape=(60, 60)) for _ in values)
            y = x
            for w in weights:
                y = K.relu(K.dot(y, w))
            results.append(K.function([x, *weights], [y])(values)[0])
    exact = values[0].astype(np.float64)
    for value in values[1:]:
        exact = np.maximum(exact @ value.astype(np.float64), 0)
    np.testing.assert_allclose(results[0], exact, rtol=1e-4, atol=1e-6 * exact.max())
    for result in results[1:]:
        np.testing.assert_array_equal(result, results[0])


@pytest.mark.parametrize("size", [(7, 20, 70), (70, 40, 3), (1, 50, 33), (33, 50, 1)], ids=str)
@pytest.mark.parametrize("turn", [False, True], ids=["rows", "columns"])
def test_special_values_stay_in_their_row_and_column(size: tuple[int, int, int], turn: bool) -> None:
    m, k, n = size
    case = Case(m, k, n, turn_y=turn)
    compiled, ((x, y),) = build_cases([case], host_target())
    x[m - 1, k // 2], y[(n - 1, 1) if turn else (1, n - 1)] = np.nan, np.inf
    x[0, :] = np.where(np.arange(k) == 1, np.float32(0), x[0, :])
    (got,) = compiled([x, y])
    with np.errstate(invalid="ignore"):
        exact = x.astype(np.float64) @ (y.T if turn else y).astype(np.float64)
    np.testing.assert_array_equal(np.isnan(got), np.isnan(exact))
    np.testing.assert_array_equal(np.isinf(got), np.isinf(exact))
    finite = np.isfinite(exact)
    np.testing.assert_allclose(got[finite], exact[finite], atol=1e-4)


def test_products_of_many_shapes_share_their_micro_kernels() -> None:
    def functions(count: int) -> int:
        rows = symbol("rows")
        inputs, outputs = [], []
        for i in range(count):
            for height in (24 * (i + 1), rows):
                x, y = (placeholder(s, "float32", "x") for s in ((height, 16 * i + 16), (16 * i + 16, 64 * i + 64)))
                inputs += [x, y]
                outputs.append(linalg.dot(x, y, (), (), (1,), (0,)))
        program = build(inputs, outputs, host_target()).program
        b = Builder(host_target())
        program.emit(b, "run")
        return sum("define internal void @tile." in line for line in b.module().splitlines())

    assert functions(5) == functions(1)
