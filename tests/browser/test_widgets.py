"""The live plot of Guidance Trace and the label field, in both renderers."""

from __future__ import annotations

import io
import itertools
import os

import pytest
from PIL import Image
from prompts import classifier, diffusion_model, guidance, guided_run, ksampler, node, write_models
from tiny_models import write_classifier, write_unet
from tiny_zero_shot import write_zero_shot

STEPS = 8
PLOT = ".cg-trace"
# how many points each line has, by the kind of the line
LINES = """() => [...document.querySelectorAll(".cg-trace path")].reduce((found, { dataset }) => {
    (found[dataset.line] ??= []).push(Number(dataset.points));
    return found;
}, {})"""
# keeps every event, and how many evaluations the plot shows when the event has been handled
RECORD = """() => {
    window.events = [];
    const plot = document.querySelector(".cg-trace svg");
    app.api.addEventListener("classifier_guidance.trace", ({ detail }) => {
        events.push({ ...detail, drawn: Number(plot.dataset.count) });
    });
}"""
# no line runs over the numbers of the axis, and the text below is not cut off
READABLE = """() => {
    const boxes = (name) => [...document.querySelectorAll(`.cg-trace ${name}`)].map(
        e => e.getBoundingClientRect());
    const numbers = Math.max(...boxes("text.cg-number").map(b => b.right));
    const status = document.querySelector(".cg-trace .cg-status");
    return boxes("text").length > 2 && numbers < Math.min(...boxes("path").map(b => b.left))
        && status.scrollWidth <= status.clientWidth && status.innerText.includes("passes");
}"""
OPTIONS = "[...document.querySelector('.cg-label datalist').options].map(o => o.value)"

seeds = itertools.count(1000)


@pytest.fixture(params=["classic", "Nodes 2.0"])
def renderer(request):
    """Both: what is drawn on a node differs."""
    return request.param


def test_live_plot(page, server, tmp_path):
    """One event for each step, drawn at once, and kept in the saved workflow.

    p of each of five images, and their mean.
    """
    write_models(server.base)
    prompt = guided_run(cfg=2.0, batch=5)
    prompt["7"] = node("GuidanceTrace", model=["guided", 0])  # a number, as the page has them
    page.build(prompt | {"sampled": ksampler("7", steps=STEPS, seed=next(seeds))})
    page.box(f"{PLOT} svg")
    page.run(RECORD)
    assert page.queue()["status"]["status_str"] == "success"
    page.wait(f"() => events.length === {STEPS}")
    events = page.run("() => events")
    assert [one["number"] for one in events] == list(range(STEPS))
    assert [one["drawn"] for one in events] == list(range(1, STEPS + 1))
    assert {one["steps"] for one in events} == {STEPS}
    assert events[0]["classifiers"]["0"] == {"name": "one", "kind": "probability", "labels": ["2"]}
    drawn = {"cfg": [STEPS], "scale": [STEPS], "image": [STEPS] * 5, "mean": [STEPS]}
    assert page.run(LINES) == drawn
    assert page.run(READABLE)
    # neither the prompt nor the saved widgets hold anything of the plot
    assert set(page.prompt()["7"]["inputs"]) == {"model"}
    assert not page.run("() => app.graph.getNodeById(7).serialize().widgets_values")
    path = page.save(tmp_path / "traced.json")
    page.reset()
    page.load(path, "GuidanceTrace")
    page.expect(page.tab.locator(f"{PLOT} path")).to_have_count(8)
    assert page.run(LINES) == drawn


def evaluation_of(*classifiers, step=0, sigma=1.0, cfg=None):
    """An event's evaluation of these records."""
    numbers = {"step": step, "sigma": sigma, "cfg": cfg, "passes": 1}
    return numbers | {"classifiers": list(classifiers)}


def send(page, **detail):
    """An event, as the server sends it."""
    page.run(
        """(detail) => app.api.dispatchEvent(
            new CustomEvent("classifier_guidance.trace", { detail }))""",
        {"classifiers": {}, **detail},
    )


