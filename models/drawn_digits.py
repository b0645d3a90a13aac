"""Turns digits that the included model drew into those that a training can be tried on.

    python models/drawn_digits.py drawn.npz models/training/drawn_digits.npz

Reads an .npz of `python -m guidance sample`, and keeps the first 200 of each digit that the judge
reads as what they were meant to be. In gray, with the faint noise of the black removed.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

MODELS = Path(__file__).resolve().parent
sys.path.insert(0, str(MODELS.parent))

from guidance import load_classifier  # noqa: E402 (found by the line above)
from guidance.training.data import LabelledImages, load_images  # noqa: E402

FAINT = 24  # of 255
EACH = 200


def gray(images: Tensor) -> Tensor:
    """uint8 (N, 3, H, W) -> (N, 1, H, W)."""
    mean = images.float().mean(dim=1, keepdim=True).round().to(torch.uint8)
    mean[mean < FAINT] = 0
    return mean


def read_by_the_judge(data: LabelledImages) -> Tensor:
    """The digit that it sees in each image, (N,)."""
    judge = load_classifier(MODELS / "classifiers" / "digits_judge.safetensors")
    parts = torch.arange(len(data)).split(250)
    with torch.no_grad():
        seen = [judge.image_log_probs(data.x0(part).expand(-1, 3, -1, -1)) for part in parts]
    return torch.cat(seen).argmax(dim=1)


def main(source: str, target: str) -> None:
    drawn = load_images(source)
    drawn = replace(drawn, images=gray(drawn.images))
    right = read_by_the_judge(drawn) == drawn.labels
    print(f"{source}: the judge reads {right.float().mean():.1%} of {len(drawn)} right")
    each = [torch.nonzero(right & (drawn.labels == digit))[:EACH, 0] for digit in range(10)]
    if min(map(len, each)) < EACH:
        sys.exit(f"{source} has {[len(found) for found in each]} of each digit; draw more.")
    kept = drawn.pick(torch.cat(each).sort().values)
    Path(target).parent.mkdir(parents=True, exist_ok=True)
    pixels, labels = kept.images.permute(0, 2, 3, 1).numpy(), kept.labels.numpy()
    np.savez_compressed(target, arr_0=pixels, arr_1=labels.astype(np.uint8))
    print(f"{target}: {len(kept)} images, {Path(target).stat().st_size / 1e3:.0f} kB")


if __name__ == "__main__":
    main(*sys.argv[1:3])
