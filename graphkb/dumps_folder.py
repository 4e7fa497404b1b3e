"""The dump of every compilation into a folder, as GRAPHKB_DUMP asks for it."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from graphkb.dumps import CODE_STAGES, code_text, unique, write_text
from graphkb.ir.export import LARGEST_PICTURE, to_svg
from graphkb.ir.graph import Graph
from graphkb.ir.text import format_graph

if TYPE_CHECKING:
    from graphkb.passes.pipeline import Pass
    from graphkb.runtime.specializations import Specialization


class FolderDump:
    """The dump of one specialization into `folder/<function>-<n>/`: one file per stage, written as it is reached.

    Nothing that goes wrong here reaches the program; the first failure of a process is told as a warning.
    """

    _failed = False

    def __init__(self, folder: str, graph: Graph) -> None:
        self._path: Path | None = None
        self._count = 0
        self._names: list[str] = []
        try:
            self._path = _new_folder(Path(folder), graph.name)
        except OSError as error:
            self._give_up(error)
        self.graph("input", graph)

    def observe(self, step: Pass, before: Graph, after: Graph, seconds: float) -> None:
        """Write the graph after a pass."""
        self._names.append(unique(step.name, self._names))
        self.graph(self._names[-1], after)

    def graph(self, name: str, graph: Graph) -> None:
        """Write the next numbered file."""
        self._put(f"{self._count:02d}-{_file_name(name)}.txt", lambda: format_graph(graph))
        self._count += 1

    def finish(self, made: Specialization) -> None:
        """Write the graph as it runs, what comes after it, the report, and a picture."""
        running = made.plan.fused
        if running is not made.plan.graph:
            from graphkb.passes.pipeline import FUSION, optimize

            optimize(made.plan.graph, FUSION, self.observe)
        for stage, file in CODE_STAGES.items():
            self._put(file, partial(code_text, made, stage))
        self._put("report.txt", lambda: str(made.plan.report()))
        if len(running.nodes) <= LARGEST_PICTURE:
            self._put("optimized.svg", lambda: to_svg(running))

    def _put(self, name: str, text: Callable[[], str]) -> None:
        if self._path is None:
            return
        try:
            write_text(self._path / name, text())
        except Exception as error:  # whatever it is, the program shall go on
            self._give_up(error)

    def _give_up(self, error: Exception) -> None:
        self._path = None
        if not FolderDump._failed:
            FolderDump._failed = True
            warnings.warn(f"GRAPHKB_DUMP: this dump is not complete: {error}", RuntimeWarning, stacklevel=2)


_numbers: dict[tuple[Path, str], int] = {}


def _new_folder(folder: Path, name: str) -> Path:
    """A folder of its own for one specialization, also when other processes make theirs."""
    name = _file_name(name) or "graph"
    folder.mkdir(parents=True, exist_ok=True)
    number = _numbers.get((folder, name), 0)
    while True:
        path = folder / f"{name}-{number}"
        number += 1
        _numbers[folder, name] = number
        try:
            path.mkdir()
        except FileExistsError:
            continue
        return path


def _file_name(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9_.+-]+", "_", name).strip("._")[:80]
