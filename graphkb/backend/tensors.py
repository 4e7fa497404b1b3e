"""What the user holds: `Tensor`, `Variable` and `Update`, handles of nodes with operators, indexing and attributes."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from graphkb.backend import indexing
from graphkb.backend.promotion import Handle, is_operand, pair, to_float
from graphkb.ir.dims import keras_shape
from graphkb.ir.errors import DTypeError
from graphkb.ir.leaves import PlaceholderKey, VariableCell
from graphkb.ir.node import Node, make
from graphkb.ir.op import Op
from graphkb.ir.types import FLOATS
from graphkb.ops import elementwise, leaf, linalg, shape

if TYPE_CHECKING:
    from graphkb.ir.graph import Graph


def arithmetic(name: str, op: Op, a: Any, b: Any) -> Tensor:
    """`a op b` on promoted operands; bools are refused with advice."""
    x, y = pair(a, b)
    if x.dtype == "bool":
        raise DTypeError(f"{name}: two bool operands have no arithmetic; use &, |, ^, or K.cast one of them first")
    return Tensor(make(op, (x, y)))


def divide(a: Any, b: Any) -> Tensor:
    """`a / b`: integers and bools become `floatx()`."""
    x, y = pair(a, b)
    return Tensor(make(elementwise.div, (to_float(x), to_float(y))))


def power(a: Any, b: Any) -> Tensor:
    """`a ** b`; a Python 2 is a square."""
    if isinstance(a, Handle) and isinstance(b, (int, float)) and b == 2:
        kind = a.node.dtype
        if kind in FLOATS or (kind != "bool" and isinstance(b, int)):
            return Tensor(elementwise.square(a.node))
    return arithmetic("pow", elementwise.pow_, a, b)


def compare(op: Op, a: Any, b: Any) -> Tensor:
    """A bool tensor of element-wise comparisons."""
    return Tensor(make(op, pair(a, b)))


def logic(name: str, op: Op, a: Any, b: Any) -> Tensor:
    """`&`, `|`, `^` of bool tensors."""
    x, y = pair(a, b)
    if x.dtype != "bool":
        raise DTypeError(f"{name}: expected bool tensors, not {x.dtype}; compare or K.cast them first")
    return Tensor(make(op, (x, y)))


def matmul(a: Any, b: Any) -> Tensor:
    """The matrix product with NumPy's rules: axes before the last two are batch axes and broadcast."""
    x, y = pair(a, b)
    if not (x.ndim and y.ndim):
        raise ValueError("matmul: expected operands of rank 1 or more; use * with a scalar")
    if x.ndim <= 2 and y.ndim <= 2:
        return Tensor(linalg.dot(x, y, (), (), (x.ndim - 1,), (max(y.ndim - 2, 0),)))
    left = shape.expand_dims(x, 0) if x.ndim == 1 else x
    right = shape.expand_dims(y, 1) if y.ndim == 1 else y
    batch = elementwise.broadcast_shapes("matmul", left.shape[:-2], right.shape[:-2])
    left = shape.broadcast_to(left, (*batch, *left.shape[-2:]))
    right = shape.broadcast_to(right, (*batch, *right.shape[-2:]))
    axes, n = tuple(range(len(batch))), len(batch)
    z = linalg.dot(left, right, axes, axes, (n + 1,), (n,))
    if x.ndim == 1:
        z = shape.reshape(z, (*z.shape[:-2], z.shape[-1]))
    elif y.ndim == 1:
        z = shape.reshape(z, z.shape[:-1])
    return Tensor(z)


class _Controls(threading.local):
    """The updates that tensors built now come after."""

    updates: tuple[Update, ...] = ()


_controls = _Controls()


@contextmanager
def open_controls(updates: tuple[Update, ...]) -> Iterator[None]:
    """Mark every tensor built in this context as coming after some updates."""
    previous = _controls.updates
    _controls.updates = previous + updates
    try:
        yield
    finally:
        _controls.updates = previous


