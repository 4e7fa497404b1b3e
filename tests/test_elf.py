"""Linking object files without LLVM: symbols, relocations, protection, unwinding, and what is left to LLVM."""

import ctypes
import gc
import random
import sys
from pathlib import Path

import pytest

from graphkb.codegen import engine
from graphkb.codegen.elf import Image, UnsupportedError
from graphkb.codegen.engine import emit_object, load_object
from graphkb.codegen.target import host_target

TARGET = host_target()
LINUX_X86 = sys.platform == "linux" and TARGET.is_x86
pytestmark = pytest.mark.skipif(not LINUX_X86, reason="the linker is for Linux on x86-64")


def image(text: str) -> Image:
    return Image([emit_object(text, TARGET)])


def run(of: Image, name: str, *args: int) -> int:
    kinds = [ctypes.c_int64] * len(args)
    return int(ctypes.CFUNCTYPE(ctypes.c_int64, *kinds)(of.get_function_address(name))(*args))


MEMORY = """
@counter = internal global i64 5
@zero = internal global i64 0
@table = internal constant [2 x ptr] [ptr @add, ptr @subtract]
@numbers = internal constant [4 x i64] [i64 3, i64 1, i64 4, i64 1]
define internal i64 @add(i64 %a, i64 %b) {
  %r = add i64 %a, %b
  ret i64 %r
}
define internal i64 @subtract(i64 %a, i64 %b) {
  %r = sub i64 %a, %b
  ret i64 %r
}
define i64 @apply(i64 %which, i64 %a, i64 %b) {
  %at = getelementptr [2 x ptr], ptr @table, i64 0, i64 %which
  %f = load ptr, ptr %at
  %r = call i64 %f(i64 %a, i64 %b)
  ret i64 %r
}
define i64 @count() {
  %old = load i64, ptr @counter
  %more = load i64, ptr @zero
  %step = add i64 %more, 1
  store i64 %step, ptr @zero
  %new = add i64 %old, %step
  store i64 %new, ptr @counter
  ret i64 %new
}
define i64 @number(i64 %i) {
  %at = getelementptr [4 x i64], ptr @numbers, i64 0, i64 %i
  %r = load i64, ptr %at
  ret i64 %r
}
"""


def test_code_constants_and_variables() -> None:
    first, second = image(MEMORY), image(MEMORY)
    assert [run(first, "apply", which, 7, 2) for which in (0, 1)] == [9, 5]
    assert [run(first, "number", i) for i in range(4)] == [3, 1, 4, 1]
    assert [run(first, "count") for _ in range(3)] == [6, 8, 11]
    assert run(second, "count") == 6  # each image has variables of its own
    assert first.get_function_address("add") == 0  # internal
    assert first.get_function_address("missing") == 0


def test_functions_of_the_process() -> None:
    text = """
declare i64 @labs(i64)
declare i64 @strlen(ptr)
@text = internal constant [6 x i8] c"seven\\00"
define i64 @distance(i64 %a) {
  %r = call i64 @labs(i64 %a)
  %n = call i64 @strlen(ptr @text)
  %s = add i64 %r, %n
  ret i64 %s
}
define i64 @where() {
  %r = ptrtoint ptr @labs to i64
  ret i64 %r
}
"""
    one = image(text)
    assert run(one, "distance", -12) == 17
    assert run(one, "where") == ctypes.cast(ctypes.CDLL(None).labs, ctypes.c_void_p).value


def mapping(address: int) -> str:
    """The permissions of the page of an address; "" where there is none."""
    for line in Path("/proc/self/maps").read_text().splitlines():
        low, high = (int(part, 16) for part in line.split()[0].split("-"))
        if low <= address < high:
            return line.split()[1]
    return ""


def test_code_is_not_writable_and_is_freed() -> None:
    one = image(MEMORY)
    address = one.get_function_address("apply")
    assert mapping(address) == "r-xp"
    del one
    gc.collect()
    assert mapping(address) != "r-xp"


def test_stacks_unwind_through_the_code() -> None:
    one = image("define void @through(ptr %f) uwtable {\n  call void %f()\n  ret void\n}\n")
    start = one.get_function_address("through")
    frames: list[int] = []

    def look() -> None:
        found = (ctypes.c_void_p * 200)()
        frames.extend(frame or 0 for frame in found[: ctypes.CDLL(None).backtrace(found, 200)])

    callback = ctypes.CFUNCTYPE(None)(look)
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(start)(ctypes.cast(callback, ctypes.c_void_p))
    (position,) = [i for i, frame in enumerate(frames) if start < frame < start + 64]
    assert len(frames) > position + 3  # it goes on to whoever called it


def test_what_is_left_to_llvm() -> None:
    with pytest.raises(UnsupportedError, match="is aligned to 8192"):
        image("@x = global i64 42, align 8192\ndefine ptr @f() {\n  ret ptr @x\n}\n")
    with pytest.raises(UnsupportedError, match="variables of threads"):
        image("@x = thread_local global i64 0\ndefine ptr @f() {\n  ret ptr @x\n}\n")
    with pytest.raises(UnsupportedError, match="there_is_no_such_function"):
        image("declare void @there_is_no_such_function()\ndefine void @f() {\n"
              "  call void @there_is_no_such_function()\n  ret void\n}\n")  # fmt: skip


def test_both_linkers_agree(monkeypatch: pytest.MonkeyPatch) -> None:
    data = emit_object(MEMORY, TARGET)

    def refuse(*arguments: object) -> Image:
        raise UnsupportedError

    ours = load_object(data, TARGET, MEMORY)
    monkeypatch.setattr(engine, "Image", refuse)
    theirs = load_object(data, TARGET, MEMORY)
    assert ours.assembly() == theirs.assembly()
    calls = [ctypes.CFUNCTYPE(ctypes.c_int64)(one.address("count")) for one in (ours, theirs)]
    assert [[call() for _ in range(4)] for call in calls] == [[6, 8, 11, 15]] * 2
    for one in (ours, theirs):
        with pytest.raises(KeyError, match="no symbol 'nothing'"):
            one.address("nothing")


def test_damaged_objects_are_refused_not_fatal() -> None:
    text = MEMORY.replace(") {", ") nounwind {")
    data = emit_object(text, TARGET)
    assert b".eh_frame" not in data
    for end in range(0, len(data), 31):
        with pytest.raises(UnsupportedError):
            Image([data[:end]])
    generator = random.Random(0)
    refused = 0
    for _ in range(400):
        damaged = bytearray(data)
        for _ in range(3):
            damaged[generator.randrange(len(data))] = generator.randrange(256)
        try:
            Image([bytes(damaged)])
        except UnsupportedError:
            refused += 1
    assert 0 < refused < 400


@pytest.mark.parametrize("name", ["aarch64", "riscv64", "wasm32"])
def test_objects_of_other_machines_are_refused(name: str) -> None:
    from graphkb.codegen.target import TARGETS

    with pytest.raises(UnsupportedError, match="no ELF object file for x86-64"):
        Image([emit_object("define void @f() {\n  ret void\n}\n", TARGETS[name])])
