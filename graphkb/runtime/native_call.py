"""Native entries: callables that check arrays, make outputs and run machine code without interpreted Python."""

import ctypes
import os
import sys
import threading
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from graphkb.codegen import entry as ir
from graphkb.codegen import lock as lock_ir
from graphkb.codegen.direct_entry import DIRECT_SYMBOL
from graphkb.codegen.entry_words import (
    ANY_SIZE,
    ENTRY_SYMBOL,
    TABLE_WORDS,
    WORD,
    Context,
    Table,
)
from graphkb.codegen.lock import Lock
from graphkb.runtime import numpy_api, recycling
from graphkb.runtime.call_context import WORKSPACE_ALIGNMENT, CallContext, address_of, aligned, nbytes
from graphkb.runtime.call_spec import DESCRS, LOCKS, CallSpec, Signature
from graphkb.runtime.direct_call import call_directly
from graphkb.runtime.numpy_api import NumPy
from graphkb.runtime.object_layout import LayoutError, calibrate
from graphkb.runtime.options import current
from graphkb.runtime.packed_copies import renew
from graphkb.runtime.state_lock import state_lock

__all__ = ["CallSpec", "DeclinedError", "NativeEntry", "available", "run_context", "state_lock"]

Array = np.ndarray[Any, Any]
MOST_INPUTS = 4096
"""Above this many inputs the references held during a call would take too much of a thread's stack."""

_RUN_RELEASED = ctypes.CFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p)
_RUN_HELD = ctypes.PYFUNCTYPE(ctypes.c_int32, ctypes.c_void_p, ctypes.c_void_p)
_SIZES = ctypes.PYFUNCTYPE(ctypes.c_int64, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p)
_METH_KEYWORDS, _METH_FASTCALL = 0x02, 0x80


class DeclinedError(Exception):
    """Machine code returned without an answer: an index is out of range."""


def available() -> tuple[bool, str]:
    """Whether calls can be native in this process, and if not, the reason. The first call compiles the entry."""
    native = _prepare()
    return (True, "") if isinstance(native, _Native) else (False, native)


class NativeEntry:
    """The callable of one function: native for the specializations added, `slow` for everything else.

    A call `callable([a, b])` with one list or tuple of plain, aligned, C-contiguous arrays that agree with an added
    specialization runs it and returns a list of new arrays. Any other call, also one that would have to wait for
    the workspace or for `state_lock`, or that the code declines, is `slow(*args, **kwargs)`. Where `available()` is
    False, `callable` is `slow`.

    Args:
        slow: takes every call that is not native; its result and its exceptions are the caller's.
    """

    __slots__ = ("__weakref__", "_callable", "_owner")

    def __init__(self, slow: Callable[..., object]) -> None:
        if not callable(slow):
            raise TypeError(f"NativeEntry: expected a callable for slow, got {type(slow).__name__}")
        native = _prepare()
        self._owner = _Owner()
        self._callable = slow
        if isinstance(native, _Native):
            self._callable = native.new_callable(slow, self._owner)

    @property
    def callable(self) -> Callable[..., Any]:
        """The built-in function object. It stays valid, with all its specializations, without this object."""
        return self._callable

    def serve(self, function: Any) -> None:
        """Let a function, whose slot `__call__` holds `callable`, be called without looking for that slot."""
        if isinstance(native := _prepare(), _Native):
            call_directly(function, self._callable, native.direct, native.table_address)

    def add(self, spec: CallSpec, copies: int = 1) -> bool:
        """Run calls that agree with `spec` natively from now on; False when they stay with `slow`.

        The newest agreeing specialization runs; when it is busy, an older agreeing one does. So `copies` above 1
        lets that many threads run it at once, and a specialization that has become wrong must be discarded.
        """
        if not isinstance(_prepare(), _Native) or len(spec.inputs) > MOST_INPUTS:
            return False
        for _ in range(copies):
            context = CallContext(spec)
            if context.recycles:
                _need_pool()
            self._owner.link(context)
        return True

    def calls(self, spec: CallSpec) -> int:
        """How many calls this very `spec` has taken."""
        return self._owner.calls(spec)

    def discard(self, spec: CallSpec) -> None:
        """Forget this very `spec`; a call under way ends normally."""
        self._owner.keep(lambda other: other is not spec)

    def clear(self) -> None:
        """Forget all specializations; calls under way end normally."""
        self._owner.keep(lambda other: False)


