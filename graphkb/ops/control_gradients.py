"""The gradients of loops and branches: a loop that walks back over stored values, and a branch of two gradients."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace

from graphkb.gradients import pull_back
from graphkb.ir.dims import Dim
from graphkb.ir.graph import Graph, replace_nodes, toposort
from graphkb.ir.node import Node, make, remake
from graphkb.ir.record import record
from graphkb.ir.types import FLOATS
from graphkb.ops.control import COND, SCAN, item, items, stays_inside
from graphkb.ops.elementwise import BROADCAST_LIKE, UNBROADCAST, unbroadcast
from graphkb.ops.leaf import PLACEHOLDER, constant, placeholder
from graphkb.ops.linalg import DOT, dot
from graphkb.ops.shape import RESHAPE, broadcast_to, reshape

Gradients = tuple[Node | None, ...]

# The cost per element up to which the way back computes a value again rather than read it from memory.
_CHEAP = 4


def zeros_of(x: Node) -> Node:
    """Zeros of a node's type."""
    return broadcast_to(constant(0, x.dtype), x.shape)


def _grad_parameter(x: Node, name: str) -> Node:
    return placeholder(x.shape, x.dtype, name)


# ---------------------------------------------------------------------------------------------- loops
@record
class _Loop:
    """A scan and its parts.

    Attributes:
        node: the scan.
        body: its body.
        states: the placeholders of the states.
        slices: those of the slices.
        constants: those of the constants.
        operands: what the scan gives for each placeholder.
    """

    node: Node
    body: Graph
    states: tuple[Node, ...]
    slices: tuple[Node, ...]
    constants: tuple[Node, ...]
    operands: dict[Node, Node]
    length: Dim
    reverse: bool

    @property
    def new_states(self) -> tuple[Node, ...]:
        return self.body.outputs[: len(self.states)]

    @property
    def outputs(self) -> tuple[Node, ...]:
        return self.body.outputs[len(self.states) :]


def scan_vjp(
    g: Sequence[Node | None],
    y: Node,
    *inputs: Node,
    body: Graph,
    length: Dim,
    states: int,
    sequences: int,
    reverse: bool,
) -> Gradients:
    """The gradients of a loop's operands: a loop in the other direction.

    With s' = f(s, x, c) and y = h(s, x, c) at each step, it carries the gradient of the state and sums of the
    gradients of the constants: ds = f_s' ds' + h_s' dy, dx = f_x' ds' + h_x' dy, dc += f_c' ds' + h_c' dy.

    Args:
        g: the gradient of each last state and of each stack of outputs; None where nothing depends on it.
    """
    p = body.inputs
    loop = _Loop(
        y,
        body,
        p[:states],
        p[states : states + sequences],
        p[states + sequences :],
        dict(zip(p, inputs)),
        length,
        reverse,
    )
    stacked = {out: _grad_parameter(out, f"dy{j}") for j, out in enumerate(loop.outputs) if g[states + j] is not None}
    outer: dict[Node, Node] = {}
    for out, grad in zip(loop.outputs, g[states:]):
        if grad is not None:
            known = outer.get(stacked[out])
            outer[stacked[out]] = grad if known is None else known + grad
    carried, found = _connect(loop, g[:states], list(stacked.items()))
    if not carried and not outer:
        return (None,) * len(inputs)
    products = _products(loop, found, [*carried.values(), *outer])
    sums = {
        c: _grad_parameter(c, f"dc{i}")
        for i, c in enumerate(loop.constants)
        if found.get(c) is not None and c not in products
    }
    slices = [x for x in loop.slices if found.get(x) is not None]
    parameters = (*carried.values(), *sums.values(), *outer)
    results: list[Node] = []
    for s in carried:
        grad = found.get(s)
        results.append(zeros_of(s) if grad is None else grad)
    for c, total in sums.items():
        grad = found[c]
        assert grad is not None
        results.append(total + grad)
    for x in slices:
        grad = found[x]
        assert grad is not None
        results.append(grad)
    factors = _factors(products.values(), [*carried.values(), *outer])
    results += factors
    first = []
    for s, grad in zip(loop.states, g[:states]):
        if s in carried:
            first.append(zeros_of(loop.operands[s]) if grad is None else grad)
    first += [zeros_of(loop.operands[c]) for c in sums]
    count = len(first)
    back = _back(loop, parameters, results, count, first, list(outer.values()))
    values = items(back)
    grads = dict(zip((*carried, *sums, *slices), values))
    whole = dict(zip(factors, values[len(grads) :]))
    grads.update({c: _whole_product(loop, product, whole) for c, product in products.items()})
    return tuple([grads.get(parameter) for parameter in p])


