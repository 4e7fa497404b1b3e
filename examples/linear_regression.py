"""Fit a plane by gradient descent: variables, gradients and simultaneous updates in thirty lines."""

from __future__ import annotations

import sys

import numpy as np

from graphkb import backend as K


def make_data(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """200 points of y = 2*x0 - 3*x1 + 0.5 with a little noise; x is (200, 2), y is (200, 1), both float64."""
    rng = np.random.default_rng(seed)
    x = rng.uniform(-1, 1, (200, 2))
    y = x @ np.array([[2.0], [-3.0]]) + 0.5 + 0.05 * rng.standard_normal((200, 1))
    return x, y


def fit(x: np.ndarray, y: np.ndarray, steps: int = 300, rate: float = 0.3) -> tuple[np.ndarray, float]:
    """The weights (2,) and the bias of the best plane, by gradient descent on the mean squared error."""
    points = K.placeholder((None, 2), dtype="float64")
    targets = K.placeholder((None, 1), dtype="float64")
    w = K.variable(np.zeros((2, 1)), dtype="float64")
    b = K.variable(0.0, dtype="float64")

    loss = K.mean(K.square(K.dot(points, w) + b - targets))
    gradients = K.gradients(loss, [w, b])
    updates = [K.update_sub(p, rate * g) for p, g in zip([w, b], gradients)]
    step = K.function([points, targets], [loss], updates=updates)

    for _ in range(steps):
        step([x, y])
    return K.get_value(w).ravel(), float(K.get_value(b))


def main() -> int:
    """Print what gradient descent finds beside the exact solution; return 1 if they differ."""
    x, y = make_data()
    w, b = fit(x, y)
    exact = np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), y, rcond=None)[0].ravel()
    print(f"gradient descent: y = {w[0]:+.4f}*x0 {w[1]:+.4f}*x1 {b:+.4f}")
    print(f"least squares:    y = {exact[0]:+.4f}*x0 {exact[1]:+.4f}*x1 {exact[2]:+.4f}")
    return 0 if np.allclose(np.append(w, b), exact, atol=1e-4) else 1


if __name__ == "__main__":
    sys.exit(main())
