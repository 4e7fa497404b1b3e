"""Weighted minimax fits of linear families by the Remez exchange, with coefficients rounded one by one.

A development tool: it needs mpmath, which the package itself does not.
Source of the method: E. Ya. Remez, 1934; the rounding order follows N. Brisebarre and S. Chevillard's remark that
rounding all coefficients of a minimax polynomial at once loses several bits.
"""

from collections.abc import Callable, Sequence
from typing import Any

from mpmath import mp, mpf

Function = Callable[[Any], Any]
DIGITS = 60


def chebyshev_grid(low: Any, high: Any, count: int) -> list[Any]:
    """Points of an interval, denser towards both ends."""
    mid, half = (mpf(low) + mpf(high)) / 2, (mpf(high) - mpf(low)) / 2
    return [mid - half * mp.cos(mp.pi * (i + mpf(1) / 2) / count) for i in range(count)]


class Family:
    """Functions sum(c_j * basis_j(x)) compared with a target under a weight, on a fixed grid."""

    def __init__(self, target: list[Any], weight: list[Any], basis: list[list[Any]]) -> None:
        self.target = target
        self.weight = weight
        self.basis = basis

    def error(self, coefficients: Sequence[Any]) -> list[Any]:
        """The weighted error at every grid point."""
        out = []
        for i, (value, weight) in enumerate(zip(self.target, self.weight)):
            total = mp.fdot((c, column[i]) for c, column in zip(coefficients, self.basis))
            out.append((total - value) * weight)
        return out

    def remez(self, rounds: int = 30) -> tuple[list[Any], Any]:
        """The coefficients with the least maximal weighted error, and that error."""
        size, count = len(self.basis), len(self.target)
        if size == 0:
            return [], max(abs(e) for e in self.error([]))
        picks = [round((count - 1) * (1 - float(mp.cos(mp.pi * i / size))) / 2) for i in range(size + 1)]
        coefficients: list[Any] = []
        for _ in range(rounds):
            rows = [[column[i] for column in self.basis] + [(-1) ** k / self.weight[i]] for k, i in enumerate(picks)]
            solution = mp.lu_solve(mp.matrix(rows), mp.matrix([self.target[i] for i in picks]))
            coefficients, level = list(solution)[:size], abs(solution[size])
            error = self.error(coefficients)
            worst = max(abs(e) for e in error)
            if worst <= level * mpf("1.0005"):
                break
            following = _exchange(error, size + 1)
            if following == picks or len(following) < size + 1:
                break
            picks = following
        return coefficients, max(abs(e) for e in self.error(coefficients))

    def lawson(self, rounds: int = 12) -> tuple[list[Any], Any]:
        """Nearly the result of `remez`, by least squares that weigh the worst points more each round.

        Once the lowest coefficients are fixed, the other powers all vanish at 0, and an exchange may then have
        no solution.
        """
        count = len(self.target)
        shares = [mpf(1) / count] * count
        best: tuple[list[Any], Any] = ([], mp.inf)
        for _ in range(rounds):
            scale = [w * w * s for w, s in zip(self.weight, shares)]
            weighted = [[c * s for c, s in zip(column, scale)] for column in self.basis]
            matrix = [[mp.fdot(zip(a, column)) for column in self.basis] for a in weighted]
            right = [mp.fdot(zip(a, self.target)) for a in weighted]
            coefficients = list(mp.lu_solve(mp.matrix(matrix), mp.matrix(right)))
            sizes = [abs(e) for e in self.error(coefficients)]
            if max(sizes) < best[1]:
                best = coefficients, max(sizes)
            shares = [s * e for s, e in zip(shares, sizes)]
            total = mp.fsum(shares)
            shares = [s / total for s in shares]
        return best


def _exchange(error: list[Any], count: int) -> list[int]:
    """Grid points of `count` alternating extrema, the smaller end dropped while there are too many."""
    peaks: list[int] = []
    for i, value in enumerate(error):
        if peaks and (error[peaks[-1]] >= 0) == (value >= 0):
            if abs(value) > abs(error[peaks[-1]]):
                peaks[-1] = i
        else:
            peaks.append(i)
    while len(peaks) > count:
        if len(peaks) == count + 1:
            peaks.pop(0 if abs(error[peaks[0]]) < abs(error[peaks[-1]]) else -1)
        else:
            at = min(range(len(peaks) - 1), key=lambda k: max(abs(error[peaks[k]]), abs(error[peaks[k + 1]])))
            del peaks[at : at + 2]
    return peaks


def fit_polynomial(
    function: Function,
    low: Any,
    high: Any,
    exponents: Sequence[int],
    rounding: Callable[[Any], float],
    weight: Function | None = None,
    fixed: dict[int, float] | None = None,
    points: int = 160,
    refits: int = 8,
) -> tuple[list[float], float]:
    """A polynomial whose coefficients are machine numbers.

    Args:
        function: what to fit.
        low: the interval's lower end.
        high: its upper end.
        exponents: the powers that may occur, ascending; they are rounded in this order.
        rounding: to the machine numbers of the coefficients.
        weight: the error is multiplied by this; default 1 / function (relative error).
        fixed: coefficients that are given, by exponent.
        points: grid size.
        refits: this many times the rest is fitted again after a coefficient was rounded; what then is left
            is rounded at once, being small.

    Returns:
        One coefficient per exponent, and the largest weighted error on the grid.
    """
    with mp.workdps(DIGITS):
        grid = chebyshev_grid(low, high, points)
        target = [mpf(function(x)) for x in grid]
        weights = [abs(weight(x)) for x in grid] if weight else [abs(1 / t) for t in target]
        columns = {e: [x**e for x in grid] for e in exponents}
        chosen: dict[int, float] = dict(fixed or {})
        before = mpf(0)
        while True:
            rest = [t - mp.fdot((mpf(c), columns[e][i]) for e, c in chosen.items()) for i, t in enumerate(target)]
            free = [e for e in exponents if e not in chosen]
            family = Family(rest, weights, [columns[e] for e in free])
            coefficients, worst = family.remez()
            if free and worst > 1.5 * before:
                coefficients, worst = min((coefficients, worst), family.lawson(), key=lambda r: r[1])
            before = worst
            if not free:
                return [chosen[e] for e in exponents], float(worst)
            refits -= 1
            for e, c in zip(free if refits < 0 else free[:1], coefficients):
                chosen[e] = rounding(c)
