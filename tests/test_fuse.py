"""Tests of fusion: which nodes share a kernel."""

from __future__ import annotations

import numpy as np
import pytest

from graphkb.ir.dims import symbol
from graphkb.ir.graph import Graph
from graphkb.ir.node import Node
from graphkb.ir.verify import verify
from graphkb.ops import conv, index, linalg, reduce, shape, window
from graphkb.ops import elementwise as e
from graphkb.ops.leaf import constant, iota, placeholder, size
from graphkb.ops.values import print_
from graphkb.passes.fuse import Fuse


def x_(*dims: int, name: str = "x", dtype: str = "float32") -> Node:
    return placeholder(dims, dtype, name)


def kernels(*outputs: Node) -> list[list[str]]:
    """The ops of each kernel, leaves aside; a node that no kernel holds stands by itself in parentheses."""
    inputs = tuple(n for n in Graph((), outputs).nodes if n.op.name == "placeholder")
    fused = Fuse().apply(Graph(inputs, outputs))
    verify(fused)
    found = []
    for node in fused.nodes:
        if node.op.kind == "fused":
            found.append([n.op.name for n in node.attrs["body"].nodes if n.op.kind != "leaf"])
        elif node.op.kind != "leaf" and node.op.name != "item":
            found.append([f"({node.op.name})"])
    return found


def dot(a: Node, b: Node) -> Node:
    return linalg.dot(a, b, (), (), (1,), (0,))


def softmax(x: Node) -> Node:
    ex = e.exp(x - reduce.reduce(reduce.MAX, x, (x.ndim - 1,), True))
    return ex / reduce.reduce_sum(ex, (x.ndim - 1,), True)


def test_an_element_wise_chain_is_one_kernel() -> None:
    x = x_(4, 5)
    assert kernels(e.tanh(x * 2 + 1) - x) == [["mul", "add", "tanh", "sub"]]


def test_a_value_that_two_kernels_need_is_stored_when_it_is_costly() -> None:
    x = x_(4, 5)
    t = e.tanh(x)
    assert kernels(t + 1, shape.transpose(t, (1, 0)) + 1) == [["tanh", "add"], ["transpose", "add"]]


def test_a_cheap_value_is_computed_twice() -> None:
    x, y = x_(4, 5), x_(5, 4, name="y")
    t = x + 1
    assert kernels(e.tanh(t), y * shape.transpose(t, (1, 0))) == [["add", "tanh"], ["add", "transpose", "mul"]]


def test_a_costly_value_is_not_computed_for_every_row() -> None:
    x, b = x_(4, 5), x_(5, name="b")
    assert kernels(x + e.exp(b)) == [["exp"], ["add"]]
    assert kernels(x + b * 2) == [["mul", "add"]]


def test_a_scalar_is_computed_inside() -> None:
    x, s = x_(4, 5), x_(name="s")
    assert kernels(x * e.exp(s)) == [["exp", "mul"]]


def test_views_join() -> None:
    x = x_(4, 5)
    moved = shape.broadcast_to(shape.expand_dims(shape.transpose(x, (1, 0)), 0), (3, 5, 4))
    assert kernels(e.relu(shape.slice_(moved, (0, 1, 0), (3, 2, 4)))) == [
        ["transpose", "reshape", "broadcast_to", "slice", "relu"]
    ]


def test_a_reshape_that_moves_elements_is_memory_by_another_name() -> None:
    x = x_(4, 6)
    assert kernels(e.exp(shape.reshape(x * 2, (3, 8)))) == [["mul"], ["(reshape)"], ["exp"]]
    assert kernels(shape.reshape(x, (24,))) == [["(reshape)"]]


def test_a_reduction_takes_in_its_operand_and_what_follows() -> None:
    x = x_(4, 5)
    assert kernels(e.sqrt(reduce.reduce_sum(x * x, (0,)) / 3)) == [["mul", "sum", "div", "sqrt"]]


def test_two_reductions_over_different_axes_are_two_kernels() -> None:
    x = x_(4, 5)
    assert kernels(reduce.reduce_sum(reduce.reduce(reduce.MAX, x, (1,)), (0,))) == [["max"], ["sum"]]


def test_softmax_is_one_kernel() -> None:
    assert kernels(softmax(x_(4, 5))) == [["max", "sub", "exp", "sum", "div"]]
    assert kernels(softmax(x_(5))) == [["max", "sub", "exp", "sum", "div"]]
    assert kernels(softmax(placeholder((symbol("n"), 5), "float32", "x"))) == [["max", "sub", "exp", "sum", "div"]]


