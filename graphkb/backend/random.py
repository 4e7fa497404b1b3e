"""Random tensors, drawn anew by every run, dropout, and variables that begin at random."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from graphkb.backend import config
from graphkb.backend.creation import variable
from graphkb.backend.promotion import Handle, as_node, float_node, items
from graphkb.backend.sizes import to_dim, to_dims
from graphkb.backend.tensors import Tensor, Variable
from graphkb.ir.dims import Shape, show_shape
from graphkb.ir.errors import DTypeError, ShapeError
from graphkb.ir.leaves import unique_name
from graphkb.ir.node import Node, make
from graphkb.ir.types import FLOATS, NUMPY_DTYPE, dtype_name
from graphkb.ops import elementwise, leaf
from graphkb.ops import shape as shape_ops
from graphkb.ops.random import FRACTION_BITS, Draw


def _new_seed() -> int:
    """63 bits of NumPy's own generator: of ten million seeds, some thousand draws would often share one."""
    return int(np.random.randint(2**63 - 1, dtype=np.int64))


def _draw(what: str, shape: Any, seed: Any) -> Draw:
    """A new draw; without a seed NumPy's own generator gives one, so that `np.random.seed` fixes it."""
    sizes = to_dims([shape] if isinstance(shape, (int, np.integer)) else shape, what)
    if any(isinstance(d, int) and d < 0 for d in sizes):
        raise ShapeError(f"{what}: the shape {show_shape(sizes)} has a negative size")
    if seed is None:
        seed = _new_seed()
    try:
        number = int(seed)
    except (TypeError, ValueError):
        raise TypeError(f"{what}: expected an integer or None as the seed, not {seed!r}") from None
    return Draw(sizes, number, unique_name(f"{what}_calls"))


def _float_dtype(what: str, dtype: Any) -> str:
    kind = config.floatx() if dtype is None else dtype_name(dtype)
    if kind not in FLOATS:
        raise DTypeError(f"{what}: expected a float dtype, not {kind}")
    return kind


def _parameter(what: str, name: str, value: Any, dtype: str, sizes: Shape) -> Node:
    """A number or a tensor that broadcasts to the shape of the draw."""
    node = as_node(value, dtype)
    _check_fit(what, name, node.shape, sizes)
    return node


def _check_fit(what: str, name: str, shape: Shape, target: Shape) -> None:
    """ShapeError unless a shape broadcasts to another without making it larger, as far as that is known."""
    known = [(n, m) for n, m in zip(reversed(shape), reversed(target)) if isinstance(n, int) and isinstance(m, int)]
    if len(shape) > len(target) or any(n not in (1, m) for n, m in known):
        raise ShapeError(f"{what}: the {name} {show_shape(shape)} does not broadcast to {show_shape(target)}")


def _between(draw: Draw, minval: Any, maxval: Any, dtype: str) -> Node:
    low = _parameter("random_uniform", "minval", minval, dtype, draw.shape)
    high = _parameter("random_uniform", "maxval", maxval, dtype, draw.shape)
    unit = draw.uniform(dtype)
    if not (leaf.is_constant(low) and leaf.is_constant(high)):
        value = unit * (high - low) + low
        return elementwise.select(elementwise.less(value, high), value, low)
    smallest, largest = leaf.constant_value(low), leaf.constant_value(high)
    if not (smallest <= largest).all():
        raise ValueError(f"random_uniform: minval {minval} is above maxval {maxval}")
    with np.errstate(over="ignore"):
        span = largest - smallest
        top = np.asarray(1 - 2.0 ** -FRACTION_BITS[dtype], dtype) * span + smallest
    value = unit
    if (span != 1).any():
        value = value * leaf.constant(span)
    if smallest.any():
        value = value + low
    if (top >= largest).any():
        # The last step may be rounded up to what is to stay out.
        below = np.maximum(np.nextafter(largest, -np.asarray(np.inf, dtype)), smallest)
        value = elementwise.minimum(value, leaf.constant(below))
    return value


