"""Convolutions of K against SciPy and plain loops: layouts, paddings, strides, dilations, gradients, errors."""

import shutil

import numpy as np
import pytest
from conv_tools import LAYOUTS, conv, conv_transpose, depthwise, first, last, local
from k_tools import check, check_gradients, run

import graphkb
from graphkb import backend as K
from graphkb.ir.errors import ShapeError

RNG = np.random.default_rng(3)
FUNCTIONS = {1: K.conv1d, 2: K.conv2d, 3: K.conv3d}
TRANSPOSED = {2: K.conv2d_transpose, 3: K.conv3d_transpose}


def operands(shape, kernel, layout="channels_last"):
    return first(RNG.normal(size=shape), layout), RNG.normal(size=kernel)


# ---------------------------------------------------------------------------------------------- plain
# Shape of the tensor, of the kernel, strides, padding, dilation.
CASES = [
    ((2, 9, 3), (4, 3, 5), 1, "valid", 1),
    ((2, 9, 3), (3, 3, 2), 2, "same", 1),
    ((2, 10, 2), (3, 2, 2), 2, "same", 3),
    ((1, 8, 1), (2, 1, 3), 3, "valid", 2),
    ((2, 5, 6, 3), (3, 2, 3, 4), (1, 1), "valid", (1, 1)),
    ((2, 5, 6, 3), (3, 2, 3, 4), (1, 1), "same", (1, 1)),
    ((1, 7, 8, 2), (3, 3, 2, 3), (2, 2), "same", (1, 1)),
    ((1, 7, 8, 2), (2, 3, 2, 2), (2, 3), "valid", (1, 1)),
    ((2, 7, 7, 1), (3, 2, 1, 2), (1, 1), "same", (2, 3)),
    ((1, 9, 6, 2), (2, 2, 2, 1), (2, 1), "valid", (3, 2)),
    ((2, 5, 5, 4), (1, 1, 4, 3), (1, 1), "valid", (1, 1)),
    ((2, 5, 5, 4), (1, 1, 4, 3), (3, 3), "same", (1, 1)),
    ((1, 1, 2, 2), (5, 5, 2, 2), (1, 1), "same", (1, 1)),
    ((2, 4, 3, 5, 2), (2, 2, 3, 2, 3), (1, 1, 1), "valid", (1, 1, 1)),
    ((1, 5, 4, 5, 1), (3, 2, 2, 1, 2), (2, 1, 2), "same", (1, 1, 1)),
    ((1, 5, 4, 5, 2), (2, 2, 2, 2, 1), (1, 1, 1), "same", (2, 1, 2)),
]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(("shape", "kernel", "strides", "padding", "dilation"), CASES)
def test_convolution(shape, kernel, strides, padding, dilation, layout):
    x, w = operands(shape, kernel, layout)
    function = FUNCTIONS[len(shape) - 2]
    check(
        lambda x, w: function(x, w, strides, padding, layout, dilation),
        lambda x, w: conv(x, w, strides, padding, layout, dilation),
        x, w,
    )  # fmt: skip


@pytest.mark.parametrize(("strides", "dilation"), [(1, 1), (2, 1), (1, 3)])
def test_causal_convolution(strides, dilation):
    x, w = operands((2, 7, 2), (3, 2, 4))
    check(
        lambda x, w: K.conv1d(x, w, strides, "causal", dilation_rate=dilation),
        lambda x, w: conv(x, w, strides, "causal", dilation=dilation),
        x, w,
    )  # fmt: skip
    later = x.copy()
    later[:, 4:] = 0
    before, after = (run(lambda x: K.conv1d(x, K.constant(w), padding="causal"), a)[:, :4] for a in (x, later))
    assert np.array_equal(before, after)


def test_one_number_stands_for_all_axes():
    x, w = operands((1, 6, 7, 2), (2, 3, 2, 2))
    expected = run(lambda x, w: K.conv2d(x, w, (2, 2), dilation_rate=(1, 1)), x, w)
    assert np.array_equal(run(lambda x, w: K.conv2d(x, w, 2, dilation_rate=np.int64(1)), x, w), expected)
    assert np.array_equal(run(lambda x, w: K.conv2d(x, w, [2, 2]), x, w), expected)


