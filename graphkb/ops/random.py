"""Random numbers by counter: every element is a function of its position, a seed and the number of the call."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from graphkb.ir.dims import Shape
from graphkb.ir.errors import DTypeError
from graphkb.ir.graph import Graph
from graphkb.ir.leaves import Array, DrawCell
from graphkb.ir.node import Node, make
from graphkb.ir.op import define, not_differentiable
from graphkb.ir.types import FLOATS, NUMPY_DTYPE, TensorType
from graphkb.ops import leaf
from graphkb.ops.elementwise import broadcast_shapes, cast, cos, log1p_, maximum, minimum, sqrt

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


def _infer_bits(position: TensorType, seed: TensorType, call: TensorType) -> TensorType:
    for type in (position, seed, call):
        if type.dtype != "uint64":
            raise DTypeError(f"random_bits: the operands must be uint64, not {type.dtype}")
    return TensorType("uint64", broadcast_shapes("random_bits", position.shape, seed.shape, call.shape))


def _numpy_bits(position: Array, seed: Array, call: Array) -> Array:
    mask, half = np.uint64(_MASK), np.uint64(32)
    a, b, c, d = (np.asarray(word) for x in (position, call) for word in (x & mask, x >> half))
    keys = [np.asarray(seed & mask), np.asarray(seed >> half)]
    m, n = map(np.uint64, MULTIPLIERS)
    for _ in range(ROUNDS):
        p, q = a * m, c * n
        a, b, c, d = (q >> half) ^ b ^ keys[0], q & mask, (p >> half) ^ d ^ keys[1], p & mask
        keys = [(key + np.uint64(step)) & mask for key, step in zip(keys, WEYL)]
    return np.asarray(a | (b << half))


RANDOM_BITS = define(
    "random_bits",
    kind="elementwise",
    infer=_infer_bits,
    numpy=_numpy_bits,
    vjp=not_differentiable,
    cost=60,
    doc="The first half of the Philox4x32-10 block with the counter (position, call) and the seed as key.",
)


def _infer_fraction(bits: TensorType, dtype: str) -> TensorType:
    if bits.dtype != "uint64" or dtype not in FLOATS:
        raise DTypeError(f"fraction: expected uint64 bits and a float dtype, not {bits.dtype} and {dtype}")
    return bits.with_dtype(dtype)


def _numpy_fraction(bits: Array, dtype: str) -> Array:
    count = FRACTION_BITS[dtype]
    return np.asarray((bits >> np.uint64(64 - count)).astype(dtype) * NUMPY_DTYPE[dtype].type(2.0**-count))


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


# ---------------------------------------------------------------------------------------------- building
def positions(shape: Shape) -> Node:
    """For each element of a shape its place in row-major order."""
    return make(POSITIONS, (), {"shape": shape})


def random_bits(position: Node, seed: Node, call: Node) -> Node:
    """64 random bits for each counter (position, call) under a seed; all uint64."""
    return make(RANDOM_BITS, (position, seed, call))


def fraction(bits: Node, dtype: str) -> Node:
    """uint64 bits as numbers in [0, 1)."""
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

    def bits(self, part: int = 0) -> Node:
        """64 bits for each element, independent for each of up to 16 parts."""
        place = positions(self.shape)
        if part:
            place = place + leaf.constant(np.asarray(part << 60, np.uint64))
        return random_bits(place, self._seed, self._call)

    def uniform(self, dtype: str) -> Node:
        """Numbers in [0, 1)."""
        return fraction(self.bits(), dtype)

    def normal(self, dtype: str) -> Node:
        """Numbers of mean 0 and standard deviation 1.

        G. E. P. Box, M. E. Muller, "A note on the generation of random normal deviates", 1958.
        """
        if dtype == "float16":
            return cast(self.normal("float32"), dtype)
        bits = self.bits()
        # The lower half of the bits goes up to where the upper one was; two doubles take more than there is.
        others = self.bits(1) if dtype == "float64" else bits * leaf.constant(np.asarray(2**32, np.uint64))
        radius = sqrt(_log1p(-fraction(bits, dtype)) * _number(-2, dtype))
        return radius * cos(fraction(others, dtype) * _number(2 * math.pi, dtype))

    def truncated_normal(self, dtype: str) -> Node:
        """Numbers of the normal distribution, those beyond two standard deviations left out.

        The inverse of the distribution function: x = sqrt(2) * erfinv(v) for v in +-erf(sqrt(2)).
        """
        if dtype == "float16":
            return cast(self.truncated_normal("float32"), dtype)
        step = 2.0 ** -FRACTION_BITS[dtype]
        uniform = self.uniform(dtype) * _number(2, dtype) - _number(1 - step, dtype)  # exact and symmetric
        v = uniform * _number(math.erf(math.sqrt(2)), dtype)
        w = -_log1p(-(v * v))
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


def _log1p(x: Node) -> Node:
    return make(log1p_, (x,))


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
