"""Random programs mean the same raw, after each pass, interpreted, compiled, and with sizes bound early or late.

`GRAPHKB_TEST_PROGRAMS=5000` tries that many of each kind, other ones every time.
"""

from __future__ import annotations

import os
from contextlib import suppress
from dataclasses import replace

import numpy as np
import pytest
from evaluate import Array, finite_differences, interpret
from hypothesis import HealthCheck, Phase, assume, given, note, settings
from noise import Expectation, expect
from program_code import to_code
from programs import RandomProgram, programs, smooth_programs

from graphkb.gradients import gradients
from graphkb.ir.graph import Graph, toposort
from graphkb.ir.node import Node, make
from graphkb.ir.verify import verify
from graphkb.ops import elementwise as e
from graphkb.ops import leaf, reduce, shape
from graphkb.passes.pipeline import FUSION, PIPELINE, Pass, optimize
from graphkb.runtime.function import Function

LONG = int(os.environ.get("GRAPHKB_TEST_PROGRAMS", "0"))


def budget(count: int) -> settings:
    """Always the same `count` programs, or as many new ones as were asked for."""
    return settings(
        max_examples=LONG or count,
        derandomize=not LONG,
        deadline=None,
        print_blob=False,
        report_multiple_bugs=False,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )


def roots_of(program: RandomProgram, function: Function) -> list[Array]:
    """The outputs of a call, then the values that it gave the variables."""
    program.reset()
    outputs = function(program.feeds)
    values = [cell.array.copy() for cell in program.state]
    program.reset()
    return [*outputs, *values]


@budget(250)
@given(programs())
def test_passes_keep_the_meaning(program: RandomProgram) -> None:
    note(program.code())
    expected = expect(program, stable=False)
    verify(program.bound)

    def check(step: Pass, before: Graph, after: Graph, seconds: float) -> None:
        nonlocal expected
        verify(after)
        results = program.results(after, interpret(after, program.feeds))
        stabilized = step.name == "stabilize"
        expected.check(results, f"after {step.name}:\n{after}", stabilized)
        if stabilized:
            expected = replace(expected, stable=expect(program, after, stable=False))

    optimize(program.bound, (*PIPELINE, *FUSION), check)


@budget(200)
@given(programs())
def test_sizes_may_be_bound_after_the_passes(program: RandomProgram) -> None:
    note(program.code())
    expected = expect(program)
    early = optimize(program.graph)
    verify(early)
    bound = early.bind(program.sizes)
    verify(bound)
    results = program.results(bound, interpret(bound, program.feeds))
    expected.check(results, f"optimized before binding:\n{early}")


@budget(150)
@given(programs())
def test_functions_compute_the_same(program: RandomProgram) -> None:
    note(program.code())
    expected: Expectation = expect(program)
    for mode in ("interpret", "native"):
        function = Function(program.graph, options={"mode": mode})
        for turn in ("first", "second"):
            expected.check(roots_of(program, function), f"{turn} call in mode {mode}")


@budget(80)
@given(programs())
def test_functions_take_other_sizes(program: RandomProgram) -> None:
    n, m = program.sizes.values()
    check_sizes(program, [(n, m), (m, n), (4, 4), (n, m)], dynamic_after=0)


@budget(40)
@given(programs())
def test_functions_serve_any_sizes(program: RandomProgram) -> None:
    n, m = program.sizes.values()
    check_sizes(program, [(n, m), (m, n), (17, 33), (1, 5), (n, m)], dynamic_after=1)


def check_sizes(program: RandomProgram, all_sizes: list[tuple[int, int]], dynamic_after: int) -> None:
    """Functions compute what the interpreter does, or refuse sizes as it does and leave the variables as they were."""
    note(program.code())
    function = Function(program.graph, options={"mode": "native", "dynamic_after": dynamic_after})
    for sizes in all_sizes:
        other = program.resized(sizes)
        note(f"sizes {sizes}")
        try:
            expected = expect(other)
            if any(new.shape != cell.type.shape for cell, new in other.bound.updates):
                raise ValueError("a new value does not fit its variable")
        except IndexError:
            # What the passes found not to matter does not run, and then does not fail.
            with suppress(IndexError):
                function(other.feeds)
            program.reset()
        except ValueError:
            with pytest.raises(ValueError):
                function(other.feeds)
            assert all((cell.array == value).all() for cell, value in program.state.items())
        else:
            expected.check(roots_of(other, function), f"with sizes {sizes}")
    assert "failed" not in function._core.refusals


