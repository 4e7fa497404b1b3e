"""Connectionist temporal classification: the loss of unaligned label sequences, and decoding."""

from __future__ import annotations

import operator
from typing import Any

import numpy as np

from graphkb.backend import config
from graphkb.backend.promotion import as_node, float_node
from graphkb.backend.sparse import masked_matrix
from graphkb.backend.tensors import Tensor
from graphkb.ir import dims
from graphkb.ir.dims import Dim, show_shape
from graphkb.ir.errors import DTypeError, ShapeError
from graphkb.ir.node import Node, make
from graphkb.ops import elementwise, index, leaf, reduce
from graphkb.ops import shape as shape_ops
from graphkb.ops.control import item, loop
from graphkb.ops.ctc import ctc_beams
from graphkb.ops.elementwise import cast, select
from graphkb.ops.values import bounded, trim

# The logarithm of nothing: finite, so that differences of two of them are numbers.
_NOTHING = -1e30


def _lengths(what: str, name: str, value: Any, ndim: int) -> Node:
    """A vector of lengths, given as one or as a column."""
    node = as_node(value)
    if node.dtype == "bool":
        raise DTypeError(f"{what}: expected integers as {name}, not bool")
    if node.ndim != ndim:
        wanted = "(samples,)" if ndim == 1 else "(samples, 1)"
        raise ShapeError(f"{what}: expected {name} of shape {wanted}, not {show_shape(node.shape)}")
    if ndim == 2:
        if isinstance(node.shape[1], int) and node.shape[1] != 1:
            raise ShapeError(f"{what}: expected {name} of shape (samples, 1), not {show_shape(node.shape)}")
        node = shape_ops.reshape(node, (node.shape[0],))
    return cast(node, "int32")


def _probabilities(what: str, y_pred: Any) -> Node:
    node = float_node(y_pred)
    if node.ndim != 3:
        raise ShapeError(f"{what}: expected y_pred of shape (samples, time, classes), not {show_shape(node.shape)}")
    return node


def _of(what: str, samples: Dim, node: Node) -> Node:
    """An operand with a first axis of a number of samples."""
    n = node.shape[0]
    if isinstance(n, int) and isinstance(samples, int) and n != samples:
        raise ShapeError(f"{what}: expected operands of one number of samples, not {samples} and {n}")
    return node if n == samples else shape_ops.reshape(node, (samples, *node.shape[1:]))


def _column(vector: Node) -> Node:
    return shape_ops.expand_dims(vector, 1)


def _steps(count: Dim, lengths: Node) -> Node:
    """For each sample which of its steps count: bools of shape (samples, count)."""
    return elementwise.less(leaf.iota(count), _column(lengths))


def _log_sum_exp(*terms: Node) -> Node:
    """log(exp(a) + exp(b) …), whose gradient does not go through the largest term."""
    top = terms[0]
    for term in terms[1:]:
        top = elementwise.maximum(top, term)
    top = elementwise.stop_gradient(top)
    total = elementwise.exp(terms[0] - top)
    for term in terms[1:]:
        total = total + elementwise.exp(term - top)
    return elementwise.log(total) + top


def _shifted(x: Node, count: int, border: Node) -> Node:
    """The columns moved to the right, the border coming in from the left."""
    rows, columns = x.shape
    wide = shape_ops.concatenate([shape_ops.broadcast_to(border, (rows, count)), x], 1)
    return shape_ops.slice_(wide, (0, 0), (rows, columns))


def _with_blanks(labels: Node, blank: Node) -> Node:
    """Labels (samples, n) with a blank before, between and behind them: (samples, 2n + 1)."""
    samples, n = labels.shape
    blanks = shape_ops.broadcast_to(blank, (samples, n))
    pairs = shape_ops.reshape(shape_ops.stack([blanks, labels], 2), (samples, 2 * n))
    return shape_ops.concatenate([pairs, shape_ops.broadcast_to(blank, (samples, 1))], 1)


