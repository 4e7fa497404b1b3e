"""log, log2, log10, log1p, softplus, asinh, acosh and atanh.

x = 2^e (1 + f) with 1 + f in [0.75, 1.5). In float32 log(1 + f) is a polynomial in f; in float64 it is one in
s = f / (2 + f), because log(1 + f) = 2 atanh(s) (as in P.-T. P. Tang, ACM TOMS 16, 1990, and later libraries).
"""

import math

from graphkb.codegen.vecmath.avx512 import fix_log, getexp, getmant, scalef, table_split
from graphkb.codegen.vecmath.coefficients import COEFFICIENTS
from graphkb.codegen.vecmath.exponential import FORMATS, exp, power_of_two
from graphkb.codegen.vecmath.expression import Expr, horner, two_sum


def split(x: Expr) -> tuple[Expr, Expr]:
    """e and 1 + f of a positive finite x; on AVX-512 they carry 0, infinity and NaN on to the result."""
    form = FORMATS[x.dtype]
    if x.b.target.is_avx512:
        mantissa, exponent = getmant(x), getexp(x)
        return (mantissa < 1.0).where(exponent + 1.0, exponent), mantissa
    tiny = x < 2.0 ** (1 - form.bias)
    lifted = tiny.where(x * 2.0 ** (form.fraction + 2), x).bits()
    count = (lifted - x.const(0.75).bits()) >> form.fraction
    mantissa = (lifted - (count << form.fraction)).as_float()
    shift = tiny.where(x.const(form.fraction + 2.0), x.const(0.0))
    # int64 conversions are slow before AVX-512, and the count fits 32 bits
    return count.cast("int32").cast(x.dtype) - shift, mantissa


def settle(x: Expr, result: Expr) -> Expr:
    """`result` for positive finite x; the logarithms of 0, infinity, NaN and negative numbers elsewhere."""
    if x.b.target.is_avx512:
        return result
    edge = x.eq(0.0).where(x.const(-math.inf), (x < 0.0).where(x.const(math.nan), x))
    ordinary = (x > 0.0) & (x < math.inf)
    return ordinary.where(result, edge)


def log_mantissa(f: Expr) -> tuple[Expr, Expr]:
    """log(1 + f) as f plus a second part."""
    if f.dtype == "float32":
        return f, f * f * horner(f, COEFFICIENTS["log", "float32"][1:])
    half = f * f * 0.5
    s = f / (f + 2.0)
    square = s * s
    tail = square * horner(square, COEFFICIENTS["log", "float64"])
    return f, s.fma(half + tail, -half)


def log_of(exponent: Expr, f: Expr) -> Expr:
    """log(2^exponent (1 + f))"""
    form = FORMATS[f.dtype]
    first, second = log_mantissa(f)
    return exponent.fma(form.ln2_high, first + exponent.fma(form.ln2_low, second))


def log(x: Expr) -> Expr:
    """The natural logarithm"""
    exponent, mantissa = split(x)
    return settle(x, log_of(exponent, mantissa - 1.0))


def _scaled_log(exponent: Expr, f: Expr, name: str, step: tuple[float, float]) -> Expr:
    """exponent * step + log(1 + f) / log(base), where the constants come in two parts."""
    if f.dtype == "float32":
        first, *rest = COEFFICIENTS[name, "float32"]
        low = f * f * horner(f, rest) if not step[1] else exponent.fma(step[1], f * f * horner(f, rest))
        return exponent.fma(step[0], f.fma(first, low))
    factor = _FACTORS[name]
    near, second = log_mantissa(f)
    low = near.fma(factor[1], second * factor[0])
    if step[1]:
        low = exponent.fma(step[1], low)
    # In this order no rounding happens at a size that later cancels.
    return near.fma(factor[0], exponent * step[0]) + low


# 1 / log(2), 1 / log(10) and log10(2) in two parts; the first has few bits where it multiplies an exponent.
_FACTORS = {
    "log2": (1.4426950408889634, 2.0355273740931033e-17),
    "log10": (0.4342944819032518, 1.098319650216765e-17),
}
_LOG10_2 = {
    "float32": (0.301025390625, 4.605038981195214e-06),
    "float64": (0.30102999566361177, 3.694239077158931e-13),
}


def _log_to_base(x: Expr, name: str, step: tuple[float, float]) -> Expr:
    if x.dtype == "float32" and x.b.target.is_avx512:
        exponent, r, table, low = table_split(x, f"{name}_float32")
        if step[1]:
            low = exponent.fma(step[1], low)
        base = exponent.fma(step[0], table) if step[1] else exponent + table
        return base + r.fma(horner(r, COEFFICIENTS[f"{name}_table", "float32"]), low)
    exponent, mantissa = split(x)
    return settle(x, _scaled_log(exponent, mantissa - 1.0, name, step))


def log2(x: Expr) -> Expr:
    """The logarithm to base 2, exact for powers of two; on AVX-512 by table in float32"""
    return _log_to_base(x, "log2", (1.0, 0.0))


def log10(x: Expr) -> Expr:
    """The logarithm to base 10; on AVX-512 by table in float32"""
    return _log_to_base(x, "log10", _LOG10_2[x.dtype])


