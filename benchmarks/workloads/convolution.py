"""Single convolutions, their gradients, and pooling, on images with their channels last."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import numpy as np

from benchmarks.peers.base import Arrays
from benchmarks.workloads import images
from benchmarks.workloads.base import Forward, Layout

f32 = np.float32
Axes = tuple[int, ...]


# ---------------------------------------------------------------------------------------------- layouts
def channels_second(x: np.ndarray) -> np.ndarray:
    """(samples, places…, channels) -> (samples, channels, places…), a view: what PyTorch calls channels_last memory."""
    return np.moveaxis(x, -1, 1)


def channels_back(x: np.ndarray) -> np.ndarray:
    return np.moveaxis(x, 1, -1)


def filters_first(w: np.ndarray) -> np.ndarray:
    """(taps…, channels, filters) -> (filters, channels, taps…), with the channels innermost in memory."""
    return np.moveaxis(np.ascontiguousarray(np.moveaxis(w, -1, 0)), -1, 1)


def filters_back(w: np.ndarray) -> np.ndarray:
    return np.moveaxis(np.moveaxis(w, 1, -1), 0, -1)


def is_spatial(x: np.ndarray) -> bool:
    return x.ndim > 2


def contiguous(arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
    return [np.ascontiguousarray(a) for a in arrays]


def relaid(change: Callable[[np.ndarray], np.ndarray]) -> Callable[[Sequence[np.ndarray]], list[np.ndarray]]:
    """Change the arrays with spatial axes; matrices and vectors stay."""
    return lambda arrays: [change(a) if is_spatial(a) else a for a in arrays]


def relaid_inputs(arrays: Arrays) -> Arrays:
    return {name: channels_second(a) if is_spatial(a) else a for name, a in arrays.items()}


def contiguous_inputs(arrays: Arrays) -> Arrays:
    return {name: np.ascontiguousarray(a) for name, a in relaid_inputs(arrays).items()}


TORCH = Layout(relaid_inputs, relaid(filters_first), relaid(channels_back))
ONNX = Layout(contiguous_inputs, lambda ws: contiguous(relaid(filters_first)(ws)), relaid(channels_back))
LAYOUTS = {"torch": TORCH, "onnx": ONNX}
# Gradients of kernels come in the order of kernels.
KERNEL_LAYOUTS = {"torch": Layout(relaid_inputs, relaid(filters_first), relaid(filters_back))}


# ---------------------------------------------------------------------------------------------- forward
def graphkb_conv(K: Any, x: Any, w: Any, stride: int = 1, pad: int = 0, data_format: str = "channels_last") -> Any:
    """A convolution of K with `pad` zeros around; w in K's order of axes."""
    n = K.ndim(x) - 2
    taps = K.int_shape(w)[:n]
    mode = "valid"
    if pad and stride == 1 and all(k == 2 * pad + 1 for k in taps):
        mode = "same"
    elif pad:
        around = {2: K.spatial_2d_padding, 3: K.spatial_3d_padding}[n]
        x = around(x, ((pad, pad),) * n, data_format)
    conv = {1: K.conv1d, 2: K.conv2d, 3: K.conv3d}[n]
    return conv(x, w, stride, mode, data_format)


def torch_conv(torch: Any, x: Any, w: Any, stride: int = 1, pad: int = 0, bias: Any = None) -> Any:
    f = torch.nn.functional
    return {3: f.conv1d, 4: f.conv2d, 5: f.conv3d}[x.dim()](x, w, bias, stride=stride, padding=pad)


def jax_conv(jax: Any, x: Any, w: Any, stride: int = 1, pad: int = 0, groups: int = 1) -> Any:
    n = x.ndim - 2
    axes = "DHW"[3 - n :]
    dims = (f"N{axes}C", f"{axes}IO", f"N{axes}C")
    return jax.lax.conv_general_dilated(
        x, w, (stride,) * n, [(pad, pad)] * n, dimension_numbers=dims, feature_group_count=groups
    )


def onnx_conv(g: Any, x: Any, w: Any, stride: int, pad: int, n: int, *bias: Any) -> Any:
    return g.Conv(x, w, *bias, strides=[stride] * n, pads=[pad] * (2 * n))


def tensorflow_conv(tf: Any, x: Any, w: Any, stride: int = 1, pad: int = 0) -> Any:
    n = len(x.shape) - 2
    around = [[0, 0], *[[pad, pad]] * n, [0, 0]]
    return tf.nn.convolution(tf.pad(x, around) if pad else x, w, strides=[stride] * n, padding="VALID")


