"""The templates in the page: nodes keep their distance, wires run to the right, files are whole."""

from __future__ import annotations

import io
import itertools
import json
import os

import pytest
from PIL import Image

# All nodes in sight; the boxes of their titles and bodies, in the graph's units.
BOXES = """async () => {
    const { ds } = app.canvas, boxes = app.graph.nodes.map(node => node.getBounding());
    const ends = (k, most) => Math[most](...boxes.map(b => b[k] + (most === "max" ? b[k + 2] : 0)));
    const [x, y] = [ends(0, "min"), ends(1, "min")];
    ds.scale = Math.min(1, 1200 / (ends(0, "max") - x), 800 / (ends(1, "max") - y));
    ds.offset = [60 / ds.scale - x, 100 / ds.scale - y];
    app.canvas.setDirty(true, true);
    let last, now, same = 0;
    while (same < 5) {
        await new Promise(requestAnimationFrame);
        now = app.graph.nodes.map(node => {
            const element = document.querySelector(`[data-node-id="${node.id}"]`);
            const { left, top, right, bottom } = element?.getBoundingClientRect() ?? {};
            const [width, height] = node.computeSize().map((one, k) => Math.max(one, node.size[k]));
            return [node.id, ...(element
                ? [left, top, right, bottom].map(one => one / ds.scale)
                : [node.pos[0], node.pos[1] - 30, node.pos[0] + width, node.pos[1] + height])];
        });
        same = JSON.stringify(now) === JSON.stringify(last) ? same + 1 : 0;
        last = now;
    }
    return now;
}"""


GAP = 40
# Every node with a list has an error, as after a run with files that are missing.
FAIL = """async () => {
    for (const widget of app.graph.nodes.flatMap((node) => node.widgets ?? [])) {
        if (widget.type === "combo" && widget.name !== "control_after_generate") {
            widget.value = "missing";
        }
    }
    await app.queuePrompt(0);
}"""
FEW_STEPS = {
    "KSampler": {"steps": 2},
    "ADMScheduler": {"respacing": "2"},
    "TrainNoisyClassifier": {"steps": 2},
}


def close(a, b):
    """Whether two boxes are, by more than rounding."""
    (_, *a), (_, *b) = a, b
    return all(min(a[k + 2], b[k + 2]) - max(a[k], b[k]) > 2 - GAP for k in (0, 1))


def too_close(boxes):
    """The pairs of nodes without a gap between them."""
    return [(a[0], b[0]) for a, b in itertools.combinations(boxes, 2) if close(a, b)]


def backward(workflow, boxes):
    """The wires that do not run to the right."""
    found = {str(node): box for node, *box in boxes}
    ends = [(found[str(link[1])], found[str(link[3])], link) for link in workflow["links"]]
    return [link for source, target, link in ends if source[2] > target[0]]


def open_template(page, root, name):
    """Opens a template; its file."""
    workflow = json.loads((root / "example_workflows" / f"{name}.json").read_text("utf-8"))
    page.run("(workflow) => app.loadGraphData(workflow)", workflow)
    return workflow


def widgets(workflow):
    """The names and the values of each node's widgets."""
    return {
        node["id"]: (
            [one["name"] for one in node.get("inputs", ()) if one.get("widget")],
            node.get("widgets_values") or [],
        )
        for node in workflow["nodes"]
    }


@pytest.fixture(params=["classic", pytest.param("Nodes 2.0", marks=pytest.mark.long)])
def renderer(request):
    """Which of the page's two renderers; both take two minutes."""
    return request.param


@pytest.fixture(scope="module")
def names(root):
    """All templates."""
    return sorted(path.stem for path in (root / "example_workflows").glob("*.json"))


