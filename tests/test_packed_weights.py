"""Tests of packed weights: copies are read only while they are those of the value, and change no bit of a result."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import textwrap
import threading
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import graphkb
from graphkb import backend as K
from graphkb.codegen.packed_weights import PATIENCE, PackedLayout
from graphkb.runtime import packed_copies
from graphkb.runtime.packed_copies import PackedCopy, copy_of
from graphkb.runtime.plan import NativePlan
from graphkb.runtime.stored_plan import StoredPlan

pytest.importorskip("llvmlite")
ROOT = Path(__file__).resolve().parent.parent
Array = np.ndarray[Any, Any]
ENOUGH = PATIENCE + 3


def normal(*shape: int, dtype: str = "float32", seed: int = 0) -> Array:
    return np.random.default_rng(seed).normal(size=shape).astype(dtype)


def dense(rows: int | None = 7, dtype: str = "float32") -> tuple[Any, Any, Any]:
    """A placeholder, a variable and their product."""
    x, w = K.placeholder((rows, 200), dtype=dtype), K.variable(normal(200, 130), dtype=dtype)
    return x, w, K.dot(x, w)


def compiled(inputs: list[Any], outputs: list[Any], packs: bool = True, **more: Any) -> Any:
    with graphkb.options(mode="native", pack_weights=packs, **more):
        return K.function(inputs, outputs)


def copies() -> list[PackedCopy]:
    gc.collect()
    return [copy for known in list(packed_copies._copies.values()) for copy in list(known.values())]


def copies_of(w: Any) -> list[PackedCopy]:
    return [copy for copy in copies() if copy.cell is w.cell]


# ---------------------------------------------------------------------------------------------- layouts
@given(
    st.lists(st.integers(1, 4), min_size=1, max_size=3),
    st.integers(1, 23),
    st.integers(1, 8),
    st.permutations(range(4)),
    st.integers(0, 3),
)
def test_a_packed_element_is_that_of_its_row_and_column(
    extents: list[int], n: int, width: int, order: list[int], offset: int
) -> None:
    shape = [*extents, n]
    axes = [a for a in order if a < len(shape)]
    source = np.arange(offset + np.prod(shape), dtype="float32")
    plain = source[offset:].reshape([shape[a] for a in axes])
    steps = {a: plain.strides[i] // 4 for i, a in enumerate(axes)}
    last = [(n - n % width, 1, n % width, n % width + 1)] if n % width else []
    whole = [(0, n // width, width, width)] if n >= width else []
    sums = tuple((extent, steps[a]) for a, extent in enumerate(extents))
    layout = PackedLayout("float32", offset, sums, steps[len(extents)], (*whole, *last))
    packed = np.full(layout.size, np.nan, "float32")
    layout.pack(source, packed)
    matrix = plain.transpose(np.argsort(axes)).reshape(-1, n)
    begin = 0
    for first, count, columns, wide in layout.panels:
        for panel in range(count):
            held = packed[begin : begin + len(matrix) * wide].reshape(-1, wide)
            at = first + panel * columns
            np.testing.assert_array_equal(held[:, :columns], matrix[:, at : at + columns])
            assert not held[:, columns:].any()
            begin += held.size
    assert begin == layout.size


# ---------------------------------------------------------------------------------------------- the same bits
def _transposed(x: Any) -> Any:
    return K.dot(x, K.transpose(K.variable(normal(130, 200))))


def _convolution(x: Any) -> Any:
    return K.relu(K.conv2d(K.reshape(x, (-1, 5, 5, 8)), K.variable(normal(3, 3, 8, 300)), padding="same"))


def _padded(x: Any) -> Any:
    y = K.conv2d(K.reshape(x, (-1, 5, 5, 8)), K.variable(normal(1, 1, 8, 2100)))
    return K.spatial_2d_padding(y)


def _strided(x: Any) -> Any:
    return K.conv2d(K.reshape(x, (-1, 5, 5, 8)), K.variable(normal(2, 2, 8, 513)), strides=(2, 2))


def _joined(x: Any) -> Any:
    w = K.variable(normal(200, 130))
    return K.concatenate([K.dot(x, w), K.dot(x * 2, w)])


def _sliced(x: Any) -> Any:
    return K.dot(x, K.variable(normal(230, 260))[7:207, 9:250])


FORMS: dict[str, Callable[[Any], Any]] = {
    "plain": lambda x: K.dot(x, K.variable(normal(200, 130))),
    "whole": lambda x: K.tanh(K.bias_add(K.dot(x, K.variable(normal(200, 192))), K.variable(normal(192)))),
    "one more": lambda x: K.dot(x, K.variable(normal(200, 193))),
    "deep": lambda x: K.dot(K.tile(x, (1, 7)), K.variable(normal(1400, 80))),
    "far": lambda x: K.dot(x, K.variable(normal(200, 1024))),
    "transposed": _transposed,
    "convolution": _convolution,
    "padded": _padded,
    "strided": _strided,
    "joined": _joined,
    "sliced": _sliced,
    "constant": lambda x: K.dot(x, K.constant(normal(200, 130))),
}


@pytest.mark.parametrize("target", ["host", "x86-64", "x86-64-v3"])
@pytest.mark.parametrize("form", FORMS)
def test_results_have_the_same_bits(form: str, target: str) -> None:
    x = K.placeholder((150 if form in ("far", "transposed") else 7, 200))
    y = FORMS[form](x)
    values = normal(*x.shape, seed=1)
    plain, packed = (compiled([x], [y], packs, target=target) for packs in (False, True))
    (expected,) = plain([values])
    assert plain.report().packed_bytes == 0
    for _ in range(ENOUGH):
        np.testing.assert_array_equal(packed([values])[0], expected)
    # Where both operands lie along the sum, a product reads weights as they are.
    if target == "host" and form != "transposed":
        assert packed.report().packed_bytes >= 1 << 16


@pytest.mark.parametrize("dtype", ["float64", "float16"])
def test_other_dtypes(dtype: str) -> None:
    x, _, y = dense(dtype=dtype)
    values = normal(7, 200, dtype=dtype)
    packed = compiled([x], [y])
    (expected,) = compiled([x], [y], packs=False)([values])
    for _ in range(ENOUGH):
        np.testing.assert_array_equal(packed([values])[0], expected)
    assert bool(packed.report().packed_bytes) == (dtype == "float64")


def test_open_sizes() -> None:
    x, w, y = dense(None)
    with graphkb.options(mode="native", dynamic_after=1):
        function = K.function([x], [y])
    for rows in [*range(1, 2 * ENOUGH), 1, 40]:
        values = normal(rows, 200, seed=rows)
        np.testing.assert_allclose(function([values])[0], values @ K.get_value(w), rtol=1e-4, atol=1e-4)
    assert any(not copy.is_old for copy in copies_of(w))


def test_programs_of_many_calls() -> None:
    x = y = K.placeholder((7, 200))
    weights = [K.variable(normal(200, 200, seed=i) / 20) for i in range(70)]
    for w in weights:
        y = K.tanh(K.dot(y, w))
    values = normal(7, 200)
    packed = compiled([x], [y])
    (expected,) = compiled([x], [y], packs=False)([values])
    for _ in range(ENOUGH):
        np.testing.assert_array_equal(packed([values])[0], expected)
    assert not any(copies_of(w)[0].is_old for w in weights)


# ---------------------------------------------------------------------------------------------- values that change
def test_a_copy_is_made_once_a_value_stays() -> None:
    x, w, y = dense()
    function, values = compiled([x], [y]), normal(7, 200)
    function([values])
    (copy,) = copies_of(w)
    assert copy.is_old
    for _ in range(ENOUGH):
        function([values])
    assert not copy.is_old


@pytest.mark.parametrize("how", ["set_value", "native", "interpret"])
def test_new_values_count_at_once(how: str) -> None:
    x, w, y = dense()
    function, values = compiled([x], [y]), normal(7, 200)
    with graphkb.options(mode="native" if how == "set_value" else how):
        step = K.function([], [], updates=[(w, w * -2.0)])
    for turn in range(4):
        for _ in range(ENOUGH):
            expected = values @ K.get_value(w)
            np.testing.assert_allclose(function([values])[0], expected, rtol=1e-4, atol=1e-3)
        (copy,) = copies_of(w)
        assert not copy.is_old
        if how == "set_value":
            K.set_value(w, normal(200, 130, seed=turn + 5))
        else:
            step([])
        assert copy.is_old


def test_a_value_that_changes_with_every_call_is_never_packed(monkeypatch: pytest.MonkeyPatch) -> None:
    x, w, y = dense()
    function, values = compiled([x], [y]), normal(7, 200)
    step = K.function([], [], updates=[(w, w + 1.0)])
    packed: list[PackedCopy] = []
    monkeypatch.setattr(PackedCopy, "renew", packed.append)
    for _ in range(3 * ENOUGH):
        step([])
        np.testing.assert_allclose(function([values])[0], values @ K.get_value(w), rtol=1e-4, atol=1e-2)
    assert packed == []


def test_batches_of_several_sizes_share_a_copy() -> None:
    x, w, y = dense(None)
    with graphkb.options(mode="native", dynamic_after=3):
        function = K.function([x], [y])
    for rows in (1, 2, 32, 7, 64, 9):
        values = normal(rows, 200)
        for _ in range(ENOUGH):
            np.testing.assert_allclose(function([values])[0], values @ K.get_value(w), rtol=1e-4, atol=1e-4)
    assert len(copies_of(w)) == 1


def test_what_a_function_updates_is_not_packed() -> None:
    x, w, y = dense()
    with graphkb.options(mode="native"):
        train = K.function([x], [y], updates=[(w, w * 0.5)])
    values, before = normal(7, 200), K.get_value(w)
    for i in range(ENOUGH):
        np.testing.assert_allclose(train([values])[0], values @ before * 0.5**i, rtol=1e-4, atol=1e-4)
    assert train.report().packed_bytes == 0
    assert copies_of(w) == []


def test_bad_indices_are_still_found() -> None:
    table, w = K.variable(normal(9, 200)), K.variable(normal(200, 130))
    rows = K.placeholder((6,), dtype="int32")
    function = compiled([rows], [K.dot(K.gather(table, rows), w)])
    good = np.array([0, 8, 3, 3, 1, 2], "int32")
    for _ in range(2):
        with pytest.raises(Exception, match="9"):
            function([good + 5])
        for _ in range(ENOUGH):
            expected = K.get_value(table)[good] @ K.get_value(w)
            np.testing.assert_allclose(function([good])[0], expected, rtol=1e-4, atol=1e-4)


def test_threads_see_whole_values() -> None:
    x, w, y = dense()
    function, values = compiled([x], [y]), np.ones((7, 200), "float32")
    done = threading.Event()
    wrong: list[float] = []

    def read() -> None:
        while not done.is_set():
            seen = np.unique(function([values])[0])
            if len(seen) != 1 or seen[0] % 200:
                wrong.extend(seen.tolist())

    K.set_value(w, np.ones((200, 130)))
    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    for turn in range(60):
        K.set_value(w, np.full((200, 130), turn % 7))
        for _ in range(turn % 3 * ENOUGH):
            function([values])
    done.set()
    for thread in threads:
        thread.join()
    assert wrong == []


# ---------------------------------------------------------------------------------------------- whose they are
def test_functions_share_a_copy_and_the_last_one_frees_it() -> None:
    x, w, y = dense()
    first, second = compiled([x], [y]), compiled([x], [K.relu(y)])
    values = normal(7, 200)
    for _ in range(ENOUGH):
        first([values])
        second([values])
    (copy,) = copies_of(w)
    memory = weakref.ref(copy)
    del copy, first
    gc.collect()
    assert memory() is not None
    del second
    gc.collect()
    assert memory() is None


def test_a_copy_does_not_keep_its_variable() -> None:
    x, w, y = dense()
    function = compiled([x], [y])
    function([normal(7, 200)])
    cell = weakref.ref(w.cell)
    del x, w, y, function
    gc.collect()
    assert cell() is None


def test_equal_layouts_are_one_copy() -> None:
    cell = K.variable(normal(4, 6)).cell
    layout = PackedLayout("float32", 0, ((4, 6),), 1, ((0, 3, 2, 2),))
    assert copy_of(cell, layout) is copy_of(cell, PackedLayout(*(getattr(layout, n) for n in layout.__match_args__)))


def test_the_report_counts_the_copies() -> None:
    x, w, y = dense()
    function = compiled([x], [y])
    function([normal(7, 200)])
    (copy,) = copies_of(w)
    assert function.report().packed_bytes == copy.array.nbytes >= w.cell.array.nbytes
    assert "packed weights" in str(function.report())
    assert "packed by" in graphkb.dump(function, "loops")


def test_the_option_switches_copies_off() -> None:
    x, w, y = dense()
    function = compiled([x], [y], packs=False)
    for _ in range(ENOUGH):
        function([normal(7, 200)])
    assert copies_of(w) == []


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system does not fork")
def test_a_forked_process_reads_its_own_copy() -> None:
    x, w, y = dense()
    function, values = compiled([x], [y]), normal(7, 200)
    for _ in range(ENOUGH):
        (before,) = function([values])
    child = os.fork()
    if not child:
        K.set_value(w, normal(200, 130) * 2)
        good = all(np.array_equal(function([values])[0], before * 2) for _ in range(ENOUGH))
        os._exit(0 if good else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    np.testing.assert_array_equal(function([values])[0], before)


# ---------------------------------------------------------------------------------------------- kept programs
@pytest.mark.parametrize("kind", ["variable", "constant"])
def test_kept_programs_read_copies(tmp_path: Path, kind: str) -> None:
    values, weights = normal(7, 200), normal(200, 130)

    def made() -> Any:
        x = K.placeholder((7, 200), name="x")
        w = getattr(K, kind)(weights)
        return compiled([x], [K.dot(x, w)], kernel_cache=str(tmp_path))

    first, second = made(), made()
    (expected,) = first([values])
    for function, plan in ((first, NativePlan), (second, StoredPlan)):
        for _ in range(ENOUGH):
            np.testing.assert_array_equal(function([values])[0], expected)
        assert type(function.specialize().plan) is plan
        assert function.report().packed_bytes


def test_libraries_hold_weights_packed_alone(tmp_path: Path) -> None:
    x = K.placeholder((None, 200), name="x")
    weights = normal(200, 130)
    y = K.dot(x, K.variable(weights))
    files = graphkb.compile(K.function([x], [y]), tmp_path / "dense")
    data = Path(files.library).read_bytes()
    assert weights.tobytes() not in data
    assert weights[3, :8].tobytes() in data
    for rows in (0, 1, 7):
        values = normal(rows, 200, seed=rows)
        np.testing.assert_allclose(graphkb.load(files.library)([values])[0], values @ weights, rtol=1e-4, atol=1e-4)


def test_libraries_keep_what_is_read_plain_too(tmp_path: Path) -> None:
    x = K.placeholder((7, 200), name="x")
    weights = normal(200, 130)
    w = K.variable(weights)
    library = graphkb.load(
        graphkb.compile(K.function([x], [K.dot(x, w), K.sum(w, axis=0), w]), tmp_path / "both").library
    )
    values = normal(7, 200)
    product, total, plain = library([values])
    np.testing.assert_allclose(product, values @ weights, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(total, weights.sum(axis=0), rtol=1e-4, atol=1e-4)
    np.testing.assert_array_equal(plain, weights)


def test_a_later_process_packs_too(tmp_path: Path) -> None:
    script = """
        import numpy as np
        from graphkb import backend as K
        from graphkb.runtime import packed_copies
        x, w = K.placeholder((7, 200)), K.variable(np.arange(26000.).reshape(200, 130) % 17)
        f = K.function([x], [K.dot(x, w)])
        values = np.ones((7, 200), "float32")
        for i in range(20):
            assert (f([values])[0] == K.get_value(w).sum(0)).all()
        (copy,) = packed_copies._copies[w.cell].values()
        assert not copy.is_old
    """
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    more = {"GRAPHKB_CACHE": str(tmp_path), "PYTHONPATH": path, "GRAPHKB_MODE": "native"}
    for _ in range(2):
        subprocess.run([sys.executable, "-c", textwrap.dedent(script)], check=True, env={**os.environ, **more})
