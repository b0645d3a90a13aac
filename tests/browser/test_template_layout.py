"""The templates in the page: no node covers another, and nothing is missing from their files."""

from __future__ import annotations

import itertools
import json

import pytest

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
            return [node.title, ...(element
                ? [left, top, right, bottom].map(one => one / ds.scale)
                : [node.pos[0], node.pos[1] - 30, node.pos[0] + width, node.pos[1] + height])];
        });
        same = JSON.stringify(now) === JSON.stringify(last) ? same + 1 : 0;
        last = now;
    }
    return now;
}"""


def overlap(a, b):
    """Whether two boxes do, by more than rounding."""
    (_, *a), (_, *b) = a, b
    return all(min(a[k + 2], b[k + 2]) - max(a[k], b[k]) > 2 for k in (0, 1))


@pytest.fixture(scope="module")
def names(root):
    """All templates."""
    return sorted(path.stem for path in (root / "example_workflows").glob("*.json"))


def test_no_node_covers_another(page, root, names, renderer):
    covered = []
    for name in names:
        page.reset()
        workflow = json.loads((root / "example_workflows" / f"{name}.json").read_text("utf-8"))
        page.run("(workflow) => app.loadGraphData(workflow)", workflow)
        boxes = page.run(BOXES)
        assert len(boxes) == len(workflow["nodes"])
        pairs = itertools.combinations(boxes, 2)
        covered += [(name, a[0], b[0]) for a, b in pairs if overlap(a, b)]
    assert covered == []


def test_files_hold_every_widget_in_the_nodes_order(page, root, names, renderer):
    """What the page would save is what it has read."""
    for name in names:
        workflow = json.loads((root / "example_workflows" / f"{name}.json").read_text("utf-8"))
        page.run("(workflow) => app.loadGraphData(workflow)", workflow)
        saved = page.run("() => app.graph.serialize()")
        assert widgets(workflow) == widgets(saved), name


def widgets(workflow):
    """The names and the values of each node's widgets."""
    return {
        node["id"]: (
            [one["name"] for one in node.get("inputs", ()) if one.get("widget")],
            node.get("widgets_values") or [],
        )
        for node in workflow["nodes"]
    }
