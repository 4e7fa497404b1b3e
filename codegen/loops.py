"""The loop language: a small closed grammar of loop nests, between the graph and LLVM.

    kernel  = buffers, statements
    stmt    = For(var, body) | Reduce(accumulator, body) | Combine(accumulator, expr) | Store(buffer, index, expr)
    expr    = Const | SizeValue | IndexValue | Load | Apply(op, exprs) | Result(accumulator)
    index   = an affine function of loop variables

Expressions are shared, not copied: a kernel is a graph of them, and identity is equality.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import TYPE_CHECKING, Protocol, TypeAlias

from graphkb.ir.dims import Dim, Expr, Symbol, free_symbols
from graphkb.ir.origin import Origin
from graphkb.ir.types import NUMPY_DTYPE

if TYPE_CHECKING:
    from graphkb.codegen.builder import Builder


@dataclass(frozen=True, eq=False, slots=True)
class Var:
    """A loop variable: 0 <= var < extent."""

    name: str
    extent: Dim


@dataclass(frozen=True, slots=True)
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


@dataclass(frozen=True, eq=False, slots=True)
class Buffer:
    """A contiguous array that a kernel reads or writes; `position` counts the kernel's parameters."""

    position: int
    name: str
    dtype: str
    size: Dim
    written: bool = False


@dataclass(frozen=True, eq=False, slots=True)
class Accumulator:
    """The running value of a reduction: op is sum, prod, max, min, any, all, argmax or argmin."""

    name: str
    op: str
    dtype: str


@dataclass(frozen=True, eq=False, slots=True)
class Const:
    """A number."""

    value: float | int | bool
    dtype: str


@dataclass(frozen=True, eq=False, slots=True)
class SizeValue:
    """A size known when the kernel starts, as a number of a dtype."""

    dim: Dim
    dtype: str


@dataclass(frozen=True, eq=False, slots=True)
class IndexValue:
    """The value of an index, as a number of a dtype."""

    index: Affine
    dtype: str


@dataclass(frozen=True, eq=False, slots=True)
class Load:
    """The element of a buffer at an index."""

    buffer: Buffer
    index: Affine

    @property
    def dtype(self) -> str:
        return self.buffer.dtype


@dataclass(frozen=True, eq=False, slots=True)
class Apply:
    """An element-wise op, by its name in the op table, on expressions."""

    op: str
    args: tuple[LoopExpr, ...]
    dtype: str


@dataclass(frozen=True, eq=False, slots=True)
class Result:
    """What an accumulator holds after its reduction."""

    accumulator: Accumulator

    @property
    def dtype(self) -> str:
        return "int64" if self.accumulator.op in ("argmax", "argmin") else self.accumulator.dtype


LoopExpr: TypeAlias = Const | SizeValue | IndexValue | Load | Apply | Result


@dataclass(frozen=True, eq=False, slots=True)
class For:
    """A loop over a variable; `lanes` > 1 steps over that many elements at once, as one vector."""

    var: Var
    body: tuple[Stmt, ...]
    lanes: int = 1


@dataclass(frozen=True, eq=False, slots=True)
class Combine:
    """accumulator = op(accumulator, value); `position` is the element's index for argmax and argmin."""

    accumulator: Accumulator
    value: LoopExpr
    position: Affine | None = None


@dataclass(frozen=True, eq=False, slots=True)
class Reduce:
    """Start an accumulator, run the body, which combines into it; afterwards `Result` gives its value."""

    accumulator: Accumulator
    body: tuple[Stmt, ...]


@dataclass(frozen=True, eq=False, slots=True)
class Store:
    """buffer[index] = value."""

    buffer: Buffer
    index: Affine
    value: LoopExpr


Stmt: TypeAlias = For | Combine | Reduce | Store


class NativeKernel(Protocol):
    """What a program needs to know of a kernel: loops here, or a matrix product elsewhere.

    Attributes:
        name: of its function, `void name(ptr buffer..., [ptr scratch,] i64 size...)`.
        buffers: its parameters; the last one is written.
        origins: the user's lines that it comes from.
        symbols: the unknown sizes that it is told at every call, sorted by name.
        signature: all that decides its machine code: kernels with equal signatures share one function.
        scratch: bytes of memory that a call works in, 0 for none; the parameter exists only if there are any.
        in_place: the inputs whose memory the output may take.
    """

    @property
    def name(self) -> str: ...
    @property
    def buffers(self) -> tuple[Buffer, ...]: ...
    @property
    def origins(self) -> tuple[Origin, ...]: ...
    @property
    def symbols(self) -> tuple[Symbol, ...]: ...
    @property
    def signature(self) -> str: ...
    @property
    def scratch(self) -> Dim: ...
    @property
    def in_place(self) -> set[int]: ...

    def renamed(self, name: str) -> NativeKernel:
        """The same kernel under another name."""

    def emit(self, b: Builder) -> None:
        """Append the kernel's function to a module."""


