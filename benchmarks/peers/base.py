"""What every peer offers: is it installed, how is it set up, how does an expression become a contestant."""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.harness import Contestant

Arrays = Mapping[str, np.ndarray]


@dataclass
class Training:
    """One step of SGD with momentum, v <- momentum*v - rate*gradient, w <- w + v, on a fixed batch.

    loss: (library, params, *inputs) -> scalar; for NumPy (params, *inputs) -> gradients.
    """

    loss: Any
    params: Sequence[np.ndarray]
    inputs: Arrays
    rate: float
    momentum: float
    steps: int  # how many steps run before the weights are compared


class Peer:
    """A library; `dialect` is the key under which a workload holds its expression."""

    name: str
    dialect: str
    modules: tuple[str, ...]  # what must be importable
    package: str  # whose version is shown

    def missing(self) -> str | None:
        """The first module that is not installed, or None."""
        for module in self.modules:
            if importlib.util.find_spec(module) is None:
                return module
        return None

    def version(self) -> str:
        return importlib.metadata.version(self.package)

    def setup(self, threads: int) -> None:
        """Import the library and make its settings; once, before the first workload."""

    def forget(self) -> None:
        """Drop what the library remembers of earlier compilations, for the workloads that time compiling."""

    def forward(self, expression: Any, inputs: Arrays, params: Sequence[np.ndarray]) -> Contestant:
        """A contestant for expression(library, *params, *inputs); the library holds the params as weights."""
        raise NotImplementedError

    def training(self, job: Training) -> Contestant:
        """A contestant that runs one training step a call; its answer is the change of each weight."""
        raise NotImplementedError


def call_text(inputs: Arrays) -> str:
    """`f(x, y)` for inputs named x and y."""
    return f"f({', '.join(inputs)})"


def changes(job: Training, current: Callable[[], Sequence[Any]]) -> Callable[[Any], Sequence[np.ndarray]]:
    """An `answer` that ignores the value and returns how far each weight has moved, in float64."""

    def answer(value: Any) -> list[np.ndarray]:
        pairs = zip(current(), job.params)
        return [np.asarray(new).astype(np.float64) - old.astype(np.float64) for new, old in pairs]

    return answer