def test_dtypes():
    x, w = operands((2, 5, 5, 3), (2, 2, 3, 4))
    expected = conv(x, w)
    for dtype, rtol in (("float16", 2e-3), ("float32", 1e-6)):
        result = run(K.conv2d, x, w, dtype=dtype)
        assert result.dtype == dtype
        np.testing.assert_allclose(result, expected, rtol, 10 * rtol)
    result = run(K.conv2d, np.arange(18).reshape(1, 3, 3, 2), np.ones((2, 2, 2, 1)))
    assert result.dtype == "float64"
    assert run(K.conv2d, np.ones((1, 3, 3, 2), np.int32), np.ones((2, 2, 2, 1), np.int8)).dtype == K.floatx()


def test_half_precision_sums_are_wide():
    # 3000 ones: half precision has no 2049.
    x, w = np.ones((1, 10, 300), np.float16), np.ones((10, 300, 1), np.float16)
    assert run(K.conv1d, x, w).item() == 3000


@pytest.mark.parametrize("layout", LAYOUTS)
def test_empty_batches(layout):
    for shape, kernel in (((0, 5, 6, 3), (2, 2, 3, 4)), ((2, 0, 6, 3), (2, 2, 3, 4))):
        x, w = operands(shape, kernel, layout)
        result = run(lambda x, w: K.conv2d(x, w, padding="same", data_format=layout), x, w)
        assert result.shape == first(np.empty((*shape[:3], 4)), layout).shape
        x, w = K.variable(x), K.variable(w)
        for gradient, node in zip(K.gradients(K.sum(K.conv2d(x, w, (1, 2), "same", layout)), [x, w]), (x, w)):
            assert K.eval(gradient).shape == node.shape
            assert not K.eval(gradient).any()


def test_sizes_that_only_the_call_tells():
    x, w = K.placeholder((None, None, 6, None)), K.placeholder(ndim=4)
    y = K.conv2d(x, w, (2, 1), "same")
    assert y.shape == (None, None, None, None)
    f = K.function([x, w], [y, *K.gradients(K.sum(K.square(y)), [x, w])])
    for shape, kernel in (((2, 5, 6, 3), (3, 3, 3, 2)), ((1, 8, 6, 1), (2, 1, 1, 4)), ((2, 5, 6, 3), (3, 3, 3, 2))):
        a, b = operands(shape, kernel)
        for result, expected in zip(f([a, b]), direct(a, b, (2, 1), "same"), strict=True):
            np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)
    with pytest.raises(ShapeError, match=r"conv: shapes .* do not fit: the operand has 2 channels, the kernel takes 3"):
        f([np.zeros((1, 5, 6, 2)), np.zeros((3, 3, 3, 2))])


def direct(x, w, strides, padding):
    """y, and the gradients of sum(y ** 2)."""
    y = conv(x, w, strides, padding)
    dx = conv_transpose(2 * y, w, x.shape[1:-1], strides, padding)
    dw = np.zeros(w.shape)
    for i in np.ndindex(w.shape):
        one = np.zeros(w.shape)
        one[i] = 1
        dw[i] = np.sum(2 * y * conv(x, one, strides, padding))
    return y, dx, dw


