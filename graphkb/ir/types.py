"""Types: the dtype names and `TensorType`, which is all that the compiler knows of a value before it runs."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from graphkb.ir.dims import Dim, Shape, is_static, product
from graphkb.ir.record import record

FLOATS = ("float16", "float32", "float64")
SIGNED = ("int8", "int16", "int32", "int64")
UNSIGNED = ("uint8", "uint16", "uint32", "uint64")
INTEGERS = SIGNED + UNSIGNED
BOOL = ("bool",)
NUMBERS = INTEGERS + FLOATS
DTYPES = BOOL + NUMBERS

NUMPY_DTYPE: dict[str, np.dtype[np.generic]] = {name: np.dtype(name) for name in DTYPES}
_NAME_OF = {dtype: name for name, dtype in NUMPY_DTYPE.items()}


def dtype_name(dtype: object) -> str:
    """The name of a dtype given as a string, a NumPy dtype or a type; TypeError when it is not one of ours."""
    if isinstance(dtype, str) and dtype in NUMPY_DTYPE:
        return dtype
    if isinstance(dtype, np.dtype) and dtype in _NAME_OF:  # `np.dtype.name` takes microseconds
        return _NAME_OF[dtype]
    try:
        return _NAME_OF[np.dtype(dtype).newbyteorder("=")]  # type: ignore[call-overload]
    except (KeyError, TypeError):
        raise TypeError(f"dtype {dtype!r} is not supported: expected one of {', '.join(DTYPES)}") from None


@record(slots=True)
class TensorType:
    """What is known of a tensor: its dtype (a name) and its shape (integers and symbolic sizes)."""

    dtype: str
    shape: Shape

    @property
    def ndim(self) -> int:
        return len(self.shape)

    @property
    def size(self) -> Dim:
        """The number of elements."""
        return product(self.shape)

    @property
    def is_static(self) -> bool:
        return is_static(self.shape)

    @property
    def itemsize(self) -> int:
        return NUMPY_DTYPE[self.dtype].itemsize

    @property
    def nbytes(self) -> Dim:
        return self.size * self.itemsize

    def with_dtype(self, dtype: str) -> TensorType:
        return TensorType(dtype, self.shape)

    def with_shape(self, shape: Shape) -> TensorType:
        return TensorType(self.dtype, shape)

    def __repr__(self) -> str:
        return f"{self.dtype}[{', '.join(map(str, self.shape))}]"


@record(slots=True)
class TupleType(TensorType):
    """The type of a value that consists of several tensors; the op `item` takes one of them.

    To code that knows tensors only it looks like a scalar of the dtype "tuple", which no op accepts.
    """

    items: tuple[TensorType, ...] = ()

    @property
    def is_static(self) -> bool:
        return all(item.is_static for item in self.items)

    @property
    def itemsize(self) -> int:
        return 0

    @property
    def nbytes(self) -> Dim:
        total: Dim = 0
        for item in self.items:
            total = total + item.nbytes
        return total

    def __repr__(self) -> str:
        return f"({', '.join(map(repr, self.items))})"


def tuple_type(items: Iterable[TensorType]) -> TupleType:
    """The type of several tensors."""
    return TupleType("tuple", (), tuple(items))


def parts(type: TensorType) -> tuple[TensorType, ...]:
    """The tensors that a value consists of: one, unless it is a tuple."""
    return type.items if isinstance(type, TupleType) else (type,)


def is_float(dtype: str) -> bool:
    return dtype in FLOATS
