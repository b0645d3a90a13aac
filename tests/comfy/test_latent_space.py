"""A classifier of latents: trained in the space that the sampler carries, it guides there.

End to end on real digits, with an autoencoder and a latent diffusion model that are trained here.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import latent_digits
import pytest
import real_digits
import torch
from sampler_runs import sampler_named

COUNT, STEPS, SCALE = 100, 25, 6.0
TRAINING = {
    "preset": "small",
    "steps": 500,
    "batch_size": 64,
    "learning_rate": 3e-3,
    "noise_schedule": "linear",
    "pool": "adaptive",
    "seed": 0,
    "ema": 0.98,
    "held_out": 0.1,
}


@dataclass
class Space:
    """Digits, their latents as VAE Encode gives them, and what draws in that space."""

    vae: Any
    model: Any
    latents: dict
    labels: str


@pytest.fixture(scope="module")
def space(pack_module, call_core):
    """Everything but the classifier."""
    grey, labels = real_digits.real_digits()
    pixels = torch.from_numpy(grey).float()[..., None].expand(-1, -1, -1, 3) / 255
    network = latent_digits.trained_autoencoder(pixels.movedim(-1, 1) * 2 - 1, steps=500)
    vae = latent_digits.core_vae(network)
    (latents,) = call_core("nodes", "VAEEncode", vae=vae, pixels=pixels)
    x0 = latents["samples"] * latent_digits.SCALE_FACTOR
    assert 0.8 < x0.std() < 1.2 and latents["samples"].std() > 4
    model = diffusion_model(pack_module, x0.clone())
    return Space(vae, model, latents, "\n".join(map(str, labels.tolist())))


def diffusion_model(pack_module, x0):
    """A MODEL of latents x0 (N, 4, 8, 8), which knows no classes."""
    training = pack_module("guidance.training.train_diffusion")
    data = pack_module("guidance.training.data").LabelledImages(
        x0, torch.zeros(len(x0), dtype=torch.long), ("digit",)
    )
    layout = pack_module("guidance.adm").UNetLayout(
        in_channels=4,
        image_channels=4,
        out_channels=4,
        model_channels=64,
        num_res_blocks=1,
        channel_mult=(1, 2),
        attention_levels=(1,),
        num_head_channels=32,
        norm_groups=8,
    )
    recipe = pack_module("guidance.training.loop").Recipe(
        steps=1500, batch_size=64, learning_rate=2e-3, weight_decay=0.0, ema=0.995
    )
    schedule = pack_module("guidance.noise").NoiseSchedule("linear")
    trained = training.train_diffusion(data, layout, schedule, recipe, p_uncond=0.0)
    adapter = pack_module("nodes.comfy_adapter")
    return latent_digits.core_model(trained.network, schedule, adapter)


@pytest.fixture(scope="module")
def train(call, space):
    """A classifier of the latents, by the node."""
    inputs = {"latents": space.latents, "labels": space.labels, "model": space.model}
    return lambda: call("TrainNoisyClassifier", **inputs, **TRAINING)[0]


@pytest.fixture(scope="module")
def right(space, call, call_core, load_classifier):
    """The share of digits, guided by a classifier or by none, that the judge reads as asked."""
    judge = load_classifier("digits_judge.safetensors")
    digits = [index % 10 for index in range(COUNT)]

    def share(classifier=None, scale=SCALE):
        model, label = space.model, ",".join(map(str, digits))
        if classifier is not None:
            steer = {"classifier": classifier, "label": label, "scale": scale}
            (model,) = call("ClassifierGuidance", model=model, **steer)
        samples = drawn(model, call_core)
        (images,) = call_core("nodes", "VAEDecode", vae=space.vae, samples={"samples": samples})
        (text,) = call("ClassifyImage", classifier=judge, image=images, top_k=1)
        seen = [line.split()[1] for line in text.splitlines()]
        return sum(name == str(digit) for name, digit in zip(seen, digits, strict=True)) / COUNT

    return share


def drawn(model, call_core):
    """Latents, as SamplerCustomAdvanced and a VAE see them."""
    import comfy.samplers

    sampling = model.get_model_object("model_sampling")
    empty = {"samples": torch.zeros(COUNT, 4, 8, 8)}
    (guider,) = call_core(
        "comfy_extras.nodes_custom_sampler",
        "BasicGuider",
        model=model,
        conditioning=[[torch.zeros(1, 1, 1), {}]],
    )
    noise = torch.randn(COUNT, 4, 8, 8, generator=torch.Generator().manual_seed(3))
    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", STEPS)
    with torch.inference_mode():
        return guider.sample(noise, empty["samples"], sampler_named("euler"), sigmas, seed=0)


def test_it_guides_in_the_models_space_and_not_in_the_vaes(
    space, train, right, pack_module, monkeypatch, say_at_the_end
):
    classifier = train()
    assert classifier.classifier.space == "SD15"
    adapter = pack_module("nodes.comfy_adapter")
    # the same training on what VAE Encode gives, which is not what the sampler carries
    monkeypatch.setattr(adapter, "to_model_space", lambda _, samples: samples.clone().float())
    ignored = train()
    plain, guided, wrong = right(), right(classifier), right(ignored)
    say_at_the_end(
        f"latent digits: judge accuracy {guided:.2f}, without guidance {plain:.2f}, with a "
        f"classifier that ignores the scale factor {wrong:.2f}"
    )
    assert guided >= 0.85
    assert wrong <= guided - 0.2
