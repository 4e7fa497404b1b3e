"""Loops and branches as ops: bodies are graphs, results are tuples, `item` takes one value of a tuple."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from graphkb.ir.dims import Dim, Shape
from graphkb.ir.errors import DTypeError, GraphError, ShapeError
from graphkb.ir.graph import Graph, replace_nodes, toposort
from graphkb.ir.leaves import Array, DrawCell
from graphkb.ir.node import Node, make, record, remake
from graphkb.ir.op import define
from graphkb.ir.types import NUMPY_DTYPE, TensorType, TupleType, tuple_type
from graphkb.ops.leaf import PLACEHOLDER, VARIABLE, constant, iota, placeholder
from graphkb.ops.random import random_bits
from graphkb.ops.shape import BROADCAST_TO, RESHAPE

Arrays = list[Array]
# What a body computes, from the arrays of its inputs.
Step = Callable[[Sequence[Array]], Sequence[Array]]


# ---------------------------------------------------------------------------------------------- tuples
def _infer_item(x: TensorType, index: int) -> TensorType:
    if not isinstance(x, TupleType):
        raise DTypeError(f"item: expected the result of a loop or a branch, not {x!r}")
    if not 0 <= index < len(x.items):
        raise ShapeError(f"item: there is no value {index} in {x!r}")
    return x.items[index]


ITEM = define(
    "item",
    kind="control",
    params=("index",),
    infer=_infer_item,
    numpy=lambda x, index: x[index],
    doc="One value of a tuple. Its gradient is that of the tuple, which `gradients` gathers.",
)


def item(x: Node, index: int) -> Node:
    """Value `index` of a tuple."""
    return make(ITEM, (x,), {"index": index})


def items(x: Node) -> tuple[Node, ...]:
    """All values of a tuple."""
    assert isinstance(x.type, TupleType)
    return tuple([item(x, i) for i in range(len(x.type.items))])


def is_control(node: Node) -> bool:
    """Whether a node has bodies that run as steps of their own: a loop, a branch, or a chain of kernels."""
    return node.op.kind == "control" and node.op is not ITEM


# ---------------------------------------------------------------------------------------------- types
def fits(a: TensorType, b: TensorType) -> bool:
    """Whether two types may turn out to be equal once all sizes are known."""
    return (
        a.dtype == b.dtype
        and a.ndim == b.ndim
        and all(m == n or not (isinstance(m, int) and isinstance(n, int)) for m, n in zip(a.shape, b.shape))
    )


def _known(*types: TensorType) -> TensorType:
    """The first type, with the sizes that only the others know."""
    first = types[0]
    shape: Shape = tuple(
        [next((n for n in dims if isinstance(n, int)), dims[0]) for dims in zip(*[t.shape for t in types])]
    )
    return first if shape == first.shape else first.with_shape(shape)


def _check_operands(name: str, types: Sequence[TensorType], body: Graph) -> None:
    if body.updates:
        raise GraphError(f"{name}: a body can not update variables")
    if len(types) != len(body.inputs):
        raise GraphError(f"{name}: {len(types)} operands for a body that takes {len(body.inputs)}")
    for i, (type, parameter) in enumerate(zip(types, body.inputs)):
        if not fits(type, parameter.type):
            error = DTypeError if type.dtype != parameter.type.dtype else ShapeError
            raise error(f"{name}: operand {i} is {type!r}, the body takes {parameter.type!r}")


# ---------------------------------------------------------------------------------------------- loops
def _infer_scan(*types: TensorType, body: Graph, length: Dim, states: int, sequences: int, reverse: bool) -> TensorType:
    if isinstance(length, int) and length < 0:
        raise ShapeError(f"scan: the length {length} is negative")
    if not 0 <= states <= len(body.outputs) or not 0 <= sequences <= len(types) - states:
        raise GraphError(f"scan: {states} states and {sequences} sequences do not fit the body {body.name}")
    operands = list(types)
    for i in range(states, states + sequences):
        whole = types[i]
        if not whole.ndim or not fits(whole, whole.with_shape((length, *whole.shape[1:]))):
            raise ShapeError(f"scan: operand {i} is {whole!r}, expected {length} slices along the first axis")
        operands[i] = whole.with_shape(whole.shape[1:])
    _check_operands("scan", operands, body)
    results = []
    for i, (before, after) in enumerate(zip(operands[:states], body.outputs)):
        if not fits(before, after.type):
            error = DTypeError if before.dtype != after.dtype else ShapeError
            raise error(
                f"scan: state {i} is {before!r} before a step and {after.type!r} after it: it must stay the same"
            )
        results.append(_known(before, body.inputs[i].type, after.type))
    results += [out.type.with_shape((length, *out.shape)) for out in body.outputs[states:]]
    return tuple_type(results)


def run_scan(
    step: Step, arrays: Sequence[Array], body: Graph, length: int, states: int, sequences: int, reverse: bool
) -> tuple[Array, ...]:
    """The result of a scan whose body is computed by `step`."""
    current = list(arrays[:states])
    slices = [np.ascontiguousarray(array) for array in arrays[states : states + sequences]]
    constants = list(arrays[states + sequences :])
    stacks = [np.empty((length, *out.shape), NUMPY_DTYPE[out.dtype]) for out in body.outputs[states:]]
    for i in range(length - 1, -1, -1) if reverse else range(length):
        values = step(current + [array[i] for array in slices] + constants)
        current = list(values[:states])
        for stack, value in zip(stacks, values[states:]):
            stack[i] = value
    return (*current, *stacks)


def interpret_body(body: Graph) -> Step:
    """A body as the meanings of its nodes, one after the other."""

    def step(arrays: Sequence[Array]) -> list[Array]:
        values: dict[Node, Any] = dict(zip(body.inputs, arrays))
        for node in body.nodes:
            if node not in values:
                assert node.op.numpy is not None
                values[node] = node.op.numpy(*[values[i] for i in node.inputs], **node.attrs)
        # Where NumPy gives scalars, the node's type holds.
        return [np.asarray(values[out], NUMPY_DTYPE[out.dtype]) for out in body.outputs]

    return step


def _scan_vjp(g: Sequence[Node | None], y: Node, *inputs: Node, **attrs: Any) -> tuple[Node | None, ...]:
    from graphkb.ops.control_gradients import scan_vjp

    return scan_vjp(g, y, *inputs, **attrs)


SCAN = define(
    "scan",
    kind="control",
    params=("body", "length", "states", "sequences", "reverse"),
    infer=_infer_scan,
    numpy=lambda *arrays, body, **attrs: run_scan(interpret_body(body), arrays, body, **attrs),
    vjp=_scan_vjp,
    doc="""A loop: the body takes the states, one slice of each sequence and the constants, and gives the new states and
    the outputs of a step. The operands are the first states, the sequences (stacked along their first axis) and the
    constants; the result is a tuple of the last states and the stacked outputs. With `reverse` the steps go from the
    last slice to the first; outputs stand where their slices stood.""",
)


# ---------------------------------------------------------------------------------------------- branches
def _infer_cond(test: TensorType, *types: TensorType, then: Graph, other: Graph) -> TensorType:
    if test.dtype != "bool" or test.ndim:
        raise DTypeError(f"cond: the condition must be a bool scalar, not {test!r}")
    _check_operands("cond", types, then)
    _check_operands("cond", types, other)
    if len(then.outputs) != len(other.outputs):
        raise GraphError(f"cond: the branches give {len(then.outputs)} and {len(other.outputs)} values")
    results = []
    for a, b in zip(then.outputs, other.outputs):
        if not fits(a.type, b.type):
            error = DTypeError if a.dtype != b.dtype else ShapeError
            raise error(f"cond: one branch gives {a.type!r}, the other {b.type!r}: they must be the same")
        results.append(_known(a.type, b.type))
    return tuple_type(results)


def _numpy_cond(test: Array, *arrays: Array, then: Graph, other: Graph) -> tuple[Array, ...]:
    return tuple(interpret_body(then if test else other)(arrays))


def _cond_vjp(g: Sequence[Node | None], y: Node, *inputs: Node, **attrs: Any) -> tuple[Node | None, ...]:
    from graphkb.ops.control_gradients import cond_vjp

    return cond_vjp(g, y, *inputs, **attrs)


COND = define(
    "cond",
    kind="control",
    params=("then", "other"),
    infer=_infer_cond,
    numpy=_numpy_cond,
    vjp=_cond_vjp,
    doc="""A branch: a bool scalar decides which of two bodies is computed from the other operands. Both take the same
    operands; the result is the tuple of what the body gives.""",
)


# ---------------------------------------------------------------------------------------------- building
def close(
    parameters: Sequence[Node], outputs: Sequence[Node], made: Collection[Node] | None = None
) -> tuple[list[Node], tuple[Node, ...], tuple[Node, ...]]:
    """Cut outputs loose from the graph around them.

    What does not depend on the parameters is computed once, outside, and handed in; constants stay inside.

    Args:
        parameters: placeholders.
        outputs: nodes that may read anything.
        made: the nodes that may depend on the parameters, where that is known; all others are taken from outside.

    Returns:
        The outputs of the body; the placeholders for what is handed in; what is handed in.
    """
    inner = set(parameters)
    for node in _within(outputs, inner, made):
        if any(i in inner for i in node.inputs):
            inner.add(node)
    captured = {n: placeholder(n.shape, n.dtype, f"c{i}") for i, n in enumerate(_border(outputs, inner))}
    return _substitute(outputs, inner, captured), tuple(captured.values()), tuple(captured)


def _within(outputs: Sequence[Node], parameters: Collection[Node], made: Collection[Node] | None) -> Iterator[Node]:
    """The nodes that the outputs need, inputs first, without looking beneath those that were not made inside."""
    if made is None:
        yield from toposort(outputs)
        return
    done: set[Node] = set(parameters)
    stack = [(node, False) for node in outputs]
    while stack:
        node, settled = stack.pop()
        if settled:
            yield node
        elif node not in done and node in made:
            done.add(node)
            stack.append((node, True))
            stack += [(i, False) for i in node.inputs]


def stays_inside(node: Node) -> bool:
    """Whether a node that depends on nothing but constants is cheaper to make anew than to hand in."""
    while node.op in (BROADCAST_TO, RESHAPE):
        node = node.inputs[0]
    return node.op.kind == "leaf" and node.op not in (PLACEHOLDER, VARIABLE)


def _border(outputs: Sequence[Node], inner: set[Node]) -> list[Node]:
    """The nodes that are handed in, in the order in which they are met."""
    found: dict[Node, None] = {}
    seen: set[Node] = set()
    stack = list(reversed(outputs))
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node in inner:
            stack += reversed(node.inputs)
        elif not stays_inside(node):
            found[node] = None
    return list(found)


def _substitute(outputs: Sequence[Node], inner: set[Node], captured: Mapping[Node, Node]) -> list[Node]:
    """The outputs with what is handed in replaced; nothing beneath that is looked at."""
    new: dict[Node, Node] = dict(captured)
    stack = list(outputs)
    while stack:
        node = stack[-1]
        if node in new or node not in inner:
            new.setdefault(node, node)
            stack.pop()
            continue
        missing = [i for i in node.inputs if i not in new]
        if missing:
            stack += missing
            continue
        stack.pop()
        new[node] = remake(node, tuple([new[i] for i in node.inputs]))
    return [new[out] for out in outputs]


def loop(
    parameters: Sequence[Node],
    new_states: Sequence[Node],
    outputs: Sequence[Node],
    states: Sequence[Node],
    sequences: Sequence[Node],
    length: Dim,
    reverse: bool = False,
    made: Collection[Node] | None = None,
) -> tuple[list[Node], list[Node]]:
    """A scan over a step that was traced with placeholders.

    Args:
        parameters: the placeholders of the states, then those of the slices.
        new_states: what becomes of the states.
        outputs: the other values of a step.
        states: the first states.
        sequences: stacked along their first axis, of size `length`.
        length: the number of steps.
        reverse: whether to go from the last slice to the first.
        made: as `close` takes it. Random draws among them are made anew by every step.

    Returns:
        The last states, and the outputs stacked along a new first axis.

    Raises:
        ShapeError, DTypeError: a state changes its type, or a sequence is of another length.
    """
    results = [*new_states, *outputs]
    drawn = [n for n in made or () if n.op is VARIABLE and isinstance(n.attrs["cell"], DrawCell)]
    if drawn:
        # Every step draws anew: its number goes into the number of the call.
        with record() as more:
            count = placeholder((), "uint64", "step")
            calls = {call: random_bits(count, constant(0, "uint64"), call) for call in drawn}
            results = replace_nodes(results, calls)
        parameters, sequences = [*parameters, count], [*sequences, iota(length, "uint64")]
        made = {*(made or ()), *more}
    results, inside, outside = close(parameters, results, made)
    body = Graph((*parameters, *inside), tuple(results), name="body")
    attrs = {"body": body, "length": length, "states": len(states), "sequences": len(sequences), "reverse": reverse}
    node = make(SCAN, (*states, *sequences, *outside), attrs)
    values = items(node)
    return list(values[: len(states)]), list(values[len(states) :])


def branch(
    test: Node, then: Sequence[Node], other: Sequence[Node], made_then: Collection[Node], made_other: Collection[Node]
) -> list[Node]:
    """The values of one of two branches: a bool scalar decides, and only that branch is computed.

    Args:
        test: a bool scalar.
        then: the values where it is true.
        other: the values where it is false, of the same types.
        made_then: the nodes that belong to the first branch; all others are computed in any case.
        made_other: the nodes that belong to the second branch.
    """
    sides = [
        (outputs, {n for n in _within(outputs, (), made) if n.op not in (PLACEHOLDER, VARIABLE)})
        for outputs, made in ((then, made_then), (other, made_other))
    ]
    outside = dict.fromkeys([node for outputs, inner in sides for node in _border(outputs, inner)])
    bodies = []
    for outputs, inner in sides:
        captured = {n: placeholder(n.shape, n.dtype, f"c{i}") for i, n in enumerate(outside)}
        results = _substitute(outputs, inner, captured)
        bodies.append(Graph(tuple(captured.values()), tuple(results), name="branch"))
    return list(items(make(COND, (test, *outside), {"then": bodies[0], "other": bodies[1]})))
