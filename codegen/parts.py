"""Kernels that write their result part by part: padding, joined and interleaved operands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import product as every

from graphkb.codegen.builder import Builder, Value, type_of
from graphkb.codegen.gemm import Gemm
from graphkb.codegen.loops import (
    Affine,
    Buffer,
    Const,
    Kernel,
    Load,
    Lookup,
    NativeKernel,
    Stmt,
    Store,
    Var,
    expressions,
)
from graphkb.codegen.nests import Nest, lower_nest, lower_product
from graphkb.codegen.packed_weights import PackedLayout, Reads
from graphkb.codegen.parallel import parallelize
from graphkb.codegen.reading import Reader, along, linear, strides
from graphkb.codegen.schedule import MOST_NEIGHBORS, collapse, interleave, schedule_map
from graphkb.codegen.target import Target
from graphkb.ir.dims import Dim, Symbol, maximum
from graphkb.ir.node import Node
from graphkb.ir.origin import Origin
from graphkb.ir.record import record

# The ops that begin such kernels.
PARTS = {"pad", "pad_value", "concatenate", "interleave"}


@record(eq=False)
class Joined:
    """Kernels over the same buffers that run one after another as one."""

    name: str
    parts: tuple[NativeKernel, ...]

    @property
    def buffers(self) -> tuple[Buffer, ...]:
        return self.parts[0].buffers

    @property
    def packed(self) -> tuple[tuple[int, PackedLayout], ...]:
        return tuple([operand for part in self.parts for operand in part.packed])

    @property
    def origins(self) -> tuple[Origin, ...]:
        return self.parts[0].origins

    @property
    def symbols(self) -> tuple[Symbol, ...]:
        return tuple(sorted({s for part in self.parts for s in part.symbols}, key=lambda s: s.name))

    @property
    def signature(self) -> str:
        return "\n\n".join(part.signature for part in self.parts)

    @property
    def scratch(self) -> Dim:
        """Bytes of memory that a call works in, aligned to 64: what the part that needs most does."""
        most: Dim = 0
        for part in self.parts:
            most = maximum(most, part.scratch)
        return most

    @property
    def in_place(self) -> dict[int, set[int]]:
        """No input's memory: later parts may read what earlier ones would overwrite."""
        return {self.buffers[-1].position: set()}

    def renamed(self, name: str) -> Joined:
        """The same kernel under another name."""
        return replace(self, name=name)

    def shared_while_awake(self) -> Joined:
        """The same kernel for threads that are awake already, which pays for less work."""
        return replace(self, parts=tuple([p.shared_while_awake() if isinstance(p, Gemm) else p for p in self.parts]))

    def not_shared(self) -> Joined:
        """The same kernel for one thread, as far as its products go."""
        return replace(self, parts=tuple([p.not_shared() if isinstance(p, Gemm) else p for p in self.parts]))

    def reading(self, packed: Mapping[int, Reads]) -> Joined:
        """The same kernel, which takes packed operands in the place of some buffers, as far as that helps."""
        parts = [part.reading(packed) if isinstance(part, Gemm) else part for part in self.parts]
        return replace(self, parts=tuple(parts))

    def emit(self, b: Builder) -> None:
        """Append the parts' functions and the one that calls them."""
        names = [f"{self.name}.{i}" for i in range(len(self.parts))]
        for part, name in zip(self.parts, names):
            part.renamed(name).emit(b)
        params = [(f"p{buffer.position}", "ptr") for buffer in self.buffers]
        params += [(f"packed{i}", "ptr") for i in range(len(self.packed))]
        params += [("scratch", "ptr")] if self.scratch != 0 else []
        params += [(f"s{i}", "int64") for i in range(len(self.symbols))]
        with b.function(self.name, params, linkage="internal") as values:
            count = len(self.buffers)
            pointers, rest = values[:count], values[count:]
            packed, rest = rest[: len(self.packed)], rest[len(self.packed) :]
            scratch = rest[:1] if self.scratch != 0 else []
            sizes = dict(zip(self.symbols, rest[len(scratch) :]))
            for part, name in zip(self.parts, names):
                own, packed = packed[: len(part.packed)], packed[len(part.packed) :]
                operands: list[Value] = [*pointers, *own, *(scratch if part.scratch != 0 else [])]
                operands += [sizes[s] for s in part.symbols]
                b.line(f"call void @{name}({', '.join(f'{type_of(v)} {v.name}' for v in operands)})")
            b.ret()

    def __str__(self) -> str:
        return f"kernel {self.name} in {len(self.parts)} parts\n" + "".join(
            str(part.renamed(f"{self.name}.{i}")) for i, part in enumerate(self.parts)
        )


