"""Random numbers by counter: every element is a function of its position, a seed and the number of the call."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

from graphkb.ir.dims import Shape
from graphkb.ir.errors import DTypeError
from graphkb.ir.graph import Graph
from graphkb.ir.leaves import Array, DrawCell
from graphkb.ir.node import Node, make
from graphkb.ir.op import define, not_differentiable
from graphkb.ir.types import FLOATS, NUMPY_DTYPE, TensorType
from graphkb.ops import leaf
from graphkb.ops.elementwise import broadcast_shapes, cast, log, maximum, minimum

# Philox4x32-10: J. K. Salmon, M. A. Moraes, R. O. Dror, D. E. Shaw, "Parallel random numbers: as easy as 1, 2, 3",
# SC 2011, section 3.3 and table 2.
ROUNDS = 10
MULTIPLIERS = (0xD2511F53, 0xCD9E8D57)
WEYL = (0x9E3779B9, 0xBB67AE85)
_MASK = 0xFFFFFFFF
# The bits of a fraction, as many as the significand holds: sums and differences of fractions are exact, too.
FRACTION_BITS = {"float16": 11, "float32": 24, "float64": 53}


POSITIONS = define(
    "positions",
    kind="leaf",
    params=("shape",),
    infer=lambda shape: TensorType("uint64", shape),
    numpy=lambda shape: np.arange(math.prod(shape), dtype=np.uint64).reshape(shape),
    doc="For each element its place in row-major order.",
)


def _infer_draw(name: str, dtypes: tuple[str, ...]) -> Callable[[TensorType, TensorType, TensorType, str], TensorType]:
    def infer(position: TensorType, seed: TensorType, call: TensorType, dtype: str) -> TensorType:
        for type in (position, seed, call):
            if type.dtype != "uint64":
                raise DTypeError(f"{name}: the operands must be uint64, not {type.dtype}")
        if dtype not in dtypes:
            raise DTypeError(f"{name}: expected one of {', '.join(dtypes)}, not {dtype}")
        return TensorType(dtype, broadcast_shapes(name, position.shape, seed.shape, call.shape))

    return infer


def _words(block: Array, seed: Array, call: Array) -> list[Array]:
    """The four words of blocks, each in 64 bits."""
    mask, half = np.uint64(_MASK), np.uint64(32)
    a, b, c, d = (np.asarray(word) for x in (block, call) for word in (x & mask, x >> half))
    keys = [np.asarray(seed & mask), np.asarray(seed >> half)]
    m, n = map(np.uint64, MULTIPLIERS)
    for _ in range(ROUNDS):
        p, q = a * m, c * n
        a, b, c, d = (q >> half) ^ b ^ keys[0], q & mask, (p >> half) ^ d ^ keys[1], p & mask
        keys = [(key + np.uint64(step)) & mask for key, step in zip(keys, WEYL)]
    return [a, b, c, d]


# As many positions as are worked on at a time: what they lead to, ten arrays of 64-bit words, stays in the cache.
CHUNK = 1 << 13


def _in_chunks(draw: Callable[[Array, Array, Array, str], Array]) -> Callable[[Array, Array, Array, str], Array]:
    """The same draw for many positions: its intermediate values take little memory."""

    def all_chunks(position: Array, seed: Array, call: Array, dtype: str) -> Array:
        if position.size <= CHUNK or seed.size != 1 or call.size != 1:
            return draw(position, seed, call, dtype)
        flat, seed, call = position.reshape(-1), seed.reshape(()), call.reshape(())
        result = np.empty(position.shape, NUMPY_DTYPE[dtype])
        out = result.reshape(-1)
        for start in range(0, flat.size, CHUNK):
            part = slice(start, start + CHUNK)
            out[part] = draw(flat[part], seed, call, dtype)
        return result

    return all_chunks


def _is_run(position: Array) -> bool:
    """Whether the positions are a vector of consecutive integers, so that neighbors share their blocks."""
    if position.ndim != 1 or position.size < 2 or int(position[-1]) - int(position[0]) != position.size - 1:
        return False
    return bool((np.diff(position) == 1).all())


@_in_chunks
def _numpy_bits(position: Array, seed: Array, call: Array, dtype: str) -> Array:
    each = 4 if dtype == "uint32" else 2
    run = _is_run(position) and seed.size == call.size == 1
    if run:
        start = int(position[0])
        block = np.arange(start // each, int(position[-1]) // each + 1, dtype=np.uint64)
    else:
        block = position // np.uint64(each)
    words = _words(block, seed, call)
    if dtype == "uint64":
        words = [low | (high << np.uint64(32)) for low, high in zip(words[::2], words[1::2])]
    if run:
        return np.stack(words, axis=-1).reshape(-1)[start % each :][: position.size].astype(dtype)
    return np.asarray(np.choose((position % np.uint64(each)).astype(np.intp), words).astype(dtype))


RANDOM_BITS = define(
    "random_bits",
    kind="elementwise",
    params=("dtype",),
    infer=_infer_draw("random_bits", ("uint32", "uint64")),
    numpy=_numpy_bits,
    vjp=not_differentiable,
    cost=60,
    doc="""One of the four words, or of the two double words, of the Philox4x32-10 block with the counter (position //
    4 or 2, call) and the seed as key.""",
)


@_in_chunks
def _numpy_normal(position: Array, seed: Array, call: Array, dtype: str) -> Array:
    """Box and Muller's method in float64: the integers are exact, and angles are reduced exactly to an eighth turn."""
    words = "uint32" if dtype == "float32" else "uint64"
    count = FRACTION_BITS[dtype]
    shift = np.uint64(8 if words == "uint32" else 11)
    odd = (position % np.uint64(2)).astype(np.int64)
    if _is_run(position) and seed.size == call.size == 1:
        start, stop = int(position[0]) // 2 * 2, int(position[-1]) // 2 * 2 + 2
        pairs = _numpy_bits(np.arange(start, stop, dtype=np.uint64), seed, call, words).reshape(-1, 2).T
        drawn = [np.repeat(half, 2)[odd[0] :][: position.size] for half in pairs]
    else:
        first = position // np.uint64(2) * np.uint64(2)
        drawn = [_numpy_bits(first + np.uint64(i), seed, call, words) for i in range(2)]
    k, m = ((half.astype(np.uint64) >> shift).astype(np.int64) for half in drawn)
    radius = np.sqrt(-2 * np.log((2**count - k) * 2.0**-count))
    quadrant = (m + (1 << (count - 3))) >> (count - 2)
    rest = (m - (quadrant << (count - 2))) * (2.0**-count * 2 * math.pi)
    # An odd position takes the sine, which is the cosine three quadrants on.
    turn = (quadrant + 3 * odd) % 4
    angle = np.choose(turn, [np.cos(rest), -np.sin(rest), -np.cos(rest), np.sin(rest)])
    return np.asarray((radius * angle).astype(dtype))


