"""Recurrence, maps and folds of K: values against plain NumPy loops, gradients against differences."""

import numpy as np
import pytest
from k_tools import check_gradients

from graphkb import backend as K
from graphkb.ir.errors import DTypeError, ShapeError
from graphkb.ops.control import SCAN

RNG = np.random.default_rng(11)
SAMPLES, TIME, FEATURES, UNITS = 3, 5, 2, 4


@pytest.fixture(autouse=True)
def _float64():
    previous = K.floatx()
    K.set_floatx("float64")
    yield
    K.set_floatx(previous)
    K.clear_session()


def array(*shape):
    return RNG.normal(size=shape)


def reference(step, x, states, mask=None, go_backwards=False, constants=()):
    """What rnn means: a loop over arrays."""
    order = range(x.shape[1])[::-1] if go_backwards else range(x.shape[1])
    states, outputs = list(states), []
    for t in order:
        output, new = step(x[:, t], [*states, *constants])
        if mask is not None:
            before = outputs[-1] if outputs else np.zeros_like(output)
            output = np.where(mask[:, t].reshape(-1, *(1,) * (output.ndim - 1)) != 0, output, before)
            new = [np.where(mask[:, t].reshape(-1, *(1,) * (n.ndim - 1)) != 0, n, s) for n, s in zip(new, states)]
        states = list(new)
        outputs.append(output)
    return [outputs[-1], np.stack(outputs, 1), *states]


class Cell:
    """One step of a recurrence with two states, of which the output is neither; for tensors and arrays."""

    def __init__(self):
        self.w, self.u = array(FEATURES, UNITS), array(UNITS, UNITS) / 2
        self.kw, self.ku = K.variable(self.w), K.variable(self.u)

    def tensors(self, x, s):
        h = K.tanh(K.dot(x, self.kw) + K.dot(s[0], self.ku))
        c = s[1] * 0.5 + h
        return h * c + sum(s[2:]), [h, c]

    def arrays(self, x, s):
        h = np.tanh(x @ self.w + s[0] @ self.u)
        c = s[1] * 0.5 + h
        return h * c + sum(s[2:]), [h, c]


MASK = np.array([[1, 0, 1, 0, 1], [0, 0, 1, 1, 0], [1, 1, 1, 1, 1]])


@pytest.mark.parametrize("known", [True, False], ids=["known", "unknown"])
@pytest.mark.parametrize("unroll", [False, True])
@pytest.mark.parametrize("go_backwards", [False, True])
@pytest.mark.parametrize("mask", [None, MASK, MASK[..., None]], ids=["all", "mask", "mask3"])
@pytest.mark.parametrize("constants", [False, True])
def test_values(known, unroll, go_backwards, mask, constants):
    cell, x, h, c = Cell(), array(SAMPLES, TIME, FEATURES), array(SAMPLES, UNITS), array(SAMPLES, UNITS)
    extra = [array(SAMPLES, UNITS)] if constants else []
    kx = K.placeholder((None, TIME if known or unroll else None, FEATURES) if known else (None, None, None))
    km = None if mask is None else K.variable(mask, "int32")
    last, outputs, states = K.rnn(
        cell.tensors,
        kx,
        [K.variable(h), K.variable(c)],
        go_backwards=go_backwards,
        mask=km,
        constants=[K.variable(e) for e in extra],
        unroll=unroll,
        input_length=TIME,
    )
    flat = None if mask is None else mask.reshape(MASK.shape)
    expected = reference(cell.arrays, x, [h, c], flat, go_backwards, extra)
    assert len(states) == 2
    actual = K.function([kx], [last, outputs, *states])([x])
    for a, e in zip(actual, expected, strict=True):
        np.testing.assert_allclose(a, e, rtol=1e-12, atol=1e-14)
    assert last.shape[-1] == outputs.shape[-1] == UNITS
    if known:
        assert outputs.shape[1] == TIME


@pytest.mark.parametrize("dtype", ["bool", "uint8", "int64", "float32", "float64"])
def test_masks_of_any_dtype(dtype):
    cell, x = Cell(), array(SAMPLES, TIME, FEATURES)
    zero = np.zeros((SAMPLES, UNITS))
    result = K.rnn(cell.tensors, K.variable(x), [K.variable(zero)] * 2, mask=K.variable(MASK, dtype))
    expected = reference(cell.arrays, x, [zero, zero], MASK)
    np.testing.assert_allclose(K.eval(result[1]), expected[1], rtol=1e-12)


