"""Keyframes as people type them: "0: 7.5, 0.6: 7.5, 1: 1", or a scale for each step: "7, 7, 5"."""

from __future__ import annotations

from .curves import Points, ScheduleError, StepList
from .schedule import GuidanceSchedule


def parse_keyframes(text: str, axis: str = "percent") -> GuidanceSchedule:
    """`position: scale` pairs, linear between them; without positions, one scale for each step.

    Commas, semicolons or lines part them. Raises ScheduleError.
    """
    parts = [part.strip() for part in text.replace(";", ",").replace("\n", ",").split(",")]
    parts = [part for part in parts if part]
    pairs = [":" in part for part in parts]
    if not parts or any(pairs) != all(pairs):
        raise ScheduleError(
            f"keyframes is {text[:60]!r}; expected '0: 7.5, 0.6: 7.5, 1: 1' (position: scale) or "
            "'7, 7, 5' (a scale for each step)."
        )
    if not any(pairs):
        return GuidanceSchedule(StepList(tuple(_number(part) for part in parts)))
    points = tuple((_number(a), _number(b)) for a, _, b in (part.partition(":") for part in parts))
    return GuidanceSchedule(Points(axis, points))


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ScheduleError(f"keyframes has {text.strip()[:40]!r}; expected a number.") from None
