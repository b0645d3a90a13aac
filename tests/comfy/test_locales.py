"""The texts of every node in every language."""

from __future__ import annotations

import json

import pytest

LANGUAGES = ["en", "zh"]


@pytest.fixture(params=LANGUAGES)
def texts(request, root):
    """The node texts of a language."""
    path = root / "locales" / request.param / "nodeDefs.json"
    return request.param, json.loads(path.read_text(encoding="utf-8"))


def test_every_node_input_and_output_has_its_texts(pack_nodes, texts):
    language, nodes = texts
    assert set(nodes) == set(pack_nodes)
    for node_id, node in pack_nodes.items():
        schema, said = node.GET_SCHEMA(), nodes[node_id]
        assert said["display_name"] and said["description"]
        assert set(said["inputs"]) == {one.id for one in schema.inputs}, node_id
        assert len(said["outputs"]) == len(schema.outputs), node_id
        for one in (*said["inputs"].values(), *said["outputs"].values()):
            assert one["name"] and one["tooltip"], node_id


def test_the_page_shows_texts_whole(texts):
    """Its translations take | for the plural, and these others for what is to be filled in."""
    found = [part for part in strings(texts[1]) if set(part) & set("|@{}")]
    assert not found


def strings(value):
    """Every text in it."""
    if isinstance(value, str):
        yield value
    else:
        for inner in value.values():
            yield from strings(inner)


def test_english_is_what_the_nodes_say(pack_nodes, root):
    path = root / "locales" / "en" / "nodeDefs.json"
    assert json.loads(path.read_text(encoding="utf-8")) == english(pack_nodes)


def english(pack_nodes):
    """nodeDefs.json of the schemas themselves."""
    return {node_id: _texts(node.GET_SCHEMA()) for node_id, node in pack_nodes.items()}


def _texts(schema):
    return {
        "display_name": schema.display_name,
        "description": schema.description,
        "inputs": {one.id: {"name": one.id, "tooltip": one.tooltip} for one in schema.inputs},
        "outputs": {
            str(index): {"name": one.display_name or one.io_type, "tooltip": one.tooltip}
            for index, one in enumerate(schema.outputs)
        },
    }


def test_every_node_can_be_found_by_other_words(pack_nodes, root):
    chinese = json.loads((root / "locales" / "zh" / "search.json").read_text(encoding="utf-8"))
    for node_id, node in pack_nodes.items():
        aliases = node.GET_SCHEMA().search_aliases
        assert len(chinese[node_id]) >= 2 and set(chinese[node_id]) < set(aliases), node_id


@pytest.mark.parametrize("language", LANGUAGES)
def test_every_node_has_a_help_page_with_all_its_sockets(pack_nodes, root, language):
    said = json.loads((root / "locales" / language / "nodeDefs.json").read_text(encoding="utf-8"))
    for node_id, node in pack_nodes.items():
        page = root / "web" / "docs" / node_id / f"{language}.md"
        text = page.read_text(encoding="utf-8")
        assert text.startswith("# ")
        sockets = [one.id for one in node.GET_SCHEMA().inputs]
        # as the page shows them in this language
        shown = (*said[node_id]["inputs"].values(), *said[node_id]["outputs"].values())
        sockets += [one["name"] for one in shown]
        assert not [name for name in sockets if f"`{name}`" not in text], page
