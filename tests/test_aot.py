"""Tests of ahead-of-time compilation: the files, the C interface, and what comes back through `load`."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphkb
from graphkb import backend as K
from graphkb.aot import CompiledFiles, Library
from graphkb.ir.errors import CompileError, InputError, PositionError

pytest.importorskip("llvmlite")
CC = shutil.which("cc")
needs_cc = pytest.mark.skipif(CC is None, reason="no C compiler is installed")
DTYPES = ("float16", "float32", "float64", "int8", "int16", "int32", "int64", "uint8", "uint16", "uint32", "uint64")


def interpreted(inputs: list[Any], outputs: list[Any]) -> Any:
    with graphkb.options(mode="interpret"):
        return K.function(inputs, outputs)


def library(path: Path, inputs: list[Any], outputs: list[Any], **options: Any) -> Library:
    return graphkb.load(graphkb.compile(K.function(inputs, outputs), path, **options).library)


def network() -> tuple[Any, Any]:
    rng = np.random.default_rng(0)
    x = K.placeholder((None, 8), name="x")
    w, b = K.variable(rng.normal(size=(8, 5))), K.variable(rng.normal(size=5))
    return x, K.softmax(K.tanh(K.dot(x, w) + b))


@needs_cc
@pytest.mark.parametrize("batch", [0, 1, 7, 64])
def test_a_network_runs_for_any_batch(tmp_path: Path, batch: int) -> None:
    x, y = network()
    values = np.random.default_rng(1).normal(size=(batch, 8)).astype("float32")
    (expected,) = interpreted([x], [y])([values])
    (result,) = library(tmp_path / "net", [x], [y])([values])
    assert result.dtype == expected.dtype
    assert result.shape == (batch, 5)
    np.testing.assert_allclose(result, expected, rtol=2e-6, atol=1e-7)


@needs_cc
@pytest.mark.parametrize("dtype", DTYPES)
def test_every_dtype_goes_in_and_out(tmp_path: Path, dtype: str) -> None:
    x, y = K.placeholder((None, 3), dtype=dtype, name="x"), K.placeholder((3,), dtype=dtype, name="y")
    outputs = [x * y + x, K.cast(x, "bool"), K.sum(x, axis=0), K.cast(x, "float32")]
    lib = library(tmp_path / "types", [x, y], outputs)
    a, b = np.arange(6).reshape(2, 3).astype(dtype), np.array([2, 0, 5], dtype)
    for result, expected in zip(lib([a, b]), interpreted([x, y], outputs)([a, b])):
        assert result.dtype == expected.dtype
        np.testing.assert_array_equal(result, expected)


@needs_cc
def test_placeholders_that_meet_share_one_size(tmp_path: Path) -> None:
    x, y = K.placeholder((None, 4), name="x"), K.placeholder((None, 4), name="y")
    lib = library(tmp_path / "two", [x, y], [K.mean(x * y, axis=-1)])
    assert lib.inputs[0][2] == lib.inputs[1][2]
    a = np.ones((5, 4), "float32")
    np.testing.assert_allclose(lib([a, 3 * a])[0], np.full(5, 3.0))
    with pytest.raises(
        InputError, match=r"^y: expected shape \(5, 4\), got \(6, 4\): axis 0 has the size of axis 0 of x"
    ):
        lib([a, np.ones((6, 4))])


@needs_cc
def test_sizes_of_one_name_are_different_sizes(tmp_path: Path) -> None:
    x, y = K.placeholder((None,), name="x"), K.placeholder((None,), name="y")
    lib = library(tmp_path / "two", [x, y], [K.tanh(x), K.tanh(y)])
    a, b = np.arange(3, dtype="float32"), np.arange(90, dtype="float32")
    for result, wanted in zip(lib([a, b]), (a, b)):
        np.testing.assert_allclose(result, np.tanh(wanted), rtol=1e-5)


def test_scalars_and_no_inputs(tmp_path: Path) -> None:
    v = K.variable(np.arange(4.0))
    lib = library(tmp_path / "none", [], [K.sum(v), v])
    total, values = lib([])
    assert total.shape == ()
    assert total == 6
    np.testing.assert_array_equal(values, np.arange(4))


@needs_cc
def test_long_sums_over_an_unknown_size(tmp_path: Path) -> None:
    x = K.placeholder((None, 3), name="x")
    lib = library(tmp_path / "long", [x], [K.sum(x), K.sum(x, axis=0), K.max(x, axis=1)])
    for n in (1, 2047, 2048, 2049, 10_000):
        values = np.random.default_rng(n).normal(size=(n, 3)).astype("float32")
        total, columns, largest = lib([values])
        np.testing.assert_allclose(total, values.sum(dtype="float64"), rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(columns, values.sum(0, dtype="float64"), rtol=1e-5, atol=1e-4)
        np.testing.assert_array_equal(largest, values.max(1))


@needs_cc
def test_updates_live_in_the_callers_state(tmp_path: Path) -> None:
    count, step = K.variable(np.zeros((2, 3)), name="count"), K.placeholder((2, 3), name="step")
    fn = K.function([step], [count * 1], updates=[K.update_add(count, step)])
    lib = graphkb.load(graphkb.compile(fn, tmp_path / "counter").library)
    ones = np.ones((2, 3), "float32")
    assert [lib([ones])[0][0, 0] for _ in range(3)] == [0, 1, 2]
    assert lib.state["count"][1, 2] == 3
    assert K.get_value(count)[0, 0] == 0


@needs_cc
def test_sizes_can_be_fixed(tmp_path: Path) -> None:
    x, y = network()
    name = re.search(r"float32\[(\w+), 8\]", repr(K.function([x], [y]))).group(1)  # type: ignore[union-attr]
    files = graphkb.compile(K.function([x], [y]), tmp_path / "fixed", sizes={name: 16})
    assert "FIXED_WORKSPACE_SIZE" in files.header.read_text()
    with pytest.raises(InputError, match=r"^x: expected shape \(16, 8\), got \(4, 8\)"):
        graphkb.load(files.library)([np.zeros((4, 8))])


def compile_network(path: Path, **options: Any) -> CompiledFiles:
    x, y = network()
    return graphkb.compile(K.function([x], [y]), path, **options)


C_PROGRAM = """
#include <stdio.h>
#include <stdlib.h>
#include "net.h"

