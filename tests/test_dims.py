"""Symbolic sizes: every expression, once bound, is what plain integers give."""

from __future__ import annotations

import itertools
import pickle

import numpy as np
import pytest
from evaluate import atom_of
from hypothesis import example, given, settings
from hypothesis import strategies as st

from graphkb.ir import dims
from graphkb.ir.dims import Dim, Expr, Symbol, broadcast_dim, floordiv, maximum, minimum, substitute, symbol
from graphkb.ir.errors import ShapeError
from graphkb.ops import leaf
from graphkb.ops.elementwise import broadcast_shapes
from graphkb.ops.shape import slice_, slice_bounds

N, M, K = symbol("n"), symbol("m"), symbol("k")
SYMBOLS = (N, M, K)
ATOMS = [atom_of(s) for s in SYMBOLS]
SIZES = st.tuples(*[st.one_of(st.sampled_from([0, 1, 2]), st.integers(0, 50)) for _ in SYMBOLS])
quick = settings(max_examples=300, deadline=None, derandomize=True)

# A formula is a tree of plain tuples, which is evaluated twice: over symbols and over integers.
Formula = tuple[object, ...]
FORMULAS = st.recursive(
    st.one_of(
        st.integers(0, 2).map(lambda i: ("symbol", i)),
        st.integers(-4, 9).map(lambda c: ("integer", c)),
    ),
    lambda inner: st.one_of(
        st.tuples(st.sampled_from(["+", "-", "*", "max", "min"]), inner, inner),
        st.tuples(st.just("//"), inner, st.one_of(st.integers(1, 6).map(lambda c: ("integer", c)), inner)),
        st.tuples(st.just("%"), inner, st.integers(1, 6).map(lambda c: ("integer", c))),
    ),
    max_leaves=8,
)


def build(formula: Formula, symbols: tuple[Dim, ...]) -> Dim:
    """The value of a formula over dims; over integers alone it is Python's own arithmetic."""
    match formula:
        case ("symbol", int(i)):
            return symbols[i]
        case ("integer", int(c)):
            return c
        case (str(op), tuple(left), tuple(right)):
            a, b = build(left, symbols), build(right, symbols)
        case _:
            raise AssertionError(formula)
    concrete = isinstance(a, int) and isinstance(b, int)
    match op:
        case "+":
            return a + b
        case "-":
            return a - b
        case "*":
            return a * b
        case "max":
            return max(a, b) if concrete else maximum(a, b)
        case "min":
            return min(a, b) if concrete else minimum(a, b)
        case "//":
            return a // b
        case _:
            return a % b


def bound(dim: Dim, sizes: tuple[int, ...]) -> Dim:
    return substitute(dim, dict(zip(ATOMS, sizes)))


@quick
@given(FORMULAS, SIZES)
def test_bound_formulas_are_integer_arithmetic(formula: Formula, sizes: tuple[int, ...]) -> None:
    try:
        expected = build(formula, sizes)
        dim = build(formula, SYMBOLS)
    except ZeroDivisionError:
        return
    assert bound(dim, sizes) == expected
    assert isinstance(dim, Expr) == bool(dims.free_symbols(dim))


@quick
@given(FORMULAS, SIZES)
def test_binding_one_symbol_at_a_time_gives_the_same(formula: Formula, sizes: tuple[int, ...]) -> None:
    try:
        expected = build(formula, sizes)
        dim = build(formula, SYMBOLS)
        for atom, size in zip(ATOMS, sizes):
            dim = substitute(dim, {atom: size})
    except ZeroDivisionError:
        return
    assert dim == expected


@quick
@given(FORMULAS, FORMULAS)
def test_equal_polynomials_are_equal_and_hash_alike(left: Formula, right: Formula) -> None:
    try:
        a, b = build(left, SYMBOLS), build(right, SYMBOLS)
    except ZeroDivisionError:
        return
    for one, other in ((a + b, b + a), (a * b, b * a), ((a + b) * a, a * a + b * a), (a - a, 0), (a - b, -(b - a))):
        assert one == other
        assert hash(one) == hash(other)


def test_canonical_forms() -> None:
    assert N + 1 - N == 1
    assert (4 * N) // 4 is not None
    assert (4 * N) // 4 == N
    assert (N * M) // N == M
    assert (2 * N + 3) // 2 == N + 1
    assert (2 * N + M) // 2 == N + M // 2
    assert floordiv(0, N) == 0
    assert (N * 6) % 3 == 0
    assert maximum(N, M) == maximum(M, N)
    assert maximum(N, 0) == N
    assert minimum(N * M, 0) == 0
    assert maximum(N, N) == N
    assert maximum(N, 3, 5) == maximum(N, 5)
    assert broadcast_dim(N, M) == broadcast_dim(M, N)
    assert len({N, symbol("n")}) == 2


