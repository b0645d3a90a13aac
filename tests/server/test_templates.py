"""The templates that the page offers, as they are saved, in a real server."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from guidance.adm.build import build_network, shapes_of
from guidance.adm.released import RELEASED

FOLDER = Path(__file__).resolve().parents[2] / "example_workflows"
EVERY_TEMPLATE = sorted(FOLDER.glob("*.json"))
DIGITS = [path for path in EVERY_TEMPLATE if "digits" in path.stem]
GUIDED = FOLDER / "classifier_guided_digits.json"
# templates for OpenAI's models, which are not in the repository: the sides of their pictures
IMAGENET = {
    "adm_64_class_conditional": [64],
    "adm_256_unconditional": [256],
    "adm_64_to_256": [64, 256],
}
NOTES = {"MarkdownNote", "Note"}  # nodes of the page alone
LOADERS = {
    "ADMModelLoader": ("model_name", "diffusion_models"),
    "NoisyClassifierLoader": ("classifier_name", "classifiers"),
}
CONTROLS = {"fixed", "increment", "decrement", "randomize"}
WIDGETS = {"COMBO", "INT", "FLOAT", "STRING", "BOOLEAN"}
# node: which of its widget values is the number of steps, and a small one
FEW_STEPS = {"KSampler": (2, 3), "ADMScheduler": (0, "3")}

every_template = pytest.mark.parametrize("path", EVERY_TEMPLATE, ids=lambda path: path.stem)
each_imagenet = pytest.mark.parametrize("name", IMAGENET)


def read(path):
    return json.loads(path.read_text("utf-8"))


def nodes_of(workflow):
    """The nodes that the server knows."""
    return [node for node in workflow["nodes"] if node["type"] not in NOTES]


def shortened(workflow):
    """The same graph with few steps."""
    for node in workflow["nodes"]:
        if node["type"] in FEW_STEPS:
            place, steps = FEW_STEPS[node["type"]]
            node["widgets_values"][place] = steps
    return workflow


def opened(run):
    """The pictures that a run saved."""
    return [Image.open(path).convert("RGB") for path in run.images]


def test_there_are_templates_of_digits_of_imagenet_and_one_that_trains():
    assert GUIDED in DIGITS and len(DIGITS) == 6
    assert len(EVERY_TEMPLATE) == len(DIGITS) + len(IMAGENET) + 1


@pytest.mark.parametrize("path", DIGITS, ids=lambda path: path.stem)
def test_template_runs(server, path):
    images = opened(server.run(shortened(read(path))))
    assert [image.size for image in images] == [(32, 32)] * 10


@pytest.mark.long
@pytest.mark.parametrize("path", set(DIGITS) - {GUIDED}, ids=lambda path: path.stem)
def test_template_draws_ten_digits(server, path):
    """With all its steps: ink on paper, which has a wider range than noise or a grey picture."""
    images = opened(server.run(path))
    ranges = [np.ptp(np.asarray(image.convert("L"), dtype=int)) for image in images]
    assert len(ranges) == 10 and min(ranges) > 100


def test_guided_digits_are_the_right_ones(server, say_at_the_end):
    """The template's judge, which saw neither of the other two models, reads eight of ten."""
    run = server.run(GUIDED)
    (node,) = (node for node in nodes_of(read(GUIDED)) if node["type"] == "ClassifyImage")
    (text,) = run.outputs[str(node["id"])]["text"]
    lines = [line.split() for line in text.splitlines()]  # such as "3: 2 99.1 %"
    assert [place for place, *_ in lines] == [f"{number}:" for number in range(1, 11)]
    assert all(10 <= float(share) <= 100 for *_, share, _ in lines)  # the likeliest of ten
    right = sum(name == str(digit) for digit, (_, name, *_) in enumerate(lines))
    say_at_the_end(f"The judge reads {right} of 10 guided digits right")
    assert right >= 8, text


# --- the files of the templates against the server's nodes -------------------------------------


@pytest.fixture(scope="module")
def known(server):
    """/object_info: the server's nodes and their inputs."""
    # a folder of digits, as the template that trains names it
    (server.base / "input" / "digits" / "0").mkdir(parents=True, exist_ok=True)
    return server.request("/object_info")[1]


