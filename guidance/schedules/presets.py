"""Schedules from papers, with a scale chosen by the user."""

from __future__ import annotations

from collections.abc import Callable

from .curves import Formula, Points
from .schedule import GuidanceSchedule


def _interval_sdxl(scale: float) -> GuidanceSchedule:
    """Kynkaanniemi et al. 2024, "Applying Guidance in a Limited Interval".

    For SDXL and other EPS or V models with its range of sigma; refuses flow models.
    """
    points = ((5.42, scale), (0.28, scale))
    return GuidanceSchedule(Points("sigma", points, "hold", 1.0), models="ve")


def _rise(interpolation: str, scale: float) -> GuidanceSchedule:
    """Wang et al. 2024, "Analysis of Classifier-Free Guidance Weight Schedulers".

    For any model; the mean over the steps is the scale.
    """
    return GuidanceSchedule(Points("step", ((0.0, 1.0), (1.0, 2 * scale - 1)), interpolation))


def _power_cosine(scale: float) -> GuidanceSchedule:
    """Gao et al. 2023, "Masked Diffusion Transformer is a Strong Image Synthesizer".

    For class-conditional models at high scales.
    """
    return GuidanceSchedule(Formula(f"1 + {scale - 1:.10g} * (1 - cos(pi * percent ** 4)) / 2"))


SCHEDULE_PRESETS: dict[str, Callable[[float], GuidanceSchedule]] = {
    "interval for SDXL": _interval_sdxl,
    "linear rise": lambda scale: _rise("linear", scale),
    "cosine rise": lambda scale: _rise("cosine", scale),
    "power-cosine rise": _power_cosine,
}