RANDOM_NORMAL = define(
    "random_normal",
    kind="elementwise",
    params=("dtype",),
    infer=_infer_draw("random_normal", ("float32", "float64")),
    numpy=_numpy_normal,
    vjp=not_differentiable,
    cost=100,
    doc="""Numbers of mean 0 and standard deviation 1. Neighbors 2 i and 2 i + 1 are the two coordinates that the random
    bits at these positions give: G. E. P. Box, M. E. Muller, "A note on the generation of random normal deviates",
    1958.""",
)


def _infer_fraction(bits: TensorType, dtype: str) -> TensorType:
    if bits.dtype not in ("uint32", "uint64") or dtype not in FLOATS:
        raise DTypeError(f"fraction: expected uint32 or uint64 bits and a float dtype, not {bits.dtype} and {dtype}")
    if bits.dtype == "uint32" and dtype == "float64":
        raise DTypeError("fraction: float64 needs uint64 bits, not uint32")
    return bits.with_dtype(dtype)


def _numpy_fraction(bits: Array, dtype: str) -> Array:
    count = FRACTION_BITS[dtype]
    shift = bits.dtype.type(bits.dtype.itemsize * 8 - count)
    return np.asarray((bits >> shift).astype(dtype) * NUMPY_DTYPE[dtype].type(2.0**-count))


FRACTION = define(
    "fraction",
    kind="elementwise",
    params=("dtype",),
    infer=_infer_fraction,
    numpy=_numpy_fraction,
    vjp=not_differentiable,
    cost=3,
    doc="The uppermost bits of an integer as a number in [0, 1), all of which are equally far apart.",
)


# The ops whose operands are a position, a seed and the number of a call.
DRAWS = ("random_bits", "random_normal")


# ---------------------------------------------------------------------------------------------- building
def positions(shape: Shape) -> Node:
    """For each element of a shape its place in row-major order."""
    return make(POSITIONS, (), {"shape": shape})


