"""The state behind K: values of variables, updates, counters of names."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any

import numpy as np

from graphkb.backend.promotion import Handle, as_node, items, operand, pair, to_array
from graphkb.backend.tensors import Tensor, Update, Variable
from graphkb.codegen.lock import Lock
from graphkb.ir.dims import show_shape
from graphkb.ir.errors import DTypeError, ShapeError, shown
from graphkb.ir.leaves import Array
from graphkb.ir.node import Node
from graphkb.ir.types import FLOATS, INTEGERS, NUMPY_DTYPE
from graphkb.ops import shape
from graphkb.ops.elementwise import cast
from graphkb.runtime.state_lock import state_lock


# -------------------------------------------------------------------------------------------------- values
def get_value(x: Any) -> Array:
    """The value of a variable.

    Args:
        x: a variable, or another tensor that needs no placeholder, which is computed.

    Returns:
        A new array.

    Raises:
        TypeError: `x` is no tensor.

    >>> from graphkb import backend as K
    >>> K.get_value(K.variable([1, 2])).tolist()
    [1.0, 2.0]
    """
    return batch_get_value([x])[0]


def batch_get_value(ops: Sequence[Any]) -> list[Array]:
    """The values of several variables, all of one moment.

    Args:
        ops: variables, or other tensors that need no placeholder.

    Returns:
        New arrays in the same order.

    Raises:
        TypeError: one is no tensor.

    >>> from graphkb import backend as K
    >>> [v.tolist() for v in K.batch_get_value([K.variable(1), K.variable(2)])]
    [1.0, 2.0]
    """
    from graphkb.backend.execution import evaluate_node

    ops = items("batch_get_value", "variables", ops)
    for x in ops:
        if not isinstance(x, Tensor):
            raise TypeError(f"expected a variable, not {shown(x)}")

    def read() -> list[Array]:
        return [x.cell.array.copy() if isinstance(x, Variable) else evaluate_node(x.node) for x in ops]

    # Computing a tensor may count random draws.
    kind = Lock.SHARED if all(isinstance(x, Variable) for x in ops) else Lock.EXCLUSIVE
    return state_lock.run(kind, read)


def set_value(x: Variable, value: Any) -> None:
    """Give a variable a new value.

    Args:
        x: a variable.
        value: an array or nested lists of its shape, a number for every element, or a tensor that needs no
            placeholder. It is cast to the dtype of the variable.

    Raises:
        ShapeError: the shape is not the variable's; the variable keeps its value.
        TypeError: `x` is no variable, or the value holds no numbers.

    >>> from graphkb import backend as K
    >>> v = K.variable([1, 2])
    >>> K.set_value(v, [3, 4])
    >>> K.get_value(v).tolist()
    [3.0, 4.0]
    """
    batch_set_value([(x, value)])


def batch_set_value(tuples: Sequence[tuple[Variable, Any]]) -> None:
    """Give several variables new values, all at once or, when one does not fit, none.

    Args:
        tuples: pairs of a variable and its value, as `set_value` takes it.

    Raises:
        ShapeError: a shape is not the variable's; no variable changes.
        TypeError: one is no variable, or a value holds no numbers; no variable changes.

    >>> from graphkb import backend as K
    >>> v, w = K.variable(1), K.variable([0, 0])
    >>> K.batch_set_value([(v, 5), (w, 7)])
    >>> K.get_value(w).tolist()
    [7.0, 7.0]
    """
    from graphkb.runtime.interpreter import write

    checked = []
    for item in items("batch_set_value", "pairs of a variable and its value", tuples):
        if not isinstance(item, (list, tuple)) or len(item) != 2:
            raise TypeError(f"expected pairs of a variable and its value, not {shown(item)}")
        checked.append((item[0], _value_for(*item)))
    state_lock.run(Lock.EXCLUSIVE, write, [x.cell for x, _ in checked], [array for _, array in checked])


def _value_for(x: Any, value: Any) -> Array:
    if not isinstance(x, Variable):
        raise TypeError(f"expected a variable, not {shown(x)}")
    if isinstance(value, Handle):
        value = get_value(value)
    elif hasattr(value, "toarray"):
        value = value.toarray()
    array = to_array(value)
    if array.dtype.kind not in "biuf":
        raise DTypeError(f"{x.name} takes numbers, not {shown(value)}")
    if array.ndim and array.shape != x.cell.array.shape:
        raise ShapeError(f"{x.name} has the shape {x.cell.array.shape}, the value {array.shape}")
    with np.errstate(over="ignore", invalid="ignore"):
        return array.astype(NUMPY_DTYPE[x.dtype])


# ------------------------------------------------------------------------------------------------- updates
def _target(what: str, x: Any) -> Variable:
    if not isinstance(x, Variable):
        raise TypeError(f"{what}: expected a variable to update, not {shown(x)}")
    return x


def new_value(what: str, x: Variable, node: Node) -> Node:
    """A node as the new value of a variable: in its dtype and of its shape, as far as that is known."""
    cell = x.cell.type
    if (node.dtype in FLOATS and cell.dtype not in FLOATS) or (node.dtype in INTEGERS and cell.dtype == "bool"):
        raise DTypeError(f"{what}: {x.name} is {cell.dtype}, the new value is {node.dtype}; use K.cast")
    fits = node.ndim == len(cell.shape) and all(
        a == b or not isinstance(a, int) for a, b in zip(node.shape, cell.shape)
    )
    if not fits:
        raise ShapeError(
            f"{what}: {x.name} has the shape {show_shape(cell.shape)}, the new value {show_shape(node.shape)}"
        )
    return cast(node, cell.dtype)


def update(x: Variable, new_x: Any) -> Update:
    """The assignment of a new value to a variable, for `K.function(updates=[…])` or `K.eval`.

    Args:
        x: a variable.
        new_x: a tensor, a number or an array of its shape, which may depend on old values of variables.

    Returns:
        A tensor of the new value. Nothing changes before a function with this update runs.

    Raises:
        TypeError: `x` is no variable, or the new value is of a wider kind. ShapeError: the shapes differ.

    >>> from graphkb import backend as K
    >>> v = K.variable(1)
    >>> K.eval(K.update(v, v * 3)).tolist(), K.get_value(v).tolist()
    (3.0, 3.0)
    """
    target = _target("update", x)
    node = new_x.node if isinstance(new_x, Handle) else as_node(new_x, target.dtype)
    return Update(target, new_value("update", target, node))


def update_add(x: Variable, increment: Any) -> Update:
    """The addition of an increment to a variable, for `K.function(updates=[…])` or `K.eval`.

    Args:
        x: a variable.
        increment: a tensor, a number or an array that broadcasts to its shape.

    Returns:
        A tensor of the new value. Nothing changes before a function with this update runs.

    Raises:
        TypeError: `x` is no variable, or the increment is of a wider kind. ShapeError: the shapes do not fit.

    >>> from graphkb import backend as K
    >>> v = K.variable(1)
    >>> K.eval(K.update_add(v, 3)).tolist()
    4.0
    """
    target = _target("update_add", x)
    return Update(
        target,
        new_value("update_add", target, (target + _summand("update_add", "the increment", target, increment)).node),
    )


def update_sub(x: Variable, decrement: Any) -> Update:
    """The subtraction of a decrement from a variable, for `K.function(updates=[…])` or `K.eval`.

    Args:
        x: a variable.
        decrement: a tensor, a number or an array that broadcasts to its shape.

    Returns:
        A tensor of the new value. Nothing changes before a function with this update runs.

    Raises:
        TypeError: `x` is no variable, or the decrement is of a wider kind. ShapeError: the shapes do not fit.

    >>> from graphkb import backend as K
    >>> v = K.variable(1)
    >>> K.eval(K.update_sub(v, 3)).tolist()
    -2.0
    """
    target = _target("update_sub", x)
    return Update(
        target,
        new_value("update_sub", target, (target - _summand("update_sub", "the decrement", target, decrement)).node),
    )


def _summand(what: str, name: str, x: Variable, value: Any) -> Any:
    """A tensor of the same kind of numbers in the variable's dtype, so that the sum keeps it."""
    if isinstance(value, Handle) and (value.node.dtype in FLOATS) == (x.dtype in FLOATS) and value.node.dtype != "bool":
        return Tensor(cast(value.node, x.dtype))
    return operand(what, name, value)


