"""Good arguments for every K function, the kind of each parameter, and what no function may take for a kind."""

import inspect

import numpy as np

from graphkb import backend as K

FUNCTIONS = [name for name in K.__all__ if not inspect.isclass(getattr(K, name))]


def _x(*shape):
    return K.placeholder(shape or (2, 3))


def _elementwise():
    return {"x": _x()}


def _reduced():
    return {"x": _x(), "axis": 1, "keepdims": True}


def _positions():
    return {"x": _x(), "axis": 0}


def _two():
    return {"x": _x(), "y": _x()}


def _images(*kernel):
    return {"x": _x(2, 6, 6, 3), **({"kernel": _x(*kernel)} if kernel else {})}


def _layout(steps=(1, 1), **more):
    return {"strides": steps, "padding": "valid", "data_format": "channels_last", **more}


# One call that works, with every parameter given, for each function that has parameters.
GOOD = {
    "arange": lambda: {"start": 1, "stop": 7, "step": 2, "dtype": "int32"},
    "argmax": _positions,
    "argmin": _positions,
    "batch_dot": lambda: {"x": _x(2, 3, 4), "y": _x(2, 4, 5), "axes": (2, 1)},
    "batch_flatten": _elementwise,
    "batch_get_value": lambda: {"ops": [K.variable(1)]},
    "batch_normalization": lambda: {
        "x": _x(), "mean": _x(3), "var": _x(3), "beta": _x(3), "gamma": _x(3), "axis": -1, "epsilon": 1e-3
    },
    "batch_set_value": lambda: {"tuples": [(K.variable(1), 2)]},
    "bias_add": lambda: {"x": _x(), "bias": _x(3), "data_format": "channels_last"},
    "binary_crossentropy": lambda: {"target": _x(), "output": _x(), "from_logits": True},
    "cast": lambda: {"x": _x(), "dtype": "int32"},
    "cast_to_floatx": lambda: {"x": [1, 2]},
    "categorical_crossentropy": lambda: {"target": _x(), "output": _x(), "from_logits": True, "axis": 1},
    "clip": lambda: {"x": _x(), "min_value": 0, "max_value": 1},
    "concatenate": lambda: {"tensors": [_x(), _x()], "axis": 1},
    "constant": lambda: {"value": 1, "dtype": "int32", "shape": (2, 2), "name": "c"},
    "control_dependencies": lambda: {"control_inputs": K.update(K.variable(1), 2)},
    "conv1d": lambda: {"x": _x(2, 6, 3), "kernel": _x(2, 3, 4), **_layout(1, dilation_rate=1)},
    "conv2d": lambda: _images(2, 2, 3, 4) | _layout(dilation_rate=(1, 1)),
    "conv2d_transpose": lambda: _images(2, 2, 4, 3) | _layout(output_shape=(2, 7, 7, 4), dilation_rate=(1, 1)),
    "conv3d": lambda: {
        "x": _x(2, 4, 4, 4, 3), "kernel": _x(2, 2, 2, 3, 4), **_layout((1, 1, 1), dilation_rate=(1, 1, 1))
    },
    "conv3d_transpose": lambda: {
        "x": _x(2, 4, 4, 4, 3), "kernel": _x(2, 2, 2, 4, 3), **_layout((1, 1, 1), output_shape=(2, 5, 5, 5, 4))
    },
    "count_params": _elementwise,
    "ctc_batch_cost": lambda: {
        "y_true": K.placeholder((2, 2), dtype="int32"), "y_pred": _x(2, 5, 4),
        "input_length": K.placeholder((2, 1), dtype="int32"), "label_length": K.placeholder((2, 1), dtype="int32"),
    },
    "ctc_decode": lambda: {
        "y_pred": _x(2, 5, 4), "input_length": K.placeholder((2,), dtype="int32"), "greedy": False, "beam_width": 3,
        "top_paths": 1, "merge_repeated": False,
    },
    "ctc_label_dense_to_sparse": lambda: {
        "labels": K.placeholder((2, 3), dtype="int32"), "label_lengths": K.placeholder((2,), dtype="int32")
    },
    "cumprod": _positions,
    "cumsum": _positions,
    "depthwise_conv2d": lambda: _images() | {"depthwise_kernel": _x(2, 2, 3, 2), **_layout(dilation_rate=(1, 1))},
    "dot": lambda: {"x": _x(2, 3), "y": _x(3, 4)},
    "dropout": lambda: {"x": _x(), "level": 0.5, "noise_shape": (2, 1), "seed": 1},
    "dtype": _elementwise,
    "eager": lambda: {"func": len},
    "elu": lambda: {"x": _x(), "alpha": 0.5},
    "eval": lambda: {"x": K.constant(1)},
    "expand_dims": _positions,
    "eye": lambda: {"size": 3, "dtype": "int32", "name": "e"},
    "flatten": _elementwise,
    "foldl": lambda: {"fn": lambda a, b: a + b, "elems": _x(), "initializer": _x(3), "name": "f"},
    "foldr": lambda: {"fn": lambda a, b: a + b, "elems": _x(), "initializer": _x(3), "name": "f"},
    "function": lambda: {"inputs": [], "outputs": [K.constant(1)], "updates": [K.update(K.variable(1), 2)]},
    "gather": lambda: {"reference": _x(), "indices": K.placeholder((2,), dtype="int32")},
    "get_uid": lambda: {"prefix": "p"},
    "get_value": lambda: {"x": K.variable(1)},
    "get_variable_shape": _elementwise,
    "gradients": lambda: {"loss": K.sum(K.variable(1)), "variables": [K.variable(1)]},
    "identity": lambda: {"x": _x(), "name": "i"},
    "in_test_phase": lambda: {"x": _x(), "alt": _x(), "training": K.learning_phase()},
    "in_top_k": lambda: {"predictions": _x(2, 3), "targets": K.placeholder((2,), dtype="int32"), "k": 1},
    "in_train_phase": lambda: {"x": _x(), "alt": _x(), "training": K.learning_phase()},
    "int_shape": _elementwise,
    "is_keras_tensor": _elementwise,
    "is_placeholder": _elementwise,
    "is_sparse": lambda: {"tensor": _x()},
    "is_tensor": _elementwise,
    "is_variable": _elementwise,
    "l2_normalize": _positions,
    "local_conv1d": lambda: {
        "inputs": _x(2, 5, 3), "kernel": _x(4, 6, 2), "kernel_size": (2,), "strides": (1,),
        "data_format": "channels_last",
    },
    "local_conv2d": lambda: {
        "inputs": _x(2, 3, 3, 2), "kernel": _x(4, 8, 2), "kernel_size": (2, 2), "strides": (1, 1),
        "output_shape": (2, 2), "data_format": "channels_last",
    },
    "logsumexp": _reduced,
    "manual_variable_initialization": lambda: {"value": False},
    "map_fn": lambda: {"fn": lambda a: a, "elems": _x(), "name": "m", "dtype": "float32"},
    "maximum": _two,
    "minimum": _two,
    "moving_average_update": lambda: {"x": K.variable([1, 2]), "value": _x(2), "momentum": 0.5},
    "name_scope": lambda: {"name": "scope"},
    "ndim": _elementwise,
    "normalize_batch_in_training": lambda: {
        "x": _x(), "gamma": _x(3), "beta": _x(3), "reduction_axes": [0], "epsilon": 1e-3
    },
    "normalize_data_format": lambda: {"value": "channels_last"},
    "one_hot": lambda: {"indices": K.placeholder((2,), dtype="int32"), "num_classes": 3},
    "ones": lambda: {"shape": (2, 3), "dtype": "int32", "name": "o"},
    "ones_like": lambda: {"x": _x(), "dtype": "int32", "name": "o"},
    "permute_dimensions": lambda: {"x": _x(), "pattern": (1, 0)},
    "placeholder": lambda: {"shape": (2, None), "ndim": 2, "dtype": "int32", "sparse": False, "name": "p"},
    "pool2d": lambda: _images() | {"pool_size": (2, 2), **_layout(pool_mode="max")},
    "pool3d": lambda: {"x": _x(2, 4, 4, 4, 1), "pool_size": (2, 2, 2), **_layout((1, 1, 1), pool_mode="avg")},
    "pow": lambda: {"x": _x(), "a": 3},
    "random_binomial": lambda: {"shape": (2,), "p": 0.5, "dtype": "int32", "seed": 1},
    "random_normal": lambda: {"shape": (2,), "mean": 0.0, "stddev": 1.0, "dtype": "float32", "seed": 1},
    "random_normal_variable": lambda: {
        "shape": (2,), "mean": 0.0, "scale": 1.0, "dtype": "float32", "name": "r", "seed": 1
    },
    "random_uniform": lambda: {"shape": (2,), "minval": 0.0, "maxval": 1.0, "dtype": "float32", "seed": 1},
    "random_uniform_variable": lambda: {
        "shape": (2,), "low": 0.0, "high": 1.0, "dtype": "float32", "name": "r", "seed": 1
    },
    "relu": lambda: {"x": _x(), "alpha": 0.5, "max_value": 6, "threshold": 0.5},
    "repeat": lambda: {"x": _x(), "n": 2},
    "repeat_elements": lambda: {"x": _x(), "rep": 2, "axis": 0},
    "reshape": lambda: {"x": _x(), "shape": (3, 2)},
    "resize_images": lambda: _images() | {
        "height_factor": 2, "width_factor": 2, "data_format": "channels_last", "interpolation": "bilinear"
    },
    "resize_volumes": lambda: {
        "x": _x(1, 2, 2, 2, 1), "depth_factor": 2, "height_factor": 2, "width_factor": 1,
        "data_format": "channels_last",
    },
    "reverse": lambda: {"x": _x(), "axes": [0]},
    "rnn": lambda: {
        "step_function": lambda x, s: (x, s[:1]), "inputs": _x(2, 3, 4), "initial_states": [_x(2, 4)],
        "go_backwards": False, "mask": _x(2, 3), "constants": [_x(1)], "unroll": False, "input_length": 3,
    },
    "separable_conv1d": lambda: {
        "x": _x(2, 6, 3), "depthwise_kernel": _x(2, 3, 2), "pointwise_kernel": _x(1, 6, 4),
        **_layout(1, dilation_rate=1),
    },
    "separable_conv2d": lambda: _images() | {
        "depthwise_kernel": _x(2, 2, 3, 2), "pointwise_kernel": _x(1, 1, 6, 4), **_layout(dilation_rate=(1, 1))
    },
    "set_epsilon": lambda: {"e": 1e-7},
    "set_floatx": lambda: {"floatx": "float32"},
    "set_image_data_format": lambda: {"data_format": "channels_last"},
    "set_image_dim_ordering": lambda: {"dim_ordering": "tf"},
    "set_learning_phase": lambda: {"value": 0},
    "set_value": lambda: {"x": K.variable(1), "value": 2},
    "print_tensor": lambda: {"x": _x(), "message": "value"},
    "shape": _elementwise,
    "size": lambda: {"x": _x(), "name": "s"},
    "slice": lambda: {"x": _x(), "start": (0, 1), "size": (2, 1)},
    "softmax": _positions,
    "sparse_categorical_crossentropy": lambda: {"target": _x(2), "output": _x(), "from_logits": True, "axis": 1},
    "spatial_2d_padding": lambda: _images() | {"padding": ((1, 1), (1, 1)), "data_format": "channels_last"},
    "spatial_3d_padding": lambda: {
        "x": _x(1, 2, 2, 2, 1), "padding": ((1, 1), (1, 1), (1, 1)), "data_format": "channels_last"
    },
    "squeeze": lambda: {"x": _x(2, 1), "axis": 1},
    "stack": lambda: {"x": [_x(), _x()], "axis": 0},
    "stop_gradient": lambda: {"variables": _x()},
    "switch": lambda: {"condition": _x(), "then_expression": _x(), "else_expression": _x()},
    "symbolic": lambda: {"func": len},
    "temporal_padding": lambda: {"x": _x(2, 3, 4), "padding": (1, 1)},
    "tile": lambda: {"x": _x(), "n": (1, 2)},
    "to_dense": lambda: {"tensor": _x()},
    "transpose": _elementwise,
    "truncated_normal": lambda: {"shape": (2,), "mean": 0.0, "stddev": 1.0, "dtype": "float32", "seed": 1},
    "update": lambda: {"x": K.variable(1), "new_x": 2},
    "update_add": lambda: {"x": K.variable(1), "increment": 2},
    "update_sub": lambda: {"x": K.variable(1), "decrement": 2},
    "variable": lambda: {"value": 1, "dtype": "int32", "name": "v", "constraint": None},
    "zeros": lambda: {"shape": (2, 3), "dtype": "int32", "name": "z"},
    "zeros_like": lambda: {"x": _x(), "dtype": "int32", "name": "z"},
}  # fmt: skip
for _name in FUNCTIONS:
    _parameters = list(inspect.signature(getattr(K, _name)).parameters)
    if _name not in GOOD and _parameters == ["x"]:
        GOOD[_name] = _elementwise
    elif _name not in GOOD and _parameters == ["x", "axis", "keepdims"]:
        GOOD[_name] = _reduced
    elif _name not in GOOD and _parameters == ["x", "y"]:
        GOOD[_name] = _two

