"""Specializations: what a function keeps of its compilations, and which of them serves which input shapes."""

from __future__ import annotations

import itertools
import os
import sys
import threading
import warnings
import weakref
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from functools import partial
from typing import TYPE_CHECKING, Any

from graphkb.ir.dims import Symbol
from graphkb.ir.errors import GraphError, OpenSizeError, RecompileError, RecompileWarning
from graphkb.ir.graph import Graph, built_at
from graphkb.ir.leaves import Array
from graphkb.ir.record import record
from graphkb.runtime.dynamic import OpenProgram, OpenShapes, SizeHistory, open_program
from graphkb.runtime.inputs import Parameters, Shapes
from graphkb.runtime.options import Options
from graphkb.runtime.plan import Plan, make_plan, obstacle
from graphkb.runtime.progress import Progress, tell

if TYPE_CHECKING:
    from graphkb.dumps_folder import FolderDump
    from graphkb.passes.pipeline import Observer
    from graphkb.runtime.call_spec import CallSpec
    from graphkb.runtime.function import Function


class Specialization:
    """A function compiled for one set of input shapes, or for all that differ in sizes that are open.

    Attributes: `shapes` of the inputs, None for open sizes; `plan`, how it runs; `opened`, what must hold of open
    sizes; `used`, a counter's value at its last use that was noticed; `calls`, how many native ones had been counted by
    then.
    """

    __slots__ = ("__weakref__", "_bind", "calls", "opened", "plan", "shapes", "spec", "used")

    def __init__(
        self, shapes: OpenShapes, bind: Callable[[], Graph], plan: Plan, opened: OpenProgram | None = None
    ) -> None:
        self.shapes = shapes
        self.plan = plan
        self._bind = bind
        self.opened = opened
        self.spec: CallSpec | None = None
        self.used = 0
        self.calls = 0

    @property
    def bound(self) -> Graph:
        """The graph with all sizes known that are not open."""
        return self._bind()


@record
class CacheInfo:
    """What a function keeps, and how its calls fared.

    Attributes:
        specializations: how many are kept.
        hits: calls that found theirs.
        misses: how often one was made.
        shapes: the input shapes of each that is kept, None for sizes that are open; those come last.
        native: how many of them are called without Python.
        dynamic: how many of them have open sizes.
    """

    specializations: int
    hits: int
    misses: int
    shapes: tuple[OpenShapes, ...]
    native: int
    dynamic: int