# ---------------------------------------------------------------------------------------------- transposed
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("shape", "kernel", "sizes", "strides", "padding", "dilation"),
    [
        ((2, 3, 4, 3), (3, 2, 5, 3), (5, 5), (1, 1), "valid", (1, 1)),
        ((2, 3, 4, 3), (3, 2, 2, 3), (6, 8), (2, 2), "same", (1, 1)),
        ((2, 3, 4, 3), (3, 2, 2, 3), (5, 7), (2, 2), "same", (1, 1)),
        ((1, 3, 4, 1), (2, 3, 2, 1), (7, 12), (2, 3), "valid", (1, 1)),
        ((1, 2, 2, 2), (1, 1, 1, 2), (6, 5), (3, 3), "same", (1, 1)),
        ((1, 4, 3, 2), (3, 2, 3, 2), (8, 6), (1, 1), "valid", (2, 3)),
        ((1, 4, 3, 2), (3, 3, 1, 2), (4, 3), (1, 1), "same", (2, 2)),
        ((1, 2, 3, 2, 2), (2, 2, 3, 1, 2), (4, 6, 4), (2, 2, 2), "same", None),
        ((1, 2, 3, 2, 2), (2, 2, 3, 2, 2), (4, 7, 4), (2, 2, 1), "valid", None),
    ],
)
def test_transposed_convolution(shape, kernel, sizes, strides, padding, dilation, layout):
    x, w = operands(shape, kernel, layout)
    n = len(shape) - 2
    wanted = (None, *sizes, kernel[-2]) if layout == "channels_last" else (None, kernel[-2], *sizes)
    more = () if dilation is None else (dilation,)
    check(
        lambda x, w: TRANSPOSED[n](x, w, wanted, strides, padding, layout, *more),
        lambda x, w: conv_transpose(x, w, sizes, strides, padding, layout, dilation or 1),
        x, w,
    )  # fmt: skip


def test_output_shapes_of_transposed_convolutions():
    x, w = operands((2, 3, 4, 3), (3, 3, 5, 3))
    expected = conv_transpose(x, w, (6, 8), 2, "same")
    for wanted in (
        lambda x: (2, 6, 8, 5),
        lambda x: (K.shape(x)[0], 6, 8, 5),
        lambda x: [None, None, None, None],
        lambda x: K.stack([K.shape(x)[0], K.shape(x)[1] * 2, K.constant(8, "int32"), K.constant(5, "int32")]),
    ):
        result = run(lambda x, w, s=wanted: K.conv2d_transpose(x, w, s(x), (2, 2), "same"), x, w)
        np.testing.assert_allclose(result, expected, 1e-12, 1e-12)
    images = K.placeholder((None, None, 4, 3))
    y = K.conv2d_transpose(images, K.variable(w), (None, 6, 8, 5), (2, 2), "same")
    assert y.shape == (None, 6, 8, 5)
    with pytest.raises(ShapeError, match="reshape"):
        K.function([images], [y])([np.zeros((2, 5, 4, 3))])


# ---------------------------------------------------------------------------------------------- by channel
def test_each_depthwise_kernel_has_a_channel_of_its_own():
    x = K.placeholder((2, 9, 8, 4))
    y = K.depthwise_conv2d(x, K.variable(RNG.normal(size=(3, 2, 4, 3))))
    (node,) = [n for n in K.function([x], [y]).definition.nodes if n.op.name == "conv"]
    assert [n.shape[-2:] for n in node.inputs] == [(12, 1), (1, 1)]
    # A single channel meets all of its kernels at once: that is a plain convolution.
    x = K.placeholder((2, 9, 8, 1))
    y = K.depthwise_conv2d(x, K.variable(RNG.normal(size=(3, 2, 1, 3))))
    (node,) = [n for n in K.function([x], [y]).definition.nodes if n.op.name == "conv"]
    assert [n.shape[-2:] for n in node.inputs] == [(1, 1), (1, 3)]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("multiplier", [1, 3])
