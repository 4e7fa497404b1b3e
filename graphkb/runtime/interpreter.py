"""The interpreter: a graph of known sizes as a list of steps, each of them the NumPy meaning of one op."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from functools import partial
from itertools import repeat
from operator import setitem
from typing import Any, NamedTuple

import numpy as np

from graphkb.codegen.lock import Lock
from graphkb.ir.errors import GraphError, InputError, ShapeError
from graphkb.ir.graph import Graph, built_at
from graphkb.ir.leaves import Array, PlaceholderKey, VariableCell
from graphkb.ir.node import Node, make
from graphkb.ir.text import format_node, number
from graphkb.ir.types import NUMPY_DTYPE, parts
from graphkb.ops.control import COND, SCAN, run_scan
from graphkb.ops.control import Step as Run
from graphkb.ops.leaf import CONSTANT, PLACEHOLDER, SIZE, VARIABLE
from graphkb.ops.values import TRIM, trimmed
from graphkb.runtime.state_lock import state_lock
from graphkb.runtime.wiring import count_draws

_SLACK = 64
_PRESET = (CONSTANT, VARIABLE, SIZE)  # leaves whose arrays are known before the program runs


class Step(NamedTuple):
    """One op: `values[out] = call(*[values[i] for i in args])`, after which the values in `dead` are not needed."""

    call: Callable[..., Any]
    args: tuple[int, ...]
    out: int
    dead: tuple[int, ...]
    dtype: np.dtype[Any] | None  # None for a tuple
    shape: tuple[int, ...]


class Program:
    """A graph ready to run, with every value in a numbered slot. It is immutable: threads may run it at once.

    Fused nodes are run as the steps of their bodies. Whoever runs it holds `state_lock` as `reads` and `writes`
    demand.

    Args:
        graph: a graph whose sizes are all known.

    Raises:
        GraphError: a node has no NumPy meaning, or an update does not fit its variable.
        InputError: a placeholder is needed that is not among the graph's inputs, or a size is not known.
    """

    def __init__(self, graph: Graph) -> None:
        self.graph = graph
        self._where: list[tuple[Graph, Node]] = []
        builder = _Builder()
        slots = builder.add_graph(graph, None)
        self._inputs = tuple([slots[node] for node in graph.inputs])
        self._roots = tuple([slots[node] for node in graph.roots])
        self._template = builder.template
        self._where = builder.where
        self._steps = builder.finish(self._roots)
        self._preset_owners = {id(_owner(value)) for value in builder.template if value is not None}
        self.reads = builder.reads
        """Whether the values of variables are read."""
        self.writes = bool(graph.updates)
        """Whether the graph has updates."""
        written = {cell for cell, _ in graph.updates}
        self._written_owners = {id(_owner(cell.array)) for cell in written}
        if len(written) != len(graph.updates):
            raise GraphError("a variable has two updates in one function: each may be updated once")
        for cell, value in graph.updates:
            if value.shape != cell.type.shape or value.dtype != cell.type.dtype:
                raise GraphError(
                    f"the update of {cell!r} has the type {value.type!r}, the variable has {cell.type!r}"
                    + built_at(value)
                )

    def run(self, inputs: Sequence[Array]) -> list[Array]:
        """The outputs; then the updates are written, from values that were all computed before.

        Args:
            inputs: one array of the exact dtype and shape for each input of the graph.

        Returns:
            Arrays that are the caller's own: C-contiguous, writeable, of the exact dtype and shape, sharing memory
            with nothing.

        Raises:
            Exception: of the type that an op raised; the text says what was executed, and which line built it.
        """
        if not (self.reads or self.writes):
            return self._run(inputs)
        # Two updates of one variable in two threads must not both start from the same old value.
        return state_lock.run(Lock.EXCLUSIVE if self.writes else Lock.SHARED, self._run, inputs)

    def _run(self, inputs: Sequence[Array]) -> list[Array]:
        values = self.compute(inputs)
        count = len(self.graph.outputs)
        foreign = self._preset_owners.union([id(_owner(array)) for array in inputs])
        outputs = []
        for node, array in zip(self.graph.outputs, values):
            array = owned(leaving(node, array), foreign)
            foreign.add(id(_owner(array)))
            outputs.append(array)
        new = [owned(array, self._written_owners) for array in values[count:]]
        write([cell for cell, _ in self.graph.updates], new)
        return outputs

    def compute(self, inputs: Sequence[Array]) -> list[Array]:
        """The values of the graph's roots, some of them perhaps views of inputs, variables or one another."""
        with np.errstate(all="ignore"):
            return self.step(inputs)

    def step(self, inputs: Sequence[Array]) -> list[Array]:
        """The same within a computation, which has set NumPy's handling of floating-point errors."""
        values = self._template.copy()
        for slot, array in zip(self._inputs, inputs):
            values[slot] = array
        step = None
        try:
            for step in self._steps:
                call, args, out, dead, dtype, shape = step
                result = call(*[values[i] for i in args])
                if type(result) is not np.ndarray or result.dtype is not dtype or result.shape != shape:
                    result = _conformed(result, dtype, shape)
                values[out] = result
                for i in dead:
                    values[i] = None
        except Exception as error:
            if step is None:
                raise
            raise_located(error, *self._where[step.out])
        return [values[slot] for slot in self._roots]  # type: ignore[misc]  # roots are never freed


