"""Random programs mean the same before and after the passes, bit for bit, special values included."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from evaluate import Array, interpret
from hypothesis import HealthCheck, given, settings
from passes_programs import FLOAT_VALUES, INF, NAN, Program, programs

from graphkb.ir.graph import Graph
from graphkb.ir.verify import verify
from graphkb.ops import elementwise as ew
from graphkb.ops import leaf, linalg
from graphkb.ops import reduce as rd
from graphkb.ops import shape as sh
from graphkb.passes.eliminate_dead import EliminateDead
from graphkb.passes.fold_constants import FoldConstants
from graphkb.passes.pipeline import optimize
from graphkb.passes.prune_stop_gradient import PruneStopGradient
from graphkb.passes.simplify import Simplify


def same(a: Array, b: Array) -> bool:
    """Equal bit for bit, all NaNs being equal."""
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    if a.dtype.kind != "f":
        return bool((a == b).all())
    nan = np.isnan(a) & np.isnan(b)
    return bool((nan | ((a == b) & (np.signbit(a) == np.signbit(b)))).all())


def run(graph: Graph, program: Program) -> list[Array]:
    """The outputs for the program's arrays; the errors of a program are results too."""
    bound = graph.bind(program.sizes)
    return interpret(bound, program.feeds)


def check(graph: Graph, program: Program, *passes: Any) -> None:
    before = run(graph, program)
    changed = graph
    for step in passes:
        changed = step.apply(changed)
        verify(changed)
        assert all(node.origin is not None for node in changed.nodes)
        for expected, actual in zip(before, run(changed, program)):
            assert same(expected, actual), f"{step.name}: {expected} became {actual}\n{graph}\n{changed}"


PASSES = (PruneStopGradient(), FoldConstants(), Simplify(), EliminateDead())
EXAMPLES = settings(max_examples=300, deadline=None, suppress_health_check=list(HealthCheck))


@EXAMPLES
@given(programs())
def test_random_programs_keep_their_meaning(drawn):
    check(*drawn, *PASSES)


@EXAMPLES
@given(programs(dtypes=("float32",), steps=8))
def test_random_float_programs_keep_their_meaning(drawn):
    check(*drawn, *PASSES)


@EXAMPLES
@given(programs(dtypes=("int8", "uint8", "int32", "bool")))
def test_random_integer_programs_keep_their_meaning(drawn):
    check(*drawn, *PASSES)


@EXAMPLES
@given(programs(steps=10))
def test_bound_graphs_simplify_to_the_same_meaning(drawn):
    graph, program = drawn
    expected = run(graph, program)
    bound = optimize(graph.bind(program.sizes), PASSES)
    for a, b in zip(expected, interpret(bound, program.feeds)):
        assert same(a, b), f"{a} became {b}\n{graph}\n{bound}"


@EXAMPLES
@given(programs())
def test_optimizing_twice_changes_nothing(drawn):
    graph, program = drawn
    once = optimize(graph)
    assert optimize(once) is once
    bound = optimize(once.bind(program.sizes))
    assert optimize(bound) is bound


@pytest.mark.parametrize("dtype", ["float32", "float64", "int8", "int32", "uint8"])
def test_dot_rewrites_keep_their_meaning(dtype):
    rng = np.random.default_rng(0)
    x, y = (leaf.placeholder(s, dtype, "x") for s in ((2, 3, 4), (4, 5, 2)))
    feeds = [rng.integers(-3, 4, s.shape).astype(dtype) for s in (x, y)]
    # Batch axis 2 of y, contracted axis 0 of y, after transposes of everything.
    product = linalg.dot(sh.transpose(x, (2, 0, 1)), sh.transpose(y, (2, 0, 1)), (1,), (0,), (0,), (1,))
    graph = Graph(
        (x, y),
        (product, sh.transpose(product, (0, 2, 1)), linalg.dot(sh.transpose(x, (2, 1, 0)), y, (), (), (0,), (0,))),
    )
    changed = Simplify().apply(graph)
    assert not any(n.op is sh.TRANSPOSE for n in Graph((x, y), changed.outputs[:2]).nodes)
    for a, b in zip(interpret(graph, feeds), interpret(changed, feeds)):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("value", [0.1, -7.3, INF, NAN, -0.0, 3e38])
@pytest.mark.parametrize("shape", [(1, 3), (3, 1), (1, 1)])
def test_sums_of_broadcasts_are_at_least_as_exact(value, shape):
    x = leaf.placeholder(shape, "float32", "x")
    y = rd.reduce_sum(sh.broadcast_to(x, (700, 3) if shape[1] == 3 else (3, 700)), (0, 1))
    graph = Graph((x,), (y,))
    changed = Simplify().apply(graph)
    assert any(n.op is ew.mul for n in changed.nodes)
    feed = np.full(shape, value, np.float32)
    exact = np.float64(np.float32(value)) * 2100
    (after,) = interpret(changed, [feed])
    with np.errstate(over="ignore"):
        np.testing.assert_allclose(after, np.float32(exact), rtol=3e-7)
    assert np.signbit(after) == (exact < 0)


@pytest.mark.parametrize("power", [2, 3, 4, -1])
def test_powers_stay_within_two_units_in_the_last_place(power):
    x = leaf.placeholder((4096,), "float32", "x")
    graph = Graph((x,), (ew.power(x, power),))
    changed = Simplify().apply(graph)
    assert not any(n.op is ew.pow_ for n in changed.nodes)
    rng = np.random.default_rng(1)
    feed = np.concatenate([np.float32(FLOAT_VALUES), rng.standard_cauchy(4096 - len(FLOAT_VALUES)).astype(np.float32)])
    with np.errstate(all="ignore"):
        exact = (feed.astype(np.float64) ** power).astype(np.float32)
    (after,) = interpret(changed, [feed])
    np.testing.assert_array_max_ulp(np.where(np.isnan(exact), 0, after), np.where(np.isnan(exact), 0, exact), 2)
    assert (np.isnan(exact) == np.isnan(after)).all()
    assert (np.signbit(exact) == np.signbit(after))[~np.isnan(exact)].all()


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_division_by_powers_of_two_is_exact(dtype):
    info = np.finfo(dtype)
    x = leaf.placeholder((7,), dtype, "x")
    feed = np.array([info.max, info.tiny, info.smallest_subnormal, -info.tiny * 3, 1 / 3, INF, -0.0], dtype)
    for exponent in range(info.minexp - info.nmant, info.maxexp, 3):
        divisor = float(np.ldexp(1.0, exponent))
        graph = Graph((x,), (x / divisor,))
        changed = Simplify().apply(graph)
        assert same(interpret(graph, [feed])[0], interpret(changed, [feed])[0]), exponent
