"""Random tensors and dropout of K: distributions, seeds, repetition, gradients, errors."""

import copy
import pickle
import threading

import numpy as np
import pytest
from contracts_random import philox
from scipy import stats

from graphkb import backend as K
from graphkb import options
from graphkb.ir.errors import DTypeError, ShapeError
from graphkb.ops.random import CHUNK, RANDOM_BITS, RANDOM_NORMAL

FLOATS = ("float16", "float32", "float64")
DRAWS = (K.random_uniform, K.random_normal, K.truncated_normal)
# One in a million: the seeds are fixed, so a test that passes once always does.
RARE = 1e-6


def several(build, calls=3, mode="native", **kwargs):
    """The values of some calls of one function."""
    with options(mode=mode):
        f = K.function([], [build(**kwargs)])
    return [f([])[0] for _ in range(calls)]


# ---------------------------------------------------------------------------------------------- the generator
@pytest.mark.parametrize(
    ("counter", "key", "block"),
    [
        ((0, 0, 0, 0), (0, 0), (0x6627E8D5, 0xE169C58D, 0xBC57AC4C, 0x9B00DBD8)),
        ((2**32 - 1,) * 4, (2**32 - 1,) * 2, (0x408F276D, 0x41C83B0E, 0xA20BC7C6, 0x6D5451FD)),
        (
            (0x243F6A88, 0x85A308D3, 0x13198A2E, 0x03707344),
            (0xA4093822, 0x299F31D0),
            (0xD16CFE09, 0x94FDCCEB, 0x5001E420, 0x24126EA1),
        ),
    ],
)
def test_reference_gives_the_published_blocks(counter, key, block):
    """The known answers that Salmon et al. publish with their generator."""
    assert philox(counter, key) == block


@pytest.mark.parametrize("dtype", FLOATS)
@pytest.mark.parametrize("shape", [(), (0,), (1,), (1031,), (3, 5), (2, 3, 4)])
@pytest.mark.parametrize("draw", DRAWS)
def test_native_and_interpreted_draws_agree(draw, shape, dtype):
    eager = draw(shape, dtype=dtype, seed=5)
    native = several(draw, shape=shape, dtype=dtype, seed=5)
    for value in native:
        expected = K.eval(eager)
        assert (value.dtype, value.shape) == (np.dtype(dtype), shape) == (expected.dtype, expected.shape)
        if draw is K.random_uniform:
            np.testing.assert_array_equal(value, expected)
        else:
            np.testing.assert_allclose(value, expected, rtol=0, atol=8 * np.finfo(dtype).eps)


def test_every_step_is_native():
    x = K.placeholder((20, 30))
    with options(mode="native"):
        for draw in DRAWS:
            assert K.function([], [draw((20, 30))]).report().interpreted == 0
        f = K.function([x], [K.dropout(x, 0.5)])
    assert f.report([(20, 30)]).interpreted == 0


@pytest.mark.parametrize(
    ("op", "dtype"), [(RANDOM_BITS, "uint32"), (RANDOM_BITS, "uint64"), (RANDOM_NORMAL, "float32")]
)
def test_runs_of_places_draw_what_each_place_alone_does(op, dtype):
    """Long runs go by chunks that compute shared blocks once; shuffled places compute each block for itself."""
    places = np.arange(5, 5 + 2 * CHUNK + 3, dtype=np.uint64)
    shuffled = np.random.default_rng(0).permutation(places.size)
    seed, call = np.uint64(2**40 + 7), np.uint64(3)
    drawn = op.numpy(places, seed, call, dtype)
    np.testing.assert_array_equal(drawn[shuffled], op.numpy(places[shuffled], seed, call, dtype))
    np.testing.assert_array_equal(drawn[:9], op.numpy(places[:9].reshape(3, 3), seed, call, dtype).ravel())


def test_interpret_mode_gives_the_same_numbers():
    slow = several(K.random_uniform, mode="interpret", shape=(50,), seed=3)
    np.testing.assert_array_equal(slow, several(K.random_uniform, shape=(50,), seed=3))