def moving_average_update(x: Variable, value: Any, momentum: Any) -> Update:
    """x * momentum + value * (1 - momentum) as the new value of a variable.

    Args:
        x: a float variable.
        value: a tensor or an array that broadcasts to its shape.
        momentum: a number or a scalar tensor between 0 and 1.

    Returns:
        A tensor of the new value. Nothing changes before a function with this update runs.

    Raises:
        TypeError: `x` is no variable. ShapeError: the shapes do not fit.

    >>> from graphkb import backend as K
    >>> v = K.variable(1)
    >>> K.eval(K.moving_average_update(v, 3, 0.5)).tolist()
    2.0
    """
    target = _target("moving_average_update", x)
    incoming = Tensor(as_node(value, target.dtype))
    decay = Tensor(as_node(1.0 - (momentum if isinstance(momentum, Tensor) else to_array(momentum)), target.dtype))
    node = (target - (target - incoming) * decay).node
    return Update(target, new_value("moving_average_update", target, node))


def assignment(variable: Any, value: Any) -> Update:
    """A `(variable, new value)` pair as an update; numbers and arrays broadcast to the variable."""
    target = _target("updates", variable)
    if isinstance(value, Handle):
        return Update(target, new_value("updates", target, value.node))
    node, _ = pair(value, target)
    return Update(target, new_value("updates", target, shape.broadcast_to(node, target.node.shape)))


