"""A schedule in a few words, for the rows of a table and the legend of a picture."""

from __future__ import annotations

from .curves import Curve, Formula, LastSteps, Points, StepList
from .schedule import GuidanceSchedule

MOST = 5  # points or steps that are listed


def short_form(schedule: GuidanceSchedule) -> str:
    """ "4 for percent 0.2 to 0.8, else 1"; long lists are shortened, so it need not be unique."""
    text = _curve(schedule.curve)
    if schedule.per_image:
        text += f", per image times {_listed([f'{factor:g}' for factor in schedule.per_image])}"
    return text


def _curve(curve: Curve) -> str:
    if isinstance(curve, Points):
        return _points(curve)
    if isinstance(curve, StepList):
        return f"step by step {_listed([f'{value:g}' for value in curve.values])}"
    if isinstance(curve, LastSteps):
        return f"{curve.scale:g} in the last {curve.last} steps, else {curve.outside:g}"
    if isinstance(curve, Formula):
        return curve.to_dict()["expression"]
    return str(curve.to_dict())


def _points(curve: Points) -> str:
    scales = {scale for _, scale in curve.points}
    if len(scales) == 1 and curve.outside is None:
        return f"{scales.pop():g} everywhere"
    if len(scales) == 1 and len(curve.points) > 1:
        start, end = curve.points[0][0], curve.points[-1][0]
        text = f"{scales.pop():g} for {curve.axis} {start:g} to {end:g}"
    else:
        pairs = [f"{scale:g} at {position:g}" for position, scale in curve.points]
        kinds = {"linear": "", "power": f"power {curve.exponent:g}, "}
        kind = kinds.get(curve.interpolation, f"{curve.interpolation}, ")
        text = f"{kind}{curve.axis}: {_listed(pairs)}"
    return text if curve.outside is None else f"{text}, else {curve.outside:g}"


def _listed(parts: list[str]) -> str:
    """The first few and the last."""
    if len(parts) > MOST:
        parts = [*parts[: MOST - 2], "...", parts[-1]]
    return ", ".join(parts)
