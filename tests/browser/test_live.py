"""The live plot of Guidance Trace and the label field, in both renderers."""

from __future__ import annotations

import pytest
from tiny_models import write_unet

STEPS = 8


@pytest.fixture
def traced(page, root):
    """The first template with a Guidance Trace before its sampler; the trace's id."""
    page.load(root / "example_workflows" / "classifier_guided_digits.json", "KSampler")
    return page.run(
        """(steps) => {
            const sampler = app.graph.nodes.find(n => n.type === "KSampler");
            const slot = sampler.inputs.findIndex(i => i.name === "model");
            const trace = LiteGraph.createNode("GuidanceTrace");
            trace.pos = [sampler.pos[0], sampler.pos[1] - 320];
            app.graph.add(trace);
            sampler.getInputNode(slot).connect(0, trace, 0);
            trace.connect(0, sampler, slot);
            sampler.widgets.find(w => w.name === "steps").value = steps;
            sampler.widgets.find(w => w.name === "seed").value = Math.floor(Math.random() * 1e9);
            window.seen = [];
            const plot = trace.widgets.find(w => w.name === "live").element.querySelector("svg");
            app.api.addEventListener("classifier_guidance.trace", ({ detail }) => {
                seen.push({ ...detail, at: performance.now(), drawn: null });
            });
            new MutationObserver(() => {
                for (const one of seen) {
                    if (one.drawn === null && Number(plot.dataset.count) > one.number)
                        one.drawn = performance.now();
                }
            }).observe(plot, { attributes: true, childList: true });
            return trace.id;
        }""",
        STEPS,
    )


def lines(page):
    return page.run(
        """() => Object.fromEntries([...document.querySelectorAll(".cg-trace polyline")].map(
            l => [l.dataset.line, l.getAttribute("points").split(" ").length]))"""
    )


def test_live_plot(page, traced, tmp_path):
    """One event for each step, drawn at once, kept in the workflow."""
    page.queue()
    page.page.wait_for_function(f"() => seen.length === {STEPS}", timeout=60_000)
    page.page.wait_for_timeout(500)
    seen = page.run("() => seen")
    assert [one["number"] for one in seen] == list(range(STEPS))
    assert {one["steps"] for one in seen} == {STEPS}
    assert all(one["drawn"] is not None and one["drawn"] - one["at"] < 100 for one in seen)
    drawn = {"cfg": STEPS, "scale": STEPS, "probability": STEPS}
    assert lines(page) == drawn
    assert page.run(CLEAR) and page.run(READABLE)
    path = page.save(tmp_path / "traced.json")
    page.open()
    page.clear()
    page.load(path, "GuidanceTrace")
    page.page.wait_for_selector(".cg-trace polyline", state="attached", timeout=20_000)
    assert lines(page) == drawn


# no line runs over the numbers of the axis
CLEAR = """() => {
    const boxes = (name) => [...document.querySelectorAll(`.cg-trace ${name}`)].map(
        e => e.getBoundingClientRect());
    const numbers = Math.max(...boxes("text").map(b => b.right));
    return boxes("text").length > 2 && numbers < Math.min(...boxes("polyline").map(b => b.left));
}"""
READABLE = """() => {
    const said = document.querySelector(".cg-trace .cg-said");
    return said.scrollWidth <= said.clientWidth && said.innerText.includes("passes");
}"""


def test_nothing_of_the_plot_is_in_the_prompt(page, traced):
    assert set(page.prompt()[str(traced)]["inputs"]) == {"model"}
    kept = page.run("(id) => app.graph.getNodeById(id).serialize().widgets_values", traced)
    assert not kept


def test_label_field_offers_the_classes(page, traced, renderer):
    node = page.run("() => app.graph.nodes.find(n => n.type === 'ClassifierGuidance').id")
    before = page.value(node, "label")
    room = page.run(
        """(id) => {
            const widget = app.graph.getNodeById(id).widgets.find(w => w.name === "label");
            return widget.computedHeight - 2 * widget.margin - widget.element.offsetHeight;
        }""",
        node,
    )
    assert renderer != "classic" or room >= 0  # it does not lie on the next widget
    field = page.page.locator(".cg-label input").first
    field.focus()
    page.page.wait_for_function(
        "() => document.querySelector('.cg-label datalist').options.length === 10"
    )
    offered = page.run(
        "() => [...document.querySelector('.cg-label datalist').options].map(o => o.value)"
    )
    _, answer = page.server.request(
        "/classifier_guidance/classes?kind=classifiers&name=digits_classifier.safetensors"
    )
    assert offered[0].endswith(answer["classes"][0])
    field.fill("3, 5")
    field.blur()
    assert page.value(node, "label") == "3, 5" != before
    assert page.prompt()[str(node)]["inputs"]["label"] == "3, 5"


def test_label_of_a_model_offers_a_thousand_classes(page, server):
    """ADM Class Label behind a guided model of ImageNet's classes; the file is replaced."""
    path = server.base / "models" / "diffusion_models" / "thousand.safetensors"
    write_unet(path, classes=1000, null_class=None)
    page.run(
        """(name) => {
            const [loader, trace, label] = ["ADMModelLoader", "GuidanceTrace", "ADMClassLabel"].map(
                type => { const n = LiteGraph.createNode(type); app.graph.add(n); return n; });
            loader.widgets.find(w => w.name === "model_name").value = name;
            loader.connect(0, trace, 0);
            trace.connect(0, label, 0);
        }""",
        path.name,
    )
    field = page.page.locator(".cg-label input").first
    options = "[...document.querySelector('.cg-label datalist').options].map(o => o.value)"
    offered = []
    for count in (1000, 7):
        write_unet(path, classes=count, null_class=None)
        field.focus()
        page.page.wait_for_function(f"() => {options}.length === {count}")
        offered.append(page.run(f"() => {options}"))
        field.blur()
    assert "golden retriever" in offered[0]
    assert offered[1] == [str(index) for index in range(7)]


def test_classes_of_no_file(server):
    status, _ = server.request(
        "/classifier_guidance/classes?kind=classifiers&name=../x.safetensors"
    )
    assert status == 404
    status, _ = server.request("/classifier_guidance/classes?kind=loras&name=x")
    assert status == 404
