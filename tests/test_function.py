"""Functions: inputs of every kind, errors that name placeholders, specializations, updates, pickling, lifetime."""

from __future__ import annotations

import copy
import gc
import pickle
import re
import tracemalloc
import warnings
import weakref
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from graphkb.gradients import gradients
from graphkb.ir.dims import Expr, floordiv, symbol
from graphkb.ir.errors import GraphError, InputError, RecompileError, RecompileWarning, ShapeError
from graphkb.ir.graph import Graph
from graphkb.ir.leaves import VariableCell
from graphkb.ir.node import Node
from graphkb.ir.types import DTYPES, FLOATS, INTEGERS
from graphkb.ops import elementwise as ew
from graphkb.ops import index, leaf, linalg, reduce, shape
from graphkb.runtime.function import Function
from graphkb.runtime.inputs import as_array
from graphkb.runtime.options import Options

MODES = ("interpret", "auto")


def batch_function(mode: str = "auto", **chosen: Any) -> Function:
    """x: (batch, 4), y: (batch, 4) -> x + y; w <- w + 1."""
    n = symbol("batch")
    x, y = leaf.placeholder((n, 4), "float32", "x"), leaf.placeholder((n, 4), "float32", "y")
    w = leaf.variable(VariableCell(np.zeros(2, np.float32), "w"))
    graph = Graph((x, y), (x + y,), ((w.attrs["cell"], w + 1),))
    return Function(graph, "step", {"mode": mode, **chosen})


def state(function: Function) -> list[Any]:
    return [cell.array.tolist() for cell, _ in function.updates]


def ones(*dims: int) -> np.ndarray[Any, Any]:
    return np.ones(dims, np.float32)


# ---------------------------------------------------------------------------------------------- calls
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", [list, tuple])
def test_call(mode: str, kind: Callable[..., Sequence[Any]]) -> None:
    f = batch_function(mode)
    for _ in range(3):
        (got,) = f(kind([ones(3, 4), 2 * ones(3, 4)]))
        np.testing.assert_array_equal(got, 3 * ones(3, 4))
    assert state(f) == [[3, 3]]


@pytest.mark.parametrize("mode", MODES)
def test_inputs_of_every_kind(mode: str) -> None:
    x = leaf.placeholder((symbol("n"), 2), "float32", "x")
    f = Function(Graph((x,), (x * 2,)), options={"mode": mode})
    expected = np.array([[2, 4], [6, 8]], np.float32)
    plain = np.array([[1, 2], [3, 4]], np.float32)
    padded = np.zeros((2, 4), np.float32)
    padded[:, ::2] = plain
    odd = np.frombuffer(b"\0" + plain.tobytes(), np.uint8)[1:].view(np.float32).reshape(2, 2)
    readonly = plain.copy()
    readonly.flags.writeable = False
    values = [
        plain,
        plain.astype(">f4"),
        np.asfortranarray(plain),
        padded[:, ::2],
        plain[::-1][::-1],
        odd,
        readonly,
        plain.view(np.matrix),
        [[1, 2], [3, 4]],
        ((1.0, 2), (3, np.float16(4))),
        [np.array([1, 2]), [3, 4]],
        leaf.constant(plain),
        plain.astype(object),
        *[plain.astype(d) for d in (*FLOATS, *INTEGERS, "longdouble")],
    ]
    for value in values:
        (got,) = f([value])
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_scalars_into_every_dtype(dtype: str) -> None:
    x = leaf.placeholder((), dtype, "x")
    f = Function(Graph((x,), (x,)))
    for value in (1, 1.0, True, np.float64(1), np.int8(1), np.array(1), [[1]][0][0]):
        (got,) = f([value])
        assert (type(got), got.dtype.name, got.shape, got.item()) == (np.ndarray, dtype, (), 1)


