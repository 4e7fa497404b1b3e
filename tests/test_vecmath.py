"""The vector math against float64 and mpmath references: error bounds, special values, every target and lane count."""

import math
from collections.abc import Callable
from functools import cache

import mpmath
import numpy as np
import pytest
import scipy.special
from native_kernels import LEVELS, elementwise, level

from graphkb.codegen.builder import Builder, Value
from graphkb.codegen.engine import emit_object
from graphkb.codegen.target import TARGETS, named_target
from graphkb.codegen.vecmath import MAX_ULP, VECTOR_MATH

# name: the float64 function of NumPy or SciPy, the mpmath function
REFERENCES: dict[str, tuple[Callable[..., np.ndarray], Callable[..., object]]] = {
    "exp": (np.exp, mpmath.exp),
    "exp2": (np.exp2, lambda x: mpmath.mpf(2) ** x),
    "expm1": (np.expm1, mpmath.expm1),
    "sigmoid": (scipy.special.expit, lambda x: 1 / (1 + mpmath.exp(-x))),
    "tanh": (np.tanh, mpmath.tanh),
    "sinh": (np.sinh, mpmath.sinh),
    "cosh": (np.cosh, mpmath.cosh),
    "log": (np.log, mpmath.log),
    "log2": (np.log2, lambda x: mpmath.log(x) / mpmath.ln2),
    "log10": (np.log10, mpmath.log10),
    "log1p": (np.log1p, mpmath.log1p),
    "softplus": (lambda x: np.logaddexp(x, 0), lambda x: mpmath.log1p(mpmath.exp(x))),
    "asinh": (np.arcsinh, mpmath.asinh),
    "acosh": (np.arccosh, mpmath.acosh),
    "atanh": (np.arctanh, mpmath.atanh),
    "sin": (np.sin, mpmath.sin),
    "cos": (np.cos, mpmath.cos),
    "tan": (np.tan, mpmath.tan),
    "asin": (np.arcsin, mpmath.asin),
    "acos": (np.arccos, mpmath.acos),
    "atan": (np.arctan, mpmath.atan),
    "atan2": (np.arctan2, mpmath.atan2),
    "erf": (scipy.special.erf, mpmath.erf),
    "erfc": (scipy.special.erfc, mpmath.erfc),
    "pow": (np.power, lambda x, y: x**y),
    "rsqrt": (lambda x: 1 / np.sqrt(x), lambda x: 1 / mpmath.sqrt(x)),
    "cbrt": (np.cbrt, lambda x: mpmath.sign(x) * mpmath.cbrt(abs(x))),
}
UNARY = [name for name in REFERENCES if name not in ("pow", "atan2")]
EDGES = [
    0.0,
    1.0,
    math.inf,
    math.nan,
    0.5,
    2.0,
    3.0,
    1e-40,
    1e-45,
    5e-324,
    1.7e-308,
    3e38,
    1.7e308,
    1e20,
    7.5,
]
EDGES += [
    2.0**24 + 1,
    2.0**53 - 1,
    88.72284,
    88.72283,
    103.9,
    709.78,
    745.13,
    9.02,
    20.0,
    1.0000001,
    0.99999994,
]


@cache
def native(name: str, dtype: str, target: str, lanes: int | None = None) -> Callable[..., np.ndarray]:
    """The compiled function over arrays."""
    count = 2 if name in ("pow", "atan2") else 1
    return elementwise(VECTOR_MATH[name], [dtype] * count, dtype, level(target), lanes)


def all_single_patterns(stride: int) -> np.ndarray:
    """Every `stride`-th of all float32, with neighborhoods of the edges."""
    spread = np.arange(0, 2**32, stride, dtype=np.uint32).view(np.float32)
    with np.errstate(over="ignore"):
        edges = np.array(EDGES + [-e for e in EDGES], np.float32)
    around = edges.view(np.int32)[:, None] + np.arange(-40, 41, dtype=np.int32)
    return np.concatenate([spread, around.ravel().view(np.float32)])


