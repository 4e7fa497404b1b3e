"""The runner of Keras' tests: what passes, fails, kills its process or never ends is told apart and told clearly."""

from __future__ import annotations

import importlib.util
import subprocess
from pathlib import Path

import pytest

from tests.clients.keras2 import suite
from tests.clients.keras2.sdist import fetch_sdist
from tests.clients.keras2.suite import Outcome, Part, Setting, list_parts, run_part, run_suite, summarize

HAS_KERAS = all(importlib.util.find_spec(name) for name in ("keras", "h5py", "yaml", "keras_applications"))
needs_keras = pytest.mark.skipif(not HAS_KERAS, reason="Keras 2.3.1 is not installed: pip install '.[keras2]'")
# A part of the suite that touches most of the backend and takes seconds.
REPRESENTATIVE = (
    "keras/backend/backend_test.py",
    "keras/layers/core_test.py",
    "keras/layers/embeddings_test.py",
    "keras/layers/local_test.py",
    "keras/layers/normalization_test.py",
    "keras/layers/recurrent_test.py::test_return_state",
    "keras/layers/recurrent_test.py::test_masking_correctness",
    "keras/losses_test.py",
    "keras/metrics_confusion_matrix_test.py",
    "test_loss_masking.py",
    "test_image_data_tasks.py",
)

FILE = """
import os, time

def test_good():
    from keras import backend as K
    assert K.backend() == "graphkb.backend"

def test_bad():
    assert 1 == 2

def test_deadly():
    os._exit(3)

def test_endless():
    time.sleep(1000)

def test_last():
    pass

def test_not_chosen():
    os._exit(4)
"""


@needs_keras
def test_every_test_has_an_outcome(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "test_it.py").write_text(FILE)
    monkeypatch.setattr(suite, "PATIENCE", 1.0)
    names = ("good", "bad", "deadly", "endless", "last", "not_there")
    ids = [f"test_it.py::test_{name}" for name in names]
    outcomes = run_part(tmp_path, Part(Setting("none"), "test_it.py", ids), "interpret")
    assert [outcome.id for outcome in outcomes] == ids
    found = dict(zip(names, outcomes))
    expected = ["passed", "failed", "crashed", "stuck", "passed", "missing"]
    assert [outcome.outcome for outcome in outcomes] == expected
    assert "assert 1 == 2" in found["bad"].error
    assert found["endless"].error.startswith("no end after 1 seconds")
    assert "test_endless" in found["endless"].error  # the line at which it stood


def test_failures_are_retried_by_themselves_then_with_other_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[tuple[list[str], int]] = []

    def run_part(folder: Path, part: Part, mode: str, seed_shift: int = 0) -> list[Outcome]:
        runs.append((list(part.ids), seed_shift))
        stays = {"a::good": "passed", "a::gone": "skipped", "b::bad": "failed"}
        if not seed_shift:
            stays["a::unlucky"] = "failed"
        return [Outcome(i, stays.get(i, "passed" if len(part.ids) == 1 else "failed"), 1.0, "why") for i in part.ids]

    parts = [
        Part(Setting("x"), "a", ["a::good", "a::shaky", "a::gone", "a::unlucky"]),
        Part(Setting("x"), "b", ["b::bad", "b::good"]),
    ]
    monkeypatch.setattr(suite, "run_part", run_part)
    monkeypatch.setattr(suite, "list_parts", lambda only: parts)
    monkeypatch.setattr(suite, "fetch_sdist", lambda given: tmp_path)
    reports = run_suite("auto", [], 1)
    again = [("a::shaky", 0), ("a::unlucky", 0), ("a::unlucky", 1), ("b::bad", 0), ("b::bad", 1), ("b::good", 0)]
    assert runs == [(part.ids, 0) for part in parts] + [([name], shift) for name, shift in again]
    assert [o.outcome for o in reports["a"]] == ["passed", "retried", "skipped", "retried"]
    assert [o.outcome for o in reports["b"]] == ["failed", "retried"]
    assert summarize(reports).splitlines() == [
        "",
        "file    tests   passed  retried    other  seconds",
        "a           4        1        2        1      4.0",
        "b           2        0        1        1      2.0",
        "all         6        1        3        2      6.0",
        "passed when retried: a::shaky",
        "    first: why",
        "passed when retried: a::unlucky",
        "    first: why",
        "passed when retried: b::good",
        "    first: why",
        "skipped: a::gone",
        "    why",
        "failed: b::bad",
        "    why",
    ]


def test_lists_name_each_test_once() -> None:
    parts = list_parts([])
    assert sum(len(part.ids) for part in parts) == 943 + 207 + 1
    assert len({id for part in parts for id in part.ids}) == 943 + 207 + 1
    assert [part.label for part in list_parts(["*optimizers_test.py::test_sgd"])] == ["tests/keras/optimizers_test.py"]


@needs_keras
def test_part_of_the_suite() -> None:
    try:
        fetch_sdist()
    except subprocess.CalledProcessError:
        pytest.skip("the source distribution of Keras 2.3.1 can not be fetched")
    reports = run_suite("auto", REPRESENTATIVE, 2)
    outcomes = [outcome for report in reports.values() for outcome in report]
    assert len(outcomes) > 300
    assert not [f"{outcome.id}: {outcome.error}" for outcome in outcomes if not outcome.good]