@pytest.mark.parametrize("unroll", [False, True])
def test_no_states(unroll):
    x = array(SAMPLES, TIME, FEATURES)
    last, outputs, states = K.rnn(lambda x, s: (x * 2, []), K.variable(x), [], unroll=unroll)
    assert states == []
    assert outputs.shape == x.shape
    np.testing.assert_array_equal(K.eval(outputs), x * 2)
    np.testing.assert_array_equal(K.eval(last), x[:, -1] * 2)


def test_outputs_and_states_are_masked_independently():
    x = K.variable(np.array([[[1.0], [2.0], [3.0]]]))
    mask = K.variable(np.array([[0, 1, 0]]), "bool")
    start = K.variable(np.array([[100.0]]))
    last, outputs, (state,) = K.rnn(lambda x, s: (x + s[0], [s[0] + 1]), x, [start], mask=mask)
    assert K.eval(outputs).ravel().tolist() == [0, 102, 102]
    assert K.eval(state).item() == 101
    assert K.eval(last).item() == 102


@pytest.mark.parametrize("masked", [False, True])
def test_outputs_and_states_of_other_ranks(masked):
    x, state = array(2, 3, 4, 5), array(2, 6, 7, 8)
    mask = np.array([[1, 0, 1], [1, 1, 0]]) if masked else None
    last, outputs, (final,) = K.rnn(
        lambda x, s: (K.expand_dims(x) * 2, [s[0] + K.sum(x)]),
        K.variable(x),
        [K.variable(state)],
        mask=None if mask is None else K.variable(mask, "bool"),
    )
    expected = reference(lambda x, s: (x[..., None] * 2, [s[0] + x.sum()]), x, [state], mask)
    assert outputs.shape == (2, 3, 4, 5, 1)
    for a, e in zip((last, outputs, final), expected):
        np.testing.assert_allclose(K.eval(a), e, rtol=1e-12)


def test_several_inputs():
    x, y = array(2, 3, 4), array(2, 3, 5)
    _, outputs, _ = K.rnn(lambda xs, s: (K.concatenate(xs), []), [K.variable(x), K.variable(y)], [])
    np.testing.assert_array_equal(K.eval(outputs), np.concatenate([x, y], -1))


def test_unrolling_one_step():
    x = array(2, 1, 3)
    last, outputs, _ = K.rnn(lambda x, s: (x + s[0], [x]), K.variable(x), [K.zeros((2, 3))], unroll=True)
    assert outputs.shape == (2, 1, 3)
    np.testing.assert_array_equal(K.eval(last), x[:, 0])


@pytest.mark.parametrize("masked", [False, True])
def test_no_steps(masked):
    x = K.placeholder((None, None, 2))
    start = array(3, 2)
    mask = K.placeholder((None, None)) if masked else None
    last, outputs, (state,) = K.rnn(lambda x, s: (x * 2, [s[0] + x]), x, [K.variable(start)], mask=mask)
    f = K.function([x, mask] if masked else [x], [last, outputs, state, *K.gradients(K.sum(state), [x])])
    feeds = [np.zeros((3, 0, 2)), np.zeros((3, 0))][: 1 + masked]
    a, b, c, d = f(feeds)
    assert a.tolist() == np.zeros((3, 2)).tolist()
    assert b.shape == d.shape == (3, 0, 2)
    assert c.tolist() == start.tolist()
    assert f([np.ones((3, 2, 2)), np.ones((3, 2))][: 1 + masked])[2].tolist() == (start + 2).tolist()


def test_unknown_ranks_of_size():
    x, h = K.placeholder(ndim=3), K.placeholder(ndim=2)
    cell = Cell()
    last, _, states = K.rnn(lambda x, s: cell.tensors(x, [*s, s[0]]), x, [h, h])
    a, b = array(SAMPLES, TIME, FEATURES), array(SAMPLES, UNITS)
    actual = K.function([x, h], [last, *states])([a, b])
    expected = reference(lambda x, s: cell.arrays(x, [*s, s[0]]), a, [b, b])
    np.testing.assert_allclose(actual[0], expected[0], rtol=1e-12)
    np.testing.assert_allclose(actual[2], expected[3], rtol=1e-12)


