"""What the native call entry reads and writes: its words in the table, a context and a record; fields of objects."""

from __future__ import annotations

from enum import IntEnum

from graphkb.ir.record import record

WORD = 8
ENTRY_SYMBOL = "graphkb_call"


class Table(IntEnum):
    """Word index in the process-wide table. The lock has a cache line of its own: all others are only read.

    Those of the pool are 0 until there is a context whose outputs may be large.
    """

    LIST_TYPE = 0
    TUPLE_TYPE = 1
    ARRAY_TYPE = 2
    INCREF = 3
    DECREF = 4
    LIST_NEW = 5
    ARRAY_NEW = 6
    VECTORCALL = 7
    SAVE_THREAD = 8
    RESTORE_THREAD = 9
    GENERATION = 10
    POOL = 11
    HANDLER = 12
    NONE = 13
    POOL_MALLOC = 14
    POOL_FREE = 15
    LOCK = 16


TABLE_WORDS = 24


class Direct(IntEnum):
    """Word index behind the header of an object that the interpreter calls directly.

    `CODE` is the C function; it serves as long as what `SLOT` points to is `CALLABLE`, the built-in function of the
    entry. All are 0 in objects that are called otherwise.
    """

    CODE = 0
    SLOT = 1
    CALLABLE = 2
    TABLE = 3


class Context(IntEnum):
    """Word index in a specialization context. `BUSY` holds the generation of the process that runs it, or 0.

    `CALLS` counts the calls that ended well. The words behind it serve open sizes: `SIZES` is the function that judges
    them, or 0; it reads the inputs' dims by way of `SHAPES`, and writes `SIZE_ARGS`, `OUTPUT_DIMS`, `OUTPUT_BYTES`.
    """

    NEXT = 0
    BUSY = 1
    N_INPUTS = 2
    N_OUTPUTS = 3
    INPUTS = 4
    OUTPUTS = 5
    ARGS = 6
    OUTPUT_ARGS = 7
    RUN = 8
    WORKSPACE = 9
    LOCK = 10
    RELEASE_GIL = 11
    CALLS = 12
    SIZES = 13
    SIZE_ARGS = 14
    OUTPUT_DIMS = 15
    WORKSPACE_BYTES = 16
    SHAPES = 17
    OUTPUT_BYTES = 18
    RECYCLE_FROM = 19


CONTEXT_WORDS = 20


class Record(IntEnum):
    """Word index in the description of one input or output; the two type numbers may be equal.

    `RECYCLED` holds the bytes of an output whose memory comes from the pool, 0 for all others.
    """

    DESCR = 0
    TYPE_NUM = 1
    TYPE_NUM_ALIAS = 2
    NDIM = 3
    DIMS = 4
    RECYCLED = 5


RECORD_WORDS = 6

ANY_SIZE = -1
"""A dim of an input that `SIZES` judges."""

C_CONTIGUOUS_AND_ALIGNED = 0x101
C_ARRAY = 0x501
OWNS_DATA = 0x4
NATIVE_ORDER, NO_ORDER = ord("="), ord("|")


@record
class Layout:
    """Byte offsets of the fields that the entry reads in Python's and NumPy's objects; `words` of `Direct` are ours."""

    ob_type: int
    ob_size: int
    list_items: int
    tuple_items: int
    array_data: int
    array_ndim: int
    array_dims: int
    array_descr: int
    array_flags: int
    array_handler: int
    descr_order: int
    descr_type_num: int
    method_self: int
    words: int
