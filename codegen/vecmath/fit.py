"""Derives the coefficients of the vector math: `python -m graphkb.codegen.vecmath.fit` rewrites coefficients.py.

Each row below names a polynomial, the function and interval it approximates, and its powers. A development tool: it
needs mpmath.
"""

import math
import struct
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from mpmath import mp, mpf

from graphkb.codegen.vecmath.remez import DIGITS, fit_polynomial
from graphkb.ir.record import record

Function = Callable[[Any], Any]


def single(x: Any) -> float:
    """The nearest float32."""
    return float(struct.unpack("<f", struct.pack("<f", float(x)))[0])


# float16 is computed in float32.
ROUNDINGS: dict[str, Callable[[Any], float]] = {"float16": single, "float32": single, "float64": float}


@record
class Fit:
    """One polynomial.

    Attributes:
        name: the key in the table, together with `dtype`.
        dtype: of the results.
        function: what is approximated.
        low: lower end of the interval.
        high: upper end.
        powers: the exponents.
        weight: factor of the error; None asks for the least relative error.
        fixed: coefficients that are given, by exponent.
    """

    name: str
    dtype: str
    function: Function
    low: Any
    high: Any
    powers: Sequence[int]
    weight: Function | None = None
    fixed: tuple[tuple[int, float], ...] = ()

    def run(self) -> tuple[list[float], float]:
        """The coefficients and the largest weighted error."""
        # float32 powers are computed in float64
        rounding = float if self.name == "pow" else ROUNDINGS[self.dtype]
        with mp.workdps(DIGITS):
            return fit_polynomial(
                self.function, self.low, self.high, self.powers, rounding, self.weight, dict(self.fixed)
            )


mp.dps = DIGITS
_HALF_LN2 = mp.log(2) / 2 * mpf("1.0002")
_QUARTER_PI = mp.pi / 4 * mpf("1.0002")
# The rounding of 2 / pi to float32 moves the largest remainders of x < 2^17 a little further out.
_WIDE_QUARTER_PI = mp.pi / 4 * mpf("1.006")
_TINY = mpf(10) ** -18


def _log_ratio(z: Any) -> Any:
    """(log((1 + s) / (1 - s)) - 2 s) / s³ with z = s²"""
    s = mp.sqrt(z)
    return (2 * mp.atanh(s) - 2 * s) / s**3


def _log2_ratio(z: Any) -> Any:
    """log2((1 + s) / (1 - s)) / s with z = s²"""
    s = mp.sqrt(z)
    return 2 * mp.atanh(s) / s / mp.log(2)


def _log_ratio_5(z: Any) -> Any:
    """(log((1 + s) / (1 - s)) - 2 s - 2 s³ / 3) / s⁵ with z = s²"""
    if z < mpf(10) ** -8:
        return mpf(2) / 5 + 2 * z / 7 + 2 * z * z / 9
    s = mp.sqrt(z)
    return (2 * mp.atanh(s) - 2 * s - 2 * s**3 / 3) / s**5


def _log2_tail(r: Any) -> Any:
    """(log2(1 + r) - r / log(2)) / r²"""
    return mp.fsum(-((-r) ** k) / (k + 2) for k in range(40)) / mp.log(2)


def _log_tail(r: Any) -> Any:
    """(log(1 + r) - r + r² / 2) / r³"""
    return mp.fsum((-r) ** k / (k + 3) for k in range(50))


def _of_square(function: Function, power: int, *leading: Any) -> Function:
    """(f(x) - leading terms) / x^power as a function of z = x²; the terms go up in steps of two."""

    def inside(z: Any) -> Any:
        x = mp.sqrt(z)
        start = power - 2 * len(leading)
        return (function(x) - sum(c * x ** (start + 2 * i) for i, c in enumerate(leading))) / x**power

    return inside


_FAR = mpf(1)


def _acosh_ratio(w: Any) -> Any:
    """acosh(1 + w) / sqrt(2 w)"""
    return mp.acosh(1 + w) / mp.sqrt(2 * w)


def _erf_ratio(z: Any) -> Any:
    """erf(x) / x - 1 with z = x²"""
    x = mp.sqrt(z)
    return mp.erf(x) / x - 1


def _erf_weight(z: Any) -> Any:
    return 1 / (1 + _erf_ratio(z))


def _log_erfc(u: Any) -> Any:
    return mp.log(mp.erfc(u + _FAR))


