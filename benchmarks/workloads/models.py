"""Whole programs of other fields that no kernel was written for: language, statistics, finance, physics, cells."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from benchmarks.peers.base import Arrays
from benchmarks.workloads import formulas
from benchmarks.workloads.base import Forward, TrainingStep

f32 = np.float32


# ---------------------------------------------------------------------------------------------- a transformer's layer
BATCH, WORDS, WIDTH, HEADS = 8, 128, 256, 4


def layer_weights() -> Sequence[np.ndarray]:
    """Products of queries, keys, values and results; scale and shift; the two dense layers; scale and shift."""
    rng = np.random.default_rng(60)
    shapes = [(WIDTH, WIDTH)] * 4 + [(WIDTH, 4 * WIDTH), (4 * WIDTH, WIDTH)]
    *attention, w1, w2 = [(rng.standard_normal(s) / np.sqrt(s[0])).astype(f32) for s in shapes]
    b1, b2, shift1, shift2 = [(rng.standard_normal(n) / 10).astype(f32) for n in (4 * WIDTH, WIDTH, WIDTH, WIDTH)]
    scale1, scale2 = rng.uniform(0.5, 1.5, (2, WIDTH)).astype(f32)
    return [*attention, scale1, shift1, w1, b1, w2, b2, scale2, shift2]


def sentences() -> Arrays:
    return {"x": np.random.default_rng(61).standard_normal((BATCH, WORDS, WIDTH)).astype(f32)}


def encoder(product: Any, attend: Any, normalize: Any, gelu: Any, *arrays: Any) -> Any:
    """Attention among the words of each sentence and two dense layers, each behind a normalization."""
    q, k, v, o, scale1, shift1, w1, b1, w2, b2, scale2, shift2, x = arrays
    y = normalize(x, scale1, shift1)
    x = x + product(attend(product(y, q), product(y, k), product(y, v)), o)
    return x + product(gelu(product(normalize(x, scale2, shift2), w1) + b1), w2) + b2


def graphkb_encoder(K: Any, *arrays: Any) -> Any:
    def heads(x: Any) -> Any:
        return K.permute_dimensions(K.reshape(x, (BATCH, WORDS, HEADS, -1)), (0, 2, 1, 3))

    def attend(q: Any, k: Any, v: Any) -> Any:
        scores = K.softmax(heads(q) @ K.permute_dimensions(heads(k), (0, 1, 3, 2)) / np.sqrt(WIDTH / HEADS))
        return K.reshape(K.permute_dimensions(scores @ heads(v), (0, 2, 1, 3)), (BATCH, WORDS, WIDTH))

    def normalize(x: Any, scale: Any, shift: Any) -> Any:
        d = x - K.mean(x, axis=-1, keepdims=True)
        return d * K.rsqrt(K.mean(K.square(d), axis=-1, keepdims=True) + 1e-5) * scale + shift

    return encoder(K.dot, attend, normalize, lambda x: x * (1 + K.erf(x * np.sqrt(0.5))) / 2, *arrays)


def array_encoder(xp: Any, erf: Any, *arrays: Any) -> Any:
    """NumPy's and JAX's."""

    def heads(x: Any) -> Any:
        return x.reshape(BATCH, WORDS, HEADS, -1).transpose(0, 2, 1, 3)

    def attend(q: Any, k: Any, v: Any) -> Any:
        scores = heads(q) @ heads(k).swapaxes(-1, -2) / float(np.sqrt(WIDTH / HEADS))
        scores = xp.exp(scores - scores.max(-1, keepdims=True))
        mixed = scores / scores.sum(-1, keepdims=True) @ heads(v)
        return mixed.transpose(0, 2, 1, 3).reshape(BATCH, WORDS, WIDTH)

    def normalize(x: Any, scale: Any, shift: Any) -> Any:
        d = x - x.mean(-1, keepdims=True)
        return d / xp.sqrt((d * d).mean(-1, keepdims=True) + 1e-5) * scale + shift

    return encoder(xp.matmul, attend, normalize, lambda x: x * (1 + erf(x * float(np.sqrt(0.5)))) / 2, *arrays)


def torch_encoder(torch: Any, *arrays: Any) -> Any:
    f = torch.nn.functional

    def heads(x: Any) -> Any:
        return x.view(BATCH, WORDS, HEADS, -1).transpose(1, 2)

    def attend(q: Any, k: Any, v: Any) -> Any:
        mixed = f.scaled_dot_product_attention(heads(q), heads(k), heads(v))
        return mixed.transpose(1, 2).reshape(BATCH, WORDS, WIDTH)

    return encoder(
        torch.matmul, attend, lambda x, scale, shift: f.layer_norm(x, (WIDTH,), scale, shift, 1e-5), f.gelu, *arrays
    )


# ---------------------------------------------------------------------------------------------- embeddings
def vocabulary() -> Sequence[np.ndarray]:
    return list((0.1 * np.random.default_rng(62).standard_normal((2, 5000, 64))).astype(f32))


def contexts() -> Arrays:
    rng = np.random.default_rng(63)
    return {
        "word": rng.integers(0, 5000, 256),
        "near": rng.integers(0, 5000, 256),
        "far": rng.integers(0, 5000, (256, 5)),
    }


def embedding_gradients(
    params: Sequence[np.ndarray], word: np.ndarray, near: np.ndarray, far: np.ndarray
) -> list[np.ndarray]:
    """Of the mean over the words of log(1 + exp(-score)) of a neighbor and log(1 + exp(score)) of five others."""
    word, near, far = (i.astype(np.int64) for i in (word, near, far))
    inner, outer = params
    v, u, n = inner[word], outer[near], outer[far]
    close = -1 / (1 + np.exp((v * u).sum(-1, keepdims=True))) / len(v)
    apart = 1 / (1 + np.exp(-(v[:, None] * n).sum(-1, keepdims=True))) / len(v)
    slopes = [np.zeros_like(inner), np.zeros_like(outer)]
    np.add.at(slopes[0], word, close * u + (apart * n).sum(1))
    np.add.at(slopes[1], near, close * v)
    np.add.at(slopes[1], far, apart * v[:, None])
    return slopes


def graphkb_embedding(K: Any, params: Sequence[Any], word: Any, near: Any, far: Any) -> Any:
    v, u, n = K.gather(params[0], word), K.gather(params[1], near), K.gather(params[1], far)
    apart = K.softplus(K.sum(K.expand_dims(v, 1) * n, -1))
    return K.mean(K.softplus(-K.sum(v * u, -1)) + K.sum(apart, -1))


def jax_embedding(jax: Any, params: Sequence[Any], word: Any, near: Any, far: Any) -> Any:
    v, u, n = params[0][word], params[1][near], params[1][far]
    return (jax.nn.softplus(-(v * u).sum(-1)) + jax.nn.softplus((v[:, None] * n).sum(-1)).sum(-1)).mean()


def torch_embedding(torch: Any, params: Sequence[Any], word: Any, near: Any, far: Any) -> Any:
    f = torch.nn.functional
    v, u, n = f.embedding(word, params[0]), f.embedding(near, params[1]), f.embedding(far, params[1])
    return (f.softplus(-(v * u).sum(-1)) + f.softplus((v[:, None] * n).sum(-1)).sum(-1)).mean()


# ---------------------------------------------------------------------------------------------- statistics
def mixture() -> Arrays:
    """Points, and the means and log variances of ten clusters."""
    rng = np.random.default_rng(64)
    arrays = rng.standard_normal((2000, 8)), rng.standard_normal((10, 8)), rng.uniform(0, 1, (10, 8))
    return dict(zip("xmv", [a.astype(f32) for a in arrays]))


def expectation_step(xp: Any, softmax: Any, x: Any, m: Any, v: Any) -> Any:
    """The clusters' new means: those of the points, weighted by how likely each cluster is."""
    d = x[:, None] - m
    weights = softmax(-0.5 * (d * d * xp.exp(-v) + v).sum(-1))
    return weights.T @ x / weights.sum(0)[:, None]