@pytest.mark.parametrize(
    ("strides", "padding", "dilation"), [((1, 1), "valid", (1, 1)), ((2, 2), "same", 1), (1, "same", (2, 1))]
)
def test_depthwise_and_separable_convolution(strides, padding, dilation, multiplier, layout):
    x, w = operands((2, 6, 5, 4), (3, 2, 4, multiplier), layout)
    point = RNG.normal(size=(1, 1, 4 * multiplier, 3))
    check(
        lambda x, w: K.depthwise_conv2d(x, w, strides, padding, layout, dilation),
        lambda x, w: depthwise(x, w, strides, padding, layout, dilation),
        x, w,
    )  # fmt: skip
    check(
        lambda x, w, p: K.separable_conv2d(x, w, p, strides, padding, layout, dilation),
        lambda x, w, p: conv(depthwise(x, w, strides, padding, layout, dilation), p, layout=layout),
        x, w, point,
    )  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_separable_convolution_along_one_axis(layout):
    for strides, padding, dilation in ((1, "valid", 2), (2, "same", 1)):
        x, w = operands((2, 7, 3), (2, 3, 2), layout)
        check(
            lambda x, w, p, s=strides, q=padding, d=dilation: K.separable_conv1d(x, w, p, s, q, layout, d),
            lambda x, w, p, s=strides, q=padding, d=dilation: conv(
                depthwise(x, w, s, q, layout, d), p, layout=layout
            ),
            x, w, RNG.normal(size=(1, 6, 4)),
        )  # fmt: skip


# ---------------------------------------------------------------------------------------------- local
def test_local_convolution():
    for size, strides, count in ((3, 1, 5), (2, 2, 3), (1, 3, 3)):
        x, w = operands((2, 7, 3), (count, size * 3, 4))
        check(
            lambda x, w, k=size, s=strides: K.local_conv1d(x, w, (k,), (s,)),
            lambda x, w, k=size, s=strides, c=count: local(x, w, (k,), (s,), (c,), "channels_last"),
            x, w,
        )  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
def test_local_convolution_of_images(layout):
    for size, strides, counts in (((2, 3), (1, 1), (4, 4)), ((3, 2), (2, 3), (2, 2))):
        x, w = operands((2, 5, 6, 3), (counts[0] * counts[1], size[0] * size[1] * 3, 4), layout)
        check(
            lambda x, w, k=size, s=strides, c=counts: K.local_conv2d(x, w, k, s, c, layout),
            lambda x, w, k=size, s=strides, c=counts: local(x, w, k, s, c, layout),
            x, w,
        )  # fmt: skip
    check_gradients(lambda x, w: K.local_conv2d(x, w, (3, 2), (2, 3), (2, 2), layout), x[:1], w[..., :2])


# ---------------------------------------------------------------------------------------------- gradients
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize(
    ("strides", "padding", "dilation"), [((1, 1), "same", (1, 1)), ((2, 3), "same", (1, 1)), (1, "valid", (2, 1))]
)
def test_gradients(strides, padding, dilation, layout):
    x, w = operands((1, 5, 4, 2), (3, 2, 2, 2), layout)
    check_gradients(lambda x, w: K.conv2d(x, w, strides, padding, layout, dilation), x, w)
    check_gradients(lambda x, w: K.depthwise_conv2d(x, w, strides, padding, layout, dilation), x, w)


def test_gradients_of_other_ranks():
    check_gradients(lambda x, w: K.conv1d(x, w, 2, "causal"), *operands((2, 5, 2), (3, 2, 2)))
    check_gradients(lambda x, w: K.conv3d(x, w, 2, "same"), *operands((1, 3, 2, 4, 1), (2, 2, 3, 1, 2)))
    check_gradients(
        lambda x, w: K.conv2d_transpose(x, w, (1, 5, 6, 2), (2, 2), "same"), *operands((1, 3, 3, 2), (3, 2, 2, 2))
    )
    x, w = operands((1, 4, 3), (2, 3, 2))
    check_gradients(lambda x, w, p: K.separable_conv1d(x, w, p, 1, "same"), x, w, RNG.normal(size=(1, 6, 2)))


def test_second_gradients():
    """The gradient of a gradient's square: every pair of operands of the convolution and of its gradients."""

    def slopes(x, w):
        y = K.conv2d(x, w, (2, 1), "same", dilation_rate=(1, 2))
        dx, dw = K.gradients(K.sum(K.square(y) * y), [x, w])
        return K.concatenate([K.flatten(dx), K.flatten(dw)])

    check_gradients(slopes, *operands((1, 4, 3, 2), (2, 2, 2, 1)), rtol=1e-5)


