"""Profiles: every step is timed and counted, variables stay as they were, and the pictures are well formed."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import graphkb
from graphkb import backend as K
from graphkb.runtime.native_call import available
from graphkb.runtime.peak import machine_peak
from graphkb.runtime.report import amount

pytestmark = pytest.mark.skipif(not available()[0], reason=available()[1])


def values(*dims: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(0).standard_normal(dims).astype(np.float32)


def classifier() -> tuple[Any, list[Any]]:
    x, w = K.placeholder((None, 20)), K.variable(values(20, 3))
    y = K.softmax(K.dot(x, w))
    return K.function([x], [y], updates=[(w, w * 0.5)]), [w]


def test_every_kernel_is_timed_and_counted() -> None:
    f, _ = classifier()
    x = values(16, 20)
    f([x])
    profile = f.profile([x])
    report = f.report()
    assert sorted(step.name for step in profile.steps) == sorted(step.name for step in report.steps)
    assert all(step.native and step.calls == 1 and step.seconds >= 0 for step in profile.steps)
    product = next(step for step in profile.steps if "dot" in step.name)
    assert product.flops == 2 * 16 * 20 * 3
    assert product.bytes == 4 * (16 * 20 + 20 * 3 + 16 * 3)
    assert any("test_profile.py" in line for line in product.lines)
    assert sum(step.seconds for step in profile.steps) + profile.other_seconds == pytest.approx(profile.seconds)
    assert profile.runs >= 5


def test_variables_and_draws_stay_as_they_were() -> None:
    f, (w,) = classifier()
    before = K.get_value(w)
    f.profile([values(4, 20)])
    np.testing.assert_array_equal(K.get_value(w), before)
    x = K.placeholder((3,))
    drawn = [K.function([x], [x + K.random_uniform((3,), seed=5)]) for _ in range(2)]
    drawn[0].profile([values(3)])
    np.testing.assert_array_equal(drawn[0]([values(3)])[0], drawn[1]([values(3)])[0])


def test_steps_within_a_loop_count_their_calls() -> None:
    x, u = K.placeholder((2, 7, 4)), K.variable(values(4, 4))

    def step(inputs: Any, states: list[Any]) -> tuple[Any, list[Any]]:
        h = K.tanh(inputs + K.dot(states[0], u))
        return h, [h]

    last, _, _ = K.rnn(step, x, [K.zeros((2, 4))])
    profile = K.function([x], [last]).profile([values(2, 7, 4)])
    loop = next(i for i, one in enumerate(profile.steps) if one.name == "scan")
    inner = [one for one in profile.steps[loop + 1 :] if one.depth == 1]
    assert inner
    assert {one.calls for one in inner} == {7}
    assert sum(one.seconds for one in inner) <= profile.steps[loop].seconds * 1.01
    assert profile.steps[loop + 1].depth == 1  # what a loop consists of stands behind it


def test_open_sizes_are_those_of_the_inputs() -> None:
    x = K.placeholder((None, 8))
    with graphkb.options(dynamic_after=1):
        f = K.function([x], [K.tanh(x)])
    f([values(5, 8)])
    assert f.profile([values(9, 8)]).steps[0].calls == 1
    assert f.cache_info().dynamic == 1


def test_interpreted_steps_are_timed_too(capsys: pytest.CaptureFixture[str]) -> None:
    x = K.placeholder((4, 4))
    y = K.print_tensor(K.exp(x), "") * 2
    with graphkb.options(mode="interpret"):
        interpreted = K.function([x], [K.exp(x) * 2])
    names = [(step.name, step.native) for step in K.function([x], [y]).profile([values(4, 4)]).steps]
    assert ("print", False) in names
    assert any(native for _, native in names)
    assert [step.native for step in interpreted.profile([values(4, 4)]).steps] == [False, False]
    assert capsys.readouterr().out


def test_figures_and_pictures(tmp_path: Path) -> None:
    f, _ = classifier()
    profile = f.profile([values(16, 20)])
    told = json.loads(profile.to_json())
    assert told["steps"][0]["name"] == profile.steps[0].name
    assert set(told["peak"]) == {"flops", "bandwidth", "threads"}
    table = str(profile)
    assert "everything else" in table
    assert all(step.name in table for step in profile.steps)
    picture = ElementTree.fromstring(profile.roofline())
    circles = [one for one in picture.iter() if one.tag.endswith("circle")]
    assert len(circles) == 2 * sum(step.flops > 0 for step in profile.steps)  # the points, and the legend
    assert "<table>" in profile._repr_html_()
    for name in ("p.svg", "p.json", "p.txt"):
        profile.save(str(tmp_path / name))
    assert (tmp_path / "p.txt").read_text(encoding="utf-8") == table
    assert (tmp_path / "p.svg").read_text(encoding="utf-8").startswith("<svg")


def test_the_peak_is_measured_once(tmp_path: Path) -> None:
    with graphkb.options(kernel_cache=str(tmp_path)) as chosen:
        peak = machine_peak(chosen)
        assert machine_peak(chosen) is peak
    assert peak.flops > 1e8
    assert peak.bandwidth > 1e7


@pytest.mark.parametrize(
    ("value", "text"),
    [(0, "0 s"), (0.0123, "12.3 ms"), (4.56e-6, "4.56 µs"), (7e-10, "0.7 ns"), (1234.0, "1.23 ks"), (1.0, "1 s")],
)
def test_amounts(value: float, text: str) -> None:
    assert amount(value, "s") == text


def test_operations_of_convolutions_and_pooling() -> None:
    x, k = K.placeholder((1, 8, 8, 2)), K.variable(values(3, 3, 2, 5))
    report = K.function([x], [K.conv2d(x, k, padding="valid")]).report()
    assert sum(step.flops for step in report.steps) == 2 * (6 * 6 * 5) * (3 * 3 * 2)
    pooled = K.function([x], [K.pool2d(x, (2, 2), (2, 2))]).report()
    assert sum(step.flops for step in pooled.steps) == (4 * 4 * 2) * 4


def test_functions_of_the_learning_phase_profile_what_the_call_runs():
    x, phase, batch = K.placeholder((4, 8)), K.learning_phase(), np.ones((4, 8), "float32")
    f = K.function([x, phase], [K.in_train_phase(K.tanh(x), K.relu(x))])
    testing, training = str(f.profile([batch, 0])), str(f.profile([batch, 1]))
    assert ("relu" in testing, "tanh" in testing) == (True, False)
    assert ("relu" in training, "tanh" in training) == (False, True)