def test_the_rules_of_conversion() -> None:
    """Floats are cut toward zero in integers and rounded in narrower floats, as NumPy's asarray does it."""
    assert as_array([1.9, -1.9], "int32", "x").tolist() == [1, -1]
    assert as_array([0.5, 0.0, np.nan], "bool", "x").tolist() == [True, False, True]
    assert as_array(-0.5, "uint8", "x") == 0
    assert as_array(255.9, "uint8", "x") == 255
    assert as_array(1e300, "float32", "x") == np.inf
    assert as_array(0.1, "float32", "x") == np.float32(0.1)
    assert as_array(2**70, "float64", "x") == 2.0**70
    assert as_array(2**63, "uint64", "x") == 2**63
    assert as_array([], "int32", "x").dtype == np.int32
    same = np.zeros(3, np.float32)
    assert as_array(same, "float32", "x") is same


class Sparse:
    """What SciPy's matrices have in common."""

    def toarray(self) -> np.ndarray[Any, Any]:
        return np.eye(2)


def test_sparse_inputs_are_made_dense() -> None:
    assert as_array(Sparse(), "float32", "x").tolist() == [[1, 0], [0, 1]]


BAD_VALUES: list[tuple[Any, str, str]] = [
    ("text", "float32", "x: expected numbers that can become float32, got text"),
    (b"text", "int32", "x: expected numbers that can become int32, got text"),
    (1j, "float32", "x: expected numbers that can become float32, got complex128"),
    (None, "float32", "x: expected numbers that can become float32, got NoneType"),
    ([None, 1.0], "float32", "x: expected numbers that can become float32, got NoneType"),
    ({"a": 1}, "float32", "x: expected numbers that can become float32, got dict"),
    (np.datetime64("2020-01-01"), "int64", "x: expected numbers that can become int64, got datetime64[D]"),
    (np.nan, "int32", "x: expected values that fit int32, -2147483648 to 2147483647, got nan"),
    ([1.0, -np.inf], "int64", f"x: expected values that fit int64, {-(2**63)} to {2**63 - 1}, got -inf"),
    (2.0**63, "int64", f"x: expected values that fit int64, {-(2**63)} to {2**63 - 1}, got {2.0**63}"),
    (300, "uint8", "x: expected values that fit uint8, 0 to 255, got 300"),
    ([7, -1], "uint8", "x: expected values that fit uint8, 0 to 255, got -1"),
    (
        np.array([2**63], np.uint64),
        "int64",
        f"x: expected values that fit int64, {-(2**63)} to {2**63 - 1}, got {2**63}",
    ),
]


@pytest.mark.parametrize(("value", "dtype", "text"), BAD_VALUES)
def test_values_that_do_not_fit(value: Any, dtype: str, text: str) -> None:
    with pytest.raises(InputError) as caught:
        as_array(value, dtype, "x")
    assert str(caught.value) == text


def test_ragged_lists_and_huge_integers_are_refused() -> None:
    with pytest.raises(InputError, match=r"^x: expected values that form one float32 array: .*inhomogeneous"):
        as_array([[1, 2], [3]], "float32", "x")
    with pytest.raises(InputError, match=r"^x: expected values that fit int64"):
        as_array(2**70, "int64", "x")


BAD_CALLS: list[tuple[Any, type[Exception], str]] = [
    ([ones(3, 4)], InputError, "step: expected 2 inputs (x, y), got 1"),
    ([], InputError, "step: expected 2 inputs (x, y), got 0"),
    ([ones(3, 4)] * 3, InputError, "step: expected 2 inputs (x, y), got 3"),
    ([ones(3, 5), ones(3, 5)], InputError, "x: expected shape (None, 4), got (3, 5)"),
    ([ones(3, 4), ones(3, 5)], InputError, "y: expected shape (None, 4), got (3, 5)"),
    ([ones(4), ones(3, 4)], InputError, "x: expected shape (None, 4), got (4,)"),
    ([ones(3, 4), 1.0], InputError, "y: expected shape (None, 4), got ()"),
    (
        [ones(3, 4), ones(2, 4)],
        InputError,
        "y: expected shape (3, 4), got (2, 4): axis 0 has the size of axis 0 of x",
    ),
    ([ones(3, 4), "a"], InputError, "y: expected numbers that can become float32, got text"),
    (ones(2, 3, 4), TypeError, "step: expected a list or tuple of 2 inputs, got ndarray: call it as f([x, …])"),
    (1.0, TypeError, "step: expected a list or tuple of 2 inputs, got float: call it as f([x, …])"),
]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("inputs", "kind", "text"), BAD_CALLS)
def test_bad_calls(mode: str, inputs: Any, kind: type[Exception], text: str) -> None:
    f = batch_function(mode)
    for _ in range(2):  # before and after a good call
        before = state(f)
        with pytest.raises(kind) as caught:
            f(inputs)
        assert str(caught.value) == text
        assert state(f) == before
        f([ones(3, 4), ones(3, 4)])


