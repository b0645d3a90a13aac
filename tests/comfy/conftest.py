"""A real ComfyUI inside the test process, on the CPU, with the pack loaded as ComfyUI loads it."""

from __future__ import annotations

import asyncio
import importlib
import inspect
import sys
from pathlib import Path

import pytest


@pytest.fixture(scope="session", autouse=True)
def comfy(comfyui, tmp_path_factory):
    """ComfyUI's modules are importable (`import comfy.sample`), and write to a temporary folder."""
    sys.path.insert(0, str(comfyui.path))
    # Before anything else of ComfyUI is imported: the rest reads these when it is imported. Nobody
    # calls comfy.options.enable_args_parsing here, so pytest's own arguments are not parsed.
    from comfy.cli_args import args

    args.cpu = True
    args.base_directory = str(tmp_path_factory.mktemp("comfyui"))
    import comfy

    return comfy


@pytest.fixture(scope="session")
def pack(comfy, root: Path):
    """The pack's top module. ComfyUI names it by its path, with every dot replaced."""
    name = str(root).replace(".", "_x_")
    spec = importlib.util.spec_from_file_location(name, root / "__init__.py")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="session")
def pack_module(pack):
    """Imports a module of the pack: `pack_module("nodes.loaders")`, `pack_module("guidance")`.

    The pack's guidance is not the tests' `import guidance`: the same files under another name, so
    their classes differ.
    """
    return lambda name: importlib.import_module(f"{pack.__name__}.{name}")


@pytest.fixture(scope="session")
def pack_nodes(pack):
    """The pack's node classes by node id, as ComfyUI would register them."""

    async def nodes():
        extension = pack.comfy_entrypoint()
        if inspect.isawaitable(extension):
            extension = await extension
        await extension.on_load()
        return await extension.get_node_list()

    return {node.GET_SCHEMA().node_id: node for node in asyncio.run(nodes())}