def send_cfg(page, trace, run, number, cfg, *, step=None, sigma=1.0, planned=None):
    """An evaluation in a run of 4 steps."""
    step = number if step is None else step
    about = {"node": str(trace), "run": run, "number": number, "steps": 4}
    one = evaluation_of(step=step, sigma=sigma, cfg=cfg)
    send(page, **about, planned=planned or {}, evaluation=one)


# the commands of each line of this kind
HELD = """(kind) => [...document.querySelectorAll(`.cg-trace path[data-line=${kind}]`)].map(
    path => path.getAttribute("d").match(/[MLHV]/g).join(""))"""


def test_steps_are_held_before_the_schedule_and_the_run_before(page):
    """Two evaluations of a step share it; a value stays until the next one."""
    trace = page.add("GuidanceTrace")
    page.box(f"{PLOT} svg")
    for number, cfg in enumerate((1, 4, 4, 1)):
        send_cfg(page, trace, "first", number, cfg, planned={"cfg": [1, 4, 4, 1]})
    assert page.run(LINES) == {"planned": [4], "cfg": [4]}
    assert page.run(HELD, "cfg") == ["MHVHVHVH"]
    for number, step in enumerate((0, 1, 1, 2)):
        send_cfg(page, trace, "second", number, 5, step=step, planned={"cfg": [5, 5, 5, 5]})
    assert page.run(LINES) == {"before": [4], "planned": [4], "cfg": [4]}
    ends = """(kind) => {
        const [from, ...to] = [...document.querySelector(
            `.cg-trace path[data-line=${kind}]`).getAttribute("d").matchAll(/[MH]([\\d.]+)/g)];
        return [from, ...to].map(found => Number(found[1]));
    }"""
    start, *all_steps = page.run(ends, "planned")
    width = (all_steps[-1] - start) / 4
    found = [(x - start) / width for x in page.run(ends, "cfg")]
    assert found == pytest.approx([0, 1, 1.5, 2, 3], abs=0.02)


CAPTURE = "() => app.extensionManager.workflow.activeWorkflow.changeTracker.captureCanvasState()"
QUEUES = """() => {
    const tracker = app.extensionManager.workflow.activeWorkflow.changeTracker;
    return [tracker.undoQueue.length, tracker.redoQueue.length];
}"""
DRAFT = "(words) => Object.values(localStorage).some(draft => draft.includes(words))"
COUNT = f"() => Number(document.querySelector('{PLOT} svg')?.dataset.count)"


@pytest.mark.long  # the page must load within the run
def test_a_reload_in_the_middle_of_a_run(page):
    """What was seen stays, and the rest is added; undo and redo do not touch it."""
    trace, sampler = page.add("GuidanceTrace"), page.add("KSampler", 600, 100)
    page.box(f"{PLOT} svg")
    page.run(CAPTURE)
    page.set_values(sampler, steps=7)
    page.run(CAPTURE)
    undo, redo = page.run(QUEUES)
    for number in (0, 1):
        send_cfg(page, trace, "run", number, 4, sigma=78.31 - number)
    page.wait(DRAFT, "77.31")
    page.run(CAPTURE)
    assert page.run(QUEUES) == [undo, redo]  # a run is no change of the user's
    page.tab.keyboard.press("Control+z")
    shown = f"({COUNT})() === 2 && app.graph.getNodeById({sampler}).widgets.some("
    page.wait(f"() => {shown}w => w.name === 'steps' && w.value === 20)")
    page.tab.keyboard.press("Control+y")
    page.wait(f"() => {shown}w => w.name === 'steps' && w.value === 7)")
    page.reload()
    page.wait(f"() => ({COUNT})() === 2")
    for number in (2, 3):
        send_cfg(page, trace, "run", number, 1)
    assert page.run(LINES) == {"cfg": [4]}
    said = page.run("() => document.querySelector('.cg-status').innerText")
    assert "4/4" in said and "4 passes" in said


