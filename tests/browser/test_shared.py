"""Graphs that travel: in a saved picture, and from one renderer to the other."""

from __future__ import annotations

import base64
import json

import pytest

CURVE = '{"axis":"percent","interpolation":"cosine","points":[[0,6],[0.45,6],[0.8,1]],"outside":1}'


@pytest.fixture
def scheduled(page, root):
    """The CFG template with a drawn schedule, a trace, and a label of names."""
    page.load(root / "example_workflows" / "classifier_free_guided_digits.json", "ADMModelLoader")
    page.run(
        """(curve) => {
            const loader = app.graph.nodes.find(n => n.type === "ADMModelLoader");
            const schedule = LiteGraph.createNode("GuidanceSchedule");
            const cfg = LiteGraph.createNode("CFGScaleScheduler");
            app.graph.add(schedule);
            app.graph.add(cfg);
            schedule.widgets.find(w => w.name === "shape").value = "curve";
            schedule.widgets.find(w => w.name === "curve").value = curve;
            const ends = app.graph.nodes.filter(
                n => ["KSampler", "ClassifierFreeGuidance"].includes(n.type));
            for (const end of ends)
                cfg.connect(0, end, end.inputs.findIndex(i => i.name === "model"));
            loader.connect(0, cfg, 0);
            schedule.connect(0, cfg, cfg.inputs.findIndex(i => i.name === "schedule"));
            for (const node of app.graph.nodes)
                for (const widget of node.widgets ?? [])
                    if (widget.name === "steps") widget.value = 3;
        }""",
        CURVE,
    )
    page.page.wait_for_timeout(300)


def shape_of(prompt):
    """The nodes with their values and links, without the ids that a page may change."""
    return sorted(
        json.dumps([n["class_type"], n["inputs"]], sort_keys=True) for n in prompt.values()
    )


def flip(page, server, renderer):
    """The other renderer, with an empty canvas."""
    server.request("/api/settings/Comfy.VueNodes.Enabled", renderer == "classic")
    page.open()
    page.clear()


def test_a_saved_picture_dropped_on_an_empty_canvas(page, scheduled, server, renderer):
    before = page.prompt()
    _, history = server.request("/history")
    page.queue()
    for _ in range(120):
        page.page.wait_for_timeout(500)
        _, now = server.request("/history")
        runs = [run for key, run in now.items() if key not in history]
        images = [i for r in runs for o in r["outputs"].values() for i in o.get("images", [])]
        if images:
            break
    else:
        pytest.fail("the run did not end")
    file = server.base / images[0]["type"] / images[0]["subfolder"] / images[0]["filename"]
    flip(page, server, renderer)
    page.run(
        """async (data) => {
            const bytes = Uint8Array.from(atob(data), c => c.charCodeAt(0));
            const transfer = new DataTransfer();
            transfer.items.add(new File([bytes], "drawn.png", { type: "image/png" }));
            const options = { dataTransfer: transfer, bubbles: true, cancelable: true,
                clientX: 400, clientY: 900 };
            const canvas = document.querySelector("#graph-canvas");
            canvas.dispatchEvent(new DragEvent("dragover", options));
            canvas.dispatchEvent(new DragEvent("drop", options));
        }""",
        base64.b64encode(file.read_bytes()).decode(),
    )
    page.page.wait_for_selector(".cg-curve circle", state="attached", timeout=20_000)
    page.page.wait_for_timeout(500)
    assert shape_of(page.prompt()) == shape_of(before)


def test_a_workflow_opened_in_the_other_renderer(page, scheduled, server, renderer, tmp_path):
    before = page.prompt()
    path = page.save(tmp_path / "shared.json")
    flip(page, server, renderer)
    page.load(path, "GuidanceSchedule")
    page.page.wait_for_selector(".cg-curve circle", state="attached", timeout=20_000)
    page.page.wait_for_timeout(500)
    after = page.prompt()
    assert shape_of(after) == shape_of(before)
    (schedule,) = [n for n in after.values() if n["class_type"] == "GuidanceSchedule"]
    assert schedule["inputs"]["curve"] == CURVE
