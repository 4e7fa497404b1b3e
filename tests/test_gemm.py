"""Matrix products in machine code: shapes, transposes, batches, epilogues and targets against float64 NumPy."""

from __future__ import annotations

import functools
import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from gemm_tools import EPSILON, Array, Case, Compiled, all_targets, build, build_cases, check, products, targets

from graphkb.codegen.builder import Builder
from graphkb.codegen.engine import emit_object
from graphkb.codegen.planner import make_program
from graphkb.codegen.target import TARGETS, Target, host_target, named_target
from graphkb.ir.dims import symbol
from graphkb.ir.graph import Graph
from graphkb.ir.node import Node
from graphkb.ops import elementwise as e
from graphkb.ops import linalg, shape
from graphkb.ops.leaf import placeholder
from graphkb.passes.fuse import Fuse

SMALL = [0, 1, 2, 3, 5, 7]
EDGES = [(6, 64, 64), (7, 65, 63), (5, 63, 65), (12, 16, 32), (13, 17, 31), (11, 15, 33), (31, 37, 41), (97, 101, 103)]
LARGE = [(64, 64, 64), (128, 300, 129), (33, 784, 50), (17, 1025, 70), (24, 2048, 16), (256, 48, 512)]
TURNS = [(False, False), (True, False), (False, True), (True, True)]


@all_targets
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_small_shapes(dtype: str, target: Target) -> None:
    check([Case(m, k, n, dtype) for m, k, n in itertools.product(SMALL, repeat=3) if (m + k + n) % 4 == 0], target)


@all_targets
@pytest.mark.parametrize("dtype", ["float32", "float64", "float16"])
def test_tile_edges(dtype: str, target: Target) -> None:
    check([Case(*size, dtype, *turn) for size, turn in zip(EDGES, itertools.cycle(TURNS))], target)


@targets
@pytest.mark.parametrize("turn", TURNS, ids=str)
def test_transposes(turn: tuple[bool, bool], target: Target) -> None:
    check([Case(m, k, n, "float32", *turn) for m, k, n in [*EDGES[::2], *LARGE]], target)


@targets
def test_few_rows_or_columns(target: Target) -> None:
    sizes = [
        (1, 784, 512),
        (1, 37, 1),
        (1, 1, 37),
        (1, 1000, 10),
        (512, 784, 1),
        (2, 100, 300),
        (4, 999, 65),
        (3, 5, 1),
    ]
    check([Case(*size, "float32", *turn) for size in sizes for turn in TURNS], target)


@targets
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_dot_products_of_five_to_seven(dtype: str, target: Target) -> None:
    """Tiles of dot products whose sides are no powers of 2, whole and cut short."""
    sizes = [
        (5, 70, 13),
        (13, 70, 5),
        (6, 33, 6),
        (20, 100, 7),
        (7, 100, 21),
        (9, 64, 6),
        (3, 50, 5),
        (2, 50, 7),
        (1, 40, 6),
    ]
    check([Case(*size, dtype, False, turn) for size in sizes for turn in (False, True)], target)
    if target.is_avx512:
        cases = [Case(5, 1024, 128, dtype, False, True), Case(255, 500, 6, dtype)]
        kernels = products(build_cases(cases, target)[0].program)
        assert [(k.tiling.dots, {k.tiling.rows, k.tiling.width}) for k in kernels] == [(True, {5, 4}), (True, {4, 6})]


@targets
@pytest.mark.parametrize("turn", TURNS, ids=str)
def test_large_results_of_short_sums(turn: tuple[bool, bool], target: Target) -> None:
    """All columns of some rows come before the next rows."""
    cases = [
        Case(701, 7, 513, "float32", *turn),
        Case(301, 9, 517, "float64", *turn),
        Case(1030, 3, 300, "float16", *turn),
    ]
    assert products(build_cases(cases, target)[0].program)[0].rows_at_once > 0
    check(cases, target)


@targets
def test_outer_products(target: Target) -> None:
    """Each element is one product plus 0, so there are no negative zeros, as in NumPy."""
    check(
        [Case(17, 1, 33), Case(3, 1, 5, "float64", True, True), Case(9, 1, 4, "float16"), Case(5, 1, 6, batch=(3,))],
        target,
    )
    x, y = placeholder((2, 1), "float32", "x"), placeholder((1, 2), "float32", "y")
    values = np.array([[-1], [2]], np.float32), np.array([[0, np.inf]], np.float32)
    (got,) = build([x, y], [linalg.dot(x, y, (), (), (1,), (0,))], target)(values, True)
    want = np.matmul(*values)
    np.testing.assert_array_equal(got, want)
    np.testing.assert_array_equal(np.signbit(got), np.signbit(want))


