"""Random arguments for what networks are made of: convolution, pooling, normalization, losses, CTC, loops, draws.

What fits gives what plain NumPy gives, also compiled for sizes that only the call tells; what does not fit is a
ValueError or a TypeError with the function's name.
"""

import warnings
from functools import partial

import conv_tools
import k_references_nn as ref
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from k_references_nn import UnfitError

import graphkb
from graphkb import backend as K

RANDOM = settings(
    max_examples=25, derandomize=True, deadline=None, database=None, suppress_health_check=list(HealthCheck)
)
COMPILED = 4  # so many of the examples that fit are compiled as well
CLEAR = (ValueError, TypeError)
_LAYOUT = st.sampled_from(["channels_last", "channels_first"])
_SEEDS = st.integers(0, 999)


@pytest.fixture(autouse=True)
def _float64():
    previous = K.floatx()
    K.set_floatx("float64")
    yield
    K.set_floatx(previous)
    K.clear_session()


def values(draw, shape, low=-2.0, high=2.0):
    return np.random.default_rng(draw(_SEEDS)).uniform(low, high, shape)


def sizes(draw, n, most=6, least=1):
    return [draw(st.integers(least, most)) for _ in range(n)]


def per_axis(draw, n, most):
    """One number for all axes, or one for each."""
    return draw(st.one_of(st.integers(1, most), st.tuples(*[st.integers(1, most)] * n)))


def seldom(draw, usual, other):
    """Mostly the usual value, else one that should not fit."""
    return other if draw(st.integers(0, 9)) == 9 else usual


def wrong_ranks(draw, x):
    """The array, seldom with an axis too many or too few."""
    return seldom(draw, x, draw(st.sampled_from([x[..., None], x[0]]))) if x.ndim and len(x) else x


# ---------------------------------------------------------------------------------------------- convolutions
@st.composite
def convolved(draw, n, paddings=("valid", "same"), dilated=True):
    layout, channels = draw(_LAYOUT), draw(st.integers(1, 3))
    x = values(draw, (draw(st.integers(1, 2)), *sizes(draw, n), channels))
    taps = sizes(draw, n, 3)
    kernel = values(draw, (*taps, seldom(draw, channels, channels + 1), draw(st.integers(1, 3))))
    steps = {"strides": per_axis(draw, n, 3)}
    if dilated:
        steps["dilation_rate"] = per_axis(draw, n, 2)
    steps |= {"padding": draw(st.sampled_from(paddings)), "data_format": layout}
    return {"x": wrong_ranks(draw, conv_tools.first(x, layout)), "kernel": kernel, **steps}


@st.composite
def transposed(draw, n, dilated=True):
    layout, channels, filters = draw(_LAYOUT), draw(st.integers(1, 3)), draw(st.integers(1, 2))
    batch, places, taps = draw(st.integers(1, 2)), sizes(draw, n, 4), sizes(draw, n, 3)
    strides, padding = per_axis(draw, n, 3), draw(st.sampled_from(["valid", "same"]))
    rates = per_axis(draw, n, 2) if dilated else 1
    x = values(draw, (batch, *places, channels))
    kernel = values(draw, (*taps, filters, seldom(draw, channels, channels + 1)))
    wanted = []
    for p, k, s, d in zip(places, taps, conv_tools.many(strides, n), conv_tools.many(rates, n)):
        least = (p - 1) * s + 1 if padding == "same" else (p - 1) * s + (k - 1) * d + 1
        wanted.append(seldom(draw, least + draw(st.integers(0, s - 1)), least + s))
    shape = (batch, *wanted, filters) if layout == "channels_last" else (batch, filters, *wanted)
    arguments = {"x": conv_tools.first(x, layout), "kernel": kernel, "output_shape": shape, "strides": strides}
    arguments |= {"padding": padding, "data_format": layout}
    return arguments | ({"dilation_rate": rates} if dilated else {})


@st.composite
def separated(draw, n, pointwise=True):
    chosen = draw(convolved(n))
    chosen["depthwise_kernel"] = kernel = chosen.pop("kernel")
    if pointwise:
        count = kernel.shape[-1] * kernel.shape[-2]
        chosen["pointwise_kernel"] = values(draw, (*(1,) * n, seldom(draw, count, count + 1), draw(st.integers(1, 2))))
    return chosen