def test_native_equals_interpreted():
    x, w = K.placeholder((None, 7, 8, 3)), K.variable(RNG.normal(size=(3, 3, 3, 5)))
    d, p = K.variable(RNG.normal(size=(2, 2, 5, 2))), K.variable(RNG.normal(size=(1, 1, 10, 4)))
    y = K.relu(K.bias_add(K.conv2d(x, w, (2, 1), "same"), K.variable(RNG.normal(size=5))))
    y = K.tanh(K.separable_conv2d(y, d, p, padding="same", dilation_rate=(1, 2)))
    outputs = [y, *K.gradients(K.sum(K.square(y)), [x, w, d, p])]
    feed = [RNG.normal(size=(3, 7, 8, 3)).astype(np.float32)]
    results = {}
    for mode in ("native", "interpret"):
        with graphkb.options(mode=mode):
            results[mode] = K.function([x], outputs)(feed)
    for native, expected in zip(results["native"], results["interpret"], strict=True):
        np.testing.assert_allclose(native, expected, rtol=1e-4, atol=1e-4)


def test_code_for_any_size(tmp_path):
    """Compiled once, with all sizes of the images unknown, gradients included."""
    pytest.importorskip("llvmlite")
    if shutil.which("cc") is None:
        pytest.skip("no C compiler is installed")
    x, w, d = (
        K.placeholder((None, None, None, 2), name="x"),
        RNG.normal(size=(3, 3, 2, 4)),
        RNG.normal(size=(2, 2, 4, 1)),
    )
    w, d = K.variable(w), K.variable(d)
    y = K.pool2d(K.relu(K.conv2d(x, w, padding="same")), (2, 2), (2, 2))
    z = K.pool2d(K.depthwise_conv2d(y, d, (2, 1), "same"), (3, 3), (2, 2), "same", pool_mode="avg")
    function = K.function([x], [y, z, *K.gradients(K.sum(K.square(z)), [x, w, d])])
    library = graphkb.load(graphkb.compile(function, tmp_path / "net").library)
    for shape in ((2, 5, 8, 2), (1, 12, 3, 2), (0, 6, 6, 2)):
        feed = [RNG.normal(size=shape).astype(np.float32)]
        for result, expected in zip(library(feed), function(feed), strict=True):
            np.testing.assert_allclose(result, expected, rtol=1e-4, atol=1e-4)


# ---------------------------------------------------------------------------------------------- errors
def test_bad_arguments():
    x, w = K.placeholder((None, 5, 6, 3)), K.ones((2, 2, 3, 4))
    with pytest.raises(
        ValueError, match=r"^conv2d: expected 'channels_first' or 'channels_last' as the data format, not 'middle'$"
    ):
        K.conv2d(x, w, data_format="middle")
    with pytest.raises(ValueError, match=r"^conv2d: expected the padding 'valid' or 'same', not 'causal'$"):
        K.conv2d(x, w, padding="causal")
    with pytest.raises(ValueError, match=r"^conv1d: expected the padding 'valid' or 'same' or 'causal', not None$"):
        K.conv1d(x, w, padding=None)
    with pytest.raises(ValueError, match=r"^conv1d: causal padding needs the data format 'channels_last', not"):
        K.conv1d(K.ones((1, 2, 5)), K.ones((2, 2, 2)), padding="causal", data_format="channels_first")
    for strides in (0, (1, 2, 3), (1, -1), 1.5, "ab", None, (1, None)):
        with pytest.raises(ValueError, match=r"^conv2d: expected 2 positive integers as strides, not"):
            K.conv2d(x, w, strides=strides)
    with pytest.raises(ValueError, match=r"^depthwise_conv2d: expected 2 positive integers as dilation_rate"):
        K.depthwise_conv2d(x, w, dilation_rate=0)
    for function, arguments in (
        (K.conv3d, (x, w)),
        (K.conv3d_transpose, (x, w, (1, 1, 1, 1, 1))),
        (K.separable_conv1d, (x, w, w)),
        (K.local_conv1d, (x, w, 2, 1)),
        (K.local_conv2d, (x, w, 2, 1, (4, 5))),
    ):
        with pytest.raises(ShapeError, match=f"^{function.__name__}: expected a (tensor|kernel) of shape "):
            function(*arguments)
        with pytest.raises(ValueError, match=r" as the data format, not 3$"):
            function(*arguments, data_format=3)


