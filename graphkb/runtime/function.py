"""Functions: graphs that can be called; each set of input shapes is specialized, compiled and kept."""

from __future__ import annotations

import itertools
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from graphkb.ir.errors import GraphError, InputError, RecompileError, RecompileWarning
from graphkb.ir.graph import Graph, built_at
from graphkb.ir.leaves import Array, VariableCell
from graphkb.ir.node import Node
from graphkb.ir.serialize import flatten_graph, unflatten_graph
from graphkb.runtime.inputs import Parameters, Shapes
from graphkb.runtime.options import Options, resolve
from graphkb.runtime.plan import Plan, make_plan
from graphkb.runtime.report import Report
from graphkb.runtime.wiring import count_draws, feed, show_updates

if TYPE_CHECKING:
    from graphkb.dumps_folder import FolderDump
    from graphkb.passes.pipeline import Observer
    from graphkb.runtime.native_call import CallSpec, NativeEntry


class Specialization:
    """A function compiled for one set of input shapes.

    Attributes: `shapes` of the inputs; `bound`, the graph with all sizes known; `optimized`, what the passes made of
    it; `plan`, how it runs; `used`, a counter's value at its last use.
    """

    __slots__ = ("__weakref__", "bound", "optimized", "plan", "shapes", "spec", "used")

    def __init__(self, shapes: Shapes, bound: Graph, optimized: Graph, plan: Plan) -> None:
        self.shapes = shapes
        self.bound = bound
        self.optimized = optimized
        self.plan = plan
        self.spec: CallSpec | None = None
        self.used = 0


@dataclass(frozen=True)
class CacheInfo:
    """What a function keeps. Calls that stay native from end to end are counted nowhere: nothing slows them down.

    Attributes:
        specializations: how many are kept.
        hits: calls through Python that found theirs.
        misses: how often one was made.
        shapes: the input shapes of each that is kept, the latest made last.
        native: how many of them are called without Python.
    """

    specializations: int
    hits: int
    misses: int
    shapes: tuple[Shapes, ...]
    native: int


class _Core:
    """What a function consists of, apart from the callable: it never refers back, so nothing forms a cycle."""

    __slots__ = ("_clock", "_lock", "_pid", "cache", "graph", "hits", "misses", "options", "owner", "parameters")

    def __init__(self, graph: Graph, options: Options) -> None:
        self.graph = graph
        self.options = options
        self.parameters = Parameters(graph.inputs, graph.name)
        self.cache: dict[Shapes, Specialization] = {}
        self.hits = 0
        self.misses = 0
        self.owner: weakref.ref[Function] | None = None
        self._clock = itertools.count(1)
        self._lock = threading.RLock()
        self._pid = os.getpid()

    def call(self, inputs: Sequence[Any] = (), *more: Any) -> list[Array]:
        """Run on one list of inputs: everything is checked before anything is computed."""
        if more:
            raise TypeError(
                f"{self.graph.name}: expected one list of inputs, got {1 + len(more)} arguments: call it as f([x, …])"
            )
        arrays = self.parameters.convert(inputs)
        shapes = tuple([array.shape for array in arrays])
        found = self.cache.get(shapes)
        if found is None:
            found = self.specialize(shapes)
        else:
            self.hits += 1
        found.used = next(self._clock)
        return found.plan.run(arrays)

    def specialize(self, shapes: Shapes) -> Specialization:
        """The specialization for these shapes: made once, while calls with other shapes go on."""
        with self._compiling():
            found = self.cache.get(shapes)
            if found is not None:
                return found
            bindings = self.parameters.bind(shapes)
            if self.misses:
                self._tell(shapes)
            try:
                bound = self.graph.bind(bindings)
                _check_shapes(bound)
                folder = _start_dump(bound, self.options)
                optimized = optimize_bound(bound, self.options, folder.observe if folder is not None else None)
                plan = make_plan(optimized, self.options)
            except ValueError as error:
                raise _located(error, f"\n  called with {self.parameters.describe(shapes)}") from error
            made = Specialization(shapes, bound, optimized, plan)
            made.used = next(self._clock)
            if folder is not None:
                folder.finish(made)
            self.misses += 1
            self._make_room()
            self._enter(made)
            self.cache[shapes] = made
            return made

    def latest(self) -> Specialization | None:
        """The specialization used last through Python."""
        return max(list(self.cache.values()), key=lambda one: one.used, default=None)

    def _compiling(self) -> AbstractContextManager[bool]:
        """The lock of this process: the one that another thread held while the process forked is never released."""
        if self._pid != os.getpid():
            self._lock, self._pid = threading.RLock(), os.getpid()
        return self._lock

    def _enter(self, made: Specialization) -> None:
        """Let calls that agree with a native specialization skip Python from now on."""
        function = self.owner() if self.owner is not None else None
        made.spec = made.plan.entry_spec()
        if function is not None and made.spec is not None:
            function._enter(made.spec, self.call)

    def _make_room(self) -> None:
        while len(self.cache) >= self.options.cache_size:
            oldest = min(self.cache.values(), key=lambda one: one.used)
            del self.cache[oldest.shapes]
            function = self.owner() if self.owner is not None else None
            if function is not None and oldest.spec is not None:
                function._leave(oldest.spec)

    def _tell(self, shapes: Shapes) -> None:
        latest = self.latest()
        before = f", last for {self.parameters.describe(latest.shapes)}" if latest is not None else ""
        text = (
            f"{self.graph.name}: compiled again, for {self.parameters.describe(shapes)}; "
            f"it was compiled {self.misses} time{'s' if self.misses > 1 else ''} before{before}"
        )
        if self.options.on_recompile == "error":
            raise RecompileError(f'{text}: pad the inputs to one shape, or set options(on_recompile="silent")')
        if self.options.on_recompile == "warn":
            warnings.warn(text, RecompileWarning, stacklevel=4)
        elif "logging" in sys.modules:  # who has not imported it looks at no log
            sys.modules["logging"].getLogger("graphkb").info(text)