# ---------------------------------------------------------------------------------------------- distributions
@pytest.mark.parametrize(
    ("build", "distribution"),
    [
        (lambda dtype: K.random_uniform((20000,), dtype=dtype, seed=1), stats.uniform),
        (lambda dtype: K.random_uniform((20000,), -3, 5, dtype=dtype, seed=2), stats.uniform(-3, 8)),
        (lambda dtype: K.random_normal((20000,), dtype=dtype, seed=3), stats.norm),
        (lambda dtype: K.random_normal((20000,), -10, 5, dtype=dtype, seed=4), stats.norm(-10, 5)),
        (lambda dtype: K.truncated_normal((20000,), dtype=dtype, seed=5), stats.truncnorm(-2, 2)),
        (lambda dtype: K.truncated_normal((20000,), 1, 3, dtype=dtype, seed=6), stats.truncnorm(-2, 2, 1, 3)),
    ],
    ids=["uniform", "uniform-3-5", "normal", "normal-10-5", "truncated", "truncated-1-3"],
)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
def test_distribution(build, distribution, dtype):
    for value in several(build, dtype=dtype):
        assert stats.kstest(value, distribution.cdf).pvalue > RARE
        mean, variance = distribution.mean(), distribution.var()
        assert abs(value.mean(dtype=float) - mean) < 5 * np.sqrt(variance / value.size)
        assert abs(value.var(dtype=float) / variance - 1) < 0.05


def test_every_bit_of_a_fraction_is_fair():
    (value,) = several(K.random_uniform, 1, shape=(20000,), dtype="float64", seed=8)
    bits = (value * 2**53).astype(np.uint64)
    ones = [int((bits >> np.uint64(i) & np.uint64(1)).sum()) for i in range(53)]
    assert np.abs(np.array(ones) - 10000).max() < 5 * np.sqrt(5000)


def test_calls_draws_and_seeds_are_independent():
    f = K.function(
        [], [K.random_uniform((20000,), seed=1), K.random_uniform((20000,), seed=2), K.random_normal((20000,))]
    )
    streams = [value for _ in range(4) for value in f([])]
    correlation = np.corrcoef(streams) - np.eye(len(streams))
    assert np.abs(correlation).max() < 5 / np.sqrt(20000)
    for value in streams:
        assert abs(np.corrcoef(value[1:], value[:-1])[0, 1]) < 5 / np.sqrt(20000)


def test_both_numbers_of_box_and_muller_are_independent():
    (value,) = several(K.random_normal, 1, shape=(2, 20000), dtype="float64", seed=9)
    assert abs(np.corrcoef(np.abs(value[0]), np.abs(value[1]))[0, 1]) < 5 / np.sqrt(20000)


@pytest.mark.parametrize("dtype", FLOATS)
def test_uniform_stays_below_its_bound(dtype):
    for low, high in ((0, 1), (-1, 1), (100, 100.5), (3, 3)):
        (value,) = several(K.random_uniform, 1, shape=(50000,), minval=low, maxval=high, dtype=dtype, seed=3)
        assert value.min() >= low
        assert value.max() < high or low == high
        bounds = K.variable(low, dtype), K.variable(high, dtype)
        drawn = K.eval(K.random_uniform((50000,), *bounds, dtype=dtype, seed=3))
        assert drawn.min() >= low
        assert drawn.max() < high or low == high


def test_truncation():
    value = K.eval(K.truncated_normal((200, 200), seed=1))
    assert np.abs(value).max() <= 2
    assert abs(value.std() - 0.87962) < 0.015
    extreme = K.eval(K.truncated_normal((100000,), dtype="float16", seed=1))
    assert np.abs(extreme).max() <= 2