def test_printed_forms() -> None:
    assert str(N + 1) == "n + 1"
    assert str(3 - 2 * N) == "-2*n + 3"
    assert str(N * N * M) == "m*n**2"
    assert str((N + 1) // 2) == "((n + 1) // 2)"
    assert str(maximum(N, 1)) == "max(n, 1)"
    assert str(broadcast_dim(N, M)) == "broadcast(n, m)"
    assert dims.show_shape((N, 4)) == "(None, 4)"


def test_pickled_dims_keep_their_symbols() -> None:
    n, dim = pickle.loads(pickle.dumps((N, maximum(N // 2, M) + N)))
    assert n != N
    assert dims.free_symbols(n) < dims.free_symbols(dim)
    assert substitute(dim, dict.fromkeys(dims.free_symbols(dim), 6)) == 12


# ---------------------------------------------------------------------------------------------- broadcasting
@quick
@given(st.lists(st.sampled_from([0, 1, 2, 3, *SYMBOLS]), min_size=2, max_size=4), SIZES)
def test_broadcast_sizes_are_those_of_numpy(parts: list[Dim], sizes: tuple[int, ...]) -> None:
    concrete = [bound(p, sizes) for p in parts]
    known = {p for p in concrete if p != 1}
    result: Dim | None = parts[0]
    try:
        for part in parts[1:]:
            assert result is not None
            result = broadcast_dim(result, part)
            if result is None:
                break
        value = None if result is None else bound(result, sizes)
    except ValueError:
        value = None
    if len(known) > 1:
        # An unknown size beside a known one is taken to fit it: the operands' own types are checked when bound.
        assert value is None or (isinstance(result, int) and result in known) or result in parts
    else:
        assert value == (known.pop() if known else 1)


SHAPES = st.lists(st.sampled_from([0, 1, 2, N, M]), max_size=3).map(tuple)


@quick
@given(SHAPES, SHAPES, SIZES)
@example((N, 2), (M, 1), (1, 1, 1))
@example((N,), (M,), (0, 1, 1))
def test_broadcast_shapes_agree_with_numpy_once_bound(
    a: tuple[Dim, ...], b: tuple[Dim, ...], sizes: tuple[int, ...]
) -> None:
    left, right = (tuple(bound(d, sizes) for d in s) for s in (a, b))
    try:
        expected = np.broadcast_shapes(left, right)
    except ValueError:
        return
    assert tuple(bound(d, sizes) for d in broadcast_shapes("add", a, b)) == expected


def test_sizes_that_do_not_broadcast() -> None:
    with pytest.raises(ValueError, match=r"^sizes 2 and 3 do not broadcast$"):
        bound(broadcast_dim(N, M), (2, 3, 0))
    assert broadcast_dim(2, 3) is None
    with pytest.raises(
        ShapeError, match=r"^add: shapes \(None, 4\) and \(3, 5\) do not broadcast: axis 1 has 4 and 5$"
    ):
        broadcast_shapes("add", (N, 4), (3, 5))


# ---------------------------------------------------------------------------------------------- slices
ENDS = (None, 0, 1, 2, 3, 6, -1, -2, -3, -6)


@pytest.mark.parametrize("step", [None, 1, 2, 3, -1, -2, -5])
def test_slice_bounds_of_an_unknown_axis_are_those_of_python(step: int | None) -> None:
    for begin, end in itertools.product(ENDS, ENDS):
        start, size, stride = slice_bounds(N, slice(begin, end, step))
        for n in range(8):
            expected = range(n)[begin:end:step]
            at, count = bound(start, (n, 0, 0)), bound(size, (n, 0, 0))
            assert count == len(expected), (begin, end, step, n)
            assert isinstance(at, int)
            assert [at + i * stride for i in range(len(expected))] == list(expected), (begin, end, step, n)


@pytest.mark.parametrize("step", [None, 2, -1, -3])
def test_slice_bounds_of_a_known_axis_are_those_of_python(step: int | None) -> None:
    for n, begin, end in itertools.product(range(5), ENDS, ENDS):
        start, size, stride = slice_bounds(n, slice(begin, end, step))
        assert isinstance(start, int)
        assert isinstance(size, int)
        assert [start + i * stride for i in range(size)] == list(range(n)[begin:end:step])


def test_slice_bounds_by_symbols_and_numpy_integers() -> None:
    start, size, _ = slice_bounds(N, slice(M, N))
    for n, m in itertools.product(range(4), range(6)):
        expected = range(n)[m:n]
        assert bound(size, (n, m, 0)) == len(expected)
        assert not expected or bound(start, (n, m, 0)) == expected[0]
    _, size, _ = slice_bounds(N, slice(np.int64(1), np.int32(-1)))
    assert [bound(size, (n, 0, 0)) for n in range(5)] == [0, 0, 0, 1, 2]
    with pytest.raises(ValueError, match="step must not be 0"):
        slice_bounds(N, slice(None, None, 0))
    with pytest.raises(TypeError):
        slice_bounds(N, slice(1.5))


def test_slices_out_of_range_are_refused_when_built() -> None:
    x = leaf.placeholder((3, N), "float32", "x")
    with pytest.raises(ShapeError, match=r"^slice: axis 0 of \(3, None\) has no elements 2 to 3$"):
        slice_(x, (2, 0), (2, N))


def test_symbols_are_collected_at_any_depth() -> None:
    dim = maximum((N + 1) // (M + 1), minimum(K, 3))
    assert dims.free_symbols(dim) == set(ATOMS)
    assert all(isinstance(s, Symbol) for s in dims.free_symbols(dim))
