"""Functions, evaluation, gradients, and choices between values."""

import pickle

import numpy as np
import pytest
from k_tools import check, check_gradients

from graphkb import backend as K
from graphkb.ir.errors import GraphError, InputError, ShapeError
from graphkb.runtime.function import Function

X = np.random.default_rng(0).normal(size=(3, 4))


@pytest.fixture(autouse=True)
def clean():
    yield
    K.clear_session()


# ------------------------------------------------------------------------------------------------ functions
def test_updates_use_old_values_and_outputs_too():
    v, w = K.variable(1.0), K.variable(10.0)
    f = K.function([], [v + w], updates=[K.update(v, w), (w, v), None])
    assert f([]) == [11]
    assert K.batch_get_value([v, w]) == [10, 1]


def test_update_forms():
    v, w, u, x = K.variable(0.0), K.variable([0.0, 0.0]), K.variable(0.0), K.placeholder(())
    f = K.function([x], [], updates=[[K.update_add(v, x)], (w, 3), (u, np.float64(2)), [(K.variable(0), 1)], x * 2])
    assert f([5]) == []
    assert [a.tolist() for a in K.batch_get_value([v, w, u])] == [5, [3, 3], 2]
    g = K.function([], [], updates=(K.update(v, 1), K.update(u, 7)))
    g([])
    assert K.batch_get_value([v, u]) == [1, 7]


def test_the_first_of_two_updates_counts():
    v = K.variable(0.0)
    once = K.update_add(v, 1)
    f = K.function([], [], updates=[once, once, K.update(v, 9)])
    f([])
    assert K.get_value(v) == 1


def test_metrics_show_new_values():
    total, x = K.variable(0.0), K.placeholder(())
    update = K.update_add(total, x)
    result = K.identity(total * 10)
    result._is_metric = True
    f = K.function([x], [total, result, total * 10], updates=[update])
    assert f([2]) == [0, 20, 0]
    assert f([3]) == [2, 50, 20]


def test_control_dependencies():
    v = K.variable(1.0)
    update = K.update_add(v, 1)
    with K.control_dependencies([[update], v]):
        w = v * 10
    with K.control_dependencies(None):
        unmarked = v * 10
    assert K.function([], [v * 10, w], updates=[update])([]) == [10, 20]
    assert K.get_value(v) == 2
    assert K.eval(w) == 30
    assert K.eval(unmarked) == 30
    assert K.get_value(v) == 3


def test_one_output_alone():
    x = K.placeholder((None,))
    f = K.function([x], K.sum(x))
    assert isinstance(f, Function)
    assert f([[1, 2]]) == 3
    assert isinstance(f([[1, 2]]), np.ndarray)
    assert pickle.loads(pickle.dumps(f))([[1, 2, 3]]) == 6


def test_inputs_that_are_no_placeholders():
    x = K.placeholder((None, 2))
    hidden = x * 3
    f = K.function([hidden], [hidden + 1])
    assert f([[[1, 2]]])[0].tolist() == [[2, 3]]
    by_phase = K.in_train_phase(x * 2, x)
    g = K.function([by_phase], [by_phase + 1])
    assert g([[[1, 2]]])[0].tolist() == [[2, 3]]


