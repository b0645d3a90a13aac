#!/usr/bin/env python3
"""What the pack adds to ComfyUI's start: python benchmarks/import_time.py

Fresh processes, each of which first imports what ComfyUI has imported when it comes to custom
nodes, and then has ComfyUI's own loader load the pack. Prints the median of five.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import sys
import time

from harness import find_comfyui, in_fresh_process, load_pack, start_comfyui

RUNS = 5


def measured(comfyui: str) -> dict:
    """Loads the pack in this process: the seconds it took, and the modules that it brought."""
    nodes = start_comfyui(comfyui)
    # a node of core's, so that what the loader itself needs is there, too
    asyncio.run(nodes.load_custom_node(f"{comfyui}/comfy_extras/nodes_custom_sampler.py"))

    before = set(sys.modules)
    start = time.perf_counter()
    loaded = load_pack(nodes)
    seconds = time.perf_counter() - start
    return {"loaded": loaded, "seconds": seconds, "modules": sorted(set(sys.modules) - before)}


def main() -> None:
    """Prints the median and the single runs."""
    comfyui = find_comfyui()
    path = str(comfyui.path)
    seconds = [in_fresh_process(__file__, path)["seconds"] for _ in range(RUNS)]
    each = ", ".join(f"{value:.3f}" for value in seconds)
    print(f"{comfyui}: {statistics.median(seconds):.3f} s (median of {each})")


if __name__ == "__main__":
    if sys.argv[1:2] == ["--once"]:
        print(json.dumps(measured(sys.argv[2])))
    else:
        main()
