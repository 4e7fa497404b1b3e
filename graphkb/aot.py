"""Ahead-of-time compilation: `compile` makes a C library of a function, `load` calls such a library from Python."""

from __future__ import annotations

import ctypes
import importlib.util
import itertools
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from graphkb.ir.dims import Dim, symbol
from graphkb.ir.errors import CompileError, InputError, PositionError
from graphkb.ir.leaves import Array, aligned_empty
from graphkb.ir.record import record
from graphkb.runtime.inputs import Parameters

if TYPE_CHECKING:
    from graphkb.codegen.target import Target
    from graphkb.runtime.function import Function

_SUFFIXES = {".so", ".o", ".h", ".dylib", ".dll"}
_MARK = b"graphkb-library "
_ABI_VERSION = 1
_ERRORS = {
    1: "an array or the state is NULL",
    2: "a size is negative",
    3: "workspace or state is missing or not aligned to 64 bytes",
}
_BAD_INDEX_VALUE = 5
_LOADS = itertools.count(1)


@record
class CompiledFiles:
    """The files that `compile` wrote.

    Attributes:
        object: the object file, for linking into a program.
        library: the shared library; None where nothing could link it.
        header: the C header of both.
    """

    object: Path
    library: Path | None
    header: Path


def compile(
    fn: Function,
    path: str | os.PathLike[str],
    *,
    prefix: str | None = None,
    target: str | None = None,
    sizes: Mapping[str, int] | None = None,
    threads: str = "none",
) -> CompiledFiles:
    """Compile a function into `path.o`, `path.so` and `path.h`: plain C functions that need no library at all.

    Sizes that the function leaves open stay parameters of the C functions. Variables are embedded with the values that
    they have now; those that the function updates become a state that the caller owns.

    Args:
        fn: what `K.function` returned.
        path: where to write, with or without a suffix; the folder must exist.
        prefix: what the names of all C functions begin with, a C identifier; by default made from the file's name.
        target: the machine to compile for, such as "x86-64-v3" or "aarch64"; by default this one.
        sizes: values for sizes that the function leaves open, by their names in dumps, such as {"batch": 32}.
        threads: who runs large loops. "none": the thread that calls. "hook": a function that the program sets with
            `<prefix>_set_parallel_for`. "pool": threads of the library's own, for which it needs libc's pthreads;
            `<prefix>_set_threads` says how many.

    Returns:
        The paths of the files.

    Raises:
        CompileError: a node can only be interpreted (the text names each), a bad prefix, size or target, a target
            without pthreads for a pool, or llvmlite is not installed.
        FileNotFoundError, PermissionError: the folder is missing or can not be written to.

    Example:
        >>> import graphkb
        >>> from graphkb import backend as K
        >>> x = K.placeholder((None, 3))
        >>> files = graphkb.compile(K.function([x], [K.relu(x)]), "relu")  # doctest: +SKIP
    """
    from graphkb import __version__
    from graphkb.codegen.aot import make_c_module
    from graphkb.codegen.c_header import header_text
    from graphkb.codegen.engine import emit_object
    from graphkb.runtime.function import Function
    from graphkb.runtime.state_lock import state_lock

    if not isinstance(fn, Function):
        raise TypeError(f"compile: expected a function from K.function, got {type(fn).__name__}")
    stem = Path(path)
    if stem.suffix in _SUFFIXES:
        stem = stem.with_suffix("")
    if importlib.util.find_spec("llvmlite") is None:
        raise CompileError("compile: it needs llvmlite, which is not installed: pip install llvmlite")
    machine = _target(target if target is not None else fn.options.target)
    _check_threads(threads, machine)
    name = _prefix(prefix, stem.name)
    _check_folder(stem)
    with state_lock.shared():
        module = make_c_module(fn.definition, name, machine, dict(sizes or {}), threads)
    files = {suffix: stem.with_name(stem.name + suffix) for suffix in (".o", ".h", ".so")}
    _write(files[".o"], emit_object(module.text, machine))
    _write(files[".h"], header_text(module, __version__).encode())
    public = [f"{name}_{what}" for what in ("run", "workspace_size", "output_shape", "abi_version", "description")]
    public += [f"{name}_state_init"] if module.variables else []
    public += {"hook": [f"{name}_set_parallel_for"], "pool": [f"{name}_set_threads"]}.get(threads, [])
    linked = _link(files[".o"], files[".so"], machine, public, libc=threads == "pool")
    return CompiledFiles(files[".o"], files[".so"] if linked else None, files[".h"])


def _target(name: str) -> Target:
    from graphkb.codegen.target import host_target, named_target

    try:
        return host_target() if name == "host" else named_target(name)
    except ValueError as error:
        raise CompileError(f"compile: {error}") from None