def test_function_errors():
    x, v = K.placeholder((2,), name="x"), K.variable(1)
    with pytest.raises(ValueError, match=r"^function: unknown argument 'feed_dict'"):
        K.function([x], [x], feed_dict={})
    with pytest.raises(TypeError, match=r"^function: expected a list of inputs, not Tensor$"):
        K.function(x, [x])
    with pytest.raises(TypeError, match=r"^function: expected a tensor as an output, not an instance of int$"):
        K.function([x], [x, 1])
    with pytest.raises(TypeError, match=r"^function: expected a tensor as an input, not an instance of NoneType$"):
        K.function([None], [x])
    with pytest.raises(TypeError, match=r"expected K.update\(…\) or \(variable, new value\) as an update, not int$"):
        K.function([x], [x], updates=[3])
    with pytest.raises(
        TypeError, match=r"^function: updates: expected a variable to update, not an instance of Tensor$"
    ):
        K.function([x], [x], updates=[(x, v)])
    with pytest.raises(ShapeError, match=r"^function: updates: v:0 has the shape \(\), the new value \(2,\)$"):
        K.function([x], [x], updates=[(K.variable(1, name="v"), x)])
    with pytest.raises(GraphError, match=r"a placeholder stands twice among the inputs"):
        K.function([x, x], [x])
    with pytest.raises(
        InputError, match=r"^function: f: the placeholder 'x' is needed but is not among the inputs; add it to"
    ):
        K.function([], [x + 1], name="f")
    f = K.function([x], [x], name="f")
    with pytest.raises(TypeError, match=r"f: expected a list or tuple"):
        f(np.zeros(2))
    with pytest.raises(InputError, match=r"^x: expected shape \(2,\), got \(3,\)"):
        f([[1, 2, 3]])


# --------------------------------------------------------------------------------------------------- eval
def test_eval():
    assert K.eval(3.5) == 3.5
    assert K.eval([1, 2]).dtype == "int32"
    assert K.eval(K.constant(1)).shape == ()
    with pytest.raises(InputError, match=r"the value of the placeholder 'x' is needed"):
        K.eval(K.placeholder((), name="x") + 1)


def test_values_of_eval_are_the_callers_own():
    v = K.variable([1, 2])
    K.eval(v)[:] = 9
    K.eval(K.zeros_like(v))[:] = 9
    K.eval(K.transpose(K.constant([[1, 2]])))[:] = 9
    assert K.eval(v).tolist() == [1, 2]


# ------------------------------------------------------------------------------------------------ gradients
def test_gradients():
    v, w, x = K.variable([1.0, 2.0]), K.variable(3.0), K.placeholder((2,))
    y = v * v
    loss = K.sum(y * x) * w
    found = K.gradients(loss, [v, w, x, y, K.variable(1.0), K.stop_gradient(v)])
    assert found[4:] == [None, None]
    values = K.function([x], found[:4])([[5, 7]])
    assert [a.tolist() for a in values] == [[30, 84], 33, [3, 12], [15, 21]]


def test_forms_of_gradients():
    v = K.variable([1.0, 2.0])
    assert K.eval(K.gradients(v * 3, v)[0]).tolist() == [3, 3]
    assert K.eval(K.gradients([v, K.sum(v)], (v,))[0]).tolist() == [2, 2]
    assert K.gradients(K.argmax(v), [v]) == [None]
    update = K.update(v, v * 2)
    assert K.eval(K.gradients(K.sum(update * update), [v, update])[0]).tolist() == [8, 16]
    assert K.eval(K.gradients(K.sum(update * update), [v, update])[1]).tolist() == [4, 8]
    with pytest.raises(TypeError, match=r"^gradients: expected tensors, not 1$"):
        K.gradients(v, [1])


def test_second_derivatives():
    v = K.variable(np.array([0.3, -0.7]), "float64")
    (first,) = K.gradients(K.sum(K.tanh(v) ** 3), v)
    (second,) = K.gradients(K.sum(first), v)
    t = np.tanh([0.3, -0.7])
    np.testing.assert_allclose(K.eval(second), (6 * t - 12 * t**3) * (1 - t**2), rtol=1e-12)


def test_stop_gradient():
    v = K.variable(2.0)
    a, b = K.stop_gradient([v, v * 2])
    assert K.eval(a + b) == 6
    assert K.eval(K.gradients(v * a, v)[0]) == 2
    assert K.gradients(a, v) == [None]


def test_a_small_network():
    w1, b1, w2 = X.T[:, :2], np.array([0.1, -0.2]), np.array([[0.3, -0.5], [1.0, 0.2]])
    target = np.eye(2)[[0, 1, 0]]

    def loss(w1, b1, w2):
        hidden = K.tanh(K.bias_add(K.dot(K.constant(X, "float64"), w1), b1))
        return K.mean(K.categorical_crossentropy(K.constant(target, "float64"), K.softmax(K.dot(hidden, w2))))

    check_gradients(loss, w1, b1, w2)