def _products(loop: _Loop, found: Mapping[Node, Node | None], own: Sequence[Node]) -> dict[Node, Node]:
    """The gradients of constants that are at each step a product of two values which differ from step to step.

    The sum of such products is one product over all steps, which is faster than to add them up. The same holds for
    sums of values that are stacked in any case.
    """
    steps = [grad for c in loop.constants if (grad := found.get(c)) is not None]
    varying = {*loop.states, *loop.slices, *own}
    for node in toposort(steps):
        if any(i in varying for i in node.inputs):
            varying.add(node)
    products = {
        c: grad
        for c in loop.constants
        if (grad := found.get(c)) is not None
        and grad.op is DOT
        and not grad.attrs["batch_x"]
        and all(i in varying for i in grad.inputs)
    }
    stacked = {*loop.slices, *loop.outputs, *own, *[i for grad in products.values() for i in grad.inputs]}
    for c in loop.constants:
        grad = found.get(c)
        total = _sum_behind(grad) if grad is not None else None
        if grad is not None and total is not None and total.inputs[0] in varying & stacked:
            products[c] = grad
    return products


def _sum_behind(grad: Node) -> Node | None:
    """The sum over broadcast axes that a gradient is, perhaps in another shape."""
    node = grad.inputs[0] if grad.op is RESHAPE else grad
    return node if node.op is UNBROADCAST else None


def _operands(grad: Node) -> tuple[Node, ...]:
    """The values of a step that a product or a sum is made of."""
    total = _sum_behind(grad)
    return grad.inputs if total is None else total.inputs[:1]


def _factors(products: Iterable[Node], own: Sequence[Node]) -> list[Node]:
    """The factors that only the way back knows."""
    known = set(own)
    factors = dict.fromkeys([factor for product in products for factor in _operands(product)])
    for node in toposort(factors):
        if any(i in known for i in node.inputs):
            known.add(node)
    return [factor for factor in factors if factor in known]


def _whole_product(loop: _Loop, product: Node, whole: Mapping[Node, Node]) -> Node:
    """The sum of a product, or of a sum, over all steps, from the stacks of its factors."""
    stacks = []
    for factor in _operands(product):
        if factor in whole:
            stacks.append(whole[factor])
        elif factor in loop.slices:
            stacks.append(loop.operands[factor])
        else:
            stacks += _store(loop, [factor])
    total = _sum_behind(product)
    if total is not None:
        whole_sum = unbroadcast(stacks[0], zeros_of(total.inputs[1]))
        return whole_sum if whole_sum.shape == product.shape else reshape(whole_sum, product.shape)
    x, y = stacks
    contract_x, contract_y = [(0, *[a + 1 for a in product.attrs[name]]) for name in ("contract_x", "contract_y")]
    return dot(x, y, (), (), contract_x, contract_y)


def _connect(
    loop: _Loop, g: Sequence[Node | None], stacked: list[tuple[Node, Node]]
) -> tuple[dict[Node, Node], dict[Node, Node | None]]:
    """The states that have a gradient, with its placeholder, and the gradients that one step gives."""
    names = {s: _grad_parameter(s, f"ds{i}") for i, s in enumerate(loop.states) if s.dtype in FLOATS}
    carried = {s: names[s] for s, grad in zip(loop.states, g) if grad is not None and s in names}
    while True:
        seeds = [(new, carried[s]) for s, new in zip(loop.states, loop.new_states) if s in carried]
        found = dict(zip(loop.body.inputs, pull_back([*seeds, *stacked], loop.body.inputs)))
        more = {s: names[s] for s in names if s not in carried and found[s] is not None}
        if not more:
            return {s: names[s] for s in names if s in carried}, found
        carried.update(more)