def test_the_graph_does_not_grow_with_time():
    def nodes(time):
        x = K.placeholder((2, time, FEATURES))
        cell = Cell()
        _, outputs, _ = K.rnn(cell.tensors, x, [K.zeros((2, UNITS))] * 2)
        f = K.function([x], K.gradients(K.sum(outputs), [cell.kw, x]))
        f([array(2, time, FEATURES)])
        return len(f.graph("optimized").nodes)

    assert nodes(3) == nodes(300)


def test_loops_of_the_way_there_are_run_once():
    cell = Cell()
    x = K.placeholder((2, TIME, FEATURES))
    _, outputs, _ = K.rnn(cell.tensors, x, [K.zeros((2, UNITS))] * 2)
    loss = K.sum(outputs)
    f = K.function([x], [loss, *K.gradients(loss, [cell.kw, cell.ku])])
    f([array(2, TIME, FEATURES)])
    assert sum(n.op is SCAN for n in f.graph("optimized").nodes) == 2


def test_work_that_no_step_changes_leaves_the_body():
    x, w = K.placeholder((2, TIME, UNITS)), K.variable(array(UNITS, UNITS))
    _, outputs, _ = K.rnn(lambda x, s: (K.dot(x, K.tanh(w)), []), x, [])
    scan = outputs.node.inputs[0].inputs[0]
    assert [n.op.name for n in scan.attrs["body"].nodes if n.op.kind != "leaf"] == ["dot"]


def test_learning_phase_is_noted():
    x = K.placeholder((2, 3, 4))
    plain, _, _ = K.rnn(lambda x, s: (x, []), x, [])
    assert not hasattr(plain, "_uses_learning_phase")
    last, outputs, _ = K.rnn(lambda x, s: (K.in_train_phase(x, x * 2), []), x, [])
    assert last._uses_learning_phase
    a = array(2, 3, 4)
    f = K.function([x, K.learning_phase()], [outputs])
    np.testing.assert_array_equal(f([a, 1])[0], a)
    np.testing.assert_array_equal(f([a, 0])[0], a * 2)


def test_every_step_draws_anew():
    x = K.zeros((1, 50, 3))
    _, outputs, _ = K.rnn(lambda x, s: (x + K.random_uniform((1, 3)), []), x, [])
    f = K.function([], [outputs])
    first, second = f([])[0], f([])[0]
    assert len(np.unique(np.stack([first, second]))) == 300
    nested = K.map_fn(lambda row: K.map_fn(lambda v: v + K.random_uniform(()), row), K.zeros((20, 20)))
    assert len(np.unique(K.eval(nested))) == 400


def test_what_a_cell_keeps_holds_for_all_steps():
    kept = []

    def step(x, s):
        if not kept:
            kept.append(K.random_uniform((1, 3)))
        return x + kept[0], []

    _, outputs, _ = K.rnn(step, K.zeros((1, 5, 3)), [])
    assert len(np.unique(K.eval(outputs))) == 3


def test_the_way_back_sees_the_numbers_of_the_way_there():
    w = K.variable(np.ones(3))
    _, outputs, _ = K.rnn(lambda x, s: (w * K.random_uniform((1, 3)), []), K.zeros((1, 5, 3)), [])
    value, grad = K.function([], [K.sum(outputs, axis=(0, 1)), K.gradients(K.sum(outputs), [w])[0]])([])
    np.testing.assert_allclose(grad, value, rtol=1e-12)


# ------------------------------------------------------------------------------------------------ gradients
@pytest.mark.parametrize("mask", [None, MASK], ids=["all", "mask"])
@pytest.mark.parametrize("go_backwards", [False, True])
def test_gradients(mask, go_backwards):
    def build(x, h, c, w, u, k):
        def step(x, s):
            new = K.tanh(K.dot(x, w) + K.dot(s[0], u))
            return new * s[1] + s[2], [new, s[1] * K.sigmoid(new)]

        km = None if mask is None else K.variable(mask, "bool")
        last, outputs, states = K.rnn(step, x, [h, c], go_backwards=go_backwards, mask=km, constants=[k])
        return K.concatenate([last, K.sum(K.square(outputs), axis=1), *states])

    shapes = ((SAMPLES, TIME, FEATURES), *[(SAMPLES, UNITS)] * 2, (FEATURES, UNITS), (UNITS, UNITS), (SAMPLES, UNITS))
    check_gradients(build, *[array(*shape) / 2 for shape in shapes])


