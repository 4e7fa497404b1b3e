"""Convolutional networks: a small classifier of digits in use and in training, and a residual network of 50 layers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import cache
from typing import Any

import numpy as np

from benchmarks.peers.base import Arrays
from benchmarks.workloads import images
from benchmarks.workloads.base import Compile, Forward, Layout, TrainingStep
from benchmarks.workloads.convolution import (
    LAYOUTS,
    contiguous_inputs,
    filters_back,
    filters_first,
    graphkb_conv,
    is_spatial,
    jax_conv,
    relaid,
    relaid_inputs,
    torch_conv,
)
from benchmarks.workloads.formulas import softmax

f32 = np.float32


# ---------------------------------------------------------------------------------------------- a small classifier
def glorot(rng: np.random.Generator, shape: tuple[int, ...]) -> np.ndarray:
    taps = int(np.prod(shape[:-2]))
    limit = np.sqrt(6 / (taps * (shape[-2] + shape[-1])))
    return rng.uniform(-limit, limit, shape).astype(f32)


def classifier_weights() -> Sequence[np.ndarray]:
    rng = np.random.default_rng(30)
    weights: list[np.ndarray] = []
    for shape in ((3, 3, 1, 32), (3, 3, 32, 64), (9216, 128), (128, 10)):
        weights += [glorot(rng, shape), (0.01 * rng.standard_normal(shape[-1])).astype(f32)]
    return weights


def digits(batch: int) -> Arrays:
    return {"x": np.random.default_rng(31).uniform(0, 1, (batch, 28, 28, 1)).astype(f32)}


def labeled_digits() -> Arrays:
    classes = np.random.default_rng(32).integers(0, 10, 32)
    return {**digits(32), "y": np.eye(10, dtype=f32)[classes]}


def channels_outermost(weights: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Kernels with filters first, and the rows of the hidden layer's matrix in the order channels, rows, columns."""
    turned = weights[4].reshape(12, 12, 64, 128).transpose(2, 0, 1, 3).reshape(9216, 128)
    kernels = [np.ascontiguousarray(filters_first(w)) if is_spatial(w) else w for w in weights[:4]]
    return [*kernels, np.ascontiguousarray(turned), *weights[5:]]


def graphkb_logits(K: Any, params: Sequence[Any], x: Any) -> Any:
    k1, b1, k2, b2, w1, c1, w2, c2 = params
    h = K.relu(K.bias_add(K.conv2d(x, k1), b1))
    h = K.relu(K.bias_add(K.conv2d(h, k2), b2))
    h = K.batch_flatten(K.pool2d(h, (2, 2), (2, 2)))
    return K.dot(K.relu(K.dot(h, w1) + c1), w2) + c2


def jax_logits(jax: Any, params: Sequence[Any], x: Any) -> Any:
    k1, b1, k2, b2, w1, c1, w2, c2 = params
    relu = jax.nn.relu
    h = relu(jax_conv(jax, relu(jax_conv(jax, x, k1) + b1), k2) + b2)
    window = (1, 2, 2, 1)
    h = jax.lax.reduce_window(h, -np.inf, jax.lax.max, window, window, "VALID").reshape(len(x), -1)
    return relu(h @ w1 + c1) @ w2 + c2


def torch_logits(torch: Any, params: Sequence[Any], x: Any) -> Any:
    k1, b1, k2, b2, w1, c1, w2, c2 = params
    h = torch.relu(torch_conv(torch, x, k1, bias=b1))
    h = torch.relu(torch_conv(torch, h, k2, bias=b2))
    h = torch.nn.functional.max_pool2d(h, 2).permute(0, 2, 3, 1).flatten(1)  # no copy: the channels lie innermost
    return torch.addmm(c2, torch.relu(torch.addmm(c1, h, w1)), w2)


def onnx_logits(g: Any, params: Sequence[Any], x: Any) -> Any:
    k1, b1, k2, b2, w1, c1, w2, c2 = params
    h = g.Relu(g.Conv(g.Relu(g.Conv(x, k1, b1)), k2, b2))
    h = g.Flatten(g.MaxPool(h, kernel_shape=[2, 2], strides=[2, 2]), axis=1)
    return g.Gemm(g.Relu(g.Gemm(h, w1, c1)), w2, c2)


def tensorflow_logits(tf: Any, params: Sequence[Any], x: Any) -> Any:
    k1, b1, k2, b2, w1, c1, w2, c2 = params
    h = tf.nn.relu(tf.nn.conv2d(x, k1, 1, "VALID") + b1)
    h = tf.nn.relu(tf.nn.conv2d(h, k2, 1, "VALID") + b2)
    h = tf.reshape(tf.nn.max_pool2d(h, 2, 2, "VALID"), (x.shape[0], -1))
    return tf.nn.relu(h @ w1 + c1) @ w2 + c2


