#!/usr/bin/env python3
"""What fewer gradients save and cost: python benchmarks/every.py

The digits' model and classifier, 200 images at scale 8 in 50 DDIM steps, by the embedded sampler:
seconds spent in guidance in proportion to asking the classifier at every evaluation, the judge's
accuracy lost (in points), and the mean squared distance to the fully guided images (pixels in
-1..1).
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

from drawing import Digits, Job, distance
from harness import Row, print_rows

from guidance import GuidanceSchedule, sampling
from guidance.evaluation import judge_samples

SCALE = 8.0
JOB = Job(num_samples=200, batch_size=50, label="all", cfg=0.0, scale=SCALE, respacing="ddim50")
WAYS = {
    "every 2": {"every": 2},
    "every 4": {"every": 4},
    "in the first 75 % of the steps": {
        "schedule": GuidanceSchedule.interval("percent", 0.0, 0.75, SCALE, outside=0.0)
    },
}


class Clock:
    """Seconds spent in guidance's terms."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self.term = sampling.classifier_term

    def __enter__(self) -> Clock:
        sampling.classifier_term = self
        return self

    def __exit__(self, *error: Any) -> None:
        sampling.classifier_term = self.term

    def __call__(self, *arguments: Any) -> Any:
        start = time.perf_counter()
        term = self.term(*arguments)
        self.seconds += time.perf_counter() - start
        return term


def rows() -> Iterator[Row]:
    """Each way against all evaluations."""
    digits = Digits()

    def drawn(**options: Any) -> tuple[Any, float, float]:
        with Clock() as clock:
            images, labels, _ = digits.drawn(JOB, guided=True, **options)
        accuracy = judge_samples(digits.judge, images, labels).accuracy
        return images, 100 * accuracy, clock.seconds

    full, accuracy, seconds = drawn()
    yield Row("classifier at scale 8, every evaluation", "judge", accuracy, unit=" %")
    for name, options in WAYS.items():
        images, reached, spent = drawn(**options)
        two = name == "every 2"
        name = f"classifier {name}"
        yield Row(f"{name}: seconds", "every evaluation", spent / seconds, 0.55 if two else None)
        lost = accuracy - reached
        yield Row(f"{name}: accuracy lost", "judge", lost, 2 if two else None, unit=" points")
        yield Row(f"{name}: squared distance", "fully guided", distance(images, full))


if __name__ == "__main__":
    print_rows(rows())
