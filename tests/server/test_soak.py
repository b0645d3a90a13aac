"""Many prompts in one server: what it holds in memory stays what it was."""

from __future__ import annotations

import itertools
import time

import psutil
import pytest
from schedule_inputs import SCHEDULE_INPUTS
from tiny_models import write_classifier, write_unet

SMALL = {"channel_mult": (1,), "attention_levels": ()}
EARLY, ALL = 50, 300
SHARE = 0.03
FREE_EVERY = 60  # prompts, after which the models are unloaded

from_file = {"noise_schedule": "auto", "dtype": "auto"}


def node(kind, **inputs):
    """A node of a prompt."""
    return {"class_type": kind, "inputs": inputs}


def loaders(model="plain"):
    """The files, and an empty latent."""
    return {
        "model": node(
            "ADMModelLoader", model_name=f"{model}.safetensors", clip_denoised=True, **from_file
        ),
        "classifier": node("NoisyClassifierLoader", classifier_name="one.safetensors", **from_file),
        "latent": node("EmptyLatentImage", width=16, height=16, batch_size=2),
        "decoded": node("VAEDecode", samples=["sampled", 0], vae=["model", 1]),
        "shown": node("PreviewImage", images=["decoded", 0]),
    }


def sampler(model, positive, negative, seed, cfg=1.0, steps=3):
    """KSampler."""
    about = {"seed": seed, "steps": steps, "cfg": cfg, "sampler_name": "euler", "denoise": 1.0}
    return node(
        "KSampler",
        model=model,
        positive=positive,
        negative=negative,
        latent_image=["latent", 0],
        scheduler="normal",
        **about,
    )


def guidance(model, label, scale=10.0, **options):
    """Classifier Guidance."""
    inputs = {"model": model, "classifier": ["classifier", 0], "label": label, "scale": scale}
    return node("ClassifierGuidance", **inputs, **options)


def guided(seed):
    """Another label, scale and seed each time."""
    options = {"entropy_limit": 4.0, "cap": 0.5, "every": 1 + seed % 2}
    return loaders() | {
        "guided": guidance(["model", 0], str(seed % 4), 1.0 + seed % 7, **options),
        "positive": node("ADMClassLabel", model=["model", 0], label=""),
        "sampled": sampler(["guided", 0], ["positive", 0], ["positive", 0], seed),
    }


def both(seed):
    """A scheduled CFG and two classifier guidances, traced."""
    return loaders("labels") | {
        "schedule": node(
            "GuidanceSchedule", **SCHEDULE_INPUTS | {"end": 0.5, "scale": 1.0 + seed % 5}
        ),
        "first": guidance(["model", 0], "1"),
        "second": guidance(["first", 0], "2", 5.0),
        "cfg": node("CFGScaleScheduler", model=["second", 0], schedule=["schedule", 0]),
        "traced": node("GuidanceTrace", model=["cfg", 0]),
        "positive": node("ADMClassLabel", model=["model", 0], label=str(seed % 4)),
        "negative": node("ADMClassLabel", model=["model", 0], label=""),
        "sampled": sampler(["traced", 0], ["positive", 0], ["negative", 0], seed, 3.0),
    }


def custom(seed):
    """The original's sampler and steps."""
    return loaders() | {
        "guided": guidance(["model", 0], "0,3"),
        "positive": node("ADMClassLabel", model=["model", 0], label=""),
        "steps": node("ADMScheduler", model=["model", 0], respacing="3", denoise=1.0),
        "method": node("SamplerADM", method="ddpm", eta=0.0),
        "noise": node("RandomNoise", noise_seed=seed),
        "guider": node("BasicGuider", model=["guided", 0], conditioning=["positive", 0]),
        "sampled": node(
            "SamplerCustomAdvanced",
            noise=["noise", 0],
            guider=["guider", 0],
            sampler=["method", 0],
            sigmas=["steps", 0],
            latent_image=["latent", 0],
        ),
    }


def classified(seed):
    """What the classifier sees in what was drawn."""
    return guided(seed) | {
        "seen": node("ClassifyImage", classifier=["classifier", 0], image=["decoded", 0], top_k=2)
    }


def wrong(seed):
    """A label that there is not."""
    prompt = guided(seed)
    prompt["guided"]["inputs"]["label"] = f"nobody {seed}"
    return prompt


KINDS = (guided, both, guided, custom, classified, guided, wrong)


@pytest.fixture(scope="module")
def own_server(comfyui):
    """A fresh server for this file."""
    from comfy_server import ComfyServer

    with ComfyServer(comfyui) as running:
        models = running.base / "models"
        write_unet(models / "diffusion_models" / "plain.safetensors", classes=None, **SMALL)
        write_unet(models / "diffusion_models" / "labels.safetensors", **SMALL)
        write_classifier(models / "classifiers" / "one.safetensors", pool="adaptive", **SMALL)
        yield running


def ended(server, prompt_id):
    """The history's entry of a prompt, once it has ended."""
    while True:
        _, history = server.request(f"/history/{prompt_id}")
        if prompt_id in history:
            return history[prompt_id]
        time.sleep(0.01)


def run(server, kind, seed):
    """Runs a prompt of that kind to the end that it is to have."""
    status, answer = server.request("/prompt", {"prompt": kind(seed)})
    assert status == 200 and not answer["node_errors"], answer
    end = ended(server, answer["prompt_id"])["status"]
    assert end["status_str"] == ("error" if kind is wrong else "success"), end


def resident(server):
    """Bytes of the server's own process: the largest of those that were started for it."""
    family = psutil.Process(server.process_id).children(recursive=True)
    return max(process.memory_info().rss for process in family)


def soak(server, early, last):
    """Resident memory after so many prompts, and after all of them."""
    after = {}
    for number, kind in zip(range(1, last + 1), itertools.cycle(KINDS), strict=False):
        run(server, kind, number)
        if number % FREE_EVERY == 0:
            server.request("/free", {"unload_models": True})
        if number in (early, last):
            after[number] = resident(server)
    return after[early], after[last]


@pytest.mark.timeout(1800)
def test_memory_stays_flat(own_server, say_at_the_end):
    early, last = soak(own_server, EARLY, ALL)
    grown = last / early - 1
    say_at_the_end(
        f"soak: {early / 2**20:.0f} MB after {EARLY} prompts, {last / 2**20:.0f} MB after {ALL} "
        f"({100 * grown:+.1f} %)"
    )
    assert abs(grown) < SHARE
