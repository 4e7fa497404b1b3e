"""Reports: which steps of a compiled function are native, which are interpreted and why, and what they cost."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from math import prod

from graphkb.ir.dims import Dim, Symbol, substitute
from graphkb.ir.graph import bodies
from graphkb.ir.node import Node
from graphkb.ir.record import record
from graphkb.ir.types import TupleType, parts

Cost = tuple[int, int]
"""Floating-point (or integer) operations, and bytes read and written."""


@record
class ReportStep:
    """One kernel or one interpreted node.

    Attributes:
        name: the kernel's name, or the node's op; behind `body/`, `then/` or `other/` what a loop or branch
            runs, behind `group/` what threads share out with other small updates of variables.
        native: whether it is machine code; else it is interpreted.
        reason: why it is not native; empty for a native one.
        type: the type of its result, as in `float32[32, 10]`; for a loop or a branch how many values it gives.
        lines: the user's lines that it comes from, as in `train.py:35`.
        flops: estimated scalar operations; a transcendental function counts about 10 an element.
        bytes: estimated bytes read and written in memory.
    """

    name: str
    native: bool
    reason: str
    type: str
    lines: tuple[str, ...]
    flops: int
    bytes: int


@record(repr=False)
class Report:
    """What became of a function for one set of input shapes. It shows as a table.

    Attributes:
        name: the function's name.
        inputs: the inputs' types.
        steps: in the order in which they run.
        planned_bytes: the memory for intermediate values that was planned ahead, one block that each call works in;
            None where nothing was planned.
        alive_bytes: the most that intermediate values take at any one moment of the plan: no placing of them in memory
            could do with less.
        note: what else is to be known, such as why nothing is native.
        packed_bytes: the packed copies of variables and constants that its kernels may read; functions share them.
    """

    name: str
    inputs: tuple[str, ...]
    steps: tuple[ReportStep, ...]
    planned_bytes: int | None = None
    alive_bytes: int | None = None
    note: str = ""
    packed_bytes: int = 0

    @property
    def native(self) -> int:
        """The number of native steps."""
        return sum(step.native for step in self.steps)

    @property
    def interpreted(self) -> int:
        """The number of interpreted steps."""
        return len(self.steps) - self.native

    def __str__(self) -> str:
        head = f"{self.name}({', '.join(self.inputs)}): {self.native} native, {self.interpreted} interpreted"
        if self.planned_bytes is not None:
            head += f", {amount(self.planned_bytes, 'B')} planned"
            if self.planned_bytes and self.alive_bytes is not None:
                head += f" for intermediate values, of which {amount(self.alive_bytes, 'B')} are alive at once"
        if self.packed_bytes:
            head += f", {amount(self.packed_bytes, 'B')} of packed weights"
        lines = [head]
        if self.note:
            lines.append(f"  {self.note}")
        rows = [
            (
                str(index),
                "native" if step.native else "interpreted",
                step.name,
                step.type,
                amount(step.flops, "flop"),
                amount(step.bytes, "B"),
                show_lines(step.lines),
            )
            for index, step in enumerate(self.steps)
        ]
        widths = [max(len(row[column]) for row in rows) for column in range(7)] if rows else []
        for row, step in zip(rows, self.steps):
            cells = [cell.rjust(n) if i in (0, 4, 5) else cell.ljust(n) for i, (cell, n) in enumerate(zip(row, widths))]
            lines.append(("  " + "  ".join(cells)).rstrip() + (f"  ({step.reason})" if step.reason else ""))
        return "\n".join(lines) + "\n"

    def __repr__(self) -> str:
        return str(self).rstrip()


def interpreted_step(node: Node, reason: str) -> ReportStep:
    """The entry of a node that is interpreted."""
    flops, nbytes = estimate(node)
    return ReportStep(node.op.name, False, reason, result_type(node), origin_lines([node]), flops, nbytes)


def result_type(node: Node) -> str:
    """What a step gives: a type, or how many values."""
    return f"{len(parts(node.type))} values" if isinstance(node.type, TupleType) else repr(node.type)


def origin_lines(nodes: Iterable[Node]) -> tuple[str, ...]:
    """The user's lines behind the nodes, and behind the bodies of fused ones, each once."""
    found: dict[str, None] = {}
    stack = list(nodes)[::-1]
    while stack:
        node = stack.pop()
        inside = [inner for _, body in bodies(node) for inner in body.nodes if inner.op.kind != "leaf"]
        stack += reversed(inside)
        if not inside and node.origin is not None:
            found[node.origin.short] = None
    return tuple(found)


def estimate(node: Node, sizes: Mapping[Symbol, int] | None = None) -> Cost:
    """The cost of one node; that of a fused one, a loop or a branch without intermediate values.

    A loop costs what its steps cost together, a branch what the dearer body does.

    Args:
        sizes: the values of unknown sizes; one that is not told counts 1.
    """
    known = sizes or {}
    return _flops(node, known), _nbytes(node, known) + sum(_nbytes(i, known) for i in dict.fromkeys(node.inputs))


def _flops(node: Node, sizes: Mapping[Symbol, int]) -> int:
    found = [sum(_flops(inner, sizes) for inner in body.nodes) for _, body in bodies(node)]  # as deep as bodies nest
    if found:
        return max(found) * _count((node.attrs.get("length", 1),), sizes)
    match node.op.kind:
        case "elementwise":
            return node.op.cost * _count(node.shape, sizes)
        case "reduce":
            dims = (*node.shape, *node.attrs["window"]) if "window" in node.attrs else node.inputs[0].shape
            return node.op.cost * _count(dims, sizes)
        case "dot":
            x = node.inputs[0]
            if node.op.name == "conv":
                # Each element of the result sums over the taps and the channels of its group.
                kernel = node.inputs[1].shape
                summed = (*kernel[: len(node.attrs["strides"])], kernel[-2])
            else:
                summed = tuple([x.shape[axis] for axis in node.attrs["contract_x"]])
            return 2 * _count(node.shape, sizes) * _count(summed, sizes)
        case _:
            return 0


def _nbytes(node: Node, sizes: Mapping[Symbol, int]) -> int:
    return sum(_count(part.shape, sizes) * part.itemsize for part in parts(node.type))


def _count(dims: Iterable[Dim], sizes: Mapping[Symbol, int]) -> int:
    """Elements of a shape."""
    known = [substitute(d, sizes) for d in dims]
    return prod(d for d in known if isinstance(d, int))


def amount(value: float, unit: str) -> str:
    """A number of three digits with a decimal prefix: `1.23 kB`, `4.56 ms`."""
    number, prefix = float(value), ""
    if 0 < number < 1:
        for prefix in ("m", "µ", "n"):  # noqa: B007 - the last one stays
            number *= 1000
            if number >= 1:
                break
    else:
        for prefix in ("", "k", "M", "G", "T"):  # noqa: B007 - the last one stays
            if number < 1000:
                break
            number /= 1000
    return f"{number:.3g} {prefix}{unit}"


def show_lines(lines: tuple[str, ...], most: int = 4) -> str:
    shown = ", ".join(lines[:most])
    return shown + (f" and {len(lines) - most} more" if len(lines) > most else "")
