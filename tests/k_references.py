"""What K functions mean in NumPy and SciPy, for float64; under the same names and arguments."""

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple
from scipy import special


def _sigmoid(x):
    return special.expit(x)


UNARY = {
    "abs": np.abs,
    "square": np.square,
    "sign": np.sign,
    "round": np.round,
    "sqrt": lambda x: np.sqrt(np.maximum(x, 0)),
    "exp": np.exp,
    "log": np.log,
    "sin": np.sin,
    "cos": np.cos,
    "tan": np.tan,
    "asin": np.arcsin,
    "acos": np.arccos,
    "atan": np.arctan,
    "sinh": np.sinh,
    "cosh": np.cosh,
    "asinh": np.arcsinh,
    "acosh": np.arccosh,
    "atanh": np.arctanh,
    "tanh": np.tanh,
    "erf": special.erf,
    "erfc": special.erfc,
    "exp2": np.exp2,
    "expm1": np.expm1,
    "log1p": np.log1p,
    "log2": np.log2,
    "log10": np.log10,
    "rsqrt": lambda x: 1 / np.sqrt(x),
    "reciprocal": lambda x: 1 / x,
    "floor": np.floor,
    "ceil": np.ceil,
    "trunc": np.trunc,
    "isnan": np.isnan,
    "isinf": np.isinf,
    "isfinite": np.isfinite,
    "sigmoid": _sigmoid,
    "hard_sigmoid": lambda x: np.clip(0.2 * x + 0.5, 0, 1),
    "softplus": lambda x: np.logaddexp(0, x),
    "softsign": lambda x: x / (1 + np.abs(x)),
    "flatten": np.ravel,
    "transpose": np.transpose,
    "identity": lambda x: x,
    "stop_gradient": lambda variables: variables,
    "shape": np.shape,
    "size": np.size,
    "eval": lambda x: x,
}
BINARY = {
    "maximum": np.maximum,
    "minimum": np.minimum,
    "equal": np.equal,
    "not_equal": np.not_equal,
    "greater": np.greater,
    "greater_equal": np.greater_equal,
    "less": np.less,
    "less_equal": np.less_equal,
}


def _axes(x, axis):
    """The axes as non-negative ints; NumPy lets a scalar have an axis."""
    return None if axis is None else normalize_axis_tuple(axis, x.ndim)


def _reduction(function):
    return lambda x, axis, keepdims: function(x, axis=_axes(x, axis), keepdims=keepdims)


def _logsumexp(x, axis, keepdims):
    with np.errstate(all="ignore"):
        return np.log(np.sum(np.exp(x), axis=_axes(x, axis), keepdims=keepdims))


REDUCTIONS = {
    **{
        name: _reduction(getattr(np, name))
        for name in ("sum", "prod", "max", "min", "mean", "var", "std", "any", "all")
    },
    "logsumexp": _logsumexp,
}


def _softmax(x, axis):
    e = np.exp(x - np.max(x, axis=axis, keepdims=True, initial=-np.inf))
    return e / e.sum(axis=axis, keepdims=True)


def _along(x, axis):
    return normalize_axis_tuple(axis, x.ndim)[0]


def _dot(x, y):
    if not (x.ndim and y.ndim):
        raise ValueError("scalars")
    return np.dot(x, y)


def _batch_flatten(x):
    return x.reshape(x.shape[0], int(np.prod(x.shape[1:])))


def _repeat(x, n):
    if x.ndim != 2:
        raise ValueError("a matrix")
    return np.stack([x] * n, 1) if n else np.zeros((x.shape[0], 0, x.shape[1]))


def _tile(x, n):
    if np.size(n) > x.ndim:
        raise ValueError("too many")
    return np.tile(x, n)


def _clip(x, min_value, max_value):
    low = -np.inf if min_value is None else min_value
    high = np.inf if max_value is None else max(max_value, low)
    return np.clip(x, low, high)


def _relu(x, alpha, max_value, threshold):
    above = x if max_value is None else np.minimum(x, max_value)
    if max_value is not None and threshold:
        above = np.maximum(above, 0)
    return np.where(x >= threshold, above, alpha * (x - threshold))