def convolution(name: str, image: Axes, kernel: Axes, stride: int = 1, pad: int = 0) -> Forward:
    """Images of shape (samples, places…, channels) with a kernel of shape (taps…, channels, filters)."""
    n = len(image) - 2
    return Forward(
        name=name,
        what=f"{image} with {kernel}, stride {stride}, {pad} zeros around",
        inputs=lambda: {"x": np.random.default_rng(20).standard_normal(image).astype(f32)},
        params=lambda: [np.random.default_rng(21).standard_normal(kernel).astype(f32)],
        reference=lambda w, x: images.conv(x, w, stride, pad),
        tolerance=5e-6,
        expressions={
            "graphkb": lambda K, w, x: graphkb_conv(K, x, w, stride, pad),
            "numpy": lambda np, w, x: images.conv(x, w, stride, pad),
            "jax": lambda jax, w, x: jax_conv(jax, x, w, stride, pad),
            "torch": lambda torch, w, x: torch_conv(torch, x, w, stride, pad),
            "onnx": lambda g, w, x: onnx_conv(g, x, w, stride, pad, n),
            "tensorflow": lambda tf, w, x: tensorflow_conv(tf, x, w, stride, pad),
        },
        layouts=LAYOUTS,
    )


DEPTHWISE = Forward(
    name="conv_depthwise",
    what="(1, 112, 112, 32), each channel with its own 3x3 kernel, 1 zero around",
    inputs=lambda: {"x": np.random.default_rng(22).standard_normal((1, 112, 112, 32)).astype(f32)},
    params=lambda: [np.random.default_rng(23).standard_normal((3, 3, 32, 1)).astype(f32)],
    reference=lambda w, x: images.depthwise(x, w, 1),
    tolerance=5e-6,
    expressions={
        "graphkb": lambda K, w, x: K.depthwise_conv2d(x, w, padding="same"),
        "numpy": lambda np, w, x: images.depthwise(x, w, 1),
        "jax": lambda jax, w, x: jax_conv(jax, x, w.reshape(3, 3, 1, 32), 1, 1, groups=32),
        "torch": lambda torch, w, x: torch.nn.functional.conv2d(x, w, padding=1, groups=32),
        "onnx": lambda g, w, x: g.Conv(x, w, pads=[1] * 4, group=32),
        "tensorflow": lambda tf, w, x: tf.nn.depthwise_conv2d(x, w, [1, 1, 1, 1], "SAME"),
    },
    layouts={
        dialect: replace(layout, params=lambda ws: [np.ascontiguousarray(w.transpose(2, 3, 0, 1)) for w in ws])
        for dialect, layout in LAYOUTS.items()
    },
)

CHANNELS_FIRST = Forward(
    name="conv_nchw",
    what="(1, 64, 56, 56) with (3, 3, 64, 64), channels first, 1 zero around",
    inputs=lambda: {"x": np.random.default_rng(20).standard_normal((1, 64, 56, 56)).astype(f32)},
    params=lambda: [np.random.default_rng(21).standard_normal((3, 3, 64, 64)).astype(f32)],
    reference=lambda w, x: channels_second(images.conv(channels_back(x), w, 1, 1)),
    tolerance=5e-6,
    expressions={
        "graphkb": lambda K, w, x: graphkb_conv(K, x, w, 1, 1, "channels_first"),
        "numpy": lambda np, w, x: channels_second(images.conv(channels_back(x), w, 1, 1)),
        "jax": lambda jax, w, x: jax.lax.conv_general_dilated(
            x, w, (1, 1), [(1, 1)] * 2, dimension_numbers=("NCHW", "HWIO", "NCHW")
        ),
        "torch": lambda torch, w, x: torch_conv(torch, x, w, 1, 1),
        "onnx": lambda g, w, x: onnx_conv(g, x, w, 1, 1, 2),
    },
    layouts={
        dialect: Layout(params=lambda ws: [np.ascontiguousarray(filters_first(w)) for w in ws])
        for dialect in ("torch", "onnx")
    },
)


# ---------------------------------------------------------------------------------------------- gradients
def count(size: int, taps: int, stride: int, pad: int) -> int:
    return (size + 2 * pad - taps) // stride + 1


