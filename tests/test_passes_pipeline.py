"""The pipeline: what it makes of whole programs, its observers, its order, its cost."""

from __future__ import annotations

from collections import Counter
from dataclasses import FrozenInstanceError
from itertools import pairwise

import numpy as np
import pytest
from evaluate import atom_of, interpret

from graphkb.gradients import gradients
from graphkb.ir.dims import symbol
from graphkb.ir.errors import GraphError
from graphkb.ir.graph import Graph
from graphkb.ir.leaves import VariableCell
from graphkb.ir.node import Node, make
from graphkb.ir.origin import Origin, set_override
from graphkb.ir.text import format_graph
from graphkb.ir.types import TensorType
from graphkb.ops import elementwise as ew
from graphkb.ops import leaf, linalg
from graphkb.ops import reduce as rd
from graphkb.ops import shape as sh
from graphkb.passes.eliminate_dead import EliminateDead
from graphkb.passes.fold_constants import FoldConstants
from graphkb.passes.pipeline import PIPELINE, Timings, VerifyEach, graph_passes, observe, optimize
from graphkb.passes.prune_stop_gradient import PruneStopGradient
from graphkb.passes.simplify import Simplify
from graphkb.passes.stabilize import Stabilize
from graphkb.passes.verify import Verify


def _variable(shape: tuple[int, ...], name: str, seed: int = 0) -> Node:
    values = np.random.default_rng(seed).normal(0, 0.3, shape).astype(np.float32)
    return leaf.variable(VariableCell(values, name))


def dense_training() -> Graph:
    """One step of gradient descent on a classifier of two layers, with a batch of unknown size."""
    n = symbol("batch")
    x, t = leaf.placeholder((n, 8), "float32", "x"), leaf.placeholder((n, 3), "float32", "t")
    w1, b1 = _variable((8, 16), "w1", 1), _variable((16,), "b1", 2)
    w2, b2 = _variable((16, 3), "w2", 3), _variable((3,), "b2", 4)
    h = ew.relu(linalg.dot(x, w1, (), (), (1,), (0,)) + b1)
    z = linalg.dot(h, w2, (), (), (1,), (0,)) + b2
    e = ew.exp(z - ew.stop_gradient(rd.reduce(rd.MAX, z, (1,), True)))
    p = e / rd.reduce_sum(e, (1,), True)
    loss = rd.reduce_sum(-rd.reduce_sum(t * ew.log(p), (1,)), (0,)) / rd.count(t, (0,), "float32")
    parameters = [w1, b1, w2, b2]
    steps = [v - d * 0.1 for v, d in zip(parameters, gradients([loss], parameters))]
    return Graph((x, t), (loss,), tuple((v.attrs["cell"], s) for v, s in zip(parameters, steps)), "dense_training")


def layer_norm() -> Graph:
    """Layer normalization with scale and shift, and its gradient."""
    x = leaf.placeholder((symbol("batch"), 16), "float32", "x")
    scale, shift = _variable((16,), "scale", 1), _variable((16,), "shift", 2)
    count = rd.count(x, (1,), "float32")
    mean = rd.reduce_sum(x, (1,), True) / count
    variance = rd.reduce_sum(ew.square(x - mean), (1,), True) / count
    y = (x - mean) / ew.sqrt(variance + 1e-3) * scale + shift
    return Graph((x,), (y, *gradients([y], [x, scale, shift])), (), "layer_norm")


def logic() -> Graph:
    """Masks, casts and selections as recurrent layers write them."""
    x = leaf.placeholder((symbol("batch"), 5), "float32", "x")
    mask = ew.not_equal(ew.cast(ew.not_equal(x, 0), "float32"), 0)
    kept = ew.select(make(ew.not_, (mask,)), 0.0 * x, x) * ew.cast(mask, "float32")
    anything = rd.reduce(rd.ANY, make(ew.not_, (mask,)), (1,))
    return Graph((x,), (kept, anything, ew.select(mask, leaf.constant(True), leaf.constant(False))), (), "logic")


PROGRAMS = {"dense_training": dense_training, "layer_norm": layer_norm, "logic": logic}


def _dump(graph: Graph) -> str:
    return format_graph(graph, origins=False)


