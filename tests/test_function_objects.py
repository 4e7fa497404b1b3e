"""Functions as objects: text, options, lifetime, pickling and copying, and graphs of any size."""

from __future__ import annotations

import copy
import gc
import pickle
import tracemalloc
import weakref

import numpy as np
import pytest
from function_tools import MODES, batch_function, ones, state

from graphkb.gradients import gradients
from graphkb.ir.dims import Expr, symbol
from graphkb.ir.errors import GraphError
from graphkb.ir.graph import Graph
from graphkb.ir.leaves import VariableCell
from graphkb.ir.node import Node
from graphkb.ops import elementwise as ew
from graphkb.ops import leaf, linalg, reduce, shape
from graphkb.runtime.function import Function
from graphkb.runtime.options import Options


def test_properties_and_text() -> None:
    f = batch_function()
    assert f.name == "step"
    assert [node.attrs["key"].name for node in f.inputs] == ["x", "y"]
    assert len(f.outputs) == 1
    assert [cell.name for cell, _ in f.updates] == ["w"]
    assert f.definition.name == "step"
    assert repr(f) == (
        "<Function step: (x: float32[batch, 4], y: float32[batch, 4]) -> (float32[batch, 4]), updates w>"
    )
    assert callable(f)


def test_options_are_those_of_the_making() -> None:
    x = leaf.placeholder((2,), "float32", "x")
    graph = Graph((x,), (x + 1,))
    assert Function(graph, options=Options(cache_size=7)).options == Options(cache_size=7)
    assert Function(graph, options={"mode": "interpret"}).options.mode == "interpret"


def test_weak_references() -> None:
    f = batch_function()
    ref = weakref.ref(f)
    f([ones(3, 4), ones(3, 4)])
    gc.disable()
    try:
        del f
        assert ref() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("mode", MODES)
def test_the_callable_outlives_its_function(mode: str) -> None:
    call = batch_function(mode).__call__
    for n in (3, 3, 2, 3):
        assert call([ones(n, 4), ones(n, 4)])[0].tolist() == (2 * ones(n, 4)).tolist()


def test_interpreted_functions_leave_no_garbage() -> None:
    def use() -> None:
        f = batch_function("interpret")
        f([ones(3, 4), ones(3, 4)])
        f([ones(3, 4), ones(3, 4)])

    use()
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            use()
        assert gc.collect() == 0
    finally:
        gc.enable()


@pytest.mark.parametrize("mode", MODES)
def test_nothing_of_a_dropped_function_waits_for_the_collector(mode: str) -> None:
    gc.disable()
    try:
        f = batch_function(mode)
        f([ones(3, 4), ones(3, 4)])
        f([ones(3, 4), ones(3, 4)])
        made = f.specialize()
        refs = [weakref.ref(f), weakref.ref(made), weakref.ref(made.plan), weakref.ref(f.updates[0][0])]
        del f, made
        assert [ref() for ref in refs] == [None] * 4
    finally:
        gc.enable()


def test_memory_stays_flat() -> None:
    def use(count: int) -> None:
        for _ in range(count):
            f = batch_function("interpret")
            f([ones(3, 4), ones(3, 4)])

    tracemalloc.start()
    try:
        use(300)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        use(1000)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 50_000


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_pickle(mode: str, protocol: int) -> None:
    f = batch_function(mode)
    f([ones(3, 4), ones(3, 4)])
    cell = f.updates[0][0]
    g, other = pickle.loads(pickle.dumps((f, cell), protocol))
    assert g.name == "step"
    assert repr(g) == repr(f)
    assert g([ones(2, 4), ones(2, 4)])[0].tolist() == (2 * ones(2, 4)).tolist()
    assert other.array.tolist() == [2, 2]
    assert g.updates[0][0] is other
    assert cell.array.tolist() == [1, 1]


def test_pickled_functions_share_their_variables() -> None:
    cell = VariableCell(np.zeros(2, np.float32), "w")
    w = leaf.variable(cell)
    step, show = Function(Graph((), (), ((cell, w + 1),))), Function(Graph((), (w,)))
    step2, show2 = pickle.loads(pickle.dumps([step, show]))
    step2([])
    assert (show2([])[0].tolist(), show([])[0].tolist()) == ([1, 1], [0, 0])


def test_copies() -> None:
    """A copy works on the same variables, a deep copy on copies of them."""
    f = batch_function()
    shallow, deep = copy.copy(f), copy.deepcopy(f)
    x = [ones(3, 4), ones(3, 4)]
    f(x)
    shallow(x)
    deep(x)
    assert (state(f), state(shallow), state(deep)) == ([[2, 2]], [[2, 2]], [[1, 1]])
    cells = {"w": f.updates[0][0], "f": f}
    copied = copy.deepcopy(cells)
    assert copied["f"].updates[0][0] is copied["w"]


