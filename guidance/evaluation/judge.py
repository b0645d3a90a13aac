"""Scores of samples: accuracy, diversity, and the distance to real images."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..adm import EncoderUNet
from ..classifiers.noisy import NoisyClassifier
from ..core.images import from_uint8
from .metrics import frechet_distance, precision_recall

BATCH = 250


@dataclass(frozen=True)
class Score:
    """accuracy: fraction of images with the right class, by the judge. diversity: see `diversity`.

    frechet, precision, recall: see `guidance.metrics`; None without real images.
    """

    accuracy: float
    diversity: float
    frechet: float | None = None
    precision: float | None = None
    recall: float | None = None


@dataclass(frozen=True)
class Reference:
    """Real images to compare with: features (M, D) from `judged`, shape (H, W, C) and name."""

    features: Tensor
    shape: tuple[int, ...]
    name: str

    def check(self, shape: tuple[int, ...], name: str) -> None:
        """Raises ValueError if the samples have another shape."""
        if tuple(shape) != tuple(self.shape):
            raise ValueError(
                f"{name} has images of {_size(shape)}, but those of {self.name} are "
                f"{_size(self.shape)}; compare images of one size."
            )


def judge_samples(
    judge: NoisyClassifier,
    images: np.ndarray,
    labels: np.ndarray,
    reference: Reference | None = None,
) -> Score:
    """Scores uint8 images (N, H, W, C) with their intended labels (N,).

    `judge` is a classifier of clean images, evaluated at t = 0. Raises ValueError if it is not a
    classifier of this pack, if it cannot read the images, or if they are too few for a distance.
    """
    guesses, features = judged(judge, images)
    accuracy = float((guesses.numpy() == labels).mean())
    variety = diversity(features, torch.from_numpy(labels))
    if reference is None:
        return Score(accuracy, variety)
    distance = frechet_distance(reference.features, features)
    precision, recall = precision_recall(reference.features, features)
    return Score(accuracy, variety, distance, precision, recall)


@torch.no_grad()
def judged(judge: NoisyClassifier, images: np.ndarray) -> tuple[Tensor, Tensor]:
    """The judge's class of each image (N,), and its features (N, D), both on the CPU.

    images uint8 (N, H, W, C). Features are the input of the judge's pool, averaged over positions.
    Shows a progress bar if it takes long.
    """
    network = check_judge(judge, images.shape[1:])
    device = next(network.parameters()).device
    guesses, features = [], []
    with tqdm(total=len(images), desc="judge", unit="image", leave=False, delay=2) as bar:
        for start in range(0, len(images), BATCH):
            x = from_uint8(images[start : start + BATCH]).to(device)
            seen = network.features(x, torch.zeros(len(x), device=device))
            guesses.append(network.out(seen).argmax(dim=1).cpu())
            features.append((seen if seen.ndim == 2 else seen.mean(dim=(2, 3))).cpu())
            bar.update(len(x))
    return torch.cat(guesses), torch.cat(features)


def check_judge(judge: NoisyClassifier, shape: tuple[int, ...]) -> EncoderUNet:
    """The judge's network.

    Raises ValueError if it is not a classifier of this pack for images (H, W, C).
    """
    network = judge.network
    if not isinstance(network, EncoderUNet):
        raise ValueError("The judge must be a classifier trained by train-classifier.")
    if shape[2] != judge.channels:
        raise ValueError(
            f"The judge reads images of {judge.channels} channels, but these have {shape[2]}."
        )
    network.check_size(tuple(shape[:2]))
    return network


def _size(shape: tuple[int, ...]) -> str:
    """ "32x32x3": width, height, channels."""
    return f"{shape[1]}x{shape[0]}x{shape[2]}"


def diversity(features: Tensor, labels: Tensor) -> float:
    """Mean distance between two images with the same label, in the judge's features.

    features (N, D), labels (N,). Classes have equal weight; those with one image are skipped.
    """
    distances = []
    for label in labels.unique():
        group = features[labels == label]
        if len(group) > 1:
            distances.append(torch.pdist(group).mean())
    return float(torch.stack(distances).mean()) if distances else 0.0
