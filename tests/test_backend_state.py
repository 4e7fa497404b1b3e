"""Variables, updates and counters: values that live between calls."""

import pickle
import threading

import numpy as np
import pytest

from graphkb import backend as K
from graphkb.ir.errors import DTypeError, ShapeError


# ------------------------------------------------------------------------------------------------- variables
@pytest.mark.parametrize(
    ("value", "dtype", "expected"),
    [
        (1, None, "float32"),
        ([[1, 2]], None, "float32"),
        (np.arange(3), None, "float32"),
        (np.float64(2), None, "float32"),
        (False, "bool", "bool"),
        ([1, 2], "int16", "int16"),
        (1.5, np.float64, "float64"),
        ([], None, "float32"),
    ],
)
def test_variable(value, dtype, expected):
    v = K.variable(value, dtype)
    assert v.dtype == K.dtype(v) == expected
    assert v.shape == np.shape(value) == v._keras_shape
    assert v._uses_learning_phase is False
    np.testing.assert_array_equal(K.get_value(v), np.asarray(value, expected))
    assert K.eval(v).dtype == expected


def test_a_variable_is_a_copy():
    a = np.ones(3, np.float32)
    v = K.variable(a)
    a[:] = 5
    K.get_value(v)[:] = 7
    assert K.get_value(v).tolist() == [1, 1, 1]


def test_variables_of_equal_values_are_different():
    v, w = K.variable(1), K.variable(1)
    K.set_value(v, 2)
    assert K.batch_get_value([v, w]) == [2, 1]


def test_variable_from_a_tensor():
    v = K.variable([1, 2])
    assert K.get_value(K.variable(v * 2, "float64")).tolist() == [2, 4]
    assert K.get_value(K.variable([K.constant(3), 4])).tolist() == [3, 4]


def test_variable_names_and_attributes():
    with K.name_scope("dense_1"):
        v = K.variable(1, name="kernel", constraint=abs)
    assert v.name == "dense_1/kernel:0"
    assert v.constraint is abs
    v.trainable = False
    assert v.trainable is False
    assert v.value() is not v
    assert not K.is_variable(v.value())


def test_bad_variables():
    with pytest.raises(TypeError, match=r"^variable: dtype 'complex64' is not supported"):
        K.variable(1, dtype="complex64")
    with pytest.raises(DTypeError, match=r"expected a tensor or numbers, not "):
        K.variable("text")
    with pytest.raises(ValueError):
        K.variable([[1, 2], [3]])
    with pytest.raises(ValueError, match=r"the value of the placeholder 'p' is needed"):
        K.variable(K.placeholder((), name="p"))


# ---------------------------------------------------------------------------------------------------- values
def test_set_value_casts_and_keeps_the_storage():
    v = K.variable([1, 2, 3], "int32", name="v")
    address = v.cell.array.ctypes.data
    for value, expected in [([4, 5, 6], [4, 5, 6]), (7, [7, 7, 7]), (np.array([1.9, -1.9, 0]), [1, -1, 0])]:
        K.set_value(v, value)
        assert K.get_value(v).tolist() == expected
    K.set_value(v, K.constant([1, 2, 3], "int32") * 2)
    assert K.get_value(v).tolist() == [2, 4, 6]
    assert v.cell.array.ctypes.data == address
    assert K.get_value(v + 1).tolist() == [3, 5, 7]


def test_nothing_changes_when_one_value_does_not_fit():
    v, w = K.variable([1, 2], name="v"), K.variable([3, 4, 5], name="w")
    with pytest.raises(ShapeError, match=r"^batch_set_value: w:0 has the shape \(3,\), the value \(2,\)$"):
        K.batch_set_value([(v, [8, 9]), (w, [8, 9])])
    assert [a.tolist() for a in K.batch_get_value([v, w])] == [[1, 2], [3, 4, 5]]
    with pytest.raises(DTypeError, match=r"^set_value: expected a tensor or numbers, not \['a', 'b'\]$"):
        K.set_value(v, ["a", "b"])
    with pytest.raises(TypeError, match=r"^set_value: expected a variable, not an instance of Tensor$"):
        K.set_value(v + 1, [1, 2])
    with pytest.raises(TypeError, match=r"^get_value: expected a variable, not 3$"):
        K.get_value(3)
    with pytest.raises(ShapeError):
        K.set_value(v, [[1, 2]])
    assert K.get_value(v).tolist() == [1, 2]


def test_values_are_never_seen_half_written():
    v, w = K.variable(np.zeros(20_000)), K.variable(np.zeros(20_000))
    stop = threading.Event()
    torn = []

    def watch():
        while not stop.is_set():
            a, b = K.batch_get_value([v, w])
            if len({*a.tolist(), *b.tolist()}) != 1:
                torn.append(True)

    thread = threading.Thread(target=watch)
    thread.start()
    for i in range(50):
        K.batch_set_value([(v, i), (w, i)])
    stop.set()
    thread.join()
    assert not torn


