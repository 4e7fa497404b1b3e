"""Chaining: kernels over a batch that follow one another become a chain, some samples of which stay in the cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import takewhile

from graphkb.ir.dims import product
from graphkb.ir.graph import Graph
from graphkb.ir.node import Node, remake
from graphkb.ir.origin import set_override
from graphkb.ir.record import record
from graphkb.ir.types import TensorType, TupleType, parts
from graphkb.ops.chain import chain
from graphkb.ops.control import item
from graphkb.ops.leaf import placeholder
from graphkb.passes.durations import inner_ops
from graphkb.passes.split_batch import splits

# What some samples and all that they share may take of the second-level cache, and how much the samples had better use.
_MOST_BYTES, _USUAL_BYTES = 3 << 18, 1 << 18
# Values that stay in those caches anyway, and values too small to count.
_NEAR_BYTES, _SMALL_BYTES = 1 << 21, 1 << 16
# Threads share the parts, so that there must be some.
_FEWEST_PARTS = 8
# Nodes that are looked at for whether two groups may be one.
_MOST_VISITED = 1000
# What stands between kernels.
_VIEWS = ("reshape", "item")
# Rows of a matrix of which tiles and copies lose little at the ends.
_FEWEST_ROWS = 128


@record
class ChainKernels:
    """Group fused nodes into `chain` nodes where what one leaves to the next would not stay in the cache.

    The samples of a batch must not depend on one another in any of the kernels. What a kernel writes for some samples
    is read by the next one before others displace it; what nobody else reads takes memory for a few samples only.
    """

    name: str = "chain_kernels"

    def apply(self, graph: Graph) -> Graph:
        if not any(map(_batch_of, graph.nodes)):
            return graph
        groups = _Groups(graph)
        groups.grow()
        return groups.rebuild()


@dataclass(eq=False)
class _Group:
    """Kernels that run together.

    Attributes:
        batch: how many samples they have.
        members: the kernels.
        first, last: the places of the first and the last one in the graph.
    """

    batch: int
    members: set[Node]
    first: int
    last: int

    def with_all_of(self, other: _Group) -> _Group:
        """The members of both."""
        first, last = min(self.first, other.first), max(self.last, other.last)
        return _Group(self.batch, self.members | other.members, first, last)


@dataclass
class _Groups:
    """The groups of one graph; every kernel of independent samples is in one."""

    graph: Graph
    of: dict[Node, _Group] = field(default_factory=dict)
    merged: list[_Group] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.position = {node: i for i, node in enumerate(self.graph.nodes)}
        self.users = self.graph.consumers()
        self.roots = set(self.graph.roots)
        for node, place in self.position.items():
            batch = _batch_of(node)
            if batch and splits(node, [0 if _varies(i, batch) else None for i in node.inputs], batch):
                self.of[node] = _Group(batch, {node}, place, place)

    # ------------------------------------------------------------------ growing
    def grow(self) -> None:
        """Merge the group of each kernel with those whose results it reads, where that is possible."""
        for node in list(self.of):
            for operand in node.inputs:
                source = _kernel_of(operand, self.of[node].batch)
                if source in self.of and _bytes(operand.type) >= _SMALL_BYTES:
                    self._merge(self.of[source], self.of[node])

    def _merge(self, a: _Group, b: _Group) -> None:
        if a is b or a.batch != b.batch:
            return
        both = a.with_all_of(b)
        if self._samples(both) and not self._is_detour(a, b) and not self._is_detour(b, a):
            self.of.update(dict.fromkeys(both.members, both))
            self.merged = [group for group in self.merged if group not in (a, b)] + [both]

    def _is_detour(self, a: _Group, b: _Group) -> bool:
        """Whether something outside lies on a way from one group to another: it could run neither before nor after."""
        # What comes behind the last kernel can lead back through groups alone that have members on both sides.
        end = max([b.last, *[g.last for g in self.merged if g not in (a, b) and g.first <= b.last]])
        seen: set[Node] = set()
        stack = [user for node in a.members for user in self.users[node] if user not in b.members]
        while stack:
            node = stack.pop()
            group = self.of.get(node)
            if node in seen or group is a or self.position[node] > end:
                continue
            if len(seen) > _MOST_VISITED:
                return True
            unit = group.members if group is not None else {node}
            seen |= unit
            following = [user for member in unit for user in self.users[member]]
            direct = node.op.name in _VIEWS and _kernel_of(node, b.batch) in a.members
            if not direct and any(user in b.members for user in following):
                return True
            stack += [user for user in following if user not in b.members]
        return False

    def _samples(self, group: _Group) -> int:
        """How many samples the kernels had better compute at a time; 0 if no number is good."""
        batch, members = group.batch, group.members
        read = {_stored(i) for node in members for i in node.inputs}
        outside = {i for i in read if _kernel_of(i, batch) not in members}
        varying = {i for i in outside if _varies(i, batch)}
        each = sum(_bytes(node.type) for node in (*members, *varying)) // batch
        shared = sum(_bytes(i.type) for i in outside - varying)
        fewest = max([_fewest_samples(node, batch) for node in members])
        samples = max(fewest, min(_USUAL_BYTES // max(1, each), batch // _FEWEST_PARTS))
        if samples * _FEWEST_PARTS > batch or shared + samples * each > _MOST_BYTES:
            return 0
        even = [n for n in range(samples, max(fewest, samples // 2) - 1, -1) if batch % n == 0]
        return even[0] if even else samples

    # ------------------------------------------------------------------ building
    def rebuild(self) -> Graph:
        """The graph of chains and of all other nodes: those groups whose values would leave the cache are chains."""
        chosen = {
            group
            for group in self.of.values()
            if len(group.members) > 1 and sum(_bytes(node.type) for node in group.members) >= _NEAR_BYTES
        }
        if not chosen:
            return self.graph
        new: dict[Node, Node] = {}
        stack = list(reversed(self.graph.roots))
        while stack:
            node = stack[-1]
            group = self.of.get(node)
            if node in new:
                stack.pop()
                continue
            needed = self._outside(group) if group in chosen else node.inputs
            missing = [i for i in needed if i not in new]
            if missing:
                stack += missing
                continue
            stack.pop()
            if group is not None and group in chosen:
                self._chain(group, new)
            else:
                new[node] = remake(node, tuple([new[i] for i in node.inputs]))
        return self.graph.with_roots([new[r] for r in self.graph.roots])

    def _outside(self, group: _Group) -> list[Node]:
        """The values that the kernels of a group read and do not compute."""
        members = sorted(group.members, key=self.position.__getitem__)
        read = dict.fromkeys([i for node in members for i in node.inputs])
        return [i for i in read if _kernel_of(i, group.batch) not in group.members]

    def _chain(self, group: _Group, new: dict[Node, Node]) -> None:
        """Make the chain of a group, and what stands for those of its values that are read elsewhere."""
        outside = self._outside(group)
        built: dict[Node, Node] = {}
        previous = set_override(None)
        try:
            for i, node in enumerate(outside):
                set_override(node.origin)
                built[node] = placeholder(node.shape, node.dtype, f"p{i}")
            for node in sorted(group.members, key=self.position.__getitem__):
                for operand in node.inputs:
                    for view in reversed(list(takewhile(lambda v: v not in built, _views(operand)))):
                        built[view] = remake(view, tuple([built[i] for i in view.inputs]))
                built[node] = remake(node, tuple([built[i] for i in node.inputs]))
        finally:
            set_override(previous)
        stored = [node for node in self._values(group) if self._is_read_outside(node, group)]
        for node in stored:
            if node not in built:
                built[node] = remake(node, tuple([built[i] for i in node.inputs]))
        body = Graph(tuple([built[node] for node in outside]), tuple([built[node] for node in stored]), name="body")
        varying = tuple([i for i, node in enumerate(outside) if _varies(node, group.batch)])
        made = chain(tuple([new[node] for node in outside]), body, varying, self._samples(group))
        for i, node in enumerate(stored):
            new[node] = item(made, i)
        for node in group.members:
            new.setdefault(node, made)  # tuples, and values that nobody else reads

    def _values(self, group: _Group) -> Iterator[Node]:
        """The results of kernels: items, where a kernel has several."""
        for node in sorted(group.members, key=self.position.__getitem__):
            yield from dict.fromkeys(self.users[node]) if isinstance(node.type, TupleType) else (node,)

    def _is_read_outside(self, value: Node, group: _Group) -> bool:
        """Whether any but the kernels of a group read a value, perhaps in another shape."""
        stack = [value]
        for node in stack:  # grows on the way
            if node in self.roots:
                return True
            for user in self.users[node]:
                if user.op.name == "reshape":
                    stack.append(user)
                elif user not in group.members:
                    return True
        return False


def _batch_of(node: Node) -> int:
    """How many samples the results of a kernel have, if they are large and of one batch; else 0."""
    if node.op.kind != "fused" or not all(i.type.is_static for i in node.inputs):
        return 0
    results = parts(node.type)
    batches = {t.shape[0] if t.ndim else 0 for t in results}
    (batch,) = batches if len(batches) == 1 else (0,)
    if not isinstance(batch, int) or batch < _FEWEST_PARTS:
        return 0
    large = max(_bytes(t) for t in (node.type, *[i.type for i in node.inputs]))
    return batch if large >= _SMALL_BYTES else 0


def _varies(node: Node, batch: int) -> bool:
    """Whether a value from outside is taken to have the samples as its first axis; weights never have."""
    return (node.op.kind != "leaf" or node.op.name == "placeholder") and node.shape[:1] == (batch,)


def _views(node: Node) -> Iterator[Node]:
    """A value, and what it is a view or an item of; the last one is none."""
    yield node
    while node.op.name in _VIEWS:
        (node,) = node.inputs
        yield node


def _kernel_of(value: Node, batch: int) -> Node | None:
    """The kernel that computes a value, if all views of it that lie between have the samples as their first axis."""
    *views, source = _views(value)
    return source if all(v.shape[:1] == (batch,) for v in views) else None


def _stored(node: Node) -> Node:
    """The value in memory behind reshapes."""
    while node.op.name == "reshape":
        (node,) = node.inputs
    return node


def _bytes(type: TensorType) -> int:
    return sum(n for part in parts(type) if isinstance(n := part.nbytes, int))


def _fewest_samples(node: Node, batch: int) -> int:
    """How many samples the products of a kernel need to have enough rows."""
    fewest = 1
    for inner in inner_ops(node.attrs["body"]):
        if inner.op.name not in ("dot", "conv"):
            continue
        y = inner.inputs[1]
        columns, size = y.shape[-1] if inner.op.name == "conv" else product(_free(inner)), inner.type.size
        assert isinstance(size, int)
        assert isinstance(columns, int)
        rows = size // max(1, columns * batch)
        fewest = max(fewest, -(-_FEWEST_ROWS // max(1, rows)))
    return fewest


def _free(dot: Node) -> list[int]:
    """The sizes of the columns of a product."""
    y = dot.inputs[1]
    kept = (*dot.attrs["batch_y"], *dot.attrs["contract_y"])
    return [n for axis, n in enumerate(y.shape) if axis not in kept and isinstance(n, int)]


__all__ = ["ChainKernels"]
