"""What a native call needs to know of a specialization: machine code, and the arrays that it takes and gives."""

from __future__ import annotations

from dataclasses import field
from typing import Literal

import numpy as np

from graphkb.codegen.lock import Lock
from graphkb.ir.record import record
from graphkb.ir.types import DTYPES
from graphkb.runtime.packed_copies import PackedCopy

Signature = tuple[tuple[str, tuple[int, ...]], ...]
"""The dtype name and the shape of each array."""

LOCKS = {"none": Lock.NONE, "shared": Lock.SHARED, "exclusive": Lock.EXCLUSIVE}
DESCRS = {name: np.dtype(name) for name in DTYPES}


@record
class CallSpec:
    """One specialization of a function: machine code and the exact arrays that it takes and gives.

    Attributes:
        inputs: dtype name and shape of each input array; -1 stands for a dim that `sizes` judges.
        outputs: dtype name and shape of each output array; -1 stands for a dim that `sizes` tells.
        run: address of `int32_t run(void **args, void *workspace)`; `args` holds the data addresses of the inputs,
            then `bound`, then those of the outputs. It must not touch Python objects. What it returns is 0, or
            anything else where it declines: then it has written to nothing but the outputs, the workspace and the
            notes before the copies.
        bound: addresses of the values of variables and constants, and of packed copies of some.
        copies: the packed copies of variables among them, which are made anew where `run` declines.
        workspace_bytes: size of the scratch memory, aligned to 64 bytes, that `run` gets for itself.
        lock: what `run` needs of `state_lock`: "shared" when it reads variables, "exclusive" when it writes them.
        release_gil: whether other Python threads go on while it runs; worth it above some microseconds.
        recycle: whether large outputs take memory from the pool.
        keepalive: whatever owns the machine code and the bound memory.
        sizes: address of the function of sizes that `graphkb.codegen.open_program` describes, where sizes are open.
            Calls that need more workspace than `workspace_bytes` are not native then.
        symbols: the number of words that it writes and `run` takes.
    """

    inputs: Signature
    outputs: Signature
    run: int
    bound: tuple[int, ...] = ()
    workspace_bytes: int = 0
    lock: Literal["none", "shared", "exclusive"] = "none"
    release_gil: bool = False
    recycle: bool = True
    keepalive: object = field(default=None, compare=False)
    sizes: int = 0
    symbols: int = 0
    copies: tuple[PackedCopy, ...] = field(default=(), compare=False)

    def __post_init__(self) -> None:
        for dtype, shape in (*self.inputs, *self.outputs):
            if dtype not in DESCRS:
                raise ValueError(f"CallSpec: dtype {dtype!r} is not one of {', '.join(DESCRS)}")
            if any(dim < (-1 if self.sizes else 0) for dim in shape):
                raise ValueError(f"CallSpec: shape {shape} has a negative dimension")
        if self.lock not in LOCKS:
            raise ValueError(f"CallSpec: lock {self.lock!r} is not one of {', '.join(LOCKS)}")
        if not self.run or self.workspace_bytes < 0:
            raise ValueError("CallSpec: expected a function's address and a workspace of 0 bytes or more")
