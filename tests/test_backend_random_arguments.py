"""Random arguments thrown at every K function: what NumPy gives, or a clear error; nothing else."""

import contextlib
import inspect
import warnings

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from k_arguments import FUNCTIONS, GOOD, ODD
from k_references import BINARY, REDUCTIONS, REFERENCES, UNARY

import graphkb
from graphkb import backend as K
from graphkb.ir.dims import is_static
from graphkb.ir.graph import toposort
from graphkb.ops.leaf import PLACEHOLDER

RANDOM = settings(
    max_examples=25,
    derandomize=True,
    deadline=None,
    database=None,
    suppress_health_check=list(HealthCheck),
)
CLEAR = (ValueError, TypeError)
# They change what all later calls see, or always raise.
LEFT_OUT = {"clear_session", "get_session", "set_session", "reset_uids"}


# ------------------------------------------------------------------------------------------ any argument
def _shapes(most=5):
    return st.lists(st.integers(0, 3), max_size=most).map(tuple)


@st.composite
def arrays(draw, most=4, dtypes=("float64",)):
    """An array of a random shape and dtype with small values, whole and broken, negative and zero."""
    shape, dtype = draw(_shapes(most)), draw(st.sampled_from(dtypes))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    return np.asarray(rng.integers(-6, 7, shape) / 2).astype(dtype)


DTYPES = ("float16", "float32", "float64", "int8", "int64", "uint16", "bool")
_numbers = st.sampled_from([0, 1, 2, 3, -1, -2, 5, 7, 0.5, -1.5, 1e-3, 2**70, True, False, np.int8(1), np.float32(2)])
_words = st.sampled_from(
    ["valid", "same", "causal", "channels_last", "channels_first", "float16", "int32", "bool", "bilinear", "avg", ""]
)
_lists = st.lists(st.one_of(st.integers(-1, 4), st.just(0.5), st.none(), st.lists(st.integers(0, 2))), max_size=4)
_odd = st.sampled_from([None, ODD, object, np.array("x"), np.array([1j]), {}, b"x", range(2), len, float("nan")])
_tensors = st.one_of(
    arrays(5, DTYPES).map(lambda a: K.variable(a, a.dtype)),
    st.builds(lambda s, d: K.placeholder(s, dtype=d), _shapes(), st.sampled_from(DTYPES)),
    st.integers(0, 4).map(lambda n: K.placeholder(ndim=n)),
    _shapes(3).map(lambda s: K.shape(K.placeholder(s))),
)
ANYTHING = st.one_of(_numbers, _words, _lists, _lists.map(tuple), _odd, arrays(4, DTYPES), _tensors)


def _all_tensors(result):
    if isinstance(result, (list, tuple)):
        return [tensor for item in result for tensor in _all_tensors(item)]
    return [result] if K.is_tensor(result) else []


def run_with_zeros_and_ones(tensors):
    """The values of tensors whose placeholders are 1, their unknown sizes 2; each has the type that was inferred."""
    inputs = [K.Tensor(n) for n in toposort([t.node for t in tensors]) if n.op is PLACEHOLDER]
    feeds = [np.ones([2 if n is None else n for n in t.shape], t.dtype) for t in inputs]
    with graphkb.options(mode="interpret"):
        values = K.function(inputs, [K.Tensor(t.node) for t in tensors])(feeds)
    for tensor, value in zip(tensors, values):
        assert value.dtype == tensor.dtype
        assert value.ndim == len(tensor.shape)
        # What `trim` makes is narrower as an output: only the call knows by how much.
        known = tensor.node.shape if tensor.op.name != "trim" else tensor.node.shape[:1]
        assert not is_static(known) or value.shape[: len(known)] == known


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if n not in LEFT_OUT])
def test_anything(name):
    function = getattr(K, name)
    parameters = [p for p in inspect.signature(function).parameters if p != "kwargs"]

    def named(error):
        assert str(error).startswith((f"{name}:", f"{name}(")), error

    @RANDOM
    @given(st.dictionaries(st.sampled_from(parameters), ANYTHING, min_size=1, max_size=2))
    def throw(chosen):
        arguments = GOOD[name]() | chosen
        try:
            result = function(**arguments)
        except CLEAR as error:
            return named(error)
        with contextlib.suppress(*CLEAR):  # what only the values tell
            run_with_zeros_and_ones(_all_tensors(result))

    if not parameters:
        function()
        return
    kept = (K.floatx(), K.epsilon(), K.image_data_format())
    try:
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            throw()
    finally:
        K.set_floatx(kept[0])
        K.set_epsilon(kept[1])
        K.set_image_data_format(kept[2])
        K.clear_session()


