"""Profiles: how long each kernel of a compiled function takes, and what share of the machine's peak it reaches."""

from __future__ import annotations

import ctypes
import json
import re
import statistics
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from graphkb.ir.graph import Graph
from graphkb.ir.leaves import Array, VariableCell
from graphkb.ir.node import Node
from graphkb.ir.record import record
from graphkb.runtime.interpreter import meaning, write
from graphkb.runtime.options import Options
from graphkb.runtime.peak import Peak, machine_peak
from graphkb.runtime.plan import MixedPlan, NativePlan, Plan
from graphkb.runtime.report import amount, estimate, origin_lines, result_type, show_lines
from graphkb.runtime.state_lock import state_lock
from graphkb.runtime.stored_plan import StoredPlan

_SECONDS = 0.2
_LEAST, _MOST = 5, 1000
_PLACES = re.compile(r"\.(?:step|body)(\d+)")


@record
class ProfileStep:
    """One kernel, loop, branch or interpreted node.

    Attributes:
        name: the kernel's name, or the node's op; within a loop or a branch, behind theirs.
        native: whether it is machine code.
        seconds: in one call of the function, over all of its own calls; a loop's hold those of its body, where what
            several threads do side by side counts once.
        calls: how often it runs in one call of the function.
        flops: estimated operations in one call of the function, as `Report` counts them.
        bytes: estimated bytes that are read and written, each operand once.
        depth: 0, or within how many loops and branches it stands.
        type: the type of its result.
        lines: the user's lines that it comes from.
    """

    name: str
    native: bool
    seconds: float
    calls: int
    flops: int
    bytes: int
    depth: int
    type: str
    lines: tuple[str, ...]


@record(repr=False)
class Profile:
    """What one call of a function spends its time on. It shows as a table, and in a notebook with a roofline picture.

    Attributes:
        name: the function's name.
        seconds: of one call, with the clocks around its steps; the mean of the fastest quarter of the runs.
        runs: how often it was called.
        peak: what the machine can do.
        steps: in the order in which they run.
    """

    name: str
    seconds: float
    runs: int
    peak: Peak
    steps: tuple[ProfileStep, ...]

    def share(self, step: ProfileStep) -> float:
        """The part of the call's time that a step takes."""
        return step.seconds / self.seconds if self.seconds else 0.0

    def of_peak(self, step: ProfileStep) -> float:
        """How near a step comes to what bounds it, operations or memory; above 1 where the caches help."""
        if not step.seconds:
            return 0.0
        return max(step.flops / self.peak.flops, step.bytes / self.peak.bandwidth) / step.seconds

    @property
    def other_seconds(self) -> float:
        """The time outside of all steps."""
        return max(0.0, self.seconds - sum(step.seconds for step in self.steps if not step.depth))

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values."""
        steps = [{**vars(step), "share": self.share(step), "of_peak": self.of_peak(step)} for step in self.steps]
        return {
            "name": self.name, "seconds": self.seconds, "runs": self.runs, "other_seconds": self.other_seconds,
            "peak": vars(self.peak), "steps": [{**step, "lines": list(step["lines"])} for step in steps],
        }  # fmt: skip

    def to_json(self) -> str:
        """`to_dict` as text."""
        return json.dumps(self.to_dict(), indent=2)

    def roofline(self) -> str:
        """The steps over the machine's roofline, as SVG: operations a second against operations a byte."""
        from graphkb.runtime.roofline import draw_roofline

        return draw_roofline(self)

    def save(self, path: str) -> None:
        """Write a file: .svg the roofline picture, .json the figures, anything else the table.

        Raises:
            OSError: it can not be written.
        """
        made = {".svg": self.roofline, ".json": self.to_json}
        Path(path).write_text(made.get(Path(path).suffix.lower(), self.__str__)(), encoding="utf-8")

    _HEAD = ("time", "share", "calls", "FLOP/s", "bytes/s", "of peak", "step", "result", "lines")

    def _rows(self) -> Iterator[tuple[str, ...]]:
        for step in self.steps:
            rates = (step.flops / step.seconds, step.bytes / step.seconds) if step.seconds else (0.0, 0.0)
            yield (
                amount(step.seconds, "s"), f"{self.share(step):.1%}", str(step.calls),
                amount(rates[0], "FLOP/s") if step.flops else "", amount(rates[1], "B/s") if step.bytes else "",
                f"{self.of_peak(step):.0%}", "  " * step.depth + step.name + ("" if step.native else " (interpreted)"),
                step.type, show_lines(step.lines),
            )  # fmt: skip
        yield (
            (amount(self.other_seconds, "s"), f"{self.other_seconds / (self.seconds or 1):.1%}")
            + ("",) * 4
            + (
                "everything else",
                "",
                "",
            )
        )

    def _title(self) -> str:
        return (
            f"{self.name}: {amount(self.seconds, 's')} a call (the fastest quarter of {self.runs}); the peak of "
            f"{self.peak.threads} thread{'s' if self.peak.threads > 1 else ''} is {amount(self.peak.flops, 'FLOP/s')}"
            f" and {amount(self.peak.bandwidth, 'B/s')}"
        )

    def __str__(self) -> str:
        rows = [self._HEAD, *self._rows()]
        widths = [max(len(row[column]) for row in rows) for column in range(len(self._HEAD))]
        lines = [self._title()]
        for row in rows:
            cells = [cell.rjust(n) if i < 6 else cell.ljust(n) for i, (cell, n) in enumerate(zip(row, widths))]
            lines.append(("  " + "  ".join(cells)).rstrip())
        return "\n".join(lines) + "\n"

    def __repr__(self) -> str:
        return str(self).rstrip()

    def _repr_html_(self) -> str:
        def row(cells: Sequence[str], tag: str) -> str:
            return "<tr>" + "".join(f"<{tag}>{escape(cell)}</{tag}>" for cell in cells) + "</tr>"

        body = "".join(row(cells, "td") for cells in self._rows())
        return f"<p>{escape(self._title())}</p><table>{row(self._HEAD, 'th')}{body}</table>{self.roofline()}"


