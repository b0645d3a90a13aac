"""What the benchmarks share: a ComfyUI in this process, and fresh processes."""

from __future__ import annotations

import asyncio
import importlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def find_comfyui() -> Any:
    """The ComfyUI that the tests would use, too."""
    sys.path.insert(0, str(ROOT / "scripts"))
    found = importlib.import_module("comfyui").find_comfyui()
    del sys.path[0]
    return found


def start_comfyui(comfyui: str) -> Any:
    """ComfyUI's own `nodes`, with torch and all of comfy that it needs; on the CPU."""
    sys.path[0] = comfyui  # in the place of the script's own folder
    from comfy.cli_args import args

    args.cpu = True  # no time for waking up a GPU
    return importlib.import_module("nodes")


def load_pack(nodes: Any) -> bool:
    """Has ComfyUI's loader load the pack; whether it could."""
    return asyncio.run(nodes.load_custom_node(str(ROOT)))


def in_fresh_process(script: str, *arguments: str) -> dict:
    """What `script --once arguments` prints as its last line, read as JSON."""
    command = [sys.executable, script, "--once", *arguments]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])
