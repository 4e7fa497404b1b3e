"""The benchmark harness on tiny workloads: who is timed, who is called wrong, what the tables say."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from benchmarks import table
from benchmarks.harness import (
    Contestant,
    Entry,
    Job,
    Result,
    Settings,
    largest_ulp,
    relative_error,
    run_job,
)
from benchmarks.peers import PEERS
from benchmarks.peers.numpy import NumPy
from benchmarks.workloads import THEMES, WORKLOADS, select
from benchmarks.workloads.base import Figure, Forward, Memory, Process, Size, TrainingStep

FAST = Settings(batch_s=1e-4, warm_s=1e-4, settle_s=0.0)


def double(x: np.ndarray) -> np.ndarray:
    return x + x


def job(**functions: Callable[..., Any]) -> Job:
    """Each contestant doubles an array; the reference is right."""
    x = np.arange(4, dtype=np.float32)
    entries = [Entry(name, lambda f=f: Contestant("f(x)", {"f": f, "x": x})) for name, f in functions.items()]
    return Job("doubling", "x + x", entries, lambda: [2 * x.astype(np.float64)], tolerance=1e-6)


def test_right_answers_are_timed() -> None:
    (result,) = run_job(job(numpy=double), FAST)
    assert (result.state, result.error, result.batches) == ("ok", 0.0, 7)
    assert 0 < result.low <= result.value <= result.high
    assert sorted(result.times)[3] == result.value


def test_wrong_answer_is_called_wrong_and_is_no_best_peer() -> None:
    results = run_job(job(graphkb=double, numpy=lambda x: x + x + 1e-3, numexpr=double), FAST)
    assert [r.state for r in results] == ["ok", "wrong", "ok"]
    assert table.best_peer(results).peer == "numexpr"
    assert "WRONG: error 1.67e-04, the tolerance is 1e-06" in table.block("", results)


def test_not_a_number_is_wrong() -> None:
    (result,) = run_job(job(numpy=lambda x: x * np.nan), FAST)
    assert result.state == "wrong"


def test_wrong_shape_fails() -> None:
    (result,) = run_job(job(numpy=lambda x: x[:2] * 2), FAST)
    assert (result.state, result.value) == ("failed", None)
    assert result.detail == "ValueError: the answer has shape (2,), the reference (4,)"


def test_failure_does_not_stop_the_others() -> None:
    def broken(x: np.ndarray) -> np.ndarray:
        raise RuntimeError("no such kernel")

    results = run_job(job(graphkb=broken, numpy=double), FAST)
    assert [r.state for r in results] == ["failed", "ok"]
    assert "graphkb         failed: RuntimeError: no such kernel" in table.block("", results)


def test_failure_in_the_middle_of_timing() -> None:
    left = [20]

    def breaks_later(x: np.ndarray) -> np.ndarray:
        left[0] -= 1
        if left[0] < 0:
            raise RuntimeError("out of memory")
        return x + x

    results = run_job(job(graphkb=breaks_later, numpy=double), FAST)
    assert [(r.state, r.detail) for r in results] == [("failed", "RuntimeError: out of memory"), ("ok", "")]


def test_build_limit() -> None:
    def slow(x: np.ndarray) -> np.ndarray:
        time.sleep(5)
        return x + x

    (result,) = run_job(job(numpy=slow), replace(FAST, build_limit_s=0.05))
    assert (result.state, result.detail) == ("failed", "BuildTimeout: not built after 0 s")


def test_contestants_alternate() -> None:
    order: list[str] = []

    def logged(name: str) -> Callable[[np.ndarray], np.ndarray]:
        def f(x: np.ndarray) -> np.ndarray:
            order.append(name)
            return x + x

        return f

    run_job(job(a=logged("a"), b=logged("b")), Settings(batch_s=1e-9, warm_s=0.0, settle_s=0.0))
    # once each to check, once to warm up, then seven rounds whose first contestant changes, of a call more than timed
    assert "".join(order) == "ab" + "ab" + "aabb" + "bbaa" + "aabb" + "bbaa" + "aabb" + "bbaa" + "aabb"


def test_before_runs_untimed_once_a_batch() -> None:
    log: list[str] = []
    names = {"f": lambda: log.append("call")}
    build = lambda: Contestant("f()", names, before=lambda: log.append("before"))  # noqa: E731
    (result,) = run_job(Job("compile", "", [Entry("numpy", build)]), FAST)
    assert result.calls_per_batch == 1
    assert log == ["call"] + ["before", "call"] * 8


def test_figures_of_other_units_are_values() -> None:
    build = lambda: Contestant("measure()", {"measure": lambda: 14.25})  # noqa: E731
    results = run_job(Job("memory", "", [Entry("graphkb", build)], unit="kB"), FAST)
    assert (results[0].value, results[0].unit, table.figure(results[0])) == (14.25, "kB", "14.2 kB")


def test_relative_error_takes_the_worst_array() -> None:
    references = [np.array([1.0, 100.0]), np.array([2.0])]
    assert relative_error([np.array([2.0, 100.0]), np.array([2.0])], references) == pytest.approx(0.01)
    assert relative_error([np.array([1.0, 100.0]), np.array([3.0])], references) == pytest.approx(0.5)
    assert np.isnan(relative_error([np.array([1.0, np.inf]), np.array([2.0])], references))
    with pytest.raises(ValueError, match="1 answers, but 2 references"):
        relative_error(references[:1], references)


def test_ulp_of_neighbors_is_one() -> None:
    x = np.array([1.0, 1e-30, 3e8], dtype=np.float32)
    assert largest_ulp(np.nextafter(x, np.float32(np.inf)), x.astype(np.float64)) == 1.0


def result(workload: str, peer: str, value: float | None, state: str = "ok") -> Result:
    return Result(workload, peer, state, value=value, batches=7)


def test_ratio_is_ours_over_the_best_right_peer() -> None:
    rows = [result("w", "graphkb", 2e-6), result("w", "numpy", 8e-6), result("w", "jax", 1e-6, "wrong")]
    assert table.ratio(rows) == 0.25
    assert table.ratio(rows[1:]) is None
    assert table.ratio(rows[:1]) is None


def test_summary_has_a_line_for_each_workload() -> None:
    rows = [result("call", "graphkb", 1.1e-7), result("call", "numpy", 2.2e-7), result("ew", "numpy", 3.6e-3)]
    lines = table.summary(rows).splitlines()
    assert [" ".join(line.split()) for line in lines[1:3]] == [
        "call 110 ns 220 ns numpy 0.50x",
        "ew - 3.60 ms numpy",
    ]


def test_markdown_shows_all_contestants() -> None:
    rows = [result("call", "graphkb", 1.1e-7), result("call", "numpy", 2.2e-7), result("call", "jax", None, "absent")]
    rows += [result("ew", "graphkb", 2e-3), result("ew", "torch", 1e-3, "wrong"), result("ew", "numpy", 3.6e-3)]
    assert table.markdown("A machine.", rows).splitlines() == [
        "A machine.",
        "",
        "| workload | graphkb | numpy | torch | ratio |",
        "|---|---:|---:|---:|---:|",
        "| call | 110 ns | **220 ns** |  | 0.50 |",
        "| ew | 2.00 ms | **3.60 ms** | wrong | 0.56 |",
    ]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(6.6e-8, "66.0 ns"), (9.996e-7, "1000 ns"), (3.6e-6, "3.60 µs"), (0.0181, "18.1 ms"), (79.0, "79.0 s")],
)
def test_duration(seconds: float, text: str) -> None:
    assert table.duration(seconds) == text


def test_names_are_unique_and_selectable() -> None:
    assert len(WORKLOADS) == sum(len(theme) for theme in THEMES.values())
    assert [w.name for w in select(["call", "ew_1e3", "call"])] == ["call", "ew_1e3"]
    assert select([]) == list(WORKLOADS.values())
    with pytest.raises(ValueError, match="no workload 'typo'; themes: calls, elementwise"):
        select(["typo"])


def test_every_workload_knows_only_real_dialects() -> None:
    dialects = {peer.dialect for peer in PEERS}
    for workload in WORKLOADS.values():
        match workload:
            case Forward():
                assert set(workload.expressions) <= dialects, workload.name
            case TrainingStep():
                assert set(workload.losses) <= dialects, workload.name
            case Process() | Memory() | Figure():
                assert set(workload.code) <= dialects, workload.name
            case Size():
                assert set(workload.distributions) <= dialects, workload.name


MODELS = ["gaussian_mixture", "life", "monte_carlo", "nbody", "reaction_diffusion", "transformer", "word2vec_train"]


@pytest.mark.parametrize("name", ["call", "ew_1e3", "dense_b1", "mlp_inf_1", "chain_100", "digits_train", *MODELS])
def test_numpy_agrees_with_the_reference(name: str) -> None:
    (result,) = run_job(WORKLOADS[name].job([NumPy()]), FAST)
    assert (result.state, result.detail) == ("ok", "")


@pytest.mark.parametrize(
    "name", ["call", "ew_1e3", "dense_b1", "mlp_inf_1", "chain_100", "digits_train", "erf", *MODELS]
)
def test_graphkb_agrees_with_the_reference(name: str) -> None:
    ours = next(peer for peer in PEERS if peer.name == "graphkb")
    (result,) = run_job(WORKLOADS[name].job([ours]), FAST)
    assert (result.state, result.detail) == ("ok", "")


def test_finite_differences_confirm_the_reference_gradients() -> None:
    """The hand-written gradients are what every training row is checked against."""
    step = WORKLOADS["digits_train"]
    assert isinstance(step, TrainingStep)
    x, y = (a.astype(np.float64) for a in step.inputs().values())
    params = [p.astype(np.float64) for p in step.params()]

    def loss(params: list[np.ndarray]) -> float:
        w1, b1, w2, b2 = params
        z = np.maximum(x @ w1 + b1, 0) @ w2 + b2
        return float(np.mean(np.log(np.exp(z).sum(axis=1)) - (z * y).sum(axis=1)))

    rng = np.random.default_rng(0)
    direction = [rng.standard_normal(p.shape) for p in params]
    h = 1e-6
    up, down = (loss([p + s * h * d for p, d in zip(params, direction)]) for s in (1, -1))
    slope = sum(float((g * d).sum()) for g, d in zip(step.gradients(params, x, y), direction))
    assert (up - down) / (2 * h) == pytest.approx(slope, rel=1e-6)


def test_finite_differences_confirm_the_gradients_of_embeddings() -> None:
    step = WORKLOADS["word2vec_train"]
    assert isinstance(step, TrainingStep)
    arrays = list(step.inputs().values())
    params = [p.astype(np.float64) for p in step.params()]
    word, near, far = arrays

    def loss(params: list[np.ndarray]) -> float:
        v, u, n = params[0][word], params[1][near], params[1][far]
        apart = np.logaddexp(0, (v[:, None] * n).sum(-1)).sum(-1)
        return float((np.logaddexp(0, -(v * u).sum(-1)) + apart).mean())

    rng = np.random.default_rng(0)
    direction = [rng.standard_normal(p.shape) for p in params]
    up, down = (loss([p + s * 1e-6 * d for p, d in zip(params, direction)]) for s in (1, -1))
    slope = sum(float((g * d).sum()) for g, d in zip(step.gradients(params, *arrays), direction))
    assert (up - down) / 2e-6 == pytest.approx(slope, rel=1e-6)