def _back(
    loop: _Loop,
    parameters: Sequence[Node],
    results: Sequence[Node],
    count: int,
    first: Sequence[Node],
    stacks: Sequence[Node],
) -> Node:
    """The scan that computes `results`, which read values of the forward step.

    Slices and constants are read again, cheap values are computed again, all others are stored by the forward loop.

    Args:
        parameters: the placeholders of the states, then those of the slices.
        count: how many of them and of the results are states.
        first: the first states.
        stacks: the sequences.
    """
    results = _shapes_only(results)
    own = set(parameters)
    steps = {*loop.states, *loop.slices}  # what differs from step to step
    for node in toposort(results):
        if any(i in own for i in node.inputs):
            own.add(node)
        if any(i in steps for i in node.inputs):
            steps.add(node)
    stored: list[Node] = []
    slices: list[Node] = []
    fixed: list[Node] = []
    seen: set[Node] = set()
    pending = list(reversed(results))
    while pending:
        node = pending.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in own or (node in steps and _is_cheap(node)):
            pending += reversed(node.inputs)
        elif node in loop.slices:
            slices.append(node)
        elif node in steps:
            stored.append(node)
        elif not stays_inside(node):
            fixed.append(node)
    kept = {n: _grad_parameter(n, f"r{i}") for i, n in enumerate(stored)}
    handed = {n: n if n in loop.operands else _grad_parameter(n, f"c{i}") for i, n in enumerate(fixed)}
    body = Graph(
        (*parameters, *slices, *kept.values(), *handed.values()),
        tuple(replace_nodes(results, {**kept, **handed})),
        name="body",
    )
    sequences = [*stacks, *[loop.operands[x] for x in slices], *_store(loop, stored)]
    constants = replace_nodes(fixed, loop.operands)
    attrs = {
        "body": body,
        "length": loop.length,
        "states": count,
        "sequences": len(sequences),
        "reverse": not loop.reverse,
    }
    return make(SCAN, (*first, *sequences, *constants), attrs)


def _is_cheap(node: Node) -> bool:
    return node.op.kind == "view" or (node.op.kind == "elementwise" and node.op.cost <= _CHEAP)


def _shapes_only(results: Sequence[Node]) -> list[Node]:
    """The nodes with operands that lend only their shape replaced by zeros, so that nothing is stored for them."""
    new: dict[Node, Node] = {}
    for node in toposort(results):
        inputs = tuple([new[i] for i in node.inputs])
        if node.op in (UNBROADCAST, BROADCAST_LIKE) and inputs[1].op is not PLACEHOLDER:
            inputs = (inputs[0], zeros_of(node.inputs[1]))
        new[node] = remake(node, inputs)
    return [new[r] for r in results]


def _store(loop: _Loop, nodes: Sequence[Node]) -> list[Node]:
    """The stacks of values of the forward step. A loop that stores more is joined with the first one by a pass."""
    outputs = loop.body.outputs
    extra = tuple([n for n in dict.fromkeys(nodes) if n not in loop.outputs])
    node = loop.node
    if extra:
        body = replace(loop.body, outputs=outputs + extra, _order=None)
        node = make(SCAN, node.inputs, {**node.attrs, "body": body})
    place = {n: i for i, n in reversed(list(enumerate(loop.outputs + extra)))}
    return [item(node, len(loop.states) + place[n]) for n in nodes]


# ---------------------------------------------------------------------------------------------- branches
def cond_vjp(g: Sequence[Node | None], y: Node, test: Node, *inputs: Node, then: Graph, other: Graph) -> Gradients:
    """The gradients of a branch's operands: a branch between the gradients of the two bodies."""
    outer = [grad for grad in g if grad is not None]
    sides = []
    for body in (then, other):
        given = [
            (out, _grad_parameter(out, f"dy{i}"))
            for i, (out, grad) in enumerate(zip(body.outputs, g))
            if grad is not None
        ]
        sides.append((body, [p for _, p in given], pull_back(given, body.inputs)))
    wanted = [i for i in range(len(inputs)) if any(found[i] is not None for _, _, found in sides)]
    if not wanted:
        return (None,) * (len(inputs) + 1)
    bodies = []
    for body, parameters, found in sides:
        results = []
        for i in wanted:
            grad = found[i]
            results.append(zeros_of(body.inputs[i]) if grad is None else grad)
        bodies.append(Graph((*body.inputs, *parameters), tuple(results), name="branch"))
    node = make(COND, (test, *inputs, *outer), {"then": bodies[0], "other": bodies[1]})
    grads = dict(zip(wanted, items(node)))
    return (None, *[grads.get(i) for i in range(len(inputs))])
