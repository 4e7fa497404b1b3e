"""Random programs for tests of the passes, drawn by hypothesis: symbolic sizes, every dtype, special values."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np
from evaluate import Array, atom_of
from hypothesis import strategies as st

from graphkb.ir.dims import Dim, substitute, symbol
from graphkb.ir.errors import DTypeError, ShapeError
from graphkb.ir.graph import Graph
from graphkb.ir.node import Node, make
from graphkb.ops import elementwise as ew
from graphkb.ops import index, leaf
from graphkb.ops import reduce as rd
from graphkb.ops import shape as sh

INF, NAN = float("inf"), float("nan")
FLOAT_VALUES = [0.0, -0.0, 1.0, -1.0, 2.0, 0.5, -3.0, 1e-7, 3e38, INF, -INF, NAN]
INT_VALUES = [0, 1, -1, 2, 3, 7, 100, -128, 127]
DTYPES = ("float32", "float16", "int8", "int32", "uint8", "bool")

UNARY = [
    op for op in (getattr(ew, n) for n in dir(ew)) if getattr(op, "kind", "") == "elementwise" and op.name != "cast"
]
# Left out: what rewrites within a rounding (powers), and what is slow (erf).
SKIPPED = {"pow", "erf", "erfc"}
ELEMENTWISE = {op.name: op for op in UNARY if op.name not in SKIPPED}
BINARY = """add sub mul div floordiv mod atan2 maximum minimum equal not_equal less less_equal greater greater_equal
logical_and logical_or logical_xor"""
ARITY = {"select": 3} | {op.name: 2 for op in ELEMENTWISE.values() if op.name in BINARY.split()}
# Sums of floats may be rounded in another order, and their rewrites are tested by themselves.
REDUCTIONS = {"max": rd.MAX, "min": rd.MIN, "any": rd.ANY, "all": rd.ALL, "sum": rd.SUM, "prod": rd.PROD}


@dataclass(frozen=True)
class Theme:
    """What a program is made of: few kinds of steps, so that the rules meet what they look for."""

    kinds: tuple[str, ...]
    unary: tuple[str, ...]
    binary: tuple[str, ...]


_ALL_UNARY = tuple(n for n in ELEMENTWISE if n not in ARITY)
_ALL_BINARY = tuple(n for n, count in ARITY.items() if count == 2)
THEMES = (
    Theme(("unary", "binary", "constant", "cast", "view", "reduce", "select"), _ALL_UNARY, _ALL_BINARY),
    Theme(("unary", "binary", "constant"), ("neg", "neg", "abs", "square"), ("add", "sub", "mul", "div")),
    Theme(("unary", "constant"), ("neg", "relu", "sqrt", "reciprocal"), ("add", "mul", "maximum", "minimum")),
    Theme(("unary", "binary", "constant", "select"), ("logical_not",), ("logical_and", "logical_or", "less", "equal")),
    Theme(("view", "view", "view", "unary"), ("neg",), ("add",)),
    Theme(("view", "reduce", "constant"), ("neg",), ("add",)),
    Theme(("cast", "constant"), ("neg",), ("add", "less")),
)


@dataclass
class Program:
    """Nodes as they are drawn, with the sizes and the arrays that they will be run with."""

    sizes: dict[Any, int]
    theme: Theme
    inputs: list[Node] = field(default_factory=list)
    feeds: list[Array] = field(default_factory=list)
    pool: list[Node] = field(default_factory=list)

    def known(self, dim: Dim) -> int:
        value = substitute(dim, self.sizes)
        assert isinstance(value, int)
        return value

    def known_shape(self, node: Node) -> tuple[int, ...]:
        return tuple(self.known(d) for d in node.shape)


def _array(draw: Any, dtype: str, shape: tuple[int, ...]) -> Array:
    values = {"f": FLOAT_VALUES, "i": INT_VALUES, "u": [0, 1, 2, 3, 200, 255], "b": [False, True]}[np.dtype(dtype).kind]
    size = int(np.prod(shape))
    drawn = draw(st.lists(st.sampled_from(values), min_size=size, max_size=size))
    with np.errstate(over="ignore"):
        return np.array(drawn, np.float64 if dtype.startswith("f") else None).astype(dtype).reshape(shape)


@st.composite
def programs(draw: Any, dtypes: tuple[str, ...] = DTYPES, steps: int = 20) -> tuple[Graph, Program]:
    n = symbol("n")
    program = Program({atom_of(n): draw(st.sampled_from([1, 2, 3]))}, draw(st.sampled_from(THEMES)))
    shapes: list[tuple[Dim, ...]] = [(), (n, 3), (3,), (n, 1), (2, n, 3), (1, 3)]
    for _ in range(draw(st.integers(1, 3))):
        dtype, shape = draw(st.sampled_from(dtypes)), draw(st.sampled_from(shapes))
        x = leaf.placeholder(shape, dtype, f"x{len(program.inputs)}")
        program.inputs.append(x)
        program.feeds.append(_array(draw, dtype, program.known_shape(x)))
    program.pool += program.inputs
    for _ in range(draw(st.integers(steps // 2, steps))):
        node = _step(draw, program, dtypes)
        if node is not None:
            program.pool.append(node)
    outputs = [program.pool[-1], draw(st.sampled_from(program.pool))]
    return Graph(tuple(program.inputs), tuple(outputs)), program


def _step(draw: Any, program: Program, dtypes: tuple[str, ...]) -> Node | None:
    """One more node; None where the drawn op does not fit the drawn operands."""
    # Recent nodes more often: rules need depth.
    position = draw(st.integers(0, 2 * len(program.pool)))
    x = program.pool[-1 - position % min(3, len(program.pool))] if position % 4 else draw(st.sampled_from(program.pool))
    kind = draw(st.sampled_from(program.theme.kinds))
    try:
        node = _BUILD[kind](draw, program, x, dtypes)
        if node is not None and node.op.kind == "elementwise":
            # Symbolic sizes may meet numbers that they are not equal to at this call.
            known = np.broadcast_shapes(*[program.known_shape(i) for i in node.inputs])
            return node if known == program.known_shape(node) else None
    except (DTypeError, ShapeError, ValueError):
        return None
    return node


def _partner(draw: Any, program: Program, x: Node, dtype: str) -> Node:
    candidates = [p for p in program.pool if p.dtype == dtype and _fits(program, p, x)]
    return draw(st.sampled_from(candidates)) if candidates else ew.cast(x, dtype)


def _fits(program: Program, a: Node, b: Node) -> bool:
    try:
        np.broadcast_shapes(program.known_shape(a), program.known_shape(b))
        # Unknown sizes that happen to be equal at this call are a matter of guards, not of rules.
        ew.broadcast_shapes("test", a.shape, b.shape)
    except (ValueError, ShapeError):
        return False
    return True


def _unary(draw: Any, program: Program, x: Node, dtypes: tuple[str, ...]) -> Node:
    return make(ELEMENTWISE[draw(st.sampled_from(program.theme.unary))], (x,))


def _binary(draw: Any, program: Program, x: Node, dtypes: tuple[str, ...]) -> Node:
    y = _partner(draw, program, x, x.dtype)
    return make(ELEMENTWISE[draw(st.sampled_from(program.theme.binary))], (x, y) if draw(st.booleans()) else (y, x))


def _constant(draw: Any, program: Program, x: Node, dtypes: tuple[str, ...]) -> Node:
    op = ELEMENTWISE[draw(st.sampled_from(program.theme.binary))]
    shape = draw(st.sampled_from([(), (), (3,), (1, 1)]))
    c = leaf.constant(_array(draw, x.dtype, shape))
    if draw(st.booleans()):
        c = sh.broadcast_to(leaf.constant(_array(draw, x.dtype, ())), x.shape)
    return make(op, (x, c) if draw(st.booleans()) else (c, x))


def _cast(draw: Any, program: Program, x: Node, dtypes: tuple[str, ...]) -> Node:
    dtype = draw(st.sampled_from(dtypes))
    if x.dtype.startswith("f") and "int" in dtype:
        dtype = "float64"  # out of range it is the processor's choice
    return ew.cast(x, dtype)


def _select(draw: Any, program: Program, x: Node, dtypes: tuple[str, ...]) -> Node:
    condition = _partner(draw, program, x, "bool") if draw(st.booleans()) else leaf.constant(draw(st.booleans()))
    y = _partner(draw, program, x, x.dtype)
    return ew.select(condition, x, y) if draw(st.booleans()) else ew.select(condition, y, x)


def _reduce(draw: Any, program: Program, x: Node, dtypes: tuple[str, ...]) -> Node:
    if not x.ndim:
        return ew.stop_gradient(x)
    axes = tuple(sorted(draw(st.sets(st.integers(0, x.ndim - 1), min_size=1))))
    keepdims = draw(st.booleans())
    choice = draw(st.sampled_from(["max", "min", "sum", "any", "all", "prod", "arg", "cumsum"]))
    if choice == "arg":
        return make(rd.ARGMAX, (x,), {"axis": axes[0]})
    if choice == "cumsum":
        return rd.cumsum(x, axes[0], draw(st.booleans()), draw(st.booleans()))
    if x.dtype.startswith("f") and choice in ("sum", "prod"):
        axes = tuple(a for a in axes if x.shape[a] == 1)  # exact only over one element
    return rd.reduce(REDUCTIONS[choice], x, axes, keepdims)


def _view(draw: Any, program: Program, x: Node, dtypes: tuple[str, ...]) -> Node | None:
    choice = draw(
        st.sampled_from(
            ["reshape", "flat", "transpose", "broadcast", "slice", "pad", "concatenate", "like", "un", "gather"]
        )
    )
    if choice == "reshape":
        at = draw(st.integers(0, x.ndim))
        return make_reshape(x, (*x.shape[:at], 1, *x.shape[at:])) if x.ndim < 4 else None
    if choice == "flat":
        return make_reshape(x, (x.type.size,) if draw(st.booleans()) else tuple(d for d in x.shape if d != 1))
    if choice == "transpose":
        return make(sh.TRANSPOSE, (x,), {"axes": tuple(draw(st.permutations(range(x.ndim))))})
    if choice == "broadcast":
        shape = tuple(2 if d == 1 else d for d in x.shape)
        return sh.broadcast_to(x, (2, *shape)) if x.ndim < 3 else sh.broadcast_to(x, shape)
    if choice == "concatenate" and x.ndim:
        axis = draw(st.integers(0, x.ndim - 1))
        same = [p for p in program.pool if p.dtype == x.dtype and _concatenates(p, x, axis)]
        return make(sh.CONCATENATE, (x, draw(st.sampled_from(same))), {"axis": axis})
    if choice == "like":
        other = draw(st.sampled_from(program.pool))
        return make(ew.BROADCAST_LIKE, (x, other)) if _fits(program, x, other) else None
    if choice == "un" and not x.dtype.startswith("f"):
        targets = [p for p in program.pool if x.dtype != "bool" and _broadcasts_to(p, x)]
        return make(ew.UNBROADCAST, (x, draw(st.sampled_from(targets)))) if targets else None
    if choice == "gather" and x.ndim:
        return (
            index.gather(x, leaf.constant(_array(draw, "bool", (2,)).astype("int32")), 0) if x.shape[0] == 3 else None
        )
    if choice in ("slice", "pad"):
        starts, sizes, steps, shape = [], [], [], []
        for dim in x.shape:
            step = draw(st.sampled_from([1, 1, 2, -1]))
            if choice == "slice":
                if isinstance(dim, int) and dim > 0:
                    start, stop = draw(st.integers(0, dim - 1)), draw(st.integers(0, dim))
                    start, size, step = sh.slice_bounds(dim, slice(start, stop, step))
                    starts.append(start if size else 0)
                    sizes.append(size)
                else:
                    starts.append(dim - 1 if step < 0 else 0)
                    sizes.append(dim)
                    step = -1 if step < 0 else 1
            else:
                step = abs(step)
                starts.append(draw(st.integers(0, 2)))
                shape.append(starts[-1] + dim * step + draw(st.integers(0, 1)))
            steps.append(step)
        if choice == "slice":
            attrs: dict[str, Any] = {"starts": tuple(starts), "sizes": tuple(sizes), "steps": tuple(steps)}
            return make(sh.SLICE, (x,), attrs)
        return make(sh.PAD, (x,), {"starts": tuple(starts), "steps": tuple(steps), "shape": tuple(shape)})
    return None


def make_reshape(x: Node, shape: tuple[Dim, ...]) -> Node:
    """A reshape that the builder does not simplify."""
    return make(sh.RESHAPE, (x,), {"shape": shape})


def _concatenates(a: Node, b: Node, axis: int) -> bool:
    return a.ndim == b.ndim and all(i == axis or m == n for i, (m, n) in enumerate(zip(a.shape, b.shape)))


def _broadcasts_to(a: Node, b: Node) -> bool:
    return a.ndim <= b.ndim and all(m in (1, n) for m, n in zip(reversed(a.shape), reversed(b.shape)))


_BUILD = {
    "unary": _unary,
    "binary": _binary,
    "constant": _constant,
    "cast": _cast,
    "select": _select,
    "reduce": _reduce,
    "view": _view,
}
