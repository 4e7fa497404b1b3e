"""Pooling of K against plain loops: modes, paddings, layouts, ties, gradients, errors."""

import numpy as np
import pytest
from conv_tools import LAYOUTS, first, pool
from k_tools import check, check_gradients, run

import graphkb
from graphkb import backend as K
from graphkb.ir.errors import ShapeError

RNG = np.random.default_rng(4)

CASES = [
    ((2, 6, 8, 3), (2, 2), (2, 2), "valid"),
    ((2, 7, 5, 3), (2, 2), (2, 2), "same"),
    ((1, 7, 8, 2), (3, 3), (2, 2), "same"),
    ((1, 7, 8, 2), (3, 2), (1, 3), "valid"),
    ((1, 6, 5, 1), (3, 4), (1, 1), "same"),
    ((1, 5, 5, 2), (1, 1), (3, 2), "same"),
    ((2, 4, 5, 3), (4, 5), (1, 1), "valid"),
    ((1, 3, 2, 1), (7, 7), (1, 1), "same"),
    ((1, 4, 5, 6, 2), (2, 2, 2), (2, 2, 2), "valid"),
    ((1, 4, 5, 3, 2), (3, 2, 1), (2, 3, 1), "same"),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "size", "strides", "padding"), CASES)
def test_pooling(shape, size, strides, padding, layout):
    x = first(RNG.normal(size=shape) - 2, layout)
    function = K.pool2d if len(shape) == 4 else K.pool3d
    for mode in ("max", "avg"):
        check(
            lambda x, m=mode: function(x, size, strides, padding, layout, m),
            lambda x, m=mode: pool(x, size, strides, padding, layout, m),
            x,
        )


@pytest.mark.parametrize("mode", ["max", "avg"])
@pytest.mark.parametrize(
    ("size", "strides", "padding"),
    [((2, 2), (2, 2), "valid"), ((3, 2), (2, 1), "same"), ((2, 2), (3, 3), "same"), ((3, 3), (1, 1), "valid")],
)
def test_gradients(size, strides, padding, mode):
    x = RNG.permutation(60).reshape(1, 5, 6, 2) / 10
    check_gradients(lambda x: K.pool2d(x, size, strides, padding, pool_mode=mode), x)

    def slope(x):
        y = K.pool2d(x, size, strides, padding, pool_mode=mode)
        return K.gradients(K.sum(K.square(y) * y), x)[0]

    check_gradients(slope, x, rtol=1e-5)


def test_gradients_of_volumes_and_long_windows():
    x = RNG.permutation(96).reshape(1, 4, 4, 3, 2) / 10
    check_gradients(lambda x: K.pool3d(x, 3, 1, "same"), x)
    check_gradients(lambda x: K.pool3d(x, 2, 2, "same", "channels_first", "avg"), x)
    # So many overlaps that the gradient goes axis by axis.
    check_gradients(lambda x: K.pool2d(x, (5, 6), (1, 1)), RNG.permutation(72).reshape(1, 8, 9, 1) / 10)


