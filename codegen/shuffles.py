"""Rearrangements in registers: transposed tiles, interleaved neighbors, and every n-th element."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from graphkb.codegen.builder import Builder, Value


def transpose_tile(b: Builder, rows: Sequence[Value]) -> list[Value]:
    """The columns of a square of vectors; their number is a power of two."""
    count = len(rows)
    out = list(rows)
    step = count // 2
    while step:
        # Exchange the off-diagonal blocks of this size.
        low = [count + t - step if t & step else t for t in range(count)]
        high = [count + t if t & step else t + step for t in range(count)]
        for r in range(count):
            if not r & step:
                x, y = out[r], out[r + step]
                out[r], out[r + step] = b.shuffle(x, y, low), b.shuffle(x, y, high)
        step //= 2
    return out


def merge(b: Builder, sources: Sequence[Value], wanted: Sequence[tuple[int, int]]) -> Value:
    """The vector whose lanes are the wanted (source, lane) pairs, by shuffles of two vectors each."""
    lanes = len(wanted)
    used = sorted({source for source, _ in wanted})
    first, *others = used
    made, placed = sources[first], False
    for other in others:
        mask = []
        for t, (source, lane) in enumerate(wanted):
            here = lane if source == first and not placed else t
            mask.append(lanes + lane if source == other else here)
        made, placed = b.shuffle(made, sources[other], mask), True
    return made if placed else b.shuffle(made, None, [lane for _, lane in wanted])


def every_nth(
    b: Builder, load: Callable[[int], Value], width: int, n: int, lanes: int, backwards: bool = False
) -> Value:
    """Elements 0, n, 2 n, … from vectors of neighbors, or the same from the last one to the first.

    Args:
        load: the vector of `width` elements from a constant distance on.
        width: lanes of a register.
        n: the distance; lanes that are read lie between the first and the last wanted element.
        lanes: how many to take, a multiple of `width`.
    """
    pieces = []
    for begin in range(0, lanes * n, width * n):
        # The last vector ends with the last wanted element: behind it, memory may end.
        starts = [begin + i * width for i in range(n - 1)]
        starts.append(begin + (width - 1) * n + 1 - width)
        sources = [load(s) for s in starts]
        wanted = []
        for t in range(width):
            at = begin + t * n
            source = next(i for i, s in enumerate(starts) if s <= at < s + width)
            wanted.append((source, at - starts[source]))
        if backwards:
            wanted.reverse()
        pieces.append(merge(b, sources, wanted))
    return join(b, pieces[::-1] if backwards else pieces)


def join(b: Builder, pieces: Sequence[Value]) -> Value:
    """Vectors one after the other; their number is a power of two."""
    while len(pieces) > 1:
        lanes = 2 * pieces[0].lanes
        pieces = [b.shuffle(x, y, range(lanes)) for x, y in zip(pieces[::2], pieces[1::2])]
    return pieces[0]


def interleaved(b: Builder, values: Sequence[Value], width: int) -> list[Value]:
    """The first elements of all vectors, then the second ones, and so on, as vectors of `width` elements."""
    n, lanes = len(values), values[0].lanes
    out = []
    for begin in range(0, lanes, width):
        parts = values if width == lanes else [b.shuffle(v, None, range(begin, begin + width)) for v in values]
        for piece in range(n):
            at = range(piece * width, (piece + 1) * width)
            out.append(merge(b, parts, [(e % n, e // n) for e in at]))
    return out


__all__ = ["every_nth", "interleaved", "join", "merge", "transpose_tile"]
