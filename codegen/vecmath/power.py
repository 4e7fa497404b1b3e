"""pow, rsqrt and cbrt."""

import math

from graphkb.codegen.builder import Value
from graphkb.codegen.vecmath.avx512 import scalef, table_split
from graphkb.codegen.vecmath.coefficients import COEFFICIENTS
from graphkb.codegen.vecmath.exponential import FORMATS, power_of_two, reduce_exp, scale, whole
from graphkb.codegen.vecmath.expression import Expr, fast_two_sum, horner, two_product
from graphkb.codegen.vecmath.logarithm import split

_LOG2_E = (1.4426950216293335, 1.9259629911266175e-08)  # 1 / log(2) in two parts of float32
_TWO_THIRDS = (0.6666666666666666, 3.700743415417188e-17)


def power(x: Expr, y: Expr) -> Expr:
    """x^y with the special cases of C and NumPy: x^0 = 1^y = 1, NaN for negative finite x and fractional y"""
    size = abs(x)
    if x.b.target.is_avx512:
        result = _narrow_table_power(size, y) if x.dtype == "float32" else _wide_table_power(size, y)
    else:
        result = _narrow_power(size, y) if x.dtype == "float32" else _wide_power(size, y)
    # An infinite y is no exception but for x = 1, of which it makes NaN.
    ordinary = (x > 0.0) & (x < math.inf) & result.eq(result)

    def settle() -> list[Value]:
        return [_settle(x, y, size, result).value]

    return Expr(x.b, x.b.branch((~ordinary).any(), settle, lambda: [result.value], likely=False, hint="pow")[0])


def _settle(x: Expr, y: Expr, size: Expr, result: Expr) -> Expr:
    """The result where x is not positive and finite or the one at hand is NaN."""
    one, zero = x.const(1.0), x.const(0.0)
    # Zero and infinity: which of them comes out depends on the sign of y.
    edge = size.eq(0.0) | size.eq(math.inf)
    vanishes = ~(size.eq(0.0) ^ (y > 0.0))
    result = edge.where(vanishes.where(zero, math.inf), result)
    result = size.eq(1.0).where(one, result)
    even, integral = _whole(y * 0.5), _whole(y)
    negative = x.bits() < 0
    result = (negative & integral & ~even).where(-result, result)
    undefined = (x < 0.0) & ~integral & (size < math.inf)
    result = undefined.where(x.const(math.nan), result)
    result = (x.isnan() | y.isnan()).where(x + y, result)
    return (y.eq(0.0) | x.eq(1.0)).where(one, result)


def _whole(y: Expr) -> Expr:
    """Whether y has no fraction; infinities have none."""
    return Expr(y.b, y.b.trunc(y.value)).eq(y)


def _narrow_power(size: Expr, y: Expr) -> Expr:
    """2^(y log2(size)) in float64 for positive finite float32"""
    exponent, mantissa = split(size.cast("float64"))
    f = mantissa - 1.0
    s = f / (f + 2.0)
    log = s.fma(horner(s * s, COEFFICIENTS["pow", "float32"]), exponent)
    product = (log * y.cast("float64")).at_most(200.0).at_least(-200.0)
    n, count = whole(product, 1.0)
    result = horner(product - n, COEFFICIENTS["exp2", "float32"]) * power_of_two(count)
    return result.cast("float32")


def _log_in_two_parts(size: Expr) -> tuple[Expr, Expr]:
    """log(size) of a positive finite float64 to about 2^-66, with s = f / (2 + f) and log(1 + f) = 2 atanh(s)."""
    form = FORMATS["float64"]
    exponent, mantissa = split(size)
    f = mantissa - 1.0
    below, below_low = fast_two_sum(f.const(2.0), f)
    s = f / below
    product, error = two_product(s, below)
    s_low = (((f - product) - error) - s * below_low) / below
    square, square_low = two_product(s, s)
    square_low = square_low + (s + s) * s_low
    # 2/3 + z (2/5 + …) in two parts, then times s³
    tail = square * horner(square, COEFFICIENTS["pow", "float64"])
    ratio, ratio_low = fast_two_sum(tail.const(_TWO_THIRDS[0]), tail)
    ratio_low = ratio_low + _TWO_THIRDS[1]
    term, term_low = two_product(square, ratio)
    term_low = term_low + (square * ratio_low + square_low * ratio)
    cubic, cubic_low = two_product(s, term)
    cubic_low = cubic_low + (s * term_low + s_low * term)
    log, log_low = fast_two_sum(s + s, cubic)
    log_low = log_low + (cubic_low + (s_low + s_low))
    high, low = fast_two_sum(exponent * form.ln2_high, log)
    low = low + exponent.fma(form.ln2_low, log_low)
    return fast_two_sum(high, low)