@pytest.mark.long
def test_a_reload_after_a_run(page, server):
    """The run as it ended, in a workflow that was not saved."""
    write_models(server.base)
    prompt = guided_run(cfg=2.0)
    prompt["7"] = node("GuidanceTrace", model=["guided", 0])
    page.build(prompt | {"sampled": ksampler("7", steps=STEPS, seed=next(seeds))})
    page.box(f"{PLOT} svg")
    assert page.queue()["status"]["status_str"] == "success"
    page.wait(f"() => ({COUNT})() === {STEPS}")
    page.tab.wait_for_timeout(1500)  # the page saves its draft
    status = page.run("() => document.querySelector('.cg-status').innerText")
    lines = page.run(LINES)
    page.reload()
    page.wait(f"() => ({COUNT})() === {STEPS}")
    assert page.run(LINES) == lines
    assert page.run("() => document.querySelector('.cg-status').innerText") == status


def test_a_score_and_a_classifier_that_is_off_for_a_time(page):
    """The line of its values has a gap; a score has numbers of its own on the right."""
    trace = page.add("GuidanceTrace")
    page.box(f"{PLOT} svg")
    which = {
        "0": {"name": "beauty", "kind": "score", "labels": ["score"]},
        "1": {"name": "animals", "kind": "probability", "labels": ["cat", "dog"]},
    }
    score = {"classifier": 0, "scale": 2.0, "scores": [5.0, -70.0]}
    animals = {"classifier": 1, "scale": 1.0, "log_probs": [-0.5, None]}
    seen = ([score, animals], [animals], [score, animals], [animals | {"log_probs": [None, None]}])
    for number, records in enumerate(seen):
        detail = {"node": str(trace), "number": number, "steps": 4, "classifiers": which}
        detail["evaluation"] = evaluation_of(*records, step=number)
        send(page, **detail)
    # two images of the score, and the one image with a probability that is a number
    assert page.run(LINES) == {"scale": [4, 4], "image": [3, 2, 2]}
    numbers = page.run(
        f"() => [...document.querySelectorAll('{PLOT} .cg-number')].map(e => e.textContent)"
    )
    assert numbers[-3:] != ["0", "0.5", "1"] and {"0.5", "1", "-80", "20"} <= set(numbers)
    gaps = """() => [...document.querySelectorAll(".cg-trace path[stroke-dasharray]")].map(
        line => line.getAttribute("d").split("M").length - 2)"""
    assert page.run(gaps) == [1, 1]
    said = page.run("() => document.querySelector('.cg-status').innerText")
    assert "score mean -32.50" in said and "p(label) mean 0.61" in said


def test_label_field_offers_the_classes(page, server, renderer):
    names = ("cat", "catfish", "horse", "zebra")
    folder = write_models(server.base) / "classifiers"
    write_classifier(folder / "animals.safetensors", labels=names)
    loader = classifier("animals.safetensors")
    page.build({"classifier": loader, "guided": guidance("cat", 1.0)})
    room = """() => {
        const widget = app.graph.getNodeById("guided").widgets.find(w => w.name === "label");
        return widget.computedHeight - 2 * widget.margin - widget.element.offsetHeight;
    }"""
    page.box(".cg-label")
    assert renderer != "classic" or page.run(room) >= 0  # it does not cover the next widget
    field = page.tab.locator(".cg-label input")
    field.focus()
    page.wait(f"() => {OPTIONS}.length === 4")
    assert page.run(f"() => {OPTIONS}") == list(names)
    field.fill("3, 5")
    assert page.run(f"() => {OPTIONS}") == [f"3, {name}" for name in names]
    field.blur()
    assert page.value("guided", "label") == "3, 5"
    assert page.prompt()["guided"]["inputs"]["label"] == "3, 5"