def random_bits(position: Node, seed: Node, call: Node, dtype: str = "uint64") -> Node:
    """Random bits as uint32 or uint64 for each position, under a seed and the number of a call; all uint64."""
    return make(RANDOM_BITS, (position, seed, call), {"dtype": dtype})


def fraction(bits: Node, dtype: str) -> Node:
    """uint32 or uint64 bits as numbers in [0, 1)."""
    return make(FRACTION, (bits,), {"dtype": dtype})


class Draw:
    """One draw of the user: a seed and a cell that counts the calls. Two draws never merge, as their cells differ.

    Args:
        shape: what each call draws.
        seed: any integer; equal seeds give equal numbers.
        name: for dumps.
    """

    def __init__(self, shape: Shape, seed: int, name: str) -> None:
        self.shape = shape
        self._seed = leaf.constant(np.asarray(seed % 2**64, np.uint64))
        self._call = leaf.variable(DrawCell(np.zeros((), np.uint64), name))

    def bits(self, dtype: str = "uint64") -> Node:
        """Random bits for each element."""
        return random_bits(positions(self.shape), self._seed, self._call, dtype)

    def uniform(self, dtype: str) -> Node:
        """Numbers in [0, 1)."""
        return fraction(self.bits("uint64" if dtype == "float64" else "uint32"), dtype)

    def normal(self, dtype: str) -> Node:
        """Numbers of mean 0 and standard deviation 1."""
        if dtype == "float16":
            return cast(self.normal("float32"), dtype)
        return make(RANDOM_NORMAL, (positions(self.shape), self._seed, self._call), {"dtype": dtype})

    def truncated_normal(self, dtype: str) -> Node:
        """Numbers of the normal distribution, those beyond two standard deviations left out.

        The inverse of the distribution function: x = sqrt(2) * erfinv(v) for v in +-erf(sqrt(2)).
        """
        if dtype == "float16":
            return cast(self.truncated_normal("float32"), dtype)
        step = 2.0 ** -FRACTION_BITS[dtype]
        uniform = self.uniform(dtype) * _number(2, dtype) - _number(1 - step, dtype)  # exact and symmetric
        v = uniform * _number(math.erf(math.sqrt(2)), dtype)
        w = -log(_number(1, dtype) - v * v)  # what is lost near 1 adds nothing to the first coefficient
        total = _number(_INVERSE[dtype][-1], dtype)
        for coefficient in reversed(_INVERSE[dtype][:-1]):
            total = total * w + _number(coefficient, dtype)
        return minimum(maximum(v * total, _number(-2, dtype)), _number(2, dtype))


# sqrt(2) * erfinv(v) / v as a polynomial in w = -log(1 - v * v), interpolated at the Chebyshev nodes of 0 <= w <= 2.44
# with 50 digits. The relative errors are 3.5e-8 and 2.3e-18.
_INVERSE: dict[str, Sequence[float]] = {
    "float32": (
        1.253314094125884,
        0.3281186181711211,
        0.016321475130492268,
        -0.0032718595346012003,
        -0.0002198299530849485,
        9.227626810339412e-05,
        -6.585368330613539e-06,
    ),
    "float64": (
        1.2533141373155003,
        0.32811687386921773,
        0.016333236146982306,
        -0.003302332410679511,
        -0.00018108056663360085,
        6.591854763630553e-05,
        2.8566419416597606e-06,
        -1.4318467531295641e-06,
        -5.294026801783386e-08,
        3.246867538684753e-08,
        8.615655257329747e-10,
        -6.08045530045035e-10,
        -8.619276330373522e-11,
        3.848934336966373e-11,
        -4.07343373403308e-12,
        7.968702661603647e-14,
        8.637107276916442e-15,
    ),
}


def _number(value: float, dtype: str) -> Node:
    return leaf.constant(np.asarray(value, NUMPY_DTYPE[dtype]))


# ---------------------------------------------------------------------------------------------- calls
def draw_cells(graph: Graph) -> list[DrawCell]:
    """The cells of all draws that a graph makes."""
    return [
        node.attrs["cell"]
        for node in graph.nodes
        if node.op is leaf.VARIABLE and isinstance(node.attrs["cell"], DrawCell)
    ]


def next_call(cell: DrawCell) -> Node:
    """The number of the call after this one."""
    return leaf.variable(cell) + leaf.constant(np.asarray(1, np.uint64))
