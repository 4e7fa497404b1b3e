"""How matrix products read large operands: once where they pass by, and asked for ahead of their use."""

from __future__ import annotations

import numpy as np
import pytest
from gemm_tools import build

from graphkb import backend as K
from graphkb.codegen.builder import Builder
from graphkb.codegen.gemm import Gemm
from graphkb.codegen.gemm_tiling import Tiling
from graphkb.codegen.planner import make_program
from graphkb.codegen.target import host_target, named_target
from graphkb.ir.graph import Graph
from graphkb.ops import linalg, shape
from graphkb.ops.leaf import placeholder
from graphkb.passes.fuse import Fuse

K_LONG, N_LONG = 1100, 1024


def the_product(rows: tuple[int, ...], kept: int | None = None) -> Gemm:
    """The matrix kernel of a product with a matrix of more than 4 MB, of the first few rows along the second axis."""
    x, w = placeholder((*rows, K_LONG), "float32", "x"), placeholder((K_LONG, N_LONG), "float32", "w")
    part = x if kept is None else shape.slice_(x, (0, 0, 0), (rows[0], kept, K_LONG), (1, 1, 1))
    program = build([x, w], [linalg.dot(part, w, (), (), (len(rows),), (0,))], host_target()).program
    (kernel,) = [k for k in program.kernels.by_signature.values() if isinstance(k, Gemm)]
    return kernel


def test_a_matrix_passes_by_once() -> None:
    assert the_product((3,)).tiling.streams
    scattered = the_product((3, 4), kept=3)
    assert not scattered.tiling.streams
    assert len(scattered.rows) == 2


def test_rows_that_lie_apart_meet_a_large_matrix() -> None:
    rng = np.random.default_rng(0)
    x, w = (rng.standard_normal(s).astype("float32") for s in ((3, 4, K_LONG), (K_LONG, N_LONG)))
    given = K.placeholder((3, 4, K_LONG))
    run = K.function([given], [K.dot(given[:, :3], K.variable(w))])
    exact = x[:, :3].astype(np.float64) @ w.astype(np.float64)
    np.testing.assert_allclose(run([x])[0], exact, atol=1e-4)


@pytest.mark.parametrize(
    ("size", "asked"),
    [
        ((32, 784, 512), True),
        ((30, 1600, 64), True),
        ((1, 300, 300), False),
        ((3, 300, 4096), True),
        ((3, 1100, 1024), False),
        ((32, 8, 512), False),
    ],
)
def test_rows_of_blocks_to_come_are_asked_for(size: tuple[int, int, int], asked: bool) -> None:
    assert ("i32 0, i32 2, i32 1)" in prefetches(*size)) is asked


@pytest.mark.parametrize(("size", "asked"), [((32, 784, 512), True), ((6, 64, 64), True), ((32, 8, 512), False)])
def test_results_of_long_sums_are_asked_for(size: tuple[int, int, int], asked: bool) -> None:
    assert ("i32 1, i32 2, i32 1)" in prefetches(*size)) is asked


def prefetches(m: int, k: int, n: int) -> str:
    """The lines in which the code of a product of matrices asks for memory."""
    x, w = placeholder((m, k), "float32", "x"), placeholder((k, n), "float32", "w")
    target = named_target("x86-64-v4")
    program = make_program(Fuse().apply(Graph((x, w), (linalg.dot(x, w, (), (), (1,), (0,)),))), target)
    b = Builder(target)
    program.emit(b, "run")
    return "\n".join([line for line in b.module().splitlines() if "call void @llvm.prefetch" in line])


def dense(m: int, k: int, n: int) -> Gemm:
    """The kernel of a product of matrices on AVX-512."""
    x, w = placeholder((m, k), "float32", "x"), placeholder((k, n), "float32", "w")
    product = Fuse().apply(Graph((x, w), (linalg.dot(x, w, (), (), (1,), (0,)),)))
    program = make_program(product, named_target("x86-64-v4"))
    (kernel,) = [k for k in program.kernels.by_signature.values() if isinstance(k, Gemm)]
    return kernel


def tiling_of(m: int, k: int, n: int) -> Tiling:
    return dense(m, k, n).tiling


def test_rows_are_read_once_where_the_other_matrix_stays_in_the_cache() -> None:
    assert dense(2048, 128, 256).rows_at_once == 1
    assert dense(2048, 128, 64).rows_at_once == 0  # one panel of columns
    assert dense(600, 128, 256).rows_at_once == 0
    assert dense(2048, 512, 512).rows_at_once == 0


def test_few_rows_copy_a_matrix_whose_rows_fall_on_the_same_places_of_the_cache() -> None:
    assert tiling_of(36, 1024, 4096).pack_b
    assert not tiling_of(36, 1024, 4112).pack_b
    assert not tiling_of(36, 1024, 1024).pack_b
    assert not tiling_of(12, 1024, 4096).pack_b


def test_tiles_are_tall_where_a_matrix_lies_far_away() -> None:
    assert tiling_of(32, 784, 512).rows == 6
    assert tiling_of(32, 64, 512).rows == 4


def test_a_crowded_matrix_gives_the_right_product() -> None:
    rng = np.random.default_rng(1)
    x, w = (rng.standard_normal(s).astype("float32") for s in ((37, 600), (600, 4096)))
    a, b = K.placeholder(x.shape), K.placeholder(w.shape)
    result = K.function([a, b], [K.dot(a, b)])([x, w])[0]
    np.testing.assert_allclose(result, x.astype(np.float64) @ w.astype(np.float64), atol=2e-4)