def _check_threads(threads: str, target: Target) -> None:
    from graphkb.codegen.thread_pool import system_of

    if threads not in ("none", "hook", "pool"):
        raise CompileError(f"compile: threads is {threads!r}: expected 'none', 'hook' or 'pool'")
    if threads == "pool" and not system_of(target):
        raise CompileError(f"compile: there are no pthreads for {target.name}: use threads='hook' or 'none'")


def _prefix(given: str | None, stem: str) -> str:
    from graphkb.codegen.aot import C_KEYWORDS, c_name

    if given is None:
        return c_name(stem, set())
    if not isinstance(given, str) or not re.fullmatch(r"[A-Za-z_][A-Za-z0-9_]*", given) or given in C_KEYWORDS:
        raise CompileError(
            f"compile: the prefix {given!r} is not a C identifier: use letters, digits and _, "
            "beginning with a letter, and no word of the language"
        )
    return given


def _check_folder(stem: Path) -> None:
    if not stem.name:
        raise CompileError(f"compile: expected the path of a file, got {str(stem)!r}")
    if not stem.parent.is_dir():
        raise FileNotFoundError(f"compile: there is no folder {str(stem.parent)!r} to write {stem.name!r} into")


def _write(path: Path, data: bytes) -> None:
    """Write a file in one step, so that nobody ever sees half of it."""
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        os.chmod(temporary, 0o666 & ~_umask())
        os.replace(temporary, path)
    except BaseException:
        os.unlink(temporary)
        raise


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


# ---------------------------------------------------------------------------------------------- linking
def _link(object_file: Path, library: Path, target: Target, public: Sequence[str], libc: bool) -> bool:
    """Link the shared library, with libc or alone; a warning where there is no linker for the target."""
    # A pool never ends: its code must stay.
    needs = ["-pthread", "-Wl,-z,nodelete"] if libc else ["-nostdlib"]
    problem = "no C compiler was found: install one, or `pip install ziglang`"
    for command in _linkers(target):
        handle, temporary = tempfile.mkstemp(dir=library.parent, prefix=f".{library.name}.")
        os.close(handle)
        with tempfile.NamedTemporaryFile("w", suffix=".map") as versions:
            versions.write(f"{{ global: {' '.join(f'{name};' for name in public)} local: *; }};\n")
            versions.flush()
            options = [f"-Wl,-soname,{library.name}", "-Wl,-z,noexecstack", f"-Wl,--version-script={versions.name}"]
            result = subprocess.run(
                [*command, "-shared", *needs, "-Wl,--build-id=none", *options, "-o", temporary, str(object_file)],
                capture_output=True,
                text=True,
                check=False,
            )
        if result.returncode == 0:
            os.chmod(temporary, 0o777 & ~_umask())
            os.replace(temporary, library)
            return True
        os.unlink(temporary)
        problem = (result.stderr.strip() or f"{command[0]} failed").splitlines()[-1]
    warnings.warn(
        f"compile: {library.name} was not linked for {target.name}: {problem}; {object_file.name} is complete",
        stacklevel=3,
    )
    return False


def _linkers(target: Target) -> list[list[str]]:
    """The commands that may link for a target, best first."""
    arch = target.triple.split("-")[0]
    host = os.uname().machine if hasattr(os, "uname") else ""
    found: list[list[str]] = []
    if arch == "wasm32":
        return []
    if arch == host:
        found += [[cc] for cc in (os.environ.get("CC", ""), "cc", "gcc", "clang") if cc and shutil.which(cc)][:1]
    else:
        found += [[cc] for cc in (f"{arch}-linux-gnu-gcc",) if shutil.which(cc)]
    if importlib.util.find_spec("ziglang") is not None:
        found.append([sys.executable, "-m", "ziglang", "cc", "-target", f"{arch}-linux-gnu"])
    return found


