"""Loops and branches as machine code: values, memory, checks inside bodies, and what reports and dumps tell."""

from __future__ import annotations

import itertools
import operator
import pickle
import signal
from typing import Any

import numpy as np
import pytest
from evaluate import interpret, placeholders

import graphkb
from graphkb import backend as K
from graphkb.backend.tensors import Tensor
from graphkb.ir.errors import PositionError
from graphkb.ir.graph import Graph
from graphkb.ir.node import Node, make, record
from graphkb.ops import elementwise as ew
from graphkb.ops import leaf, linalg, shape
from graphkb.ops.control import SCAN, branch, items, loop
from graphkb.ops.index import gather
from graphkb.passes.fuse import Fuse
from graphkb.runtime.function import Function
from graphkb.runtime.options import current
from graphkb.runtime.plan import NativePlan

pytest.importorskip("llvmlite")
Array = np.ndarray[Any, np.dtype[Any]]
RNG = np.random.default_rng(11)
LENGTHS = [0, 1, 2, 3, 8]


def plan_of(graph: Graph) -> NativePlan:
    """The native plan of a graph as it is: nothing is optimized away."""
    from graphkb.runtime.kernel_cache import find_target

    options = current()
    return NativePlan(graph, Fuse().apply(graph), find_target(options), options)


def check(graph: Graph, feeds: list[Array], rtol: float = 0) -> None:
    """Native code gives what the meaning of the ops gives, and leaves its inputs alone."""
    before = [feed.copy() for feed in feeds]
    expected = interpret(graph, feeds)
    for actual in (plan_of(graph).run(feeds), Function(graph, options={"mode": "native"})(feeds)):
        for a, e in zip(actual, expected, strict=True):
            assert (a.dtype, a.shape) == (e.dtype, e.shape)
            np.testing.assert_allclose(a, e, rtol=rtol, atol=rtol)
    for feed, old in zip(feeds, before):
        np.testing.assert_array_equal(feed, old)


def scan(
    step: Any, states: list[Array], sequences: list[Array], constants: list[Array], length: int, reverse: bool = False
) -> tuple[Graph, list[Array]]:
    """The graph of a scan with all its results, and its feeds; `step(*parameters)` gives new states and outputs."""
    feeds = [*states, *sequences, *constants]
    inputs = placeholders(feeds)
    slices = [a[0] if a.shape[0] else np.zeros(a.shape[1:], a.dtype) for a in sequences]
    parameters = placeholders([*states, *slices, *constants], "p")
    new, outputs = step(*parameters)
    body = Graph(tuple(parameters), (*new, *outputs), name="body")
    attrs = {"body": body, "length": length, "states": len(states), "sequences": len(sequences), "reverse": reverse}
    return Graph(tuple(inputs), items(make(SCAN, tuple(inputs), attrs))), feeds


def rows(length: int, *dims: int, dtype: str = "float32") -> Array:
    return RNG.integers(-4, 5, (length, *dims)).astype(dtype)


# ---------------------------------------------------------------------------------------------- states
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "int64", "uint16", "bool"])
def test_a_state_that_is_stacked(dtype: str, length: int, reverse: bool) -> None:
    combine: Any = ew.not_equal if dtype == "bool" else operator.add
    graph, feeds = scan(
        lambda s, x: ([combine(s, x)], [combine(s, x)]),
        [np.arange(5).astype(dtype)],
        [rows(length, 5, dtype=dtype)],
        [],
        length,
        reverse,
    )
    check(graph, feeds)


@pytest.mark.parametrize("length", LENGTHS)
def test_states_that_change_places(length: int) -> None:
    """No step may write one state before it has read the other."""
    states = [rows(3), rows(3), rows(3)]
    check(*scan(lambda a, b, c, x: ([b, c, a + x], []), states, [rows(length, 3)], [], length))
    check(*scan(lambda a, b, c, x: ([b, a, c], [a * x]), states, [rows(length, 3)], [], length))