@targets
def test_matrices_that_stream_by(target: Target) -> None:
    cases = [Case(m, k, n) for m, k, n in [(1, 401, 400), (1, 400, 401), (2, 1030, 1090), (13, 1027, 1100)]]
    parts = [Case(1, 6007, 70), Case(1, 5001, 61, "float64")]
    cases += [Case(2, 1030, 1090, turn_x=True), Case(1, 700, 700, "float16"), Case(3, 701, 800, "float64")]
    check([*cases, *parts], target)


@targets
def test_copied_operands(target: Target) -> None:
    cases = [Case(601, 800, 260, turn_x=True), Case(151, 70, 1024), Case(1030, 20, 1100)]
    if target.is_avx512:
        kernels = products(build_cases(cases, target)[0].program)
        assert [k.tiling.pack_a for k in kernels] == [True, False, False]
        assert [k.tiling.pack_b for k in kernels] == [False, True, True]
    check(cases, target)


@targets
def test_batches(target: Target) -> None:
    cases = [Case(9, 17, 21, "float32", *turn, batch=batch) for turn in TURNS for batch in [(3,), (2, 3), (0,), (1, 4)]]
    check([*cases, Case(1, 17, 21, batch=(5,)), Case(5, 8, 1, batch=(4,)), Case(1, 33, 1, batch=(6,))], target)


@targets
def test_empty_sum_is_zero(target: Target) -> None:
    x, y, bias = (
        placeholder((5, 0), "float32", "x"),
        placeholder((0, 70), "float32", "y"),
        placeholder((70,), "float32", "b"),
    )
    compiled = build([x, y, bias], [linalg.dot(x, y, (), (), (1,), (0,)) + bias], target)
    values = np.arange(70, dtype=np.float32)
    (got,) = compiled([np.zeros((5, 0), np.float32), np.zeros((0, 70), np.float32), values])
    np.testing.assert_array_equal(got, np.broadcast_to(values, (5, 70)))


# ---------------------------------------------------------------------------------------------- epilogues
Epilogue = Callable[[Node, dict[str, Node]], Node]
EPILOGUES: dict[str, tuple[Epilogue, Callable[[Any, dict[str, Any]], Any]]] = {
    "row bias": (lambda z, p: z + p["row"], lambda z, p: z + p["row"]),
    "column bias": (lambda z, p: z + p["column"], lambda z, p: z + p["column"]),
    "scalar": (lambda z, p: z * 2.5 - p["scalar"], lambda z, p: z * 2.5 - p["scalar"]),
    "relu": (lambda z, p: e.relu(z + p["row"]), lambda z, p: np.maximum(z + p["row"], 0)),
    "residual": (lambda z, p: z + p["full"], lambda z, p: z + p["full"]),
    "float64": (lambda z, p: e.cast(z, "float64") + 1.0, lambda z, p: z + 1),
    "float16": (lambda z, p: e.cast(z, "float16"), lambda z, p: z),
    "int32": (lambda z, p: e.cast(z * 64.0, "int32"), lambda z, p: np.trunc(z * 64)),
    "bool": (lambda z, p: e.greater(z, p["column"]), lambda z, p: z > p["column"]),
    "select": (lambda z, p: e.select(p["mask"], z, p["row"]), lambda z, p: np.where(p["mask"], z, p["row"])),
    "long": (
        lambda z, p: (z + p["row"]) / (e.relu(z) + 1.0) + e.sqrt(e.square(z) + p["full"] * p["full"]),
        lambda z, p: (z + p["row"]) / (np.maximum(z, 0) + 1) + np.sqrt(z * z + p["full"] * p["full"]),
    ),
    "turned": (lambda z, p: shape.transpose(z + p["row"], (1, 0)), lambda z, p: (z + p["row"]).T),
}


