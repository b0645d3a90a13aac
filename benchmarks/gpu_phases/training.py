"""Training of a noisy classifier: images per second, and waits for the GPU."""

from __future__ import annotations

import inspect
import time
from collections import Counter
from collections.abc import Iterator
from functools import partial
from typing import Any

import torch
from harness import Row, use_library

from .setup import Part, Setup
from .timing import wait
from .waits import counted_waits

use_library()

from guidance.adm.presets import classifier_layout  # noqa: E402
from guidance.core.noise import NoiseSchedule  # noqa: E402
from guidance.training.data import LabelledImages  # noqa: E402
from guidance.training.loop import OptimizerConfig, TrainingContext  # noqa: E402
from guidance.training.train_classifier import train_classifier  # noqa: E402

SIDE, CLASSES = 64, 10


def parts(setup: Setup) -> list[Part]:
    """Each precision that training has, of a paper-sized and a medium classifier."""
    presets = setup.pick(["medium", "paper"], ["small"])
    return [(preset, partial(rows, setup, preset)) for preset in presets]


def precisions() -> dict[str, dict[str, Any]]:
    """The options of OptimizerConfig by the precision's name."""
    known = inspect.signature(OptimizerConfig).parameters
    halves = {"bf16": {"bf16": True}, "fp16": {"fp16": True}}
    if "precision" in known:
        halves = {name: {"precision": name} for name in halves}
    return {"fp32": {}} | {
        name: options for name, options in halves.items() if options.keys() <= known.keys()
    }


def random_images(count: int) -> LabelledImages:
    """uint8, each with a class."""
    chance = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=chance)
    return LabelledImages(images, torch.arange(count) % CLASSES, tuple(map(str, range(CLASSES))))


class Watch:
    """Time and waits of the steps after the first ones, which prepare much that stays."""

    def __init__(self, first: int, last: int):
        self.first, self.last = first, last
        self.times: list[float] = []
        self.counts: list[int] = []
        self.waits: Counter[str] = Counter()

    def __call__(self, step: int, _: float) -> None:
        """After each step."""
        if step in (self.first, self.last):
            wait()
            self.times.append(time.perf_counter())
            self.counts.append(self.waits.total())

    @property
    def seconds(self) -> float:
        """Of one step."""
        return (self.times[1] - self.times[0]) / (self.last - self.first)

    @property
    def waits_per_step(self) -> float:
        """Of the pack's code."""
        return (self.counts[1] - self.counts[0]) / (self.last - self.first)


def trained(setup: Setup, preset: str, batch: int, options: dict, count_waits: bool) -> Watch:
    """A short training."""
    layout = classifier_layout(preset, channels=3, size=(SIDE, SIDE), classes=CLASSES)
    first, last = setup.pick((5, 15) if count_waits else (10, 40), (1, 2))
    watch = Watch(first, last)
    recipe = OptimizerConfig(steps=last, batch_size=batch, **options)
    run = TrainingContext(device=str(setup.device), on_step=watch)
    given = random_images(4 * batch), layout, NoiseSchedule("linear"), recipe
    if not count_waits:
        train_classifier(*given, run=run)
        return watch
    with counted_waits() as watch.waits:
        train_classifier(*given, run=run)
    return watch


def rows(setup: Setup, preset: str) -> Iterator[Row | str]:
    """Images per second in each precision, and the waits of a step."""
    batch = setup.pick(128, 2)
    name = f"training at 64x64, {preset}, batch {batch}"
    rates = {}
    for precision, options in precisions().items():
        rates[precision] = batch / trained(setup, preset, batch, options, False).seconds
        watch = trained(setup, preset, batch, options, True)
        what = f"{name}, {precision}"
        yield Row(what, "images per second, more is better", rates[precision], unit=" /s")
        yield Row(what, "waits per step", watch.waits_per_step, 0, unit=" waits")
        yield from (f"{what} waits in {place}: {count}" for place, count in watch.waits.items())
    for precision, rate in rates.items():
        if precision != "fp32":
            yield Row(f"{name}, {precision}: time of an image", "fp32", rates["fp32"] / rate)
