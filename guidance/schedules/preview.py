"""A preview of a schedule, before a run: the data for its plot."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import lru_cache
from itertools import groupby
from operator import itemgetter

import numpy as np

from .curve import ScheduleError
from .run_position import RunPosition
from .schedule import GuidanceSchedule

STEPS = 20  # if the number of steps is not known
MOST_STEPS = 10_000
CELLS = 200  # approximate number of segments of a line
LOWEST_SIGMA = 1e-3  # a log axis cannot show 0
TYPICAL = "drawn with sigma as in SD and SDXL, 14.6 to 0.03; another model has others"
OF_THE_MODEL = "the model decides which steps have these sigmas"


@dataclass(frozen=True)
class Preview:
    """A schedule in a run of `steps` steps that are evenly spaced in percent.

    axis: the unit of positions; percent and step rise from 0 to 1, sigma falls and is evenly spaced
    in its logarithm. scales: one per position; None if the scale is undefined. intervals: (from,
    to) where it is not 1. passes: of CFG, one in a step where the scale is exactly 1, else two;
    None if they depend on a model's sigmas. note: the assumptions of the preview, or empty.
    """

    axis: str
    positions: list[float]
    scales: list[float | None]
    intervals: list[tuple[float, float]]
    steps: int
    passes: int | None
    note: str


def preview(schedule: GuidanceSchedule, steps: int | None = None) -> Preview:
    """Previews the schedule; without `steps`, for the number of steps that it lists, or for 20.

    Raises ScheduleError, a ValueError, if such a run would fail.
    """
    if steps is None:
        steps = schedule.curve.steps or STEPS
    if not 1 <= steps <= MOST_STEPS:
        raise ScheduleError(f"steps is {steps}; a schedule is drawn for 1 to {MOST_STEPS}.")
    axis, by_sigma = _axis(schedule)
    points = _sigmas(schedule, steps) if axis == "sigma" else _run(schedule, steps)
    readings = _readings(schedule, points, strict=not by_sigma)
    scales = [scale for scale, _ in readings]
    active = [active for _, active in readings]
    passes = sum(2 if on else 1 for point, on in zip(points, active, strict=True) if point.is_step)
    positions = [point.position for point in points]
    return Preview(
        axis=axis,
        positions=positions,
        scales=scales,
        intervals=list(_intervals(positions, active)),
        steps=steps,
        passes=None if by_sigma else passes,
        note=_note(schedule, axis, by_sigma, gaps=None in scales),
    )


@dataclass(frozen=True)
class PlotPoint:
    """A point of the plot: its position on the axis, and the position in the run."""

    position: float
    run: RunPosition
    is_step: bool = False


def _axis(schedule: GuidanceSchedule) -> tuple[str, bool]:
    """The axis of the plot, and whether the scale depends on sigma."""
    on = schedule.curve.depends_on
    if on == {"sigma"}:
        return "sigma", True
    return ("step" if on - {"sigma"} == {"step"} else "percent"), "sigma" in on


def _run(schedule: GuidanceSchedule, steps: int) -> list[PlotPoint]:
    """From 0 to 1: the steps, the schedule's points, and enough points between them for a line."""
    last = max(steps - 1, 1)
    pieces = max(CELLS // last, 1)  # between two steps
    at_step = {index / last: index for index in range(steps)}
    between = (index / (last * pieces) for index in range(last * pieces + 1) if index % pieces)
    sigma = _typical_sigma()
    points = []
    for share in sorted({*at_step, *between, 1.0, *schedule.curve.knots}):
        step = at_step.get(share, share * (steps - 1))
        run = RunPosition(percent=share, step=float(step), steps=steps, sigma=sigma(share))
        points.append(PlotPoint(share, run, share in at_step))
    return points


def _sigmas(schedule: GuidanceSchedule, steps: int) -> list[PlotPoint]:
    """Falling sigmas: the range of Stable Diffusion, extended to the schedule's points."""
    sigma = _typical_sigma()
    knots = [knot for knot in schedule.curve.knots if knot >= LOWEST_SIGMA]
    high, low = max([sigma(0), *knots]), min([sigma(1), *knots])
    found = sorted({*np.geomspace(high, low, CELLS + 1).tolist(), *knots}, reverse=True)
    return [
        PlotPoint(at, RunPosition(percent=0.0, step=0.0, steps=steps, sigma=at)) for at in found
    ]


@lru_cache(maxsize=1)
def _typical_sigma() -> Callable[[float], float]:
    """sigma at a percent in Stable Diffusion's schedule (from the code of Rombach et al. 2022)."""
    betas = np.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
    alpha_bar = np.cumprod(1 - betas)
    logs = np.log((1 - alpha_bar) / alpha_bar) / 2
    timesteps = np.arange(1000)
    return lambda percent: math.exp(np.interp((1 - percent) * 999, timesteps, logs))


def _readings(
    schedule: GuidanceSchedule, points: list[PlotPoint], *, strict: bool
) -> list[tuple[float | None, bool]]:
    """The scale at each point, and whether it is not 1.

    None if the scale is undefined at a point: a sampler may not evaluate between two steps, and a
    model may not have that sigma. If strict, an undefined scale at a step is an error, and so is a
    schedule without any scale.
    """
    found: list[tuple[float | None, bool]] = []
    wrong = None
    for point in points:
        try:
            found.append(_reading(schedule, point.run))
        except ScheduleError as error:
            if strict and point.is_step:
                raise
            wrong = wrong or error
            found.append((None, False))
    if wrong and all(scale is None for scale, _ in found):
        raise wrong
    return found


def _reading(schedule: GuidanceSchedule, run: RunPosition) -> tuple[float, bool]:
    """The scale there, and whether it is not 1 for any image of the batch."""
    try:
        scales = schedule.scales(run, len(schedule.per_image))
        scale = schedule.at(run) if isinstance(scales, list) else scales
    except ArithmeticError:
        scales = scale = math.inf
    each = scales if isinstance(scales, list) else [scales]
    if not all(map(math.isfinite, each)):
        raise ScheduleError(
            f"The scale at percent {run.percent:.4g} is too large for a number; choose smaller "
            "ones."
        )
    return scale, scales != 1


def _intervals(positions: list[float], active: list[bool]) -> Iterable[tuple[float, float]]:
    """(from, to) of each series of neighbouring active points."""
    for on, series in groupby(zip(active, positions, strict=True), key=itemgetter(0)):
        inside = [position for _, position in series]
        if on:
            yield inside[0], inside[-1]


def _note(schedule: GuidanceSchedule, axis: str, by_sigma: bool, gaps: bool) -> str:
    notes = []
    if by_sigma:
        notes.append(OF_THE_MODEL if axis == "sigma" else TYPICAL)
    if gaps:
        notes.append("no scale in the gaps")
    if len(set(schedule.per_image)) > 1:
        factors = [f"{factor:g}" for factor in schedule.per_image[:4]]
        more = ["..."] if len(schedule.per_image) > 4 else []
        notes.append(f"times {', '.join([*factors, *more])} per image")
    return "; ".join(notes)
