"""NumPy meanings of the workloads that need more than a line, in the dtype of their arguments."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np


def sigmoid(x: np.ndarray) -> np.ndarray:
    y: np.ndarray = 1 / (1 + np.exp(-x))
    return y


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.exp(x - x.max(axis=-1, keepdims=True))
    y: np.ndarray = e / e.sum(axis=-1, keepdims=True)
    return y


def logsumexp(x: np.ndarray) -> np.ndarray:
    m = x.max(axis=-1, keepdims=True)
    y: np.ndarray = np.log(np.exp(x - m).sum(axis=-1)) + m[..., 0]
    return y


def layernorm(scale: np.ndarray, shift: np.ndarray, x: np.ndarray) -> np.ndarray:
    d = x - x.mean(axis=-1, keepdims=True)
    variance = (d * d).mean(axis=-1, keepdims=True)
    y: np.ndarray = d / np.sqrt(variance + x.dtype.type(1e-5)) * scale + shift
    return y


def erf(x: np.ndarray) -> np.ndarray:
    """SciPy's; NumPy has none."""
    from scipy import special

    y: np.ndarray = special.erf(x)
    return y


def mlp_hidden(params: Sequence[np.ndarray], x: np.ndarray) -> list[np.ndarray]:
    """The outputs of the three dense layers, relu after the first two, softmax after the last."""
    w1, b1, w2, b2, w3, b3 = params
    h1 = np.maximum(x @ w1 + b1, 0)
    h2 = np.maximum(h1 @ w2 + b2, 0)
    return [h1, h2, softmax(h2 @ w3 + b3)]


def mlp(*arrays: np.ndarray) -> np.ndarray:
    *params, x = arrays
    return mlp_hidden(params, x)[-1]


def mlp_gradients(params: Sequence[np.ndarray], x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """Of the mean cross-entropy, by hand: softmax and cross-entropy together have the gradient p - y."""
    _, _, w2, _, w3, _ = params
    h1, h2, p = mlp_hidden(params, x)
    d3 = (p - y) / x.dtype.type(len(x))
    d2 = (d3 @ w3.T) * (h2 > 0)
    d1 = (d2 @ w2.T) * (h1 > 0)
    return [x.T @ d1, d1.sum(axis=0), h1.T @ d2, d2.sum(axis=0), h2.T @ d3, d3.sum(axis=0)]
