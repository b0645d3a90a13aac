"""The subgraph blueprints: found by name in the page's search, wired, and run."""

from __future__ import annotations

import json

import pytest

NAMES = ["Classifier-guided sampling", "Scheduled-CFG sampling"]
SEEN = {"combo", "number", "text", "string"}
# What a run needs around a blueprint: its node types, and from which output each input comes.
AROUND = {
    "model": ("ADMModelLoader", 0),
    "classifier": ("NoisyClassifierLoader", 0),
    "positive": ("ADMClassLabel", 0),
    "negative": ("ADMClassLabel", 0),
    "latent_image": ("EmptyLatentImage", 0),
}


def inside(prompt, kind):
    """The inputs of the only node of this type that would be queued."""
    (node,) = (node for node in prompt.values() if node["class_type"] == kind)
    return node["inputs"]


def followed(prompt, value):
    """A widget's value, or what a link to a primitive node carries."""
    return prompt[value[0]]["inputs"]["value"] if isinstance(value, list) else value


def search(page, name):
    """Types a name into the page's search until a blueprint is found by it.

    The page fetches the blueprints after its start, and looks for them only when one types; on a
    busy machine that may be too late, or fail.
    """
    field = page.page.get_by_placeholder("Add a node...")
    found = page.page.get_by_text("Blueprint", exact=True).first
    for attempt in range(6):
        if attempt % 2:
            page.open()
            page.clear()
        if not field.is_visible():
            page.page.mouse.dblclick(700, 500)
            field.wait_for()
        field.fill("")
        field.press_sequentially(name, delay=10)
        for _ in range(40):
            if found.is_visible():
                return
            page.page.wait_for_timeout(250)
    pytest.fail(f"the page's search did not find {name}")


@pytest.fixture
def insert(page):
    """Inserts a blueprint as the user does, by its name; the node's id."""

    def run(name):
        search(page, name)
        page.page.wait_for_timeout(500)
        page.page.keyboard.press("Enter")
        page.page.wait_for_function("() => app.graph.nodes.some(node => node.subgraph)")
        page.page.mouse.click(700, 300)  # lets go of the node
        page.page.wait_for_timeout(500)
        node = page.run("() => app.graph.nodes.find(node => node.subgraph).id")
        # the page draws no widget of a pack's own on a subgraph's node, so a blueprint has none
        kinds = page.run("(id) => app.graph.getNodeById(id).widgets.map(w => w.type)", node)
        assert len(kinds) >= 8 and set(kinds) <= SEEN, kinds
        return node

    return run


@pytest.fixture
def wire(page):
    """Puts the pack's digits around a blueprint, and a picture behind it."""

    def run(blueprint, label):
        page.run(
            """([id, label, around]) => {
                const node = app.graph.getNodeById(id);
                const made = {};
                const add = (type, x, y) => {
                    const one = LiteGraph.createNode(type);
                    one.pos = [x, y];
                    app.graph.add(one);
                    return one;
                };
                let y = 0;
                for (const [input, [type, output]] of Object.entries(around)) {
                    const slot = node.inputs.findIndex(one => one.name === input);
                    if (slot < 0) continue;
                    made[input] = add(type, -600, y += 200);
                    made[input].connect(output, node, slot);
                }
                for (const one of [made.positive, made.negative])
                    made.model.connect(0, one, 0);
                made.positive.widgets.find(w => w.name === "label").value = label;
                for (const side of ["width", "height"])
                    made.latent_image.widgets.find(w => w.name === side).value = 32;
                const decode = add("VAEDecode", 900, 0);
                const show = add("PreviewImage", 1200, 0);
                node.connect(0, decode, 0);
                made.model.connect(1, decode, 1);
                decode.connect(0, show, 0);
            }""",
            [blueprint, label, AROUND],
        )
        page.page.wait_for_timeout(500)

    return run


def finished(page, server):
    """Presses Run; what the server says of it."""
    _, before = server.request("/history")
    page.queue()
    for _ in range(600):
        page.page.wait_for_timeout(250)
        _, after = server.request("/history")
        if len(after) > len(before):
            (key,) = after.keys() - before.keys()
            return after[key]
    pytest.fail("the run did not end")


def images(run):
    return [image for shown in run["outputs"].values() for image in shown.get("images", [])]


def test_server_lists_them(server):
    _, listed = server.request("/global_subgraphs")
    ours = [one for one in listed.values() if one["source"] == "custom_node"]
    assert sorted(one["name"] for one in ours) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_file_is_one_node_and_its_subgraph(root, name):
    """What the page asks of a blueprint; and no id or place that is a machine's own."""
    blueprint = json.loads((root / "subgraphs" / f"{name}.json").read_text("utf-8"))
    (node,), (subgraph,) = blueprint["nodes"], blueprint["definitions"]["subgraphs"]
    assert node["type"] == subgraph["id"]
    assert node["title"] == subgraph["name"] == name
    assert [one["name"] for one in node["inputs"]] == [one["name"] for one in subgraph["inputs"]]
    assert subgraph["description"] and subgraph["category"]


def test_classifier_guided_sampling(page, server, insert, wire):
    node = insert("Classifier-guided sampling")
    assert page.value(node, "scale") == 1
    wire(node, "")
    for widget, value in {"label": "7", "scale": 8, "steps": 3, "seed": 5}.items():
        page.set_value(node, widget, value)
    prompt = page.prompt()
    guided, sampler = inside(prompt, "ClassifierGuidance"), inside(prompt, "KSampler")
    assert followed(prompt, guided["label"]) == "7"
    assert (guided["scale"], sampler["steps"], sampler["seed"]) == (8, 3, 5)
    assert (sampler["cfg"], guided["every"]) == (1, 1)
    run = finished(page, server)
    assert run["status"]["status_str"] == "success", run["status"]
    assert len(images(run)) == 1


def test_scheduled_cfg_sampling(page, server, insert, wire):
    node = insert("Scheduled-CFG sampling")
    assert page.value(node, "shape") == "interval"
    wire(node, "7")
    for widget, value in {"shape": "linear", "scale": 4, "end": 0.5, "steps": 3}.items():
        page.set_value(node, widget, value)
    prompt = page.prompt()
    schedule, sampler = inside(prompt, "GuidanceSchedule"), inside(prompt, "KSampler")
    assert (schedule["shape"], schedule["scale"], schedule["end"]) == ("linear", 4, 0.5)
    assert sampler["steps"] == 3
    run = finished(page, server)
    assert run["status"]["status_str"] == "success", run["status"]
    assert len(images(run)) == 1