def _integers(draw: Draw, minval: Any, maxval: Any, dtype: str) -> Node:
    """Integers by the remainder of 64 bits: the least likely one is so by less than the range / 2**64."""
    if isinstance(minval, Handle) or isinstance(maxval, Handle):
        raise TypeError("random_uniform: expected numbers as minval and maxval of integers, not tensors")
    low, high = int(minval), int(maxval)
    info = np.iinfo(dtype)
    if not (low < high and info.min <= low and high <= int(info.max) + 1):
        raise ValueError(f"random_uniform: expected minval < maxval within {dtype}, not {minval} and {maxval}")
    bits = draw.bits()
    if high - low < 2**64:
        bits = make(elementwise.mod, (bits, leaf.constant(np.asarray(high - low, np.uint64))))
    return elementwise.cast(bits, dtype) + leaf.constant(np.asarray(low, NUMPY_DTYPE[dtype]))


def random_uniform(
    shape: Any, minval: Any = 0.0, maxval: Any = 1.0, dtype: str | None = None, seed: Any = None
) -> Tensor:
    """Numbers that are all equally likely, drawn anew by every run.

    Args:
        shape: integers and scalar tensors (such as `K.shape(x)[0]`), or an integer vector.
        minval: the least number; a number, or a tensor that broadcasts to the shape.
        maxval: what all numbers stay below; a number or a tensor.
        dtype: a dtype name; None takes `floatx()`. Integers take whole bounds.
        seed: an integer: equal seeds give equal sequences, interpreted and native. None takes one from `np.random`.

    Returns:
        A tensor of the shape. No gradient flows through the draw itself, one does to `minval` and `maxval`.

    Raises:
        ValueError: `minval` is above `maxval`. ShapeError: a bound does not broadcast to the shape.

    >>> from graphkb import backend as K
    >>> x = K.random_uniform((2, 3), -1, 1, seed=7)
    >>> x.shape, bool(abs(K.eval(x)).max() <= 1)
    ((2, 3), True)
    """
    kind = config.floatx() if dtype is None else dtype_name(dtype)
    if kind == "bool":
        raise DTypeError("random_uniform: expected a dtype of numbers, not bool; use K.random_binomial")
    draw = _draw("random_uniform", shape, seed)
    return Tensor((_between if kind in FLOATS else _integers)(draw, minval, maxval, kind))


def _scaled(what: str, draw: Draw, unit: Node, mean: Any, stddev: Any) -> Tensor:
    scale = _parameter(what, "stddev", stddev, unit.dtype, draw.shape)
    shift = _parameter(what, "mean", mean, unit.dtype, draw.shape)
    if leaf.is_constant(scale) and not (leaf.constant_value(scale) >= 0).all():
        raise ValueError(f"{what}: expected a stddev of 0 or more, not {stddev}")
    value = unit if leaf.is_constant(scale, 1) else unit * scale
    return Tensor(value if leaf.is_constant(shift, 0) else value + shift)


def random_normal(shape: Any, mean: Any = 0.0, stddev: Any = 1.0, dtype: str | None = None, seed: Any = None) -> Tensor:
    """Numbers of the normal distribution, drawn anew by every run (Box and Muller's method).

    Args:
        shape: integers and scalar tensors (such as `K.shape(x)[0]`), or an integer vector.
        mean: a number, or a tensor that broadcasts to the shape.
        stddev: the standard deviation, a number or a tensor.
        dtype: a float dtype name; None takes `floatx()`.
        seed: an integer: equal seeds give equal sequences, up to the last places. None takes one from `np.random`.

    Returns:
        A tensor of the shape; gradients flow to `mean` and `stddev`.

    Raises:
        ValueError: `stddev` is negative. DTypeError: the dtype is no float. ShapeError: `mean` or `stddev` does not
            broadcast to the shape.

    >>> from graphkb import backend as K
    >>> x = K.random_normal((1000,), mean=5, seed=7)
    >>> bool(4.8 < K.eval(x).mean() < 5.2)
    True
    """
    kind = _float_dtype("random_normal", dtype)
    draw = _draw("random_normal", shape, seed)
    return _scaled("random_normal", draw, draw.normal(kind), mean, stddev)


