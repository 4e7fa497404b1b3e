"""Loops over a tensor's slices: `rnn`, `map_fn`, `foldl` and `foldr`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from graphkb.backend.control import depends_on_phase
from graphkb.backend.execution import name_scope
from graphkb.backend.promotion import Handle, as_node
from graphkb.backend.tensors import Tensor
from graphkb.ir import dims
from graphkb.ir.dims import Dim
from graphkb.ir.errors import ShapeError
from graphkb.ir.node import Node, record
from graphkb.ir.types import dtype_name
from graphkb.ops import leaf, shape
from graphkb.ops.control import loop
from graphkb.ops.elementwise import cast, not_equal, select
from graphkb.ops.reduce import reduce_sum

StepFunction = Callable[[Any, list[Any]], tuple[Any, Sequence[Any]]]


def _check_callable(what: str, function: Any) -> None:
    if not callable(function) or isinstance(function, Handle):
        raise TypeError(f"{what}: expected a function, not {type(function).__name__}")


def _time_major(x: Node) -> Node:
    """The first two axes exchanged."""
    return shape.transpose(x, (1, 0, *range(2, x.ndim)))


def _slice_of(x: Node, name: str) -> Node:
    """The placeholder for one slice along the first axis."""
    return leaf.placeholder(x.shape[1:], x.dtype, name)


def _at(x: Node, index: Dim) -> Node:
    """One slice along the first axis."""
    taken = shape.slice_(x, (index, *(0,) * (x.ndim - 1)), (1, *x.shape[1:]))
    return shape.reshape(taken, x.shape[1:])


# ------------------------------------------------------------------------------------------------ recurrence
def rnn(
    step_function: StepFunction,
    inputs: Any,
    initial_states: Sequence[Any],
    go_backwards: bool = False,
    mask: Any = None,
    constants: Sequence[Any] | None = None,
    unroll: bool = False,
    input_length: int | None = None,
) -> tuple[Any, Any, list[Any]]:
    """Apply a step function to the slices of a tensor along time, handing states from step to step.

    Args:
        step_function: `step(x, states) -> (output, new_states)`: `x` of shape (samples, ...) is one time step, `states`
            the list of states followed by the constants; there are as many new states as states. It may use any
            other tensor. It is called twice: once for the first step, so that what it makes once and keeps (such as a
            dropout mask) holds for all steps, and once for a step in general, which draws random numbers anew.
        inputs: a tensor (samples, time, ...) of rank 3 or more, or a list of such tensors, of which the step
            function gets a list of slices.
        initial_states: a list of tensors, perhaps empty; they may have any shapes, which the steps keep.
        go_backwards: whether to begin at the end; the outputs then stand in the order in which they were computed.
        mask: a tensor (samples, time) or (samples, time, 1) of any dtype. Where it is 0 the output is that of the step
            before (zeros at the first step), and the states stay.
        constants: a list of tensors that the step function gets behind the states.
        unroll: whether to build all steps one by one; the number of steps must be known then.
        input_length: the number of steps, where `inputs` does not tell it and `unroll` needs it.

    Returns:
        `(last_output, outputs, new_states)`: tensors (samples, ...) and (samples, time, ...), and a list of the last
        states.

    Raises:
        ValueError: the inputs or the mask have a wrong rank, the number of new states differs from that of the states,
            or `unroll` is set for an unknown number of steps. ShapeError, DTypeError: a step changes the type of a
            state.

    >>> from graphkb import backend as K
    >>> x = K.variable([[[1], [2], [3]]])
    >>> last, outputs, states = K.rnn(lambda x, s: (s[0] + x, [s[0] + x]), x, [K.zeros((1, 1))])
    >>> K.eval(outputs)[0, :, 0].tolist()
    [1.0, 3.0, 6.0]
    """
    _check_callable("rnn", step_function)
    several = isinstance(inputs, (list, tuple)) and any(isinstance(x, Handle) for x in inputs)
    for name, value in (("initial_states", initial_states), ("constants", constants or ())):
        if not isinstance(value, (list, tuple)):
            raise TypeError(f"rnn: expected a list of tensors as {name}, not {type(value).__name__}")
    nodes = [as_node(x) for x in (inputs if several else [inputs])]
    for x in nodes:
        if x.ndim < 3:
            raise ValueError(
                f"rnn: expected inputs of rank 3 or more, (samples, time, ...), not of shape {dims.show_shape(x.shape)}"
            )
    states = [as_node(s) for s in initial_states]
    job = _Recurrence(step_function, several, states, list(constants or ()))
    length: Dim = nodes[0].shape[1]
    whole = [_time_major(x) for x in nodes]
    steps = None if mask is None else _mask_node(mask)
    if go_backwards:
        whole = [shape.reverse(x, (0,)) for x in whole]
        steps = None if steps is None else shape.reverse(steps, (0,))
    if unroll:
        count = length if isinstance(length, int) else input_length
        if not isinstance(count, int):
            raise ValueError("rnn: unrolling requires a fixed number of time steps: give the inputs a known length")
        last, outputs, new_states = job.unrolled(whole, steps, count)
    else:
        last, outputs, new_states = job.looped(whole, steps, length)
    results = [Tensor(last), Tensor(_time_major(outputs))]
    if depends_on_phase(last):
        for result in results:
            result._uses_learning_phase = True  # type: ignore[attr-defined]
    return results[0], results[1], [Tensor(s) for s in new_states]


def _mask_node(mask: Any) -> Node:
    """The mask as a bool node (time, samples)."""
    node = as_node(mask)
    if node.ndim == 3 and (node.shape[2] == 1 or not isinstance(node.shape[2], int)):
        node = shape.reshape(node, node.shape[:2])
    if node.ndim != 2:
        raise ValueError(
            f"rnn: mask should have the shape (samples, time) or (samples, time, 1), not {dims.show_shape(node.shape)}"
        )
    return _time_major(cast(node, "bool") if node.dtype == "bool" else not_equal(node, leaf.constant(0, node.dtype)))


def _masked(test: Node, new: Node, old: Node) -> Node:
    """The new value for samples whose step counts, the old one for all others."""
    test = shape.reshape(test, (*test.shape, *(1,) * (new.ndim - 1))) if new.ndim else test
    chosen = select(test, new, old)
    return chosen if chosen.shape == new.shape else shape.reshape(chosen, new.shape)


class _Recurrence:
    """One call of `rnn`."""

    def __init__(self, step: StepFunction, several: bool, states: list[Node], constants: list[Any]) -> None:
        self.step_function = step
        self.several = several
        self.states = states
        self.constants = [c if isinstance(c, Handle) else Tensor(as_node(c)) for c in constants]

    def step(self, slices: Sequence[Node], states: Sequence[Node]) -> tuple[Node, list[Node]]:
        """The output and the new states of one step."""
        x: Any = [Tensor(s) for s in slices] if self.several else Tensor(slices[0])
        result = self.step_function(x, [Tensor(s) for s in states] + self.constants)
        if not isinstance(result, (list, tuple)) or len(result) != 2 or not isinstance(result[1], (list, tuple)):
            raise TypeError("rnn: the step function must return (output, list of new states)")
        output, new = result
        if len(new) != len(states):
            raise ValueError(f"rnn: the step function gave {len(new)} new states for {len(states)} states")
        return as_node(output), [as_node(s) for s in new]

    def looped(self, whole: list[Node], mask: Node | None, length: Dim) -> tuple[Node, Node, list[Node]]:
        """The last output, the outputs (time first) and the last states, by one loop."""
        states = [leaf.placeholder(s.shape, s.dtype, f"state{i}") for i, s in enumerate(self.states)]
        slices = [_slice_of(x, "x") for x in whole]
        if length != 0:
            # What a cell makes once and keeps, such as a dropout mask, must not belong to a step.
            self.step([_at(x, 0) for x in whole], self.states)
        with record() as made:
            output, new = self.step(slices, states)
            if mask is not None:
                test = _slice_of(mask, "mask")
                before = leaf.placeholder(output.shape, output.dtype, "output")
                output = _masked(test, output, before)
                new = [_masked(test, n, s) for n, s in zip(new, states)]
        if mask is None:
            last, (outputs,) = loop([*states, *slices], new, [output], self.states, whole, length, made=made)
            return last[new.index(output)] if output in new else _last(outputs), outputs, last
        zeros = shape.broadcast_to(leaf.constant(0, output.dtype), output.shape)
        parameters = [before, *states, *slices, test]
        last, (outputs,) = loop(
            parameters, [output, *new], [output], [zeros, *self.states], [*whole, mask], length, made=made
        )
        return last[0], outputs, last[1:]

    def unrolled(self, whole: list[Node], mask: Node | None, count: int) -> tuple[Node, Node, list[Node]]:
        """The same, step by step."""
        if count == 0:
            return self.looped(whole, mask, 0)
        states = self.states
        outputs: list[Node] = []
        for t in range(count):
            output, new = self.step([_at(x, t) for x in whole], states)
            if mask is not None:
                test = _at(mask, t)
                zeros = shape.broadcast_to(leaf.constant(0, output.dtype), output.shape)
                output = _masked(test, output, outputs[-1] if outputs else zeros)
                new = [_masked(test, n, s) for n, s in zip(new, states)]
            states = new
            outputs.append(output)
        return outputs[-1], shape.stack(outputs, 0), states


def _last(stacked: Node) -> Node:
    """The last slice along the first axis; zeros where there is none."""
    length = stacked.shape[0]
    if isinstance(length, int) and length:
        return _at(stacked, length - 1)
    count = dims.minimum(length, 1)
    rest = stacked.shape[1:]
    return reduce_sum(shape.slice_(stacked, (length - count, *(0,) * len(rest)), (count, *rest)), (0,))


# ------------------------------------------------------------------------------------------------ map and fold
def _elements(elems: Any, what: str) -> tuple[list[Node], Dim]:
    nodes = [as_node(e) for e in (elems if isinstance(elems, (list, tuple)) else [elems])]
    if not nodes or not all(n.ndim for n in nodes):
        raise ShapeError(f"{what}: expected elements along a first axis, not a scalar")
    return nodes, nodes[0].shape[0]


def _hand(slices: Sequence[Node], several: bool) -> Any:
    return tuple([Tensor(s) for s in slices]) if several else Tensor(slices[0])


def map_fn(fn: Callable[[Any], Any], elems: Any, name: str | None = None, dtype: Any = None) -> Any:
    """Apply a function to each slice of a tensor along its first axis, and stack the results.

    Args:
        fn: takes one slice and returns a tensor, or a list of tensors. It may use any other tensor, and index it by
            the slice.
        elems: a tensor of rank 1 or more; or a list of tensors of one length, of which `fn` gets a tuple of slices.
        name: for people.
        dtype: the dtype of the result, or a list of dtypes; None takes what `fn` gives.

    Returns:
        A tensor whose first axis counts the slices, or a list of tensors.

    Raises:
        ShapeError: `elems` is a scalar.

    >>> from graphkb import backend as K
    >>> K.eval(K.map_fn(K.sum, K.variable([[1, 2], [3, 4]]))).tolist()
    [3.0, 7.0]
    """
    _check_callable("map_fn", fn)
    several = isinstance(elems, (list, tuple)) and any(isinstance(e, Handle) for e in elems)
    nodes, length = _elements(elems if several or isinstance(elems, Handle) else as_tensor(elems), "map_fn")
    slices = [_slice_of(x, "x") for x in nodes]
    with name_scope(name or ""), record() as made:
        result = fn(_hand(slices, several))
        many = isinstance(result, (list, tuple))
        outputs = [as_node(r) for r in (result if many else [result])]
        if dtype is not None:
            kinds = [dtype_name(d) for d in (dtype if isinstance(dtype, (list, tuple)) else [dtype] * len(outputs))]
            if len(kinds) != len(outputs):
                raise ValueError(f"map_fn: expected {len(outputs)} dtypes, one for each result, not {len(kinds)}")
            outputs = [as_node(Tensor(o), kind) for o, kind in zip(outputs, kinds)]
    _, stacks = loop(slices, [], outputs, [], nodes, length, made=made)
    return [Tensor(s) for s in stacks] if many else Tensor(stacks[0])


def as_tensor(value: Any) -> Tensor:
    """Anything that becomes a tensor as one."""
    return value if isinstance(value, Tensor) else Tensor(as_node(value))


def _fold(what: str, fn: Any, elems: Any, initializer: Any, name: str | None, reverse: bool) -> Tensor:
    _check_callable(what, fn)
    several = isinstance(elems, (list, tuple)) and any(isinstance(e, Handle) for e in elems)
    nodes, length = _elements(elems if several or isinstance(elems, Handle) else as_tensor(elems), what)
    if initializer is None:
        if several:
            raise ValueError(f"{what}: expected an initializer beside a list of tensors")
        (x,) = nodes
        first = _at(x, length - 1 if reverse else 0)
        length = length - 1
        starts: tuple[Dim, ...] = (0 if reverse else 1, *(0,) * (x.ndim - 1))
        nodes = [shape.slice_(x, starts, (length, *x.shape[1:]))]
    else:
        first = as_node(initializer, None if isinstance(initializer, Handle) else nodes[0].dtype)
    slices = [_slice_of(x, "x") for x in nodes]
    total = leaf.placeholder(first.shape, first.dtype, "total")
    with name_scope(name or ""), record() as made:
        result = as_node(fn(Tensor(total), _hand(slices, several)))
    (last,), _ = loop([total, *slices], [result], [], [first], nodes, length, reverse, made)
    return Tensor(last)


def foldl(fn: Callable[[Any, Any], Any], elems: Any, initializer: Any = None, name: str | None = None) -> Any:
    """Combine the slices of a tensor along its first axis, from the first to the last.

    Args:
        fn: `fn(total, slice) -> total`, of the same type; it may use any other tensor.
        elems: a tensor of rank 1 or more.
        initializer: the first total; None takes the first slice.
        name: for people.

    Returns:
        The last total: a tensor of the type of the first one.

    Raises:
        ShapeError: there is no slice and no initializer, or `fn` changes the shape.

    >>> from graphkb import backend as K
    >>> K.eval(K.foldl(lambda a, b: a * 10 + b, K.variable([1, 2, 3]))).tolist()
    123.0
    """
    return _fold("foldl", fn, elems, initializer, name, False)


def foldr(fn: Callable[[Any, Any], Any], elems: Any, initializer: Any = None, name: str | None = None) -> Any:
    """Combine the slices of a tensor along its first axis, from the last to the first.

    Args:
        fn: `fn(total, slice) -> total`, of the same type; it may use any other tensor.
        elems: a tensor of rank 1 or more.
        initializer: the first total; None takes the last slice.
        name: for people.

    Returns:
        The last total: a tensor of the type of the first one.

    Raises:
        ShapeError: there is no slice and no initializer, or `fn` changes the shape.

    >>> from graphkb import backend as K
    >>> K.eval(K.foldr(lambda a, b: a * 10 + b, K.variable([1, 2, 3]))).tolist()
    321.0
    """
    return _fold("foldr", fn, elems, initializer, name, True)
