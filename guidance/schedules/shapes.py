"""Schedules by the name of their shape, as in the Guidance Schedule node."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from .curve import ScheduleError
from .curves import Formula, LastSteps, Points, StepList
from .presets import SCHEDULE_PRESETS
from .schedule import GuidanceSchedule

RAMPS = ("linear", "cosine", "power", "exponential")
SHAPES = (
    *("constant", *RAMPS, "interval", "last steps"),
    *("keyframes", "curve", "expression"),
    *SCHEDULE_PRESETS,
)


def schedule_of_shape(
    shape: str,
    axis: str,
    scale: float,
    end_scale: float,
    start: float,
    end: float,
    outside: float,
    exponent: float,
    last_steps: int,
    keyframes: str,
    expression: str,
    curve: str,
    per_image: str = "",
) -> GuidanceSchedule:
    """The schedule of one of SHAPES, from the values that it needs; the others are ignored.

    curve: JSON of any schedule. per_image: comma-separated factors. Raises ScheduleError.
    """
    if shape in RAMPS:
        points = [(start, scale), (end, end_scale)]
        made = GuidanceSchedule.ramp(axis, points, shape, exponent=exponent)
    elif shape in SCHEDULE_PRESETS:
        made = SCHEDULE_PRESETS[shape](scale)
    else:
        kinds: dict[str, Callable[[], GuidanceSchedule]] = {
            "constant": lambda: GuidanceSchedule.constant(scale),
            "interval": lambda: GuidanceSchedule.interval(axis, start, end, scale, outside),
            "last steps": lambda: GuidanceSchedule(LastSteps(last_steps, scale, outside)),
            "keyframes": lambda: parse_keyframes(keyframes, axis),
            "curve": lambda: GuidanceSchedule.from_json(curve),
            "expression": lambda: GuidanceSchedule(Formula(expression)),
        }
        made = kinds[shape]()
    return replace(made, per_image=_factors(per_image)) if per_image.strip() else made


def _factors(text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        raise ScheduleError(
            f"per_image is {text[:60]!r}; expected comma-separated numbers, one per image."
        ) from None


def parse_keyframes(text: str, axis: str = "percent") -> GuidanceSchedule:
    """`position: scale` pairs with linear interpolation; without positions, one scale per step.

    They are separated by commas, semicolons or newlines. Raises ScheduleError.
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
