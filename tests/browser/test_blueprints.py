"""The subgraph blueprints: found by name in the page's search, connected, and run."""

from __future__ import annotations

import json

import pytest

NAMES = ["Classifier-guided sampling", "Scheduled-CFG sampling"]
# widgets that the page draws on a subgraph's node; not the pack's own
DRAWN = {"combo", "number", "text", "string"}
# the nodes around a blueprint, by its inputs: their types, and which output is connected
AROUND = {
    "model": ("ADMModelLoader", 0),
    "classifier": ("NoisyClassifierLoader", 0),
    "positive": ("ADMClassLabel", 0),
    "negative": ("ADMClassLabel", 0),
    "latent_image": ("EmptyLatentImage", 0),
}
# the page registers the blueprints some time after its start
REGISTERED = """(name) => app.extensionManager._p._s.get("subgraph").subgraphBlueprints.some(
    one => one.display_name === name)"""
CONNECT = """([id, label, around]) => {
    const node = app.graph.getNodeById(id);
    const made = {};
    const add = (type, x, y) => {
        const one = LiteGraph.createNode(type);
        one.pos = [x, y];
        app.graph.add(one);
        return one;
    };
    for (const [input, [type, output]] of Object.entries(around)) {
        const slot = node.inputs.findIndex(one => one.name === input);
        if (slot < 0) continue;
        made[input] = add(type, -600, 200 * Object.keys(made).length);
        made[input].connect(output, node, slot);
    }
    for (const one of [made.positive, made.negative]) made.model.connect(0, one, 0);
    made.positive.widgets.find(w => w.name === "label").value = label;
    for (const side of ["width", "height"])
        made.latent_image.widgets.find(w => w.name === side).value = 32;
    const decode = add("VAEDecode", 900, 0);
    node.connect(0, decode, 0);
    made.model.connect(1, decode, 1);
    decode.connect(0, add("PreviewImage", 1200, 0), 0);
}"""


def test_server_lists_them(server):
    _, listed = server.request("/global_subgraphs")
    names = [one["name"] for one in listed.values() if one["source"] == "custom_node"]
    assert sorted(names) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_file_is_one_node_and_its_subgraph(root, name):
    blueprint = json.loads((root / "subgraphs" / f"{name}.json").read_text("utf-8"))
    (node,), (subgraph,) = blueprint["nodes"], blueprint["definitions"]["subgraphs"]
    assert node["type"] == subgraph["id"]
    assert node["title"] == subgraph["name"] == name
    assert [one["name"] for one in node["inputs"]] == [one["name"] for one in subgraph["inputs"]]
    assert subgraph["description"] and subgraph["category"]


def insert(page, name, label):
    """Inserts a blueprint by the page's search, and connects it; the node's id."""
    page.wait(REGISTERED, name)
    page.tab.mouse.move(700, 500)  # the page puts the node there
    page.run("() => app.extensionManager.command.execute('Workspace.SearchBox.Toggle')")
    page.tab.get_by_placeholder("Add a node...").press_sequentially(name)
    page.expect(page.tab.get_by_role("option").first).to_contain_text(name)
    page.tab.keyboard.press("Enter")
    node = page.wait("() => app.graph.nodes.find(node => node.subgraph)?.id")
    page.expect(page.tab.get_by_role("dialog")).to_have_count(0)
    page.tab.mouse.click(700, 300)  # the node no longer follows the mouse
    kinds = page.run("(id) => app.graph.getNodeById(id).widgets.map(w => w.type)", node)
    assert len(kinds) >= 8 and set(kinds) <= DRAWN, kinds
    page.run(CONNECT, [node, label, AROUND])
    return node


def inputs_of(prompt, kind):
    """The inputs of the prompt's only node of this type, with the values of primitive nodes."""
    (node,) = (node for node in prompt.values() if node["class_type"] == kind)
    linked = {k: prompt[v[0]] for k, v in node["inputs"].items() if isinstance(v, list)}
    primitive = {k: n["inputs"]["value"] for k, n in linked.items() if "value" in n["inputs"]}
    return node["inputs"] | primitive


def test_classifier_guided_sampling(page):
    node = insert(page, "Classifier-guided sampling", "")
    assert page.value(node, "scale") == 1
    page.set_values(node, label="7", scale=8, steps=3, seed=5)
    prompt = page.prompt()
    guided, sampler = inputs_of(prompt, "ClassifierGuidance"), inputs_of(prompt, "KSampler")
    assert (guided["label"], guided["scale"]) == ("7", 8)
    assert (sampler["steps"], sampler["seed"], sampler["cfg"]) == (3, 5, 1)
    check(page.queue())


def test_scheduled_cfg_sampling(page):
    node = insert(page, "Scheduled-CFG sampling", "7")
    page.set_values(node, shape="linear", scale=4, end=0.5, steps=3)
    prompt = page.prompt()
    schedule, sampler = inputs_of(prompt, "GuidanceSchedule"), inputs_of(prompt, "KSampler")
    assert (schedule["shape"], schedule["scale"], schedule["end"]) == ("linear", 4, 0.5)
    assert sampler["steps"] == 3
    check(page.queue())


def check(run):
    """The run succeeded and drew one image."""
    assert run["status"]["status_str"] == "success", run["status"]
    assert [len(shown["images"]) for shown in run["outputs"].values()] == [1]
