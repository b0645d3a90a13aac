"""The templates for OpenAI's models, with files of their layouts and random weights in place."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from guidance.adm.build import build_network, shapes_of
from guidance.adm.released import RELEASED

WORKFLOWS = Path(__file__).resolve().parents[2] / "example_workflows"
LOADERS = {"ADMModelLoader": "diffusion_models", "NoisyClassifierLoader": "classifiers"}
# template: side of each picture it saves, in order
CHAINS = {
    "adm_64_class_conditional": [64],
    "adm_256_unconditional": [256],
    "adm_64_to_256": [64, 256],
}


def template(name):
    return json.loads((WORKFLOWS / f"{name}.json").read_text("utf-8"))


def files_of(workflow):
    """folder -> the model files that its loaders name."""
    return {
        (LOADERS[node["type"]], node["widgets_values"][0])
        for node in workflow["nodes"]
        if node["type"] in LOADERS
    }


def shortened(workflow):
    """Two steps for one image: the graph and the models are what is tested."""
    for node in workflow["nodes"]:
        values = node["widgets_values"]
        if node["type"] == "ADMScheduler":
            values[0] = "2"
        elif node["type"] == "EmptyLatentImage":
            values[2] = 1
    return workflow


def write_random(path, layout):
    """A state dict of that layout in half precision, as torch saves it."""
    generator = torch.Generator().manual_seed(len(path.name))
    tensors = {
        key: torch.randn(shape, generator=generator).mul_(0.02).half()
        for key, shape in shapes_of(build_network(layout, device="meta")).items()
    }
    torch.save(tensors, path)


@pytest.fixture
def put(server):
    """Puts a random model where a template looks for it, for as long as the test runs."""
    written = []

    def place(folder, name):
        path = server.base / "models" / folder / name
        written.append(path)
        (released,) = (model for model in RELEASED if model.file == name)
        write_random(path, released.layout)

    yield place
    for path in written:
        path.unlink()


@pytest.mark.parametrize("name", CHAINS)
def test_chain_runs_with_files_of_the_released_layouts(server, put, name):
    workflow = shortened(template(name))
    for folder, file in files_of(workflow):
        put(folder, file)
    images = [Image.open(path).convert("RGB") for path in server.run(workflow).images]
    assert sorted(image.size for image in images) == [(side, side) for side in CHAINS[name]]
    for image in images:
        assert np.asarray(image).std() > 1  # a picture of something, not one colour


@pytest.mark.parametrize("name", CHAINS)
def test_note_names_each_file_its_size_origin_and_folder(name):
    workflow = template(name)
    (note,) = (node for node in workflow["nodes"] if node["type"] == "MarkdownNote")
    text = note["widgets_values"][0]
    assert "github.com/openai/guided-diffusion" in text
    for folder, file in files_of(workflow):
        (released,) = (model for model in RELEASED if model.file == file)
        (row,) = (line for line in text.splitlines() if line.startswith(f"| [{file}]"))
        assert f"`models/{folder}`" in row
        size = row.split("|")[2].split()
        megabytes = float(size[0]) * {"MB": 1, "GB": 1000}[size[1]]
        assert megabytes == pytest.approx(released.megabytes, rel=0.01)
