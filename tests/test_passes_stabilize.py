"""Stable formulas: what each rule makes, and that it is never less accurate than what was written."""

from __future__ import annotations

from collections.abc import Callable

import mpmath
import numpy as np
import pytest
from evaluate import Array, atom_of, interpret, ulp_error

from graphkb.gradients import gradients
from graphkb.ir.dims import symbol
from graphkb.ir.graph import Graph
from graphkb.ir.node import Node, make
from graphkb.ops import elementwise as ew
from graphkb.ops import leaf
from graphkb.ops import reduce as rd
from graphkb.ops import shape as sh
from graphkb.passes.pipeline import VerifyEach, optimize
from graphkb.passes.rewrite import rewrite
from graphkb.passes.rules_gradients import softmax_of
from graphkb.passes.simplify import SIMPLIFY
from graphkb.passes.stabilize import STABILIZE

N = symbol("n")
X = leaf.placeholder((N, 5), "float32", "x")
T = leaf.placeholder((N, 5), "float32", "t")
V = leaf.placeholder((600,), "float32", "v")


def op(record, *inputs, **attrs):
    return make(record, inputs, attrs)


def log1p(x):
    return op(ew.log1p_, x)


def expm1(x):
    return op(ew.expm1_, x)


def total(x: Node, keepdims: bool = True) -> Node:
    return rd.reduce_sum(x, (1,), keepdims)


def largest(x: Node) -> Node:
    maximum = rd.reduce(rd.MAX, x, (1,), True)
    return ew.select(op(ew.isfinite_, maximum), maximum, 0)


def softmax(x: Node) -> Node:
    return ew.exp(x) / total(ew.exp(x))


SHIFTED = X - largest(X)
P = softmax(SHIFTED)
E = ew.exp(SHIFTED)
S = ew.sigmoid(X)

CASES: dict[str, list[tuple[Callable[[], Node], Callable[[], Node]]]] = {
    "log_exp": [(lambda: ew.log(ew.exp(X)), lambda: X)],
    "exp_log": [(lambda: ew.exp(ew.log(ew.square(X))), lambda: ew.square(X))],
    "log_softmax": [(lambda: ew.log(P), lambda: SHIFTED - ew.log(total(ew.exp(SHIFTED))))],
    "log_sum_exp": [
        (lambda: ew.log(total(ew.exp(X))), lambda: ew.log(total(ew.exp(SHIFTED))) + largest(X)),
        (
            lambda: ew.log(total(ew.exp(X), False)),
            lambda: sh.reshape(ew.log(total(ew.exp(SHIFTED))) + largest(X), (N,)),
        ),
    ],
    "log_sigmoid": [(lambda: ew.log(S), lambda: -ew.softplus(-X))],
    "log_of_sum_with_one": [
        (lambda: ew.log(1 + X), lambda: log1p(X)),
        (lambda: ew.log(1 - X), lambda: log1p(-X)),
    ],
    "log1p_exp": [(lambda: ew.log(ew.exp(X) + 1), lambda: ew.softplus(X))],
    "log_one_minus_sigmoid": [(lambda: ew.log(1 - S), lambda: -ew.softplus(X))],
    "exp_minus_one": [
        (lambda: ew.exp(X) - 1, lambda: expm1(X)),
        (lambda: 1 - ew.exp(X), lambda: 0 - expm1(X)),
    ],
    "exp_plus_minus_one": [(lambda: -1 + ew.exp(X), lambda: expm1(X))],
    "sqrt_square": [(lambda: ew.sqrt(X * X), lambda: op(ew.abs_, X))],
    "reciprocal_to_sigmoid": [
        (lambda: 1 / (1 + ew.exp(-X)), lambda: S),
        (lambda: 1 / (1 + ew.exp(X)), lambda: ew.sigmoid(-X)),
    ],
    "div_to_sigmoid": [(lambda: ew.exp(X) / (1 + ew.exp(X)), lambda: S)],
    "softmax": [(lambda: softmax(X), lambda: P)],
    "softmax_gradient": [
        (lambda: (T / total(E) - total(T * P / total(E))) * E, lambda: P * (T - total(T * P))),
        (lambda: gradients([T * softmax(X)], [X])[0], lambda: P * (T - total(T * P))),
        (lambda: gradients([T * ew.log(softmax(X))], [X])[0], lambda: T - P * total(T)),
        (lambda: gradients([-(T * ew.log(softmax(X)))], [X])[0], lambda: P * total(T) - T),
    ],
    "log_sum_exp_gradient": [
        (lambda: gradients([ew.log(total(ew.exp(X), False))], [X])[0], lambda: P),
        (lambda: gradients([ew.log(total(ew.exp(X))) * T], [X])[0], lambda: P * total(T)),
    ],
    "sigmoid_gradient": [
        (lambda: gradients([T * ew.log(S)], [X])[0], lambda: T * (1 - S)),
        (lambda: gradients([T * ew.log(1 - S)], [X])[0], lambda: -(T * S)),
        (
            lambda: gradients([T * ew.log(S) + (1 - T) * ew.log(1 - S)], [X])[0],
            lambda: T * (1 - S) - (1 - T) * S,
        ),
    ],
}  # fmt: skip
RULES = {rule.name: rule for rule in STABILIZE}


