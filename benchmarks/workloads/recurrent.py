"""An LSTM layer over sequences, in use and in training."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.peers.base import Arrays
from benchmarks.workloads.base import Compile, Forward, Layout, TrainingStep

f32 = np.float32
FEATURES, UNITS, STEPS = 64, 128, 100


def weights() -> Sequence[np.ndarray]:
    """Glorot uniform kernels and small biases; the gates are input, forget, candidate, output."""
    rng = np.random.default_rng(20)
    kernels = [rng.uniform(-1, 1, (rows, 4 * UNITS)) * np.sqrt(6 / (rows + 4 * UNITS)) for rows in (FEATURES, UNITS)]
    return [a.astype(f32) for a in (*kernels, 0.1 * rng.standard_normal(4 * UNITS))]


def sequences(batch: int) -> Arrays:
    return {"x": np.random.default_rng(21).standard_normal((batch, STEPS, FEATURES)).astype(f32)}


def labeled_sequences() -> Arrays:
    return {**sequences(32), "y": np.random.default_rng(22).uniform(-1, 1, (32, UNITS)).astype(f32)}


# ---------------------------------------------------------------------------------------------- NumPy
def sigmoid(x: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-x))


def gates(z: np.ndarray) -> tuple[np.ndarray, ...]:
    i, f, g, o = np.split(z, 4, axis=-1)
    return sigmoid(i), sigmoid(f), np.tanh(g), sigmoid(o)


def lstm(w: np.ndarray, u: np.ndarray, b: np.ndarray, x: np.ndarray) -> np.ndarray:
    """The last output of a layer whose states begin with zeros; the products of the inputs in one go."""
    zs = np.swapaxes(x, 0, 1) @ w + b
    h = c = np.zeros((len(x), UNITS), x.dtype)
    for z in zs:
        i, f, g, o = gates(z + h @ u)
        c = f * c + i * g
        h = o * np.tanh(c)
    return h


def gradients(params: Sequence[np.ndarray], x: np.ndarray, y: np.ndarray) -> list[np.ndarray]:
    """Those of the squared error of the last output, the mean over all samples, back through time."""
    w, u, b = params
    xs = np.swapaxes(x, 0, 1)
    zs = xs @ w + b
    h = c = np.zeros((len(x), UNITS), x.dtype)
    kept = []
    for z in zs:
        i, f, g, o = gates(z + h @ u)
        before, c = c, f * c + i * g
        t = np.tanh(c)
        kept.append((i, f, g, o, t, before, h))
        h = o * t
    dh = (h - y) * x.dtype.type(2 / len(y))
    dc = np.zeros_like(dh)
    dzs = np.empty_like(zs)
    for step in range(len(zs) - 1, -1, -1):
        i, f, g, o, t, before, _ = kept[step]
        dc = dc + dh * o * (1 - t * t)
        parts = (dc * g * i * (1 - i), dc * before * f * (1 - f), dc * i * (1 - g * g), dh * t * o * (1 - o))
        dzs[step] = np.concatenate(parts, axis=-1)
        dh, dc = dzs[step] @ u.T, dc * f
    flat = dzs.reshape(-1, 4 * UNITS)
    states = np.concatenate([row[-1] for row in kept])
    return [xs.reshape(-1, FEATURES).T @ flat, states.T @ flat, flat.sum(axis=0)]


# ---------------------------------------------------------------------------------------------- the libraries
def graphkb_lstm(K: Any, w: Any, u: Any, b: Any, x: Any) -> Any:
    def step(row: Any, states: Any) -> Any:
        h, c = states
        z = K.bias_add(K.dot(row, w) + K.dot(h, u), b)
        i, f = K.sigmoid(z[:, :UNITS]), K.sigmoid(z[:, UNITS : 2 * UNITS])
        c = f * c + i * K.tanh(z[:, 2 * UNITS : 3 * UNITS])
        h = K.sigmoid(z[:, 3 * UNITS :]) * K.tanh(c)
        return h, [h, c]

    zeros = K.zeros((K.int_shape(x)[0], UNITS))
    return K.rnn(step, x, [zeros, zeros])[0]


def jax_lstm(jax: Any, w: Any, u: Any, b: Any, x: Any) -> Any:
    jnp = jax.numpy
    zs = jnp.swapaxes(x, 0, 1) @ w + b

    def step(states: Any, z: Any) -> Any:
        h, c = states
        i, f, g, o = jnp.split(z + h @ u, 4, axis=-1)
        c = jax.nn.sigmoid(f) * c + jax.nn.sigmoid(i) * jnp.tanh(g)
        return (jax.nn.sigmoid(o) * jnp.tanh(c), c), None

    zeros = jnp.zeros((x.shape[0], UNITS), x.dtype)
    return jax.lax.scan(step, (zeros, zeros), zs)[0][0]


def tensorflow_lstm(tf: Any, w: Any, u: Any, b: Any, x: Any) -> Any:
    def step(states: Any, z: Any) -> Any:
        h, c = states
        i, f, g, o = tf.split(z + h @ u, 4, axis=-1)
        c = tf.sigmoid(f) * c + tf.sigmoid(i) * tf.tanh(g)
        return tf.sigmoid(o) * tf.tanh(c), c

    zeros = tf.zeros((x.shape[0], UNITS))
    return tf.scan(step, tf.transpose(x, (1, 0, 2)) @ w + b, (zeros, zeros))[0][-1]


def torch_lstm(torch: Any, w: Any, u: Any, b: Any, x: Any) -> Any:
    zeros = x.new_zeros((1, x.shape[0], UNITS))
    second = x.new_zeros(4 * UNITS)  # torch has two biases
    return torch.lstm(x, (zeros, zeros), [w, u, b, second], True, 1, 0.0, False, False, True)[1][0]


def onnx_lstm(g: Any, w: Any, u: Any, b: Any, x: Any) -> Any:
    return g.add("LSTM", 2, g.Transpose(x, perm=[1, 0, 2]), w, u, b, hidden_size=UNITS)[1]


def turned(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Kernels as torch has them: the gates along the first axis."""
    return [np.ascontiguousarray(a.T) for a in arrays]


