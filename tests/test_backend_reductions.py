"""Reductions of K against NumPy in float64: axes, empty tensors, dtypes, gradients."""

import numpy as np
import pytest
from k_tools import check, check_gradients, run
from scipy import special

import graphkb
from graphkb import backend as K
from graphkb.ir.errors import ShapeError

X = np.random.default_rng(0).normal(size=(3, 4, 5))
AXES = [None, 0, -1, 1, [0, 2], (1, -1), [1, -1, 0], [], np.int64(1), np.array([0, 1])]
MEANING = {
    "sum": np.sum,
    "prod": np.prod,
    "max": np.max,
    "min": np.min,
    "mean": np.mean,
    "var": np.var,
    "std": np.std,
    "any": np.any,
    "all": np.all,
    "logsumexp": special.logsumexp,
}


def as_tuple(axis):
    return tuple(int(a) for a in axis) if isinstance(axis, (list, np.ndarray)) else axis


@pytest.mark.parametrize("name", MEANING)
@pytest.mark.parametrize("keepdims", [False, True])
@pytest.mark.parametrize("axis", AXES, ids=str)
def test_axes(name, axis, keepdims):
    def meaning(x):
        if name == "logsumexp" and np.size(axis) == 0 and axis is not None:
            return x
        return MEANING[name](x, axis=as_tuple(axis), keepdims=keepdims)

    x = np.round(X) if name in ("any", "all") else X
    check(lambda t: getattr(K, name)(t, axis, keepdims), meaning, x)


@pytest.mark.parametrize("name", ["sum", "prod", "mean", "var", "std", "any", "all"])
@pytest.mark.parametrize("axis", [None, 0, 1])
@pytest.mark.filterwarnings("ignore")
def test_empty(name, axis):
    check(lambda t: getattr(K, name)(t, axis), lambda x: MEANING[name](x, axis=axis), np.zeros((0, 3)))
    check(lambda t: getattr(K, name)(t, axis), lambda x: MEANING[name](x, axis=axis), np.zeros((3, 0)))


@pytest.mark.parametrize("mode", ["interpret", "native"])
@pytest.mark.parametrize("shape", [(1, 1), (1, 40), (40, 1), (3, 5), (70, 200), (0, 3), (3, 0)])
def test_sums_of_negative_zeros_and_of_nothing_are_positive_zeros(shape, mode):
    x, w = K.placeholder((None, None)), K.placeholder((None, None))
    outputs = [K.sum(x), K.sum(x, 0), K.sum(x, 1), K.sum(x, 0) + 0.0, K.dot(x, w)]
    with graphkb.options(mode=mode):
        results = K.function([x, w], outputs)([-np.zeros(shape), np.ones(shape[::-1])])
    for result in results:
        assert (result == 0).all()
        assert not np.signbit(result).any()


def test_extrema_of_nothing():
    for name in ("max", "min"):
        with pytest.raises(ShapeError, match=f"there is no {name} of zero elements"):
            getattr(K, name)(K.constant(np.zeros((0, 3))), 0)
        assert K.int_shape(getattr(K, name)(K.constant(np.zeros((0, 3))), 1)) == (0,)
    with pytest.raises(ShapeError, match=r"there is no argmax of zero elements"):
        K.argmax(K.constant(np.zeros((3, 0))))
    assert K.eval(K.logsumexp(K.constant(np.zeros((0, 2))), 0)).tolist() == [-np.inf, -np.inf]


@pytest.mark.parametrize("name", ["sum", "prod", "max", "min"])
@pytest.mark.parametrize("dtype", ["int8", "int32", "uint64", "float16", "float32"])
def test_dtypes_are_kept(name, dtype):
    x = np.array([[1, 2], [3, 4]], dtype)
    result = run(getattr(K, name), x)
    assert result.dtype == dtype
    assert result == MEANING[name](x)


@pytest.mark.parametrize("name", ["mean", "var", "std", "logsumexp"])
def test_integers_and_bools_become_floats(name):
    for x in (np.array([1, 2, 4], np.int64), np.array([True, False, True])):
        result = run(getattr(K, name), x)
        assert result.dtype == "float32"
        np.testing.assert_allclose(result, MEANING[name](x.astype(float)), rtol=1e-6)


def test_bools_are_counted():
    x = np.array([True, False, True])
    assert run(K.sum, x).dtype == "int64"
    assert run(K.sum, x) == 2
    assert run(K.max, x).dtype == "bool"


