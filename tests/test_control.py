"""Loops and branches as nodes: types, values, gradients, passes over bodies, plans, text and files."""

import gc
import json
import pickle
import weakref

import numpy as np
import pytest
from evaluate import evaluate_native, finite_differences, interpret, placeholders

import graphkb
from graphkb import backend as K
from graphkb.gradients import gradients
from graphkb.ir.dims import symbol
from graphkb.ir.errors import DTypeError, GraphError, ShapeError
from graphkb.ir.export_json import from_json, to_json
from graphkb.ir.graph import Graph
from graphkb.ir.node import make, record
from graphkb.ir.types import TensorType, TupleType, tuple_type
from graphkb.ir.verify import verify
from graphkb.ops import elementwise as ew
from graphkb.ops import leaf, linalg, reduce, shape
from graphkb.ops.control import COND, ITEM, SCAN, branch, item, items, loop
from graphkb.passes.inline_bodies import InlineBodies
from graphkb.passes.merge_loops import MergeLoops
from graphkb.passes.pipeline import PIPELINE, VerifyEach, optimize
from graphkb.passes.prune_loops import PruneLoops
from graphkb.runtime.function import Function

RNG = np.random.default_rng(3)


def running_sum(x, first, reverse=False):
    """The last sum, and the sums after each row."""
    total, row = leaf.placeholder(first.shape, first.dtype, "t"), leaf.placeholder(x.shape[1:], x.dtype, "r")
    new = total + row
    (last,), (sums,) = loop([total, row], [new], [new], [first], [x], x.shape[0], reverse)
    return last, sums


def product(x, w):
    """A recurrence s' = tanh(s . w + x) over the rows of x, with the sum of squares of all states."""
    s, row = leaf.placeholder((w.shape[0],), w.dtype, "s"), leaf.placeholder(x.shape[1:], x.dtype, "r")
    new = ew.tanh(linalg.dot(s, w, (), (), (0,), (0,)) + row)
    zeros = shape.broadcast_to(leaf.constant(0, w.dtype), (w.shape[0],))
    (last,), (states,) = loop([s, row], [new], [new], [zeros], [x], x.shape[0])
    return last, reduce.reduce_sum(ew.square(states), (0, 1))


def count(graph, op):
    """How many nodes of an op there are, those of bodies included."""
    total, pending = 0, [graph]
    while pending:
        for node in pending.pop().nodes:
            total += node.op is op
            pending += [value for value in node.attrs.values() if isinstance(value, Graph)]
    return total


# ---------------------------------------------------------------------------------------------- types
def test_tuple_types():
    a, b = TensorType("float32", (2, 3)), TensorType("int64", ())
    both = tuple_type([a, b])
    assert isinstance(both, TensorType)
    assert (both, hash(both)) == (tuple_type([a, b]), hash(tuple_type([a, b])))
    assert both != tuple_type([a])
    assert (both.ndim, both.size, both.is_static, both.nbytes) == (0, 1, True, 32)
    assert not tuple_type([a.with_shape((symbol("n"),))]).is_static
    assert repr(both) == "(float32[2, 3], int64[])"
    assert pickle.loads(pickle.dumps(both)) == both


def test_types_of_results():
    n = symbol("n")
    x, first = leaf.placeholder((n, 4), "float32", "x"), leaf.placeholder((4,), "float32", "f")
    last, sums = running_sum(x, first)
    assert last.type == TensorType("float32", (4,))
    assert sums.type == TensorType("float32", (n, 4))
    scan = last.inputs[0]
    assert isinstance(scan.type, TupleType)
    assert items(scan) == (last, sums)
    with pytest.raises(ShapeError, match="item: there is no value 2"):
        item(scan, 2)
    with pytest.raises(DTypeError, match="item: expected the result of a loop"):
        item(x, 0)


def test_scans_that_do_not_fit():
    x, first = placeholders([np.zeros((3, 4)), np.zeros(4)])
    body = running_sum(x, first)[0].inputs[0].attrs["body"]
    attrs = {"body": body, "length": 3, "states": 1, "sequences": 1, "reverse": False}
    assert make(SCAN, (first, x), attrs).type.items[0].shape == (4,)
    for changes, inputs, kind, text in (
        ({"length": -1}, (first, x), ShapeError, "the length -1 is negative"),
        ({"length": 2}, (first, x), ShapeError, "expected 2 slices along the first axis"),
        ({"states": 3}, (first, x), GraphError, "3 states and 1 sequences do not fit"),
        ({}, (first,), GraphError, "states and 1 sequences do not fit"),
        ({}, (first, x, x), GraphError, "3 operands for a body that takes 2"),
        ({}, (first, placeholders([np.zeros((3, 5))])[0]), ShapeError, "operand 1 is"),
        ({}, (first, placeholders([np.zeros((3, 4), "int32")])[0]), DTypeError, "operand 1 is"),
    ):
        with pytest.raises(kind, match=text):
            make(SCAN, inputs, {**attrs, **changes})


