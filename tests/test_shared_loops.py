"""Loops over a batch whose samples threads share: which bodies split, and that nothing changes by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from evaluate import interpret, placeholders

import graphkb
from graphkb import backend as K
from graphkb.ir.dims import symbol
from graphkb.ir.graph import Graph
from graphkb.ir.node import Node, make
from graphkb.ops import elementwise as ew
from graphkb.ops import leaf, linalg, reduce, shape
from graphkb.ops.conv import conv
from graphkb.ops.index import gather
from graphkb.ops.random import POSITIONS
from graphkb.passes import share_batch as sharing
from graphkb.passes.fuse import Fuse
from graphkb.passes.split_batch import split_body

Array = np.ndarray[Any, np.dtype[Any]]
RNG = np.random.default_rng(23)
BATCH = 6


def normal(*dims: int) -> Array:
    return RNG.normal(size=dims).astype("float32")


def dot(x: Node, y: Node) -> Node:
    return linalg.dot(x, y, (), (), (x.ndim - 1,), (0,))


# ---------------------------------------------------------------------------------------------- bodies
# For each the result of a step from a state (6, 4), a slice (6, 4) and a constant.
APART: dict[str, tuple[Callable[..., Node], Array]] = {}


def apart(name: str, *constant: int | str) -> Callable[[Callable[..., Node]], None]:
    """Register a step whose constant has the shape told."""

    def keep(step: Callable[..., Node]) -> None:
        APART[name] = step, normal(*[BATCH if n == "batch" else int(n) for n in constant])

    return keep


def largest(x: Node) -> Node:
    return reduce.reduce(reduce.MAX, x, (1,), False)


def place_of_largest(x: Node) -> Node:
    return make(reduce.ARGMAX, (x,), {"axis": 1})


def column(x: Node) -> Node:
    return shape.reshape(x, (BATCH, 1))


def part(x: Node, first: int, count: int) -> Node:
    return shape.slice_(x, (0, first), (BATCH, count))


def turned(x: Node) -> Node:
    return shape.transpose(x, (1, 0))


apart("sum of all", 4)(lambda s, x, c: s + x * c)
apart("one number")(lambda s, x, c: s * c + x)
apart("product", 4, 4)(lambda s, x, c: ew.tanh(dot(s, c) + x))
apart("product from the left", 4, 4)(lambda s, x, c: turned(linalg.dot(c, s, (), (), (0,), (1,))) + x)
apart("products of samples", 1, 4)(
    lambda s, x, c: linalg.dot(s, dot(shape.reshape(x, (BATCH, 4, 1)), c), (0,), (0,), (1,), (1,))
)
apart("rows normalized", 4)(lambda s, x, c: s / reduce.reduce_sum(s * s, (1,), True) + x * c)
apart("largest", 4)(lambda s, x, c: s * shape.broadcast_to(column(largest(x)), (BATCH, 4)) + c)
apart("place of the largest", 4)(lambda s, x, c: s + x * column(ew.cast(place_of_largest(s), "float32")) + c)
apart("running sums", 4)(lambda s, x, c: reduce.cumsum(s, 1, False, True) * 0.1 + x * c)
apart("turned over twice", 4)(lambda s, x, c: turned(turned(s) * turned(x)) + c)
apart("halves swapped", 4)(lambda s, x, c: shape.concatenate([part(s, 2, 2), part(x, 0, 2)], 1) * c)
apart("joined with a constant", 9, 4)(
    lambda s, x, c: dot(shape.concatenate([s, x, shape.broadcast_to(leaf.constant(np.float32(1)), (BATCH, 1))], 1), c)
)
apart("padded", 4)(lambda s, x, c: part(shape.pad(s, (0, 1), (1, 1), (BATCH, 6)), 2, 4) + x * c)
apart("chosen", 4)(lambda s, x, c: ew.select(ew.greater(x, s), s, c))
apart("the same for all", 4)(lambda s, x, c: s * c + x - shape.broadcast_to(ew.exp(c), (BATCH, 4)))
apart("rows of a table", 4, 4)(lambda s, x, c: s + gather(c, ew.cast(place_of_largest(x), "int64"), 0))
apart("columns picked", 4)(lambda s, x, c: gather(s, leaf.constant(np.array([3, 1, 0, 2])), 1) + x * c)
apart("a constant of the batch", "batch", 4)(lambda s, x, c: s * c + x)
apart("a constant of the batch, changed", "batch", 4)(lambda s, x, c: ew.tanh(c) * 2.0 + s + x)
apart("images", 1, 1, 1)(
    lambda s, x, c: shape.reshape(conv(shape.reshape(s, (BATCH, 4, 1)), c, (1,), (1,)), (BATCH, 4)) + x
)


def body_of(step: Callable[..., Node], constant: Array, outputs: int = 1) -> Graph:
    parameters = placeholders([normal(BATCH, 4), normal(BATCH, 4), constant], "p")
    new = step(*parameters)
    return Graph(tuple(parameters), (new,) * (1 + outputs), name="body")


@pytest.mark.parametrize("name", APART)
def test_samples_apart(name: str) -> None:
    step, constant = APART[name]
    feeds = [normal(BATCH, 4), normal(BATCH, 4), constant]
    plain = body_of(step, constant)
    whole, _ = interpret(plain, feeds)
    # In kernels, positions are guarded by a check of all samples.
    for body in (plain,) if "table" in name else (plain, Fuse().apply(plain)):
        for count in (1, 2, 5):
            split = split_body(body, 1, 1, count)
            assert split is not None
            assert split.varying == ({0, 1, 2} if "batch" in name else {0, 1})
            given = [feed[:count] if i in split.varying else feed for i, feed in enumerate(feeds)]
            for part in interpret(split.body, given):
                assert part.shape == (count, 4)
                np.testing.assert_allclose(part, whole[:count], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(
    "step",
    [
        lambda s, x, c: s + x * c / reduce.reduce_sum(s, (0,), True),
        lambda s, x, c: s - shape.reverse(x, (0,)) * c,
        lambda s, x, c: reduce.cumsum(s, 0, False, False) + x * c,
        lambda s, x, c: s + ew.cast(make(POSITIONS, (), {"shape": (BATCH, 4)}), "float32") * c,
        lambda s, x, c: dot(dot(s, shape.transpose(x, (1, 0))), s) * c,
        lambda s, x, c: shape.reshape(shape.transpose(shape.reshape(s, (4, BATCH)), (1, 0)), (BATCH, 4)) + x * c,
        lambda s, x, c: shape.slice_(shape.concatenate([s, x], 0), (1, 0), (BATCH, 4)),
        lambda s, x, c: shape.pad(shape.slice_(s, (1, 0), (BATCH - 1, 4)), (0, 0), (1, 1), (BATCH, 4)) * c + x,
        lambda s, x, c: s + gather(x, leaf.constant(np.arange(BATCH)[::-1].copy()), 0) * c,
        lambda s, x, c: leaf.constant(normal(BATCH, 4)) + s * x * c,
    ],
)
def test_samples_that_depend_on_one_another(step: Callable[..., Node]) -> None:
    body = body_of(step, normal(4))
    for graph in (body, Fuse().apply(body)):
        assert split_body(graph, 1, 1, 2) is None


def test_values_without_samples_keep_a_loop_whole() -> None:
    s, t, x = placeholders([normal(BATCH, 4), normal(), normal(BATCH, 4)], "p")
    assert split_body(Graph((s, t, x), (s + x, t + 1.0), name="body"), 2, 1, 2) is None
    assert split_body(Graph((s, x), (s + x, reduce.reduce_sum(x, (0,), False)), name="body"), 1, 1, 2) is None
    assert split_body(Graph((s, x), (s + x,), name="body"), 0, 1, 2) is None
    n = symbol("n")
    a, b = leaf.placeholder((n, 4), "float32", "a"), leaf.placeholder((n, 4), "float32", "b")
    assert split_body(Graph((a, b), (a + b,), name="body"), 1, 1, 2) is None


# ---------------------------------------------------------------------------------------------- how many parts
@pytest.mark.parametrize(
    ("batch", "length", "units", "parts"),
    [
        (32, 100, 128, [(4, 8)]),
        (8, 100, 128, [(2, 4)]),
        (20, 100, 128, [(2, 10)]),
        (30, 100, 128, [(3, 10)]),
        (23, 100, 128, [(1, 12), (1, 11)]),
        (7, 100, 128, []),
        (1, 100, 128, []),
        (32, 100, 512, []),
        (32, 1, 8, []),
        (10_000, 50, 16, [(50, 200)]),
    ],
)
def test_how_many_parts(batch: int, length: int, units: int, parts: list[tuple[int, int]]) -> None:
    s, x = (leaf.placeholder((batch, units), "float32", name) for name in "sx")
    w = leaf.placeholder((units, units * 4), "float32", "w")
    z = dot(s, w)
    new = ew.tanh(shape.slice_(z, (0, 0), (batch, units)) * shape.slice_(z, (0, units * 3), (batch, units))) + x
    found = sharing.share_batch(Graph((s, x, w), (new,), name="body"), 1, 1, length)
    assert [(part.count, part.samples) for part in found] == parts
    first = 0
    for part in found:
        assert part.first == first
        first += part.count * part.samples
    assert first in (0, batch)


# ---------------------------------------------------------------------------------------------- machine code
pytest.importorskip("llvmlite")


@pytest.fixture
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Even small loops are shared."""
    monkeypatch.setattr(sharing, "_PART", 1)


