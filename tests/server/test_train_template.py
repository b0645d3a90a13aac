"""From a folder of real digits to a classifier that guides, by the template, in a real server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import real_digits
from prompts import classifier, guidance, guided_run, node

from guidance.checkpoints.checkpoint import read_checkpoint

TEMPLATE = Path(__file__).resolve().parents[2] / "example_workflows" / "train_digit_classifier.json"
SAVED = "my_digits_00001_.safetensors"
IMAGES = 100
# training on one core of a busy machine
pytestmark = [pytest.mark.long, pytest.mark.timeout(3000)]


@pytest.fixture(scope="module")
def trained(server):
    """The template's run, with all 5,000 pictures in the server's input folder."""
    real_digits.write_folder(server.base / "input" / "digits", 5000)
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
    assert SAVED in shown  # on the node Save Noisy Classifier
    assert "ComfyUI_temp" in shown  # the plot


def test_it_guides(queue, saved, say_at_the_end):
    """The judge, which saw neither the classifier nor the noise, reads 90 % of the digits."""
    label = ",".join(str(index % 10) for index in range(IMAGES))
    prompt = guided_run(
        model="digits_adm.safetensors",
        classifier_name=SAVED,
        width=32,
        batch=IMAGES,
        seed=5,
        steps=50,
    )
    prompt["latent"]["inputs"]["height"] = 32
    links = {"classifier": ["clean", 0], "image": ["decoded", 0]}
    ended = queue.run(
        prompt
        | {
            "guided": guidance(label, 20.0, entropy_limit=10.0),
            "clean": classifier("digits_judge.safetensors"),
            "judge": node("ClassifyImage", **links, top_k=1),
        }
    )
    lines = ended.outputs["judge"]["text"][0].splitlines()
    right = [line.split()[1] == str(index % 10) for index, line in enumerate(lines)]
    share = sum(right) / IMAGES
    say_at_the_end(f"digits guided by the classifier that was trained in ComfyUI: {share:.2f}")
    assert len(right) == IMAGES and share >= 0.90
