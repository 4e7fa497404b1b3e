"""Exact texts of the errors of element-wise functions, reductions, losses, normalization, loops and state."""

import re

import pytest

from graphkb import backend as K
from graphkb.ir.errors import DTypeError, ShapeError


def p(*shape):
    return K.placeholder(shape)


CASES = [
    (
        lambda: K.abs(K.placeholder((2,), dtype="bool")),
        DTypeError,
        "abs: bool is not allowed, expected numbers; use K.cast",
    ),
    (lambda: K.exp("text"), DTypeError, "exp: expected a tensor or numbers, not 'text'"),
    (lambda: K.exp(None), DTypeError, "exp: expected a tensor or numbers, not None"),
    (lambda: K.exp([1, "a"]), DTypeError, "exp: expected a tensor or numbers, not [1, 'a']"),
    (
        lambda: K.maximum(p(2, 3), p(4)),
        ShapeError,
        "maximum: shapes (2, 3) and (4,) do not broadcast: axis 1 has 3 and 4",
    ),
    (
        lambda: K.equal(p(2, 3), p(2, 2)),
        ShapeError,
        "equal: shapes (2, 3) and (2, 2) do not broadcast: axis 1 has 3 and 2",
    ),
    (lambda: K.pow(p(2), "a"), DTypeError, "pow: expected a tensor or numbers, not 'a'"),
    (
        lambda: K.clip(p(2, 3), p(4), 1),
        ShapeError,
        "clip: shapes (2, 3) and (4,) do not broadcast: axis 1 has 3 and 4",
    ),
    (lambda: K.clip(p(2), "low", 1), DTypeError, "clip: expected a tensor or numbers, not 'low'"),
    (lambda: K.sum(p(2, 3), axis=2), ShapeError, "sum: axis 2 is out of range for a tensor of rank 2"),
    (lambda: K.sum(p(2, 3), axis=(0, 0)), ShapeError, "sum: an axis stands twice in (0, 0)"),
    (lambda: K.sum(p(2, 3), axis="rows"), TypeError, "sum: expected an int as an axis, not 'rows'"),
    (lambda: K.sum(p(2, 3), axis=1.0), TypeError, "sum: expected an int as an axis, not 1.0"),
    (lambda: K.max(p(2, 0)), ShapeError, "max: there is no max of zero elements: axes (0, 1) of (2, 0)"),
    (lambda: K.mean([[1], [2, 3]]), ShapeError, "mean: expected nested lists of equal lengths, not [[1], [2, 3]]"),
    (lambda: K.argmax(p(2, 3), axis=5), ShapeError, "argmax: axis 5 is out of range for a tensor of rank 2"),
    (lambda: K.argmax(p(0, 3), axis=0), ShapeError, "argmax: there is no argmax of zero elements: axis 0 of (0, 3)"),
    (lambda: K.cumsum(p(), 0), ShapeError, "cumsum: axis 0 is out of range for a tensor of rank 0"),
    (lambda: K.logsumexp(p(2, 3), axis=[0, 3]), ShapeError, "logsumexp: axis 3 is out of range for a tensor of rank 2"),
    (
        lambda: K.std(p(2, 3), keepdims=p()),
        TypeError,
        (
            "std: <Tensor 'placeholder_0': float32 ()> has no truth value: it is symbolic and known only when a"
            " function runs; use K.switch to choose between tensors, or K.eval for a value that needs no inputs"
        ),
    ),
    (
        lambda: K.relu(K.placeholder((2,), dtype="bool")),
        DTypeError,
        "relu: bool is not allowed, expected numbers; use K.cast",
    ),
    (lambda: K.relu(p(2), alpha="a"), DTypeError, "relu: expected a tensor or numbers as alpha, not 'a'"),
    (lambda: K.elu(p(2), alpha=None), DTypeError, "elu: expected a tensor or numbers as alpha, not None"),
    (lambda: K.softmax(p(2, 3), axis=2), ShapeError, "softmax: axis 2 is out of range for a tensor of rank 2"),
    (lambda: K.softmax(p()), ShapeError, "softmax: axis -1 is out of range for a tensor of rank 0"),
    (
        lambda: K.l2_normalize(p(2, 3), axis=3),
        ShapeError,
        "l2_normalize: axis 3 is out of range for a tensor of rank 2",
    ),
    (
        lambda: K.batch_normalization(p(2, 3), p(4), p(4), None, None),
        ShapeError,
        "batch_normalization: shapes (2, 3) and (4,) do not broadcast: axis 1 has 3 and 4",
    ),
    (
        lambda: K.batch_normalization(p(2, 3), p(3), p(3), None, None, axis=2),
        ShapeError,
        "batch_normalization: axis 2 is out of range for a tensor of rank 2",
    ),
    (
        lambda: K.batch_normalization(p(2, 3), p(3), p(3), None, None, epsilon=None),
        DTypeError,
        "batch_normalization: expected a tensor or numbers, not None",
    ),
    (
        lambda: K.batch_normalization(p(2, 1), p(1), p(1), p(3), None),
        ShapeError,
        "batch_normalization: expected mean, variance, beta and gamma that broadcast to the shape (2, 1), "
        "not one of shape (3,)",
    ),
    (
        lambda: K.normalize_batch_in_training(p(2, 3), p(4), None, [0]),
        ShapeError,
        "normalize_batch_in_training: expected gamma of shape (3,), not one of shape (4,)",
    ),
    (
        lambda: K.in_top_k(p(2, 3), K.placeholder((2,), dtype="int32"), 1.5),
        DTypeError,
        "in_top_k: expected an integer or a scalar integer tensor as k, not 1.5",
    ),
    (
        lambda: K.in_top_k(p(3), K.placeholder((2,), dtype="int32"), 1),
        ShapeError,
        "in_top_k: expected predictions of rank 2 and targets of rank 1, not shapes (3,) and (2,)",
    ),
    (
        lambda: K.in_top_k(p(2, 3), p(2), 1),
        DTypeError,
        "in_top_k: the targets must be integers, not float32; use K.cast",
    ),
    (
        lambda: K.categorical_crossentropy(p(2, 3), p(2, 3), axis=3),
        ShapeError,
        "categorical_crossentropy: axis 3 is out of range for a tensor of rank 2",
    ),
    (
        lambda: K.categorical_crossentropy(p(2, 3), p(3)),
        ShapeError,
        "categorical_crossentropy: the target of shape (2, 3) and the output of shape (3,) differ in rank",
    ),
    (
        lambda: K.categorical_crossentropy(p(2, 3), p(2, 4)),
        ShapeError,
        "categorical_crossentropy: shapes (2, 3) and (2, 4) do not broadcast: axis 1 has 3 and 4",
    ),
    (
        lambda: K.sparse_categorical_crossentropy(p(3), p(2, 4)),
        ShapeError,
        "sparse_categorical_crossentropy: expected a target of shape (2,), not one of shape (3,)",
    ),
    (
        lambda: K.binary_crossentropy(p(2, 3), p(2, 4)),
        ShapeError,
        "binary_crossentropy: shapes (2, 3) and (2, 4) do not broadcast: axis 1 has 3 and 4",
    ),
    (lambda: K.dropout(p(2, 3), 1.0), ValueError, "dropout: expected a level from 0 up to but without 1, not 1.0"),
    (
        lambda: K.dropout(p(2, 3), 0.5, (3, 3)),
        ShapeError,
        "dropout: the noise shape (3, 3) does not broadcast to (2, 3)",
    ),
    (lambda: K.random_normal((2,), stddev=-1), ValueError, "random_normal: expected a stddev of 0 or more, not -1"),
    (lambda: K.random_normal((2,), dtype="int32"), DTypeError, "random_normal: expected a float dtype, not int32"),
    (lambda: K.random_uniform((2,), 1.0, 0.0), ValueError, "random_uniform: minval 1.0 is above maxval 0.0"),
    (
        lambda: K.random_uniform((2,), seed="a"),
        TypeError,
        "random_uniform: expected an integer or None as the seed, not 'a'",
    ),
    (
        lambda: K.random_binomial((2,), 1.5),
        ValueError,
        "random_binomial: expected a probability between 0 and 1, not 1.5",
    ),
    (lambda: K.set_learning_phase(2), ValueError, "set_learning_phase: expected 0 or 1, not 2"),
    (
        lambda: K.switch(p(2, 3), p(2), p(2)),
        ValueError,
        (
            "switch: Rank of `condition` should be less than or equal to rank of `then_expression` and "
            "`else_expression`. ndim(condition)=2, ndim(then_expression)=1"
        ),
    ),
    (
        lambda: K.switch(p(), p(2), p(3)),
        ShapeError,
        "switch: under a scalar condition both expressions must have one shape, not (2,) and (3,)",
    ),
    (
        lambda: K.switch(p(2), p(2, 3), p(2, 4)),
        ShapeError,
        "switch: shapes (2, 1) and (2, 3) and (2, 4) do not broadcast: axis 1 has 3 and 4",
    ),
    (
        lambda: K.rnn(lambda x, s: (x, []), p(2, 3), []),
        ValueError,
        "rnn: expected inputs of rank 3 or more, (samples, time, ...), not of shape (2, 3)",
    ),
    (
        lambda: K.rnn(lambda x, s: (x, []), p(2, 3, 4), [p(2)]),
        ValueError,
        "rnn: the step function gave 0 new states for 1 states",
    ),
    (
        lambda: K.rnn(lambda x, s: (x, []), K.placeholder((2, None, 4)), [], unroll=True),
        ValueError,
        "rnn: unrolling requires a fixed number of time steps: give the inputs a known length",
    ),
    (lambda: K.rnn(None, p(2, 3, 4), []), TypeError, "rnn: expected a function, not NoneType"),
    (lambda: K.map_fn(lambda x: x, p()), ShapeError, "map_fn: expected elements along a first axis, not a scalar"),
    (
        lambda: K.foldl(lambda a, b: p(7), p(2, 3)),
        ShapeError,
        "foldl: state 0 is float32[3] before a step and float32[7] after it: it must stay the same",
    ),
    (lambda: K.foldr("f", p(2, 3)), TypeError, "foldr: expected a function, not str"),
    (lambda: K.gradients(1.0, [p(2)]), TypeError, "gradients: expected tensors, not 1.0"),
    (lambda: K.gradients(p(2), [3]), TypeError, "gradients: expected tensors, not 3"),
    (lambda: K.function(p(2), []), TypeError, "function: expected a list of inputs, not Tensor"),
    (lambda: K.function([3], [p(2)]), TypeError, "function: expected a tensor as an input, not an instance of int"),
    (
        lambda: K.function([], [p(2)], wrong=1),
        ValueError,
        "function: unknown argument 'wrong'; expected inputs, outputs, updates, name",
    ),
    (
        lambda: K.function([], K.constant(1), updates=[3]),
        TypeError,
        "function: expected K.update(…) or (variable, new value) as an update, not int",
    ),
    (lambda: K.set_value(K.constant(1), 2), TypeError, "set_value: expected a variable, not an instance of Tensor"),
    (
        lambda: K.set_value(K.variable([1, 2], name="v"), [1, 2, 3]),
        ShapeError,
        "set_value: v:0 has the shape (2,), the value (3,)",
    ),
    (
        lambda: K.set_value(K.variable([1, 2], name="v"), "text"),
        DTypeError,
        "set_value: expected a tensor or numbers, not 'text'",
    ),
    (
        lambda: K.batch_set_value([K.variable(1)]),
        TypeError,
        "batch_set_value: expected pairs of a variable and its value, not an instance of Variable",
    ),
    (lambda: K.get_value(3), TypeError, "get_value: expected a variable, not 3"),
    (lambda: K.update(K.constant(1), 2), TypeError, "update: expected a variable to update, not an instance of Tensor"),
    (
        lambda: K.update(K.variable([1, 2], name="v"), p(3)),
        ShapeError,
        "update: v:0 has the shape (2,), the new value (3,)",
    ),
    (
        lambda: K.update_add(K.variable(1, "int32", name="v"), 0.5),
        DTypeError,
        "update_add: v:0 is int32, the new value is float32; use K.cast",
    ),
    (
        lambda: K.update_sub(K.variable(1, name="v"), None),
        DTypeError,
        "update_sub: expected a tensor or numbers as the decrement, not None",
    ),
    (
        lambda: K.moving_average_update(K.variable([1, 2], name="v"), p(3), 0.5),
        ShapeError,
        "moving_average_update: shapes (2,) and (3,) do not broadcast: axis 0 has 2 and 3",
    ),
    (lambda: K.set_floatx("float8"), ValueError, "set_floatx: expected one of float16, float32, float64, not 'float8'"),
    (lambda: K.set_epsilon(None), TypeError, "set_epsilon: expected a number, not None"),
    (
        lambda: K.set_image_data_format("first"),
        ValueError,
        "set_image_data_format: expected 'channels_first' or 'channels_last', not 'first'",
    ),
    (
        lambda: K.set_image_dim_ordering("tensorflow"),
        ValueError,
        "set_image_dim_ordering: expected 'tf' or 'th', not 'tensorflow'",
    ),
    (lambda: K.cast_to_floatx(["a"]), DTypeError, "cast_to_floatx: expected a tensor or numbers, not ['a']"),
    (
        lambda: K.ctc_batch_cost(p(2, 3), p(2, 5), K.constant([[5], [5]]), K.constant([[1], [1]])),
        ShapeError,
        "ctc_batch_cost: expected y_pred of shape (samples, time, classes), not (2, 5)",
    ),
    (
        lambda: K.ctc_decode(p(2, 5, 4), K.constant([5, 5]), greedy=False, beam_width=1, top_paths=2),
        ValueError,
        "ctc_decode: expected 1 <= top_paths <= beam_width, not 2 and 1",
    ),
]


@pytest.mark.parametrize(("call", "kind", "text"), CASES, ids=[text for _, _, text in CASES])
def test_error(call, kind, text):
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    assert re.sub(r"placeholder_\d+", "placeholder_0", str(caught.value).split("\n")[0]) == text
