"""CTC of K: the loss against a sum over all paths, decoding against a search through them, gradients, errors."""

import itertools

import numpy as np
import pytest
from k_tools import check_gradients, numeric_gradient

from graphkb import backend as K
from graphkb import options
from graphkb.ir.errors import DTypeError, ShapeError

RNG = np.random.default_rng(0)
# The two samples of the test that Keras 2.3.1 has from TensorFlow.
INPUTS = np.array(
    [
        [
            [0.633766, 0.221185, 0.0917319, 0.0129757, 0.0142857, 0.0260553],
            [0.111121, 0.588392, 0.278779, 0.0055756, 0.00569609, 0.010436],
            [0.0357786, 0.633813, 0.321418, 0.00249248, 0.00272882, 0.0037688],
            [0.0663296, 0.643849, 0.280111, 0.00283995, 0.0035545, 0.00331533],
            [0.458235, 0.396634, 0.123377, 0.00648837, 0.00903441, 0.00623107],
        ],
        [
            [0.30176, 0.28562, 0.0831517, 0.0862751, 0.0816851, 0.161508],
            [0.24082, 0.397533, 0.0557226, 0.0546814, 0.0557528, 0.19549],
            [0.230246, 0.450868, 0.0389607, 0.038309, 0.0391602, 0.202456],
            [0.280884, 0.429522, 0.0326593, 0.0339046, 0.0326856, 0.190345],
            [0.423286, 0.315517, 0.0338439, 0.0393744, 0.0339315, 0.154046],
        ],
    ]
)
LABELS = np.array([[0, 1, 2, 1, 0], [0, 1, 1, 0, -1]])


def spelled(path, blank):
    """What a path spells: repetitions become one, then blanks go."""
    return tuple(c for i, c in enumerate(path) if c != blank and (not i or path[i - 1] != c))


def probabilities(p):
    """The probability of every label sequence, from all paths; p is normalized after epsilon was added."""
    p = np.asarray(p, float) + 1e-7
    p /= p.sum(axis=-1, keepdims=True)
    time, classes = p.shape
    found = {}
    for path in itertools.product(range(classes), repeat=time):
        labels = spelled(path, classes - 1)
        found[labels] = found.get(labels, 0) + np.prod(p[range(time), path])
    return found


def column(values):
    return np.reshape(values, (-1, 1))


# ---------------------------------------------------------------------------------------------- the loss
@pytest.mark.parametrize("mode", ["native", "interpret"])
def test_loss_of_keras(mode):
    tensors = [K.variable(a, d) for a, d in ((LABELS, "int32"), (INPUTS, "float32"))]
    lengths = [K.variable(column(a), "int32") for a in ([5, 5], [5, 4])]
    with options(mode=mode):
        (loss,) = K.function([], [K.ctc_batch_cost(*tensors, *lengths)])([])
    np.testing.assert_allclose(loss, [[3.34211], [5.42262]], atol=1e-5)
    one = K.ctc_batch_cost(K.variable(LABELS[:1]), K.variable(INPUTS[:1]), K.variable([[5]]), K.variable([[5]]))
    np.testing.assert_allclose(K.eval(one), [[3.34211]], atol=1e-5)


def cases():
    for time, classes, steps, labels in (
        (4, 3, 4, [0, 1]),
        (4, 3, 3, [1, 1]),
        (5, 2, 5, [0, 0]),
        (5, 2, 4, [0]),
        (3, 4, 3, []),
        (3, 4, 3, [2, 0, 1]),
        (3, 4, 2, [2]),
        (1, 2, 1, [0]),
        (2, 1, 2, []),
    ):
        yield RNG.dirichlet(np.ones(classes), time), steps, labels


def test_loss_is_the_sum_over_all_paths():
    for p, steps, labels in cases():
        expected = -np.log(probabilities(p[:steps])[tuple(labels)])
        padded = np.array([[*labels, -1, 7]])
        inputs = K.placeholder((None, None)), K.placeholder((None, None, None), dtype="float64")
        lengths = K.placeholder((None, 1)), K.placeholder((None, 1))
        f = K.function([*inputs, *lengths], [K.ctc_batch_cost(*inputs, *lengths)])
        for repeat in (1, 3):
            feeds = [np.repeat(a, repeat, axis=0) for a in (padded, p[None], [[steps]], [[len(labels)]])]
            (loss,) = f(feeds)
            assert (loss.dtype, loss.shape) == (np.float64, (repeat, 1))
            np.testing.assert_allclose(loss, expected, rtol=1e-12)


