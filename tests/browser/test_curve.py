"""The curve on Guidance Schedule; the editor is the same in both renderers."""

from __future__ import annotations

import json

import pytest

from guidance import GuidanceSchedule
from guidance.schedules.presets import SCHEDULE_PRESETS
from guidance.schedules.run_position import RunPosition

CURVE = ".cg-curve"
POINTS = [[0, 7.5], [0.6, 7.5], [1, 1]]  # of the default curve
ROUTE = "**/classifier_guidance/schedule"
# the curve of the graph's first node, and no undo or redo is under way
RESTORED = """(points) => {
    const widget = app.graph.nodes[0]?.widgets?.find(w => w.name === "curve");
    return widget && JSON.stringify(JSON.parse(widget.value).points) === JSON.stringify(points)
        && !app.extensionManager.workflow.activeWorkflow.changeTracker._restoringState;
}"""
CAPTURE = "() => app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()"


@pytest.fixture
def node(page):
    """A Guidance Schedule with the shape "curve"; its id."""
    added = page.add("GuidanceSchedule", 300, 60)
    page.set_values(added, shape="curve")
    page.box(f'{CURVE} circle[data-index="2"]')
    return added


def points(page, node):
    return json.loads(page.value(node, "curve"))["points"]


def circle(page, index):
    """The middle of a point on the screen."""
    box = page.box(f'{CURVE} circle[data-index="{index}"]')
    return box["x"] + box["width"] / 2, box["y"] + box["height"] / 2


def wait_for_points(page, expected):
    page.wait(RESTORED, expected)


def drag(page, index, dx, dy):
    x, y = circle(page, index)
    mouse = page.tab.mouse
    mouse.move(x, y)
    mouse.down()
    mouse.move(x + dx / 2, y + dy / 2)
    mouse.move(x + dx, y + dy)
    mouse.up()


def part(page, name):
    return page.tab.locator(f"{CURVE} {name}")


def shows(page, *, status=None, message=None, lines=None, shaded=None, circles=None):
    """Waits until the curve shows these texts, and this many elements."""
    for name, text in {".cg-status": status, ".cg-message": message}.items():
        if text is not None:
            page.expect(part(page, name)).to_have_text(text)
    for name, count in {"polyline": lines, ".cg-active": shaded, "circle": circles}.items():
        if count is not None:
            page.expect(part(page, name)).to_have_count(count)


def preview_arrived(page):
    """Waits until the server has answered the latest request."""
    page.wait(
        """() => app.graph.nodes.flatMap(n => n.widgets ?? []).filter(w => w.editor).every(
            w => w.editor.previewIsCurrent)"""
    )


def test_drag_a_point(page, node):
    x, y = circle(page, 1)
    drag(page, 1, -40, 30)
    first, moved, last = points(page, node)
    assert [first, last] == [POINTS[0], POINTS[2]]
    assert 0.1 < moved[0] < POINTS[1][0] and moved[1] < POINTS[1][1]
    now = circle(page, 1)
    assert abs(now[0] - (x - 40)) < 3 and abs(now[1] - (y + 30)) < 12
    drag(page, 1, 2000, 0)  # it stays between its neighbours
    positions = [position for position, _ in points(page, node)]
    assert positions == sorted(positions) and positions[1] < 1


def is_on_grid(point):
    """Whether it is at a multiple of 0.01 of the axis and 0.1 of the scale."""
    steps = (point[0] / 0.01, point[1] / 0.1)
    return all(abs(step - round(step)) < 1e-6 for step in steps)


def test_points_snap_and_alt_drags_freely(page, node):
    drag(page, 1, -43, 31)
    assert is_on_grid(points(page, node)[1])
    page.tab.keyboard.down("Alt")
    drag(page, 1, -17, 13)
    page.tab.keyboard.up("Alt")
    assert not is_on_grid(points(page, node)[1])