def graphkb_expectation(K: Any, x: Any, m: Any, v: Any) -> Any:
    d = K.expand_dims(x, 1) - m
    weights = K.softmax(-0.5 * K.sum(d * d * K.exp(-v) + v, -1))
    return K.dot(K.transpose(weights), x) / K.expand_dims(K.sum(weights, 0))


# ---------------------------------------------------------------------------------------------- finance
PATHS, DAYS, DRIFT, NOISE = 20000, 50, 0.0002, 0.03


def worth(xp: Any, relu: Any, z: Any, start: Any) -> Any:
    """What an option on the mean of a price over some days is worth: the mean over paths, which noise z makes."""
    return relu((start * xp.exp(xp.cumsum(DRIFT + NOISE * z, 1))).mean(1) - start).mean()


def numpy_worth(np: Any, start: Any) -> Any:
    z = np.random.default_rng(65).standard_normal((PATHS, DAYS), start.dtype)
    return worth(np, lambda x: np.maximum(x, 0), z, start)


def graphkb_worth(K: Any, start: Any) -> Any:
    z = K.random_normal((PATHS, DAYS))
    return K.mean(K.relu(K.mean(start * K.exp(K.cumsum(DRIFT + NOISE * z, 1)), 1) - start))


def jax_worth(jax: Any, start: Any) -> Any:
    return worth(jax.numpy, jax.nn.relu, jax.random.normal(jax.random.key(0), (PATHS, DAYS)), start)