def run_context(spec: CallSpec, arrays_in: Sequence[Array], arrays_out: Sequence[Array] | None = None) -> list[Array]:
    """Run `spec` from Python, with a workspace of its own, waiting for `state_lock` when it needs that.

    Args:
        arrays_in: one aligned, C-contiguous array of the exact dtype and shape for each input.
        arrays_out: the same for each output; written to. None makes new ones.

    Returns:
        The outputs.

    Raises:
        DeclinedError: the code can not compute these values.
        ValueError: an array's count, dtype, shape or memory is not as `spec` says.
    """
    _check("input", spec.inputs, arrays_in)
    outputs, needed, words = _measure(spec, arrays_in) if spec.sizes else (spec.outputs, spec.workspace_bytes, ())
    if arrays_out is None:
        arrays_out = [_new_output(shape, DESCRS[dtype], spec.recycle) for dtype, shape in outputs]
    _check("output", outputs, arrays_out)
    if not all(array.flags.writeable for array in arrays_out):
        raise ValueError("run_context: expected outputs that can be written to")
    addresses = (*map(address_of, arrays_in), *spec.bound, *map(address_of, arrays_out), *words)
    args = (ctypes.c_void_p * max(len(addresses), 1))(*addresses)
    memory = np.empty(needed + WORKSPACE_ALIGNMENT, np.uint8)
    run = (_RUN_RELEASED if spec.release_gil else _RUN_HELD)(spec.run)
    lock = LOCKS[spec.lock]
    while True:
        if lock == Lock.NONE:
            status = run(ctypes.addressof(args), aligned(memory))
        else:
            status = state_lock.run(lock, run, ctypes.addressof(args), aligned(memory))
        if not status:
            return list(arrays_out)
        if not renew(spec.copies):
            raise DeclinedError


def _new_output(shape: tuple[int, ...], dtype: np.dtype[Any], recycle: bool) -> Array:
    if recycle and recycling.fits(nbytes(dtype, shape)) and isinstance(_state, _Native):
        return _state.pool.empty(shape, dtype)
    return np.empty(shape, dtype)


def needed_workspace(spec: CallSpec, arrays: Sequence[Array]) -> int:
    """The bytes of workspace that a call with these inputs takes; -1 where `spec` does not serve their sizes."""
    return _find_sizes(spec, arrays)[0] if spec.sizes else spec.workspace_bytes


def _measure(spec: CallSpec, arrays: Sequence[Array]) -> tuple[Signature, int, Sequence[int]]:
    """The outputs' dtypes and shapes for these inputs, the workspace, and the words that `run` takes."""
    needed, dims, words = _find_sizes(spec, arrays)
    if needed < 0:
        raise ValueError(f"run_context: the code does not serve the shapes {[array.shape for array in arrays]}")
    rest = iter(dims)
    return tuple([(dtype, tuple([next(rest) for _ in shape])) for dtype, shape in spec.outputs]), needed, words


def _find_sizes(spec: CallSpec, arrays: Sequence[Array]) -> tuple[int, Sequence[int], Sequence[int]]:
    shapes = [(ctypes.c_int64 * max(array.ndim, 1))(*array.shape) for array in arrays]
    pointers = (ctypes.c_void_p * max(len(shapes), 1))(*map(ctypes.addressof, shapes))
    words = (ctypes.c_int64 * spec.symbols)()
    dims = (ctypes.c_int64 * max(sum(len(shape) + 1 for _, shape in spec.outputs), 1))()
    return _SIZES(spec.sizes)(pointers, words, dims), list(dims), list(words)


def _check(role: str, wanted: Signature, arrays: Sequence[Array]) -> None:
    if len(arrays) != len(wanted):
        raise ValueError(f"run_context: expected {len(wanted)} {role}s, got {len(arrays)}")
    for index, (array, (dtype, shape)) in enumerate(zip(arrays, wanted)):
        fits = len(shape) == array.ndim and all(n in (size, ANY_SIZE) for n, size in zip(shape, array.shape))
        if array.dtype != DESCRS[dtype] or not fits:
            raise ValueError(
                f"run_context: {role} {index} is {array.dtype}{list(array.shape)}, expected {dtype}{list(shape)}"
            )
        if not (array.flags.c_contiguous and array.flags.aligned):
            raise ValueError(f"run_context: expected {role} {index} aligned and C-contiguous")


