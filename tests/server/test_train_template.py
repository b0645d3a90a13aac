"""From a folder of real digits to a classifier that guides, by the template, in a real server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import real_digits

from guidance.checkpoints.checkpoint import read_checkpoint

TEMPLATE = Path(__file__).resolve().parents[2] / "example_workflows" / "train_digit_classifier.json"
pytestmark = pytest.mark.timeout(3000)  # training on one core of a busy machine
SAVED = "my_digits_00001_.safetensors"
IMAGES = 100


@pytest.fixture(scope="module")
def folder(server):
    """All 5,000 pictures, in the server's input folder."""
    return real_digits.write_folder(server.base / "input" / "digits", 5000)


@pytest.fixture(scope="module")
def trained(server, folder):
    """What the template's run left."""
    return server.run(TEMPLATE)


@pytest.fixture(scope="module")
def saved(server, trained):
    """The classifier's file."""
    return server.base / "output" / "classifiers" / SAVED


def test_it_reads_digits_with_little_noise(saved, say_at_the_end):
    training = read_checkpoint(saved).description.training
    accuracy = training["accuracy_by_timestep"]
    seconds = training["seconds"]
    say_at_the_end(f"classifier trained in ComfyUI: {seconds} s, accuracy by timestep {accuracy}")
    assert accuracy["0"] >= 0.95 and accuracy["100"] >= 0.95


def test_the_template_ends_with_digits_and_a_plot(trained):
    assert len(trained.images) == 10
    shown = json.dumps(trained.outputs)
    assert SAVED in shown  # what Save Noisy Classifier says on its node
    assert "ComfyUI_temp" in shown  # the plot


def test_loaded_again_it_guides(server, saved, submit, say_at_the_end):
    """As the judge reads them, which saw neither the classifier nor its pictures' noise."""
    _, offered = server.request("/object_info/NoisyClassifierLoader")
    names = offered["NoisyClassifierLoader"]["input"]["required"]["classifier_name"][1]["options"]
    assert SAVED in names
    answer = submit(guided(SAVED, scale=20.0, entropy_limit=10.0))
    lines = answer.outputs["judge"]["text"][0].splitlines()
    seen = [line.split()[1] for line in lines]
    right = sum(name == str(index % 10) for index, name in enumerate(seen)) / IMAGES
    say_at_the_end(f"digits guided by the classifier that was trained in ComfyUI: {right:.2f}")
    assert len(seen) == IMAGES and right >= 0.90


def guided(classifier, **strength):
    """A workflow that draws each digit ten times with a saved classifier, and judges them."""
    auto = {"noise_schedule": "auto", "dtype": "auto"}

    def loader(name):
        return {"class_type": "NoisyClassifierLoader", "inputs": {"classifier_name": name, **auto}}

    model = {"model_name": "digits_adm.safetensors", "clip_denoised": True, **auto}
    size = {"width": 32, "height": 32, "batch_size": IMAGES}
    label = ",".join(str(index % 10) for index in range(IMAGES))
    guidance = {"model": ["model", 0], "classifier": ["classifier", 0]}
    run = {"model": ["guided", 0], "positive": ["none", 0], "negative": ["none", 0]}
    run |= {"latent_image": ["size", 0], "seed": 5, "steps": 50, "cfg": 1.0, "denoise": 1.0}
    run |= {"sampler_name": "euler", "scheduler": "normal"}
    return {
        "model": {"class_type": "ADMModelLoader", "inputs": model},
        "classifier": loader(classifier),
        "none": {"class_type": "ADMClassLabel", "inputs": {"model": ["model", 0], "label": ""}},
        "size": {"class_type": "EmptyLatentImage", "inputs": size},
        "guided": {
            "class_type": "ClassifierGuidance",
            "inputs": {**guidance, "label": label, **strength},
        },
        "run": {"class_type": "KSampler", "inputs": run},
        "images": {
            "class_type": "VAEDecode",
            "inputs": {"samples": ["run", 0], "vae": ["model", 1]},
        },
        "clean": loader("digits_judge.safetensors"),
        "judge": {
            "class_type": "ClassifyImage",
            "inputs": {"classifier": ["clean", 0], "image": ["images", 0], "top_k": 1},
        },
    }