def test_a_new_node_is_an_interval_with_ends_to_drag(page):
    added = page.add("GuidanceSchedule", 300, 60)
    shows(page, status="shape: interval · 32 of 40 passes", lines=1, shaded=1, circles=2)
    names = ("start", "end", "scale", "outside")
    assert [page.value(added, name) for name in names] == [0.2, 0.8, 7.5, 1]
    page.run(CAPTURE)
    drag(page, 0, 40, 20)
    start, end, scale, _ = (page.value(added, name) for name in names)
    assert 0.2 < start < end == 0.8 and 0 < scale < 7.5 and is_on_grid((start, scale))
    page.tab.keyboard.press("Control+z")
    page.wait("() => app.graph.nodes[0]?.widgets?.find(w => w.name === 'start')?.value === 0.2")


def test_the_numbers_at_the_pointer(page, node):
    x, y = circle(page, 1)
    page.tab.mouse.move(x, y + 40)
    words = part(page, ".cg-readout").text_content()
    axis, position, _, scale = words.replace(",", "").split()
    assert (axis, float(scale)) == ("percent", pytest.approx(7.5, abs=0.2))
    assert float(position) == pytest.approx(0.6, abs=0.01)
    page.tab.mouse.move(1200, 500)
    page.expect(part(page, ".cg-readout")).to_have_count(0)


def test_typed_numbers(page, node):
    fields = part(page, ".cg-form input")
    for typed, key, found in (
        (("0.1234", "3.21"), "Enter", [0.1234, 3.21]),
        (("0.5", "2"), "Escape", [0.1234, 3.21]),
        (("7", "-2"), "Enter", [0.999, -2]),  # it stays between its neighbours
    ):
        page.tab.mouse.dblclick(*circle(page, 1))
        page.expect(fields).to_have_count(2)
        for index, text in enumerate(typed):
            fields.nth(index).fill(text)
        page.tab.keyboard.press(key)
        page.expect(fields).to_have_count(0)
        assert points(page, node)[1] == found
    assert len(points(page, node)) == 3 and page.run("() => app.graph.nodes.length") == 1


SMOOTH = {
    "axis": "percent",
    "interpolation": "smooth",
    "points": [[0, 1], [0.2, 6], [0.5, 7], [0.6, 7], [0.9, 2.5], [1, 1]],
    "outside": 1,
}


def test_smooth_is_drawn_as_a_run_reads_it(page, node):
    page.set_values(node, curve=json.dumps(SMOOTH))
    shows(page, circles=6)
    places = [index / 60 for index in range(61)]
    drawn = page.run(
        """async ([schedule, places]) => {
            const files = await (await app.api.fetchApi("/extensions")).json();
            const { scaleAt } = await import(files.find(f => f.endsWith("/lib/schedule.js")));
            return places.map(place => scaleAt(schedule, place));
        }""",
        [SMOOTH, places],
    )
    schedule = GuidanceSchedule.from_dict(SMOOTH)
    read = [schedule.at(RunPosition(percent=x, step=0, steps=20, sigma=1)) for x in places]
    assert drawn == pytest.approx(read, abs=1e-9)


def test_undo_and_redo_after_several_drags(page, node):
    page.run(CAPTURE)
    states = [points(page, node)]
    for _ in range(3):
        drag(page, 1, -20, 15)
        states.append(points(page, node))
    ways = [("Control+z", states[-2::-1]), ("Control+y", states[1:])]
    for keys, expected in ways:
        for one in expected:
            page.tab.keyboard.press(keys)
            wait_for_points(page, one)


