"""The fit script: minimax theory holds, and coefficients.py is what the script produces."""

from fractions import Fraction

import pytest
from mpmath import mp, mpf

from graphkb.codegen.vecmath.coefficients import COEFFICIENTS, PIECES_FIRST, TABLES
from graphkb.codegen.vecmath.fit import FITS, PIECES, Fit, log_table, render, single
from graphkb.codegen.vecmath.remez import Family, chebyshev_grid, fit_polynomial


@pytest.mark.parametrize("row", [f for f in FITS if f.dtype == "float32" and f.name in ("exp", "sin", "cbrt", "log")])
def test_table_is_what_the_script_produces(row: Fit) -> None:
    values, worst = row.run()
    assert tuple(values) == COEFFICIENTS[row.name, row.dtype]
    assert worst < 2.0**-19
    assert all(single(v) == v for v in values)


def test_table_has_every_row_and_no_other() -> None:
    assert set(COEFFICIENTS) == {(f.name, f.dtype) for f in FITS}
    assert set(TABLES) == {p.name for p in PIECES} | {"log2_float32", "log10_float32", "log_float64"}
    for name, rows in TABLES.items():
        assert {len(row) for row in rows} == {16 if name.endswith("64") else 32}


def test_reciprocals_leave_exact_remainders() -> None:
    """c m - 1 has no more bits than m at both ends of every part, and is below the bound of the polynomial."""
    for columns, name, bits, bound in ((32, "log2_float32", 24, 2.0**-5), (16, "log_float64", 53, 2.0**-4)):
        assert tuple(log_table(columns, 1, 41)[0]) == TABLES[name][0]
        for j, c in enumerate(TABLES[name][0]):
            unit = Fraction(1, 2 ** (bits - 1))
            for m in (Fraction(columns + j, columns), Fraction(columns + j + 1, columns) - unit):
                rest = Fraction(c) * m - 1
                assert abs(rest) < bound
                assert Fraction(float(rest)) == rest
                assert columns == 16 or single(float(rest)) == float(rest)


def test_rendered_table_is_python() -> None:
    scope: dict[str, object] = {}
    exec(render([(FITS[0], [1.0, 2.5], 2.0**-20)], [("f", [[0.0] * 32])]), scope)
    assert scope["COEFFICIENTS"] == {(FITS[0].name, FITS[0].dtype): (1.0, 2.5)}
    assert scope["PIECES_FIRST"] == PIECES_FIRST


def test_remez_levels_the_error() -> None:
    """The minimax line for x² on [0, 1] is x - 1/8: the error alternates between three points of 1/8."""
    with mp.workdps(30):
        grid = [mpf(i) / 200 for i in range(201)]
        family = Family([x * x for x in grid], [mpf(1)] * 201, [[mpf(1)] * 201, grid])
        coefficients, worst = family.remez()
    assert [float(c) for c in coefficients] == pytest.approx([-0.125, 1.0])
    assert float(worst) == pytest.approx(0.125)


def test_least_squares_come_near_the_exchange() -> None:
    with mp.workdps(30):
        grid = chebyshev_grid(0, 1, 60)
        family = Family([mp.exp(x) for x in grid], [mpf(1)] * 60, [[x**e for x in grid] for e in range(4)])
        assert float(family.lawson()[1]) < 1.2 * float(family.remez()[1])


def test_fits_recover_what_they_can_represent() -> None:
    values, worst = fit_polynomial(lambda x: 1 + x / 2 - 3 * x**3, 0.5, 1, [0, 1, 3], float)
    assert values == pytest.approx([1, 0.5, -3])
    assert worst < 1e-15
