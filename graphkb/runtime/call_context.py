"""The memory of one specialization that the native call entry reads and writes."""

from __future__ import annotations

import math
from collections import defaultdict
from typing import Any

import numpy as np

from graphkb.codegen.entry_words import CONTEXT_WORDS, RECORD_WORDS, WORD, Context, Record
from graphkb.runtime import recycling
from graphkb.runtime.call_spec import DESCRS, LOCKS, CallSpec

Array = np.ndarray[Any, Any]
WORKSPACE_ALIGNMENT = 64


def nbytes(dtype: np.dtype[Any], shape: tuple[int, ...]) -> int:
    """The bytes of an array."""
    return math.prod(shape) * dtype.itemsize


def address_of(array: Array) -> int:
    """The address of its first element."""
    return int(array.__array_interface__["data"][0])


def aligned(memory: Array) -> int:
    """The first address in it that is a multiple of `WORKSPACE_ALIGNMENT`."""
    return -(-address_of(memory) // WORKSPACE_ALIGNMENT) * WORKSPACE_ALIGNMENT


def _type_numbers() -> dict[str, tuple[int, int]]:
    """NumPy's number of each dtype and that of its twin, such as C's long and long long for int64."""
    same = defaultdict(list)
    for code in np.typecodes["AllInteger"] + np.typecodes["Float"] + "?":
        one = np.dtype(code)
        same[one.kind, one.itemsize].append(one.num)
    numbers: dict[str, tuple[int, int]] = {}
    for name in DESCRS:
        one = DESCRS[name]
        others = [number for number in same[one.kind, one.itemsize] if number != one.num]
        numbers[name] = (one.num, others[0] if others else one.num)
    return numbers


_TYPE_NUMBERS = _type_numbers()


class CallContext:
    """The memory of one context: its words, the records, the sizes and the argument addresses, in one block.

    Attributes:
        spec: what it was made for.
        words: the block.
        address: of the block.
        recycles: whether an output may take memory from the pool, which has to be there then.
    """

    __slots__ = ("_descrs", "_workspace", "address", "recycles", "spec", "words")

    def __init__(self, spec: CallSpec) -> None:
        arrays = (*spec.inputs, *spec.outputs)
        n_inputs, n_outputs, n_bound = len(spec.inputs), len(spec.outputs), len(spec.bound)
        records = CONTEXT_WORDS
        dims = records + RECORD_WORDS * len(arrays)
        output_dims = dims + sum(len(shape) for _, shape in spec.inputs)
        output_bytes = output_dims + sum(len(shape) for _, shape in spec.outputs)
        args = output_bytes + n_outputs
        sizes = args + n_inputs + n_bound + n_outputs
        shapes = sizes + spec.symbols
        self.spec = spec
        self.words = np.zeros(shapes + n_inputs, np.int64)
        self.address = start = address_of(self.words)
        self._descrs = [DESCRS[dtype] for dtype, _ in arrays]
        self._workspace = np.empty(spec.workspace_bytes + WORKSPACE_ALIGNMENT, np.uint8)
        self.words[args + n_inputs : args + n_inputs + n_bound] = spec.bound
        for index, (descr, (dtype, shape)) in enumerate(zip(self._descrs, arrays)):
            record = self.words[records + RECORD_WORDS * index :]
            record[Record.DESCR] = id(descr)
            record[Record.TYPE_NUM], record[Record.TYPE_NUM_ALIAS] = _TYPE_NUMBERS[dtype]
            record[Record.NDIM] = len(shape)
            record[Record.DIMS] = start + WORD * dims
            size = nbytes(descr, shape) if spec.recycle and index >= n_inputs and not spec.sizes else 0
            record[Record.RECYCLED] = size if recycling.fits(size) else 0
            self.words[dims : dims + len(shape)] = shape
            dims += len(shape)
        large = any(recycling.fits(nbytes(DESCRS[dtype], shape)) for dtype, shape in spec.outputs)
        self.recycles = spec.recycle and (spec.sizes != 0 or large)
        self.words[Context.N_INPUTS] = n_inputs
        self.words[Context.N_OUTPUTS] = n_outputs
        self.words[Context.INPUTS] = start + WORD * records
        self.words[Context.OUTPUTS] = start + WORD * (records + RECORD_WORDS * n_inputs)
        self.words[Context.ARGS] = start + WORD * args
        self.words[Context.OUTPUT_ARGS] = start + WORD * (args + n_inputs + n_bound)
        self.words[Context.RUN] = spec.run
        self.words[Context.WORKSPACE] = aligned(self._workspace)
        self.words[Context.LOCK] = LOCKS[spec.lock]
        self.words[Context.RELEASE_GIL] = spec.release_gil
        self.words[Context.SIZES] = spec.sizes
        self.words[Context.SIZE_ARGS] = start + WORD * sizes
        self.words[Context.OUTPUT_DIMS] = start + WORD * output_dims
        self.words[Context.OUTPUT_BYTES] = start + WORD * output_bytes
        self.words[Context.SHAPES] = start + WORD * shapes
        self.words[Context.WORKSPACE_BYTES] = spec.workspace_bytes
        self.words[Context.RECYCLE_FROM] = recycling.FROM if spec.recycle else -1


__all__ = ["WORKSPACE_ALIGNMENT", "CallContext", "address_of", "aligned", "nbytes"]
