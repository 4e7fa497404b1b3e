"""Making tensors: placeholders, variables, constants, filled and counting tensors, and the questions `is_…`."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphkb.backend import config
from graphkb.backend.promotion import Handle, as_node, to_array
from graphkb.backend.sizes import check_sizes, scalar_dim, size_list, to_count, to_dim, to_dims
from graphkb.backend.sparse import SparseTensor, sparse_constant, sparse_placeholder
from graphkb.backend.tensors import Tensor, Variable
from graphkb.ir import dims
from graphkb.ir.dims import Dim
from graphkb.ir.errors import ShapeError, shown
from graphkb.ir.leaves import Array, VariableCell, unique_name
from graphkb.ir.origin import current_origin
from graphkb.ir.types import FLOATS, NUMPY_DTYPE, dtype_name
from graphkb.ops import leaf
from graphkb.ops import shape as shape_ops
from graphkb.ops.elementwise import cast, equal


def _dtype(dtype: Any) -> str:
    return config.floatx() if dtype is None else dtype_name(dtype)


def _scoped(name: str) -> str:
    """A name inside the open name scope."""
    origin = current_origin()
    return f"{origin.scope}/{name}" if origin is not None and origin.scope else name


# -------------------------------------------------------------------------------------------------- leaves
def placeholder(
    shape: Sequence[int | None] | None = None,
    ndim: int | None = None,
    dtype: str | None = None,
    sparse: bool = False,
    name: str | None = None,
) -> Tensor:
    """A tensor whose value is handed in at every call of a function.

    Args:
        shape: sizes; None for one that may differ from call to call.
        ndim: the number of axes, all of unknown size, where no shape is given. With neither, as `shape=(None)` has
            it, the placeholder is a vector of unknown length.
        dtype: a dtype name; None takes `floatx()`. "string" makes a placeholder of texts, which `identity` and
            functions hand through.
        sparse: whether it is a sparse matrix, of two sizes. Functions take SciPy matrices and arrays for it.
        name: for errors and dumps.

    Returns:
        A tensor of that shape and dtype.

    Raises:
        TypeError: the dtype is not known, or a size is no integer.
        ValueError: a size is negative, or `sparse` is true and there are not two sizes.

    >>> from graphkb import backend as K
    >>> x = K.placeholder((None, 4), name="x")
    >>> x.shape, x.dtype
    ((None, 4), 'float32')
    """
    if shape is None:
        shape = (None,) * (1 if ndim is None else to_count("placeholder", "ndim", ndim))
    if isinstance(shape, (int, np.integer)):
        raise TypeError(f"placeholder: expected a shape such as ({shape},), not the integer {shape}")
    if dtype == "string":
        from graphkb.backend.texts import TextTensor

        sizes_or_none = tuple([None if n is None else int(n) for n in size_list(shape, "placeholder")])
        return TextTensor(sizes_or_none, unique_name("placeholder") if name is None else _scoped(name))  # type: ignore[return-value]
    prefix = unique_name("placeholder") if name is None else _scoped(name)
    label = "x" if name is None else name
    sizes: list[Dim] = []
    for axis, size in enumerate(size_list(shape, "placeholder")):
        if size is None:
            sizes.append(dims.symbol("batch" if axis == 0 else f"{label}_{axis}"))
            continue
        known = to_dim(size, "placeholder")
        if isinstance(known, int) and known < 0:
            raise ValueError(f"placeholder: the size {known} is negative; use None for a size that is not known")
        sizes.append(known)
    if sparse:
        x: Tensor = sparse_placeholder(tuple(sizes), _dtype(dtype), prefix)
    else:
        x = Tensor(leaf.placeholder(tuple(sizes), _dtype(dtype), prefix))
    x._keras_shape = x.shape  # type: ignore[attr-defined]
    x._uses_learning_phase = False  # type: ignore[attr-defined]
    return x


def is_placeholder(x: Any) -> bool:
    """Whether a value is a placeholder; it never raises.

    Args:
        x: anything.

    >>> from graphkb import backend as K
    >>> K.is_placeholder(K.placeholder((2,))), K.is_placeholder(3)
    (True, False)
    """
    return isinstance(x, Tensor) and (x.is_input if isinstance(x, SparseTensor) else x.node.op is leaf.PLACEHOLDER)


def _initial_value(value: Any, dtype: str) -> Array:
    """The value as an array of the dtype, which may share its memory."""
    if isinstance(value, Handle) or (isinstance(value, (list, tuple)) and any(isinstance(v, Handle) for v in value)):
        from graphkb.backend.execution import evaluate_node

        return evaluate_node(cast(as_node(value), dtype))
    array = to_array(value)
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(NUMPY_DTYPE[dtype], copy=False)


def variable(
    value: Any, dtype: str | None = None, name: str | None = None, constraint: Callable[..., Any] | None = None
) -> Variable:
    """A tensor whose value lives between calls.

    Args:
        value: the first value: a number, nested lists, an array, or a tensor that needs no placeholder. Of a SciPy
            sparse matrix it makes a sparse tensor, which is no variable, as in Keras: its value stays.
        dtype: a dtype name; None takes `floatx()`, whatever the dtype of the value.
        name: for errors and dumps.
        constraint: a function that optimizers apply after each update; stored as `constraint`.

    Returns:
        A variable of the value's shape.

    Raises:
        TypeError: the dtype is not known, or the value holds no numbers.

    >>> from graphkb import backend as K
    >>> v = K.variable([[1, 2], [3, 4]])
    >>> v.shape, v.dtype
    ((2, 2), 'float32')
    """
    if hasattr(value, "tocoo"):
        kept = sparse_constant(value, _dtype(dtype), unique_name("variable") if name is None else _scoped(name))
        kept._keras_shape = kept.shape  # type: ignore[attr-defined]
        kept._uses_learning_phase = False  # type: ignore[attr-defined]
        return kept  # type: ignore[return-value]  # as in Keras: a sparse tensor here is no variable
    array = _initial_value(value, _dtype(dtype))
    cell = VariableCell(array, unique_name("variable") if name is None else _scoped(name))
    v = Variable(cell, constraint=constraint)
    v._keras_shape = v.shape  # type: ignore[attr-defined]
    v._uses_learning_phase = False  # type: ignore[attr-defined]
    return v


def is_variable(x: Any) -> bool:
    """Whether a value is a variable; it never raises.

    Args:
        x: anything.

    >>> from graphkb import backend as K
    >>> K.is_variable(K.variable(0)), K.is_variable(K.constant(0)), K.is_variable(0)
    (True, False, False)
    """
    return isinstance(x, Variable)


def constant(value: Any, dtype: str | None = None, shape: Any = None, name: str | None = None) -> Tensor:
    """A tensor with a value that never changes.

    Args:
        value: a number, nested lists, or an array; later changes of the array do not show.
        dtype: a dtype name; None takes `floatx()`.
        shape: the shape of the tensor: a value of as many elements is reshaped, a smaller one is repeated.
        name: for people.

    Returns:
        A tensor of `shape`, or of the value's shape.

    Raises:
        ShapeError: the value does not fit the shape. TypeError: the dtype is not known, or there are no numbers.

    >>> from graphkb import backend as K
    >>> K.eval(K.constant(7, shape=(2, 2), dtype="int32")).tolist()
    [[7, 7], [7, 7]]
    """
    node = as_node(value, _dtype(dtype))
    if shape is not None:
        sizes = to_dims([shape] if isinstance(shape, (int, np.integer)) else shape, "constant")
        check_sizes("constant", sizes)
        if node.type.size != 1 and node.type.size == dims.product(sizes):
            node = shape_ops.reshape(node, sizes)
        else:
            try:
                node = shape_ops.broadcast_to(shape_ops.reshape(node, ()) if node.type.size == 1 else node, sizes)
            except ShapeError:
                raise ShapeError(
                    f"constant: a value of shape {dims.show_shape(node.shape)} does not fit the shape "
                    f"{dims.show_shape(sizes)}"
                ) from None
    return Tensor(node, name)


# -------------------------------------------------------------------------------------------------- filled
def _filled(value: int, shape: Any, dtype: Any, name: str | None, what: str) -> Tensor:
    kind = _dtype(dtype)
    sizes = to_dims([shape] if isinstance(shape, (int, np.integer)) else shape, what)
    check_sizes(what, sizes)
    known = [d for d in sizes if isinstance(d, int)]
    if len(known) == len(sizes) and all(known):
        return variable(np.full(known, value, NUMPY_DTYPE[kind]), kind, name)
    return Tensor(shape_ops.broadcast_to(leaf.constant(value, kind), sizes), name)


def zeros(shape: Any, dtype: str | None = None, name: str | None = None) -> Tensor:
    """Zeros: a variable when all sizes are known and none is 0, as in Keras; otherwise a tensor.

    Args:
        shape: integers and scalar tensors (such as `K.shape(x)[0]`), or an integer vector.
        dtype: a dtype name; None takes `floatx()`.
        name: for people.

    Raises:
        ShapeError: a size is negative, or depends on values and not only on shapes.

    >>> from graphkb import backend as K
    >>> K.eval(K.zeros((2, 3))).tolist()
    [[0.0, 0.0, 0.0], [0.0, 0.0, 0.0]]
    """
    return _filled(0, shape, dtype, name, "zeros")


def ones(shape: Any, dtype: str | None = None, name: str | None = None) -> Tensor:
    """Ones: a variable when all sizes are known and none is 0, as in Keras; otherwise a tensor.

    Args:
        shape: integers and scalar tensors (such as `K.shape(x)[0]`), or an integer vector.
        dtype: a dtype name; None takes `floatx()`.
        name: for people.

    Raises:
        ShapeError: a size is negative, or depends on values and not only on shapes.

    >>> from graphkb import backend as K
    >>> K.eval(K.ones((2,), dtype="int32")).tolist()
    [1, 1]
    """
    return _filled(1, shape, dtype, name, "ones")


def _like(value: int, x: Any, dtype: Any, name: str | None) -> Tensor:
    return Tensor(shape_ops.broadcast_to(leaf.constant(value, _dtype(dtype)), as_node(x).shape), name)


def zeros_like(x: Any, dtype: str | None = None, name: str | None = None) -> Tensor:
    """Zeros in the shape of a tensor.

    Args:
        x: a tensor.
        dtype: a dtype name; None takes `floatx()`, not the dtype of `x`, as in Keras 2.3.1.
        name: for people.

    >>> from graphkb import backend as K
    >>> K.eval(K.zeros_like(K.variable([[1, 2, 3]]))).tolist()
    [[0.0, 0.0, 0.0]]
    """
    return _like(0, x, dtype, name)


def ones_like(x: Any, dtype: str | None = None, name: str | None = None) -> Tensor:
    """Ones in the shape of a tensor.

    Args:
        x: a tensor.
        dtype: a dtype name; None takes `floatx()`, not the dtype of `x`, as in Keras 2.3.1.
        name: for people.

    >>> from graphkb import backend as K
    >>> K.eval(K.ones_like(K.variable([[1, 2, 3]]), dtype="bool")).tolist()
    [[True, True, True]]
    """
    return _like(1, x, dtype, name)


def eye(size: Any, dtype: str | None = None, name: str | None = None) -> Tensor:
    """Ones on the diagonal, zeros elsewhere.

    Args:
        size: the number of rows and columns, or the pair of both.
        dtype: a dtype name; None takes `floatx()`.
        name: for people.

    >>> from graphkb import backend as K
    >>> K.eval(K.eye(2)).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    sizes = to_dims(size if isinstance(size, (list, tuple)) else (size, size), "eye")
    if len(sizes) != 2:
        raise ShapeError(f"eye: expected a number of rows and columns, or a pair, not {shown(size)}")
    check_sizes("eye", sizes)
    rows, columns = sizes
    row = shape_ops.expand_dims(leaf.iota(rows), 1)
    return Tensor(cast(equal(row, leaf.iota(columns)), _dtype(dtype)), name)


