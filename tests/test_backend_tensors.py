"""Handles: what a user can do with a tensor besides calling K functions."""

import copy
import pickle
import sys

import numpy as np
import pytest
from k_tools import check, run

from graphkb import backend as K
from graphkb.backend.tensors import Tensor, Update, Variable
from graphkb.ir.errors import DTypeError, ShapeError

A = np.array([[1.5, -2.0, 3.0], [4.0, 0.5, -6.0]])
B = np.array([[2.0, 3.0, -1.0], [0.25, 5.0, 2.0]])


# -------------------------------------------------------------------------------------------------- identity
def test_handles_are_compared_by_identity_and_carry_any_attribute():
    x = K.placeholder((2,))
    y = K.identity(x)
    assert x != y
    assert x == x
    assert len({x, y}) == 2
    assert x.node is y.node
    x._keras_history = ("layer", 0, 0)
    x.anything = 1
    assert not hasattr(y, "_keras_history")
    assert (x == np.zeros(2)) is False


def test_information():
    x = K.placeholder((None, 4), dtype="float16", name="x")
    assert (x.dtype, x.shape, x.ndim, x.name, x.op.name) == ("float16", (None, 4), 2, "x:0", "placeholder")
    assert x.get_shape() == (None, 4)
    assert repr(x) == "<Tensor 'x': float16 (None, 4)>"
    v = K.variable(1, name="v")
    assert repr(v) == "<Variable 'v': float32 ()>"
    assert K.identity(x, name="y").name == "y:0"
    assert (x + 1).name == "add:0"
    x.name = "z"
    assert x.name == "z:0"
    with K.name_scope("outer"), K.name_scope("inner") as scope:
        assert scope == "outer/inner"
        assert K.tanh(x).name == "outer/inner/tanh:0"
        assert K.placeholder((1,), name="p").name == "outer/inner/p:0"


def test_the_truth_value_is_refused_with_advice():
    x = K.placeholder((), name="x")
    with pytest.raises(TypeError) as caught:
        bool(x)
    assert str(caught.value) == (
        "<Tensor 'x': float32 ()> has no truth value: it is symbolic and known only when a function runs; "
        "use K.switch to choose between tensors, or K.eval for a value that needs no inputs"
    )
    with pytest.raises(TypeError, match=r"symbolic and can not become a NumPy array; use K.eval"):
        np.asarray(x)
    with pytest.raises(TypeError, match=r"`in` is not defined"):
        1 in x  # noqa: B015


def test_length_and_iteration():
    x = K.variable(A)
    assert len(x) == 2
    assert [K.eval(row).tolist() for row in x] == A.tolist()
    _, b = K.shape(K.placeholder((None, 3)))
    assert K.eval(b) == 3
    unknown, scalar = K.placeholder((None, 3), name="u"), K.variable(1, name="s")
    for question in (len, iter):
        with pytest.raises(TypeError, match=r"not known before the call"):
            question(unknown)
        with pytest.raises(TypeError, match=r"is a scalar"):
            question(scalar)


# ------------------------------------------------------------------------------------------------- operators
BINARY = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "//": lambda a, b: a // b,
    "%": lambda a, b: a % b,
    "**": lambda a, b: a**b,
    "<": lambda a, b: a < b,
    "<=": lambda a, b: a <= b,
    ">": lambda a, b: a > b,
    ">=": lambda a, b: a >= b,
}


@pytest.mark.parametrize("symbol", BINARY)
@pytest.mark.parametrize(("a", "b"), [(A, B), (A, B[0]), (A[:, :1], B), (A, 2.0), (3.0, B), (np.float64(0.5), B)])
def test_binary_operators(symbol, a, b):
    if symbol == "**":
        a = np.abs(a)
    op = BINARY[symbol]
    tensors = [v for v in (a, b) if isinstance(v, np.ndarray)]

    def build(*xs):
        xs = iter(xs)
        return op(*[next(xs) if isinstance(v, np.ndarray) else v for v in (a, b)])

    result = run(build, *tensors)
    np.testing.assert_allclose(result, op(a, b), rtol=1e-14)
    assert result.dtype == (np.bool_ if symbol in "<=>=" else np.float64)


