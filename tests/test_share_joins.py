"""Long concatenations read shorter ones of the same graph, and only those that are there anyway."""

import numpy as np
import pytest

from graphkb import backend as K
from graphkb import options
from graphkb.ir.graph import Graph
from graphkb.ops.shape import CONCATENATE
from graphkb.passes.pipeline import optimize
from graphkb.passes.share_joins import MOST
from graphkb.runtime.interpreter import evaluate


def layers(count, newest_first=False):
    """Each layer joins its result to those of all layers before; the sums read every one of the joins."""
    x = K.variable(np.arange(6.0).reshape(2, 3))
    joined, sums = x, []
    for number in range(1, count):
        new = K.tanh(x + number)
        joined = K.concatenate([new, joined] if newest_first else [joined, new])
        sums.append(K.sum(K.square(joined)))
    return joined, sums


def joins_of(*tensors):
    graph = optimize(Graph((), tuple([each.node for each in tensors])))
    return [node for node in graph.nodes if node.op is CONCATENATE]


@pytest.mark.parametrize("newest_first", [False, True])
def test_layers_joined_to_all_before_have_few_operands_each(newest_first):
    joined, sums = layers(20, newest_first)
    joins = joins_of(joined, *sums)
    assert len(joins) == 19
    assert max(len(node.inputs) for node in joins) <= MOST
    assert {node.shape[1] for node in joins} == set(range(6, 61, 3))


@pytest.mark.parametrize("newest_first", [False, True])
@pytest.mark.parametrize("mode", ["native", "interpret"])
def test_values_stay(newest_first, mode):
    joined, sums = layers(13, newest_first)
    with options(mode=mode):
        results = K.function([], [joined, *sums])([])
    expected = evaluate([joined.node, *[each.node for each in sums]])
    for got, want in zip(results, expected, strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6)


def test_a_chain_that_nobody_else_reads_is_one_join():
    joined, _ = layers(20)
    (join,) = joins_of(joined)
    assert len(join.inputs) == 20


def test_a_shorter_join_that_is_written_later_is_read():
    x = K.variable(np.ones((2, 3)))
    parts = [K.tanh(x + number) for number in range(MOST + 3)]
    whole, begin = K.concatenate(parts), K.concatenate(parts[:-1])
    joins = joins_of(whole, begin)
    assert [len(node.inputs) for node in joins] == [MOST + 2, 2]
    assert joins[1].inputs[0] is joins[0]
