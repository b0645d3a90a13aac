"""Training of a noisy classifier: images per second, and waits for the GPU."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import torch
from harness import Row, taken_by, use_library

from .setup import Part, Setup
from .timing import synchronized
from .waits import waits_per_step

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


@functools.cache
def random_images(count: int) -> LabelledImages:
    """uint8, each with a class."""
    chance = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (count, 3, SIDE, SIDE), dtype=torch.uint8, generator=chance)
    return LabelledImages(images, torch.arange(count) % CLASSES, tuple(map(str, range(CLASSES))))


def trained(setup: Setup, preset: str, batch: int, options: dict, steps: int) -> None:
    """A short training."""
    layout = classifier_layout(preset, channels=3, size=(SIDE, SIDE), classes=CLASSES)
    recipe = OptimizerConfig(steps=steps, batch_size=batch, **options)
    run = TrainingContext(device=str(setup.device))
    train_classifier(random_images(4 * batch), layout, NoiseSchedule("linear"), recipe, run=run)


def seconds_per_step(run: Callable[[int], None], few: int, many: int) -> float:
    """Of each further step: what a training does once, when it begins or ends, does not count."""
    run(few)  # not counted: libraries choose their kernels
    seconds = [taken_by(synchronized(partial(run, steps))).seconds for steps in (few, many)]
    return (seconds[1] - seconds[0]) / (many - few)


def rows(setup: Setup, preset: str) -> Iterator[Row | str]:
    """Images per second in each precision, and the waits of a step."""
    batch = setup.pick(128, 2)
    name = f"training at 64x64, {preset}, batch {batch}"
    rates = {}
    for precision, options in precisions().items():
        run = partial(trained, setup, preset, batch, options)
        rates[precision] = batch / seconds_per_step(run, *setup.pick((5, 45), (1, 5)))
        waits, places = waits_per_step(run, *setup.pick((5, 15), (1, 2)))
        what = f"{name}, {precision}"
        yield Row(what, "images per second, more is better", rates[precision], unit=" /s")
        yield Row(what, "waits per step", waits, 0, unit=" waits")
        yield from (f"{what} waits in {place}: {count}" for place, count in places.items())
    for precision, rate in rates.items():
        if precision != "fp32":
            yield Row(f"{name}, {precision}: time of an image", "fp32", rates["fp32"] / rate)
