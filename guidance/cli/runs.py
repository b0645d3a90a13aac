"""The runs that `evaluate` compares: a name, a scale or a schedule, and a SamplingConfig."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields, replace

from ..classifiers.base import Classifier
from ..sampling.generate import SamplingConfig
from ..sampling.model import DiffusionModel
from ..sampling.strength import Strength
from ..schedules.schedule import GuidanceSchedule
from . import options
from .sample import sampling_options


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
    config = SamplingConfig(num_samples=args.num_samples, label="all", **sampling_options(args))
    cfg = 0.0 if model.layout.null_class is not None else 1.0
    plain = replace(config, scale=0.0, cfg=cfg)
    runs = _of_classifier(args, classifier, plain) + _of_cfg(args, model, plain)
    if not runs:
        raise ValueError(
            "There is no scale to go through: give --classifier, or a model trained with label "
            "dropout."
        )
    guided = [run for run in runs if run.config != plain]
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
        config = replace(plain, schedule=schedule)
        runs.append(EvaluationRun("classifier", f"{name}, {words}", config, schedule=schedule))
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
        config = replace(plain, cfg_schedule=schedule)
        runs.append(EvaluationRun("CFG", f"CFG, {words}", config, schedule=schedule))
    return runs


def named_schedule(text: str) -> tuple[str, GuidanceSchedule]:
    """A schedule, from JSON or a file, and its name: the file's name or a description."""
    file, schedule = options.read_schedule(text)
    return file.stem if file else schedule.describe(), schedule


def with_options(config: SamplingConfig) -> str:
    """The name of the rows with classifier guidance."""
    values = {option: getattr(config.strength, option.name) for option in fields(Strength)}
    chosen = [
        f"{option.name.replace('_', ' ')} {value:g}"
        for option, value in values.items()
        if option.name != "scale" and value != option.default
    ]
    return ", ".join(["classifier", *chosen])