@budget(60)
@given(programs(large=True))
def test_functions_of_large_values_compute_the_same(program: RandomProgram) -> None:
    note(program.code())
    function = Function(program.graph, options={"mode": "native"})
    expect(program).check(roots_of(program, function), "a call in mode native")


@budget(60)
@given(smooth_programs())
def test_gradients_are_slopes(program: RandomProgram) -> None:
    note(program.code())
    bound = program.bound
    (total,) = bound.outputs
    leaves: list[Node] = [n for n in bound.inputs if n.dtype == "float64" and n.type.size]
    assume(leaves)
    slopes = gradients([total], leaves)
    connected = [(n, g) for n, g in zip(leaves, slopes) if g is not None]
    graph = Graph(bound.inputs, tuple(g for _, g in connected))
    verify(graph)
    actual = interpret(graph, program.feeds)
    compiled = Function(graph, options={"mode": "native"})(program.feeds)
    for (node, slope), value, native in zip(connected, actual, compiled):
        assert slope.type == node.type
        position = bound.inputs.index(node)

        def at(x: Array, position: int = position) -> Array:
            return interpret(bound, [*program.feeds[:position], x, *program.feeds[position + 1 :]])[0]

        coarse = finite_differences(at, program.feeds[position], 2e-4)
        fine = finite_differences(at, program.feeds[position], 1e-4)
        # Where two steps disagree, there is a kink or the function is too steep to say.
        sure = np.isfinite(fine) & (np.abs(coarse - fine) <= 1e-7 * (1 + np.abs(fine))) & (np.abs(fine) < 1e4)
        for name, result in (("interpreted", value), ("native", native)):
            wrong = sure & ~(np.abs(result - fine) <= 1e-5 * (1 + np.abs(fine)))
            assert not wrong.any(), f"{name} gradient by {node!r}: {result[wrong]}, differences say {fine[wrong]}"


@budget(40)
@given(programs())
def test_printed_programs_build_the_same_graph(program: RandomProgram) -> None:
    space: dict[str, object] = {}
    exec(to_code(program.graph, program.feeds, program.sizes), space)
    graph, feeds = space["graph"], space["feeds"]
    assert isinstance(graph, Graph)
    assert isinstance(feeds, list)
    assert [n.op for n in graph.nodes] == [n.op for n in program.graph.nodes]
    assert [n.ndim for n in graph.nodes] == [n.ndim for n in program.graph.nodes]
    for one, other in zip(feeds, program.feeds, strict=True):
        np.testing.assert_array_equal(one, other)


# ---------------------------------------------------------------------------------------------- once wrong
def compiled(*outputs: Node, **feeds: Array) -> list[Array]:
    """The outputs by native code, the placeholders fed by their names."""
    inputs = tuple(n for n in toposort(outputs) if n.op is leaf.PLACEHOLDER)
    return Function(Graph(inputs, outputs), options={"mode": "native"})([feeds[n.attrs["key"].name] for n in inputs])


def test_a_reduction_read_through_two_slices() -> None:
    x = leaf.placeholder((1, 2), "float64", "x")
    rows = shape.concatenate([x, x], 0)
    powers = e.exp(rows - reduce.reduce(reduce.MAX, rows, (1,), True))
    (slope,) = gradients([powers / reduce.reduce_sum(powers, (1,), True)], [x])
    assert slope is not None
    np.testing.assert_allclose(compiled(slope, x=np.array([[2.5, 3.3]]))[0], [[0, 0]], atol=1e-15)


def test_the_position_of_the_largest_share_of_a_row() -> None:
    x = leaf.placeholder((4, 7), "float32", "x")
    powers = e.exp(x - reduce.reduce(reduce.MAX, x, (1,), True))
    position = make(reduce.ARGMAX, (powers / reduce.reduce_sum(powers, (1,), True),), {"axis": 1})
    rows = np.random.default_rng(0).normal(size=(4, 7)).astype("float32")
    assert compiled(position, x=rows)[0].tolist() == rows.argmax(1).tolist()