def _flat_erfcx(k: float) -> Function:
    """(1 + 2 x) e^(x²) erfc(x) at x = k (1 + t) / (1 - t)"""
    steep = _erfcx(k)
    return lambda t: (1 + 2 * k * (1 + t) / (1 - t)) * steep(t)


def _erfcx(k: float) -> Function:
    """e^(x²) erfc(x) at x = k (1 + t) / (1 - t)"""

    def inside(t: Any) -> Any:
        x = k * (1 + t) / (1 - t)
        return mp.exp(x * x) * mp.erfc(x)

    return inside


FITS: tuple[Fit, ...] = (
    # e^r on a half octave around 0
    Fit("exp", "float32", mp.exp, -_HALF_LN2, _HALF_LN2, range(7), fixed=((0, 1.0), (1, 1.0))),
    Fit("exp", "float64", mp.exp, -_HALF_LN2, _HALF_LN2, range(12), fixed=((0, 1.0), (1, 1.0))),
    Fit("expm1", "float32", mp.expm1, -_HALF_LN2, _HALF_LN2, range(1, 8), fixed=((1, 1.0), (2, 0.5))),
    Fit("expm1", "float64", mp.expm1, -_HALF_LN2, _HALF_LN2, range(1, 13), fixed=((1, 1.0), (2, 0.5))),
    Fit("exp2", "float32", lambda x: mpf(2) ** x, -0.501, 0.501, range(7), fixed=((0, 1.0),)),
    Fit("exp2", "float64", lambda x: mpf(2) ** x, -0.501, 0.501, range(13), fixed=((0, 1.0),)),
    Fit("sinh", "float32", _of_square(mp.sinh, 1), _TINY, 1.01, range(4), fixed=((0, 1.0),)),
    Fit("sinh", "float64", _of_square(mp.sinh, 1), _TINY, 1.01, range(8), fixed=((0, 1.0),)),
    # log(1 + f) = f - f² / 2 + f³ Q(f) where the mantissa is 1 + f
    Fit("log", "float32", mp.log1p, -0.25, 0.5, range(1, 11), fixed=((1, 1.0), (2, -0.5))),
    Fit(
        "log2",
        "float32",
        lambda f: mp.log1p(f) / mp.log(2),
        -0.25,
        0.5,
        range(1, 11),
        fixed=((1, single(1 / mp.log(2))),),
    ),
    Fit(
        "log10",
        "float32",
        lambda f: mp.log1p(f) / mp.log(10),
        -0.25,
        0.5,
        range(1, 11),
        fixed=((1, single(1 / mp.log(10))),),
    ),
    # log(1 + f) = f - f²/2 + s (f²/2 + s² R(s²)) with s = f / (2 + f)
    Fit("log", "float64", _log_ratio, _TINY, mpf("0.0401"), range(7)),
    # on a quarter turn around 0, z = x²
    Fit("sin", "float32", _of_square(mp.sin, 1), _TINY, _WIDE_QUARTER_PI**2, range(4), fixed=((0, 1.0),)),
    Fit("sin", "float64", _of_square(mp.sin, 1), _TINY, _QUARTER_PI**2, range(7), fixed=((0, 1.0),)),
    Fit(
        "cos",
        "float32",
        _of_square(mp.cos, 0),
        _TINY,
        _WIDE_QUARTER_PI**2,
        range(5),
        fixed=((0, 1.0), (1, -0.5)),
    ),
    Fit("cos", "float64", _of_square(mp.cos, 0), _TINY, _QUARTER_PI**2, range(8), fixed=((0, 1.0), (1, -0.5))),
    # tan(x) / x on the same interval
    Fit("tan", "float32", _of_square(mp.tan, 1), _TINY, _WIDE_QUARTER_PI**2, range(7), fixed=((0, 1.0),)),
    Fit("tan", "float64", _of_square(mp.tan, 1), _TINY, _QUARTER_PI**2, range(15), fixed=((0, 1.0),)),
    # asin(x) / x up to 1/2, z = x²
    Fit("asin", "float32", _of_square(mp.asin, 1), _TINY, 0.2501, range(6), fixed=((0, 1.0),)),
    Fit("asin", "float64", _of_square(mp.asin, 1), _TINY, 0.2501, range(14), fixed=((0, 1.0),)),
    # atan(x) / x up to tan(pi / 8), z = x²
    Fit("atan", "float32", _of_square(mp.atan, 1), _TINY, 0.1717, range(6), fixed=((0, 1.0),)),
    Fit("atan", "float64", _of_square(mp.atan, 1), _TINY, 0.1717, range(12), fixed=((0, 1.0),)),
    # asinh(x) / x up to 0.6, z = x²
    Fit("asinh", "float32", _of_square(mp.asinh, 1), _TINY, mpf("0.3601"), range(7), fixed=((0, 1.0),)),
    Fit("acosh", "float32", _acosh_ratio, _TINY, 1.001, range(8), fixed=((0, 1.0),)),
    Fit("atanh", "float32", _of_square(mp.atanh, 1), _TINY, 0.2501, range(8), fixed=((0, 1.0),)),
    # log2((1 + s) / (1 - s)) / s, z = s²; and (log((1 + s) / (1 - s)) - 2 s - 2 s³ / 3) / s⁵
    Fit("pow", "float32", _log2_ratio, _TINY, mpf("0.0401"), range(7)),
    Fit("pow", "float64", _log_ratio_5, _TINY, mpf("0.0401"), range(8)),
    Fit("cbrt", "float32", lambda f: mp.cbrt(1 + f), -0.25, 0.5, range(9)),
    Fit("cbrt", "float64", lambda f: mp.cbrt(1 + f), -0.25, 0.5, range(10)),
    # erf(x) / x - 1 up to 1, z = x²
    Fit("erf", "float32", _erf_ratio, _TINY, 1.001, range(7), weight=_erf_weight),
    Fit("erf", "float64", _erf_ratio, _TINY, 1.001, range(14), weight=_erf_weight),
    # log(erfc(1 + u)); its error counts by the size of erfc
    Fit("erf_far", "float32", _log_erfc, -0.001, 2.93, range(9), weight=lambda u: mp.erfc(u + _FAR)),
    # e^(x²) erfc(x) as a function of t = (x - k) / (x + k)
    Fit("erfc", "float32", _erfcx(3.0), -1, mpf("0.5421"), range(11)),
    Fit("erfc", "float64", _flat_erfcx(4.0), -1, mpf("0.7446"), range(25)),
    # (log2(1 + r) - r / log(2)) / r² and (log(1 + r) - r + r² / 2) / r³ behind a table of reciprocals
    Fit("pow_table", "float32", _log2_tail, -0.0313, 0.0313, range(5)),
    Fit("pow_table", "float64", _log_tail, -0.0626, 0.0626, range(12)),
    Fit("log2_table", "float32", lambda r: mp.log1p(r) / mp.log(2), -0.0313, 0.0313, range(1, 6)),
    Fit("log10_table", "float32", lambda r: mp.log1p(r) / mp.log(10), -0.0313, 0.0313, range(1, 6)),
    # shorter ones for float16
    Fit("exp", "float16", mp.exp, -_HALF_LN2, _HALF_LN2, range(5), fixed=((0, 1.0),)),
    Fit("exp2", "float16", lambda x: mpf(2) ** x, -0.501, 0.501, range(5), fixed=((0, 1.0),)),
    Fit("log", "float16", mp.log1p, -0.25, 0.5, range(1, 8)),
    Fit("log2", "float16", lambda f: mp.log1p(f) / mp.log(2), -0.25, 0.5, range(1, 8)),
    Fit("log10", "float16", lambda f: mp.log1p(f) / mp.log(10), -0.25, 0.5, range(1, 8)),
    Fit("sin", "float16", _of_square(mp.sin, 1), _TINY, _WIDE_QUARTER_PI**2, range(3), fixed=((0, 1.0),)),
    Fit("cos", "float16", _of_square(mp.cos, 0), _TINY, _WIDE_QUARTER_PI**2, range(4), fixed=((0, 1.0),)),
    Fit("atanh", "float16", _of_square(mp.atanh, 1), _TINY, mpf("0.0626"), range(3), fixed=((0, 1.0),)),
)