def plain_reads(kernel: NativeKernel) -> set[int]:
    """The positions of the buffers that a kernel reads as they lie."""
    if isinstance(kernel, Joined):
        return {position for part in kernel.parts for position in plain_reads(part)}
    body = kernel.nest.body if isinstance(kernel, Gemm) else kernel.body if isinstance(kernel, Kernel) else ()
    skipped = [kernel.b] if isinstance(kernel, Gemm) and kernel.reads_b == "packed" else []
    found = [e for e in expressions(body) if isinstance(e, Load | Lookup) and e not in skipped]
    return {e.buffer.position for e in found}


def lower_parts(
    root: Node, name: str, named: dict[Node, Buffer], out: Buffer, origins: tuple[Origin, ...], target: Target
) -> NativeKernel:
    """The kernel of a node whose operands each become a part of it."""
    buffers = (*named.values(), out)
    steps = strides(root.shape)
    match root.op.name:
        case "pad" | "pad_value":
            fill = _fill(root, out, target)
            return join(name, buffers, [_inside(root, steps)], named, origins, target, fill)
        case "concatenate":
            side_by_side = _side_by_side(root, named, out, target)
            if side_by_side:
                return Kernel(name, buffers, parallelize(side_by_side, target), origins)
            nests = _one_after_another(root, steps)
        case "interleave":
            nests = _taking_turns(root, steps)
        case other:
            raise AssertionError(f"{other} does not consist of parts")
    return join(name, buffers, nests, named, origins, target)


def join(
    name: str,
    buffers: tuple[Buffer, ...],
    nests: Sequence[Nest],
    named: dict[Node, Buffer],
    origins: tuple[Origin, ...],
    target: Target,
    before: Sequence[Stmt] = (),
) -> NativeKernel:
    """Nests as one kernel, with matrix kernels for those that they fit."""
    parts: list[NativeKernel] = []
    statements = list(before)
    for nest in nests:
        if not _multiplies(nest.root, named):
            statements += lower_nest(nest, named, buffers[-1], target)
            continue
        lowered = lower_product(nest, name, named, buffers[-1], origins, target)
        if isinstance(lowered, Gemm):
            if statements:
                parts.append(Kernel(name, buffers, parallelize(statements, target), origins))
            parts.append(lowered)
            statements = []
        else:
            statements += lowered
    if statements or not parts:
        parts.append(Kernel(name, buffers, parallelize(statements, target), origins))
    return parts[0] if len(parts) == 1 else Joined(name, tuple(parts))


def _multiplies(root: Node, named: dict[Node, Buffer]) -> bool:
    """Whether a sum of products that may be a matrix kernel is among what a nest computes."""
    seen, stack = set(), [root]
    while stack:
        node = stack.pop()
        if node in seen or node in named:
            continue
        if is_matrix_product(node):
            return True
        seen.add(node)
        stack += node.inputs
    return False


def is_matrix_product(node: Node) -> bool:
    """Whether a sum of products may be a matrix kernel; groups of channels are too small for one."""
    return node.op.name == "dot" or (node.op.name == "conv" and node.ndim == len(node.attrs["strides"]) + 2)