def onnx_params(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    """One direction, gates in the order input, output, forget, candidate, and a second bias of zeros."""
    w, u, b = turned([np.concatenate([np.split(a, 4, axis=-1)[k] for k in (0, 3, 1, 2)], axis=-1) for a in arrays])
    return [a[None] for a in (w, u, np.concatenate([b, np.zeros_like(b)]))]


LAYOUTS = {
    "torch": Layout(params=turned),
    "onnx": Layout(params=onnx_params, outputs=lambda arrays: [np.asarray(a).reshape(-1, UNITS) for a in arrays]),
}
TRAINING_LAYOUTS = {"torch": Layout(params=turned, outputs=lambda arrays: [np.asarray(a).T for a in arrays])}


def inference(batch: int) -> Forward:
    return Forward(
        name=f"lstm_inf_{batch}",
        what=f"LSTM {FEATURES} -> {UNITS} over {STEPS} steps, batch {batch}, the last output",
        inputs=lambda: sequences(batch),
        params=weights,
        reference=lstm,
        tolerance=5e-6,
        expressions={
            "graphkb": graphkb_lstm,
            "numpy": lambda np, *arrays: lstm(*arrays),
            "jax": jax_lstm,
            "torch": torch_lstm,
            "onnx": onnx_lstm,
            "tensorflow": tensorflow_lstm,
        },
        layouts=LAYOUTS,
    )


LSTM_TRAIN = TrainingStep(
    name="lstm_train",
    what=f"LSTM {FEATURES} -> {UNITS} over {STEPS} steps, batch 32, back through time, one step of SGD with momentum",
    inputs=labeled_sequences,
    params=weights,
    gradients=gradients,
    tolerance=1e-4,
    losses={
        "graphkb": lambda K, params, x, y: K.sum(K.square(graphkb_lstm(K, *params, x) - y)) / 32,
        "jax": lambda jax, params, x, y: ((jax_lstm(jax, *params, x) - y) ** 2).sum() / 32,
        "torch": lambda torch, params, x, y: ((torch_lstm(torch, *params, x) - y) ** 2).sum() / 32,
        "tensorflow": lambda tf, params, x, y: tf.reduce_sum((tensorflow_lstm(tf, *params, x) - y) ** 2) / 32,
    },
    layouts=TRAINING_LAYOUTS,
)

WORKLOADS = (inference(1), inference(32), LSTM_TRAIN, Compile("compile_lstm", LSTM_TRAIN))
