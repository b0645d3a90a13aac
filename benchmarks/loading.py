#!/usr/bin/env python3
"""Memory and time of loading a model file: python benchmarks/loading.py [FILE ...]

Ours, beside building the network and copying the file into it. Each in a fresh process; memory is
the highest that the process grew while loading, as a share of the file; Linux only. Without FILE,
random weights of the released 64x64 classifier. Prints a Markdown table.
"""

from __future__ import annotations

import asyncio
import json
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RUNS = 3


def write_model(path: Path, kind: str, dtype: str, channels: int | None = None) -> Path:
    """A file of the released 64x64 layout of that kind, perhaps of another width."""
    import torch

    from guidance.adm.network import build_network, shapes_of
    from guidance.adm.released import RELEASED
    from guidance.checkpoint import DTYPES, Description, save_checkpoint

    name = {"classifier": "64x64_classifier.pt", "diffusion": "64x64_diffusion.pt"}[kind]
    (layout,) = (one.layout for one in RELEASED if one.file == name)
    layout = replace(layout, model_channels=channels) if channels else layout
    shapes = shapes_of(build_network(layout, device="meta"))
    tensors = {k: torch.full(shape, 0.01, dtype=DTYPES[dtype]) for k, shape in shapes.items()}
    if path.suffix == ".safetensors":
        about = Description(kind=kind, layout=layout, noise_schedule="cosine", space="rgb")
        save_checkpoint(path, tensors, about)
    else:
        torch.save(tensors, path)
    return path


def load(how: str, path: Path, comfyui: str | None = None):
    """Returns a function that loads a file in that way."""
    from guidance.checkpoint import read_checkpoint

    if how == "library":
        from guidance import load_adm, load_classifier

        classifier = read_checkpoint(path).description.kind == "classifier"
        loader = load_classifier if classifier else load_adm
        return lambda file: loader(file, dtype="auto")
    if how == "comfyui":
        return _through_comfyui(path, comfyui)
    from guidance.adm.network import build_network

    layout = read_checkpoint(path).description.layout

    def copied(file):
        import torch
        from safetensors.torch import load_file

        network = build_network(layout)
        whole = file.suffix == ".safetensors"
        state = load_file(file) if whole else torch.load(file, weights_only=True)
        network.load_state_dict(state)
        return network

    return copied


def _through_comfyui(path: Path, comfyui: str | None):
    """The loaders' own way, in a ComfyUI of this process."""
    kind = _kind(path)
    sys.path[0] = str(comfyui)  # in the place of this script's own folder
    from comfy.cli_args import args

    args.cpu = True
    import folder_paths

    import nodes

    asyncio.run(nodes.load_custom_node(str(ROOT)))
    adapter = next(m for n, m in sys.modules.items() if n.endswith(".nodes.comfy_adapter"))
    folder = adapter.CLASSIFIERS if kind == "classifier" else adapter.DIFFUSION_MODELS
    folder_paths.add_model_folder_path(folder, str(path.parent))
    if kind == "classifier":
        return lambda file: adapter.load_classifier(file.name, "auto")
    return lambda file: adapter.load_adm(file.name, True, "auto")


def _kind(path: Path) -> str:
    from guidance.checkpoint import read_checkpoint

    return read_checkpoint(path).description.kind


def resident(which: str) -> int:
    """Bytes of this process in memory: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(which))


def measured(how: str, path: Path, comfyui: str | None = None) -> dict:
    """Seconds, and the growth as a share of the file, of one load."""
    sys.path.insert(0, str(ROOT))
    sys.path.insert(0, "")  # for _through_comfyui to replace
    import torch

    with tempfile.TemporaryDirectory() as folder:
        # what the first load of any file brings along is not this file's
        small = write_model(Path(folder) / f"small{path.suffix}", _kind(path), "fp32", 64)
        load(how, small, comfyui)(small)
    loader = load(how, path, comfyui)
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again
    before, start = resident("VmRSS"), time.perf_counter()
    with torch.inference_mode():
        model = loader(path)
    seconds = time.perf_counter() - start
    del model
    return {"seconds": seconds, "growth": (resident("VmHWM") - before) / path.stat().st_size}


def in_fresh_process(how: str, path: Path, comfyui: Path | None = None) -> dict:
    """The same in a process of its own."""
    command = [sys.executable, __file__, "--once", how, str(path)]
    command += [str(comfyui)] if comfyui else []
    done = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
    return json.loads(done.stdout.splitlines()[-1])


def main(files: list[Path]) -> None:
    """Prints the table."""
    print("| file | MB | memory, ours / file | memory, copying / file | time, ours / copying |")
    print("|---|---|---|---|---|")
    for path in files:
        ours, copying = (
            [in_fresh_process(how, path) for _ in range(RUNS)] for how in ("library", "copying")
        )
        time_ratio = median(ours, "seconds") / median(copying, "seconds")
        size = path.stat().st_size / 1e6
        print(
            f"| {path.name} | {size:.0f} | {median(ours, 'growth'):.2f} "
            f"| {median(copying, 'growth'):.2f} | {time_ratio:.2f} |"
        )


def median(runs: list[dict], name: str) -> float:
    """The median of one figure."""
    return statistics.median(run[name] for run in runs)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--once"]:
        how, path, *comfyui = sys.argv[2:]
        print(json.dumps(measured(how, Path(path), *comfyui)))
    elif sys.argv[1:]:
        main([Path(name) for name in sys.argv[1:]])
    else:
        sys.path.insert(0, str(ROOT))
        with tempfile.TemporaryDirectory() as folder:
            kinds = [
                (suffix, dtype) for suffix in ("pt", "safetensors") for dtype in ("fp32", "fp16")
            ]
            main([write_model(Path(folder) / f"{d}.{s}", "classifier", d) for s, d in kinds])