def _wide_power(size: Expr, y: Expr) -> Expr:
    """e^(y log(size)) for positive finite float64"""
    return _exp_of_product(y, *_log_in_two_parts(size))


def _exp_of_product(y: Expr, high: Expr, low: Expr) -> Expr:
    """e^(y (high + low))"""
    form = FORMATS["float64"]
    product, error = two_product(y, high)
    within = product.at_most(form.largest + 2.0).at_least(form.least - 2.0)
    # Where the product was cut the error is meaningless.
    error = within.eq(product).where(y.fma(low, error), 0.0)
    n, count, r = reduce_exp(within)
    return scale(horner(r + error, COEFFICIENTS["exp", "float64"]), n, count)


def _narrow_table_power(size: Expr, y: Expr) -> Expr:
    """2^(y log2(size)) for positive finite float32, the logarithm in two parts"""
    exponent, r, table, table_low = table_split(size, "log2_float32")
    first, first_low = _LOG2_E
    tail = r.fma(horner(r, COEFFICIENTS["pow_table", "float32"]), first_low)
    base = exponent + table
    lead = r * first
    high, low = fast_two_sum(base, lead)
    low = low + (r.fma(first, -lead) + r.fma(tail, table_low))
    # A larger exponent overflows every base but 1 all the same, and its products stay finite.
    y = y.at_most(2.0**40).at_least(-(2.0**40))
    product = y * high
    # Where the product is cut the error is meaningless; elsewhere it stays below 4.
    error = y.fma(low, y.fma(high, -product)).at_most(4.0).at_least(-4.0)
    product = product.at_most(200.0).at_least(-200.0)
    n = (product + error).rint()
    return scalef(horner((product - n) + error, COEFFICIENTS["exp2", "float32"]), n)


def _wide_table_power(size: Expr, y: Expr) -> Expr:
    """e^(y log(size)) for positive finite float64, the logarithm in two parts"""
    form = FORMATS["float64"]
    exponent, r, table, table_low = table_split(size, "log_float64")
    # -r² / 2 in two parts; the polynomial is fitted for r³
    half, half_low = two_product(r, r * -0.5)
    near, near_low = fast_two_sum(r, half)
    tail = (r * half).fma(horner(r, [-2.0 * c for c in COEFFICIENTS["pow_table", "float64"]]), half_low)
    high, low = fast_two_sum(exponent.fma(form.ln2_high, table), near)
    low = low + (exponent.fma(form.ln2_low, table_low) + (near_low + tail))
    return _exp_of_product(y, *fast_two_sum(high, low))


def rsqrt(x: Expr) -> Expr:
    """1 / sqrt(x)"""
    return 1.0 / x.sqrt()


def cbrt(x: Expr) -> Expr:
    """The cube root, of negative numbers too: a polynomial, in float64 mended by one step of Newton's method"""
    size = abs(x)
    exponent, mantissa = split(size)
    third, count = whole(exponent - 1.0, 1.0 / 3.0)
    rest = exponent - third * 3.0
    once, twice = rest > 0.5, rest > 1.5
    root = horner(mantissa - 1.0, COEFFICIENTS["cbrt", x.dtype])
    root = root * twice.where(x.const(2.0 ** (2 / 3)), once.where(x.const(2.0 ** (1 / 3)), 1.0))
    if x.dtype == "float64":
        inside = mantissa * twice.where(x.const(4.0), once.where(x.const(2.0), 1.0))
        root = root - (root - inside / (root * root)) * (1.0 / 3.0)
    result = (root * power_of_two(count)).copysign(x)
    return ((size > 0.0) & (size < math.inf)).where(result, x)