def widgets(node, about):
    """(name, kind, options, value) of every widget, read as the page reads them: by place."""
    values = iter(node.get("widgets_values") or [])
    for group in ("required", "optional"):
        for name in about["input_order"].get(group, []):
            kind, *rest = about["input"][group][name]
            options = rest[0] if rest else {}
            if isinstance(kind, list):
                kind, options = "COMBO", {"options": kind, **options}
            if kind not in WIDGETS or options.get("forceInput"):
                continue
            yield name, kind, options, next(values)
            if options.get("control_after_generate"):
                yield "control", "COMBO", {"options": sorted(CONTROLS)}, next(values)
    assert list(values) == [], f"{node['type']} has values that no widget takes"


def allowed(name, kind, options, value, imagenet):
    """Whether a widget takes a value."""
    if kind == "COMBO":
        needs_download = imagenet and name in ("model_name", "classifier_name")
        return value.endswith(".pt") if needs_download else value in options["options"]
    if kind in ("INT", "FLOAT"):
        return not isinstance(value, bool) and options["min"] <= value <= options["max"]
    return isinstance(value, {"STRING": str, "BOOLEAN": bool}[kind])


@every_template
def test_widget_values_are_allowed(known, path):
    checked = 0
    for node in nodes_of(read(path)):
        for widget in widgets(node, known[node["type"]]):
            assert allowed(*widget, path.stem in IMAGENET), (node["type"], *widget)
            checked += 1
    assert checked > 10


@every_template
def test_links_join_what_fits(known, path):
    """Every required socket has a link, and both of its ends are of one type."""
    workflow = read(path)
    nodes = {node["id"]: node for node in nodes_of(workflow)}
    for _, source, output, target, slot, _ in workflow["links"]:
        inputs = known[nodes[target]["type"]]["input"]
        name = nodes[target]["inputs"][slot]["name"]
        kind = {**inputs["required"], **inputs.get("optional", {})}[name][0]
        assert known[nodes[source]["type"]]["output"][output] == kind
    for node in nodes.values():
        required = known[node["type"]]["input"].get("required", {}).items()
        sockets = {name for name, (kind, *_) in required if isinstance(kind, str)}
        sockets -= {name for name, (kind, *_) in required if str(kind) in WIDGETS}
        assert sockets <= {one["name"] for one in node["inputs"] if one["link"] is not None}


@every_template
def test_template_has_a_picture(path):
    with Image.open(path.with_suffix(".jpg")) as picture:
        assert picture.format == "JPEG" and min(picture.size) >= 100


# --- the templates for OpenAI's models ---------------------------------------------------------


def model_files(workflow):
    """The model files of the workflow's loaders, each with its folder."""
    loaders = [node for node in workflow["nodes"] if node["type"] in LOADERS]
    return {(LOADERS[node["type"]][1], node["widgets_values"][0]) for node in loaders}


def released(file):
    """What is known of a released file."""
    (model,) = (model for model in RELEASED if model.file == file)
    return model


def write_random(path, layout):
    """A state dict of that layout in half precision."""
    generator = torch.Generator().manual_seed(len(path.name))
    shapes = shapes_of(build_network(layout, device="meta"))
    torch.save(
        {
            key: torch.randn(shape, generator=generator).mul_(0.02).half()
            for key, shape in shapes.items()
        },
        path,
    )


@pytest.mark.long
@each_imagenet
def test_chain_runs_with_files_of_the_released_layouts(server, name):
    """One image, two steps, random weights."""
    workflow = shortened(read(FOLDER / f"{name}.json"))
    for node in workflow["nodes"]:
        if node["type"] == "EmptyLatentImage":
            node["widgets_values"][2] = 1
    paths = [server.base / "models" / folder / file for folder, file in model_files(workflow)]
    for path in paths:
        write_random(path, released(path.name).layout)
    images = opened(server.run(workflow))
    for path in paths:
        path.unlink()
    assert sorted(image.size for image in images) == [(side, side) for side in IMAGENET[name]]
    assert all(np.asarray(image).std() > 1 for image in images)  # not one colour


@each_imagenet
def test_note_names_each_file_its_size_and_folder(name):
    workflow = read(FOLDER / f"{name}.json")
    (note,) = (node for node in workflow["nodes"] if node["type"] == "MarkdownNote")
    text = note["widgets_values"][0]
    assert "github.com/openai/guided-diffusion" in text
    for folder, file in model_files(workflow):
        (row,) = (line for line in text.splitlines() if line.startswith(f"| [{file}]"))
        assert f"`models/{folder}`" in row
        number, unit = row.split("|")[2].split()[:2]
        megabytes = float(number) * {"MB": 1, "GB": 1000}[unit]
        assert megabytes == pytest.approx(released(file).megabytes, rel=0.01)