class _Owner:
    """Owns the memory that an entry reads. It dies after its callable, whose caller holds it during a call."""

    __slots__ = ("_contexts", "_retired", "words")

    def __init__(self) -> None:
        self.words = np.zeros(2, np.int64)
        self._contexts: list[CallContext] = []
        self._retired: list[CallContext] = []

    def link(self, context: CallContext) -> None:
        """Put `context` before all others, or behind those of known sizes where its own are open.

        Its words are complete when the entry can first see it.
        """
        with _mutex:
            self._sweep()
            known = [one for one in self._contexts if not one.spec.sizes]
            place = len(self._contexts) - len(known) if context.spec.sizes else len(self._contexts)
            before = self._contexts[place].words[Context.NEXT :] if place < len(self._contexts) else self.words[1:]
            self._contexts.insert(place, context)
            context.words[Context.NEXT] = before[0]
            before[0] = context.address

    def keep(self, wanted: Callable[[CallSpec], bool]) -> None:
        """Unlink the other contexts; those that run stay in memory until they have ended."""
        with _mutex:
            kept = [context for context in self._contexts if wanted(context.spec)]
            self._retired += [context for context in self._contexts if not wanted(context.spec)]
            self._contexts = kept
            following = 0
            for context in kept:
                context.words[Context.NEXT] = following
                following = context.address
            self.words[1] = following
            self._sweep()

    def calls(self, spec: CallSpec) -> int:
        """How many calls the contexts of a specialization have taken."""
        return sum(int(one.words[Context.CALLS]) for one in self._contexts if one.spec is spec)

    def _sweep(self) -> None:
        """Free retired contexts that do not run: nothing leads to them, so none of them can start again."""
        if self._retired:
            generation = _generation()
            self._retired = [one for one in self._retired if one.words[Context.BUSY] == generation]

    def __del__(self) -> None:
        # Garbage collection finalizes before it takes cycles apart: a late call must find no context.
        self.words[1] = 0


