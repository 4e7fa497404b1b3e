"""NumPy meanings of convolutions, pooling and their gradients, channels last, in the dtype of their arguments."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np
from numpy.lib.stride_tricks import sliding_window_view

from benchmarks.workloads.formulas import softmax


def padded(x: np.ndarray, pad: int, value: float = 0.0) -> np.ndarray:
    """Some elements around every spatial axis."""
    around = [(0, 0), *[(pad, pad)] * (x.ndim - 2), (0, 0)]
    return np.pad(x, around, constant_values=value) if pad else x


def windows(x: np.ndarray, taps: Sequence[int], stride: int) -> np.ndarray:
    """The windows of each channel, of shape (samples, places…, channels, taps…)."""
    axes = tuple(range(1, x.ndim - 1))
    view = sliding_window_view(x, tuple(taps), axis=axes)
    strided: np.ndarray = view[(slice(None), *[slice(None, None, stride) for _ in axes])]
    return strided


def conv(x: np.ndarray, w: np.ndarray, stride: int = 1, pad: int = 0) -> np.ndarray:
    """A convolution of (samples, places…, channels) with (taps…, channels, filters), zeros around."""
    n = x.ndim - 2
    view = np.moveaxis(windows(padded(x, pad), w.shape[:n], stride), n + 1, -1)
    places = view.shape[: n + 1]
    product: np.ndarray = view.reshape(int(np.prod(places)), -1) @ w.reshape(-1, w.shape[-1])
    return product.reshape(*places, w.shape[-1])


def conv_dx(g: np.ndarray, w: np.ndarray, sizes: Sequence[int], stride: int = 1, pad: int = 0) -> np.ndarray:
    """The gradient of a convolution's operand, whose spatial sizes are given: each tap is one strided addition."""
    n = g.ndim - 2
    dx = np.zeros((len(g), *[s + 2 * pad for s in sizes], w.shape[-2]), g.dtype)
    for tap in itertools.product(*map(range, w.shape[:n])):
        at = tuple(slice(t, t + (c - 1) * stride + 1, stride) for t, c in zip(tap, g.shape[1:]))
        dx[(slice(None), *at)] += g @ w[tap].T
    return dx[(slice(None), *[slice(pad, pad + s) for s in sizes])]


def conv_dw(x: np.ndarray, g: np.ndarray, taps: Sequence[int], stride: int = 1, pad: int = 0) -> np.ndarray:
    """The gradient of a convolution's kernel with so many taps along each axis."""
    n = x.ndim - 2
    view = np.moveaxis(windows(padded(x, pad), taps, stride), n + 1, -1)
    rows = view.reshape(int(np.prod(view.shape[: n + 1])), -1)
    product: np.ndarray = rows.T @ g.reshape(-1, g.shape[-1])
    return product.reshape(*taps, x.shape[-1], g.shape[-1])


def depthwise(x: np.ndarray, w: np.ndarray, pad: int) -> np.ndarray:
    """Each channel with its own kernel of shape (rows, columns, channels, 1)."""
    y: np.ndarray = np.einsum("nhwcij,ijc->nhwc", windows(padded(x, pad), w.shape[:2], 1), w[..., 0])
    return y


def max_pool(x: np.ndarray, size: int, stride: int, pad: int = 0) -> np.ndarray:
    y: np.ndarray = windows(padded(x, pad, -np.inf), (size, size), stride).max(axis=(-2, -1))
    return y


def max_pool_dx(x: np.ndarray, g: np.ndarray, size: int, stride: int, pad: int = 0) -> np.ndarray:
    """The gradient goes to the first maximum of each window."""
    around = padded(x, pad, -np.inf)
    view = windows(around, (size, size), stride)
    first = view.reshape(*view.shape[:-2], -1).argmax(axis=-1)
    dx = np.zeros_like(around)
    for cell, (i, j) in enumerate(itertools.product(range(size), repeat=2)):
        rows, columns = (slice(t, t + (c - 1) * stride + 1, stride) for t, c in zip((i, j), g.shape[1:]))
        dx[:, rows, columns] += np.where(first == cell, g, 0)
    return dx[:, pad : pad + x.shape[1], pad : pad + x.shape[2]]


# ---------------------------------------------------------------------------------------------- the small classifier
def classifier_layers(params: Sequence[np.ndarray], x: np.ndarray) -> list[np.ndarray]:
    """The outputs of the layers: two convolutions, the pool, the hidden layer, the probabilities."""
    k1, b1, k2, b2, w1, c1, w2, c2 = params
    h1 = np.maximum(conv(x, k1) + b1, 0)
    h2 = np.maximum(conv(h1, k2) + b2, 0)
    pool = max_pool(h2, 2, 2)
    hidden = np.maximum(pool.reshape(len(x), -1) @ w1 + c1, 0)
    return [h1, h2, pool, hidden, softmax(hidden @ w2 + c2)]


def classifier(*arrays: np.ndarray) -> np.ndarray:
    *params, x = arrays
    return classifier_layers(params, x)[-1]


def classifier_gradients(params: Sequence[np.ndarray], x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """Of the mean cross-entropy, by hand."""
    _, _, k2, _, w1, _, w2, _ = params
    h1, h2, pool, hidden, p = classifier_layers(params, x)
    d4 = (p - y) / x.dtype.type(len(x))
    d3 = (d4 @ w2.T) * (hidden > 0)
    flat = pool.reshape(len(x), -1)
    d2 = max_pool_dx(h2, (d3 @ w1.T).reshape(pool.shape), 2, 2) * (h2 > 0)
    d1 = conv_dx(d2, k2, h1.shape[1:3]) * (h1 > 0)
    kernels = [conv_dw(x, d1, (3, 3)), d1.sum(axis=(0, 1, 2)), conv_dw(h1, d2, (3, 3)), d2.sum(axis=(0, 1, 2))]
    return [*kernels, flat.T @ d3, d3.sum(axis=0), hidden.T @ d4, d4.sum(axis=0)]
