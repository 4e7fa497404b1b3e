"""From graphs to values: functions, evaluation, gradients and name scopes."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from graphkb import gradients as reverse_mode
from graphkb.backend.control import phase_placeholders
from graphkb.backend.promotion import Handle, as_node, items
from graphkb.backend.sparse import SparseTensor
from graphkb.backend.state import assignment
from graphkb.backend.tensors import Tensor, Update, open_controls
from graphkb.ir import origin
from graphkb.ir.errors import InputError, shown
from graphkb.ir.graph import Graph, built_at, toposort
from graphkb.ir.leaves import Array, VariableCell, unique_name
from graphkb.ir.node import Node
from graphkb.ops import elementwise, leaf
from graphkb.ops.values import print_

if TYPE_CHECKING:
    from graphkb.runtime.function import Function


# ------------------------------------------------------------------------------------------------ functions
def function(inputs: Sequence[Any], outputs: Any, updates: Sequence[Any] | None = None, **kwargs: Any) -> Function:
    """A function that computes outputs from inputs and updates variables.

    Args:
        inputs: placeholders, in the order of the call's list. Other tensors are replaced by what is handed in.
        outputs: a list of tensors, or one tensor.
        updates: what `update` and its kin return, and pairs `(variable, new value)`. All are computed from the old
            values and applied together after the outputs; of several for one variable the first counts.
        **kwargs: `name`, for errors and dumps.

    Returns:
        A callable that takes the list of input values and returns the list of outputs as NumPy arrays, or one array
        when `outputs` is one tensor. It compiles at the first call with given shapes. Outputs that carry
        `_is_metric`, or were built under `control_dependencies`, show variables after the updates.

    Raises:
        TypeError: the inputs are no list or tuple, or an input, an output or an update is none.
        ValueError: an argument is not known, an input stands twice, or a placeholder is needed that is no input.

    >>> from graphkb import backend as K
    >>> x, total = K.placeholder((None,)), K.variable(0)
    >>> f = K.function([x], [K.sum(x)], updates=[K.update_add(total, K.sum(x))])
    >>> f([[1, 2, 3]])[0].tolist(), K.get_value(total).tolist()
    (6.0, 6.0)
    """
    from graphkb.backend.single import SingleFunction, SparseFunction
    from graphkb.runtime.function import Function
    from graphkb.runtime.wiring import feed

    name = kwargs.pop("name", None)
    if kwargs:
        raise ValueError(f"function: unknown argument {next(iter(kwargs))!r}; expected inputs, outputs, updates, name")
    if not isinstance(inputs, (list, tuple)):
        raise TypeError(f"function: expected a list of inputs, not {type(inputs).__name__}")
    listed = outputs if isinstance(outputs, (list, tuple)) else [outputs]
    if any(_is_text(t) for t in (*inputs, *listed)):
        from graphkb.backend.texts import TextFunction

        number_inputs, number_outputs = ([t for t in ts if not _is_text(t)] for ts in (inputs, listed))
        numbers = function(number_inputs, number_outputs, updates, name=name)
        return TextFunction(inputs, listed, listed is not outputs, numbers)  # type: ignore[return-value]
    single = isinstance(outputs, Handle)
    results = [outputs] if single else items("function", "a tensor or a list of tensors as outputs", outputs)
    for what, tensors in (("input", inputs), ("output", results)):
        for tensor in tensors:
            if not isinstance(tensor, Handle):
                raise TypeError(f"function: expected a tensor as an {what}, not an instance of {type(tensor).__name__}")
    changes = _changes(items("function", "a list of updates", updates or ()), results)
    graph = Graph(
        tuple([n for t in inputs for n in (t.input_nodes if isinstance(t, SparseTensor) else (t.node,))]),
        tuple([t.node for t in results]),
        tuple(changes.items()),
        unique_name("function") if name is None else str(name),
    )
    sparse = any(isinstance(t, SparseTensor) for t in inputs)
    kind = SparseFunction if sparse else SingleFunction if single else Function
    # What is handed in comes first: nothing below it is needed, no learning phase either.
    graph = _in_test_phase(feed(graph))
    late = [_is_late(t) for t in results]
    phases = [] if sparse else _used_phases(graph)
    if phases:
        from graphkb.backend.phases import PhaseFunction

        made: Function = PhaseFunction(graph, phases[0], single, after_updates=late)
    else:
        made = kind(graph, after_updates=late)
    if isinstance(made, SparseFunction):
        made.lay_out(inputs, single)
    _check_inputs(made)
    return made


def _is_text(tensor: Any) -> bool:
    return type(tensor).__name__ == "TextTensor"


def _check_inputs(made: Function) -> None:
    """InputError naming a placeholder that is needed and not among the inputs."""
    known = set(made.inputs)
    for node in made.definition.nodes:
        if node.op is leaf.PLACEHOLDER and node not in known:
            raise InputError(
                f"{made.name}: the placeholder {node.attrs['key']!r} is needed but is not among the inputs; "
                f"add it to them{built_at(node)}"
            )


def _is_late(tensor: Any) -> bool:
    """Whether a tensor shows variables after the updates."""
    return bool(getattr(tensor, "_is_metric", False)) or hasattr(tensor, "_control_updates")


def _changes(updates: Sequence[Any], results: Sequence[Any]) -> dict[VariableCell, Node]:
    """The new value of each variable; the first of several counts."""
    changes: dict[VariableCell, Node] = {}
    pending = list(updates)
    for tensor in results:
        pending += getattr(tensor, "_control_updates", ())
    while pending:
        item = pending.pop(0)
        if isinstance(item, (list, tuple)) and not (len(item) == 2 and isinstance(item[0], Handle)):
            pending[:0] = item
            continue
        if isinstance(item, (list, tuple)):
            first, second = item
            if isinstance(first, Update) and isinstance(second, Update):
                pending[:0] = item
                continue
            item = assignment(first, second)
        if isinstance(item, Update):
            changes.setdefault(item.variable.cell, item.node)
        elif item is not None and not isinstance(item, Handle):
            raise TypeError(
                f"function: expected K.update(…) or (variable, new value) as an update, not {type(item).__name__}"
            )
    return changes


def _used_phases(graph: Graph) -> list[Node]:
    """The learning phases among the inputs of a graph that depends on them."""
    phases = phase_placeholders().intersection(graph.inputs)
    return list(phases.intersection(toposort(graph.roots))) if phases else []


def _in_test_phase(graph: Graph) -> Graph:
    """The graph with 0 for a learning phase that is not among its inputs."""
    phases = phase_placeholders().difference(graph.inputs)
    if phases:
        phases = phases.intersection(toposort(graph.roots))
    if not phases:
        return graph
    from graphkb.ir.graph import replace_nodes

    zero = leaf.constant(0, "int32")
    return graph.with_roots(replace_nodes(graph.roots, dict.fromkeys(phases, zero)))


def evaluate_node(node: Node) -> Array:
    """The value of a node that needs no placeholder but the learning phase, which is 0."""
    from graphkb.runtime.interpreter import evaluate

    phases = phase_placeholders()
    if phases:
        node = _in_test_phase(Graph((), (node,))).outputs[0]
    return evaluate([node])[0]


def eval(x: Any) -> Array:
    """The value of a tensor, computed once without compiling; an update is performed.

    Args:
        x: a tensor that needs no placeholder, an update, or anything that becomes a tensor.

    Returns:
        A new array of the tensor's dtype; 0-d for a scalar.

    Raises:
        InputError: a placeholder is needed; the text names it.

    >>> from graphkb import backend as K
    >>> K.eval(K.variable([1, 2]) + 1).tolist()
    [2.0, 3.0]
    """
    if isinstance(x, Tensor):
        changes = _changes([x], [x])
        if changes:
            from graphkb.runtime.interpreter import Program
            from graphkb.runtime.wiring import count_draws, show_updates

            graph = Graph((), (x.node,), tuple(changes.items()), "eval")
            graph = _in_test_phase(show_updates(graph, [_is_late(x)]))
            return Program(count_draws(graph)).run(())[0]
    return evaluate_node(as_node(x))


def print_tensor(x: Any, message: str = "") -> Tensor:
    """The same value, printed to the standard output whenever it is computed.

    Args:
        x: a tensor.
        message: what stands before the value.

    Returns:
        A tensor. Nothing is printed where the result is not needed.

    >>> from graphkb import backend as K
    >>> _ = K.eval(K.print_tensor(K.ones((1, 1)), "x is"))
    x is [[1.]]
    """
    return Tensor(print_(as_node(x), str(message)))


# ------------------------------------------------------------------------------------------------ gradients
def gradients(loss: Any, variables: Any) -> list[Tensor | None]:
    """The gradients of a loss.

    Args:
        loss: a float tensor, or a list of them; elements are summed.
        variables: a tensor or a list of tensors: variables, placeholders, or anything the loss was built from.

    Returns:
        A list with a tensor of the same shape and dtype for each of them, sparse where it is sparse; None for one on
        which the loss does not depend, or only through functions without a gradient.

    Raises:
        GradientError: an operation on the way has no gradient rule; the text names it.

    >>> from graphkb import backend as K
    >>> v = K.variable([1, 2])
    >>> K.eval(K.gradients(K.sum(K.square(v)), [v])[0]).tolist()
    [2.0, 4.0]
    """
    losses = loss if isinstance(loss, (list, tuple)) else [loss]
    wrt = variables if isinstance(variables, (list, tuple)) else [variables]
    for tensor in (*losses, *wrt):
        if not isinstance(tensor, Handle):
            raise TypeError(f"gradients: expected tensors, not {shown(tensor)}")
    sparse = [tensor if isinstance(tensor, SparseTensor) else None for tensor in wrt]
    nodes = [tensor.node if entries is None else entries.values for tensor, entries in zip(wrt, sparse)]
    found = reverse_mode.gradients([tensor.node for tensor in losses], nodes)
    return [
        None if node is None else Tensor(node) if entries is None else entries.with_values(node)
        for node, entries in zip(found, sparse)
    ]


def stop_gradient(variables: Any) -> Any:
    """The same values, through which no gradient flows.

    Args:
        variables: a tensor, or a list of tensors.

    Returns:
        A tensor, or a list of tensors.

    >>> from graphkb import backend as K
    >>> v = K.variable([1, 2])
    >>> K.eval(K.gradients(K.sum(v * K.stop_gradient(v)), [v])[0]).tolist()
    [1.0, 2.0]
    """
    if isinstance(variables, (list, tuple)):
        return [stop_gradient(v) for v in variables]
    return Tensor(elementwise.stop_gradient(as_node(variables)))


# --------------------------------------------------------------------------------------------------- scopes
@contextmanager
def name_scope(name: str) -> Iterator[str]:
    """A context in which tensors carry a name before their own, for dumps and errors.

    Args:
        name: the name of the scope; scopes nest.

    >>> from graphkb import backend as K
    >>> with K.name_scope("dense"):
    ...     K.variable(0, name="bias").name
    'dense/bias:0'
    """
    if not name:
        yield ""
        return
    with origin.name_scope(str(name).strip("/")) as scope:
        yield scope


@contextmanager
def control_dependencies(control_inputs: Any) -> Iterator[None]:
    """A context whose tensors show variables after updates, and whose evaluation performs these updates.

    It holds for the tensors themselves as outputs of a function or in `eval`, not for what is built from them later.

    Args:
        control_inputs: an update, a list of updates and other tensors (which need no ordering), or None.

    >>> from graphkb import backend as K
    >>> v = K.variable(1)
    >>> with K.control_dependencies([K.update_add(v, 1)]):
    ...     w = v * 10
    >>> K.eval(w).tolist(), K.get_value(v).tolist()
    (20.0, 2.0)
    """
    with open_controls(_updates_in(control_inputs)):
        yield


def _updates_in(value: Any) -> tuple[Update, ...]:
    if isinstance(value, Update):
        return (value,)
    if isinstance(value, (list, tuple)):
        return tuple([u for item in value for u in _updates_in(item)])
    return ()
