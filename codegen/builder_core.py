"""The text of one LLVM module as it grows: values, constants, instructions, blocks, loops and functions."""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, NamedTuple

from graphkb.codegen.target import Target

if TYPE_CHECKING:
    from graphkb.codegen.timing import Watch

FLOATS = ("float16", "float32", "float64")
SIGNED = ("int8", "int16", "int32", "int64")
UNSIGNED = ("uint8", "uint16", "uint32", "uint64")
INTEGERS = SIGNED + UNSIGNED

# float16 travels as its 16 bits: only casts look inside, so no machine needs a library for it.
LLVM_TYPES = {
    "float16": "i16", "float32": "float", "float64": "double",
    "int8": "i8", "int16": "i16", "int32": "i32", "int64": "i64",
    "uint8": "i8", "uint16": "i16", "uint32": "i32", "uint64": "i64",
    "bool": "i1", "ptr": "ptr",
}  # fmt: skip
ITEM_SIZES = {
    "float16": 2, "float32": 4, "float64": 8,
    "int8": 1, "int16": 2, "int32": 4, "int64": 8,
    "uint8": 1, "uint16": 2, "uint32": 4, "uint64": 8,
    "bool": 1,
}  # fmt: skip

# How LLVM spells each byte inside a string.
_BYTE_TEXT = [chr(c) if 32 <= c < 127 and c not in (34, 92) else f"\\{c:02X}" for c in range(256)]
Number = bool | int | float
Param = tuple[str, str] | tuple[str, str, str]


class Value(NamedTuple):
    """An operand: its LLVM text, one of the dtypes or "ptr", and its lanes (1 is a scalar)."""

    name: str
    dtype: str
    lanes: int = 1


def llvm_type(dtype: str, lanes: int = 1) -> str:
    """The LLVM type of a value, such as "float" or "<16 x float>"."""
    return LLVM_TYPES[dtype] if lanes == 1 else f"<{lanes} x {LLVM_TYPES[dtype]}>"


def type_of(value: Value) -> str:
    """The LLVM type of `value`."""
    return llvm_type(value.dtype, value.lanes)


def memory_type(dtype: str, lanes: int = 1) -> str:
    """The LLVM type that holds `dtype` in memory, where a bool fills a byte."""
    return llvm_type("uint8" if dtype == "bool" else dtype, lanes)


def literal(number: Number, dtype: str) -> str:
    """The exact LLVM spelling of a constant.

    Raises:
        OverflowError: an integer constant does not fit `dtype`.
    """
    if dtype == "bool":
        return "true" if number else "false"
    if dtype == "float16":
        return str(struct.unpack("<h", struct.pack("<e", _to_half(float(number))))[0])
    if dtype in ("float32", "float64"):
        value = float(number)
        if math.isnan(value):
            return "0x7FF8000000000000"
        if dtype == "float32":
            value = _to_single(value)
        return f"0x{struct.unpack('<Q', struct.pack('<d', value))[0]:016X}"
    if dtype == "ptr":
        if number:
            raise OverflowError("constant: only 0 is a pointer constant")
        return "null"
    bits = ITEM_SIZES[dtype] * 8
    value_int = int(number)
    low, high = (0, 2**bits) if dtype in UNSIGNED else (-(2 ** (bits - 1)), 2 ** (bits - 1))
    if not low <= value_int < high:
        raise OverflowError(f"constant: {number} does not fit {dtype}")
    return str(value_int)