# ------------------------------------------------------------------------------- arguments that may well fit
_AXIS = st.integers(-4, 3)
_AXES = st.one_of(st.none(), _AXIS, st.lists(_AXIS, max_size=3), st.lists(_AXIS, max_size=3).map(tuple))
_SIZES = st.lists(st.integers(-1, 4), max_size=4)
_COUNT = st.integers(0, 4)
_HALVES = st.integers(-6, 6).map(lambda n: n / 2)
_LAYOUT = st.sampled_from(["channels_last", "channels_first"])


@st.composite
def _alike(draw):
    """Arrays of which most could be joined."""
    shape = draw(_shapes(3))
    arrays_of = st.lists(st.sampled_from([shape] * 5 + [shape[::-1]]), min_size=1, max_size=3)
    return [np.arange(np.prod(s), dtype="float64").reshape(s) - 2 for s in draw(arrays_of)]


@st.composite
def _factors(draw):
    """Two arrays that often can be multiplied as matrices."""
    inner, other = draw(st.integers(0, 3)), draw(st.integers(0, 3))
    x = np.cos(np.arange(np.prod(s := (*draw(_shapes(2)), inner)))).reshape(s)
    y = np.sin(np.arange(np.prod(s := (*draw(_shapes(1)), inner, other)[draw(st.integers(0, 1)) :]))).reshape(s)
    return {"x": x, "y": y}


@st.composite
def _sliced(draw):
    x = draw(arrays(3))
    return {"x": x, "start": draw(_per_axis(x, 0, 2)), "size": draw(_per_axis(x, -1, 2))}


def _per_axis(x, least, most):
    return st.lists(st.integers(least, most), min_size=x.ndim, max_size=x.ndim)


@st.composite
def _reshaped(draw):
    x = draw(arrays(3))
    shape = draw(st.one_of(_SIZES, st.permutations(x.shape).map(list), st.just([-1]), st.just([x.size, 1])))
    return {"x": x, "shape": shape}


@st.composite
def _broadcasting(draw, names=("x", "y")):
    """Two arrays whose shapes often broadcast."""
    x = draw(arrays(3))
    cut = draw(st.integers(0, x.ndim))
    shape = tuple(draw(st.sampled_from([n, n, 1, 2])) for n in x.shape[cut:])
    y = np.asarray(np.random.default_rng(cut).integers(-3, 4, shape) / 2)
    return dict(zip(names, (x, y)))


@st.composite
def _biased(draw):
    x, layout = draw(arrays(4)), draw(_LAYOUT)
    channels = x.shape[1 if layout == "channels_first" else -1] if x.ndim > 1 else 1
    bias = draw(st.sampled_from([(channels,), (channels,), x.shape[1:], x.shape[2:] + x.shape[1:2], (2,)]))
    return {"x": x, "bias": np.arange(np.prod(bias), dtype="float64").reshape(bias), "data_format": layout}


def _ones(*sizes):
    return st.lists(st.sampled_from(sizes), max_size=3).map(np.ones)


def _rows():
    return _shapes(2).map(lambda s: np.cos(np.arange(3 * np.prod(s))).reshape(3, *s))


