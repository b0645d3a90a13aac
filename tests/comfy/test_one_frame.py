"""One frame in a video model's space, as Qwen-Image has it: (B, 16, 1, H, W).

The same model with latents (B, 16, H, W) gives the same bits, whatever guides it.
"""

from __future__ import annotations

import itertools

import pytest
import torch
from long_cases import long_but
from sampler_runs import core_guider, counted_calls, drawn, few_sigmas, latent_noise
from zoo import random_weights
from zoo_cells import Readout

SHAPE, STEPS = (16, 8, 8), 4
OPTIONS = {
    "none": {},
    "of each image": {"entropy_limit": 5.0, "cap": 0.4, "label_smoothing": 0.1},
    "every second gradient": {"gradient_interval": 2},
    "normalized": {"normalize": "on", "cap": 0.3},
}


class Network(torch.nn.Module):
    """Reads the channels of each pixel, whatever the dimensions."""

    def __init__(self, channels=16, dtype=None, device=None, operations=None):
        super().__init__()
        self.dtype = dtype or torch.float32
        self.layer = operations.Linear(channels, channels, dtype=dtype, device=device)

    def forward(self, x, timesteps, **_):
        return self.layer(x.movedim(1, -1)).sin().movedim(-1, 1) * (1 + timesteps[0] / 1000)


class Pair:
    """The MODEL and the VAE of one frame, and what is the same of images."""

    def __init__(self, core_model):
        import comfy.latent_formats

        video = comfy.latent_formats.Wan21()

        class Wan21(comfy.latent_formats.LatentFormat):
            """The same of images. A classifier's file names the space, so they share a name."""

            latent_channels = 16

            def process_in(self, latent):
                return video.process_in(latent.unsqueeze(2)).squeeze(2)

            def process_out(self, latent):
                return video.process_out(latent.unsqueeze(2)).squeeze(2)

        self.models = []
        for latent_format in (comfy.latent_formats.Wan21, Wan21):
            torch.manual_seed(0)
            self.models.append(core_model("FLOW", latent_format, Network))

    def vaes(self, network):
        """VAEs around a video decoder."""
        import comfy.model_patcher
        import comfy.sd

        class Images(torch.nn.Module):
            def __init__(self):
                super().__init__()
                self.network = network

            def decode(self, z):
                return self.network.decode(z.unsqueeze(2)).squeeze(2)

        cpu, found = torch.device("cpu"), []
        for dimensions, decoder in ((3, network), (2, Images())):
            vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})
            vae.first_stage_model = decoder
            vae.patcher = comfy.model_patcher.ModelPatcher(decoder, cpu, cpu)
            vae.latent_channels, vae.latent_dim, vae.output_channels = 16, dimensions, 3
            vae.process_output = lambda image: image.add(1.0).div(2.0)
            found.append(vae)
        return found


@pytest.fixture(scope="module")
def pair(core_model):
    return Pair(core_model)


@pytest.fixture(scope="module")
def decoder(comfy):
    """Core's VAE of Wan and Qwen-Image, with few channels and random weights."""
    from comfy.ldm.wan.vae import WanVAE

    network = WanVAE(dim=8, z_dim=16, dim_mult=[1, 1, 1, 1], num_res_blocks=1).eval()
    network.load_state_dict(random_weights(network))
    return network.requires_grad_(False)


@pytest.fixture
def same(pair, call):
    """Checks that runs are bit for bit the same, and differ from those without guidance.

    guide(model, index) -> MODEL; index: 0 of one frame, 1 of images.
    """

    def check(guide, sampler="euler"):
        found, traces = [], []
        for index, model in enumerate(pair.models):
            start = latent_noise(2, *SHAPE)
            start = start.unsqueeze(2) if index == 0 else start
            sigmas = few_sigmas(model, STEPS)
            guided, trace = call("GuidanceTrace", model=guide(model, index))
            sample = drawn(core_guider(guided), sigmas, sampler, start=start)
            assert sample.shape == start.shape
            found.append(sample.reshape(2, *SHAPE))
            traces.append(trace.to_dict())
            plain = drawn(core_guider(model), sigmas, sampler, start=start)
            assert not torch.allclose(plain.reshape(2, *SHAPE), found[-1], atol=1e-4)
        assert torch.equal(*found)
        assert traces[0] == traces[1] and traces[0]["evaluations"][0]["classifiers"]

    return check


