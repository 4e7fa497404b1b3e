"""Shapes, views, joining, repeating and padding, with sizes that are known, unknown, or tensors."""

import numpy as np
import pytest
from k_tools import check, check_gradients, run

from graphkb import backend as K
from graphkb.backend.sizes import as_dim
from graphkb.ir.errors import DTypeError, ShapeError

X = np.arange(24.0).reshape(2, 3, 4)


# ------------------------------------------------------------------------------------------------- questions
def test_shape_questions():
    x = K.placeholder((None, 3, 4))
    assert K.int_shape(x) == (None, 3, 4)
    assert K.ndim(x) == 3
    assert (K.dtype(K.shape(x)), K.int_shape(K.shape(x))) == ("int32", (3,))
    f = K.function([x], [K.shape(x), K.size(x), K.shape(x)[1:], K.shape(x)[0] * 2])
    shape, size, rest, twice = f([np.zeros((5, 3, 4))])
    assert (shape.tolist(), size, rest.tolist(), twice) == ([5, 3, 4], 60, [3, 4], 10)
    assert size.dtype == shape.dtype == "int32"
    assert K.eval(K.shape(K.variable(1))).tolist() == []
    assert K.size(x, name="scope").name == "scope:0"


def test_keras_shape_wins():
    x = K.placeholder((None, 3))
    x._keras_shape = (7, 3)
    assert K.int_shape(x) == (7, 3)
    x._keras_shape = None
    assert K.int_shape(x) is None
    assert K.int_shape(np.zeros((2, 5))) == (2, 5)
    assert K.get_variable_shape(K.variable(X)) == (2, 3, 4)


def test_count_params():
    assert [K.count_params(K.variable(v)) for v in (X, 1.0, [])] == [24, 1, 0]
    with pytest.raises(ValueError, match=r"^count_params: the shape \(None, 3\) of <Tensor 'x'"):
        K.count_params(K.placeholder((None, 3), name="x"))