def truncated_normal(
    shape: Any, mean: Any = 0.0, stddev: Any = 1.0, dtype: str | None = None, seed: Any = None
) -> Tensor:
    """Numbers of the normal distribution without those beyond two standard deviations, drawn anew by every run.

    Args:
        shape: integers and scalar tensors (such as `K.shape(x)[0]`), or an integer vector.
        mean: a number, or a tensor that broadcasts to the shape.
        stddev: the standard deviation before truncation, a number or a tensor; the numbers' own is 0.87962 of it.
        dtype: a float dtype name; None takes `floatx()`.
        seed: an integer: equal seeds give equal sequences, up to the last places. None takes one from `np.random`.

    Returns:
        A tensor of the shape; gradients flow to `mean` and `stddev`.

    Raises:
        ValueError: `stddev` is negative. DTypeError: the dtype is no float. ShapeError: `mean` or `stddev` does not
            broadcast to the shape.

    >>> from graphkb import backend as K
    >>> bool(abs(K.eval(K.truncated_normal((1000,), seed=7))).max() <= 2)
    True
    """
    kind = _float_dtype("truncated_normal", dtype)
    draw = _draw("truncated_normal", shape, seed)
    return _scaled("truncated_normal", draw, draw.truncated_normal(kind), mean, stddev)


def random_binomial(shape: Any, p: Any = 0.0, dtype: str | None = None, seed: Any = None) -> Tensor:
    """Ones with a probability, zeros otherwise, drawn anew by every run.

    Args:
        shape: integers and scalar tensors (such as `K.shape(x)[0]`), or an integer vector.
        p: the probability of a one: a number, or a tensor that broadcasts to the shape.
        dtype: a dtype name; None takes `floatx()`.
        seed: an integer: equal seeds give equal sequences, interpreted and native. None takes one from `np.random`.

    Returns:
        A tensor of the shape, through which no gradient flows.

    Raises:
        ValueError: `p` is not between 0 and 1. ShapeError: `p` does not broadcast to the shape.

    >>> from graphkb import backend as K
    >>> sorted(set(K.eval(K.random_binomial((100,), p=0.5, seed=7)).tolist()))
    [0.0, 1.0]
    """
    kind = config.floatx() if dtype is None else dtype_name(dtype)
    draw = _draw("random_binomial", shape, seed)
    # Single precision has the same steps for every dtype of the result.
    chance = _parameter("random_binomial", "p", p, "float32", draw.shape)
    if leaf.is_constant(chance):
        value = leaf.constant_value(chance)
        if not ((value >= 0) & (value <= 1)).all():
            raise ValueError(f"random_binomial: expected a probability between 0 and 1, not {p}")
    return Tensor(elementwise.cast(elementwise.less(draw.uniform("float32"), chance), kind))


def _variable(
    draw: Callable[..., Tensor], shape: Any, dtype: Any, name: str | None, seed: Any, **kwargs: Any
) -> Variable:
    if seed is None:
        seed = _new_seed()
    return variable(draw(shape, dtype=dtype, seed=seed, **kwargs), dtype, name)


def random_uniform_variable(
    shape: Any, low: float, high: float, dtype: str | None = None, name: str | None = None, seed: Any = None
) -> Variable:
    """A variable that begins with numbers that are all equally likely.

    Args:
        shape: integers.
        low: the least number.
        high: what all numbers stay below.
        dtype: a dtype name; None takes `floatx()`.
        name: for errors and dumps.
        seed: an integer; None takes one from `np.random`.

    Raises:
        ValueError: `low` is above `high`.

    >>> from graphkb import backend as K
    >>> v = K.random_uniform_variable((2, 3), 0, 1)
    >>> v.shape, bool(K.eval(v).min() >= 0)
    ((2, 3), True)
    """
    return _variable(random_uniform, shape, dtype, name, seed, minval=low, maxval=high)


