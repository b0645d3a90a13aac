"""The templates that the page offers, as they are saved, in a real server."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

ROOT = Path(__file__).resolve().parents[2]
EVERY_TEMPLATE = sorted((ROOT / "example_workflows").glob("*.json"))
# the others need OpenAI's files: test_adm_templates.py
TEMPLATES = [path for path in EVERY_TEMPLATE if "digits" in path.stem]
GUIDED = "classifier_guided_digits"
NOTES = {"MarkdownNote", "Note"}  # the page's own
CONTROLS = {"fixed", "increment", "decrement", "randomize"}
WIDGETS = {"COMBO", "INT", "FLOAT", "STRING", "BOOLEAN"}
DEMO_MODELS = {
    ("ADMModelLoader", "model_name"): {"digits_adm.safetensors"},
    ("NoisyClassifierLoader", "classifier_name"): {
        "digits_classifier.safetensors",
        "digits_judge.safetensors",
    },
}

MODEL_FILES = {name for _, name in DEMO_MODELS}

each_template = pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.stem)
every_template = pytest.mark.parametrize("path", EVERY_TEMPLATE, ids=lambda path: path.stem)


@pytest.fixture(scope="module")
def run(server):
    """Runs a template once, whatever many tests look at it."""
    runs = {}

    def once(path):
        if path.stem not in runs:
            runs[path.stem] = server.run(path)
        return runs[path.stem]

    return once


@pytest.fixture(scope="module")
def known(server):
    """/object_info: the server's nodes and their inputs."""
    # what a folder of digits looks like; test_train_template.py has the pictures
    (server.base / "input" / "digits" / "0").mkdir(parents=True, exist_ok=True)
    return server.request("/object_info")[1]


def nodes_of(path):
    return [node for node in json.loads(path.read_text("utf-8"))["nodes"]]


def widgets(node, about):
    """(name, options, value) of every widget, read as the page reads them: by place."""
    values = iter(node.get("widgets_values", []))  # a node without widgets saves none
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


def test_there_are_six_templates_of_digits_one_that_trains_and_three_of_imagenet():
    assert (len(TEMPLATES), len(EVERY_TEMPLATE)) == (6, 10)
    assert GUIDED in [path.stem for path in TEMPLATES]


@each_template
def test_template_draws_ten_digits(run, server, path):
    images = run(path).images
    assert len(images) == 10
    for file in images:
        with Image.open(file) as image:
            assert (image.format, image.size) == ("PNG", (32, 32))
            # noise and a failed run have no such range: ink on paper has both ends
            low, high = image.convert("L").getextrema()
            assert high - low > 100
    assert "IMPORT FAILED" not in server.log


@every_template
def test_template_has_a_picture(path):
    with Image.open(path.with_suffix(".jpg")) as picture:
        assert picture.format == "JPEG"
        assert min(picture.size) >= 100


@every_template
def test_every_node_is_known(known, path):
    unknown = {node["type"] for node in nodes_of(path)} - known.keys() - NOTES
    assert not unknown


@every_template
def test_widget_values_are_allowed(known, path):
    checked = 0
    for node in nodes_of(path):
        if node["type"] in NOTES:
            continue
        for name, kind, options, value in widgets(node, known[node["type"]]):
            where = f"{node['type']}.{name} is {value!r}"
            if kind == "COMBO" and name in MODEL_FILES and path.stem.startswith("adm_"):
                assert value.endswith(".pt"), where
            elif kind == "COMBO":
                assert value in options["options"], where
            elif kind in ("INT", "FLOAT"):
                assert not isinstance(value, bool), where
                assert options["min"] <= value <= options["max"], where
            else:
                assert isinstance(value, {"STRING": str, "BOOLEAN": bool}[kind]), where
            checked += 1
    assert checked > 10


@every_template
def test_links_join_what_fits(known, path):
    """Every required socket has a link, and both of its ends are of one type."""
    workflow = json.loads(path.read_text("utf-8"))
    nodes = {node["id"]: node for node in workflow["nodes"]}
    ends = {link: (nodes[a], out, nodes[b], into) for link, a, out, b, into, _ in workflow["links"]}
    for source, out, target, into in ends.values():
        wanted = target["inputs"][into]
        groups = known[target["type"]]["input"]
        kind = {**groups["required"], **groups.get("optional", {})}[wanted["name"]][0]
        assert known[source["type"]]["output"][out] == kind
    for node in nodes.values():
        if node["type"] in NOTES:
            continue
        linked = {entry["name"] for entry in node["inputs"] if entry["link"] is not None}
        sockets = {
            name
            for name, (kind, *_) in known[node["type"]]["input"].get("required", {}).items()
            if not isinstance(kind, list) and kind not in WIDGETS
        }
        assert sockets <= linked


@pytest.mark.parametrize("node, name", DEMO_MODELS)
def test_demo_models_are_offered(known, node, name):
    offered = known[node]["input"]["required"][name][1]["options"]
    assert DEMO_MODELS[node, name] <= set(offered)


def judged(run):
    """What ClassifyImage said in the first template: a class for each image."""
    (path,) = (path for path in TEMPLATES if path.stem == GUIDED)
    (node,) = (node for node in nodes_of(path) if node["type"] == "ClassifyImage")
    (text,) = run(path).outputs[str(node["id"])]["text"]
    return text.splitlines()


def test_classify_image_names_the_digits(run):
    lines = judged(run)
    assert len(lines) == 10
    for number, line in enumerate(lines, 1):
        place, name, share, percent = line.split()
        assert (place, percent) == (f"{number}:", "%")
        assert name in "0123456789"
        assert 10 <= float(share) <= 100  # the most likely of ten classes


def test_guided_digits_are_the_asked_ones(run, say_at_the_end):
    """The judge, which never saw the other two models, recognises at least eight of ten."""
    asked = [str(digit) for digit in range(10)]
    seen = [line.split()[1] for line in judged(run)]
    right = sum(a == b for a, b in zip(asked, seen, strict=True))
    say_at_the_end(f"The judge reads {right} of 10 guided digits as asked: {save_grids(run)}")
    assert right >= 8, seen


def save_grids(run):
    """A picture of what the templates drew, a row for each; its path."""
    rows = [np.hstack([np.asarray(Image.open(file)) for file in run(p).images]) for p in TEMPLATES]
    target = ROOT / "output" / "tested_templates.png"
    target.parent.mkdir(exist_ok=True)
    Image.fromarray(np.vstack(rows)).save(target)
    return target.relative_to(ROOT).as_posix()