# ---------------------------------------------------------------------------------------------- size
def deep_chain(x: Node, length: int) -> Node:
    for i in range(length):
        x = x * 0.9999 if i % 2 else x + 0.001
    return x


def test_deep_graphs() -> None:
    """100,000 nodes in a chain: built, differentiated, run, printed, pickled and freed."""
    x = leaf.placeholder((symbol("n"),), "float64", "x")
    y = deep_chain(x, 100_000)
    (grad,) = gradients([y], [x])
    assert grad is not None
    f = Function(Graph((x,), (y, grad), (), "deep"), options={"mode": "interpret"})
    value, slope = f([np.array([1.0, 2.0])])
    np.testing.assert_allclose(slope, 0.9999**50_000, rtol=1e-9)
    expected = 1.0
    for _ in range(50_000):
        expected = (expected + 0.001) * 0.9999
    np.testing.assert_allclose(value[0], expected, rtol=1e-12)
    assert str(f.definition).count("\n") > 100_000
    again = pickle.loads(pickle.dumps(f))
    assert again.outputs[0].op is y.op
    assert len(again.definition.nodes) == len(f.definition.nodes)


def test_many_inputs_and_outputs() -> None:
    nodes = [leaf.placeholder((symbol("n"),), "float32", f"x{i}") for i in range(2000)]
    f = Function(Graph(tuple(nodes), tuple(node + 1 for node in nodes)))
    got = f([np.full(i % 3, i) for i in range(2000)])
    assert all(g.shape == (i % 3,) and (g == i + 1).all() for i, g in enumerate(got))


def test_a_training_step_learns() -> None:
    """Least squares by gradient descent over an unknown batch, against the closed form."""
    rng = np.random.default_rng(0)
    data, truth = rng.normal(size=(64, 3)), np.array([[1.0], [-2.0], [0.5]])
    target = data @ truth
    n = symbol("n")
    x, t = leaf.placeholder((n, 3), "float64", "x"), leaf.placeholder((n, 1), "float64", "t")
    cell = VariableCell(np.zeros((3, 1)), "w")
    w = leaf.variable(cell)
    error = linalg.dot(x, w, (), (), (1,), (0,)) - t
    loss = reduce.reduce_sum(ew.square(error), (0, 1)) / ew.cast(leaf.size(n), "float64")
    (grad,) = gradients([loss], [w])
    assert grad is not None
    step = Function(Graph((x, t), (loss,), ((cell, w - grad * 0.1),), "step"))
    losses = [step([data, target])[0].item() for _ in range(200)]
    assert losses[0] == pytest.approx(float((target**2).mean()))
    assert losses[-1] < 1e-12
    np.testing.assert_allclose(cell.array, truth, atol=1e-6)
    assert isinstance(n, Expr)
    assert shape.reshape(x, (n * 3,)).type.ndim == 1


def test_debug_checks_after_every_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that leaves a broken graph behind is named."""
    from graphkb.passes import pipeline

    class Break:
        name = "break"

        def apply(self, graph: Graph) -> Graph:
            return graph.with_roots([leaf.placeholder((3, 4), "float32", "stray")] * len(graph.roots))

    passes = pipeline.graph_passes
    monkeypatch.setattr(pipeline, "graph_passes", lambda fastmath: (*passes(fastmath), Break()))
    f = batch_function("interpret", debug=True)
    with pytest.raises(GraphError, match="this placeholder is needed but is not among the inputs") as caught:
        f([ones(3, 4), ones(3, 4)])
    assert "called with x: (3, 4), y: (3, 4)" in str(caught.value)


def test_a_target_that_this_machine_lacks_is_refused() -> None:
    pytest.importorskip("llvmlite")
    f = batch_function(target="wasm32")
    with pytest.raises(ValueError, match=r"target wasm32: this machine is .* and cannot run it"):
        f([ones(3, 4), ones(3, 4)])
    assert state(f) == [[0, 0]]


def test_a_lower_level_of_this_machine() -> None:
    pytest.importorskip("llvmlite")
    from graphkb.codegen.target import host_target

    if not host_target("host").is_x86:
        pytest.skip("levels are those of x86-64")
    f = batch_function(target="x86-64")
    assert f([ones(3, 4), ones(3, 4)])[0].tolist() == (2 * ones(3, 4)).tolist()
    assert f.report().native
