"""The rewriting driver: fixed points, provenance, the checks on rules, and cost."""

from __future__ import annotations

import pytest

from graphkb.ir.dims import symbol
from graphkb.ir.errors import GraphError
from graphkb.ir.graph import Graph
from graphkb.ir.node import Node, make
from graphkb.ir.origin import name_scope
from graphkb.ops import elementwise as ew
from graphkb.ops import leaf
from graphkb.ops import reduce as rd
from graphkb.ops import shape as sh
from graphkb.passes.rewrite import of_kind, rewrite, rewrite_graph, rule
from graphkb.passes.rules_algebra import ALGEBRA
from graphkb.passes.simplify import SIMPLIFY, Simplify


def _x(dtype: str = "float32", shape: tuple = (3, 4)) -> Node:
    return leaf.placeholder(shape, dtype, "x")


@rule("exp")
def exp_to_log(node: Node) -> Node | None:
    """exp(x) -> log(x)"""
    return ew.log(node.inputs[0])


@rule("log")
def log_to_exp(node: Node) -> Node | None:
    """log(x) -> exp(x)"""
    return ew.exp(node.inputs[0])


@rule("exp")
def exp_inside(node: Node) -> Node | None:
    """exp(x) -> exp(-x)"""
    return ew.exp(-node.inputs[0])


@rule("exp")
def exp_around(node: Node) -> Node | None:
    """exp(x) -> neg(exp(x))"""
    return -node


@rule("exp")
def exp_to_scalar(node: Node) -> Node | None:
    """exp(x) -> 1"""
    return leaf.constant(1, node.dtype)


@rule("exp")
def exp_to_sin(node: Node) -> Node | None:
    """exp(x) -> sin(x)"""
    return ew.sin(node.inputs[0])


@rule("sin")
def sin_to_cos(node: Node) -> Node | None:
    """sin(x) -> cos(x)"""
    return ew.cos(node.inputs[0])


def test_rewrites_to_a_fixed_point_through_several_rules():
    x = _x()
    assert rewrite(ew.exp(ew.exp(x)) + x, (sin_to_cos, exp_to_sin)) is ew.cos(ew.cos(x)) + x


def test_first_rule_of_the_list_wins():
    x = _x()
    assert rewrite(ew.exp(x), (exp_to_sin, exp_to_log)) is ew.sin(x)
    assert rewrite(ew.exp(x), (exp_to_log, exp_to_sin)) is ew.log(x)


def test_rule_that_changes_the_type_is_named():
    with pytest.raises(GraphError, match=r"rule exp_to_scalar \(exp\(x\) -> 1\) gave .* must keep the type"):
        rewrite(ew.exp(_x()), (exp_to_scalar,))


@pytest.mark.parametrize("rules", [(exp_to_log, log_to_exp), (exp_around,)])
def test_circle_is_an_error(rules):
    with pytest.raises(GraphError, match="round in a circle"):
        rewrite(ew.exp(_x()), rules)


def test_endless_growth_is_an_error():
    with pytest.raises(GraphError, match="do not come to an end; the last one was exp_inside"):
        rewrite(ew.exp(_x()), (exp_inside,))


def test_unknown_op_name_is_an_error():
    with pytest.raises(KeyError, match="mull"):
        rule("mull")


def test_rule_needs_its_algebra():
    def bare(node: Node) -> Node | None:
        return None

    with pytest.raises(AssertionError, match="bare must state its algebra"):
        rule("exp")(bare)


def test_of_kind_names_ops():
    names = of_kind("elementwise")
    assert "tanh" in names
    assert "reshape" not in names


def test_unchanged_graph_is_the_same_object():
    x = _x()
    graph = Graph((x,), (ew.tanh(x) * 2.0,))
    assert rewrite_graph(graph, SIMPLIFY) is graph


def test_new_nodes_carry_the_line_of_the_node_that_they_replace():
    x = _x()
    with name_scope("net"):
        y = ew.exp(x)
    line = y.origin.line
    made = rewrite_graph(Graph((x,), (ew.tanh(y),)), (exp_to_sin, sin_to_cos)).outputs[0]
    assert made.op.name == "tanh"
    assert made.inputs[0].op.name == "cos"
    assert (made.inputs[0].origin.line, made.inputs[0].origin.scope) == (line, "net")
    assert made.origin.line == line + 2


def test_commuted_twins_become_one_node():
    x, y = _x(), _x()
    a, b = Graph((x, y), (ew.tanh(x * y), ew.tanh(y * x))), (x * y, y * x)
    assert b[0] is not b[1]
    out = rewrite_graph(a, ALGEBRA, share=True).outputs
    assert out[0] is out[1] is ew.tanh(x * y)


def test_float_extrema_keep_their_order():
    x, y = _x(), _x()
    graph = Graph((x, y), (ew.maximum(x, y), ew.maximum(y, x)))
    assert rewrite_graph(graph, ALGEBRA, share=True) is graph
    i, j = _x("int8"), _x("int8")
    out = rewrite_graph(Graph((i, j), (ew.maximum(i, j), ew.maximum(j, i))), ALGEBRA, share=True).outputs
    assert out[0] is out[1]


@pytest.mark.parametrize("first", [False, True])
def test_reductions_with_and_without_keepdims_become_one(first):
    x = _x()
    a, b = rd.reduce_sum(x, (1,), first), rd.reduce_sum(x, (1,), not first)
    out = rewrite_graph(Graph((x,), (a, b)), ALGEBRA, share=True).outputs
    assert out == (a, sh.reshape(a, b.shape))


def test_mean_and_its_keepdims_form_share_what_follows():
    x = _x()
    flat, kept = (rd.reduce_sum(x, (0,), keepdims) * 0.3 for keepdims in (False, True))
    out = Simplify().apply(Graph((x,), (x - flat, x - kept))).outputs
    assert out == (x - flat, x - flat)


def test_placeholders_stay_even_where_nothing_reads_them():
    x, y = _x("int32"), _x("int32")
    out = rewrite_graph(Graph((x, y), (x + (y - y),)), SIMPLIFY)
    assert out.inputs == (x, y)
    assert out.outputs == (x,)


@pytest.mark.parametrize("build", [lambda y, i: y * 1, lambda y, i: -y if i % 2 else 3 - y, lambda y, i: y + (i % 7)])
def test_deep_chains_do_not_recurse(build):
    x = _x("int32", (symbol("n"),))
    y = x
    for i in range(20_000):
        y = build(y, i)
    out = rewrite(y, SIMPLIFY)
    expected = {"mul": x, "neg": x + -30_000, "add": x + sum(i % 7 for i in range(20_000))}[y.op.name]
    assert out is expected


def test_cost_is_linear_in_rule_applications():
    calls = 0

    def counted(node: Node) -> Node | None:
        """tanh(x) -> sin(x)"""
        nonlocal calls
        calls += 1
        return ew.sin(node.inputs[0])

    y = _x()
    for _ in range(500):
        y = ew.tanh(y)
    rewrite(y + ew.exp(y), (rule("tanh")(counted),))
    assert calls == 500


def test_long_concatenations_are_not_flattened_without_end():
    parts = [_x("float32", (2,)) for _ in range(200)]
    y = parts[0]
    for p in parts[1:]:
        y = make(sh.CONCATENATE, (y, p), {"axis": 0})
    out = rewrite(y, SIMPLIFY)
    assert out.shape == (400,)
    assert max(len(n.inputs) for n in Graph(tuple(parts), (out,)).nodes) <= 64