@pytest.mark.parametrize("name", RULES)
def test_rule(name):
    for before, after in CASES[name]:
        assert rewrite(before(), STABILIZE + SIMPLIFY) is rewrite(after(), SIMPLIFY), f"{before()!r}"
        without = tuple(rule for rule in STABILIZE + SIMPLIFY if rule.name != name)
        assert rewrite(before(), without) is not rewrite(after(), SIMPLIFY)


def test_every_rule_has_a_case():
    assert set(CASES) == set(RULES)


UNTOUCHED = {
    "exp(log(x)) of a signed x": lambda: ew.exp(ew.log(X)),
    "log(2 + x)": lambda: ew.log(X + 2),
    "log of a sum over an axis that may be empty": lambda: ew.log(rd.reduce_sum(ew.exp(X), (0,), True)),
    "softmax over an axis that may be empty": lambda: ew.exp(X) / rd.reduce_sum(ew.exp(X), (0,), True),
    "log(sum(exp(x - max(x))))": lambda: ew.log(total(ew.exp(SHIFTED))),
    "1 - sigmoid(x)": lambda: 1 - S,
    "exp(x) / sum(exp(y))": lambda: ew.exp(X) / total(ew.exp(T)),
    "x / (1 + x)": lambda: X / (X + 1),
}


@pytest.mark.parametrize("name", UNTOUCHED)
def test_stays_as_it_is(name):
    node = UNTOUCHED[name]()
    assert rewrite(node, STABILIZE + SIMPLIFY) is node


def test_shifted_softmax_is_found_again_by_its_logarithm_and_gradient():
    loss = -rd.reduce_sum(T * ew.log(softmax(X)), (0, 1))
    graph = optimize(Graph((X, T), (loss, *gradients([loss], [X]))), observer=VerifyEach())
    names = [node.op.name for node in graph.nodes]
    assert names.count("exp") == 1
    assert names.count("div") == 1
    assert names.count("max") == 1


# ---------------------------------------------------------------------------------------------- accuracy
def _values() -> Array:
    rng = np.random.default_rng(3)
    wide = np.concatenate(
        [[0.0, -0.0, np.inf, -np.inf, np.nan, 88.0, -88.0, 104.0, -104.0], np.linspace(-200, 200, 91)]
    )
    small = np.ldexp(rng.uniform(-1, 1, 300), rng.integers(-60, 3, 300))
    large = np.ldexp(rng.uniform(-1, 1, 200), rng.integers(0, 127, 200))
    return np.concatenate([wide, small, large])[:600].astype(np.float32)


def _exact(function: Callable, values: Array) -> Array:
    """The function in 80 digits, as long doubles; NaN where it has no real value."""
    out = []
    with mpmath.workdps(80):
        for v in values:
            try:
                y = function(mpmath.mpf(float(v)))
            except (ValueError, ZeroDivisionError, OverflowError):
                y = mpmath.nan
            out.append(np.nan if isinstance(y, mpmath.mpc) else float(y))
    return np.array(out).astype(np.longdouble)


def _sigmoid(v):
    if v == mpmath.inf or v == -mpmath.inf:
        return mpmath.mpf(v > 0)
    return mpmath.exp(v) / (1 + mpmath.exp(v)) if v < 0 else 1 / (1 + mpmath.exp(-v))


def _softplus(v):
    if v == mpmath.inf:
        return v
    return mpmath.log1p(mpmath.exp(v)) if v < 0 else v + mpmath.log1p(mpmath.exp(-v))


def _log1p(v):
    return -mpmath.inf if v == -1 else mpmath.log(1 + v)


FORMULAS = {
    "log(exp(x))": (lambda x: ew.log(ew.exp(x)), lambda v: v),
    "exp(log(x*x))": (lambda x: ew.exp(ew.log(x * x)), lambda v: v * v),
    "log(1 + x)": (lambda x: ew.log(x + 1), _log1p),
    "log(1 - x)": (lambda x: ew.log(1 - x), lambda v: _log1p(-v)),
    "exp(x) - 1": (lambda x: ew.exp(x) - 1, lambda v: mpmath.expm1(v)),
    "1 - exp(x)": (lambda x: 1 - ew.exp(x), lambda v: -mpmath.expm1(v)),
    "sqrt(x * x)": (lambda x: ew.sqrt(x * x), abs),
    "1 / (1 + exp(-x))": (lambda x: 1 / (1 + ew.exp(-x)), _sigmoid),
    "exp(x) / (1 + exp(x))": (lambda x: ew.exp(x) / (1 + ew.exp(x)), _sigmoid),
    "log(1 + exp(x))": (lambda x: ew.log(1 + ew.exp(x)), _softplus),
    "log(sigmoid(x))": (lambda x: ew.log(ew.sigmoid(x)), lambda v: -_softplus(-v)),
    "log(1 - sigmoid(x))": (lambda x: ew.log(1 - ew.sigmoid(x)), lambda v: -_softplus(v)),
}  # fmt: skip


