"""Reverse-mode differentiation: what is connected, how ties and edges are shared, and second derivatives."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from evaluate import Array, atom_of, finite_differences, interpret

import graphkb
from graphkb import backend as K
from graphkb.gradients import gradients
from graphkb.ir.dims import symbol
from graphkb.ir.errors import GradientError
from graphkb.ir.graph import Graph, graph_symbols, toposort
from graphkb.ir.node import Node, make
from graphkb.ir.op import Op, find_op
from graphkb.ir.verify import verify
from graphkb.ops import elementwise as e
from graphkb.ops import index, leaf, linalg, reduce, shape


def vector(n: int = 3, dtype: str = "float64", name: str = "x") -> Node:
    return leaf.placeholder((n,), dtype, name)


def value(node: Node, **feeds: object) -> Array:
    """The value of a node, its placeholders fed by their names."""
    inputs = [n for n in toposort([node]) if n.op is leaf.PLACEHOLDER]
    arrays = [np.asarray(feeds[n.attrs["key"].name], n.dtype) for n in inputs]
    return interpret(Graph(tuple(inputs), (node,)), arrays)[0]


def grad(output: Node, node: Node) -> Node:
    (result,) = gradients([output], [node])
    assert result is not None
    return result


def unary(name: str, x: Node) -> Node:
    return make(find_op(name), (x,))


# ---------------------------------------------------------------------------------------------- connection
def test_none_exactly_where_nothing_depends() -> None:
    x, y = vector(), vector(name="y")
    assert gradients([x * x], [y]) == [None]
    assert gradients([x * x], [leaf.constant(1.0)]) == [None]
    assert [g is None for g in gradients([x + 1], [x, y])] == [False, True]


def test_gradient_of_an_output_by_itself_is_one() -> None:
    x = vector()
    assert value(grad(x, x)).tolist() == [1, 1, 1]


def test_outputs_add_up() -> None:
    x = vector()
    assert value(grad(x * 2, x)).tolist() == [2, 2, 2]
    (g,) = gradients([x * 2, x * 3, x * 3], [x])
    assert g is not None
    assert value(g).tolist() == [8, 8, 8]


def test_stop_gradient_cuts_one_path_only() -> None:
    x = vector()
    assert gradients([e.stop_gradient(x * x)], [x]) == [None]
    g = grad(x * e.stop_gradient(x), x)
    assert value(g, x=[1, 2, 3]).tolist() == [1, 2, 3]


def test_shared_nodes_are_walked_once() -> None:
    """Each step uses the one before twice: walking paths instead of nodes would take 2**200 steps."""
    x = vector(1)
    y = x
    for _ in range(200):
        y = (y + y) * 0.5
    g = grad(y, x)
    assert value(g, x=[3]).tolist() == [1]
    assert len(toposort([g])) < 2000


def test_gradient_by_an_intermediate_node() -> None:
    x = vector()
    y = e.exp(x)
    z = y * y
    gy, gx = gradients([z], [y, x])
    assert gy is not None
    assert gx is not None
    np.testing.assert_allclose(value(gy, x=[0, 1, 2]), 2 * np.exp([0, 1, 2.0]))
    np.testing.assert_allclose(value(gx, x=[0, 1, 2]), 2 * np.exp([0, 2, 4.0]))
    assert gradients([z], [y])[0] is gy


@pytest.mark.parametrize("dtype", ["int32", "bool", "uint8"])
def test_integer_paths_have_no_gradient(dtype: str) -> None:
    x = vector()
    assert gradients([e.cast(e.cast(x, dtype), "float64")], [x]) == [None]
    k = vector(dtype=dtype)
    assert gradients([e.cast(k, "float64") * x], [k]) == [None]
    assert gradients([k], [k]) == [None]


@pytest.mark.parametrize("name", ["round", "floor", "ceil", "trunc", "isnan"])
def test_steps_are_not_connected(name: str) -> None:
    x = vector()
    assert gradients([e.cast(unary(name, x), "float64")], [x]) == [None]


def test_sign_has_a_zero_gradient() -> None:
    x = vector()
    assert value(grad(e.sign(x), x), x=[-1, 0, 2]).tolist() == [0, 0, 0]


def test_positions_and_conditions_are_not_connected() -> None:
    x = leaf.placeholder((2, 3), "float32", "x")
    row = make(find_op("argmax"), (x,), {"axis": 1})
    picked = index.gather(leaf.constant(np.arange(3, dtype="float32")), row)
    assert gradients([picked], [x]) == [None]
    assert gradients([e.select(e.greater(x, 0), leaf.constant(np.float32(1)), 0)], [x]) == [None]


def test_a_missing_rule_is_an_error_that_names_the_op() -> None:
    opaque = Op("opaque", infer=lambda x: x, numpy=lambda x: x)
    x = vector()
    y = make(opaque, (x,))
    with pytest.raises(GradientError, match=r"^opaque has no gradient\n  built at test_gradients.py:\d+: y = make"):
        gradients([y], [x])
    assert gradients([y * 2], [y])[0] is not None


# ---------------------------------------------------------------------------------------------- edges
@pytest.mark.parametrize("name", ["max", "min"])
def test_equal_extrema_share_the_gradient(name: str) -> None:
    x = leaf.placeholder((2, 4), "float32", "x")
    y = reduce.reduce(find_op(name), x, (1,))
    g = value(grad(y, x), x=[[1, 5, 5, 1], [2, 2, 2, 2]])
    expected = [[0, 0.5, 0.5, 0], [0.25] * 4] if name == "max" else [[0.5, 0, 0, 0.5], [0.25] * 4]
    assert g.tolist() == expected


@pytest.mark.parametrize("op", [e.maximum, e.minimum])
def test_the_first_of_two_equal_operands_takes_the_gradient(op: Callable[[Node, Node], Node]) -> None:
    x, y = vector(), vector(name="y")
    gx, gy = gradients([op(x, y)], [x, y])
    assert gx is not None
    assert gy is not None
    feeds = {"x": [1, 2, 3], "y": [1, 2, 3]}
    assert value(gx, **feeds).tolist() == [1, 1, 1]
    assert value(gy, **feeds).tolist() == [0, 0, 0]


@pytest.mark.parametrize(
    ("name", "at", "expected"),
    [
        ("relu", 0.0, 0.0),
        ("abs", 0.0, 0.0),
        ("abs", -0.0, 0.0),
        ("sqrt", 0.0, np.inf),
        ("sqrt", np.inf, 0.0),
        ("rsqrt", 0.0, -np.inf),
        ("reciprocal", 0.0, -np.inf),
        ("reciprocal", np.inf, -0.0),
        ("log", 0.0, np.inf),
        ("log1p", -1.0, np.inf),
        ("expm1", -800.0, 0.0),
        ("exp", -np.inf, 0.0),
        ("asin", 1.0, np.inf),
        ("asin", -1.0, np.inf),
        ("acos", 1.0, -np.inf),
        ("acosh", 1.0, np.inf),
        ("acosh", 0.5, np.nan),
        ("asinh", 1e300, 1e-300),
        ("atanh", 1.0, np.inf),
        ("atan", 1e300, 0.0),
        ("tanh", 800.0, 0.0),
        ("sigmoid", -800.0, 0.0),
        ("softplus", 800.0, 1.0),
        ("softplus", -800.0, 0.0),
        ("erf", 800.0, 0.0),
    ],
)
def test_slopes_at_the_edges(name: str, at: float, expected: float) -> None:
    x = leaf.placeholder((), "float64", "x")
    np.testing.assert_allclose(value(grad(unary(name, x), x), x=at), expected, rtol=1e-12)


def test_asin_near_one_keeps_its_digits() -> None:
    x = leaf.placeholder((), "float32", "x")
    at = np.float32(1) - np.float32(2**-23)
    expected = 1 / np.sqrt((1 - np.float64(at)) * (1 + np.float64(at)))
    np.testing.assert_allclose(value(grad(unary("asin", x), x), x=at), expected, rtol=1e-6)


def test_select_keeps_nan_out_of_the_other_branch() -> None:
    x, y = vector(), vector(name="y")
    chosen = e.select(e.greater(x, 0), x * 2, y)
    gx, gy = gradients([chosen], [x, y])
    assert gx is not None
    assert gy is not None
    feeds = {"x": [1, -1, 2], "y": [np.nan, 5, np.inf]}
    assert value(gx, **feeds).tolist() == [2, 0, 2]
    assert value(gy, **feeds).tolist() == [0, 1, 0]


def test_a_gradient_that_is_not_finite_stays_in_its_branch() -> None:
    """The gradient that arrives is infinite where x is taken, and must not turn into NaN for y."""
    x, y = vector(1), vector(1, name="y")
    root = e.sqrt(e.select(e.greater(x, -1), x, y))
    gx, gy = gradients([root], [x, y])
    assert gx is not None
    assert gy is not None
    assert value(gx, x=[0], y=[4]).tolist() == [np.inf]
    assert value(gy, x=[0], y=[4]).tolist() == [0]


@pytest.mark.parametrize(
    ("base", "exponent", "slope", "by_exponent"),
    [
        (0.0, 0.0, 0.0, 0.0),
        (0.0, 1.0, 1.0, 0.0),
        (0.0, 2.0, 0.0, 0.0),
        (0.0, 0.5, np.inf, 0.0),
        (-2.0, 3.0, 12.0, 0.0),
        (2.0, 0.0, 0.0, np.log(2)),
        (2.0, 3.0, 12.0, 8 * np.log(2)),
    ],
)
def test_slopes_of_powers(base: float, exponent: float, slope: float, by_exponent: float) -> None:
    x, p = leaf.placeholder((), "float64", "x"), leaf.placeholder((), "float64", "p")
    gx, gp = gradients([e.power(x, p)], [x, p])
    assert gx is not None
    assert gp is not None
    np.testing.assert_allclose(value(gx, x=base, p=exponent), slope)
    np.testing.assert_allclose(value(gp, x=base, p=exponent), by_exponent)


def test_second_derivatives_of_powers_at_zero() -> None:
    x = vector(4)
    p = leaf.constant(np.array([0.0, 1.0, 2.0, 3.0]))
    second = grad(grad(e.power(x, p), x), x)
    assert value(second, x=[0, 0, 0, 0]).tolist() == [0, 0, 2, 0]
    assert value(grad(second, x), x=[0, 0, 0, 0]).tolist() == [0, 0, 0, 6]


@pytest.mark.parametrize("row", [[2.0, 3.0, 4.0], [2.0, 0.0, 4.0], [0.0, 3.0, 0.0], [0.0, 0.0, 0.0]])
def test_product_with_zeros(row: list[float]) -> None:
    x = leaf.placeholder((1, 3), "float32", "x")
    g = value(grad(reduce.reduce(reduce.PROD, x, (0, 1)), x), x=[row])
    assert g.tolist() == [[row[1] * row[2], row[0] * row[2], row[0] * row[1]]]


def test_gather_adds_repeated_positions() -> None:
    x = vector()
    y = index.gather(x, leaf.constant(np.array([2, 0, 2, 2])))
    assert value(grad(y, x)).tolist() == [1, 0, 3]


def test_reversed_slices_turn_the_gradient_round() -> None:
    x = vector()
    y = shape.reverse(x, (0,)) * leaf.constant(np.array([1.0, 2.0, 3.0]))
    assert value(grad(y, x)).tolist() == [3, 2, 1]


# ---------------------------------------------------------------------------------------------- unknown sizes
@pytest.mark.parametrize("sizes", [(1, 1), (1, 4), (4, 1), (4, 4), (0, 1), (0, 0)])
def test_broadcasting_both_ways_with_unknown_sizes(sizes: tuple[int, int]) -> None:
    n, m = symbol("n"), symbol("m")
    x, y = leaf.placeholder((n, 3), "float64", "x"), leaf.placeholder((m, 1), "float64", "y")
    output = x * y + e.exp(y)
    gx, gy = gradients([output], [x, y])
    assert gx is not None
    assert gy is not None
    assert gx.type == x.type
    assert gy.type == y.type
    graph = Graph((x, y), (output, gx, gy))
    verify(graph)
    assert graph_symbols(graph) == {atom_of(n), atom_of(m)}
    bound = graph.bind({atom_of(n): sizes[0], atom_of(m): sizes[1]})
    verify(bound)
    rng = np.random.default_rng(1)
    a, b = rng.normal(size=(sizes[0], 3)), rng.normal(size=(sizes[1], 1))
    out, ga, gb = interpret(bound, [a, b])
    np.testing.assert_allclose(out, a * b + np.exp(b))
    np.testing.assert_allclose(ga, finite_differences(lambda v: (v * b + np.exp(b)).sum(), a, 1e-4), atol=1e-8)
    expected = finite_differences(lambda v: (a * v + np.broadcast_to(np.exp(v), out.shape)).sum(), b, 1e-4)
    np.testing.assert_allclose(gb, expected, atol=1e-8)


def test_contracted_unknown_sizes_keep_the_types_of_the_operands() -> None:
    n, k, m = symbol("n"), symbol("k"), symbol("m")
    x, y = leaf.placeholder((n, k), "float32", "x"), leaf.placeholder((m, 5), "float32", "y")
    gx, gy = gradients([linalg.dot(x, y, (), (), (1,), (0,))], [x, y])
    assert gx is not None
    assert gy is not None
    assert (gx.type, gy.type) == (x.type, y.type)
    bound = Graph((x, y), (gx, gy)).bind({atom_of(n): 2, atom_of(k): 3, atom_of(m): 3})
    assert interpret(bound, [np.ones((2, 3), "float32"), np.ones((3, 5), "float32")])[1].tolist() == [[2] * 5] * 3


@pytest.mark.parametrize("n", [0, 1, 5])
def test_mean_over_an_unknown_axis(n: int) -> None:
    size = symbol("n")
    x = leaf.placeholder((size, 2), "float32", "x")
    mean = reduce.reduce_sum(x, (0,)) / reduce.count(x, (0,), "float32")
    bound = Graph((x,), (grad(mean, x),)).bind({atom_of(size): n})
    (g,) = interpret(bound, [np.ones((n, 2), "float32")])
    np.testing.assert_allclose(g, np.full((n, 2), 1 / n if n else 0), rtol=1e-6)


# ---------------------------------------------------------------------------------------------- higher orders
def test_second_and_third_derivatives() -> None:
    x = vector(5)
    y = e.tanh(x) * e.exp(x)
    at = np.linspace(-1, 1, 5)
    for order in range(1, 4):
        before, y = y, grad(y, x)
        # Elements do not mix, so the gradient of the sum is the derivative of each.
        expected = finite_differences(lambda v, f=before: value(f, x=v).sum(), at, 1e-3)
        np.testing.assert_allclose(value(y, x=at), expected, rtol=1e-7, err_msg=f"order {order}")


def test_hessian_of_a_quadratic_form() -> None:
    x = vector()
    a = np.array([[2.0, 1, 0], [1, 3, 1], [0, 1, 4]])
    form = linalg.dot(x, linalg.dot(leaf.constant(a), x, (), (), (1,), (0,)), (), (), (0,), (0,))
    first = grad(form, x)
    rows = [grad(shape.slice_(first, (i,), (1,)), x) for i in range(3)]
    np.testing.assert_allclose([value(row, x=[1, 2, 3]) for row in rows], 2 * a)


def test_gradients_carry_the_lines_of_their_nodes() -> None:
    x = vector()
    y = e.exp(x)
    z = y * y
    # Equal constants of all programs are one node, so leaves tell nothing.
    lines = {n.origin.line for n in toposort([grad(z, x)]) if n.origin is not None and n.op.kind != "leaf"}
    assert y.origin is not None
    assert z.origin is not None
    assert x.origin is not None
    assert lines <= {x.origin.line, y.origin.line, z.origin.line}


def test_a_chain_of_100000_nodes() -> None:
    x = vector(1)
    y = x
    for _ in range(50_000):
        y = y * 1.00001 + 1
    g = grad(y, x)
    np.testing.assert_allclose(value(g, x=[1]), 1.00001**50_000, rtol=1e-9)


# ---------------------------------------------------------------------------------------------- products with zeros
@pytest.mark.parametrize("x", [[2.0, 3, -1, 0.5], [2, 0, 3, 4], [0, 2, 0, 3], [0, 0, 0, 1]])
@pytest.mark.parametrize(
    "op",
    [
        lambda x: reduce.reduce(reduce.PROD, x, (0,)),
        *[
            lambda x, exclusive=exclusive, reverse=reverse: reduce.cumprod(x, 0, exclusive, reverse)
            for exclusive in (False, True)
            for reverse in (False, True)
        ],
    ],
)
def test_products_have_all_derivatives_at_zeros(op: Callable[[Node], Node], x: list[float]) -> None:
    v = vector(4)
    weights = leaf.constant(np.array([1.0, -2, 3, 0.5]), "float64")
    loss = reduce.reduce_sum(op(v) * weights, (0,))
    for _ in range(3):  # central differences of the fourth order are exact for polynomials of degree 4
        g = grad(loss, v)
        expected = finite_differences(lambda a, y=loss: value(y, x=a), np.array(x, "float64"), 0.1)
        np.testing.assert_allclose(value(g, x=x), expected, rtol=1e-9, atol=1e-9)
        loss = reduce.reduce_sum(g * weights * weights, (0,))


# ---------------------------------------------------------------------------------------------- branches not taken
@pytest.mark.parametrize(
    ("build", "x", "expected"),
    [
        (lambda x: K.switch(x > 0, K.log(x), x * 2), [0.0, 2.0], [2, 0.5]),
        (lambda x: K.switch(x > 0, K.sqrt(x) * 3 + 1, x), [0.0, -1.0, 4.0], [1, 1, 0.75]),
        (lambda x: K.switch(x < 9, 1 / (1 + K.exp(x) * K.exp(x)), 5 - x), [1e3, 10.0], [-1, -1]),
        (lambda x: K.switch(x > 0, 1 / x, K.switch(x < -1, K.log(-1 - x), x)), [0.0, 2, -3, -1], [1, -0.25, -0.5, 1]),
        (lambda x: K.switch(K.not_equal(x, 0), K.sin(x) / x, x * 0 + 1), [0.0], [0]),
        (lambda x: K.elu(x), [1e4, 1.0], [1, 1]),
    ],
)
def test_no_nan_comes_from_the_branch_that_was_not_taken(build, x, expected):
    v = K.variable(x, "float64")
    np.testing.assert_allclose(K.eval(K.gradients(K.sum(build(v)), [v])[0]), expected, rtol=1e-9)


def test_no_nan_comes_from_there_to_what_was_broadcast():
    v, w = K.variable([0.0, 2.0], "float64"), K.variable(3.0, "float64")
    y = K.switch(v > 0, w * K.log(v), v)
    np.testing.assert_allclose(K.eval(K.gradients(K.sum(y), [w])[0]), np.log(2))


ZERO2, ZERO21 = np.zeros(2), np.zeros((2, 1))
ROWS = np.array([[0.0, 0, 0], [1, 2, 4]])  # the first row is not taken


def _taken(rank=1):
    return K.constant(np.array([False, True]).reshape((2,) + (1,) * (rank - 1)), "bool")


@pytest.mark.parametrize(
    "build",
    [
        lambda x: K.switch(_taken(), K.sum(K.log(x), -1), ZERO2),
        lambda x: K.switch(_taken(2), K.mean(K.log(x), -1, keepdims=True), ZERO21),
        lambda x: K.switch(_taken(), K.prod(K.log(x + 1), -1) / K.sum(x, -1), ZERO2),
        lambda x: K.switch(_taken(), K.max(K.sqrt(x), -1), ZERO2),
        lambda x: K.switch(_taken(), K.std(x, -1), ZERO2),
        lambda x: K.switch(_taken(), K.sqrt(K.sum(K.square(x), -1)), ZERO2),
        lambda x: K.switch(_taken(), K.logsumexp(K.log(x), -1), ZERO2),
        lambda x: K.switch(_taken(), K.log(K.softmax(K.log(x)))[:, 0], ZERO2),
        lambda x: K.switch(_taken(2), x / K.sqrt(K.sum(x * x, -1, keepdims=True)), K.zeros_like(x)),
        lambda x: K.switch(_taken(), K.reshape(K.log(x), (2, 3, 1))[:, 1, 0], ZERO2),
        lambda x: K.switch(_taken(), K.transpose(K.log(x))[0] * K.reverse(K.transpose(K.log(x)), 0)[1], ZERO2),
        lambda x: K.switch(_taken(), K.sum(K.concatenate([K.log(x), x, 1 / x]), -1), ZERO2),
        lambda x: K.switch(_taken(), K.sum(K.stack([K.tile(K.log(x), [1, 2]), K.tile(x, [1, 2])], 1), [1, 2]), ZERO2),
        lambda x: K.switch(_taken(), K.sum(K.temporal_padding(K.log(x)[..., None]), [-1, 1]), ZERO2),
        lambda x: K.switch(_taken(2), K.dot(K.sqrt(x), K.ones((3, 2), "float64")), np.zeros((2, 2))),
        lambda x: K.switch(_taken(2), K.batch_dot(K.sqrt(x), K.sqrt(x)), ZERO21),
        lambda x: K.switch(_taken(), K.cumsum(K.log(x), 1)[:, 1], ZERO2),
        lambda x: K.switch(_taken(), K.sum(K.gather(K.log(x), K.constant([0, 1], "int32")), 1), ZERO2),
        lambda x: K.switch(K.sum(x) < 0, K.sum(K.conv1d(K.log(x)[..., None], K.ones((2, 1, 1), "float64"))), K.sum(x)),
        lambda x: K.switch(K.sum(x) < 0, K.sum(K.log(K.cumprod(x, 1))), K.sum(x)),
    ],
)  # fmt: skip
@pytest.mark.parametrize("mode", ["auto", "interpret"])
def test_no_nan_comes_from_there_through_other_axes(build, mode):
    def slopes(rows):
        v = K.variable(rows, "float64")
        (first,) = K.gradients(build(v), [v])
        (second,) = K.gradients(K.sum(first * K.constant([[1.0, -2, 3]], "float64")), [v])
        with graphkb.options(mode=mode):
            return K.function([], [first, K.zeros_like(v) if second is None else second])([])

    for found, expected in zip(slopes(ROWS), slopes(np.where(ROWS == 0, 1.5, ROWS))):
        assert np.isfinite(found).all()
        np.testing.assert_allclose(found[1], expected[1], rtol=1e-9)
        if not expected[0].any():  # the row is not taken, whatever is in it
            assert not found[0].any()


def test_two_choices_that_meet_matter_where_either_does():
    v = K.variable(ROWS, "float64")
    logs = K.log(v)
    y = K.switch(_taken(), K.sum(logs, -1), ZERO2) + K.switch(_taken(), K.sum(logs * logs, -1), ZERO2)
    y = K.sum(y) + K.sum(K.switch(v > 3, K.log(v), K.zeros_like(v)))
    found = K.eval(K.gradients(y, [v])[0])
    np.testing.assert_allclose(found, [[0, 0, 0], [1, 0.5 + np.log(2), 0.5 + 0.5 * np.log(4)]])


def test_formulas_that_do_not_overflow_are_found_behind_a_choice():
    v = K.variable([[-1000.0, 1, 2], [5, 6, 7]])
    y = K.switch(_taken(2), K.zeros_like(v), K.log(K.sigmoid(v)))
    (found,) = K.function([], K.gradients(K.sum(y), [v]))([])
    np.testing.assert_allclose(found, [[1, 0.26894142, 0.11920292], [0, 0, 0]], rtol=1e-6)