def test_truncated_normal_is_the_inverse_of_the_distribution_function():
    """Equal seeds draw equal fractions, which SciPy turns into normal numbers by its own formula."""
    for dtype, tolerance in (("float32", 1e-6), ("float64", 1e-15)):
        uniform = K.eval(K.random_uniform((5000,), dtype=dtype, seed=4)).astype(float)
        step = 2.0**-24 if dtype == "float32" else 2.0**-53
        expected = np.sqrt(2) * stats.norm.ppf((1 + np.clip((2 * uniform - 1 + step), -1, 1) * 0.9544997361036416) / 2)
        actual = K.eval(K.truncated_normal((5000,), dtype=dtype, seed=4))
        np.testing.assert_allclose(actual * np.sqrt(2), expected, rtol=0, atol=4 * tolerance)


def test_binomial():
    value = K.eval(K.random_binomial((200, 200), 0.3, seed=1))
    assert set(np.unique(value)) == {0, 1}
    assert abs(value.mean() - 0.3) < 5 * np.sqrt(0.21 / 40000)
    assert K.eval(K.random_binomial((1000,), 0.0)).max() == 0
    assert K.eval(K.random_binomial((1000,), 1.0)).min() == 1
    assert K.eval(K.random_binomial((3,), 1.0, dtype="int32")).dtype == np.int32
    chances = K.eval(K.random_binomial((1000, 2), K.constant([0.0, 1.0])))
    assert (chances == [0, 1]).all()


@pytest.mark.parametrize("dtype", ["int8", "int32", "int64", "uint8", "uint64"])
def test_integers(dtype):
    for value in several(K.random_uniform, shape=(7000,), minval=3, maxval=10, dtype=dtype, seed=2):
        assert value.dtype == dtype
        counts = np.bincount(value.astype(int), minlength=10)[3:]
        assert counts.size == 7
        assert stats.chisquare(counts).pvalue > RARE
    info = np.iinfo(dtype)
    wide = K.eval(K.random_uniform((4000,), info.min, int(info.max) + 1, dtype=dtype, seed=2)).astype(float)
    assert stats.kstest(
        (wide - info.min) / (float(info.max) - float(info.min)), "uniform"
    ).pvalue > RARE or dtype.endswith("t8")


# ---------------------------------------------------------------------------------------------- seeds and calls
def test_equal_seeds_give_equal_sequences():
    first, second = (several(K.random_uniform, shape=(5,), seed=11) for _ in range(2))
    np.testing.assert_array_equal(first, second)
    other = several(K.random_uniform, shape=(5,), seed=12)
    assert not np.equal(first, other).any()
    assert not np.equal(first, several(K.random_uniform, shape=(5,), seed=-11)).any()


def test_numpy_seed_fixes_draws_without_one():
    values = []
    for _ in range(2):
        np.random.seed(7)
        values.append([K.eval(K.random_normal((4,))), K.eval(K.random_uniform_variable((4,), 0, 1))])
    np.testing.assert_array_equal(*values)
    assert not np.equal(K.eval(K.random_normal((4,))), values[0][0]).any()


def test_two_draws_never_merge():
    a, b = K.random_uniform((1000,)), K.random_uniform((1000,))
    (difference,) = K.function([], [a - b])([])
    assert np.abs(difference).min() > 0
    (same,) = K.function([], [a - a])([])
    assert (same == 0).all()


def test_one_draw_is_the_same_everywhere_in_a_run():
    x = K.random_uniform((100,))
    left, right, total = K.function([], [x, x * 2, K.sum(x)])([])
    np.testing.assert_array_equal(left * 2, right)
    assert total == pytest.approx(left.sum(dtype=float))


def test_every_run_draws_anew():
    x = K.random_uniform((50,), seed=1)
    f, g = K.function([], [x]), K.function([], [x + 0.0, K.ones((2,))])
    runs = [f([])[0], K.eval(x), g([])[0], K.get_value(x), f([])[0], K.eval(x)]
    assert np.unique(runs, axis=0).shape == (6, 50)
    # Whatever runs it, the sequence is one.
    y = K.random_uniform((50,), seed=1)
    np.testing.assert_array_equal(runs, [K.eval(y) for _ in range(6)])