def test_branches_that_do_not_fit():
    test, x = leaf.placeholder((), "bool", "c"), leaf.placeholder((3,), "float64", "x")
    for then, other, kind, text in (
        ([x], [ew.cast(x, "float32")], DTypeError, "one branch gives"),
        ([x], [x, x], GraphError, "the branches give 1 and 2 values"),
        ([x], [reduce.reduce_sum(x, (0,), True)], ShapeError, "one branch gives"),
    ):
        with pytest.raises(kind, match=f"cond: {text}"):
            branch(test, then, other, (), ())
    with pytest.raises(DTypeError, match="the condition must be a bool scalar"):
        branch(x, [x], [x], (), ())


# ---------------------------------------------------------------------------------------------- values
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("length", [0, 1, 2, 7])
@pytest.mark.parametrize("dtype", ["float32", "int8", "uint64"])
def test_running_sums(reverse, length, dtype):
    x = RNG.integers(0, 9, (length, 3)).astype(dtype)
    first = np.arange(3).astype(dtype)
    inputs = placeholders([x, first])
    graph = Graph(tuple(inputs), running_sum(*inputs, reverse))
    order = x[::-1] if reverse else x
    sums = np.cumsum(order, 0, dtype) + first
    expected = [sums[-1] if length else first, sums[::-1] if reverse else sums]
    for actual in (interpret(graph, [x, first]), evaluate_native(graph, [x, first]), Function(graph)([x, first])):
        for a, e in zip(actual, expected, strict=True):
            assert (a.dtype, a.shape) == (e.dtype, e.shape)
            np.testing.assert_array_equal(a, e)


def test_results_share_no_memory():
    x, first = np.ones((0, 3)), np.ones(3)
    for mode in ("interpret", "auto"):
        inputs = placeholders([x, first])
        f = Function(Graph(tuple(inputs), running_sum(*inputs)), options={"mode": mode})
        (last, _), (again, _) = f([x, first]), f([x, first])
        last[:] = 7
        assert again.tolist() == first.tolist() == [1, 1, 1]


def test_only_one_branch_is_computed():
    test, table = leaf.placeholder((), "bool", "c"), leaf.placeholder((3,), "float64", "t")
    with record() as made:
        taken = K.gather(K.Tensor(table), K.constant([7], "int32")).node
    (result,) = branch(test, [taken], [shape.slice_(table, (0,), (1,))], made, ())
    for mode in ("interpret", "auto", "native"):
        f = Function(Graph((test, table), (result,)), options={"mode": mode})
        assert f([False, [4, 5, 6]])[0].tolist() == [4]
        with pytest.raises(IndexError, match="while executing"):
            f([True, [4, 5, 6]])


def test_ten_thousand_steps_and_ten_thousand_loops():
    x = leaf.placeholder((10_000, 2), "float64", "x")
    f = Function(Graph((x,), running_sum(x, leaf.constant(np.zeros(2)))))
    assert f([np.ones((10_000, 2))])[0].tolist() == [10_000, 10_000]
    y = total = leaf.placeholder((2,), "float64", "y")
    rows = leaf.constant(np.ones((2, 2)))
    for _ in range(1500):
        total = running_sum(rows, total)[0]
    graph = Graph((y,), (total,))
    verify(optimize(graph))
    assert Function(pickle.loads(pickle.dumps(graph)), options={"mode": "interpret"})([[1, 2]])[0].tolist() == [
        3001,
        3002,
    ]
    assert from_json(to_json(graph)).outputs[0].type == total.type


# ---------------------------------------------------------------------------------------------- gradients
def check(total, inputs, feeds, order=1):
    """The gradients of a scalar, of the given order, are those of differences."""
    for wrt, at in zip(inputs, range(len(inputs))):
        (grad,) = gradients([total], [wrt])
        assert grad is not None
        actual = Function(Graph(tuple(inputs), (grad,)))(feeds)[0]

        def value(v, at=at):
            return interpret(Graph(tuple(inputs), (total,)), [*feeds[:at], v, *feeds[at + 1 :]])[0]

        np.testing.assert_allclose(actual, finite_differences(value, feeds[at], 1e-3), rtol=1e-6, atol=1e-8)
        if order > 1:
            check(reduce.reduce_sum(ew.sin(grad), tuple(range(grad.ndim))), inputs, feeds, order - 1)