def run_shared(step: Callable[..., Any], states: list[Array], sequences: list[Array], constants: list[Array]) -> None:
    """The plan of a scan gives what its ops mean."""
    from test_native_loops import plan_of, scan

    graph, feeds = scan(step, states, sequences, constants, len(sequences[0]), reverse=len(sequences[0]) % 2 == 0)
    plan = plan_of(graph)
    assert " samples parallel:" in plan.loops
    for actual, expected in zip(plan.run(feeds), interpret(graph, feeds), strict=True):
        assert (actual.dtype, actual.shape) == (expected.dtype, expected.shape)
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("name", [name for name in APART if name not in ("images", "rows of a table")])
def test_each_kind_of_body(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(globals(), "BATCH", 19)
    step, constant = APART[name]
    constant = normal(19, 4) if "batch" in name else constant

    def two(s: Node, x: Node, c: Node) -> tuple[list[Node], list[Node]]:
        new = step(s, x, c)
        return [new], [new, s]

    run_shared(two, [normal(19, 4)], [normal(4, 19, 4)], [constant])


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("dtype", ["float16", "float32", "float64", "int8", "int64", "uint16"])
def test_states_that_change_places(dtype: str) -> None:
    def given(*dims: int) -> Array:
        return RNG.integers(-4, 5, dims).astype(dtype)

    for batch, length in ((9, 5), (16, 2), (5, 3)):
        states, x = [given(batch, 3), given(batch, 2), given(batch, 3)], [given(length, batch, 3)]
        for new in (lambda a, b, c, x: [c, b, a + x], lambda a, b, c, x: [c * x, b + b, a]):

            def step(*given: Node, new: Callable[..., list[Node]] = new) -> tuple[list[Node], list[Node]]:
                return new(*given), [given[0], new(*given)[0], given[2]]

            run_shared(step, states, x, [])


def lstm(batch: int, steps: int, units: int, mask: bool = False) -> tuple[Any, list[Array]]:
    """A function of an LSTM layer with its gradients, and arguments."""
    x = K.placeholder((batch, steps, 5))
    rng = np.random.default_rng(5)
    w, u = (K.variable(rng.normal(size=(n, 4 * units)) / 4) for n in (5, units))

    def step(row: Any, states: Any) -> Any:
        h, c = states
        z = K.dot(row, w) + K.dot(h, u)
        i, f, o = (K.sigmoid(z[:, k * units : (k + 1) * units]) for k in range(3))
        c = f * c + i * K.tanh(z[:, 3 * units :])
        h = o * K.tanh(c)
        return h, [h, c]

    zeros = K.zeros((batch, units))
    known = K.not_equal(K.sum(x, axis=2), 0.0) if mask else None
    last, outputs, _ = K.rnn(step, x, [zeros, zeros], mask=known)
    f = K.function([x], [last, outputs, *K.gradients(K.sum(K.square(outputs)), [w, u, x])])
    values = rng.normal(size=(batch, steps, 5)).astype("float32")
    values[:, steps // 2 :] *= rng.integers(0, 2, (batch, 1, 1))
    return f, [values]


@pytest.mark.usefixtures("small_parts")
@pytest.mark.parametrize("mask", [False, True])
@pytest.mark.parametrize("batch", [8, 19, 32])
def test_threads_change_no_bit(batch: int, mask: bool) -> None:
    results = []
    for threads in (1, 2, 3):
        with graphkb.options(mode="native", threads=threads):
            f, values = lstm(batch, 9, 16, mask)
            results.append(f(values))
    with graphkb.options(mode="interpret"):
        f, values = lstm(batch, 9, 16, mask)
        expected = f(values)
    for a, b, c, e in zip(*results, expected, strict=True):
        np.testing.assert_array_equal(a, b)
        np.testing.assert_array_equal(a, c)
        np.testing.assert_allclose(a, e, rtol=1e-4, atol=1e-4)


def test_dumps_profiles_and_reports_show_the_parts() -> None:
    with graphkb.options(mode="native", threads=2):
        f, values = lstm(32, 60, 64)
        f(values)
    lines = [line.strip() for line in f.dump("loops").split("\nprogram ")[1].splitlines()]
    at = lines.index("for part < 4 of 8 samples parallel:")
    assert lines[at + 1] == "for step < 60:"
    assert "for step < 60 backwards:" in lines
    assert f.report().interpreted == 0
    profile = f.profile(values)
    loops = [i for i, step in enumerate(profile.steps) if step.name == "scan"]
    assert len(loops) == 2
    for i in loops:
        inside = []
        for step in profile.steps[i + 1 :]:
            if not step.depth:
                break
            inside.append(step)
        assert {step.calls for step in inside} == {4 * 60}
        assert 0 < sum(step.seconds for step in inside) <= profile.steps[i].seconds * 1.0001
