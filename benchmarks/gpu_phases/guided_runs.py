"""Whole guided runs in fp16: the embedded sampler against the original's loop, DDIM in 25 steps."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any
from unittest import mock

import torch
from harness import Row, use_library

from .kernels import kernels_of, total
from .setup import Part, Setup, reference
from .timing import seconds_in_turn

use_library()

from guidance import DiffusionModel, NoisyClassifier  # noqa: E402
from guidance.sampling.classifier_guidance import Guide  # noqa: E402
from guidance.sampling.loop import sample  # noqa: E402
from guidance.sampling.respacing import respaced_timesteps  # noqa: E402
from guidance.sampling.steps import chain  # noqa: E402
from guidance.sampling.strength import Strength  # noqa: E402

FILES = {64: "64x64_diffusion.pt", 256: "256x256_diffusion_uncond.pt"}
SCHEDULES = {64: "cosine", 256: "linear"}
BARS = {64: 0.45, 256: 0.50}
SCALE = 1.0


def parts(setup: Setup) -> list[Part]:
    """The class-conditional model, and the unconditional one."""
    cases = setup.pick([(64, 16), (256, 4)], [(64, 1)])
    return [(f"{size}x{size}", partial(rows, setup, size, batch)) for size, batch in cases]


@dataclass(frozen=True)
class Networks:
    """A U-Net and a classifier in fp16: the original's, and ours with the same weights."""

    their_unet: Any
    their_classifier: Any
    model: DiffusionModel
    classifier: NoisyClassifier

    @classmethod
    def of(cls, setup: Setup, size: int) -> Networks:
        """Random weights."""
        theirs, device = reference(), str(setup.device)
        small = setup.pick({}, {"num_channels": 64, "num_res_blocks": 1})
        unet = theirs.their_unet(size, device, **small)
        small = setup.pick({}, {"classifier_width": 64, "classifier_depth": 1})
        classifier = theirs.their_classifier(size, device, **small)
        changes = setup.pick({}, {"model_channels": 64, "num_res_blocks": 1})
        ours = (
            theirs.ours_of(network, file, **changes).half()
            for network, file in ((unet, FILES[size]), (classifier, f"{size}x{size}_classifier.pt"))
        )
        schedule = SCHEDULES[size]
        model, noisy = DiffusionModel(next(ours), schedule), NoisyClassifier(next(ours), schedule)
        return cls(theirs.in_fp16(unet), theirs.in_fp16(classifier), model, noisy)


class Runs:
    """The same run by the original's loop and by the embedded sampler."""

    def __init__(self, setup: Setup, size: int, batch: int):
        self.setup, self.size = setup, size
        self.networks = Networks.of(setup, size)
        self.respacing = setup.pick("ddim25", "ddim2")
        chance = torch.Generator().manual_seed(1)
        self.x = torch.randn(batch, 3, size, size, generator=chance).to(setup.device)
        self.y = torch.arange(batch, device=setup.device) % 10

    def original(self) -> torch.Tensor:
        """Their loop with their cond_fn."""
        theirs, networks = reference(), self.networks

        def cond_fn(x: torch.Tensor, t: torch.Tensor, **_: Any) -> torch.Tensor:
            return SCALE * theirs.their_gradient(networks.their_classifier, x, t, self.y)

        return theirs.their_diffusion(self.respacing, SCHEDULES[self.size]).ddim_sample_loop(
            networks.their_unet,
            tuple(self.x.shape),
            noise=self.x,
            model_kwargs={"y": self.y} if self.size == 64 else {},
            cond_fn=cond_fn,
            device=self.setup.device,
        )

    def embedded(self, guided: bool = True) -> torch.Tensor:
        """Ours."""
        model = self.networks.model
        guide = Guide(self.networks.classifier, self.y, Strength(scale=SCALE))
        return sample(
            model,
            self.x,
            chain(model.schedule.alpha_bar.tolist(), respaced_timesteps(self.respacing)),
            labels=self.y if self.size == 64 else None,
            guides=[guide] if guided else [],
        )

    def eager(self) -> torch.Tensor:
        """Ours without CUDA graphs."""
        with mock.patch.dict(os.environ, {"CLASSIFIER_GUIDANCE_GRAPHS": "0"}):
            return self.embedded()


def rows(setup: Setup, size: int, batch: int) -> Iterator[Row]:
    """Times of the runs, and what the GPU computes in ours."""
    runs = Runs(setup, size, batch)
    name = f"guided DDIM-25, {size}x{size}, batch {batch}"
    far = (runs.embedded() - runs.original()).abs().mean().item()
    yield Row(f"{name}: mean difference of the images", "original loop's", far)
    of_each = {
        "original loop": runs.original,
        "embedded": runs.embedded,
        "embedded, without graphs": runs.eager,
        "embedded, unguided": lambda: runs.embedded(guided=False),
    }
    seconds = seconds_in_turn(of_each, setup.pick(2, 1))
    for what, value in seconds.items():
        yield Row(f"{name}, {what}", "time", value * 1e3, unit=" ms")
    for what in ("embedded", "embedded, without graphs"):
        bar = BARS[size] if what == "embedded" else None
        ratio = seconds[what] / seconds["original loop"]
        yield Row(f"{name}, {what}", "original loop", ratio, bar)
    milliseconds = total(kernels_of(runs.embedded))
    yield Row(f"{name}, embedded, kernels", "time", milliseconds, unit=" ms")
