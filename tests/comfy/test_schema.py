"""Workflows saved with the last release run with these nodes."""

from __future__ import annotations

import json
import re

import pytest

from node_schema import RELEASED, breaks, describe


@pytest.fixture(scope="module")
def released():
    """The nodes of the last release."""
    return json.loads(RELEASED.read_text("utf-8"))


@pytest.fixture(scope="module")
def current(pack_nodes):
    """The nodes as the page sees them."""
    return {name: describe(node.GET_NODE_INFO_V1()) for name, node in pack_nodes.items()}


def test_saved_workflows_still_run(released, current):
    assert breaks(released["nodes"], current) == []


def test_every_node_of_the_release_is_looked_at(released, current):
    """The file names what there is: nodes, inputs and outputs, none of them empty."""
    assert len(released["nodes"]) == 17
    assert set(released["nodes"]) <= set(current)
    assert sum(len(node["inputs"]) for node in released["nodes"].values()) == 88


def test_the_release_is_in_the_changelog(released, root):
    versions = re.findall(r"^## \[([\d.]+)\]", (root / "CHANGELOG.md").read_text("utf-8"), re.M)
    assert released["version"] in versions


def test_the_pack_is_loaded_as_a_v3_extension(pack, pack_nodes):
    """ComfyUI only calls comfy_entrypoint where NODE_CLASS_MAPPINGS is missing; no id twice."""
    assert callable(pack.comfy_entrypoint)
    assert getattr(pack, "NODE_CLASS_MAPPINGS", None) is None
    assert len(pack_nodes) == len(set(pack_nodes.values())) > 0