# ------------------------------------------------------------------------------------------------ counters
_uids: dict[str, int] = {}
_uid_lock = threading.Lock()


def get_uid(prefix: str = "") -> int:
    """The next number for names with a prefix: 1, 2, 3 …

    Args:
        prefix: each prefix has its own count.

    >>> from graphkb import backend as K
    >>> K.get_uid("a new prefix"), K.get_uid("a new prefix")
    (1, 2)
    """
    with _uid_lock:
        _uids[prefix] = _uids.get(prefix, 0) + 1
        return _uids[prefix]


def reset_uids() -> None:
    """Begin all counts of `get_uid` anew.

    >>> from graphkb import backend as K
    >>> K.reset_uids()
    >>> K.get_uid()
    1
    """
    with _uid_lock:
        _uids.clear()


def clear_session() -> None:
    """Forget the counts of `get_uid` and the learning phase. Tensors, variables and functions live on.

    >>> from graphkb import backend as K
    >>> K.set_learning_phase(1)
    >>> K.clear_session()
    >>> K.is_tensor(K.learning_phase())
    True
    """
    from graphkb.backend.control import reset_learning_phase

    reset_uids()
    reset_learning_phase()


_manual_initialization = False


def manual_variable_initialization(value: bool) -> None:
    """Remember whether the user initializes variables. They always have a value here, so nothing depends on it.

    Args:
        value: a bool.

    >>> from graphkb import backend as K
    >>> K.manual_variable_initialization(False)
    """
    global _manual_initialization
    _manual_initialization = bool(value)


def get_session() -> Any:
    """There are no sessions: it raises, as Keras 2.3.1 does on TensorFlow 2.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError("get_session: there are no sessions here; use K.function and K.eval")


def set_session(session: Any) -> None:
    """There are no sessions: it raises, as Keras 2.3.1 does on TensorFlow 2.

    Args:
        session: anything.

    Raises:
        RuntimeError: always.
    """
    raise RuntimeError("set_session: there are no sessions here; use K.function and K.eval")