@pytest.mark.parametrize("name", FORMULAS)
def test_never_less_accurate(name):
    build, function = FORMULAS[name]
    values = _values()
    graph = Graph((V,), (build(V),))
    stable = optimize(graph)
    assert stable is not graph
    before, after = interpret(graph, [values])[0], interpret(stable, [values])[0]
    exact = _exact(function, values)
    error_before, error_after = ulp_error(before, exact), ulp_error(after, exact)
    worse = error_after > np.maximum(error_before, 3)
    assert not worse.any(), list(zip(values[worse], before[worse], after[worse], exact[worse]))[:5]
    assert error_after.max() < 3
    assert error_before.max() > error_after.max()


ROWS = np.array(
    [
        [0, 1, 2, 3, 4],
        [1000, 0, -1000, 999, 1],
        [-1000, -1001, -1002, -1000, -2000],
        [-0.0, 0.0, 1e-8, -1e-8, 1e-30],
        [np.inf, 0, 1, 2, 3],
        [-np.inf, 0, 1, 2, -np.inf],
        [-np.inf] * 5,
        [np.nan, 0, 1, 2, 3],
        [np.inf, -np.inf, np.inf, 0, 0],
    ],
    np.float32,
)
NO_INFINITY = slice(0, 4)


def _run(outputs: list[Node], feeds: list[Array], stable: bool) -> list[Array]:
    graph = Graph((X, T), tuple(outputs))
    if stable:
        graph = optimize(graph, observer=VerifyEach())
    return interpret(graph.bind({atom_of(N): len(feeds[0])}), feeds)


def _softmax64(x: Array) -> Array:
    e = np.exp(x - x.max(1, keepdims=True))
    return e / e.sum(1, keepdims=True)


def test_softmax_and_its_logarithms_on_extreme_rows():
    outputs = [softmax(X), ew.log(softmax(X)), ew.log(total(ew.exp(X), False))]
    p, log_p, lse = _run(outputs, [ROWS, ROWS], True)
    wide = ROWS[NO_INFINITY].astype(np.float64)
    np.testing.assert_allclose(p[NO_INFINITY], _softmax64(wide), rtol=1e-6, atol=1e-45)
    reference = wide.max(1) + np.log(np.exp(wide - wide.max(1, keepdims=True)).sum(1))
    np.testing.assert_allclose(lse[NO_INFINITY], reference, rtol=1e-6)
    np.testing.assert_allclose(log_p[NO_INFINITY], wide - reference[:, None], rtol=1e-6, atol=1e-7)


def test_infinite_rows_are_no_worse_than_as_written():
    outputs = [softmax(X), ew.log(softmax(X)), ew.log(total(ew.exp(X), False))]
    written, stable = _run(outputs, [ROWS, ROWS], False), _run(outputs, [ROWS, ROWS], True)
    for a, b in zip(written, stable):
        rows = a[4:], b[4:]
        np.testing.assert_array_equal(np.isnan(rows[1]) & ~np.isnan(rows[0]), False)
        finite = np.isfinite(rows[0])
        np.testing.assert_allclose(rows[1][finite], rows[0][finite], rtol=1e-6)
        np.testing.assert_array_equal(rows[1][np.isinf(rows[0])], rows[0][np.isinf(rows[0])])


def test_gradient_of_cross_entropy_has_no_quotient_of_zeros():
    loss = -rd.reduce_sum(T * ew.log(softmax(X)), (0, 1))
    target = np.eye(5, dtype=np.float32)[[0, 2, 4, 1]]
    (g,) = _run(gradients([loss], [X]), [ROWS[NO_INFINITY], target], True)
    np.testing.assert_allclose(g, _softmax64(ROWS[NO_INFINITY].astype(np.float64)) - target, rtol=1e-5, atol=1e-7)


def test_gradient_of_sigmoid_cross_entropy_has_no_quotient_of_zeros():
    loss = -rd.reduce_sum(T * ew.log(S) + (1 - T) * ew.log(1 - S), (0, 1))
    x = np.array([[0, 1, -1, 50, -50], [200, -200, 1000, -1000, 1e-9]], np.float32)
    t = np.array([[0, 1, 0.5, 1, 0], [1, 0, 0, 1, 0.25]], np.float32)
    (g,) = _run(gradients([loss], [X]), [x, t], True)
    with np.errstate(over="ignore"):
        reference = 1 / (1 + np.exp(-x.astype(np.float64))) - t
    np.testing.assert_allclose(g, reference, rtol=1e-6, atol=1e-7)


def test_nan_stays_visible_in_gradients():
    loss = -rd.reduce_sum(T * ew.log(softmax(X)), (0, 1))
    x = np.array([[np.nan, 0, 0, 0, 0]], np.float32)
    (g,) = _run(gradients([loss], [X]), [x, np.eye(5, dtype=np.float32)[:1]], True)
    assert np.isnan(g).all()


def test_softmax_of_shifted_rows_is_not_shifted_again():
    assert softmax_of(SHIFTED, (1,)) is P
    assert rewrite(P, STABILIZE + SIMPLIFY) is P
