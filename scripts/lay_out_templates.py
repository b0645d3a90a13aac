"""Place the nodes of the templates: `python scripts/lay_out_templates.py [number ...]`.

Reads what each node needs in both renderers of ComfyUI's page, takes the larger of the two, and
puts the nodes where template_layouts.py says. To be run again after a node has become larger.
"""

from __future__ import annotations

import json
import math
import shutil
import sys
from itertools import chain
from pathlib import Path
from typing import Any

from playwright.sync_api import sync_playwright
from template_layouts import LAYOUTS, WIDE_NOTES, Group, Stages

from comfy_server import ROOT, ComfyServer
from comfyui import find_comfyui

FOLDER = ROOT / "example_workflows"
TITLE = 30  # the bar above a node's body
# between nodes; the rows leave room for the bar of an error, which Nodes 2.0 adds at the bottom
COLUMN_GAP, ROW_GAP = 60, 110
PADDING, HEADING = 24, 44  # of a group around its nodes, and for its title
GROUP_GAP = 60  # between groups
WIDTHS = {
    "VAEDecode": 240,  # Nodes 2.0 draws none narrower than 225
    "EmptyLatentImage": 270,
    "RebatchImages": 270,
    "ImageGrid": 270,
    "SaveImage": 480,
    "SaveVideo": 520,
    "ClassifyImage": 480,
    "GuidancePlot": 560,
    "CLIPTextEncode": 380,
    "CheckpointLoaderSimple": 360,
    "CLIPLoader": 380,
    "UNETLoader": 380,
    "KSamplerAdvanced": 340,
}
# room for what they show after a run
HEIGHTS = {
    "SaveImage": 320,
    "SaveVideo": 480,
    "ClassifyImage": 360,
    "GuidancePlot": 820,
    "GuidanceSchedule": 640,
    "GuidanceTrace": 300,
    "PreviewImage": 330,
    "CLIPTextEncode": 150,
}
# pictures that are about square
SQUARE = {"02", "09", "10", "12", "13", "14", "15"}
NOTE, WIDE_NOTE = 400, 620
# of groups; what the pack is about stands out
BLUE, GREEN = "#3f789e", "#4f8f5a"
OURS = {
    "ClassifierGuidance",
    "CFGScaleScheduler",
    "ClassifierFreeGuidance",
    "GuidanceScales",
    "TrainNoisyClassifier",
}
# by node: the least height of its body, drawn small; of a note, that of its whole text
NEEDS = """async () => {
    const { ds } = app.canvas;
    for (const node of app.graph.nodes) {
        node.setSize([node.size[0], 20]);
        node.setDirtyCanvas(true, true);
    }
    ds.scale = 0.2;
    ds.offset = [400, 400];
    for (let frame = 0; frame < 60; frame += 1) await new Promise(requestAnimationFrame);
    return Object.fromEntries(app.graph.nodes.map((node) => {
        const element = document.querySelector(`[data-node-id="${node.id}"]`);
        const drawn = element ? element.getBoundingClientRect().height / ds.scale - 30 : 0;
        const name = "[class*=markdown]";
        const text = element?.querySelector(name)
            ?? node.widgets?.find((one) => one.element?.matches?.(name))?.element;
        const inner = text ? [text, ...text.querySelectorAll("*")] : [];
        const whole = Math.max(0, ...inner.map((one) => one.scrollHeight)) + (text ? 40 : 0);
        return [node.id, Math.max(drawn, node.computeSize()[1], whole)];
    }));
}"""


def main(numbers: list[str]) -> int:
    paths = [
        path for path in sorted(FOLDER.glob("*.json")) if not numbers or path.name[:2] in numbers
    ]
    workflows = {path: with_widths(json.loads(path.read_text("utf-8")), path) for path in paths}
    needs = measured(list(workflows.values()))
    for (path, workflow), heights in zip(workflows.items(), needs, strict=True):
        place(workflow, path.name[:2], heights)
        path.write_text(json.dumps(workflow, indent=1, ensure_ascii=False) + "\n", "utf-8")
        print(path.name)
    return 0