def test_updates_and_values_after_them_see_the_same_draw():
    v = K.variable(np.zeros(10))
    noise = K.random_normal((10,))
    update = K.update_add(v, noise)
    for _ in range(3):
        before = K.get_value(v)
        (drawn,) = K.function([], [noise], updates=[update])([])
        np.testing.assert_allclose(K.get_value(v), before + drawn, rtol=1e-6)
    before = K.get_value(v)
    assert not np.equal(K.eval(update), before).any()


def test_variables():
    for v in (K.random_uniform_variable((2, 3), 0, 1, seed=3), K.random_normal_variable((2, 3), 0, 1, seed=3)):
        assert K.is_variable(v)
        np.testing.assert_array_equal(K.get_value(v), K.get_value(v))
    u = K.random_uniform_variable((20000,), -2, 2, dtype="float64", name="u", seed=3)
    assert (u.dtype, u.name) == ("float64", "u:0")
    assert stats.kstest(K.get_value(u), stats.uniform(-2, 4).cdf).pvalue > RARE
    again = K.random_uniform_variable((20000,), -2, 2, dtype="float64", seed=3)
    np.testing.assert_array_equal(K.get_value(u), K.get_value(again))


@pytest.mark.parametrize("clone", [lambda f: pickle.loads(pickle.dumps(f)), copy.deepcopy], ids=["pickle", "copy"])
def test_copies_of_functions_go_on_where_they_were(clone):
    f = K.function([], [K.random_uniform((20,), seed=6)])
    f([])
    g = clone(f)
    np.testing.assert_array_equal([g([])[0] for _ in range(3)], [f([])[0] for _ in range(3)])