# ---------------------------------------------------------------------------------------------- loading
class Library:
    """A library that `compile` made, called as the function was: `library([x])` returns the list of outputs.

    Inputs are converted and checked as those of a function. Threads may call it at once; where the library has
    variables to update, they take turns.

    Attributes:
        path: of the library.
        prefix: of its C functions.
        inputs, outputs: name, dtype and shape of each array; unknown sizes are names.
        state: the updated variables by name, as arrays that share the library's memory.
    """

    def __init__(self, path: Path, description: Mapping[str, Any]) -> None:
        self.path = path
        self.prefix: str = description["prefix"]
        self.inputs = tuple([(a["name"], a["dtype"], tuple(a["shape"])) for a in description["inputs"]])
        self.outputs = tuple([(a["name"], a["dtype"], tuple(a["shape"])) for a in description["outputs"]])
        self._dll = ctypes.CDLL(_new_name(path))
        if self._symbol("abi_version", ctypes.c_int32)() != _ABI_VERSION:
            raise CompileError(f"load: {path} has another ABI version than this graphkb: compile it again")
        self._run = self._symbol("run", ctypes.c_int32)
        self._workspace_size = self._symbol("workspace_size", ctypes.c_int64)
        self._output_shape = self._symbol("output_shape", ctypes.c_int32)
        self._symbols = {name: symbol(name) for name in description["sizes"]}
        self._parameters = Parameters(self._placeholders(), path.stem)
        if description.get("threads") == "pool":
            from graphkb.runtime.threads import thread_count

            self._symbol("set_threads", None)(ctypes.c_int32(thread_count()))
        self._lock: Any = None
        self._state: Array | None = None
        self.state: dict[str, Array] = {}
        if description["state_bytes"]:
            self._make_state(description)

    def _symbol(self, name: str, result: Any) -> Any:
        function = getattr(self._dll, f"{self.prefix}_{name}")
        function.restype = result
        return function

    def _placeholders(self) -> list[Any]:
        from graphkb.ops.leaf import placeholder

        def shape(dims: Sequence[int | str]) -> tuple[Dim, ...]:
            return tuple([d if isinstance(d, int) else self._symbols[d] for d in dims])

        return [placeholder(shape(dims), dtype, name) for name, dtype, dims in self.inputs]

    def _make_state(self, description: Mapping[str, Any]) -> None:
        import threading

        self._lock = threading.Lock()
        self._state = aligned_empty((description["state_bytes"],), "uint8")
        self._symbol("state_init", None)(ctypes.c_void_p(self._state.ctypes.data))
        for v in description["variables"]:
            count = int(np.prod(v["shape"], dtype=np.int64)) * np.dtype(v["dtype"]).itemsize
            raw = self._state[v["offset"] : v["offset"] + count]
            self.state[v["name"]] = raw.view(v["dtype"]).reshape(v["shape"])

    def __call__(self, inputs: Sequence[Any] = ()) -> list[Array]:
        arrays = self._parameters.convert(inputs)
        bindings = self._parameters.bind(tuple([a.shape for a in arrays]))
        by_name = {s.name: size for s, size in bindings.items()}
        sizes = [ctypes.c_int64(by_name[name]) for name in self._symbols]
        outputs = []
        for i, (_, dtype, dims) in enumerate(self.outputs):
            shape = (ctypes.c_int64 * max(1, len(dims)))()
            self._output_shape(ctypes.c_int32(i), *sizes, shape)
            outputs.append(np.empty(tuple(shape[: len(dims)]), dtype))
        workspace = aligned_empty((max(1, int(self._workspace_size(*sizes))),), "uint8")
        pointers = [ctypes.c_void_p(a.ctypes.data) for a in (*arrays, *outputs)]
        memory = [] if self._state is None else [ctypes.c_void_p(self._state.ctypes.data)]
        arguments = (*pointers, *sizes, *memory, ctypes.c_void_p(workspace.ctypes.data))
        if self._lock is None:
            code = self._run(*arguments)
        else:
            with self._lock:
                code = self._run(*arguments)
        if code == _BAD_INDEX_VALUE:
            raise PositionError(f"{self.path.stem}: an index inside an input is out of range; nothing was updated")
        if code:
            raise InputError(f"{self.path.stem}: {_ERRORS.get(code, f'error {code}')}")
        return outputs

    def __repr__(self) -> str:
        def show(arrays: tuple[tuple[str, str, tuple[int | str, ...]], ...]) -> str:
            return ", ".join(f"{name}: {dtype}[{', '.join(map(str, dims))}]" for name, dtype, dims in arrays)

        return f"<Library {self.path.name}: ({show(self.inputs)}) -> ({show(self.outputs)})>"


def _new_name(path: Path) -> str:
    """The path spelled as never before.

    The dynamic loader takes a known name for what it loaded under that name, though the file may be another by now.
    """
    spelling = "".join(["/." if bit == "1" else "/" for bit in f"{next(_LOADS):b}"])
    return f"{path.parent}{spelling}/{path.name}"


def load(path: str | os.PathLike[str]) -> Library:
    """Load a shared library that `compile` wrote; neither llvmlite nor a C compiler is needed.

    Args:
        path: of the library, with or without its suffix.

    Raises:
        FileNotFoundError: there is no such file.
        CompileError: the file is no library of graphkb, or one of another ABI version or machine.
    """
    file = Path(path)
    if not file.exists() and file.with_name(file.name + ".so").exists():
        file = file.with_name(file.name + ".so")
    if not file.is_file():
        raise FileNotFoundError(f"load: there is no file {str(path)!r}")
    found = re.search(re.escape(_MARK) + rb"(\{[^\0]*\})\0", file.read_bytes())
    if found is None:
        raise CompileError(f"load: {file} is no library of graphkb")
    description = json.loads(found.group(1))
    if description.get("abi") != _ABI_VERSION:
        raise CompileError(
            f"load: {file} has the ABI version {description.get('abi')}, this graphkb has {_ABI_VERSION}: "
            "compile it again"
        )
    try:
        return Library(file.resolve(), description)
    except OSError as error:
        raise CompileError(
            f"load: {file}, made for {description.get('target')}, can not be loaded here: {error}"
        ) from None
