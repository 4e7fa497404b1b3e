"""How a loop over a batch is shared out among threads: which samples each part takes, if that pays."""

from __future__ import annotations

from graphkb.ir.dims import Dim
from graphkb.ir.graph import Graph
from graphkb.ir.record import record
from graphkb.passes.durations import inner_ops, picoseconds
from graphkb.passes.split_batch import SplitBody, split_body

# Samples of a part, and the fewest that still use the rows of a matrix well once they are read from the cache.
_SAMPLES, _FEWEST = 8, 4
# Parts at most: more only cost memory.
_MOST_PARTS = 64
# What each part reads in every step must stay in the second-level cache, or had better be divided instead.
_MOST_BYTES = 3 << 18
# What a part should take at least, in picoseconds, and how many steps an unknown number of them counts as.
_PART, _STEPS = 10_000_000, 32


@record
class Parts:
    """Equal parts of a batch that follow one another.

    Attributes:
        count: how many there are.
        samples: of each.
        first: the sample with which they begin.
        body: what computes so many samples.
    """

    count: int
    samples: int
    first: int
    body: SplitBody


def share_batch(body: Graph, states: int, sequences: int, length: Dim) -> tuple[Parts, ...]:
    """The parts of a loop in which samples do not depend on one another, of one or two sizes; none where none pay.

    Nothing here depends on how many threads there are, so that no result does.

    Args:
        body: of a loop, fused or not.
        states, sequences: how many of its parameters are states, and how many slices of sequences.
        length: the number of steps.
    """
    batch = body.inputs[0].shape[0] if states and body.inputs[0].ndim else 0
    if not isinstance(batch, int) or not all(node.type.is_static for node in body.nodes):
        return ()
    work = picoseconds(body) * (length if isinstance(length, int) else _STEPS)
    fewest = _FEWEST if any(node.op.name == "dot" for node in inner_ops(body)) else 1
    count = min(_count(batch, fewest), work // _PART)
    if count < 2:
        return ()
    samples, more = divmod(batch, count)
    sizes = [(more, samples + 1, 0), (count - more, samples, more * (samples + 1))]
    parts = []
    for many, each, first in sizes:
        split = split_body(body, states, sequences, each) if many else None
        if many and (split is None or _shared_bytes(body, split) > _MOST_BYTES):
            return ()
        if split is not None:
            parts.append(Parts(many, each, first, split))
    return tuple(parts)


def _count(batch: int, fewest: int) -> int:
    """How many parts a batch is cut into; of equal sizes, if that needs not many fewer."""
    most = min(_MOST_PARTS, max(batch // _SAMPLES, min(2, batch // fewest)))
    even = [count for count in range(most, max(1, most // 2), -1) if batch % count == 0]
    return even[0] if even else most


def _shared_bytes(body: Graph, split: SplitBody) -> int:
    """The bytes of what a step reads whichever samples it computes."""
    parameters = [p for i, p in enumerate(body.inputs) if i not in split.varying]
    leaves = [node for node in body.nodes if node.op.kind == "leaf" and node.op.name != "placeholder"]
    return sum(node.type.nbytes for node in (*parameters, *leaves) if isinstance(node.type.nbytes, int))


__all__ = ["Parts", "share_batch"]