class Function:
    """A compiled program: `f([x, y])` returns the list of its outputs and applies its updates.

    Inputs are arrays, numbers, nested lists or symbolic values, in the order of the graph's inputs; `as_array` in
    graphkb.runtime.inputs tells what goes into which dtype. Count, dtype, rank and shape are checked before anything is
    computed, so a call that fails leaves every variable as it was. The graph is specialized for each set of
    input shapes when it first meets them. Updates are computed from the old values and applied together; other
    threads see all of them or none. Functions may be called from several threads at once, pickled (with variables
    that are in the same pickle they stay connected), copied and weakly referenced.

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
        self._core = _Core(graph, resolve(options))
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
            latest = self._core.latest()
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
        return self.specialize(shapes).plan.report()

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
        kept = list(self._core.cache.values())
        native = sum(one.spec is not None for one in kept) if self._entry is not None else 0
        return CacheInfo(len(kept), self._core.hits, self._core.misses, tuple([one.shapes for one in kept]), native)

    def __repr__(self) -> str:
        inputs = ", ".join(f"{name}: {node.type!r}" for name, node in zip(self._core.parameters.names, self.inputs))
        outputs = ", ".join(repr(node.type) for node in self.outputs)
        updates = f", updates {', '.join(cell.name for cell, _ in self.updates)}" if self.updates else ""
        return f"<Function {self.name}: ({inputs}) -> ({outputs}){updates}>"

    def _repr_svg_(self) -> str | None:
        from graphkb.ir.export import repr_svg

        return repr_svg(self.graph("optimized" if self._core.cache else "raw"))

    def __reduce__(self) -> tuple[Any, ...]:
        return _restore, (flatten_graph(self._core.graph),)

    def _enter(self, spec: CallSpec, slow: Callable[..., list[Array]]) -> None:
        from graphkb.runtime.native_call import NativeEntry, available

        if self._entry is None and available()[0]:
            self._entry = NativeEntry(slow)
        if self._entry is not None and self._entry.add(spec):
            self.__call__ = self._entry.callable

    def _leave(self, spec: CallSpec) -> None:
        if self._entry is not None:
            self._entry.discard(spec)


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


def _check_shapes(bound: Graph) -> None:
    for cell, value in bound.updates:
        if value.shape != cell.type.shape:
            raise GraphError(
                f"{bound.name}: the update of {cell!r} has the shape {value.shape}, the variable has "
                f"{cell.type.shape}{built_at(value)}"
            )


def optimize_bound(graph: Graph, options: Options, observer: Observer | None = None) -> Graph:
    """The graph after all passes, checked after each of them where the options say so."""
    from graphkb.passes.pipeline import VerifyEach, graph_passes, observe, optimize

    observers = [VerifyEach()] if options.debug else []
    watch = observe(*observers, *([observer] if observer is not None else []))
    return optimize(graph, graph_passes(options.fastmath), watch)


def _start_dump(graph: Graph, options: Options) -> FolderDump | None:
    if options.dump is None:
        return None
    from graphkb.dumps_folder import FolderDump

    return FolderDump(options.dump, graph)


def _located(error: ValueError, place: str) -> ValueError:
    try:
        return type(error)(str(error) + place)
    except TypeError:
        error.add_note(place.strip())
        return error
