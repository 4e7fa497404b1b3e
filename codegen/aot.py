"""Ahead of time: a graph as a module of plain C functions that need nothing but themselves."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field

import numpy as np

from graphkb.codegen.builder import Builder, Value
from graphkb.codegen.emit import Sizes
from graphkb.codegen.packed_weights import Packing
from graphkb.codegen.planner import make_program
from graphkb.codegen.program import Program, interpreted_nodes
from graphkb.codegen.target import Target
from graphkb.codegen.threads import define_parallel_for, library_pool, program_hook
from graphkb.ir.dims import Dim, Expr, Symbol, free_symbols, sole_atom
from graphkb.ir.errors import CompileError
from graphkb.ir.graph import Graph, built_at, graph_symbols
from graphkb.ir.leaves import Array, VariableCell
from graphkb.ir.node import Node
from graphkb.ir.record import record
from graphkb.ir.types import NUMPY_DTYPE
from graphkb.passes.pipeline import FUSION, optimize
from graphkb.passes.plan_memory import aligned
from graphkb.passes.unify_sizes import UnifySizes, distinct_sizes

ABI_VERSION = 1
# A library's bytes hold this mark and then its description, so that it can be found without knowing any name.
MARK = b"graphkb-library "
OK, NULL_POINTER, BAD_SIZE, BAD_WORKSPACE, BAD_INDEX, BAD_INDEX_VALUE = range(6)
_BLOCK = 64

# Words of C and C++ that can be no name.
C_KEYWORDS = frozenset((
    "auto", "break", "case", "char", "const", "continue", "default", "do", "double", "else", "enum", "extern",
    "float", "for", "goto", "if", "inline", "int", "long", "register", "restrict", "return", "short", "signed",
    "sizeof", "static", "struct", "switch", "typedef", "union", "unsigned", "void", "volatile", "while",
    "_Bool", "_Complex", "_Imaginary", "bool", "true", "false", "class", "new", "delete", "this", "template",
    "namespace", "public", "private", "protected", "virtual", "operator", "try", "catch", "throw", "using",
    "friend", "explicit", "export", "typename", "mutable", "and", "or", "not", "xor",
))  # fmt: skip


@record
class CArray:
    """An input or output as C sees it: a pointer to row-major elements."""

    name: str
    dtype: str
    shape: tuple[Dim, ...]


@record
class CVariable:
    """A variable that the program updates: it lives in the caller's state, `offset` bytes from its start."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    offset: int


@dataclass
class CModule:
    """A program ready to be written as an object file.

    Attributes:
        prefix: what every public symbol begins with.
        text: the module as LLVM text.
        sizes: the parameters for unknown sizes, in order.
        workspace: the bytes of scratch memory, perhaps depending on sizes.
        state_bytes: the size of the caller's state; 0 where nothing is updated.
        threads: who runs parallel loops: "none", "hook" or "pool".
    """

    prefix: str
    target: Target
    inputs: tuple[CArray, ...]
    outputs: tuple[CArray, ...]
    sizes: dict[Symbol, str]
    workspace: Dim
    variables: tuple[CVariable, ...]
    state_bytes: int
    threads: str = "none"
    text: str = ""
    loops: str = field(default="", repr=False)

    def description(self) -> dict[str, object]:
        """What `graphkb.load` needs to know, as JSON values."""

        def shape(array: CArray) -> list[int | str]:
            return [d if isinstance(d, int) else show_dim(d, self.sizes) for d in array.shape]

        def arrays(items: tuple[CArray, ...]) -> list[dict[str, object]]:
            return [{"name": a.name, "dtype": a.dtype, "shape": shape(a)} for a in items]

        variables = [
            {"name": v.name, "dtype": v.dtype, "shape": list(v.shape), "offset": v.offset} for v in self.variables
        ]
        return {
            "abi": ABI_VERSION,
            "prefix": self.prefix,
            "target": self.target.name,
            "inputs": arrays(self.inputs),
            "outputs": arrays(self.outputs),
            "sizes": list(self.sizes.values()),
            "variables": variables,
            "state_bytes": self.state_bytes,
            "threads": self.threads,
        }