WITHOUT = sorted(n for n in FUNCTIONS if not inspect.signature(getattr(K, n)).parameters)
RAISING = ["get_session", "set_session"]  # whatever one gives them


class Odd:
    """An object that is no argument of any function."""

    def __repr__(self):
        return "<odd>"


ODD = Odd()
_NO_NUMBER = [ODD, "text", None, {}, [[1], [2, 3]], np.array([1j]), np.array(["a"])]
# What each kind of parameter refuses. A parameter whose default is None takes None.
REFUSED = {
    "tensor": _NO_NUMBER,
    "tensors": [ODD, None, 5, [ODD], [None], ["text"]],
    "some tensors": [ODD, None, 5, [], [ODD], [None], ["text"]],
    "optional": [v for v in _NO_NUMBER if v is not None],
    "shaped": [ODD, "text", None],
    "all axes": [ODD, "text", 1.5, 99, [99], [0, 0], [1.5], [None]],
    "leaves": [ODD, "text", None, {}, [None], np.array([1j])],
    "updates": [ODD, 5, [ODD], ["text"], [5]],
    "rank": [ODD, "text", None, 1.5, [1, 2]],
    "starts": [ODD, "text", None, 1.5, (1.5, 0), (0, "text"), [0, ODD], (-7, 0), (7, 0)],
    "eye": [ODD, "text", None, 1.5, -7, [1, 2, 3], [1.5, 2], (-1, 2)],
    "axis": [ODD, "text", None, 1.5, 99, -99],
    "axes": [ODD, "text", None, 1.5, 99, [99], [0, 0], [1.5], [None]],
    "sizes": [ODD, "text", None, 1.5, [1.5], ["text"], [ODD], [-7, 2], (2, -7)],
    "size": [ODD, "text", None, 1.5, -7, [1, 2]],
    "dtype": [ODD, "float99", 7, [1], "complex64"],
    "data_format": [ODD, "middle", 7, b"channels_last"],
    "padding": [ODD, "full", None, 7, ("valid",)],
    "pairs": [ODD, "text", None, 7, (1,), ((1, 2, 3), (1, 2)), ((1.5, 1),)],
    "steps": [ODD, "text", None, 1.5, 0, -1, (1, 1, 1, 1), (1.5,), ()],
    "number": [ODD, "text", None, [1j]],
    "seed": [ODD, "text", [1, 2]],
    "name": [],
    "flag": [],
    "variable": [ODD, "text", None, 5, np.ones(2)],
    "function": [ODD, "text", None, 5],
    "word": [ODD, "text", None, 7],
    "any": [],
}
_BY_NAME = {
    "axis": "axis", "axes": "axes", "reduction_axes": "axes", "dtype": "dtype", "data_format": "data_format",
    "padding": "padding", "strides": "steps", "dilation_rate": "steps", "pool_size": "steps", "kernel_size": "steps",
    "seed": "seed", "name": "name", "keepdims": "flag", "from_logits": "flag", "shape": "sizes",
    "output_shape": "sizes", "noise_shape": "sizes", "fn": "function", "step_function": "function",
    "pool_mode": "word", "interpolation": "word", "floatx": "word", "dim_ordering": "word",
    "minval": "number", "maxval": "number", "low": "number", "high": "number", "mean": "tensor",
    "stddev": "number", "scale": "number", "p": "number", "level": "number", "epsilon": "number",
    "sparse": "flag", "greedy": "flag", "merge_repeated": "flag", "unroll": "flag", "go_backwards": "flag",
    "beam_width": "size", "top_paths": "size", "height_factor": "size", "width_factor": "size",
    "depth_factor": "size", "rep": "size", "num_classes": "size", "k": "rank", "ndim": "size",
    "pattern": "axes", "message": "any", "constraint": "any", "prefix": "any", "func": "any", "tensor": "any",
}  # fmt: skip
# Where the name of a parameter does not tell what it takes.
_KINDS = {
    **{("is_" + what, "x"): "any" for what in ("placeholder", "tensor", "variable", "keras_tensor")},
    **{(name, "x"): "variable" for name in ("update", "update_add", "update_sub", "set_value")},
    **{(name, "axis"): "axes" for name, make in GOOD.items() if make is _reduced},
    ("l2_normalize", "axis"): "axes",
    ("squeeze", "axis"): "axes",
    ("moving_average_update", "x"): "variable",
    ("moving_average_update", "momentum"): "number",
    ("get_value", "x"): "variable",
    ("batch_set_value", "tuples"): "tensors",
    ("batch_get_value", "ops"): "tensors",
    ("concatenate", "tensors"): "some tensors",
    ("stack", "x"): "some tensors",
    **{(name, "pointwise_kernel"): "optional" for name in ("separable_conv1d", "separable_conv2d")},
    **{
        (name, what): "optional"
        for name in ("batch_normalization", "normalize_batch_in_training")
        for what in ("beta", "gamma")
    },
    ("normalize_batch_in_training", "reduction_axes"): "all axes",
    ("reverse", "axes"): "all axes",
    ("clip", "min_value"): "optional",
    ("clip", "max_value"): "optional",
    **{(name, "x"): "shaped" for name in ("int_shape", "get_variable_shape", "count_params")},
    ("placeholder", "ndim"): "any",  # a shape goes before it
    ("stop_gradient", "variables"): "leaves",
    ("gradients", "loss"): "variable",
    ("rnn", "initial_states"): "tensors",
    ("rnn", "constants"): "tensors",
    ("rnn", "input_length"): "any",  # the inputs tell it
    ("function", "inputs"): "tensors",
    ("function", "outputs"): "tensors",
    ("function", "updates"): "updates",
    ("gradients", "variables"): "variable",
    ("repeat", "n"): "size",
    ("tile", "n"): "sizes",
    ("slice", "start"): "starts",
    ("slice", "size"): "sizes",
    ("eye", "size"): "eye",
    ("temporal_padding", "padding"): "pairs",
    ("spatial_2d_padding", "padding"): "pairs",
    ("spatial_3d_padding", "padding"): "pairs",
    ("set_epsilon", "e"): "number",
    ("set_image_data_format", "data_format"): "word",
    ("set_learning_phase", "value"): "word",
    ("normalize_data_format", "value"): "data_format",
    ("manual_variable_initialization", "value"): "any",
    ("control_dependencies", "control_inputs"): "any",
    ("in_train_phase", "training"): "any",
    ("in_test_phase", "training"): "any",
    ("random_normal", "mean"): "number",
    ("truncated_normal", "mean"): "number",
    ("random_normal_variable", "mean"): "number",
    ("arange", "start"): "number",
    ("arange", "stop"): "number",
    ("arange", "step"): "number",
}


def kind(function, parameter):
    """The kind of a parameter: a key of REFUSED."""
    return _KINDS.get((function, parameter)) or _BY_NAME.get(parameter, "tensor")


def refused(function, parameter):
    """Values that a parameter does not take."""
    default = inspect.signature(getattr(K, function)).parameters[parameter].default
    return [v for v in REFUSED[kind(function, parameter)] if not (v is None and default is None)]
