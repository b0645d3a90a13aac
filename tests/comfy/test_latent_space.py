"""A classifier of latents: trained in the space that the sampler carries, it guides there.

End to end on real digits, through ComfyUI's own VAE and latent format.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import latent_digits
import pytest
import real_digits
import torch
from sampler_runs import sampler_named

COUNT, STEPS, SCALE, SIDE = 100, 25, 12.0, 16
TRAINING = {
    "preset": "small",
    "steps": 1200,
    "batch_size": 64,
    "learning_rate": 3e-3,
    "noise_schedule": "cosine",
    "pool": "attention",
    "seed": 0,
    "held_out": 0.1,
}

pytestmark = pytest.mark.timeout(3000)  # training on one core of a busy machine


@dataclass
class Space:
    """Digits, their latents as VAE Encode gives them, and what draws in that space."""

    vae: Any
    model: Any
    latents: dict
    labels: str


@pytest.fixture(scope="module")
def space(load_model, call_core):
    """Everything but the classifier."""
    grey, labels = real_digits.real_digits()
    pixels = torch.from_numpy(grey).float()[..., None].expand(-1, -1, -1, 3) / 255
    vae = latent_digits.core_vae()
    (latents,) = call_core("nodes", "VAEEncode", vae=vae, pixels=pixels)
    model = latent_digits.core_model(load_model("digits_adm.safetensors", dtype="fp32")[0])
    return Space(vae, model, latents, "\n".join(map(str, labels.tolist())))


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

    def share(classifier=None):
        model, label = space.model, ",".join(map(str, digits))
        if classifier is not None:
            steer = {"classifier": classifier, "label": label, "scale": SCALE}
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

    (guider,) = call_core(
        "comfy_extras.nodes_custom_sampler",
        "BasicGuider",
        model=model,
        conditioning=[[torch.zeros(1, 1, 1), {}]],
    )
    empty = torch.zeros(COUNT, latent_digits.CHANNELS, SIDE, SIDE)
    noise = torch.randn(empty.shape, generator=torch.Generator().manual_seed(3))
    sampling = model.get_model_object("model_sampling")
    sigmas = comfy.samplers.calculate_sigmas(sampling, "normal", STEPS)
    with torch.inference_mode():
        return guider.sample(noise, empty, sampler_named("euler"), sigmas, seed=0)


def test_what_the_vae_gives_is_not_what_the_sampler_carries(space):
    """Else the other test would show nothing."""
    process_in = space.model.get_model_object("latent_format").process_in
    samples = space.latents["samples"]
    assert samples.std() > 5 * process_in(samples).std()


def test_it_guides_in_the_models_space_and_not_in_the_vaes(
    train, right, pack_module, monkeypatch, say_at_the_end
):
    classifier = train()
    assert classifier.classifier.space == "Digits"
    # the same training on what VAE Encode gives: the scale factor ignored
    training = pack_module("nodes.training")
    monkeypatch.setattr(training, "to_model_space", lambda _, samples: samples.clone().float())
    ignored = train()
    plain, guided, wrong = right(), right(classifier), right(ignored)
    say_at_the_end(
        f"latent digits: judge accuracy {guided:.2f}, without guidance {plain:.2f}, with a "
        f"classifier that ignores the scale factor {wrong:.2f}"
    )
    assert guided >= 0.85
    assert wrong <= guided - 0.1
