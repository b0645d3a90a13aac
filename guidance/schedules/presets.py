"""Schedules from papers, with a scale chosen by the user."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from .curve import ScheduleError
from .curves import Formula, Points
from .schedule import GuidanceSchedule


@dataclass(frozen=True)
class SchedulePreset:
    """A named schedule: its paper, the models it is meant for, and a function of the scale."""

    paper: str
    meant_for: str
    make: Callable[[float], GuidanceSchedule]


def _interval_sdxl(scale: float) -> GuidanceSchedule:
    points = ((5.42, scale), (0.28, scale))
    return GuidanceSchedule(Points("sigma", points, "hold", 1.0), models="ve")


def _rise(interpolation: str) -> Callable[[float], GuidanceSchedule]:
    def make(scale: float) -> GuidanceSchedule:
        points = ((0.0, 1.0), (1.0, 2 * scale - 1))
        return GuidanceSchedule(Points("step", points, interpolation))

    return make


def _power_cosine(scale: float) -> GuidanceSchedule:
    return GuidanceSchedule(Formula(f"1 + {scale - 1:.10g} * (1 - cos(pi * percent ** 4)) / 2"))


SCHEDULE_PRESETS = {
    "interval for SDXL": SchedulePreset(
        "Kynkaanniemi et al. 2024, Applying Guidance in a Limited Interval Improves Sample and "
        "Distribution Quality in Diffusion Models",
        "SDXL and other EPS or V models with its range of sigma; refuses flow models",
        _interval_sdxl,
    ),
    "linear rise": SchedulePreset(
        "Wang et al. 2024, Analysis of Classifier-Free Guidance Weight Schedulers",
        "any model; the mean over the steps is the scale",
        _rise("linear"),
    ),
    "cosine rise": SchedulePreset(
        "Wang et al. 2024, Analysis of Classifier-Free Guidance Weight Schedulers",
        "any model; the mean over the steps is the scale",
        _rise("cosine"),
    ),
    "power-cosine rise": SchedulePreset(
        "Gao et al. 2023, Masked Diffusion Transformer is a Strong Image Synthesizer",
        "class-conditional models at high scales",
        _power_cosine,
    ),
}


def preset(name: str, scale: float) -> GuidanceSchedule:
    """The named schedule at this scale; ScheduleError for another name."""
    if name not in SCHEDULE_PRESETS:
        raise ScheduleError(f"preset is {name!r}; expected one of {', '.join(SCHEDULE_PRESETS)}.")
    return SCHEDULE_PRESETS[name].make(scale)
