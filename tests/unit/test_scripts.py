"""What the demo and the tests stand on: finding a ComfyUI, and ending what was started."""

from __future__ import annotations

import contextlib
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import comfyui as tools
import demo


def checkout(folder, version="1.2.3"):
    """A folder that looks like a ComfyUI."""
    (folder / "main.py").write_text("")
    (folder / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')


def test_the_comfyui_of_a_path_is_used_or_refused(monkeypatch, tmp_path):
    """A name that is wrong is an error, not a reason to look elsewhere."""
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(tools.ComfyUIError, match="main.py"):
        tools.find_comfyui()
    checkout(tmp_path)
    found = tools.find_comfyui()
    assert (found.path, found.version, found.found_by) == (tmp_path, "1.2.3", "COMFYUI_PATH")
    checkout(tmp_path, version="0.18.9")
    with pytest.raises(tools.NoComfyUI, match=r"0\.18\.9.*0\.19\.0"):
        tools.find_comfyui()
    (tmp_path / "main.py").unlink()
    monkeypatch.delenv("COMFYUI_PATH")
    monkeypatch.setattr(tools, "comfy_cli_workspace", lambda: tmp_path)
    with pytest.raises(tools.NoComfyUI, match="comfy install"):
        tools.find_comfyui()


@pytest.mark.processes
def test_leash_ends_the_whole_tree(root, tmp_path):
    """The command and its own children end when the parent lets go."""
    ticks = tmp_path / "ticks"
    child = f"""
import time
while True:
    open({str(ticks)!r}, "a").write("tick")
    time.sleep(0.05)
"""
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    leash = [sys.executable, str(root / "scripts" / "leash.py"), sys.executable, "-c"]
    with subprocess.Popen([*leash, "exit(7)"], stdin=subprocess.PIPE) as process:
        assert process.wait(timeout=30) == 7, "it passes the exit status on"
    process = subprocess.Popen([*leash, parent], stdin=subprocess.PIPE)
    while process.poll() is None and not (ticks.exists() and ticks.stat().st_size):
        time.sleep(0.05)
    process.stdin.close()
    process.wait(timeout=30)
    time.sleep(0.3)  # a tick that was under way
    size = ticks.stat().st_size
    time.sleep(0.5)
    assert size > 0
    assert ticks.stat().st_size == size


def test_grid_has_a_row_for_each_seed(tmp_path):
    """Images arrive seed by seed, and each takes its place enlarged and unblurred."""
    images = np.arange(6, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 3), np.uint8)
    demo.save_grid(images, columns=3, path=tmp_path / "output" / "grid.png")
    with Image.open(tmp_path / "output" / "grid.png") as grid:
        values = np.asarray(grid)[..., 0]
    side = 4 * demo.ENLARGE
    assert values.shape == (2 * side, 3 * side)
    assert np.array_equal(values[::side, ::side], [[0, 1, 2], [3, 4, 5]])
    assert np.array_equal(values[side - 1 :: side, side - 1 :: side], [[0, 1, 2], [3, 4, 5]])


def test_every_seed_is_sampled(monkeypatch, tmp_path):
    """The template runs once per seed, with the seed fixed and the progress passed on."""
    picture = tmp_path / "picture.png"
    Image.new("RGB", (4, 4)).save(picture)
    seeds = []

    def run(workflow, progress):
        progress("KSampler", 10, 20)
        seed, after, *_ = demo.widgets(workflow, "KSampler")
        seeds.append((seed, after))
        return SimpleNamespace(images=[picture] * 2)

    server = contextlib.nullcontext(SimpleNamespace(run=run))
    monkeypatch.setattr(demo, "ComfyServer", lambda comfyui: server)
    values = [77, "randomize", 20, 1.0, "euler", "normal", 1]
    nodes = [{"id": k, "type": kind} for k, kind in enumerate(("VAEDecode", "Grid", "SaveImage"))]
    nodes.append({"type": "KSampler", "widgets_values": values})
    workflow = {"nodes": nodes, "links": [[1, 0, 0, 1, 0, "IMAGE"], [2, 1, 0, 2, 0, "IMAGE"]]}
    images = demo.sample_in_comfyui(None, workflow)
    assert workflow["links"][1][1:5] == [0, 0, 2, 0]  # each image, and not the grid of them
    assert seeds == [(seed, "fixed") for seed in demo.SEEDS]
    assert images.shape == (2 * len(demo.SEEDS), 4, 4, 3)