def test_a_preset_of_the_gallery(page, node):
    """Each preset is there, with what it does at the node's scale."""
    part(page, ".cg-presets").click()
    gallery = page.tab.locator(".cg-gallery")
    page.expect(gallery.locator("polyline")).to_have_count(1 + len(SCHEDULE_PRESETS))
    shapes = page.run("() => [...document.querySelectorAll('.cg-card')].map(c => c.dataset.shape)")
    assert set(shapes) == {"interval", *SCHEDULE_PRESETS}
    page.expect(gallery.locator('[data-shape="linear rise"] .cg-effect')).to_contain_text("14")
    page.tab.keyboard.press("Delete")  # the node stays
    gallery.locator('[data-shape="linear rise"]').click()
    page.expect(gallery).to_have_count(0)
    assert page.value(node, "shape") == "linear rise"


OPACITY = """() => {
    let opacity = 1;
    for (let e = document.querySelector(".cg-curve"); e; e = e.parentElement)
        opacity *= Number(getComputedStyle(e).opacity);
    return opacity;
}"""


def test_the_curve_is_dimmed_with_its_node(page, node):
    """When it is muted or bypassed, in both renderers."""
    for mode, dimmed in ((2, True), (0, False), (4, True), (0, False)):
        page.run(
            """([id, mode]) => {
                app.graph.getNodeById(id).mode = mode;
                app.canvas.setDirty(true, true);
            }""",
            [node, mode],
        )
        page.wait(f"() => ({OPACITY})() {'< 0.8' if dimmed else '=== 1'}")


def test_the_curve_is_on_the_node_of_its_subgraph(page, node, tmp_path):
    """What is drawn there is sent, undone, saved and opened."""
    page.connect(node, 0, page.add("CFGScaleScheduler", 800, 60), "schedule")
    page.run("() => app.canvas.selectItems(app.graph.nodes)")
    page.run("() => app.extensionManager.command.execute('Comfy.Graph.ConvertToSubgraph')")
    host = page.wait("() => app.graph.nodes.find(n => n.subgraph)?.id")
    page.show(host)
    drag(page, 1, -40, 30)
    moved = points(page, host)
    assert moved != POINTS
    (sent,) = [one for one in page.prompt().values() if one["class_type"] == "GuidanceSchedule"]
    assert json.loads(sent["inputs"]["curve"])["points"] == moved
    path = page.save(tmp_path / "subgraph.json")
    page.tab.keyboard.press("Control+z")
    wait_for_points(page, POINTS)
    page.reset()
    page.tab.set_input_files("#comfy-file-input", str(path))
    host = page.wait("() => app.graph.nodes.find(n => n.subgraph)?.id")
    page.show(host)
    drag(page, 1, -10, 0)
    assert points(page, host)[1][0] < moved[1][0]


def test_add_and_remove(page, node):
    box = page.box(f"{CURVE} svg")
    page.tab.mouse.dblclick(box["x"] + box["width"] * 0.35, box["y"] + box["height"] * 0.6)
    shows(page, circles=4)
    page.tab.mouse.click(*circle(page, 1), button="right")
    shows(page, circles=3)
    assert points(page, node) == POINTS


def test_keyboard(page, node):
    page.focus(f'{CURVE} circle[data-index="1"]')
    for key in ("ArrowLeft", "ArrowDown", "Shift+ArrowLeft"):
        page.tab.keyboard.press(key)
    assert points(page, node)[1] == [0.49, 7.4]
    page.tab.keyboard.press("+")
    assert len(points(page, node)) == 4
    page.tab.keyboard.press("Delete")
    assert len(points(page, node)) == 3
    assert page.run("() => app.graph.nodes.length") == 1  # the page has not deleted the node
    preview_arrived(page)  # it keeps the focus
    page.tab.keyboard.press("ArrowUp")
    assert points(page, node)[1] == [0.49, 7.5]


def test_undo(page, node):
    page.run(CAPTURE)
    drag(page, 1, -40, 30)
    assert points(page, node) != POINTS
    page.tab.keyboard.press("Control+z")
    wait_for_points(page, POINTS)


