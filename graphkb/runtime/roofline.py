"""Roofline pictures: what the steps of a profile reach of what the machine allows, as SVG."""

from __future__ import annotations

import math
from html import escape
from typing import TYPE_CHECKING

from graphkb.runtime.report import amount

if TYPE_CHECKING:
    from graphkb.runtime.profile import Profile, ProfileStep

_WIDTH, _HEIGHT = 760, 460
_LEFT, _RIGHT, _TOP, _BOTTOM = 80, 24, 48, 56
_COLORS = ("#2563eb", "#dc2626", "#059669", "#d97706", "#7c3aed", "#0891b2", "#be185d", "#4d7c0f")
_LABELS = 8


def draw_roofline(profile: Profile) -> str:
    """The picture: a point for each step with operations, its area the step's share of the time.

    Lines show the machine: what memory feeds at each intensity, and what the arithmetic allows. Points above the
    slope read from the caches.
    """
    steps = [step for step in profile.steps if step.flops and step.bytes and step.seconds and step.name != "scan"]
    peak = profile.peak
    ridge = peak.flops / peak.bandwidth
    intensities = [step.flops / step.bytes for step in steps] + [ridge]
    rates = [step.flops / step.seconds for step in steps] + [peak.flops]
    x_low, x_high = _decades(intensities, 0.3, 4)
    low_y, high_y = _decades([*rates, 10**x_low * peak.bandwidth], 0.7, 2)
    low_y = max(low_y, high_y - 7)  # some steps do next to nothing

    def x(value: float) -> float:
        return _LEFT + (math.log10(value) - x_low) / (x_high - x_low) * (_WIDTH - _LEFT - _RIGHT)

    def y(value: float) -> float:
        inside = min(max(math.log10(value), low_y), high_y)
        return _HEIGHT - _BOTTOM - (inside - low_y) / (high_y - low_y) * (_HEIGHT - _TOP - _BOTTOM)

    parts = [_text(_WIDTH / 2, 24, f"{profile.name}: {amount(profile.seconds, 's')} a call", 15, "middle")]
    for power in range(math.ceil(x_low), math.floor(x_high) + 1):
        at = x(10.0**power)
        parts += [_line(at, _TOP, at, _HEIGHT - _BOTTOM, "#e5e7eb"), _text(at, _HEIGHT - _BOTTOM + 18, _number(power))]
    for power in range(math.ceil(low_y), math.floor(high_y) + 1):
        at = y(10.0**power)
        parts += [_line(_LEFT, at, _WIDTH - _RIGHT, at, "#e5e7eb")]
        parts += [_text(_LEFT - 8, at + 4, amount(10.0**power, ""), anchor="end")]
    parts += [
        _text((_LEFT + _WIDTH - _RIGHT) / 2, _HEIGHT - 14, "operations a byte", anchor="middle"),
        f'<g transform="rotate(-90 16 {_HEIGHT / 2})">{_text(16, _HEIGHT / 2, "operations a second")}</g>',
        _line(x(10**x_low), y(10**x_low * peak.bandwidth), x(ridge), y(peak.flops), "#111827", 2),
        _line(x(ridge), y(peak.flops), _WIDTH - _RIGHT, y(peak.flops), "#111827", 2),
        _text(_WIDTH - _RIGHT - 4, y(peak.flops) - 8, amount(peak.flops, "FLOP/s"), anchor="end"),
        _text(x(10**x_low) + 8, _TOP + 14, f"memory: {amount(peak.bandwidth, 'B/s')}", anchor="start"),
    ]
    largest = sorted(steps, key=lambda step: -step.seconds)
    for rank, step in reversed(list(enumerate(largest))):
        color = _COLORS[rank % len(_COLORS)] if rank < _LABELS else "#9ca3af"
        radius = 4 + 18 * math.sqrt(min(1.0, profile.share(step)))
        place = x(step.flops / step.bytes), y(step.flops / step.seconds)
        parts.append(
            f'<circle cx="{place[0]:.1f}" cy="{place[1]:.1f}" r="{radius:.1f}" fill="{color}" fill-opacity="0.55" '
            f'stroke="{color}"><title>{escape(_describe(profile, step))}</title></circle>'
        )
    for rank, step in enumerate(largest[:_LABELS]):
        top = _HEIGHT - _BOTTOM - 16 * (min(len(largest), _LABELS) - rank)
        parts.append(f'<circle cx="{_WIDTH - 250}" cy="{top + 4}" r="5" fill="{_COLORS[rank]}" fill-opacity="0.7"/>')
        label = f"{profile.share(step):.0%} {step.name}"
        parts.append(_text(_WIDTH - 238, top + 8, label if len(label) < 36 else label[:35] + "…", 12, "start"))
    body = "\n".join(parts)
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" '
        f'font-family="sans-serif">\n<rect width="{_WIDTH}" height="{_HEIGHT}" fill="white"/>\n{body}\n</svg>\n'
    )


def _decades(values: list[float], below: float, least: float) -> tuple[float, float]:
    """The logarithms between which values lie, with room around them."""
    logs = [math.log10(value) for value in values]
    low, high = min(logs) - below, max(logs) + 0.3
    return low, max(high, low + least)


def _number(power: int) -> str:
    return f"{10.0**power:g}"


def _describe(profile: Profile, step: ProfileStep) -> str:
    rate = amount(step.flops / step.seconds, "FLOP/s")
    return f"{step.name}: {amount(step.seconds, 's')}, {rate}, {profile.of_peak(step):.0%} of the peak"


def _line(x1: float, y1: float, x2: float, y2: float, color: str, width: float = 1) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="{color}" stroke-width="{width}"/>'


def _text(x: float, y: float, text: str, size: int = 12, anchor: str = "middle") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" text-anchor="{anchor}" fill="#111827">{escape(text)}</text>'
    )


__all__ = ["draw_roofline"]