def classifier(batch: int) -> Forward:
    return Forward(
        name=f"cnn_inf_{batch}",
        what=f"conv 32, conv 64, pool, dense 128, softmax of 10, batch {batch}",
        inputs=lambda: digits(batch),
        params=classifier_weights,
        reference=images.classifier,
        tolerance=5e-6,
        expressions={
            "graphkb": lambda K, *a: K.softmax(graphkb_logits(K, a[:8], a[8])),
            "numpy": lambda np, *a: images.classifier(*a),
            "jax": lambda jax, *a: jax.nn.softmax(jax_logits(jax, a[:8], a[8])),
            "torch": lambda torch, *a: torch.softmax(torch_logits(torch, a[:8], a[8]), -1),
            "onnx": lambda g, *a: g.Softmax(onnx_logits(g, a[:8], a[8]), axis=-1),
            "tensorflow": lambda tf, *a: tf.nn.softmax(tensorflow_logits(tf, a[:8], a[8])),
        },
        layouts={"torch": LAYOUTS["torch"], "onnx": Layout(contiguous_inputs, channels_outermost)},
    )


CNN_TRAIN = TrainingStep(
    name="cnn_train",
    what="conv 32, conv 64, pool, dense 128, softmax of 10, batch 32, one step of SGD with momentum",
    inputs=labeled_digits,
    params=classifier_weights,
    gradients=images.classifier_gradients,
    tolerance=1e-4,
    losses={
        "graphkb": lambda K, params, x, y: K.mean(
            K.categorical_crossentropy(y, graphkb_logits(K, params, x), from_logits=True)
        ),
        "jax": lambda jax, params, x, y: -(y * jax.nn.log_softmax(jax_logits(jax, params, x))).sum(-1).mean(),
        "torch": lambda torch, params, x, y: (
            -(y * torch.log_softmax(torch_logits(torch, params, x), -1)).sum(-1).mean()
        ),
        "tensorflow": lambda tf, params, x, y: tf.reduce_mean(
            tf.nn.softmax_cross_entropy_with_logits(y, tensorflow_logits(tf, params, x))
        ),
    },
    layouts={"torch": Layout(relaid_inputs, relaid(filters_first), relaid(filters_back))},
)

# ---------------------------------------------------------------------------------------------- 50 layers
EPSILON = 1.001e-5


def blocks() -> Iterator[tuple[int, int, int, bool]]:
    """Channels before, channels inside, stride, and whether the shortcut is a convolution, of each block."""
    channels = 64
    for inside, repeats in ((64, 3), (128, 4), (256, 6), (512, 3)):
        for i in range(repeats):
            yield channels, inside, 2 if i == 0 and inside != 64 else 1, i == 0
            channels = 4 * inside


@cache
def residual_weights() -> Sequence[np.ndarray]:
    """Kernel, scale, shift, mean and variance of every convolution in the order of use, then the last layer."""
    rng = np.random.default_rng(33)
    weights: list[np.ndarray] = []

    def normalized(taps: int, channels: int, filters: int, gain: float = 1.0) -> None:
        kernel = rng.standard_normal((taps, taps, channels, filters)) * np.sqrt(2 / (taps * taps * channels))
        scale = gain * (1 + 0.1 * rng.standard_normal(filters))
        shift, mean = 0.1 * rng.standard_normal((2, filters))
        weights.extend(a.astype(f32) for a in (kernel, scale, shift, mean, 1 + 0.2 * rng.uniform(0, 1, filters)))

    normalized(7, 3, 64)
    for channels, inside, _, projects in blocks():
        normalized(1, channels, inside)
        normalized(3, inside, inside)
        normalized(1, inside, 4 * inside, 0.3)
        if projects:
            normalized(1, channels, 4 * inside)
    weights += [glorot(rng, (2048, 1000)), np.zeros(1000, f32)]
    return weights


def photograph() -> Arrays:
    return {"x": np.random.default_rng(34).uniform(-1, 1, (1, 224, 224, 3)).astype(f32)}


def residual_network(
    conv_norm: Callable[..., Any], relu: Callable[[Any], Any], pool: Callable[[Any], Any], params: Sequence[Any], x: Any
) -> tuple[Any, Any, Any]:
    """The features before the mean over the places, and the last layer's weights.

    conv_norm: (x, kernel, scale, shift, mean, variance, stride, pad) -> the normalized convolution.
    pool: the largest of 3x3 windows, stride 2, one place around.
    """
    rest = iter(params)

    def layer(x: Any, stride: int = 1, pad: int = 0) -> Any:
        return conv_norm(x, *[next(rest) for _ in range(5)], stride, pad)

    y = pool(relu(layer(x, 2, 3)))
    for _, _, stride, projects in blocks():
        z = layer(relu(layer(relu(layer(y, stride)), 1, 1)))
        y = relu(z + (layer(y, stride) if projects else y))
    return y, next(rest), next(rest)


def graphkb_residual(K: Any, *arrays: Any) -> Any:
    *params, x = arrays

    def conv_norm(x: Any, w: Any, scale: Any, shift: Any, mean: Any, variance: Any, stride: int, pad: int) -> Any:
        y = graphkb_conv(K, x, w, stride, pad)
        return K.batch_normalization(y, mean, variance, shift, scale, axis=-1, epsilon=EPSILON)

    def pool(x: Any) -> Any:
        return K.pool2d(K.spatial_2d_padding(x), (3, 3), (2, 2))  # zeros are the least after a relu

    y, w, b = residual_network(conv_norm, K.relu, pool, params, x)
    return K.softmax(K.dot(K.mean(y, axis=(1, 2)), w) + b)


