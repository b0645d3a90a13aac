"""How well samples follow their labels, and how different they are from each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from .adm import HalfUNet
from .classifier import NoisyClassifier
from .images import from_uint8


@dataclass(frozen=True)
class Score:
    """accuracy: share the judge names as asked. diversity: see `diversity`."""

    accuracy: float
    diversity: float


@torch.no_grad()
def judge_samples(judge: NoisyClassifier, images: np.ndarray, labels: np.ndarray) -> Score:
    """Scores uint8 images (N, H, W, C) against the labels (N,) they were asked for.

    `judge` is a classifier of clean images, read at t = 0.
    """
    guesses, features = [], []
    for start in range(0, len(images), 250):
        x = from_uint8(images[start : start + 250])
        guesses.append(judge.log_probs(x, 0.0).argmax(dim=1))
        features.append(_features(judge, x))
    right = torch.cat(guesses).numpy() == labels
    return Score(float(right.mean()), diversity(torch.cat(features), torch.from_numpy(labels)))


def diversity(features: Tensor, labels: Tensor) -> float:
    """Mean distance between two images asked for the same class, in the judge's features.

    features (N, D), labels (N,). Each class counts equally; classes with one image are left out.
    """
    distances = []
    for label in labels.unique():
        group = features[labels == label]
        if len(group) > 1:
            distances.append(torch.pdist(group).mean())
    return float(torch.stack(distances).mean()) if distances else 0.0


def _features(judge: NoisyClassifier, x: Tensor) -> Tensor:
    network = judge.network
    if not isinstance(network, HalfUNet):
        raise ValueError("The judge must be a classifier trained by train-classifier.")
    features = network.features(x, torch.zeros(len(x)))
    return features if features.ndim == 2 else features.mean(dim=(2, 3))
