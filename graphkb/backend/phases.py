"""Functions that take the learning phase: compiled for training and for testing, each without the other's work.

Keras hands the phase in as the number 1 or 0 with every batch. Binding it before the passes run removes dropout and
half of every batch normalization, and what is left takes arrays only, which a call needs no Python for.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from graphkb.ir.graph import Graph, replace_nodes
from graphkb.ir.node import Node
from graphkb.ir.serialize import flatten_graph, unflatten_graph
from graphkb.ops import leaf
from graphkb.runtime.function import Function
from graphkb.runtime.specializations import CacheInfo, Specialization

if TYPE_CHECKING:
    from graphkb.runtime.profile import Profile

_NUMBERS = (float, int, bool)


class PhaseFunction(Function):
    """A function with the learning phase among its inputs.

    It behaves as any function does. A phase that is the Python number 0 or 1 is bound; any other value, such as an
    array, goes into the general form, which decides when it runs. Reports and dumps show the form that was called last.
    """

    def __init__(
        self, graph: Graph, phase: Node, single: bool, options: Any = None, after_updates: Sequence[bool] = ()
    ) -> None:
        super().__init__(graph, options=options, after_updates=after_updates)
        self._single = single
        self._source = graph
        self._after_updates = tuple(after_updates)
        self._position = graph.inputs.index(phase)
        self._bound: dict[int, Function] = {}
        self._last: Function | None = None

    def __call__(self, inputs: Any = ()) -> Any:
        chosen, rest = self._choose(inputs)
        results = self.__dict__["__call__"](rest) if chosen is None else chosen.__call__(rest)
        return results[0] if self._single else results

    def _choose(self, inputs: Any) -> tuple[Function | None, Any]:
        """The form for the phase among the inputs, with what it takes; None and all inputs for the general form."""
        position = self._position
        self._last = None
        if type(inputs) is list and len(inputs) == len(self.inputs):
            phase = inputs[position]
            if type(phase) in _NUMBERS and (phase == 0 or phase == 1):
                chosen = self._last = self._bound.get(phase) or self._bind(int(phase))
                return chosen, [*inputs[:position], *inputs[position + 1 :]]
        return None, inputs

    def _bind(self, phase: int) -> Function:
        """The form for a phase, which is no input of it."""
        graph, node = self._source, self._source.inputs[self._position]
        bound = graph.with_roots(replace_nodes(graph.roots, {node: leaf.constant(phase, "int32")}))
        rest = tuple([n for n in graph.inputs if n is not node])
        bound = Graph(rest, bound.outputs, bound.updates, bound.name)
        return self._bound.setdefault(phase, Function(bound, options=self.options, after_updates=self._after_updates))

    def specialize(self, shapes: Sequence[Sequence[int]] | None = None) -> Specialization:
        """As `Function.specialize`, in the form that was called last."""
        if self._last is None:
            return super().specialize(shapes)
        rest = None if shapes is None else [s for i, s in enumerate(shapes) if i != self._position]
        return self._last.specialize(rest)

    def profile(self, inputs: Sequence[Any] = ()) -> Profile:
        """As `Function.profile`, in the form that a call with these inputs takes."""
        chosen, rest = self._choose(inputs)
        return super().profile(rest) if chosen is None else chosen.profile(rest)

    def cache_info(self) -> CacheInfo:
        """As `Function.cache_info`, over all forms; shapes leave out the phase, but for those of the general form."""
        infos = [super().cache_info(), *[function.cache_info() for function in self._bound.values()]]
        return CacheInfo(
            sum(info.specializations for info in infos),
            sum(info.hits for info in infos),
            sum(info.misses for info in infos),
            tuple([shapes for info in infos for shapes in info.shapes]),
            sum(info.native for info in infos),
            sum(info.dynamic for info in infos),
        )

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (flatten_graph(self._source), self._position, self._single, self._after_updates)


def _restore(form: tuple[Any, ...], position: int, single: bool, after_updates: tuple[bool, ...]) -> PhaseFunction:
    graph = unflatten_graph(form)
    return PhaseFunction(graph, graph.inputs[position], single, after_updates=after_updates)
