"""The op records by family. Importing this package defines every op."""

from graphkb.ops import elementwise, index, leaf, linalg, reduce, shape

__all__ = ["elementwise", "index", "leaf", "linalg", "reduce", "shape"]