def test_passes_and_shade_with_the_steps_of_another_node(page, node):
    shows(page, status="39 of 40 passes")  # the scale is 1 at the end
    scheduler = page.add("ADMScheduler", 900, 100)
    for respacing, steps in (("ddim50", 50), ("250", 250), ("10, 15,20", 45)):
        page.set_values(scheduler, respacing=respacing)
        page.set_values(node, shape="constant")
        shows(page, status=f"shape: constant · {2 * steps} of {2 * steps} passes")
    page.run("(id) => app.graph.remove(app.graph.getNodeById(id))", scheduler)
    page.set_values(node, shape="curve", curve='{"points": [[0, 1], [0.5, 1], [0.75, 4], [1, 1]]}')
    page.set_values(page.add("KSampler", 900, 100), steps=5)
    page.run(CAPTURE)  # the schedule is drawn anew, although its node has not changed
    shows(page, status="6 of 10 passes")
    # shaded where the scale is not 1
    box = page.box(f"{CURVE} rect.cg-active")
    left, right = circle(page, 1)[0], circle(page, 3)[0]
    assert abs(box["x"] - left) < 4 and abs(box["x"] + box["width"] - right) < 4


def test_every_shape_is_drawn(page, node):
    """By the server's preview; an interval has points at its ends, which the user can drag."""
    for values, passes, intervals in (
        ({"shape": "expression"}, "39 of 40", 1),
        ({"shape": "last steps"}, "25 of 40", 1),
        ({"shape": "linear rise"}, "39 of 40", 1),
        ({"shape": "interval", "start": 0, "end": 0.5}, "30 of 40", 1),
        ({"shape": "keyframes"}, "39 of 40", 1),
        ({"shape": "keyframes", "keyframes": "7, 1, 7, 1"}, "6 of 8", 2),
    ):
        page.set_values(node, **values)
        shows(page, status=f"shape: {values['shape']} · {passes} passes", message="")
        shows(page, lines=1, shaded=intervals, circles=2 if values["shape"] == "interval" else 0)
    page.expect(page.tab.locator(CURVE)).to_contain_class("cg-disabled")
    page.set_values(node, shape="interval for SDXL")
    page.expect(part(page, ".cg-message")).to_contain_text("model")
    shows(page, status="shape: interval for SDXL", lines=1, shaded=1)
    assert part(page, "svg text").all_text_contents()[-4:] == ["0.1", "1", "10", "sigma"]


def test_a_curve_without_points(page, node):
    """Its JSON may be any schedule; the points come back with a curve that has some."""
    curve = page.value(node, "curve")
    page.set_values(node, curve='{"axis": "step", "last": 5, "scale": 4}')
    shows(page, status="25 of 40 passes", lines=1, circles=0)
    page.set_values(node, curve="{")
    page.expect(part(page, ".cg-message.cg-error")).to_contain_text("JSON")
    shows(page, lines=0)
    page.set_values(node, curve=curve)
    shows(page, status="39 of 40 passes", circles=3, message="")


def test_an_error_is_shown_while_the_user_types(page, node, renderer):
    page.set_values(node, shape="expression", expression="1 + percent")
    if renderer == "classic":  # this renderer has a dialog, which sets the value when it closes
        page.set_values(node, expression="1 + percnt")
    else:
        page.tab.locator("[data-node-id] input[type=text]").first.fill("1 + percnt")
    message = part(page, ".cg-message.cg-error")
    page.expect(message).to_contain_text("'percnt'")
    shows(page, status="shape: expression", lines=0)
    fits = "e => e.scrollWidth <= e.clientWidth && e.scrollHeight <= e.clientHeight"
    assert message.evaluate(fits)
    page.set_values(node, expression="3")
    shows(page, status="shape: expression · 40 of 40 passes", message="", lines=1)
    # also for a shape that the page draws by itself
    page.set_values(node, shape="interval", start=0.8, end=0.2)
    page.expect(message).to_contain_text("0.8 to 0.2")
    shows(page, lines=0)