def show_dim(dim: Dim, sizes: dict[Symbol, str]) -> str:
    """A size as a C expression over the size parameters."""
    if not isinstance(dim, Expr):
        return str(dim)
    terms = []
    for monomial, factor in sorted(dim.terms, key=str):
        parts = [] if factor == 1 and monomial else [str(factor)]
        for atom, power in sorted(monomial, key=str):
            if isinstance(atom, Symbol):
                text = sizes[atom]
            else:
                args = [show_dim(a, sizes) for a in atom.args]
                text = f"({args[0]}) / ({args[1]})" if atom.fn == "floordiv" else f"{atom.fn}({', '.join(args)})"
                text = f"({text})"
            parts += [text] * power
        terms.append(" * ".join(parts))
    return " + ".join(sorted(terms)).replace("+ -", "- ")


def make_c_module(graph: Graph, prefix: str, target: Target, sizes: dict[str, int], threads: str = "none") -> CModule:
    """The C module of a function's graph.

    Args:
        graph: as it was built, with unknown sizes.
        prefix: a C identifier.
        sizes: values for unknown sizes, by name.
        threads: "none", "hook" or "pool".

    Raises:
        CompileError: a node has no kernel, or a size can not stay unknown; the text names it.
    """
    graph = UnifySizes().apply(_fixed(graph, sizes))
    graph = graph.bind(distinct_sizes(graph))
    fused = optimize(optimize(graph), FUSION)
    _refuse_interpreted(fused)
    program = make_program(fused, target, packs=True)
    names = _size_names(graph)
    _refuse_compound(graph, names)
    variables, state_bytes = _state(graph)
    module = CModule(
        prefix=prefix,
        target=target,
        inputs=_arrays(graph.inputs, names),
        outputs=tuple([CArray(f"out{i}", n.dtype, n.shape) for i, n in enumerate(graph.outputs)]),
        sizes=names,
        workspace=program.memory.total,
        variables=tuple(variables.values()),
        state_bytes=state_bytes,
        threads=threads,
        loops=program.loops,
    )
    module.text = _emit(module, program, variables)
    return module


def _fixed(graph: Graph, sizes: dict[str, int]) -> Graph:
    symbols = graph_symbols(graph)
    known = {s.name for s in symbols}
    for name in sizes:
        if name not in known:
            raise CompileError(
                f"compile: there is no unknown size {name!r}; there are: {', '.join(sorted(known)) or 'none'}"
            )
    return graph.bind({s: sizes[s.name] for s in symbols if s.name in sizes})


def _refuse_interpreted(graph: Graph) -> None:
    found = interpreted_nodes(graph)
    if not found:
        return
    lines = "".join(f"\n  {n.op.name}: {n.type!r}: there is no kernel for {n.op.name}{built_at(n)}" for n in found)
    count = f"{len(found)} node{'s' if len(found) > 1 else ''}"
    raise CompileError(f"compile: {count} of {graph.name} can only be interpreted:{lines}")


def _refuse_compound(graph: Graph, names: dict[Symbol, str]) -> None:
    for node in graph.inputs:
        for axis, dim in enumerate(node.shape):
            if not isinstance(dim, int) and not isinstance(sole_atom(dim), Symbol):
                raise CompileError(
                    f"compile: axis {axis} of the input {node.attrs['key']!r} must be {show_dim(dim, names)}: "
                    f"fix one of these sizes, as in compile(fn, path, sizes={{{next(iter(names.values()))!r}: 32}})"
                )


def c_name(name: str, taken: set[str]) -> str:
    """A C identifier near a name, and different from all that are taken; it is taken from then on."""
    plain = re.sub(r"\W", "_", name, flags=re.ASCII) or "x"
    if plain[0].isdigit() or plain in C_KEYWORDS:
        plain = f"_{plain}" if plain[0].isdigit() else f"{plain}_"
    candidate, count = plain, 1
    while candidate in taken:
        count += 1
        candidate = f"{plain}_{count}"
    taken.add(candidate)
    return candidate


_RESERVED = {"workspace", "state", "dims", "index"}


