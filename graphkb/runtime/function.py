"""Functions: graphs that can be called; each set of input shapes is specialized, compiled and kept."""

from __future__ import annotations

import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from graphkb.ir.errors import GraphError, InputError
from graphkb.ir.graph import Graph
from graphkb.ir.leaves import Array, VariableCell
from graphkb.ir.node import Node
from graphkb.ir.serialize import flatten_graph, unflatten_graph
from graphkb.runtime.direct_call import DirectCall
from graphkb.runtime.options import Options, resolve
from graphkb.runtime.report import Report
from graphkb.runtime.specializations import CacheInfo, Specialization, Specializations
from graphkb.runtime.wiring import count_draws, feed, show_updates

if TYPE_CHECKING:
    from graphkb.runtime.call_spec import CallSpec
    from graphkb.runtime.native_call import NativeEntry
    from graphkb.runtime.profile import Profile


class Function(DirectCall):
    """A compiled program: `f([x, y])` returns the list of its outputs and applies its updates.

    Inputs are arrays, numbers, nested lists or symbolic values, in the order of the graph's inputs; `as_array` in
    graphkb.runtime.inputs tells what goes into which dtype. Count, dtype, rank and shape are checked before anything
    is computed, so a call that fails leaves every variable as it was. The graph is specialized for each set of input
    shapes when it first meets them; sizes that keep changing are left open after some values. Updates are computed
    from the old values and applied together; other threads see all of them or none. Functions may be called from
    several threads at once, pickled (with variables that are in the same pickle they stay connected), copied and
    weakly referenced.

    Args:
        graph: what to compute. Inputs that are not placeholders are replaced by ones: their values are handed in.
        name: for errors, dumps and reports; by default the graph's.
        options: all options, or some of them over those in force, which are the default.
        after_updates: for each output whether it shows updated variables with their new values.

    Raises:
        GraphError: an input stands twice in the list, a variable is updated twice, or an update does not fit.
    """

    __slots__ = ("__call__", "__weakref__", "_core", "_entry")

    __call__: Callable[..., list[Array]]

    def __init__(
        self,
        graph: Graph,
        name: str | None = None,
        options: Options | Mapping[str, Any] | None = None,
        after_updates: Sequence[bool] = (),
    ) -> None:
        if len(set(graph.inputs)) != len(graph.inputs):
            raise GraphError(f"{name or graph.name}: a placeholder stands twice among the inputs")
        graph = show_updates(graph, after_updates)
        graph = count_draws(feed(graph))
        if name is not None and name != graph.name:
            graph = replace(graph, name=name)
        _check_updates(graph)
        self._core = Specializations(graph, resolve(options))
        self._core.owner = weakref.ref(self)
        self._entry: NativeEntry | None = None
        self.__call__ = self._core.call

    @property
    def name(self) -> str:
        """The function's name."""
        return self._core.graph.name

    @property
    def inputs(self) -> tuple[Node, ...]:
        """The placeholders, in the order of the inputs."""
        return self._core.graph.inputs

    @property
    def outputs(self) -> tuple[Node, ...]:
        """The nodes whose values a call returns."""
        return self._core.graph.outputs

    @property
    def updates(self) -> tuple[tuple[VariableCell, Node], ...]:
        """The variables that a call changes, with their new values."""
        return self._core.graph.updates

    @property
    def definition(self) -> Graph:
        """The graph as it was built, before any specialization."""
        return self._core.graph

    @property
    def options(self) -> Options:
        """The options that the function was made with."""
        return self._core.options

    def specialize(self, shapes: Sequence[Sequence[int]] | None = None) -> Specialization:
        """Compile for input shapes without a call; what exists is returned.

        Args:
            shapes: one for each input; None takes those of the latest call, or the placeholders' where all are known.

        Raises:
            InputError: a shape does not fit, or None was given and nothing tells the shapes.
        """
        if shapes is None:
            latest = self._core.latest
            if latest is not None:
                return latest
            if not all(node.type.is_static for node in self.inputs):
                raise InputError(
                    f"{self.name}: it has not been called, so the shapes of its inputs are not known: "
                    "call it first, or tell them, as in specialize([(32, 64)])"
                )
            shapes = [node.shape for node in self.inputs]
        if len(shapes) != len(self.inputs):
            raise InputError(f"{self.name}: expected {len(self.inputs)} shapes, got {len(shapes)}")
        return self._core.specialize(tuple([tuple([int(size) for size in shape]) for shape in shapes]))

    def report(self, shapes: Sequence[Sequence[int]] | None = None) -> Report:
        """Which steps are native, which interpreted and why, with the user's lines and estimated costs.

        Args:
            shapes: as `specialize` takes them.

        Raises:
            InputError: as `specialize` raises it.
        """
        report = self.specialize(shapes).plan.report()
        notes = [note for note in (report.note, self._core.refusals) if note]
        return replace(report, note="; ".join(notes))

    def profile(self, inputs: Sequence[Any] = ()) -> Profile:
        """Where the time of a call goes: each kernel with its rates, its share of the machine's peak and its lines.

        The function runs some hundred times, or for a fifth of a second; variables have their old values afterwards.
        Other threads may see the updates meanwhile.

        Args:
            inputs: as a call takes them.

        Raises:
            InputError: as a call raises it.
        """
        from graphkb.runtime.profile import profile_plan

        made, arrays = self._core.prepare(inputs)
        return profile_plan(made.plan, arrays, self.options)

    def dump(
        self,
        stage: str = "optimized",
        format: str = "text",
        file: Any = None,
        shapes: Sequence[Sequence[int]] | Mapping[str, Sequence[int]] | None = None,
    ) -> str:
        """The program at a stage of its compilation, as text; also written to `file` if there is one.

        Args:
            stage: "raw", the name of a pass, "optimized", "loops", "llvm" or "asm".
            format: "text"; "dot", "json" or "svg" for the stages that are graphs; "html" for a page of all stages.
            file: a path or an open text file.
            shapes: one for each input, or some by name; by default those of the latest call.

        Raises:
            ValueError: there is no such stage or format, or the stage needs sizes that are not known.
        """
        from graphkb.dumps import dump

        return dump(self, stage, format, file, shapes)

    def graph(
        self, stage: str = "optimized", shapes: Sequence[Sequence[int]] | Mapping[str, Sequence[int]] | None = None
    ) -> Graph:
        """The graph at a stage of the compilation before the loops.

        Args:
            shapes: as `dump` takes them.

        Raises:
            ValueError: there is no such stage.
        """
        from graphkb.dumps import stage_graph

        return stage_graph(self, stage, shapes)

    def cache_info(self) -> CacheInfo:
        """How many specializations there are, and how calls fared."""
        return self._core.info()

    def __repr__(self) -> str:
        inputs = ", ".join(f"{name}: {node.type!r}" for name, node in zip(self._core.parameters.names, self.inputs))
        outputs = ", ".join(repr(node.type) for node in self.outputs)
        updates = f", updates {', '.join(cell.name for cell, _ in self.updates)}" if self.updates else ""
        return f"<Function {self.name}: ({inputs}) -> ({outputs}){updates}>"

    def _repr_svg_(self) -> str | None:
        from graphkb.ir.export import repr_svg

        return repr_svg(self.graph("optimized" if self._core.kept else "raw"))

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (flatten_graph(self._core.graph),)

    def _enter(self, spec: CallSpec, slow: Callable[..., list[Array]]) -> None:
        from graphkb.runtime.native_call import NativeEntry, available

        if self._entry is None and available()[0]:
            self._entry = NativeEntry(slow)
        if self._entry is not None and self._entry.add(spec):
            self.__call__ = self._entry.callable
            self._entry.serve(self)

    def _leave(self, spec: CallSpec) -> None:
        if self._entry is not None:
            self._entry.discard(spec)

    def _calls(self, spec: CallSpec) -> int:
        return self._entry.calls(spec) if self._entry is not None else 0


def _restore(form: tuple[Any, ...]) -> Function:
    """The function of a pickle: it takes the options in force where it is loaded."""
    return Function(unflatten_graph(form))


def _check_updates(graph: Graph) -> None:
    seen = set()
    for cell, value in graph.updates:
        if cell in seen:
            raise GraphError(f"{graph.name}: {cell!r} has two updates: each variable may be updated once")
        seen.add(cell)
        if value.dtype != cell.type.dtype or value.ndim != len(cell.type.shape):
            raise GraphError(f"{graph.name}: the update of {cell!r} has the type {value.type!r}, not {cell.type!r}")
