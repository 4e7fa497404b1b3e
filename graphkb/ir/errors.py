"""The errors of graphkb, all of them ValueErrors or TypeErrors, as Keras code expects to catch."""

from __future__ import annotations


class GraphError(ValueError):
    """A graph that is not well formed, or that can not do what was asked of it."""


class ShapeError(ValueError):
    """Shapes that do not fit the operation."""


class DTypeError(TypeError):
    """A dtype that does not fit the operation."""


class GradientError(ValueError):
    """A gradient that does not exist: the text names the operation without one."""


class InputError(ValueError):
    """A value handed to a function that does not fit its placeholder: the text names the placeholder."""


class CompileError(ValueError):
    """A graph that can not be compiled ahead of time: the text names the nodes and says why."""
