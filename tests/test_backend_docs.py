"""The examples in the docstrings of K run and print what they say."""

import doctest
import importlib
import pkgutil

import pytest

import graphkb.backend
from graphkb import backend as K

MODULES = [m.name for m in pkgutil.iter_modules(graphkb.backend.__path__, "graphkb.backend.")]
NO_EXAMPLE = {"get_session", "set_session"}  # they always raise


@pytest.mark.parametrize("name", MODULES)
def test_docstring_examples(name):
    result = doctest.testmod(importlib.import_module(name))
    assert result.failed == 0


def test_every_function_has_an_example():
    missing = [n for n in K.__all__ if ">>>" not in (getattr(K, n).__doc__ or "") and callable(getattr(K, n))]
    assert set(missing) - {"Tensor", "Variable", "Update"} == NO_EXAMPLE


def test_functions_carry_their_names():
    # Keras saves the name of a function that a layer uses.
    wrong = [n for n in K.__all__ if getattr(K, n).__name__ != n]
    assert wrong == []
