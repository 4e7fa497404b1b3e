"""What the functions of networks mean, in NumPy and plain loops; `UnfitError` where arguments do not go together."""

import itertools

import conv_tools
import numpy as np
from conv_tools import many
from scipy import special

from graphkb import backend as K


class UnfitError(Exception):
    """The arguments do not fit: K must refuse them with a ValueError or TypeError."""


def need(condition):
    if not condition:
        raise UnfitError


# ---------------------------------------------------------------------------------------------- convolutions
def _checked(x, kernel, strides, padding, data_format, dilation_rate, channels):
    n = kernel.ndim - 2
    need(x.ndim == n + 2)
    need(padding != "causal" or data_format == "channels_last")
    x = conv_tools.last(x, data_format)
    need(x.shape[-1] == channels)
    if padding == "valid":
        spans = [(k - 1) * d + 1 for k, d in zip(kernel.shape, many(dilation_rate, n))]
        need(all(m >= span for m, span in zip(x.shape[1:], spans)))


def conv(x, kernel, strides, padding, data_format, dilation_rate):
    _checked(x, kernel, strides, padding, data_format, dilation_rate, kernel.shape[-2])
    return conv_tools.conv(x, kernel, strides, padding, data_format, dilation_rate)


def separable(x, depthwise_kernel, strides, padding, data_format, dilation_rate, pointwise_kernel=None):
    kernel = depthwise_kernel
    _checked(x, kernel, strides, padding, data_format, dilation_rate, kernel.shape[-2])
    y = conv_tools.depthwise(x, kernel, strides, padding, data_format, dilation_rate)
    if pointwise_kernel is None:
        return y
    need(pointwise_kernel.shape[-2] == kernel.shape[-1] * kernel.shape[-2])
    return conv_tools.conv(y, pointwise_kernel, layout=data_format)


