"""The errors of graphkb, all of them ValueErrors or TypeErrors, as Keras code expects to catch; and its warnings."""

from __future__ import annotations

import reprlib


class GraphError(ValueError):
    """A graph that is not well formed, or that can not do what was asked of it."""


class ShapeError(ValueError):
    """Shapes that do not fit the operation."""


class DTypeError(TypeError):
    """A dtype that does not fit the operation."""


class CheckError(ValueError, AssertionError):
    """An argument that does not fit, where Keras asserts that it does."""


class UnsupportedError(ValueError, NotImplementedError):
    """An argument that does not fit, which Keras says is not implemented."""


class PositionError(ValueError, IndexError):
    """A position outside of a tensor, found when it runs."""


class GradientError(ValueError):
    """A gradient that does not exist: the text names the operation without one."""


class InputError(ValueError):
    """A value handed to a function that does not fit its placeholder: the text names the placeholder."""


class CompileError(ValueError):
    """A graph that can not be compiled ahead of time: the text names the nodes and says why."""


class OptionError(ValueError):
    """An option that does not exist, or a value that it does not take."""


class RecompileError(ValueError):
    """New input shapes that would need another specialization, where the options forbid that."""


class RecompileWarning(UserWarning):
    """A function that was specialized already was specialized again, for other input shapes."""


class OpenSizeError(ValueError):
    """Why code for any value of some sizes can not be made.

    Attributes: `lasting`, whether that is so whatever values the sizes have now.
    """

    def __init__(self, reason: str, lasting: bool = True) -> None:
        super().__init__(reason)
        self.lasting = lasting


def shown(value: object) -> str:
    """A value as the texts of errors show it, shortened, and the same in every run."""
    kind = type(value)
    if kind.__name__ == "ndarray":
        return f"an array of dtype {value.dtype} and shape {value.shape}"  # type: ignore[attr-defined]
    if value is None or kind in (bool, int, float, complex, str, bytes, list, tuple, dict, set, range):
        return reprlib.repr(value)
    return f"an instance of {kind.__name__}"