# ---------------------------------------------------------------------------------------------- measuring
def profile_plan(plan: Plan, inputs: Sequence[Array], options: Options) -> Profile:
    """The profile of a plan for inputs that it serves. Variables keep their values."""
    if isinstance(plan, StoredPlan):
        plan = plan.full
    if isinstance(plan, NativePlan):
        seconds, runs, steps = _profile_native(plan, inputs, options)
    else:
        seconds, runs, steps = _profile_python(plan, inputs)
    return Profile(plan.graph.name, seconds, runs, machine_peak(options), tuple(steps))


def _runs() -> Iterator[int]:
    """Numbers of runs: at least some, and as many as fit into a while."""
    end = time.perf_counter() + _SECONDS
    for count in range(_MOST):
        if count >= _LEAST and time.perf_counter() > end:
            return
        yield count


def _fastest(walls: Sequence[float]) -> list[int]:
    """The fastest quarter of the runs: what others do on the machine shows least in these, and steps sum up."""
    return sorted(range(len(walls)), key=lambda i: walls[i])[: max(1, len(walls) // 4)]


class _Kept:
    """The variables that a program updates, as they were before it was profiled."""

    def __init__(self, graph: Graph) -> None:
        self._values: list[tuple[VariableCell, Array]] = []
        with state_lock.exclusive():
            self._values = [(cell, cell.array.copy()) for cell, _ in graph.updates]

    def __enter__(self) -> None:
        pass

    def __exit__(self, *error: object) -> None:
        with state_lock.exclusive():
            write([cell for cell, _ in self._values], [value for _, value in self._values])


def _profile_native(
    plan: NativePlan, inputs: Sequence[Array], options: Options
) -> tuple[float, int, list[ProfileStep]]:
    from graphkb.codegen.call_groups import CallGroup
    from graphkb.codegen.calls import Call
    from graphkb.codegen.timing import NOW_SYMBOL, TICKS_SYMBOL
    from graphkb.runtime.native_call import NativeEntry, run_context

    spec, engine, watch = plan.timed(options)
    count = max(1, len(watch.calls))
    address = ctypes.CFUNCTYPE(ctypes.c_void_p)(engine.address(TICKS_SYMBOL))()
    words = np.ctypeslib.as_array((ctypes.c_int64 * (2 * count)).from_address(address or 0)).reshape(count, 2)
    now = ctypes.CFUNCTYPE(ctypes.c_int64)(engine.address(NOW_SYMBOL))
    walls, ticks, totals = [], [], []
    entry, arrays = NativeEntry(lambda arrays: run_context(spec, arrays)), list(inputs)
    entry.add(spec)
    with _Kept(plan.graph):
        entry.callable(arrays)  # into the caches
        for _ in _runs():
            words[:] = 0
            begin, start = now(), time.perf_counter()
            entry.callable(arrays)
            walls.append(time.perf_counter() - start)
            totals.append(now() - begin)
            ticks.append(words.copy())
    # The whole run tells how long a tick is.
    scale = sum(walls) / max(1, sum(totals))
    fast = _fastest(walls)
    means = np.mean(np.array(ticks)[fast, :, 0], axis=0) * scale
    calls = ticks[-1][:, 1]
    steps: list[tuple[tuple[int, ...], ProfileStep]] = []
    shared: list[tuple[int, ...]] = []
    for (name, call), seconds, often in zip(watch.calls, means, calls):
        path = tuple([int(number) for number in _PLACES.findall(name)])
        node: Node | None
        if isinstance(call, CallGroup):
            node, label = None, "group"
            costs = [estimate(inner, plan.sizes) for inner in call.nodes]
            cost = sum([flops for flops, _ in costs]), sum([nbytes for _, nbytes in costs])
        elif isinstance(call, Call):
            node = _fused(call.results[0]) if call.results else call.source
            label, cost = call.kernel.name, estimate(node, plan.sizes) if node is not None else (0, 0)
        else:
            node = call.node
            label, cost = node.op.name, estimate(node, plan.sizes)
        flops, nbytes = (n * int(often) for n in cost)
        shown, lines = (result_type(node), origin_lines([node])) if node is not None else ("", ())
        depth = len(path) // 2  # step 3 is (3,), in its body 0 step 1 is (3, 0, 1)
        step = ProfileStep(label, True, float(seconds), int(often), flops, nbytes, depth, shown, lines)
        steps.append((path, step))
        if isinstance(call, CallGroup) or (not isinstance(call, Call) and call.runs_at_once):
            shared.append(path)
    for path in shared:
        _count_once(path, steps)
    return (
        statistics.mean([walls[i] for i in fast]),
        len(walls),
        [step for _, step in sorted(steps, key=lambda pair: pair[0])],
    )


def _count_once(path: tuple[int, ...], steps: list[tuple[tuple[int, ...], ProfileStep]]) -> None:
    """Let the steps of a loop or group whose parts ran side by side sum up to no more time than that took."""
    inside = [i for i, (place, _) in enumerate(steps) if place[: len(path)] == path and place != path]
    spent = sum(steps[i][1].seconds for i in inside)
    (whole,) = [step.seconds for place, step in steps if place == path]
    for i in inside if spent > whole else ():
        place, step = steps[i]
        steps[i] = place, replace(step, seconds=step.seconds * whole / spent)


def _fused(result: Node) -> Node:
    return result.inputs[0] if result.op.name == "item" else result


def _profile_python(plan: Plan, inputs: Sequence[Array]) -> tuple[float, int, list[ProfileStep]]:
    """Steps that Python walks: each is timed from outside, the kernels among them too."""
    times: dict[Node, list[float]] = {}
    walls = []
    with _Kept(plan.graph):
        for _ in _runs():
            start = time.perf_counter()
            if isinstance(plan, MixedPlan):
                plan.run(inputs)
                seconds = plan.seconds
            else:
                seconds = _interpret(plan.graph, inputs)
            walls.append(time.perf_counter() - start)
            for node, spent in seconds.items():
                times.setdefault(node, []).append(spent)
    fast = _fastest(walls)
    steps = []
    for node in plan.fused.nodes:
        if node in times and node.op.name not in ("reshape", "item"):
            flops, nbytes = estimate(node)
            native, label = False, node.op.name
            if isinstance(plan, MixedPlan):
                native = plan.is_native(node)
                label = plan.kernel_name(node) if node.op.kind == "fused" else label
            spent = statistics.mean([times[node][i] for i in fast])
            lines = origin_lines([node])
            steps.append(ProfileStep(label, native, spent, 1, flops, nbytes, 0, result_type(node), lines))
    return statistics.mean([walls[i] for i in fast]), len(walls), steps


def _interpret(graph: Graph, inputs: Sequence[Array]) -> dict[Node, float]:
    values: dict[Node, Any] = dict(zip(graph.inputs, inputs))
    seconds: dict[Node, float] = {}
    with np.errstate(all="ignore"):
        for node in graph.nodes:
            if node in values:
                continue
            run = meaning(node)
            operands = [values[i] for i in node.inputs]
            start = time.perf_counter()
            values[node] = run(*operands)
            if node.op.kind != "leaf":
                seconds[node] = time.perf_counter() - start
    return seconds


__all__ = ["Profile", "ProfileStep", "profile_plan"]