@pytest.mark.parametrize("name", PROGRAMS)
def test_golden(name, golden):
    graph = PROGRAMS[name]()
    stages = [f"## raw\n{_dump(graph)}"]

    def keep(step, before, after, seconds):
        if after is not before:
            stages.append(f"## {step.name}\n{_dump(after)}")

    optimized = optimize(graph, observer=keep)
    bound = optimize(optimized.bind({atom_of(graph.inputs[0].shape[0]): 4}))
    stages.append(f"## bound\n{_dump(bound)}")
    golden(f"passes_{name}.txt", "\n".join(stages))


@pytest.mark.parametrize("name", PROGRAMS)
@pytest.mark.parametrize("fastmath", [False, True])
def test_programs_keep_their_meaning(name, fastmath):
    graph = PROGRAMS[name]()
    rng = np.random.default_rng(5)
    bindings = {atom_of(graph.inputs[0].shape[0]): 6}
    feeds = [np.abs(rng.normal(size=(6, *x.shape[1:]))).astype(np.float32) for x in graph.inputs]
    optimized = optimize(graph, graph_passes(fastmath), VerifyEach())
    late = optimize(optimized.bind(bindings), graph_passes(fastmath), VerifyEach())
    expected = interpret(graph.bind(bindings), feeds)
    for a, b, c in zip(expected, interpret(optimized.bind(bindings), feeds), interpret(late, feeds)):
        np.testing.assert_allclose(b, a, rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(c, a, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("name", PROGRAMS)
def test_optimizing_twice_changes_nothing(name):
    once = optimize(PROGRAMS[name]())
    assert optimize(once) is once
    bound = optimize(once.bind({atom_of(once.inputs[0].shape[0]): 4}))
    assert optimize(bound) is bound


@pytest.mark.parametrize("name", PROGRAMS)
def test_every_node_keeps_a_line_of_the_program(name):
    graph = PROGRAMS[name]()
    lines = {node.origin.line for node in graph.nodes}
    for node in optimize(graph).nodes:
        if node.op.kind != "leaf":  # equal constants of all programs are one node
            assert node.origin.file == __file__
            assert node.origin.line in lines


def test_rewritten_nodes_carry_the_line_that_they_come_from():
    x = leaf.placeholder((symbol("n"), 3), "float32", "x")
    previous = set_override(Origin("train.py", 35, "loss"))
    try:
        y = ew.log(1 + ew.exp(x))
    finally:
        set_override(previous)
    (out,) = optimize(Graph((x,), (ew.tanh(y),))).outputs
    assert out.inputs[0].op.name == "softplus"
    assert out.inputs[0].origin.short == "loss train.py:35"


def test_passes_are_frozen_and_named():
    names = [step.name for step in PIPELINE]
    assert names == [
        "verify",
        "prune_stop_gradient",
        "merge_loops",
        "fold_constants",
        "inline_bodies",
        "simplify",
        "crop_convolutions",
        "stabilize",
        "share_joins",
        "eliminate_dead",
        "prune_loops",
        "optimize_bodies",
        "hoist_products",
        "prune_loops",
        "verify",
    ]
    assert Simplify() == Simplify(fastmath=False) != Simplify(fastmath=True)
    with pytest.raises(FrozenInstanceError):
        Simplify().fastmath = True


def test_observers_see_every_pass():
    timings = Timings()
    seen = []

    def look(step, before, after, seconds):
        seen.append((step.name, before, after))
        assert seconds >= 0

    graph = dense_training()
    optimized = optimize(graph, observer=observe(timings, look, VerifyEach()))
    assert [name for name, *_ in seen] == [step.name for step in PIPELINE]
    assert seen[0][1] is graph
    assert seen[-1][2] is optimized
    assert all(a[2] is b[1] for a, b in pairwise(seen))
    assert [row[0] for row in timings.rows] == [step.name for step in PIPELINE]
    assert timings.rows[0][1] == len(graph.nodes)
    assert timings.rows[-1][2] == len(optimized.nodes)
    assert str(timings).splitlines()[-1].startswith("total")


class _Breaking:
    name = "breaking"

    def apply(self, graph: Graph) -> Graph:
        wrong = make(ew.tanh_, (graph.outputs[0],), type=TensorType("float32", (99,)))
        return graph.with_roots([wrong])


def test_verify_each_names_the_pass_at_fault():
    x = leaf.placeholder((3,), "float32", "x")
    with pytest.raises(GraphError, match="the type should be") as caught:
        optimize(Graph((x,), (ew.exp(x),)), (Verify(), _Breaking(), Simplify()), VerifyEach())
    assert caught.value.__notes__[0] == "after the pass breaking"


def test_error_of_a_pass_says_which_pass():
    x, y = leaf.placeholder((3,), "float32", "x"), leaf.placeholder((3,), "float32", "y")
    with pytest.raises(GraphError, match="not among the inputs") as caught:
        optimize(Graph((x,), (x + y,), name="step"))
    assert caught.value.__notes__ == ["while running the pass verify on step"]


# ---------------------------------------------------------------------------------------------- single passes
def test_prune_stop_gradient():
    x = leaf.placeholder((3,), "float32", "x")
    graph = PruneStopGradient().apply(Graph((x,), (ew.stop_gradient(ew.exp(ew.stop_gradient(x))),)))
    assert graph.outputs == (ew.exp(x),)


def test_fold_constants_keeps_a_budget():
    vector = leaf.constant(np.arange(8.0))
    square = linalg.dot(vector, vector, (), (), (), ())
    large = rd.cumsum(sh.reshape(leaf.constant(np.arange(20_000.0)), (200, 100)), 0)
    repeated = sh.broadcast_to(leaf.constant(1.5), (1000, 1000))
    out = FoldConstants().apply(Graph((), (square, large, repeated))).outputs
    assert out[0].op is leaf.CONSTANT
    np.testing.assert_array_equal(leaf.constant_value(out[0]), np.outer(np.arange(8.0), np.arange(8.0)))
    assert out[1].op is rd.CUMSUM
    assert out[2] is repeated


def test_sizes_are_folded_once_they_are_known():
    n = symbol("n")
    x = leaf.placeholder((n,), "float32", "x")
    graph = optimize(Graph((x,), (rd.reduce_sum(x, (0,)) / rd.count(x, (0,), "float32"),)))
    assert any(node.op is leaf.SIZE for node in graph.nodes)
    bound = optimize(graph.bind({atom_of(n): 4}))
    y = bound.inputs[0]
    assert bound.outputs == (rd.reduce_sum(y, (0,)) * 0.25,)


def test_variables_are_never_folded_and_updates_are_kept():
    v = _variable((3,), "v")
    cell = v.attrs["cell"]
    graph = Graph((), (v * 1,), ((cell, v + v * 0.5),))
    out = optimize(graph)
    assert out.outputs == (v,)
    assert out.updates == ((cell, v + v * 0.5),)


def test_update_with_the_old_value_is_dropped():
    v, w = _variable((3,), "v"), _variable((3,), "w")
    graph = Graph((), (), ((v.attrs["cell"], v * 1), (w.attrs["cell"], v)))
    assert optimize(graph).updates == ((w.attrs["cell"], v),)


def test_operands_that_lend_their_shape_are_not_computed():
    n, m = symbol("n"), symbol("m")
    x, y = leaf.placeholder((n,), "float32", "x"), leaf.placeholder((m,), "float32", "y")
    (g,) = gradients([ew.tanh(x) * ew.exp(y)], [x])
    written, graph = Graph((x, y), (g,)), EliminateDead().apply(Graph((x, y), (g,)))
    reduction = next(node for node in graph.nodes if node.op is ew.UNBROADCAST)
    assert reduction.inputs[1] is sh.broadcast_to(leaf.constant(0, "float32"), (n,))
    feeds = [np.array([0.5], np.float32), np.array([1, 2, 3], np.float32)]
    bindings = {atom_of(n): 1, atom_of(m): 3}
    np.testing.assert_array_equal(
        interpret(graph.bind(bindings), feeds)[0], interpret(written.bind(bindings), feeds)[0]
    )


def test_fastmath_is_asked_for():
    x = leaf.placeholder((3,), "float32", "x")
    graph = Graph((x,), ((x + 0.0) / 3,))
    assert optimize(graph) is graph
    assert optimize(graph, graph_passes(fastmath=True)).outputs == (x * np.float32(1 / 3),)
    assert Stabilize(True).apply(graph).outputs == (x * np.float32(1 / 3),)


def test_deep_chains_pass_without_recursion():
    x = y = leaf.placeholder((symbol("n"), 4), "float32", "x")
    steps = (ew.tanh, lambda y: y * 1.5, lambda y: y + x, lambda y: y * 1, lambda y: -y)
    for i in range(30_000):
        y = steps[i % 5](y)
    graph = optimize(Graph((x,), (y,)), observer=VerifyEach())
    counts = Counter(node.op.name for node in graph.nodes)
    assert counts == {"placeholder": 1, "constant": 1, "tanh": 6000, "mul": 6000, "add": 6000, "neg": 6000}
