"""The curve on Guidance Schedule, in both renderers."""

from __future__ import annotations

import json

import pytest

DRAWN = '{"axis": "percent", "interpolation": "linear", "points": [[0, 7.5], [0.6, 7.5], [1, 1]]}'


@pytest.fixture
def node(page):
    """A Guidance Schedule whose shape is its curve; its id."""
    added = page.add("GuidanceSchedule", 300, 60)
    page.set_value(added, "shape", "curve")
    page.page.wait_for_selector(".cg-curve circle")
    page.page.wait_for_timeout(500)
    return added


def points(page, node):
    return json.loads(page.value(node, "curve"))["points"]


def circle(page, index):
    """The middle of a point, on the screen."""
    box = page.page.locator(f'.cg-curve circle[data-index="{index}"]').bounding_box()
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def drag(page, index, dx, dy):
    x, y = circle(page, index)
    mouse = page.page.mouse
    mouse.move(x, y)
    mouse.down()
    mouse.move(x + dx / 2, y + dy / 2)
    mouse.move(x + dx, y + dy)
    mouse.up()
    page.page.wait_for_timeout(200)


def test_drag_a_point(page, node):
    before = points(page, node)
    x, y = circle(page, 1)
    drag(page, 1, -40, 30)
    after = points(page, node)
    assert after[0] == before[0] and after[2] == before[2]
    assert 0.1 < after[1][0] < before[1][0] and after[1][1] < before[1][1]
    moved = circle(page, 1)
    assert abs(moved[0] - (x - 40)) < 3 and abs(moved[1] - (y + 30)) < 12


def test_a_point_stays_between_its_neighbours(page, node):
    drag(page, 1, 2000, 0)
    positions = [position for position, _ in points(page, node)]
    assert positions == sorted(positions) and positions[1] < 1


def test_add_and_remove(page, node):
    box = page.page.locator(".cg-curve svg").bounding_box()
    page.page.mouse.dblclick(box["x"] + box["width"] * 0.35, box["y"] + box["height"] * 0.6)
    page.page.wait_for_timeout(200)
    assert len(points(page, node)) == 4
    x, y = circle(page, 1)
    page.page.mouse.click(x, y, button="right")
    page.page.wait_for_timeout(200)
    assert points(page, node) == json.loads(DRAWN)["points"]


def test_keyboard(page, node):
    page.page.locator('.cg-curve circle[data-index="1"]').focus()
    for key in ("ArrowLeft", "ArrowDown", "Shift+ArrowLeft"):
        page.page.keyboard.press(key)
    assert points(page, node)[1] == [0.49, 7.4]
    page.page.keyboard.press("+")
    assert len(points(page, node)) == 4
    page.page.keyboard.press("Delete")
    assert len(points(page, node)) == 3
    assert page.run("() => app.graph.nodes.length") == 1  # the node itself is still there


def test_undo(page, node):
    page.run(
        "() => app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()"
    )
    before = points(page, node)
    drag(page, 1, -40, 30)
    assert points(page, node) != before
    page.page.keyboard.press("Control+z")
    page.page.wait_for_timeout(1000)
    assert points(page, node) == before


def test_passes(page, node):
    said = page.page.locator(".cg-curve .cg-said")
    assert said.inner_text() == "39 of 40 passes"  # 1 at the very end
    page.set_value(node, "shape", "interval")
    page.set_value(node, "end", 0.5)
    page.page.wait_for_timeout(100)
    assert said.inner_text() == "shape: interval · 30 of 40 passes"
    sampler = page.add("KSampler", 900, 100)
    page.set_value(sampler, "steps", 40)
    page.set_value(node, "end", 0.5)
    assert "60 of 80 passes" in said.inner_text()


@pytest.mark.parametrize("respacing, steps", [("ddim50", 50), ("250", 250), ("10, 15,20", 45)])
def test_passes_of_a_respaced_run(page, node, respacing, steps):
    scheduler = page.add("ADMScheduler", 900, 100)
    page.set_value(scheduler, "respacing", respacing)
    page.set_value(node, "shape", "constant")
    page.page.wait_for_timeout(100)
    said = page.page.locator(".cg-curve .cg-said").inner_text()
    assert said == f"shape: constant · {2 * steps} of {2 * steps} passes"


