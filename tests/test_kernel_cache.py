"""The kernel cache: later processes generate nothing, and nothing that happens to the folder harms a call."""

from __future__ import annotations

import ctypes
import gc
import os
import subprocess
import sys
import textwrap
import time
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from graphkb import backend as K
from graphkb import options
from graphkb.codegen import engine, target
from graphkb.codegen.engine import Engine
from graphkb.codegen.target import TARGETS, host_target
from graphkb.runtime import kernel_cache
from graphkb.runtime.function import Function
from graphkb.runtime.kernel_cache import cache_state, compile_kernels, find_target
from graphkb.runtime.options import Options
from graphkb.runtime.plan import CompiledPlan

ROOT = Path(__file__).resolve().parent.parent
TARGET = host_target()


def module(number: int) -> str:
    """A module of its own for each number: the function `answer` returns it."""
    return f"define i64 @answer() {{\n  ret i64 {number}\n}}\n"


def answer(of: Engine) -> int:
    return int(ctypes.CFUNCTYPE(ctypes.c_int64)(of.address("answer"))())


def entries(folder: Path) -> list[Path]:
    return sorted(folder.glob("*.kernels"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "deep" / "kernels"


@pytest.fixture
def chosen(folder: Path) -> Options:
    return Options(kernel_cache=str(folder), debug=True)


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The modules for which LLVM generated code."""
    texts: list[str] = []
    real = engine.emit_object

    def emit(text: str, *args: object, **kwargs: object) -> bytes:
        texts.append(text)
        return real(text, *args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(engine, "emit_object", emit)
    return texts


def test_code_is_generated_once(folder: Path, chosen: Options, generated: list[str]) -> None:
    first = compile_kernels(module(7), TARGET, chosen)
    assert (answer(first), len(generated)) == (7, 1)
    (entry,) = entries(folder)
    assert (folder.stat().st_mode & 0o777, entry.stat().st_mode & 0o777) == (0o700, 0o600)
    shown = first.assembly()
    del first
    second = compile_kernels(module(7), TARGET, chosen)
    assert (answer(second), len(generated)) == (7, 1)
    assert second.assembly() == shown
    assert "answer:" in shown


def test_equal_modules_share_an_engine_while_it_lives(chosen: Options, generated: list[str]) -> None:
    off = replace(chosen, kernel_cache="off")
    first = compile_kernels(module(11), TARGET, off)
    assert compile_kernels(module(11), TARGET, off) is first
    alive = weakref.ref(first)
    del first
    gc.collect()
    assert alive() is None
    assert answer(compile_kernels(module(11), TARGET, off)) == 11
    assert len(generated) == 2


def test_whatever_decides_the_code_is_in_the_key(monkeypatch: pytest.MonkeyPatch) -> None:
    keys = {
        kernel_cache._key(module(1), TARGET, 2),
        kernel_cache._key(module(2), TARGET, 2),
        kernel_cache._key(module(1), TARGET, 0),
        kernel_cache._key(module(1), replace(TARGET, tune="generic"), 2),
        kernel_cache._key(module(1), replace(TARGET, features="+avx"), 2),
        kernel_cache._key(module(1), TARGETS["x86-64-v2"], 2),
    }
    monkeypatch.setattr(kernel_cache, "_FORMAT", 0)
    keys.add(kernel_cache._key(module(1), TARGET, 2))
    monkeypatch.setattr(engine, "llvm_identity", lambda: "another")
    keys.add(kernel_cache._key(module(1), TARGET, 2))
    assert len(keys) == 8


def test_invalid_modules_are_errors_and_not_kept(folder: Path, chosen: Options) -> None:
    with pytest.raises(RuntimeError, match="expected"):
        compile_kernels("define nonsense", TARGET, chosen)
    assert not entries(folder)


# --------------------------------------------------------------------------------------------- damaged entries
def _empty(path: Path) -> None:
    path.write_bytes(b"")


def _cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _cut_in_the_header(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:40])


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def _other_format(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(b"G" + data[1:])


def _entry_of_another_key(path: Path) -> None:
    """A valid file under a wrong name."""
    compile_kernels(module(999), TARGET, Options(kernel_cache=str(path.parent)))
    (other,) = [one for one in entries(path.parent) if one != path]
    other.replace(path)


def _link(path: Path) -> None:
    other = path.with_name("elsewhere")
    path.rename(other)
    path.symlink_to(other)


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


@pytest.mark.parametrize(
    "damage", [_empty, _cut, _cut_in_the_header, _flip, _other_format, _entry_of_another_key, _link, _pipe]
)
def test_damaged_entries_are_replaced(
    damage: Callable[[Path], None], folder: Path, chosen: Options, generated: list[str]
) -> None:
    compile_kernels(module(21), TARGET, chosen)
    (entry,) = entries(folder)
    good = entry.read_bytes()
    damage(entry)
    generated.clear()
    assert answer(compile_kernels(module(21), TARGET, chosen)) == 21
    assert generated == [module(21)]
    assert not entry.is_symlink()
    assert entry.read_bytes() == good


def test_a_folder_in_the_place_of_an_entry_is_left_alone(
    folder: Path, chosen: Options, generated: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    compile_kernels(module(22), TARGET, chosen)
    (entry,) = entries(folder)
    entry.unlink()
    entry.mkdir()
    for _ in range(2):
        assert answer(compile_kernels(module(22), TARGET, chosen)) == 22
    assert len(generated) == 3
    assert [path.name for path in folder.iterdir()] == [entry.name]
    assert "is not used" in capsys.readouterr().err


# --------------------------------------------------------------------------------------------- unusable folders
def _writable_by_others(folder: Path) -> None:
    folder.mkdir(parents=True)
    folder.chmod(0o770)


def _file(folder: Path) -> None:
    folder.parent.mkdir(parents=True)
    folder.write_text("something else")


def _below_a_file(folder: Path) -> None:
    folder.parent.parent.mkdir(parents=True, exist_ok=True)
    folder.parent.write_text("something else")


@pytest.mark.parametrize("spoil", [_writable_by_others, _file, _below_a_file])
def test_unusable_folders_are_not_used(
    spoil: Callable[[Path], None],
    folder: Path,
    chosen: Options,
    generated: list[str],
    capsys: pytest.CaptureFixture[str],
) -> None:
    spoil(folder)
    for _ in range(2):
        assert answer(compile_kernels(module(31), TARGET, chosen)) == 31
    assert len(generated) == 2
    told = capsys.readouterr().err
    assert told.count(f"kernel cache: {folder} is not used: ") == 1
    assert cache_state(chosen).obstacle
    assert not folder.is_dir() or not list(folder.iterdir())


def test_folders_of_other_users_are_refused(
    folder: Path, chosen: Options, generated: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compile_kernels(module(32), TARGET, chosen)
    owner = os.geteuid()
    monkeypatch.setattr(os, "geteuid", lambda: owner + 1)
    assert answer(compile_kernels(module(32), TARGET, chosen)) == 32
    assert len(generated) == 2
    assert cache_state(chosen).obstacle == f"it belongs to user {owner}, not to {owner + 1}"


@pytest.mark.parametrize("call", ["open", "replace", "makedirs", "fstat", "utime"])
def test_failing_calls_of_the_system_harm_nothing(
    call: str, folder: Path, chosen: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A full or read-only disk, whatever the user's rights are."""
    compile_kernels(module(33), TARGET, chosen)
    for entry in entries(folder):
        os.utime(entry, (0, 0))

    def fail(*args: object, **kwargs: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        found = [answer(compile_kernels(module(number), TARGET, chosen)) for number in (33, 34)]
    assert found == [33, 34]
    assert all(path.suffix == ".kernels" for path in folder.iterdir())


def test_disk_that_fills_up_in_mid_write(folder: Path, chosen: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    real = os.fdopen

    def opened(handle: int, mode: str) -> object:
        os.write(handle, b"half") if mode == "wb" else None
        if mode == "wb":
            os.close(handle)
            raise OSError(28, "No space left on device")
        return real(handle, mode)

    with monkeypatch.context() as patch:
        patch.setattr(os, "fdopen", opened)
        assert answer(compile_kernels(module(35), TARGET, chosen)) == 35
    assert list(folder.iterdir()) == []


@pytest.mark.parametrize("home", ["", "relative"])
def test_default_folder(home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", home)
    assert cache_state(Options()).path == str(tmp_path / ".cache" / "graphkb" / "kernels")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_state(Options()).path == str(tmp_path / "xdg" / "graphkb" / "kernels")
    assert cache_state(Options(kernel_cache="off")).path == ""
    assert not list(tmp_path.iterdir())


# ----------------------------------------------------------------------------------------------------- trimming
def test_the_entries_longest_unused_are_trimmed(folder: Path, chosen: Options, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(kernel_cache, "_TRIM_EVERY", 1)
    monkeypatch.setattr(kernel_cache, "_HOUR", 0.0)
    compile_kernels(module(100), TARGET, chosen)
    (first,) = entries(folder)
    size = first.stat().st_size
    (folder / "notes").write_text("not the cache's own")
    (folder / f"killed{kernel_cache._TEMPORARY}").write_text("half an entry")
    monkeypatch.setattr(kernel_cache, "MOST_BYTES", 10 * size)
    for number in range(101, 140):
        os.utime(first, (0, 0))
        compile_kernels(module(100), TARGET, chosen)  # a hit: it counts as used now
        compile_kernels(module(number), TARGET, chosen)
    assert first in entries(folder)
    assert 5 <= len(entries(folder)) <= 10
    assert sorted(path.name for path in folder.iterdir() if path not in entries(folder)) == ["notes"]
    state = cache_state(chosen)
    assert (state.entries, state.nbytes) == (len(entries(folder)), sum(one.stat().st_size for one in entries(folder)))


# ---------------------------------------------------------------------------------------------------- processes
PROGRAM = """
import numpy as np
from graphkb import backend as K

x = K.placeholder((None, 5))
w = K.variable(np.arange(15.0).reshape(5, 3))
f = K.function([x], [K.tanh(K.dot(x, w)), K.sum(K.exp(x))], updates=[(w, w * 0.5)])
for n in (2, 3):
    print(*[np.asarray(out).tolist() for out in f([np.full((n, 5), 0.1, "float32")])])
"""
NO_CODE_GENERATION = """
from llvmlite.binding.targets import TargetMachine

def refuse(*args, **kwargs):
    raise SystemExit("this process generates code")

TargetMachine._emit_to_memory = refuse
"""


def run(code: str, folder: Path, **env: str) -> tuple[str, str]:
    """What a new process prints."""
    settings = {**os.environ, "GRAPHKB_CACHE": str(folder), "GRAPHKB_MODE": "native", "GRAPHKB_DEBUG": "1", **env}
    command = [sys.executable, "-c", textwrap.dedent(code)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=settings)
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def test_the_second_process_generates_nothing(folder: Path) -> None:
    out, told = run(PROGRAM, folder)
    assert (told.count(": miss "), told.count(": hit ")) == (3, 0)  # the entry of calls, and two shapes
    again, told = run(NO_CODE_GENERATION + PROGRAM, folder)
    assert (told.count(": miss "), told.count(": hit ")) == (0, 3)
    assert again == out
    if sys.platform == "linux" and TARGET.is_x86:
        loaded, _ = run(PROGRAM + "import sys\nprint('llvmlite' in sys.modules)", folder)
        assert loaded == out + "False\n"
    off, told = run(PROGRAM, folder, GRAPHKB_CACHE="off")
    assert (told.count(": miss "), told.count(": hit ")) == (3, 0)
    assert off == out


@pytest.mark.parametrize("kept", [b"", b"[1, 2]", b'["pdp11", "", ""]', b'{"name": 3}'])
def test_a_wrong_record_of_the_machine_is_not_believed(
    kept: bytes, folder: Path, chosen: Options, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(target, "_host", None)
    assert find_target(chosen) == TARGET
    (record,) = entries(folder)
    good = record.read_bytes()
    kernel_cache.write_entry(str(folder), record.stem, kept, chosen)
    assert record.read_bytes() != good
    monkeypatch.setattr(target, "_host", None)
    assert find_target(chosen) == TARGET
    assert record.read_bytes() == good
    monkeypatch.setattr(target, "_host", None)
    monkeypatch.setattr(target, "_examine_host", lambda: pytest.fail("the record is not used"))
    assert find_target(chosen) == TARGET
    assert find_target(replace(chosen, target="x86-64")).name == "x86-64"


def test_concurrent_writers_and_a_kill_in_mid_write(folder: Path) -> None:
    """Several processes write the same entries; one of them is killed between its write and its rename."""
    killed = "import os, signal\nos.replace = lambda *args, **kwargs: os.kill(os.getpid(), signal.SIGKILL)\n" + PROGRAM
    settings = {**os.environ, "GRAPHKB_CACHE": str(folder), "GRAPHKB_MODE": "native"}
    running = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, cwd=ROOT, env=settings)
        for code in (PROGRAM, PROGRAM, killed)
    ]
    (first, _), (second, _), _ = [process.communicate() for process in running]
    assert [process.returncode for process in running][:2] == [0, 0]
    assert first == second
    left = [path for path in folder.iterdir() if path.suffix == ".tmp"]
    assert len(left) == (running[2].returncode != 0)  # it had nothing to write if the others were faster
    assert run(NO_CODE_GENERATION + PROGRAM, folder)[0] == first


def test_forked_processes_use_it(folder: Path, chosen: Options) -> None:
    compile_kernels(module(51), TARGET, chosen)
    child = os.fork()
    if not child:
        ok = [answer(compile_kernels(module(number), TARGET, chosen)) for number in (51, 52)] == [51, 52]
        os._exit(0 if ok else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert len(entries(folder)) == 2


# ---------------------------------------------------------------------------------------------------- functions
def test_functions_take_the_option(folder: Path, generated: list[str]) -> None:
    def make() -> Function:
        x = K.placeholder((None, 4))
        return K.function([x], [K.exp(x) * 3.25])

    value = np.ones((2, 4), "float32")
    with options(kernel_cache=folder, mode="native"):
        f, g = make(), make()
    np.testing.assert_allclose(f([value])[0], np.exp(value) * 3.25, rtol=1e-6)
    assert len(entries(folder)) == 2  # the machine code, and how to call it
    texts = len(generated)
    np.testing.assert_array_equal(g([value])[0], f([value])[0])
    plans = [one.specialize().plan for one in (f, g)]
    assert isinstance(plans[0], CompiledPlan)
    assert isinstance(plans[1], CompiledPlan)
    assert plans[0].engine is plans[1].engine
    assert f.dump("asm") == g.dump("asm")
    assert len(generated) == texts
    shared = weakref.ref(plans[0].engine)
    del f, plans
    gc.collect()
    assert g([value])[0].shape == (2, 4)
    del g
    gc.collect()
    assert shared() is None


def resident_kilobytes() -> int:
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


def test_loaded_engines_give_their_memory_back(folder: Path, chosen: Options) -> None:
    quiet = replace(chosen, debug=False)
    for _ in range(50):
        compile_kernels(module(61), TARGET, quiet)
    gc.collect()
    before = resident_kilobytes()
    for _ in range(500):
        compile_kernels(module(61), TARGET, quiet)
    gc.collect()
    assert resident_kilobytes() - before < 500 * 4


def test_a_use_is_noted_once_an_hour(folder: Path, chosen: Options) -> None:
    compile_kernels(module(71), TARGET, chosen)
    (entry,) = entries(folder)
    recent, old = time.time() - 60, time.time() - 7200
    os.utime(entry, (recent, recent))
    compile_kernels(module(71), TARGET, chosen)
    assert entry.stat().st_mtime == pytest.approx(recent, abs=1)
    os.utime(entry, (old, old))
    compile_kernels(module(71), TARGET, chosen)
    assert entry.stat().st_mtime > recent


def test_the_log_tells_what_was_found(chosen: Options, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level("DEBUG", "graphkb"):
        engines = [compile_kernels(module(81), TARGET, chosen) for _ in range(2)]
        del engines
        compile_kernels(module(81), TARGET, chosen)
        compile_kernels(module(82), TARGET, replace(chosen, debug=False))
    assert [record.getMessage().split()[2] for record in caplog.records] == ["miss", "shared", "hit"]
