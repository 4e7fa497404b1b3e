"""Kernels over a batch that run for some samples at a time: which become chains, and that nothing changes by it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from evaluate import interpret
from hypothesis import given, note
from noise import expect
from programs import RandomProgram, programs
from test_random_programs import budget, roots_of

import graphkb
from graphkb import backend as K
from graphkb.ir.graph import Graph
from graphkb.ir.node import Node, make
from graphkb.ir.op import define
from graphkb.ir.verify import verify
from graphkb.passes import chain_kernels
from graphkb.passes.chain_kernels import ChainKernels
from graphkb.passes.fuse import Fuse
from graphkb.passes.pipeline import FUSION, PIPELINE, optimize
from graphkb.runtime.function import Function

pytest.importorskip("llvmlite")
Array = np.ndarray[Any, np.dtype[Any]]
RNG = np.random.default_rng(41)


def normal(*dims: int) -> Array:
    return RNG.normal(size=dims).astype("float32")


def small_chains(patch: pytest.MonkeyPatch, parts: int = 2, usual: int = 1 << 18) -> None:
    """Even small kernels become chains."""
    patch.setenv("GRAPHKB_CACHE", "off")  # it knows graphs by what they were before
    for name, value in (("_NEAR_BYTES", 0), ("_SMALL_BYTES", 0), ("_FEWEST_ROWS", 1)):
        patch.setattr(chain_kernels, name, value)
    patch.setattr(chain_kernels, "_FEWEST_PARTS", parts)
    patch.setattr(chain_kernels, "_USUAL_BYTES", usual)


def chains_of(graph: Graph) -> list[Node]:
    return [node for node in graph.nodes if node.op.name == "chain"]


def optimized(f: Any) -> Graph:
    """The kernels and chains of a function of known sizes."""
    return optimize(optimize(f.definition), FUSION)


def kernels_of(chain: Node) -> int:
    return sum(node.op.kind == "fused" for node in chain.attrs["body"].nodes)


def classifier(x: Any, filters: int = 4, padding: str = "valid") -> tuple[Any, list[Any]]:
    """Two convolutions and pooling, and the weights."""
    channels = K.int_shape(x)[-1]
    shapes = [(3, 3, channels, filters), (filters,), (3, 3, filters, 2 * filters)]
    k, b, m = weights = [K.variable(0.3 * RNG.normal(size=s), dtype=K.dtype(x)) for s in shapes]
    h = K.relu(K.bias_add(K.conv2d(x, k, padding=padding), b))
    return K.pool2d(K.tanh(K.conv2d(h, m, padding=padding)), (2, 2), (2, 2)), weights


# ---------------------------------------------------------------------------------------------- what becomes a chain
def test_large_values_that_kernels_hand_on() -> None:
    y, _ = classifier(x := K.placeholder((32, 28, 28, 8)), 32)
    (chain,) = chains_of(optimized(K.function([x], [y])))
    assert kernels_of(chain) == 3
    assert (chain.attrs["samples"], chain.attrs["varying"]) == (1, (0,))
    assert [out.shape for out in chain.attrs["body"].outputs] == [(32, 12, 12, 64)]


@pytest.mark.parametrize(
    "shape", [(4, 28, 28, 8), (32, 6, 6, 8), (1, 200, 200, 8), (32, 200, 200, 8), (None, 28, 28, 8)]
)
def test_few_samples_and_values_that_are_small_or_too_large(shape: tuple[int | None, ...]) -> None:
    y, _ = classifier(x := K.placeholder(shape), 32)
    assert not chains_of(optimized(K.function([x], [y])))


def test_weights_that_leave_no_room() -> None:
    x, w = K.placeholder((64, 64, 128)), K.variable(normal(8192, 128))
    y = K.softmax(K.dot(K.reshape(K.softmax(K.cumsum(x, axis=1)), (64, 8192)), w))
    graph = optimized(K.function([x], [y]))
    assert [kernels_of(chain) for chain in chains_of(graph)] == [2]
    assert any(node.op.kind == "fused" and node.shape == (64, 128) for node in graph.nodes)


def test_kernels_that_mix_samples_stand_between(monkeypatch: pytest.MonkeyPatch) -> None:
    small_chains(monkeypatch)
    x = K.placeholder((6, 8))
    w = K.variable(normal(8, 8))
    a = K.tanh(K.dot(x, w))
    b = K.dot(a, w) * K.sum(K.dot(a, w), axis=0)
    found = chains_of(optimized(K.function([x], [K.tanh(K.dot(b, w)), b])))
    # The sum over the samples waits for the first products, so that nothing behind it may join them.
    assert all(not any(n.op.name == "chain" for n in c.attrs["body"].nodes) for c in found)
    f = K.function([x], [K.tanh(K.dot(b, w)), b])
    check(f, [normal(6, 8)])


def test_what_others_read_is_an_output(monkeypatch: pytest.MonkeyPatch) -> None:
    small_chains(monkeypatch)
    x, w = K.placeholder((6, 4, 8)), K.variable(normal(8, 8))
    a = K.dot(x, w)
    b = K.dot(K.tanh(a), w)
    c = K.dot(K.reshape(b, (6, 32)), K.variable(normal(32, 3)))
    f = K.function([x], [c, a, K.sum(b, axis=0), K.reshape(b, (8, 24))])
    (chain,) = chains_of(optimized(f))
    assert len(chain.attrs["body"].outputs) == 3
    check(f, [normal(6, 4, 8)])


# ---------------------------------------------------------------------------------------------- values
def check(f: Any, feeds: list[Array], rtol: float = 1e-4) -> None:
    """Native code, with chains or without, gives what the meaning of the ops gives."""
    graph = optimized(f)
    verify(graph)
    assert chains_of(graph)
    expected = interpret(f.definition, feeds)
    for actual in (interpret(graph, feeds), Function(f.definition, options={"mode": "native"})(feeds)):
        for a, e in zip(actual, expected, strict=False):
            assert (np.asarray(a).dtype, np.shape(a)) == (e.dtype, e.shape)
            np.testing.assert_allclose(a, e, rtol=rtol, atol=rtol)


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
@pytest.mark.parametrize(("batch", "padding"), [(6, "valid"), (13, "same"), (32, "same")])
def test_forward_and_gradients(dtype: str, batch: int, padding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    small_chains(monkeypatch)
    x = K.placeholder((batch, 9, 10, 3), dtype=dtype)
    y, weights = classifier(x, padding=padding)
    loss = K.sum(K.square(y))
    feeds = [RNG.normal(size=(batch, 9, 10, 3)).astype(dtype)]
    check(K.function([x], [y]), feeds, {"float16": 5e-2, "float32": 1e-4, "float64": 1e-12}[dtype])
    if dtype != "float16":
        f = K.function([x], [loss, *K.gradients(loss, [x, *weights])])
        check(f, feeds, {"float32": 2e-3, "float64": 1e-11}[dtype])


@pytest.mark.parametrize("batch", [13, 14, 29])
def test_parts_of_two_sizes(batch: int, monkeypatch: pytest.MonkeyPatch) -> None:
    small_chains(monkeypatch, parts=3)
    x, w = K.placeholder((batch, 5)), K.variable(normal(5, 5))
    f = K.function([x], [K.dot(K.tanh(K.dot(x, w)), w)])
    feeds = [normal(batch, 5)]
    check(f, feeds)
    native = Function(f.definition, options={"mode": "native"})
    native(feeds)
    sizes = [line for line in native.dump("loops").splitlines() if " samples parallel:" in line]
    assert len(sizes) == (2 if batch != 14 else 1)


def test_updates_read_old_values(monkeypatch: pytest.MonkeyPatch) -> None:
    small_chains(monkeypatch)
    x, w, v = K.placeholder((8, 6)), K.variable(normal(6, 6)), K.variable(normal(8, 6))
    start = [K.get_value(w), K.get_value(v)]
    a = K.dot(K.tanh(K.dot(x, w)), w) + v
    results = []
    for mode in ("interpret", "native"):
        K.set_value(w, start[0])
        K.set_value(v, start[1])
        with graphkb.options(mode=mode):
            f = K.function([x], [K.sum(a)], updates=[(v, K.dot(a, w)), (w, w - 0.1 * K.dot(K.transpose(x), a))])
            feeds = np.linspace(-1, 1, 48).reshape(8, 6).astype("float32")
            results.append([f([feeds]), f([feeds]), K.get_value(v), K.get_value(w)])
    for a, b in zip(*results, strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-4)


def test_threads_change_no_bit() -> None:
    results = []
    values = normal(32, 28, 28, 8)
    for threads in (1, 2, 3):
        RNG.bit_generator.state = np.random.default_rng(7).bit_generator.state
        with graphkb.options(mode="native", threads=threads):
            x = K.placeholder((32, 28, 28, 8))
            y, weights = classifier(x, 32)
            f = K.function([x], [y, *K.gradients(K.sum(K.square(y)), weights)])
            results.append(f([values]))
        assert chains_of(optimized(f))
    for one, two, three in zip(*results, strict=True):
        np.testing.assert_array_equal(one, two)
        np.testing.assert_array_equal(one, three)


def test_dumps_profiles_and_reports_show_the_parts() -> None:
    with graphkb.options(mode="native", threads=2):
        y, _ = classifier(x := K.placeholder((32, 28, 28, 8)), 32)
        f = K.function([x], [y])
        values = [normal(32, 28, 28, 8)]
        f(values)
    assert f.dump("loops").split("\nprogram ")[1].splitlines()[1].strip() == "for part < 32 of 1 samples parallel:"
    report = f.report()
    assert report.interpreted == 0
    names = [step.name for step in report.steps]
    assert names[0] == "chain"
    assert len(names) == 4
    assert all(name.startswith("body/") for name in names[1:])
    # Samples that wait for nothing need no memory: the values that kernels hand on are there for a few of them.
    assert report.planned_bytes < 33 * 4 * (26 * 26 * 32 + 24 * 24 * 64 + 128)
    first, *inside = f.profile(values).steps
    assert (first.name, first.calls, [step.calls for step in inside]) == ("chain", 1, [32, 32, 32])
    assert 0 < sum(step.seconds for step in inside) <= first.seconds * 1.0001


def test_beside_what_has_no_kernel() -> None:
    odd = define("test_without_kernel", infer=lambda x: x, numpy=lambda x: np.sort(x, axis=-1))
    y, _ = classifier(x := K.placeholder((32, 28, 28, 8)), 32)
    (result,) = (definition := K.function([x], [y]).definition).outputs
    graph = Graph(definition.inputs, (make(odd, (result,), {}), result))
    feeds = [normal(32, 28, 28, 8)]
    f = Function(graph, options={"mode": "native"})
    for actual, expected in zip(f(feeds), interpret(graph, feeds), strict=True):
        np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-4)
    assert [(step.name, step.native) for step in f.profile(feeds).steps] == [("chain", True), (odd.name, False)]


@pytest.mark.parametrize("threads", ["none", "hook", "pool"])
def test_libraries(threads: str, tmp_path: Path) -> None:
    y, _ = classifier(x := K.placeholder((32, 28, 28, 8)), 32)
    values = normal(32, 28, 28, 8)
    f = K.function([x], [y])
    library = graphkb.load(graphkb.compile(f, tmp_path / "net", threads=threads).library)
    with graphkb.options(mode="native"):
        (expected,) = f([values])
    np.testing.assert_array_equal(library([values])[0], expected)


# ---------------------------------------------------------------------------------------------- random programs
@budget(120)
@given(programs())
def test_random_programs(program: RandomProgram) -> None:
    note(program.code())
    expected = expect(program)
    with pytest.MonkeyPatch.context() as patch:
        small_chains(patch, parts=1)
        patch.setattr(chain_kernels, "_MOST_BYTES", 1 << 40)
        fused = optimize(optimize(program.bound, PIPELINE), (Fuse(),))
        chained = ChainKernels().apply(fused)
        verify(chained)
        expected.check(program.results(chained, interpret(chained, program.feeds)), f"chained:\n{chained}")
        function = Function(program.graph, options={"mode": "native"})
        expected.check(roots_of(program, function), "native")