def test_samples_of_different_lengths_share_a_batch():
    p = RNG.dirichlet(np.ones(3), (4, 5))
    labels = np.array([[0, 1, 0], [1, 9, 9], [9, 9, 9], [1, 1, 9]])
    steps, counts = [5, 2, 3, 4], [3, 1, 0, 2]
    loss = K.eval(K.ctc_batch_cost(labels, K.constant(p, "float64"), column(steps), column(counts)))
    expected = [-np.log(probabilities(p[i, : steps[i]])[tuple(labels[i, : counts[i]])]) for i in range(4)]
    np.testing.assert_allclose(loss[:, 0], expected, rtol=1e-12)


def test_loss_of_labels_that_do_not_fit_is_infinite():
    p = K.variable(RNG.dirichlet(np.ones(3), (1, 3)))
    loss = K.ctc_batch_cost([[1, 1, 0]], p, [[3]], [[3]])
    value, grad = K.function([], [loss, *K.gradients(loss, [p])])([])
    assert value.tolist() == [[np.inf]]
    assert (grad == 0).all()
    empty = K.ctc_batch_cost(np.zeros((1, 0), int), K.constant(np.zeros((1, 0, 3))), [[0]], [[0]])
    assert K.eval(empty).tolist() == [[0]]


def test_no_samples():
    loss = K.ctc_batch_cost(np.zeros((0, 2), int), K.constant(np.zeros((0, 4, 3))), *[np.zeros((0, 1), int)] * 2)
    assert K.eval(loss).shape == (0, 1)


def test_long_sequences_do_not_underflow():
    time = 2000
    p = np.full((1, time, 50), 1 / 50)
    loss = K.eval(K.ctc_batch_cost(np.arange(10)[None], K.constant(p, "float32"), [[time]], [[10]]))
    # All labels are equally likely, so the number of paths that spell ten different ones counts.
    from math import comb, log

    expected = time * log(50) - log(comb(time + 10, 20))
    np.testing.assert_allclose(loss, [[expected]], rtol=1e-4)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_dtypes(dtype):
    loss = K.ctc_batch_cost(LABELS, K.constant(INPUTS, dtype), [[5], [5]], [[5], [4]])
    assert loss.dtype == dtype
    np.testing.assert_allclose(K.eval(loss), [[3.34211], [5.42262]], rtol=2e-3 if dtype == "float16" else 1e-5)


# ---------------------------------------------------------------------------------------------- gradients
def test_gradients_of_the_loss():
    p = RNG.dirichlet(np.ones(4), (3, 4))
    labels, steps, counts = np.array([[0, 0], [2, 9], [1, 2]]), column([4, 3, 4]), column([2, 1, 2])
    check_gradients(lambda x: K.ctc_batch_cost(labels, x, steps, counts), p)


def test_second_derivatives_of_the_loss():
    p = RNG.dirichlet(np.ones(3), (1, 3))
    x = K.variable(p, "float64")
    (grad,) = K.gradients(K.ctc_batch_cost([[0, 1]], x, [[3]], [[2]]), [x])
    weights = RNG.normal(size=p.shape)
    total = K.sum(grad * weights)
    (second,) = K.function([], K.gradients(total, [x]))([])

    def at(value):
        K.set_value(x, value)
        return float(K.eval(total))

    np.testing.assert_allclose(second, numeric_gradient(at, p), rtol=1e-5, atol=1e-5)


def test_gradient_descent_teaches_the_labels():
    logits = K.variable(RNG.normal(size=(2, 8, 5)) * 0.1)
    labels = np.array([[0, 1, 1], [3, 2, 0]])
    p = K.softmax(logits)
    loss = K.mean(K.ctc_batch_cost(labels, p, column([8, 8]), column([3, 3])))
    train = K.function([], [loss], updates=[K.update_sub(logits, 5 * K.gradients(loss, [logits])[0])])
    losses = [train([])[0] for _ in range(60)]
    assert losses[-1] < 0.1 < losses[0]
    paths, _ = K.ctc_decode(p, [8, 8])
    assert K.eval(paths[0]).tolist() == labels.tolist()