class Tensor(Handle):
    """A symbolic value: nothing is computed before a function runs. Two tensors are equal only if they are the same.

    Attributes can be set freely. `K.equal` compares element by element.

    Attributes:
        node: the node of the graph that it stands for.
        dtype: "float32", "int64", "bool" …
        shape: a tuple of integers, None where a size is not known.
    """

    # NumPy arrays and scalars on the left-hand side leave the work to us.
    __array_ufunc__ = None
    __array_priority__ = 1000.0

    def __init__(self, node: Node, name: str | None = None) -> None:
        self.node = node
        if name is not None:
            self._name = name
        if _controls.updates:
            self._control_updates = _controls.updates

    # ------------------------------------------------------------------------------------------ information
    @property
    def dtype(self) -> str:
        """The name of the element type."""
        return self.node.type.dtype

    @property
    def shape(self) -> tuple[int | None, ...]:
        """The sizes, None where a size is not known before the call."""
        return keras_shape(self.node.type.shape)

    @property
    def ndim(self) -> int:
        """The number of axes."""
        return len(self.node.type.shape)

    @property
    def op(self) -> Op:
        """The record of the operation that makes the value."""
        return self.node.op

    @property
    def name(self) -> str:
        """A name for people, `scope/name:0`; it can be set."""
        own: str | None = self.__dict__.get("_name")
        if own is None:
            origin = self.node.origin
            own = self.node.op.name
            if self.node.op is leaf.PLACEHOLDER:
                key: PlaceholderKey = self.node.attrs["key"]
                own = key.name
            elif origin is not None and origin.scope:
                own = f"{origin.scope}/{own}"
        return own if ":" in own else f"{own}:0"

    @name.setter
    def name(self, name: str) -> None:
        self._name = name

    def get_shape(self) -> tuple[int | None, ...]:
        """The same as `shape`."""
        return self.shape

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.name.removesuffix(':0')!r}: {self.dtype} {self.shape}>"

    def _repr_svg_(self) -> str | None:
        from graphkb.ir.export import repr_svg

        return repr_svg(graph_of(self.node))

    def __bool__(self) -> NoReturn:
        raise TypeError(
            f"{self!r} has no truth value: it is symbolic and known only when a function runs; "
            "use K.switch to choose between tensors, or K.eval for a value that needs no inputs"
        )

    def __array__(self, *args: Any, **kwargs: Any) -> NoReturn:
        raise TypeError(
            f"{self!r} is symbolic and can not become a NumPy array; "
            "use K.eval for a value that needs no inputs, or K.function"
        )

    def __len__(self) -> int:
        if not self.ndim:
            raise TypeError(f"{self!r} is a scalar and has no length")
        size = self.node.type.shape[0]
        if not isinstance(size, int):
            raise TypeError(f"the length of {self!r} is not known before the call; use K.shape(x)[0]")
        return size

    def __iter__(self) -> Iterator[Tensor]:
        if not self.ndim:
            raise TypeError(f"{self!r} is a scalar and can not be iterated over")
        if self.shape[0] is None:
            raise TypeError(f"{self!r} can not be iterated over: its length is not known before the call")
        return (self[i] for i in range(len(self)))

    def __contains__(self, item: Any) -> NoReturn:
        raise TypeError(f"`in` is not defined for {self!r}; use K.any(K.equal(x, value))")

    # __eq__ and __hash__ are those of objects: by identity.

    def __reduce__(self) -> tuple[Any, ...]:
        from graphkb.ir.serialize import flatten

        state = {k: v for k, v in self.__dict__.items() if k != "node"}
        return _restore, (type(self), flatten([self.node])), state

    # -------------------------------------------------------------------------------------------- operators
    def __getitem__(self, key: Any) -> Tensor:
        return Tensor(indexing.getitem(self.node, key))

    def __add__(self, other: Any) -> Tensor:
        return arithmetic("add", elementwise.add, self, other) if is_operand(other) else NotImplemented

    def __radd__(self, other: Any) -> Tensor:
        return arithmetic("add", elementwise.add, other, self) if is_operand(other) else NotImplemented

    def __sub__(self, other: Any) -> Tensor:
        return arithmetic("sub", elementwise.sub, self, other) if is_operand(other) else NotImplemented

    def __rsub__(self, other: Any) -> Tensor:
        return arithmetic("sub", elementwise.sub, other, self) if is_operand(other) else NotImplemented

    def __mul__(self, other: Any) -> Tensor:
        return arithmetic("mul", elementwise.mul, self, other) if is_operand(other) else NotImplemented

    def __rmul__(self, other: Any) -> Tensor:
        return arithmetic("mul", elementwise.mul, other, self) if is_operand(other) else NotImplemented

    def __truediv__(self, other: Any) -> Tensor:
        return divide(self, other) if is_operand(other) else NotImplemented

    def __rtruediv__(self, other: Any) -> Tensor:
        return divide(other, self) if is_operand(other) else NotImplemented

    def __floordiv__(self, other: Any) -> Tensor:
        return arithmetic("floordiv", elementwise.floordiv, self, other) if is_operand(other) else NotImplemented

    def __rfloordiv__(self, other: Any) -> Tensor:
        return arithmetic("floordiv", elementwise.floordiv, other, self) if is_operand(other) else NotImplemented

    def __mod__(self, other: Any) -> Tensor:
        return arithmetic("mod", elementwise.mod, self, other) if is_operand(other) else NotImplemented

    def __rmod__(self, other: Any) -> Tensor:
        return arithmetic("mod", elementwise.mod, other, self) if is_operand(other) else NotImplemented

    def __pow__(self, other: Any) -> Tensor:
        return power(self, other) if is_operand(other) else NotImplemented

    def __rpow__(self, other: Any) -> Tensor:
        return power(other, self) if is_operand(other) else NotImplemented

    def __matmul__(self, other: Any) -> Tensor:
        return matmul(self, other) if is_operand(other) else NotImplemented

    def __rmatmul__(self, other: Any) -> Tensor:
        return matmul(other, self) if is_operand(other) else NotImplemented

    def __neg__(self) -> Tensor:
        return Tensor(make(elementwise.neg_, (self.node,)))

    def __pos__(self) -> Tensor:
        return self

    def __abs__(self) -> Tensor:
        return Tensor(make(elementwise.abs_, (self.node,)))

    def __lt__(self, other: Any) -> Tensor:
        return compare(elementwise.lt, self, other) if is_operand(other) else NotImplemented

    def __le__(self, other: Any) -> Tensor:
        return compare(elementwise.le, self, other) if is_operand(other) else NotImplemented

    def __gt__(self, other: Any) -> Tensor:
        return compare(elementwise.gt, self, other) if is_operand(other) else NotImplemented

    def __ge__(self, other: Any) -> Tensor:
        return compare(elementwise.ge, self, other) if is_operand(other) else NotImplemented

    def __and__(self, other: Any) -> Tensor:
        return logic("and", elementwise.and_, self, other) if is_operand(other) else NotImplemented

    def __rand__(self, other: Any) -> Tensor:
        return logic("and", elementwise.and_, other, self) if is_operand(other) else NotImplemented

    def __or__(self, other: Any) -> Tensor:
        return logic("or", elementwise.or_, self, other) if is_operand(other) else NotImplemented

    def __ror__(self, other: Any) -> Tensor:
        return logic("or", elementwise.or_, other, self) if is_operand(other) else NotImplemented

    def __xor__(self, other: Any) -> Tensor:
        return logic("xor", elementwise.xor_, self, other) if is_operand(other) else NotImplemented

    def __rxor__(self, other: Any) -> Tensor:
        return logic("xor", elementwise.xor_, other, self) if is_operand(other) else NotImplemented

    def __invert__(self) -> Tensor:
        if self.dtype != "bool":
            raise DTypeError(f"invert: expected a bool tensor, not {self.dtype}; compare or K.cast it first")
        return Tensor(make(elementwise.not_, (self.node,)))