int main(void) {
  static float x[3 * 8], out[3 * 5];
  static unsigned char memory[1 << 16];
  void *workspace = (void *)(((uintptr_t)memory + 63) & ~(uintptr_t)63);
  int64_t dims[2];
  int i;
  for (i = 0; i < 24; i++) x[i] = (float)(i - 12) / 10;
  if (net_abi_version() != NET_ABI_VERSION) return 1;
  if (net_workspace_size(3) > (int64_t)sizeof memory - 64) return 2;
  if (net_output_shape(0, 3, dims) != NET_OK || dims[0] != 3 || dims[1] != 5) return 3;
  if (net_output_shape(1, 3, dims) != NET_BAD_INDEX) return 4;
  if (net_run(NULL, out, 3, workspace) != NET_NULL_POINTER) return 5;
  if (net_run(x, out, -1, workspace) != NET_BAD_SIZE) return 6;
  if (net_run(x, out, 3, (char *)workspace + 8) != NET_BAD_WORKSPACE) return 7;
  if (net_run(x, out, 3, workspace) != NET_OK) return 8;
  for (i = 0; i < 15; i++) printf("%.9g\\n", (double)out[i]);
  return 0;
}
"""


@needs_cc
@pytest.mark.parametrize("language", ["c99", "c++11"])
@pytest.mark.parametrize("link", ["object", "library"])
def test_a_c_program_calls_it(tmp_path: Path, language: str, link: str) -> None:
    files = compile_network(tmp_path / "net")
    source = tmp_path / ("main.c" if language == "c99" else "main.cpp")
    source.write_text(C_PROGRAM)
    program = tmp_path / "main"
    strict = ["-Wall", "-Wextra", "-Werror", "-pedantic", f"-std={language}"]
    compiler = CC if language == "c99" else shutil.which("c++")
    if compiler is None:
        pytest.skip("no C++ compiler is installed")
    subprocess.run(
        [
            compiler,
            *strict,
            f"-I{tmp_path}",
            str(source),
            str(getattr(files, link)),
            f"-Wl,-rpath,{tmp_path}",
            "-o",
            str(program),
        ],
        check=True,
    )
    printed = subprocess.run([str(program)], check=True, capture_output=True, text=True).stdout
    x, y = network()
    values = ((np.arange(24) - 12) / 10).astype("float32").reshape(3, 8)
    expected = interpreted([x], [y])([values])[0]
    np.testing.assert_allclose(np.array(printed.split(), float).reshape(3, 5), expected, rtol=2e-6)


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
def test_the_object_needs_and_shows_nothing_else(tmp_path: Path) -> None:
    files = compile_network(tmp_path / "net")
    symbols = subprocess.run(["nm", str(files.object)], check=True, capture_output=True, text=True).stdout
    kinds = [line.split()[-2:] for line in symbols.splitlines()]
    assert not [name for kind, name in kinds if kind in "Uu"]
    assert all(name.startswith("net_") for kind, name in kinds if kind.isupper())
    if files.library is not None:
        shown = subprocess.run(["nm", "-D", str(files.library)], check=True, capture_output=True, text=True).stdout
        assert all(line.split()[-1].startswith("net_") for line in shown.splitlines())


def test_rebuilds_are_identical_to_the_byte(tmp_path: Path) -> None:
    script = (
        "import sys, numpy as np, graphkb; from graphkb import backend as K\n"
        "x = K.placeholder((None, 8), name='x'); w = K.variable(np.arange(40.0).reshape(8, 5))\n"
        "graphkb.compile(K.function([x], [K.softmax(K.dot(x, w))]), sys.argv[1])\n"
    )
    for folder in ("a", "b"):
        (tmp_path / folder).mkdir()
        subprocess.run([sys.executable, "-c", script, str(tmp_path / folder / "net")], check=True)
    for suffix in (".o", ".h", ".so"):
        first, second = (tmp_path / folder / f"net{suffix}" for folder in ("a", "b"))
        assert first.exists() == second.exists()
        assert not first.exists() or first.read_bytes() == second.read_bytes()


@pytest.mark.parametrize("target", ["x86-64-v2", "x86-64-v3", "x86-64-v4", "aarch64", "riscv64", "wasm32"])
@pytest.mark.filterwarnings("ignore:compile. .* was not linked")
def test_objects_for_other_machines(tmp_path: Path, target: str) -> None:
    assert compile_network(tmp_path / "net", target=target).object.stat().st_size > 1000


def test_large_weights_are_embedded(tmp_path: Path) -> None:
    w = np.random.default_rng(0).normal(size=(1024, 256)).astype("float32")
    x = K.placeholder((None, 1024), name="x")
    files = graphkb.compile(K.function([x], [K.dot(x, K.variable(w))]), tmp_path / "big")
    data = files.object.read_bytes()
    assert w[7, :8].tobytes() in data
    assert w.tobytes() not in data  # but packed, as the product reads them


# ---------------------------------------------------------------------------------------------- errors
def test_nodes_without_a_kernel_are_named(tmp_path: Path) -> None:
    x = K.placeholder((4, 3), name="x")
    fn = K.function([x], [K.print_tensor(x, "x is")])
    with pytest.raises(
        CompileError, match=r"1 node of .* can only be interpreted:\n  print: .*\n  built at test_aot.py"
    ):
        graphkb.compile(fn, tmp_path / "print")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("prefix", ["1net", "a b", "", "ü", "while", "net-1"])
def test_bad_prefixes(tmp_path: Path, prefix: str) -> None:
    with pytest.raises(CompileError, match="is not a C identifier"):
        compile_network(tmp_path / "net", prefix=prefix)


def test_the_default_prefix_is_an_identifier(tmp_path: Path) -> None:
    assert "_2_net_v1_run(" in compile_network(tmp_path / "2-net v1.so").header.read_text()


def test_bad_paths(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"^compile: there is no folder .*missing.* to write 'net' into$"):
        compile_network(tmp_path / "missing" / "net")
    with pytest.raises(FileNotFoundError, match="^load: there is no file"):
        graphkb.load(tmp_path / "missing.so")


def test_bad_arguments(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match="^compile: expected a function from K.function, got str$"):
        graphkb.compile("net", tmp_path / "net")
    with pytest.raises(CompileError, match="^compile: target: 'pdp11' is not known"):
        compile_network(tmp_path / "net", target="pdp11")
    with pytest.raises(CompileError, match="^compile: there is no unknown size 'length'; there are: "):
        compile_network(tmp_path / "net", sizes={"length": 3})


def test_foreign_files_are_refused(tmp_path: Path) -> None:
    other = tmp_path / "other.so"
    other.write_bytes(b"\x7fELF" + bytes(100))
    with pytest.raises(CompileError, match="is no library of graphkb$"):
        graphkb.load(other)
    other.write_bytes(b'graphkb-library {"abi":99}\0')
    with pytest.raises(CompileError, match="has the ABI version 99, this graphkb has 1: compile it again$"):
        graphkb.load(other)


@needs_cc
def test_a_library_checks_its_inputs(tmp_path: Path) -> None:
    x, y = network()
    lib = library(tmp_path / "net", [x], [y])
    assert repr(lib).startswith("<Library net.so: (x: float32[")
    with pytest.raises(InputError, match=r"^net: expected 1 input \(x\), got 2"):
        lib([np.zeros((1, 8)), 0])
    with pytest.raises(InputError, match=r"^x: expected shape \(None, 8\), got \(1, 9\)"):
        lib([np.zeros((1, 9))])
    with pytest.raises(TypeError, match="expected a list or tuple of 1 inputs, got ndarray"):
        lib(np.zeros((1, 8)))


@needs_cc
def test_a_library_compiled_again_is_loaded_again(tmp_path: Path) -> None:
    """The dynamic loader by itself answers a known path with what it loaded before."""
    x, y = K.placeholder((None,), name="x"), K.placeholder((None,), name="y")
    before = library(tmp_path / "net", [x], [x * 2.0])
    after = library(tmp_path / "net", [x, y], [x * y, x - y])
    assert before([[1.0, 2.0]])[0].tolist() == [2.0, 4.0]
    assert [a.tolist() for a in after([[1.0, 2.0], [3.0, 5.0]])] == [[3.0, 10.0], [-2.0, -3.0]]
    assert graphkb.load(tmp_path / "net.so").path == after.path == before.path


@needs_cc
@pytest.mark.parametrize("masked", [False, True])
def test_loops_of_an_unknown_length(tmp_path: Path, masked: bool) -> None:
    """A recurrence and its gradients: batch and time are told by the caller."""
    rng = np.random.default_rng(5)
    x = K.placeholder((None, None, 3), name="x")
    w, u = K.variable(rng.normal(size=(3, 4))), K.variable(rng.normal(size=(4, 4)))

    def step(row: Any, states: list[Any]) -> Any:
        new = K.tanh(K.dot(row, w) + K.dot(states[0], u)) * states[1]
        return new, [new, states[1] * 0.9]

    first = K.dot(K.sum(x, axis=1), w) * 0 + 1
    mask = K.not_equal(x[:, :, 0], 0) if masked else None
    last, outputs, states = K.rnn(step, x, [first, first], go_backwards=masked, mask=mask)
    gradients = K.gradients(K.sum(K.square(outputs)) + K.sum(last), [w, u])
    lib = library(tmp_path / "loop", [x], [last, outputs, *states, *gradients])
    expected = interpreted([x], [last, outputs, *states, *gradients])
    for batch, time in ((1, 1), (2, 5), (3, 8), (2, 0), (0, 4)):
        values = rng.normal(size=(batch, time, 3)).astype("float32")
        values[:, time // 2 :, 0] *= rng.integers(0, 2, (batch, time - time // 2))
        for result, wanted in zip(lib([values]), expected([values]), strict=True):
            np.testing.assert_allclose(result, wanted, rtol=2e-5, atol=1e-5)


@needs_cc
def test_loops_find_bad_indices_before_anything_is_written(tmp_path: Path) -> None:
    at, total = K.placeholder((None, 2), dtype="int32", name="at"), K.variable(np.zeros(2), name="total")
    table = K.constant(np.arange(6.0).reshape(3, 2))
    picked = K.foldl(lambda a, i: a + K.sum(K.gather(table, i), axis=0), at, K.zeros(2))
    fn = K.function([at], [picked], updates=[(total, total + picked)])
    lib = graphkb.load(graphkb.compile(fn, tmp_path / "sums").library)
    assert lib([[[0, 1], [2, 2]]])[0].tolist() == [10, 14]
    with pytest.raises(PositionError, match="nothing was updated"):
        lib([[[0, 1], [2, 3]]])
    assert lib.state["total"].tolist() == [10, 14]
    assert lib([np.zeros((0, 2), "int32")])[0].tolist() == [0, 0]