def operand_gradient(name: str, image: Axes, kernel: Axes, stride: int = 1, pad: int = 0) -> Forward:
    """The gradient of a convolution with respect to its images, from that of its result."""
    n = len(image) - 2
    sizes = image[1:-1]
    places = tuple([count(s, k, stride, pad) for s, k in zip(sizes, kernel)])
    result = (image[0], *places, kernel[-1])
    extra = [(s + 2 * pad - k) % stride for s, k in zip(sizes, kernel)]

    def graphkb(K: Any, w: Any, g: Any) -> Any:
        x = K.placeholder(image)
        return K.gradients(K.sum(graphkb_conv(K, x, w, stride, pad) * g), [x])[0]

    def jax(jax: Any, w: Any, g: Any) -> Any:
        x = jax.ShapeDtypeStruct(image, f32)
        return jax.linear_transpose(lambda x: jax_conv(jax, x, w, stride, pad), x)(g)[0]

    def torch(torch: Any, w: Any, g: Any) -> Any:
        shape = (image[0], image[-1], *sizes)
        return torch.nn.grad.conv2d_input(shape, w, g, stride=stride, padding=pad)

    return Forward(
        name=name,
        what=f"gradient of the images: {result} with {kernel}, stride {stride}, {pad} zeros around",
        inputs=lambda: {"g": np.random.default_rng(24).standard_normal(result).astype(f32)},
        params=lambda: [np.random.default_rng(25).standard_normal(kernel).astype(f32)],
        reference=lambda w, g: images.conv_dx(g, w, sizes, stride, pad),
        tolerance=5e-6,
        expressions={
            "graphkb": graphkb,
            "numpy": lambda np, w, g: images.conv_dx(g, w, sizes, stride, pad),
            "jax": jax,
            "torch": torch,
            "onnx": lambda o, w, g: o.ConvTranspose(
                g, w, strides=[stride] * n, pads=[pad] * (2 * n), output_padding=extra
            ),
            "tensorflow": lambda tf, w, g: tf.nn.conv_transpose(
                g, w, image, stride, [[0, 0], *[[pad] * 2] * n, [0, 0]]
            ),
        },
        layouts=LAYOUTS,
    )


def kernel_gradient(name: str, image: Axes, kernel: Axes, stride: int = 1, pad: int = 0) -> Forward:
    """The gradient of a convolution with respect to its kernel, from images and the gradient of its result."""
    n = len(image) - 2
    taps = kernel[:n]
    result = (image[0], *[count(s, k, stride, pad) for s, k in zip(image[1:], taps)], kernel[-1])

    def inputs() -> Arrays:
        rng = np.random.default_rng(26)
        return {"x": rng.standard_normal(image).astype(f32), "g": rng.standard_normal(result).astype(f32)}

    def graphkb(K: Any, x: Any, g: Any) -> Any:
        w = K.placeholder(kernel)
        return K.gradients(K.sum(graphkb_conv(K, x, w, stride, pad) * g), [w])[0]

    def jax(jax: Any, x: Any, g: Any) -> Any:
        w = jax.ShapeDtypeStruct(kernel, f32)
        return jax.linear_transpose(lambda w: jax_conv(jax, x, w, stride, pad), w)(g)[0]

    def torch(torch: Any, x: Any, g: Any) -> Any:
        shape = (kernel[-1], kernel[-2], *taps)
        return torch.nn.grad.conv2d_weight(x, shape, g, stride=stride, padding=pad)

    return Forward(
        name=name,
        what=f"gradient of the kernel {kernel}: {image} with {result}, stride {stride}, {pad} zeros around",
        inputs=inputs,
        reference=lambda x, g: images.conv_dw(x, g, taps, stride, pad),
        tolerance=5e-6,
        expressions={
            "graphkb": graphkb,
            "numpy": lambda np, x, g: images.conv_dw(x, g, taps, stride, pad),
            "jax": jax,
            "torch": torch,
        },
        layouts=KERNEL_LAYOUTS,
    )


# ---------------------------------------------------------------------------------------------- pooling
def pooled(image: Axes, size: int, stride: int, pad: int) -> Axes:
    return (image[0], *[count(s, size, stride, pad) for s in image[1:-1]], image[-1])


def graphkb_pool(K: Any, x: Any, size: int, stride: int, pad: int) -> Any:
    if pad:
        x = K.spatial_2d_padding(x, ((pad, pad), (pad, pad)))  # zeros are the least: the images are positive
    return K.pool2d(x, (size, size), (stride, stride), "valid")