def ulps(got: np.ndarray, exact: np.ndarray, dtype: str = "float32") -> np.ndarray:
    """The distance from a float64 reference in units in the last place; infinite where a special value is wrong."""
    info = np.finfo(dtype)
    with np.errstate(all="ignore"):
        size = np.abs(exact)
        exponent = np.frexp(np.where(np.isfinite(exact) & (exact != 0), size, 1.0))[1] - 1
        unit = np.ldexp(1.0, np.clip(exponent, info.minexp, info.maxexp - 1) - info.nmant)
        # Past the largest number the grid goes on: infinity stands for the next power of two.
        top = np.ldexp(1.0, info.maxexp)
        shown = np.where(np.isinf(got) & np.isfinite(exact), np.copysign(top, got), got.astype(np.float64))
        limited = np.where(np.isfinite(exact), np.clip(exact, -top, top), exact)
        error = np.where(shown == limited, 0.0, np.abs(shown - limited) / unit)
    error = np.where(np.isnan(got) & np.isnan(exact), 0.0, error)
    error = np.where(np.isnan(got) != np.isnan(exact), np.inf, error)
    wrong_zero = (exact == 0) & ((got != 0) | (np.signbit(got) != np.signbit(exact)))
    return np.where(wrong_zero, np.inf, np.where(np.isnan(error), np.inf, error))


def check(name: str, error: np.ndarray, bound: float, *arguments: np.ndarray) -> None:
    """Fail with the worst argument."""
    worst = int(np.argmax(error))
    assert error[worst] <= bound, f"{name}{tuple(a[worst] for a in arguments)}: {error[worst]:.3f} ulp"


@pytest.mark.parametrize("target", LEVELS)
@pytest.mark.parametrize("name", UNARY)
def test_single_precision_bound_holds_over_all_patterns(name: str, target: str) -> None:
    x = all_single_patterns(10007 if target == LEVELS[-1] else 40009)
    with np.errstate(all="ignore"):
        exact = REFERENCES[name][0](x.astype(np.float64))
    check(name, ulps(native(name, "float32", target)(x), exact), MAX_ULP[name, "float32"], x)


