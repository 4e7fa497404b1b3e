"""The pytest plugin that runs tests of Keras with this backend in the places where they look for Keras' own.

Environment: SUITE_IDS names a file with the ids to run, SUITE_RESULTS one that receives a JSON line at the start and at
the end of each test. With SUITE_TFNAME, `K.backend()` answers 'tensorflow' while test modules are imported: many tests
of losses and metrics run for that name only, though nothing in them needs TensorFlow. SUITE_SEED_SHIFT is added to
the seeds that tests give NumPy.
"""

from __future__ import annotations

import json
import os
import sys
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphkb.keras2  # noqa: F401, before anything imports keras
from graphkb import backend as ours

_importing = False


def _install_backends() -> None:
    """Put this backend where the tests import that of TensorFlow, and a second module object for that of Theano.

    The tests compare the former with Keras' numpy_backend; were the latter the same object, they would flip the kernels
    of its convolutions, as Theano needs it.
    """
    sys.modules["keras.backend.tensorflow_backend"] = ours
    twin = types.ModuleType("keras.backend.theano_backend")
    vars(twin).update({name: value for name, value in vars(ours).items() if not name.startswith("__")})
    twin.resize_images = _resize_images_as_theano  # type: ignore[attr-defined]
    sys.modules["keras.backend.theano_backend"] = twin
    import keras

    keras.backend.tensorflow_backend = ours
    keras.backend.theano_backend = twin


def _resize_images_as_theano(
    x: Any, height_factor: int, width_factor: int, data_format: str, interpolation: str = "nearest"
) -> Any:
    """A test expects of Theano's backend that it interpolates by a factor of 2 only."""
    if interpolation == "bilinear" and (height_factor, width_factor) != (2, 2):
        raise NotImplementedError("resize_images: Theano's backend interpolates by a factor of 2 only")
    return ours.resize_images(x, height_factor, width_factor, data_format, interpolation)


def _shift_seeds(shift: int) -> None:
    """Let `np.random.seed(n)` mean n + shift."""
    seed = np.random.seed
    np.random.seed = lambda n=None: seed(n + shift if isinstance(n, int) else n)  # type: ignore[assignment]


def _install_tensorflow_stub() -> None:
    """Two files import tensorflow above the mark that skips their tests without it."""
    stub = types.ModuleType("tensorflow")
    stub.__version__ = "0.0"  # type: ignore[attr-defined]
    sys.modules.setdefault("tensorflow", stub)


def _answer_tensorflow() -> None:
    """Let `K.backend()` answer 'tensorflow' while test modules are imported."""
    import keras
    import keras.wrappers.scikit_learn  # loaded before the name changes

    del keras.wrappers
    original = keras.backend.backend

    def backend() -> str:
        return "tensorflow" if _importing else original()

    keras.backend.backend = backend
    ours._is_tf_1 = lambda: False  # what marks of tests ask of a backend of this name


def _accept_warns_none() -> None:
    """pytest 8 dropped `pytest.warns(None)`, which only recorded."""
    original = pytest.warns

    def warns(expected: Any = Warning, *args: Any, **kwargs: Any) -> Any:
        if expected is None:
            return warnings.catch_warnings(record=True)
        return original(expected, *args, **kwargs)

    pytest.warns = warns  # type: ignore[assignment]


_accept_warns_none()
_install_backends()
_install_tensorflow_stub()
if os.environ.get("SUITE_TFNAME"):
    _answer_tensorflow()
if shift := int(os.environ.get("SUITE_SEED_SHIFT", "0")):
    _shift_seeds(shift)


@pytest.hookimpl(hookwrapper=True)
def pytest_make_collect_report(collector: pytest.Collector) -> Iterator[None]:
    global _importing
    _importing = isinstance(collector, pytest.Module)
    yield
    _importing = False


@pytest.fixture(autouse=True)
def clear_session_after_each_test() -> Iterator[None]:
    """Keras' conftest does so for its own backends only; a learning phase set to 1 would reach later tests."""
    yield
    ours.clear_session()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    path = os.environ.get("SUITE_IDS")
    if not path:
        return
    wanted = set(Path(path).read_text(encoding="utf-8").splitlines())
    dropped = [item for item in items if item.nodeid not in wanted]
    items[:] = [item for item in items if item.nodeid in wanted]
    config.hook.pytest_deselected(items=dropped)


def _record(**facts: Any) -> None:
    path = os.environ.get("SUITE_RESULTS")
    if path:
        with open(path, "a", encoding="utf-8") as file:
            file.write(json.dumps(facts) + "\n")


def pytest_runtest_logstart(nodeid: str) -> None:
    _record(id=nodeid, outcome="started")


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" or report.outcome != "passed":
        lines = str(report.longrepr or "").splitlines()
        errors = [line for line in lines if line.startswith("E ")] or lines[-1:]
        _record(
            id=report.nodeid,
            outcome=report.outcome,
            seconds=round(report.duration, 3),
            error=" ".join(line.removeprefix("E ").strip() for line in errors[:3])[:400],
        )
