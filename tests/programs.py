"""Random programs: a strategy for whole graphs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from contracts import all_contracts, sample
from evaluate import Array, atom_of
from hypothesis import strategies as st
from program_code import BLOCK, to_code

from graphkb.gradients import gradients
from graphkb.ir.dims import Dim, Symbol, substitute, symbol
from graphkb.ir.graph import Graph, toposort
from graphkb.ir.leaves import VariableCell
from graphkb.ir.node import Node, make
from graphkb.ir.op import find_op
from graphkb.ir.types import DTYPES, FLOATS, INTEGERS, NUMBERS
from graphkb.ops import elementwise as e
from graphkb.ops import index, leaf, linalg, reduce, shape

ELEMENTWISE = [c for c in all_contracts() if find_op(c.op).kind == "elementwise" and c.op not in ("cast", "select")]
ARITY = {c.op: len(next(iter(c.cases(c.dtypes[0], np.random.default_rng(0)))).inputs) for c in ELEMENTWISE}
COMMON_DTYPES = ("float32", "float64", "int32", "bool", "float16", "uint8", "int64", "int8", "uint32", "int16")
# Functions that grow slowly and are smooth wherever random programs go.
SMOOTH_UNARY = ("tanh", "sin", "cos", "sigmoid", "softplus", "atan", "erf", "neg", "asinh", "square", "relu", "abs")
SMOOTH_BINARY = ("add", "sub", "mul", "maximum", "minimum")


@dataclass(repr=False)
class RandomProgram:
    """A graph over unknown sizes, the sizes, and the values of its placeholders."""

    graph: Graph
    feeds: list[Array]
    sizes: dict[Symbol, int]
    state: dict[VariableCell, Array] = field(default_factory=dict)

    def _repr_pretty_(self, printer: Any, cycle: bool) -> None:
        printer.text(f"<{len(self.graph.nodes)} nodes>")  # the code is in the note

    @property
    def bound(self) -> Graph:
        return self.graph.bind(self.sizes)

    def resized(self, sizes: Sequence[int]) -> RandomProgram:
        """The same graph with other sizes and as many values as they need."""
        known = dict(zip(self.sizes, sizes))
        shapes = [tuple(substitute(d, known) for d in node.shape) for node in self.graph.inputs]
        feeds = [
            np.resize(a, s) if a.size else np.ones(s, a.dtype)  # type: ignore[arg-type]
            for a, s in zip(self.feeds, shapes)
        ]
        return RandomProgram(self.graph, feeds, known, self.state)

    def results(self, graph: Graph, roots: Sequence[Array]) -> list[Array]:
        """The outputs, then every variable's value after the call: passes may drop updates that change nothing."""
        count = len(self.graph.outputs)
        new = dict(zip([cell for cell, _ in graph.updates], roots[count:]))
        return [*roots[:count], *[new.get(cell, value) for cell, value in self.state.items()]]

    def reset(self) -> None:
        """Give the variables the values that they began with."""
        for cell, value in self.state.items():
            cell.array[...] = value

    def code(self) -> str:
        """The program as Python that builds the same graph."""
        return to_code(self.graph, self.feeds, self.sizes)


