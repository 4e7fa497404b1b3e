"""Products and one-hot encoding of K against NumPy."""

import numpy as np
import pytest
from k_tools import check, check_gradients, run

from graphkb import backend as K
from graphkb.ir.errors import DTypeError, ShapeError

RNG = np.random.default_rng(0)


def normal(*shape):
    return RNG.normal(size=shape)


DOTS = [
    ((2, 3), (3, 4)),
    ((2, 3), (4, 3, 5)),
    ((2, 3, 4), (4, 5)),
    ((2, 3, 4), (5, 4, 6)),
    ((3,), (3,)),
    ((2, 3), (3,)),
    ((3,), (3, 2)),
    ((0, 3), (3, 2)),
    ((2, 0), (0, 3)),
    ((1, 1), (1, 1)),
]


@pytest.mark.parametrize(("m", "n"), DOTS)
def test_dot(m, n):
    check(K.dot, np.dot, normal(*m), normal(*n))
    assert K.dot(K.placeholder(m), K.placeholder(n)).shape == np.dot(np.zeros(m), np.zeros(n)).shape


def test_dot_keeps_unknown_sizes():
    x, y = K.placeholder((None, 3)), K.placeholder((4, 3, 5))
    assert K.dot(x, y).node.shape == (x.node.shape[0], 4, 5)
    assert K.dot(K.placeholder((None, None)), K.placeholder((3, 2))).shape == (None, 2)


def test_dot_of_other_dtypes():
    x = np.array([[1, 2], [3, 4]])
    assert run(K.dot, x.astype("int32"), x.astype("int32")).tolist() == (x @ x).tolist()
    assert K.dot(K.variable(x), x).dtype == "float32"
    assert K.dot(K.variable(x), K.variable(x, "int32")).dtype == "float32"
    assert run(K.dot, x.astype("float16"), x.astype("float16")).dtype == "float16"


def test_dot_errors():
    with pytest.raises(ShapeError) as caught:
        K.dot(K.placeholder((2, 3)), K.placeholder((4, 5)))
    assert str(caught.value).startswith(
        "dot: shapes (2, 3) and (4, 5) do not fit: axis 1 of the first has 3, axis 0 of the second has 4"
    )
    with pytest.raises(ShapeError, match=r"^dot: expected operands of rank 1 or more, not of shapes \(\) and \(2,\)$"):
        K.dot(K.variable(1), K.variable([1, 2]))


def batch_dot(x, y, axes):
    """Sample by sample, as the documentation of Keras 2.3 defines it."""
    if axes is None:
        axes = (x.ndim - 1, y.ndim - 1 if y.ndim == 2 else y.ndim - 2)
    i, j = (axes, axes) if isinstance(axes, int) else axes
    i, j = i % x.ndim, j % y.ndim
    result = np.array([np.tensordot(a, b, (i - 1, j - 1)) for a, b in zip(x, y)])
    return result[:, None] if result.ndim == 1 else result


BATCH_DOTS = [
    ((4, 2, 3), (4, 3, 5), None),
    ((4, 3), (4, 3), None),
    ((4, 3), (4, 3, 5), None),
    ((4, 2, 3), (4, 3), None),
    ((4, 2, 3), (4, 5, 3), (2, 2)),
    ((4, 3, 2), (4, 3, 5), 1),
    ((4, 2, 3), (4, 5, 3), -1),
    ((4, 2, 3, 6), (4, 3, 5), [2, 1]),
    ((4, 2, 3, 6), (4, 5, 6, 7), (3, 2)),
    ((4, 2, 3), (4, 3, 5, 2), (-1, 1)),
    ((1, 2), (1, 2), 1),
]


@pytest.mark.parametrize(("m", "n", "axes"), BATCH_DOTS)
def test_batch_dot(m, n, axes):
    x, y = normal(*m), normal(*n)
    check(lambda a, b: K.batch_dot(a, b, axes), lambda a, b: batch_dot(a, b, axes), x, y)
    expected = batch_dot(x, y, axes).shape
    open_ended = K.batch_dot(K.placeholder((None, *m[1:])), K.placeholder((None, *n[1:])), axes)
    assert open_ended.shape == (None, *expected[1:])
    assert K.batch_dot(K.placeholder(m), K.placeholder((None, *n[1:])), axes).shape == expected


@pytest.mark.parametrize(
    ("m", "n", "axes", "text"),
    [
        ((4,), (4, 3), None, "batch_dot: expected operands of rank 2 or more, not of shapes (4,) and (4, 3)"),
        ((4, 3), (5, 3), None, "batch_dot: the batch sizes of the shapes (4, 3) and (5, 3) differ: 4 and 5"),
        ((4, 2, 3), (4, 3, 5), ((1, 2), 1),
         "batch_dot: several axes for one operand: expected None, an int or two ints, not ((1, 2), 1)"),
        ((4, 2, 3), (4, 3, 5), 0, "batch_dot: axis 0 counts the samples and can not be summed over; "
         "add a batch axis with K.expand_dims(x, 0) where there is none"),
        ((4, 2, 3), (4, 2, 5), (2, 1), "batch_dot: shapes (4, 2, 3) and (4, 2, 5) do not fit: "
         "axis 2 of the first has 3, axis 1 of the second has 2"),
        ((4, 2, 3), (4, 2, 5), (3, 1), "batch_dot: axis 3 is out of range for a tensor of rank 3"),
    ],
)  # fmt: skip
def test_batch_dot_errors(m, n, axes, text):
    with pytest.raises(ValueError) as caught:
        K.batch_dot(K.placeholder(m), K.placeholder(n), axes)
    assert str(caught.value) == text


def test_one_hot():
    i = np.array([[0, 2], [3, -1]], np.int32)
    expected = np.array([[[1, 0, 0], [0, 0, 1]], [[0, 0, 0], [0, 0, 0]]])
    assert run(lambda t: K.one_hot(t, 3), i).tolist() == expected.tolist()
    assert K.one_hot(i, 3).dtype == "float32"
    assert K.eval(K.one_hot(np.array(200, np.uint8), 300)).argmax() == 200
    assert K.eval(K.one_hot([0], 0)).shape == (1, 0)
    x = K.placeholder((None, 4), dtype="int64")
    assert K.one_hot(x, K.shape(x)[1]).shape == (None, 4, 4)
    with pytest.raises(DTypeError, match=r"^one_hot: the indices must be integers, not float32; use K.cast$"):
        K.one_hot(K.variable([0.0]), 3)


def test_gradients():
    check_gradients(K.dot, normal(2, 3), normal(3, 2))
    check_gradients(K.dot, normal(2, 3), normal(2, 3, 2))
    check_gradients(lambda a, b: K.batch_dot(a, b, (1, 2)), normal(2, 3, 2), normal(2, 2, 3))
    check_gradients(K.batch_dot, normal(2, 3), normal(2, 3))
    check_gradients(lambda a, b: a @ b, normal(2, 3), normal(2, 3, 2))
