"""The loop language: a small closed grammar of loop nests, between the graph and LLVM.

    kernel  = buffers, statements
    stmt    = For(var, body) | Reduce(accumulator, body) | Combine(accumulator, expr) | Store(buffer, index, expr)
            | Deposit(buffer, index, step, expr, expr) | Tile(var, var, store) | Interleave(stores)
            | Prefetch(buffer, index) | Local(buffers, body) | Scratch(buffers, body) | Parallel(var, body)
    expr    = Const | SizeValue | IndexValue | Load | Lookup(buffer, index, step, expr) | Apply(op, exprs)
            | Running(accumulator) | Result(accumulator)
    index   = an affine function of loop variables

Expressions are shared, not copied: a kernel is a graph of them, and identity is equality.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol, TypeAlias

from graphkb.ir.dims import Dim, Symbol, floordiv, free_symbols
from graphkb.ir.origin import Origin
from graphkb.ir.record import record
from graphkb.ir.types import NUMPY_DTYPE

if TYPE_CHECKING:
    from graphkb.codegen.builder import Builder
    from graphkb.codegen.packed_weights import PackedLayout


@record(eq=False, slots=True)
class Var:
    """A loop variable: 0 <= var < extent."""

    name: str
    extent: Dim


@record(slots=True)
class Affine:
    """offset + the sum of factor * var."""

    terms: tuple[tuple[Var, Dim], ...] = ()
    offset: Dim = 0

    def factor(self, var: Var) -> Dim:
        """The factor of a variable, 0 if it does not occur."""
        for v, f in self.terms:
            if v is var:
                return f
        return 0

    def plus(self, other: Affine) -> Affine:
        factors = dict(self.terms)
        for v, f in other.terms:
            factors[v] = factors.get(v, 0) + f
        return Affine(tuple((v, f) for v, f in factors.items() if f != 0), self.offset + other.offset)

    def scaled(self, factor: Dim) -> Affine:
        if factor == 0:
            return Affine()
        return Affine(tuple((v, f * factor) for v, f in self.terms), self.offset * factor)

    def shifted(self, offset: Dim) -> Affine:
        return Affine(self.terms, self.offset + offset)

    def substituted(self, new: Mapping[Var, Affine]) -> Affine:
        """The function with variables replaced by affine functions."""
        total = Affine((), self.offset)
        for v, f in self.terms:
            total = total.plus(new[v].scaled(f) if v in new else Affine(((v, f),)))
        return total


def affine(var: Var, factor: Dim = 1) -> Affine:
    """factor * var."""
    return Affine(((var, factor),))


@record(eq=False, slots=True)
class Buffer:
    """A contiguous array that a kernel reads or writes; `position` counts its parameters, or see Local and Scratch."""

    position: int
    name: str
    dtype: str
    size: Dim
    written: bool = False


@record(eq=False, slots=True)
class Accumulator:
    """The running value of a reduction: op is sum, prod, max, min, any, all, argmax, argmin or first.

    `first` is the position of the first of the elements that hold, of which there is at least one; its loop ends
    there. Positions of argmax and argmin are counted in the dtype `index`.
    """

    name: str
    op: str
    dtype: str
    index: str = "int64"


# Accumulators whose result is a position.
POSITIONS = ("argmax", "argmin", "first")


@record(eq=False, slots=True)
class Const:
    """A number."""

    value: float | int | bool
    dtype: str


@record(eq=False, slots=True)
class SizeValue:
    """A size known when the kernel starts, as a number of a dtype."""

    dim: Dim
    dtype: str


@record(eq=False, slots=True)
class IndexValue:
    """The value of an index, as a number of a dtype."""

    index: Affine
    dtype: str


@record(eq=False, slots=True)
class Load:
    """The element of a buffer at an index."""

    buffer: Buffer
    index: Affine

    @property
    def dtype(self) -> str:
        return self.buffer.dtype


@record(eq=False, slots=True)
class Lookup:
    """The element of a buffer at index + step * position; the position is an int64 that is known to be in range."""

    buffer: Buffer
    index: Affine
    step: Dim
    position: LoopExpr

    @property
    def dtype(self) -> str:
        return self.buffer.dtype


@record(eq=False, slots=True)
class Apply:
    """An element-wise op, by its name in the op table, on expressions."""

    op: str
    args: tuple[LoopExpr, ...]
    dtype: str


@record(eq=False, slots=True)
class Result:
    """What an accumulator holds after its reduction."""

    accumulator: Accumulator

    @property
    def dtype(self) -> str:
        return "int64" if self.accumulator.op in POSITIONS else self.accumulator.dtype


@record(eq=False, slots=True)
class Running:
    """What an accumulator holds so far, in the loop that combines into it; no more than once in a body."""

    accumulator: Accumulator

    @property
    def dtype(self) -> str:
        return self.accumulator.dtype


LoopExpr: TypeAlias = Const | SizeValue | IndexValue | Load | Lookup | Apply | Running | Result


@record(eq=False, slots=True)
class For:
    """A loop over a variable; `lanes` > 1 steps over that many elements at once, as one vector."""

    var: Var
    body: tuple[Stmt, ...]
    lanes: int = 1


@record(eq=False, slots=True)
class Combine:
    """accumulator = op(accumulator, value); `position` is the element's index where that is the result."""

    accumulator: Accumulator
    value: LoopExpr
    position: Affine | None = None