@targets
@pytest.mark.parametrize("size", [(13, 20, 70), (64, 700, 64), (6, 1600, 33), (1, 30, 50)], ids=str)
def test_epilogues(size: tuple[int, int, int], target: Target) -> None:
    m, k, n = size
    shapes = {"x": (m, k), "y": (k, n), "row": (n,), "column": (m, 1), "scalar": (), "full": (m, n), "mask": (m, n)}
    nodes = {name: placeholder(s, "bool" if name == "mask" else "float32", name) for name, s in shapes.items()}
    rng = np.random.default_rng(k)
    values: dict[str, Array] = {name: np.asarray(rng.uniform(-1, 1, s), np.float32) for name, s in shapes.items()}
    values["mask"] = np.asarray(values["mask"] > 0)
    # Each epilogue scales the product a little differently, or one product would be shared by all.
    outputs, scaled = [], []
    for i, (make, _) in enumerate(EPILOGUES.values()):
        x = placeholder((m, k), "float32", f"x{i}")
        scaled.append(x)
        outputs.append(make(linalg.dot(x, nodes["y"], (), (), (1,), (0,)), nodes))
    compiled = build([*nodes.values(), *scaled], outputs, target)
    results = compiled([*values.values(), *[values["x"]] * len(scaled)])
    wide = {name: v if name == "mask" else v.astype(np.float64) for name, v in values.items()}
    product = wide["x"] @ wide["y"]
    bound = (k + 1) * k * EPSILON["float32"] / 4
    for (name, (_, reference)), got in zip(EPILOGUES.items(), results):
        expected = reference(product, wide)
        if name == "bool":
            near = np.abs(product - wide["column"]) <= bound
            assert np.all((got == expected) | near), name
        else:
            slack = {"float16": 2.0**-10 * np.max(np.abs(product)), "int32": 1.0}.get(name, 1e-6)
            np.testing.assert_allclose(got, expected, rtol=1e-6, atol=4 * bound + slack, err_msg=name)