@pytest.mark.parametrize("symbol", BINARY)
def test_numpy_arrays_on_either_side(symbol):
    op = BINARY[symbol]
    x = np.abs(A) + 1
    np.testing.assert_array_equal(K.eval(op(x, K.variable(B, "float64"))), op(x, B))
    np.testing.assert_array_equal(K.eval(op(K.variable(x, "float64"), B)), op(x, B))


def test_unary_operators():
    check(lambda x: -x, np.negative, A)
    check(lambda x: +x, np.positive, A)
    check(abs, np.abs, A)
    check(lambda x: ~x, np.invert, A > 0)


@pytest.mark.parametrize(("symbol", "op"), [("&", np.logical_and), ("|", np.logical_or), ("^", np.logical_xor)])
def test_logic(symbol, op):
    build = {"&": lambda a, b: a & b, "|": lambda a, b: a | b, "^": lambda a, b: a ^ b}[symbol]
    check(build, op, A > 0, B > 1)
    check(lambda a: build(a, True), lambda a: op(a, True), A > 0)
    check(lambda a: build(False, a), lambda a: op(a, False), A > 0)


@pytest.mark.parametrize(
    ("m", "n"),
    [((2, 3), (3, 4)), ((3,), (3,)), ((2, 3), (3,)), ((3,), (3, 2)), ((5, 2, 3), (5, 3, 4)), ((5, 2, 3), (3, 4)),
     ((3,), (5, 3, 4)), ((5, 2, 3), (3,)), ((2, 1, 2, 3), (5, 3, 2)), ((0, 3), (3, 2)), ((2, 0), (0, 3))],
)  # fmt: skip
def test_matmul(m, n):
    rng = np.random.default_rng(0)
    check(lambda a, b: a @ b, np.matmul, rng.normal(size=m), rng.normal(size=n))
    check(lambda b: np.ones(m) @ b, lambda b: np.ones(m) @ b, rng.normal(size=n))


def test_operators_refuse_what_is_no_number():
    x = K.placeholder((2,))
    for bad in ("a", None, object()):
        with pytest.raises(TypeError):
            x + bad
        with pytest.raises(TypeError):
            bad - x
    with pytest.raises(TypeError, match=r"bool operands have no arithmetic"):
        (x > 0) + (x > 1)
    with pytest.raises(TypeError, match=r"expected bool tensors, not float32"):
        x & x
    with pytest.raises(TypeError, match=r"expected a bool tensor, not float32"):
        _ = ~x
    with pytest.raises(DTypeError, match=r"expected a tensor or numbers, not "):
        x + 1j * np.ones(2)
    with pytest.raises(ShapeError, match=r"^add: shapes \(2,\) and \(3,\) do not broadcast: axis 0 has 2 and 3$"):
        x + K.placeholder((3,))


# ------------------------------------------------------------------------------------------------- promotion
PROMOTION = [
    # a tensor's dtype, what stands beside it, the dtype of the sum
    ("float32", 1, "float32"),
    ("float32", 1.5, "float32"),
    ("float32", True, "float32"),
    ("float32", np.float64(0.5), "float32"),
    ("float32", np.array(0.5), "float32"),
    ("float32", np.ones(2), "float32"),
    ("float32", np.arange(2), "float32"),
    ("float32", [1.0, 2.0], "float32"),
    ("float16", np.ones(2), "float16"),
    ("float64", np.ones(2, np.float32), "float64"),
    ("int32", 1, "int32"),
    ("int32", np.arange(2), "int32"),
    ("int32", 1.0, "float32"),
    ("int64", np.ones(2), "float32"),
    ("uint8", 300, "int16"),
    ("uint8", -1, "int16"),
    ("int8", np.array([1, 1000]), "int16"),
    ("bool", 1, "int64"),
    ("bool", 0.5, "float32"),
]


@pytest.mark.parametrize(("dtype", "value", "expected"), PROMOTION)
def test_numbers_and_arrays_are_weak(dtype, value, expected):
    x = K.variable([1, 1], dtype)
    for y in (x + value, value + x):
        assert y.dtype == expected
        np.testing.assert_array_equal(K.eval(y), 1 + np.asarray(value))


