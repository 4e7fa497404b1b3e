"""Dumps: a program at every stage, from the graph as built to machine code, as text, picture or data."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, TypeAlias, Union

from graphkb.ir.errors import InputError
from graphkb.ir.export import to_dot, to_json, to_svg
from graphkb.ir.graph import Graph, graph_symbols, toposort
from graphkb.ir.node import Node
from graphkb.ir.text import format_graph
from graphkb.ops.leaf import PLACEHOLDER
from graphkb.runtime.function import Function
from graphkb.runtime.options import current
from graphkb.runtime.specializations import Specialization

CODE_STAGES = {"loops": "loops.txt", "llvm": "llvm.ll", "asm": "asm.s"}
"""The stages after the graph, with the files that GRAPHKB_DUMP writes them to."""

GRAPH_FORMATS = {
    "text": format_graph,
    "dot": to_dot,
    "json": to_json,
    "svg": to_svg,
}
FORMATS = (*GRAPH_FORMATS, "html")
_NOTHING_NATIVE = {"loops": "#", "llvm": ";", "asm": "#"}


Target: TypeAlias = Union[str, "os.PathLike[str]", IO[str]]
Shapes: TypeAlias = Sequence[Sequence[int]] | Mapping[str, Sequence[int]]


def dump(
    obj: Any,
    stage: str = "optimized",
    format: str = "text",
    file: Target | None = None,
    shapes: Shapes | None = None,
) -> str:
    """The program behind a tensor, a list of tensors, a function or a graph, at a stage of its compilation.

        print(graphkb.dump(K.softmax(x)))
        graphkb.dump(f, "optimized", "svg", file="f.svg")

    A function that was called is shown for the shapes of its latest call; before that, unknown sizes stay symbols.

    Args:
        obj: what to show. Of tensors, all placeholders that they need are the inputs.
        stage: "raw" (as built), the name of a pass (what the graph is after it), "optimized" (after all passes),
            "loops" (the kernels as loop nests), "llvm" or "asm".
        format: "text"; for graphs also "dot", "json" or "svg"; "html" is one page of all stages with their changes.
        file: a path or an open text file to which the text is written, too.
        shapes: one shape for each input, or some by the names of placeholders, in place of unknown sizes.

    Returns:
        The text.

    Raises:
        ValueError: there is no such stage or format, or the stage needs sizes that are not known.
        TypeError: `obj` is none of these things.
        OSError: the file can not be written.
    """
    program = _Program(obj, shapes)
    if format not in FORMATS:
        raise ValueError(f"dump: there is no format {format!r}; expected one of {', '.join(FORMATS)}")
    if format == "html":
        program.check(stage)
        from graphkb.dumps_html import to_html

        text = to_html(program.name, [*program.graphs(), *program.codes()], stage)
    elif stage in CODE_STAGES:
        if format != "text":
            raise ValueError(f"dump: stage {stage!r} is a text; format {format!r} is for the stages before it")
        text = program.code(stage)
    else:
        text = GRAPH_FORMATS[format](program.graph(stage))
    if file is not None:
        write_text(file, text)
    return text


def stage_graph(obj: Any, stage: str = "optimized", shapes: Shapes | None = None) -> Graph:
    """The graph at a stage before the code; arguments and errors as those of `dump`."""
    return _Program(obj, shapes).graph(stage)


def stage_names() -> list[str]:
    """All stages, in the order of the compilation."""
    return ["raw", *pass_names(), "optimized", *CODE_STAGES]


def pass_names() -> list[str]:
    """The passes of the pipeline; one that runs again has a number: `simplify`, `simplify.2`."""
    from graphkb.passes.pipeline import FUSION, PIPELINE

    names: list[str] = []
    for step in (*PIPELINE, *FUSION):
        names.append(unique(step.name, names))
    return names


def collect_stages(graph: Graph, fastmath: bool = False) -> list[tuple[str, Graph]]:
    """The graph as it is given ("raw"), after each pass, and at the end ("optimized").

    Args:
        graph: as a user builds it; sizes may be unknown.
        fastmath: as the option of that name.
    """
    from graphkb.passes.pipeline import FUSION, Pass, graph_passes, optimize

    stages = [("raw", graph)]

    def observe(step: Pass, before: Graph, after: Graph, seconds: float) -> None:
        stages.append((unique(step.name, [known for known, _ in stages]), after))

    stages.append(("optimized", optimize(graph, (*graph_passes(fastmath), *FUSION), observe)))
    return stages


def unique(name: str, taken: Sequence[str]) -> str:
    """The name, with a number where it is taken: `simplify.2`."""
    count, chosen = 1, name
    while chosen in taken:
        count += 1
        chosen = f"{name}.{count}"
    return chosen


def as_graph(obj: Any, name: str = "graph") -> Graph:
    """The graph behind a tensor, a node, a list of them, a function or a graph.

    Raises:
        TypeError: `obj` is none of these.
    """
    if isinstance(obj, Graph):
        return obj
    if isinstance(obj, Function):
        return obj.definition
    nodes = [_node(item) for item in (obj if isinstance(obj, (list, tuple)) else [obj])]
    inputs = tuple([node for node in toposort(nodes) if node.op is PLACEHOLDER])
    return Graph(inputs, tuple(nodes), name=name)


def _node(obj: Any) -> Node:
    node = obj if isinstance(obj, Node) else getattr(obj, "node", None)
    if not isinstance(node, Node):
        raise TypeError(f"dump: expected a tensor, a list of tensors, a function or a graph, got {type(obj).__name__}")
    return node


class _Program:
    """What is dumped, with as much known of its sizes as can be."""

    def __init__(self, obj: Any, shapes: Shapes | None) -> None:
        self.raw = as_graph(obj)
        self.name = self.raw.name
        self._function = obj if isinstance(obj, Function) else None
        self._shapes = None if shapes is None else self._all_shapes(shapes)
        self._made: Specialization | None = None
        self._stages: list[tuple[str, Graph]] | None = None

    def check(self, stage: str) -> None:
        known = stage_names()
        if stage not in known:
            raise ValueError(f"dump: there is no stage {stage!r}; expected one of {', '.join(known)}")

    def graph(self, stage: str) -> Graph:
        """The graph at a stage before the code."""
        self.check(stage)
        if stage in CODE_STAGES:
            raise ValueError(f"dump: stage {stage!r} is a text, not a graph; expected an earlier one")
        if stage == "raw":
            return self.raw if self._shapes is None else self._specialize().bound
        if stage == "optimized" and self._sized():
            return self._specialize().plan.fused
        return dict(self.graphs())[stage]

    def graphs(self) -> list[tuple[str, Graph]]:
        """All stages before the code."""
        if self._stages is None:
            made = self._specialize() if self._sized() else None
            options = self._function.options if self._function is not None else current()
            stages = collect_stages(self.raw if made is None else made.bound, options.fastmath)
            if made is not None:
                stages[-1] = ("optimized", made.plan.fused)  # what runs; an interpreted function is not fused
                if self._shapes is None:
                    stages[0] = ("raw", self.raw)
            self._stages = stages
        return self._stages

    def codes(self) -> list[tuple[str, str]]:
        """All stages after the graph; none where sizes are not known."""
        return [(stage, self.code(stage)) for stage in CODE_STAGES] if self._sized() else []

    def code(self, stage: str) -> str:
        """The text of a stage after the graph."""
        if not self._sized():
            unknown = [str(node.attrs["key"].name) for node in self.raw.inputs if not node.type.is_static]
            raise InputError(
                f"dump: stage {stage!r} needs the sizes of {', '.join(unknown)}: call the function first, or tell "
                f"them, as in shapes={{{unknown[0]!r}: {_example(self.raw, unknown[0])}}}"
            )
        return code_text(self._specialize(), stage)

    def _sized(self) -> bool:
        if self._shapes is not None or not graph_symbols(self.raw):
            return True
        return self._function is not None and bool(self._function.cache_info().specializations)

    def _specialize(self) -> Specialization:
        if self._made is None:
            # Whoever asks for code shall see it, also where a function would not be worth compiling.
            mode = "interpret" if current().mode == "interpret" else "native"
            function = self._function or Function(self.raw, options={"mode": mode})
            self._made = function.specialize(self._shapes)
        return self._made

    def _all_shapes(self, shapes: Shapes) -> list[tuple[int, ...]]:
        if not isinstance(shapes, Mapping):
            return [tuple(shape) for shape in shapes]
        names = [str(node.attrs["key"].name) for node in self.raw.inputs]
        for name in shapes:
            if name not in names:
                raise InputError(f"dump: there is no placeholder {name!r}; expected one of {', '.join(names)}")
        chosen = []
        for name, node in zip(names, self.raw.inputs):
            if name not in shapes and not node.type.is_static:
                raise InputError(f"dump: shapes says nothing about {name}, whose sizes are not all known")
            chosen.append(tuple(shapes.get(name, node.shape)))
        return chosen


def _example(graph: Graph, name: str) -> tuple[int, ...]:
    (node,) = [n for n in graph.inputs if str(n.attrs["key"].name) == name][:1]
    return tuple([d if isinstance(d, int) else 32 for d in node.shape])


def code_text(made: Specialization, stage: str) -> str:
    """The loops, LLVM or assembly text of a specialization; a comment where nothing is native."""
    text: str = getattr(made.plan, stage, "")
    return text or f"{_NOTHING_NATIVE[stage]} {made.bound.name}: nothing is native; every node is interpreted\n"


def write_text(file: Target, text: str) -> None:
    """Write a text to a path or to an open file."""
    if isinstance(file, (str, os.PathLike)):
        # Names may hold anything that a Python string can, also what no encoding can express.
        Path(file).write_text(text, encoding="utf-8", errors="backslashreplace")
    else:
        file.write(text)