@record(eq=False, slots=True)
class Reduce:
    """Start an accumulator, run the body, which combines into it; afterwards `Result` gives its value."""

    accumulator: Accumulator
    body: tuple[Stmt, ...]


@record(eq=False, slots=True)
class Store:
    """buffer[index] = value."""

    buffer: Buffer
    index: Affine
    value: LoopExpr


@record(eq=False, slots=True)
class Deposit:
    """buffer[index + step * position] += value, or |= for bools, in the order of the loops."""

    buffer: Buffer
    index: Affine
    step: Dim
    position: LoopExpr
    value: LoopExpr


@record(eq=False, slots=True)
class Tile:
    """Both loops over a store, in squares of `lanes`; what runs along the outer one is transposed in registers.

    The squares go along one of the two variables first.
    """

    outer: Var
    inner: Var
    body: tuple[Store]
    lanes: int
    along: Var


@record(eq=False, slots=True)
class Interleave:
    """Stores whose places are neighbors, in a vector loop in which they step over one another."""

    stores: tuple[Store, ...]


@record(eq=False, slots=True)
class Prefetch:
    """Ask for what a buffer holds at an index, of known factors, which may lie beyond its end."""

    buffer: Buffer
    index: Affine


@record(eq=False, slots=True)
class Local:
    """Small arrays that exist while the body runs, on the stack; their positions are negative and their sizes known."""

    buffers: tuple[Buffer, ...]
    body: tuple[Stmt, ...]


@record(eq=False, slots=True)
class Scratch:
    """Arrays that exist while the body runs, in the memory that the kernel is given; their positions are negative."""

    buffers: tuple[Buffer, ...]
    body: tuple[Stmt, ...]


@record(eq=False, slots=True)
class Parallel:
    """Threads share the values of a variable: each runs the body with the loops over it confined to some of them.

    Parts begin at multiples of `grain`. Different values of the variable touch different places of what is written.
    Stands outside all loops.
    """

    var: Var
    grain: Dim
    body: tuple[Stmt, ...]


Stmt: TypeAlias = For | Combine | Reduce | Store | Deposit | Tile | Interleave | Prefetch | Local | Scratch | Parallel


class NativeKernel(Protocol):
    """What a program needs to know of a kernel: loops here, or a matrix product elsewhere.

    Attributes:
        name: of its function, `void name(ptr buffer..., ptr packed..., [ptr scratch,] i64 size...)`.
        buffers: its parameters; the written ones come last.
        packed: the packed operands that it takes besides: the position of the buffer that one stands for, and how it
            lies. It may be null where the kernel can do without it.
        origins: the user's lines that it comes from.
        symbols: the unknown sizes that it is told at every call, sorted by name.
        signature: all that decides its machine code: kernels with equal signatures share one function.
        scratch: bytes of memory that a call works in, 0 for none; the parameter exists only if there are any.
        in_place: for each written buffer the inputs whose memory it may take.
    """

    @property
    def name(self) -> str: ...
    @property
    def buffers(self) -> tuple[Buffer, ...]: ...
    @property
    def packed(self) -> tuple[tuple[int, PackedLayout], ...]: ...
    @property
    def origins(self) -> tuple[Origin, ...]: ...
    @property
    def symbols(self) -> tuple[Symbol, ...]: ...
    @property
    def signature(self) -> str: ...
    @property
    def scratch(self) -> Dim: ...
    @property
    def in_place(self) -> dict[int, set[int]]: ...

    def renamed(self, name: str) -> NativeKernel:
        """The same kernel under another name."""

    def emit(self, b: Builder) -> None:
        """Append the kernel's function to a module."""