def _conformed(result: Any, dtype: np.dtype[Any] | None, shape: tuple[int, ...]) -> Any:
    """A result in its node's dtype, where NumPy gives scalars or wider types; tuples as they are."""
    if dtype is None:
        return result
    array = np.asarray(result, dtype)
    if array.shape != shape:
        raise GraphError(f"the result has the shape {array.shape}, it should be {shape}")
    return array


class _Builder:
    """Gives every node a slot and collects the steps of a graph and of the bodies inside it."""

    def __init__(self) -> None:
        self.template: list[Array | None] = []
        self.where: list[tuple[Graph, Node]] = []
        self.steps: list[tuple[Node, tuple[int, ...], int]] = []
        self.reads = False

    def add_graph(self, graph: Graph, given: Mapping[Node, int] | None) -> dict[Node, int]:
        """The slots of all nodes; `given` are those of a body's inputs. Nests as deep as bodies do."""
        slots = dict(given or {})
        results: dict[Node, list[int]] = {}  # of fused nodes
        inputs = set(graph.inputs)
        for node in graph.nodes:
            if node in slots:
                continue
            if node.op is PLACEHOLDER:
                if given is not None or node not in inputs:
                    raise InputError(
                        f"the value of the placeholder {node.attrs['key']!r} is needed: "
                        f"pass it as an input of a function{built_at(node)}"
                    )
            elif node.op.name == "fused":
                body: Graph = node.attrs["body"]
                inner = self.add_graph(body, dict(zip(body.inputs, [slots[i] for i in node.inputs])))
                results[node] = [inner[o] for o in body.outputs]
                if len(body.outputs) == 1:
                    slots[node] = results[node][0]
                continue
            elif node.op.name == "item" and node.inputs[0] in results:
                slots[node] = results[node.inputs[0]][node.attrs["index"]]
                continue
            slots[node] = self._add(graph, node, slots)
        return slots

    def _add(self, graph: Graph, node: Node, slots: Mapping[Node, int]) -> int:
        slot = len(self.template)
        self.where.append((graph, node))
        if not node.type.is_static or (node.op is SIZE and not isinstance(node.attrs["dim"], int)):
            raise InputError(
                f"{node!r} depends on sizes that only the inputs of a function tell: "
                f"make them inputs of a function{built_at(node)}"
            )
        if any(isinstance(size, int) and size < 0 for part in parts(node.type) for size in part.shape):
            raise ShapeError(f"{node!r} can not run: a size is negative{built_at(node)}")
        numpy = node.op.numpy
        if node.op in _PRESET:
            assert numpy is not None
            self.template.append(numpy(**node.attrs))
            self.reads |= node.op is VARIABLE
            return slot
        self.template.append(None)
        if node.op is not PLACEHOLDER:
            if numpy is None:
                raise GraphError(f"{node!r} can not run: {node.op.name} has no NumPy meaning{built_at(node)}")
            self.steps.append((node, tuple([slots[i] for i in node.inputs]), slot))
        return slot

    def finish(self, roots: Collection[int]) -> list[Step]:
        """The steps that the roots need, each with the values that it is the last to read."""
        needed = bytearray(len(self.template))
        for slot in roots:
            needed[slot] = 1
        kept = []
        for entry in reversed(self.steps):
            if needed[entry[2]]:
                kept.append(entry)
                for slot in entry[1]:
                    needed[slot] = 1
        # Presets and roots stay; of all others the last reader, which comes first in this order, frees them.
        live = bytearray(len(self.template))
        for slot in roots:
            live[slot] = 1
        steps = []
        for node, args, out in kept:
            dead = []
            for slot in args:
                if not live[slot]:
                    live[slot] = 1
                    if self.template[slot] is None:
                        dead.append(slot)
            steps.append(Step(_call(node), args, out, tuple(dead), NUMPY_DTYPE.get(node.dtype), node.shape))
        steps.reverse()
        return steps


