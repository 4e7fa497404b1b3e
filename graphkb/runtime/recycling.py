"""Recycled outputs: large results take memory that earlier ones gave back, so that no call waits for fresh pages.

A new array of many megabytes costs a page fault for every page, at which the system clears memory: writing 40 MB
takes half as long again. Outputs of at least `FROM` bytes therefore come from a pool. They are arrays like any others
and own their data: the pool is the handler of their memory (NEP 49), so NumPy gives it back when the array, all its
views and all buffers over it are gone, and not before.

The pool keeps at most an eighth of the machine's memory and 1 GiB, dropping what it has kept for longest;
`options(recycle=False)`, or `GRAPHKB_RECYCLE=0`, leaves it out. `trim` gives back to the system what it keeps.
"""

from __future__ import annotations

import ctypes
import mmap
import os
from typing import TYPE_CHECKING, Any

import numpy as np

from graphkb.codegen import recycling as ir
from graphkb.codegen.recycling import Pool
from graphkb.runtime import numpy_api
from graphkb.runtime.numpy_api import NumPy
from graphkb.runtime.options import current

if TYPE_CHECKING:
    from graphkb.codegen.engine import Engine

Array = np.ndarray[Any, Any]

FROM = 4 << 20
"""Outputs of at least so many bytes are recycled."""
_TO = 1 << 40
_MOST = 1 << 30
_SHARE = 8


def fits(nbytes: int) -> bool:
    """Whether outputs of so many bytes are recycled."""
    return FROM <= nbytes <= _TO


class _Handler(ctypes.Structure):
    """NumPy's PyDataMem_Handler."""

    _fields_ = (
        ("name", ctypes.c_char * 127),
        ("version", ctypes.c_uint8),
        ("context", ctypes.c_void_p),
        ("malloc", ctypes.c_void_p),
        ("calloc", ctypes.c_void_p),
        ("realloc", ctypes.c_void_p),
        ("free", ctypes.c_void_p),
    )


class OutputPool:
    """The pool of a process. It is never freed: arrays that came from it may outlive everything else.

    Attributes:
        address: of its words.
        malloc, free: addresses of its functions.
        handler: the capsule that arrays hold.

    Args:
        engine: the code of `graphkb.codegen.recycling.POOL_IR`.
    """

    def __init__(self, engine: Engine) -> None:
        self._engine, symbol = engine, engine.address
        self._words = np.zeros(ir.POOL_WORDS, np.int64)
        self.address = int(self._words.__array_interface__["data"][0])
        libc = ctypes.CDLL(None)
        for word, name in ((Pool.MAP, "mmap"), (Pool.UNMAP, "munmap"), (Pool.ADVISE, "madvise")):
            self._words[word] = _address(getattr(libc, name))
        self._words[Pool.MAP_FLAGS] = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        self._words[Pool.ADVICE] = getattr(mmap, "MADV_HUGEPAGE", 0)
        self._words[Pool.LIMIT] = min(_MOST, _physical_memory() // _SHARE)
        self.malloc, self.free = symbol(ir.MALLOC_SYMBOL), symbol(ir.FREE_SYMBOL)
        symbols = [symbol(s) for s in (ir.MALLOC_SYMBOL, ir.CALLOC_SYMBOL, ir.REALLOC_SYMBOL, ir.FREE_SYMBOL)]
        self._allocator = _Handler(b"graphkb outputs", 1, self.address, *symbols)
        make = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.c_void_p, ctypes.c_char_p, ctypes.c_void_p)
        self._name = b"mem_handler"
        new_capsule = make(_address(ctypes.pythonapi.PyCapsule_New))
        self.handler: object = new_capsule(ctypes.addressof(self._allocator), self._name, None)
        self._set = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.py_object)(numpy_api.address(NumPy.SET_HANDLER))
        self._trim = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(symbol(ir.TRIM_SYMBOL))

    @property
    def kept(self) -> int:
        """The bytes that are kept for outputs to come."""
        return int(self._words[Pool.KEPT])

    @property
    def limit(self) -> int:
        """The most bytes that are ever kept."""
        return int(self._words[Pool.LIMIT])

    def empty(self, shape: tuple[int, ...], dtype: np.dtype[Any]) -> Array:
        """A new array of the pool's memory, of any content."""
        before = self._set(self.handler)
        try:
            return np.empty(shape, dtype)
        finally:
            self._set(before)

    def trim(self) -> None:
        """Give all that is kept back to the system."""
        self._trim(self.address)

    def forget_lock(self) -> None:
        """After a fork: no other thread is left that could hold it."""
        self._words[Pool.LOCK] = 0


def make_pool() -> OutputPool:
    """A pool with machine code of its own."""
    from graphkb.runtime.kernel_cache import compile_kernels, find_target

    options = current()
    return OutputPool(compile_kernels(ir.POOL_IR, find_target(options), options))


def _address(function: Any) -> int:
    return int(ctypes.cast(function, ctypes.c_void_p).value or 0)


def _physical_memory() -> int:
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return _MOST


__all__ = ["FROM", "OutputPool", "fits", "make_pool"]
