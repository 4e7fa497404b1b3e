"""Term rewriting: small rules, and the driver that applies them bottom-up until none fires."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from dataclasses import replace

from graphkb.ir.errors import GraphError
from graphkb.ir.graph import Graph, built_at, toposort
from graphkb.ir.node import Node, make
from graphkb.ir.op import Op, all_ops, find_op
from graphkb.ir.origin import set_override
from graphkb.ir.record import record
from graphkb.ir.types import FLOATS
from graphkb.ops.shape import reshape

RuleFunction = Callable[[Node], Node | None]


@record(eq=False, slots=True)
class Rule:
    """One rewrite: `apply(node)` gives a node of the same type and meaning, or None where the rule does not fit.

    The inputs of the node are in normal form already: no rule of the same list fits any of them.
    """

    name: str
    ops: tuple[Op, ...]
    apply: RuleFunction
    algebra: str

    def __repr__(self) -> str:
        return f"<rule {self.name}: {self.algebra}>"


def rule(*ops: str) -> Callable[[RuleFunction], Rule]:
    """Make a function the rule for nodes of the named ops; the first line of its docstring is its algebra."""
    found = tuple([find_op(name) for name in ops])

    def decorate(function: RuleFunction) -> Rule:
        algebra = (function.__doc__ or "").strip().split("\n")[0]
        assert algebra, f"rule {function.__name__} must state its algebra in its docstring"
        return Rule(function.__name__, found, function, algebra)

    return decorate


def of_kind(*kinds: str) -> tuple[str, ...]:
    """The names of the ops of some kinds, for rules that hold for whole families."""
    return tuple([op.name for op in all_ops() if op.kind in kinds])


Rules = tuple[Rule, ...]
# The first node of each kind; the ids are those of nodes that live as long as the table.
Twins = dict[tuple[Op, int, object], Node]


@functools.lru_cache(maxsize=64)
def _dispatch(rules: Rules) -> dict[Op, Rules]:
    """The rules by op, in the order of the list, so that a node meets only those that may fit it."""
    table: dict[Op, Rules] = {}
    for each in rules:
        for op in each.ops:
            table[op] = (*table.get(op, ()), each)
    return table


def rewrite(node: Node, rules: Sequence[Rule]) -> Node:
    """The normal form of one node."""
    return _normal_forms(toposort([node]), tuple(rules), False)[node]


def rewrite_graph(graph: Graph, rules: Sequence[Rule], share: bool = False) -> Graph:
    """The graph with every node in normal form; the same object when nothing changes.

    New nodes carry the provenance of the node that they replace.

    Args:
        share: also compute only once what stands in the graph in two forms: x + y and y + x, or a reduction with and
            without keepdims. Rules can not see that: it depends on nodes beside theirs.

    Raises:
        GraphError: a rule changed the type of a node, or the rules go round in a circle.
    """
    table = _dispatch(tuple(rules))
    if not share and not any(node.op in table for node in graph.nodes):
        return graph
    forms = _normal_forms(graph.nodes, tuple(rules), share)
    roots = graph.roots
    new = [forms[r] for r in roots]
    if all(a is b for a, b in zip(roots, new)):
        return graph
    return replace(graph.with_roots(new), _order=None)


def _normal_forms(order: Sequence[Node], rules: Rules, share: bool) -> dict[Node, Node]:
    """The normal form of every node of a topological order.

    A stack holds what is still to be settled: a node waits for its inputs, and a replaced node for its replacement.
    Each node is settled once, so the cost is linear in the nodes that exist before, between and after.
    """
    table = _dispatch(rules)
    done: dict[Node, Node] = {}
    replaced: dict[Node, Node] = {}
    twins: Twins = {}
    left = 1000 + 100 * len(order)
    stack = list(reversed(order))
    previous = set_override(None)
    try:
        while stack:
            node = stack[-1]
            if node in done:
                stack.pop()
                continue
            if node in replaced:
                done[node] = done[replaced[node]]
                stack.pop()
                continue
            inputs = node.inputs
            settled = True
            changed = False
            for child in inputs:
                form = done.get(child)
                if form is None:
                    if child in replaced:
                        raise _circle(node, child)
                    stack.append(child)
                    settled = False
                elif form is not child:
                    changed = True
            if not settled:
                continue
            if changed:
                # Rules keep types, so the type need not be inferred again.
                new = make(node.op, tuple([done[i] for i in inputs]), node.attrs, node.type, node.origin)
            else:
                new = node
                candidates = table.get(node.op)
                if candidates is not None:
                    set_override(node.origin)
                    for each in candidates:
                        found = each.apply(node)
                        if found is not None and found is not node:
                            left -= 1
                            _check(each, node, found, left)
                            new = found
                            break
                if share and new is node:
                    new = _first_twin(twins, node)
            if new is node:
                done[node] = node
                stack.pop()
            elif new in replaced and new not in done:
                raise _circle(node, new)
            else:
                replaced[node] = new
                stack.append(new)
    finally:
        set_override(previous)
    return done


def _first_twin(twins: Twins, node: Node) -> Node:
    """For y + x the node x + y, and for sum(x, keepdims) the reshaped sum(x), if those came first; else the node."""
    op = node.op
    if op.commutative:
        # The sign of max(0.0, -0.0) depends on the order.
        if node.dtype in FLOATS and op.name in ("maximum", "minimum"):
            return node
        a, b = node.inputs
        twin = twins.get((op, id(b), id(a)))
        if twin is not None and twin.type == node.type:
            return twin
        twins[op, id(a), id(b)] = node
    elif op.kind == "reduce" and "keepdims" in node.attrs:
        key = (op, id(node.inputs[0]), node.attrs["axes"])
        twin = twins.setdefault(key, node)
        if twin is not node:
            set_override(node.origin)
            return reshape(twin, node.type.shape)
    return node


def _check(each: Rule, node: Node, found: Node, left: int) -> None:
    if found.type != node.type:
        raise GraphError(
            f"rule {each.name} ({each.algebra}) gave {found!r} for {node!r}: a rule must keep the type{built_at(node)}"
        )
    if left <= 0:
        raise GraphError(f"the rules do not come to an end; the last one was {each.name} at {node!r}{built_at(node)}")


def _circle(node: Node, child: Node) -> GraphError:
    return GraphError(f"the rules go round in a circle: {child!r} comes back while it is rewritten, by way of {node!r}")