@st.composite
def locally_convolved(draw, n):
    layout = draw(_LAYOUT) if n == 2 else "channels_last"
    channels, size, strides = draw(st.integers(1, 2)), tuple(sizes(draw, n, 3)), tuple(sizes(draw, n, 2))
    spatial = [seldom(draw, k + draw(st.integers(0, 3)), k) for k in size]
    counts = tuple([seldom(draw, (m - k) // s + 1, (m - k) // s + 2) for m, k, s in zip(spatial, size, strides)])
    x = values(draw, (2, *spatial, channels))
    features = int(np.prod(size)) * seldom(draw, channels, channels + 1)
    chosen = {
        "inputs": conv_tools.first(x, layout), "kernel": values(draw, (int(np.prod(counts)), features, 2)),
        "kernel_size": size, "strides": strides, "data_format": layout,
    }  # fmt: skip
    return chosen | ({"output_shape": counts} if n == 2 else {})


@st.composite
def pooled(draw, n):
    chosen = draw(convolved(n, dilated=False))
    del chosen["kernel"]
    return chosen | {"pool_size": per_axis(draw, n, 3), "pool_mode": draw(st.sampled_from(["max", "avg"]))}


@st.composite
def resized(draw, n):
    layout = draw(_LAYOUT)
    x = wrong_ranks(draw, values(draw, (draw(st.integers(1, 2)), *sizes(draw, n + 1, 4))))
    names = ("depth_factor", "height_factor", "width_factor")[-n:]
    chosen = {"x": x, "data_format": layout, **{name: seldom(draw, draw(st.integers(1, 3)), 0) for name in names}}
    return chosen | ({"interpolation": draw(st.sampled_from(["nearest", "bilinear"]))} if n == 2 else {})


@st.composite
def surrounded(draw, n):
    pairs = tuple((draw(st.integers(0, 2)), draw(st.integers(0, 2))) for _ in range(n))
    x = wrong_ranks(draw, values(draw, (2, *sizes(draw, n + 1, 3))))
    return {"x": x, "padding": seldom(draw, pairs, (*pairs, (1, 1))), "data_format": draw(_LAYOUT)}


# ---------------------------------------------------------------------------------------------- normalization
@st.composite
def normalized(draw):
    shape = sizes(draw, draw(st.integers(1, 4)), 3)
    axis = seldom(draw, draw(st.integers(-len(shape), len(shape) - 1)), len(shape))
    n = shape[axis] if axis < len(shape) else 1
    parameter = st.one_of(st.none(), st.just(n), st.just(n + 4)) if draw(st.integers(0, 4)) == 0 else st.just(n)
    chosen = {"x": values(draw, shape), "mean": values(draw, n), "var": values(draw, n, 0.1, 2), "axis": axis}
    for name in ("beta", "gamma"):
        count = draw(parameter)
        chosen[name] = None if count is None else values(draw, count)
    return chosen | {"epsilon": draw(st.sampled_from([1e-3, 0.0, 1.0]))}


@st.composite
def normalized_alone(draw):
    shape = sizes(draw, draw(st.integers(1, 4)), 3)
    axes = draw(st.lists(st.integers(-len(shape), len(shape) - 1 + (draw(st.integers(0, 9)) == 9)), max_size=3))
    kept = [n for a, n in enumerate(shape) if a not in axes and a - len(shape) not in axes]
    gamma, beta = ((None if draw(st.booleans()) else values(draw, kept)) for _ in range(2))
    return {"x": values(draw, shape), "gamma": gamma, "beta": beta, "reduction_axes": axes, "epsilon": 1e-3}


# ---------------------------------------------------------------------------------------------- products, losses
@st.composite
def batches(draw):
    batch, inner = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    x, y = ([batch, *sizes(draw, seldom(draw, draw(st.integers(1, 3)), 0), 3)] for _ in range(2))
    inside = [st.integers(1, max(1, len(shape) - 1)) for shape in (x, y)]
    axes = seldom(draw, draw(st.one_of(st.none(), inside[0], st.tuples(*inside))), draw(st.integers(-3, 3)))
    for shape, axis in zip((x, y), ref.batch_axes(len(x), len(y), axes) or ()):
        if axis:
            shape[axis] = inner
    y[0] = seldom(draw, batch, batch + 1)
    return {"x": values(draw, x), "y": values(draw, y), "axes": axes}


@st.composite
def ranked(draw):
    rows, classes = draw(st.integers(0, 4)), draw(st.integers(1, 5))
    scores = np.random.default_rng(draw(_SEEDS)).integers(0, 4, (rows, classes)) / 2
    targets = np.random.default_rng(draw(_SEEDS)).integers(-1, classes + 1, rows)
    return {"predictions": wrong_ranks(draw, scores), "targets": targets, "k": draw(st.integers(0, 6))}


@st.composite
def compared(draw, kind):
    shape = tuple(sizes(draw, draw(st.integers(1, 3)), 4))
    axis = draw(st.integers(-2, len(shape)))
    logits = draw(st.booleans())
    output = values(draw, shape, -5, 5) if logits else values(draw, shape, 0.01, 0.99)
    chosen = {"output": output, "from_logits": logits}
    if kind == "binary":
        return chosen | {"target": values(draw, seldom(draw, shape, (7, 9)), 0, 1)}
    if kind == "dense":
        return chosen | {"target": values(draw, seldom(draw, shape, (*shape, 2)), 0, 1), "axis": axis}
    at = axis % len(shape) if -1 <= axis < len(shape) else 0
    classes = shape[at]
    others = [n for a, n in enumerate(shape) if a != at]
    target = np.random.default_rng(draw(_SEEDS)).integers(-1, classes + 1, seldom(draw, others, [*others, 5]))
    return chosen | {"target": target, "axis": axis}


# ---------------------------------------------------------------------------------------------- CTC
@st.composite
def spoken(draw):
    samples, time, classes = draw(st.integers(1, 3)), draw(st.integers(1, 4)), draw(st.integers(1, 3))
    p = values(draw, (samples, time, classes), 0.01, 1)
    lengths = np.array([seldom(draw, draw(st.integers(0, time)), time + 1) for _ in range(samples)])
    return p / p.sum(-1, keepdims=True), lengths


@st.composite
def labelled(draw):
    p, lengths = draw(spoken())
    samples, most = len(p), draw(st.integers(0, 2))
    labels = np.random.default_rng(draw(_SEEDS)).integers(0, max(p.shape[2] - 1, 1), (samples, most))
    counts = np.array([draw(st.integers(0, most)) for _ in range(samples)])
    chosen = {"y_true": labels.astype("int32"), "y_pred": p}
    return chosen | {"input_length": lengths[:, None], "label_length": counts[:, None]}


@st.composite
def decoded(draw):
    p, lengths = draw(spoken())
    if draw(st.booleans()):
        return {"y_pred": p, "input_length": lengths, "greedy": True}
    width = p.shape[2] ** p.shape[1]
    return {
        "y_pred": p, "input_length": np.maximum(lengths, 1), "greedy": False, "beam_width": width,
        "top_paths": seldom(draw, 1, width + 1), "merge_repeated": draw(st.booleans()),
    }  # fmt: skip


# ---------------------------------------------------------------------------------------------- loops, choices
def step(x, states, count):
    """For tensors and arrays: a step with `count` states, and constants behind them."""
    total = x * 0.5
    for s in states:
        total = total + s * x
    return total, [s * 0.5 + x for s in states[:count]]


@st.composite
def recurred(draw):
    samples, time = draw(st.integers(1, 3)), draw(st.integers(1, 4))
    rest = tuple(sizes(draw, draw(st.integers(1, 2)), 2))
    states = [values(draw, (samples, *rest)) for _ in range(draw(st.integers(0, 2)))]
    mask = draw(st.sampled_from([None, (samples, time), (samples, time, 1), (samples, time, 2)]))
    if mask is not None:
        mask = np.random.default_rng(draw(_SEEDS)).integers(0, 2, mask)
    unroll, x = draw(st.booleans()), values(draw, (samples, time, *rest))
    return {
        "inputs": x if unroll else wrong_ranks(draw, x),  # steps that are built one by one may change the states' ranks
        "initial_states": states, "mask": mask, "go_backwards": draw(st.booleans()), "unroll": unroll,
        "constants": draw(st.booleans()),
    }  # fmt: skip


@st.composite
def mapped(draw):
    elems = values(draw, tuple(sizes(draw, draw(st.integers(0, 3)), 3, 0)))
    return {"elems": elems}


@st.composite
def folded(draw):
    elems = values(draw, tuple(sizes(draw, draw(st.integers(0, 3)), 3, 0)))
    start = draw(st.sampled_from([None, elems.shape[1:], (*elems.shape[1:], 2)]))
    return {"elems": elems, "initializer": None if start is None else values(draw, start)}


@st.composite
def chosen_between(draw):
    shape = tuple(sizes(draw, draw(st.integers(0, 3)), 3))
    test = seldom(draw, shape[: draw(st.integers(0, len(shape)))], (*shape, 2))
    condition = np.random.default_rng(draw(_SEEDS)).integers(0, 2, test)
    other = seldom(draw, shape, (*shape, 7))
    return {"condition": condition, "then_expression": values(draw, shape), "else_expression": values(draw, other)}


# ---------------------------------------------------------------------------------------------- the functions
def call_rnn(inputs, initial_states, mask, go_backwards, unroll, constants):
    extra = [K.constant(2.0)] if constants else None
    cell = partial(step, count=len(initial_states))
    last, outputs, states = K.rnn(cell, inputs, initial_states, go_backwards, mask, extra, unroll)
    return [last, outputs, *states]


def call_ctc_decode(**arguments):
    paths, scores = K.ctc_decode(**arguments)
    return [*paths, scores]


def add(a, b):
    return a * 0.5 + b


CASES = {
    "conv1d": (convolved(1, ("valid", "same", "causal")), K.conv1d, ref.conv),
    "conv2d": (convolved(2), K.conv2d, ref.conv),
    "conv3d": (convolved(3), K.conv3d, ref.conv),
    "conv2d_transpose": (transposed(2), K.conv2d_transpose, ref.conv_transpose),
    "conv3d_transpose": (transposed(3, dilated=False), K.conv3d_transpose, ref.conv_transpose),
    "depthwise_conv2d": (separated(2, pointwise=False), K.depthwise_conv2d, ref.separable),
    "separable_conv1d": (separated(1), K.separable_conv1d, ref.separable),
    "separable_conv2d": (separated(2), K.separable_conv2d, ref.separable),
    "local_conv1d": (locally_convolved(1), K.local_conv1d, ref.local_conv),
    "local_conv2d": (locally_convolved(2), K.local_conv2d, ref.local_conv),
    "pool2d": (pooled(2), K.pool2d, partial(ref.pool, 2)),
    "pool3d": (pooled(3), K.pool3d, partial(ref.pool, 3)),
    "resize_images": (resized(2), K.resize_images, ref.resize),
    "resize_volumes": (resized(3), K.resize_volumes, ref.resize),
    "spatial_2d_padding": (surrounded(2), K.spatial_2d_padding, ref.spatial_padding),
    "spatial_3d_padding": (surrounded(3), K.spatial_3d_padding, ref.spatial_padding),
    "batch_normalization": (normalized(), K.batch_normalization, ref.batch_normalization),
    "normalize_batch_in_training": (normalized_alone(), K.normalize_batch_in_training, ref.normalize_batch),
    "batch_dot": (batches(), K.batch_dot, ref.batch_dot),
    "in_top_k": (ranked(), K.in_top_k, ref.in_top_k),
    "categorical_crossentropy": (compared("dense"), K.categorical_crossentropy, ref.categorical_crossentropy),
    "sparse_categorical_crossentropy": (compared("sparse"), K.sparse_categorical_crossentropy, ref.sparse_crossentropy),
    "binary_crossentropy": (compared("binary"), K.binary_crossentropy, ref.binary_crossentropy),
    "ctc_batch_cost": (labelled(), K.ctc_batch_cost, ref.ctc_batch_cost),
    "ctc_decode": (decoded(), call_ctc_decode, ref.ctc_decode),
    "rnn": (recurred(), call_rnn, lambda **a: ref.rnn(step, **a)),
    "map_fn": (mapped(), lambda elems: K.map_fn(lambda x: K.sum(x) * x, elems), ref.map_fn),
    "foldl": (folded(), lambda **a: K.foldl(add, **a), lambda **a: ref.fold(add, **a)),
    "foldr": (folded(), lambda **a: K.foldr(add, **a), lambda **a: ref.fold(add, **a, reverse=True)),
    "switch": (chosen_between(), K.switch, ref.switch),
}


def listed(result):
    return list(result) if isinstance(result, (list, tuple)) else [result]


def with_arrays(arguments, replace):
    """The arguments with every array replaced, also those in lists."""

    def new(value):
        if isinstance(value, list):
            return [new(v) for v in value]
        return replace(value) if isinstance(value, np.ndarray) else value

    return {name: new(value) for name, value in arguments.items()}


def compiled(function, arguments):
    """What a native function gives for inputs of which the graph knows ranks and dtypes only."""
    inputs, feeds = [], []

    def placeholder(array):
        inputs.append(K.placeholder(ndim=array.ndim, dtype=array.dtype.name))
        feeds.append(array)
        return inputs[-1]

    outputs = listed(function(**with_arrays(arguments, placeholder)))
    with graphkb.options(mode="auto"):
        return K.function(inputs, outputs)(feeds)


@pytest.mark.parametrize("name", CASES)
def test_values_are_numpys(name):
    strategy, function, reference = CASES[name]
    fits = 0

    @RANDOM
    @given(strategy)
    def compare(arguments):
        nonlocal fits
        symbolic = with_arrays(arguments, lambda a: K.constant(a, a.dtype.name))
        try:
            expected = [np.asarray(e) for e in listed(reference(**arguments))]
        except UnfitError:
            with pytest.raises(CLEAR) as caught:
                list(map(K.eval, listed(function(**symbolic))))
            assert str(caught.value).startswith((f"{name}:", "Rank of `condition`")), caught.value
            return
        tensors = listed(function(**symbolic))
        found = [K.eval(t) for t in tensors]
        assert len(found) == len(expected)
        for value, tensor, right in zip(found, tensors, expected):
            assert value.shape == right.shape
            assert value.dtype == tensor.dtype
            np.testing.assert_allclose(value, right, rtol=1e-9, atol=1e-9)
        fits += 1
        if fits > COMPILED or arguments.get("unroll"):
            return
        for value, right in zip(compiled(function, arguments), expected):
            np.testing.assert_allclose(value, right, rtol=1e-9, atol=1e-9)

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        compare()
    # The examples depend on which modules are loaded, so that more is not certain.
    assert fits >= 1


# ---------------------------------------------------------------------------------------------- draws
DRAWS = {
    "random_uniform": ({"minval": -1.0, "maxval": 3.0}, lambda a: (a >= -1) & (a < 3)),
    "random_normal": ({"mean": 2.0, "stddev": 0.5}, np.isfinite),
    "truncated_normal": ({"mean": 2.0, "stddev": 0.5}, lambda a: np.abs(a - 2) <= 1),
    "random_binomial": ({"p": 0.4}, lambda a: (a == 0) | (a == 1)),
}


@pytest.mark.parametrize("name", DRAWS)
def test_draws(name):
    more, holds = DRAWS[name]
    function = getattr(K, name)
    count = 0

    @RANDOM
    @given(st.lists(st.integers(-1, 4), max_size=3), st.sampled_from(["float16", "float32", "float64"]), _SEEDS)
    def throw(shape, dtype, seed):
        nonlocal count
        if any(n < 0 for n in shape):
            with pytest.raises(ValueError, match=f"^{name}: .*negative"):
                function(shape, dtype=dtype, seed=seed, **more)
            return
        found = K.eval(function(shape, dtype=dtype, seed=seed, **more))
        assert (found.shape, found.dtype) == (tuple(shape), dtype)
        assert holds(found).all()
        again = function(shape, dtype=dtype, seed=seed, **more)
        count += 1
        value = K.function([], [again])([])[0] if count <= COMPILED else K.eval(again)
        np.testing.assert_array_equal(value, found)

    throw()


def test_dropout():
    @RANDOM
    @given(st.lists(st.integers(0, 4), max_size=3), st.floats(-0.2, 1.2), st.data(), _SEEDS)
    def throw(shape, level, data, seed):
        x = np.random.default_rng(seed).uniform(1, 2, shape)
        noise = None if data.draw(st.booleans()) else [data.draw(st.sampled_from([n, 1, n + 1])) for n in shape]
        if not 0 <= level < 1 or (noise and any(m not in (1, n) for m, n in zip(noise, shape))):
            with pytest.raises(ValueError, match="dropout"):
                K.eval(K.dropout(K.constant(x), level, noise, seed))
            return
        found = K.eval(K.dropout(K.constant(x), level, noise, seed))
        kept = found != 0
        np.testing.assert_allclose(found, np.where(kept, x / (1 - level), 0))
        for axis, n in enumerate(noise or ()):
            if n == 1 and shape[axis]:
                assert (kept == kept.take([0], axis)).all()

    throw()


# ---------------------------------------------------------------------------------------------- state
def test_updates():
    @RANDOM
    @given(st.lists(st.integers(0, 3), max_size=2), st.floats(0, 1), _SEEDS)
    def throw(shape, momentum, seed):
        rng = np.random.default_rng(seed)
        start, value = rng.normal(size=shape), rng.normal(size=shape)
        for make, expected in (
            (lambda x: K.update(x, value), value),
            (lambda x: K.update_add(x, value), start + value),
            (lambda x: K.update_sub(x, value), start - value),
            (lambda x: K.moving_average_update(x, value, momentum), start * momentum + value * (1 - momentum)),
        ):
            x = K.variable(start)
            K.eval(make(x))
            np.testing.assert_allclose(K.get_value(x), expected, rtol=1e-12, atol=1e-12)

    throw()
