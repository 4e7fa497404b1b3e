"""Exact texts of the errors of convolution, pooling and resizing."""

import re

import pytest

from graphkb import backend as K
from graphkb.ir.errors import CheckError, DTypeError, ShapeError


def p(*shape):
    return K.placeholder(shape)


CASES = [
    (
        lambda: K.conv1d(p(2, 6), p(2, 3, 4)),
        ShapeError,
        "conv1d: expected a tensor of shape (samples, steps, channels), not one of shape (2, 6)",
    ),
    (
        lambda: K.conv1d(p(2, 6, 3), p(2, 3)),
        ShapeError,
        "conv1d: expected a kernel of shape (steps, channels, filters), not one of shape (2, 3)",
    ),
    (
        lambda: K.conv1d(p(2, 6, 3), p(2, 4, 5)),
        ShapeError,
        "conv1d: the tensor has 3 channels, the kernel of shape (2, 4, 5) takes 4",
    ),
    (
        lambda: K.conv1d(p(2, 3, 3), p(5, 3, 4)),
        ShapeError,
        "conv1d: a window that reaches over 5 elements does not fit into an axis of 3",
    ),
    (
        lambda: K.conv1d(p(2, 6, 3), p(2, 3, 4), padding="causal", data_format="channels_first"),
        ValueError,
        "conv1d: causal padding needs the data format 'channels_last', not 'channels_first'",
    ),
    (
        lambda: K.conv1d(p(2, 6, 3), p(2, 3, 4), strides=0),
        ValueError,
        "conv1d: expected a positive integer as strides, not 0",
    ),
    (
        lambda: K.conv2d(p(2, 6, 6), p(2, 2, 3, 4)),
        ShapeError,
        "conv2d: expected a tensor of shape (samples, rows, columns, channels), not one of shape (2, 6, 6)",
    ),
    (
        lambda: K.conv2d(p(2, 6, 6, 3), p(2, 3, 4)),
        ShapeError,
        "conv2d: expected a kernel of shape (rows, columns, channels, filters), not one of shape (2, 3, 4)",
    ),
    (
        lambda: K.conv2d(p(2, 6, 6, 3), p(2, 2, 4, 5)),
        ShapeError,
        "conv2d: the tensor has 3 channels, the kernel of shape (2, 2, 4, 5) takes 4",
    ),
    (
        lambda: K.conv2d(p(2, 3, 6, 6), p(2, 2, 4, 5), data_format="channels_first"),
        ShapeError,
        "conv2d: the tensor has 3 channels, the kernel of shape (2, 2, 4, 5) takes 4",
    ),
    (
        lambda: K.conv2d(p(2, 2, 6, 3), p(3, 2, 3, 4)),
        ShapeError,
        "conv2d: a window that reaches over 3 elements does not fit into an axis of 2",
    ),
    (
        lambda: K.conv2d(p(2, 6, 6, 3), p(2, 2, 3, 4), padding="full"),
        ValueError,
        "conv2d: expected the padding 'valid' or 'same', not 'full'",
    ),
    (
        lambda: K.conv2d(p(2, 6, 6, 3), p(2, 2, 3, 4), strides=(1, 1, 1)),
        ValueError,
        "conv2d: expected 2 positive integers as strides, not (1, 1, 1)",
    ),
    (
        lambda: K.conv2d(p(2, 6, 6, 3), p(2, 2, 3, 4), data_format="middle"),
        ValueError,
        "conv2d: expected 'channels_first' or 'channels_last' as the data format, not 'middle'",
    ),
    (
        lambda: K.conv2d(p(2, 6, 6, 3), p(2, 2, 3, 4), dilation_rate=(6, 1)),
        ShapeError,
        "conv2d: a window that reaches over 7 elements does not fit into an axis of 6",
    ),
    (lambda: K.conv2d(None, p(2, 2, 3, 4)), DTypeError, "conv2d: expected a tensor or numbers, not None"),
    (lambda: K.conv2d(p(2, 6, 6, 3), "kernel"), DTypeError, "conv2d: expected a tensor or numbers, not 'kernel'"),
    (
        lambda: K.conv3d(p(2, 6, 6, 6), p(2, 2, 2, 3, 4)),
        ShapeError,
        ("conv3d: expected a tensor of shape (samples, depth, rows, columns, channels), not one of shape (2, 6, 6, 6)"),
    ),
    (
        lambda: K.conv3d(p(2, 6, 6, 6, 3), p(2, 2, 2, 4, 4), padding="same"),
        ShapeError,
        "conv3d: the tensor has 3 channels, the kernel of shape (2, 2, 2, 4, 4) takes 4",
    ),
    (
        lambda: K.conv2d_transpose(p(2, 3, 3, 4), p(2, 2, 5, 3), (2, 4, 4, 5)),
        ShapeError,
        "conv2d_transpose: the tensor has 4 channels, the kernel of shape (2, 2, 5, 3) takes 3",
    ),
    (
        lambda: K.conv2d_transpose(p(2, 3, 3, 4), p(2, 2, 5, 4), (2, 4, 4)),
        ShapeError,
        "conv2d_transpose: expected an output shape of 4 sizes, not (2, 4, 4)",
    ),
    (
        lambda: K.conv2d_transpose(p(2, 3, 3, 4), p(2, 2, 5, 4), (2, 9, 4, 5)),
        ShapeError,
        (
            "conv2d_transpose: an output of 9 elements along an axis comes from 8, not from 3: kernel 2, stride"
            " 1, padding 'valid'"
        ),
    ),
    (
        lambda: K.conv2d_transpose(p(2, 3, 3, 4), p(2, 2, 5, 4), (3, 4, 4, 5)),
        ShapeError,
        "conv2d_transpose: the output shape asks for 3 samples, the operands give 2",
    ),
    (
        lambda: K.conv2d_transpose(p(2, 3, 3, 4), p(2, 2, 5, 4), (2, 4, 4, 6)),
        ShapeError,
        "conv2d_transpose: the output shape asks for 6 filters, the operands give 5",
    ),
    (
        lambda: K.conv2d_transpose(p(2, 3, 3, 4), p(2, 2, 5, 4), 4),
        TypeError,
        "conv2d_transpose: expected a sequence of sizes, not 4",
    ),
    (
        lambda: K.conv3d_transpose(p(2, 3, 3, 3, 4), p(2, 2, 2, 5, 3), (2, 4, 4, 4, 5)),
        ShapeError,
        "conv3d_transpose: the tensor has 4 channels, the kernel of shape (2, 2, 2, 5, 3) takes 3",
    ),
    (
        lambda: K.depthwise_conv2d(p(2, 6, 6, 3), p(2, 2, 4, 1)),
        ShapeError,
        "depthwise_conv2d: the tensor has 3 channels, the kernel of shape (2, 2, 4, 1) takes 4",
    ),
    (
        lambda: K.separable_conv1d(p(2, 6, 3), p(2, 3, 2), p(1, 5, 4)),
        ShapeError,
        "separable_conv1d: the tensor has 6 channels, the kernel of shape (1, 5, 4) takes 5",
    ),
    (
        lambda: K.separable_conv2d(p(2, 6, 6, 3), p(2, 2, 3, 2), p(2, 1, 6, 4)),
        ShapeError,
        "separable_conv2d: expected a pointwise kernel of size 1 along the spatial axes, not (2, 1, 6, 4)",
    ),
    (
        lambda: K.separable_conv2d(p(2, 6, 6, 3), p(2, 2, 3, 2), p(6, 4)),
        ShapeError,
        (
            "separable_conv2d: expected a pointwise kernel of shape (1, 1, channels * multiplier, filters), not"
            " one of shape (6, 4)"
        ),
    ),
    (
        lambda: K.local_conv1d(p(2, 5, 3), p(4, 7, 2), (2,), (1,)),
        ShapeError,
        "local_conv1d: there are 6 features, the kernel of shape (4, 7, 2) takes 7",
    ),
    (
        lambda: K.local_conv1d(p(2, 5, 3), p(5, 6, 2), (2,), (1,)),
        ShapeError,
        "local_conv1d: 5 windows of 2 at a stride of 1 reach over 6 elements, an axis has 5",
    ),
    (
        lambda: K.local_conv2d(p(2, 3, 3, 2), p(4, 8, 2), (2, 2), (1, 1), (3, 2)),
        ShapeError,
        "local_conv2d: 3 windows of 2 at a stride of 1 reach over 4 elements, an axis has 3",
    ),
    (
        lambda: K.local_conv2d(p(2, 3, 3, 2), p(4, 8, 2), (2, 2), (1, 1), (2,)),
        ShapeError,
        "local_conv2d: expected new rows and new columns as output_shape, not (2,)",
    ),
    (
        lambda: K.pool2d(p(2, 6, 6), (2, 2)),
        ShapeError,
        "pool2d: expected a tensor of shape (samples, rows, columns, channels), not one of shape (2, 6, 6)",
    ),
    (
        lambda: K.pool2d(p(2, 1, 6, 3), (2, 2)),
        ShapeError,
        "pool2d: a window that reaches over 2 elements does not fit into an axis of 1",
    ),
    (
        lambda: K.pool2d(p(2, 6, 6, 3), (0, 2)),
        ValueError,
        "pool2d: expected 2 positive integers as pool_size, not (0, 2)",
    ),
    (
        lambda: K.pool2d(p(2, 6, 6, 3), (2, 2), pool_mode="median"),
        ValueError,
        "pool2d: expected the pool_mode 'max' or 'avg', not 'median'",
    ),
    (
        lambda: K.pool3d(p(2, 6, 6, 6, 3), (2, 2)),
        ValueError,
        "pool3d: expected 3 positive integers as pool_size, not (2, 2)",
    ),
    (
        lambda: K.bias_add(p(2, 3), p(2, 3)),
        ValueError,
        "bias_add: expected a bias of rank 1 for a tensor of rank 2, not one of shape (2, 3)",
    ),
    (
        lambda: K.bias_add(p(2, 3), p(4)),
        ShapeError,
        "bias_add: shapes (2, 3) and (4,) do not broadcast: axis 1 has 3 and 4",
    ),
    (
        lambda: K.bias_add(p(2, 3, 4, 5), p(6, 5), "channels_last"),
        ValueError,
        "bias_add: expected a bias of rank 1 or 3 for a tensor of rank 4, not one of shape (6, 5)",
    ),
    (
        lambda: K.resize_images(p(2, 3, 3), 2, 2, "channels_last"),
        ShapeError,
        "resize_images: expected a tensor of rank 4, not one of shape (2, 3, 3)",
    ),
    (
        lambda: K.resize_images(p(2, 3, 3, 1), 0, 2, "channels_last"),
        ValueError,
        "resize_images: expected positive integers as factors, not 0",
    ),
    (
        lambda: K.resize_images(p(2, 3, 3, 1), 2, 2, "channels_last", "cubic"),
        ValueError,
        "resize_images: expected the interpolation 'nearest' or 'bilinear', not 'cubic'",
    ),
    (
        lambda: K.resize_volumes(p(2, 3, 3, 3, 1), 2, 1.5, 2, "channels_last"),
        ValueError,
        "resize_volumes: expected positive integers as factors, not 1.5",
    ),
    (
        lambda: K.spatial_2d_padding(p(2, 3, 3), ((1, 1), (1, 1))),
        ShapeError,
        "spatial_2d_padding: expected a tensor of rank 4, not one of shape (2, 3, 3)",
    ),
    (
        lambda: K.spatial_2d_padding(p(2, 3, 3, 1), (1, 1)),
        CheckError,
        "spatial_2d_padding: expected 2 pairs of numbers as padding, not (1, 1)",
    ),
    (
        lambda: K.spatial_2d_padding(p(2, 3, 3, 1), ((1, -1), (1, 1))),
        ShapeError,
        "spatial_2d_padding: the padding (1, -1) is negative",
    ),
    (
        lambda: K.spatial_3d_padding(p(2, 3, 3, 3, 1), ((1, 1), (1, 1))),
        CheckError,
        "spatial_3d_padding: expected 3 pairs of numbers as padding, not ((1, 1), (1, 1))",
    ),
    (
        lambda: K.temporal_padding(p(2, 3), (1, 1)),
        ShapeError,
        "temporal_padding: expected a tensor of rank 3, not one of shape (2, 3)",
    ),
]


@pytest.mark.parametrize(("call", "kind", "text"), CASES, ids=[text for _, _, text in CASES])
def test_error(call, kind, text):
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    assert re.sub(r"placeholder_\d+", "placeholder_0", str(caught.value).split("\n")[0]) == text
