"""Arrays of lists of unequal lengths, which NumPy 1.24 stopped to make on its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def ragged(rows: Sequence[Any]) -> np.ndarray[Any, Any]:
    """`np.array(rows)`; lists of unequal lengths become an array of objects with one axis."""
    try:
        return np.array(rows)
    except ValueError:
        array = np.empty(len(rows), dtype=object)
        array[:] = rows
        return array
