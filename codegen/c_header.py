"""The C header of an ahead-of-time library: declarations, sizes, and an example that compiles."""

from __future__ import annotations

from graphkb.codegen.aot import ABI_VERSION, CArray, CModule, show_dim
from graphkb.ir.dims import product

C_TYPES = {
    "bool": "uint8_t",
    "float16": "uint16_t",
    "float32": "float",
    "float64": "double",
    **{f"{u}int{n}": f"{u}int{n}_t" for u in ("", "u") for n in (8, 16, 32, 64)},
}


def header_text(module: CModule, version: str) -> str:
    """The header of a module, for C99 and C++."""
    p, upper = module.prefix, module.prefix.upper()
    guard = f"{upper}_H_"
    sections = [
        f"/* {p}.h - made by graphkb {version} for {module.target.name}; do not edit.",
        " *",
        *_describe(module),
        " */",
        f"#ifndef {guard}",
        f"#define {guard}",
        "",
        "#include <stdint.h>",
        "",
        "#ifdef __cplusplus",
        'extern "C" {',
        "#endif",
        "",
        f"#define {upper}_ABI_VERSION {ABI_VERSION}",
        *_macros(module, upper),
        "",
        "/* What the functions below return. */",
        "enum {",
        f"  {upper}_OK = 0,",
        f"  {upper}_NULL_POINTER = 1,    /* an array or the state is NULL */",
        f"  {upper}_BAD_SIZE = 2,        /* a size is negative */",
        f"  {upper}_BAD_WORKSPACE = 3,   /* workspace or state is not aligned to 64 bytes, or workspace is missing */",
        f"  {upper}_BAD_INDEX = 4,       /* there is no output of that number */",
        f"  {upper}_BAD_INDEX_VALUE = 5  /* an index inside an array is out of range: the outputs hold anything, */",
        "                               /* the state is as it was */",
        "};",
        "",
        "/* Compute all outputs. Threads may run it at once, each with memory of its own. */",
        f"int32_t {p}_run({', '.join(_run_parameters(module))});",
        "",
        "/* The bytes of scratch memory that a run with these sizes needs, aligned to 64 bytes. */",
        f"int64_t {p}_workspace_size({', '.join(_sizes(module)) or 'void'});",
        "",
        "/* The shape of output `index`, one number for each of its axes. */",
        f"int32_t {p}_output_shape({', '.join(['int32_t index', *_sizes(module), 'int64_t *dims'])});",
        "",
        *_state_declarations(module, upper),
        *_thread_declarations(module),
        f"/* {upper}_ABI_VERSION of the library that runs. */",
        f"int32_t {p}_abi_version(void);",
        "",
        "/* Inputs, outputs and sizes as JSON text. */",
        f"const char *{p}_description(void);",
        "",
        "#ifdef __cplusplus",
        "}",
        "#endif",
        "",
        f"#endif /* {guard} */",
    ]
    return "\n".join(sections) + "\n"


def _describe(module: CModule) -> list[str]:
    lines = [" * All arrays are row-major, and aligned as their elements are."]
    for role, arrays in (("input", module.inputs), ("output", module.outputs)):
        for array in arrays:
            shape = ", ".join(show_dim(d, module.sizes) for d in array.shape)
            note = {"bool": " (0 or 1)", "float16": " (IEEE half precision bits)"}.get(array.dtype, "")
            lines.append(f" * {role} {array.name}: {array.dtype}[{shape}]{note}")
    lines += [" *", " * Example:", " *", *[f" *   {line}".rstrip() for line in _example(module)]]
    return lines


def _example(module: CModule) -> list[str]:
    p, upper = module.prefix, module.prefix.upper()
    arguments = [a.name for a in (*module.inputs, *module.outputs)] + list(module.sizes.values())
    arguments += ["state"] if module.state_bytes else []
    lines = [f'#include "{p}.h"', ""]
    lines += [f"int64_t {name} = 32;" for name in module.sizes.values()]
    lines.append(f"void *workspace = aligned_alloc(64, {p}_workspace_size({', '.join(module.sizes.values())}) + 64);")
    if module.state_bytes:
        lines += [f"void *state = aligned_alloc(64, {upper}_STATE_SIZE);", f"{p}_state_init(state);"]
    lines.append(f"if ({p}_run({', '.join([*arguments, 'workspace'])}) != {upper}_OK) abort();")
    return lines


def _macros(module: CModule, upper: str) -> list[str]:
    lines = []
    for array in (*module.inputs, *module.outputs):
        lines.append(f"#define {upper}_{array.name.upper()}_NDIM {len(array.shape)}")
        size = product(array.shape)
        if isinstance(size, int):
            lines.append(f"#define {upper}_{array.name.upper()}_SIZE {size}")
    if isinstance(module.workspace, int):
        lines.append(f"#define {upper}_WORKSPACE_SIZE {module.workspace}")
    return lines


def _parameter(array: CArray, constant: bool) -> str:
    return f"{'const ' if constant else ''}{C_TYPES[array.dtype]} *{array.name}"


def _sizes(module: CModule) -> list[str]:
    return [f"int64_t {name}" for name in module.sizes.values()]


def _run_parameters(module: CModule) -> list[str]:
    parameters = [_parameter(a, True) for a in module.inputs] + [_parameter(a, False) for a in module.outputs]
    return [*parameters, *_sizes(module), *(["void *state"] if module.state_bytes else []), "void *workspace"]


def _state_declarations(module: CModule, upper: str) -> list[str]:
    if not module.state_bytes:
        return []
    lines = [
        "/* The variables that a run updates live in memory of the caller's, aligned to 64 bytes.",
        " * Set them to the values that they had when the library was made, then run as often as you like. */",
        f"#define {upper}_STATE_SIZE {module.state_bytes}",
    ]
    lines += [f"#define {upper}_STATE_{v.name.upper()}_OFFSET {v.offset}" for v in module.variables]
    return [*lines, f"void {module.prefix}_state_init(void *state);", ""]


def _thread_declarations(module: CModule) -> list[str]:
    p = module.prefix
    if module.threads == "hook":
        return [
            "/* Large loops are handed to a function of yours, if you set one; results do not depend on it.",
            f" * {p}_parallel_for must call body(context, begin, end) for ranges that cover 0 <= i < extent once,",
            " * begin at multiples of grain, and return when all calls have; they may run at once, on any threads. */",
            f"typedef void (*{p}_body)(void *context, int64_t begin, int64_t end);",
            f"typedef void (*{p}_parallel_for)({p}_body body, void *context, int64_t extent, int64_t grain);",
            f"void {p}_set_parallel_for({p}_parallel_for function); /* NULL: the calling thread does all */",
            "",
        ]
    if module.threads == "pool":
        return [
            "/* Large loops run on threads of the library's own; results do not depend on how many there are. They are",
            " * as many as the process may use processors, until you say how many, the calling one among them. */",
            f"void {p}_set_threads(int32_t count); /* 0: as many as there are processors */",
            "",
        ]
    return []