def _l2_normalize(x, axis):
    return x / np.sqrt(np.maximum(np.sum(x * x, axis=_axes(x, axis), keepdims=True), 1e-12))


def _slice(x, start, size):
    if not len(start) == len(size) == x.ndim:
        raise ValueError("ranks")
    stops = [n if s == -1 else b + s for n, b, s in zip(x.shape, start, size)]
    if any(b < 0 or s < -1 or stop > n or b > n for n, b, s, stop in zip(x.shape, start, size, stops)):
        raise ValueError("outside")
    return x[tuple(slice(b, stop) for b, stop in zip(start, stops))]


def _reshape(x, shape):
    if any(n < -1 for n in shape):
        raise ValueError("negative")
    return np.reshape(x, shape)


def _one_hot(indices, num_classes):
    return (indices[..., None] == np.arange(num_classes)).astype("float32")


def _gather(reference, indices):
    if not reference.ndim or (indices < 0).any():
        raise IndexError("negative")
    return reference[indices]


def _bias_add(x, bias, data_format):
    if x.ndim < 2 or bias.ndim not in (1, x.ndim - 1):
        raise ValueError("rank")
    first = data_format == "channels_first" and x.ndim > 2
    if bias.ndim == 1:
        bias = bias.reshape((1, -1) + (1,) * (x.ndim - 2)) if first else bias
    elif first:
        bias = bias.reshape((1, bias.shape[-1], *bias.shape[:-1]))
    return np.add(x, bias)


def _resize_images(x, height_factor, width_factor, data_format):
    if x.ndim != 4:
        raise ValueError("rank")
    first = 2 if data_format == "channels_first" else 1
    return x.repeat(height_factor, first).repeat(width_factor, first + 1)


def _permuted(x, pattern):
    return np.transpose(x, pattern)


def _temporal_padding(x, padding):
    if x.ndim != 3:
        raise ValueError("rank")
    return np.pad(x, [(0, 0), padding, (0, 0)])


def _squeeze(x, axis):
    if x.ndim == 0:
        raise ValueError("a scalar")
    return np.squeeze(x, axis)


OTHERS = {
    "pow": lambda x, a: np.power(x, a),
    "cumsum": lambda x, axis: np.cumsum(x, _along(x, axis)),
    "cumprod": lambda x, axis: np.cumprod(x, _along(x, axis)),
    "argmax": lambda x, axis: np.argmax(x, _along(x, axis)),
    "argmin": lambda x, axis: np.argmin(x, _along(x, axis)),
    "softmax": lambda x, axis: _softmax(x, _along(x, axis)),
    "expand_dims": lambda x, axis: np.expand_dims(x, axis),
    "squeeze": _squeeze,
    "reverse": lambda x, axes: np.flip(x, _axes(x, axes)),
    "permute_dimensions": _permuted,
    "reshape": _reshape,
    "batch_flatten": _batch_flatten,
    "repeat": _repeat,
    "repeat_elements": lambda x, rep, axis: np.repeat(x, rep, _along(x, axis)),
    "tile": _tile,
    "slice": _slice,
    "concatenate": lambda tensors, axis: np.concatenate(tensors, axis),
    "stack": lambda x, axis: np.stack(x, axis),
    "temporal_padding": _temporal_padding,
    "resize_images": _resize_images,
    "dot": _dot,
    "clip": _clip,
    "relu": _relu,
    "elu": lambda x, alpha: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))),
    "l2_normalize": _l2_normalize,
    "bias_add": _bias_add,
    "one_hot": _one_hot,
    "gather": _gather,
    "eye": lambda size: np.eye(size),
    "arange": lambda start, stop, step: np.arange(start, stop, step),
    "zeros": lambda shape: np.zeros(shape),
    "ones_like": lambda x: np.ones_like(x),
    "cast": lambda x, dtype: x.astype(dtype),
}
REFERENCES = {**UNARY, **BINARY, **REDUCTIONS, **OTHERS}
