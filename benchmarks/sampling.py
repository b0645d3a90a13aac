#!/usr/bin/env python3
"""Guided runs, whole: python benchmarks/sampling.py

The released 64x64 layouts with random weights: the embedded sampler against the original's DDIM
loop with cond_fn, and the same graph in ComfyUI against the embedded sampler. The 256x256
unconditional layout, one image: a step guided by a classifier against a step of CFG. Runs taken in
turn; of a DDIM run eight steps, because all of them cost the same (--whole: 25).
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from harness import (
    Row,
    find_comfyui,
    in_turn,
    load_pack,
    print_rows,
    start_comfyui,
    use_library,
)
from reference import (
    layout_of,
    ours_of,
    their_classifier,
    their_diffusion,
    their_gradient,
    their_unet,
)

use_library()

from guidance import DiffusionModel, NoisyClassifier  # noqa: E402
from guidance.adm.build import build_network  # noqa: E402
from guidance.checkpoints.checkpoint import Description, save_checkpoint  # noqa: E402
from guidance.sampling.classifier_guidance import Guide  # noqa: E402
from guidance.sampling.loop import sample  # noqa: E402
from guidance.sampling.respacing import respaced_timesteps  # noqa: E402
from guidance.sampling.steps import chain  # noqa: E402
from guidance.sampling.strength import Strength  # noqa: E402

BATCH, SIZE, SCALE, RESPACING, TURNS = 1, 64, 3.0, "ddim8", 3


class Models:
    """The original's U-Net and classifier, and ours with the same weights."""

    def __init__(self) -> None:
        self.their_unet, self.their_classifier = their_unet(), their_classifier(SIZE)
        self.model = DiffusionModel(ours_of(self.their_unet, "64x64_diffusion.pt"), "cosine")
        network = ours_of(self.their_classifier, "64x64_classifier.pt")
        self.classifier = NoisyClassifier(network, "cosine")
        self.x = torch.randn(BATCH, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))
        self.y = torch.arange(BATCH)

    def original(self) -> torch.Tensor:
        """The original's loop."""
        return their_diffusion(RESPACING).ddim_sample_loop(
            self.their_unet,
            tuple(self.x.shape),
            noise=self.x,
            model_kwargs={"y": self.y},
            cond_fn=lambda x, t, y: SCALE * their_gradient(self.their_classifier, x, t, y),
            device="cpu",
        )

    def embedded(self) -> torch.Tensor:
        """The same with our sampler."""
        timesteps = respaced_timesteps(RESPACING)
        return sample(
            self.model,
            self.x,
            chain(self.model.schedule.alpha_bar.tolist(), timesteps),
            labels=self.y,
            guides=[Guide(self.classifier, self.y, Strength(scale=SCALE))],
        )

    def written(self, folder: Path) -> tuple[Path, Path]:
        """Files of both networks, for ComfyUI's loaders."""
        paths = folder / "speed_unet.safetensors", folder / "speed_classifier.safetensors"
        networks = self.model.network, self.classifier.network
        for path, network, kind in zip(paths, networks, ("diffusion", "classifier"), strict=True):
            about = Description(
                kind=kind, layout=network.layout, noise_schedule="cosine", space="rgb"
            )
            save_checkpoint(path, network.state_dict(), about)
        return paths


def in_comfyui(nodes: Any, folder: Path, models: Models):
    """A function that runs the graph of the template "13 Draw ImageNet at 64 px" in ComfyUI."""
    import comfy.samplers
    import folder_paths

    for kind in ("diffusion_models", "classifiers"):
        folder_paths.add_model_folder_path(kind, str(folder))
    unet, classifier = models.written(folder)

    def call(node_id: str, **inputs: Any) -> Any:
        with torch.inference_mode():
            return nodes.NODE_CLASS_MAPPINGS[node_id].execute(**inputs).result[0]

    auto = {"noise_schedule": "auto", "dtype": "fp32"}
    model = call("ADMModelLoader", model_name=unet.name, clip_denoised=True, **auto)
    loaded = call("NoisyClassifierLoader", classifier_name=classifier.name, **auto)
    label = ",".join(map(str, models.y.tolist()))
    steered = call("ClassifierGuidance", model=model, classifier=loaded, label=label, scale=SCALE)
    positive = call("ADMClassLabel", model=model, label=label)
    conds = {"positive": positive, "negative": positive}
    guider = call("ClassifierFreeGuidance", model=steered, cfg=1.0, **conds)
    sigmas = call("ADMScheduler", model=model, respacing=RESPACING, denoise=1.0)
    sampler, noise = comfy.samplers.sampler_object("euler"), models.x

    def run() -> torch.Tensor:
        with torch.inference_mode():
            empty = torch.zeros_like(noise)
            return guider.sample(noise, empty, sampler, sigmas, disable_pbar=True, seed=0)

    return run


def run_rows() -> Iterator[Row]:
    """Three ways of the same run."""
    comfyui = find_comfyui()
    models = Models()
    with tempfile.TemporaryDirectory() as folder:
        runs = {"original": models.original, "embedded": models.embedded}
        if comfyui:
            nodes = start_comfyui(str(comfyui.path))
            load_pack(nodes)
            runs["comfyui"] = in_comfyui(nodes, Path(folder), models)
        expected, got = models.original(), models.embedded()
        assert (got - expected).abs().max() < 1e-3, "other images"
        taken = in_turn(runs, TURNS)
    yield taken["embedded"].row(
        "guided DDIM run, 64x64, embedded", "original's ddim_sample_loop", taken["original"], 0.65
    )
    if comfyui:
        yield taken["comfyui"].row("the same graph in ComfyUI", "embedded", taken["embedded"], 1.10)


def step_rows() -> Iterator[Row]:
    """One pass and a gradient against two passes, as core's CFGGuider does them: in one batch."""
    layout = layout_of("256x256_diffusion_uncond.pt")
    layout = replace(layout, num_classes=2, null_class=1)  # a null class, and nothing else
    network = build_network(layout).eval().requires_grad_(False)
    model = DiffusionModel(network, "linear")
    noisy = build_network(layout_of("256x256_classifier.pt")).eval().requires_grad_(False)
    guide = Guide(NoisyClassifier(noisy, "linear"), torch.tensor([1]), Strength(scale=10.0))
    x = torch.randn(1, 3, 256, 256, generator=torch.Generator().manual_seed(1))
    steps = chain(model.schedule.alpha_bar.tolist(), [500])
    zero = torch.zeros(1, dtype=torch.long)
    taken = in_turn(
        {
            "classifier": lambda: sample(model, x, steps, labels=zero, guides=[guide]),
            "cfg": lambda: sample(model, x, steps, labels=zero, cfg=4.0),
        },
        TURNS,
    )
    yield taken["classifier"].row(
        "classifier-guided step, 256x256, one image", "CFG step", taken["cfg"], 0.75
    )


def rows() -> Iterator[Row]:
    """All of them."""
    yield from run_rows()
    yield from step_rows()


if __name__ == "__main__":
    if "--whole" in sys.argv:
        RESPACING = "ddim25"
    print_rows(step_rows() if "--step" in sys.argv else rows())
