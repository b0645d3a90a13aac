"""Trains a classifier on labelled images or latents, for the command line and the node."""

from __future__ import annotations

import time
from dataclasses import asdict, dataclass, replace
from typing import Any

from ..adm import ClassifierLayout
from ..checkpoints.checkpoint import Description
from ..core.noise import NoiseSchedule
from .data import Augment, LabelledImages
from .loop import OptimizerConfig, Trained, TrainingContext
from .train_classifier import train_classifier, validated


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """Everything that determines the result of a training."""

    data: LabelledImages
    layout: ClassifierLayout
    recipe: OptimizerConfig
    noise_schedule: str = "linear"
    clean: bool = False
    augment: Augment = Augment()
    held_out: float = 0.1
    patience: int = 0

    def settings(self) -> dict[str, Any]:
        """The same as JSON, with the digest of the data; identifies the training's resume file."""
        return {
            **asdict(self.recipe),
            "layout": asdict(self.layout),
            "noise_schedule": self.noise_schedule,
            "clean": self.clean,
            "augment": asdict(self.augment),
            "held_out": self.held_out,
            "data": self.data.digest(),
        }


def new_classifier(plan: TrainingConfig, run: TrainingContext) -> tuple[Trained, Description]:
    """Trains it."""
    data, held_out = plan.data.split(plan.held_out, plan.recipe.seed)
    schedule = NoiseSchedule(plan.noise_schedule)
    started = time.monotonic()
    trained = train_classifier(
        data,
        plan.layout,
        schedule,
        plan.recipe,
        clean=plan.clean,
        augment=plan.augment,
        held_out=held_out,
        # ten validations, but at most one every 100 steps
        run=replace(run, patience=plan.patience, validate_every=max(plan.recipe.steps // 10, 100)),
    )
    seen: dict[str, Any] = {"accuracy": {}}
    if len(held_out):
        seen = validated(trained.network, held_out, schedule, plan.clean)
    training = {
        "images": len(data),
        "held_out": len(held_out),
        "steps": len(trained.losses),
        "batch_size": plan.recipe.batch_size,
        "clean": plan.clean,
        "seed": plan.recipe.seed,
        "seconds": round(time.monotonic() - started),
        "loss": trained.loss,
        "accuracy_by_timestep": seen["accuracy"],
    }
    description = Description(
        kind="classifier",
        layout=plan.layout,
        noise_schedule=plan.noise_schedule,
        labels=plan.data.names,
        space=plan.data.space,
        training=training,
    )
    return trained, description
