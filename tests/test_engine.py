"""Engines, object files and targets: symbols, errors, memory and detection."""

import ctypes
import gc
from pathlib import Path

import numpy as np
import pytest

from graphkb.codegen import engine as engine_module
from graphkb.codegen.builder import Builder
from graphkb.codegen.engine import (
    compile_module,
    emit_assembly,
    emit_object,
    load_object,
)
from graphkb.codegen.target import TARGETS, Target, host_target, named_target


def doubling(target: Target, factor: float = 2.0) -> str:
    """A module whose function `scale` multiplies one native vector of float32."""
    b = Builder(target)
    lanes = target.lanes("float32")
    with b.function("scale", [("x", "ptr")]) as (x,):
        v = b.load(x, "float32", lanes)
        b.store(b.fmul(v, b.const(factor, "float32", lanes)), x)
        b.ret()
    return b.module()


def call(address: int) -> np.ndarray:
    """What `scale` makes of ones."""
    x = np.ones(host_target().lanes("float32"), np.float32)
    ctypes.CFUNCTYPE(None, ctypes.c_void_p)(address)(x.ctypes.data)
    return x


def test_engine_runs_and_shows_its_assembly() -> None:
    engine = compile_module(doubling(host_target()), host_target())
    assert call(engine.address("scale")).tolist() == [2.0] * host_target().lanes("float32")
    assert "scale:" in engine.assembly()
    with pytest.raises(KeyError, match="no symbol 'other'"):
        engine.address("other")


def test_object_loads_without_code_generation() -> None:
    target = host_target()
    data = emit_object(doubling(target, 3.0), target)
    assert data == emit_object(doubling(target, 3.0), target)
    engine = load_object(data, target)
    assert call(engine.address("scale"))[0] == 3.0


def test_invalid_modules_are_errors_not_crashes() -> None:
    target = host_target()
    with pytest.raises(RuntimeError, match="expected"):
        compile_module("define nonsense", target)
    unverifiable = "define float @f(float %x) {\n  %y = call float @llvm.sqrt.f32(float %x)\n  ret float %z\n}"
    with pytest.raises(RuntimeError, match="undefined value"):
        compile_module(unverifiable, target)
    wrong = "declare float @llvm.sqrt.f32(double)\ndefine float @f() {\n"
    wrong += "  %y = call float @llvm.sqrt.f32(double 1.0)\n  ret float %y\n}"
    with pytest.raises(RuntimeError):
        compile_module(wrong, target)


def resident_kilobytes() -> int:
    """The memory of this process that is in use."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmRSS"))


def test_dropped_engines_give_their_memory_back() -> None:
    target = host_target()
    text = doubling(target)
    for _ in range(40):
        compile_module(text, target)
    gc.collect()
    before = resident_kilobytes()
    for _ in range(300):
        compile_module(text, target)
    gc.collect()
    assert resident_kilobytes() - before < 300 * 4  # an engine that stays costs 14 kB and more


@pytest.mark.parametrize("name", TARGETS)
def test_every_target_makes_objects_and_assembly(name: str) -> None:
    target = named_target(name)
    text = doubling(target)
    data = emit_object(text, target)
    assert data[:4] == (b"\0asm" if name == "wasm32" else b"\x7fELF")
    assert "scale" in emit_assembly(text, target)


def test_full_vectors_are_used_on_every_level() -> None:
    for name, register in (("x86-64", "xmm"), ("x86-64-v3", "ymm"), ("x86-64-v4", "zmm")):
        assert f"%{register}0" in emit_assembly(doubling(TARGETS[name]), TARGETS[name])


def test_lanes_and_masks_of_a_target() -> None:
    v3, v4 = TARGETS["x86-64-v3"], TARGETS["x86-64-v4"]
    assert [v4.lanes(d) for d in ("float64", "float32", "float16", "int8", "bool", "ptr")] == [
        8,
        16,
        32,
        64,
        64,
        8,
    ]
    assert v3.can_mask("float32")
    assert not v3.can_mask("int8")
    assert v4.can_mask("int8")
    assert TARGETS["riscv64"].lanes("float32") == 1


def test_environment_chooses_the_level(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("GRAPHKB_TARGET", raising=False)
    detected = host_target()
    monkeypatch.setenv("GRAPHKB_TARGET", detected.name)
    assert host_target() == detected
    monkeypatch.setenv("GRAPHKB_TARGET", "pdp11")
    with pytest.raises(ValueError, match="'pdp11' is not known; expected one of host, x86-64"):
        host_target()
    monkeypatch.setenv("GRAPHKB_TARGET", "wasm32")
    with pytest.raises(ValueError, match="cannot run it"):
        host_target()


class FakeLLVM:
    """Notes which options are set."""

    def __init__(self, version: int) -> None:
        self.llvm_version_info = (version, 1, 0)
        self.set: list[str] = []

    def set_option(self, name: str, option: str) -> None:
        self.set.append(option)


def test_strength_reduction_comes_back_when_the_last_thread_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    llvm = FakeLLVM(22)
    monkeypatch.setattr(engine_module, "_llvm", lambda: llvm)

    def fail() -> None:
        with engine_module._no_strength_reduction():
            with engine_module._no_strength_reduction():
                pass
            assert llvm.set == ["-disable-lsr"]
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert llvm.set == ["-disable-lsr", "-disable-lsr=false"]


def test_unknown_versions_of_llvm_keep_their_options(monkeypatch: pytest.MonkeyPatch) -> None:
    llvm = FakeLLVM(99)
    monkeypatch.setattr(engine_module, "_llvm", lambda: llvm)
    with engine_module._no_strength_reduction():
        pass
    assert llvm.set == []