@pytest.mark.parametrize("options", OPTIONS)
def test_noisy(same, steered, place_classifier, options):
    classifier = place_classifier(Readout(16))
    same(lambda model, _: steered(model, classifier, scale=20.0, **OPTIONS[options]))


@pytest.mark.parametrize(
    ("gradient", "options"),
    long_but(
        [("cheap", "normalized"), ("exact", "none"), ("exact", "of each image")],
        itertools.product(("cheap", "exact"), OPTIONS),
    ),
)
def test_clean(same, pair, steered, load_image, decoder, gradient, options):
    looks = 3 if options == "normalized" else 0
    clean = [load_image(gradient, vae=vae, looks=looks) for vae in pair.vaes(decoder)]
    same(lambda model, at: steered(model, clean[at], scale=9.0, **OPTIONS[options]))


def test_a_vae_of_images(same, pair, steered, load_image, decoder):
    """Takes one frame, too, as core's does."""
    clean = load_image("cheap", vae=pair.vaes(decoder)[1])
    same(lambda model, _: steered(model, clean, scale=9.0))


@pytest.mark.parametrize("name", ["euler_ancestral", "dpmpp_2m"])
def test_recurrence(same, steered, place_classifier, call, name):
    import comfy.samplers

    inputs = {"repeats": 2, "start_percent": 0.0, "end_percent": 0.8}
    sampler = comfy.samplers.sampler_object(name)
    (sampler,) = call("RecurrentSampler", sampler=sampler, **inputs)
    classifier = place_classifier(Readout(16))
    same(lambda model, _: steered(model, classifier, scale=20.0), sampler)


def test_a_schedule_and_two_in_a_row(
    same, pair, steered, place_classifier, made, load_image, decoder
):
    noisy = place_classifier(Readout(16))
    exact = [load_image("exact", vae=vae) for vae in pair.vaes(decoder)]
    schedule = made("interval", axis="step", scale=20.0, end=0.7)

    def guide(model, at):
        return steered(steered(model, noisy, schedule=schedule), exact[at], scale=9.0)

    same(guide)


@pytest.mark.parametrize("pool", ["attention", pytest.param("adaptive", marks=pytest.mark.long)])
def test_training(same, pair, call, steered, pool):
    """Latents of one frame are learned as images; the classifier steers both."""
    latents = latent_noise(12, *SHAPE, seed=4)
    latents[::2] += 2
    inputs = {"labels": "a, b, " * 5 + "a, b", "preset": "small", "steps": 3, "batch_size": 4}
    inputs |= {"learning_rate": 2e-3, "noise_schedule": "linear", "pool": pool, "seed": 0}
    inputs |= {"ema": 0.9, "held_out": 0.0, "precision": "fp32", "images": None}
    # for the video model also as images, which is what other nodes may make of them
    given = [(pair.models[0], latents.unsqueeze(2)), (pair.models[0], latents)]
    given += [(pair.models[1], latents), (pair.models[1], latents.unsqueeze(2))]
    found = []
    for model, samples in given:
        more = {"latents": {"samples": samples}, "model": model}
        found.append(call("TrainNoisyClassifier", **inputs, **more)[0])
    weights = [classifier.classifier.network.state_dict() for classifier in found]
    for name, weight in weights[0].items():
        assert all(torch.equal(other[name], weight) for other in weights[1:]), name
    same(lambda model, at: steered(model, found[at], "b", 20.0))


def test_small_decoders_of_video(comfy, pair, steered, load_image):
    """lighttaew2_1 in core's Load VAE."""
    import comfy.sd
    from comfy.taesd.taehv import TAEHV

    with torch.inference_mode():
        vae = comfy.sd.VAE(sd=random_weights(TAEHV(latent_channels=16)))
    for gradient in ("cheap", "exact"):
        clean = load_image(gradient, vae=vae)
        calls = counted_calls(clean.classifier.network)
        model = steered(pair.models[0], clean, scale=9.0)
        start = latent_noise(2, *SHAPE).unsqueeze(2)
        sigmas = few_sigmas(model, STEPS)
        plain, guided = (
            drawn(core_guider(each), sigmas, start=start) for each in (pair.models[0], model)
        )
        assert guided.shape == start.shape and not torch.allclose(guided, plain, atol=1e-6)
        assert bool(guided.isfinite().all()) and calls == [2] * STEPS
