"""The node: one immutable, interned application of an op."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from graphkb.ir.op import Op
from graphkb.ir.origin import Origin, current_origin
from graphkb.ir.types import TensorType

NO_ATTRS: dict[str, Any] = {}

# Filled by graphkb.ops.elementwise: what `node + 1` builds. The graph layer itself knows no arithmetic.
OPERATORS: dict[str, Callable[[Any, Any], Node]] = {}


class Node:
    """An op applied to nodes. Equal applications are the same object, so nodes compare with `is`.

    Attributes: `op`; `inputs`; `attrs`, a mapping never to be changed; `type`; `origin`, the user's line that
    built it first, or None.
    """

    __slots__ = ("__weakref__", "attrs", "inputs", "op", "origin", "type")

    op: Op
    inputs: tuple[Node, ...]
    attrs: Mapping[str, Any]
    type: TensorType
    origin: Origin | None

    # NumPy arrays on the left-hand side must leave the work to us.
    __array_ufunc__ = None

    @property
    def dtype(self) -> str:
        return self.type.dtype

    @property
    def shape(self) -> tuple[Any, ...]:
        return self.type.shape

    @property
    def ndim(self) -> int:
        return len(self.type.shape)

    def __repr__(self) -> str:
        attrs = "".join(f", {k}={v!r}" for k, v in self.attrs.items())
        return f"<{self.op.name}: {self.type!r}{attrs}>"

    def __bool__(self) -> bool:
        raise TypeError(f"{self!r} is symbolic and has no truth value: its value is known only when it runs")

    def __reduce__(self) -> tuple[Any, ...]:
        from graphkb.ir.serialize import flatten, unflatten_one

        return unflatten_one, (flatten([self]),)

    def __add__(self, other: Any) -> Node:
        return OPERATORS["add"](self, other)

    def __radd__(self, other: Any) -> Node:
        return OPERATORS["add"](other, self)

    def __sub__(self, other: Any) -> Node:
        return OPERATORS["sub"](self, other)

    def __rsub__(self, other: Any) -> Node:
        return OPERATORS["sub"](other, self)

    def __mul__(self, other: Any) -> Node:
        return OPERATORS["mul"](self, other)

    def __rmul__(self, other: Any) -> Node:
        return OPERATORS["mul"](other, self)

    def __truediv__(self, other: Any) -> Node:
        return OPERATORS["div"](self, other)

    def __rtruediv__(self, other: Any) -> Node:
        return OPERATORS["div"](other, self)

    def __neg__(self) -> Node:
        return OPERATORS["neg"](self, None)


_interned: weakref.WeakValueDictionary[tuple[Any, ...], Node] = weakref.WeakValueDictionary()
# Reentrant: the collector may run inside `setdefault`, and a user's finalizer may build nodes.
_lock = threading.RLock()


def make(
    op: Op,
    inputs: tuple[Node, ...],
    attrs: Mapping[str, Any] = NO_ATTRS,
    type: TensorType | None = None,
    origin: Origin | None = None,
) -> Node:
    """The node of an op on inputs; the existing one if there is one.

    Args:
        attrs: one value for each of `op.params`, hashable, in that order.
        type: the inferred type, where the caller knows it already.
        origin: the provenance; None takes the current one.
    """
    key = (op, *map(id, inputs), *attrs.values()) if attrs else (op, *map(id, inputs))
    node = _interned.get(key)
    if node is not None:
        return node
    node = Node()
    node.op = op
    node.inputs = inputs
    node.attrs = attrs
    node.type = op.infer(*[n.type for n in inputs], **attrs) if type is None else type
    node.origin = current_origin() if origin is None else origin
    with _lock:
        kept = _interned.setdefault(key, node)
    if _recordings.open:
        _recordings.open[-1].add(kept)
    return kept


class _Recordings(threading.local):
    """The recordings of new nodes that are under way in a thread, outer ones first."""

    open: tuple[set[Node], ...] = ()


_recordings = _Recordings()


@contextmanager
def record() -> Iterator[set[Node]]:
    """A context that collects the nodes that are made in it and did not exist before."""
    made: set[Node] = set()
    outer = _recordings.open
    _recordings.open = (*outer, made)
    try:
        yield made
    finally:
        _recordings.open = outer
        if outer:
            outer[-1].update(made)


def remake(node: Node, inputs: tuple[Node, ...]) -> Node:
    """The same op on other inputs, with the provenance kept; the type is inferred anew only where it must be."""
    if inputs == node.inputs:
        return node
    same = all(a.type is b.type or a.type == b.type for a, b in zip(inputs, node.inputs))
    return make(node.op, inputs, node.attrs, node.type if same else None, node.origin)


def interned_count() -> int:
    """How many nodes are alive, for tests and `graphkb doctor`."""
    return len(_interned)