def test_gradients_with_unknown_sizes():
    x, w, b = K.placeholder((None, 4)), K.variable(np.ones((4, 2)), "float64"), K.variable([0.0, 0.0], "float64")
    y = K.placeholder(ndim=2, dtype="float64")
    loss = K.mean(K.square(K.dot(K.cast(x, "float64"), w) + b - y))
    f = K.function([x, y], K.gradients(loss, [w, b]))
    for n in (1, 3):
        target = np.ones((n, 2))
        dw, db = f([X[:n], target])
        error = X[:n].astype(np.float32) @ np.ones((4, 2)) - target
        np.testing.assert_allclose(dw, X[:n].astype(np.float32).T @ error / n, rtol=1e-6)
        np.testing.assert_allclose(db, error.sum(0) / n, rtol=1e-6)


# ---------------------------------------------------------------------------------------------- switch, phase
def test_switch():
    a, b = X, -2 * X
    check(lambda c, a, b: K.switch(c, a, b), lambda c, a, b: np.where(c, a, b), X > 0, a, b)
    check(lambda c, a, b: K.switch(c, a, b), lambda c, a, b: np.where(c[:, None], a, b), X[:, 0] > 0, a, b)
    check(lambda c, a, b: K.switch(c, a, b), lambda c, a, b: np.where(c, a, b), np.array(True), a, b)
    check(lambda c, a, b: K.switch(c, lambda: a, lambda: b), lambda c, a, b: b, np.array(0, np.int32), a, b)
    check(lambda c, a: K.switch(c, a, 0.0), lambda c, a: np.where(c, a, 0), X > 0, a)
    check(lambda c, a: K.switch(c, 1.0, a), lambda c, a: np.where(c, 1, a), X > 0, a)
    check_gradients(lambda a, b: K.switch(K.constant(X > 0, "bool"), a * b, a), a, b)


def test_a_known_condition_chooses_at_once():
    a, b = K.variable([1.0, 2.0]), K.variable([3.0])
    assert K.switch(True, a, b) is a
    assert K.switch(0, a, lambda: b) is b
    assert K.switch(np.bool_(True), a, b) is a
    assert K.switch(K.constant(False, "bool"), a, b) is b

    def never():
        raise AssertionError

    assert K.switch(True, a, never) is a


def test_switch_errors():
    a = K.variable(X)
    with pytest.raises(ValueError, match=r"^switch: Rank of `condition` should be less than or equal to rank of"):
        K.switch(K.variable(X[None]) > 0, a, a)
    with pytest.raises(ShapeError, match=r"under a scalar condition both expressions must have one shape, not"):
        K.switch(K.variable(1) > 0, a, a[0])
    x, y = K.placeholder((None, 4)), K.placeholder((None, 4))
    f = K.function([x, y], [K.switch(K.sum(x) > 0, x, y)])
    assert f([np.ones((2, 4)), np.zeros((2, 4))])[0].tolist() == [[1] * 4] * 2
    with pytest.raises(ShapeError, match=r"has 4 elements, the new shape \(2, 4\) has 8"):
        f([np.ones((2, 4)), np.zeros((1, 4))])


def test_learning_phase():
    a, b = K.variable([1.0]), K.variable([2.0])
    y = K.in_train_phase(a, lambda: b)
    z = K.in_test_phase(a, b)
    assert y._uses_learning_phase is True
    phase = K.learning_phase()
    assert (phase.shape, phase.dtype, K.is_placeholder(phase)) == ((), "int32", True)
    assert K.learning_phase() is phase
    f = K.function([phase], [y, z])
    assert [[v.tolist() for v in f([p])] for p in (1, 0)] == [[[1], [2]], [[2], [1]]]
    # without the phase among the inputs it is 0: testing
    assert K.function([], [y])([])[0] == 2
    assert K.eval(y) == 2
    assert K.eval(K.update(a, y)) == 2


