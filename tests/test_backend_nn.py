"""Activations, normalization and losses of K: values, stability, gradients, errors."""

import numpy as np
import pytest
from k_tools import check, check_gradients, run
from scipy import special

from graphkb import backend as K
from graphkb.ir.errors import DTypeError, ShapeError

RNG = np.random.default_rng(0)
X = RNG.normal(size=(4, 3)) * 3


# ---------------------------------------------------------------------------------------------- activations
def relu(x, alpha=0.0, max_value=None, threshold=0.0):
    upper = x if max_value is None else np.clip(x, 0, max_value)
    return np.where(x >= threshold, upper, alpha * (x - threshold))


@pytest.mark.parametrize("alpha", [0.0, 0.1, np.array([0.5, 1.0, 2.0])], ids=str)
@pytest.mark.parametrize("max_value", [None, 0.0, 1.5, 6])
@pytest.mark.parametrize("threshold", [0.0, 0.8, -1.3])
def test_relu(alpha, max_value, threshold):
    arguments = {"alpha": alpha, "max_value": max_value, "threshold": threshold}
    check(lambda x: K.relu(x, **arguments), lambda x: relu(x, **arguments), X)
    check_gradients(lambda x: K.relu(x, **arguments), X)


def test_relu_with_tensors_and_integers():
    check(lambda x, a: K.relu(x, alpha=a), lambda x, a: relu(x, a), X, np.array([0.5, 1.0, 2.0]))
    assert run(K.relu, np.array([-2, 3], np.int32)).tolist() == [0, 3]
    assert run(lambda x: K.relu(x, alpha=0.5), np.array([-2, 3], np.int32)).tolist() == [-1, 3]


def test_elu():
    for alpha in (1.0, 0.5, np.array([0.5, 1.0, 2.0])):
        check(lambda x, a=alpha: K.elu(x, a), lambda x, a=alpha: np.where(x > 0, x, a * np.expm1(np.minimum(x, 0))), X)
    check_gradients(lambda x: K.elu(x, 0.5), X)


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_softmax(axis):
    check(lambda x: K.softmax(x, axis), lambda x: special.softmax(x, axis), X)
    check_gradients(lambda x: K.softmax(x, axis), X)


def test_softmax_is_stable():
    assert K.eval(K.softmax(K.variable([1e4, 1e4, -1e4]))).tolist() == [0.5, 0.5, 0]
    assert K.eval(K.softmax(K.variable([-1e4, -1e4]))).tolist() == [0.5, 0.5]
    check(K.softmax, lambda x: special.softmax(x, -1), RNG.normal(size=(2, 3, 4, 5)))
    with pytest.raises(ShapeError, match=r"^softmax: axis 2 is out of range for a tensor of rank 2$"):
        K.softmax(K.variable(X), 2)


# -------------------------------------------------------------------------------------------- normalization
@pytest.mark.parametrize("axis", [None, 0, -1, [0, 1]])
def test_l2_normalize(axis):
    axes = tuple(axis) if isinstance(axis, list) else axis
    check(lambda x: K.l2_normalize(x, axis), lambda x: x / np.sqrt(np.sum(x**2, axes, keepdims=True)), X)
    check_gradients(lambda x: K.l2_normalize(x, axis), X)


def test_l2_normalize_of_zeros():
    assert K.eval(K.l2_normalize(K.variable([0.0, 0.0]))).tolist() == [0, 0]


@pytest.mark.parametrize("axis", [-1, 1, 2])
def test_batch_normalization(axis):
    x = RNG.normal(size=(2, 3, 4, 5))
    n = x.shape[axis]
    wide = [n if a == axis % 4 else 1 for a in range(4)]
    mean, var, beta, gamma = RNG.normal(size=n), RNG.uniform(size=n), RNG.normal(size=n), RNG.normal(size=n)

    def meaning(x, *parameters):
        mean, var, beta, gamma = [p.reshape(wide) for p in parameters]
        return (x - mean) / np.sqrt(var + 1e-2) * gamma + beta

    def build(x, mean, var, beta, gamma):
        return K.batch_normalization(x, mean, var, beta, gamma, axis, 1e-2)

    check(build, meaning, x, mean, var, beta, gamma)
    check(build, meaning, x, *[p.reshape(wide) for p in (mean, var, beta, gamma)])
    check(
        lambda x: K.batch_normalization(x, mean, var, None, None, axis),
        lambda x: (x - mean.reshape(wide)) / np.sqrt(var.reshape(wide) + 1e-3),
        x,
    )