def test_shapes_that_only_the_call_shows_to_differ() -> None:
    """Unknown sizes are assumed to fit; when they do not, the op, its line and the inputs are named."""
    x, y = (leaf.placeholder((symbol(name),), "float32", name) for name in "xy")
    cell = VariableCell(np.zeros((), np.float32), "w")
    f = Function(Graph((x, y), (x + y,), ((cell, leaf.variable(cell) + 1),)))
    assert f([ones(3), ones(1)])[0].tolist() == [2, 2, 2]
    assert f([ones(1), ones(3)])[0].tolist() == [2, 2, 2]
    with pytest.raises(ShapeError) as caught:
        f([ones(3), ones(4)])
    text = str(caught.value)
    assert text.startswith(
        "add: shapes (3,) and (4,) do not broadcast: axis 0 has 3 and 4\n  built at test_function.py"
    )
    assert text.endswith("\n  called with x: (3,), y: (4,)")
    assert cell.array == 2


def test_symbols_within_expressions() -> None:
    n, m = symbol("n"), symbol("m")
    x = leaf.placeholder((n * 2 + 1,), "float32", "x")
    y = leaf.placeholder((n * m,), "float32", "y")
    z = leaf.placeholder((m,), "float32", "z")
    f = Function(Graph((y, x, z), (leaf.size(n), leaf.size(m))))
    assert [v.item() for v in f([ones(6), ones(5), ones(3)])] == [2, 3]
    with pytest.raises(InputError, match=re.escape("x: expected shape (None,), got (4,): axis 0 must be 2*n + 1")):
        f([ones(6), ones(4), ones(3)])
    with pytest.raises(InputError, match=r"y: expected shape \(6,\), got \(7,\)"):
        f([ones(7), ones(5), ones(3)])
    g = Function(Graph((y,), (y + y,), (), "g"))
    with pytest.raises(InputError, match=r"y: axis 0 of the shape \(None,\) is m\*n, and the inputs do not tell"):
        g([ones(6)])
    half = leaf.placeholder((floordiv(n, 2),), "float32", "half")
    with pytest.raises(InputError, match="half: axis 0"):
        Function(Graph((half,), (half,)))([ones(6)])


def test_empty_and_odd_shapes() -> None:
    f = batch_function()
    for n in (0, 1, 7, 0):
        assert f([ones(n, 4), ones(n, 4)])[0].shape == (n, 4)


def test_a_function_without_inputs() -> None:
    cell = VariableCell(np.zeros((), np.int32), "count")
    f = Function(Graph((), (leaf.variable(cell),), ((cell, leaf.variable(cell) + 1),), "tick"))
    assert [f([])[0].item(), f(())[0].item(), f()[0].item()] == [0, 1, 2]
    with pytest.raises(InputError, match="tick: expected 0 inputs, got 1"):
        f([1])


def test_symbolic_inputs_are_evaluated_first() -> None:
    f = batch_function()
    cell = VariableCell(ones(2, 4), "v")
    (got,) = f([leaf.variable(cell) * 2, ones(2, 4)])
    assert got.tolist() == (3 * ones(2, 4)).tolist()
    with pytest.raises(InputError, match="the value of the placeholder 'free' is needed"):
        f([leaf.placeholder((2, 4), "float32", "free"), ones(2, 4)])
    assert state(f) == [[1, 1]]


