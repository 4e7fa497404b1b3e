"""The op records by family. Importing this package defines every op."""

from graphkb.ir.op import all_ops
from graphkb.ops import (
    chain,
    control,
    conv,
    ctc,
    elementwise,
    fused,
    index,
    leaf,
    linalg,
    random,
    reduce,
    shape,
    sparse,
    values,
    window,
)

BUILT_IN = frozenset(all_ops())
"""The ops of this package; others may be defined later."""

__all__ = [
    "BUILT_IN",
    "chain",
    "control",
    "conv",
    "ctc",
    "elementwise",
    "fused",
    "index",
    "leaf",
    "linalg",
    "random",
    "reduce",
    "shape",
    "sparse",
    "values",
    "window",
]
