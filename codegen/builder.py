"""The builder: everything that writes LLVM text for one module, in one class."""

from graphkb.codegen.builder_core import (
    FLOATS,
    INTEGERS,
    ITEM_SIZES,
    SIGNED,
    UNSIGNED,
    Value,
    literal,
    llvm_type,
    memory_type,
    type_of,
)
from graphkb.codegen.builder_memory import Memory


class Builder(Memory):
    """Writes one LLVM module as text.

    The instructions come from the base classes: `ModuleText` (constants, blocks, loops, functions), `Casts`,
    `Operations` (arithmetic, comparison, lanes, reductions), `Division` and `Memory`.

    Example:
        >>> from graphkb.codegen.target import named_target
        >>> b = Builder(named_target("x86-64-v3"))
        >>> with b.function("twice", [("x", "ptr")]) as (x,):
        ...     value = b.load(x, "float32", 8)
        ...     b.store(b.fadd(value, value), x)
        ...     b.ret()
        >>> "fadd <8 x float>" in b.module()
        True
    """


__all__ = [
    "FLOATS",
    "INTEGERS",
    "ITEM_SIZES",
    "SIGNED",
    "UNSIGNED",
    "Builder",
    "Value",
    "literal",
    "llvm_type",
    "memory_type",
    "type_of",
]
