"""The parts of the demo that need no model."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

import demo


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

    class Server:
        def __init__(self, comfyui):
            pass

        def __enter__(self):
            return self

        def __exit__(self, *exception):
            pass

        def run(self, workflow, progress):
            progress("KSampler", 10, 20)
            seed, after, *_ = demo.widgets(workflow, "KSampler")
            seeds.append((seed, after))
            return SimpleNamespace(images=[picture] * 2)

    monkeypatch.setattr(demo, "ComfyServer", Server)
    node = {"type": "KSampler", "widgets_values": [77, "randomize", 20, 1.0, "euler", "normal", 1]}
    images = demo.sample_in_comfyui(None, {"nodes": [node]})
    assert seeds == [(seed, "fixed") for seed in demo.SEEDS]
    assert images.shape == (2 * len(demo.SEEDS), 4, 4, 3)


def test_template_without_a_node_is_named():
    with pytest.raises(ValueError, match="ClassifierGuidance"):
        demo.widgets({"nodes": []}, "ClassifierGuidance")
