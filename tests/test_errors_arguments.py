"""Whatever a K function is given in the place of a good argument: an answer, or an error that says what is wrong."""

import inspect
import pickle

import numpy as np
import pytest
from k_arguments import FUNCTIONS, GOOD, ODD, RAISING, REFUSED, WITHOUT, kind, refused

from graphkb import backend as K
from graphkb.ir.errors import CheckError, UnsupportedError, shown
from graphkb.ir.op import is_op

# What Python and NumPy say of arguments that nobody checked.
UNCHECKED = (
    "object is not",
    "has no len",
    "has no attribute",
    "unsupported operand",
    "not supported between",
    "can't multiply",
    "could not convert",
    "invalid literal",
    "inhomogeneous",
    "unpack",
)
PARAMETERS = [(name, p) for name in GOOD for p in inspect.signature(getattr(K, name)).parameters if p != "kwargs"]


@pytest.fixture(autouse=True)
def _fresh_learning_phase():
    yield
    K.clear_session()


def test_the_table_knows_every_function():
    assert sorted({*GOOD, *WITHOUT, *RAISING}) == sorted(FUNCTIONS)
    missing = [
        name
        for name, make in GOOD.items()
        if set(make()) != set(inspect.signature(getattr(K, name)).parameters) - {"kwargs"}
    ]
    assert missing == []


@pytest.mark.parametrize("name", GOOD)
def test_good_arguments(name):
    getattr(K, name)(**GOOD[name]())


@pytest.mark.parametrize(("name", "parameter"), PARAMETERS)
def test_bad_arguments(name, parameter):
    for bad in refused(name, parameter):
        arguments = {**GOOD[name](), parameter: bad}
        with pytest.raises((ValueError, TypeError)) as caught:
            getattr(K, name)(**arguments)
        text = str(caught.value)
        assert text.startswith(f"{name}: "), text
        second = text.split(": ")[1]
        assert second not in FUNCTIONS, text
        assert not is_op(second), text
        assert not any(phrase in text for phrase in UNCHECKED), text
        assert _tells(text, bad), (text, bad)


def _tells(text, bad):
    """Whether a text says what came: the value, one of its parts, its type, or its dtype."""
    if isinstance(bad, np.ndarray):
        return str(bad.dtype) in text or shown(bad) in text
    parts = [bad, *(bad if isinstance(bad, (list, tuple)) else ())]
    return any(repr(part) in text or type(part).__name__ in text for part in parts) or "empty" in text


@pytest.mark.parametrize("name", [n for n in FUNCTIONS if n not in RAISING])
def test_too_many_too_few_and_unknown_arguments(name):
    function = getattr(K, name)
    parameters = inspect.signature(function).parameters.values()
    with pytest.raises(TypeError, match=rf"^{name}\(\) takes .* positional arguments? but"):
        function(*[1] * (len(parameters) + 1))
    if any(p.default is p.empty for p in parameters):
        with pytest.raises(TypeError, match=rf"^{name}\(\) missing"):
            function()
    if name != "function":  # it names the argument itself
        with pytest.raises(TypeError, match=rf"^{name}\(\) got an unexpected keyword argument 'nonsense'$"):
            function(**(GOOD[name]() if name in GOOD else {}), nonsense=1)


@pytest.mark.parametrize("name", [n for n, p in PARAMETERS if kind(n, p) == "tensor"])
def test_tensors_in_other_places_have_no_truth_value(name):
    # A tensor where a flag belongs can not be decided on when the graph is built.
    flags = [p for n, p in PARAMETERS if n == name and kind(n, p) == "flag"]
    for flag in flags:
        with pytest.raises(TypeError, match=rf"^{name}: .*has no truth value"):
            getattr(K, name)(**{**GOOD[name](), flag: K.variable(1)})


def test_every_kind_is_used():
    used = {kind(name, parameter) for name, parameter in PARAMETERS}
    assert used == set(REFUSED)


def test_wrappers_look_like_the_functions():
    assert pickle.loads(pickle.dumps(K.conv2d)) is K.conv2d
    assert str(inspect.signature(K.softmax)) == "(x: 'Any', axis: 'int' = -1) -> 'Tensor'"
    assert K.softmax.__doc__ == inspect.unwrap(K.softmax).__doc__
    for name in FUNCTIONS:
        function = getattr(K, name)
        assert inspect.getfullargspec(function) == inspect.getfullargspec(inspect.unwrap(function))


def test_errors_of_the_users_functions_stay_what_they_are():
    def fail(*arguments):
        raise ValueError("my own")

    x = K.placeholder((2, 3, 4))
    for call in (
        lambda: K.map_fn(fail, x),
        lambda: K.foldl(fail, x),
        lambda: K.rnn(fail, x, []),
        lambda: K.switch(K.placeholder(()), fail, x),
    ):
        with pytest.raises(ValueError, match=r"^my own$"):
            call()
    with pytest.raises(ValueError, match=r"^dot: shapes \(3, 4\) and \(5, 6\) do not fit"):
        K.map_fn(lambda a: K.dot(a, K.ones((5, 6))), x)


def test_what_keras_asserts_is_both():
    for call, kind_of_error in (
        (lambda: K.repeat(K.placeholder((2,)), 2), AssertionError),
        (lambda: K.temporal_padding(K.placeholder((2, 3, 4)), (1, 2, 3)), AssertionError),
        (lambda: K.tile(K.placeholder((2,)), (2, 2)), NotImplementedError),
    ):
        with pytest.raises(kind_of_error):
            call()
        with pytest.raises((CheckError, UnsupportedError)):
            call()


def test_values_in_errors():
    assert shown(None) == "None"
    assert shown([1, (2,)]) == "[1, (2,)]"
    assert shown("a" * 100) == "'aaaaaaaaaaaa...aaaaaaaaaaaaa'"
    assert shown(np.zeros((2, 3))) == "an array of dtype float64 and shape (2, 3)"
    assert shown(ODD) == "an instance of Odd"
    assert shown(np.float32(1)) == "an instance of float32"
