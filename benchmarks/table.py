"""Results as text: one block a workload, a summary of graphkb against the best peer, and one table of all."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import groupby

from benchmarks.harness import MIN_BATCHES, Result

OURS = "graphkb"
UNITS = ((1e-6, 1e-9, "ns"), (1e-3, 1e-6, "µs"), (1.0, 1e-3, "ms"), (float("inf"), 1.0, "s"))


def duration(seconds: float) -> str:
    """Three digits and a unit: 66 ns, 3.60 µs, 18.0 ms."""
    scale, unit = next((scale, unit) for limit, scale, unit in UNITS if seconds < limit)
    return f"{digits(seconds / scale)} {unit}"


def digits(value: float) -> str:
    """About three digits."""
    return f"{value:.0f}" if abs(value) >= 99.95 else f"{value:.1f}" if abs(value) >= 9.995 else f"{value:.2f}"


def figure(result: Result) -> str:
    """The median with its unit; a star if it stands on fewer than seven batches."""
    if result.value is None:
        return "-"
    if result.unit != "s":
        return f"{digits(result.value)} {result.unit}"
    return duration(result.value) + ("*" if result.batches < MIN_BATCHES else "")


def best_peer(results: Sequence[Result]) -> Result | None:
    """The fastest contestant other than graphkb whose answer is right."""
    timed = [r for r in results if r.peer != OURS and r.state == "ok" and r.value is not None]
    return min(timed, key=lambda r: r.value or 0.0, default=None)


def ratio(results: Sequence[Result]) -> float | None:
    """graphkb's median over the best peer's; None when one of them is missing."""
    ours = next((r for r in results if r.peer == OURS and r.state == "ok" and r.value is not None), None)
    best = best_peer(results)
    if ours is None or best is None or not best.value or ours.value is None or ours.unit != "s":
        return None
    return ours.value / best.value


def block(what: str, results: Sequence[Result]) -> str:
    """One workload: a line for each contestant, the fastest first, then those without a time."""
    name = results[0].workload if results else ""
    lines = [f"{name}: {what}"]
    best = best_peer(results)
    for r in sorted(results, key=lambda r: (r.value is None, r.value or 0.0)):
        if r.value is None:
            lines.append(f"  {r.peer:15} {r.state}: {r.detail}")
            continue
        cells = [f"  {r.peer:15}", f"{figure(r):>10}"]
        if r.unit == "s":
            against = f"{digits(r.value / best.value)}x" if best is not None and best.value else ""
            spread = f"{duration(r.low or 0.0)} to {duration(r.high or 0.0)}"
            cells += [f"{against:>7}", f"{spread:>22}", f"build {duration(r.build_s or 0.0):>8}"]
        if r.error is not None:
            cells.append(f"error {r.error:.1e} (<= {r.tolerance:.0e})")
        if r.max_ulp is not None:
            cells.append(f"{r.max_ulp:.2f} ULP")
        if r.state != "ok":
            cells.append(f"{r.state.upper()}: {r.detail}")
        lines.append("  ".join(cells).rstrip())
    return "\n".join(lines)


def summary(results: Iterable[Result]) -> str:
    """One line a workload: graphkb, the best peer, and the ratio of the two."""
    lines = [f"{'workload':16} {'graphkb':>11} {'best peer':>11}  {'':15} {'ratio':>7}"]
    for name, group in groupby(results, key=lambda r: r.workload):
        rows = list(group)
        ours = next((r for r in rows if r.peer == OURS), None)
        best = best_peer(rows)
        share = ratio(rows)
        mine = "-" if ours is None else figure(ours) if ours.state == "ok" else ours.state
        lines.append(
            f"{name:16} {mine:>11} {figure(best) if best else '-':>11}  {best.peer if best else '':15} "
            f"{f'{share:.2f}x' if share is not None else '':>7}".rstrip()
        )
    lines.append("ratio: graphkb's median over the best peer's, below 1 is faster. *: fewer than seven batches")
    return "\n".join(lines)


def markdown(heading: str, results: Sequence[Result]) -> str:
    """The medians of all contestants as a Markdown table, the best peer's in bold, under a line of text."""
    peers = list(dict.fromkeys([r.peer for r in results if r.state != "absent" and r.peer != OURS]))
    lines = [heading, "", f"| workload | {OURS} | {' | '.join(peers)} | ratio |", "|---|" + "---:|" * (len(peers) + 2)]
    for name, group in groupby(results, key=lambda r: r.workload):
        rows = list(group)
        best, share = best_peer(rows), ratio(rows)
        cells = {r.peer: figure(r) if r.state == "ok" else r.state for r in rows if r.state != "absent"}
        if best is not None:
            cells[best.peer] = f"**{cells[best.peer]}**"
        shown = " | ".join([cells.get(peer, "") for peer in (OURS, *peers)])
        lines.append(f"| {name} | {shown} | {'' if share is None else f'{share:.2f}'} |")
    return "\n".join(lines) + "\n"