# ---------------------------------------------------------------------------------------------- physics and cells
def reaction(laplace: Any, u: Any, v: Any) -> tuple[Any, Any]:
    """One step of two substances that diffuse and react (Gray and Scott)."""
    r = u * v * v
    return u + 0.16 * laplace(u) - r + 0.035 * (1 - u), v + 0.08 * laplace(v) + r - 0.1 * v


def graphkb_roll(K: Any, x: Any, step: int, axis: int) -> Any:
    """The elements moved around, as NumPy's roll does."""
    if axis == 0:
        return K.concatenate([x[-step:], x[:-step]], 0)
    return K.concatenate([x[:, -step:], x[:, :-step]], 1)


def laplace(roll: Any, x: Any) -> Any:
    return roll(x, 1, 0) + roll(x, -1, 0) + roll(x, 1, 1) + roll(x, -1, 1) - 4 * x


def graphkb_reaction(K: Any, u: Any, v: Any) -> Any:
    for _ in range(20):
        u, v = reaction(lambda x: laplace(lambda *a: graphkb_roll(K, *a), x), u, v)
    return v


def array_reaction(roll: Any, u: Any, v: Any) -> Any:
    for _ in range(20):
        u, v = reaction(lambda x: laplace(roll, x), u, v)
    return v


def jax_reaction(jax: Any, u: Any, v: Any) -> Any:
    roll = jax.numpy.roll
    return jax.lax.fori_loop(0, 20, lambda _, s: reaction(lambda x: laplace(roll, x), *s), (u, v))[1]


def neighbors(roll: Any, x: Any) -> Any:
    y = roll(x, 1, 0) + x + roll(x, -1, 0)
    return roll(y, 1, 1) + y + roll(y, -1, 1) - x


def array_life(roll: Any, dtype: Any, x: Any) -> Any:
    for _ in range(20):
        n = neighbors(roll, x)
        x = ((n == 3) | ((n == 2) & (x == 1))) * dtype(1)
    return x


def graphkb_life(K: Any, x: Any) -> Any:
    def step(x: Any, _: Any) -> Any:
        n = neighbors(lambda *a: graphkb_roll(K, *a), x)
        return K.cast(K.equal(n, 3) | (K.equal(n, 2) & K.equal(x, 1)), "int32")

    return K.foldl(step, K.arange(20), x)


def torch_life(torch: Any, x: Any) -> Any:
    for _ in range(20):
        n = neighbors(torch.roll, x)
        x = ((n == 3) | ((n == 2) & (x == 1))).to(torch.int32)
    return x


def jax_life(jax: Any, x: Any) -> Any:
    def step(_: int, x: Any) -> Any:
        n = neighbors(jax.numpy.roll, x)
        return ((n == 3) | ((n == 2) & (x == 1))).astype("int32")

    return jax.lax.fori_loop(0, 20, step, x)


def forces(sqrt: Any, x: Any, m: Any) -> Any:
    """What each of some bodies is drawn by, softened."""
    d = x[None] - x[:, None]
    r = (d * d).sum(-1) + 0.01
    return (d * (m / (r * sqrt(r)))[..., None]).sum(1)


def graphkb_forces(K: Any, x: Any, m: Any) -> Any:
    d = K.expand_dims(x, 0) - K.expand_dims(x, 1)
    r = K.sum(d * d, -1) + 0.01
    return K.sum(d * K.expand_dims(m / (r * K.sqrt(r))), 1)