@pytest.mark.parametrize(
    ("a", "b", "expected"),
    [("float32", "float64", "float64"), ("int32", "int64", "int64"), ("int8", "uint8", "int16"),
     ("float32", "int64", "float32"), ("float16", "int32", "float16"), ("bool", "float32", "float32"),
     ("bool", "int8", "int8")],
)  # fmt: skip
def test_tensors_promote(a, b, expected):
    x, y = K.variable([1, 1], a), K.variable([1, 0], b)
    assert (x + y).dtype == (y + x).dtype == expected
    assert K.eval(x + y).tolist() == [2, 1]


def test_division_of_integers_gives_floatx():
    x = K.variable([7, -7], "int32")
    assert (x / 2).dtype == "float32"
    assert K.eval(x / 2).tolist() == [3.5, -3.5]
    assert (x // 2).dtype == (x % 2).dtype == "int32"
    assert K.eval(x // 2).tolist() == [3, -4]
    assert K.eval(x % 2).tolist() == [1, 1]
    assert (1 / x).dtype == "float32"
    assert (x**2).dtype == "int32"
    assert (x**0.5).dtype == "float32"


def test_a_number_beyond_all_dtypes():
    with pytest.raises(DTypeError, match=r"at most 64 bits"):
        K.variable(1, "int64") + 2**70
    assert K.eval(K.variable(1) * 2**70) == 2.0**70
    with pytest.raises(DTypeError, match=r"^an integer is too large for float32$"):
        K.variable(1) * 10**400


def test_an_array_is_taken_as_it_is_when_the_graph_is_built():
    a = np.ones(100, np.float32)
    y = K.variable(np.zeros(100)) + a
    a[:] = 5
    assert K.eval(y).tolist() == [1.0] * 100


# -------------------------------------------------------------------------------------------------- indexing
C = np.arange(60.0).reshape(3, 4, 5)
KEYS = [
    0,
    -1,
    np.int64(2),
    (1, 2),
    (1, 2, 3),
    (0, -1, -5),
    slice(None),
    slice(1, None),
    slice(None, -1),
    slice(-2, None),
    slice(None, None, 2),
    slice(None, None, -1),
    slice(5, 1),
    slice(1, 100),
    slice(-100, 2),
    slice(2, 0, -1),
    slice(None, 0, -2),
    (slice(1, 3), slice(0, 4, 3), slice(4, None, -2)),
    ...,
    (..., 0),
    (0, ...),
    (..., slice(1, 3)),
    (1, ..., 2),
    None,
    (None, 1),
    (..., None),
    (slice(None), None, 2, None),
    np.array([0, 2, 0]),
    [1, -1],
    (slice(None), [3, 0]),
    (slice(None), slice(None), np.array([[0, 1], [-1, 2]])),
    ([0, 2], [1, 3]),
    ([0, 2], slice(None), [1, 3]),
    ([[0], [2]], [1, 3]),
    (0, slice(None), [1, 3]),
    (0, [1, 3]),
    (None, [0, 1], None, [2, 3]),
    (slice(0, 2), [1, -1], [0, 4]),
    np.array([], np.int64),
]


@pytest.mark.parametrize("key", KEYS, ids=str)
def test_indexing(key):
    np.testing.assert_array_equal(run(lambda x: x[key], C), C[key])


@pytest.mark.parametrize("shape", [(0, 4, 5), (1, 1, 1)])
@pytest.mark.parametrize("key", [slice(1, None), slice(None, -1), slice(None, None, -1), (..., slice(0, 2))], ids=str)
def test_slices_of_small_arrays(shape, key):
    x = np.zeros(shape)
    np.testing.assert_array_equal(run(lambda t: t[key], x), x[key])


def test_constant_bool_arrays_index():
    mask = np.array([True, False, True])
    np.testing.assert_array_equal(K.eval(K.variable(C)[mask]), C[mask])
    grid = np.zeros((3, 4), bool)
    grid[1, 2] = grid[2, 0] = True
    np.testing.assert_array_equal(K.eval(K.variable(C)[grid]), C[grid])
    np.testing.assert_array_equal(K.eval(K.variable(C)[:, [True, False, False, True]]), C[:, [0, 3]])


def test_tensors_index():
    i, j = np.array(1), np.array([2, -1])
    check(lambda x, i: x[i], lambda x, i: x[i], C, i)
    check(lambda x, i: x[:, i], lambda x, i: x[:, i], C, i)
    check(lambda x, j: x[j], lambda x, j: x[j], C, j)
    check(lambda x, i, j: x[i, :, j], lambda x, i, j: x[i, :, j], C, i, j)
    check(lambda x, i, j: x[i, j], lambda x, i, j: x[i, j], C, i, j)
    check(lambda x, j: x[j, j], lambda x, j: x[j, j], C, j)


def test_sizes_as_bounds():
    x, y = K.placeholder((None, 4)), K.placeholder((None,))
    n = K.shape(y)[0]
    f = K.function([x, y], [x[:n], x[n:], x[-n:], x[n - 1], x[n // 2 : n * 2]])
    a = np.arange(20.0).reshape(5, 4)
    for size in (1, 2, 4):
        found = f([a, np.zeros(size)])
        for value, expected in zip(found, [a[:size], a[size:], a[-size:], a[size - 1], a[size // 2 : size * 2]]):
            np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize(
    ("key", "error", "text"),
    [
        (3, IndexError, "index 3 is out of bounds for axis 0 with size 3"),
        ((0, -5), IndexError, "index -5 is out of bounds for axis 1 with size 4"),
        ((0, 0, 0, 0), IndexError, "too many indices for a tensor of shape (3, 4, 5): 4 for 3 axes"),
        ((..., ...), IndexError, "an index can have only one ellipsis ('...')"),
        ([0, 9], IndexError, "index 9 is out of bounds for axis 0 with size 3"),
        ([True, False], IndexError, "a bool array of shape (2,) as an index does not fit the axes of sizes (3,)"),
        (True, TypeError, "a tensor can not be indexed with True or False; use K.switch"),
        (1.5, TypeError, "a tensor can not be indexed with 1.5: expected integers, slices, ..., None, "
         "integer tensors or arrays"),
        ([1.5], TypeError, "an array used as an index must hold integers, not float64"),
        (slice(None, None, 0), ValueError, "slice: the step must not be 0"),
    ],
)  # fmt: skip
def test_bad_indices(key, error, text):
    with pytest.raises(error) as caught:
        K.variable(C)[key]
    assert str(caught.value) == text


def test_bad_tensor_indices():
    x = K.variable(C)
    with pytest.raises(TypeError, match=r"the shape of the result would depend on values"):
        x[x > 0]
    with pytest.raises(TypeError, match=r"must hold integers, not float32"):
        x[K.variable(1)]
    with pytest.raises(ShapeError, match=r"depends on values, not only on shapes"):
        x[: K.variable(1, "int32")]
    with pytest.raises(IndexError, match=r"out of range"):
        K.eval(x[K.variable([0, 1], "int32"), K.variable([4, 0], "int32")])


# -------------------------------------------------------------------------------------------------- pickling
def test_pickled_tensors_share_their_variables():
    v = K.variable([1.0, 2.0], name="v", constraint=abs)
    v.trainable = False
    x = K.placeholder((2,), name="x")
    y = K.tanh(v * x)
    y.note = "kept"
    w, z, p, same = pickle.loads(pickle.dumps((v, y, x, v)))
    assert w is same
    assert isinstance(w, Variable)
    assert (w.name, w.trainable, w.constraint, w._keras_shape) == ("v:0", False, abs, (2,))
    assert (z.note, p.name) == ("kept", "x:0")
    f = K.function([p], [z])
    K.set_value(w, [0.5, 0.25])
    np.testing.assert_allclose(f([[1, 2]])[0], np.tanh([0.5, 0.5]), rtol=1e-6)
    assert K.get_value(v).tolist() == [1.0, 2.0]


def test_pickled_updates_and_deep_chains():
    v = K.variable(1.0)
    u = K.update_add(v, 1)
    w, t = pickle.loads(pickle.dumps((v, u)))
    assert isinstance(t, Update)
    assert t.variable is w
    assert K.eval(t) == 2
    assert K.get_value(w) == 2
    x = K.placeholder((1,))
    y = x
    for i in range(100_000):
        y = y + float(i % 7)
    z = pickle.loads(pickle.dumps(y))
    assert isinstance(z, Tensor)
    assert z.node.op.name == "add"
    assert sys.getrecursionlimit() < 100_000


def test_copies():
    x = K.placeholder((2,))
    y = copy.copy(x)
    assert y is not x
    assert y.node is x.node


def test_a_notebook_shows_a_picture():
    assert "<svg" in (K.placeholder((None, 3)) + 1)._repr_svg_()