# --------------------------------------------------------------------------------------------------- updates
def test_updates():
    start = np.array([1.0, 2.0])
    for make, expected in [
        (lambda v: K.update(v, v * 3), start * 3),
        (lambda v: K.update(v, np.array([5, 6])), [5, 6]),
        (lambda v: K.update(v, [7, 8.5]), [7, 8.5]),
        (lambda v: K.update_add(v, 1), start + 1),
        (lambda v: K.update_add(v, np.array([1, -1])), [2, 1]),
        (lambda v: K.update_add(v, K.constant(2, "float64")), start + 2),
        (lambda v: K.update_sub(v, v / 2), start / 2),
        (lambda v: K.moving_average_update(v, [3, 4], 0.75), start * 0.75 + np.array([3, 4]) * 0.25),
        (lambda v: K.moving_average_update(v, K.constant([3, 4]), K.constant(0.5)), [2, 3]),
    ]:
        v = K.variable(start)
        update = make(v)
        assert K.get_value(v).tolist() == start.tolist()
        assert (update.variable, update.shape, update.dtype) == (v, (2,), "float32")
        np.testing.assert_allclose(K.eval(update), expected, rtol=1e-6)
        np.testing.assert_allclose(K.get_value(v), expected, rtol=1e-6)


def test_integer_counters():
    v = K.variable(0, "int64", name="iterations")
    K.eval(K.update_add(v, 1))
    K.eval(K.update_add(v, K.constant(2, "int32")))
    assert K.get_value(v) == 3
    with pytest.raises(DTypeError, match=r"^update_add: iterations:0 is int64, the new value is float32; use K.cast$"):
        K.update_add(v, 0.5)


def test_bad_updates():
    v = K.variable([1, 2], name="v")
    for update in (K.update, K.update_add, K.update_sub):
        with pytest.raises(TypeError, match=rf"^{update.__name__}: expected a variable to update, not an instance"):
            update(v + 1, v)
    with pytest.raises(ShapeError, match=r"^update: v:0 has the shape \(2,\), the new value \(3,\)$"):
        K.update(v, [1, 2, 3])
    with pytest.raises(ShapeError, match=r"^update_add: v:0 has the shape \(2,\), the new value \(2, 2\)$"):
        K.update_add(v, np.ones((2, 2)))
    with pytest.raises(ShapeError, match=r"the new value \(\)$"):
        K.update(v, 1)


# -------------------------------------------------------------------------------------------------- counters
def test_uids():
    K.reset_uids()
    assert [K.get_uid(), K.get_uid(), K.get_uid("a"), K.get_uid("b"), K.get_uid("a")] == [1, 2, 1, 1, 2]
    K.clear_session()
    assert K.get_uid("a") == 1


def test_sessions_do_not_exist():
    with pytest.raises(RuntimeError, match=r"^get_session: there are no sessions here"):
        K.get_session()
    with pytest.raises(RuntimeError, match=r"^set_session: there are no sessions here"):
        K.set_session(None)


# ------------------------------------------------------------------------------------------------- questions
def test_questions_never_raise():
    x, v = K.placeholder((2,)), K.variable(1)
    things = [x, v, v + 1, np.zeros(2), 1, None, "a", [x], object(), K.update(v, 2)]
    assert [K.is_placeholder(t) for t in things] == [True] + [False] * 9
    assert [K.is_variable(t) for t in things] == [False, True] + [False] * 8
    assert [K.is_tensor(t) for t in things] == [True] * 3 + [False] * 6 + [True]
    assert not any(K.is_sparse(t) for t in things)


def test_is_keras_tensor():
    x = K.placeholder((2,))
    assert K.is_keras_tensor(x) is False
    x._keras_history = ()
    assert K.is_keras_tensor(x) is True
    with pytest.raises(ValueError, match=r"^is_keras_tensor: expected a symbolic tensor, not an instance of <class"):
        K.is_keras_tensor(np.zeros(2))


def test_placeholders():
    x = K.placeholder((None, np.int64(3)), dtype="int8", name="x")
    assert (x.shape, x.dtype, x._keras_shape, x.name) == ((None, 3), "int8", (None, 3), "x:0")
    assert [str(d) for d in x.node.shape] == ["batch", "3"]
    assert [str(d) for d in K.placeholder(ndim=3, name="y").node.shape] == ["batch", "y_1", "y_2"]
    assert [str(d) for d in K.placeholder(ndim=2).node.shape] == ["batch", "x_1"]
    assert K.placeholder(()).shape == ()
    assert K.placeholder(shape=None).shape == (None,)
    with pytest.raises(TypeError, match=r"^placeholder: expected a shape such as \(3,\), not the integer 3$"):
        K.placeholder(3)
    with pytest.raises(ValueError, match=r"^placeholder: the size -1 is negative; use None"):
        K.placeholder((-1, 2))
    with pytest.raises(TypeError, match=r"^placeholder: dtype 'str' is not supported"):
        K.placeholder((2,), dtype="str")


def test_placeholders_of_one_type_do_not_merge():
    x, y = K.placeholder((2,), name="x"), K.placeholder((2,), name="x")
    assert x.node is not y.node
    assert K.function([x, y], [x - y])([[3, 3], [1, 2]])[0].tolist() == [2, 1]


def test_a_pickled_function_keeps_its_variables():
    v = K.variable(1.0)
    f = K.function([], [v * 1], updates=[K.update_add(v, 1)])
    g, w = pickle.loads(pickle.dumps((f, v)))
    g([])
    assert K.get_value(w) == 2
    assert K.get_value(v) == 1
