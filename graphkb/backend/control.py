"""Choosing between values: `switch`, and the learning phase that tells training from testing."""

from __future__ import annotations

import threading
import weakref
from typing import Any

import numpy as np

from graphkb.backend.promotion import Handle, as_node, pair
from graphkb.backend.tensors import Tensor
from graphkb.ir.dims import show_shape
from graphkb.ir.errors import ShapeError
from graphkb.ir.graph import toposort
from graphkb.ir.node import Node, record
from graphkb.ops import leaf, shape
from graphkb.ops.control import branch
from graphkb.ops.elementwise import cast, select

_phase: Tensor | int | None = None
_placeholders: weakref.WeakSet[Node] = weakref.WeakSet()
_phase_lock = threading.Lock()


def learning_phase() -> Any:
    """Whether a function trains: a placeholder that is 1 in training and 0 in testing, or the number that was set.

    A function that does not have the placeholder among its inputs sees 0.

    Returns:
        A scalar int32 placeholder; after `set_learning_phase` that int.

    >>> from graphkb import backend as K
    >>> f = K.function([K.learning_phase()], [K.in_train_phase(K.constant(1.0), K.constant(2.0))])
    >>> f([1])[0].tolist(), f([0])[0].tolist()
    (1.0, 2.0)
    """
    global _phase
    with _phase_lock:
        if _phase is None:
            _phase = Tensor(leaf.placeholder((), "int32", "keras_learning_phase"))
            _phase._keras_shape = ()  # type: ignore[attr-defined]
            _phase._uses_learning_phase = True  # type: ignore[attr-defined]
            _placeholders.add(_phase.node)
        return _phase


def set_learning_phase(value: int) -> None:
    """Fix the learning phase for all graphs built from now on.

    Args:
        value: 0 for testing, 1 for training.

    Raises:
        ValueError: any other value.

    >>> from graphkb import backend as K
    >>> K.set_learning_phase(1)
    >>> K.learning_phase()
    1
    >>> K.clear_session()
    """
    global _phase
    if isinstance(value, Handle) or value not in (0, 1):
        raise ValueError(f"set_learning_phase: expected 0 or 1, not {value!r}")
    _phase = int(value)


def reset_learning_phase() -> None:
    """Make the learning phase a placeholder again, a new one."""
    global _phase
    _phase = None


def phase_placeholders() -> frozenset[Node]:
    """The placeholders that stand for the learning phase in graphs built so far."""
    return frozenset(_placeholders)


def depends_on_phase(node: Node) -> bool:
    """Whether the value of a node depends on the learning phase."""
    phases = phase_placeholders()
    return bool(phases) and not phases.isdisjoint(toposort([node]))


def _call(value: Any) -> Any:
    return value() if callable(value) and not isinstance(value, Handle) else value


def in_train_phase(x: Any, alt: Any, training: Any = None) -> Any:
    """x in training, alt in testing.

    Args:
        x: a tensor, or a function without arguments that makes it.
        alt: the same. When Python decides, only the chosen one is made, and the two may differ in shape.
        training: a Python bool, 0 or 1; a scalar tensor; None for `learning_phase()`.

    Returns:
        A tensor; it carries `_uses_learning_phase = True` where the learning phase decides when it runs.

    >>> from graphkb import backend as K
    >>> K.eval(K.in_train_phase(K.constant(1.0), K.constant(2.0), training=True)).tolist()
    1.0
    """
    by_phase = training is None
    if by_phase:
        training = learning_phase()
    if isinstance(training, (bool, int)) and training in (0, 1):
        return _call(x if training else alt)
    result = switch(training, x, alt)
    if by_phase:
        result._uses_learning_phase = True
    return result


def in_test_phase(x: Any, alt: Any, training: Any = None) -> Any:
    """x in testing, alt in training.

    Args:
        x: a tensor, or a function without arguments that makes it.
        alt: the same.
        training: a Python bool, 0 or 1; a scalar tensor; None for `learning_phase()`.

    Returns:
        A tensor, as `in_train_phase` returns it.

    >>> from graphkb import backend as K
    >>> K.eval(K.in_test_phase(K.constant(1.0), K.constant(2.0), training=True)).tolist()
    2.0
    """
    return in_train_phase(alt, x, training=training)


def switch(condition: Any, then_expression: Any, else_expression: Any) -> Any:
    """One of two tensors, chosen by a scalar, or element by element.

    Args:
        condition: a Python bool, which chooses at once; a scalar tensor; or a tensor whose axes are the first ones
            of the two expressions. Numbers count as true when they are not 0.
        then_expression: a tensor, a number, or a function without arguments that makes one. Under a scalar condition
            what such a function builds is computed only where it is chosen.
        else_expression: the same. Under a scalar condition both tensors must have one shape.

    Returns:
        A tensor.

    Raises:
        ValueError: the condition has more axes than the expressions. ShapeError: the shapes do not fit.

    >>> from graphkb import backend as K
    >>> x = K.variable([[1, 2], [3, 4]])
    >>> K.eval(K.switch(K.variable([1, 0]), x, -x)).tolist()
    [[1.0, 2.0], [-3.0, -4.0]]
    """
    if isinstance(condition, (bool, int, float, np.bool_, np.number)):
        return _call(then_expression if condition else else_expression)
    test = cast(as_node(condition), "bool")
    if not test.ndim and leaf.is_constant(test):
        return _call(then_expression if leaf.constant_value(test) else else_expression)
    with record() as made_then:
        first = _call(then_expression)
    with record() as made_other:
        second = _call(else_expression)
    chosen = [first, second]
    with record() as casts:
        then, other = pair(*chosen)
    if not test.ndim:
        # A number goes with every shape.
        if not isinstance(first, Handle) and not then.ndim:
            then = shape.broadcast_to(then, other.shape)
        elif not isinstance(second, Handle) and not other.ndim:
            other = shape.broadcast_to(other, then.shape)
        _check_one_shape(then, other)
        made_then |= casts & {then}
        made_other |= casts & {other}
        if then in made_then or other in made_other:
            (result,) = branch(test, [then], [other], made_then, made_other)
            return Tensor(result)
        # Sizes that only the call tells must be equal too: they must not broadcast.
        return Tensor(select(test, then, shape.reshape(other, then.shape)))
    ranks = [n.ndim for n, value in zip((then, other), chosen) if isinstance(value, Handle) or n.ndim]
    rank = max(ranks, default=test.ndim)
    if test.ndim > rank:
        raise ValueError(
            "Rank of `condition` should be less than or equal to rank of `then_expression` and `else_expression`. "
            f"ndim(condition)={test.ndim}, ndim(then_expression)={then.ndim}"
        )
    test = shape.reshape(test, (*test.shape, *(1,) * (rank - test.ndim)))
    return Tensor(select(test, then, other))


def _check_one_shape(then: Node, other: Node) -> None:
    if then.ndim != other.ndim or any(
        isinstance(a, int) and isinstance(b, int) and a != b for a, b in zip(then.shape, other.shape)
    ):
        raise ShapeError(
            "switch: under a scalar condition both expressions must have one shape, not "
            f"{show_shape(then.shape)} and {show_shape(other.shape)}"
        )
