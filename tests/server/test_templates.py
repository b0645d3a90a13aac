"""The templates that the page offers, as they are saved, in a real server."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from comfy_run import WorkflowRejected
from guidance.adm.build import build_network, shapes_of
from guidance.adm.released import RELEASED

FOLDER = Path(__file__).resolve().parents[2] / "example_workflows"
EVERY_TEMPLATE = sorted(FOLDER.glob("*.json"))
TRAINING = FOLDER / "16 Train a classifier of digits.json"
# these need no download
DIGITS = [path for path in EVERY_TEMPLATE if path.stem < "09" or path == TRAINING]
GUIDED = FOLDER / "01 Guide digits with a classifier.json"
COMPARED = FOLDER / "02 Compare guidance scales.json"
OTHER_DIGITS = [path for path in DIGITS if path not in (GUIDED, COMPARED, TRAINING)]
ANY = FOLDER / "07 Guide with any classifier.json"
WORSE = FOLDER / "12 Guide with a worse model.json"
# templates for OpenAI's models, which are not in the repository: the sides of their pictures
IMAGENET = {
    "13 Draw ImageNet at 64 px": [64],
    "14 Draw ImageNet at 256 px": [256],
    "15 Enlarge ImageNet 64 to 256 px": [64, 256],
}
# templates for checkpoints and models of other makers
YOUR_MODELS = [
    "09 Schedule CFG on your checkpoint",
    "10 Guide your checkpoint by words",
    "11 Schedule CFG for Wan 2.2",
    "12 Guide with a worse model",
]
OTHERS = [path for path in EVERY_TEMPLATE if path not in DIGITS]
LOADERS = {
    "ADMModelLoader": "diffusion_models",
    "NoisyClassifierLoader": "classifiers",
    "CheckpointLoaderSimple": "checkpoints",
    "UNETLoader": "diffusion_models",
    "CLIPLoader": "text_encoders",
    "VAELoader": "vae",
    "ZeroShotClassifier": "classifiers",
}
# the inputs that name the user's files
FILES = {
    "model_name",
    "classifier_name",
    "ckpt_name",
    "unet_name",
    "clip_name",
    "vae_name",
}
CELL, GAP = 160, 4  # pixels of Make Image Grid
# the node's widget with the number of steps, and a small number
FEW_STEPS = {"KSampler": (2, 3), "ADMScheduler": (0, "3"), "TrainNoisyClassifier": (1, 2)}


def read(path):
    return json.loads(path.read_text("utf-8"))


def shortened(path):
    """The template with few steps."""
    workflow = read(path)
    for node in workflow["nodes"]:
        if node["type"] in FEW_STEPS:
            place, steps = FEW_STEPS[node["type"]]
            node["widgets_values"][place] = steps
    return workflow


def digits_of(grid):
    """The images of a grid of five columns; none if it is another picture."""
    if grid.size != (5 * CELL + 4 * GAP, 2 * CELL + GAP):
        return []
    corners = [(column * (CELL + GAP), row * (CELL + GAP)) for row in (0, 1) for column in range(5)]
    return [grid.crop((x, y, x + CELL, y + CELL)) for x, y in corners]


def opened(run):
    """The pictures that a run saved."""
    return [Image.open(path).convert("RGB") for path in run.images]


def test_there_are_sixteen_templates():
    """Numbered, with names that the dialog shows whole; those that run at once come first.

    The training, which takes minutes, comes last.
    """
    *first, last = [path.stem for path in DIGITS]
    assert [path.stem for path in EVERY_TEMPLATE] == [*first, *YOUR_MODELS, *IMAGENET, last]
    assert [path.stem[:3] for path in EVERY_TEMPLATE] == [f"{k:02} " for k in range(1, 17)]
    assert max(len(path.stem) for path in EVERY_TEMPLATE) <= 35


@pytest.mark.parametrize("path", DIGITS, ids=lambda path: path.stem)
def test_template_runs(server, path):
    (image,) = opened(server.run(shortened(path)))
    assert min(image.size) > 300
    assert (len(digits_of(image)) == 10) == (path != COMPARED)


@pytest.mark.long
@pytest.mark.parametrize("path", OTHER_DIGITS, ids=lambda path: path.stem)
def test_template_draws_ten_digits(server, path):
    """With all its steps: ink on paper, which has a wider range than noise or a grey picture."""
    (image,) = opened(server.run(path))
    ranges = [np.ptp(np.asarray(digit.convert("L"), dtype=int)) for digit in digits_of(image)]
    assert len(ranges) == 10 and min(ranges) > 100


@pytest.mark.parametrize(
    "path", [GUIDED, pytest.param(ANY, marks=pytest.mark.long)], ids=lambda path: path.stem
)
def test_guided_digits_are_the_right_ones(server, say_at_the_end, path):
    """The template's judge, which was trained on other images than the guide, reads eight."""
    run = server.run(path)
    (node,) = (node for node in read(path)["nodes"] if node["type"] == "ClassifyImage")
    (text,) = run.outputs[str(node["id"])]["text"]
    lines = [line.split() for line in text.splitlines()]  # such as "3: 2 99.1 %"
    assert [place for place, *_ in lines] == [f"{number}:" for number in range(1, 11)]
    assert all(10 <= float(share) <= 100 for *_, share, _ in lines)  # the likeliest of ten
    right = sum(name == str(digit) for digit, (_, name, *_) in enumerate(lines))
    say_at_the_end(f"{path.stem}: the judge reads {right} of 10 guided digits right")
    assert right >= 8, text


