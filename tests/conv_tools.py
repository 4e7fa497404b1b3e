"""Convolutions and pooling by SciPy and plain loops: independent references for K."""

import itertools

import numpy as np
from scipy.signal import correlate

LAYOUTS = ("channels_last", "channels_first")


def last(x, layout):
    """The array with its channels last."""
    return np.moveaxis(x, 1, -1) if layout == "channels_first" else x


def first(x, layout):
    """The array with its channels where the layout wants them."""
    return np.moveaxis(x, -1, 1) if layout == "channels_first" else x


def many(value, n):
    return (value,) * n if isinstance(value, int) else tuple(value)


def margins(padding, sizes, reaches, strides):
    """What TensorFlow's documents say of padding: "same" gives ceil(size / stride) results, the odd cell after."""
    out = []
    for size, reach, stride in zip(sizes, reaches, strides):
        total = max((-(-size // stride) - 1) * stride + reach - size, 0) if padding == "same" else 0
        out.append((reach - 1, 0) if padding == "causal" else (total // 2, total - total // 2))
    return out


def dilated(kernel, rates):
    """The kernel with zeros between its elements."""
    n = len(rates)
    wide = np.zeros([(k - 1) * d + 1 for k, d in zip(kernel.shape, rates)] + list(kernel.shape[n:]))
    wide[tuple(slice(None, None, d) for d in rates)] = kernel
    return wide


def conv(x, kernel, strides=1, padding="valid", layout="channels_last", dilation=1):
    """Every sample, channel and filter by SciPy's correlation of unit stride, of which every stride-th is taken."""
    n = x.ndim - 2
    strides, kernel = many(strides, n), dilated(kernel, many(dilation, n))
    x = last(x, layout)
    around = margins(padding, x.shape[1:-1], kernel.shape, strides)
    x = np.pad(x, [(0, 0), *around, (0, 0)])
    steps = tuple(slice(None, None, s) for s in strides)
    out = [
        [
            sum(correlate(sample[..., i], kernel[..., i, o], "valid", "direct") for i in range(x.shape[-1]))[steps]
            for o in range(kernel.shape[-1])
        ]
        for sample in x
    ]
    return first(np.moveaxis(np.array(out), 1, -1), layout)


def depthwise(x, kernel, strides=1, padding="valid", layout="channels_last", dilation=1):
    """Channel by channel."""
    x = last(x, layout)
    parts = [
        conv(x[..., i : i + 1], kernel[..., i : i + 1, :], strides, padding, dilation=dilation)
        for i in range(x.shape[-1])
    ]
    return first(np.concatenate(parts, -1), layout)


def conv_transpose(x, kernel, sizes, strides=1, padding="valid", layout="channels_last", dilation=1):
    """Every element adds the kernel, times itself, to the places it came from."""
    n = x.ndim - 2
    strides, kernel = many(strides, n), dilated(kernel, many(dilation, n))
    x = last(x, layout)
    around = margins(padding, sizes, kernel.shape, strides)
    wide = np.zeros((len(x), *[s + b + a for s, (b, a) in zip(sizes, around)], kernel.shape[n]))
    for place in np.ndindex(*x.shape[1:-1]):
        at = tuple(slice(p * s, p * s + k) for p, s, k in zip(place, strides, kernel.shape))
        wide[(slice(None), *at)] += np.moveaxis(np.tensordot(kernel, x[(slice(None), *place)], (-1, -1)), -1, 0)
    inside = tuple(slice(b, b + s) for s, (b, _) in zip(sizes, around))
    return first(wide[(slice(None), *inside)], layout)


def pool(x, size, strides, padding="valid", layout="channels_last", mode="max"):
    """Window by window, over the cells that are really there."""
    x = last(x, layout)
    n = x.ndim - 2
    size, strides = many(size, n), many(strides, n)
    around = margins(padding, x.shape[1:-1], size, strides)
    counts = [(s + b + a - k) // t + 1 for s, (b, a), k, t in zip(x.shape[1:-1], around, size, strides)]
    out = np.zeros((len(x), *counts, x.shape[-1]))
    for place in itertools.product(*map(range, counts)):
        begins = [p * t - b for p, t, (b, _) in zip(place, strides, around)]
        cells = x[(slice(None), *[slice(max(b, 0), b + k) for b, k in zip(begins, size)])]
        reduce = np.max if mode == "max" else np.mean
        out[(slice(None), *place)] = reduce(cells, axis=tuple(range(1, n + 1)))
    return first(out, layout)


def local(x, kernel, size, strides, counts, layout):
    """Place by place, the features in the order of a window of the layout."""
    out = np.zeros((len(x), *counts, kernel.shape[-1]))
    spatial = slice(2, None) if layout == "channels_first" else slice(1, -1)
    for number, place in enumerate(np.ndindex(*counts)):
        window = [slice(None)] * x.ndim
        window[spatial] = [slice(p * s, p * s + k) for p, s, k in zip(place, strides, size)]
        out[(slice(None), *place)] = x[tuple(window)].reshape(len(x), -1) @ kernel[number]
    return first(out, layout)