def _loss(labels: Node, log_probs: Node, steps: Node, counts: Node) -> Node:
    """The negative log probability of each sample's labels by the forward recursion.

    A. Graves and others, "Connectionist temporal classification", ICML 2006, equations 5 to 8.
    """
    samples, time, classes = log_probs.shape
    kind = log_probs.dtype
    blank = leaf.size(classes - 1)
    extended = _with_blanks(labels, blank)
    places = extended.shape[1]
    # The scores of the extended labels at every step: (time, samples, places).
    row = shape_ops.reshape(leaf.iota(time, "int64"), (time, 1, 1)) + shape_ops.reshape(
        leaf.iota(samples, "int64") * leaf.size(time, "int64"), (samples, 1)
    )
    flat = shape_ops.reshape(log_probs, (samples * time * classes,))
    emitted = index.gather(flat, row * leaf.size(classes, "int64") + cast(extended, "int64"))
    # A blank may be left out between two different labels.
    before = _shifted(extended, 2, blank)
    may_skip = make(elementwise.and_, (elementwise.not_equal(extended, blank), elementwise.not_equal(extended, before)))
    state = leaf.placeholder((samples, places), kind, "alpha")
    scores = leaf.placeholder((samples, places), kind, "scores")
    step = leaf.placeholder((), "int32", "step")
    nothing = leaf.constant(_NOTHING, kind)
    skipped = select(may_skip, _shifted(state, 2, nothing), nothing)
    new = _log_sum_exp(state, _shifted(state, 1, nothing), skipped) + scores
    new = select(_column(elementwise.less(step, steps)), new, state)
    first = elementwise.equal(leaf.iota(places), leaf.constant(0, "int32"))
    start = select(first, leaf.constant(0, kind), nothing)
    (last,), _ = loop(
        [state, scores, step],
        [new],
        [],
        [shape_ops.broadcast_to(start, (samples, places))],
        [emitted, leaf.iota(time)],
        time,
    )
    # It ends in the last label or in the blank behind it.
    end, place = _column(counts * leaf.constant(2, "int32")), leaf.iota(places)
    ends = make(
        elementwise.or_, (elementwise.equal(place, end), elementwise.equal(place, end - leaf.constant(1, "int32")))
    )
    final = select(ends, last, nothing)
    top = elementwise.stop_gradient(reduce.reduce(reduce.MAX, final, (1,), True))
    total = elementwise.log(reduce.reduce_sum(elementwise.exp(final - top), (1,), True)) + top
    impossible = elementwise.less(total, leaf.constant(_NOTHING / 2, kind))
    return select(impossible, leaf.constant(np.inf, kind), -total)


def ctc_batch_cost(y_true: Any, y_pred: Any, input_length: Any, label_length: Any) -> Tensor:
    """The CTC loss of each sample: how improbable it is that the predictions spell the labels.

    The last class is the blank. As in Keras, the prediction is normalized again after `epsilon()` was added to it.

    Args:
        y_true: labels of shape (samples, most labels); what lies beyond a sample's own number is ignored.
        y_pred: probabilities of shape (samples, time, classes).
        input_length: how many steps of each sample count, of shape (samples, 1).
        label_length: how many labels each sample has, of shape (samples, 1).

    Returns:
        A tensor of shape (samples, 1): infinite where the labels need more steps than there are. Gradients flow to
        `y_pred`.

    Raises:
        ShapeError: an operand is of another rank. ValueError: when it runs, a length or a label is out of range.

    >>> from graphkb import backend as K
    >>> even = K.constant(1 / 3, shape=(1, 2, 3))
    >>> loss = K.eval(K.ctc_batch_cost([[0]], even, [[2]], [[1]]))  # 3 of the 9 paths spell it
    >>> loss.shape, round(float(loss[0, 0]), 4)
    ((1, 1), 1.0986)
    """
    what = "ctc_batch_cost"
    labels = as_node(y_true)
    if labels.ndim != 2:
        raise ShapeError(f"{what}: expected y_true of shape (samples, labels), not {show_shape(labels.shape)}")
    probabilities = _probabilities(what, y_pred)
    _, time, classes = probabilities.shape
    # Where two unknown numbers of samples meet, they are one.
    samples = next((n.shape[0] for n in (probabilities, labels) if isinstance(n.shape[0], int)), probabilities.shape[0])
    probabilities = _of(what, samples, probabilities)
    if isinstance(classes, int) and classes < 1:
        raise ShapeError(f"{what}: expected at least the blank as a class, not {show_shape(probabilities.shape)}")
    most = labels.shape[1]
    fitting = dims.minimum(most, most * (classes - 1))  # where the blank is the only class, there are no labels
    steps = bounded(_lengths(what, "input_length", input_length, 2), f"{what}: input_length", 0, time)
    counts = bounded(_lengths(what, "label_length", label_length, 2), f"{what}: label_length", 0, fitting)
    steps, counts = _of(what, samples, steps), _of(what, samples, counts)
    labels = _of(what, samples, cast(labels, "int32"))
    labels = bounded(select(_steps(most, counts), labels, 0), f"{what}: the labels", 0, dims.maximum(classes - 2, 0))
    wide = "float32" if probabilities.dtype == "float16" else probabilities.dtype
    positive = cast(probabilities, wide) + leaf.constant(config.epsilon(), wide)
    total = reduce.reduce_sum(positive, (2,), True)
    return Tensor(cast(_loss(labels, elementwise.log(positive / total), steps, counts), probabilities.dtype))


def ctc_label_dense_to_sparse(labels: Any, label_lengths: Any) -> Tensor:
    """The labels of each sample as a sparse tensor, without what lies beyond their number.

    Args:
        labels: numbers of shape (samples, most labels).
        label_lengths: how many labels each sample has, of shape (samples,).

    Returns:
        A sparse tensor of the shape of `labels`.

    Raises:
        ShapeError: an operand is of another rank.

    >>> from graphkb import backend as K
    >>> K.eval(K.ctc_label_dense_to_sparse([[3, 1, 2], [4, 9, 9]], [3, 1])).tolist()
    [[3, 1, 2], [4, 0, 0]]
    """
    what = "ctc_label_dense_to_sparse"
    node = as_node(labels)
    if node.ndim != 2:
        raise ShapeError(f"{what}: expected labels of shape (samples, labels), not {show_shape(node.shape)}")
    lengths = _of(what, node.shape[0], _lengths(what, "label_lengths", label_lengths, 1))
    return masked_matrix(node, _steps(node.shape[1], lengths))


