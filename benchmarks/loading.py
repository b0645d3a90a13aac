#!/usr/bin/env python3
"""Memory and time of loading a model file: python benchmarks/loading.py [FILE ...]

Ours, beside building the network and copying the file into it. Each in a fresh process; memory is
the highest that the process grew while loading, as a share of the file; Linux only. Without FILE,
random weights of the released 64x64 classifier. Prints a Markdown table.
"""

from __future__ import annotations

import ctypes
import gc
import json
import statistics
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

from harness import ROOT, Row, in_fresh_process, load_pack, start_comfyui, use_library

RUNS = 3


def write_model(
    path: Path, kind: str, dtype: str, channels: int | None = None, size: int = 64
) -> Path:
    """A file of the released layout of that kind and size, perhaps of another width."""
    import torch

    from guidance.adm.build import build_network, shapes_of
    from guidance.adm.released import RELEASED
    from guidance.checkpoints.checkpoint import DTYPES, Description, save_checkpoint

    name = f"{size}x{size}_{kind}.pt"
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


def load(how: str, kind: str, comfyui: str | None = None):
    """A function that loads a file of that kind in that way."""
    if how == "library":
        from guidance import load_adm, load_classifier

        loader = load_classifier if kind == "classifier" else load_adm
        return lambda file: loader(file, dtype="auto")
    if how == "comfyui":
        return _through_comfyui(kind, str(comfyui))
    return _copied


def _copied(file: Path):
    """A network with memory of its own, and the file's tensors copied into it."""
    import torch
    from safetensors.torch import load_file

    from guidance.adm.build import build_network
    from guidance.checkpoints.checkpoint import read_checkpoint

    network = build_network(read_checkpoint(file).description.layout)
    whole = file.suffix == ".safetensors"
    network.load_state_dict(load_file(file) if whole else torch.load(file, weights_only=True))
    return network


def _through_comfyui(kind: str, comfyui: str):
    """The loaders' own way, in a ComfyUI of this process."""
    load_pack(start_comfyui(comfyui))
    import folder_paths

    def host(name: str):
        return next(m for n, m in sys.modules.items() if n.endswith(f".nodes.host.{name}"))

    paths = host("paths")
    folder = paths.CLASSIFIERS if kind == "classifier" else paths.DIFFUSION_MODELS

    def load(file: Path):
        folder_paths.add_model_folder_path(folder, str(file.parent))
        if kind == "classifier":
            return host("classifiers").load_classifier(file.name, "auto")
        return host("adm_model").load_adm(file.name, True, "auto", {})

    return load


def resident(which: str) -> int:
    """Bytes of this process in memory: VmRSS now, VmHWM at most."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(which))


def give_back() -> None:
    """Memory that was freed goes back to the system; else the next load would grow less."""
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)


def measured(how: str, path: Path, comfyui: str | None = None) -> dict:
    """Seconds, and the growth as a share of the file, of one load."""
    sys.path.insert(1, str(ROOT))
    import torch

    from guidance.checkpoints.checkpoint import read_checkpoint

    kind = read_checkpoint(path).description.kind
    loader = load(how, kind, comfyui)
    with tempfile.TemporaryDirectory() as folder:
        # what the first load of any file brings along is not this file's
        loader(write_model(Path(folder) / f"small{path.suffix}", kind, "fp32", 64))
    give_back()
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM starts again
    before, start = resident("VmRSS"), time.perf_counter()
    with torch.inference_mode():
        model = loader(path)
    seconds = time.perf_counter() - start
    del model
    return {"seconds": seconds, "growth": (resident("VmHWM") - before) / path.stat().st_size}


def main(files: list[Path]) -> None:
    """Prints the table."""
    print("| file | MB | memory, ours / file | memory, copying / file | time, ours / copying |")
    print("|---|---|---|---|---|")
    for path in files:
        ours, copying = runs("library", path), runs("copying", path)
        time_ratio = median(ours, "seconds") / median(copying, "seconds")
        size = path.stat().st_size / 1e6
        print(
            f"| {path.name} | {size:.0f} | {median(ours, 'growth'):.2f} "
            f"| {median(copying, 'growth'):.2f} | {time_ratio:.2f} |"
        )


def rows() -> Iterator[Row]:
    """A 256x256 classifier against torch.load and a strict load into a network."""
    use_library()
    with tempfile.TemporaryDirectory() as folder:
        path = write_model(Path(folder) / "classifier.pt", "classifier", "fp32", size=256)
        ours, copying = runs("library", path), runs("copying", path)
    for name, figure, bar in (("time", "seconds", 1.0), ("memory", "growth", 0.6)):
        ratio = median(ours, figure) / median(copying, figure)
        yield Row(f"loading a 256x256 classifier, {name}", "torch.load, strict load", ratio, bar)


def runs(how: str, path: Path) -> list[dict]:
    """Some runs, each in a process of its own."""
    return [in_fresh_process(__file__, how, str(path)) for _ in range(RUNS)]


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
