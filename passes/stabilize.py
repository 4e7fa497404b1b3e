"""The pass that replaces formulas which overflow or cancel by ones that do not."""

from __future__ import annotations

from typing import ClassVar

from graphkb.ir.graph import Graph
from graphkb.ir.node import Node, make
from graphkb.ir.record import record
from graphkb.ops import elementwise as ew
from graphkb.ops import reduce as reductions
from graphkb.ops import shape as sh
from graphkb.passes.patterns import never_negative, scalar
from graphkb.passes.rewrite import Rules, rewrite_graph, rule
from graphkb.passes.rules_fastmath import FASTMATH
from graphkb.passes.rules_gradients import GRADIENTS, is_shifted, is_sum_of_exp, kept_sum, shift_of, softmax_of
from graphkb.passes.simplify import SIMPLIFY

# Every rule is at least as accurate as what it replaces for every input, and gives a NaN or an infinity only where the
# replaced formula gave the same or the exact value is one. A zero result may take the sign of the exact value.


# ---------------------------------------------------------------------------------------------- log and exp
@rule("log")
def log_exp(node: Node) -> Node | None:
    """log(exp(x)) -> x"""
    # exp overflows above 88 and vanishes below -104 (float32); its relative error becomes an absolute one.
    (x,) = node.inputs
    return x.inputs[0] if x.op is ew.exp_ else None


@rule("exp")
def exp_log(node: Node) -> Node | None:
    """exp(log(x)) -> x where x is never negative"""
    # The error of the logarithm grows with its size; below zero it would be NaN, which x is not.
    (x,) = node.inputs
    return x.inputs[0] if x.op is ew.log_ and never_negative(x.inputs[0]) else None


@rule("log")
def log_of_sum_with_one(node: Node) -> Node | None:
    """log(x + 1) -> log1p(x), log(1 - x) -> log1p(-x)"""
    # x + 1 rounds away the digits of a small x.
    (x,) = node.inputs
    if x.op is ew.add and scalar(x.inputs[1]) == 1:
        return make(ew.log1p_, (sh.broadcast_to(x.inputs[0], x.shape),))
    if x.op is ew.sub and scalar(x.inputs[0]) == 1:
        return make(ew.log1p_, (sh.broadcast_to(-x.inputs[1], x.shape),))
    return None


@rule("sub")
def exp_minus_one(node: Node) -> Node | None:
    """exp(x) - 1 -> expm1(x), 1 - exp(x) -> 0 - expm1(x)"""
    # Near 0 the difference cancels.
    a, b = node.inputs
    if a.op is ew.exp_ and scalar(b) == 1:
        return sh.broadcast_to(make(ew.expm1_, a.inputs), node.shape)
    if b.op is ew.exp_ and scalar(a) == 1:
        # 0 - y, not -y: 1 - exp(0) is 0.0.
        return sh.broadcast_to(ew.const_like(0, node) - make(ew.expm1_, b.inputs), node.shape)
    return None


@rule("add")
def exp_plus_minus_one(node: Node) -> Node | None:
    """exp(x) + -1 -> expm1(x)"""
    a, b = node.inputs
    if a.op is ew.exp_ and scalar(b) == -1:
        return sh.broadcast_to(make(ew.expm1_, a.inputs), node.shape)
    return None


@rule("sqrt")
def sqrt_square(node: Node) -> Node | None:
    """sqrt(square(x)) -> abs(x)"""
    # The square overflows above 1.8e19 and loses digits below 1e-19 (float32).
    (x,) = node.inputs
    return make(ew.abs_, x.inputs) if x.op is ew.square_ else None


# ---------------------------------------------------------------------------------------------- sigmoid
@rule("reciprocal")
def reciprocal_to_sigmoid(node: Node) -> Node | None:
    """1 / (exp(-x) + 1) -> sigmoid(x), 1 / (exp(x) + 1) -> sigmoid(-x)"""
    # exp(-x) overflows where the quotient is still a number: the result is 0 below -88 instead of exp(x).
    (x,) = node.inputs
    if x.op is not ew.add or scalar(x.inputs[1]) != 1 or x.inputs[0].op is not ew.exp_:
        return None
    return sh.broadcast_to(ew.sigmoid(-x.inputs[0].inputs[0]), node.shape)


