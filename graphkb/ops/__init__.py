"""The op records by family. Importing this package defines every op."""

from graphkb.ops import elementwise, fused, index, leaf, linalg, reduce, shape

__all__ = ["elementwise", "fused", "index", "leaf", "linalg", "reduce", "shape"]
