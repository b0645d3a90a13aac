"""Smooth curves through points that never leave the range of two neighbouring points.

Piecewise cubic Hermite interpolation whose slopes keep the monotonicity of the points (PCHIP):
Fritsch and Carlson 1980, "Monotone Piecewise Cubic Interpolation", with the slopes of Fritsch and
Butland 1984, "A Method for Constructing Local Monotone Piecewise Cubic Interpolants".
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from itertools import pairwise


def monotone_slopes(xs: Sequence[float], ys: Sequence[float]) -> list[float]:
    """The slope of the curve at each point; the xs rise."""
    gaps = [float(b) - float(a) for a, b in pairwise(xs)]
    rises = [float(b) - float(a) for a, b in pairwise(ys)]
    secants = [rise / gap for rise, gap in zip(rises, gaps, strict=True)]
    if len(secants) < 2:  # one point, or a straight line
        return secants * len(xs) or [0.0]
    neighbours = zip(pairwise(gaps), pairwise(secants), strict=True)
    inner = [_inner_slope(*both, *slopes) for both, slopes in neighbours]
    first = _end_slope(*gaps[:2], *secants[:2])
    last = _end_slope(*gaps[:-3:-1], *secants[:-3:-1])
    # scales near the largest float overflow; a flat curve is within its bounds, too
    return [slope if math.isfinite(slope) else 0.0 for slope in (first, *inner, last)]


def _inner_slope(gap: float, next_gap: float, secant: float, next_secant: float) -> float:
    """The weighted harmonic mean of the secants beside a point; flat at a turning point."""
    if not (secant > 0 < next_secant or secant < 0 > next_secant):
        return 0.0
    weight, next_weight = 2 * next_gap + gap, next_gap + 2 * gap
    sum_of_inverses = weight / secant + next_weight / next_secant
    return (weight + next_weight) / sum_of_inverses if sum_of_inverses else 0.0


def _end_slope(gap: float, next_gap: float, secant: float, next_secant: float) -> float:
    """The slope at an end: that of a parabola through three points, within the monotone range."""
    slope = ((2 * gap + next_gap) * secant - gap * next_secant) / (gap + next_gap)
    if slope * secant <= 0:
        return 0.0
    if secant * next_secant < 0 and abs(slope) > 3 * abs(secant):
        return 3 * secant
    return slope


def hermite(a: float, b: float, rise_at_a: float, rise_at_b: float, share: float) -> float:
    """The cubic from a to b at a share of the way; rises: the slopes times the gap.

    Exactly a between two equal scales with flat ends, so that CFG of 1 stays 1.
    """
    rest = 1 - share
    value = a + (b - a) * share * share * (3 - 2 * share)
    value += share * rest * (rest * rise_at_a - share * rise_at_b)
    return min(max(value, min(a, b)), max(a, b))  # rounding must not overshoot
