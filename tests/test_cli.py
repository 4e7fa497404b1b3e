"""The command line: what it prints, what it writes, its exit codes and its errors of one line."""

from __future__ import annotations

import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import pytest

import graphkb
from graphkb.cli import main
from graphkb.ir.export import from_json, to_json

NET = '''\
"""A program to work on."""
import numpy as np
from graphkb import backend as K

print("loading")
x = K.placeholder((None, 3), name="x")
w = K.variable([[1.0], [2.0], [3.0]], name="w")
y = K.dot(x, w) + 0.5
predict = K.function([x], [y], name="predict")
pair = [y, y * 2.0]
step = K.function([x], [K.sum(y)], updates=[(w, w * 2.0)], name="step")
flags = K.placeholder((2,), dtype="bool", name="flags")
inverse = ~flags
number = 7


class Net:
    predict = predict


def build():
    return K.relu(y)


def nets():
    return Net()


def broken():
    raise RuntimeError("first line\\nsecond line")


def leave():
    raise SystemExit(3)


def with_arguments(a):
    return a
'''


@pytest.fixture
def net(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    (tmp_path / "net.py").write_text(NET)
    monkeypatch.chdir(tmp_path)
    return "net.py"


def run(capsys: pytest.CaptureFixture[str], *argv: str) -> tuple[int, str, str]:
    path = list(sys.path)
    code = main(argv)
    sys.path[:] = path
    sys.modules.pop("net", None)
    out, err = capsys.readouterr()
    return code, out, err


# ---------------------------------------------------------------------------------------------- dump
@pytest.mark.parametrize("name", ["y", "predict", "pair", "build", "build()", "nets().predict", "Net.predict"])
def test_dump_of_every_kind_of_source(net: str, capsys: pytest.CaptureFixture[str], name: str) -> None:
    code, out, err = run(capsys, "dump", f"{net}:{name}", "--stage", "raw")
    assert (code, err) == (0, "loading\n")  # what the program prints does not get into the dump
    assert out.startswith("graph ")
    assert "= dot(%0, %1" in out
    assert "# net.py:8" in out


def test_dump_names_the_graph_after_the_source(net: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(capsys, "dump", f"{net}:y")[1].startswith("graph y\n")
    assert run(capsys, "dump", f"{net}:build()")[1].startswith("graph build\n")
    assert run(capsys, "dump", f"{net}:nets().predict")[1].startswith("graph predict\n")


def test_dump_of_a_module(net: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "dump", "net:y")
    assert (code, out.partition("\n")[0]) == (0, "graph y")


def test_dump_to_files_and_back(net: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert run(capsys, "dump", f"{net}:y", "--format", "svg", "-o", "y.svg")[:2] == (0, "wrote y.svg\n")
    ET.parse(tmp_path / "y.svg")
    run(capsys, "dump", f"{net}:y", "--stage", "raw", "--format", "json", "-o", "y.json")
    assert from_json((tmp_path / "y.json").read_text()).name == "y"
    code, out, _ = run(capsys, "dump", "y.json", "--stage", "raw")
    assert (code, out) == (0, run(capsys, "dump", f"{net}:y", "--stage", "raw")[1])


def test_a_graph_without_the_values_of_its_variables_is_run_with_a_warning(
    net: str, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    run(capsys, "dump", f"{net}:y", "--stage", "raw", "--format", "json", "-o", "y.json")
    code, out, err = run(capsys, "run", "y.json", "--input", "random")
    assert code == 0
    assert err == "graphkb: warning: y.json has no values of w: they are zeros\n"
    (tmp_path / "y.json").write_text(to_json(from_json((tmp_path / "y.json").read_text()), values=True))
    assert run(capsys, "run", "y.json", "--input", "random") == (0, out, "")


def test_dump_of_code_for_a_shape(net: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "dump", f"{net}:y", "--stage", "loops", "--shape", "x=8,3")
    assert (code, "float32[24]" in out) == (0, True)


def test_dump_lists_the_stages(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "dump", "--list")
    assert code == 0
    assert out.split()[0] == "raw"
    assert out.split()[-4:] == ["optimized", "loops", "llvm", "asm"]


# ---------------------------------------------------------------------------------------------- run
def test_run_on_numbers(net: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "run", f"{net}:predict", "--input", "x=1,2,3,4,5,6")
    assert (code, out) == (0, "output: float32[2, 1]\n[[14.5]\n [32.5]]\n")
    assert run(capsys, "run", f"{net}:predict", "--input", "0=[[1,2,3]]")[1].endswith("[[14.5]]\n")
    assert run(capsys, "run", f"{net}:predict", "--input", "x=nan,inf,0")[1].endswith("[[nan]]\n")
    assert run(capsys, "run", f"{net}:inverse", "--input", "flags=true,false")[1].endswith("[False  True]\n")


def test_run_on_files(net: str, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    values = np.arange(6.0).reshape(2, 3)
    np.save(tmp_path / "x.npy", values)
    np.savez(tmp_path / "more.npz", a=values, b=values + 1)
    expected = values @ [[1.0], [2.0], [3.0]] + 0.5
    assert run(capsys, "run", f"{net}:predict", "--input", "x=x.npy", "-o", "y.npy")[:2] == (0, "wrote y.npy\n")
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), expected)
    run(capsys, "run", f"{net}:pair", "--input", "x=more.npz:b", "-o", "y.npz")
    with np.load(tmp_path / "y.npz") as saved:
        np.testing.assert_array_equal(saved["output_0"], expected + 6)
        np.testing.assert_array_equal(saved["output_1"], 2 * (expected + 6))


def test_run_on_random_inputs_is_repeatable(net: str, capsys: pytest.CaptureFixture[str]) -> None:
    command = ["run", f"{net}:predict", "--input", "random", "--size", "batch=4"]
    first, second, other = (run(capsys, *command, "--seed", seed)[1] for seed in ("1", "1", "2"))
    assert first == second != other
    assert first.startswith("output: float32[4, 1]\n")
    assert run(capsys, "run", f"{net}:predict", "--input", "x=random")[1].startswith("output: float32[32, 1]\n")


def test_run_repeats_updates(net: str, capsys: pytest.CaptureFixture[str]) -> None:
    for mode in ("auto", "interpret"):
        code, out, _ = run(capsys, "run", f"{net}:step", "--input", "x=1,0,0", "--repeat", "3", "--mode", mode)
        assert code == 0
        assert out == "output: float32[]\n4.5\nw: float32[3, 1], updated\n[[ 8.]\n [16.]\n [24.]]\n"


# ---------------------------------------------------------------------------------------------- compile
@pytest.mark.parametrize("sizes", [[], ["--size", "batch=2"]])
def test_compile_writes_a_library(
    net: str, capsys: pytest.CaptureFixture[str], tmp_path: Path, sizes: list[str]
) -> None:
    code, out, err = run(capsys, "compile", f"{net}:predict", "-o", "lib.so", "--prefix", "demo", *sizes)
    assert code == 0
    assert "wrote lib.o\n" in out
    assert "wrote lib.h\n" in out
    assert "demo_run" in (tmp_path / "lib.h").read_text()
    if "wrote lib.so\n" in out:  # there is a linker
        (found,) = graphkb.load(tmp_path / "lib.so")([np.array([[1, 2, 3], [4, 5, 6]], np.float32)])
        np.testing.assert_allclose(found, [[14.5], [32.5]])
    else:
        assert "graphkb: warning: compile: lib.so was not linked" in err


# ---------------------------------------------------------------------------------------------- bench, doctor, help
def test_bench_compares_two_ways(net: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "bench", f"{net}:predict", "--seconds", "0.02", "--size", "batch=5")
    assert code == 0
    assert out.startswith("predict(float32[5, 3])\n")
    difference = re.search(r"largest difference between the two: (\S+)\n", out)
    assert difference is not None
    assert float(difference[1]) <= 1e-6
    assert out.count(" a call, fastest ") == 2
    code, out, _ = run(capsys, "bench", f"{net}:step", "--seconds", "0.02", "--mode", "interpret")
    assert (code, out.count(" a call, fastest ")) == (0, 1)


def test_doctor_is_well(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, err = run(capsys, "doctor")
    assert (code, err) == (0, "")
    topics = [line[:16].strip() for line in out.splitlines()]
    for topic in ("graphkb", "python", "numpy", "llvmlite", "cpu", "target", "native calls", "c compiler", "self-test"):
        assert topic in topics
    assert "BROKEN" not in out
    assert "passed" in out.splitlines()[-1]


def test_doctor_and_dump_without_llvmlite_and_networkx(net: str) -> None:
    program = (
        "import sys; sys.modules['llvmlite'] = sys.modules['networkx'] = None\n"
        "from graphkb.cli import main\n"
        "sys.exit(main(['doctor']) or main(['dump', 'net.py:y', '--format', 'svg', '-o', 'y.svg'])\n"
        "         or main(['run', 'net.py:predict', '--input', 'x=1,2,3']))"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "loading\nloading\n")
    assert "not installed: native code; without it everything is interpreted (pip install llvmlite)" in done.stdout
    assert "passed: 0 native" in done.stdout
    assert "[[14.5]]" in done.stdout


def test_help_teaches(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = run(capsys, "--help")
    assert code == 0
    assert "graphkb dump net.py:predict" in out
    for command in ("dump", "compile", "run", "bench", "doctor"):
        assert run(capsys, command, "--help")[0] == 0
    assert run(capsys, "--version")[1].startswith("graphkb ")


def test_the_example_of_the_help_works(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    _, text, _ = run(capsys, "--help")
    lines = text.partition("with a file net.py:\n")[2].splitlines()
    program = [line[4:] for line in lines if line.startswith(("    from", "    x =", "    predict ="))]
    assert len(program) == 3
    (tmp_path / "net.py").write_text("\n".join(program))
    monkeypatch.chdir(tmp_path)
    for line in lines:
        command = line.strip().partition("   ")[0].split()
        if command[:1] == ["graphkb"] and command[1] in ("dump", "run"):
            assert run(capsys, *command[1:])[0] == 0, line


# ---------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize(
    ("argv", "code", "message"),
    [
        ("dump", 2, "graphkb dump: expected a SOURCE, as in net.py:predict"),
        (
            "dump net.py",
            2,
            "graphkb dump: net.py: expected file.py:name, module:name, graph.json or model.h5; net.py has the names",
        ),
        ("dump none.py:y", 2, "graphkb dump: none.py: there is no such file"),
        ("dump none:y", 2, "graphkb dump: none: there is no such file or module"),
        ("dump net.py:z", 2, "graphkb dump: net.py has no z; it has the names x, w, y, predict, pair"),
        ("dump net.py:number", 2, "graphkb dump: net.py:number is of type int; expected a function, a tensor"),
        ("dump net.py:with_arguments", 2, "graphkb dump: net.py:with_arguments: a builder is called without arguments"),
        ("dump net.py:broken", 1, "graphkb dump: net.py:broken, line 30: RuntimeError: first line; second line"),
        ("dump net.py:leave", 1, "graphkb dump: net.py:leave, line 34: SystemExit: 3"),
        ("dump net.py:y --stage nothing", 2, "graphkb dump: --stage nothing: expected one of raw, verify"),
        ("dump net.py:y --format png", 2, "graphkb dump: --format png: expected one of text, dot, json, svg, html"),
        (
            "dump net.py:y --stage llvm",
            2,
            "graphkb dump: --stage llvm needs the sizes of all inputs, as in --shape x=32,64",
        ),
        ("dump net.py:y --shape x=a", 2, "graphkb dump: --shape x=a: expected sizes, as in --shape x=32,64"),
        ("dump net.py:y --shape x=2,9", 2, "graphkb dump: x: expected shape (None, 3), got (2, 9)"),
        (
            "dump net.py:y --stage loops --format svg",
            2,
            "graphkb dump: --format svg: the stage loops is a text, not a graph",
        ),
        ("compile net.py:y -o none/y.so", 1, "graphkb compile: there is no folder 'none' to write 'y' into"),
        ("compile net.py:y -o y.so --prefix 1", 1, "graphkb compile: the prefix '1' is not a C identifier"),
        ("compile net.py:y -o y.so --target z80", 1, "graphkb compile: target: 'z80' is not known; expected one"),
        ("compile net.py:y -o y.so --size batch=x", 2, "graphkb compile: --size batch=x: expected a number"),
        ("dump net.py:y -o none/y.txt", 1, "graphkb dump: [Errno 2] No such file or directory: 'none/y.txt'"),
        ("dump bad.json", 2, "graphkb dump: bad.json: there is no such file"),
        ("run net.py:y", 2, "graphkb run: no value for x: use --input x=VALUE, or --input random; y takes x: float32"),
        (
            "run net.py:y --input q=1",
            2,
            "graphkb run: --input q=…: there is no such input; y takes x: float32[batch, 3]",
        ),
        ("run net.py:y --input x", 2, "graphkb run: --input: got 'x'; expected NAME=VALUE, as in --input x=1,2,3"),
        ("run net.py:y --input x=1 --input x=2", 2, "graphkb run: --input: got a name twice"),
        ("run net.py:y --input x=a,b", 2, "graphkb run: --input x=a,b: expected file.npy, file.npz:key, numbers"),
        ("run net.py:y --input x=[[1,2,3],[4]]", 2, "graphkb run: x: expected values that form one float32 array"),
        ("run net.py:y --input x=none.npy", 2, "graphkb run: none.npy: there is no such file"),
        ("run net.py:y --input x=1,2,3,4", 2, "graphkb run: --input x: 4 numbers do not fill the shape (None, 3)"),
        ("run net.py:y --input x=[[1,2]]", 2, "graphkb run: x: expected shape (None, 3), got (1, 2)"),
        ("run net.py:y --input random --size q=3", 2, "graphkb run: --size q=3: expected a number for one of"),
        (
            "run net.py:pair --input random -o y.npy",
            2,
            "graphkb run: -o y.npy: a .npy file holds one output, pair has 2",
        ),
        ("run net.py:y --input random -o y.txt", 2, "graphkb run: -o y.txt: expected a name that ends in .npz or .npy"),
        ("bench net.py:y --seconds 0", 2, "graphkb bench: --seconds: expected more than 0"),
    ],
)
def test_errors_are_one_line(net: str, capsys: pytest.CaptureFixture[str], argv: str, code: int, message: str) -> None:
    found, out, err = run(capsys, *argv.split())
    err = err.removeprefix("loading\n")
    assert (found, out) == (code, "")
    assert err.startswith(message)
    assert err.count("\n") == 1


@pytest.mark.parametrize("argv", [[], ["nothing"], ["run"], ["dump", "a", "b"], ["run", "net.py:y", "--repeat", "0"]])
def test_bad_usage(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    code, out, err = run(capsys, *argv)
    assert (code, out) == (2, "")
    assert err.startswith("usage: graphkb")


def test_a_file_with_an_error_names_the_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "wrong.py").write_text("import math\n\nmath.sqrt(-1)\n")
    code, _, err = run(capsys, "dump", f"{tmp_path}/wrong.py:y")
    assert (code, err) == (1, f"graphkb dump: {tmp_path}/wrong.py, line 3: ValueError: math domain error\n")
    (tmp_path / "syntax.py").write_text("a b\n")
    code, _, err = run(capsys, "dump", f"{tmp_path}/syntax.py:y")
    assert code == 1
    assert "SyntaxError: invalid syntax" in err


def test_debug_shows_the_traceback(net: str) -> None:
    with pytest.raises(Exception, match="first line"):
        main(["dump", f"{net}:broken", "--debug"])


def test_module_and_closed_pipe(net: str) -> None:
    command = f"{sys.executable} -m graphkb dump net.py:y | head -n 1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, check=False)
    assert done.stdout == "graph y\n"
    assert done.stderr == "loading\n"
