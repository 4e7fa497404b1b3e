"""Exact texts of the errors of making, reshaping, joining and multiplying tensors."""

import re

import pytest

from graphkb import backend as K
from graphkb.ir.errors import CheckError, DTypeError, PositionError, ShapeError, UnsupportedError


def p(*shape):
    return K.placeholder(shape)


CASES = [
    (lambda: K.placeholder(3), TypeError, "placeholder: expected a shape such as (3,), not the integer 3"),
    (
        lambda: K.placeholder((2, -1)),
        ValueError,
        "placeholder: the size -1 is negative; use None for a size that is not known",
    ),
    (
        lambda: K.placeholder((2, "x")),
        TypeError,
        "placeholder: expected an integer or a scalar integer tensor as a size, not 'x'",
    ),
    (lambda: K.placeholder(ndim=-1), ValueError, "placeholder: expected ndim of 0 or more, not -1"),
    (lambda: K.variable("text"), DTypeError, "variable: expected a tensor or numbers, not 'text'"),
    (
        lambda: K.variable([[1, 2], [3]]),
        ShapeError,
        "variable: expected nested lists of equal lengths, not [[1, 2], [3]]",
    ),
    (lambda: K.variable([None, 1]), DTypeError, "variable: expected a tensor or numbers, not [None, 1]"),
    (
        lambda: K.variable(2**70),
        DTypeError,
        "variable: an integer does not fit into any dtype: expected at most 64 bits",
    ),
    (
        lambda: K.constant([1, 2, 3], shape=(2, 2)),
        ShapeError,
        "constant: a value of shape (3,) does not fit the shape (2, 2)",
    ),
    (
        lambda: K.constant(1, dtype="complex64"),
        TypeError,
        (
            "constant: dtype 'complex64' is not supported: expected one of bool, int8, int16, int32, int64, "
            "uint8, uint16, uint32, uint64, float16, float32, float64"
        ),
    ),
    (lambda: K.zeros((2, -3)), ShapeError, "zeros: the shape (2, -3) has a negative size"),
    (lambda: K.zeros(None), TypeError, "zeros: expected a sequence of sizes, not None"),
    (
        lambda: K.ones((2, p())),
        ShapeError,
        (
            "ones: the size <Tensor 'placeholder_0': float32 ()> depends on values, not only on shapes: "
            "expected integers, or numbers computed from K.shape"
        ),
    ),
    (lambda: K.eye((2, 3, 4)), ShapeError, "eye: expected a number of rows and columns, or a pair, not (2, 3, 4)"),
    (lambda: K.arange(1, 5, 0), ValueError, "arange: the step must not be 0"),
    (lambda: K.arange("a"), TypeError, "arange: expected a number or a scalar integer tensor as start, not 'a'"),
    (
        lambda: K.arange(p()),
        ShapeError,
        (
            "arange: the length must be known from shapes: expected numbers, or integers computed from K.shape,"
            " and a constant step"
        ),
    ),
    (lambda: K.reshape(p(2, 3), (4, 2)), ShapeError, "reshape: (2, 3) has 6 elements, the new shape (4, 2) has 8"),
    (
        lambda: K.reshape(p(2, 3), (-1, -1)),
        ShapeError,
        "reshape: the shape (-1, -1) may have one -1 and no other negative size",
    ),
    (lambda: K.reshape(p(2, 3), (-1, 4)), ShapeError, "reshape: (2, 3) does not fit the shape (-1, 4)"),
    (
        lambda: K.reshape(p(2, 3), (None, 3)),
        TypeError,
        "reshape: None is no size; use -1 for one size, K.shape(x)[i] for others",
    ),
    (
        lambda: K.permute_dimensions(p(2, 3), (0, 0)),
        ShapeError,
        "permute_dimensions: axes (0, 0) are not a permutation of the 2 axes of (2, 3)",
    ),
    (
        lambda: K.permute_dimensions(p(2, 3), (0, 1, 2)),
        ShapeError,
        "permute_dimensions: axis 2 is out of range for a tensor of rank 2",
    ),
    (lambda: K.expand_dims(p(2, 3), 4), ShapeError, "expand_dims: axis 4 is out of range for a tensor of rank 3"),
    (lambda: K.squeeze(p(2, 3), 0), ShapeError, "squeeze: axis 0 of (2, 3) has the size 2, not 1"),
    (lambda: K.squeeze(p(2, 1), 1.0), TypeError, "squeeze: expected an int as an axis, not 1.0"),
    (lambda: K.reverse(p(2, 3), 2), ShapeError, "reverse: axis 2 is out of range for a tensor of rank 2"),
    (lambda: K.batch_flatten(p()), ShapeError, "batch_flatten: expected a tensor of rank 1 or more, not a scalar"),
    (lambda: K.repeat(p(2), 3), CheckError, "repeat: expected a matrix, not a tensor of shape (2,)"),
    (lambda: K.repeat(p(2, 3), -1), ShapeError, "repeat: the shape (-1,) has a negative size"),
    (
        lambda: K.repeat_elements(p(2, 3), 2, 2),
        ShapeError,
        "repeat_elements: axis 2 is out of range for a tensor of rank 2",
    ),
    (lambda: K.repeat_elements(p(2, 3), -2, 1), ShapeError, "repeat_elements: the number -2 is negative"),
    (lambda: K.tile(p(2, 3), (1, 2, 3)), UnsupportedError, "tile: 3 numbers for the 2 axes of (2, 3)"),
    (lambda: K.tile(p(2, 3), (1, -2)), ShapeError, "tile: the numbers (1, -2) must not be negative"),
    (lambda: K.concatenate([]), ValueError, "concatenate: expected at least one tensor, not an empty list"),
    (
        lambda: K.concatenate([p(2, 3), p(3, 3)]),
        ShapeError,
        ("concatenate: shapes (2, 3) and (3, 3) differ along axis 0, which is not the axis of concatenation (1)"),
    ),
    (lambda: K.concatenate([p(2, 3), p(2)]), ShapeError, "concatenate: shapes (2, 3) and (2,) differ in rank"),
    (
        lambda: K.concatenate([p(2, 3), p(2, 3)], axis=2),
        ShapeError,
        "concatenate: axis 2 is out of range for a tensor of rank 2",
    ),
    (lambda: K.stack([p(2, 3), p(2)]), ShapeError, "stack: expected tensors of one shape, not (2, 3) and (2,)"),
    (lambda: K.stack([p(2, 3)], axis=4), ShapeError, "stack: axis 4 is out of range for a tensor of rank 3"),
    (
        lambda: K.slice(p(2, 3), (0,), (1, 1)),
        ValueError,
        "slice: expected one start and one size for each of the 2 axes, not 1 and 2",
    ),
    (lambda: K.slice(p(2, 3), (0, 2), (1, 2)), ShapeError, "slice: axis 1 of (2, 3) has no elements 2 to 3"),
    (lambda: K.slice(p(2, 3), (0, 4), (1, -1)), ShapeError, "slice: axis 1 of (2, 3): the start 4 lies behind its end"),
    (lambda: K.gather(p(), [0]), ShapeError, "gather: expected a reference of rank 1 or more, not a scalar"),
    (lambda: K.gather(p(2, 3), [0.5]), DTypeError, "gather: the indices must be integers, not float32"),
    (lambda: K.one_hot([0.5], 3), DTypeError, "one_hot: the indices must be integers, not float32; use K.cast"),
    (lambda: K.one_hot([1], -3), ShapeError, "one_hot: the number of classes -3 is negative"),
    (
        lambda: K.dot(p(2, 3), p(4, 5)),
        ShapeError,
        "dot: shapes (2, 3) and (4, 5) do not fit: axis 1 of the first has 3, axis 0 of the second has 4",
    ),
    (lambda: K.dot(p(), p(3)), ShapeError, "dot: expected operands of rank 1 or more, not of shapes () and (3,)"),
    (lambda: K.dot(p(2, 3), None), DTypeError, "dot: expected a tensor or numbers, not None"),
    (
        lambda: K.batch_dot(p(2), p(2, 3)),
        ValueError,
        "batch_dot: expected operands of rank 2 or more, not of shapes (2,) and (2, 3)",
    ),
    (
        lambda: K.batch_dot(p(2, 3, 4), p(3, 4, 5)),
        ValueError,
        "batch_dot: the batch sizes of the shapes (2, 3, 4) and (3, 4, 5) differ: 2 and 3",
    ),
    (
        lambda: K.batch_dot(p(2, 3, 4), p(2, 3, 4)),
        ValueError,
        ("batch_dot: shapes (2, 3, 4) and (2, 3, 4) do not fit: axis 2 of the first has 4, axis 1 of the second has 3"),
    ),
    (
        lambda: K.batch_dot(p(2, 3, 4), p(2, 4, 5), axes=(0, 1)),
        ValueError,
        (
            "batch_dot: axis 0 counts the samples and can not be summed over; add a batch axis with "
            "K.expand_dims(x, 0) where there is none"
        ),
    ),
    (
        lambda: K.batch_dot(p(2, 3, 4), p(2, 4, 5), axes=(3, 1)),
        ValueError,
        "batch_dot: axis 3 is out of range for a tensor of rank 3",
    ),
    (
        lambda: K.batch_dot(p(2, 3, 4), p(2, 4, 5), axes=((1, 2), 1)),
        ValueError,
        "batch_dot: several axes for one operand: expected None, an int or two ints, not ((1, 2), 1)",
    ),
    (
        lambda: K.count_params(K.placeholder((None, 2))),
        ValueError,
        (
            "count_params: the shape (None, 2) of <Tensor 'placeholder_0': float32 (None, 2)> is not known "
            "before the call"
        ),
    ),
    (
        lambda: K.is_keras_tensor(3),
        ValueError,
        "is_keras_tensor: expected a symbolic tensor, not an instance of <class 'int'>",
    ),
    (
        lambda: K.cast(p(2), "float99"),
        TypeError,
        (
            "cast: dtype 'float99' is not supported: expected one of bool, int8, int16, int32, int64, uint8, "
            "uint16, uint32, uint64, float16, float32, float64"
        ),
    ),
    (lambda: p(2, 3)[2], PositionError, "index 2 is out of bounds for axis 0 with size 2"),
    (lambda: p(2, 3)[0, 0, 0], PositionError, "too many indices for a tensor of shape (2, 3): 3 for 2 axes"),
    (lambda: p(2, 3) + p(2, 4), ShapeError, "add: shapes (2, 3) and (2, 4) do not broadcast: axis 1 has 3 and 4"),
    (
        lambda: p(2, 3) @ p(2, 3),
        ShapeError,
        "dot: shapes (2, 3) and (2, 3) do not fit: axis 1 of the first has 3, axis 0 of the second has 2",
    ),
    (
        lambda: K.variable([True], dtype="bool") + K.variable([True], dtype="bool"),
        DTypeError,
        "add: two bool operands have no arithmetic; use &, |, ^, or K.cast one of them first",
    ),
]


@pytest.mark.parametrize(("call", "kind", "text"), CASES, ids=[text for _, _, text in CASES])
def test_error(call, kind, text):
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    assert re.sub(r"placeholder_\d+", "placeholder_0", str(caught.value).split("\n")[0]) == text