def _size_names(graph: Graph) -> dict[Symbol, str]:
    """The size parameters in the order in which the inputs' shapes mention them."""
    names: dict[Symbol, str] = {}
    taken = set(_RESERVED)
    for node in graph.inputs:
        for dim in node.shape:
            for symbol in sorted(free_symbols(dim), key=lambda s: s.name):
                if symbol not in names:
                    names[symbol] = c_name(symbol.name, taken)
    return names


def _arrays(inputs: tuple[Node, ...], sizes: dict[Symbol, str]) -> tuple[CArray, ...]:
    taken = _RESERVED | set(sizes.values()) | {f"out{i}" for i in range(100)}
    return tuple([CArray(c_name(n.attrs["key"].name, taken), n.dtype, n.shape) for n in inputs])


def _state(graph: Graph) -> tuple[dict[VariableCell, CVariable], int]:
    """The places of updated variables in the caller's state, and its size."""
    taken: set[str] = set()
    found: dict[VariableCell, CVariable] = {}
    offset = 0
    for cell, _ in graph.updates:
        shape = cell.array.shape
        found[cell] = CVariable(c_name(cell.name, taken), cell.type.dtype, shape, offset)
        size = aligned(cell.array.nbytes)
        assert isinstance(size, int)
        offset += size
    return found, offset


# ---------------------------------------------------------------------------------------------- emission
def _emit(module: CModule, program: Program, variables: dict[VariableCell, CVariable]) -> str:
    prefix = module.prefix
    b = Builder(module.target, parallel_for=_parallel_for(module))
    body = f"{prefix}.body"
    program.emit(b, body, linkage="internal")
    if b.parallel_for:  # its setter is there even if no loop is worth it
        define_parallel_for(b)
    # The program takes its sizes in an order of its own.
    order = [list(module.sizes).index(symbol) for symbol in program.symbols]
    sizes = [(f"n{i}", "int64") for i in range(len(module.sizes))]
    pointers = [(f"a{i}", "ptr") for i in range(len(module.inputs) + len(module.outputs))]
    state = [("state", "ptr")] if module.state_bytes else []
    with b.function(f"{prefix}_run", [*pointers, *sizes, *state, ("workspace", "ptr")], "int32") as values:
        _emit_run(b, module, program, variables, values, order, body)
    with b.function(f"{prefix}_workspace_size", sizes, "int64") as values:
        b.ret(Sizes(b, dict(zip(module.sizes, values))).value(module.workspace))
    with b.function(f"{prefix}_output_shape", [("index", "int32"), *sizes, ("dims", "ptr")], "int32") as values:
        _emit_shapes(b, module, values)
    with b.function(f"{prefix}_abi_version", [], "int32"):
        b.ret(b.const(ABI_VERSION, "int32"))
    description = MARK + json.dumps(module.description(), separators=(",", ":")).encode() + b"\0"
    with b.function(f"{prefix}_description", [], "ptr"):
        b.ret(b.byte_offset(b.constant_bytes(description), len(MARK)))
    if module.state_bytes:
        with b.function(f"{prefix}_state_init", [("state", "ptr")]) as (memory,):
            _emit_state(b, variables, memory)
    return b.module()


def _parallel_for(module: CModule) -> str:
    """The function that runs parallel loops, as LLVM text."""
    match module.threads:
        case "hook":
            return program_hook(module.target, module.prefix)
        case "pool":
            return library_pool(module.target, module.prefix)
        case _:
            return ""


def _fail_if(b: Builder, bad: Value, code: int) -> None:
    """Return an error code where a condition holds."""
    fail, go_on = b.fresh_label("fail"), b.fresh_label("ok")
    b.cond_br(bad, fail, go_on, likely=False)
    b.start(fail)
    b.ret(b.const(code, "int32"))
    b.start(go_on)


def _address(b: Builder, pointer: Value) -> Value:
    return b.fresh(f"ptrtoint ptr {pointer.name} to i64", "int64")


