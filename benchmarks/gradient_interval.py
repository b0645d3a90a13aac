#!/usr/bin/env python3
"""What fewer gradients save and cost: python benchmarks/gradient_interval.py

The digits' model and classifier, 100 images at scale 8 in 50 DDIM steps, by the embedded sampler,
five seeds with each way in turn: seconds spent in guidance in proportion to computing the gradient
at every evaluation, the judge's accuracy lost (in points), and the mean squared distance to the
fully guided images (pixels in -1..1).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest import mock

import numpy as np
from drawing import Digits, SamplingConfig, distance
from harness import Row, print_rows

from guidance import GuidanceSchedule
from guidance.evaluation.judge import judge_samples
from guidance.sampling.classifier_guidance import Guide

SCALE = 8.0
IMAGES, SEEDS = 20, 5
JOB = SamplingConfig(
    num_samples=IMAGES, batch_size=IMAGES, label="all", cfg=0.0, scale=SCALE, respacing="ddim50"
)
FULL = "every evaluation"
WAYS: dict[str, dict[str, Any]] = {
    FULL: {},
    "interval 2": {"gradient_interval": 2},
    "interval 4": {"gradient_interval": 4},
    "in the first 75 % of the steps": {
        "schedule": GuidanceSchedule.interval("percent", 0.0, 0.75, SCALE, outside=0.0)
    },
}


class Clock:
    """Seconds spent in guidance's terms."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.patch = mock.patch.object(Guide, "term", self._timed(Guide.term))

    def __enter__(self) -> Clock:
        self.patch.start()
        return self

    def __exit__(self, *error: Any) -> None:
        self.patch.stop()

    def _timed(self, term: Callable[..., Any]) -> Callable[..., Any]:
        def run(*arguments: Any, **options: Any) -> Any:
            start = time.perf_counter()
            found = term(*arguments, **options)
            self.seconds += time.perf_counter() - start
            return found

        return run


@dataclass
class Drawn:
    """What one way has drawn, and the seconds of each seed."""

    images: list[np.ndarray] = field(default_factory=list)
    labels: list[np.ndarray] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    def points(self, judge: Any) -> float:
        """The judge's accuracy, of 100."""
        images, labels = np.concatenate(self.images), np.concatenate(self.labels)
        return 100 * judge_samples(judge, images, labels).accuracy


def draw(digits: Digits) -> dict[str, Drawn]:
    """All seeds, each way in turn."""
    found = {name: Drawn() for name in WAYS}
    for seed in range(SEEDS):
        for name, options in WAYS.items():
            with Clock() as clock:
                images, labels, _ = digits.drawn(JOB, guided=True, seed=seed, **options)
            found[name].images.append(images)
            found[name].labels.append(labels)
            found[name].seconds.append(clock.seconds)
    return found


def rows() -> Iterator[Row]:
    """Each way against all evaluations."""
    digits = Digits()
    found = draw(digits)
    full = found.pop(FULL)
    accuracy = full.points(digits.judge)
    yield Row(f"classifier at scale 8, {FULL}", "judge", accuracy, unit=" %")
    for name, drawn in found.items():
        two = name == "interval 2"
        spent = statistics.median(drawn.seconds) / statistics.median(full.seconds)
        yield Row(f"classifier {name}: seconds", FULL, spent, 0.55 if two else None)
        lost = accuracy - drawn.points(digits.judge)
        yield Row(
            f"classifier {name}: accuracy lost", "judge", lost, 2 if two else None, unit=" points"
        )
        far = distance(np.concatenate(drawn.images), np.concatenate(full.images))
        yield Row(f"classifier {name}: squared distance", "fully guided", far)


if __name__ == "__main__":
    print_rows(rows())