@pytest.mark.parametrize("mode", ["native", "interpret"])
def test_threads_draw_every_number_once(mode):
    with options(mode=mode):
        f = K.function([], [K.random_uniform((4,), dtype="float64", seed=6)])
    f([])
    drawn = []

    def work():
        drawn.extend([f([])[0] for _ in range(200)])

    threads = [threading.Thread(target=work) for _ in range(4)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert np.unique(drawn, axis=0).shape == (800, 4)


# ---------------------------------------------------------------------------------------------- shapes and dtypes
def test_shapes_from_tensors():
    x = K.placeholder((None, 4))
    shapes = [(K.shape(x)[0], 3), K.shape(x), [2, K.shape(x)[1]]]
    f = K.function([x], [K.random_normal(shape) for shape in shapes])
    assert [value.shape for value in f([np.ones((6, 4))])] == [(6, 3), (6, 4), (2, 4)]
    assert [value.shape for value in f([np.ones((0, 4))])] == [(0, 3), (0, 4), (2, 4)]
    assert K.random_uniform((K.shape(x)[0], 3)).shape == (None, 3)
    assert K.eval(K.random_uniform(K.constant([2, 3], dtype="int32"))).shape == (2, 3)
    assert K.eval(K.random_uniform(5)).shape == (5,)


def test_floatx():
    K.set_floatx("float64")
    try:
        assert all(draw((2,)).dtype == "float64" for draw in (*DRAWS, K.random_binomial))
        assert K.random_normal_variable((2,), 0, 1).dtype == "float64"
    finally:
        K.set_floatx("float32")


def test_parameters_are_tensors():
    mean, scale = K.variable([[-100.0], [100.0]]), K.variable([1.0, 2.0, 3.0])
    value = K.eval(K.random_normal((2, 3), mean, scale))
    assert (value[0] < -50).all()
    assert (value[1] > 50).all()


# ---------------------------------------------------------------------------------------------- gradients
@pytest.mark.parametrize("draw", [K.random_normal, K.truncated_normal])
def test_gradients_flow_to_mean_and_stddev(draw):
    # Every evaluation makes the draw anew from its seed, so that differences see one function.
    def fixed(m, s):
        return draw((2, 3), m, s, dtype="float64", seed=4)

    mean, stddev = K.variable([[1.0], [2.0]], "float64"), K.variable([1.0, 2.0, 3.0], "float64")
    y = fixed(mean, stddev)
    value, by_mean, by_stddev = K.function([], [y, *K.gradients(K.sum(y), [mean, stddev])])([])
    unit = (value - K.get_value(mean)) / K.get_value(stddev)
    np.testing.assert_allclose(by_mean, [[3.0], [3.0]])
    np.testing.assert_allclose(by_stddev, unit.sum(axis=0), rtol=1e-12)


def test_gradients_flow_to_the_bounds():
    low, high = K.variable(2.0), K.variable(5.0)
    y = K.random_uniform((3, 4), low, high)
    value, by_low, by_high = K.function([], [y, *K.gradients(K.sum(y), [low, high])])([])
    np.testing.assert_allclose(by_high, ((value - 2) / 3).sum(), rtol=1e-5)
    np.testing.assert_allclose(by_low, (1 - (value - 2) / 3).sum(), rtol=1e-5)


def test_no_gradient_through_choices():
    p = K.variable(0.5)
    assert K.gradients(K.sum(K.random_binomial((3,), p)), [p]) == [None]


# ---------------------------------------------------------------------------------------------- dropout
@pytest.mark.parametrize("mode", ["native", "interpret"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_dropout(dtype, mode):
    x = K.variable(np.linspace(1, 2, 10000).reshape(100, 100), dtype)
    y = K.dropout(x, 0.2, seed=1)
    with options(mode=mode):
        f = K.function([], [y, *K.gradients(K.sum(y), [x])])
    value, grad = f([])
    kept = value != 0
    assert abs(kept.mean() - 0.8) < 5 * np.sqrt(0.16 / kept.size)
    np.testing.assert_allclose(
        value[kept], K.get_value(x)[kept] * np.asarray(1.25, dtype), rtol=2 * np.finfo(dtype).eps
    )
    np.testing.assert_allclose(grad, np.where(kept, 1.25, 0))
    assert (f([])[0] != value).any()


def test_dropped_values_leave_nothing_behind():
    y = K.eval(K.dropout(K.constant([np.inf, np.nan] * 500), 0.9, seed=1))
    assert (y == 0).sum() > 800


def test_noise_shape():
    x = K.placeholder((None, 5, 4))
    for noise_shape in (
        (None, 1, None),
        [None, 1, 4],
        (K.shape(x)[0], 1, K.shape(x)[2]),
        K.stack([K.shape(x)[0], 1, 4]),
    ):
        (y,) = K.function([x], [K.dropout(x, 0.5, noise_shape, seed=1)])([np.ones((40, 5, 4))])
        assert (y == y[:, :1]).all()
        assert 0 < (y[:, 0] == 0).mean() < 1
    (y,) = K.function([x], [K.dropout(x, 0.5, (4,), seed=3)])([np.ones((40, 5, 4))])
    assert (y == y[:1, :1]).all()


def test_dropout_of_level_zero_and_of_integers():
    x = K.variable([1.0, 2.0])
    assert K.eval(K.dropout(x, 0)).tolist() == [1, 2]
    assert K.dropout(K.variable([1, 2], "int32"), 0.5).dtype == "float32"
    y = K.eval(K.dropout(K.ones((1000,)), K.variable(0.75), seed=1))
    assert set(np.unique(y)) == {0, 4}


def test_dropout_in_testing_costs_nothing():
    x = K.placeholder((10,))
    y = K.in_train_phase(K.dropout(x, 0.5), x)
    f = K.function([x], [y])
    assert f([np.ones(10)])[0].tolist() == [1] * 10
    assert f.graph("optimized").updates == ()
    g = K.function([x, K.learning_phase()], [y])
    assert g([np.ones(10), 0])[0].tolist() == [1] * 10
    assert set(np.unique([g([np.ones(10), 1])[0] for _ in range(20)])) == {0, 2}


# ---------------------------------------------------------------------------------------------- errors
@pytest.mark.parametrize("level", [-0.5, 1, 1.0, 2, np.nan])
def test_dropout_levels_are_refused(level):
    with pytest.raises(ValueError, match=r"dropout: expected a level from 0 up to but without 1"):
        K.dropout(K.variable([1.0]), level)


@pytest.mark.parametrize(
    ("build", "error", "text"),
    [
        (lambda: K.random_normal((2,), dtype="int32"), DTypeError, "random_normal: expected a float dtype, not int32"),
        (lambda: K.truncated_normal((2,), stddev=-1.0), ValueError, "truncated_normal: expected a stddev of 0 or more"),
        (lambda: K.random_uniform((2,), 3, 2), ValueError, "random_uniform: minval 3 is above maxval 2"),
        (lambda: K.random_uniform((2,), dtype="int32"), None, None),
        (lambda: K.random_uniform((2,), 0, 300, dtype="uint8"), ValueError, "minval < maxval within uint8"),
        (lambda: K.random_uniform((2,), dtype="bool"), DTypeError, "expected a dtype of numbers, not bool"),
        (lambda: K.random_uniform((-2,)), ShapeError, r"random_uniform: the shape \(-2,\) has a negative size"),
        (lambda: K.random_uniform((2.5,)), TypeError, "random_uniform: expected an integer"),
        (lambda: K.random_uniform(None), TypeError, "random_uniform: expected a sequence of sizes"),
        (lambda: K.random_uniform((2,), seed="x"), TypeError, "expected an integer or None as the seed, not 'x'"),
        (lambda: K.random_normal((2,), K.ones((3,))), ShapeError, r"the mean \(3,\) does not broadcast to \(2,\)"),
        (lambda: K.random_normal((1,), K.ones((3,))), ShapeError, r"the mean \(3,\) does not broadcast to \(1,\)"),
        (lambda: K.random_binomial((2,), 1.5), ValueError, "expected a probability between 0 and 1, not 1.5"),
        (
            lambda: K.dropout(K.ones((2, 3)), 0.5, (2, 2)),
            ShapeError,
            r"noise shape \(2, 2\) does not broadcast to \(2, 3\)",
        ),
        (
            lambda: K.dropout(K.ones((3,)), 0.5, (2, 3)),
            ShapeError,
            r"noise shape \(2, 3\) does not broadcast to \(3,\)",
        ),
        (lambda: K.dropout(K.ones((3,)), 0.5, 3), TypeError, "expected a sequence of sizes as the noise shape, not 3"),
        (
            lambda: K.dropout(K.ones((3,)), None),
            TypeError,
            "dropout: expected a number or a scalar tensor as the level",
        ),
        (lambda: K.dropout(K.ones((3,)), K.ones((2,))), ShapeError, "dropout: expected a scalar level"),
    ],
)
def test_errors(build, error, text):
    if error is None:
        assert build().dtype == "int32"
        return
    with pytest.raises(error, match=text):
        build()


# ---------------------------------------------------------------------------------------------- runs of neighbors
@pytest.mark.parametrize("target", ["x86-64-v2", "x86-64-v3", "host"])
@pytest.mark.parametrize("dtype", FLOATS)
def test_draws_read_in_any_order_are_the_same(dtype, target):
    """Vectors of neighbors share blocks of random words: from the first word or the middle of one, and one by one."""
    shapes = [(5,), (67,), (130, 64), (9, 30), (3, 7, 65), (6, 66), (1, 3)]
    calls = []
    for mode in ("native", "interpret"):
        with options(mode=mode, target=target):
            outputs = []
            for shape in shapes:
                x = K.random_normal(shape, dtype=dtype, seed=5) + K.random_uniform(shape, dtype=dtype, seed=6)
                turned = K.permute_dimensions(x, range(len(shape))[::-1])
                outputs += [x, x + K.ones((shape[-1],), dtype), K.reverse(x, -1), turned]
            calls.append(K.function([], outputs)([]))
    for native, interpreted in zip(*calls):
        np.testing.assert_allclose(
            native, interpreted, rtol=0, atol={"float16": 5e-3, "float32": 4e-6}.get(dtype, 1e-14)
        )
