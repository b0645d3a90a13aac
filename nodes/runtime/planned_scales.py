"""The scales that a schedule has at the steps of a run, for the traces."""

from __future__ import annotations

import math
from statistics import fmean
from typing import Any

from ...guidance.schedules.curve import ScheduleError
from ...guidance.schedules.run_position import RunPosition
from ...guidance.schedules.schedule import GuidanceSchedule
from ..host import hooks
from ..host.run_state import run_state


def note_plan(
    name: str, schedule: GuidanceSchedule, guider: Any, model_options: dict, batch: int
) -> None:
    """Tells the traces of this run, once, which scale is planned for each of its steps.

    name: "cfg", or the key of a classifier. Does nothing without traces.
    """
    traces = hooks.options_of(model_options).get(hooks.TRACES, ())
    if not traces:
        return
    state = run_state(model_options)

    def noted() -> list[float | None]:
        sigmas = state.sigmas(guider.inner_model, model_options)
        steps = [sigmas.position(sigma) for sigma in sigmas.sigmas[:-1]]
        scales = [_mean_scale(schedule, step, batch) for step in steps]
        for trace in traces:
            trace.planned[name] = scales
        return scales

    state.cache(("planned", name, id(schedule)), noted)


def _mean_scale(schedule: GuidanceSchedule, position: RunPosition, batch: int) -> float | None:
    """The mean over the batch, as a trace records it; None where the schedule has no scale."""
    try:
        scales = schedule.scales(position, batch)
    except (ScheduleError, ArithmeticError):
        return None  # the step itself will say why
    mean = fmean(scales) if isinstance(scales, list) else scales
    return mean if math.isfinite(mean) else None