def test_the_loss_of_a_softmax_is_one_kernel_per_row() -> None:
    x, y = x_(4, 5), x_(4, 5, name="y")
    (ops,) = kernels(-reduce.reduce_sum(y * e.log(softmax(x)), (1,)))
    assert ops.count("sum") == 2
    assert ops.count("max") == 1


def test_sums_that_do_not_number_rows_stay_apart() -> None:
    x = x_(6, 6)
    sums = reduce.reduce_sum(x, (1,))
    # Here the sums of rows divide columns.
    assert kernels(x / sums) == [["sum"], ["div"]]
    assert kernels(x / shape.transpose(reduce.reduce_sum(x, (1,), True), (1, 0))) == [["sum"], ["transpose", "div"]]


def test_very_long_rows_are_reduced_one_after_the_other() -> None:
    assert len(kernels(softmax(x_(2, 100_000)))) > 1


def test_a_product_takes_in_what_follows_and_its_first_operand() -> None:
    x, w, b = x_(4, 5), x_(5, 6, name="w"), x_(6, name="b")
    assert kernels(e.relu(dot(x * 2, w) + b)) == [["mul", "dot", "add", "relu"]]
    assert kernels(dot(x, e.exp(w))) == [["exp"], ["dot"]]


def test_a_convolution_takes_in_what_follows_but_not_its_operands() -> None:
    x, w, b = x_(1, 6, 6, 3), x_(3, 3, 3, 8, name="w"), x_(8, name="b")
    y = e.relu(conv.conv(x * 2, w, (1, 1), (1, 1)) + b)
    assert kernels(y) == [["mul"], ["conv", "add", "relu"]]
    assert kernels(conv.conv(x, e.tanh(w), (1, 1), (1, 1))) == [["tanh"], ["conv"]]


def test_windows_take_in_cheap_work_and_what_follows() -> None:
    x = x_(1, 6, 6, 3)
    sizes = (1, 2, 2, 1)
    assert kernels(e.tanh(window.window_max(e.relu(x), sizes, sizes))) == [["relu", "window_max", "tanh"]]
    # Overlapping windows would compute what costs more several times.
    assert kernels(window.window_sum(e.exp(x), sizes, (1, 1, 1, 1))) == [["exp"], ["window_sum"]]
    assert kernels(window.window_sum(window.window_max(x, sizes, sizes), sizes, sizes)) == [
        ["window_max"],
        ["window_sum"],
    ]


def test_windows_read_through_padding_of_known_sizes() -> None:
    x, w = x_(1, 6, 6, 16), x_(3, 3, 16, 1, 1, name="w")
    padded = shape.pad(e.exp(x), (0, 1, 1, 0), (1, 1, 1, 1), (1, 8, 8, 16))
    grouped = conv.conv(shape.expand_dims(padded, 4), w, (1, 1), (1, 1))
    assert kernels(grouped) == [["exp"], ["pad", "reshape", "conv"]]
    pooled = window.window_max(padded, (1, 3, 3, 1), (1, 2, 2, 1))
    assert kernels(pooled) == [["exp"], ["pad", "window_max"]]
    # Elements that lie apart, and what others read too, are copied.
    apart = shape.pad(x, (0, 1, 1, 0), (1, 2, 2, 1), (1, 13, 13, 16))
    assert kernels(window.window_max(apart, (1, 3, 3, 1), (1, 2, 2, 1))) == [["pad"], ["window_max"]]
    assert ["exp", "pad"] in kernels(pooled, padded * 2)


def test_a_residual_stands_in_memory() -> None:
    x, w = x_(5, 5), x_(5, 5, name="w")
    h = e.tanh(x)
    assert kernels(dot(h, w) + h) == [["tanh"], ["dot", "add"]]


def test_two_products_are_two_kernels() -> None:
    x, w = x_(5, 5), x_(5, 5, name="w")
    assert kernels(dot(x, w) + dot(w, x)) == [["dot"], ["dot", "add"]]


def test_pad_and_concatenate_begin_kernels() -> None:
    x = x_(4, 5)
    assert kernels(shape.pad(x * 2, (1, 1), (1, 1), (6, 7)) + 1) == [["mul", "pad"], ["add"]]
    assert kernels(shape.concatenate([x * 2, e.exp(x)], 1)) == [["mul", "exp", "concatenate"]]


def test_counting_vectors_and_sizes_are_computed_inside() -> None:
    x = x_(4, 5)
    assert kernels(x * e.cast(iota(5), "float32") / size(5, "float32")) == [["cast", "mul", "div"]]