@targets
def test_residual_may_lie_where_the_result_goes(target: Target) -> None:
    x, y, z = (placeholder((40, 40), "float32", n) for n in "xyz")
    total = linalg.dot(x, y, (), (), (1,), (0,)) + e.sqrt(e.square(z))
    compiled = build([x, y, z], [linalg.dot(total, y, (), (), (1,), (0,))], target)
    total_bytes = compiled.program.memory.total
    assert isinstance(total_bytes, int)
    assert total_bytes < 3 * 40 * 40 * 4
    a, b, c = (np.random.default_rng(i).uniform(-1, 1, (40, 40)).astype(np.float32) for i in range(3))
    (got,) = compiled([a, b, c])
    np.testing.assert_allclose(got, (a.astype(float) @ b + np.abs(c.astype(float))) @ b, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------------------- other structures
@targets
def test_contractions_of_several_axes(target: Target) -> None:
    rng = np.random.default_rng(0)
    a, b = (placeholder(s, "float32", "p") for s in ((4, 5, 6, 7), (7, 5, 6, 8)))
    values = [rng.uniform(-1, 1, n.shape).astype(np.float32) for n in (a, b)]
    axes = [((3,), (0,), "abcd,defg->abcefg"), ((1, 2), (1, 2), "abcd,ebcf->adef"), ((2, 1), (2, 1), "abcd,ebcf->adef")]
    axes += [((1, 3), (1, 0), "abcd,dbef->acef"), ((1, 2, 3), (1, 2, 0), "abcd,dbcf->af")]
    outputs = [linalg.dot(a, b, (), (), x, y) for x, y, _ in axes]
    compiled = build([a, b], outputs, target)
    assert len(products(compiled.program)) >= 4
    for got, (_, _, text) in zip(compiled(values), axes):
        exact = np.einsum(text, *[v.astype(np.float64) for v in values])
        np.testing.assert_allclose(got, exact, rtol=1e-4, atol=1e-4)


@targets
def test_batch_axes_may_lie_anywhere(target: Target) -> None:
    rng = np.random.default_rng(0)
    a, b = (placeholder(s, "float32", "p") for s in ((6, 9, 4), (9, 4, 70)))
    z = linalg.dot(a, b, (2,), (1,), (1,), (0,))
    compiled = build([a, b], [z, shape.transpose(z, (1, 2, 0)) * 2.0], target)
    values = [rng.uniform(-1, 1, n.shape).astype(np.float32) for n in (a, b)]
    got, turned = compiled(values)
    exact = np.einsum("mkb,kbn->bmn", *values)
    np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(turned, exact.transpose(1, 2, 0) * 2, rtol=1e-5, atol=1e-5)


@functools.cache
def dynamic(target: Target) -> tuple[Compiled, Compiled]:
    rows, length, columns = symbol("rows"), symbol("length"), symbol("columns")
    x, y, bias = (
        placeholder((rows, 70), "float32", "x"),
        placeholder((70, 90), "float32", "y"),
        placeholder((90,), "float32", "b"),
    )
    first = build([x, y, bias], [e.relu(linalg.dot(x, y, (), (), (1,), (0,)) + bias)], target)
    x, y = placeholder((rows, length), "float32", "x"), placeholder((length, columns), "float32", "y")
    turned = [placeholder(n.shape[::-1], "float32", "t") for n in (x, y)]
    plain = linalg.dot(x, y, (), (), (1,), (0,))
    both = linalg.dot(turned[0], turned[1], (), (), (0,), (1,))
    return first, build([x, y, *turned], [plain, both + 1.0], target)


@targets
@pytest.mark.parametrize("rows", [0, 1, 2, 6, 7, 12, 13, 64])
def test_unknown_batch(rows: int, target: Target) -> None:
    rng = np.random.default_rng(rows)
    x, y, bias = (rng.uniform(-1, 1, s).astype(np.float32) for s in ((rows, 70), (70, 90), (90,)))
    for at_end in (True, False):
        (got,) = dynamic(target)[0]([x, y, bias], at_end)
        exact = np.maximum(x.astype(np.float64) @ y + bias, 0)
        np.testing.assert_allclose(got, exact, rtol=1e-5, atol=1e-5)


@targets
@pytest.mark.parametrize("size", [(1, 1, 1), (0, 3, 4), (3, 0, 4), (3, 4, 0), (7, 30, 65), (8, 1300, 127), (70, 9, 16)])
def test_unknown_sizes(size: tuple[int, int, int], target: Target) -> None:
    m, k, n = size
    rng = np.random.default_rng(m)
    x, y = (rng.uniform(-1, 1, s).astype(np.float32) for s in ((m, k), (k, n)))
    turned = [np.ascontiguousarray(v.T) for v in (x, y)]
    for at_end in (True, False):
        plain, both = dynamic(target)[1]([x, y, *turned], at_end)
        exact = x.astype(np.float64) @ y
        np.testing.assert_allclose(plain, exact, rtol=1e-5, atol=1e-6 * max(k, 1))
        np.testing.assert_allclose(both, exact + 1, rtol=1e-5, atol=1e-6 * max(k, 1))


def test_long_sums_are_as_exact_as_numpy() -> None:
    sizes = [(8, 20000, 40), (1, 20000, 64), (3, 20000, 64), (64, 4096, 64)]
    cases = [Case(*size, turn_y=turn) for size in sizes for turn in (False, True)]
    for case in cases:
        x, y = (placeholder(s, "float32", "x") for s in case.shapes())
        feeds = case.feeds()
        (got,) = build([x, y], [case.node(x, y)], host_target())(feeds)
        exact, _ = case.exact(*feeds)
        theirs = np.matmul(feeds[0], feeds[1].T if case.turn_y else feeds[1])
        ours = np.sqrt(np.mean((got - exact) ** 2))
        assert ours <= 2 * np.sqrt(np.mean((theirs - exact) ** 2)), case


def test_products_become_matrix_kernels() -> None:
    x, y = placeholder((32, 784), "float32", "x"), placeholder((784, 512), "float32", "y")
    compiled = build([x, y], [e.relu(linalg.dot(x, y, (), (), (1,), (0,)))], host_target())
    (kernel,) = products(compiled.program)
    assert "sum of" in str(kernel)
    assert "tile" in str(kernel)


@pytest.mark.parametrize("name", list(TARGETS))
def test_every_target_has_code(name: str) -> None:
    target = named_target(name)
    rows = symbol("rows")
    for dtype in ("float32", "float64", "float16"):
        nodes = [placeholder(s, dtype, "x") for s in ((rows, 30), (30, 50), (13, 30), (50, 13), (1, 30))]
        pairs = [(0, 1, 1, 0), (2, 1, 1, 0), (3, 1, 0, 1), (4, 2, 1, 1)]
        outputs = [linalg.dot(nodes[i], nodes[j], (), (), (x,), (y,)) for i, j, x, y in pairs]
        program = make_program(Fuse().apply(Graph(tuple(nodes), tuple(outputs))), target)
        b = Builder(target)
        program.emit(b, "run")
        assert len(products(program)) == 4
        assert len(emit_object(b.module(), target)) > 1000


def test_integers_stay_plain_loops() -> None:
    x, y = placeholder((5, 7), "int32", "x"), placeholder((7, 6), "int32", "y")
    compiled = build([x, y], [linalg.dot(x, y, (), (), (1,), (0,))], host_target())
    assert not products(compiled.program)
    a, b = np.arange(35, dtype=np.int32).reshape(5, 7), np.arange(42, dtype=np.int32).reshape(7, 6)
    np.testing.assert_array_equal(compiled([a, b])[0], a @ b)