def _to_single(value: float) -> float:
    try:
        return float(struct.unpack("<f", struct.pack("<f", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)


def _to_half(value: float) -> float:
    try:
        return float(struct.unpack("<e", struct.pack("<e", value))[0])
    except OverflowError:
        return math.copysign(math.inf, value)


class ModuleText:
    """The lines of a module for one target.

    Every method that computes appends an instruction to the current block and returns a `Value`. LLVM's
    optimization passes do not run, so what is written is what executes.

    Args:
        target: the machine.
        fastmath: whether floating-point instructions may be reassociated and contracted; NaN and infinities
            are kept in either case.
        parallel_for: the definition of the function that runs parallel regions, as LLVM text; "" for none.
    """

    def __init__(self, target: Target, fastmath: bool = False, parallel_for: str = "") -> None:
        self.target = target
        self.fastmath = fastmath
        self.parallel_for = parallel_for
        self.watch: Watch | None = None  # times the calls of programs, where they are profiled
        self.block = ""
        self._lines: list[str] = []
        self._entry: list[str] = []
        self._functions: list[str] = []
        self._globals: list[str] = []
        self._constants: dict[tuple[str, bytes], str] = {}
        self._declarations: dict[str, str] = {}
        self._count = 0
        self._global_count = 0

    # Values and constants

    def const(self, number: Number, dtype: str, lanes: int = 1) -> Value:
        """The same constant in every lane, rounded to nearest for floats."""
        text = literal(number, dtype)
        if lanes > 1:
            text = f"splat ({LLVM_TYPES[dtype]} {text})"
        return Value(text, dtype, lanes)

    def const_like(self, number: Number, like: Value) -> Value:
        """A constant with the dtype and lanes of `like`."""
        return self.const(number, like.dtype, like.lanes)

    def const_vector(self, numbers: Sequence[Number], dtype: str) -> Value:
        """A vector constant, one number a lane."""
        if len(numbers) == 1:
            return self.const(numbers[0], dtype)
        kind = LLVM_TYPES[dtype]
        return Value("<" + ", ".join(f"{kind} {literal(n, dtype)}" for n in numbers) + ">", dtype, len(numbers))

    def iota(self, dtype: str, lanes: int) -> Value:
        """The vector 0, 1, 2, …"""
        return self.const_vector(range(lanes), dtype)

    def undef(self, dtype: str, lanes: int = 1) -> Value:
        """A value that nothing may depend on."""
        return Value("poison", dtype, lanes)

    def null(self) -> Value:
        """The null pointer."""
        return Value("null", "ptr", 1)

    # Instructions

    def line(self, text: str) -> None:
        """Append an instruction without a result."""
        self._lines.append("  " + text)

    def comment(self, text: str) -> None:
        """Append a comment, such as the user's lines that a kernel stems from."""
        self._lines.append("  ; " + " ".join(text.split()))

    def fresh(self, text: str, dtype: str, lanes: int = 1) -> Value:
        """Append an instruction and name its result."""
        self._count += 1
        name = f"%.{self._count}"
        self._lines.append(f"  {name} = {text}")
        return Value(name, dtype, lanes)

    def declare(self, name: str, text: str) -> None:
        """Make sure that the module declares the function `name` by the line `text`."""
        self._declarations[name] = text

    def call(self, name: str, dtype: str, lanes: int, args: Sequence[Value], flags: str = "") -> Value:
        """Call the declared function or intrinsic `name` for a result of `dtype` and `lanes`."""
        kind = llvm_type(dtype, lanes)
        if name not in self._declarations:
            params = ", ".join(type_of(a) for a in args)
            self._declarations[name] = f"declare {kind} @{name}({params})"
        operands = ", ".join(f"{type_of(a)} {a.name}" for a in args)
        return self.fresh(f"call {flags}{kind} @{name}({operands})", dtype, lanes)

    def call_void(self, name: str, args: Sequence[Value]) -> None:
        """Call the declared function or intrinsic `name` without a result."""
        if name not in self._declarations:
            params = ", ".join(type_of(a) for a in args)
            self._declarations[name] = f"declare void @{name}({params})"
        operands = ", ".join(f"{type_of(a)} {a.name}" for a in args)
        self.line(f"call void @{name}({operands})")

    def alloca(self, dtype: str, count: int = 1, align: int = 64) -> Value:
        """Stack memory of the current function for `count` elements."""
        self._count += 1
        name = f"%.{self._count}"
        self._entry.append(f"  {name} = alloca [{count} x {memory_type(dtype)}], align {align}")
        return Value(name, "ptr", 1)

    # Globals

    def constant_bytes(self, data: bytes, align: int = 64) -> Value:
        """The address of read-only bytes in the module; equal bytes share one place."""
        key = (str(align), data)
        if key not in self._constants:
            self._global_count += 1
            name = f"@constant.{self._global_count}"
            text = "".join(map(_BYTE_TEXT.__getitem__, data))
            self._globals.append(f'{name} = private unnamed_addr constant [{len(data)} x i8] c"{text}", align {align}')
            self._constants[key] = name
        return Value(self._constants[key], "ptr", 1)

    def global_line(self, text: str) -> None:
        """Append a global definition as LLVM text."""
        self._globals.append(text)

    # Blocks

    def fresh_label(self, hint: str = "block") -> str:
        """A block name that nothing else uses; `start` opens the block."""
        self._count += 1
        return f"{hint}.{self._count}"

    def start(self, label: str) -> None:
        """Open the block `label`: what follows goes there. The block before must have ended in a branch."""
        self._lines.append(f"{label}:")
        self.block = label

    def br(self, label: str) -> None:
        """Jump to `label`."""
        self.line(f"br label %{label}")

    def cond_br(self, condition: Value, then: str, otherwise: str, likely: bool | None = None) -> None:
        """Jump to `then` where the scalar bool `condition` holds, else to `otherwise`."""
        weight = ""
        if likely is not None:
            odds = '!{!"branch_weights", i32 2000, i32 1}' if likely else '!{!"branch_weights", i32 1, i32 2000}'
            weight = f", !prof {odds}"
        self.line(f"br i1 {condition.name}, label %{then}, label %{otherwise}{weight}")

    def phi(self, incoming: Sequence[tuple[Value, str]]) -> Value:
        """The value that belongs to the block control came from; must open its block."""
        first = incoming[0][0]
        pairs = ", ".join(f"[ {value.name}, %{label} ]" for value, label in incoming)
        return self.fresh(f"phi {type_of(first)} {pairs}", first.dtype, first.lanes)

    def ret(self, value: Value | None = None) -> None:
        """Leave the function."""
        self.line("ret void" if value is None else f"ret {type_of(value)} {value.name}")

    def loop(
        self,
        begin: Value,
        end: Value,
        step: Value | int,
        body: Callable[..., Sequence[Value] | None],
        carried: Sequence[Value] = (),
        hint: str = "loop",
    ) -> list[Value]:
        """A counted loop: `for i in range(begin, end, step): carried = body(i, *carried)`.

        Args:
            begin: the first index, a scalar integer.
            end: the loop runs while the index is below this (signed comparison); it may run zero times.
            step: positive.
            body: writes the body; returns the next carried values, None when nothing is carried.
            carried: the values before the first round.
            hint: the stem of the block names.

        Returns:
            The carried values after the last round.
        """
        kind = type_of(begin)
        stride = str(step) if isinstance(step, int) else step.name
        head, done = self.fresh_label(hint), self.fresh_label(hint + ".end")
        before = self.block
        self.cond_br(self.fresh(f"icmp slt {kind} {begin.name}, {end.name}", "bool"), head, done)
        self.start(head)
        # The back edge is known only after the body, so the phi lines are filled in afterwards.
        slot = len(self._lines)
        self._count += 1
        index = Value(f"%.{self._count}", begin.dtype, 1)
        states = []
        for value in carried:
            self._count += 1
            states.append(Value(f"%.{self._count}", value.dtype, value.lanes))
        after = list(body(index, *states) or ())
        if len(after) != len(states):
            raise ValueError(f"loop: body returned {len(after)} carried values, expected {len(states)}")
        following = self.fresh(f"add nsw {kind} {index.name}, {stride}", begin.dtype)
        back = self.block
        self.cond_br(self.fresh(f"icmp slt {kind} {following.name}, {end.name}", "bool"), head, done)
        phis = [f"  {index.name} = phi {kind} [ {begin.name}, %{before} ], [ {following.name}, %{back} ]"]
        phis += [
            f"  {state.name} = phi {type_of(state)} [ {value.name}, %{before} ], [ {new.name}, %{back} ]"
            for state, value, new in zip(states, carried, after)
        ]
        self._lines[slot:slot] = phis
        self.start(done)
        return [self.phi([(value, before), (new, back)]) for value, new in zip(carried, after)]

    def repeat(
        self,
        condition: Callable[..., Value],
        body: Callable[..., Sequence[Value]],
        carried: Sequence[Value],
        hint: str = "while",
    ) -> list[Value]:
        """An open-ended loop: `while condition(*carried): carried = body(*carried)`; returns `carried`."""
        head, inside, done = (self.fresh_label(hint + part) for part in ("", ".body", ".end"))
        before = self.block
        self.br(head)
        self.start(head)
        slot = len(self._lines)
        states = []
        for value in carried:
            self._count += 1
            states.append(Value(f"%.{self._count}", value.dtype, value.lanes))
        self.cond_br(condition(*states), inside, done)
        self.start(inside)
        after = list(body(*states))
        back = self.block
        self.br(head)
        self._lines[slot:slot] = [
            f"  {state.name} = phi {type_of(state)} [ {value.name}, %{before} ], [ {new.name}, %{back} ]"
            for state, value, new in zip(states, carried, after)
        ]
        self.start(done)
        return states

    def branch(
        self,
        condition: Value,
        then: Callable[[], Sequence[Value] | None],
        otherwise: Callable[[], Sequence[Value] | None] | None = None,
        likely: bool | None = None,
        hint: str = "if",
    ) -> list[Value]:
        """A choice: runs `then` where the scalar bool holds, else `otherwise`; returns its results."""
        yes, no, done = (self.fresh_label(hint + part) for part in (".then", ".else", ".end"))
        before = self.block
        self.cond_br(condition, yes, no if otherwise is not None else done, likely)
        self.start(yes)
        first = list(then() or ())
        from_yes = self.block
        self.br(done)
        second: list[Value] = []
        from_no = before
        if otherwise is not None:
            self.start(no)
            second = list(otherwise() or ())
            from_no = self.block
            self.br(done)
        if len(first) != len(second):
            raise ValueError(f"branch: the two sides give {len(first)} and {len(second)} values")
        self.start(done)
        return [self.phi([(a, from_yes), (b, from_no)]) for a, b in zip(first, second)]

    # Functions and the module

    @contextmanager
    def function(
        self,
        name: str,
        params: Sequence[Param],
        ret: str | None = None,
        linkage: str = "",
        target: Target | None = None,
    ) -> Iterator[list[Value]]:
        """Write one function: `with b.function("f", [("x", "ptr")]) as (x,): …; b.ret()`.

        Args:
            name: the symbol.
            params: name, dtype and optionally LLVM attributes such as "noalias" of each parameter.
            ret: the dtype of the result; None for none.
            linkage: LLVM linkage such as "internal"; exported when empty.
            target: compile this function for another level than the module's.
        """
        if self.block:
            raise ValueError(f"function {name}: the function before it is still open")
        values = [Value(f"%{p[0]}", p[1], 1) for p in params]
        listed = ", ".join(f"{llvm_type(p[1])} {p[2] + ' ' if len(p) == 3 else ''}%{p[0]}" for p in params)
        kind = "void" if ret is None else llvm_type(ret)
        saved = self.target
        self.target = target or saved
        head = f"define {linkage + ' ' if linkage else ''}{kind} @{name}({listed}) nounwind "
        head += self.target.attributes() + " {"
        self._lines, self._entry, self.block = [], [], "entry"
        yield values
        self._functions.append("\n".join([head, "entry:", *self._entry, *self._lines, "}"]))
        self._lines, self._entry, self.block = [], [], ""
        self.target = saved

    def helper(self, name: str, params: Sequence[Param], write: Callable[..., None], args: Sequence[Value]) -> None:
        """Call a private function that `write(*params)` fills in; equal names share one in the module.

        For rare and long code that would burden every place of its use. It has no result but what it stores.
        """
        if name not in self._declarations:
            self.outline(name, params, write)
        self.call_void(name, args)

    def outline(self, name: str, params: Sequence[Param], write: Callable[..., None]) -> None:
        """Write a private function `write(*params)` without a result, while another one is open."""
        self._declarations[name] = f"; {name} is defined above"
        open_function = self._lines, self._entry, self.block
        self.block = ""
        with self.function(name, params, linkage="internal") as values:
            write(*values)
            self.ret()
        self._lines, self._entry, self.block = open_function

    def module(self) -> str:
        """The whole module as LLVM text."""
        parts = [f'target triple = "{self.target.triple}"', *self._globals, *self._functions]
        return "\n".join([*parts, *self._declarations.values()]) + "\n"