def jax_pool(jax: Any, x: Any, size: int, stride: int, pad: int) -> Any:
    around = [(0, 0), (pad, pad), (pad, pad), (0, 0)]
    window, steps = (1, size, size, 1), (1, stride, stride, 1)
    return jax.lax.reduce_window(x, -np.inf, jax.lax.max, window, steps, around)


def torch_pool(torch: Any, x: Any, size: int, stride: int, pad: int) -> Any:
    return torch.nn.functional.max_pool2d(x, size, stride, pad)


def positive(image: Axes) -> np.ndarray:
    return np.random.default_rng(27).uniform(0.01, 1, image).astype(f32)


def max_pool(name: str, image: Axes, size: int, stride: int, pad: int = 0) -> Forward:
    return Forward(
        name=name,
        what=f"largest of {size}x{size} windows of {image}, stride {stride}",
        inputs=lambda: {"x": positive(image)},
        reference=lambda x: images.max_pool(x, size, stride, pad),
        tolerance=0.0,
        expressions={
            "graphkb": lambda K, x: graphkb_pool(K, x, size, stride, pad),
            "numpy": lambda np, x: images.max_pool(x, size, stride, pad),
            "jax": lambda jax, x: jax_pool(jax, x, size, stride, pad),
            "torch": lambda torch, x: torch_pool(torch, x, size, stride, pad),
            "onnx": lambda g, x: g.MaxPool(x, kernel_shape=[size] * 2, strides=[stride] * 2, pads=[pad] * 4),
        },
        layouts=LAYOUTS,
    )


def max_pool_gradient(name: str, image: Axes, size: int, stride: int, pad: int = 0) -> Forward:
    """The gradient of the images; the largest elements have to be found again."""
    result = pooled(image, size, stride, pad)

    def inputs() -> Arrays:
        return {"x": positive(image), "g": np.random.default_rng(28).standard_normal(result).astype(f32)}

    def torch(torch: Any, x: Any, g: Any) -> Any:
        geometry = ([size] * 2, [stride] * 2, [pad] * 2, [1, 1], False)
        _, where = torch.ops.aten.max_pool2d_with_indices(x, *geometry)
        return torch.ops.aten.max_pool2d_with_indices_backward(g, x, *geometry, where)

    return Forward(
        name=name,
        what=f"gradient of the largest of {size}x{size} windows of {image}, stride {stride}",
        inputs=inputs,
        reference=lambda x, g: images.max_pool_dx(x, g, size, stride, pad),
        tolerance=1e-6,
        expressions={
            "graphkb": lambda K, x, g: K.gradients(K.sum(graphkb_pool(K, x, size, stride, pad) * g), [x])[0],
            "numpy": lambda np, x, g: images.max_pool_dx(x, g, size, stride, pad),
            "jax": lambda jax, x, g: jax.vjp(lambda x: jax_pool(jax, x, size, stride, pad), x)[1](g)[0],
            "torch": torch,
        },
        layouts=LAYOUTS,
    )


WORKLOADS = (
    convolution("conv_3x3", (1, 56, 56, 64), (3, 3, 64, 64), pad=1),
    convolution("conv_1x1", (1, 56, 56, 256), (1, 1, 256, 64)),
    DEPTHWISE,
    convolution("conv_7x7_s2", (1, 224, 224, 3), (7, 7, 3, 64), 2, 3),
    convolution("conv_3x3_s2", (1, 56, 56, 128), (3, 3, 128, 128), 2, 1),
    CHANNELS_FIRST,
    convolution("conv1d", (8, 1000, 64), (5, 64, 64), pad=2),
    convolution("conv3d", (1, 16, 28, 28, 32), (3, 3, 3, 32, 32), pad=1),
    operand_gradient("conv_dx", (1, 56, 56, 64), (3, 3, 64, 64), pad=1),
    operand_gradient("conv_dx_s2", (1, 56, 56, 128), (3, 3, 128, 128), 2, 1),
    kernel_gradient("conv_dw", (1, 56, 56, 64), (3, 3, 64, 64), pad=1),
    kernel_gradient("conv_dw_s2", (1, 56, 56, 128), (3, 3, 128, 128), 2, 1),
    max_pool("max_pool_2x2", (32, 24, 24, 64), 2, 2),
    max_pool("max_pool_3x3", (1, 112, 112, 64), 3, 2, 1),
    max_pool_gradient("max_pool_2x2_dx", (32, 24, 24, 64), 2, 2),
    max_pool_gradient("max_pool_3x3_dx", (1, 112, 112, 64), 3, 2, 1),
)
