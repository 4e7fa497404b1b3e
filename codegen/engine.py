"""Machine code from LLVM text: in this process, as assembly, or as an object file."""

import importlib.util
from collections.abc import Mapping
from contextlib import suppress
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from graphkb.codegen.elf import Image, UnsupportedError
from graphkb.codegen.target import Target

_ready = False


def _llvm() -> Any:
    """The LLVM binding with every processor family registered."""
    global _ready
    from llvmlite import binding

    if not _ready:
        binding.initialize_all_targets()
        binding.initialize_all_asmprinters()
        _ready = True
    return binding


# The small code model keeps constants one short instruction away; the memory manager of the JIT places
# code and data side by side, so it reaches.
_CODE_MODEL = "default"


def _machine(target: Target, level: int, reloc: str, jit: bool) -> Any:
    llvm = _llvm()
    options: dict[str, Any] = {"abiname": target.abi} if target.abi else {}
    return llvm.Target.from_triple(target.triple).create_target_machine(
        cpu=target.cpu,
        features=target.features,
        opt=level,
        reloc=reloc,
        codemodel=_CODE_MODEL,
        jit=jit,
        **options,
    )


@lru_cache(maxsize=8)
def _emitter(target: Target, level: int, reloc: str) -> Any:
    """The machine that writes files. Preparing one takes as long as the code of a small kernel, so it is kept."""
    return _machine(target, level, reloc, False)


def _parse(text: str) -> Any:
    llvm = _llvm()
    # In a context of its own, which keeps names and constants until it is freed with the module.
    module = llvm.parse_assembly(text, llvm.create_context())
    module.verify()  # code generation would end the process on an invalid module
    return module


class Engine:
    """The machine code of one module in this process; dropping the engine frees it.

    Addresses are valid only while the engine lives.

    Attributes: `text` of the module; `key`, the name of its entry in the kernel cache, empty where it has none;
    `pooled`, whether it has parallel regions.
    """

    key = ""
    pooled = False

    def __init__(self, engine: Any, text: str, target: Target, level: int) -> None:
        # An array hides it from the garbage collector, which would free the code of functions in a cycle before it
        # runs the finalizers of other objects there, and those may call the functions.
        self._engine: Any = np.empty((), object)
        self._engine[()] = engine
        self.text = text
        self._target = target
        self._level = level

    def address(self, symbol: str) -> int:
        """The address of a function.

        Raises:
            KeyError: the module defines no such symbol.
        """
        address = int(self._engine[()].get_function_address(symbol))
        if not address:
            raise KeyError(f"engine: no symbol {symbol!r}")
        return address

    def assembly(self) -> str:
        """The machine code as text, made again when asked for."""
        return emit_assembly(self.text, self._target, level=self._level)


def compile_module(text: str, target: Target, level: int = 2) -> Engine:
    """Machine code for a module of LLVM text.

    Args:
        text: the module, from `Builder.module`.
        target: a machine that this process can run.
        level: LLVM's code generation effort, 0 to 3.

    Raises:
        RuntimeError: the text is not valid LLVM; the message is LLVM's.
    """
    llvm = _llvm()
    module = _parse(text)
    machine = _machine(target, level, "pic", True)
    engine = llvm.create_mcjit_compiler(module, machine, use_lmm=True)
    engine.finalize_object()
    return Engine(engine, text, target, level)


def load_object(
    data: bytes, target: Target, text: str = "", level: int = 2, known: Mapping[str, int] | None = None
) -> Engine:
    """An engine for an object file that `emit_object` made for this process, without generating code.

    Objects for x86-64 do without LLVM; what that linker does not know goes to LLVM's.

    Args:
        data: the object file; damaged data may end the process.
        target: the target that it was made for.
        text, level: what it was made from, for `Engine.assembly`.
        known: addresses of functions of other modules that it calls.
    """
    if target.is_x86:
        with suppress(UnsupportedError):
            return Engine(Image(data, known), text, target, level)
    llvm = _llvm()
    for name, address in (known or {}).items():
        llvm.add_symbol(name, address)
    module = llvm.parse_assembly(f'target triple = "{target.triple}"')
    engine = llvm.create_mcjit_compiler(module, _machine(target, 0, "pic", True), use_lmm=True)
    # An engine starts with a module. Here the object file stands for its code; adding the file to the engine would
    # generate code for the empty module as well, which takes three times as long as everything else.
    pending = [data]
    engine.set_object_cache(getbuffer_func=lambda module: pending.pop())
    engine.finalize_object()
    return Engine(engine, text, target, level)


def code_identity(target: Target, level: int) -> str:
    """Everything besides a module's text that decides its object file, as text."""
    return repr((target, level, _CODE_MODEL, llvm_identity()))


@lru_cache(maxsize=1)
def llvm_identity() -> str:
    """Which build of LLVM this installation has, found out without loading it."""
    spec = importlib.util.find_spec("llvmlite")
    if spec is not None and spec.origin:
        folder = Path(spec.origin).parent / "binding"
        files = [(path.name, path.stat()) for path in sorted(folder.glob("*llvmlite.*"))]
        if files:
            return repr([(name, found.st_size, found.st_mtime_ns) for name, found in files])
    import llvmlite

    return repr((llvmlite.__version__, _llvm().llvm_version_info))


def emit_object(text: str, target: Target, reloc: str = "pic", level: int = 2) -> bytes:
    """A relocatable object file of a module, for any target."""
    return bytes(_emitter(target, level, reloc).emit_object(_parse(text)))


def emit_assembly(text: str, target: Target, reloc: str = "pic", level: int = 2) -> str:
    """The assembly text of a module, for any target."""
    return str(_emitter(target, level, reloc).emit_assembly(_parse(text)))
