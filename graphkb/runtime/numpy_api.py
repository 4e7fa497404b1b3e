"""NumPy's C-API table: addresses of its functions by index, which are a stable ABI."""

from __future__ import annotations

import ctypes
import importlib
from enum import IntEnum
from typing import Any

import numpy as np


class NumPy(IntEnum):
    """Index in the table."""

    ARRAY_TYPE = 2
    NEW_FROM_DESCR = 94
    SET_HANDLER = 304
    GET_HANDLER = 305


def address(entry: NumPy) -> int:
    """The address of a function, or of the array type."""
    return int(_table()[entry])


def current_handler() -> int:
    """The address of the capsule of the handler that new arrays take their memory from."""
    get = ctypes.PYFUNCTYPE(ctypes.py_object)(address(NumPy.GET_HANDLER))
    return id(get())


def _table() -> Any:
    package = "numpy._core" if int(np.__version__.split(".")[0]) >= 2 else "numpy.core"
    capsule = importlib.import_module(f"{package}._multiarray_umath")._ARRAY_API
    prototype = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_void_p)
    get_pointer = prototype(ctypes.cast(ctypes.pythonapi.PyCapsule_GetPointer, ctypes.c_void_p).value or 0)
    return (ctypes.c_uint64 * (max(NumPy) + 1)).from_address(get_pointer(capsule, None))


__all__ = ["NumPy", "address", "current_handler"]