def test_computed_inputs_are_fed() -> None:
    """A value in the middle of a graph may be an input: what it is computed from is not needed then."""
    x = leaf.placeholder((symbol("n"), 3), "float32", "x")
    hidden = x * 2
    f = Function(Graph((hidden,), (hidden + 1, ew.square(hidden)), (), "tail"))
    got = f([ones(5, 3)])
    assert [float(g[0, 0]) for g in got] == [2, 1]
    both = Function(Graph((x, hidden), (x + hidden,)))
    assert both([ones(5, 3), 10 * ones(5, 3)])[0][0, 0] == 11
    cell = VariableCell(ones(3), "w")
    w = leaf.variable(cell)
    g = Function(Graph((w,), (w * 2,), ((cell, w + 1),)))
    assert g([5 * ones(3)])[0].tolist() == [10, 10, 10]
    assert cell.array.tolist() == [6, 6, 6]


# ---------------------------------------------------------------------------------------------- specializations
def test_cache() -> None:
    f = batch_function("interpret")
    for n in (3, 3, 5, 3):
        f([ones(n, 4), ones(n, 4)])
    info = f.cache_info()
    assert (info.specializations, info.hits, info.misses, info.native) == (2, 2, 2, 0)
    assert info.shapes == (((3, 4), (3, 4)), ((5, 4), (5, 4)))


@pytest.mark.parametrize("mode", MODES)
def test_the_cache_is_bounded(mode: str) -> None:
    f = batch_function(mode, cache_size=3)
    for n in range(10):
        assert f([ones(n, 4), ones(n, 4)])[0].shape == (n, 4)
    assert [shapes[0][0] for shapes in f.cache_info().shapes] == [7, 8, 9]
    assert f([ones(2, 4), ones(2, 4)])[0].shape == (2, 4)
    assert state(f) == [[11, 11]]


def test_the_longest_unused_specialization_goes() -> None:
    f = batch_function("interpret", cache_size=2)
    for n in (1, 2, 1, 3):
        f([ones(n, 4), ones(n, 4)])
    assert [shapes[0][0] for shapes in f.cache_info().shapes] == [1, 3]


def test_a_failed_call_makes_no_specialization() -> None:
    f = batch_function()
    with pytest.raises(InputError):
        f([ones(3, 4), ones(4, 4)])
    assert f.cache_info().specializations == 0


def test_on_recompile() -> None:
    f = batch_function(on_recompile="warn")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        f([ones(3, 4), ones(3, 4)])
        f([ones(3, 4), ones(3, 4)])
    with pytest.warns(RecompileWarning) as caught:
        f([ones(5, 4), ones(5, 4)])
    assert str(caught[0].message) == (
        "step: compiled again, for x: (5, 4), y: (5, 4); it was compiled 1 time before, last for x: (3, 4), y: (3, 4)"
    )
    assert caught[0].filename == __file__
    g = batch_function(on_recompile="error")
    g([ones(3, 4), ones(3, 4)])
    with pytest.raises(RecompileError, match=r"step: compiled again, for x: \(5, 4\)"):
        g([ones(5, 4), ones(5, 4)])
    assert state(g) == [[1, 1]]


def test_recompiling_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    f = batch_function("interpret")
    with caplog.at_level("INFO", "graphkb"):
        for n in (3, 3, 5, 3):
            f([ones(n, 4), ones(n, 4)])
    (record,) = caplog.records
    assert record.getMessage().startswith("step: compiled again, for x: (5, 4), y: (5, 4)")


def test_specialize_and_report() -> None:
    f = batch_function("interpret")
    with pytest.raises(InputError, match="step: it has not been called, so the shapes of its inputs are not known"):
        f.report()
    with pytest.raises(InputError, match="step: expected 2 shapes, got 1"):
        f.specialize([(3, 4)])
    made = f.specialize([(3, 4), [3, 4]])
    assert f.specialize() is made
    assert all(node.type.is_static for node in made.bound.nodes)
    report = f.report()
    assert (report.native, report.interpreted) == (0, len(report.steps))
    text = str(report)
    assert text.startswith("step(float32[3, 4], float32[3, 4]): 0 native, ")
    assert "test_function.py:" in text
    assert "12 flop" in text


def test_report_of_a_static_function_needs_no_call() -> None:
    x, y = leaf.placeholder((8, 16), "float32", "x"), leaf.placeholder((16, 32), "float32", "y")
    f = Function(Graph((x, y), (linalg.dot(x, y, (), (), (1,), (0,)),)), options={"mode": "interpret"})
    (step,) = f.report().steps
    assert (step.flops, step.bytes) == (2 * 8 * 16 * 32, 4 * (8 * 16 + 16 * 32 + 8 * 32))