@rule("div")
def div_to_sigmoid(node: Node) -> Node | None:
    """exp(x) / (exp(x) + 1) -> sigmoid(x)"""
    # Above 88 the quotient of two infinities is NaN.
    a, b = node.inputs
    if a.op is ew.exp_ and b.op is ew.add and b.inputs[0] is a and scalar(b.inputs[1]) == 1:
        return sh.broadcast_to(ew.sigmoid(a.inputs[0]), node.shape)
    return None


@rule("log1p")
def log1p_exp(node: Node) -> Node | None:
    """log1p(exp(x)) -> softplus(x)"""
    # exp overflows above 88, where softplus(x) is x.
    (x,) = node.inputs
    return ew.softplus(x.inputs[0]) if x.op is ew.exp_ else None


@rule("log")
def log_sigmoid(node: Node) -> Node | None:
    """log(sigmoid(x)) -> -softplus(-x)"""
    # sigmoid vanishes below -104, and near 1 the logarithm has nothing left of exp(-x).
    (x,) = node.inputs
    return -ew.softplus(-x.inputs[0]) if x.op is ew.sigmoid_ else None


@rule("log1p")
def log_one_minus_sigmoid(node: Node) -> Node | None:
    """log1p(-sigmoid(x)) -> -softplus(x)"""
    # The argument cancels for large x. (1 - sigmoid(x) alone stays: the gradient of sigmoid is built with it, and
    # sigmoid(-x) would be a second exponential.)
    (x,) = node.inputs
    if x.op is ew.neg_ and x.inputs[0].op is ew.sigmoid_:
        return -ew.softplus(x.inputs[0].inputs[0])
    return None


# ---------------------------------------------------------------------------------------------- softmax
@rule("log")
def log_sum_exp(node: Node) -> Node | None:
    """log(sum(exp(x))) -> m + log(sum(exp(x - m))) with m = max(x)"""
    # The largest term becomes 1: nothing overflows, and the sum does not vanish.
    (total,) = node.inputs
    if not is_sum_of_exp(total):
        return None
    x, axes = total.inputs[0].inputs[0], total.attrs["axes"]
    shift = shift_of(x, axes)
    # keepdims, so that the gradient finds the same sum.
    return sh.reshape(ew.log(reductions.reduce_sum(ew.exp(x - shift), axes, True)) + shift, node.shape)


@rule("div")
def softmax(node: Node) -> Node | None:
    """exp(x) / sum(exp(x)) -> the same of x - max(x)"""
    # Without the shift, exp overflows above 88 and the quotient is NaN.
    e, total = node.inputs[0], kept_sum(node.inputs[1])
    if total is None or not is_sum_of_exp(total) or total.inputs[0] is not e:
        return None
    return softmax_of(e.inputs[0], total.attrs["axes"])


@rule("log")
def log_softmax(node: Node) -> Node | None:
    """log(exp(x) / sum(exp(x))) -> x - log(sum(exp(x))) where the maximum of x is 0"""
    # The quotient vanishes 104 below the maximum, where its logarithm is an ordinary number.
    (ratio,) = node.inputs
    if ratio.op is not ew.div or ratio.inputs[0].op is not ew.exp_:
        return None
    e, total = ratio.inputs[0], kept_sum(ratio.inputs[1])
    if total is None or total.inputs[0] is not e or not is_shifted(e.inputs[0], total.attrs["axes"]):
        return None
    return e.inputs[0] - ew.log(ratio.inputs[1])


STABILIZE: Rules = (
    log_exp,
    exp_log,
    log_softmax,
    log_sum_exp,
    log_sigmoid,
    log_of_sum_with_one,
    log1p_exp,
    log_one_minus_sigmoid,
    exp_minus_one,
    exp_plus_minus_one,
    sqrt_square,
    reciprocal_to_sigmoid,
    div_to_sigmoid,
    softmax,
    *GRADIENTS,
)


@record
class Stabilize:
    """Rewrite to formulas that are accurate for every input, and simplify what arises on the way.

    Args:
        fastmath: as for `Simplify`; give both the same.
    """

    fastmath: bool = False
    name: ClassVar[str] = "stabilize"

    def apply(self, graph: Graph) -> Graph:
        rules = STABILIZE + SIMPLIFY
        return rewrite_graph(graph, rules + FASTMATH if self.fastmath else rules, share=True)
