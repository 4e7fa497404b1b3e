"""Running a K function on arrays in every way that the shapes of its inputs can be known."""

import numpy as np

from graphkb import backend as K


def run(build, *arrays, dtype=None):
    """The value of `build(*tensors)`, the same for inputs of known sizes and of sizes that only the call tells."""
    arrays = [np.asarray(a) for a in arrays]
    fixed = build(*[K.variable(a, dtype or a.dtype) for a in arrays])
    expected = K.eval(fixed)
    assert expected.dtype == fixed.dtype
    assert expected.shape == fixed.shape
    inputs = [K.placeholder(ndim=a.ndim, dtype=dtype or a.dtype) for a in arrays]
    open_ended = build(*inputs)
    (result,) = K.function(inputs, [open_ended])(arrays)
    assert result.dtype == open_ended.dtype == fixed.dtype
    assert len(open_ended.shape) == result.ndim
    assert all(size in (None, n) for size, n in zip(open_ended.shape, result.shape))
    # Compiled code may round otherwise than NumPy: by a few units in the last place.
    close = 0 if result.dtype.kind in "biu" else 16 * np.finfo(result.dtype).eps
    np.testing.assert_allclose(result, expected, rtol=close, atol=close)
    return result


def check(build, meaning, *arrays, rtol=1e-12, dtype=None):
    """`build` on tensors computes what `meaning` computes on the arrays."""
    result = run(build, *arrays, dtype=dtype)
    expected = np.asarray(meaning(*arrays))
    assert result.shape == expected.shape
    np.testing.assert_allclose(result, expected, rtol=rtol, atol=rtol)


def numeric_gradient(f, x, step=1e-6):
    """Central differences of a scalar function of a float64 array."""
    grad = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        high, low = x.copy(), x.copy()
        high[i] += step
        low[i] -= step
        grad[i] = (f(high) - f(low)) / (2 * step)
    return grad


def check_gradients(build, *arrays, rtol=1e-6):
    """The gradients of a weighted sum of `build(*tensors)` are those of finite differences."""
    arrays = [np.asarray(a, np.float64) for a in arrays]
    variables = [K.variable(a, "float64") for a in arrays]
    y = build(*variables)
    weights = np.cos(np.arange(np.prod(y.shape, dtype=int))).reshape(y.shape)
    loss = K.sum(y * weights)
    for variable, grad, start in zip(variables, K.gradients(loss, variables), arrays):

        def at(value, variable=variable):
            K.set_value(variable, value)
            return float(K.eval(loss))

        expected = numeric_gradient(at, start)
        K.set_value(variable, start)
        assert grad.shape == start.shape
        np.testing.assert_allclose(K.eval(grad), expected, rtol=rtol, atol=rtol)
