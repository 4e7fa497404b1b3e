"""Names that Keras 2 programs use and newer releases of Python and NumPy removed; each is added only where it lacks."""

from __future__ import annotations

import collections
import collections.abc
import inspect
from collections.abc import Callable
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np

ArgSpec = collections.namedtuple("ArgSpec", "args varargs keywords defaults")


def getargspec(func: Callable[..., Any]) -> ArgSpec:
    """The arguments of a function as Python 2 described them: no keyword-only ones, no annotations.

    Raises:
        ValueError: the function has keyword-only arguments, which this form can not tell.
        TypeError: `func` is no function.
    """
    full = inspect.getfullargspec(func)
    if full.kwonlyargs:
        raise ValueError("getargspec: the function has keyword-only arguments; use inspect.getfullargspec")
    return ArgSpec(full.args, full.varargs, full.varkw, full.defaults)


class Missing(NamedTuple):
    """A family of names with the releases that removed them."""

    module: ModuleType
    values: dict[str, Any]
    reason: str


MISSING = (
    Missing(
        collections,
        {name: getattr(collections.abc, name) for name in collections.abc.__all__},
        "Python 3.10 left the abstract classes to collections.abc; callbacks and training_utils of Keras ask here",
    ),
    Missing(
        inspect,
        {"ArgSpec": ArgSpec, "getargspec": getargspec},
        "Python 3.11 removed both; generic_utils.getargspec of Keras makes an ArgSpec, older add-ons call getargspec",
    ),
    Missing(
        np,
        {"int": int, "float": float, "bool": bool, "object": object, "str": str, "complex": complex},
        "NumPy 1.24 removed the aliases of Python's types; numpy_backend of Keras and programs of its time use them",
    ),
    Missing(
        np,
        {
            "Inf": np.inf,
            "Infinity": np.inf,
            "infty": np.inf,
            "NaN": np.nan,
            "float_": np.float64,
            "complex_": np.complex128,
            "string_": np.bytes_,
            "unicode_": np.str_,
            "alltrue": np.all,
            "sometrue": np.any,
            "product": np.prod,
            "cumproduct": np.cumprod,
            "row_stack": np.vstack,
        },
        "NumPy 2 removed the second spellings; callbacks and H5Dict of Keras use Inf and string_, its tests alltrue",
    ),
)


def add_missing_names() -> None:
    """Add the names of the table that their modules lack."""
    for module, values, _ in MISSING:
        present = vars(module)  # not hasattr: NumPy answers some removed names with a warning
        for name, value in values.items():
            if name not in present:
                setattr(module, name, value)