def random_normal_variable(
    shape: Any, mean: float, scale: float, dtype: str | None = None, name: str | None = None, seed: Any = None
) -> Variable:
    """A variable that begins with numbers of the normal distribution.

    Args:
        shape: integers.
        mean: their mean.
        scale: their standard deviation.
        dtype: a float dtype name; None takes `floatx()`.
        name: for errors and dumps.
        seed: an integer; None takes one from `np.random`.

    Raises:
        ValueError: `scale` is negative. DTypeError: the dtype is no float.

    >>> from graphkb import backend as K
    >>> K.random_normal_variable((2, 3), mean=0, scale=0.05).shape
    (2, 3)
    """
    return _variable(random_normal, shape, dtype, name, seed, mean=mean, stddev=scale)


def dropout(x: Any, level: Any, noise_shape: Any = None, seed: Any = None) -> Tensor:
    """Zeros in the place of a random part of all elements; the others grow so that the sum stays about the same.

    Args:
        x: numbers.
        level: the part of the elements to drop: a number from 0 up to but without 1, or a scalar tensor.
        noise_shape: the shape of the random choice, which broadcasts to `x`: sizes, None for the size of `x` there,
            or an integer vector. By default that of `x`.
        seed: an integer: equal seeds give equal choices. None takes one from `np.random`.

    Returns:
        A tensor of the shape of `x`; integers become `floatx()`. The gradient drops the same elements.

    Raises:
        ValueError: the level is below 0, or 1 or more. ShapeError: the noise shape does not broadcast to `x`.

    >>> from graphkb import backend as K
    >>> y = K.eval(K.dropout(K.ones((1000,)), 0.2, seed=7))
    >>> sorted(set(y.tolist()))
    [0.0, 1.25]
    """
    node = float_node(x)
    if isinstance(level, Handle):
        rate = as_node(level, node.dtype)
        if rate.ndim:
            raise ShapeError(f"dropout: expected a scalar level, not one of shape {show_shape(rate.shape)}")
    else:
        try:
            level = float(level)
        except (TypeError, ValueError):
            raise TypeError(f"dropout: expected a number or a scalar tensor as the level, not {level!r}") from None
        if not 0 <= level < 1:
            raise ValueError(f"dropout: expected a level from 0 up to but without 1, not {level}")
        rate = leaf.constant(level, node.dtype)
    draw = _draw("dropout", _noise_shape(noise_shape, node), seed)
    if leaf.is_constant(rate, 0):
        return Tensor(node)
    keep = elementwise.greater_equal(draw.uniform("float32"), elementwise.cast(rate, "float32"))
    one = leaf.constant(1, node.dtype)
    scale = one / (one - rate) if isinstance(level, Handle) else leaf.constant(1 / (1 - level), node.dtype)
    result = elementwise.select(keep, node * scale, 0)
    return Tensor(result if result.shape == node.shape else shape_ops.reshape(result, node.shape))


def _noise_shape(noise_shape: Any, x: Node) -> Shape:
    if noise_shape is None:
        return x.shape
    if isinstance(noise_shape, Handle):
        sizes = to_dims(noise_shape, "dropout")
    else:
        entries = items("dropout", "a sequence of sizes as the noise shape", noise_shape)
        if len(entries) == x.ndim:
            entries = [n if size is None else size for size, n in zip(entries, x.shape)]
        sizes = tuple([to_dim(size, "dropout") for size in entries])
    _check_fit("dropout", "noise shape", sizes, x.shape)
    return sizes
