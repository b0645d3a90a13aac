"""SDXL of full size in a real ComfyUI: what each node adds to a step, and to memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

from harness import Row

from .comfy_models import SDXL, Classifiers, call, comfy_nodes, random_vae
from .setup import Part, Setup
from .timing import peak_bytes, seconds_in_turn
from .waits import waits_per_step

FULL, ONE = "plain, cfg 7", "plain, cfg 1"
CFG = 7.0
GIB = 2**30
NOTHING = 0.005  # the most of a step that a node may cost that changes nothing
NOTHING_TO_DO = ("constant schedule", "trace", "trace and constant schedule")
BARS = {"half an interval": 0.77, "tolerance 0.5": 0.66}
PRESETS = {"medium": 0.25, "paper": None}


def parts(setup: Setup) -> list[Part]:
    """Schedules of CFG, noisy classifiers, and each clean one by itself: some need much memory."""
    bench = Bench(setup)
    clean = [(vae, gradient) for vae in ("taesd", "whole VAE") for gradient in ("cheap", "exact")]
    return [
        ("schedules", bench.schedules),
        ("noisy classifiers", bench.noisy),
        *(
            (f"clean classifier, {vae}, {way}", partial(bench.clean, vae, way))
            for vae, way in clean
        ),
    ]


class Bench:
    """The model, and what is measured of MODELs that are made of it."""

    def __init__(self, setup: Setup):
        self.setup, self.nodes = setup, comfy_nodes(setup)
        self.sdxl = SDXL(setup)
        self.model = self.sdxl.patcher()
        self.classifiers = Classifiers(setup, self.nodes, self.sdxl.side)

    def schedules(self) -> Iterator[Row | str]:
        """CFG by a schedule, with its term reused, and traced."""
        models = {FULL: (self.model, CFG), ONE: (self.model, 1.0)}
        models |= {name: (model, CFG) for name, model in self.scheduled().items()}
        steps = self.setup.pick(12, 4)
        seconds = self.seconds(models, steps, self.setup.pick(3, 1))
        yield from self.step_rows(seconds, steps)
        for name in list(models)[2:]:
            ratio = seconds[name] / seconds[FULL]
            if name in NOTHING_TO_DO:
                yield Row(f"SDXL, {name}: more time", "step of CFG", ratio - 1, NOTHING)
            else:
                yield Row(f"SDXL, {name}", "CFG in all steps", ratio, BARS.get(name))
        for name, (model, cfg) in models.items():
            yield from self.waits_and_memory(name, model, cfg)

    def scheduled(self) -> dict[str, Any]:
        """MODELs by the pack's nodes."""
        constant = self.schedule(shape="constant", scale=CFG)
        half = self.schedule(shape="interval", axis="step", scale=CFG, start=0.25, end=0.75)

        def by(schedule: Any, **cache: Any) -> Any:
            return self.call("CFGScaleScheduler", model=self.model, schedule=schedule, **cache)

        return {
            "constant schedule": by(constant),
            "half an interval": by(half),
            "cfg_interval 4": by(constant, cfg_interval=4),
            "tolerance 0.5": by(constant, tolerance=0.5),
            "trace": self.call("GuidanceTrace", model=self.model),
            "trace and constant schedule": self.call("GuidanceTrace", model=by(constant)),
        }

    def noisy(self) -> Iterator[Row | str]:
        """Noisy classifiers on the model at cfg 1, against the second pass of CFG."""
        models = {FULL: (self.model, CFG), ONE: (self.model, 1.0)}
        bars = {f"noisy classifier {preset}, cfg 1": bar for preset, bar in PRESETS.items()}
        for name, preset in zip(bars, PRESETS, strict=True):
            classifier = self.classifiers.noisy(preset)
            models[name] = (self.classifiers.guided(self.model, classifier), 1.0)
        steps = self.setup.pick(12, 4)
        seconds = self.seconds(models, steps, self.setup.pick(3, 1))
        for name, bar in bars.items():
            yield from self.step_rows({name: seconds[name]}, steps)
            share = (seconds[name] - seconds[ONE]) / (seconds[FULL] - seconds[ONE])
            yield Row(f"SDXL, {name}: more time", "second pass of CFG", share, bar)
            yield from self.waits_and_memory(name, *models[name])

    def clean(self, vae: str, gradient: str) -> Iterator[Row | str]:
        """A clean classifier on the model at cfg 1."""
        classifier = self.classifiers.clean(random_vae(vae), gradient)
        name = f"ViT-B by {vae}, {gradient}, cfg 1"
        models = {
            ONE: (self.model, 1.0),
            name: (self.classifiers.guided(self.model, classifier), 1.0),
        }
        steps = self.setup.pick(4, 1)
        seconds = self.seconds(models, steps, 1)
        yield from self.step_rows({name: seconds[name]}, steps)
        yield Row(f"SDXL, {name}", "plain step, cfg 1", seconds[name] / seconds[ONE])
        yield from self.waits_and_memory(name, *models[name])

    def seconds(self, models: dict[str, tuple], steps: int, turns: int) -> dict[str, float]:
        """The median seconds of a run of each."""
        runs = {name: self.run(*model, steps) for name, model in models.items()}
        return seconds_in_turn(runs, turns)

    def run(self, model: Any, cfg: float, steps: int) -> Callable[[], Any]:
        """A run of that many steps."""
        return partial(self.sdxl.run, model, cfg, steps)

    def step_rows(self, seconds: dict[str, float], steps: int) -> Iterator[Row]:
        """Milliseconds of a step."""
        for name, value in seconds.items():
            yield Row(f"SDXL, {name}", "time of a step", value / steps * 1e3, unit=" ms")

    def waits_and_memory(self, name: str, model: Any, cfg: float) -> Iterator[Row | str]:
        """What each step of the pack waits for, and the most memory of a run."""
        few, many = self.setup.pick((3, 6), (1, 2))
        waits, places = waits_per_step(partial(self.sdxl.run, model, cfg), few, many)
        bar = None if name in (FULL, ONE) else 0
        yield Row(f"SDXL, {name}", "the pack's waits per step", waits, bar, unit=" waits")
        yield from (f"SDXL, {name}, waits in {place}: {count}" for place, count in places.items())
        peak = peak_bytes(self.run(model, cfg, few))
        yield Row(f"SDXL, {name}", "most memory", peak / GIB, unit=" GiB")

    def schedule(self, **inputs: Any) -> Any:
        """A GUIDANCE_SCHEDULE by the node."""
        schema = self.nodes.NODE_CLASS_MAPPINGS["GuidanceSchedule"].GET_SCHEMA()
        return self.call("GuidanceSchedule", **{i.id: i.default for i in schema.inputs} | inputs)

    def call(self, node_id: str, **inputs: Any) -> Any:
        """A node's first output."""
        return call(self.nodes, node_id, **inputs)
