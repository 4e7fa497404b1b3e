"""The beam search of connectionist temporal classification."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphkb.ir.dims import show_shape
from graphkb.ir.errors import DTypeError, ShapeError
from graphkb.ir.leaves import Array
from graphkb.ir.node import Node, make
from graphkb.ir.op import define, not_differentiable
from graphkb.ir.types import FLOATS, INTEGERS, TensorType, tuple_type


# ---------------------------------------------------------------------------------------------- beam search
def _infer_beams(
    log_probs: TensorType, lengths: TensorType, width: int, paths: int, merge_repeated: bool
) -> TensorType:
    if log_probs.dtype not in FLOATS:
        raise DTypeError(f"ctc_beams: expected floats, not {log_probs.dtype}")
    if lengths.dtype not in INTEGERS:
        raise DTypeError(f"ctc_beams: expected integer lengths, not {lengths.dtype}")
    if log_probs.ndim != 3 or lengths.ndim != 1:
        raise ShapeError(
            "ctc_beams: expected probabilities of rank 3 and lengths of rank 1, "
            f"not {show_shape(log_probs.shape)} and {show_shape(lengths.shape)}"
        )
    samples, steps, _ = log_probs.shape
    return tuple_type([TensorType("int64", (samples, paths, steps)), TensorType(log_probs.dtype, (samples, paths))])


def _numpy_beams(log_probs: Array, lengths: Array, width: int, paths: int, merge_repeated: bool) -> tuple[Array, Array]:
    samples, steps, _ = log_probs.shape
    labels = np.full((samples, paths, steps), -1, np.int64)
    scores = np.empty((samples, paths), log_probs.dtype)
    for i in range(samples):
        found = beam_search(log_probs[i, : lengths[i]].astype(np.float64), width)
        if len(found) < paths:
            raise ValueError(
                f"ctc_decode: sample {i} has {len(found)} paths, fewer than the {paths} that are asked for"
            )
        for k, (path, score) in enumerate(found[:paths]):
            if merge_repeated:
                path = [c for j, c in enumerate(path) if not j or path[j - 1] != c]
            labels[i, k, : len(path)] = path
            scores[i, k] = score
    return labels, scores


CTC_BEAMS = define(
    "ctc_beams",
    params=("width", "paths", "merge_repeated"),
    infer=_infer_beams,
    numpy=_numpy_beams,
    vjp=not_differentiable,
    doc="""The most probable label sequences of each sample, padded with -1, and their log probabilities, from scores
    (samples, time, classes) that are normalized at every step. The last class is the blank.""",
)


def ctc_beams(log_probs: Node, lengths: Node, width: int, paths: int, merge_repeated: bool) -> Node:
    """The tuple of the label sequences (samples, paths, time) and their log probabilities (samples, paths)."""
    return make(CTC_BEAMS, (log_probs, lengths), {"width": width, "paths": paths, "merge_repeated": merge_repeated})


def beam_search(log_probs: Array, width: int) -> list[tuple[list[int], float]]:
    """The most probable label sequences of one sample, at most `width`, the best first.

    Prefixes are extended step by step: A. Graves, N. Jaitly, "Towards end-to-end speech recognition with recurrent
    neural networks", ICML 2014, algorithm 1. Of each prefix the paths that end in a blank and those that end in its
    last label are summed up apart.

    Args:
        log_probs: scores of shape (time, classes), the blank last; they are normalized here.
        width: how many prefixes are kept.
    """
    with np.errstate(all="ignore"):
        return _Beams(log_probs.shape[-1] - 1).run(log_probs, width)


class _Beams:
    """The prefixes of a search: a tree, and the log probabilities of those that are kept."""

    def __init__(self, classes: int) -> None:
        self._classes = classes
        self._parent = [-1]
        self._label = [-1]
        self._children: dict[tuple[int, int], int] = {}
        self._kept = [0]
        self._blank = np.zeros(1)
        self._labelled = np.full(1, -np.inf)

    def run(self, log_probs: Array, width: int) -> list[tuple[list[int], float]]:
        for row in log_probs:
            top = row.max()
            self._step(row - top - np.log(np.exp(row - top).sum()), width)
        totals = np.logaddexp(self._blank, self._labelled)
        return [(self._path(node), float(total)) for node, total in zip(self._kept, totals)]

    def _step(self, row: Array, width: int) -> None:
        kept, classes = self._kept, self._classes
        before = np.logaddexp(self._blank, self._labelled)
        last = np.array([self._label[node] for node in kept])
        # A label that repeats the last one extends only the paths that end in a blank.
        extended = np.repeat(before[:, None], classes, axis=1)
        repeats = np.flatnonzero(last >= 0)
        extended[repeats, last[repeats]] = self._blank[repeats]
        labelled = self._labelled.copy()
        position = {node: i for i, node in enumerate(kept)}
        reached = np.zeros(extended.shape, bool)
        for i, node in enumerate(kept):
            above = position.get(self._parent[node])
            if above is not None:
                labelled[i] = np.logaddexp(labelled[i], extended[above, last[i]])
                reached[above, last[i]] = True
        labelled[repeats] += row[last[repeats]]
        blank = before + row[classes]
        new = np.where(reached, -np.inf, extended + row[:classes])
        scores = np.concatenate([np.logaddexp(blank, labelled), new.ravel()])
        order = np.argsort(-scores, kind="stable")[:width]
        order = order[scores[order] > -np.inf]
        self._kept = [kept[k] if k < len(kept) else self._child(kept, int(k) - len(kept)) for k in order]
        self._blank = np.concatenate([blank, np.full(new.size, -np.inf)])[order]
        self._labelled = np.concatenate([labelled, new.ravel()])[order]

    def _child(self, kept: Sequence[int], number: int) -> int:
        """The prefix that extends a kept one: the same one again where it has been there before."""
        key = kept[number // self._classes], number % self._classes
        node = self._children.get(key)
        if node is None:
            node = self._children[key] = len(self._parent)
            self._parent.append(key[0])
            self._label.append(key[1])
        return node

    def _path(self, node: int) -> list[int]:
        path = []
        while node:
            path.append(self._label[node])
            node = self._parent[node]
        return path[::-1]
