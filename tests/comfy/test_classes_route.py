"""The HTTP route for the classes of a file, which does not block the event loop."""

from __future__ import annotations

import asyncio
import json
import sys
import threading
from types import SimpleNamespace

import pytest


@pytest.fixture
def fetch(pack_nodes, pack_module, monkeypatch):
    """`fetch(kind=..., name=...)` as the page sends it: the status and the answer."""
    from aiohttp import web

    routes = web.RouteTableDef()
    instance = SimpleNamespace(routes=routes)
    server = SimpleNamespace(PromptServer=SimpleNamespace(instance=instance))
    monkeypatch.setitem(sys.modules, "server", server)
    pack_module("nodes.host.server").add_routes(lambda text: {})
    (handler,) = [route.handler for route in routes if route.path.endswith("/classes")]

    def run(**query):
        response = asyncio.run(handler(SimpleNamespace(query=query)))
        return response.status, json.loads(response.text)

    return run


@pytest.mark.parametrize(
    ("kind", "name", "classes", "named"),
    [
        ("classifiers", "any_size.safetensors", ["0", "1", "2", "3"], False),
        ("diffusion_models", "conditional.safetensors", ["0", "1", "2", "3"], False),
        ("diffusion_models", "unconditional.safetensors", [], False),
        ("image_classifiers", "digits_judge.safetensors", list("0123456789"), True),
        ("classifiers", "broken.safetensors", [], False),
        # OpenAI's, which are not there
        ("diffusion_models", "256x256_diffusion_uncond.pt", [], False),
    ],
)
def test_classes_of_a_file(files, fetch, kind, name, classes, named):
    (files["classifiers"] / "broken.safetensors").write_bytes(b"no file")
    try:
        assert fetch(kind=kind, name=name) == (200, {"classes": classes, "named": named})
    finally:
        (files["classifiers"] / "broken.safetensors").unlink()


def test_classes_of_openais_files_before_they_are_there(files, fetch):
    for kind, name in (
        ("classifiers", "64x64_classifier.pt"),
        ("classifiers", "openai\\256x256_classifier.pt"),
        ("diffusion_models", "adm/512x512_diffusion.pt"),
    ):
        status, answer = fetch(kind=kind, name=name)
        assert (status, len(answer["classes"]), answer["named"]) == (200, 1000, True)
        assert answer["classes"][207] == "golden retriever"


@pytest.mark.parametrize("kind", ["classifiers", "diffusion_models", "image_classifiers", "vae"])
@pytest.mark.parametrize("name", ["nowhere.safetensors", "../secret.safetensors", ""])
def test_a_file_that_no_loader_offers(files, fetch, pack_module, kind, name):
    assert pack_module("nodes.host.server").classes_of(kind, name) is None
    assert fetch(kind=kind, name=name) == fetch() == (404, {"classes": [], "named": False})


@pytest.mark.parametrize("kind", ["classifiers", "diffusion_models", "image_classifiers"])
def test_folders_are_listed_beside_the_event_loop(files, fetch, monkeypatch, kind):
    """A slow disk must not hold up the page: nothing of it is read in the loop's own thread."""
    import folder_paths

    listed, names_of = [], folder_paths.get_filename_list

    def spy(folder):
        listed.append(threading.current_thread())
        return names_of(folder)

    monkeypatch.setattr(folder_paths, "get_filename_list", spy)
    assert fetch(kind=kind, name="any_size.safetensors")[0] in (200, 404)
    assert listed and threading.main_thread() not in listed
