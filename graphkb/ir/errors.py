"""The errors of graphkb, all of them ValueErrors or TypeErrors, as Keras code expects to catch; and its warnings."""

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


class OptionError(ValueError):
    """An option that does not exist, or a value that it does not take."""


class RecompileError(ValueError):
    """New input shapes that would need another specialization, where the options forbid that."""


class RecompileWarning(UserWarning):
    """A function that was specialized already was specialized again, for other input shapes."""