# ---------------------------------------------------------------------------------------------- padding
def _inside(root: Node, steps: tuple[Dim, ...]) -> Nest:
    offset: Dim = 0
    for start, step in zip(root.attrs["starts"], steps):
        offset = offset + start * step
    scaled = tuple([s * step for s, step in zip(root.attrs.get("steps", (1,) * root.ndim), steps)])
    return Nest(root.inputs[0], Affine((), offset), scaled)


def _fill(root: Node, out: Buffer, target: Target) -> list[Stmt]:
    """The number around the operand, or everywhere where the operand's elements lie apart."""
    (x,) = root.inputs
    value = Const(root.attrs.get("value", False if root.dtype == "bool" else 0), root.dtype)
    if any(s != 1 for s in root.attrs.get("steps", ())):
        var = Var("z", root.type.size)
        return schedule_map([var], [Store(out, along(var), value)], target)
    statements: list[Stmt] = []
    sizes = list(root.shape)
    first: list[Dim] = [0] * root.ndim
    for axis, (start, n, total) in enumerate(zip(root.attrs["starts"], x.shape, root.shape)):
        for begin, count in ((0, start), (start + n, total - start - n)):
            if count == 0:
                continue
            ranges = [*zip(first[:axis], sizes[:axis]), (begin, count), *zip(first[axis + 1 :], sizes[axis + 1 :])]
            axes = [Var(f"z{i}", size) for i, (_, size) in enumerate(ranges)]
            place = linear(root.shape, [along(var).shifted(low) for var, (low, _) in zip(axes, ranges)])
            kept, stores = collapse([v for v in axes if v.extent != 1], [Store(out, place, value)])
            statements += schedule_map(kept, stores, target)
        # What the loops along this axis have filled counts no more for the axes within.
        first[axis], sizes[axis] = start, n
    return statements


# ---------------------------------------------------------------------------------------------- several operands
def _one_after_another(root: Node, steps: tuple[Dim, ...]) -> list[Nest]:
    axis = root.attrs["axis"]
    offset: Dim = 0
    nests = []
    for x in root.inputs:
        nests.append(Nest(x, Affine((), offset), steps))
        offset = offset + x.shape[axis] * steps[axis]
    return nests


def _taking_turns(root: Node, steps: tuple[Dim, ...]) -> list[Nest]:
    turns = root.attrs["steps"]
    scaled = tuple([turn * step for turn, step in zip(turns, steps)])
    nests = []
    for x, phase in zip(root.inputs, every(*map(range, turns))):
        offset: Dim = 0
        for r, step in zip(phase, steps):
            offset = offset + r * step
        nests.append(Nest(x, Affine((), offset), scaled))
    return nests


def _side_by_side(root: Node, named: dict[Node, Buffer], out: Buffer, target: Target) -> list[Stmt]:
    """Few columns joined along the last axis, as one nest that stores them side by side; else nothing."""
    width = root.shape[-1] if root.ndim else 0
    # Single columns are read as whole vectors, columns of wider operands are picked from their neighbors.
    most = 2 * MOST_NEIGHBORS if all(x.shape[-1] == 1 for x in root.inputs) else MOST_NEIGHBORS
    few = isinstance(width, int) and width <= most and root.ndim > 1 and root.type.size != width
    if not few or root.attrs["axis"] != root.ndim - 1 or not target.vector_bits or 0 in root.shape:
        return []
    reader = Reader(named)
    axes = [Var(f"i{axis}", n) for axis, n in enumerate(root.shape[:-1])]
    index = tuple(map(along, axes))
    stores: list[Stmt] = []
    for x in root.inputs:
        for column in range(x.shape[-1]):
            at = linear(root.shape, (*index, Affine((), len(stores))))
            stores.append(Store(out, at, reader.read(x, (*index, Affine((), column)))))
    if reader.reductions or reader.joints:
        return []
    kept, stores = collapse([v for v in axes if v.extent != 1], stores)
    return interleave(kept, [s for s in stores if isinstance(s, Store)], [], target)