@dataclass(frozen=True, eq=False)
class Kernel:
    """One function of machine code: its buffers, its statements and the user's lines that it comes from."""

    name: str
    buffers: tuple[Buffer, ...]
    body: tuple[Stmt, ...]
    origins: tuple[Origin, ...] = ()

    @cached_property
    def symbols(self) -> tuple[Symbol, ...]:
        """The unknown sizes that the kernel is told at every call, sorted by name."""
        found: set[Symbol] = set()
        for statement in walk(self.body):
            match statement:
                case For(var=var):
                    found |= free_symbols(var.extent)
                case Store(index=index):
                    found |= _affine_symbols(index)
                case _:
                    pass
            for expr in expressions((statement,)):
                match expr:
                    case Load(index=index) | IndexValue(index=index):
                        found |= _affine_symbols(index)
                    case SizeValue(dim=dim):
                        found |= free_symbols(dim)
                    case _:
                        pass
        return tuple(sorted(found, key=lambda s: s.name))

    @property
    def signature(self) -> str:
        """All that decides the kernel's machine code: kernels with equal signatures share one function."""
        return _signature(self)

    @property
    def scratch(self) -> Dim:
        """Bytes of memory that a call works in."""
        return 0

    @cached_property
    def in_place(self) -> set[int]:
        """The inputs whose memory the output may take: each element is read only where it is then written."""
        stores = [s for s in walk(self.body) if isinstance(s, Store)]
        if len(stores) != 1 or any(isinstance(s, Reduce) for s in walk(self.body)):
            return set()
        return matching_loads(stores[0])

    def renamed(self, name: str) -> Kernel:
        """The same kernel under another name."""
        return replace(self, name=name)

    def emit(self, b: Builder) -> None:
        """Append the kernel's function to a module."""
        from graphkb.codegen.emit import emit_kernel

        emit_kernel(b, self)

    def __str__(self) -> str:
        return format_kernel(self)


def _affine_symbols(index: Affine) -> set[Symbol]:
    found = free_symbols(index.offset)
    for _, factor in index.terms:
        found |= free_symbols(factor)
    return found


def walk(body: Iterable[Stmt]) -> Iterator[Stmt]:
    """Every statement, outer ones first."""
    for statement in body:
        yield statement
        if isinstance(statement, For | Reduce):
            yield from walk(statement.body)


def expressions(body: Iterable[Stmt]) -> Iterator[LoopExpr]:
    """Every distinct expression of the statements, operands before users."""
    seen: set[LoopExpr] = set()
    for statement in walk(body):
        if isinstance(statement, Combine | Store):
            yield from _operands_first(statement.value, seen)


def _operands_first(root: LoopExpr, seen: set[LoopExpr]) -> Iterator[LoopExpr]:
    stack: list[tuple[LoopExpr, bool]] = [(root, False)]
    while stack:
        expr, ready = stack.pop()
        if ready:
            yield expr
        elif expr not in seen:
            seen.add(expr)
            stack.append((expr, True))
            if isinstance(expr, Apply):
                stack.extend((arg, False) for arg in reversed(expr.args))


def matching_loads(store: Store) -> set[int]:
    """The buffers that a store's value reads only at the very place that is stored, in items of the same width."""
    fits: dict[int, bool] = {}
    width = NUMPY_DTYPE[store.buffer.dtype].itemsize
    for expr in expressions([store]):
        if isinstance(expr, Load):
            same = expr.index == store.index and NUMPY_DTYPE[expr.dtype].itemsize == width
            fits[expr.buffer.position] = fits.get(expr.buffer.position, True) and same
    return {position for position, fit in fits.items() if fit}


def _signature(kernel: Kernel) -> str:
    """The kernel spelled out in full: types, index maps and constants, but neither its name nor its origins."""
    number: dict[LoopExpr, int] = {}
    rows = [f"{b.dtype}[{b.size}]{'w' * b.written}" for b in kernel.buffers]

    def term(expr: LoopExpr) -> int:
        for each in _operands_first(expr, set(number)):
            match each:
                case Const(value=value, dtype=dtype):
                    row = f"const {value!r} {dtype}"
                case SizeValue(dim=dim, dtype=dtype):
                    row = f"size {dim} {dtype}"
                case IndexValue(index=index, dtype=dtype):
                    row = f"index {format_affine(index)} {dtype}"
                case Load(buffer=buffer, index=index):
                    row = f"load {buffer.position} {format_affine(index)}"
                case Result(accumulator=acc):
                    row = f"result {acc.name}"
                case Apply(op=op, args=args, dtype=dtype):
                    row = f"{op} {[number[a] for a in args]} {dtype}"
            number[each] = len(number)
            rows.append(row)
        return number[expr]

    def visit(body: tuple[Stmt, ...]) -> None:
        for statement in body:
            match statement:
                case For(var=var, body=inner, lanes=lanes):
                    rows.append(f"for {var.name} {var.extent} {lanes} {{")
                    visit(inner)
                    rows.append("}")
                case Reduce(accumulator=acc, body=inner):
                    rows.append(f"reduce {acc.name} {acc.op} {acc.dtype} {{")
                    visit(inner)
                    rows.append("}")
                case Combine(accumulator=acc, value=value, position=position):
                    at = "" if position is None else format_affine(position)
                    rows.append(f"combine {acc.name} {term(value)} {at}")
                case Store(buffer=buffer, index=index, value=value):
                    rows.append(f"store {buffer.position} {format_affine(index)} {term(value)}")

    visit(kernel.body)
    return "\n".join(rows)