@pytest.mark.parametrize("length", LENGTHS)
def test_states_that_become_equal(length: int) -> None:
    check(*scan(lambda a, b, x: ([a + b * x] * 2, []), [rows(3), rows(3)], [rows(length, 3)], [], length))
    check(*scan(lambda a, b, x: ([a - b * x] * 2, [a - b * x] * 2), [rows(3), rows(3)], [rows(length, 3)], [], length))


@pytest.mark.parametrize("length", LENGTHS)
def test_a_state_that_is_read_after_it_has_been_written(length: int) -> None:
    """Products read their operands again and again: their result takes another place."""

    def step(s: Node, x: Node, w: Node) -> tuple[list[Node], list[Node]]:
        new = linalg.dot(s, w, (), (), (1,), (0,)) + x
        return [new], [s * 2.0]

    graph, feeds = scan(step, [rows(6, 7)], [rows(length, 6, 7)], [rows(7, 7) / 8], length)
    check(graph, feeds, 1e-5)


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", LENGTHS)
def test_old_values_that_are_stacked(length: int, reverse: bool) -> None:
    """Each step writes the next state where the stack of old values has its next slice."""
    states, x = [rows(3), rows(3)], [rows(length, 3)]
    for new in (lambda a, b, x: [a + x, b * 0.5 + a], lambda a, b, x: [b, a + x], lambda a, b, x: [a, a + b]):
        for out in (lambda a, b, n: [a, b], lambda a, b, n: [a, n[0], b], lambda a, b, n: [b, b], lambda a, b, n: [b]):
            graph, feeds = scan(
                lambda a, b, x, new=new, out=out: (new(a, b, x), out(a, b, new(a, b, x))),
                states,
                x,
                [],
                length,
                reverse,
            )
            check(graph, feeds)
            check(Graph(graph.inputs, graph.outputs[2:]), feeds)


def test_old_values_of_a_variable_that_is_updated() -> None:
    cell = K.variable(np.arange(3.0))
    x = K.placeholder((4, 3))
    s, row = leaf.placeholder((3,), "float32", "s"), leaf.placeholder((3,), "float32", "r")
    (last,), (old,) = loop([s, row], [s * 0.5 + row], [s], [cell.node], [x.node], 4)
    f = K.function([x], [Tensor(old)], updates=[(cell, Tensor(last))])
    values = rows(4, 3)
    expected = [np.arange(3.0, dtype="float32")]
    for row_ in values:
        expected.append(expected[-1] * np.float32(0.5) + row_)
    np.testing.assert_allclose(f([values])[0], expected[:-1], rtol=1e-6)
    np.testing.assert_allclose(K.get_value(cell), expected[-1], rtol=1e-6)


@pytest.mark.parametrize("length", LENGTHS)
def test_reversed_states(length: int) -> None:
    check(*scan(lambda s, x: ([shape.reverse(s, (0,)) + x], []), [rows(9)], [rows(length, 9)], [], length))


@pytest.mark.parametrize("length", LENGTHS)
def test_states_and_stacks_that_are_given(length: int) -> None:
    """What a step hands out may be what it was handed, or a constant, in another shape."""

    def step(s: Node, t: Node, x: Node, c: Node) -> tuple[list[Node], list[Node]]:
        return [x, shape.reshape(t, (6,))], [c, s, shape.reshape(t, (3, 2)), leaf.constant(np.arange(4))]

    check(*scan(step, [rows(6), rows(6)], [rows(length, 6)], [rows(2, 2)], length))


@pytest.mark.parametrize("taken", [c for n in range(5) for c in itertools.combinations(range(4), n)])
def test_results_that_nobody_takes(taken: tuple[int, ...]) -> None:
    graph, feeds = scan(lambda a, b, x: ([a + x, b * a], [a * x, a + x]), [rows(3), rows(3)], [rows(5, 3)], [], 5)
    check(Graph(graph.inputs, tuple([graph.outputs[i] for i in taken])), feeds)


