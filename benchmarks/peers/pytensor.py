"""PyTensor as two contestants, its C and its numba linker; nothing compiled earlier is used again."""

from __future__ import annotations

import ctypes.util
import os
import sys
import tempfile
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from benchmarks.harness import Contestant
from benchmarks.peers.base import Arrays, Peer, Training, call_text, changes

MODES = {"pytensor_c": "CVM", "pytensor_numba": "NUMBA"}


class PyTensor(Peer):
    dialect = "pytensor"
    modules = ("pytensor",)
    package = "pytensor"

    def __init__(self, name: str) -> None:
        self.name = name
        self.mode = MODES[name]

    def setup(self, threads: int) -> None:
        if "pytensor" not in sys.modules:
            cache = tempfile.mkdtemp(prefix="pytensor-")  # no compilation is remembered from an earlier run
            flags = ["floatX=float32", f"base_compiledir={cache}"]
            if ctypes.util.find_library("openblas"):
                flags.append("blas__ldflags=-lopenblas")
            os.environ["PYTENSOR_FLAGS"] = ",".join(flags)
            os.environ["NUMBA_CACHE_DIR"] = cache
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            import pytensor  # noqa: F401

    def compile(self, places: list[Any], output: Any, **options: Any) -> Any:
        import pytensor

        function = pytensor.function(places, output, mode=self.mode, **options)
        function.trust_input = True  # the arrays have the declared type: skip the conversion
        return function

    def forward(self, expression: Any, inputs: Arrays, params: Sequence[np.ndarray]) -> Contestant:
        import pytensor
        import pytensor.tensor as pt

        with deep_recursion():
            places = [pt.tensor(shape=a.shape, dtype=a.dtype.name) for a in inputs.values()]
            weights = [pytensor.shared(p) for p in params]
            f = self.compile(places, expression(pt, *weights, *places))
        return Contestant(call_text(inputs), {"f": f, **inputs})

    def training(self, job: Training) -> Contestant:
        import pytensor
        import pytensor.tensor as pt

        places = [pt.tensor(shape=a.shape, dtype=a.dtype.name) for a in job.inputs.values()]
        weights = [pytensor.shared(p.copy()) for p in job.params]
        loss = job.loss(pt, weights, *places)
        rate, momentum = np.float32(job.rate), np.float32(job.momentum)
        updates = []
        for w, gradient in zip(weights, pytensor.grad(loss, weights)):
            v = pytensor.shared(np.zeros_like(w.get_value()))
            step = momentum * v - rate * gradient
            updates += [(v, step), (w, w + step)]
        f = self.compile(places, loss, updates=updates)
        answer = changes(job, lambda: [w.get_value() for w in weights])
        return Contestant(call_text(job.inputs), {"f": f, **job.inputs}, answer, calls=job.steps)


@contextmanager
def deep_recursion() -> Iterator[None]:
    """A high recursion limit for the while: PyTensor walks its graphs recursively."""
    before = sys.getrecursionlimit()
    sys.setrecursionlimit(200_000)
    try:
        yield
    finally:
        sys.setrecursionlimit(before)
