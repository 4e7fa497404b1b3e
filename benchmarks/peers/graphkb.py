"""graphkb as a contestant: `f([x, y])`, NumPy arrays in and out, weights in K.variable."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.harness import Contestant
from benchmarks.peers.base import Arrays, Peer, Training, changes


class GraphKB(Peer):
    name = dialect = "graphkb"
    modules = ("graphkb",)
    package = "graphkb"
    cold = False

    def forget(self) -> None:
        import graphkb

        if not self.cold:  # from here on, each build generates its code
            self.cold = True
            graphkb.options(kernel_cache="off").__enter__()

    def forward(self, expression: Any, inputs: Arrays, params: Sequence[np.ndarray]) -> Contestant:
        from graphkb import backend as K

        places = [K.placeholder(shape=a.shape, dtype=a.dtype.name) for a in inputs.values()]
        weights = [K.variable(p, dtype=p.dtype.name) for p in params]
        f = K.function(places, [expression(K, *weights, *places)])
        return Contestant(f"f([{', '.join(inputs)}])", {"f": f, **inputs}, lambda value: list(value))

    def training(self, job: Training) -> Contestant:
        from graphkb import backend as K

        places = [K.placeholder(shape=a.shape, dtype=a.dtype.name) for a in job.inputs.values()]
        weights = [K.variable(p, dtype=p.dtype.name) for p in job.params]
        loss = job.loss(K, weights, *places)
        updates = []
        for w, gradient in zip(weights, K.gradients(loss, weights)):
            v = K.variable(np.zeros(K.int_shape(w), dtype=K.dtype(w)), dtype=K.dtype(w))
            step = job.momentum * v - job.rate * gradient
            updates += [(v, step), (w, w + step)]
        f = K.function(places, [loss], updates=updates)
        names = {"f": f, **job.inputs}
        answer = changes(job, lambda: K.batch_get_value(weights))
        return Contestant(f"f([{', '.join(job.inputs)}])", names, answer, calls=job.steps)
