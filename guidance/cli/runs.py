"""The runs that `evaluate` compares: a name, a scale or a schedule, and a SamplingConfig."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..classifiers.base import Classifier
from ..sampling.generate import SamplingConfig
from ..sampling.model import DiffusionModel
from ..sampling.strength import Strength
from ..schedules.schedule import GuidanceSchedule
from . import options
from .sample import sampling_options

# the fields of a SamplingConfig for the scale and the schedule of each kind of guidance
FIELDS = {"classifier": ("scale", "schedule"), "CFG": ("cfg", "cfg_schedule")}


@dataclass(frozen=True)
class EvaluationRun:
    """One run: the kind of guidance, with its scale or schedule."""

    kind: str
    guidance: str
    config: SamplingConfig
    scale: float | None = None
    schedule: GuidanceSchedule | None = None

    @property
    def title(self) -> str:
        """The properties that identify the run."""
        return self.guidance if self.scale is None else f"{self.guidance} {self.scale:g}"


def planned(
    args: argparse.Namespace, model: DiffusionModel, classifier: Classifier | None
) -> list[EvaluationRun]:
    """The runs of all chosen scales and schedules. The run without guidance is only made once.

    Raises ValueError if there are no scales, or nothing to apply them to.
    """
    null_class = model.layout.null_class is not None
    cfg = 0.0 if null_class else 1.0
    plain = SamplingConfig(**sampling_options(args), label="all", scale=0.0, cfg=cfg)
    runs: list[EvaluationRun] = []
    if classifier is not None:
        runs += _runs("classifier", with_options(plain), plain, args.scales, args.schedules)
    elif args.schedules:
        raise ValueError(
            "--schedules need a --classifier that follows them; those of CFG go to --cfg-schedules."
        )
    if null_class:
        runs += _runs("CFG", "CFG", plain, args.cfg_scales, args.cfg_schedules)
    elif args.cfg_schedules:
        raise ValueError(
            "--cfg-schedules need a model trained with label dropout, and this one was not; "
            "leave them out, or steer it with a classifier and --schedules."
        )
    if not runs:
        raise ValueError(
            "There is no scale to go through: give --classifier, or a model trained with label "
            "dropout."
        )
    guided = [run for run in runs if run.config != plain]
    none = EvaluationRun("none", with_recurrence("none", plain), plain, 0.0)
    return [none] * (len(guided) < len(runs)) + guided


def _runs(
    kind: str, name: str, plain: SamplingConfig, scales: Sequence[float], schedules: Sequence[str]
) -> list[EvaluationRun]:
    """A run of this kind for each scale, and for each schedule: JSON, or a file of it."""
    scale_field, schedule_field = FIELDS[kind]
    name = with_recurrence(name, plain)

    def run(words: str, change: dict[str, Any], **about: Any) -> EvaluationRun:
        return EvaluationRun(kind, words, replace(plain, **change), **about)

    runs = [run(name, {scale_field: scale}, scale=scale) for scale in scales]
    for text in schedules:
        file, schedule = options.read_schedule(text)
        words = f"{name}, {file.stem if file else schedule.describe()}"
        runs.append(run(words, {schedule_field: schedule}, schedule=schedule))
    return runs


def with_options(config: SamplingConfig) -> str:
    """The name of the rows with classifier guidance."""
    chosen = [
        f"{name.replace('_', ' ')} {value:g}"
        for name, value in asdict(config.strength).items()
        if name != "scale" and value != getattr(Strength, name)
    ]
    return ", ".join(["classifier", *chosen])


def with_recurrence(name: str, config: SamplingConfig) -> str:
    """The name of a row, and how often its steps are taken if that is more than once."""
    return name if config.recurrence == 1 else f"{name}, recurrence {config.recurrence}"