class Variable(Tensor):
    """A tensor whose value lives between calls: `K.set_value` and the updates of functions change it.

    Attributes:
        cell: the storage, which other handles and functions share.
        trainable: whether training should change it; for Keras, nothing here reads it.
        constraint: a function that optimizers apply after each update, or None; for Keras.
    """

    cell: VariableCell

    def __init__(
        self,
        cell: VariableCell,
        name: str | None = None,
        trainable: bool = True,
        constraint: Callable[..., Any] | None = None,
    ) -> None:
        super().__init__(leaf.variable(cell), cell.name if name is None else name)
        self.cell = cell
        self.trainable = trainable
        self.constraint = constraint

    def value(self) -> Tensor:
        """The value as an ordinary tensor."""
        return Tensor(self.node)


class Update(Tensor):
    """A tensor that is the new value of a variable; as one of a function's updates it is written back.

    Attributes:
        variable: the variable to write.
    """

    variable: Variable

    def __init__(self, variable: Variable, node: Node) -> None:
        super().__init__(node)
        self.variable = variable


def _restore(kind: type[Tensor], flat: Any) -> Tensor:
    from graphkb.ir.serialize import unflatten_one

    tensor = kind.__new__(kind)
    tensor.node = unflatten_one(flat)
    return tensor


def graph_of(*nodes: Node) -> Graph:
    """The graph of some nodes, with every placeholder that they need as an input."""
    from graphkb.ir.graph import Graph, toposort

    inputs = tuple(n for n in toposort(nodes) if n.op is leaf.PLACEHOLDER)
    return Graph(inputs, nodes)