def with_widths(workflow: dict, path: Path) -> dict:
    """The workflow with the width of each node."""
    for node in workflow["nodes"]:
        node["size"] = [WIDTHS.get(node["type"], 320), 20]
        if node["type"] == "MarkdownNote":
            node["size"][0] = WIDE_NOTE if path.name[:2] in WIDE_NOTES else NOTE
    return workflow


def measured(workflows: list[dict]) -> list[dict[int, float]]:
    """For each workflow the height that each node needs, in both renderers."""
    found: list[dict[int, float]] = [{} for _ in workflows]
    chromium = shutil.which("chromium") or shutil.which("google-chrome")
    with ComfyServer(find_comfyui()) as server, sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for modern in (False, True):
            tab = opened(browser, server, modern)
            for workflow, heights in zip(workflows, found, strict=True):
                tab.evaluate("(workflow) => app.loadGraphData(workflow)", workflow)
                for node, height in tab.evaluate(NEEDS).items():
                    heights[int(node)] = max(height, heights.get(int(node), 0))
        browser.close()
    return found


def opened(browser: Any, server: ComfyServer, modern: bool) -> Any:
    """The page in one of the renderers."""
    settings = {"Comfy.VueNodes.Enabled": modern, "Comfy.TutorialCompleted": True}
    for name, value in (settings | {"Comfy.InstalledVersion": "1.49.6"}).items():
        server.request(f"/api/settings/{name}", value)
    tab = browser.new_context(viewport={"width": 1400, "height": 1000}).new_page()
    tab.goto(server.url)
    ready = "() => window.app?.extensionManager?.spinner === false && app.isGraphReady"
    tab.wait_for_function(ready, timeout=60_000)
    tab.wait_for_timeout(1000)
    return tab


def place(workflow: dict, number: str, needs: dict[int, float]) -> None:
    """Sets the sizes and places of the nodes, and the groups."""
    nodes = {node["id"]: node for node in workflow["nodes"]}
    (note,) = (node for node in workflow["nodes"] if node["type"] == "MarkdownNote")
    for node in nodes.values():
        room = HEIGHTS.get(node["type"], 0)
        if node["type"] == "SaveImage" and number in SQUARE:
            room = 560
        if node["type"] == "GuidancePlot" and number == "09":
            room = 480
        node["size"][1] = 10 * math.ceil(max(needs[node["id"]], room) / 10)
    note["pos"] = [0, 0]
    stages: Stages = LAYOUTS[number]
    used = sorted(chain.from_iterable(column for group in chain(*stages) for column in group[1]))
    assert used == sorted(set(nodes) - {note["id"]}), (number, used, sorted(nodes))
    workflow["groups"] = []
    left = note["size"][0] + GROUP_GAP + PADDING
    for stage in stages:
        top, right = 0, left
        for group in stage:
            box = place_group(nodes, group, left, top)
            ours = any(nodes[one]["type"] in OURS for one in chain(*group[1]))
            colour = GREEN if ours else BLUE
            workflow["groups"].append(group_of(group[0], box, colour, len(workflow["groups"]) + 1))
            right, top = max(right, box[0] + box[2]), box[1] + box[3] + TITLE + HEADING + GROUP_GAP
        same_width(workflow["groups"][-len(stage) :], right)
        left = right + GROUP_GAP + PADDING
    workflow["extra"] = {}


def place_group(nodes: dict[int, dict], group: Group, left: int, top: int) -> list[int]:
    """Places a group's nodes from there to the right and down; the box around them."""
    x, bottom = left, top
    for column in group[1]:
        y = top
        for node in (nodes[one] for one in column):
            node["pos"] = [x, y]
            y += node["size"][1] + ROW_GAP
        bottom = max(bottom, y - ROW_GAP)
        x += max(nodes[one]["size"][0] for one in column) + COLUMN_GAP
    above = TITLE + HEADING
    width, height = x - COLUMN_GAP - left + 2 * PADDING, bottom - top + above + PADDING + 20
    return [left - PADDING, top - above, width, height]


def group_of(title: str, box: list[int], colour: str, number: int) -> dict:
    """The group as a workflow has it."""
    about = {"color": colour, "font_size": 24, "flags": {}}
    return {"id": number, "title": title, "bounding": box} | about


def same_width(groups: list[dict], right: int) -> None:
    """Groups one below the other end at the same place."""
    for group in groups:
        group["bounding"][2] = right - group["bounding"][0]


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