# ---------------------------------------------------------------------------------------------- greedy decoding
def test_greedy_decoding_of_keras():
    first = [[1, 0, 0, 0], [0, 0, 0.4, 0.6], [0, 0, 0.4, 0.6], [0, 0.9, 0.1, 0], [0, 0, 0, 0], [0, 0, 0, 0]]
    second = [[0.1, 0.9, 0, 0], [0, 0.9, 0.1, 0], [0, 0, 0.1, 0.9], [0, 0.9, 0.1, 0.1], [0.9, 0.1, 0, 0], [0] * 4]
    p, steps = K.variable([first, second]), K.variable([4, 5], "int32")
    paths, score = K.ctc_decode(p, steps, greedy=True)
    assert len(paths) == 1
    assert K.int_shape(paths[0]) == (2, None)
    assert K.eval(paths[0]).tolist() == [[0, 1, -1], [1, 1, 0]]
    expected = [-np.log(1 * 0.6 * 0.6 * 0.9), -np.log(0.9 * 0.9 * 0.9 * 0.9 * 0.9)]
    np.testing.assert_allclose(K.eval(score), column(expected), rtol=1e-5)


@pytest.mark.parametrize("mode", ["native", "interpret"])
def test_greedy_decoding(mode):
    p = RNG.dirichlet(np.full(3, 0.3), (20, 9))
    steps = RNG.integers(0, 10, 20)
    x, lengths = K.placeholder((None, None, None)), K.placeholder((None,), dtype="int64")
    with options(mode=mode):
        paths, score = K.ctc_decode(x, lengths)
        f = K.function([x, lengths], [paths[0], score, paths[0] * 2])
        labels, scores, whole = f([p, steps])
    expected = [spelled(row[:n].argmax(-1), 2) for row, n in zip(p, steps)]
    width = max(map(len, expected))
    assert labels.dtype == np.int64
    assert labels.tolist() == [[*row, *[-1] * (width - len(row))] for row in expected]
    np.testing.assert_array_equal(whole[:, :width], labels * 2)
    assert whole.shape == (20, 9)
    best = [-np.log(row[:n].max(-1) + 1e-7).sum() for row, n in zip(p, steps)]
    np.testing.assert_allclose(scores, column(best), rtol=1e-5, atol=1e-6)


def test_greedy_decoding_of_nothing():
    paths, score = K.ctc_decode(K.constant([[[0.1, 0.9]] * 3]), [3])
    assert K.eval(paths[0]).shape == (1, 0)
    paths, score = K.ctc_decode(K.constant(np.zeros((2, 0, 3))), [0, 0])
    assert K.eval(paths[0]).shape == (2, 0)
    assert K.eval(score).tolist() == [[0], [0]]


# ---------------------------------------------------------------------------------------------- beam search
def test_beam_search_of_keras():
    p = np.array(
        [
            [0.30999, 0.309938, 0.0679938, 0.0673362, 0.0708352, 0.173908],
            [0.215136, 0.439699, 0.0370931, 0.0393967, 0.0381581, 0.230517],
            [0.199959, 0.489485, 0.0233221, 0.0251417, 0.0233289, 0.238763],
            [0.279611, 0.452966, 0.0204795, 0.0209126, 0.0194803, 0.20655],
            [0.51286, 0.288951, 0.0243026, 0.0220788, 0.0219297, 0.129878],
        ]
    )
    inputs = np.exp(np.concatenate([p + 2, np.zeros((2, 6))]))[None]
    paths, score = K.ctc_decode(K.variable(inputs), K.variable([5], "int32"), greedy=False, beam_width=2, top_paths=2)
    assert [K.eval(path).tolist() for path in paths] == [[[1, 0]], [[1]]]
    np.testing.assert_allclose(K.eval(score), [[-5.811451, -6.63339]], rtol=1e-5)


@pytest.mark.parametrize(("merge", "expected"), [(True, [[0, 1]]), (False, [[0, 0, 1, 1]])])
def test_repeated_labels_of_keras(merge, expected):
    p = np.array([[[0, 0, 1], [1, 0, 0], [0, 0, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1], [0, 1, 0]]])
    x, lengths = K.placeholder((None, None, None)), K.placeholder(shape=(None), dtype="int64")
    paths, _ = K.ctc_decode(x, lengths, greedy=False, beam_width=1, top_paths=1, merge_repeated=merge)
    assert K.function([x, lengths], paths)([p, np.array([7])])[0].tolist() == expected