def log_table(columns: int, scale: Any, high_bits: int) -> list[list[float]]:
    """Reciprocals c of few bits for parts of [1, 2), and -log(c) * scale in two parts.

    The column is read from the first bits of the fraction. The bits of c are so few that c m - 1 is exact for every m
    of its part; those of the first and the last part are 1 and 1/2, so that nothing is lost around powers of two.
    """
    bits = columns.bit_length()
    rows: list[list[float]] = [[], [], []]
    with mp.workdps(DIGITS):
        for j in range(columns):
            center = 1 + (j + mpf(1) / 2) / columns
            step = 2**bits
            ends = {0: 1.0, columns - 1: 0.5}
            reciprocal = ends[j] if j in ends else float(mp.nint(step / center)) / step
            value = -mp.log(reciprocal) * scale
            high = mp.nint(value * 2**high_bits) / mpf(2) ** high_bits
            for row, number in zip(rows, (reciprocal, high, value - high)):
                row.append(single(number) if columns == 32 else float(number))
    return rows


@record
class Pieces:
    """An odd function by polynomials on quarters of octaves, up to `last`, for float32 tables of 32 columns."""

    name: str
    function: Function
    degree: int
    last: float

    def run(self) -> list[list[float]]:
        """The centers, and a row of coefficients for each power."""
        rows = [[0.0] * 32 for _ in range(self.degree + 2)]
        with mp.workdps(DIGITS):
            first, _ = fit_polynomial(
                lambda x: self.function(x) - x, mpf(10) ** -9, PIECES_FIRST, range(1, self.degree + 1), single,
                weight=lambda x: 1 / self.function(x), points=80,
            )  # fmt: skip
            self._place(rows, PIECES_FIRST * 0.9375, [0.0, 0.0, *first])
            low = PIECES_FIRST
            while low < self.last:
                high = low + 2.0 ** (math.frexp(low)[1] - 3)
                center = (low + high) / 2
                values, _ = fit_polynomial(
                    self._around(center), low - center, min(high, self.last) - center,
                    range(self.degree + 1), single, points=80,
                )  # fmt: skip
                self._place(rows, low, [center, *values])
                low = high
        return rows

    def _around(self, center: float) -> Function:
        return lambda step: self.function(center + step)

    def _place(self, rows: list[list[float]], low: float, column: list[float]) -> None:
        index = struct.unpack("<I", struct.pack("<f", low))[0] >> 21 & 31
        for row, value in zip(rows, column):
            row[index] = value