@pytest.mark.parametrize("length", LENGTHS)
def test_the_first_state_is_needed_later(length: int) -> None:
    """A state must not take over memory that others still read."""
    x, w = rows(length, 4), rows(4)
    inputs = placeholders([x, w])
    first = ew.exp(inputs[1])
    s, row = leaf.placeholder((4,), "float32", "s"), leaf.placeholder((4,), "float32", "r")
    (last,), _ = loop([s, row], [s + row], [], [first], [inputs[0]], length)
    (other,), _ = loop([s, row], [s * row], [], [first], [inputs[0]], length)
    check(Graph(tuple(inputs), (last, other, last * other)), [x, w], 1e-6)


def test_empty_values() -> None:
    check(*scan(lambda s, x: ([s + x], [s * x]), [rows(0, 3)], [rows(4, 0, 3)], [], 4))


def test_the_same_array_several_times() -> None:
    x = rows(4, 4)
    inputs = placeholders([x])
    s, row = leaf.placeholder((4, 4), "float32", "s"), leaf.placeholder((4,), "float32", "r")
    c = leaf.placeholder((4, 4), "float32", "c")
    body = Graph((s, row, c), (s + row * c, row), name="body")
    attrs = {"body": body, "length": 4, "states": 1, "sequences": 1, "reverse": False}
    check(Graph(tuple(inputs), items(make(SCAN, (inputs[0],) * 3, attrs))), [x])


# ---------------------------------------------------------------------------------------------- nesting
def nested(depth: int, x: Node) -> Node:
    """Sums of sums: at every depth a loop over the rows of a matrix that runs the loop below for each."""
    total, row = leaf.placeholder((), "float64", "t"), leaf.placeholder(x.shape[1:], "float64", "r")
    with record() as made:
        below = nested(depth - 1, x * total) if depth else linalg.dot(row, row, (), (), (0,), (0,))
        new = total * 0.5 + below
    (last,), _ = loop([total, row], [new], [], [leaf.constant(0.25)], [x], x.shape[0], made=made)
    return last


@pytest.mark.parametrize("depth", [0, 1, 3, 6])
def test_loops_in_loops(depth: int) -> None:
    x = RNG.normal(size=(2, 3))
    (node,) = placeholders([x])
    check(Graph((node,), (nested(depth, node),)), [x], 1e-12)


def test_loops_and_branches_in_each_other() -> None:
    x, flags = rows(7, 4, dtype="float64"), np.array([0, 1, 1, 0, 0, 1, 0], bool)
    inputs = placeholders([x, flags])
    s, row, flag = placeholders([x[0], x[0], flags[0]], "p")
    with record() as outer:
        with record() as made:
            u = leaf.placeholder((4,), "float64", "u")
            (inner,), _ = loop([u], [ew.sin(u) + row], [], [s], [], 3)
        (new,) = branch(flag, [inner], [s - row], made, ())
    (last,), (all,) = loop([s, row, flag], [new], [new], [leaf.constant(np.ones(4))], inputs, 7, made=outer)
    check(Graph(tuple(inputs), (last, all)), [x, flags], 1e-12)


def test_branches() -> None:
    x = rows(5)
    test, node = leaf.placeholder((), "bool", "c"), *placeholders([x])
    with record() as made:
        then = [node, node * 2.0, leaf.constant(np.float32(3))]
        other = [ew.exp(node), node, linalg.dot(node, node, (), (), (0,), (0,))]
    values = branch(test, then, other, made, made)
    for flag in (True, False):
        check(Graph((test, node), tuple(values)), [np.array(flag), x], 1e-6)
        check(Graph((test, node), (values[1],)), [np.array(flag), x], 1e-6)


def test_ten_thousand_steps() -> None:
    graph, feeds = scan(lambda s, x: ([s * 0.5 + x], []), [np.zeros(3)], [RNG.normal(size=(10_000, 3))], [], 10_000)
    check(graph, feeds, 1e-14)