INDICES = arrays(2).map(lambda a: np.abs(a).astype("int32"))
ARGUMENTS = {
    "pow": st.fixed_dictionaries({"x": arrays(3), "a": st.integers(0, 3)}),
    "reverse": st.fixed_dictionaries({"x": arrays(3), "axes": _AXES.filter(lambda a: a is not None)}),
    "permute_dimensions": st.fixed_dictionaries({"x": arrays(3), "pattern": st.permutations(range(3))}),
    "reshape": _reshaped(),
    "repeat": st.fixed_dictionaries({"x": arrays(2), "n": _COUNT}),
    "repeat_elements": st.fixed_dictionaries({"x": arrays(3), "rep": _COUNT, "axis": _AXIS}),
    "tile": st.fixed_dictionaries({"x": arrays(3), "n": st.one_of(_COUNT, st.lists(_COUNT, max_size=3))}),
    "slice": _sliced(),
    "concatenate": st.fixed_dictionaries({"tensors": _alike(), "axis": st.integers(-2, 2)}),
    "squeeze": st.fixed_dictionaries({"x": _ones(1, 2), "axis": st.integers(-2, 2)}),
    "stack": st.fixed_dictionaries({"x": _alike(), "axis": _AXIS}),
    "temporal_padding": st.fixed_dictionaries({"x": arrays(3), "padding": st.tuples(_COUNT, _COUNT)}),
    "resize_images": st.fixed_dictionaries({
        "x": st.lists(st.integers(0, 3), min_size=4, max_size=4).map(np.ones), "height_factor": st.integers(1, 3),
        "width_factor": st.integers(1, 3), "data_format": _LAYOUT,
    }),
    "dot": _factors(),
    "clip": st.fixed_dictionaries({
        "x": arrays(), "min_value": st.one_of(st.none(), _HALVES), "max_value": st.one_of(st.none(), _HALVES)
    }),
    "relu": st.fixed_dictionaries({
        "x": arrays(), "alpha": _HALVES, "max_value": st.one_of(st.none(), st.integers(1, 3)), "threshold": _HALVES
    }),
    "elu": st.fixed_dictionaries({"x": arrays(), "alpha": _HALVES}),
    "l2_normalize": st.fixed_dictionaries({"x": arrays(), "axis": _AXES}),
    "bias_add": _biased(),
    "one_hot": st.fixed_dictionaries({"indices": INDICES, "num_classes": _COUNT}),
    "gather": st.fixed_dictionaries({"reference": _rows(), "indices": INDICES}),
    "eye": st.fixed_dictionaries({"size": _COUNT}),
    "arange": st.fixed_dictionaries({"start": st.integers(-4, 4), "stop": st.integers(-4, 8), "step": _AXIS}),
    "zeros": st.fixed_dictionaries({"shape": _SIZES}),
    "cast": st.fixed_dictionaries({"x": arrays(), "dtype": st.sampled_from(["int32", "bool", "float32", "int8"])}),
    **{name: st.fixed_dictionaries({"x": arrays(), "axis": _AXES, "keepdims": st.booleans()}) for name in REDUCTIONS},
    **{name: _broadcasting() for name in BINARY},
}  # fmt: skip


def _arguments(name):
    if name in ARGUMENTS:
        return ARGUMENTS[name]
    strategies = {"axis": _AXIS}
    parameters = inspect.signature(REFERENCES[name]).parameters if name not in UNARY else list(GOOD[name]())[:1]
    return st.fixed_dictionaries({p: strategies.get(p, arrays()) for p in parameters})


def _symbolic(value):
    """An argument with its arrays as tensors of their own dtype."""
    if isinstance(value, np.ndarray):
        return K.constant(value, value.dtype)
    if isinstance(value, list) and any(isinstance(v, np.ndarray) for v in value):
        return [_symbolic(v) for v in value]
    return value


@pytest.mark.parametrize("name", sorted(REFERENCES))
def test_values_are_numpys(name):
    answers = 0

    def reference(arguments):
        if name in UNARY or name in BINARY:  # NumPy's names of arguments are not Keras'
            return REFERENCES[name](*arguments.values())
        return REFERENCES[name](**arguments)

    @RANDOM
    @given(_arguments(name))
    def compare(arguments):
        nonlocal answers
        given_to_k = {k: _symbolic(v) for k, v in arguments.items()}
        try:
            expected = np.asarray(reference(arguments))
        except Exception:
            with pytest.raises(CLEAR):
                K.eval(getattr(K, name)(**given_to_k))
            return
        result = getattr(K, name)(**given_to_k)
        value = K.eval(result)
        assert value.shape == result.shape == expected.shape
        np.testing.assert_allclose(value, expected, rtol=1e-12, atol=1e-14)
        answers += 1

    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        compare()
    assert answers >= 1