class Specializations:
    """All that a function has compiled, at most as many as its options allow: the one longest unused goes first.

    Sizes are known in a specialization at first. Those that keep changing are open in one that is made for the call
    that shows it; it serves what no other one does from then on.

    Attributes: `parameters`, which bind the sizes; `hits`, calls through Python that found their specialization;
    `misses`, how often one was made; `owner`, the function.
    """

    __slots__ = (
        "_clock", "_dynamic", "_exact", "_history", "_lock", "_pid", "graph", "hits", "misses", "options", "owner",
        "parameters",
    )  # fmt: skip

    def __init__(self, graph: Graph, options: Options) -> None:
        self.graph = graph
        self.options = options
        self.parameters = Parameters(graph.inputs, graph.name)
        self.hits = 0
        self.misses = 0
        self.owner: weakref.ref[Function] | None = None  # nothing forms a cycle
        self._exact: dict[Shapes, Specialization] = {}
        self._dynamic: tuple[Specialization, ...] = ()
        self._history = SizeHistory(0 if obstacle(options) else options.dynamic_after)
        self._clock = itertools.count(1)
        self._lock = threading.RLock()
        self._pid = os.getpid()

    def call(self, inputs: Sequence[Any] = (), *more: Any) -> list[Array]:
        """Run on one list of inputs: everything is checked before anything is computed."""
        if more:
            raise TypeError(
                f"{self.graph.name}: expected one list of inputs, got {1 + len(more)} arguments: call it as f([x, …])"
            )
        found, arrays = self.prepare(inputs)
        if found.opened is not None:
            self._widen(found, arrays)
        return found.plan.run(arrays)

    def prepare(self, inputs: Sequence[Any]) -> tuple[Specialization, list[Array]]:
        """The specialization that serves a list of inputs, and the inputs as arrays."""
        arrays = self.parameters.convert(inputs)
        shapes = tuple([array.shape for array in arrays])
        found = self.find(shapes)
        if found is None:
            found = self.specialize(shapes, exact=False)
        else:
            self.hits += 1
        found.used = next(self._clock)
        return found, arrays

    @property
    def kept(self) -> tuple[Specialization, ...]:
        """All specializations, those with open sizes last."""
        return (*list(self._exact.values()), *self._dynamic)

    @property
    def latest(self) -> Specialization | None:
        """The specialization used last through Python."""
        return max(self.kept, key=lambda one: one.used, default=None)

    @property
    def refusals(self) -> str:
        """Why sizes that keep changing are not open."""
        reasons: dict[str, list[str]] = {}
        for symbol, reason in self._history.refused.items():
            reasons.setdefault(reason, []).append(symbol.name)
        return "; ".join(
            [f"code for any {', '.join(sorted(n))} is not made: {reason}" for reason, n in reasons.items()]
        )

    def info(self) -> CacheInfo:
        """What `Function.cache_info` tells."""
        self._notice()
        kept = self.kept
        native = sum(one.spec is not None for one in kept)
        hits = self.hits + sum(one.calls for one in kept)
        return CacheInfo(len(kept), hits, self.misses, tuple([one.shapes for one in kept]), native, len(self._dynamic))

    def find(self, shapes: Shapes) -> Specialization | None:
        """The specialization that serves these shapes: one for them alone before one with open sizes."""
        found = self._exact.get(shapes)
        if found is not None or not self._dynamic:
            return found
        return next((one for one in self._dynamic if one.opened and one.opened.sizes(shapes) is not None), None)

    def specialize(self, shapes: Shapes, exact: bool = True) -> Specialization:
        """The specialization for these shapes: made once, while calls with other shapes go on.

        Args:
            exact: whether it must be for these shapes alone; else sizes that keep changing may be open.
        """
        with self._compiling():
            found = self._exact.get(shapes) if exact else self.find(shapes)
            if found is not None:
                return found
            sizes = self.parameters.bind(shapes)
            if self.misses:
                self._tell(shapes)
            changing = self._history.note(sizes)
            try:
                made = None if exact or not changing else self._open(sizes, changing)
                if made is None:
                    made = self._find_or_make(shapes, sizes)
            except ValueError as error:
                raise _located(error, f"\n  called with {self.parameters.describe(shapes)}") from error
            made.used = next(self._clock)
            self.misses += 1
            self._make_room()
            self._enter(made)
            if made.opened is None:
                self._exact[shapes] = made
            else:
                self._dynamic = (made, *self._dynamic)
            return made

    def _find_or_make(self, shapes: Shapes, sizes: Mapping[Symbol, int]) -> Specialization:
        """The specialization for known sizes, from the program cache where it is there."""
        from graphkb.runtime.program_cache import find_place, read_plan, write_plan

        # Neither of these may keep this object alive: it would keep itself.
        bind, options = partial(self.graph.bind, sizes), self.options
        place = find_place(self.graph, sizes, options)
        kept = read_plan(place, options, lambda: make_plan(optimize_bound(bind(), options), options))
        if kept is not None:
            return Specialization(shapes, bind, kept)
        made = self._make(shapes, bind(), partial(make_plan, options=options))
        write_plan(place, made.plan, options)
        return made

    def _make(
        self, shapes: OpenShapes, bound: Graph, plan: Callable[[Graph], Plan], opened: OpenProgram | None = None
    ) -> Specialization:
        _check_shapes(bound)
        folder = _start_dump(bound, self.options)
        with Progress(bound.name, self.options.progress):
            optimized = optimize_bound(bound, self.options, folder.observe if folder is not None else None)
            made = Specialization(shapes, lambda: bound, plan(optimized), opened)
        if folder is not None:
            folder.finish(made)
        return made

    def _open(self, sizes: Mapping[Symbol, int], changing: frozenset[Symbol]) -> Specialization | None:
        """The specialization with open sizes: all that keep changing, or else one of them; None where none can be."""
        from graphkb.runtime.open_plan import make_open_plan

        ordered = sorted(changing, key=lambda symbol: symbol.name)
        for chosen in dict.fromkeys([changing, *[frozenset([symbol]) for symbol in ordered]]):
            try:
                opened = open_program(self.graph, sizes, chosen)
                plan = partial(make_open_plan, options=self.options, opened=opened)
                made = self._make(opened.shapes, opened.graph, plan, opened)
            except OpenSizeError as error:
                if error.lasting and len(chosen) == 1:
                    self._refuse(chosen, str(error))
                continue
            except ValueError:
                return None  # code for these sizes alone is refused with the better text
            except Exception as error:  # whatever it is, code for these sizes alone serves
                if self.options.debug:
                    raise
                self._refuse(chosen, f"making it failed: {type(error).__name__}: {error}")
                return None
            self._log(f"{self.graph.name}: compiled for any {opened.names}, with {opened.describe()}")
            return made
        return None

    def _refuse(self, symbols: frozenset[Symbol], reason: str) -> None:
        names = ", ".join(sorted(symbol.name for symbol in symbols))
        self._history.refused |= dict.fromkeys(symbols, reason)
        self._log(f"{self.graph.name}: compiled again for each {names}, because code for any is not made: {reason}")

    def _compiling(self) -> AbstractContextManager[bool]:
        """The lock of this process: the one that another thread held while the process forked is never released."""
        if self._pid != os.getpid():
            self._lock, self._pid = threading.RLock(), os.getpid()
        return self._lock

    # ------------------------------------------------------------------ the native entry
    def _function(self) -> Function | None:
        return self.owner() if self.owner is not None else None

    def _enter(self, made: Specialization) -> None:
        """Let calls that agree with a native specialization skip Python from now on."""
        function = self._function()
        made.spec = made.plan.entry_spec()
        if function is not None and made.spec is not None:
            function._enter(made.spec, self.call)

    def _widen(self, found: Specialization, arrays: Sequence[Array]) -> None:
        """Give native calls a larger workspace where these inputs take more than any before."""
        spec = found.plan.widened(arrays)
        function = self._function()
        if spec is not None and function is not None and found.spec is not None:
            with self._compiling():
                self._notice()
                self.hits, found.calls = self.hits + found.calls, 0  # the new workspace counts from 0
                function._leave(found.spec)
                self._enter(found)

    def _notice(self) -> None:
        """Count native calls: who took some since the last time was in use."""
        function = self._function()
        for one in self.kept if function is not None else ():
            calls = function._calls(one.spec) if function is not None and one.spec is not None else 0
            if calls != one.calls:
                one.calls, one.used = calls, next(self._clock)

    def _make_room(self) -> None:
        if len(self.kept) < self.options.cache_size:
            return
        self._notice()
        while len(self.kept) >= self.options.cache_size:
            oldest = min(self.kept, key=lambda one: one.used)
            self._exact = {shapes: one for shapes, one in self._exact.items() if one is not oldest}
            self._dynamic = tuple([one for one in self._dynamic if one is not oldest])
            self.hits += oldest.calls
            function = self._function()
            if function is not None and oldest.spec is not None:
                function._leave(oldest.spec)

    # ------------------------------------------------------------------ telling
    def _tell(self, shapes: Shapes) -> None:
        latest = self.latest
        before = f", last for {self.parameters.describe(latest.shapes)}" if latest is not None else ""
        text = (
            f"{self.graph.name}: compiled again, for {self.parameters.describe(shapes)}; "
            f"it was compiled {self.misses} time{'s' if self.misses > 1 else ''} before{before}"
        )
        if self.options.on_recompile == "error":
            raise RecompileError(f'{text}: pad the inputs to one shape, or set options(on_recompile="silent")')
        if self.options.on_recompile == "warn":
            warnings.warn(text, RecompileWarning, stacklevel=5)
        else:
            self._log(text)

    def _log(self, text: str) -> None:
        if "logging" in sys.modules:  # who has not imported it looks at no log
            sys.modules["logging"].getLogger("graphkb").info(text)


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
    tell(f"optimizing {len(graph.nodes)} nodes")
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
