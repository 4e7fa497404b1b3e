"""Functions: inputs of every kind, errors that name placeholders, specializations and updates."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from function_tools import MODES, batch_function, ones, state

from graphkb.ir.dims import floordiv, symbol
from graphkb.ir.errors import GraphError, InputError, RecompileError, RecompileWarning, ShapeError
from graphkb.ir.graph import Graph
from graphkb.ir.leaves import VariableCell
from graphkb.ir.types import DTYPES, FLOATS, INTEGERS
from graphkb.ops import elementwise as ew
from graphkb.ops import index, leaf, linalg
from graphkb.runtime.function import Function
from graphkb.runtime.inputs import as_array


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


@pytest.mark.parametrize("mode", MODES)
def test_inputs_that_stand_in_no_list(mode: str) -> None:
    f = batch_function(mode)
    for _ in range(2):  # before and after a good call
        with pytest.raises(TypeError) as caught:
            f(ones(3, 4), ones(3, 4))  # type: ignore[call-arg]
        assert str(caught.value) == "step: expected one list of inputs, got 2 arguments: call it as f([x, …])"
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
    f = batch_function(mode, cache_size=3, dynamic_after=0)
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
    assert "function_tools.py:" in text
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