def test_another_shape_is_shown_and_not_drawn_on(page, node):
    page.set_value(node, "shape", "linear")
    page.page.wait_for_timeout(200)
    assert page.page.locator(".cg-curve circle").count() == 0
    assert "cg-off" in page.page.locator(".cg-curve").get_attribute("class")


def rows(page, node):
    """The names of the widgets that can be seen."""
    return page.run(
        """(id) => {
            const widgets = app.graph.getNodeById(id).widgets.filter(w => w.name !== "per_image");
            const drawn = document.querySelector(`[data-node-id="${id}"]`);
            const there = (w) => w.name === "curve" || (drawn
                ? drawn.innerText.split("\\n").includes(w.name)
                : app.graph.getNodeById(id).isWidgetVisible(w));
            return widgets.filter(there).map(w => w.name);
        }""",
        node,
    )


@pytest.mark.parametrize(
    "shape, read",
    [
        ("constant", ["scale"]),
        ("power", ["axis", "scale", "end_scale", "start", "end", "exponent"]),
        ("interval", ["axis", "scale", "start", "end", "outside"]),
        ("last steps", ["scale", "outside", "last_steps"]),
        ("keyframes", ["axis", "keyframes"]),
        ("expression", ["expression"]),
        ("curve", []),
        ("linear rise", ["scale"]),
    ],
)
def test_only_the_inputs_of_the_shape_are_shown(page, node, shape, read):
    before = page.prompt()[str(node)]["inputs"]
    page.set_value(node, "shape", shape)
    page.page.wait_for_timeout(300)
    assert rows(page, node) == ["shape", *read, "curve"]
    assert page.prompt()[str(node)]["inputs"] == before | {"shape": shape}


def test_inputs_shown_after_a_reload(page, node, tmp_path):
    page.set_value(node, "shape", "last steps")
    path = page.save(tmp_path / "shape.json")
    page.open()
    page.load(path, "GuidanceSchedule")
    assert rows(page, node) == ["shape", "scale", "outside", "last_steps", "curve"]


def test_linked_curve_cannot_be_drawn_on(page, node):
    linked = page.run(
        """(id) => {
            const node = app.graph.getNodeById(id);
            const text = LiteGraph.createNode("PrimitiveString");
            app.graph.add(text);
            const slot = node.inputs.findIndex(i => i.widget?.name === "curve");
            text.connect(0, node, slot);
            return node.inputs[slot].link != null;
        }""",
        node,
    )
    assert linked
    page.page.wait_for_timeout(500)
    assert "cg-off" in page.page.locator(".cg-curve").get_attribute("class")
    assert page.page.locator(".cg-curve circle").count() == 0


def opened(page, path):
    """The graph of a file, opened as the user does."""
    page.load(path, "GuidanceSchedule")
    page.page.wait_for_selector(".cg-curve circle")
    return page.run("() => app.graph.nodes.find(n => n.type === 'GuidanceSchedule').id")


def test_drawn_saved_reloaded_and_run(page, node, server, tmp_path):
    """The JSON that the executed node gets is the one that was drawn."""
    drag(page, 1, -40, 30)
    drawn = page.value(node, "curve")
    path = page.save(tmp_path / "curve.json")
    page.open()
    again = opened(page, path)
    assert page.value(again, "curve") == drawn
    shown = page.run(
        """(id) => {
            const show = LiteGraph.createNode("PreviewAny");
            app.graph.add(show);
            app.graph.getNodeById(id).connect(0, show, 0);
            return show.id;
        }""",
        again,
    )
    page.queue()
    page.page.wait_for_timeout(500)
    for _ in range(60):
        _, history = server.request("/history")
        ended = [r for r in history.values() if str(shown) in r["outputs"]]
        asked = [r["prompt"][2].get(str(again), {"inputs": {}})["inputs"] for r in ended]
        if drawn in [inputs.get("curve") for inputs in asked]:
            break
        page.page.wait_for_timeout(500)
    else:
        pytest.fail("the run did not end")


def test_drawn_in_one_renderer_and_opened_in_the_other(page, node, server, renderer, tmp_path):
    drag(page, 1, -40, 30)
    drawn = page.value(node, "curve")
    path = page.save(tmp_path / "curve.json")
    server.request("/api/settings/Comfy.VueNodes.Enabled", renderer == "classic")
    page.open()
    again = opened(page, path)
    assert page.value(again, "curve") == drawn
    assert page.value(again, "shape") == "curve"
    drag(page, 1, 10, 0)
    assert page.value(again, "curve") != drawn
