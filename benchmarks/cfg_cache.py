#!/usr/bin/env python3
"""What the cache of CFG's term saves, and how near its images are: python benchmarks/cfg_cache.py

The digits' model, 200 images, CFG 4 in 40 DDIM steps, by the embedded sampler: passes of the
network for each image, and the mean squared distance to the images of full CFG (pixels in -1..1)
in proportion to the nearest that CFG in one half of the steps comes, which takes 60 passes.
--all adds other settings.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator

from drawing import Digits, SamplingConfig, distance
from harness import Row, print_rows

from guidance import GuidanceSchedule

SCALE = 4.0
JOB = SamplingConfig(num_samples=200, batch_size=50, label="all", cfg=SCALE, respacing="ddim40")
CHOSEN = {"interval 4": {"cfg_interval": 4}, "tolerance 0.5": {"cfg_tolerance": 0.5}}
OTHERS = {
    "interval 2": {"cfg_interval": 2},
    "interval 3": {"cfg_interval": 3},
    "tolerance 0.3": {"cfg_tolerance": 0.3},
    "tolerance 0.4": {"cfg_tolerance": 0.4},
}


def half(start: float) -> dict:
    """CFG in the half of the steps that begins there."""
    interval = GuidanceSchedule.interval("percent", start, start + 0.5, SCALE)
    return {"cfg_schedule": interval}


def rows(everything: bool = False) -> Iterator[Row]:
    """Passes and distances."""
    digits = Digits()

    def drawn(**options) -> tuple:
        images, _, work = digits.drawn(JOB, guided=False, **options)
        return images, work.passes

    full, passes = drawn()
    yield Row("CFG in all of 40 steps", "passes", passes, unit=" passes")
    near = []
    for name, start in (("first", 0.0), ("middle", 0.25)):
        images, passes = drawn(**half(start))
        near.append(distance(images, full))
        yield Row(f"CFG in the {name} half", "passes", passes, unit=" passes")
        yield Row(f"CFG in the {name} half", "squared distance to full CFG", near[-1])
    for name, options in (CHOSEN | OTHERS if everything else CHOSEN).items():
        images, passes = drawn(**options)
        bar = name in CHOSEN
        yield Row(f"CFG {name}", "passes", passes, 52 if bar else None, unit=" passes")
        far = distance(images, full)
        yield Row(f"CFG {name}: distance to full CFG", "half an interval's", far / min(near), 1.0)


if __name__ == "__main__":
    print_rows(rows("--all" in sys.argv))
