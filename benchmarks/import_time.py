#!/usr/bin/env python3
"""What the pack adds to ComfyUI's start: python benchmarks/import_time.py

Fresh processes, each of which first imports what ComfyUI has imported when it comes to custom
nodes, and then has ComfyUI's own loader load the pack. Prints the median of five.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUNS = 5


def load_pack(comfyui: str) -> dict:
    """Loads the pack in this process: the seconds it took, and the modules that it brought."""
    sys.path[0] = comfyui  # in the place of this script's own folder
    from comfy.cli_args import args

    args.cpu = True  # no time for waking up a GPU
    import nodes  # ComfyUI's, with torch and all of comfy that it needs

    # a node of core's, so that what the loader itself needs is there, too
    asyncio.run(nodes.load_custom_node(f"{comfyui}/comfy_extras/nodes_custom_sampler.py"))

    before = set(sys.modules)
    start = time.perf_counter()
    loaded = asyncio.run(nodes.load_custom_node(str(ROOT)))
    seconds = time.perf_counter() - start
    return {"loaded": loaded, "seconds": seconds, "modules": sorted(set(sys.modules) - before)}


def in_fresh_process(comfyui: Path) -> dict:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--once", str(comfyui)]
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main() -> None:
    """Prints the median and the single runs."""
    sys.path.insert(0, str(ROOT / "scripts"))
    from comfyui import find_comfyui

    comfyui = find_comfyui()
    seconds = [in_fresh_process(comfyui.path)["seconds"] for _ in range(RUNS)]
    each = ", ".join(f"{value:.3f}" for value in seconds)
    print(f"{comfyui}: {statistics.median(seconds):.3f} s (median of {each})")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--once"]:
        print(json.dumps(load_pack(sys.argv[2])))
    else:
        main()