# ---------------------------------------------------------------------------------------------- updates
@pytest.mark.parametrize("mode", MODES)
def test_updates_happen_together(mode: str) -> None:
    a, b = VariableCell(ones(3), "a"), VariableCell(2 * ones(3), "b")
    va, vb = leaf.variable(a), leaf.variable(b)
    f = Function(Graph((), (va, vb), ((a, vb), (b, va))), options={"mode": mode})
    old = f([])
    assert (old[0][0], old[1][0], a.array[0], b.array[0]) == (1, 2, 2, 1)
    f([])
    assert (old[0][0], a.array[0], b.array[0]) == (1, 1, 2)


@pytest.mark.parametrize("mode", MODES)
def test_outputs_show_old_or_new_values(mode: str) -> None:
    a, b = VariableCell(ones(1), "a"), VariableCell(2 * ones(1), "b")
    va, vb = leaf.variable(a), leaf.variable(b)
    total = va + vb
    graph = Graph((), (total, total, va, vb * 0), ((a, va + vb), (b, va)))
    f = Function(graph, options={"mode": mode}, after_updates=(False, True, True, False))
    assert [float(v[0]) for v in f([])] == [3, 4, 3, 0]  # a = 3, b = 1 from now on
    assert [float(v[0]) for v in f([])] == [4, 7, 4, 0]
    assert (a.array[0], b.array[0]) == (4, 3)


def test_bad_updates_are_refused_when_the_function_is_made() -> None:
    cell = VariableCell(ones(3), "w")
    w = leaf.variable(cell)
    with pytest.raises(GraphError, match="'w' has two updates"):
        Function(Graph((), (), ((cell, w), (cell, w + 1))))
    with pytest.raises(GraphError, match=r"the update of 'w' has the type int32\[3\], not float32\[3\]"):
        Function(Graph((), (), ((cell, ew.cast(w, "int32")),)))
    x = leaf.placeholder((symbol("n"),), "float32", "x")
    f = Function(Graph((x,), (), ((cell, x),)))
    f([2 * ones(3)])
    with pytest.raises(GraphError, match=r"the update of 'w' has the shape \(4,\), the variable has \(3,\)"):
        f([ones(4)])
    assert cell.array.tolist() == [2, 2, 2]
    with pytest.raises(GraphError, match="stands twice among the inputs"):
        Function(Graph((x, x), (x,)))


@pytest.mark.parametrize("mode", MODES)
def test_an_error_while_it_runs_leaves_variables_alone(mode: str) -> None:
    a, table = VariableCell(ones(2), "a"), VariableCell(ones(4), "table")
    i = leaf.placeholder((2,), "int32", "i")
    picked = index.gather(leaf.variable(table), i)
    f = Function(Graph((i,), (picked,), ((a, leaf.variable(a) + picked),)), options={"mode": mode})
    f([[0, 1]])
    with pytest.raises(IndexError, match="index 9 is out of range"):
        f([[0, 9]])
    assert a.array.tolist() == [2, 2]


@pytest.mark.parametrize("mode", MODES)
def test_several_functions_over_one_variable(mode: str) -> None:
    cell = VariableCell(np.zeros(2, np.float32), "w")
    w = leaf.variable(cell)
    x = leaf.placeholder((2,), "float32", "x")
    put = Function(Graph((x,), (), ((cell, x),)), options={"mode": mode})
    get = Function(Graph((), (w * 1, w)), options={"mode": mode})
    for value in (1, 2):
        put([value * ones(2)])
        assert [v.tolist() for v in get([])] == [[value, value]] * 2


# ---------------------------------------------------------------------------------------------- objects
def test_properties_and_text() -> None:
    f = batch_function()
    assert f.name == "step"
    assert [node.attrs["key"].name for node in f.inputs] == ["x", "y"]
    assert len(f.outputs) == 1
    assert [cell.name for cell, _ in f.updates] == ["w"]
    assert f.definition.name == "step"
    assert repr(f) == (
        "<Function step: (x: float32[batch, 4], y: float32[batch, 4]) -> (float32[batch, 4]), updates w>"
    )
    assert callable(f)