def test_an_error_in_another_input_leaves_the_points(page, node):
    page.set_values(node, per_image="1; 2")
    page.expect(part(page, ".cg-message.cg-error")).to_contain_text("'1; 2'")
    drag(page, 1, -40, 10)
    assert points(page, node) != POINTS
    page.set_values(node, per_image="1, 2")
    page.expect(part(page, ".cg-message")).to_contain_text("1, 2")
    shows(page, status="40 of 40 passes")


def test_the_latest_request_counts(page, node):
    """The first one is never answered; what is typed in between is not sent."""
    sent = []

    def answer(route):
        sent.append(json.loads(route.request.post_data)["inputs"]["expression"])
        if len(sent) > 1:
            route.continue_()

    preview_arrived(page)
    page.tab.route(ROUTE, answer)
    page.set_values(node, expression="1")
    with page.tab.expect_request(ROUTE):
        page.set_values(node, shape="expression")
    page.set_values(node, expression="2")
    page.set_values(node, expression="2 +")
    page.set_values(node, expression="1 + step")
    preview_arrived(page)
    assert sent == ["1", "1 + step"]
    shows(page, status="shape: expression · 39 of 40 passes")


def test_without_the_server(page, node):
    """The user can still draw, and other shapes say why they are not drawn."""
    preview_arrived(page)
    page.tab.route(ROUTE, lambda route: route.abort())
    with page.tab.expect_event("requestfailed"):
        drag(page, 1, -40, 30)
    page.expect(part(page, ".cg-status")).to_contain_text("of 40 passes")
    page.set_values(node, shape="expression")
    page.expect(part(page, ".cg-message")).to_contain_text("server")
    shows(page, lines=0)
    page.tab.unroute(ROUTE)
    page.set_values(node, shape="expression")
    shows(page, lines=1, shaded=1, message="")


@pytest.mark.parametrize("name", ["expression", "shape", "curve"])
def test_a_linked_input_is_not_drawn(page, node, name):
    shape = "curve" if name == "curve" else "expression"
    page.set_values(node, shape=shape)
    shows(page, lines=1)
    page.run("(id) => app.graph.getNodeById(id).inputs.forEach(i => (i.type = '*'))", node)
    page.connect(page.add("PrimitiveString"), 0, node, name)
    shows(page, status="linked", message="", lines=0, circles=0)
    page.expect(page.tab.locator(CURVE)).to_contain_class("cg-disabled")


def visible(page, node):
    """The names of the widgets that can be seen."""
    return page.run(
        """(id) => {
            const node = app.graph.getNodeById(id);
            const vue = document.querySelector(`[data-node-id="${id}"]`);
            const seen = (w) => w.name === "curve" || (vue
                ? vue.innerText.split("\\n").includes(w.name) : node.isWidgetVisible(w));
            return node.widgets.filter(w => w.name !== "per_image" && seen(w)).map(w => w.name);
        }""",
        node,
    )


def test_only_the_inputs_of_the_shape_are_shown(page, node, tmp_path):
    """Their values stay; also when the workflow is opened later."""
    before = page.prompt()[str(node)]["inputs"]
    for shape, names in {
        "constant": ["scale"],
        "power": ["axis", "scale", "end_scale", "start", "end", "exponent"],
        "interval": ["axis", "scale", "start", "end", "outside"],
        "keyframes": ["axis", "keyframes"],
        "expression": ["expression"],
        "curve": [],
        "linear rise": ["scale"],
        "last steps": ["scale", "outside", "last_steps"],
    }.items():
        page.set_values(node, shape=shape)
        page.box(CURVE)
        assert visible(page, node) == ["shape", *names, "curve"]
        assert page.prompt()[str(node)]["inputs"] == before | {"shape": shape}
    path = page.save(tmp_path / "shape.json")
    page.reset()
    node = page.load(path, "GuidanceSchedule")
    page.box(CURVE)
    assert visible(page, node) == ["shape", "scale", "outside", "last_steps", "curve"]