def test_label_field_offers_the_lines_of_words(page, server):
    write_zero_shot(write_models(server.base) / "classifiers" / "clip", "clip")
    lines = {"classifier_name": "clip", "classes": "a cat\na dog, sitting\n", "template": "{}"}
    page.build({"classifier": node("ZeroShotClassifier", **lines), "guided": guidance("0", 1.0)})
    field = page.tab.locator(".cg-label input")
    field.focus()
    page.wait(f"() => {OPTIONS}.length === 2")
    assert page.run(f"() => {OPTIONS}") == ["a cat", "a dog, sitting"]
    field.fill("1, ")
    assert page.run(f"() => {OPTIONS}") == ["1, a cat", '1, "a dog, sitting"']


def test_label_of_a_model_offers_a_thousand_classes(page, server):
    """ADM Class Label behind a traced model; the file is replaced."""
    path = write_models(server.base) / "diffusion_models" / "thousand.safetensors"
    trace = node("GuidanceTrace", model=["model", 0])
    label = node("ADMClassLabel", model=["trace", 0], label="")
    page.build({"model": diffusion_model(path.name), "trace": trace, "label": label})
    field = page.tab.locator(".cg-label input")
    offered = []
    for count in (1000, 7):
        write_unet(path, classes=count, null_class=None)
        field.focus()
        page.wait(f"() => {OPTIONS}.length === {count}")
        offered.append(page.run(f"() => {OPTIONS}"))
        field.blur()
    assert "golden retriever" in offered[0]
    assert offered[1] == [str(index) for index in range(7)]


@pytest.mark.parametrize("query", ["kind=classifiers&name=../x.safetensors", "kind=loras&name=x"])
def test_classes_of_no_file(server, query):
    assert server.request(f"/classifier_guidance/classes?{query}")[0] == 404


@pytest.mark.long
def test_pictures_of_the_docs(page, root, renderer):
    """The template after two runs; UPDATE_PICTURES=1 writes its pictures to docs/screens."""
    page.load(root / "example_workflows" / "03 Draw a schedule for CFG.json", "GuidanceSchedule")
    page.expect(page.tab.locator(".cg-curve circle")).not_to_have_count(0)
    page.run(
        """() => {
            const find = (type) => app.graph.nodes.find(node => node.type === type);
            // far from the other nodes
            find("GuidanceSchedule").pos = [-3990, 60];
            find("GuidanceSchedule").size = [330, 420];
            find("GuidanceTrace").pos = [-3580, 60];
            find("GuidanceTrace").size = [400, 330];
            app.canvas.ds.scale = 1;
            app.canvas.ds.offset = [4100, 100];
            app.canvas.setDirty(true, true);
        }"""
    )
    schedule = page.run("() => app.graph.nodes.find(n => n.type === 'GuidanceSchedule').id")
    curve = '{"interpolation": "smooth", "points": [[0, 1], [0.25, 5], [0.6, 6], [0.9, 1], [1, 1]]}'
    for values in (
        {"shape": "interval", "scale": 4.0, "start": 0.2, "end": 0.8},
        {"shape": "curve", "curve": curve},
    ):
        page.set_values(schedule, **values)
        page.run(
            """() => app.graph.nodes.flatMap(n => n.widgets ?? []).filter(
                w => ["seed", "noise_seed"].includes(w.name)).forEach(
                w => (w.value = Math.floor(Math.random() * 1e9)))"""
        )
        page.queue(seconds=250)  # fifty steps of ten images
        page.wait(f"() => ({LINES})().cfg?.length === 1")
    page.wait(f"() => ({LINES})().before?.length > 0")
    name = "classic" if renderer == "classic" else "nodes_2"
    for palette, end in (("dark", ""), ("light", "_light")):
        page.run("(name) => app.extensionManager.setting.set('Comfy.ColorPalette', name)", palette)
        page.tab.mouse.move(700, 990)
        page.box(PLOT)
        picture = page.tab.screenshot(clip={"x": 100, "y": 110, "width": 860, "height": 600})
        if os.environ.get("UPDATE_PICTURES"):
            with Image.open(io.BytesIO(picture)) as screen:
                file = root / "docs" / "screens" / f"guidance_schedule_{name}{end}.png"
                screen.convert("RGB").save(file, optimize=True)
    page.run("() => app.extensionManager.setting.set('Comfy.ColorPalette', 'dark')")