# ---------------------------------------------------------------------------------------------- variables
@pytest.mark.parametrize("length", [1, 2, 5])
def test_states_that_are_variables_are_written_in_place(length: int) -> None:
    """Stateful recurrence: the last state becomes the first of the next call."""
    state, mirror = K.variable(np.ones(4)), K.variable(np.zeros(4))
    x = K.placeholder((length, 1, 4))
    results = {}
    for mode in ("interpret", "native"):
        K.batch_set_value([(state, np.ones(4)), (mirror, np.zeros(4))])
        _, outputs, (new,) = K.rnn(
            lambda row, s: (row + s[0], [s[0] * 0.5 + row]),
            K.permute_dimensions(x, (1, 0, 2)),
            [K.expand_dims(state, 0)],
        )
        with graphkb.options(mode=mode):
            f = K.function([x], [outputs], updates=[(state, K.squeeze(new, 0)), (mirror, state * 2)])
        results[mode] = [f([np.full((length, 1, 4), k)])[0] for k in range(3)]
        results[mode] += [K.get_value(state), K.get_value(mirror)]
        assert f.report().interpreted == 0 or mode == "interpret"
    for a, b in zip(*results.values()):
        np.testing.assert_allclose(a, b, rtol=1e-6)


@pytest.mark.parametrize("bad", [None, 3, 0])
def test_a_bad_index_inside_a_loop_leaves_all_as_it_was(bad: int | None) -> None:
    table, count = K.variable(np.arange(12.0).reshape(4, 3)), K.variable(np.zeros(3))
    positions = np.array([[0, 1], [3, 2], [1, 1], [2, 0]], "int32")
    if bad is not None:
        positions[bad, 1] = 4
    p = K.placeholder((None, 2), dtype="int32")
    picked = K.map_fn(lambda at: K.sum(K.gather(table, at) * K.sum(count), axis=0), p, dtype="float32")
    total = K.sum(picked, axis=0)
    f = K.function([p], [total], updates=[(count, count + 1), (table, table * 0.5 + K.mean(total))])
    f.specialize([(4, 2)])
    assert f.report().interpreted == 0
    before = [K.get_value(v) for v in (table, count)]
    if bad is None:
        f([positions])
        assert K.get_value(count).tolist() == [1, 1, 1]
        return
    for _ in range(2):
        with pytest.raises(PositionError, match=r"gather: index 4 is out of range for an axis of 4\n  while executing"):
            f([positions])
        for old, variable in zip(before, (table, count)):
            np.testing.assert_array_equal(K.get_value(variable), old)


def test_a_bad_index_in_the_branch_that_is_not_taken_does_no_harm() -> None:
    flag, table, at = (
        leaf.placeholder((), "bool", "c"),
        leaf.placeholder((3,), "float64", "t"),
        leaf.placeholder((2,), "int64", "i"),
    )
    with record() as made:
        picked, plain = gather(table, at), ew.cast(at, "float64")
    graph = Graph((flag, table, at), tuple(branch(flag, [picked], [plain], made, made)))
    f = Function(graph, options={"mode": "native"})
    good = [np.array(True), np.arange(3.0), np.array([2, 0])]
    assert f(good)[0].tolist() == [2, 0]
    assert f([np.array(False), np.arange(3.0), np.array([7, -1])])[0].tolist() == [7, -1]
    with pytest.raises(PositionError, match="index 7"):
        f([np.array(True), np.arange(3.0), np.array([7, -1])])


