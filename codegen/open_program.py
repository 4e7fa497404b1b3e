"""Programs whose sizes are open, behind the signature of a native call: the sizes are read from the arrays."""

from __future__ import annotations

from graphkb.codegen.builder import Builder, Value
from graphkb.codegen.emit import Sizes
from graphkb.codegen.program import Program
from graphkb.ir.dims import Dim, Symbol, sole_atom
from graphkb.passes.size_guards import SizeGuards

REFUSED = -1
"""What the function of sizes returns where the program does not serve them."""


def emit_open(b: Builder, program: Program, guards: SizeGuards, run: str, sizes: str) -> None:
    """Append the program as two functions.

    `i32 run(ptr args, ptr workspace)` takes the sizes behind the addresses of the outputs, one word for each symbol.
    `i64 sizes(ptr dims, ptr args, ptr outputs)` finds them: `dims` holds for each input the address of its dims;
    it writes the words that `run` takes, and the dims of all outputs with the bytes of each behind them. It returns the
    bytes of workspace that are needed, or -1 where the guards do not hold. Dims that are known are for the caller to
    compare.
    """
    body = f"{run}.body"
    program.emit(b, body, linkage="internal")
    first = len(program.graph.inputs) + len(program.bound) + len(program.packed) + len(program.graph.outputs)
    with b.function(run, [("args", "ptr"), ("workspace", "ptr")], "int32") as (args, workspace):
        words = [b.load(b.gep(args, first + i, "int64"), "int64") for i in range(len(program.symbols))]
        told = "".join(f", i64 {word.name}" for word in words)
        b.ret(b.fresh(f"call i32 @{body}(ptr {args.name}, ptr {workspace.name}{told})", "int32"))
    with b.function(sizes, [("dims", "ptr"), ("args", "ptr"), ("outputs", "ptr")], "int64") as values:
        _emit_sizes(b, program, guards, *values)


def _emit_sizes(b: Builder, program: Program, guards: SizeGuards, dims: Value, args: Value, outputs: Value) -> None:
    symbols, checks = _read_symbols(b, program, dims)
    evaluate = Sizes(b, symbols)
    one = b.const(1, "int64")
    # Several axes of inputs that must agree, or that are expressions, have been read as values of their own.
    conditions = [b.icmp("eq", seen, evaluate.value(dim)) for seen, dim in checks]
    conditions += [b.icmp("sge", evaluate.value(dim), one) for dim in guards.positive]
    conditions += [b.icmp("eq", evaluate.value(x), evaluate.value(y)) for x, y in guards.equal]
    good = conditions[0]
    for condition in conditions[1:]:
        good = b.and_(good, condition)
    refuse, serve = b.fresh_label("refuse"), b.fresh_label("serve")
    b.cond_br(good, serve, refuse, likely=True)
    b.start(refuse)
    b.ret(b.const(REFUSED, "int64"))
    b.start(serve)
    for i, symbol in enumerate(program.symbols):
        b.store(symbols[symbol], b.gep(args, i, "int64"))
    results = program.graph.outputs
    words = [*[dim for output in results for dim in output.shape], *[output.type.nbytes for output in results]]
    for i, dim in enumerate(words):
        b.store(evaluate.value(dim), b.gep(outputs, i, "int64"))
    b.ret(evaluate.value(program.memory.total))


def _read_symbols(b: Builder, program: Program, dims: Value) -> tuple[dict[Symbol, Value], list[tuple[Value, Dim]]]:
    """Each symbol from the first axis that it is the size of; all other unknown axes, with what they must be."""
    symbols: dict[Symbol, Value] = {}
    checks: list[tuple[Value, Dim]] = []
    for i, node in enumerate(program.graph.inputs):
        if node.type.is_static:
            continue
        shape = b.load(b.gep(dims, i, "ptr"), "ptr")
        for axis, dim in enumerate(node.shape):
            if isinstance(dim, int):
                continue
            seen = b.load(b.gep(shape, axis, "int64"), "int64")
            atom = sole_atom(dim)
            if isinstance(atom, Symbol) and atom not in symbols:
                symbols[atom] = seen
            else:
                checks.append((seen, dim))
    return symbols, checks


__all__ = ["REFUSED", "emit_open"]