def test_second_gradients():
    def build(x, w, u):
        _, outputs, _ = K.rnn(lambda x, s: (t := K.tanh(K.dot(x, w) + K.dot(s[0], u)), [t]), x, [K.zeros((2, 3))])
        return K.gradients(K.sum(K.square(outputs)), [w])[0]

    check_gradients(build, array(2, 3, 2), array(2, 3), array(3, 3) / 2)


def test_gradients_of_loops_in_loops():
    def build(x, w):
        def outer(row, s):
            _, inner, (total,) = K.rnn(lambda v, t: (K.tanh(v * w) + t[0], [t[0] * v]), row, [s[0]])
            return K.sum(inner, axis=1), [total]

        last, outputs, (state,) = K.rnn(outer, x, [K.ones((2, 3))])
        return K.sum(outputs, axis=1) + last * state

    check_gradients(build, array(2, 4, 3, 3), array(3))


def test_second_gradients_of_loops_in_loops():
    def build(x, w):
        def outer(row, s):
            return K.foldl(lambda a, v: K.tanh(a * w + v), K.transpose(row), s[0]), [s[0] * K.sigmoid(w)]

        last, _, (state,) = K.rnn(outer, x, [K.ones((3,))])
        return K.gradients(K.sum(last * state), [w])[0]

    check_gradients(build, array(3, 2, 3), array(3))


def test_gradients_of_what_is_not_connected_are_none():
    x, w, v = K.variable(array(2, 3, 4)), K.variable(array(4)), K.variable(array(4))
    n = K.variable(3, "int32")
    last, _, states = K.rnn(lambda x, s: (x * w, [s[0] * v, s[1] + n]), x, [K.ones((2, 4)), K.zeros((2,), "int32")])
    assert K.gradients(K.sum(last), [v])[0] is None
    assert K.gradients(K.sum(last), [w])[0] is not None
    assert K.gradients(K.sum(states[0]), [v, w, x, n])[1:] == [None] * 3
    assert K.gradients(K.sum(last), [n]) == [None]


# ------------------------------------------------------------------------------------------------ errors
def test_errors():
    x = K.placeholder((2, 3, 4))
    with pytest.raises(ValueError, match=r"rnn: expected inputs of rank 3 or more, .* not of shape \(2, 3\)"):
        K.rnn(lambda x, s: (x, []), K.placeholder((2, 3)), [])
    with pytest.raises(ValueError, match="rnn: mask should have the shape"):
        K.rnn(lambda x, s: (x, []), x, [], mask=K.placeholder((2, 3, 4)))
    with pytest.raises(ValueError, match="unrolling requires a fixed number of time steps"):
        K.rnn(lambda x, s: (x, []), K.placeholder((2, None, 4)), [], unroll=True)
    with pytest.raises(ValueError, match="gave 2 new states for 1 states"):
        K.rnn(lambda x, s: (x, [x, x]), x, [K.zeros((2, 4))])
    with pytest.raises(ShapeError, match=r"rnn: state 0 is float64\[2, 1\] before a step and float64\[2, 4\] after it"):
        K.rnn(lambda x, s: (x, [s[0] + x]), x, [K.zeros((2, 1))])
    with pytest.raises(DTypeError, match="state 0"):
        K.rnn(lambda x, s: (x, [K.cast(x, "float32")]), x, [K.zeros((2, 4))])


def test_arguments_of_wrong_kinds():
    x = K.placeholder((2, 3, 4))
    for call, text in (
        (lambda: K.rnn(None, x, []), "rnn: expected a function, not NoneType"),
        (lambda: K.rnn(lambda x, s: x, x, []), r"rnn: the step function must return \(output, list of new states\)"),
        (lambda: K.rnn(lambda x, s: (x, s), x, K.zeros((2,))), "rnn: expected a list of tensors as initial_states"),
        (lambda: K.rnn(lambda x, s: (x, s), x, [], constants=3), "rnn: expected a list of tensors as constants"),
        (lambda: K.map_fn(x, x), "map_fn: expected a function, not Tensor"),
        (lambda: K.foldl(1, x), "foldl: expected a function, not int"),
        (lambda: K.foldr("f", x), "foldr: expected a function, not str"),
    ):
        with pytest.raises(TypeError, match=text):
            call()