def log_of_sum(high: Expr, low: Expr, doublings: Expr | float = 0.0) -> Expr:
    """log((high + low) 2^doublings) of a positive finite sum whose second part is small."""
    exponent, mantissa = split(high)
    if high.b.target.is_avx512:
        moved = scalef(low, -exponent)
    else:
        # Beyond 2^100 the second part no longer counts.
        count = (-exponent.at_most(100.0)).cast("int32").cast("int32" if high.dtype == "float32" else "int64")
        moved = low * power_of_two(count)
    return log_of(exponent + doublings, (mantissa - 1.0) + moved)


def log1p(x: Expr) -> Expr:
    """log(1 + x), accurate near 0"""
    total, error = two_sum(x.const(1.0), x)
    result = log_of_sum(total, error)
    if x.b.target.is_avx512:
        return fix_log(result, total).copysign(x)
    edge = x.eq(-1.0).where(x.const(-math.inf), (x < -1.0).where(x.const(math.nan), x))
    ordinary = (x > -1.0) & (x < math.inf)
    return ordinary.where(result.copysign(x), edge)


def softplus(x: Expr) -> Expr:
    """log(1 + e^x) as max(x, 0) + log(1 + p) with p = e^-|x|, where 1 + p needs no more than one halving"""
    power = exp(-abs(x))
    halve = power > 0.5
    f = halve.where((power - 1.0) * 0.5, power)
    return (x > 0.0).where(x, 0.0) + log_of(halve.where(x.const(1.0), 0.0), f)


def asinh(x: Expr) -> Expr:
    """log(|x| + sqrt(x² + 1)) with the sign of x, while x² stays finite; accurate near 0

    There float32 has an odd polynomial and float64 the form log(1 + w).
    """
    size = abs(x)
    big = size > 2.0 ** (FORMATS[x.dtype].fraction // 2 + 2)
    shift = big.where(x.const(1.0), 0.0)
    if x.dtype == "float32":
        root = size.fma(size, 1.0).sqrt()
        exponent, mantissa = split(big.where(size, size + root))
        far = _edge_at_infinity(size, log_of(exponent + shift, mantissa - 1.0))
        square = x * x
        near = (size * square).fma(horner(square, COEFFICIENTS["asinh", "float32"][1:]), size)
        return (size < 0.6).where(near, far).copysign(x)
    near = big.where(1.0, size)
    square = near * near
    more = near + square / ((square + 1.0).sqrt() + 1.0)
    total, error = two_sum(more.const(1.0), more)
    total, error = big.where(size, total), big.where(0.0, error)
    return _edge_at_infinity(size, log_of_sum(total, error, shift)).copysign(x)


def acosh(x: Expr) -> Expr:
    """log(x + sqrt(x² - 1)), as log(1 + w) with w from x - 1; NaN below 1

    In float32 near 1, sqrt(2 (x - 1)) times a polynomial in x - 1.
    """
    if x.dtype == "float32":
        return _narrow_acosh(x)
    big = x > 2.0 ** (FORMATS[x.dtype].fraction // 2 + 2)
    over = big.where(0.0, x - 1.0)
    root = over.fma(over, over * 2.0).sqrt()
    more, lost = two_sum(over, root)
    total, error = two_sum(more.const(1.0), more)
    total, error = big.where(x, total), big.where(0.0, error + lost)
    result = _edge_at_infinity(x, log_of_sum(total, error, big.where(x.const(1.0), 0.0)))
    return (x < 1.0).where(x.const(math.nan), result)


def _narrow_acosh(x: Expr) -> Expr:
    over = x - 1.0
    close = over < 1.0
    big = x > 2.0 ** (FORMATS["float32"].fraction // 2 + 2)
    root = (over * close.where(x.const(2.0), over + 2.0)).sqrt()
    near = root * horner(over.at_most(1.0), COEFFICIENTS["acosh", "float32"])
    exponent, mantissa = split(big.where(x, x + root))
    far = log_of(exponent + big.where(x.const(1.0), 0.0), mantissa - 1.0)
    result = _edge_at_infinity(x, close.where(near, far))
    return (x < 1.0).where(x.const(math.nan), result)


def _narrow_atanh(x: Expr) -> Expr:
    size = abs(x)
    square = size * size
    near = (size * square).fma(horner(square.at_most(0.25), COEFFICIENTS["atanh", "float32"][1:]), size)
    exponent, mantissa = split((size + 1.0) / (1.0 - size))
    far = log_of(exponent, mantissa - 1.0) * 0.5
    edge = size.eq(1.0).where(x.const(math.inf), x.const(math.nan))
    return (size < 1.0).where((size < 0.5).where(near, far), edge).copysign(x)


def _edge_at_infinity(x: Expr, result: Expr) -> Expr:
    return (x < math.inf).where(result, x)


def atanh(x: Expr) -> Expr:
    """log((1 + x) / (1 - x)) / 2; accurate near 0; infinite at ±1, NaN beyond

    There float32 has an odd polynomial and float64 the form log(1 + 2 |x| / (1 - |x|)).
    """
    if x.dtype == "float32":
        return _narrow_atanh(x)
    size = abs(x)
    ratio = (size + size) / (1.0 - size)
    total, error = two_sum(ratio.const(1.0), ratio)
    result = log_of_sum(total, error) * 0.5
    tiny = size < 2.0 ** -FORMATS[x.dtype].fraction
    result = tiny.where(size, result)
    edge = size.eq(1.0).where(x.const(math.inf), x.const(math.nan))
    return (size < 1.0).where(result, edge).copysign(x)