class _MethodDef(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("meth", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


class _NativeWord:
    """The state lock's word inside the table, changed only by the emitted atomic helpers."""

    def __init__(self, address: int, symbol: Callable[[str], int]) -> None:
        void, word, value = None, ctypes.c_void_p, ctypes.c_int64
        self._address = address
        self._value = ctypes.c_int64.from_address(address)
        self._try = ctypes.PYFUNCTYPE(value, word, value)(symbol(lock_ir.TRY_SYMBOL))
        self._release = ctypes.PYFUNCTYPE(void, word, value)(symbol(lock_ir.RELEASE_SYMBOL))
        self._mark = ctypes.PYFUNCTYPE(void, word, value)(symbol(lock_ir.MARK_SYMBOL))

    def attempt(self, kind: int, taken: list[int] | None = None) -> bool:
        taken = [] if taken is None else taken
        # One step for an interrupt: no Python code runs between the try and the note of its success.
        taken.extend(filter(None, map(self._try, (self._address,), (kind,))))
        return bool(taken)

    def release(self, kind: int, taken: list[int] | None = None) -> None:
        release, address = self._release, self._address
        if taken is not None:
            del taken[:]
        release(address, kind)

    def mark(self, waiting: bool) -> None:
        self._mark(self._address, waiting)

    def read(self) -> int:
        return self._value.value

    def write(self, value: int) -> None:
        self._value.value = value


class _Native:
    """The compiled entry with its table; made once in a process and never freed."""

    def __init__(self) -> None:
        from graphkb.runtime.kernel_cache import compile_kernels, find_target

        text = ir.emit_entry(calibrate())
        options = current()
        self._engine = compile_kernels(text, find_target(options), options)
        self.made_pool: recycling.OutputPool | None = None
        self.direct = self._engine.address(DIRECT_SYMBOL)
        self._memory = np.zeros(TABLE_WORDS + WORKSPACE_ALIGNMENT // WORD, np.int64)
        self.table_address = aligned(self._memory)
        start = (self.table_address - address_of(self._memory)) // WORD
        self.table = self._memory[start : start + TABLE_WORDS]
        for word, value in _table_values().items():
            self.table[word] = value
        self.table[Table.GENERATION] = 1
        doc = b"Call the function with one list of inputs; returns the list of outputs."
        flags = _METH_FASTCALL | _METH_KEYWORDS
        self._method = _MethodDef(b"__call__", self._engine.address(ENTRY_SYMBOL), flags, doc)
        prototype = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)
        self._new = prototype(_python_symbol("PyCFunction_NewEx"))
        self._self_test()
        state_lock.move(_NativeWord(self.table_address + WORD * Table.LOCK, self._engine.address))

    @property
    def pool(self) -> recycling.OutputPool:
        """The pool of large outputs, made when it is first asked for."""
        if self.made_pool is None:
            with _mutex:
                if self.made_pool is None:
                    made = recycling.make_pool()
                    self.table[Table.POOL_MALLOC], self.table[Table.POOL_FREE] = made.malloc, made.free
                    self.table[Table.POOL], self.table[Table.HANDLER] = made.address, id(made.handler)
                    self.made_pool = made
        return self.made_pool

    def new_callable(self, slow: Callable[..., object], owner: _Owner) -> Callable[..., Any]:
        """A built-in function; its `self` is a tuple, which garbage collection visits but never empties."""
        owner.words[0] = self.table_address
        memory = owner.words.view()
        memory.flags.writeable = False
        result: Callable[..., Any] = self._new(ctypes.addressof(self._method), (memory, slow, owner), None)
        return result

    def _self_test(self) -> None:
        owner = _Owner()
        call = self.new_callable(lambda *args, **kwargs: (args, kwargs), owner)
        if call(1, key=2) != ((1,), {"key": 2}):
            raise LayoutError("the entry does not reach its slow path")
        inputs: Signature = (("int32", (2,)), ("bool", ()))
        outputs: Signature = (("float64", (3, 0)), ("uint8", ()))
        owner.link(CallContext(CallSpec(inputs, outputs, self._engine.address(ir.NOTHING_SYMBOL))))
        answer = call([np.zeros(2, np.int32), np.array(True)])
        if type(answer) is not list or tuple((one.dtype.name, one.shape) for one in answer) != outputs:
            raise LayoutError("the entry does not make the outputs that it should")


def _python_symbol(name: str) -> int:
    return int(ctypes.cast(getattr(ctypes.pythonapi, name), ctypes.c_void_p).value or 0)


def _table_values() -> dict[Table, int]:
    """Addresses of what the entry calls; NumPy's come from its C-API table, whose indices are a stable ABI."""
    if numpy_api.address(NumPy.ARRAY_TYPE) != id(np.ndarray):
        raise LayoutError("NumPy's C-API table does not show the array type")
    names = {
        Table.INCREF: "Py_IncRef",
        Table.DECREF: "Py_DecRef",
        Table.LIST_NEW: "PyList_New",
        Table.VECTORCALL: "PyObject_Vectorcall",
        Table.SAVE_THREAD: "PyEval_SaveThread",
        Table.RESTORE_THREAD: "PyEval_RestoreThread",
    }
    return {word: _python_symbol(name) for word, name in names.items()} | {
        Table.NONE: id(None),
        Table.LIST_TYPE: id(list),
        Table.TUPLE_TYPE: id(tuple),
        Table.ARRAY_TYPE: id(np.ndarray),
        Table.ARRAY_NEW: numpy_api.address(NumPy.NEW_FROM_DESCR),
    }


_mutex = threading.RLock()
_state: _Native | str | None = None


def _prepare() -> "_Native | str":
    """The compiled entry, or the reason why there is none."""
    global _state
    if _state is None:
        with _mutex:
            if _state is None:
                _state = _obstacle() or _make()
    return _state


def _obstacle() -> str:
    if sys.implementation.name != "cpython":
        return f"native calls need CPython, this is {sys.implementation.name}"
    if "t" in getattr(sys, "abiflags", ""):
        return "native calls need the global interpreter lock, which this Python is built without"
    if os.name != "posix" or ctypes.sizeof(ctypes.c_void_p) != WORD:
        return "native calls need a 64-bit POSIX system"
    return ""


def _make() -> "_Native | str":
    try:
        return _Native()
    except ImportError as error:
        return f"native calls need llvmlite: {error}"
    except (LayoutError, AttributeError, KeyError, RuntimeError, ValueError) as error:
        return f"native calls are off: {error}"


def _need_pool() -> None:
    """Make the pool: from now on some context may take memory from it."""
    native = _prepare()
    assert isinstance(native, _Native)
    assert native.pool.address


def _generation() -> int:
    return int(_state.table[Table.GENERATION]) if isinstance(_state, _Native) else 0


def _in_child() -> None:
    """After a fork no other thread runs: a new generation frees every context that one of them had taken."""
    global _mutex
    _mutex = threading.RLock()
    if isinstance(_state, _Native):
        _state.table[Table.GENERATION] += 1
        if _state.made_pool is not None:
            _state.made_pool.forget_lock()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_in_child)