@pytest.mark.parametrize("path", OTHERS, ids=lambda path: path.stem)
def test_other_templates_are_valid(server, path):
    """They are refused, and only because the user's files are missing."""
    workflow = read(path)
    if path == WORSE:
        _, known = server.request("/object_info")
        if "DualModelGuider" not in known:
            pytest.skip("this ComfyUI has no DualModelGuider")
    with pytest.raises(WorkflowRejected) as rejected:
        server.run(workflow)
    errors = rejected.value.details
    assert {one["field"] for one in errors} <= FILES
    assert {one["code"] for one in errors} <= {"unknown_enum_value", "no_options_available"}


@pytest.mark.parametrize("path", EVERY_TEMPLATE, ids=lambda path: path.stem)
def test_template_has_a_picture(path):
    with Image.open(path.with_suffix(".jpg")) as picture:
        assert picture.format == "JPEG" and min(picture.size) >= 100


# --- the templates for OpenAI's models ---------------------------------------------------------


def model_files(workflow):
    """The model files of the workflow's loaders, each with its folder."""
    found = set()
    for node in workflow["nodes"]:
        if node["type"] in LOADERS:
            folder, name = LOADERS[node["type"]], node["widgets_values"][0]
            if folder == "vae" and name.startswith("tae"):  # a small one, in two files
                found |= {("vae_approx", f"{name}_{half}.pth") for half in ("encoder", "decoder")}
            else:
                found.add((folder, name))
    return found


def released(file):
    """What is known of a released file."""
    (model,) = (model for model in RELEASED if model.file == file)
    return model


def write_random(path):
    """A file of the released layout in half precision."""
    generator = torch.Generator().manual_seed(len(path.name))
    shapes = shapes_of(build_network(released(path.name).layout, device="meta"))
    values = {key: torch.randn(shape, generator=generator) for key, shape in shapes.items()}
    torch.save({key: tensor.mul(0.02).half() for key, tensor in values.items()}, path)


@pytest.mark.long
@pytest.mark.parametrize("name", IMAGENET)
def test_chain_runs_with_files_of_the_released_layouts(server, name):
    """One image, few steps, random weights."""
    workflow = shortened(FOLDER / f"{name}.json")
    for node in workflow["nodes"]:
        if node["type"] == "EmptyLatentImage":
            node["widgets_values"][2] = 1
    paths = [server.base / "models" / folder / file for folder, file in model_files(workflow)]
    for path in paths:
        write_random(path)
    images = opened(server.run(workflow))
    for path in paths:
        path.unlink()
    assert sorted(image.size for image in images) == [(side, side) for side in IMAGENET[name]]
    assert all(np.asarray(image).std() > 1 for image in images)  # not one colour


@pytest.mark.parametrize("name", [*IMAGENET, *YOUR_MODELS])
def test_note_names_each_file_its_size_and_folder(name):
    workflow = read(FOLDER / f"{name}.json")
    (note,) = (node for node in workflow["nodes"] if node["type"] == "MarkdownNote")
    text = note["widgets_values"][0]
    for folder, file in model_files(workflow):
        (row,) = (line for line in text.splitlines() if line.startswith(f"| [{file}]"))
        assert f"**models/{folder}**" in row and f"/{file})" in row
        number, unit = row.split("|")[2].split()[:2]
        megabytes = float(number) * {"MB": 1, "GB": 1000}[unit]
        if name in IMAGENET:
            assert megabytes == pytest.approx(released(file).megabytes, rel=0.01)
