"""NumPy as a contestant: the expression as one writes it, updates of weights in place."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.harness import Contestant
from benchmarks.peers.base import Arrays, Peer, Training, call_text, changes


class NumPy(Peer):
    name = dialect = "numpy"
    modules = ("numpy",)
    package = "numpy"

    def forward(self, expression: Any, inputs: Arrays, params: Sequence[np.ndarray]) -> Contestant:
        if isinstance(expression, np.ufunc):  # timed bare, without a Python function around it
            return Contestant(call_text(inputs), {"f": expression, **inputs})

        def f(*arrays: np.ndarray) -> np.ndarray:
            value: np.ndarray = expression(np, *params, *arrays)
            return value

        return Contestant(call_text(inputs), {"f": f, **inputs})

    def training(self, job: Training) -> Contestant:
        weights = [p.copy() for p in job.params]
        velocities = [np.zeros_like(p) for p in weights]
        rate, momentum = (np.asarray(c, weights[0].dtype)[()] for c in (job.rate, job.momentum))

        def f(*arrays: np.ndarray) -> None:
            for w, v, g in zip(weights, velocities, job.loss(weights, *arrays)):
                v *= momentum
                v -= rate * g
                w += v

        return Contestant(call_text(job.inputs), {"f": f, **job.inputs}, changes(job, lambda: weights), calls=job.steps)