PIECES_FIRST = 0.125
PIECES: tuple[Pieces, ...] = (Pieces("tanh", mp.tanh, 5, 9.5), Pieces("erf", mp.erf, 5, 3.9999998))


def render(rows: Sequence[tuple[Fit, list[float], float]], pieces: Sequence[tuple[str, list[list[float]]]]) -> str:
    """The text of coefficients.py."""
    lines = [
        '"""Coefficients of the vector math; written by `python -m graphkb.codegen.vecmath.fit`, not by hand."""',
        "",
        "# Keys are a name and a dtype; the comment gives the largest weighted error as a power of two.",
        "COEFFICIENTS: dict[tuple[str, str], tuple[float, ...]] = {",
    ]
    for fit, values, worst in rows:
        lines.append(f'    ("{fit.name}", "{fit.dtype}"): (  # 2^{float(mp.log(worst, 2)):.2f}')
        lines += [f"        {', '.join(map(repr, values[i : i + 4]))}," for i in range(0, len(values), 4)]
        lines.append("    ),")
    lines += [
        "}  # fmt: skip",
        "",
        "# Tables for register lookup: odd functions on quarters of octaves from PIECES_FIRST on, as the centers and",
        "# a row for each power; and reciprocals, with the logarithms of their inverses in two parts.",
        f"PIECES_FIRST = {PIECES_FIRST}",
        "TABLES: dict[str, tuple[tuple[float, ...], ...]] = {",
    ]
    for name, table in pieces:
        lines.append(f'    "{name}": (')
        for row in table:
            lines.append("        (")
            lines += [f"            {', '.join(map(repr, row[i : i + 4]))}," for i in range(0, len(row), 4)]
            lines.append("        ),")
        lines.append("    ),")
    return "\n".join([*lines, "}  # fmt: skip", ""])


def main() -> None:
    """Fit everything, or only check that the file is current with `--check`."""
    path = Path(__file__).with_name("coefficients.py")
    rows = []
    for fit in FITS:
        values, worst = fit.run()
        print(f"{fit.name:12} {fit.dtype} 2^{float(mp.log(worst, 2)):.2f}")
        rows.append((fit, values, worst))
    tables = [(piece.name, piece.run()) for piece in PIECES]
    tables.append(("log2_float32", log_table(32, 1 / mp.log(2), 15)))
    tables.append(("log10_float32", log_table(32, 1 / mp.log(10), 15)))
    tables.append(("log_float64", log_table(16, mpf(1), 41)))
    text = render(rows, tables)
    if "--check" in sys.argv[1:]:
        if path.read_text() != text:
            sys.exit("coefficients.py is not what fit.py produces: run it without --check")
        return
    path.write_text(text)


if __name__ == "__main__":
    main()
