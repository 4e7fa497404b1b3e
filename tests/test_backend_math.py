"""Element-wise K functions against NumPy in float64, their dtypes, and their gradients."""

import numpy as np
import pytest
from k_tools import check, check_gradients, run
from scipy import special

from graphkb import backend as K
from graphkb.ir.errors import DTypeError, ShapeError

X = np.array([[-2.5, -1.0, -0.3], [0.4, 1.0, 3.7]])
Y = np.array([[1.5, -0.5, 2.0], [0.7, 1.0, -1.2]])

UNARY = {
    "abs": np.abs,
    "square": np.square,
    "sign": np.sign,
    "round": np.rint,
    "sqrt": lambda x: np.sqrt(np.maximum(x, 0)),
    "exp": np.exp,
    "sin": np.sin,
    "cos": np.cos,
    "tanh": np.tanh,
    "sigmoid": special.expit,
    "hard_sigmoid": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
    "softplus": lambda x: np.logaddexp(x, 0),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "relu": lambda x: np.maximum(x, 0),
    "elu": lambda x: np.where(x > 0, x, np.expm1(x)),
}
KEEP_INTEGERS = {"abs", "square", "sign", "round", "relu"}


@pytest.mark.parametrize("name", UNARY)
@pytest.mark.parametrize("x", [X, X[0, 0], X[:0], X[None, :, None]], ids=["matrix", "scalar", "empty", "rank 4"])
def test_unary(name, x):
    check(getattr(K, name), UNARY[name], x)


@pytest.mark.parametrize("name", UNARY)
@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_unary_in_other_floats(name, dtype):
    result = run(getattr(K, name), X.astype(dtype))
    assert result.dtype == dtype
    np.testing.assert_allclose(result, UNARY[name](X), rtol=3e-3 if dtype == "float16" else 1e-6)


@pytest.mark.parametrize("name", UNARY)
def test_unary_of_integers(name):
    x = np.array([-3, 0, 2], np.int32)
    result = run(getattr(K, name), x)
    assert result.dtype == ("int32" if name in KEEP_INTEGERS else "float32")
    np.testing.assert_allclose(result, UNARY[name](x.astype(float)), rtol=1e-6)


@pytest.mark.parametrize("name", UNARY)
def test_unary_of_plain_values(name):
    assert K.eval(getattr(K, name)(0.5)).dtype == "float32"
    np.testing.assert_allclose(K.eval(getattr(K, name)([0.5, 2.0])), UNARY[name](np.array([0.5, 2.0])), rtol=1e-6)


@pytest.mark.parametrize("name", sorted(set(UNARY) - {"sign", "round", "sqrt"}))
def test_gradients_of_unary(name):
    check_gradients(getattr(K, name), X * 1.03)


def test_log():
    check(K.log, np.log, np.abs(X))
    assert K.eval(K.log(K.variable([0.0, -1.0]))).tolist()[0] == -np.inf
    assert np.isnan(K.eval(K.log(K.variable(-1.0))))
    check_gradients(K.log, np.abs(X))


def test_special_values():
    x = K.variable([np.nan, np.inf, -np.inf, -0.0])
    assert np.isnan(K.eval(K.sqrt(x))[0])
    assert K.eval(K.sqrt(x)).tolist()[1:] == [np.inf, 0, 0]
    assert K.eval(K.sigmoid(x)).tolist()[1:] == [1, 0, 0.5]
    assert K.eval(K.softplus(x)).tolist()[1:3] == [np.inf, 0]
    assert K.eval(K.elu(x)).tolist()[1:] == [np.inf, -1, 0]
    assert np.isnan(K.eval(K.relu(x))[0])


def test_gradients_at_the_edges():
    v = K.variable([-1.0, 0.0, 4.0, 1000.0])
    assert K.eval(K.gradients(K.sqrt(v), v)[0]).tolist()[0] == 0
    assert K.eval(K.gradients(K.relu(v), v)[0]).tolist() == [0, 0, 1, 1]
    assert K.eval(K.gradients(K.elu(v), v)[0]).tolist()[2:] == [1, 1]  # exp(1000) overflows in the branch not taken
    assert K.gradients(K.round(v), v) == [None]


# ---------------------------------------------------------------------------------------------------- two operands
TWO = {
    "maximum": np.maximum,
    "minimum": np.minimum,
    "equal": np.equal,
    "not_equal": np.not_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "less": np.less,
    "less_equal": np.less_equal,
}