def test_gradients_of_loops_to_the_third_order():
    feeds = [RNG.normal(size=(3, 2)), RNG.normal(size=(2, 2))]
    inputs = placeholders(feeds)
    check(product(*inputs)[1], inputs, feeds, 3)


@pytest.mark.parametrize("value", [False, True])
def test_gradients_of_branches_to_the_second_order(value):
    feeds = [RNG.normal(size=3), RNG.normal(size=3)]
    x, y = inputs = placeholders(feeds)
    with record() as first:
        then = ew.tanh(x) * y
    with record() as second:
        other = ew.sin(x)
    test = ew.cast(leaf.variable(K.variable(int(value), "int32").cell), "bool")
    (chosen,) = branch(test, [then], [other], first, second)
    total = reduce.reduce_sum(chosen * chosen + x * y, (0,))
    check(total, inputs, feeds, 2)


def test_no_gradient_leaks_from_the_other_branch():
    x, c = K.placeholder((2,)), K.placeholder(())
    y = K.switch(c, lambda: K.log(x) / x, lambda: x * 2)
    f = K.function([x, c], [y, *K.gradients(K.sum(y), [x])])
    for a in f([[0, 0], 0]):
        assert np.isfinite(a).all()


def test_gradients_of_a_branch_in_a_loop():
    def build(x, w):
        with record() as made:
            s, row = leaf.placeholder((2,), "float64", "s"), leaf.placeholder((2,), "float64", "r")
            with record() as first:
                then = ew.tanh(s * w) + row
            with record() as second:
                other = s * row
            test = make(ew.gt, (reduce.reduce_sum(row, (0,)), leaf.constant(0.0)))
            (new,) = branch(test, [then], [other], first, second)
        (last,), _ = loop([s, row], [new], [], [shape.broadcast_to(leaf.constant(1.0), (2,))], [x], 4, made=made)
        return reduce.reduce_sum(last, (0,))

    feeds = [np.array([[1.0, 2], [-1, -2], [2, 1], [-1, 0.5]]), RNG.normal(size=2)]
    inputs = placeholders(feeds)
    check(build(*inputs), inputs, feeds, 2)


def test_a_value_that_is_stacked_twice_has_both_gradients():
    x = K.variable(np.array([1.0, 2.0, 3.0]), "float64")

    def twice(r):
        y = r * r
        return [y, y]

    a, b = K.map_fn(twice, x)
    assert K.eval(K.gradients(K.sum(a) + 10 * K.sum(b), [x])[0]).tolist() == [22, 44, 66]


def test_sums_of_products_are_one_product():
    x, w = placeholders([np.zeros((7, 2)), np.zeros((2, 2))])
    (grad,) = gradients([product(x, w)[1]], [w])
    assert grad.op is linalg.DOT
    assert grad.inputs[0].shape[0] == grad.inputs[1].shape[0] == 7


# ---------------------------------------------------------------------------------------------- passes
def test_bodies_are_simplified():
    x = leaf.placeholder((5, 3), "float64", "x")
    s, row = leaf.placeholder((3,), "float64", "s"), leaf.placeholder((3,), "float64", "r")
    new = s * 1 + (row - row * leaf.constant(1.0)) * leaf.constant(1.0) + ew.exp(ew.log(leaf.constant(1.0))) * row
    (last,), _ = loop([s, row], [new], [], [shape.broadcast_to(leaf.constant(0.0), (3,))], [x], 5)
    graph = optimize(Graph((x,), (last,)), observer=VerifyEach())
    (scan,) = [n for n in graph.nodes if n.op is SCAN]
    assert len(scan.attrs["body"].nodes) < len(last.inputs[0].attrs["body"].nodes)


def test_what_is_not_used_is_pruned():
    x = leaf.placeholder((5, 3), "float64", "x")
    s, t, row = (leaf.placeholder((3,), "float64", n) for n in "str")
    outer = ew.exp(leaf.placeholder((3,), "float64", "y"))
    zeros = [shape.broadcast_to(leaf.constant(0.0), (3,))] * 2
    (a, b), (c, d) = loop([s, t, row], [s + row, t + outer], [s * row, ew.exp(row)], zeros, [x], 5)
    pruned = PruneLoops().apply(Graph((x,), (d,)))
    (scan,) = [n for n in pruned.nodes if n.op is SCAN]
    assert scan.inputs == (x,)
    assert scan.type == tuple_type([d.type])
    assert (scan.attrs["states"], scan.attrs["sequences"]) == (0, 1)
    kept = Graph((x, outer.inputs[0]), (a, b, c, d))
    feeds = [RNG.normal(size=(5, 3)), RNG.normal(size=3)]
    for i, node in enumerate((a, b, c, d)):
        graph = optimize(Graph(kept.inputs, (node,)), observer=VerifyEach())
        np.testing.assert_allclose(interpret(graph, feeds)[0], interpret(kept, feeds)[i])