def conv_transpose(x, kernel, output_shape, strides, padding, data_format, dilation_rate=1):
    n = kernel.ndim - 2
    sizes = output_shape[1:-1] if data_format == "channels_last" else output_shape[2:]
    places = conv_tools.last(x, data_format).shape
    need(kernel.shape[-1] == places[-1])
    for m, p, k, s, d in zip(sizes, places[1:], kernel.shape, many(strides, n), many(dilation_rate, n)):
        need(p == (-(-m // s) if padding == "same" else (m - (k - 1) * d - 1) // s + 1))
    return conv_tools.conv_transpose(x, kernel, sizes, strides, padding, data_format, dilation_rate)


def local_conv(inputs, kernel, kernel_size, strides, data_format, output_shape=None):
    counts = (len(kernel),) if output_shape is None else output_shape
    x = conv_tools.last(inputs, data_format)
    need(all((c - 1) * s + k <= m for c, s, k, m in zip(counts, strides, kernel_size, x.shape[1:])))
    need(kernel.shape[1] == np.prod(kernel_size) * x.shape[-1])
    return conv_tools.local(inputs, kernel, kernel_size, strides, counts, data_format)


def pool(n, x, pool_size, strides, padding, data_format, pool_mode):
    need(x.ndim == n + 2)
    if padding == "valid":
        need(all(m >= k for m, k in zip(conv_tools.last(x, data_format).shape[1:], many(pool_size, n))))
    return conv_tools.pool(x, pool_size, strides, padding, data_format, pool_mode)


# ---------------------------------------------------------------------------------------------- images
def resize(x, data_format, height_factor, width_factor, depth_factor=None, interpolation="nearest"):
    factors = [f for f in (depth_factor, height_factor, width_factor) if f is not None]
    need(x.ndim == len(factors) + 2 and all(factors))
    for axis, factor in enumerate(factors, 2 if data_format == "channels_first" else 1):
        if interpolation == "nearest":
            x = x.repeat(factor, axis)
            continue
        at = np.arange(x.shape[axis] * factor) / factor
        low = np.floor(at).astype(int)
        share = (at - low).reshape(-1, *(1,) * (x.ndim - axis - 1))
        x = x.take(low, axis) * (1 - share) + x.take(np.minimum(low + 1, x.shape[axis] - 1), axis) * share
    return x


def spatial_padding(x, padding, data_format):
    need(x.ndim == len(padding) + 2)
    none = [(0, 0)]
    return np.pad(x, [*none, *none, *padding] if data_format == "channels_first" else [*none, *padding, *none])


# ---------------------------------------------------------------------------------------------- normalization
def batch_normalization(x, mean, var, beta, gamma, axis, epsilon):
    need(-x.ndim <= axis < x.ndim)

    def along(parameter, default):
        if parameter is None:
            return default
        need(len(parameter) in (1, x.shape[axis]))
        return parameter.reshape([-1 if a == axis % x.ndim else 1 for a in range(x.ndim)])

    with np.errstate(all="ignore"):
        return (x - along(mean, 0)) / np.sqrt(along(var, 0) + epsilon) * along(gamma, 1) + along(beta, 0)


def normalize_batch(x, gamma, beta, reduction_axes, epsilon):
    need(all(-x.ndim <= a < x.ndim for a in reduction_axes))
    axes = tuple([a % x.ndim for a in reduction_axes])
    need(len(set(axes)) == len(axes))
    wide_mean, wide_var = x.mean(axes, keepdims=True), x.var(axes, keepdims=True)
    scale = 1 if gamma is None else gamma.reshape(wide_mean.shape)
    shift = 0 if beta is None else beta.reshape(wide_mean.shape)
    return [(x - wide_mean) / np.sqrt(wide_var + epsilon) * scale + shift, x.mean(axes), x.var(axes)]


# ---------------------------------------------------------------------------------------------- products, ranks
def batch_axes(x, y, axes):
    """The axes that are summed over for operands of two ranks, or None where they do not fit."""
    if x < 2 or y < 2:
        return None
    if axes is None:
        return x - 1, y - (1 if y == 2 else 2)
    pair = (axes, axes) if isinstance(axes, int) else axes
    if not all(-n <= a < n for a, n in zip(pair, (x, y))):
        return None
    pair = pair[0] % x, pair[1] % y
    return None if 0 in pair else pair


def batch_dot(x, y, axes):
    pair = batch_axes(x.ndim, y.ndim, axes)
    need(pair is not None)
    need(len(x) == len(y) and x.shape[pair[0]] == y.shape[pair[1]])
    rest = [n for a, n in enumerate(x.shape) if a not in (0, pair[0])]
    rest += [n for a, n in enumerate(y.shape) if a not in (0, pair[1])]
    out = np.array([np.tensordot(a, b, (pair[0] - 1, pair[1] - 1)) for a, b in zip(x, y)])
    return out.reshape(len(x), *rest or [1])


def in_top_k(predictions, targets, k):
    need(predictions.ndim == 2 and len(predictions) == len(targets))
    known = [0 <= t < len(row) for row, t in zip(predictions, targets)]
    return np.array([n and (r > r[t]).sum() < k for n, r, t in zip(known, predictions, targets)], bool)


# ---------------------------------------------------------------------------------------------- losses
def _log_probabilities(output, from_logits, axis, normalized):
    need(-1 <= axis < output.ndim)
    if from_logits:
        return special.log_softmax(output, axis)
    y = output / output.sum(axis, keepdims=True) if normalized else output
    y = np.clip(y, K.epsilon(), 1 - K.epsilon())
    return np.log(y) if normalized else special.log_softmax(np.log(y), axis)


def categorical_crossentropy(target, output, from_logits, axis):
    need(target.ndim == output.ndim)
    return -(target * _log_probabilities(output, from_logits, axis, True)).sum(axis)


def sparse_crossentropy(target, output, from_logits, axis):
    logs = np.moveaxis(_log_probabilities(output, from_logits, axis, False), axis, -1)
    need(target.size == np.prod(logs.shape[:-1]))
    classes = target.reshape(logs.shape[:-1])
    exists = (classes >= 0) & (classes < logs.shape[-1])
    picked = np.take_along_axis(logs, np.where(exists, classes, 0)[..., None], -1)[..., 0]
    return np.where(exists, -picked, np.nan)


def binary_crossentropy(target, output, from_logits):
    try:
        np.broadcast_shapes(target.shape, output.shape)
    except ValueError:
        raise UnfitError from None
    if from_logits:
        return -(target * special.log_expit(output) + (1 - target) * special.log_expit(-output))
    small = K.epsilon()
    y = np.clip(output, small, 1 - small)
    return -(target * np.log(y + small) + (1 - target) * np.log(1 - y + small))


# ---------------------------------------------------------------------------------------------- CTC
def spelled(path, blank):
    """What a path spells: repetitions become one, then blanks go."""
    return tuple(c for i, c in enumerate(path) if c != blank and (not i or path[i - 1] != c))


def probabilities(p):
    """The probability of every label sequence, from all paths; p is normalized after epsilon was added."""
    p = np.asarray(p, float) + K.epsilon()
    p = p / p.sum(axis=-1, keepdims=True)
    time, classes = p.shape
    found = {}
    for path in itertools.product(range(classes), repeat=time):
        labels = spelled(path, classes - 1)
        found[labels] = found.get(labels, 0) + np.prod(p[range(time), path])
    return found


def ctc_batch_cost(y_true, y_pred, input_length, label_length):
    _, time, classes = y_pred.shape
    need((input_length <= time).all())
    need(classes > 1 or not label_length.any())
    out = []
    for labels, p, steps, count in zip(y_true, y_pred, input_length[:, 0], label_length[:, 0]):
        out.append([-np.log(probabilities(p[:steps]).get(tuple(labels[:count]), 0.0))])
    return np.array(out)


def ctc_decode(y_pred, input_length, greedy, beam_width=100, top_paths=1, merge_repeated=False):
    samples, time, classes = y_pred.shape
    need((input_length <= time).all() and top_paths <= beam_width)
    rows, scores = [], []
    for p, steps in zip(y_pred, input_length):
        if greedy:
            path = (p[:steps] + K.epsilon()).argmax(-1)
            rows.append(spelled(path, classes - 1))
            scores.append([-np.log((p[:steps] + K.epsilon()).max(-1)).sum()])
            continue
        found = probabilities(p[:steps])
        best = max(found, key=found.get)
        rows.append([c for c, _ in itertools.groupby(best)] if merge_repeated else best)
        scores.append([np.log(found[best])])
    width = max(map(len, rows))
    labels = np.array([[*row, *[-1] * (width - len(row))] for row in rows], int).reshape(samples, width)
    return [labels, np.array(scores)]


# ---------------------------------------------------------------------------------------------- loops, choices
def rnn(step, inputs, initial_states, mask, go_backwards, unroll, constants):
    need(inputs.ndim >= 3 and (mask is None or mask.ndim == 2 or mask.shape[2] == 1))
    need(not initial_states or inputs.shape[2:] == initial_states[0].shape[1:])
    if mask is not None:
        mask = mask.reshape(mask.shape[:2])
        need(mask.shape == inputs.shape[:2])
    states, outputs = list(initial_states), []
    order = range(inputs.shape[1])
    for t in reversed(order) if go_backwards else order:
        output, new = step(inputs[:, t], [*states, *[np.float64(2)] * constants], len(states))
        if mask is not None:
            keep = mask[:, t].reshape(-1, *(1,) * (output.ndim - 1)) != 0
            output = np.where(keep, output, outputs[-1] if outputs else 0)
            new = [np.where(keep, n, s) for n, s in zip(new, states)]
        states = new
        outputs.append(output)
    return [outputs[-1], np.stack(outputs, 1), *states]


def map_fn(elems):
    need(elems.ndim)
    return np.array([x.sum() * x for x in elems]).reshape(elems.shape)


def fold(fn, elems, initializer, reverse=False):
    need(elems.ndim and (initializer is not None or len(elems)))
    slices = list(elems[::-1] if reverse else elems)
    total = slices.pop(0) if initializer is None else initializer
    try:
        need(np.broadcast_shapes(total.shape, elems.shape[1:]) == total.shape)
    except ValueError:
        raise UnfitError from None
    for x in slices:
        total = fn(total, x)
    return total


def switch(condition, then_expression, else_expression):
    a, b = then_expression, else_expression
    need(condition.ndim <= max(a.ndim, b.ndim))
    if not condition.ndim:
        need(a.shape == b.shape)
        return a if condition else b
    test = condition.reshape(*condition.shape, *(1,) * (max(a.ndim, b.ndim) - condition.ndim))
    try:
        return np.where(test != 0, a, b)
    except ValueError:
        raise UnfitError from None
