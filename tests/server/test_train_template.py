"""From the included digits to a classifier that guides, by the template, in a real server."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import real_digits
import torch
from prompts import classifier, guidance, guided_run, node

from guidance import load_classifier
from guidance.checkpoints.checkpoint import read_checkpoint

FOLDER = Path(__file__).resolve().parents[2] / "example_workflows"
TEMPLATE = FOLDER / "16 Train a classifier of digits.json"
SAVED = "my_digits_00001_.safetensors"
IMAGES = 100
# training on one core of a busy machine
pytestmark = [pytest.mark.long, pytest.mark.timeout(3000)]


def test_the_template_trains_a_classifier_that_guides(server, queue, say_at_the_end):
    run = server.run(TEMPLATE)
    shown = json.dumps(run.outputs)
    assert len(run.images) == 1  # a grid of ten
    assert SAVED in shown  # on the node Save Noisy Classifier
    assert "ComfyUI_temp" in shown  # the plot
    path = server.base / "output" / "classifiers" / SAVED
    training = read_checkpoint(path).description.training
    accuracy = training["accuracy_by_timestep"]
    say_at_the_end(f"classifier trained in ComfyUI: {training['seconds']} s, {accuracy}")
    assert accuracy["0"] >= 0.95 and accuracy["100"] >= 0.95
    real = share_of_real_digits(path)
    say_at_the_end(f"real digits that it reads: {real:.3f}")
    assert real >= 0.90
    right = share_of_right_digits(queue)
    say_at_the_end(f"digits guided by the classifier that was trained in ComfyUI: {right:.2f}")
    assert right >= 0.90


def share_of_real_digits(path):
    """How many of 1,000 the classifier reads, which has only seen drawn ones."""
    grey, labels = (torch.from_numpy(part[:1000]) for part in real_digits.real_digits())
    x = (grey.float() / 127.5 - 1)[:, None].expand(-1, 3, -1, -1)
    with torch.no_grad():
        seen = load_classifier(path).image_log_probs(x).argmax(dim=1)
    return float((seen == labels).float().mean())


def share_of_right_digits(queue):
    """The judge, which saw neither the classifier nor noise, reads the guided digits."""
    label = ",".join(str(index % 10) for index in range(IMAGES))
    names = {"model": "digits_adm.safetensors", "classifier_name": SAVED}
    prompt = guided_run(**names, width=32, batch=IMAGES, seed=5, steps=50)
    prompt["latent"]["inputs"]["height"] = 32
    prompt["guided"] = guidance(label, 20.0, entropy_limit=10.0)
    prompt["clean"] = classifier("digits_judge.safetensors")
    links = {"classifier": ["clean", 0], "image": ["decoded", 0]}
    ended = queue.run(prompt | {"judge": node("ClassifyImage", **links, top_k=1)})
    lines = ended.outputs["judge"]["text"][0].splitlines()
    assert len(lines) == IMAGES
    return sum(line.split()[1] == str(index % 10) for index, line in enumerate(lines)) / IMAGES
