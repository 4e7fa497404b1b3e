"""The program cache: an equal graph of a later process is called without a pass, and nothing about it differs."""

from __future__ import annotations

import gc
import itertools
import json
import os
import re
import subprocess
import sys
import textwrap
import weakref
from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from programs import RandomProgram, programs
from test_graph_key import key, variants

from graphkb import backend as K
from graphkb import options
from graphkb.ir.graph import Graph
from graphkb.ir.node import make
from graphkb.ir.op import Op
from graphkb.ops import leaf
from graphkb.runtime import kernel_cache, program_cache, specializations
from graphkb.runtime.call_spec import CallSpec
from graphkb.runtime.function import Function
from graphkb.runtime.graph_key import mere_seeds
from graphkb.runtime.kernel_cache import read_entry, write_entry
from graphkb.runtime.options import Options
from graphkb.runtime.plan import NativePlan
from graphkb.runtime.program_cache import find_place
from graphkb.runtime.stored_plan import StoredPlan

ROOT = Path(__file__).resolve().parent.parent
f32 = np.float32


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "kernels"


@pytest.fixture
def passes_run(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The names of the graphs that went through the passes."""
    names: list[str] = []
    real = specializations.optimize_bound

    def optimize(graph: Graph, *rest: Any) -> Graph:
        names.append(graph.name)
        return real(graph, *rest)

    monkeypatch.setattr(specializations, "optimize_bound", optimize)
    return names


def train(rate: float = 0.5) -> Function:
    """One step of a regression: a constant, two variables and an update of each."""
    x, t = K.placeholder((None, 3), name="x"), K.placeholder((None, 2), name="t")
    w, b = K.variable(np.full((3, 2), 0.25), name="w"), K.variable(np.zeros(2), name="b")
    scale = K.constant(np.linspace(1, 2, 40, dtype=f32).reshape(20, 2))
    loss = K.mean(K.square(K.dot(x, w) + b - t)) + 0 * K.sum(scale)
    changes = zip((w, b), K.gradients(loss, [w, b]))
    return K.function([x, t], [loss, w + 0], updates=[(v, v - rate * g) for v, g in changes], name="train")


def draw(n: int = 4) -> list[np.ndarray]:
    rng = np.random.default_rng(n)
    return [rng.standard_normal((n, 3)).astype(f32), rng.standard_normal((n, 2)).astype(f32)]


def plan_of(f: Function) -> Any:
    return f.specialize().plan


# ------------------------------------------------------------------------------------------------------ what is kept
def test_an_equal_graph_needs_no_passes(folder: Path, passes_run: list[str]) -> None:
    with options(kernel_cache=folder):
        first, second = train(), train()
    expected = [first(draw()) for _ in range(3)]
    assert type(plan_of(first)) is NativePlan
    assert passes_run == ["train"]
    found = [second(draw()) for _ in range(3)]
    assert type(plan_of(second)) is StoredPlan
    assert passes_run == ["train"]
    for ours, theirs in zip(found, expected):
        np.testing.assert_array_equal(ours[0], theirs[0])
        np.testing.assert_array_equal(ours[1], theirs[1])
    assert second.cache_info() == first.cache_info()
    second(draw(6))
    assert passes_run == ["train", "train"]


def test_variables_are_those_of_the_graph(folder: Path) -> None:
    x, v, w = K.placeholder((2,)), K.variable([1.0, 2.0]), K.variable([30.0, 40.0])
    for a, b in ((v, w), (w, v)):
        with options(kernel_cache=folder):
            f = K.function([x], [x * a - b], updates=[(b, b + 1)])
        before = K.get_value(a), K.get_value(b)
        np.testing.assert_array_equal(f([[2.0, 2.0]])[0], 2 * before[0] - before[1])
        np.testing.assert_array_equal(K.get_value(b), before[1] + 1)
        np.testing.assert_array_equal(K.get_value(a), before[0])


def test_values_that_the_passes_computed_are_kept(folder: Path, passes_run: list[str]) -> None:
    made = []
    for _ in range(2):
        x = K.placeholder((40, 3))
        table = K.constant(np.arange(120, dtype=f32).reshape(3, 40))
        with options(kernel_cache=folder):
            made.append(K.function([x], [x + K.transpose(K.exp(table / 100))], name="folded"))
    value = np.ones((40, 3), f32)
    np.testing.assert_array_equal(made[0]([value])[0], made[1]([value])[0])
    assert passes_run == ["folded"]
    kept = [node for node in plan_of(made[0]).program.bound if node.op.name == "constant"]
    assert [node.shape for node in kept] == [(40, 3)]


def test_large_values_that_the_passes_computed_are_not_kept(
    folder: Path, passes_run: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(program_cache, "_MOST_BYTES", 100)
    with pytest.raises(AssertionError, match="folded"):  # twice instead of once
        test_values_that_the_passes_computed_are_kept(folder, passes_run)
    assert passes_run == ["folded", "folded"]


def test_draws_of_other_seeds_share_the_code(folder: Path, passes_run: list[str]) -> None:
    def noise(seed: int, mode: str) -> list[np.ndarray]:
        x = K.placeholder((50,))
        with options(kernel_cache=folder, mode=mode):
            f = K.function([x], [x + K.random_uniform((50,), seed=seed)], name="noise")
        return [f([np.zeros(50, f32)])[0] for _ in range(2)]

    for seed in (5, 6, 2**40):
        for ours, theirs in zip(noise(seed, "native"), noise(seed, "interpret")):
            np.testing.assert_array_equal(ours, theirs)
    assert passes_run == ["noise"] * 4  # interpretation keeps nothing


def test_a_seed_that_is_used_as_a_number_counts(folder: Path) -> None:
    def noise(seed: int, number: int) -> Graph:
        x = leaf.placeholder((5,), "uint64", "x")
        d = K.random_uniform((5,), seed=seed).node
        return Graph((x,), (d, x + leaf.constant(number, "uint64")))

    assert mere_seeds(noise(7, 8)) == {leaf.constant(7, "uint64").attrs["value"]}
    assert not mere_seeds(noise(7, 7))
    assert key(noise(7, 8)) == key(noise(9, 8))
    assert key(noise(7, 7)) != key(noise(9, 7))


def test_threads_and_recycling_are_those_of_the_function(folder: Path, passes_run: list[str]) -> None:
    specs = []
    for chosen in ({}, {"threads": 1}, {"threads": 2}, {"recycle": False}, {"cache_size": 1, "dynamic_after": 0}):
        x = K.placeholder((512, 512))
        with options(kernel_cache=folder, **chosen):
            f = K.function([x], [K.exp(x)], name="wide")
        f([np.zeros((512, 512), f32)])
        specs.append((plan_of(f).entry_spec(), f))
    assert passes_run == ["wide"]
    assert [spec.recycle for spec, _ in specs] == [True, True, True, False, True]
    runs = [spec.run for spec, _ in specs]
    assert runs[1] != runs[2]  # the number of threads is a word of the module


# ------------------------------------------------------------------------------------------------- what it keeps
def test_what_can_not_be_compared_is_not_kept(folder: Path) -> None:
    x = leaf.placeholder((4,), "float32", "x")
    own = make(Op("own", infer=lambda type: type), (x,))
    assert find_place(Graph((x,), (own,)), {}, Options(kernel_cache=str(folder))) is None


OTHERS = {
    "debug": "the passes run then",
    "dump": "the passes run then",
    "on_recompile": "tells of compilations",
    "dynamic_after": "decides when, not what: code for open sizes is not kept",
    "cache_size": "how many are kept in a function",
    "kernel_cache": "the folder itself",
    "threads": "a word of the module, set when it is loaded",
    "recycle": "a word of the call, set when it is made",
    "progress": "shows what goes on",
}


def test_every_option_is_decided_about(folder: Path) -> None:
    assert {field.name for field in fields(Options)} == {*program_cache.DECISIVE, *OTHERS}
    graph = variants()["sum"]
    base = Options(kernel_cache=str(folder))

    def name(**chosen: Any) -> str | None:
        place = find_place(graph, {}, replace(base, **chosen))
        return place.name if place is not None else None

    assert len({name(), name(fastmath=True), name(mode="native"), name(target="x86-64-v2")}) == 4
    for same in ({"threads": 3}, {"recycle": False}, {"progress": False}, {"cache_size": 3}, {"dynamic_after": 1}):
        assert name(**same) == name()
    for none in ({"debug": True}, {"dump": "x"}, {"kernel_cache": "off"}, {"mode": "interpret"}):
        assert name(**none) is None


def test_every_version_is_in_the_name(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    graph, chosen = variants()["sum"], Options(kernel_cache=str(folder))
    names = []
    for owner, attribute, value in (
        (program_cache, "_FORMAT", 0),
        (program_cache, "source_identity", lambda: "another compiler"),
        (np, "__version__", "0"),
        (sys, "version", "0"),
    ):
        with monkeypatch.context() as patch:
            patch.setattr(owner, attribute, value)
            names.append(find_place(graph, {}, chosen).name)  # type: ignore[union-attr]
    assert len({*names, find_place(graph, {}, chosen).name}) == 5  # type: ignore[union-attr]
    monkeypatch.setattr(program_cache, "source_identity", lambda: "")
    assert find_place(graph, {}, chosen) is None


def test_every_source_file_is_in_its_identity(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Spec:
        def __init__(self, name: str) -> None:
            self.submodule_search_locations = [str(tmp_path / name)]

    for name in program_cache._SOURCES:
        (tmp_path / f"graphkb.{name}").mkdir()
        (tmp_path / f"graphkb.{name}" / "__init__.py").write_text("")
    monkeypatch.setattr(program_cache.importlib.util, "find_spec", Spec)
    old = itertools.count(1_000_000)

    def write(folder: str, name: str, text: str) -> None:
        path = tmp_path / f"graphkb.{folder}" / name
        path.write_text(text)
        when = next(old)
        os.utime(path, (when, when))

    for name in program_cache._SOURCES:
        write(name, "__init__.py", "")
    identity = program_cache.find_sources
    seen = {identity()}
    for name in program_cache._SOURCES:
        write(name, "__init__.py", "pass")
        seen.add(identity())
        write(name, "__init__.py", "pass")  # of another time only
        seen.add(identity())
        write(name, "more.py", "")
        seen.add(identity())
    assert len(seen) == 1 + 3 * len(program_cache._SOURCES)
    assert all(seen)
    changed = tmp_path / "graphkb.passes" / "more.py"
    changed.write_text("# in an editor while this process runs")
    assert identity() == ""
    changed.unlink()
    assert identity()
    for path in (tmp_path / "graphkb.ir").iterdir():
        path.unlink()
    assert identity() == ""


def test_nothing_is_kept_of_a_compiler_that_changes(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(program_cache, "find_sources", lambda: "")
    with options(kernel_cache=folder):
        f = train()
    f(draw())
    assert not [path for path in folder.glob("*.kernels") if b'"module"' in path.read_bytes()]


def test_every_part_of_a_call_is_decided_about() -> None:
    defaults = {"sizes", "symbols"}  # of code for open sizes, which is not kept
    assert {field.name for field in fields(CallSpec)} == {*program_cache._KEPT, *program_cache._MADE, *defaults}


# ------------------------------------------------------------------------------------------------------ what may happen
def entry_of(f: Function, folder: Path) -> tuple[str, dict[str, Any]]:
    """The name and the content of a function's entry."""
    (name,) = [path.stem for path in folder.glob("*.kernels") if b'"module"' in path.read_bytes()]
    data = read_entry(str(folder), name, Options())
    assert data is not None
    return name, json.loads(data)


DAMAGES: dict[str, Callable[[dict[str, Any]], object]] = {
    "no JSON": lambda entry: "nonsense",
    "no object": lambda entry: [],
    "empty": lambda entry: {},
    "no machine code": lambda entry: {**entry, "module": "0" * 64},
    "no module": lambda entry: {**entry, "module": None},
    "other kinds": lambda entry: {**entry, "bound": [["else", 0]]},
    "wrong numbers": lambda entry: {**entry, "bound": [["cell", 99]]},
    "wrong dtypes": lambda entry: {**entry, "inputs": [["complex", [3]]]},
    "wrong lock": lambda entry: {**entry, "lock": "open"},
    "less than nothing": lambda entry: {**entry, "workspace_bytes": -1},
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_wrong_entries_are_made_again(damage: str, folder: Path, passes_run: list[str]) -> None:
    with options(kernel_cache=folder):
        first, second, third = train(), train(), train()
    expected = first(draw())
    name, entry = entry_of(first, folder)
    made = DAMAGES[damage](entry)
    data = made.encode() if isinstance(made, str) else json.dumps(made).encode()
    write_entry(str(folder), name, data, Options())
    np.testing.assert_array_equal(second(draw())[0], expected[0])
    assert len(passes_run) == 2
    assert entry_of(second, folder)[1] == entry
    third(draw())
    assert len(passes_run) == 2


def test_entries_without_their_machine_code_are_made_again(folder: Path, passes_run: list[str]) -> None:
    with options(kernel_cache=folder):
        first, second = train(), train()
    expected = first(draw())
    module = entry_of(first, folder)[1]["module"]
    del first
    gc.collect()  # otherwise its engine serves
    (folder / f"{module}.kernels").unlink()
    np.testing.assert_array_equal(second(draw())[0], expected[0])
    assert len(passes_run) == 2
    assert (folder / f"{module}.kernels").exists()


# ------------------------------------------------------------------------------------------------------ all else works
def test_reports_dumps_and_profiles_are_the_same(folder: Path, passes_run: list[str]) -> None:
    with options(kernel_cache=folder):
        first, second = [train() for _ in range(2)]  # one line builds both
    first(draw())
    second(draw())
    assert type(plan_of(second)) is StoredPlan
    assert len(passes_run) == 1
    assert str(second.report()) == str(first.report())
    assert len(passes_run) == 2
    for stage in ("raw", "optimized", "loops", "llvm", "asm"):
        ours, theirs = (re.sub(r"  # .*", "", f.dump(stage)) for f in (second, first))
        assert ours == theirs
    value = second.updates[0][0].array.copy()
    steps = [[step.name for step in f.profile(draw()).steps] for f in (first, second)]
    assert steps[0] == steps[1]
    np.testing.assert_array_equal(second.updates[0][0].array, value)


def test_an_index_out_of_range_is_told_with_the_users_line(folder: Path, passes_run: list[str]) -> None:
    texts = []
    for _ in range(2):
        i, table = K.placeholder((3,), dtype="int32"), K.variable(np.ones((5, 2)))
        with options(kernel_cache=folder):
            f = K.function([i], [K.gather(table, i)], name="rows")
        f([[0, 4, 1]])
        with pytest.raises(IndexError) as caught:
            f([[0, 5, 1]])
        texts.append(str(caught.value))
    assert texts[0] == texts[1]
    assert "test_program_cache.py" in texts[1]
    assert passes_run == ["rows", "rows"]  # the second time for the sake of the text


def test_functions_and_their_code_are_freed(folder: Path) -> None:
    with options(kernel_cache=folder):
        first, second = train(), train()
    first(draw())
    second(draw())
    plan = plan_of(second)
    gone = [weakref.ref(second), weakref.ref(plan), weakref.ref(plan.engine)]
    del first, second, plan
    gc.collect()
    assert [ref() for ref in gone] == [None] * 3


SECOND_PROCESS = """
import numpy as np
from graphkb import backend as K
x = K.placeholder((None, 8))
w = K.variable(np.linspace(-1, 1, 24).reshape(8, 3))
y = K.softmax(K.dot(K.dropout(x, 0.5), w))
g, = K.gradients(K.sum(K.square(y)), [w])
f = K.function([x], [K.sum(y)], updates=[(w, w - 0.1 * g)])
value = np.ones((4, 8), np.float32)
print([round(float(f([value])[0]), 4) for _ in range(3)])
import sys
loaded = [m for m in ("graphkb.passes.simplify", "graphkb.codegen.program", "llvmlite") if m in sys.modules]
print(loaded)
"""


def test_another_process_loads_neither_passes_nor_llvm(folder: Path) -> None:
    printed = []
    for _ in range(2):
        environment = {"GRAPHKB_CACHE": str(folder), "PATH": "/usr/bin:/bin", "HOME": str(folder.parent)}
        command = [sys.executable, "-c", textwrap.dedent(SECOND_PROCESS)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT, env=environment)
        assert done.returncode == 0, done.stderr
        printed.append(done.stdout.splitlines())
    assert printed[0][0] == printed[1][0] == "[4.0, 4.0, 4.0]"
    assert "graphkb.codegen.program" in printed[0][1]
    if kernel_cache.machine_key():
        assert printed[1][1] == "[]"


@given(programs())
@settings(max_examples=40, deadline=None, suppress_health_check=list(HealthCheck))
def test_random_programs_have_the_same_bits(tmp_path_factory: pytest.TempPathFactory, program: RandomProgram) -> None:
    chosen = Options(kernel_cache=str(tmp_path_factory.getbasetemp() / "random" / "kernels"))
    results = []
    for _ in range(2):
        for cell, value in program.state.items():
            cell.array[...] = value
        f = Function(program.graph, options=chosen)
        answers = f(program.feeds)
        results.append((type(plan_of(f)), answers, [cell.array.copy() for cell in program.state]))
    if results[0][0] is NativePlan:
        assert results[1][0] is StoredPlan
    for ours, theirs in zip(results[1][1] + results[1][2], results[0][1] + results[0][2]):
        assert ours.dtype == theirs.dtype
        np.testing.assert_array_equal(ours, theirs)
