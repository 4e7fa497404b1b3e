"""The largest eigenvalue of a symmetric matrix by power iteration: state that lives in a variable between calls."""

from __future__ import annotations

import sys

import numpy as np

from graphkb import backend as K


def make_matrix(size: int, seed: int = 0) -> np.ndarray:
    """A symmetric positive float64 matrix (size, size) whose largest eigenvalue stands well apart."""
    rng = np.random.default_rng(seed)
    q, _ = np.linalg.qr(rng.standard_normal((size, size)))
    matrix: np.ndarray = (q * np.linspace(1, 2, size) ** 2) @ q.T + 4 * np.outer(q[:, -1], q[:, -1])
    return (matrix + matrix.T) / 2


def largest_eigenpair(matrix: np.ndarray, tolerance: float = 1e-13, limit: int = 1000) -> tuple[float, np.ndarray]:
    """The largest eigenvalue and its unit vector of a symmetric positive matrix.

    Each call replaces v by Av / |Av| and returns the Rayleigh quotient v'Av of the old v (von Mises, 1929).
    """
    size = len(matrix)
    a = K.constant(matrix, dtype="float64")
    v = K.variable(np.full((size, 1), size**-0.5) + np.linspace(0, 0.1, size)[:, None], dtype="float64")

    image = K.dot(a, v)
    quotient = K.sum(v * image) / K.sum(K.square(v))
    step = K.function([], [quotient], updates=[(v, image / K.sqrt(K.sum(K.square(image))))])

    value = 0.0
    for _ in range(limit):
        before, value = value, float(step([])[0])
        if abs(value - before) <= tolerance * abs(value):
            break
    return value, K.get_value(v).ravel()


def main() -> int:
    """Print the eigenvalue beside NumPy's; return 1 if they differ."""
    matrix = make_matrix(60)
    value, _ = largest_eigenpair(matrix)
    exact = float(np.linalg.eigvalsh(matrix)[-1])
    print(f"power iteration: {value:.12f}\nNumPy's eigvalsh: {exact:.12f}")
    return 0 if abs(value - exact) <= 1e-9 * exact else 1


if __name__ == "__main__":
    sys.exit(main())
