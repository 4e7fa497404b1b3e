"""Fusion: element-wise work, views and broadcasts join the reduction, product or store that they feed."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from graphkb.ir.dims import Dim, product
from graphkb.ir.graph import Graph, bodies
from graphkb.ir.node import Node, make, remake
from graphkb.ir.origin import set_override
from graphkb.ir.record import record
from graphkb.ops.control import is_control, item
from graphkb.ops.fused import fused
from graphkb.ops.leaf import placeholder
from graphkb.ops.random import DRAWS
from graphkb.passes.expand_sparse import ExpandSparse
from graphkb.passes.guard_indices import GuardIndices
from graphkb.passes.index_spaces import Space, axes_in, map_space, reduction_space
from graphkb.passes.joined_views import MOST_READERS, Cuts, is_cut_well, runs_along, with_cuts
from graphkb.passes.kernel_ops import (
    AFFINE_VIEWS,
    INLINE_LEAVES,
    JOINED,
    LONGEST_ROW,
    PADS,
    PRODUCTS,
    SCATTERED,
    SHARED_REDUCTIONS,
    WINDOWS,
    is_around,
    is_core,
    is_inline_leaf,
    is_native,
    is_smaller,
    is_squeeze,
    keeps_neighbors,
    must_stand,
    slides_over,
    source_of,
    turns_columns,
)
from graphkb.passes.merge_kernels import Unit, merge_kernels
from graphkb.passes.prologues import is_prologue
from graphkb.passes.row_axes import (
    COLUMN,
    OTHER,
    Axes,
    operand_axes,
    reduced_axes,
    reduces_last_axis,
    result_axes,
    row_axes,
)


@record
class Fuse:
    """Group nodes into `fused` nodes, each of which becomes one kernel.

    A node joins its consumers' kernel unless it would be computed twice at a noticeable cost, or the kernel would
    grow too long. Nodes that no kernel can express stay as they are.

    Args:
        most_nodes: how many nodes a kernel may hold.
        cheap: the cost up to which a node may be computed several times for one consumer.
        light: the cost up to which a node that depends on one large operand is computed again for each of several
            kernels rather than stored: reading memory takes longer.
    """

    name: str = "fuse"
    most_nodes: int = 48
    cheap: int = 1
    light: int = 6

    def apply(self, graph: Graph) -> Graph:
        groups = _Groups(GuardIndices().apply(ExpandSparse().apply(graph)), self.most_nodes, self.cheap, self.light)
        return groups.rebuild(self.apply)


def _in_memory(node: Node) -> Node:
    """The node, or a kernel that writes it: leaves that others compute by themselves lie nowhere."""
    if node.op.name not in INLINE_LEAVES:
        return node
    return fused((), Graph((), (node,), name="body"))


@dataclass(eq=False)
class _Group:
    """A kernel in the making.

    Attributes:
        root: the node that is stored.
        core: its reduction or product, the first if there are several.
        rows: the columns' axis and number, where the kernel runs row by row with any number of reductions over rows.
        rounds: how many times each member is evaluated.
        axes: along which axes of the root each member runs.
        parts: the operands of the root that need each member, where the root consists of parts.
        cores: the reduction or product of each part.
        cuts: where the operands of concatenations that it reads in place begin, along each axis of more than one place.
    """

    root: Node
    core: Node | None = None
    rows: tuple[int, Dim] | None = None
    rounds: dict[Node, Dim] = field(default_factory=dict)
    axes: dict[Node, Axes] = field(default_factory=dict)
    parts: dict[Node, frozenset[Node]] = field(default_factory=dict)
    cores: dict[Node, Node] = field(default_factory=dict)
    cuts: Cuts = field(default_factory=dict)


class _Groups:
    """The partition of one graph into kernels, decided from the outputs backwards."""

    def __init__(self, graph: Graph, most_nodes: int, cheap: int, light: int) -> None:
        self.graph = graph
        self.most_nodes = most_nodes
        self.cheap = cheap
        self.light = light
        self.users = graph.consumers()
        self.roots = set(graph.roots)
        self.position = {node: i for i, node in enumerate(graph.nodes)}
        # The kernel that a stored node begins, and the kernels that each node is computed in.
        self.stored: dict[Node, _Group | None] = {}
        self.member: dict[Node, list[_Group]] = {}
        # Views of memory that products read through, and padding that windows do.
        self.views: set[Node] = set()
        self.edges: set[Node] = set()
        # Concatenations that element-wise kernels read in place, and the views of memory that those join.
        self.joins: set[Node] = set()
        for node in reversed(graph.nodes):
            if node.op.kind != "leaf":
                self._place(node)

    def _place(self, node: Node) -> None:
        groups: list[_Group] = []
        stored = node in self.roots or not is_native(node)
        if not stored and self._is_read_through(node):
            self.edges.add(node)
        elif not stored and self._is_operand_view(node):
            self.views.add(node)
        else:
            if node.op.name in SCATTERED:
                stored = stored or not self._is_read_in_place(node)
            elif node.op.name in AFFINE_VIEWS and any(user in self.joins for user in self.users[node]):
                self.joins.add(node)
            stored = stored or any(self._must_stand(node, user) for user in self.users[node])
        for user in self.users[node]:
            if stored:
                break
            if user not in self.member:
                stored = True  # the consumer is no kernel, or an alias of memory
            else:
                groups += [g for g in self.member[user] if g not in groups]
        if not stored and groups and self._joins(node, groups):
            self.member[node] = groups
            for group in groups:
                self._enter(node, group)
            return
        if not is_native(node) or node.op.name == "reshape":
            self.stored[node] = None  # interpreted, or another shape of memory that stands elsewhere
            return
        group = _Group(node)
        self.stored[node] = group
        self.member[node] = [group]
        group.rounds[node] = node.type.size
        group.axes[node] = result_axes(node)
        if is_core(node):
            self._begin_core(node, group)

    def _must_stand(self, node: Node, user: Node) -> bool:
        """Whether a user, perhaps a view that others read through, needs its operand in memory."""
        joined = user in self.joins and node not in self.joins
        stands = must_stand(node, user) and not (len(self.users[node]) == 1 and is_prologue(node, user))
        return stands or user in self.views or user in self.edges or joined

    def _is_read_through(self, node: Node) -> bool:
        """Whether windows read padding, or its elements in another shape, without a copy."""
        users = self.users[node]
        if node in self.roots or not users:
            return False
        if node.op.name == "reshape":
            x = node.inputs[0]
            return x.op.name in PADS and is_squeeze(node) and is_around(x) and all(slides_over(u, node) for u in users)
        if node.op.name not in PADS or not is_around(node) or is_inline_leaf(node.inputs[0]):
            return False
        # Padding around padding stands in memory.
        return all((user in self.edges and user.op.name == "reshape") or slides_over(user, node) for user in users)

    def _is_operand_view(self, node: Node) -> bool:
        """Whether products read memory through a view as well as they would read a copy."""
        users = self.users[node]
        if node.op.name not in ("slice", "transpose") or is_inline_leaf(node.inputs[0]) or not users:
            return False
        if node in self.roots or not all(user.op.name in PRODUCTS or user in self.views for user in users):
            return False
        if node.op.name == "slice":
            return bool(node.attrs["steps"][-1:] == (1,))
        # Rows and columns of the product must stay neighbors.
        return all(user.op.name == "conv" and keeps_neighbors(node, user) for user in users)

    def _is_read_in_place(self, node: Node) -> bool:
        """Whether element-wise kernels read a concatenation of views of memory as if it were written out."""
        users = self.users[node]
        groups = list(dict.fromkeys([g for user in users for g in self.member.get(user, ())]))
        if not is_cut_well(node) or not 0 < len(groups) <= MOST_READERS:
            return False
        if not all(i.op.name in AFFINE_VIEWS or (i.op.kind == "leaf" and not is_inline_leaf(i)) for i in node.inputs):
            return False
        every = [with_cuts(group.cuts, node) if self._runs_along(node, group) else None for group in groups]
        if any(cuts is None for cuts in every):
            return False
        for group, cuts in zip(groups, every):
            group.cuts = cuts or {}
        self.joins.add(node)
        return True

    def _runs_along(self, node: Node, group: _Group) -> bool:
        """Whether a kernel without sums reads a node only where it writes."""
        users = {user: group.axes[user] for user in self.users[node] if user in group.rounds}
        tops = {part for user in users for part in group.parts.get(user, ())} or {group.root}
        if group.core is not None or group.cores:
            return False
        if group.root.op.name in SCATTERED and (group.root.op.name not in JOINED or group.root in tops):
            return False
        return runs_along(node, users, tops)

    def _enter(self, node: Node, group: _Group) -> None:
        group.rounds[node], group.axes[node] = self._rounds(node, group), self._axes(node, group)
        if group.root.op.name in JOINED:
            group.parts[node] = self._parts(node, group)
            if is_core(node):
                (part,) = group.parts[node]
                group.cores[part] = node
        if is_core(node) and group.core is None:
            self._begin_core(node, group)

    def _begin_core(self, core: Node, group: _Group) -> None:
        """Note the first reduction of a kernel, and the rows that others may share."""
        group.core = core
        if group.root.op.name in SCATTERED:
            return
        if core.op.name in (*PRODUCTS, "argmax", "argmin") or not reduces_last_axis(core):
            return
        columns, axes = core.inputs[0].shape[-1], row_axes(group.axes[core])
        if not isinstance(columns, int) or columns > LONGEST_ROW:
            return
        everywhere = row_axes(result_axes(group.root))
        if axes == everywhere:
            group.rows = (COLUMN, columns)
        elif axes == everywhere[:-1] and group.root.shape[-1] == columns:
            group.rows = (everywhere[-1] or 0, columns)

    def _reads(self, user: Node, node: Node, group: _Group) -> Dim:
        """How often one member reads another."""
        if user.op.name == "scatter_add":
            return user.inputs[0].type.size
        if user.op.name in SCATTERED or user.op.name in PRODUCTS:
            return node.type.size
        if user.op.name in WINDOWS:
            return product((user.type.size, *user.attrs["window"]))
        return user.inputs[0].type.size if is_core(user) else group.rounds[user]

    def _rounds(self, node: Node, group: _Group) -> Dim:
        """How often the group evaluates the node: as often as the members that read it."""
        size = node.type.size
        rounds = [self._reads(user, node, group) for user in self.users[node] if user in group.rounds]
        return next((r for r in rounds if r != size), size)

    def _axes(self, node: Node, group: _Group) -> Axes:
        """The axes along which all members read the node; OTHER where they disagree."""
        found: set[Axes] = set()
        for user in self.users[node]:
            if user not in group.axes:
                continue
            if is_core(user):
                rows = group.rows is not None and reduces_last_axis(user)
                column = group.rows[0] if group.rows is not None else OTHER
                found.add(reduced_axes(user, group.axes[user], column) if rows else (OTHER,) * node.ndim)
            elif user.op.name in JOINED:
                found.add(result_axes(node))
            elif user.op.name in SCATTERED:
                found.add((OTHER,) * node.ndim)
            else:
                found.add(operand_axes(user, group.axes[user], node))
        return found.pop() if len(found) == 1 else (OTHER,) * node.ndim

    def _joins(self, node: Node, groups: list[_Group]) -> bool:
        if any(len(g.rounds) >= self.most_nodes for g in groups):
            return False
        if is_core(node):
            return len(groups) == 1 and self._core_joins(node, groups[0])
        if len(groups) > 1 and not self._is_light(node):
            return False
        if node.op.cost <= self.cheap or node.type.size == 1:
            return True
        return all(self._is_once(self._rounds(node, g), node.type.size) for g in groups)

    def _is_once(self, rounds: Dim, size: Dim) -> bool:
        return rounds == size or (isinstance(rounds, int) and isinstance(size, int) and rounds <= size)

    def _core_joins(self, core: Node, group: _Group) -> bool:
        """Whether a reduction or product joins: as the only one, or as one more over the rows of a kernel."""
        if group.cuts:
            return False
        once = len(self.users[core]) == 1 and self._rounds(core, group) == core.type.size
        if group.root.op.name in JOINED:
            parts = self._parts(core, group)
            return once and len(parts) == 1 and not parts & set(group.cores) and OTHER not in self._axes(core, group)
        if group.root.op.name in SCATTERED:
            return False
        # Read through two slices, it would be two reductions.
        axes = self._axes(core, group)
        if group.core is None and once and OTHER not in axes and not turns_columns(core, axes, group.root):
            return True
        if core.op.name in (*PRODUCTS, "argmax", "argmin") or not reduces_last_axis(core):
            return False
        trial = _Group(group.root, group.core, group.rows, dict(group.rounds), dict(group.axes))
        trial.axes[core] = self._axes(core, group)
        if trial.core is None:
            self._begin_core(core, trial)
        if trial.rows is None or core.inputs[0].shape[-1] != trial.rows[1]:
            return False
        everywhere = row_axes(result_axes(group.root))
        rows = everywhere if trial.rows[0] == COLUMN else everywhere[:-1]
        return row_axes(trial.axes[core]) == rows

    def _parts(self, node: Node, group: _Group) -> frozenset[Node]:
        """The operands of the root, which consists of parts, that need a node."""
        found: set[Node] = set()
        for user in self.users[node]:
            if user is group.root:
                found.add(node)
            elif user in group.rounds:
                found |= group.parts[user]
        return frozenset(found)

    def _is_light(self, node: Node) -> bool:
        """Whether computing the node in several kernels costs no more than reading it back would."""
        if node.op.kind != "elementwise":
            return node.op.name != "gather"
        chain = [node]
        wide: set[Node] = set()
        cost = 0
        for member in chain:  # grows on the way
            cost += member.op.cost
            if cost > self.light:
                return False
            sources = [i for i in map(source_of, member.inputs) if not is_smaller(i, node)]
            chain += [i for i in sources if i.op.kind == "elementwise" and i not in chain]
            wide.update(i for i in sources if i.op.kind != "elementwise")
        return len(wide) <= 1 or cost <= self.cheap

    # ------------------------------------------------------------------ building
    def rebuild(self, fuse_body: Callable[[Graph], Graph]) -> Graph:
        """The graph of kernels; bodies become such graphs too."""
        new = {node: node for node in self.graph.nodes if node.op.kind == "leaf"}
        units = [self._unit(node) for node in self.graph.nodes if node in self.stored]
        kernels = merge_kernels(units, self.most_nodes)
        kernel_of = {unit.root: i for i, kernel in enumerate(kernels) for unit in kernel}
        needed = set(self.roots)
        for unit in units:
            needed.update(o for o in unit.operands if kernel_of.get(o) != kernel_of[unit.root])
        for kernel in kernels:
            root = kernel[0].root
            if is_control(root):
                attrs = {**root.attrs, **{name: fuse_body(body) for name, body in bodies(root)}}
                inputs = tuple([_in_memory(new[i]) for i in root.inputs])
                new[root] = make(root.op, inputs, attrs, root.type, root.origin)
            elif self.stored[root] is None:
                new[root] = remake(root, tuple([new[i] for i in root.inputs]))
            else:
                self._fused([u.root for u in kernel if u.root in needed], kernel, new)
        return self.graph.with_roots([new[r] for r in self.graph.roots])

    def _unit(self, root: Node) -> Unit:
        """A stored node with what it computes and reads."""
        group, position = self.stored[root], self.position[root]
        if group is None:
            return Unit(root, position, (), tuple(dict.fromkeys(root.inputs)))
        members = self._members(root, group)
        inside = set(members)
        read = dict.fromkeys([i for node in members for i in node.inputs if i not in inside])
        unit = Unit(root, position, members, tuple([i for i in read if not self._is_computed(i, members)]))
        space = self._space(group)
        axes = None if space is None else axes_in(space, root, members, must_stand)
        if axes is not None:
            unit.space, unit.axes = space, axes
        return unit

    def _is_computed(self, node: Node, members: Sequence[Node]) -> bool:
        """Whether the kernel of some members makes a leaf by itself."""
        if node.op.kind != "leaf" or not is_inline_leaf(node):
            return False
        return not any(
            # The seed of a draw differs from process to process: as an operand it leaves the code the same.
            (user.op.name == "gather" and node is user.inputs[0])
            or (user.op.name in DRAWS and node is user.inputs[1] and node.op.name == "constant")
            for user in members
        )

    def _space(self, group: _Group) -> Space | None:
        """What the loops of a kernel run over; None where other kernels can not share them."""
        root, core = group.root, group.core
        guards = any(user.op.name == "guard" and root is user.inputs[1] for user in self.users[root])
        if root.op.name in SCATTERED or guards or group.cuts:
            return None
        if core is None:
            return map_space(root)
        return reduction_space(core, root, LONGEST_ROW) if core.op.name in SHARED_REDUCTIONS else None

    def _fused(self, roots: Sequence[Node], kernel: Sequence[Unit], new: dict[Node, Node]) -> None:
        """Make the node of one kernel, and of each of its results where there are several."""
        params: dict[Node, Node] = {}
        built: dict[Node, Node] = {}
        operands = dict.fromkeys([o for unit in kernel for o in unit.operands])
        members = sorted({m for unit in kernel for m in unit.members}, key=self.position.__getitem__)

        def operand(node: Node) -> Node:
            if node in built:
                return built[node]
            if node not in operands:
                return node
            if node not in params:
                previous = set_override(node.origin)
                params[node] = placeholder(node.shape, node.dtype, f"p{len(params)}")
                set_override(previous)
            return params[node]

        for node in members:
            built[node] = remake(node, tuple([operand(i) for i in node.inputs]))
        body = Graph(tuple(params.values()), tuple([built[r] for r in roots]), name="body")
        made = fused(tuple([new[p] for p in params]), body)
        for i, root in enumerate(roots):
            new[root] = made if len(roots) == 1 else item(made, i)

    def _members(self, root: Node, group: _Group) -> list[Node]:
        """The nodes of a kernel in topological order."""
        found = {root}
        stack = [root]
        while stack:
            for child in stack.pop().inputs:
                if child not in found and child not in self.stored and group in self.member.get(child, ()):
                    found.add(child)
                    stack.append(child)
        return sorted(found, key=self.position.__getitem__)