@pytest.mark.parametrize("axes", [[0], [0, 1, 2], [0, 2, 3], [0, 1, 2, 3], [1]])
def test_normalize_batch_in_training(axes):
    x = RNG.normal(size=(2, 3, 4, 5))
    kept = tuple(n for a, n in enumerate(x.shape) if a not in axes)
    wide = tuple(1 if a in axes else n for a, n in enumerate(x.shape))
    gamma, beta = RNG.normal(size=kept), RNG.normal(size=kept)
    mean, var = x.mean(tuple(axes)), x.var(tuple(axes))
    normed = (x - mean.reshape(wide)) / np.sqrt(var.reshape(wide) + 1e-3)
    for i, expected in enumerate([normed * gamma.reshape(wide) + beta.reshape(wide), mean, var]):
        check(
            lambda x, g, b, i=i: K.normalize_batch_in_training(x, g, b, axes)[i],
            lambda x, g, b, e=expected: e,
            x, gamma, beta,
        )  # fmt: skip
    check(lambda x: K.normalize_batch_in_training(x, None, None, axes)[0], lambda x: normed, x)


def test_gradients_of_normalization():
    x, gamma, beta = RNG.normal(size=(4, 2)), RNG.normal(size=2), RNG.normal(size=2)
    check_gradients(lambda x, g, b: K.normalize_batch_in_training(x, g, b, [0])[0], x, gamma, beta)
    check_gradients(lambda x, m, v: K.batch_normalization(x, m, v, None, None), x, beta, gamma**2)


@pytest.mark.parametrize("rank", [2, 3, 4, 5])
def test_bias_add(rank):
    x = RNG.normal(size=(2, 3, 4, 5, 6)[:rank])
    last, first = x.shape[-1], x.shape[1]
    check(lambda x, b: K.bias_add(x, b), lambda x, b: x + b, x, RNG.normal(size=last))
    check(lambda x, b: K.bias_add(x, b), lambda x, b: x + b, x, RNG.normal(size=x.shape[1:]))
    if rank > 2:
        b = RNG.normal(size=first)
        wide = (1, first) + (1,) * (rank - 2)
        check(lambda x, b: K.bias_add(x, b, "channels_first"), lambda x, b: x + b.reshape(wide), x, b)
        b = RNG.normal(size=(*x.shape[2:], first))
        check(lambda x, b: K.bias_add(x, b, "channels_first"), lambda x, b: x + b.reshape(first, *b.shape[:-1]), x, b)


def test_bias_add_errors():
    x = K.placeholder((2, 3, 4, 5))
    with pytest.raises(
        ValueError,
        match=r"^bias_add: expected a bias of rank 1 or 3 for a tensor of rank 4, not one of shape \(4, 5\)$",
    ):
        K.bias_add(x, K.variable(np.zeros((4, 5))))
    for rank in (2, 3):
        with pytest.raises(
            ValueError, match=r"expected 'channels_first' or 'channels_last' as the data format, not 'middle'"
        ):
            K.bias_add(K.placeholder(ndim=rank), K.variable([1.0]), "middle")
    with pytest.raises(ShapeError, match=r"bias_add: shapes"):
        K.bias_add(x, K.variable([1.0, 2.0]))


# -------------------------------------------------------------------------------------------------- ranking
def in_top_k(predictions, targets, k):
    out = []
    for row, t in zip(predictions, targets):
        known = 0 <= t < len(row) and np.isfinite(row).all()
        out.append(bool(known and (row > row[t]).sum() < k))
    return np.array(out)


@pytest.mark.parametrize("k", [1, 2, 3, 10])
def test_in_top_k(k):
    predictions = RNG.normal(size=(20, 5))
    targets = RNG.integers(0, 5, 20).astype(np.int32)
    check(lambda p, t: K.in_top_k(p, t, k), lambda p, t: in_top_k(p, t, k), predictions, targets)


def test_in_top_k_at_the_border():
    rows = np.array(
        [[0.5, 0.5, 0.1], [0.5, 0.5, 0.1], [0.1, 0.2, 0.3], [0.1, 0.2, 0.3], [np.nan, 1, 0], [np.inf, 1, 0]]
    )
    targets = np.array([0, 1, 5, -1, 1, 1])
    check(lambda p, t: K.in_top_k(p, t, 1), lambda p, t: np.array([1, 1, 0, 0, 0, 0], bool), rows, targets)
    with pytest.raises(DTypeError, match=r"the targets must be integers, not float32"):
        K.in_top_k(K.variable(rows), K.variable(targets), 1)
    with pytest.raises(ShapeError, match=r"expected predictions of rank 2 and targets of rank 1"):
        K.in_top_k(K.variable(rows), K.variable([targets], "int32"), 1)


# --------------------------------------------------------------------------------------------------- losses
P = special.softmax(X, -1)
T = np.eye(3)[[0, 2, 1, 1]]
SOFT = special.softmax(RNG.normal(size=(4, 3)), -1)


@pytest.mark.parametrize("target", [T, SOFT])
def test_categorical_crossentropy(target):
    expected = -np.sum(target * special.log_softmax(X, -1), -1)
    check(K.categorical_crossentropy, lambda t, p: expected, target, P, rtol=1e-6)
    check(K.categorical_crossentropy, lambda t, p: expected, target, P * 7, rtol=1e-6)
    check(lambda t, x: K.categorical_crossentropy(t, x, from_logits=True), lambda t, x: expected, target, X)
    check(lambda t, x: K.categorical_crossentropy(t, K.softmax(x)), lambda t, x: expected, target, X)
    check(
        lambda t, x: K.categorical_crossentropy(K.transpose(t), K.softmax(K.transpose(x), 0), axis=0),
        lambda t, x: expected,
        target, X,
    )  # fmt: skip
    check_gradients(lambda x: K.categorical_crossentropy(K.constant(target, "float64"), K.softmax(x)), X)
    check_gradients(lambda p: K.categorical_crossentropy(K.constant(target, "float64"), p), P)