# ---------------------------------------------------------------------------------------------- printing
_INFIX = {
    "add": "+", "sub": "-", "mul": "*", "div": "/", "less": "<", "less_equal": "<=", "greater": ">",
    "greater_equal": ">=", "equal": "==", "not_equal": "!=", "logical_and": "and", "logical_or": "or",
}  # fmt: skip


def format_affine(index: Affine) -> str:
    """`64*i + j + 3`."""
    parts = [v.name if f == 1 else f"{_factor(f)}*{v.name}" for v, f in index.terms]
    if index.offset != 0 or not parts:
        parts.append(str(index.offset))
    return " + ".join(parts).replace("+ -", "- ")


def _factor(dim: Dim) -> str:
    return f"({dim})" if isinstance(dim, Expr) and len(dim.terms) > 1 else str(dim)


def format_kernel(kernel: Kernel) -> str:
    """The kernel as the loops that one would write; expressions used more than once get a name."""
    buffers = ", ".join(f"{b.name}: {b.dtype}[{b.size}]" for b in kernel.buffers)
    origins = ", ".join(dict.fromkeys(o.short for o in kernel.origins))
    lines = [f"kernel {kernel.name}({buffers})" + (f"  # {origins}" if origins else "")]
    uses: dict[LoopExpr, int] = {}
    for expr in expressions(kernel.body):
        if isinstance(expr, Apply):
            for arg in expr.args:
                uses[arg] = uses.get(arg, 0) + 1
    _format_body(kernel.body, "  ", lines, uses, {})
    return "\n".join(lines) + "\n"


def _format_body(
    body: tuple[Stmt, ...],
    indent: str,
    lines: list[str],
    uses: Mapping[LoopExpr, int],
    names: dict[LoopExpr, str],
) -> None:
    names = dict(names)
    for statement in body:
        match statement:
            case For(var=var, body=inner, lanes=lanes):
                lines.append(f"{indent}for {var.name} < {var.extent}{f' vector {lanes}' if lanes > 1 else ''}:")
                _format_body(inner, indent + "  ", lines, uses, names)
            case Reduce(accumulator=acc, body=inner):
                lines.append(f"{indent}{acc.name}: {acc.dtype} = {acc.op} of")
                _format_body(inner, indent + "  ", lines, uses, names)
            case Combine(accumulator=acc, value=value):
                text = _format_value(value, indent, lines, uses, names)
                lines.append(f"{indent}{acc.name} <- {text}")
            case Store(buffer=buffer, index=index, value=value):
                text = _format_value(value, indent, lines, uses, names)
                lines.append(f"{indent}{buffer.name}[{format_affine(index)}] = {text}")


def _format_value(
    root: LoopExpr, indent: str, lines: list[str], uses: Mapping[LoopExpr, int], names: dict[LoopExpr, str]
) -> str:
    for expr in _operands_first(root, set(names)):
        match expr:
            case Const(value=value):
                text = repr(value)
            case SizeValue(dim=dim, dtype=dtype):
                text = f"{dtype}({dim})"
            case IndexValue(index=index, dtype=dtype):
                text = f"{dtype}({format_affine(index)})"
            case Load(buffer=buffer, index=index):
                text = f"{buffer.name}[{format_affine(index)}]"
            case Result(accumulator=acc):
                text = acc.name
            case Apply(op=op, args=args, dtype=dtype):
                operands = [names[a] for a in args]
                if op in _INFIX:
                    text = f"({operands[0]} {_INFIX[op]} {operands[1]})"
                elif op == "fraction":
                    text = f"fraction_{dtype}({operands[0]})"
                elif op == "cast":
                    text = f"{dtype}({operands[0]})"
                else:
                    text = f"{op}({', '.join(operands)})"
                if uses.get(expr, 0) > 1 or len(text) > 100:
                    name = f"t{sum(n.startswith('t') for n in names.values())}"
                    lines.append(f"{indent}{name} = {text}")
                    text = name
        names[expr] = text
    text = names[root]
    return text[1:-1] if text.startswith("(") and isinstance(root, Apply) and root.op in _INFIX else text