def pairs(name: str, dtype: str, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Arguments of a function of two: results spread over the range, and every pair of edges."""
    rng = np.random.default_rng(11)
    limit = 80 if dtype == "float32" else 600
    x = np.exp(rng.uniform(-limit, limit, count))
    near = 1 + rng.uniform(-0.01, 0.01, count)
    if name == "pow":
        y = rng.uniform(-1.1, 1.1, count) * limit / np.maximum(np.abs(np.log(x)), 0.3)
        return np.concatenate([x, near]).astype(dtype), np.concatenate([y, rng.normal(0, limit * 60, count)]).astype(
            dtype
        )
    y = np.exp(rng.uniform(-limit, limit, count)) * rng.choice([-1, 1], count)
    return np.concatenate([near, x]).astype(dtype), np.concatenate([rng.normal(0, 1, count), y]).astype(dtype)


@pytest.mark.parametrize("target", LEVELS)
@pytest.mark.parametrize("name", ["pow", "atan2"])
def test_single_precision_bound_of_two_arguments(name: str, target: str) -> None:
    x, y = pairs(name, "float32", 60000)
    with np.errstate(all="ignore"):
        exact = REFERENCES[name][0](x.astype(np.float64), y.astype(np.float64))
    check(name, ulps(native(name, "float32", target)(x, y), exact), MAX_ULP[name, "float32"], x, y)


@pytest.mark.parametrize("target", LEVELS)
@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", ["pow", "atan2"])
def test_special_values_of_two_arguments_are_numpys(name: str, dtype: str, target: str) -> None:
    with np.errstate(all="ignore"):
        edges = np.array(EDGES + [-e for e in EDGES], dtype)
        x, y = (v.ravel() for v in np.meshgrid(edges, edges))
        expected = REFERENCES[name][0](x, y)
        got = native(name, dtype, target)(x, y)
        close = np.abs(got - expected) <= 4 * np.spacing(np.abs(expected))
    same = (got == expected) & (np.signbit(got) == np.signbit(expected)) | np.isnan(got) & np.isnan(expected)
    bad = ~(same | close)
    assert not bad.any(), [*zip(x[bad], y[bad], got[bad], expected[bad])][:5]


def exact_error(name: str, got: np.ndarray, *arguments: np.ndarray) -> np.ndarray:
    """The error of float64 results against mpmath, in units in the last place."""
    function = REFERENCES[name][1]
    # The reduction of huge angles needs as many bits as their exponents have.
    precision = 1200 if name in ("sin", "cos", "tan") else 160
    errors = []
    with mpmath.workprec(precision):
        for result, *point in zip(got.tolist(), *(a.tolist() for a in arguments)):
            try:
                exact = function(*map(mpmath.mpf, point))
            except (ValueError, ZeroDivisionError):
                exact = mpmath.nan
            if isinstance(exact, mpmath.mpc):
                exact = mpmath.nan
            errors.append(_error_of(result, exact))
    return np.array(errors)


def _error_of(result: float, exact: object) -> float:
    if mpmath.isnan(exact):
        return 0.0 if math.isnan(result) else math.inf
    if mpmath.isinf(exact) or abs(exact) >= mpmath.mpf(2) ** 1024:  # type: ignore[operator]
        return 0.0 if math.isinf(result) and (result > 0) == (exact > 0) else math.inf  # type: ignore[operator]
    if not exact or abs(exact) < mpmath.mpf(2) ** -1100:  # type: ignore[operator]
        return 0.0 if result == 0 else math.inf
    exponent = max(mpmath.frexp(abs(exact))[1] - 1, -1022)
    if math.isinf(result):
        result = math.copysign(1.0, result) * mpmath.mpf(2) ** 1024
    return float(abs(mpmath.mpf(result) - exact) / mpmath.ldexp(1, exponent - 52))


def doubles(name: str, count: int) -> np.ndarray:
    """float64 arguments: any bits, all magnitudes around 1, and around the edges of the ranges."""
    rng = np.random.default_rng(7)
    anything = rng.integers(0, 2**64 - 1, count, dtype=np.uint64).view(np.float64)
    usual = rng.standard_normal(count) * np.exp(rng.uniform(-8, 4, count))
    near_one = 1 + rng.standard_normal(count) * np.exp(rng.uniform(-35, 0, count))
    wide = rng.uniform(-750, 750, count)
    with np.errstate(over="ignore"):
        edges = np.array(EDGES + [-e for e in EDGES])
    x = np.concatenate([anything, usual, near_one, -near_one, wide, rng.uniform(-1, 1, count), edges])
    if name == "erfc":  # mpmath needs long for results that vanish
        x = np.where(np.abs(x) > 30, np.copysign(rng.uniform(0, 28, x.size), x), x)
    if name == "rsqrt":  # mpmath has no signed infinity at zero; float32 covers it
        x = x[x != 0]
    return x[~np.isnan(x)]


@pytest.mark.parametrize("target", LEVELS)
@pytest.mark.parametrize("name", UNARY)
def test_double_precision_bound_holds(name: str, target: str) -> None:
    x = doubles(name, 120 if target == LEVELS[-1] else 30)
    check(name, exact_error(name, native(name, "float64", target)(x), x), MAX_ULP[name, "float64"], x)


@pytest.mark.parametrize("target", LEVELS)
@pytest.mark.parametrize("name", ["pow", "atan2"])
def test_double_precision_bound_of_two_arguments(name: str, target: str) -> None:
    x, y = pairs(name, "float64", 300)
    error = exact_error(name, native(name, "float64", target)(x, y), x, y)
    check(name, error, MAX_ULP[name, "float64"], x, y)


def closest_angles(bits: int, least: int, most: int) -> np.ndarray:
    """The numbers m 2^e of so many bits that lie next to multiples of pi / 2, one for each e."""
    found = []
    with mpmath.workprec(1200):
        for e in range(least, most, 7):
            # m / n is a convergent of the continued fraction of pi / 2 / 2^e
            rest = mpmath.ldexp(mpmath.pi / 2, -e)
            before, m = 1, int(mpmath.floor(rest))
            best = m
            while m < 2**bits:
                best = m
                rest = 1 / (rest - mpmath.floor(rest))
                before, m = m, int(mpmath.floor(rest)) * m + before
            found.append(math.ldexp(best, e))
    return np.array(found)


@pytest.mark.parametrize("target", LEVELS)
@pytest.mark.parametrize("name", ["sin", "cos", "tan"])
def test_angles_next_to_quarter_turns_keep_their_digits(name: str, target: str) -> None:
    x = closest_angles(53, -40, 971)
    check(name, exact_error(name, native(name, "float64", target)(x), x), MAX_ULP[name, "float64"], x)
    x = closest_angles(24, -20, 104)
    with mpmath.workprec(400):
        exact = np.array([float(REFERENCES[name][1](mpmath.mpf(v))) for v in x])
    check(name, ulps(native(name, "float32", target)(x), exact), MAX_ULP[name, "float32"], x)


@pytest.mark.parametrize("target", LEVELS)
@pytest.mark.parametrize("name", UNARY)
def test_half_precision_is_rounded_once_more(name: str, target: str) -> None:
    x = np.arange(65536, dtype=np.uint16).view(np.float16)
    with np.errstate(all="ignore"):
        exact = REFERENCES[name][0](x.astype(np.float64))
    error = ulps(native(name, "float16", target)(x), exact, "float16")
    check(name, error, MAX_ULP[name, "float16"], x)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", REFERENCES)
def test_lane_counts_give_the_same_bits(name: str, dtype: str) -> None:
    rng = np.random.default_rng(2)
    arguments = [(rng.standard_normal(97) * np.exp(rng.uniform(-3, 6, 97))).astype(dtype) for _ in range(2)]
    arguments = arguments[: 2 if name in ("pow", "atan2") else 1]
    first = native(name, dtype, LEVELS[-1])(*arguments)
    for lanes in (1, 3, 32):
        np.testing.assert_array_equal(native(name, dtype, LEVELS[-1], lanes)(*arguments), first)


def test_tanh_and_erf_stay_within_one() -> None:
    x = np.arange(0x3F000000, 0x42000000, 5, dtype=np.uint32).view(np.float32)
    for name in ("tanh", "erf", "sigmoid"):
        for target in LEVELS:
            assert native(name, "float32", target)(x).max() == 1.0


def test_limits_are_exact() -> None:
    ends = np.array([np.inf, -np.inf, 1e30, -1e30], np.float32)
    for dtype in ("float32", "float64"):
        for target in LEVELS:
            for name in ("tanh", "erf"):
                assert native(name, dtype, target)(ends).tolist() == [1, -1, 1, -1]
            assert native("sigmoid", dtype, target)(ends).tolist() == [1, 0, 1, 0]
            assert native("erfc", dtype, target)(ends).tolist() == [0, 2, 0, 2]


def test_powers_of_two_are_exact() -> None:
    n = np.arange(-126, 128, dtype=np.float32)
    for target in LEVELS:
        np.testing.assert_array_equal(native("exp2", "float32", target)(n), 2.0**n)
        np.testing.assert_array_equal(native("log2", "float32", target)(np.float32(2.0) ** n), n)


def test_integers_are_refused() -> None:
    b = Builder(TARGETS["x86-64"])
    with pytest.raises(TypeError, match="exp: expected a float, got int32"):
        VECTOR_MATH["exp"](b, Value("%x", "int32", 4))


@pytest.mark.parametrize("name", ["x86-64", "aarch64", "riscv64", "wasm32"])
def test_every_function_compiles_without_libraries(name: str) -> None:
    from test_builder import undefined_symbols

    target = named_target(name)
    b = Builder(target)
    for dtype in ("float32", "float64"):
        lanes = target.lanes(dtype)
        for function in REFERENCES:
            with b.function(f"{function}_{dtype}", [("x", "ptr")]) as (x,):
                value = b.load(x, dtype, lanes)
                arguments = [value, value][: 2 if function in ("pow", "atan2") else 1]
                b.store(VECTOR_MATH[function](b, *arguments), x)
                b.ret()
    assert undefined_symbols(emit_object(b.module(), target)) == []


def test_table_is_complete() -> None:
    assert set(VECTOR_MATH) == set(REFERENCES)
    assert set(MAX_ULP) == {(n, d) for n in VECTOR_MATH for d in ("float16", "float32", "float64")}