def test_fixed_learning_phase():
    a, b = K.variable([1.0]), K.variable([2.0, 3.0])
    K.set_learning_phase(1)
    assert K.learning_phase() == 1
    assert K.in_train_phase(a, b) is a
    assert K.in_test_phase(a, b) is b
    K.set_learning_phase(False)
    assert K.in_train_phase(a, b) is b
    for bad in (2, -1, "1", None, K.variable(1)):
        with pytest.raises(ValueError, match=r"^set_learning_phase: expected 0 or 1, not"):
            K.set_learning_phase(bad)
    assert K.learning_phase() == 0
    K.clear_session()
    assert K.is_placeholder(K.learning_phase())


def test_training_argument():
    a, b = K.variable([1.0]), K.variable([2.0])
    for training, expected in ((True, a), (1, a), (False, b), (0, b)):
        assert K.in_train_phase(a, b, training) is expected
    flag = K.placeholder((), dtype="bool")
    y = K.in_train_phase(a, b, training=flag)
    assert not hasattr(y, "_uses_learning_phase")
    assert K.function([flag], [y])([True])[0] == 1


# -------------------------------------------------------------------------------------------------- deep graphs
def test_deep_graphs_differentiate_and_run():
    v = K.variable(1.0, "float64")
    y = v
    for _ in range(20_000):
        y = y * 0.9999
    assert np.isclose(K.eval(K.gradients(y, v)[0]), 0.9999**20_000)


def test_name_scopes():
    with K.name_scope("a"):
        x = K.placeholder((2,), name="x")
        with K.name_scope(""):
            y = x + 1
    assert (x.name, y.name) == ("a/x:0", "a/add:0")
    assert (x + 1).node.origin.scope == "a"


def test_the_learning_phase_is_bound_before_compiling() -> None:
    x, n = K.placeholder((None, 4)), K.variable(0)
    y = K.in_train_phase(lambda: K.dropout(x, 0.5, seed=1), x)
    f = K.function([K.learning_phase(), x], [y, n + 0], updates=[K.update_add(n, 1)])
    ones = np.ones((50, 4), "float32")
    for phase in (0, 0.0, False, np.int32(0)):
        assert np.array_equal(f([phase, ones])[0], ones)
    for phase in (1, 1.0, True, np.array(1)):
        value = f([phase, ones])[0]
        assert set(np.unique(value)) == {0.0, 2.0}
    assert K.get_value(n) == 8
    again = pickle.loads(pickle.dumps(f))
    assert np.array_equal(again([0, ones])[0], ones)
    with pytest.raises(ValueError, match="expected 2 inputs"):
        f([ones])
    single = K.function([x, K.learning_phase()], y)
    assert single([ones, 0]).shape == (50, 4)


def test_a_bound_learning_phase_leaves_only_its_branch() -> None:
    x = K.placeholder((2, 3))
    f = K.function([x, K.learning_phase()], [K.in_train_phase(lambda: K.exp(x), lambda: K.sin(x))])
    f([np.ones((2, 3)), 1])
    assert "exp" in f.dump()
    assert "sin" not in f.dump()
    f([np.ones((2, 3)), 0])
    assert "sin" in f.dump()
    assert "exp" not in f.dump()


def test_texts_go_through_functions_unchanged() -> None:
    text, x = K.placeholder((), dtype="string", name="text"), K.placeholder((2,))
    assert K.function([text], [K.identity(text)])([b"test"]) == [b"test"]
    f = K.function([x, text], [x + 1, text])
    assert [np.asarray(value).tolist() for value in f([[1, 2], "word"])] == [[2.0, 3.0], "word"]
    assert K.function([text], text)(["alone"]) == "alone"
    words = K.placeholder((None,), dtype="string")
    assert K.function([words], [words])([["a", "b"]])[0].tolist() == ["a", "b"]
    for bad in ([1, "w"], [[1, 2], 3], [[1, 2], ["a"]], [[1, 2]], 1):
        with pytest.raises(ValueError, match=r"expected|texts"):
            f(bad)
    with pytest.raises(ValueError, match="is needed but is not among the inputs"):
        K.function([x], [text])
    with pytest.raises(TypeError):
        text + 1