def _call(node: Node) -> Callable[..., Any]:
    """What computes a node from the values of its inputs; bodies are made ready to run here, once."""
    numpy: Callable[..., Any] | None = node.op.numpy
    assert numpy is not None
    if node.op is SCAN or node.op is COND:
        return control_step(node, lambda body: Program(body).step)
    return partial(numpy, **node.attrs) if node.attrs else numpy


def control_step(node: Node, ready: Callable[[Graph], Run]) -> Callable[..., tuple[Array, ...]]:
    """A loop or a branch as a function of the values of its operands.

    Args:
        ready: makes a body ready to run.
    """
    if node.op is SCAN:
        attrs = dict(node.attrs)
        body = attrs.pop("body")
        step = ready(body)
        return lambda *arrays: run_scan(step, arrays, body, **attrs)
    then, other = [ready(node.attrs[name]) for name in ("then", "other")]
    return lambda test, *arrays: tuple((then if test else other)(arrays))


def evaluate(nodes: Sequence[Node]) -> list[Array]:
    """The values of nodes that need no placeholder, computed once: nothing is optimized, compiled or kept.

    Args:
        nodes: any nodes.

    Returns:
        One array for each, of the node's dtype and shape, the caller's own.

    Raises:
        InputError: a placeholder is needed; the text names it.
        Exception: of the type that an op raised.
    """
    return Program(count_draws(Graph((), tuple(nodes), (), "eval"))).run(())


def meaning(node: Node) -> Callable[..., Array]:
    """The NumPy meaning of one node of known sizes, as a function of the arrays of its inputs.

    The result has the node's exact dtype and shape; it may be a view of an input.
    """
    keys = tuple([PlaceholderKey(f"in{i}") for i in range(len(node.inputs))])
    parameters = tuple(
        [
            make(PLACEHOLDER, (), {"key": key, "dtype": i.dtype, "shape": i.shape}, i.type, i.origin)
            for key, i in zip(keys, node.inputs)
        ]
    )
    program = Program(Graph(parameters, (make(node.op, parameters, node.attrs, node.type, node.origin),)))
    return lambda *arrays: program.compute(arrays)[0]


def write(cells: Iterable[VariableCell], new: Iterable[Array]) -> None:
    """Give variables their new values, which share no memory with them; the caller holds `state_lock`.

    No Python code runs in between, so that not even an interrupt from the keyboard leaves half of them written.
    """
    cells = tuple(cells)
    for cell in cells:
        cell.count_version()
    deque(map(setitem, [cell.array for cell in cells], repeat(...), new), maxlen=0)  # type: ignore[arg-type]


def leaving(output: Node, array: Array) -> Array:
    """An output as the caller gets it: without the padding that only sizes known before the call demand."""
    return trimmed(array) if output.op is TRIM else array


def owned(array: Array, foreign: Collection[int]) -> Array:
    """The array itself if its memory is its own, C-contiguous and not among the owners `foreign`; else a copy.

    Args:
        foreign: `id`s of the arrays that own memory which must not be shared.
    """
    owner = _owner(array)
    mine = owner.base is None and id(owner) not in foreign and owner.flags.owndata
    # A view into a larger array would keep all of that alive; what aligns an array is no such thing.
    if mine and array.flags.carray and owner.nbytes <= array.nbytes + _SLACK:
        return array
    return np.array(array, order="C", copy=True, subok=False)


def _owner(array: Array) -> Array:
    """The array that owns the memory, as far as it can be followed."""
    while isinstance(array.base, np.ndarray):
        array = array.base
    return array


def raise_located(error: Exception, graph: Graph, node: Node) -> None:
    """Raise the error anew, its text followed by the node that was executed and the user's line that built it."""
    place = f"\n  while executing {format_node(node, number(graph))}{built_at(node)}"
    if "\n  while executing " in str(error):
        raise error
    message = str(error.args[0]) if len(error.args) == 1 else str(error)
    kind = _plain_type(type(error))
    try:
        located = kind(message + place)
    except TypeError:
        error.add_note(place.lstrip("\n"))
        raise error from None
    raise located from error


def _plain_type(kind: type[Exception]) -> type[Exception]:
    """The nearest type that is made from one text: NumPy's own error types take other arguments."""
    return next(k for k in kind.__mro__ if k.__module__ == "builtins" or k.__module__.startswith("graphkb."))
