"""Errors of K functions carry the function's name, whichever layer below found what is wrong."""

from __future__ import annotations

from collections.abc import Callable
from functools import wraps
from inspect import signature
from types import TracebackType
from typing import Any, TypeVar, cast

from graphkb.ir.op import is_op
from graphkb.ir.origin import is_internal

F = TypeVar("F", bound=Callable[..., Any])
_named: set[str] = set()


def named(function: F) -> F:
    """The function, whose ValueErrors and TypeErrors begin with its name.

    What a function of the user raises, such as the step of `rnn`, stays as it is; so does what another K function,
    called by it, has named already.
    """
    name = function.__name__
    _named.add(name)

    @wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        try:
            return function(*args, **kwargs)
        except (ValueError, TypeError) as error:
            _name(error, name)
            raise

    wrapper: Any = call
    wrapper.__module__ = "graphkb.backend"  # where pickle finds it
    wrapper.__signature__ = signature(function)  # for `inspect.getfullargspec`, which does not look behind wrappers
    return cast(F, wrapper)


def _name(error: Exception, name: str) -> None:
    """Put a name before the text of an error that one of our own lines raised, unless it stands there."""
    trace: TracebackType | None = error.__traceback__
    assert trace is not None
    while trace.tb_next is not None:
        trace = trace.tb_next
        if trace.tb_frame.f_code.co_filename == __file__:
            return
    if not is_internal(trace.tb_frame.f_code.co_filename):
        return
    text = error.args[0] if len(error.args) == 1 else None
    if not isinstance(text, str) or text.startswith((f"{name}:", f"{name}(")) or "\n  while executing " in text:
        return
    inner, colon, rest = text.partition(": ")
    # What the user called counts, not the op or the function that found the fault for it.
    error.args = (f"{name}: {rest if colon and (inner in _named or is_op(inner)) else text}",)