def numpy_residual(*arrays: np.ndarray) -> np.ndarray:
    *params, x = arrays

    def conv_norm(x: Any, w: Any, scale: Any, shift: Any, mean: Any, variance: Any, stride: int, pad: int) -> Any:
        factor = scale / np.sqrt(variance + x.dtype.type(EPSILON))
        return images.conv(x, w, stride, pad) * factor + (shift - mean * factor)

    def relu(x: Any) -> Any:
        return np.maximum(x, 0)

    y, w, b = residual_network(conv_norm, relu, lambda x: images.max_pool(x, 3, 2, 1), params, x)
    return softmax(y.mean(axis=(1, 2)) @ w + b)


def jax_residual(jax: Any, *arrays: Any) -> Any:
    *params, x = arrays

    def conv_norm(x: Any, w: Any, scale: Any, shift: Any, mean: Any, variance: Any, stride: int, pad: int) -> Any:
        factor = scale * jax.lax.rsqrt(variance + EPSILON)
        return jax_conv(jax, x, w, stride, pad) * factor + (shift - mean * factor)

    def pool(x: Any) -> Any:
        around = [(0, 0), (1, 1), (1, 1), (0, 0)]
        return jax.lax.reduce_window(x, -np.inf, jax.lax.max, (1, 3, 3, 1), (1, 2, 2, 1), around)

    y, w, b = residual_network(conv_norm, jax.nn.relu, pool, params, x)
    return jax.nn.softmax(y.mean((1, 2)) @ w + b)


def torch_residual(torch: Any, *arrays: Any) -> Any:
    *params, x = arrays
    f = torch.nn.functional

    def conv_norm(x: Any, w: Any, scale: Any, shift: Any, mean: Any, variance: Any, stride: int, pad: int) -> Any:
        y = torch_conv(torch, x, w, stride, pad)
        return f.batch_norm(y, mean, variance, scale, shift, False, 0.0, EPSILON)

    y, w, b = residual_network(conv_norm, torch.relu, lambda x: f.max_pool2d(x, 3, 2, 1), params, x)
    return torch.softmax(torch.addmm(b, y.mean((2, 3)), w), -1)


def onnx_residual(g: Any, *arrays: Any) -> Any:
    *params, x = arrays

    class Sum(str):
        """The name of a value; `+` adds two."""

        def __add__(self, other: Any) -> Sum:
            return Sum(g.Add(str(self), str(other)))

    def conv_norm(x: Any, w: Any, scale: Any, shift: Any, mean: Any, variance: Any, stride: int, pad: int) -> Sum:
        y = g.Conv(str(x), w, strides=[stride] * 2, pads=[pad] * 4)
        return Sum(g.BatchNormalization(y, scale, shift, mean, variance, epsilon=EPSILON))

    def pool(x: Any) -> Any:
        return g.MaxPool(str(x), kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)

    y, w, b = residual_network(conv_norm, lambda x: Sum(g.Relu(str(x))), pool, params, x)
    return g.Softmax(g.Gemm(g.Flatten(g.GlobalAveragePool(str(y)), axis=1), w, b), axis=-1)


def tensorflow_residual(tf: Any, *arrays: Any) -> Any:
    *params, x = arrays

    def conv_norm(x: Any, w: Any, scale: Any, shift: Any, mean: Any, variance: Any, stride: int, pad: int) -> Any:
        y = tf.nn.conv2d(x, w, stride, [[0, 0], [pad, pad], [pad, pad], [0, 0]])
        return tf.nn.batch_normalization(y, mean, variance, shift, scale, EPSILON)

    def pool(x: Any) -> Any:
        padded = tf.pad(x, [[0, 0], [1, 1], [1, 1], [0, 0]])  # zeros are the least after a relu
        return tf.nn.max_pool2d(padded, 3, 2, "VALID")

    y, w, b = residual_network(conv_norm, tf.nn.relu, pool, params, x)
    return tf.nn.softmax(tf.reduce_mean(y, (1, 2)) @ w + b)


RESNET50 = Forward(
    name="resnet50",
    what="50 layers with residual blocks, (1, 224, 224, 3), normalization with known means",
    inputs=photograph,
    params=residual_weights,
    reference=numpy_residual,
    tolerance=1e-4,
    expressions={
        "graphkb": graphkb_residual,
        "numpy": lambda np, *a: numpy_residual(*a),
        "jax": jax_residual,
        "torch": torch_residual,
        "onnx": onnx_residual,
        "tensorflow": tensorflow_residual,
    },
    layouts={dialect: Layout(layout.inputs, layout.params) for dialect, layout in LAYOUTS.items()},
)

WORKLOADS = (
    classifier(1),
    classifier(32),
    CNN_TRAIN,
    RESNET50,
    Compile("compile_cnn", CNN_TRAIN),
    Compile("compile_resnet50", RESNET50),
)
