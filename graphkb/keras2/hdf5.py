"""Text in HDF5 files as Keras 2.3 expects it from h5py 2: what was stored as bytes is read as bytes."""

from __future__ import annotations

from typing import Any

import numpy as np


def text(value: Any) -> str:
    """A text that h5py gave as bytes or as a str (h5py 3 decodes variable-length strings), as a str."""
    return value.decode("utf8") if isinstance(value, bytes) else str(value)


def attribute(attributes: Any, name: str) -> Any:
    """An attribute as h5py 2 gave it: strings stored as bytes come back as bytes, alone or in lists.

    Args:
        attributes: an `h5py.AttributeManager`.
        name: one of its names.
    """
    import h5py

    value = attributes[name]
    kind = h5py.check_string_dtype(attributes.get_id(name).dtype)
    if isinstance(value, str):
        return value.encode("utf8") if kind is not None and kind.encoding == "ascii" else value
    if isinstance(value, np.ndarray) and value.dtype == object and kind is not None:
        return np.array([item.encode("utf8") if isinstance(item, str) else item for item in value.ravel()], dtype="S")
    return value