def test_lengths_that_differ_are_told_at_the_call():
    x, mask = K.placeholder((2, None, 4)), K.placeholder((2, None))
    _, outputs, _ = K.rnn(lambda x, s: (x, []), x, [], mask=mask)
    with pytest.raises(ShapeError, match="expected 3 slices along the first axis"):
        K.function([x, mask], [outputs])([np.ones((2, 3, 4)), np.ones((2, 2))])


def test_errors_inside_a_step_name_its_line():
    table, x = K.variable(array(3, 2)), K.placeholder((1, None, 1), dtype="int32")
    _, outputs, _ = K.rnn(lambda i, s: (K.gather(table, i), []), x, [])
    with pytest.raises(IndexError, match=r"(?s)index 7 .*while executing .*gather.*built at test_backend_rnn.py"):
        K.function([x], [outputs])([[[[1], [7]]]])


# ------------------------------------------------------------------------------------------------ map and fold
def test_map():
    x = array(4, 3)
    v = K.variable(x)
    np.testing.assert_allclose(K.eval(K.map_fn(K.sum, v)), x.sum(1))
    by_index = K.map_fn(lambda i: K.sum(v[i]), K.arange(4), dtype="float64")
    np.testing.assert_allclose(K.eval(by_index), x.sum(1))
    assert K.dtype(K.map_fn(K.sum, v, dtype="float32")) == "float32"
    assert K.eval(K.map_fn(lambda e: e * 2, [1, 2, 3])).tolist() == [2, 4, 6]
    a, b = K.map_fn(lambda p: [p[0] + p[1], p[0] * p[1]], [v, v])
    np.testing.assert_allclose(K.eval(a), 2 * x)
    np.testing.assert_allclose(K.eval(b), x * x)
    assert K.eval(K.map_fn(lambda e: e * 2, K.constant(np.zeros((0, 3))))).shape == (0, 3)
    with pytest.raises(ShapeError, match="map_fn: expected elements along a first axis"):
        K.map_fn(K.sum, K.constant(1.0))


def test_folds():
    v = K.variable(np.array([1.0, 2.0, 3.0, 4.0]))
    assert K.eval(K.foldl(lambda a, b: a * 10 + b, v)) == 1234
    assert K.eval(K.foldr(lambda a, b: a * 10 + b, v)) == 4321
    assert K.eval(K.foldl(lambda a, b: a * 10 + b, v, initializer=5)) == 51234
    assert K.eval(K.foldr(lambda a, b: a * 10 + b, v, initializer=K.constant(5.0))) == 54321
    x = K.placeholder((None, 2))
    f = K.function([x], [K.foldr(lambda a, b: a - b, x)])
    assert f([[[1, 2], [3, 4], [5, 7]]])[0].tolist() == [1, 1]
    assert f([[[1, 2]]])[0].tolist() == [1, 2]
    with pytest.raises(ShapeError):
        f([np.zeros((0, 2))])


def test_foldr_goes_from_right_to_left():
    # From the left everything underflows to 0.
    values = K.variable(np.array([1e-20] * 3 + [1e10] * 3), "float32")
    assert K.eval(K.foldl(lambda a, b: a * b, values)) == 0
    assert K.eval(K.foldr(lambda a, b: a * b, values)) > 0


def test_gradients_of_maps_and_folds():
    check_gradients(lambda x, w: K.map_fn(lambda r: K.sum(K.tanh(r * w)), x), array(4, 3), array(3))
    check_gradients(lambda x, w: K.foldl(lambda a, r: K.tanh(a * w + r), x), array(4, 3), array(3))
    check_gradients(lambda x, i: K.foldr(lambda a, r: K.sin(a) * r, x, i), array(4, 3), array(3))
    check_gradients(lambda x: K.map_fn(lambda i: K.sum(x[i] * x[0]), K.arange(4), dtype="float64"), array(4, 3))