def test_sizes_that_do_not_fit():
    x = K.placeholder((None, 5, 6, 3))
    with pytest.raises(ShapeError, match=r"^conv2d: the tensor has 3 channels, the kernel of shape .* takes 2$"):
        K.conv2d(x, K.ones((2, 2, 2, 4)))
    with pytest.raises(ShapeError, match=r"^conv2d: the tensor has 6 channels"):
        K.conv2d(K.placeholder((None, 6, 5, 3)), K.ones((2, 2, 3, 4)), data_format="channels_first")
    with pytest.raises(ShapeError, match=r"^conv2d: a window that reaches over 7 elements does not fit"):
        K.conv2d(x, K.ones((4, 1, 3, 4)), dilation_rate=2)
    with pytest.raises(ShapeError, match=r"^depthwise_conv2d: the tensor has 3 channels"):
        K.depthwise_conv2d(x, K.ones((2, 2, 4, 1)))
    with pytest.raises(ShapeError, match=r"^separable_conv2d: the tensor has 6 channels"):
        K.separable_conv2d(x, K.ones((2, 2, 3, 2)), K.ones((1, 1, 3, 1)))
    with pytest.raises(ShapeError, match=r"^separable_conv2d: expected a pointwise kernel of size 1"):
        K.separable_conv2d(x, K.ones((2, 2, 3, 2)), K.ones((2, 1, 6, 1)))
    with pytest.raises(ShapeError, match=r"^local_conv2d: there are 18 features"):
        K.local_conv2d(x, K.ones((16, 12, 2)), (2, 3), 1, (4, 4))
    with pytest.raises(ShapeError, match=r"^local_conv2d: 6 windows of 2 at a stride of 1 reach over 7 elements"):
        K.local_conv2d(x, K.ones((36, 12, 2)), (2, 2), 1, (6, 6))
    with pytest.raises(ShapeError, match=r"^conv2d_transpose: the output shape asks for 5 filters, the operands"):
        K.conv2d_transpose(x, K.ones((2, 2, 4, 3)), (None, 6, 7, 5))
    with pytest.raises(ShapeError, match=r"^conv2d_transpose: an output of 9 elements along an axis comes from 8, not"):
        K.conv2d_transpose(x, K.ones((2, 2, 4, 3)), (None, 9, 7, 4))
    with pytest.raises(ShapeError, match=r"^conv2d_transpose: expected an output shape of 4 sizes"):
        K.conv2d_transpose(x, K.ones((2, 2, 4, 3)), (6, 7))


@pytest.mark.parametrize("step", [-1, -2])
def test_gradients_through_images_turned_round(step):
    x, w = operands((2, 9, 2), (3, 2, 2))
    check_gradients(lambda x, w: K.conv1d(K.conv1d(x, w)[:, ::step], w), x, w)


def test_layouts_agree():
    x, w = operands((2, 5, 6, 3), (2, 2, 3, 4))
    one = run(lambda x, w: K.conv2d(x, w, padding="same"), x, w)
    other = run(lambda x, w: K.conv2d(x, w, padding="same", data_format="channels_first"), np.moveaxis(x, -1, 1), w)
    assert np.allclose(one, last(other, "channels_first"), 1e-12, 1e-12)
    K.set_image_data_format("channels_first")
    try:
        assert K.conv2d(K.placeholder((2, 3, 5, 6)), K.ones((2, 2, 3, 4))).shape == (2, 4, 4, 5)
    finally:
        K.set_image_data_format("channels_last")
