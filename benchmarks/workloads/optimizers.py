"""Optimizers: one step of Adam for all variables of a model, whose gradients are there already."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from benchmarks.harness import Contestant, Entry, Job
from benchmarks.peers.base import Peer, Training, changes

RATE, FIRST, SECOND, EPSILON = 0.001, 0.9, 0.999, 1e-7
STEPS = 3

Arrays = Sequence[np.ndarray]
Build = Callable[[Peer, Arrays, Arrays], tuple[str, Callable[[], Any], Callable[[], Sequence[Any]]]]


def moments(m: Any, v: Any, g: Any) -> tuple[Any, Any]:
    """The new running means of the gradient and of its square."""
    return FIRST * m + (1 - FIRST) * g, SECOND * v + (1 - SECOND) * (g * g)


def reference(weights: Arrays, gradients: Arrays) -> list[np.ndarray]:
    """The change of each weight after some steps, in float64; the algorithm of Kingma and Ba (2015)."""
    moved = []
    for g in gradients:
        m, v, total = np.zeros_like(g), np.zeros_like(g), np.zeros_like(g)
        for t in range(1, STEPS + 1):
            m, v = moments(m, v, g)
            total = total - RATE * (m / (1 - FIRST**t)) / (np.sqrt(v / (1 - SECOND**t)) + EPSILON)
        moved.append(total)
    return moved


def graphkb(peer: Peer, weights: Arrays, gradients: Arrays) -> Any:
    """K.function with updates."""
    from graphkb import backend as K

    t = K.variable(0.0)
    now = t + 1.0
    first, second = 1 - K.pow(K.constant(FIRST), now), 1 - K.pow(K.constant(SECOND), now)
    places, updates = [], [(t, now)]
    for weight, gradient in zip(weights, gradients):
        w, g, m, v = (K.variable(a) for a in (weight, gradient, np.zeros_like(weight), np.zeros_like(weight)))
        new_m, new_v = moments(m, v, g)
        updates += [(m, new_m), (v, new_v), (w, w - RATE * (new_m / first) / (K.sqrt(new_v / second) + EPSILON))]
        places.append(w)
    f = K.function([], [now], updates=updates)
    return "f([])", f, lambda: K.batch_get_value(places)


def numpy(peer: Peer, weights: Arrays, gradients: Arrays) -> Any:
    """In place, one operation after another."""
    state = [(w.copy(), g, np.zeros_like(w), np.zeros_like(w), np.empty_like(w)) for w, g in zip(weights, gradients)]
    t = 0

    def f() -> None:
        nonlocal t
        t += 1
        first, second = np.float32(RATE / (1 - FIRST**t)), np.float32(1 / (1 - SECOND**t))
        for w, g, m, v, temporary in state:
            m *= np.float32(FIRST)
            m += np.multiply(g, np.float32(1 - FIRST), out=temporary)
            v *= np.float32(SECOND)
            np.multiply(g, g, out=temporary)
            temporary *= np.float32(1 - SECOND)
            v += temporary
            np.multiply(v, second, out=temporary)
            np.sqrt(temporary, out=temporary)
            temporary += np.float32(EPSILON)
            np.divide(m, temporary, out=temporary)
            temporary *= first
            w -= temporary

    return "f()", f, lambda: [w for w, *_ in state]


def jax(peer: Peer, weights: Arrays, gradients: Arrays) -> Any:
    """One jitted function of all arrays, whose state is donated."""
    import jax
    from jax import numpy as jnp

    held = [jnp.asarray(g) for g in gradients]
    state = (jnp.zeros(()), [jnp.array(w) for w in weights], *[[jnp.zeros_like(g) for g in held] for _ in range(2)])

    def step(t: Any, weights: Any, ms: Any, vs: Any, gradients: Any) -> Any:
        t = t + 1
        pairs = [moments(m, v, g) for m, v, g in zip(ms, vs, gradients)]
        new = [
            w - RATE * (m / (1 - FIRST**t)) / (jnp.sqrt(v / (1 - SECOND**t)) + EPSILON)
            for w, (m, v) in zip(weights, pairs)
        ]
        return t, new, [m for m, _ in pairs], [v for _, v in pairs]

    jitted = jax.jit(step, donate_argnums=(0, 1, 2, 3))

    def f() -> None:
        nonlocal state
        state = jax.block_until_ready(jitted(*state, held))

    return "f()", f, lambda: state[1]


def torch(peer: Peer, weights: Arrays, gradients: Arrays) -> Any:
    """torch.optim.Adam in its fused form."""
    import torch

    held = [torch.from_numpy(w.copy()).requires_grad_() for w in weights]
    for w, g in zip(held, gradients):
        w.grad = torch.from_numpy(g)
    optimizer = torch.optim.Adam(held, lr=RATE, betas=(FIRST, SECOND), eps=EPSILON, fused=True)
    return "f()", optimizer.step, lambda: [w.detach().numpy() for w in held]


def tensorflow(peer: Peer, weights: Arrays, gradients: Arrays) -> Any:
    """One tf.function over variables."""
    import tensorflow as tf

    t = tf.Variable(0.0)
    held = [tuple(tf.Variable(a) for a in (w, np.zeros_like(w), np.zeros_like(w))) for w in weights]
    fixed = [tf.constant(g) for g in gradients]

    @tf.function(jit_compile=peer.name == "tensorflow_xla")  # type: ignore[untyped-decorator]
    def f() -> Any:
        now = t.assign_add(1.0)
        first, second = 1 - FIRST**now, 1 - SECOND**now
        for (w, m, v), g in zip(held, fixed):
            new_m, new_v = moments(m, v, g)
            m.assign(new_m)
            v.assign(new_v)
            w.assign_sub(RATE * (new_m / first) / (tf.sqrt(new_v / second) + EPSILON))
        return now

    return "f().numpy()", f, lambda: [w.numpy() for w, *_ in held]


BUILD: dict[str, Build] = {
    "graphkb": graphkb,
    "numpy": numpy,
    "jax_device": jax,
    "torch_eager": torch,
    "tensorflow": tensorflow,
    "tensorflow_xla": tensorflow,
}


@dataclass(frozen=True)
class AdamStep:
    """One step for all variables; what is checked is their change after three steps."""

    name: str
    what: str
    shapes: tuple[tuple[int, ...], ...]

    def job(self, peers: Sequence[Peer]) -> Job:
        rng = np.random.default_rng(0)
        weights, gradients = ([rng.normal(size=s).astype(np.float32) for s in self.shapes] for _ in range(2))
        compared = Training(None, weights, {}, RATE, FIRST, STEPS)

        def entry(peer: Peer) -> Entry:
            def build() -> Contestant:
                statement, f, current = BUILD[peer.name](peer, weights, gradients)
                return Contestant(statement, {"f": f}, changes(compared, current), calls=STEPS)

            return Entry(peer.name, build)

        def exact() -> list[np.ndarray]:
            return reference([w.astype(np.float64) for w in weights], [g.astype(np.float64) for g in gradients])

        entries = [entry(peer) for peer in peers if peer.name in BUILD]
        return Job(self.name, self.what, entries, exact, 1e-3)


LAYERS = ((784, 512), (512,), (512, 512), (512,), (512, 10), (10,))

WORKLOADS = (
    AdamStep("adam_mlp", "Adam for the six variables of 784-512-512-10, gradients given", LAYERS),
    AdamStep("adam_small", "Adam for 50 matrices of 64x64 and 50 vectors of 64", ((64, 64), (64,)) * 50),
)
