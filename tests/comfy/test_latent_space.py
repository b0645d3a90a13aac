"""A classifier of latents: trained in the space that the sampler carries, it guides there.

End to end on real digits, through ComfyUI's own VAE and latent format.
"""

from __future__ import annotations

from types import SimpleNamespace

import latent_digits
import pytest
import real_digits
import torch
from sampler_runs import core_guider, drawn, few_sigmas, latent_noise

COUNT, STEPS, SCALE, SIDE = 100, 25, 12.0, 16
TRAINING = {"preset": "small", "steps": 1200, "batch_size": 64, "learning_rate": 3e-3}
TRAINING |= {"noise_schedule": "cosine", "pool": "attention", "seed": 0, "held_out": 0.1}


@pytest.fixture(scope="module")
def space(load_model, call_core):
    """Digits, their latents as VAE Encode gives them, and what draws in that space."""
    grey, labels = real_digits.real_digits()
    pixels = torch.from_numpy(grey).float()[..., None].expand(-1, -1, -1, 3) / 255
    vae = latent_digits.core_vae()
    (latents,) = call_core("nodes", "VAEEncode", vae=vae, pixels=pixels)
    model = latent_digits.core_model(load_model("digits_adm.safetensors", dtype="fp32")[0])
    names = "\n".join(map(str, labels.tolist()))
    return SimpleNamespace(vae=vae, model=model, latents=latents, labels=names)


@pytest.fixture(scope="module")
def right(space, call, call_core, load_classifier, steered):
    """The share of digits, guided by a classifier or by none, that the judge reads as wanted."""
    judge = load_classifier("digits_judge.safetensors")
    digits = [index % 10 for index in range(COUNT)]

    def share(classifier=None):
        model = space.model
        if classifier is not None:
            model = steered(model, classifier, ",".join(map(str, digits)), SCALE)
        start = latent_noise(COUNT, latent_digits.CHANNELS, SIDE, SIDE)
        samples = drawn(core_guider(model), few_sigmas(model, STEPS), start=start)
        (images,) = call_core("nodes", "VAEDecode", vae=space.vae, samples={"samples": samples})
        (text,) = call("ClassifyImage", classifier=judge, image=images, top_k=1)
        seen = [line.split()[1] for line in text.splitlines()]
        return sum(name == str(digit) for name, digit in zip(seen, digits, strict=True)) / COUNT

    return share


@pytest.mark.long
@pytest.mark.timeout(3000)  # two trainings on one core of a busy machine
def test_it_guides_in_the_models_space_and_not_in_the_vaes(
    call, space, right, pack_module, monkeypatch, say_at_the_end
):
    process_in = space.model.get_model_object("latent_format").process_in
    samples = space.latents["samples"]
    assert samples.std() > 5 * process_in(samples).std()  # else nothing would be shown
    inputs = {"latents": space.latents, "labels": space.labels, "model": space.model, **TRAINING}
    (classifier, _) = call("TrainNoisyClassifier", **inputs)
    assert classifier.classifier.space == "Digits"
    # the same training on what VAE Encode gives: the scale factor ignored
    nodes = pack_module("nodes.runtime.training")
    monkeypatch.setattr(nodes, "to_model_space", lambda _, samples: samples.clone().float())
    (ignored, _) = call("TrainNoisyClassifier", **inputs)
    plain, guided, wrong = right(), right(classifier), right(ignored)
    say_at_the_end(
        f"latent digits: judge accuracy {guided:.2f}, without guidance {plain:.2f}, with a "
        f"classifier that ignores the scale factor {wrong:.2f}"
    )
    assert guided >= 0.85
    assert wrong <= guided - 0.1