# --------------------------------------------------------------------------------------------- scalars as dims
def test_scalar_tensors_are_dims_again():
    x = K.placeholder((None, 6))
    n = K.shape(x)[0]
    batch = x.node.shape[0]
    for tensor, dim in [
        (n, batch),
        (n * 2 + 1, 2 * batch + 1),
        (n // 2, batch // 2),
        (K.shape(x)[1], 6),
        (K.prod(K.shape(x)), 6 * batch),
        (K.shape(x)[0:1][0], batch),
        (K.squeeze(K.shape(x)[:1], 0), batch),
        (K.cast(n, "int64") - n, 0),
        (K.maximum(n, 0), batch),
        (K.constant(5, dtype="int32"), 5),
        (K.sum([n, 1, K.shape(x)[1]]), batch + 7),
        (K.reverse(K.shape(x), 0)[1], batch),
    ]:
        assert as_dim(tensor.node) == dim
    for tensor in (n / 2, K.variable(1, "int32") + n, K.cast(n, "float32"), K.shape(x), n // 0):
        assert as_dim(tensor.node) is None


# ------------------------------------------------------------------------------------------------------ views
@pytest.mark.parametrize("shape", [(24,), (-1,), (6, 4), (2, -1), (-1, 2, 2), (4, 3, 2, 1), (1, 24, 1)])
def test_reshape(shape):
    check(lambda x: K.reshape(x, shape), lambda x: x.reshape(shape), X)
    assert K.int_shape(K.reshape(K.placeholder((2, 3, 4)), shape)) == np.zeros(24).reshape(shape).shape


def test_reshape_with_sizes_of_tensors():
    check(lambda x: K.reshape(x, (K.shape(x)[0], -1)), lambda x: x.reshape(2, 12), X)
    check(lambda x: K.reshape(x, [-1, K.shape(x)[2]]), lambda x: x.reshape(6, 4), X)
    check(lambda x: K.reshape(x, K.shape(x)[::-1]), lambda x: x.reshape(4, 3, 2), X)
    check(lambda x: K.reshape(x, K.concatenate([K.shape(x)[:1], [12]])), lambda x: x.reshape(2, 12), X)
    x = K.placeholder((None, 2, 3))
    assert K.reshape(x, (-1, 6)).node.shape == (x.node.shape[0], 6)
    assert K.reshape(x, (K.shape(x)[0], -1)).node.shape == (x.node.shape[0], 6)
    assert K.reshape(x, (-1,)).node.shape == (6 * x.node.shape[0],)
    assert K.function([x], [K.reshape(x, (K.shape(x)[0], -1))])([np.zeros((0, 2, 3))])[0].shape == (0, 6)


def test_reshape_errors():
    x = K.placeholder((None, 4))
    y = K.placeholder((3, 4))
    for shape, text in [
        ((5, -1), r"^reshape: \(3, 4\) does not fit the shape \(5, -1\)$"),
        ((-1, -1), "may have one -1 and no other negative size"),
        ((-2, 6), "may have one -1 and no other negative size"),
        ((5,), "12 elements, the new shape"),
        ((0, -1), "does not fit"),
        ((K.variable(12, "int32"),), "depends on values, not only on shapes"),
    ]:
        with pytest.raises(ShapeError, match=text):
            K.reshape(y, shape)
    with pytest.raises(TypeError, match=r"^reshape: None is no size; use -1"):
        K.reshape(x, (None, 4))
    with pytest.raises(TypeError, match=r"expected an integer or a scalar integer tensor as a size, not 1.5"):
        K.reshape(x, (1.5, -1))
    with pytest.raises(ValueError, match=r"reshape"):
        K.function([x], [K.reshape(x, (-1, 5))])([np.zeros((3, 4))])


def test_views():
    check(K.flatten, np.ravel, X)
    check(K.batch_flatten, lambda x: x.reshape(2, 12), X)
    check(K.transpose, np.transpose, X)
    check(lambda x: K.permute_dimensions(x, (2, 0, 1)), lambda x: x.transpose(2, 0, 1), X)
    check(lambda x: K.permute_dimensions(x, [0, -1, 1]), lambda x: x.transpose(0, 2, 1), X)
    for axis in (0, 1, 3, -1, -4):
        check(lambda x, a=axis: K.expand_dims(x, a), lambda x, a=axis: np.expand_dims(x, a), X)
    check(K.expand_dims, lambda x: x[..., None], X)
    for axis in (1, -2):
        check(lambda x, a=axis: K.squeeze(x, a), lambda x, a=axis: np.squeeze(x, a), X[:, :1])
    for axes in (0, -1, [0, 2], (1,)):
        check(lambda x, a=axes: K.reverse(x, a), lambda x, a=axes: np.flip(x, a), X)
    check(K.flatten, np.ravel, np.zeros((0, 3)))
    check(K.batch_flatten, lambda x: x.reshape(0, 6), np.zeros((0, 2, 3)))


def test_view_errors():
    x = K.placeholder((2, 3))
    with pytest.raises(ShapeError, match=r"^squeeze: axis 1 of \(2, 3\) has the size 3, not 1$"):
        K.squeeze(x, 1)
    with pytest.raises(ShapeError, match=r"^squeeze: axis 2 is out of range for a tensor of rank 2$"):
        K.squeeze(x, 2)
    with pytest.raises(ShapeError, match=r"^expand_dims: axis 4 is out of range for a tensor of rank 3$"):
        K.expand_dims(x, 4)
    with pytest.raises(ShapeError, match=r"are not a permutation"):
        K.permute_dimensions(x, (0, 0))
    y = K.placeholder(ndim=2)
    f = K.function([y], [K.squeeze(y, 1)])
    with pytest.raises(ValueError, match=r"reshape"):
        f([np.zeros((2, 3))])


def test_a_size_that_divides_by_zero():
    x, y = K.placeholder((None, None)), K.placeholder((None,), name="y")
    f = K.function([x, y], [K.reshape(x, (K.shape(y)[0], -1))])
    assert f([np.zeros((4, 3)), np.zeros(2)])[0].shape == (2, 6)
    with pytest.raises(ValueError, match=r"divides by a size that is 0"):
        f([np.zeros((4, 3)), np.zeros(0)])


# ---------------------------------------------------------------------------------------- joining and repeating
def test_concatenate():
    a, b = X[:, :1], X * 2
    check(lambda a, b: K.concatenate([a, b], 1), lambda a, b: np.concatenate([a, b], 1), a, b)
    check(lambda a, b: K.concatenate([a, b], -2), lambda a, b: np.concatenate([a, b], 1), a, b)
    check(lambda a: K.concatenate([a, a]), lambda a: np.concatenate([a, a], -1), X)
    check(lambda a: K.concatenate([a, X, a], 0), lambda a: np.concatenate([a, X, a]), X)
    check(lambda a: K.concatenate([a[:0], a], 0), lambda a: a, X)
    assert K.concatenate([K.variable([1]), K.constant([1], "int32")]).dtype == "float32"
    for tensors, text in [
        ([X, X[:, :2, :3]], "differ along axis 1"),
        ([X, X[0]], "differ in rank"),
    ]:
        with pytest.raises(ShapeError, match=text):
            K.concatenate([K.variable(t) for t in tensors])
    with pytest.raises(ValueError, match=r"^concatenate: expected at least one tensor, not an empty list$"):
        K.concatenate([])


def test_stack():
    for axis in (0, 1, 3, -1):
        check(lambda a, b, i=axis: K.stack([a, b], i), lambda a, b, i=axis: np.stack([a, b], i), X, X + 1)
    x = K.placeholder((None, 2))
    assert K.function([x], [K.stack([1, K.size(x), K.shape(x)[0]])])([np.zeros((3, 2))])[0].tolist() == [1, 6, 3]
    assert K.stack([1, K.size(x)]).dtype == "int32"
    assert K.eval(K.stack([1.5, 2])).tolist() == [1.5, 2]
    with pytest.raises(ShapeError, match=r"^stack: expected tensors of one shape, not \(2,\) and \(1,\)$"):
        K.stack([K.variable([1, 2]), K.variable([1])])
    with pytest.raises(ValueError, match=r"^stack: expected at least one tensor, not an empty list$"):
        K.stack([])


@pytest.mark.parametrize("n", [2, (2,), (1, 3), [2, 1, 3], (1, 1, 1), (0, 1), np.array([2, 2])], ids=str)
def test_tile(n):
    check(lambda x: K.tile(x, n), lambda x: np.tile(x, n), X)


def test_tile_by_tensors():
    check(lambda x: K.tile(x, K.stack([1, K.shape(x)[0], 1])), lambda x: np.tile(x, (1, 2, 1)), X)
    check(lambda x: K.tile(x, (K.shape(x)[1], 1)), lambda x: np.tile(x, (3, 1)), X)
    with pytest.raises(NotImplementedError, match=r"^tile: 4 numbers for the 3 axes of \(2, 3, 4\)$"):
        K.tile(K.variable(X), (1, 2, 3, 4))
    with pytest.raises(ShapeError, match=r"must not be negative"):
        K.tile(K.variable(X), -1)


def test_repeat():
    for axis in (0, 1, -1):
        check(lambda x, a=axis: K.repeat_elements(x, 3, a), lambda x, a=axis: np.repeat(x, 3, a), X)
    y = K.repeat_elements(K.placeholder((None, 4)), 2, 0)
    assert y._keras_shape == (None, 4)
    assert K.repeat_elements(K.placeholder((None, 4)), 2, 1)._keras_shape == (None, 8)
    check(lambda x: K.repeat(x, 3), lambda x: np.repeat(x[:, None], 3, 1), X[0])
    check(lambda x: K.repeat(x, K.shape(x)[0]), lambda x: np.repeat(x[:, None], 3, 1), X[0])
    with pytest.raises(AssertionError, match=r"^repeat: expected a matrix, not a tensor of shape \(2, 3, 4\)$"):
        K.repeat(K.variable(X), 2)


# -------------------------------------------------------------------------------------------------- selecting
def test_gather():
    check(lambda x: K.gather(x, np.array([1, 0, 1])), lambda x: x[[1, 0, 1]], X)
    check(lambda x: K.gather(x, [[0], [1]]), lambda x: x[[[0], [1]]], X)
    check(K.gather, lambda x, i: x[i], X, np.array([[0, 1], [1, 1]], np.int32))
    check(K.gather, lambda x, i: x[i], X, np.zeros((0, 2), np.int64))
    check_gradients(lambda x: K.gather(x, [1, 0, 1]), X[:, 0])
    with pytest.raises(DTypeError, match=r"the indices must be integers, not float32"):
        K.gather(K.variable(X), K.variable([0.0]))
    with pytest.raises(IndexError, match=r"index 2 is out of range for an axis of 2"):
        K.eval(K.gather(K.variable(X), [2]))


def test_slice():
    check(lambda x: K.slice(x, (0, 1, 2), (2, 2, 1)), lambda x: x[:, 1:3, 2:3], X)
    check(lambda x: K.slice(x, [0, 1, 2], [-1, -1, -1]), lambda x: x[:, 1:, 2:], X)
    check(lambda x: K.slice(x, K.shape(x) - 1, [1, 1, 1]), lambda x: x[-1:, -1:, -1:], X)
    check(lambda x, s: K.slice(x, s, (1, 2, 2)), lambda x, s: x[1:2, 0:2, 2:4], X, np.array([1, 0, 2]))
    check(lambda x, s: K.slice(x, (0, s, 0), (2, 2, 4)), lambda x, s: x[:, 1:3], X, np.array(1))
    for start, size in [((0,), (1, 1, 1)), ((0, 0, 0), (1, 1)), ((0, 0, 0, 0), (1, 1, 1, 1))]:
        with pytest.raises(ValueError, match=r"^slice: expected one start and one size for each of the 3 axes"):
            K.slice(K.variable(X), start, size)
    with pytest.raises(ShapeError, match=r"has no elements 2 to 4"):
        K.slice(K.variable(X), (0, 2, 0), (1, 3, 1))
    with pytest.raises(ShapeError, match=r"the start -1 is negative"):
        K.slice(K.variable(X), (-1, 0, 0), (1, 1, 1))


# --------------------------------------------------------------------------------------------------- padding
def test_padding():
    check(K.temporal_padding, lambda x: np.pad(x, [(0, 0), (1, 1), (0, 0)]), X)
    check(lambda x: K.temporal_padding(x, (0, 3)), lambda x: np.pad(x, [(0, 0), (0, 3), (0, 0)]), X)
    images, volumes = np.arange(48.0).reshape(2, 2, 3, 4), np.arange(48.0).reshape(1, 2, 2, 3, 4)
    none, inner = (0, 0), [(1, 2), (0, 3), (2, 0)]
    for x, function in ((images, K.spatial_2d_padding), (volumes, K.spatial_3d_padding)):
        pairs = inner[: x.ndim - 2]
        check(
            lambda x, f=function, p=pairs: f(x, tuple(p), "channels_last"),
            lambda x, p=pairs: np.pad(x, [none, *p, none]),
            x,
        )
        check(
            lambda x, f=function, p=pairs: f(x, tuple(p), "channels_first"),
            lambda x, p=pairs: np.pad(x, [none, none, *p]),
            x,
        )
        with pytest.raises(
            ValueError, match=r"expected 'channels_first' or 'channels_last' as the data format, not 'middle'"
        ):
            function(K.variable(x), data_format="middle")
        with pytest.raises(AssertionError, match=r"pairs? of numbers as padding"):
            function(K.variable(x), ((1, 1),))
        with pytest.raises(ShapeError, match=r"expected a tensor of rank"):
            function(K.variable(x[0]))


def test_enlarging():
    images = np.arange(24.0).reshape(1, 2, 3, 4)
    for layout, axes in (("channels_last", (1, 2)), ("channels_first", (2, 3))):
        check(
            lambda x, d=layout: K.resize_images(x, 2, 3, d),
            lambda x, a=axes: np.repeat(np.repeat(x, 2, a[0]), 3, a[1]),
            images,
        )
    volumes = images[:, :, :, :, None]
    check(
        lambda x: K.resize_volumes(x, 2, 1, 3, "channels_last"),
        lambda x: np.repeat(np.repeat(x, 2, 1), 3, 3),
        volumes,
    )
    for function, arguments in ((K.resize_images, (2, 2)), (K.resize_volumes, (2, 2, 2))):
        x = images if function is K.resize_images else volumes
        with pytest.raises(
            ValueError,
            match=r"^resize_\w+: expected 'channels_first' or 'channels_last' as the data format, not 'middle'$",
        ):
            function(K.variable(x), *arguments, "middle")
    with pytest.raises(ValueError, match=r"expected the interpolation 'nearest' or 'bilinear', not 'cubic'"):
        K.resize_images(K.variable(images), 2, 2, "channels_last", "cubic")
    with pytest.raises(ValueError, match=r"expected positive integers as factors, not 0"):
        K.resize_images(K.variable(images), 0, 2, "channels_last")


def bilinear(x, factor, axis):
    """Output i lies at i / factor; beyond the last element it continues."""
    n = x.shape[axis]
    at = np.arange(n * factor) / factor
    low = np.floor(at).astype(int)
    share = (at - low).reshape([-1 if a == axis else 1 for a in range(x.ndim)])
    high = np.minimum(low + 1, n - 1)
    return np.take(x, low, axis) * (1 - share) + np.take(x, high, axis) * share


@pytest.mark.parametrize("layout", ["channels_last", "channels_first"])
def test_bilinear(layout):
    x = np.random.default_rng(0).normal(size=(2, 3, 4, 5))
    first = 1 if layout == "channels_last" else 2
    check(
        lambda t: K.resize_images(t, 2, 3, layout, "bilinear"),
        lambda x: bilinear(bilinear(x, 2, first), 3, first + 1),
        x,
    )
    check_gradients(lambda t: K.resize_images(t, 2, 2, layout, "bilinear"), x[:1, :2, :2, :2])


# -------------------------------------------------------------------------------------------------- creation
def test_filled():
    for make, value in ((K.zeros, 0), (K.ones, 1)):
        assert K.is_variable(make((2, 3)))
        assert K.is_variable(make(()))
        assert not K.is_variable(make((0, 3)))
        assert K.eval(make((2, 3), dtype="int8")).tolist() == [[value] * 3] * 2
        assert K.eval(make((0, 3))).shape == (0, 3)
        x = K.placeholder((None, 2))
        assert not K.is_variable(make((K.shape(x)[0], 3)))
        assert K.function([x], [make((K.shape(x)[0], 3))])([np.zeros((4, 2))])[0].tolist() == [[value] * 3] * 4
        with pytest.raises(ShapeError, match=r"the shape \(-1, 2\) has a negative size"):
            make((-1, 2))
    for like, value in ((K.zeros_like, 0), (K.ones_like, 1)):
        check(lambda x, f=like: f(x, "float64"), lambda x, v=value: np.full_like(x, v), X)
        assert like(K.constant([1], "int32")).dtype == "float32"
        assert like(K.constant([1], "int32"), dtype="bool").dtype == "bool"


def test_eye_and_constant():
    assert K.eval(K.eye(3)).tolist() == np.eye(3).tolist()
    assert K.eval(K.eye((2, 3), "int32")).tolist() == np.eye(2, 3).tolist()
    assert K.eye(2).dtype == "float32"
    assert K.eval(K.constant([1, 2, 3, 4], shape=(2, 2))).tolist() == [[1, 2], [3, 4]]
    assert K.eval(K.constant(0, shape=())).shape == ()
    assert K.eval(K.constant(2.5, shape=(0, 2))).shape == (0, 2)
    assert K.eval(K.constant([[1.0]], shape=(3,))).tolist() == [1, 1, 1]
    assert K.constant(np.arange(3)).dtype == "float32"
    with pytest.raises(ShapeError):
        K.constant([1, 2, 3], shape=(2, 2))


def test_arange():
    for arguments in [(5,), (-1,), (0,), (2, 7), (7, 2), (2, 9, 3), (9, 2, -3), (5, 5), (-3, 3)]:
        expected = np.arange(*arguments)
        if len(arguments) == 1:
            expected = np.arange(max(arguments[0], 0))
        result = K.eval(K.arange(*arguments))
        assert result.dtype == "int32"
        assert result.tolist() == expected.tolist()
    for dtype in ("int64", "float32", "float64", "int8", "uint8"):
        result = K.eval(K.arange(4, dtype=dtype))
        assert result.dtype == dtype
        assert result.tolist() == [0, 1, 2, 3]
    assert K.eval(K.arange(0.5, 2, 0.5, "float64")).tolist() == [0.5, 1.0, 1.5]
    assert K.arange(2.5).dtype == "float32"
    x = K.placeholder((None,))
    f = K.function([x], [K.arange(K.shape(x)[0]), K.arange(K.shape(x)[0], 7), K.arange(1, K.shape(x)[0], 2)])
    assert [v.tolist() for v in f([np.zeros(4)])] == [[0, 1, 2, 3], [4, 5, 6], [1, 3]]
    assert K.eval(K.arange(K.constant(-1, dtype="int32"))).tolist() == []
    with pytest.raises(ValueError, match=r"^arange: the step must not be 0$"):
        K.arange(0, 3, 0)
    with pytest.raises(ShapeError, match=r"^arange: the length must be known from shapes"):
        K.arange(K.variable(3, "int32"))


def test_gradients():
    check_gradients(lambda x: K.reshape(K.transpose(x), (-1, 2)), X)
    check_gradients(lambda x: K.tile(K.reverse(x, 1), (2, 1, 2)), X)
    check_gradients(lambda x: K.repeat_elements(x, 2, 1)[:, 1::2, ::-1], X)
    check_gradients(lambda a, b: K.concatenate([a, b, a], 1), X, X[:, :1])
    check_gradients(lambda a, b: K.stack([a, b], 1), X, X + 1)
    check_gradients(K.temporal_padding, X)
    check_gradients(lambda x: x[1, [0, 2, 0], 1:3], X)


def test_empty_results_run():
    assert run(lambda x: x[5:], X).shape == (0, 3, 4)
    assert run(lambda x: K.tile(x, (0, 1, 1)), X).shape == (0, 3, 4)
