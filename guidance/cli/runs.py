"""The runs that `evaluate` compares: a name, a scale or a schedule, and what to draw."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields, replace

from ..classifiers.base import Classifier
from ..sampling.generate import SamplingConfig, replace_scales
from ..sampling.model import DiffusionModel
from ..sampling.strength import Strength
from ..schedules.schedule import GuidanceSchedule
from ..schedules.schedule_names import short_form
from . import options
from .sample import sampling_options


@dataclass(frozen=True)
class EvaluationRun:
    """One row that is drawn: what guides it, at which scale or by which schedule."""

    kind: str
    guidance: str
    job: SamplingConfig
    scale: float | None = None
    schedule: GuidanceSchedule | None = None

    @property
    def title(self) -> str:
        """What tells it from the others."""
        return self.guidance if self.scale is None else f"{self.guidance} {self.scale:g}"


def planned(
    args: argparse.Namespace, model: DiffusionModel, classifier: Classifier | None
) -> list[EvaluationRun]:
    """Every scale and schedule asked for; without guidance both kinds are the same, drawn once.

    Raises ValueError where there is nothing to go through, or nothing to do it with.
    """
    job = SamplingConfig(num_samples=args.num_samples, label="all", **sampling_options(args))
    plain = replace_scales(job, 0.0, 0.0 if model.layout.null_class is not None else 1.0)
    runs = _of_classifier(args, classifier, plain) + _of_cfg(args, model, plain)
    if not runs:
        raise ValueError(
            "There is no scale to go through: give --classifier, or a model trained with label "
            "dropout."
        )
    guided = [run for run in runs if run.job != plain]
    return [EvaluationRun("none", "none", plain, 0.0)] * (len(guided) < len(runs)) + guided


def _of_classifier(
    args: argparse.Namespace, classifier: Classifier | None, plain: SamplingConfig
) -> list[EvaluationRun]:
    if classifier is None and args.schedules:
        raise ValueError(
            "--schedules need a --classifier that follows them; those of CFG go to --cfg-schedules."
        )
    if classifier is None:
        return []
    name = with_options(plain)
    runs = [
        EvaluationRun("classifier", name, replace(plain, scale=scale), scale)
        for scale in args.scales
    ]
    for words, schedule in map(named_schedule, args.schedules):
        job = replace(plain, schedule=schedule)
        runs.append(EvaluationRun("classifier", f"{name}, {words}", job, schedule=schedule))
    return runs


def _of_cfg(
    args: argparse.Namespace, model: DiffusionModel, plain: SamplingConfig
) -> list[EvaluationRun]:
    if model.layout.null_class is None and args.cfg_schedules:
        raise ValueError(
            "--cfg-schedules need a model trained with label dropout, and this one was not; "
            "leave them out, or steer it with a classifier and --schedules."
        )
    if model.layout.null_class is None:
        return []
    runs = [
        EvaluationRun("CFG", "CFG", replace(plain, cfg=scale), scale) for scale in args.cfg_scales
    ]
    for words, schedule in map(named_schedule, args.cfg_schedules):
        job = replace(plain, cfg_schedule=schedule)
        runs.append(EvaluationRun("CFG", f"CFG, {words}", job, schedule=schedule))
    return runs


def named_schedule(text: str) -> tuple[str, GuidanceSchedule]:
    """A schedule, of JSON or a file of it, and what to call it: as the file, or what it does."""
    file, schedule = options.read_schedule(text)
    return file.stem if file else short_form(schedule), schedule


def with_options(job: SamplingConfig) -> str:
    """What the rows of classifier guidance are called."""
    values = {option: getattr(job.strength, option.name) for option in fields(Strength)}
    chosen = [
        f"{option.name.replace('_', ' ')} {value:g}"
        for option, value in values.items()
        if option.name != "scale" and value != option.default
    ]
    return ", ".join(["classifier", *chosen])