@pytest.mark.parametrize("name", TWO)
def test_two_operands(name):
    f = getattr(K, name)
    check(f, TWO[name], X, Y)
    check(f, TWO[name], X, Y[0])
    check(f, TWO[name], X[:, :1], Y)
    check(f, TWO[name], X[:0], Y[:1])
    check(lambda x: f(x, 1.0), lambda x: TWO[name](x, 1.0), X)
    check(lambda x: f(1.0, x), lambda x: TWO[name](1.0, x), X)
    check(lambda x: f(x, Y), lambda x: TWO[name](x, Y), X)
    check(lambda x: f(x, 0.4), lambda x: TWO[name](x, 0.4), np.array([0, 1, -1], np.int32), rtol=1e-6)
    assert K.eval(f(1, 2)).tolist() == TWO[name](1, 2)


def test_nan_goes_through_maximum():
    assert np.isnan(K.eval(K.maximum(K.variable([np.nan]), 1.0)))
    assert np.isnan(K.eval(K.minimum(1.0, K.variable([np.nan]))))


def test_pow():
    check(K.pow, np.power, np.abs(X), Y)
    for exponent in (0, 1, 2, 3, -1, 0.5):
        check(lambda x, e=exponent: K.pow(x, e), lambda x, e=exponent: np.power(x, e), np.abs(X))
    check(lambda y: K.pow(2.0, y), lambda y: 2.0**y, Y)
    assert run(lambda x: K.pow(x, 2), np.array([-3, 2], np.int64)).tolist() == [9, 4]
    assert run(lambda x: K.pow(x, 3), np.array([-3, 2], np.int64)).tolist() == [-27, 8]
    check_gradients(K.pow, np.abs(X), Y)
    check_gradients(lambda x: K.pow(x, 2), X)


def test_gradients_of_two_operands():
    check_gradients(K.maximum, X, Y[0])
    check_gradients(K.minimum, X[:, :1], Y)
    check_gradients(lambda a, b: a * b + a / b - b, X, Y[:, 1:2])
    check_gradients(lambda a, b: a % b, np.abs(X), np.abs(Y) + 2)


def test_clip():
    check(lambda x: K.clip(x, -1, 2), lambda x: np.clip(x, -1, 2), X)
    check(lambda x: K.clip(x, None, 2), lambda x: np.minimum(x, 2), X)
    check(lambda x: K.clip(x, 0.5, None), lambda x: np.maximum(x, 0.5), X)
    check(lambda x: K.clip(x, -np.inf, np.inf), lambda x: x, X)
    check(lambda x: K.clip(x, 2, 1), lambda x: np.full_like(x, 2), X)
    check(lambda x, low: K.clip(x, low, low + 1), lambda x, low: np.clip(x, low, low + 1), X, Y)
    assert run(lambda x: K.clip(x, 0, 5), np.array([-3, 9], np.int32)).dtype == "int32"
    check_gradients(lambda x: K.clip(x, -1.5, 2), X)


# ---------------------------------------------------------------------------------------------------- casts
DTYPES = ["bool", "int8", "uint8", "int16", "int32", "int64", "uint64", "float16", "float32", "float64"]


@pytest.mark.parametrize("source", DTYPES)
@pytest.mark.parametrize("target", DTYPES)
def test_cast(source, target):
    x = np.array([0, 1, 5, 100]).astype(source)
    result = run(lambda t: K.cast(t, target), x)
    assert result.dtype == target
    np.testing.assert_array_equal(result, x.astype(target))


def test_cast_of_plain_values_and_bad_dtypes():
    assert K.dtype(K.cast(1.0, "float64")) == "float64"
    assert K.eval(K.cast(np.array([True, False]), "int32")).tolist() == [1, 0]
    with pytest.raises(TypeError, match=r"dtype 'quad' is not supported"):
        K.cast(1.0, "quad")
    assert K.gradients(K.cast(K.cast(K.variable(1.0), "int32"), "float32"), K.variable(1.0)) == [None]
    v = K.variable(2.0)
    assert K.eval(K.gradients(K.cast(v, "float64"), v)[0]).dtype == "float32"


def test_errors():
    flag = K.variable(True, "bool")
    for name in ("abs", "square", "sign", "round", "relu"):
        with pytest.raises(DTypeError, match=f"^{name}: bool is not allowed, expected numbers; use K.cast$"):
            getattr(K, name)(flag)
    with pytest.raises(ShapeError, match=r"^maximum: shapes \(2, 3\) and \(4,\) do not broadcast: axis 1 has 3 and 4$"):
        K.maximum(K.variable(X), K.variable([1, 2, 3, 4]))
    with pytest.raises(DTypeError, match=r"expected a tensor or numbers, not "):
        K.exp("text")