def test_states_that_never_change_become_constants():
    x, y = leaf.placeholder((5, 3), "float64", "x"), leaf.placeholder((3,), "float64", "y")
    s, t, row = (leaf.placeholder((3,), "float64", n) for n in "str")
    (a, b), _ = loop([s, t, row], [s + row * t, t], [], [y, y], [x], 5)
    graph = PruneLoops().apply(Graph((x, y), (a, b)))
    assert graph.outputs[1] is y
    (scan,) = [n for n in graph.nodes if n.op is SCAN]
    assert scan.attrs["states"] == 1
    feeds = [RNG.normal(size=(5, 3)), RNG.normal(size=3)]
    np.testing.assert_allclose(interpret(graph, feeds)[0], feeds[1] + feeds[0].sum(0) * feeds[1])


def test_loops_with_the_same_steps_are_merged():
    feeds = [RNG.normal(size=(3, 2)), RNG.normal(size=(2, 2))]
    inputs = placeholders(feeds)
    last, total = product(*inputs)
    graph = Graph(tuple(inputs), (last, total, *gradients([total], inputs)))
    merged = MergeLoops().apply(graph)
    assert (count(graph, SCAN), count(merged, SCAN)) == (3, 2)
    verify(merged)
    for a, b in zip(interpret(graph, feeds), interpret(merged, feeds), strict=True):
        np.testing.assert_array_equal(a, b)
    assert MergeLoops().apply(merged) is merged
    bound = pickle.loads(pickle.dumps(graph))
    assert count(MergeLoops().apply(bound), SCAN) == 2


@pytest.mark.parametrize("length", [0, 1])
def test_short_loops_are_written_out(length):
    x, first = placeholders([np.zeros((length, 3)), np.zeros(3)])
    graph = InlineBodies().apply(Graph((x, first), running_sum(x, first)))
    assert count(graph, SCAN) == 0
    verify(graph)
    assert InlineBodies().apply(graph) is graph


def test_branches_are_written_out_where_that_is_cheap_or_decided():
    def build(n, test):
        x = leaf.placeholder((n,), "float32", "x")
        with record() as made:
            then = ew.exp(x)
        return x, tuple(branch(test, [then], [x], made, ()))

    test = leaf.placeholder((), "bool", "c")
    x, outputs = build(3, test)
    (out,) = InlineBodies().apply(Graph((test, x), outputs)).outputs
    assert out is ew.select(test, ew.exp(x), x)
    x, outputs = build(1_000_000, test)
    assert InlineBodies().apply(Graph((test, x), outputs)).outputs == outputs
    x, outputs = build(1_000_000, leaf.constant(True))
    assert InlineBodies().apply(Graph((x,), outputs)).outputs == (ew.exp(x),)
    x, outputs = build(1_000_000, leaf.constant(False))
    assert InlineBodies().apply(Graph((x,), outputs)).outputs == (x,)


def test_sizes_are_bound_inside_bodies():
    n = symbol("n")
    x = leaf.placeholder((4, n), "float64", "x")
    row, total = leaf.placeholder((n,), "float64", "r"), leaf.placeholder((), "float64", "t")
    new = total + reduce.reduce_sum(row, (0,)) * leaf.size(n, "float64")
    (last,), _ = loop([total, row], [new], [], [leaf.constant(0.0)], [x], 4)
    graph = Graph((x,), (last,))
    assert optimize(graph, observer=VerifyEach()).outputs[0].type == last.type
    f = Function(graph, options={"debug": True})
    assert f([np.ones((4, 3))])[0] == 36
    assert f([np.ones((4, 0))])[0] == 0
    assert graph.bind({}) is graph


# ---------------------------------------------------------------------------------------------- plans and files
def training(mode="auto"):
    feeds = [RNG.normal(size=(6, 4)), RNG.normal(size=(4, 4))]
    inputs = placeholders(feeds)
    _, total = product(*inputs)
    return Function(Graph(tuple(inputs), (total, *gradients([total], inputs))), "net", {"mode": mode}), feeds