def first_largest(x, size, strides):
    """The gradient of the sum of maxima, window by window."""
    grad = np.zeros(x.shape)
    for i in range((x.shape[1] - size) // strides + 1):
        for j in range((x.shape[2] - size) // strides + 1):
            cells = x[0, i * strides : i * strides + size, j * strides : j * strides + size, 0]
            a, b = np.unravel_index(int(np.argmax(cells)), cells.shape)
            grad[0, i * strides + a, j * strides + b, 0] += 1
    return grad


@pytest.mark.parametrize(("size", "strides"), [(2, 2), (3, 2), (2, 1), (5, 1)])
def test_the_first_maximum_gets_the_gradient(size, strides):
    x = RNG.integers(0, 3, (1, 9, 9, 1)).astype(float)
    (grad,) = [run(lambda x: K.gradients(K.sum(K.pool2d(x, size, strides)), x)[0], x)]
    assert np.array_equal(grad, first_largest(x, size, strides))


def test_special_values():
    x = np.full((1, 4, 4, 1), -np.inf)
    x[0, 0, 0, 0], x[0, 3, 3, 0] = np.nan, 1
    expected = [[np.nan, -np.inf], [-np.inf, 1]]
    for padding in ("valid", "same"):
        np.testing.assert_array_equal(run(lambda x, p=padding: K.pool2d(x, 2, 2, p), x)[0, :, :, 0], expected)


def test_dtypes():
    x = RNG.integers(-100, -1, (1, 5, 5, 2))
    for dtype in ("int8", "int64", "float16", "float32"):
        result = run(lambda x: K.pool2d(x, 2, 2, "same"), x, dtype=dtype)
        assert result.dtype == dtype
        assert np.array_equal(result, pool(x, 2, 2, "same"))
    assert run(lambda x: K.pool2d(x, 2, pool_mode="avg"), x.astype(np.int32)).dtype == K.floatx()
    assert run(lambda x: K.pool2d(x, 2), x > -50).dtype == K.floatx()
    # The sum of these is no half-precision number.
    big = np.full((1, 4, 4, 1), 60000, np.float16)
    assert run(lambda x: K.pool2d(x, 4, pool_mode="avg"), big).item() == 60000


@pytest.mark.parametrize("mode", ["max", "avg"])
def test_empty_batches(mode):
    x = K.variable(np.zeros((0, 5, 5, 2)))
    y = K.pool2d(x, (2, 2), (2, 2), "same", pool_mode=mode)
    assert K.eval(y).shape == (0, 3, 3, 2)
    assert K.eval(K.gradients(K.sum(y), x)[0]).shape == (0, 5, 5, 2)
    y = K.pool2d(K.variable(np.zeros((2, 0, 5, 2))), (2, 2), (2, 2), "same", pool_mode=mode)
    assert K.eval(y).shape == (2, 0, 3, 2)


@pytest.mark.parametrize("mode", ["max", "avg"])
def test_sizes_that_only_the_call_tells(mode):
    x = K.placeholder((None, None, 6, 2))
    y = K.pool2d(x, (3, 3), (2, 2), "same", pool_mode=mode)
    assert y.shape == (None, None, 3, 2)
    f = K.function([x], [y, K.gradients(K.sum(K.square(y)), x)[0]])
    for shape in ((1, 5, 6, 2), (3, 8, 6, 2), (2, 1, 6, 2)):
        a = RNG.normal(size=shape).astype(np.float32)
        expected = pool(a, 3, 2, "same", mode=mode)
        value, grad = f([a])
        np.testing.assert_allclose(value, expected, rtol=1e-5, atol=1e-6)
        # Squares and means are homogeneous: x . dL/dx = 2 L.
        np.testing.assert_allclose(np.sum(a * grad), 2 * np.sum(expected**2), rtol=1e-4)


def test_native_equals_interpreted():
    x = K.placeholder((None, 9, 8, 5))
    outputs = []
    for size, strides, padding in (((2, 2), (2, 2), "valid"), ((3, 3), (2, 2), "same"), ((2, 3), (1, 1), "same")):
        for mode in ("max", "avg"):
            y = K.tanh(K.pool2d(K.relu(x), size, strides, padding, pool_mode=mode))
            outputs += [y, K.gradients(K.sum(K.square(y)), x)[0]]
    feed = [RNG.normal(size=(2, 9, 8, 5)).astype(np.float32)]
    results = {}
    for mode in ("native", "interpret"):
        with graphkb.options(mode=mode):
            results[mode] = K.function([x], outputs)(feed)
    for native, expected in zip(results["native"], results["interpret"], strict=True):
        np.testing.assert_allclose(native, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("mode", ["max", "avg"])
def test_windows_over_padding_within_padding(mode):
    def pooled(x, strides):
        return K.pool2d(K.spatial_2d_padding(x, ((1, 0), (0, 2))), (2, 3), strides, "same", pool_mode=mode)

    a = RNG.normal(size=(2, 7, 6, 3)).astype("float32")
    padded = np.pad(a, ((0, 0), (1, 0), (0, 2), (0, 0)))
    for strides in ((1, 1), (1, 2)):
        with graphkb.options(mode="native"):
            result = run(lambda x, strides=strides: pooled(x, strides), a)
        np.testing.assert_allclose(
            result, pool(padded, (2, 3), strides, "same", LAYOUTS[0], mode), rtol=1e-5, atol=1e-6
        )
    check_gradients(lambda x: pooled(x, (1, 2)), a[:1])


def test_errors():
    x = K.placeholder((None, 5, 6, 3))
    with pytest.raises(ValueError, match=r"^pool2d: expected the padding 'valid' or 'same', not 'twice'$"):
        K.pool2d(x, (2, 2), padding="twice")
    with pytest.raises(ValueError, match=r"^pool2d: expected the pool_mode 'max' or 'avg', not 'median'$"):
        K.pool2d(x, (2, 2), pool_mode="median")
    with pytest.raises(
        ValueError, match=r"^pool2d: expected 'channels_first' or 'channels_last' as the data format, not 'middle'$"
    ):
        K.pool2d(x, (2, 2), data_format="middle")
    with pytest.raises(ValueError, match=r"^pool2d: expected 2 positive integers as pool_size, not \(2, 2, 2\)$"):
        K.pool2d(x, (2, 2, 2))
    with pytest.raises(ValueError, match=r"^pool2d: expected 2 positive integers as strides, not 0$"):
        K.pool2d(x, (2, 2), 0)
    with pytest.raises(ShapeError, match=r"^pool3d: expected a tensor of shape \(samples, depth, rows"):
        K.pool3d(x, (2, 2, 2))
    with pytest.raises(ShapeError, match=r"^pool2d: a window that reaches over 7 elements does not fit into"):
        K.pool2d(x, (7, 2))