def test_an_interrupt_leaves_all_variables_of_one_call() -> None:
    count, total = K.variable(0.0), K.variable(np.zeros(64))
    x = K.placeholder((None, 64))
    last = K.foldl(lambda a, b: K.tanh(a + b), x, total)
    f = K.function([x], [last], updates=[(count, count + 1), (total, last * 0 + count + 1)])
    rows_ = np.ones((3000, 64), "float32")
    f([rows_])
    before = signal.signal(signal.SIGALRM, signal.default_int_handler)
    interrupts = 0
    try:
        for delay in (1e-4, 1e-3, 3e-3):
            try:
                signal.setitimer(signal.ITIMER_REAL, delay)
                for _ in range(20):
                    f([rows_])
            except KeyboardInterrupt:
                interrupts += 1
            signal.setitimer(signal.ITIMER_REAL, 0)
            assert set(K.get_value(total).tolist()) == {float(K.get_value(count))}
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupts


# ---------------------------------------------------------------------------------------------- plans
def test_functions_with_loops_can_be_pickled() -> None:
    x, w = K.placeholder((2, None, 3)), K.variable(RNG.normal(size=(3, 3)))
    last, outputs, _ = K.rnn(lambda r, s: (K.tanh(K.dot(s[0], w) + r), [s[0] + r]), x, [K.zeros((2, 3))])
    f = K.function([x], [last, *K.gradients(K.sum(outputs), [w])])
    values = RNG.normal(size=(2, 4, 3)).astype("float32")
    for a, b in zip(f([values]), pickle.loads(pickle.dumps(f))([values]), strict=True):
        np.testing.assert_array_equal(a, b)


def test_reports_and_dumps_show_what_is_inside() -> None:
    x = K.placeholder((2, 6, 3))
    w = K.variable(np.eye(3))
    last, _, _ = K.rnn(
        lambda row, s: (K.tanh(K.dot(s[0], w) + row), [K.tanh(K.dot(s[0], w) + row)]), x, [K.zeros((2, 3))]
    )
    f = K.function([x], [last])
    f([np.ones((2, 6, 3))])
    report = f.report()
    assert report.interpreted == 0
    names = [step.name for step in report.steps]
    at = names.index("scan")
    assert names[at + 1].startswith("body/")
    assert "dot" in names[at + 1]
    assert report.steps[at].flops >= 6 * report.steps[at + 1].flops > 0
    assert report.planned_bytes is not None
    assert "fused" in f.dump("optimized").split("body(")[1]
    program = f.dump("loops").split("\nprogram ")[1].splitlines()
    at = program.index("  for step < 6:")
    assert [line.strip() in names for line in program[1:at]] == [True] * (at - 1)
    assert "dot" in program[at + 1]
    assert program[at + 1].startswith("    ")
    assert ".body0" in f.dump("llvm")


def test_only_loops_with_interpreted_nodes_are_walked(capsys: pytest.CaptureFixture[str]) -> None:
    x = K.placeholder((5, 3))
    native = K.foldl(lambda a, b: a * 0.5 + b, x)
    walked = K.map_fn(lambda row: K.print_tensor(row, "row") * 2, x)
    f = K.function([x], [native, walked])
    values = RNG.normal(size=(5, 3)).astype("float32")
    total, rows_ = f([values])
    expected = values[0]
    for row in values[1:]:
        expected = expected * np.float32(0.5) + row
    np.testing.assert_allclose(total, expected, rtol=1e-6)
    np.testing.assert_array_equal(rows_, values * 2)
    assert capsys.readouterr().out.count("row") == 5
    loops = [step for step in f.report().steps if step.name == "scan"]
    assert sorted(step.native for step in loops) == [False, True]


def test_many_bodies_in_one_function() -> None:
    """More steps than one function of machine code takes."""
    x = K.placeholder((3, 4))
    values = [K.foldl(lambda a, b, k=k: a * (k / 100) + b, x) for k in range(70)]
    f = K.function([x], values)
    given = RNG.normal(size=(3, 4)).astype("float32")
    for k, value in enumerate(f([given])):
        c = np.float32(k / 100)
        np.testing.assert_allclose(value, (given[0] * c + given[1]) * c + given[2], rtol=1e-5, atol=1e-6)
    assert f.report().interpreted == 0
