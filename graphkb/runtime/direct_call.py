"""The type under functions: it has room for the address of machine code that the interpreter calls by itself.

A call `f(...)` of an object with a Python class looks for `__call__`, binds it and packs the arguments into a tuple,
which takes longer than all else that a small call does. The vectorcall protocol (PEP 590) skips that for types that
tell where their instances keep the address of a C function. Python classes can not tell; the type that is made here
can, and so can its subclass, whose instances functions become when their first native code is there.
"""

from __future__ import annotations

import ctypes
import os
import sys
from typing import TYPE_CHECKING, Any

from graphkb.codegen.entry_words import WORD, Direct

_PY_SSIZE_T, _READ_ONLY = 19, 1
_MEMBERS, _END = 72, 0
_BASE_TYPE, _HAS_VECTORCALL = 1 << 10, 1 << 11


class _Slot(ctypes.Structure):
    _fields_ = (("slot", ctypes.c_int), ("value", ctypes.c_void_p))


class _Spec(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("basicsize", ctypes.c_int),
        ("itemsize", ctypes.c_int),
        ("flags", ctypes.c_uint),
        ("slots", ctypes.POINTER(_Slot)),
    )


class _Member(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("type", ctypes.c_int),
        ("offset", ctypes.c_ssize_t),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    )


_kept: list[Any] = []  # a type reads the texts and tables that it was made of as long as it lives


def _make_type(name: str, base: type, size: int, flags: int, *members: _Member) -> type:
    """A type by PyType_FromSpecWithBases; a size of 0 is the base's."""
    table = (_Member * (len(members) + 1))(*members)
    filled = [_Slot(_MEMBERS, ctypes.addressof(table))] if members else []
    slots = (_Slot * (len(filled) + 1))(*filled, _Slot(_END, None))
    spec = _Spec(name.encode(), size, 0, flags, slots)
    _kept.append((table, slots, spec))
    prototype = ctypes.PYFUNCTYPE(ctypes.py_object, ctypes.POINTER(_Spec), ctypes.py_object)
    made: type = prototype(("PyType_FromSpecWithBases", ctypes.pythonapi))(ctypes.byref(spec), (base,))
    return made


def _make_base() -> type:
    """`object` with the words of `Direct`, which nobody but machine code looks at; `object` itself where that fails."""
    locked = "t" not in getattr(sys, "abiflags", "")
    if sys.implementation.name == "cpython" and os.name == "posix" and locked:
        try:
            size = object.__basicsize__ + WORD * len(Direct)
            return _make_type(f"{__name__}.DirectCall", object, size, _BASE_TYPE)
        except (AttributeError, TypeError, ValueError, SystemError):
            pass
    return object


if TYPE_CHECKING:

    class DirectCall:
        """The base of `Function`."""

        __slots__ = ()

else:
    DirectCall = _make_base()

_direct: dict[type, type] = {}


def call_directly(function: Any, callable: Any, code: int, table: int) -> None:
    """Let calls of an object go straight to machine code, as long as its slot `__call__` holds `callable`.

    Args:
        function: an instance of a subclass of `DirectCall` that is told apart by its slots only.
        callable: the built-in function that its calls reach.
        code: address of the vectorcall function for such objects.
        table: address of the table of the native entry.
    """
    own = type(function)
    if DirectCall is object or own in _direct.values():
        return
    size = own.__basicsize__ // WORD
    words = (ctypes.c_uint64 * size).from_address(id(function))
    places = [at for at in range(size) if words[at] == id(callable)]
    if len(places) != 1:
        return
    first = object.__basicsize__ // WORD
    words[first + Direct.SLOT] = id(function) + WORD * places[0]
    words[first + Direct.CALLABLE] = id(callable)
    words[first + Direct.TABLE] = table
    words[first + Direct.CODE] = code
    if own not in _direct:
        at = object.__basicsize__ + WORD * Direct.CODE
        member = _Member(b"__vectorcalloffset__", _PY_SSIZE_T, at, _READ_ONLY, None)
        flags = _BASE_TYPE | _HAS_VECTORCALL
        _direct[own] = _make_type(f"{own.__module__}.{own.__qualname__}", own, 0, flags, member)
        _direct[own].__doc__ = own.__doc__
    function.__class__ = _direct[own]


__all__ = ["DirectCall", "call_directly"]
