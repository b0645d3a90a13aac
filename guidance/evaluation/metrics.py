"""Distances between two sets of images, from their features under some network.

Features are float tensors (N, D), one row per image. Results can only be compared for the same
network and, except for large sets, the same number of images.
"""

from __future__ import annotations

import torch
from torch import Tensor

NEIGHBOURS = 3
CHUNK = 1024


def frechet_distance(first: Tensor, second: Tensor) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2) of two feature sets (N, D) and (M, D).

    m, S: mean and unbiased covariance of a set (Heusel et al. 2017, "GANs Trained by a Two
    Time-Scale Update Rule Converge to a Local Nash Equilibrium", eq. 6), in float64. The trace of
    the root is the sum of the roots of the eigenvalues of S1^1/2 S2 S1^1/2, which is symmetric and
    has no negative eigenvalues; negative ones from rounding count as 0. So a covariance may be
    singular, and nothing is added to it. With N <= D images it is a poor estimate, and the distance
    is too large. Raises ValueError for fewer than 2 images in a set.
    """
    _check(first, second, 2, "a covariance")
    (m1, s1), (m2, s2) = _moments(first), _moments(second)
    root = _square_root(s1)
    inner = root @ s2 @ root
    eigenvalues = torch.linalg.eigvalsh((inner + inner.T) / 2)
    overlap = eigenvalues.clamp(min=0).sqrt().sum()
    return float((m1 - m2).square().sum() + s1.trace() + s2.trace() - 2 * overlap)


def precision_recall(
    real: Tensor, generated: Tensor, neighbours: int = NEIGHBOURS
) -> tuple[float, float]:
    """Precision: fraction of generated images within the real ones; recall: the reverse.

    real (N, D), generated (M, D). An image is within a set if its distance to a member is at most
    the distance of this member to its k-th nearest other member, k = `neighbours` (Kynkaanniemi et
    al. 2019, "Improved Precision and Recall Metric for Assessing Generative Models", eq. 1-3).
    Raises ValueError for sets of fewer than `neighbours` + 1 images.
    """
    if neighbours < 1:
        raise ValueError(f"neighbours is {neighbours}; it must be at least 1.")
    _check(real, generated, neighbours + 1, f"{neighbours} neighbours of each image")
    precision = _share_among(real, generated, neighbours)
    return precision, _share_among(generated, real, neighbours)


def check_enough(count: int, whose: str) -> None:
    """Raises ValueError if there are too few images; `whose` names them in the message."""
    if count < NEIGHBOURS + 1:
        raise ValueError(
            f"{whose}; a Frechet distance, precision and recall take at least {NEIGHBOURS + 1} "
            "images."
        )


def _check(first: Tensor, second: Tensor, least: int, what: str) -> None:
    if first.ndim != 2 or second.ndim != 2 or first.shape[1] != second.shape[1]:
        raise ValueError(
            f"features have shapes {tuple(first.shape)} and {tuple(second.shape)}; "
            "expected (N, D) and (M, D)."
        )
    fewest = min(len(first), len(second))
    if fewest < least:
        raise ValueError(f"There are {fewest} images in a set; {what} takes at least {least}.")
    for features in (first, second):
        if not bool(features.isfinite().all()):
            raise ValueError("Some features are not finite; load the judge in fp32.")


def _moments(features: Tensor) -> tuple[Tensor, Tensor]:
    """Mean (D,) and covariance (D, D)."""
    features = features.double()
    mean = features.mean(dim=0)
    centred = features - mean
    return mean, centred.T @ centred / (len(features) - 1)


def _square_root(covariance: Tensor) -> Tensor:
    """The symmetric S^1/2 of a symmetric S without negative eigenvalues."""
    values, vectors = torch.linalg.eigh(covariance)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.T


def _share_among(members: Tensor, others: Tensor, neighbours: int) -> float:
    """The fraction of `others` within the radius of at least one member."""
    # the nearest member is the member itself
    radii = torch.cat(
        [
            _distances(part, members).kthvalue(neighbours + 1, dim=1).values
            for part in members.split(CHUNK)
        ]
    )
    inside = [(_distances(part, members) <= radii).any(dim=1) for part in others.split(CHUNK)]
    return float(torch.cat(inside).double().mean())


def _distances(some: Tensor, members: Tensor) -> Tensor:
    # computing it with a matrix product would not give 0 for equal images
    return torch.cdist(some, members, compute_mode="donot_use_mm_for_euclid_dist")
