"""Turns digits that the included model drew into those that a training can be tried on.

    python models/drawn_digits.py drawn.npz models/training/drawn_digits.npz

Reads an .npz of `python -m guidance sample`, and keeps as many of each digit as there are of the
rarest, of those that the judge reads as what they were meant to be. In gray, with the faint noise
of the black removed.
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

MODELS = Path(__file__).resolve().parent
sys.path.insert(0, str(MODELS.parent))

from guidance import load_classifier  # noqa: E402 (found by the line above)

FAINT = 24  # of 255
EACH = 200


def gray(images: np.ndarray) -> np.ndarray:
    """uint8 (N, H, W, 3) -> (N, H, W, 1)."""
    mean = np.rint(images.mean(axis=3, keepdims=True)).astype(np.uint8)
    return np.where(mean < FAINT, 0, mean).astype(np.uint8)


def read_by_the_judge(images: np.ndarray) -> np.ndarray:
    """The digit that it sees in each of uint8 (N, H, W, 1)."""
    judge = load_classifier(MODELS / "classifiers" / "digits_judge.safetensors")
    x = torch.from_numpy(images).movedim(-1, 1).float() / 127.5 - 1
    with torch.no_grad():
        seen = [judge.image_log_probs(part.expand(-1, 3, -1, -1)) for part in x.split(250)]
    return torch.cat(seen).argmax(dim=1).numpy()


def main(source: str, target: str) -> None:
    with np.load(source, allow_pickle=False) as drawn:
        images, labels = gray(drawn["arr_0"]), drawn["arr_1"]
    right = read_by_the_judge(images) == labels
    print(f"{source}: the judge reads {right.mean():.1%} of {len(images)} right")
    kept = np.sort(
        np.concatenate([np.flatnonzero(right & (labels == k))[:EACH] for k in range(10)])
    )
    counts = np.bincount(labels[kept])
    if counts.min() < EACH:
        sys.exit(f"{source} has {counts.tolist()} of each digit; draw more.")
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(target, arr_0=images[kept], arr_1=labels[kept].astype(np.uint8))
    print(f"{target}: {len(kept)} images, {Path(target).stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(*sys.argv[1:3])
