"""Taking modules apart: every part compiles, calls and variables cross parts, and results stay the same bits."""

import ctypes
import re
import sys

import numpy as np
import pytest

from graphkb import backend as K
from graphkb.codegen import engine, module_parts
from graphkb.codegen.elf import UnsupportedError
from graphkb.codegen.engine import emit_object, emit_objects, load_object
from graphkb.codegen.module_parts import join_objects, split_module, split_objects
from graphkb.codegen.target import host_target
from graphkb.runtime.options import options

TARGET = host_target()
splits = pytest.mark.skipif(
    not (sys.platform == "linux" and TARGET.is_x86), reason="modules are split on Linux on x86-64"
)

MODULE = """target triple = "x86_64-unknown-linux-gnu"
@count = internal global i64 5, align 8
@text = private unnamed_addr constant [3 x i8] c"\\01\\02\\07", align 64
declare i64 @llvm.smin.i64(i64, i64)
define internal i64 @low(i64 %a, i64 %b) nounwind {
entry:
  %r = call i64 @llvm.smin.i64(i64 %a, i64 %b)
  %at = getelementptr i8, ptr @text, i64 2
  %byte = load i8, ptr %at
  %wide = zext i8 %byte to i64
  %sum = add i64 %r, %wide
  ret i64 %sum
}
define internal i64 @step(i64 %a) nounwind {
entry:
  %old = load i64, ptr @count
  %new = add i64 %old, %a
  store i64 %new, ptr @count
  %r = call i64 @low(i64 %new, i64 100)
  ret i64 %r
}
define i64 @run(i64 %a) nounwind {
entry:
  %r = call i64 @step(i64 %a)
  %n = load i64, ptr @count
  %s = add i64 %r, %n
  ret i64 %s
}
"""


@pytest.fixture
def eager(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short modules are split as well."""
    monkeypatch.setattr(module_parts, "_SHORTEST", 1)


@splits
@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize("count", [1, 2, 3, 9])
def test_calls_and_variables_cross_parts(count: int) -> None:
    parts = split_module(MODULE.replace("x86_64-unknown-linux-gnu", TARGET.triple), count)
    assert len(parts) == min(count, 3)
    assert sorted(re.findall(r"^define .*@(\w+)", "\n".join(parts), re.MULTILINE)) == ["low", "run", "step"]
    linked = load_object(join_objects([emit_object(part, TARGET) for part in parts]), TARGET)
    call = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(linked.address("run"))
    assert call(10) == 15 + 7 + 15
    assert call(200) == 100 + 7 + 215


@pytest.mark.usefixtures("eager")
@pytest.mark.parametrize(
    "line",
    ["@table = internal constant [1 x ptr] [ptr @low]", "@hook = thread_local global i64 0", "@a = alias i64, ptr @b"],
)
def test_what_is_not_plain_stays_whole(line: str) -> None:
    text = MODULE.replace("@count = ", f"{line}\n@count = ")
    assert split_module(text, 2) == [text]


def test_short_modules_stay_whole() -> None:
    assert split_module(MODULE, 4) == [MODULE]


def test_a_module_that_is_nearly_one_function_stays_whole() -> None:
    lines = "".join([f"  %r{i} = add i64 %a, {i}\n" for i in range(3000)])
    text = f"{MODULE}define i64 @long(i64 %a) nounwind {{\nentry:\n{lines}  ret i64 %a\n}}\n"
    assert split_module(text, 2) == [text]
    twice = text + text[text.index("define i64 @long") :].replace("@long", "@longer")
    assert len(split_module(twice, 2)) == 2


@splits
@pytest.mark.usefixtures("eager")
def test_functions_have_the_same_results_in_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    lengths: list[int] = []

    def split(text: str, most: int) -> list[str]:
        parts = split_module(text, most)
        lengths.append(len(parts))
        return parts

    monkeypatch.setattr(engine, "split_module", split)
    rng = np.random.default_rng(3)
    x, w = rng.standard_normal((33, 40)).astype("f"), rng.standard_normal((40, 7)).astype("f")

    def gradient(threads: int) -> list[np.ndarray]:
        weights, a = K.variable(w), K.placeholder((33, 40))
        loss = K.mean(K.square(K.softmax(K.tanh(K.dot(a, weights)))))
        with options(kernel_cache="off", threads=threads):
            return K.function([a], [loss, *K.gradients(loss, [weights])])([x])

    for whole, parts in zip(gradient(1), gradient(3)):
        np.testing.assert_array_equal(whole, parts)
    assert 1 in lengths
    assert max(lengths) == 3


@splits
@pytest.mark.usefixtures("eager")
def test_invalid_text_is_refused_with_the_message_of_llvm() -> None:
    with pytest.raises(RuntimeError, match="%nothing"):
        emit_objects(MODULE.replace("%sum = add i64 %r, %wide", "%sum = add i64 %r, %nothing"), TARGET, 2)


@splits
def test_an_entry_of_several_files_needs_the_linker_that_takes_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module_parts, "_SHORTEST", 1)
    data = emit_objects(MODULE, TARGET, 2)

    def refuse(*args: object) -> None:
        raise UnsupportedError

    monkeypatch.setattr(engine, "Image", refuse)
    with pytest.raises(ValueError, match="several object files"):
        load_object(data, TARGET)


def test_object_files_join_and_part() -> None:
    files = [b"\x7fELF one", b"", b"two"]
    assert split_objects(join_objects(files)) == files
    assert join_objects([b"alone"]) == b"alone"
    assert split_objects(b"alone") == [b"alone"]
    for end in (20, 30, -1):
        with pytest.raises(ValueError, match="cut off"):
            split_objects(join_objects(files)[:end])
