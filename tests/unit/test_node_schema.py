"""What counts as a break of saved workflows."""

from __future__ import annotations

import copy
import json

import pytest

from node_schema import breaks, describe, written

INFO = {
    "input": {
        "required": {
            "model": ["MODEL", {"tooltip": "Any."}],
            "shape": ["COMBO", {"options": ["linear", "cosine"], "default": "linear"}],
            "model_name": ["COMBO", {"options": ["a.safetensors"]}],
            "seed": ["INT", {"default": 0, "min": 0, "max": 9, "control_after_generate": True}],
        },
        "optional": {"cap": ["FLOAT", {"default": 0.5, "min": 0.0, "max": 1.0}]},
        "hidden": {"unique_id": ["UNIQUE_ID"]},
    },
    "input_order": {"required": ["model", "shape", "model_name", "seed"], "optional": ["cap"]},
    "output": ["MODEL", "IMAGE"],
    "output_name": ["MODEL", "plot"],
    "output_is_list": [False, False],
}
NODE = describe(INFO)
FIRST = {"name": "every", "type": "INT", "optional": True}


def changed(change):
    """What breaks in a workflow of NODE when this is done to it."""
    after = copy.deepcopy(NODE)
    change(after)
    return breaks({"Node": NODE}, {"Node": after})


def set_input(place, **values):
    return lambda node: node["inputs"][place].update(values)


def swap(group, one, other):
    def change(node):
        node[group][one], node[group][other] = node[group][other], node[group][one]

    return change


def append(**values):
    return lambda node: node["inputs"].append({"name": "every", "type": "INT", **values})


def test_what_is_kept_of_a_node():
    names = [one["name"] for one in NODE["inputs"]]
    assert names == [*INFO["input"]["required"], *INFO["input"]["optional"]]
    assert NODE["inputs"][0] == {"name": "model", "type": "MODEL"}
    assert "options" not in NODE["inputs"][2]  # the files of a machine
    assert NODE["inputs"][3]["control_after_generate"]
    assert NODE["inputs"][4]["optional"]
    assert [one["type"] for one in NODE["outputs"]] == ["MODEL", "IMAGE"]


def test_what_may_change():
    for change in (
        append(optional=True, default=1),
        set_input(1, options=["linear", "cosine", "power"]),
        set_input(3, default=5),  # saved workflows have their own value
        set_input(3, max=99),
        set_input(4, min=-1.0),
        set_input(1, options=["power", "cosine", "linear"]),  # values are saved by name
        lambda node: node["outputs"].append({"name": "json", "type": "STRING"}),
    ):
        assert changed(change) == []
    assert breaks({"Node": NODE}, {"Node": NODE, "Other": NODE}) == []
    assert breaks({"Node": NODE}, {"Other": NODE}) == ["Node is gone."]


@pytest.mark.parametrize(
    "change, said",
    [
        (lambda node: node["inputs"].pop(1), "input shape is gone"),
        (swap("inputs", 1, 3), "input shape was number 2 and is number 4"),
        (lambda node: node["inputs"].insert(0, FIRST), "input model was number 1 and is number 2"),
        (append(), "input every is new, so it has to be optional"),
        (set_input(1, name="form"), "input shape is gone"),
        (set_input(3, type="FLOAT"), "input seed: type changed from INT to FLOAT"),
        (set_input(3, control_after_generate=False), "control_after_generate changed"),
        (set_input(3, forceInput=True), "forceInput changed"),
        (set_input(1, options=["linear"]), "no longer offers cosine"),
        (set_input(4, default=0.0), "default changed from 0.5 to 0.0"),
        (set_input(4, optional=False), "input cap was optional"),
        (set_input(4, min=0.1), "min 0.0 became 0.1"),
        (set_input(4, max=0.9), "max 1.0 became 0.9"),
        (set_input(0, max=3), "max None became 3"),
        (lambda node: node["outputs"].pop(), "output plot is gone"),
        (swap("outputs", 0, 1), "output MODEL was number 1 and is number 2"),
        (lambda node: node["outputs"][1].update(type="MASK"), "changed from IMAGE to MASK"),
        (lambda node: node["outputs"][1].update(list=True), "changed from IMAGE to IMAGE list"),
    ],
)
def test_what_breaks(change, said):
    found = changed(change)
    assert any(said in line for line in found), found


def test_the_file_is_json_with_a_line_for_each_input():
    nodes = {"Node": NODE, "Empty": {"inputs": [], "outputs": []}}
    text = written("1.2.3", nodes)
    assert json.loads(text) == {"version": "1.2.3", "nodes": nodes}
    assert sum('"name"' in line for line in text.splitlines()) == 7
