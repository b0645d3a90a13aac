"""Whatever goes wrong in a server, the next prompt draws what a fresh server draws, bit for bit."""

from __future__ import annotations

import itertools
import os
import time
from pathlib import Path

import pytest
from tiny_models import write_classifier, write_unet

STEPS = 25
FAULTS = Path(__file__).with_name("fault_nodes")
PARTS = ("model", "classifier", "guided", "faulty", "positive", "latent", "sampled", "decoded")

numbers = itertools.count(1)


def drawing(*, label="2", classifier="one.safetensors", fault="ask to stop", at=0, nonce=None):
    """A guided run of 25 steps, drawn anew each time; in evaluation `at` a fault happens."""
    from_file = {"noise_schedule": "auto", "dtype": "auto"}
    inputs = {
        "model": {"model_name": "plain.safetensors", "clip_denoised": True, **from_file},
        "classifier": {"classifier_name": classifier, **from_file},
        "guided": {
            "model": ["model", 0],
            "classifier": ["classifier", 0],
            "label": label,
            "scale": 100.0,
        },
        "faulty": {
            "model": ["guided", 0],
            "fault": fault,
            "at": at,
            "nonce": next(numbers) if nonce is None else nonce,
        },
        "positive": {"model": ["model", 0], "label": ""},
        "latent": {"width": 16, "height": 16, "batch_size": 2},
        "sampled": {
            "model": ["faulty", 0],
            "positive": ["positive", 0],
            "negative": ["positive", 0],
            "latent_image": ["latent", 0],
            "seed": 5,
            "steps": STEPS,
            "cfg": 1.0,
            "sampler_name": "euler",
            "scheduler": "normal",
            "denoise": 1.0,
        },
        "decoded": {"samples": ["sampled", 0], "vae": ["model", 1]},
        "digest": {"samples": ["sampled", 0], "image": ["decoded", 0]},
    }
    kinds = {
        "model": "ADMModelLoader",
        "classifier": "NoisyClassifierLoader",
        "guided": "ClassifierGuidance",
        "faulty": "TestsFaultAt",
        "positive": "ADMClassLabel",
        "latent": "EmptyLatentImage",
        "sampled": "KSampler",
        "decoded": "VAEDecode",
        "digest": "TestsDigest",
    }
    return {name: {"class_type": kinds[name], "inputs": inputs[name]} for name in inputs}


class Prompts:
    """Queues prompts in a server, and tells what became of them."""

    def __init__(self, server):
        self.server = server

    def queue(self, prompt):
        """The prompt's id."""
        status, answer = self.server.request("/prompt", {"prompt": prompt})
        assert status == 200 and not answer["node_errors"], answer
        return answer["prompt_id"]

    def refusal(self, prompt):
        """What the server says of a prompt that it does not take."""
        status, answer = self.server.request("/prompt", {"prompt": prompt})
        assert status == 400, answer
        return answer

    def end(self, prompt_id, seconds=120):
        """Its entry in the history."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            _, history = self.server.request(f"/history/{prompt_id}")
            if prompt_id in history:
                return history[prompt_id]
            time.sleep(0.02)
        raise AssertionError(f"no end within {seconds} s:\n{self.server.log[-3000:]}")

    def digest(self, entry):
        """The hash of what a finished prompt drew."""
        assert entry["status"]["status_str"] == "success", entry["status"]["messages"]
        return entry["outputs"]["digest"]["text"][0]

    def draw(self, **changes):
        """The hash of what a prompt draws."""
        return self.digest(self.end(self.queue(drawing(**changes))))


def events(entry):
    """What the server said about a prompt: by event, its data."""
    return dict(entry["status"]["messages"])


@pytest.fixture(scope="module")
def own_server(comfyui):
    """A server for this file, with the nodes that make things go wrong."""
    from comfy_server import ComfyServer

    with ComfyServer(comfyui, extra_packs=(FAULTS,)) as running:
        models = running.base / "models"
        write_unet(models / "diffusion_models" / "plain.safetensors", classes=None)
        write_classifier(models / "classifiers" / "one.safetensors")
        yield running


@pytest.fixture(scope="module")
def prompts(own_server):
    """Its queue."""
    return Prompts(own_server)


@pytest.fixture(scope="module")
def fresh(prompts):
    """What the first prompt of a fresh server draws."""
    return prompts.draw()


@pytest.fixture(scope="module")
def unlike(prompts, fresh):
    """What another label draws: a prompt that leaves something behind would show it."""
    other = prompts.draw(label="0")
    assert other != fresh
    return other


# --- a run that does not come to its end ------------------------------------------------------


def interrupted(prompts, fault, at):
    """Draws until evaluation `at`; the history's entry, of which it is sure that it was cut off."""
    entry = prompts.end(prompts.queue(drawing(label="0", fault=fault, at=at)))
    happened = events(entry)
    assert "execution_interrupted" in happened, happened
    assert happened["execution_interrupted"]["node_id"] == "sampled"
    return entry


@pytest.mark.parametrize("fault", ["ask to stop", "stop in the guider", "stop in the network"])
def test_interrupted_at_every_step(prompts, fresh, unlike, fault):
    found = {}
    for step in range(1, STEPS + 1):
        interrupted(prompts, fault, step)
        found[step] = prompts.draw()
    print(f"{fault}: {list(found.values()).count(fresh)} of {STEPS} reruns are the fresh image")
    assert found == dict.fromkeys(range(1, STEPS + 1), fresh)