def test_nodes_keep_their_distance_and_wires_run_to_the_right(page, root, names, renderer):
    """Also with the bars of errors, which Nodes 2.0 adds.

    And what the page would save is what it has read: every widget, in the nodes' order.
    """
    found = {}
    for name in names:
        workflow = open_template(page, root, name)
        assert widgets(workflow) == widgets(page.run("() => app.graph.serialize()")), name
        boxes = page.run(BOXES)
        assert len(boxes) == len(workflow["nodes"])
        found[name] = [*too_close(boxes), *backward(workflow, boxes)]
        if renderer != "classic":
            page.run(FAIL)
            found[name] += too_close(page.run(BOXES))
    page.errors.clear()  # the page tells of the refused prompts
    assert {name: pairs for name, pairs in found.items() if pairs} == {}


RUN = [1, *(pytest.param(number, marks=pytest.mark.long) for number in (*range(2, 9), 16))]


@pytest.mark.parametrize("number", RUN)
def test_nodes_keep_their_distance_after_a_run(page, root, names, renderer, number):
    """Of the templates that need no download, with their results on the nodes."""
    open_template(page, root, names[number - 1])
    for node, kind in page.run("() => app.graph.nodes.map(node => [node.id, node.type])"):
        if kind in FEW_STEPS:
            page.set_values(node, **FEW_STEPS[kind])
    assert page.queue()["status"]["status_str"] == "success"
    page.wait("() => app.graph.nodes.some(n => n.type === 'SaveImage' && n.images?.length)")
    page.tab.wait_for_timeout(500)  # the page loads the picture
    assert too_close(page.run(BOXES)) == []


def test_the_dialog_lists_templates_by_their_numbers(page, names):
    listed = page.run(
        "async () => (await (await import('/scripts/api.js')).api.getWorkflowTemplates())"
    )
    assert listed["classifier-guidance"] == names


# the whole graph in sight, without the page's own bars
FIT = """async () => {
    const { ds } = app.canvas, boxes = app.graph.groups.map(group => [...group.boundingRect]);
    const note = app.graph.nodes.find(node => node.type === "MarkdownNote");
    const [x, y] = [note.pos[0] - 24, Math.min(...boxes.map(box => box[1])) - 24];
    const right = Math.max(...boxes.map(box => box[0] + box[2])) + 24;
    const bottom = Math.max(...boxes.map(box => box[1] + box[3])) + 24;
    ds.scale = Math.min(1740 / (right - x), 820 / (bottom - y));
    ds.offset = [60 / ds.scale - x, 110 / ds.scale - y];
    app.canvas.setDirty(true, true);
    for (let frame = 0; frame < 60; frame += 1) await new Promise(requestAnimationFrame);
    return [60, 110, (right - x) * ds.scale, (bottom - y) * ds.scale];
}"""


@pytest.mark.long
@pytest.mark.parametrize("palette", ["dark", "light"])
@pytest.mark.parametrize("renderer", ["Nodes 2.0"])
def test_pictures_of_a_template(page, root, names, palette):
    """A template after a run; UPDATE_PICTURES=1 writes its picture to docs/screens."""
    set_palette = "(name) => app.extensionManager.setting.set('Comfy.ColorPalette', name)"
    size = page.tab.viewport_size
    page.tab.set_viewport_size({"width": 1900, "height": 1100})
    page.run(set_palette, palette)
    open_template(page, root, names[1])
    page.set_values(6, seed=1)  # as any run: the pictures of both palettes are of one
    assert page.queue(seconds=400)["status"]["status_str"] == "success"
    page.tab.wait_for_timeout(4000)  # the page's note of the end goes away
    page.run("() => app.extensionManager.setting.set('Comfy.Minimap.Visible', false)")
    box = dict(zip(("x", "y", "width", "height"), page.run(FIT), strict=True))
    with Image.open(io.BytesIO(page.tab.screenshot(clip=box))) as screen:
        picture = screen.convert("RGB").quantize(255)
    page.run(set_palette, "dark")
    page.tab.set_viewport_size(size)
    if os.environ.get("UPDATE_PICTURES"):
        picture.save(root / "docs" / "screens" / f"template_{palette}.png", optimize=True)