def fields() -> Arrays:
    return {n: np.random.default_rng(66 + i).uniform(0, 1, (128, 128)).astype(f32) for i, n in enumerate("uv")}


def bodies() -> Arrays:
    rng = np.random.default_rng(68)
    return {"x": rng.standard_normal((500, 3)).astype(f32), "m": rng.uniform(0, 1, 500).astype(f32)}


def numpy_erf(x: Any) -> Any:
    from scipy.special import erf

    return erf(x)


WORKLOADS = (
    Forward(
        name="transformer",
        what=f"a transformer's layer, {BATCH} sentences of {WORDS} words, {WIDTH} wide, {HEADS} heads",
        inputs=sentences,
        params=layer_weights,
        reference=lambda *a: array_encoder(np, numpy_erf, *a),
        tolerance=5e-6,
        expressions={
            "graphkb": graphkb_encoder,
            "numpy": lambda np, *a: array_encoder(np, numpy_erf, *a),
            "jax": lambda jax, *a: array_encoder(jax.numpy, jax.scipy.special.erf, *a),
            "torch": torch_encoder,
        },
    ),
    TrainingStep(
        name="word2vec_train",
        what="embeddings of 5000 words, 256 with a neighbor and five others each, one step of SGD with momentum",
        inputs=contexts,
        params=vocabulary,
        gradients=embedding_gradients,
        tolerance=1e-4,
        losses={"graphkb": graphkb_embedding, "jax": jax_embedding, "torch": torch_embedding},
        rate=1.0,
    ),
    Forward(
        name="gaussian_mixture",
        what="new means of 10 clusters of 2000 points of 8 dimensions",
        inputs=mixture,
        reference=lambda *a: expectation_step(np, formulas.softmax, *a),
        tolerance=1e-5,
        expressions={
            "graphkb": graphkb_expectation,
            "numpy": lambda np, *a: expectation_step(np, formulas.softmax, *a),
            "jax": lambda jax, *a: expectation_step(jax.numpy, lambda x: jax.nn.softmax(x, -1), *a),
            "torch": lambda torch, *a: expectation_step(torch, lambda x: torch.softmax(x, -1), *a),
        },
    ),
    Forward(
        name="monte_carlo",
        what=f"an option on a mean price, {PATHS} paths of {DAYS} days, drawn anew in each call",
        inputs=lambda: {"start": np.float32([100.0])},
        reference=lambda start: numpy_worth(np, start),
        tolerance=0.1,
        expressions={
            "graphkb": graphkb_worth,
            "numpy": numpy_worth,
            "jax": jax_worth,
            "torch": lambda torch, start: worth(torch, torch.relu, torch.randn(PATHS, DAYS), start),
        },
    ),
    Forward(
        name="reaction_diffusion",
        what="20 steps of Gray and Scott's reaction on a torus of 128 x 128",
        inputs=fields,
        reference=lambda u, v: array_reaction(np.roll, u, v),
        tolerance=1e-5,
        expressions={
            "graphkb": graphkb_reaction,
            "numpy": lambda np, u, v: array_reaction(np.roll, u, v),
            "jax": jax_reaction,
            "torch": lambda torch, u, v: array_reaction(torch.roll, u, v),
        },
    ),
    Forward(
        name="life",
        what="20 generations of Conway's cells on a torus of 256 x 256, int32",
        inputs=lambda: {"x": np.random.default_rng(69).integers(0, 2, (256, 256)).astype(np.int32)},
        reference=lambda x: array_life(np.roll, np.float64, x),
        tolerance=0.0,
        expressions={
            "graphkb": graphkb_life,
            "numpy": lambda np, x: array_life(np.roll, np.int32, x),
            "jax": jax_life,
            "torch": torch_life,
        },
    ),
    Forward(
        name="nbody",
        what="the forces among 500 bodies",
        inputs=bodies,
        reference=lambda x, m: forces(np.sqrt, x, m),
        tolerance=1e-5,
        expressions={
            "graphkb": graphkb_forces,
            "numpy": lambda np, x, m: forces(np.sqrt, x, m),
            "jax": lambda jax, x, m: forces(jax.numpy.sqrt, x, m),
            "torch": lambda torch, x, m: forces(torch.sqrt, x, m),
        },
    ),
)
