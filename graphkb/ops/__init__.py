"""The op records by family. Importing this package defines every op."""

from graphkb.ops import (
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

__all__ = [
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