@record(eq=False)
class Kernel:
    """One function of machine code: its buffers, its statements and the user's lines that it comes from."""

    name: str
    buffers: tuple[Buffer, ...]
    body: tuple[Stmt, ...]
    origins: tuple[Origin, ...] = ()

    @property
    def packed(self) -> tuple[tuple[int, PackedLayout], ...]:
        return ()

    @cached_property
    def symbols(self) -> tuple[Symbol, ...]:
        """The unknown sizes that the kernel is told at every call, sorted by name."""
        found: set[Symbol] = set()
        for statement in walk(self.body):
            match statement:
                case For(var=var):
                    found |= free_symbols(var.extent)
                case Tile(outer=outer, inner=inner):
                    found |= free_symbols(outer.extent) | free_symbols(inner.extent)
                case Parallel(grain=grain):
                    found |= free_symbols(grain)
                case Store(index=index):
                    found |= _affine_symbols(index)
                case Deposit(index=index, step=step):
                    found |= _affine_symbols(index) | free_symbols(step)
                case _:
                    pass
        for expr in expressions(self.body):
            match expr:
                case Load(index=index) | IndexValue(index=index):
                    found |= _affine_symbols(index)
                case Lookup(index=index, step=step):
                    found |= _affine_symbols(index) | free_symbols(step)
                case SizeValue(dim=dim):
                    found |= free_symbols(dim)
                case _:
                    pass
        return tuple(sorted(found, key=lambda s: s.name))

    @property
    def signature(self) -> str:
        """All that decides the kernel's machine code: kernels with equal signatures share one function."""
        from graphkb.codegen.loops_text import signature

        return signature(self)

    @cached_property
    def scratch_places(self) -> dict[Buffer, Dim]:
        """Where each array of a Scratch begins in the memory that a call works in, in bytes."""
        places: dict[Buffer, Dim] = {}
        for statement in walk(self.body):
            if isinstance(statement, Scratch):
                for buffer in statement.buffers:
                    places[buffer] = sum(map(_whole_lines, places), start=0)
        return places

    @property
    def scratch(self) -> Dim:
        """Bytes of memory that a call works in."""
        return sum(map(_whole_lines, self.scratch_places), start=0)

    @cached_property
    def in_place(self) -> dict[int, set[int]]:
        """For each written buffer the inputs whose memory it may take: read only where it is then written."""
        from graphkb.codegen.in_place import replaceable

        return replaceable(self.body, [b for b in self.buffers if b.written])

    def renamed(self, name: str) -> Kernel:
        """The same kernel under another name."""
        return replace(self, name=name)

    def emit(self, b: Builder) -> None:
        """Append the kernel's function to a module."""
        from graphkb.codegen.emit import emit_kernel

        emit_kernel(b, self)

    def __str__(self) -> str:
        from graphkb.codegen.loops_text import format_kernel

        return format_kernel(self)


def _whole_lines(buffer: Buffer) -> Dim:
    """The bytes of a buffer, rounded up to whole cache lines."""
    return floordiv(buffer.size * NUMPY_DTYPE[buffer.dtype].itemsize + 63, 64) * 64


def _affine_symbols(index: Affine) -> set[Symbol]:
    found = free_symbols(index.offset)
    for _, factor in index.terms:
        found |= free_symbols(factor)
    return found


def walk(body: Iterable[Stmt]) -> Iterator[Stmt]:
    """Every statement, outer ones first."""
    for statement in body:
        yield statement
        if isinstance(statement, For | Reduce | Tile | Local | Scratch | Parallel):
            yield from walk(statement.body)
        elif isinstance(statement, Interleave):
            yield from walk(statement.stores)


def expressions(body: Iterable[Stmt]) -> Iterator[LoopExpr]:
    """Every distinct expression of the statements, operands before users."""
    seen: set[LoopExpr] = set()
    for statement in walk(body):
        if isinstance(statement, Deposit):
            yield from operands_first(statement.position, seen)
        if isinstance(statement, Combine | Store | Deposit):
            yield from operands_first(statement.value, seen)


def operands_of(expr: LoopExpr) -> tuple[LoopExpr, ...]:
    """The expressions that an expression is made of."""
    match expr:
        case Apply(args=args):
            return args
        case Lookup(position=position):
            return (position,)
        case _:
            return ()


def operands_first(root: LoopExpr, seen: set[LoopExpr]) -> Iterator[LoopExpr]:
    """An expression and all that it is made of, operands before users, without those seen before."""
    stack: list[LoopExpr | None] = [root]
    while stack:
        expr = stack.pop()
        if expr is None:  # all operands of the one below have been there
            expr = stack.pop()
            assert expr is not None
            yield expr
        elif expr not in seen:
            seen.add(expr)
            operands = operands_of(expr)
            if operands:
                stack += (expr, None, *operands[::-1])
            else:
                yield expr


def matching_loads(store: Store) -> set[int]:
    """The buffers that a store's value reads only at the very place that is stored, in items of the same width."""
    fits: dict[int, bool] = {}
    width = NUMPY_DTYPE[store.buffer.dtype].itemsize
    for expr in expressions([store]):
        if isinstance(expr, Load):
            same = expr.index == store.index and NUMPY_DTYPE[expr.dtype].itemsize == width
            fits[expr.buffer.position] = fits.get(expr.buffer.position, True) and same
        elif isinstance(expr, Lookup):
            fits[expr.buffer.position] = False
    return {position for position, fit in fits.items() if fit}
