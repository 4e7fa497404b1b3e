"""Machine code from LLVM text: in this process, as assembly, or as an object file."""

import ctypes
import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from pathlib import Path
from threading import Lock, Thread
from typing import Any

import numpy as np

from graphkb.codegen.elf import Image, UnsupportedError
from graphkb.codegen.module_parts import join_objects, split_module, split_objects
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
def _emitters(target: Target, level: int, reloc: str) -> list[Any]:
    """Machines that write files and are not at work.

    Preparing one takes as long as the code of a small kernel, so they are kept.
    """
    return []


@contextmanager
def _emitter(target: Target, level: int, reloc: str) -> Iterator[Any]:
    """A machine that writes files, for one thread at a time."""
    idle = _emitters(target, level, reloc)
    try:
        machine = idle.pop()
    except IndexError:
        machine = _machine(target, level, reloc, False)
    yield machine
    idle.append(machine)


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

    Raises:
        ValueError: there are several object files, and this machine is one where only LLVM's linker works.
    """
    if target.is_x86:
        with suppress(UnsupportedError):
            return Engine(Image(split_objects(data), known), text, target, level)
    if len(split_objects(data)) > 1:
        raise ValueError("engine: several object files, which only the linker for Linux on x86-64 takes")
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
    return repr((target, level, _CODE_MODEL, "no strength reduction", llvm_identity()))


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
    module = _parse(text)
    with _emitter(target, level, reloc) as machine, _no_strength_reduction():
        return _generate(machine, module)


def emit_objects(text: str, target: Target, threads: int, level: int = 2) -> bytes:
    """Object files of a module for `load_object`, made by several threads where it is long and LLVM is not needed then.

    The functions' code does not depend on the number of threads.
    """
    parts = split_module(text, threads) if target.is_x86 and sys.platform == "linux" else [text]
    return join_objects(_share_work(lambda part: emit_object(part, target, level=level), parts))


def _share_work(work: Callable[[str], bytes], items: Sequence[str]) -> list[bytes]:
    """`work` done for each item, each in a thread of its own; the first one in this thread."""
    results: dict[int, bytes] = {}

    def run(number: int) -> None:
        with suppress(Exception):
            results[number] = work(items[number])

    started: list[Thread] = []
    for number in range(1, len(items)):
        thread = Thread(target=run, args=(number,), name=f"graphkb-code-{number}", daemon=True)
        with suppress(RuntimeError):  # the system, or the end of the process, grants no more threads
            thread.start()
            started.append(thread)
    run(0)
    for thread in started:
        thread.join()
    # What was not done is done here, where an exception reaches the caller.
    return [results[i] if i in results else work(item) for i, item in enumerate(items)]


# Versions of LLVM in which the option may be set again and again; elsewhere that could end the process.
_OPTION_VERSIONS = range(20, 23)
_option_lock = Lock()
_without_reduction = 0


@contextmanager
def _no_strength_reduction() -> Iterator[None]:
    """LLVM generates code without its loop strength reduction, as long as a thread of ours is in here.

    The pass takes a quarter of the time, and finds next to nothing in addresses as they are emitted here. It can be
    turned off for a whole process only, which others that use LLVM may share: it comes back.
    """
    global _without_reduction
    llvm = _llvm()
    if llvm.llvm_version_info[0] not in _OPTION_VERSIONS:
        yield
        return
    with _option_lock:
        if not _without_reduction:
            llvm.set_option("", "-disable-lsr")
        _without_reduction += 1
    try:
        yield
    finally:
        with _option_lock:
            _without_reduction -= 1
            if not _without_reduction:
                llvm.set_option("", "-disable-lsr=false")


def _generate(machine: Any, module: Any) -> bytes:
    """The object file of a parsed module.

    llvmlite lets one thread at a time into LLVM. LLVM itself only asks that threads share neither contexts nor
    machines, so the function is called past that lock.
    """
    emit = _unlocked_emit()
    if emit is None:
        return bytes(machine.emit_object(module))
    from llvmlite.binding import ffi

    with ffi.OutputString() as error:
        buffer = emit(machine, module, 1, error)
        if not buffer:
            raise RuntimeError(str(error))
    try:
        return ctypes.string_at(ffi.lib.LLVMPY_GetBufferStart(buffer), ffi.lib.LLVMPY_GetBufferSize(buffer))
    finally:
        ffi.lib.LLVMPY_DisposeMemoryBuffer(buffer)


@lru_cache(maxsize=1)
def _unlocked_emit() -> Any:
    """The function behind `TargetMachine.emit_object`; None where this llvmlite has it not."""
    from llvmlite.binding import ffi

    with suppress(AttributeError, OSError):
        wrapped = ffi.lib.LLVMPY_TargetMachineEmitToMemory
        found = ctypes.CDLL(ffi.lib._name, handle=ffi.lib._handle).LLVMPY_TargetMachineEmitToMemory
        found.argtypes, found.restype = wrapped.argtypes, wrapped.restype
        return found
    return None


def emit_assembly(text: str, target: Target, reloc: str = "pic", level: int = 2) -> str:
    """The assembly text of a module, for any target."""
    module = _parse(text)
    with _emitter(target, level, reloc) as machine, _no_strength_reduction():
        return str(machine.emit_assembly(module))