def _greedy(log_probs: Node, steps: Node) -> tuple[Node, Node]:
    """The most probable class of every step, repetitions and blanks left out, and the negative sum of the scores."""
    samples, time, classes = log_probs.shape
    counts = _steps(time, steps)
    best = make(reduce.ARGMAX, (log_probs,), {"axis": 2})
    before = _shifted(best, 1, leaf.constant(-1, best.dtype))
    label = make(
        elementwise.and_,
        (elementwise.not_equal(best, before), elementwise.not_equal(best, leaf.size(classes - 1, best.dtype))),
    )
    kept = make(elementwise.and_, (counts, label))
    number = cast(kept, "int64")
    place = reduce.cumsum(number, 1, exclusive=True) + _column(leaf.iota(samples, "int64") * leaf.size(time, "int64"))
    cells = (samples * time,)
    # Every place begins at -1; what is left out adds nothing to the first place.
    added = shape_ops.reshape(number * (cast(best, "int64") + leaf.constant(1, "int64")), cells)
    where = shape_ops.reshape(select(kept, place, 0), cells)
    packed = index.scatter_add(added, where, 0, cells) - leaf.constant(1, "int64")
    scores = select(counts, reduce.reduce(reduce.MAX, log_probs, (2,)), 0)
    return shape_ops.reshape(packed, (samples, time)), -reduce.reduce_sum(scores, (1,), True)


def ctc_decode(
    y_pred: Any,
    input_length: Any,
    greedy: bool = True,
    beam_width: int = 100,
    top_paths: int = 1,
    merge_repeated: bool = False,
) -> tuple[list[Tensor], Tensor]:
    """The label sequences that predictions spell most probably.

    Args:
        y_pred: probabilities of shape (samples, time, classes); the last class is the blank.
        input_length: how many steps of each sample count, of shape (samples,).
        greedy: take the best class of each step, without the repetitions in between; otherwise search with beams.
        beam_width: how many prefixes the search keeps.
        top_paths: how many sequences of each sample the search gives.
        merge_repeated: whether equal labels in a row become one in what the search gives.

    Returns:
        A list of one tensor, or of `top_paths` tensors, the best first: labels of shape (samples, longest), padded
        with -1. The width is known only when they are computed: as outputs they have that of the longest sequence;
        inside a graph they stay padded to the number of steps.
        A tensor of the scores: -sum(log(max p)) of shape (samples, 1) where `greedy`; otherwise log probabilities
        of shape (samples, top_paths).

    Raises:
        ShapeError: an operand is of another rank. ValueError: more paths than beams; when it runs: a length is out of
            range, or there are fewer sequences than `top_paths`.

    >>> from graphkb import backend as K
    >>> p = K.constant([[[0.9, 0.0, 0.1], [0.9, 0.0, 0.1], [0.0, 0.8, 0.2]]])
    >>> labels, score = K.ctc_decode(p, [3])
    >>> K.eval(labels[0]).tolist(), round(float(K.eval(score)[0, 0]), 4)
    ([[0, 1]], 0.4339)
    """
    what = "ctc_decode"
    probabilities = _probabilities(what, y_pred)
    samples, time, classes = probabilities.shape
    if isinstance(classes, int) and classes < 1:
        raise ShapeError(f"{what}: expected at least the blank as a class, not {show_shape(probabilities.shape)}")
    steps = bounded(_lengths(what, "input_length", input_length, 1), f"{what}: input_length", 0, time)
    steps = _of(what, samples, steps)
    log_probs = elementwise.log(probabilities + leaf.constant(config.epsilon(), probabilities.dtype))
    if greedy:
        path, scores = _greedy(log_probs, steps)
        return [_padded(path)], Tensor(scores)
    try:
        beam_width, top_paths = operator.index(beam_width), operator.index(top_paths)
    except TypeError:
        raise TypeError(
            f"{what}: expected integers as beam_width and top_paths, not {beam_width!r} and {top_paths!r}"
        ) from None
    if not 1 <= top_paths <= beam_width:
        raise ValueError(f"{what}: expected 1 <= top_paths <= beam_width, not {top_paths} and {beam_width}")
    beams = ctc_beams(log_probs, steps, beam_width, top_paths, bool(merge_repeated))
    labels, found = item(beams, 0), item(beams, 1)
    paths = [
        shape_ops.reshape(shape_ops.slice_(labels, (0, k, 0), (samples, 1, time)), (samples, time))
        for k in range(top_paths)
    ]
    return [_padded(path) for path in paths], Tensor(found)


def _padded(path: Node) -> Tensor:
    tensor = Tensor(trim(path))
    tensor._keras_shape = (tensor.shape[0], None)  # type: ignore[attr-defined]
    return tensor
