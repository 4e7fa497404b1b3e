"""The text of kernels: the loops that one would write, and the signature that tells equal kernels."""

from __future__ import annotations

from collections.abc import Mapping

from graphkb.codegen.loops import (
    Affine,
    Apply,
    Combine,
    Const,
    Deposit,
    For,
    IndexValue,
    Interleave,
    Kernel,
    Load,
    Local,
    Lookup,
    LoopExpr,
    Parallel,
    Prefetch,
    Reduce,
    Result,
    Running,
    Scratch,
    SizeValue,
    Stmt,
    Store,
    Tile,
    expressions,
    operands_first,
    operands_of,
)
from graphkb.ir.dims import Dim, Expr


def signature(kernel: Kernel) -> str:
    """The kernel spelled out in full: types, index maps and constants, but neither its name nor its origins."""
    number: dict[LoopExpr, int] = {}
    rows = [f"{b.dtype}[{b.size}]{'w' * b.written}" for b in kernel.buffers]

    def term(expr: LoopExpr) -> int:
        for each in operands_first(expr, set(number)):
            match each:
                case Const(value=value, dtype=dtype):
                    row = f"const {value!r} {dtype}"
                case SizeValue(dim=dim, dtype=dtype):
                    row = f"size {dim} {dtype}"
                case IndexValue(index=index, dtype=dtype):
                    row = f"index {format_affine(index)} {dtype}"
                case Load(buffer=buffer, index=index):
                    row = f"load {buffer.position} {format_affine(index)}"
                case Lookup(buffer=buffer, index=index, step=step, position=position):
                    row = f"lookup {buffer.position} {format_affine(index)} {step} {number[position]}"
                case Running(accumulator=acc):
                    row = f"running {acc.name}"
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
                case Tile(outer=outer, inner=var, body=inner, lanes=lanes, along=along):
                    rows.append(f"tile {outer.name} {outer.extent} {var.name} {var.extent} {lanes} {along.name} {{")
                    visit(inner)
                    rows.append("}")
                case Interleave(stores=stores):
                    rows.append("interleave {")
                    visit(stores)
                    rows.append("}")
                case Local(buffers=buffers, body=inner) | Scratch(buffers=buffers, body=inner):
                    rows.append(f"{type(statement).__name__} {[(b.position, b.dtype, b.size) for b in buffers]} {{")
                    visit(inner)
                    rows.append("}")
                case Parallel(var=var, grain=grain, body=inner):
                    rows.append(f"parallel {var.name} {grain} {{")
                    visit(inner)
                    rows.append("}")
                case Reduce(accumulator=acc, body=inner):
                    rows.append(f"reduce {acc.name} {acc.op} {acc.dtype} {acc.index} {{")
                    visit(inner)
                    rows.append("}")
                case Combine(accumulator=acc, value=value, position=position):
                    at = "" if position is None else format_affine(position)
                    rows.append(f"combine {acc.name} {term(value)} {at}")
                case Store(buffer=buffer, index=index, value=value):
                    rows.append(f"store {buffer.position} {format_affine(index)} {term(value)}")
                case Deposit(buffer=buffer, index=index, step=step, position=position, value=value):
                    place = f"{format_affine(index)} {step} {term(position)}"
                    rows.append(f"deposit {buffer.position} {place} {term(value)}")
                case Prefetch(buffer=buffer, index=index):
                    rows.append(f"prefetch {buffer.position} {format_affine(index)}")

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
        for arg in operands_of(expr):
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
            case Tile(outer=outer, inner=var, body=inner, lanes=lanes, along=along):
                loops = f"{outer.name} < {outer.extent}, {var.name} < {var.extent}"
                lines.append(f"{indent}for {loops} transposed {lanes} x {lanes} along {along.name}:")
                _format_body(inner, indent + "  ", lines, uses, names)
            case Interleave(stores=stores):
                _format_body(stores, indent, lines, uses, names)
            case Local(buffers=buffers, body=inner) | Scratch(buffers=buffers, body=inner):
                kind = "local" if isinstance(statement, Local) else "scratch"
                lines.append(f"{indent}{kind} {', '.join(f'{b.name}: {b.dtype}[{b.size}]' for b in buffers)}:")
                _format_body(inner, indent + "  ", lines, uses, names)
            case Parallel(var=var, grain=grain, body=inner):
                lines.append(f"{indent}parallel {var.name} by {grain}:")
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
            case Deposit(buffer=buffer, index=index, step=step, position=position, value=value):
                place = _place(index, step, _format_value(position, indent, lines, uses, names))
                text = _format_value(value, indent, lines, uses, names)
                lines.append(f"{indent}{buffer.name}[{place}] {'|' if buffer.dtype == 'bool' else '+'}= {text}")
            case Prefetch(buffer=buffer, index=index):
                lines.append(f"{indent}prefetch {buffer.name}[{format_affine(index)}]")


def _place(index: Affine, step: Dim, position: str) -> str:
    """`64*(in1[i]) + j`."""
    first = position if step == 1 else f"{_factor(step)}*{position}"
    return first if index == Affine() else f"{first} + {format_affine(index)}"


def _format_value(
    root: LoopExpr, indent: str, lines: list[str], uses: Mapping[LoopExpr, int], names: dict[LoopExpr, str]
) -> str:
    for expr in operands_first(root, set(names)):
        match expr:
            case Const(value=value):
                text = repr(value)
            case SizeValue(dim=dim, dtype=dtype):
                text = f"{dtype}({dim})"
            case IndexValue(index=index, dtype=dtype):
                text = f"{dtype}({format_affine(index)})"
            case Load(buffer=buffer, index=index):
                text = f"{buffer.name}[{format_affine(index)}]"
            case Lookup(buffer=buffer, index=index, step=step, position=position):
                text = f"{buffer.name}[{_place(index, step, names[position])}]"
            case Result(accumulator=acc) | Running(accumulator=acc):
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