class _Builder:
    """Draws one instruction after the other on the values made so far; each value has its known shape beside it."""

    def __init__(self, draw: Callable[..., Any], smooth: bool = False, large: bool = False) -> None:
        self.draw = draw
        self.smooth = smooth
        self.most = 40_000 if large else 600  # elements of a value
        sizes = [3, 1, 67, 130, 1027, 3000] if large else [3, 1, 2, 5] if smooth else [3, 1, 2, 0, 17]
        self.rng = np.random.default_rng(draw(st.integers(0, 2**16), label="seed"))
        self.sizes: dict[Symbol, int] = {}
        self.dims: list[Dim] = [1, 3, 2]
        for name in "nm":
            dim = symbol(name)
            self.sizes[atom_of(dim)] = draw(st.sampled_from(sizes), label=name)
            self.dims.append(dim)
        self.values: list[Node] = []
        # The sizes are known from this input, whatever the program reads.
        known = tuple(self.sizes.values())
        self.inputs = [leaf.placeholder(tuple(self.dims[-2:]), "bool", "sizes")]
        self.feeds = [np.zeros(known, bool)]
        self.state: dict[VariableCell, Array] = {}

    # ------------------------------------------------------------------------------------------ helpers
    def pick(self, options: Sequence[Any], label: str = "") -> Any:
        return self.draw(st.sampled_from(list(options)), label=label)

    def known(self, node: Node) -> tuple[int, ...]:
        return tuple(self.size(d) for d in node.shape)

    def size(self, dim: Dim) -> int:
        value = substitute(dim, self.sizes)
        assert isinstance(value, int)
        return value

    def value(self, dtypes: Sequence[str] = DTYPES, least_rank: int = 0, nonempty: bool = False) -> Node | None:
        """A value made before, the latest first, so that programs grow deep and shrink well."""
        fit = [
            v
            for v in reversed(self.values)
            if v.dtype in dtypes and v.ndim >= least_rank and not (nonempty and 0 in self.known(v))
        ]
        return self.pick(fit, "operand") if fit else None

    def as_dtype(self, node: Node, dtype: str) -> Node:
        return e.cast(node, dtype)

    def array(self, dims: tuple[int, ...], dtype: str) -> Array:
        """Random values; large arrays repeat a block whose length divides no row, so that they print in short."""
        if int(np.prod(dims)) > BLOCK:
            return np.resize(self.block((BLOCK,), dtype), dims)
        return self.block(dims, dtype)

    def block(self, dims: tuple[int, ...], dtype: str) -> Array:
        if dtype in INTEGERS:
            return self.rng.integers(0, 7, dims).astype(dtype)
        if self.smooth:
            return self.rng.uniform(-1.5, 1.5, dims).astype(dtype)
        # Whole numbers and halves make ties and exact zeros, which smooth values never hit.
        values = sample(dtype, dims, self.rng)
        whole = self.rng.random(dims) < 0.5
        return np.asarray(np.where(whole, np.round(values * 2) / 2, values), dtype) if dtype in FLOATS else values

    # ------------------------------------------------------------------------------------------ leaves
    def leaf(self) -> None:
        dtype = "float64" if self.smooth else self.pick(COMMON_DTYPES, "dtype")
        dims = tuple(self.draw(st.lists(st.sampled_from(self.dims), max_size=3), label="shape"))
        while int(np.prod([self.size(d) for d in dims])) > self.most:
            dims = dims[1:]
        known = tuple(self.size(d) for d in dims)
        array = self.array(known, dtype)
        match self.pick(["placeholder", "constant", "variable"], "leaf"):
            case "constant":
                self.values.append(leaf.constant(array))
            case "variable":
                cell = VariableCell(array, f"v{len(self.state)}")
                self.state[cell] = array
                self.values.append(leaf.variable(cell))
            case _:
                node = leaf.placeholder(dims, dtype, f"x{len(self.inputs) - 1}")
                self.inputs.append(node)
                self.feeds.append(array)
                self.values.append(node)

    # ------------------------------------------------------------------------------------------ instructions
    def unary(self) -> Node | None:
        x = self.value(("float64",) if self.smooth else DTYPES)
        if x is None:
            return None
        names = [c.op for c in ELEMENTWISE if ARITY[c.op] == 1 and x.dtype in c.dtypes and not find_op(c.op).params]
        return make(find_op(self.pick(SMOOTH_UNARY if self.smooth else names, "op")), (x,))

    def binary(self) -> Node | None:
        a = self.value()
        assert a is not None
        names = [c.op for c in ELEMENTWISE if ARITY[c.op] == 2 and a.dtype in c.dtypes]
        op = find_op(self.pick(SMOOTH_BINARY if self.smooth else names, "op"))
        partners = [v for v in reversed(self.values) if self.broadcast(a, v)]
        b = self.as_dtype(self.pick(partners, "operand"), a.dtype)
        return make(op, (a, b) if self.draw(st.booleans(), label="order") else (b, a))

    def broadcast(self, *nodes: Node) -> bool:
        try:
            result = np.broadcast_shapes(*[self.known(n) for n in nodes])
        except ValueError:
            return False
        return int(np.prod(result)) <= self.most

    def select(self) -> Node | None:
        a = self.value()
        assert a is not None
        partners = [v for v in reversed(self.values) if self.broadcast(a, v)]
        b = self.as_dtype(self.pick(partners, "operand"), a.dtype)
        condition = self.pick([v for v in reversed(self.values) if self.broadcast(a, b, v)], "condition")
        if condition.dtype != "bool":
            condition = e.greater(condition, 1)
        return e.select(condition, a, b)

    def cast(self) -> Node | None:
        x = self.value()
        return None if x is None or self.smooth else self.as_dtype(x, self.pick(COMMON_DTYPES, "dtype"))

    def reduction(self) -> Node | None:
        x = self.value(least_rank=1)
        if x is None:
            return None
        known = self.known(x)
        axes = tuple(self.draw(st.sets(st.integers(0, x.ndim - 1), min_size=1), label="axes"))
        names = ["any", "all"] if x.dtype == "bool" else ["sum", "prod"]
        if all(known[a] for a in axes):
            names += ["max", "min", "argmax", "argmin"]
        if self.smooth:
            names = ["sum", "prod", "max", "min"][: len(names)]
        name = self.pick(names, "reduction")
        if name.startswith("arg"):
            return make(find_op(name), (x,), {"axis": axes[0]})
        return reduce.reduce(find_op(name), x, axes, self.draw(st.booleans(), label="keepdims"))

    def running(self) -> Node | None:
        x = self.value(NUMBERS, least_rank=1)
        if x is None:
            return None
        function = reduce.cumsum if self.smooth else self.pick([reduce.cumsum, reduce.cumprod], "op")
        flags = self.draw(st.booleans(), label="exclusive"), self.draw(st.booleans(), label="reverse")
        return function(x, self.draw(st.integers(0, x.ndim - 1), label="axis"), *flags)

    def reshape(self) -> Node | None:
        x = self.value()
        assert x is not None
        at = self.draw(st.integers(0, x.ndim), label="axis")
        if at < x.ndim - 1 and self.draw(st.booleans(), label="merge"):
            return shape.reshape(x, (*x.shape[:at], x.shape[at] * x.shape[at + 1], *x.shape[at + 2 :]))
        if x.ndim < 4:
            return shape.expand_dims(x, at)
        return shape.reshape(x, (x.type.size,))

    def transpose(self) -> Node | None:
        x = self.value(least_rank=2)
        return None if x is None else shape.transpose(x, tuple(self.draw(st.permutations(range(x.ndim)), label="axes")))

    def slices(self) -> Node | None:
        x = self.value(least_rank=1)
        if x is None:
            return None
        ends = st.one_of(st.none(), st.integers(-3, 3))
        steps = st.sampled_from([None, -1, 2, -2, 3])
        bounds = [
            shape.slice_bounds(d, slice(self.draw(ends), self.draw(ends), self.draw(steps)))
            if self.draw(st.booleans(), label="cut")
            else (0, d, 1)
            for d in x.shape
        ]
        return shape.slice_(x, tuple(b[0] for b in bounds), tuple(b[1] for b in bounds), tuple(b[2] for b in bounds))

    def pad(self) -> Node | None:
        x = self.value(least_rank=1)
        if x is None or int(np.prod([n + 3 for n in self.known(x)])) > self.most:
            return None
        edges = [(self.draw(st.integers(0, 2), label="before"), self.draw(st.integers(0, 1))) for _ in x.shape]
        dims = tuple(d + a + b for d, (a, b) in zip(x.shape, edges))
        return shape.pad(x, tuple(a for a, _ in edges), (1,) * x.ndim, dims)

    def concatenate(self) -> Node | None:
        x = self.value(least_rank=1)
        if x is None:
            return None
        axis = self.draw(st.integers(0, x.ndim - 1), label="axis")
        others = [v for v in reversed(self.values) if v.dtype == x.dtype and v.ndim == x.ndim]
        rest = [
            v for v in others if all(a == axis or p == q for a, (p, q) in enumerate(zip(self.known(v), self.known(x))))
        ]
        return shape.concatenate([x, self.pick(rest, "operand")], axis)

    def repeat(self) -> Node | None:
        x = self.value()
        assert x is not None
        dim = self.pick(self.dims, "dim")
        if x.ndim > 3 or self.size(dim) * int(np.prod(self.known(x))) > self.most:
            return None
        return shape.broadcast_to(x, (dim, *x.shape))

    def gather(self) -> Node | None:
        x, positions = self.value(least_rank=1), self.value(INTEGERS)
        if x is None:
            return None
        if positions is None:
            positions = leaf.constant(self.rng.integers(0, 9, 4))
        axis = self.draw(st.integers(0, x.ndim - 1), label="axis")
        n, count = self.known(x)[axis], int(np.prod(self.known(positions)))
        if n == 0 or count * int(np.prod(self.known(x))) > self.most or x.ndim + positions.ndim > 5:
            return None
        within = make(e.mod, (e.cast(positions, "int64"), leaf.size(x.shape[axis], "int64")))
        return index.gather(x, within, axis)

    def one_hot(self) -> Node | None:
        positions = None if self.smooth else self.value(INTEGERS)
        if positions is None or positions.ndim > 3 or int(np.prod(self.known(positions))) > 60:
            return None
        return index.one_hot(positions, self.pick(self.dims, "classes"), "float32")

    def dot(self) -> Node | None:
        x = self.value(NUMBERS, least_rank=1)
        if x is None:
            return None
        a = self.draw(st.integers(0, x.ndim - 1), label="axis")
        fits = [
            (v, b)
            for v in reversed(self.values)
            for b in range(v.ndim)
            if self.known(v)[b] == self.known(x)[a]
            and int(np.prod(self.known(v))) * int(np.prod(self.known(x))) <= 4 * self.most
        ]
        if not fits:
            return None
        y, b = self.pick(fits, "operand")
        y = self.as_dtype(y, x.dtype)
        shared = [
            (i, j) for i in range(x.ndim) for j in range(y.ndim) if (i, j) != (a, b) and i != a and j != b
            if self.known(x)[i] == self.known(y)[j]
        ]  # fmt: skip
        batch = [self.pick(shared, "batch")] if shared and self.draw(st.booleans(), label="batched") else []
        return linalg.dot(x, y, tuple(i for i, _ in batch), tuple(j for _, j in batch), (a,), (b,))

    def windows(self) -> Node | None:
        x = self.value(NUMBERS, least_rank=1, nonempty=True)
        if x is None:
            return None
        sizes = tuple(self.draw(st.integers(1, min(n, 3)), label="window") for n in self.known(x))
        strides = tuple(self.draw(st.integers(1, 3), label="stride") for _ in sizes)
        names = ["window_sum", "window_max"] if self.smooth else ["window_sum", "window_max", "window_argmax"]
        return make(find_op(self.pick(names, "op")), (x,), {"window": sizes, "strides": strides})

    def convolution(self) -> Node | None:
        x = self.value(NUMBERS, least_rank=2)
        if x is None or x.ndim > 4 or any(n == 0 for n in self.known(x)[1:-1]):
            return None
        places = self.known(x)[1:-1]
        taps = [self.draw(st.integers(1, min(n, 3)), label="taps") for n in places]
        dilations = tuple(
            self.draw(st.integers(1, max(1, (n - 1) // (t - 1) if t > 1 else 2))) for n, t in zip(places, taps)
        )
        strides = tuple(self.draw(st.integers(1, 2), label="stride") for _ in taps)
        filters = self.draw(st.integers(1, 3), label="filters")
        kernel = leaf.constant(self.array((*taps, self.known(x)[-1], filters), x.dtype))
        return make(find_op("conv"), (x, kernel), {"strides": strides, "dilations": dilations})

    def pattern(self) -> Node | None:
        """Formulas that passes look for."""
        x = self.value(("float32", "float64"), least_rank=1, nonempty=True)
        if x is None:
            return None
        last = (x.ndim - 1,)
        top = reduce.reduce(reduce.MAX, x, last, True)
        powers = e.exp(x - top)
        total = reduce.reduce_sum(powers, last, True)
        match self.pick(["softmax", "log_softmax", "normalize", "log1p", "entropy", "logsumexp"], "pattern"):
            case "softmax":
                return powers / total
            case "log_softmax":
                return e.log(powers / total)
            case "logsumexp":
                return e.log(total) + top
            case "log1p":
                return e.log(1 + e.exp(x))
            case "entropy":
                return -e.log(e.sigmoid(x))
            case _:
                count = reduce.count(x, last, x.dtype)
                mean = reduce.reduce_sum(x, last, True) / count
                spread = reduce.reduce_sum(e.square(x - mean), last, True) / count
                return (x - mean) * e.rsqrt(spread + 0.25)

    # ------------------------------------------------------------------------------------------ programs
    def step(self) -> None:
        make_one = self.pick(
            [
                self.binary, self.unary, self.reduction, self.select, self.slices, self.cast, self.transpose,
                self.reshape, self.dot, self.pattern, self.gather, self.concatenate, self.pad, self.repeat,
                self.running, self.one_hot, self.windows, self.convolution,
            ],
            "instruction",
        )  # fmt: skip
        node = make_one()
        if node is not None and node.ndim <= 5 and int(np.prod(self.known(node))) <= self.most:
            self.values.append(node)

    def run(self, steps: int) -> None:
        for _ in range(self.draw(st.integers(1, 4), label="leaves")):
            self.leaf()
        for _ in range(steps):
            count = len(self.values)
            for _ in range(3):  # an instruction may find no operands that fit
                self.step()
                if len(self.values) > count:
                    break

    def updates(self) -> tuple[tuple[VariableCell, Node], ...]:
        """New values for some variables, from values of their shapes."""
        made = []
        for cell in self.state:
            fit = [v for v in reversed(self.values) if self.known(v) == cell.type.shape]
            if self.draw(st.booleans(), label="update"):
                made.append((cell, self.as_dtype(self.pick(fit, "new value"), cell.type.dtype)))
        return tuple(made)


@st.composite
def programs(draw: Callable[..., Any], large: bool = False) -> RandomProgram:
    """Programs of all dtypes, with updates, several outputs, and now and then the gradients of them.

    Values of `large` ones have thousands of elements: their loops have rows, blocks, tails and threads.
    """
    builder = _Builder(draw, large=large)
    builder.run(draw(st.sampled_from([1, 2, 3, 5, 8, 11, 14, 17, 20]), label="steps"))
    values = list(reversed(builder.values))
    # Whatever nothing else reads is an output, so that the whole program counts.
    read = {i for v in toposort(values) for i in v.inputs}
    unread = [v for v in dict.fromkeys(values) if v not in read]
    outputs = [*unread, *draw(st.lists(st.sampled_from(values), max_size=2), label="outputs")]
    wrt = [v for v in builder.values if v.op.kind == "leaf" and v.dtype in FLOATS]
    if draw(st.booleans(), label="gradients") and wrt:
        outputs += [g for g in gradients(outputs, wrt) if g is not None]
    graph = Graph(tuple(builder.inputs), tuple(outputs), builder.updates(), "program")
    return RandomProgram(graph, builder.feeds, builder.sizes, builder.state)


@st.composite
def smooth_programs(draw: Callable[..., Any]) -> RandomProgram:
    """Programs of float64 values whose only output is a scalar that varies smoothly almost everywhere."""
    builder = _Builder(draw, smooth=True)
    builder.run(draw(st.sampled_from([1, 2, 3, 4, 6, 8, 10]), label="steps"))
    read = {i for v in toposort(builder.values) for i in v.inputs}
    unread = [v for v in dict.fromkeys(builder.values) if v not in read and v.dtype == "float64"]
    total = leaf.constant(0.0)
    for value in unread:
        total = total + reduce.reduce_sum(e.sin(value), tuple(range(value.ndim)))
    graph = Graph(tuple(builder.inputs), (total,), (), "smooth")
    return RandomProgram(graph, builder.feeds, builder.sizes, builder.state)