def _emit_run(
    b: Builder,
    module: CModule,
    program: Program,
    variables: dict[VariableCell, CVariable],
    values: list[Value],
    order: list[int],
    body: str,
) -> None:
    zero = b.const(0, "int64")
    count = len(module.inputs) + len(module.outputs)
    arrays, rest = values[:count], values[count:]
    sizes, workspace = rest[: len(module.sizes)], rest[-1]
    for pointer in arrays:
        _fail_if(b, b.icmp("eq", _address(b, pointer), zero), NULL_POINTER)
    for size in sizes:
        _fail_if(b, b.icmp("slt", size, zero), BAD_SIZE)
    scratch = [rest[-2]] if module.state_bytes else []
    if module.workspace != 0:
        needed = Sizes(b, dict(zip(module.sizes, sizes))).value(module.workspace)
        missing = b.icmp("eq", _address(b, workspace), zero)
        _fail_if(b, b.and_(missing, b.icmp("sgt", needed, zero)), BAD_WORKSPACE)
        scratch.append(workspace)
    for memory in scratch:
        low = b.and_(_address(b, memory), b.const(_BLOCK - 1, "int64"))
        _fail_if(b, b.icmp("ne", low, zero), BAD_WORKSPACE)
    if module.state_bytes:
        _fail_if(b, b.icmp("eq", _address(b, scratch[0]), zero), NULL_POINTER)
    unread = program.unread
    bound = [
        b.byte_offset(scratch[0], variables[node.attrs["cell"]].offset)
        if node.op.name == "variable" and node.attrs["cell"] in variables
        else b.null()
        if node in unread
        else _constant(b, node)
        for node in program.bound
    ]
    packed = [_packed(b, packing) for packing in program.packed]
    inputs = len(module.inputs)
    listed = [*arrays[:inputs], *bound, *packed, *arrays[inputs:]]
    args = b.alloca("ptr", max(1, len(listed)))
    for i, pointer in enumerate(listed):
        b.store(pointer, b.gep(args, i, "ptr"))
    told = "".join(f", i64 {sizes[i].name}" for i in order)
    status = b.fresh(f"call i32 @{body}(ptr {args.name}, ptr {workspace.name}{told})", "int32")
    if program.may_stop:
        _fail_if(b, b.icmp("ne", status, b.const(0, "int32")), BAD_INDEX_VALUE)
    b.ret(b.const(OK, "int32"))


def _emit_shapes(b: Builder, module: CModule, values: list[Value]) -> None:
    index, dims = values[0], values[-1]
    sizes = Sizes(b, dict(zip(module.sizes, values[1:-1])))
    for i, output in enumerate(module.outputs):
        this, following = b.fresh_label("shape"), b.fresh_label("next")
        b.cond_br(b.icmp("eq", index, b.const(i, "int32")), this, following)
        b.start(this)
        for axis, dim in enumerate(output.shape):
            b.store(sizes.value(dim), b.gep(dims, axis, "int64"))
        b.ret(b.const(OK, "int32"))
        b.start(following)
    b.ret(b.const(BAD_INDEX, "int32"))


def _constant(b: Builder, node: Node) -> Value:
    """The address of a leaf's value inside the module."""
    assert node.op.numpy is not None
    return _bytes(b, np.asarray(node.op.numpy(**node.attrs)))


def _packed(b: Builder, packing: Packing) -> Value:
    """The address of a leaf's packed value inside the module."""
    numpy, layout = packing.leaf.op.numpy, packing.layout
    assert numpy is not None
    array = np.empty(layout.size, NUMPY_DTYPE[layout.dtype])
    layout.pack(np.ascontiguousarray(numpy(**packing.leaf.attrs)), array)
    return _bytes(b, array)


def _bytes(b: Builder, array: Array) -> Value:
    """The address of an array's bytes, filled up to whole blocks."""
    data = np.ascontiguousarray(array).tobytes()
    return b.constant_bytes(data + b"\0" * (-len(data) % _BLOCK), _BLOCK)


def _emit_state(b: Builder, variables: dict[VariableCell, CVariable], memory: Value) -> None:
    for cell, variable in variables.items():
        source, target = _bytes(b, cell.array), b.byte_offset(memory, variable.offset)
        end = b.const(-(-cell.array.nbytes // _BLOCK) * _BLOCK, "int64")

        def copy(at: Value, source: Value = source, target: Value = target) -> None:
            block = b.load(b.byte_offset(source, at), "uint8", _BLOCK)
            b.store(block, b.byte_offset(target, at))

        b.loop(b.const(0, "int64"), end, _BLOCK, copy)
    b.ret()