@pytest.mark.parametrize("axis", [-1, 0, 1])
def test_sparse_categorical_crossentropy(axis):
    x = RNG.normal(size=(2, 3, 4))
    last = np.moveaxis(x, axis, -1)
    classes = RNG.integers(0, last.shape[-1], last.shape[:-1])
    expected = -np.take_along_axis(special.log_softmax(last, -1), classes[..., None], -1)[..., 0]

    def build(c, y, **options):
        return K.sparse_categorical_crossentropy(c, y, axis=axis, **options)

    check(lambda c, y: build(c, y, from_logits=True), lambda c, y: expected, classes, x)
    check(lambda c, y: build(c, K.softmax(y, axis)), lambda c, y: expected, classes, x)
    check(build, lambda c, y: expected, classes, special.softmax(x, axis), rtol=1e-6)
    check(build, lambda c, y: expected, classes.astype(float), special.softmax(x, axis), rtol=1e-6)
    check_gradients(lambda y: build(K.constant(classes), y, from_logits=True), x)


def test_sparse_targets_of_other_shapes():
    expected = -np.log(P[np.arange(4), [0, 2, 1, 1]])
    found = K.eval(K.sparse_categorical_crossentropy(K.constant([[0.0], [2.0], [1.0], [1.0]]), K.variable(P)))
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    found = K.eval(K.sparse_categorical_crossentropy([0, 3, -1, 1], K.variable(P)))
    assert np.isnan(found).tolist() == [False, True, True, False]


def test_binary_crossentropy():
    target, p = RNG.uniform(size=(4, 3)), special.expit(X)
    expected = -(target * special.log_expit(X) + (1 - target) * special.log_expit(-X))
    check(lambda t, x: K.binary_crossentropy(t, x, from_logits=True), lambda t, x: expected, target, X)
    check(lambda t, x: K.binary_crossentropy(t, K.sigmoid(x)), lambda t, x: expected, target, X)
    check(K.binary_crossentropy, lambda t, p: expected, target, p, rtol=1e-4)
    small = K.epsilon()
    check(
        K.binary_crossentropy,
        lambda t, p: -(t * np.log(p + small) + (1 - t) * np.log(1 - p + small)),
        target, p,
    )  # fmt: skip
    check_gradients(lambda x: K.binary_crossentropy(K.constant(target, "float64"), K.sigmoid(x)), X)
    check_gradients(lambda p: K.binary_crossentropy(K.constant(target, "float64"), p), p)


def test_losses_of_extreme_logits_stay_exact():
    x = K.variable([[1000.0, 0.0], [-1000.0, 0.0]])
    t = K.constant([[0.0, 1.0], [1.0, 0.0]])
    loss = K.categorical_crossentropy(t, K.softmax(x))
    assert K.eval(loss).tolist() == [1000, 1000]
    assert K.eval(K.gradients(loss, x)[0]).tolist() == [[1, -1], [-1, 1]]
    loss = K.binary_crossentropy(t, K.sigmoid(x))
    assert K.eval(loss)[:, 0].tolist() == [1000, 1000]
    assert np.isfinite(K.eval(K.gradients(loss, x)[0])).all()
    assert K.eval(K.binary_crossentropy(K.constant([1.0]), K.sigmoid(K.constant([20.0])))) > 0


def test_probabilities_at_the_ends_are_clipped():
    p, t = K.variable([[1.0, 0.0]]), K.constant([[0.0, 1.0]])
    assert np.isclose(K.eval(K.categorical_crossentropy(t, p))[0], -np.log(1e-7), rtol=1e-5)
    assert np.isfinite(K.eval(K.binary_crossentropy(t, p))).all()
    assert np.isfinite(K.eval(K.sparse_categorical_crossentropy([1], p))).all()


def test_targets_of_unknown_shape():
    # Keras makes all targets with ndim= only.
    t, x = K.placeholder(ndim=2), K.placeholder((None, 3))
    loss = K.categorical_crossentropy(t, K.softmax(x))
    (value,) = K.function([t, x], [K.mean(loss)])([T, X])
    assert np.isclose(value, -np.mean(np.sum(T * special.log_softmax(X, -1), -1)), rtol=1e-6)


def test_loss_errors():
    for loss in (K.categorical_crossentropy, K.sparse_categorical_crossentropy):
        with pytest.raises(ValueError, match=r"crossentropy: axis 2 is out of range for a tensor of rank 2$"):
            loss(K.variable(T), K.variable(P), axis=2)
    with pytest.raises(ShapeError, match=r"differ in rank$"):
        K.categorical_crossentropy(K.variable([1.0]), K.variable(P))
