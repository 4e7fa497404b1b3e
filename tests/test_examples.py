"""The examples run end to end: they learn what they should, and every way to compute their answers agrees."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from examples import digits, linear_regression, power_iteration


@pytest.fixture(scope="module")
def data() -> digits.Digits:
    return digits.load_digits()


def test_digits_data_is_the_whole_set_split_once(data: digits.Digits) -> None:
    assert (data.train_x.shape, data.test_x.shape) == ((1437, 64), (360, 64))
    assert data.train_x.dtype == np.float32
    assert (data.train_x.min(), data.train_x.max()) == (0.0, 1.0)
    # The counts of the ten classes that the source states for its test part.
    counts = np.bincount(np.concatenate([data.train_y, data.test_y]))
    assert counts.tolist() == [178, 182, 177, 183, 181, 182, 181, 179, 174, 180]
    again = digits.load_digits()
    assert np.array_equal(again.test_x, data.test_x)
    assert not np.array_equal(digits.load_digits(seed=1).test_x, data.test_x)


def test_digits_network_learns(data: digits.Digits) -> None:
    net = digits.build_network()
    before = digits.accuracy(net.predict([data.test_x])[0], data.test_y)
    digits.train(net, data, epochs=3)
    after = digits.accuracy(net.predict([data.test_x])[0], data.test_y)
    assert before < 0.3
    assert after > 0.9


def test_digits_example_end_to_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The whole job in full length: it takes about a second."""
    assert digits.main(["--out", str(tmp_path)]) == 0
    printed = capsys.readouterr().out
    assert "NOT the same" not in printed
    linked = shutil.which("cc") is not None
    assert printed.count("classes all the same") == 1 + linked
    assert ("360 predicted classes, all the same" in printed) == linked
    for name in ("training_step.svg", "prediction.svg", "digits.h", "digits.o"):
        assert (tmp_path / name).stat().st_size > 0, name
    assert (tmp_path / "prediction.svg").read_text().lstrip().startswith(("<svg", "<?xml"))


def test_digits_example_fails_below_its_goal(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert digits.main(["--out", str(tmp_path), "--epochs", "1"]) == 1
    assert "is below 0.97" in capsys.readouterr().err


def test_digits_disagreement_is_noticed(capsys: pytest.CaptureFixture[str]) -> None:
    p = np.array([[0.25, 0.75]], np.float32)
    assert digits.report("same", p, p)
    assert not digits.report("other class", p[:, ::-1], p)
    assert not digits.report("other values", p + np.float32(1e-3), p)
    assert "NOT the same" in capsys.readouterr().out


def test_plain_progress_passes_every_item(capsys: pytest.CaptureFixture[str]) -> None:
    assert list(digits.plain_progress(list("abc"), "three")) == list("abc")
    assert capsys.readouterr().err == f"three [{'.' * 40}]\n"


def test_linear_regression_finds_the_least_squares_line(capsys: pytest.CaptureFixture[str]) -> None:
    assert linear_regression.main() == 0
    assert "least squares" in capsys.readouterr().out


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_linear_regression_equals_lstsq(seed: int) -> None:
    x, y = linear_regression.make_data(seed)
    w, b = linear_regression.fit(x, y)
    exact = np.linalg.lstsq(np.column_stack([x, np.ones(len(x))]), y, rcond=None)[0]
    np.testing.assert_allclose(np.append(w, b), exact.ravel(), atol=1e-4)


@pytest.mark.parametrize("size", [1, 2, 7, 40])
def test_power_iteration_finds_the_largest_eigenvalue(size: int) -> None:
    a: Any = power_iteration.make_matrix(size, seed=size)
    value, vector = power_iteration.largest_eigenpair(a)
    assert value == pytest.approx(np.linalg.eigvalsh(a)[-1], rel=1e-9)
    np.testing.assert_allclose(a @ vector, value * vector, atol=1e-6 * value)


def test_power_iteration_runs(capsys: pytest.CaptureFixture[str]) -> None:
    assert power_iteration.main() == 0
