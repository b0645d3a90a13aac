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
    answered(page)  # which leaves the focus where it is
    page.page.keyboard.press("ArrowUp")
    assert points(page, node)[1] == [0.49, 7.5]


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


ROUTE = "**/classifier_guidance/schedule"
TYPO = "1 + 6.5 * (1 - percnt)"
SAID = "there is no 'percnt'"


def shown(page, node, **values):
    """Sets widgets; what the curve says when the server has answered."""
    for name, value in values.items():
        page.set_value(node, name, value)
    answered(page)
    return page.page.locator(".cg-curve .cg-said").inner_text()


def answered(page):
    """Waits for what was asked last."""
    page.page.wait_for_function(
        """() => app.graph.nodes.flatMap(n => n.widgets ?? []).filter(w => w.editor).every(
            w => w.editor.fresh)"""
    )


def words(page):
    return page.page.locator(".cg-curve .cg-words").inner_text()


def drawn(page):
    """How many lines and shaded intervals there are."""
    count = [page.page.locator(f".cg-curve svg {name}").count() for name in ("polyline", "rect")]
    return tuple(count)


def test_every_shape_is_drawn(page, node):
    """As the server reads it; greyed."""
    assert shown(page, node, shape="expression") == "shape: expression · 39 of 40 passes"
    assert drawn(page) == (1, 1)
    assert "cg-off" in page.page.locator(".cg-curve").get_attribute("class")
    assert shown(page, node, shape="last steps") == "shape: last steps · 25 of 40 passes"
    assert shown(page, node, shape="linear rise") == "shape: linear rise · 39 of 40 passes"
    assert shown(page, node, shape="keyframes") == "shape: keyframes · 39 of 40 passes"
    assert shown(page, node, keyframes="7, 1, 7, 1") == "shape: keyframes · 6 of 8 passes"
    assert drawn(page) == (1, 2) and words(page) == ""
    assert shown(page, node, shape="interval for SDXL") == "shape: interval for SDXL"
    assert drawn(page) == (1, 1) and "the model decides" in words(page)
    axis = page.page.locator(".cg-curve svg text").all_text_contents()
    assert axis[-4:] == ["0.1", "1", "10", "sigma"]


def test_a_curve_without_points_is_shown(page, node):
    """Its JSON may be any schedule; the points come back with one that has them."""
    assert shown(page, node, curve='{"axis": "step", "last": 5, "scale": 4}') == "25 of 40 passes"
    assert drawn(page) == (1, 1) and page.page.locator(".cg-curve circle").count() == 0
    shown(page, node, curve="{")
    assert "not readable JSON" in words(page) and drawn(page) == (0, 0)
    assert shown(page, node, curve=DRAWN) == "39 of 40 passes"
    assert page.page.locator(".cg-curve circle").count() == 3 and words(page) == ""


def test_error_is_said_as_one_types(page, node, renderer):
    shown(page, node, shape="expression", expression="1 + percent")
    if renderer == "classic":  # the page tells when its dialog is closed
        page.set_value(node, "expression", TYPO)
    else:
        page.page.locator("[data-node-id] input[type=text]").first.fill(TYPO)
    page.page.wait_for_selector(".cg-words.cg-wrong")
    assert SAID in words(page) and drawn(page) == (0, 0)
    assert page.page.locator(".cg-curve .cg-said").inner_text() == "shape: expression"
    text = page.page.locator(".cg-curve .cg-words")
    # all of it can be read
    assert text.evaluate("e => e.scrollWidth <= e.clientWidth && e.scrollHeight <= e.clientHeight")
    assert shown(page, node, expression="3") == "shape: expression · 40 of 40 passes"
    assert words(page) == "" and drawn(page) == (1, 1)
    # also where the page knows the line by itself
    shown(page, node, shape="interval", start=0.8, end=0.2)
    assert "0.8 to 0.2; their positions must rise" in words(page)
    assert drawn(page) == (0, 0)


def test_error_leaves_the_points(page, node):
    """A factor for each image that is none does not keep one from drawing."""
    shown(page, node, per_image="1; 2")
    assert "per_image is '1; 2'" in words(page)
    before = points(page, node)
    drag(page, 1, -40, 10)
    assert points(page, node) != before
    assert shown(page, node, per_image="1, 2") == "40 of 40 passes"
    assert words(page) == "times 1, 2 per image"


def test_shaded_where_it_guides_and_counted(page, node):
    page.set_value(node, "curve", '{"points": [[0, 1], [0.5, 1], [0.75, 4], [1, 1]]}')
    box = page.page.locator(".cg-curve rect.cg-active").bounding_box()
    left, right = circle(page, 1)[0], circle(page, 3)[0]
    assert abs(box["x"] - left) < 4 and abs(box["x"] + box["width"] - right) < 4
    # the steps of another node count, without a change of this one
    sampler = page.add("KSampler", 900, 100)
    page.set_value(sampler, "steps", 5)
    page.run(
        "() => app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()"
    )
    page.page.get_by_text("6 of 10 passes", exact=True).wait_for(timeout=5000)


def test_latest_answer_wins(page, node):
    """The first answer is slow, and is not waited for; what is typed between is not asked."""
    asked = []

    def answer(route):
        question = json.loads(route.request.post_data)
        asked.append(question["inputs"]["expression"])
        if len(asked) > 1:
            route.continue_()  # the first one never gets its answer

    page.page.route(ROUTE, answer)
    page.set_value(node, "expression", "1")
    page.set_value(node, "shape", "expression")
    page.page.wait_for_timeout(400)
    for expression in ("2", "2 +", "1 + step"):
        page.set_value(node, "expression", expression)
    answered(page)
    assert asked == ["1", "1 + step"]
    assert page.page.locator(".cg-said").inner_text() == "shape: expression · 39 of 40 passes"


def test_without_the_server(page, node):
    """One can still draw, and other shapes say why they are not drawn."""
    page.page.route(ROUTE, lambda route: route.abort())
    drag(page, 1, -40, 30)
    page.page.wait_for_timeout(400)
    assert "of 40 passes" in page.page.locator(".cg-said").inner_text()
    page.set_value(node, "shape", "expression")
    page.page.wait_for_function(
        "() => document.querySelector('.cg-words').innerText.includes('does not answer')"
    )
    assert drawn(page) == (0, 0)
    page.page.unroute(ROUTE)
    page.set_value(node, "shape", "expression")
    answered(page)
    assert drawn(page) == (1, 1) and words(page) == ""


def test_what_is_linked_is_not_drawn(page, node):
    for name in ("expression", "shape"):
        shown(page, node, shape="expression")
        assert drawn(page) == (1, 1)
        page.run(
            """([id, name]) => {
                const node = app.graph.getNodeById(id);
                const slot = node.inputs.findIndex(i => i.widget?.name === name);
                const text = LiteGraph.createNode("PrimitiveString");
                app.graph.add(text);
                node.inputs[slot].type = "STRING";
                text.connect(0, node, slot);
            }""",
            [node, name],
        )
        page.page.get_by_text("linked", exact=True).wait_for(timeout=5000)
        assert drawn(page) == (0, 0) and words(page) == ""
        page.run(
            """([id, name]) => {
                const node = app.graph.getNodeById(id);
                node.disconnectInput(node.inputs.findIndex(i => i.widget?.name === name));
            }""",
            [node, name],
        )
        page.page.wait_for_timeout(300)


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