def test_float16_means_do_not_overflow():
    x = np.full(1000, 300.0, np.float16)
    assert run(K.mean, x) == 300
    assert run(K.var, x) == 0
    assert run(K.mean, x).dtype == "float16"


def test_a_list_of_scalars_is_stacked():
    x = K.placeholder((None, 5, None))
    sizes = [K.shape(x)[i] for i in range(3)]
    (value,) = K.function([x], [K.prod(sizes)])([np.zeros((2, 5, 3))])
    assert value == 30
    assert value.dtype == "int32"
    assert K.eval(K.sum([1.0, 2.5])) == 3.5


@pytest.mark.parametrize("axis", [0, 1, -1, -3])
def test_positions(axis):
    check(lambda t: K.argmax(t, axis), lambda x: np.argmax(x, axis), X)
    check(lambda t: K.argmin(t, axis), lambda x: np.argmin(x, axis), X)
    check(lambda t: K.cumsum(t, axis), lambda x: np.cumsum(x, axis), X)
    check(lambda t: K.cumprod(t, axis), lambda x: np.cumprod(x, axis), X)


def test_defaults_of_positions():
    check(K.argmax, lambda x: np.argmax(x, -1), X)
    check(K.argmin, lambda x: np.argmin(x, -1), X)
    check(K.cumsum, lambda x: np.cumsum(x, 0), X)
    check(K.cumprod, lambda x: np.cumprod(x, 0), X)
    assert run(K.argmax, np.array([1.0, 3.0, 3.0])).dtype == "int64"
    assert run(K.argmax, np.array([1.0, np.nan, 3.0])) == 1


def test_logsumexp_is_stable():
    for x in ([1e4, 1e4], [-1e4, -1e4 - 1], [np.inf, 1.0], [-np.inf, -np.inf], [-np.inf, 0.0]):
        np.testing.assert_allclose(K.eval(K.logsumexp(K.variable(x, "float64"))), special.logsumexp(x))
    assert np.isnan(K.eval(K.logsumexp(K.variable([np.nan, 1.0]))))


@pytest.mark.parametrize("name", ["sum", "prod", "max", "min", "mean", "var", "std", "logsumexp"])
@pytest.mark.parametrize(("axis", "keepdims"), [(None, False), (1, True), ([0, -1], False)])
def test_gradients(name, axis, keepdims):
    check_gradients(lambda t: getattr(K, name)(t, axis, keepdims), X[:2, :2, :3])


def test_gradients_of_running_sums():
    check_gradients(lambda t: K.cumsum(t, 1), X[:2, :2, :3])
    check_gradients(lambda t: K.cumprod(t, 1), X[:2, :2, :3])


def test_errors():
    x = K.placeholder((2, 3))
    with pytest.raises(ShapeError, match=r"^sum: axis 2 is out of range for a tensor of rank 2$"):
        K.sum(x, 2)
    with pytest.raises(ShapeError, match=r"^mean: an axis stands twice in \(1, -1\)$"):
        K.mean(x, [1, -1])
    with pytest.raises(ShapeError, match=r"^argmax: axis -3 is out of range for a tensor of rank 2$"):
        K.argmax(x, -3)
    with pytest.raises(TypeError, match=r"^max: expected an int as an axis, not 'a'$"):
        K.max(x, "a")
    with pytest.raises(TypeError, match=r"^cumsum: expected an int as an axis, not None$"):
        K.cumsum(x, None)


def test_the_gradient_of_a_variance_is_right_to_second_order() -> None:
    values = np.random.default_rng(0).normal(size=(5, 3))
    x = K.placeholder((5, 3), dtype="float64")
    (slope,) = K.gradients(K.sum(K.var(x, axis=0) * np.array([1.0, 2.0, 3.0])), [x])
    (curvature,) = K.gradients(slope[1, 2], [x])
    first, second = K.function([x], [slope, curvature])([values])
    np.testing.assert_allclose(first, 2 / 5 * (values - values.mean(0)) * np.array([1, 2, 3]), rtol=1e-13)
    expected = np.zeros((5, 3))
    expected[:, 2] = 2 / 5 * 3 * ((np.arange(5) == 1) - 1 / 5)
    np.testing.assert_allclose(second, expected, atol=1e-15)