def test_every_mode_gives_the_same():
    results = []
    for mode in ("interpret", "auto", "native"):
        f, _ = training(mode)
        feeds = [np.cos(np.arange(24.0)).reshape(6, 4), np.sin(np.arange(16.0)).reshape(4, 4)]
        results.append(f(feeds))
    for other in results[1:]:
        for a, b in zip(results[0], other, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-12)


def test_bodies_are_native():
    f, feeds = training("native")
    f(feeds)
    report = f.report()
    assert report.interpreted == 0
    assert any(step.native and step.name.startswith("body/") for step in report.steps)
    loops = [step for step in report.steps if step.name == "scan"]
    assert loops[0].flops > 6 * 2 * 4 * 4
    assert "body(" in f.dump("optimized")
    assert "dot" in f.dump("loops")
    assert "define" in f.dump("llvm")


def test_text():
    x = leaf.placeholder((5, 3), "float64", "x")
    graph = Graph((x,), running_sum(x, leaf.constant(np.zeros(3)))[:1])
    lines = [line.split("  #")[0].rstrip() for line in str(graph).splitlines()]
    assert lines[3:] == [
        "  %2: (float64[3], float64[5, 3]) = scan(%1, %0, length=5, states=1, sequences=1, reverse=False)",
        "      body(%2.0: float64[3], %2.1: float64[3])",
        "        %2.2: float64[3] = add(%2.0, %2.1)",
        "        return %2.2, %2.2",
        "  %3: float64[3] = item(%2, index=0)",
        "  return %3",
    ]


@pytest.mark.parametrize("format", ["text", "dot", "svg", "json", "html"])
def test_dumps(format):
    f, feeds = training()
    f(feeds)
    assert "scan" in f.dump("optimized", format)
    test, x = leaf.placeholder((), "bool", "c"), leaf.placeholder((3,), "float64", "x")
    graph = Graph((test, x), tuple(branch(test, [x], [x * x], (), ())))
    assert "cond" in graphkb.dump(graph, "raw", format)


def test_files_keep_loops_and_branches():
    f, feeds = training()
    test = leaf.placeholder((), "bool", "c")
    with record() as made:
        then = f.definition.outputs[0] * 2
    outputs = (*f.definition.outputs, *branch(test, [then], [f.definition.outputs[0]], made, ()))
    graph = Graph((*f.inputs, test), outputs)
    for copy in (from_json(to_json(graph)), pickle.loads(pickle.dumps(graph)), from_json(to_json(optimize(graph)))):
        verify(copy)
        assert str(Graph(copy.inputs, copy.outputs, name="graph")).count("\n") > 10
        for a, b in zip(interpret(graph, [*feeds, np.asarray(True)]), interpret(copy, [*feeds, np.asarray(True)])):
            np.testing.assert_allclose(a, b, rtol=1e-12)
    assert to_json(from_json(to_json(graph))) == to_json(graph)


def test_a_file_with_a_wrong_loop_is_refused():
    f, _ = training()
    text = to_json(f.definition)
    document = json.loads(text)
    for row in document["graphs"][-1]["nodes"]:
        if row["op"] == "scan":
            row["attrs"]["states"] = 9
    with pytest.raises(GraphError, match="9 states and 1 sequences do not fit"):
        from_json(json.dumps(document))


def test_verify_looks_into_bodies():
    x, first, stray = placeholders([np.zeros((3, 4)), np.zeros(4), np.zeros(4)])
    s, row = leaf.placeholder((4,), "float64", "s"), leaf.placeholder((4,), "float64", "r")
    body = Graph((s, row), (s + row + stray,))
    attrs = {"body": body, "length": 3, "states": 1, "sequences": 1, "reverse": False}
    graph = Graph((x, first), (item(make(SCAN, (first, x), attrs), 0),))
    with pytest.raises(GraphError, match="this placeholder is needed but is not among the inputs"):
        verify(graph)


def test_functions_with_loops_are_freed():
    f, feeds = training()
    f(feeds)
    gone = [weakref.ref(f), weakref.ref(f.specialize().plan)]
    del f
    gc.collect()
    assert [r() for r in gone] == [None, None]


def test_passes_leave_graphs_without_bodies_alone():
    x = leaf.placeholder((3,), "float64", "x")
    graph = Graph((x,), (ew.exp(x),))
    names = {"merge_loops", "inline_bodies", "prune_loops", "optimize_bodies", "hoist_products"}
    assert all(step.apply(graph) is graph for step in PIPELINE if step.name in names)
    assert names <= {step.name for step in PIPELINE}
    assert count(graph, COND) == count(graph, ITEM) == 0
