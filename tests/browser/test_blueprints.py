"""The subgraph blueprints: found by name in the page's search, connected, and run."""

from __future__ import annotations

import json

import pytest

NAMES = ["Classifier-guided sampling", "Scheduled-CFG sampling"]
# widgets that the page draws on a subgraph's node; not the pack's own
DRAWN = {"combo", "number", "text", "string"}
# the nodes around a blueprint, by its inputs
AROUND = {
    "model": "ADMModelLoader",
    "classifier": "NoisyClassifierLoader",
    "positive": "ADMClassLabel",
    "negative": "ADMClassLabel",
    "latent_image": "EmptyLatentImage",
}
# the page registers the blueprints some time after its start
REGISTERED = """(name) => app.extensionManager._p._s.get("subgraph").subgraphBlueprints.some(
    one => one.display_name === name)"""


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
    inputs = page.run("(id) => app.graph.getNodeById(id).inputs.map(i => i.name)", node)
    made = {name: page.add(kind, -600, 0) for name, kind in AROUND.items() if name in inputs}
    decoded, shown = page.add("VAEDecode", 900, 0), page.add("PreviewImage", 1200, 0)
    links = [(made[name], 0, node, name) for name in made]
    links += [(made["model"], 0, made[name], "model") for name in ("positive", "negative")]
    links += [(node, 0, decoded, "samples"), (made["model"], 1, decoded, "vae")]
    for link in [*links, (decoded, 0, shown, "images")]:
        page.connect(*link)
    page.set_values(made["positive"], label=label)
    page.set_values(made["latent_image"], width=32, height=32)
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
