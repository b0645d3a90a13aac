"""Graphs that travel from one renderer to the other: in a saved picture, and in a file."""

from __future__ import annotations

import base64
import itertools
import json

import pytest
from prompts import guided_run, ksampler, node, write_models
from schedule_inputs import SCHEDULE_INPUTS

POINT = '.cg-curve circle[data-index="1"]'
CURVE = '{"axis":"percent","interpolation":"cosine","points":[[0,6],[0.45,6],[0.8,1]],"outside":1}'
# the file is dropped on the empty canvas
DROP = """async (data) => {
    const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
    const transfer = new DataTransfer();
    transfer.items.add(new File([bytes], "drawn.png", { type: "image/png" }));
    const options = { dataTransfer: transfer, bubbles: true, cancelable: true,
        clientX: 400, clientY: 900 };
    const canvas = document.querySelector("#graph-canvas");
    canvas.dispatchEvent(new DragEvent("dragover", options));
    canvas.dispatchEvent(new DragEvent("drop", options));
}"""

ANY = "07 Guide with any classifier.json"

seeds = itertools.count(2000)


@pytest.fixture
def curve(page, server):
    """A small run with a schedule; the user has moved a point of its curve. The curve."""
    write_models(server.base)
    prompt = guided_run(model="labels.safetensors", positive="1")
    inputs = SCHEDULE_INPUTS | {"shape": "curve", "curve": CURVE}
    prompt["schedule"] = node("GuidanceSchedule", **inputs)
    prompt["cfg"] = node("CFGScaleScheduler", model=["guided", 0], schedule=["schedule", 0])
    prompt["sampled"] = ksampler("cfg", seed=next(seeds), cfg=2.0)
    prompt["shown"] = node("SaveImage", images=["decoded", 0], filename_prefix="shared")
    page.build(prompt)
    press(page, "schedule", "ArrowLeft")
    moved = page.value("schedule", "curve")
    assert json.loads(moved)["points"] == [[0, 6], [0.44, 6], [0.8, 1]]
    return moved


def press(page, schedule, key):
    """Presses a key on a point of the curve."""
    page.show(schedule)
    page.box(POINT)
    page.focus(POINT)
    page.tab.keyboard.press(key)


def shape_of(prompt):
    """The nodes with their values and links, without the ids, which a page may change."""
    return sorted(
        json.dumps([one["class_type"], one["inputs"]], sort_keys=True) for one in prompt.values()
    )


def schedule_of(prompt):
    """The curve of the prompt's only schedule."""
    (one,) = (one for one in prompt.values() if one["class_type"] == "GuidanceSchedule")
    return one["inputs"]["curve"]


def test_a_saved_picture_is_dropped_on_an_empty_canvas(page, other_page, curve, server):
    """The run used the curve as it was drawn, and its picture brings it back."""
    before = page.prompt()
    run = page.queue()
    assert run["status"]["status_str"] == "success"
    assert schedule_of(run["prompt"][2]) == schedule_of(before) == curve
    (image,) = (i for shown in run["outputs"].values() for i in shown.get("images", []))
    file = server.base / image["type"] / image["subfolder"] / image["filename"]
    other_page.run(DROP, base64.b64encode(file.read_bytes()).decode())
    other_page.wait("(count) => app.graph.nodes.length === count", len(before))
    assert shape_of(other_page.prompt()) == shape_of(before)


def test_a_saved_workflow_is_opened(page, other_page, curve, tmp_path):
    schedule = other_page.load(page.save(tmp_path / "shared.json"), "GuidanceSchedule")
    assert shape_of(other_page.prompt()) == shape_of(page.prompt())
    press(other_page, schedule, "ArrowRight")
    assert json.loads(schedule_of(other_page.prompt())) == json.loads(CURVE)


def test_graphs_saved_before_an_input_existed_keep_what_they_did(page, root, tmp_path, server):
    """New nodes normalise the gradient of clean classifiers and take looks; old graphs do not."""
    write_models(server.base)
    (values,) = (
        one["widgets_values"]
        for one in json.loads((root / "example_workflows" / ANY).read_text("utf-8"))["nodes"]
        if one["type"] == "ClassifierGuidance"
    )
    before = {"ClassifierGuidance": values[:6], "ImageClassifierLoader": ["x", "cheap", "auto"]}
    before["GuidanceSchedule"] = ["interval", "percent", 7.5, 1.0]
    workflow = {"last_node_id": 2, "last_link_id": 0, "links": [], "version": 0.4, "nodes": []}
    for number, (kind, old) in enumerate(before.items(), 1):
        about = {"id": number, "type": kind, "pos": [400 * number, 100], "size": [300, 200]}
        workflow["nodes"].append(about | {"flags": {}, "mode": 0, "widgets_values": old})
    path = tmp_path / "old.json"
    path.write_text(json.dumps(workflow), "utf-8")
    page.load(path, "ClassifierGuidance")
    assert [page.value(1, "normalize"), page.value(2, "looks")] == ["off", 0]
    assert [page.value(3, "start"), page.value(3, "end")] == [0, 1]
    new = page.add("ClassifierGuidance"), page.add("ImageClassifierLoader")
    assert [page.value(new[0], "normalize"), page.value(new[1], "looks")] == ["auto", 4]
    # saved and opened once more, each stays what it is
    page.load(page.save(tmp_path / "new.json"), "ClassifierGuidance")
    found = [page.value(node, name) for node, name in ((1, "normalize"), (new[0], "normalize"))]
    assert found == ["off", "auto"]
    assert [page.value(2, "looks"), page.value(new[1], "looks")] == [0, 4]
