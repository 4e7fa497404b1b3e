"""JAX as two contestants: `jax` takes and returns NumPy arrays, `jax_device` works on JAX's own arrays."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.harness import Contestant
from benchmarks.peers.base import Arrays, Peer, Training, call_text, changes


class Jax(Peer):
    dialect = "jax"
    modules = ("jax", "jaxlib")
    package = "jax"

    def __init__(self, name: str) -> None:
        self.name = name
        self.on_device = name == "jax_device"

    def setup(self, threads: int) -> None:
        import jax

        jax.config.update("jax_platforms", "cpu")

    def forget(self) -> None:
        import jax

        jax.clear_caches()

    def forward(self, expression: Any, inputs: Arrays, params: Sequence[np.ndarray]) -> Contestant:
        import jax

        weights = tuple(jax.numpy.asarray(p) for p in params)
        arrays: Arrays = {n: jax.numpy.asarray(a) for n, a in inputs.items()} if self.on_device else inputs
        jitted = jax.jit(lambda weights, *xs: expression(jax, *weights, *xs))
        if weights:
            call = f"f(weights, {', '.join(inputs)})"
        else:
            jitted, call = jax.jit(lambda *xs: expression(jax, *xs)), call_text(inputs)
        statement = f"{call}.block_until_ready()" if self.on_device else f"asarray({call})"
        return Contestant(statement, {"f": jitted, "weights": weights, "asarray": np.asarray, **arrays})

    def training(self, job: Training) -> Contestant:
        import jax

        def step(weights: Any, velocities: Any, *xs: Any) -> Any:
            loss, gradients = jax.value_and_grad(lambda w: job.loss(jax, w, *xs))(weights)
            velocities = [job.momentum * v - job.rate * g for v, g in zip(velocities, gradients)]
            return [w + v for w, v in zip(weights, velocities)], velocities, loss

        jitted = jax.jit(step, donate_argnums=(0, 1))
        arrays = [jax.numpy.asarray(a) if self.on_device else a for a in job.inputs.values()]
        state = [jax.numpy.array(p) for p in job.params], [jax.numpy.zeros_like(p) for p in job.params]

        def f() -> Any:
            nonlocal state
            weights, velocities, loss = jitted(*state, *arrays)
            state = weights, velocities
            jax.block_until_ready((state, loss))
            return loss

        return Contestant("f()", {"f": f}, changes(job, lambda: state[0]), calls=job.steps)