def test_options_are_those_of_the_making() -> None:
    x = leaf.placeholder((2,), "float32", "x")
    graph = Graph((x,), (x + 1,))
    assert Function(graph, options=Options(cache_size=7)).options == Options(cache_size=7)
    assert Function(graph, options={"mode": "interpret"}).options.mode == "interpret"


def test_weak_references() -> None:
    f = batch_function()
    ref = weakref.ref(f)
    f([ones(3, 4), ones(3, 4)])
    gc.disable()
    try:
        del f
        assert ref() is None
    finally:
        gc.enable()


@pytest.mark.parametrize("mode", MODES)
def test_the_callable_outlives_its_function(mode: str) -> None:
    call = batch_function(mode).__call__
    for n in (3, 3, 2, 3):
        assert call([ones(n, 4), ones(n, 4)])[0].tolist() == (2 * ones(n, 4)).tolist()


def test_interpreted_functions_leave_no_garbage() -> None:
    def use() -> None:
        f = batch_function("interpret")
        f([ones(3, 4), ones(3, 4)])
        f([ones(3, 4), ones(3, 4)])

    use()
    gc.collect()
    gc.disable()
    try:
        for _ in range(20):
            use()
        assert gc.collect() == 0
    finally:
        gc.enable()


@pytest.mark.parametrize("mode", MODES)
def test_nothing_of_a_dropped_function_waits_for_the_collector(mode: str) -> None:
    gc.disable()
    try:
        f = batch_function(mode)
        f([ones(3, 4), ones(3, 4)])
        f([ones(3, 4), ones(3, 4)])
        made = f.specialize()
        refs = [weakref.ref(f), weakref.ref(made), weakref.ref(made.plan), weakref.ref(f.updates[0][0])]
        del f, made
        assert [ref() for ref in refs] == [None] * 4
    finally:
        gc.enable()


def test_memory_stays_flat() -> None:
    def use(count: int) -> None:
        for _ in range(count):
            f = batch_function("interpret")
            f([ones(3, 4), ones(3, 4)])

    tracemalloc.start()
    try:
        use(300)
        gc.collect()
        before = tracemalloc.get_traced_memory()[0]
        use(1000)
        gc.collect()
        grown = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert grown < 50_000


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("protocol", [2, pickle.HIGHEST_PROTOCOL])
def test_pickle(mode: str, protocol: int) -> None:
    f = batch_function(mode)
    f([ones(3, 4), ones(3, 4)])
    cell = f.updates[0][0]
    g, other = pickle.loads(pickle.dumps((f, cell), protocol))
    assert g.name == "step"
    assert repr(g) == repr(f)
    assert g([ones(2, 4), ones(2, 4)])[0].tolist() == (2 * ones(2, 4)).tolist()
    assert other.array.tolist() == [2, 2]
    assert g.updates[0][0] is other
    assert cell.array.tolist() == [1, 1]


def test_pickled_functions_share_their_variables() -> None:
    cell = VariableCell(np.zeros(2, np.float32), "w")
    w = leaf.variable(cell)
    step, show = Function(Graph((), (), ((cell, w + 1),))), Function(Graph((), (w,)))
    step2, show2 = pickle.loads(pickle.dumps([step, show]))
    step2([])
    assert (show2([])[0].tolist(), show([])[0].tolist()) == ([1, 1], [0, 0])


def test_copies() -> None:
    """A copy works on the same variables, a deep copy on copies of them."""
    f = batch_function()
    shallow, deep = copy.copy(f), copy.deepcopy(f)
    x = [ones(3, 4), ones(3, 4)]
    f(x)
    shallow(x)
    deep(x)
    assert (state(f), state(shallow), state(deep)) == ([[2, 2]], [[2, 2]], [[1, 1]])
    cells = {"w": f.updates[0][0], "f": f}
    copied = copy.deepcopy(cells)
    assert copied["f"].updates[0][0] is copied["w"]


# ---------------------------------------------------------------------------------------------- size
def deep_chain(x: Node, length: int) -> Node:
    for i in range(length):
        x = x * 0.9999 if i % 2 else x + 0.001
    return x