def test_a_gather_reads_memory_and_takes_in_its_indices_and_what_follows() -> None:
    x, i = x_(4, 5), x_(3, name="i", dtype="int32")
    check = ["cast", "greater_equal", "any"]
    assert kernels(e.exp(index.gather(x * 2, i))) == [check, ["mul"], ["guard", "gather", "exp"]]
    largest = e.maximum(i, 1)
    assert kernels(reduce.reduce_sum(index.gather(x, largest), (1,))) == [
        ["maximum", *check],
        ["maximum", "guard", "gather", "sum"],
    ]


def test_indices_that_are_known_to_fit_need_no_check() -> None:
    x = x_(4, 5)
    assert kernels(index.gather(x, constant(np.array([3, 0])))) == [["gather"]]
    assert len(kernels(index.gather(x, constant(np.array([4, 0]))))) == 2


def test_running_sums_and_scatters_begin_kernels() -> None:
    x = x_(4, 5)
    assert kernels(e.exp(reduce.cumsum(x * 2, 1))) == [["mul", "cumsum"], ["exp"]]
    places = constant(np.array([3, 0, 3, 1]))
    assert kernels(index.scatter_add(x * 2, places, 0, (6, 5)) + 1) == [["mul", "scatter_add"], ["add"]]


def test_what_has_no_kernel_stays() -> None:
    x = x_(4, 5)
    stays = print_(x * 2, "x")
    assert kernels(e.exp(stays)) == [["mul"], ["(print)"], ["exp"]]


@pytest.mark.parametrize("count", [1, 48, 49, 1000])
def test_kernels_are_no_longer_than_allowed(count: int) -> None:
    y = x = x_(3)
    for i in range(count):
        y = y + x * (i + 2)
    found = kernels(y)
    assert all(len(ops) <= 2 * Fuse().most_nodes for ops in found)
    assert sum(ops.count("add") for ops in found) == count


def test_outputs_that_feed_kernels_are_stored_once() -> None:
    x = x_(4, 5)
    t = x + 1
    assert kernels(t, e.exp(t)) == [["add", "exp"]]


def test_each_part_of_padding_and_joins_may_hold_a_product() -> None:
    x, w = x_(2, 5, 4, 3), x_(2, 2, 3, 6, name="w")
    y = conv.conv(x, w, (1, 1), (1, 1))
    padded = shape.pad(e.relu(y), (0, 1, 1, 0), (1, 1, 1, 1), (2, 6, 5, 6))
    assert kernels(padded) == [["conv", "relu", "pad"]]
    a, b = x_(4, 5, name="a"), x_(5, 3, name="b")
    joined = shape.concatenate([e.tanh(dot(a, b)), dot(a * 2, b) + 1], 1)
    assert kernels(joined) == [["dot", "tanh", "mul", "dot", "add", "concatenate"]]
    # One that two parts need is stored.
    both = shape.concatenate([e.tanh(dot(a, b)), dot(a, b) + 1], 1)
    assert kernels(both) == [["dot"], ["tanh", "add", "concatenate"]]


def test_products_read_through_slices() -> None:
    x, w = x_(6, 5), x_(4, 3, name="w")
    t = e.tanh(x)
    assert kernels(dot(shape.slice_(t, (1, 0), (3, 4)), w)) == [["tanh"], ["slice", "dot"]]
    # Every other column would have to be gathered again and again.
    columns = shape.slice_(x_(6, 8), (0, 0), (6, 4), (1, 2))
    assert kernels(dot(columns, w)) == [["slice"], ["dot"]]


def test_many_channels_are_turned_over_by_a_kernel_of_their_own() -> None:
    x, w = x_(2, 5, 4, 3), x_(2, 2, 3, 32, name="w")
    y = shape.transpose(conv.conv(x, w, (1, 1), (1, 1)), (0, 3, 1, 2))
    assert kernels(e.relu(y)) == [["conv"], ["transpose", "relu"]]
    few = shape.transpose(conv.conv(x, x_(2, 2, 3, 1, name="v"), (1, 1), (1, 1)), (0, 3, 1, 2))
    assert kernels(e.relu(few)) == [["conv", "transpose", "relu"]]


def test_the_seed_of_a_draw_is_no_part_of_the_code() -> None:
    """Programs draw other seeds in every process; the kernels that the cache keeps serve all of them."""
    from graphkb.codegen.kernels import Kernels
    from graphkb.codegen.target import TARGETS
    from graphkb.ops.random import Draw

    made = Kernels(next(iter(TARGETS.values())))
    for seed in (3, 5):
        draw = Draw((64,), seed, "draw")
        graph = Fuse().apply(Graph((), (draw.uniform("float32") * 2,)))
        (node,) = [n for n in graph.nodes if n.op.kind == "fused"]
        assert any(n.op.name == "constant" for n in node.inputs)
        made.of(node)
    assert len(made.by_signature) == 1