def identity(x: Any, name: str | None = None) -> Tensor:
    """A new tensor of the same value, on which attributes can be set apart from those of `x`.

    Args:
        x: a tensor.
        name: for people.

    >>> from graphkb import backend as K
    >>> x = K.placeholder((2,))
    >>> K.identity(x) is x
    False
    """
    if getattr(x, "dtype", None) == "string":
        from graphkb.backend.texts import TextTensor

        if isinstance(x, TextTensor):
            return TextTensor(x.shape, x.name if name is None else name, x.source)  # type: ignore[return-value]
    return Tensor(as_node(x), name)


def _number(value: Any) -> Any:
    """A Python or NumPy number as Python's, anything else as it is."""
    return value.item() if isinstance(value, (np.generic, np.ndarray)) and np.size(value) == 1 else value


def arange(start: Any, stop: Any = None, step: Any = 1, dtype: str = "int32") -> Tensor:
    """Evenly spaced numbers: start, start + step … up to but without stop.

    Args:
        start: a number, or a scalar integer tensor that is computed from shapes; the only argument is `stop`.
        stop: like `start`. A negative lone `stop` gives an empty vector.
        step: like `start`, not 0.
        dtype: a dtype name. As in Keras, "int32" leaves floats what they are.

    Returns:
        A vector.

    Raises:
        ShapeError: the length depends on values and not only on shapes. ValueError: the step is 0.

    >>> from graphkb import backend as K
    >>> K.eval(K.arange(2, 8, 3)).tolist()
    [2, 5]
    """
    first, last = (0, start) if stop is None else (start, stop)
    first, last, by = _number(first), _number(last), _number(step)
    kind = dtype_name(dtype)
    for what, value in (("start", start), ("stop", stop if stop is not None else 0), ("step", step)):
        if not isinstance(_number(value), (Handle, int, float)):
            raise TypeError(f"arange: expected a number or a scalar integer tensor as {what}, not {shown(value)}")
    if not any(isinstance(v, Handle) for v in (first, last, by)):
        if by == 0:
            raise ValueError("arange: the step must not be 0")
        if any(isinstance(v, float) for v in (first, last, by)):
            kind = config.floatx() if kind == "int32" else kind
            count = max(math.ceil((last - first) / by), 0)
            return Tensor(leaf.constant((first + np.arange(count) * by).astype(NUMPY_DTYPE[kind])))
    lengths = [scalar_dim(v) for v in (first, last, by)]
    low, high, stride = lengths
    if low is None or high is None or not isinstance(stride, int):
        raise ShapeError(
            "arange: the length must be known from shapes: expected numbers, or integers computed from K.shape, "
            "and a constant step"
        )
    if stride == 0:
        raise ValueError("arange: the step must not be 0")
    span = high - low if stride > 0 else low - high
    size = dims.maximum((span + abs(stride) - 1) // abs(stride), 0)
    whole = kind if kind not in FLOATS and kind != "bool" and NUMPY_DTYPE[kind].itemsize >= 4 else "int64"
    node = leaf.iota(size, whole)
    if stride != 1:
        node = node * leaf.constant(np.asarray(stride).astype(NUMPY_DTYPE[whole]))
    if low != 0:
        node = node + leaf.size(low, whole)
    return Tensor(cast(node, kind))


# ------------------------------------------------------------------------------------------------ questions
def is_tensor(x: Any) -> bool:
    """Whether a value is a tensor of this backend; variables are.

    Args:
        x: anything.

    >>> from graphkb import backend as K
    >>> K.is_tensor(K.variable(1)), K.is_tensor(1.0)
    (True, False)
    """
    return isinstance(x, Tensor)


def is_keras_tensor(x: Any) -> bool:
    """Whether a tensor came out of a Keras layer.

    Args:
        x: a tensor.

    Raises:
        ValueError: `x` is no tensor.

    >>> from graphkb import backend as K
    >>> K.is_keras_tensor(K.placeholder((2,)))
    False
    """
    if not isinstance(x, Tensor):
        raise ValueError(f"is_keras_tensor: expected a symbolic tensor, not an instance of {type(x)}")
    return hasattr(x, "_keras_history")


def is_sparse(tensor: Any) -> bool:
    """Whether a tensor is sparse; it never raises.

    Args:
        tensor: anything.

    >>> from graphkb import backend as K
    >>> K.is_sparse(K.placeholder((2, 3), sparse=True)), K.is_sparse(K.variable(1))
    (True, False)
    """
    return isinstance(tensor, SparseTensor)


def to_dense(tensor: Any) -> Any:
    """A sparse tensor as a dense one; any other tensor itself.

    Args:
        tensor: a tensor.

    >>> from graphkb import backend as K
    >>> x = K.placeholder((2, 3), sparse=True)
    >>> K.is_sparse(K.to_dense(x)), K.to_dense(x).shape
    (False, (2, 3))
    """
    return Tensor(tensor.node) if isinstance(tensor, SparseTensor) else tensor


def dtype(x: Any) -> str:
    """The dtype name of a tensor, a variable or a NumPy array.

    Args:
        x: a tensor, a number or an array.

    >>> from graphkb import backend as K
    >>> K.dtype(K.placeholder((2,), dtype="float64"))
    'float64'
    """
    return x.dtype if isinstance(x, Tensor) else as_node(x).dtype