def test_a_wide_beam_finds_the_most_probable_sequences():
    p = RNG.dirichlet(np.ones(3), (6, 5))
    steps = [5, 5, 4, 3, 2, 1]
    paths, score = K.ctc_decode(K.constant(p, "float64"), steps, greedy=False, beam_width=500, top_paths=2)
    labels = [K.eval(path).tolist() for path in paths]
    scores = K.eval(score)
    for i, n in enumerate(steps):
        found = probabilities(p[i, :n])
        best = sorted(found, key=found.get, reverse=True)[:2]
        for k in range(2):
            assert tuple(c for c in labels[k][i] if c >= 0) == best[k]
            np.testing.assert_allclose(scores[i, k], np.log(found[best[k]]), rtol=1e-12)


def test_a_narrow_beam_gives_a_lower_bound():
    p = RNG.dirichlet(np.ones(4), (8, 6))
    scores = [
        K.eval(K.ctc_decode(K.constant(p, "float64"), [6] * 8, greedy=False, beam_width=width)[1])
        for width in (1, 2, 4, 100)
    ]
    exact = [np.log(max(probabilities(row).values())) for row in p]
    np.testing.assert_allclose(scores[-1][:, 0], exact, rtol=1e-9)
    assert all((score[:, 0] <= np.array(exact) + 1e-12).all() for score in scores)


# ---------------------------------------------------------------------------------------------- errors
GOOD = (LABELS, INPUTS.astype("float32"), [[5], [5]], [[5], [4]])


@pytest.mark.parametrize(
    ("position", "value", "error", "text"),
    [
        (0, [1, 2], ShapeError, r"ctc_batch_cost: expected y_true of shape \(samples, labels\), not \(2,\)"),
        (1, [[0.5, 0.5]], ShapeError, r"expected y_pred of shape \(samples, time, classes\), not \(1, 2\)"),
        (2, [5, 5], ShapeError, r"expected input_length of shape \(samples, 1\), not \(2,\)"),
        (3, [[5, 5], [5, 5]], ShapeError, r"expected label_length of shape \(samples, 1\), not \(2, 2\)"),
        (3, [[True], [True]], DTypeError, "expected integers as label_length, not bool"),
        (2, [[5], [5], [5]], ShapeError, "expected operands of one number of samples, not 2 and 3"),
    ],
)
def test_wrong_operands(position, value, error, text):
    operands = list(GOOD)
    operands[position] = value
    with pytest.raises(error, match=text):
        K.ctc_batch_cost(*operands)


@pytest.mark.parametrize(
    ("position", "value", "text"),
    [
        (0, [[0, 1, 5, 1, 0], [0, 1, 1, 0, -1]], "ctc_batch_cost: the labels: expected integers from 0 to 4, got 5"),
        (0, [[0, 1, -2, 1, 0], [0, 1, 1, 0, -1]], "the labels: expected integers from 0 to 4, got -2"),
        (2, [[5], [6]], "ctc_batch_cost: input_length: expected integers from 0 to 5, got 6"),
        (3, [[-1], [4]], "ctc_batch_cost: label_length: expected integers from 0 to 5, got -1"),
    ],
)
def test_values_out_of_range(position, value, text):
    operands = list(GOOD)
    operands[position] = value
    with pytest.raises(ValueError, match=text):
        K.eval(K.ctc_batch_cost(*operands))


def test_decoding_errors():
    p = K.constant(np.full((1, 3, 2), 0.5))
    with pytest.raises(ShapeError, match=r"ctc_decode: expected input_length of shape \(samples,\), not \(1, 1\)"):
        K.ctc_decode(p, [[3]])
    with pytest.raises(ShapeError, match="expected y_pred of shape"):
        K.ctc_decode([[0.5, 0.5]], [2])
    with pytest.raises(ValueError, match="expected 1 <= top_paths <= beam_width, not 3 and 2"):
        K.ctc_decode(p, [3], greedy=False, beam_width=2, top_paths=3)
    with pytest.raises(TypeError, match="expected integers as beam_width and top_paths, not 2.5 and 1"):
        K.ctc_decode(p, [3], greedy=False, beam_width=2.5)
    with pytest.raises(ValueError, match="ctc_decode: input_length: expected integers from 0 to 3, got 4"):
        K.eval(K.ctc_decode(p, [4])[1])
    with pytest.raises(ValueError, match="sample 0 has 2 paths, fewer than the 3 that are asked for"):
        K.eval(K.ctc_decode(p, [1], greedy=False, beam_width=5, top_paths=3)[1])