def test_deep_graphs() -> None:
    """100,000 nodes in a chain: built, differentiated, run, printed, pickled and freed."""
    x = leaf.placeholder((symbol("n"),), "float64", "x")
    y = deep_chain(x, 100_000)
    (grad,) = gradients([y], [x])
    assert grad is not None
    f = Function(Graph((x,), (y, grad), (), "deep"), options={"mode": "interpret"})
    value, slope = f([np.array([1.0, 2.0])])
    np.testing.assert_allclose(slope, 0.9999**50_000, rtol=1e-9)
    expected = 1.0
    for _ in range(50_000):
        expected = (expected + 0.001) * 0.9999
    np.testing.assert_allclose(value[0], expected, rtol=1e-12)
    assert str(f.definition).count("\n") > 100_000
    again = pickle.loads(pickle.dumps(f))
    assert again.outputs[0].op is y.op
    assert len(again.definition.nodes) == len(f.definition.nodes)


def test_many_inputs_and_outputs() -> None:
    nodes = [leaf.placeholder((symbol("n"),), "float32", f"x{i}") for i in range(2000)]
    f = Function(Graph(tuple(nodes), tuple(node + 1 for node in nodes)))
    got = f([np.full(i % 3, i) for i in range(2000)])
    assert all(g.shape == (i % 3,) and (g == i + 1).all() for i, g in enumerate(got))


def test_a_training_step_learns() -> None:
    """Least squares by gradient descent over an unknown batch, against the closed form."""
    rng = np.random.default_rng(0)
    data, truth = rng.normal(size=(64, 3)), np.array([[1.0], [-2.0], [0.5]])
    target = data @ truth
    n = symbol("n")
    x, t = leaf.placeholder((n, 3), "float64", "x"), leaf.placeholder((n, 1), "float64", "t")
    cell = VariableCell(np.zeros((3, 1)), "w")
    w = leaf.variable(cell)
    error = linalg.dot(x, w, (), (), (1,), (0,)) - t
    loss = reduce.reduce_sum(ew.square(error), (0, 1)) / ew.cast(leaf.size(n), "float64")
    (grad,) = gradients([loss], [w])
    assert grad is not None
    step = Function(Graph((x, t), (loss,), ((cell, w - grad * 0.1),), "step"))
    losses = [step([data, target])[0].item() for _ in range(200)]
    assert losses[0] == pytest.approx(float((target**2).mean()))
    assert losses[-1] < 1e-12
    np.testing.assert_allclose(cell.array, truth, atol=1e-6)
    assert isinstance(n, Expr)
    assert shape.reshape(x, (n * 3,)).type.ndim == 1


def test_debug_checks_after_every_pass(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pass that leaves a broken graph behind is named."""
    from graphkb.passes import pipeline

    class Break:
        name = "break"

        def apply(self, graph: Graph) -> Graph:
            return graph.with_roots([leaf.placeholder((3, 4), "float32", "stray")] * len(graph.roots))

    passes = pipeline.graph_passes
    monkeypatch.setattr(pipeline, "graph_passes", lambda fastmath: (*passes(fastmath), Break()))
    f = batch_function("interpret", debug=True)
    with pytest.raises(GraphError, match="this placeholder is needed but is not among the inputs") as caught:
        f([ones(3, 4), ones(3, 4)])
    assert "called with x: (3, 4), y: (3, 4)" in str(caught.value)


def test_a_target_that_this_machine_lacks_is_refused() -> None:
    pytest.importorskip("llvmlite")
    f = batch_function(target="wasm32")
    with pytest.raises(ValueError, match=r"target wasm32: this machine is .* and cannot run it"):
        f([ones(3, 4), ones(3, 4)])
    assert state(f) == [[0, 0]]


def test_a_lower_level_of_this_machine() -> None:
    pytest.importorskip("llvmlite")
    from graphkb.codegen.target import host_target

    if not host_target("host").is_x86:
        pytest.skip("levels are those of x86-64")
    f = batch_function(target="x86-64")
    assert f([ones(3, 4), ones(3, 4)])[0].tolist() == (2 * ones(3, 4)).tolist()
    assert f.report().native
