"""Guidance by a clean classifier, against p(x0 | y) of a mixture where it is known exactly.

The model, the classifier of noisy images and the classifier of clean images are all exact, so what
is missing comes from p(y | x) ~ p(y | D(x)) and from the sampler's steps.
"""

from __future__ import annotations

import itertools
from functools import cache

import pytest
import torch
from mixture import (
    CleanClassifier,
    ExactClassifier,
    denoised,
    distance,
    exact_diffusion,
    exact_samples,
    logits,
)

from guidance import ImageClassifier, NoisyClassifier
from guidance.classifiers.preprocessing import Preprocessing
from guidance.sampling.classifier_guidance import Guide
from guidance.sampling.loop import sample, turns
from guidance.sampling.recurrence import END_PERCENT
from guidance.sampling.respacing import respaced_timesteps
from guidance.sampling.steps import chain, vp_levels
from guidance.sampling.strength import Strength

COUNT = 5_000
RARE, COMMON = LABELS = 0, 1  # 0.22 and 0.70 of the images
EITHER = (RARE, pytest.param(COMMON, marks=pytest.mark.long))
KINDS, METHODS, TURNS = ("noisy", "exact", "cheap"), ("ddim", "ddpm"), (1, 2, 4)
MODEL = exact_diffusion()
STEPS = chain(MODEL.schedule.alpha_bar.tolist(), respaced_timesteps("50"))


class ExactNoisy(ExactClassifier):
    """Of images whose first two channels are the point."""

    def forward(self, x_vp, t):
        return super().forward(x_vp[:, :2], t)


def classifier(kind):
    if kind == "noisy":
        return NoisyClassifier(ExactNoisy(MODEL.schedule), MODEL.schedule)
    return ImageClassifier(CleanClassifier(), Preprocessing(), 3, gradient=kind)


def run(kind, label, method="ddim", recurrence=1, start=None, steps=STEPS):
    """Points (COUNT, 2) by 50 steps at scale 1; kind None is without guidance."""
    draws = torch.Generator().manual_seed(5)
    x = torch.randn(COUNT, 3, 1, 1, generator=draws)
    guides = []
    if kind is not None:
        labels = torch.full((COUNT,), label)
        guides = [Guide(classifier(kind), labels, Strength(scale=1.0))]
    drawn = sample(
        MODEL,
        x if start is None else start,
        steps,
        method=method,
        recurrence=recurrence,
        guides=guides,
        clip_denoised=False,
        noise=lambda like: torch.randn(like.shape, generator=draws),
    )
    return drawn.flatten(1)[:, :2]


def missed(points, label):
    return distance(points, exact_samples(label, 2, COUNT))


@cache
def found(kind, label, method="ddim", recurrence=1):
    """How far the samples are from p(x0 | label)."""
    return missed(run(kind, label, method, recurrence), label)


@pytest.fixture(scope="module", autouse=True)
def the_table(request, say_at_the_end):
    """As in docs/image_classifiers.md; with --all."""
    yield
    if not request.config.getoption("--all"):
        return
    passes = [len(list(turns(STEPS, len(MODEL.schedule), often))) for often in TURNS]
    say_at_the_end(f"sliced Wasserstein to p(x0 | class), by class and passes {passes}:")
    for label in LABELS:
        apart = missed(exact_samples(None, 1, COUNT), label)
        floor = missed(exact_samples(label, 1, COUNT), label)
        say_at_the_end(f"class {label}: exact samples {floor:.3f}, those of p(x0) {apart:.3f}")
    for method, kind in itertools.product(METHODS, KINDS):
        cells = [
            " ".join(f"{found(kind, label, method, often):.3f}" for often in TURNS)
            for label in LABELS
        ]
        say_at_the_end(f"  {method} {kind:5} | {' | '.join(cells)}")


@pytest.mark.parametrize("label", LABELS)
def test_the_distance_tells_conditional_from_unconditional(label):
    assert missed(exact_samples(label, 1, COUNT), label) < 0.015
    assert missed(exact_samples(None, 1, COUNT), label) > 0.25
    assert missed(run(None, label), label) > 0.25


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("label", EITHER)
def test_the_noisy_classifier_draws_the_conditional_distribution(label, method):
    assert max(found("noisy", label, method, often) for often in TURNS) < 0.05


@pytest.mark.parametrize("label", EITHER)
def test_without_noise_clean_classifiers_stay_far_and_recurrence_brings_them_near(label):
    noisy = found("noisy", label)
    exact, cheap = ([found(kind, label, "ddim", n) for n in TURNS] for kind in ("exact", "cheap"))
    assert 3 * noisy < exact[0] < cheap[0]
    assert noisy < exact[1] < 0.5 * exact[0]
    assert noisy < cheap[1] < 0.7 * cheap[0]
    assert cheap[2] < 0.85 * cheap[1]


@pytest.mark.parametrize("kind", ["exact", "cheap"])
@pytest.mark.parametrize("label", EITHER)
def test_the_noise_of_ddpm_does_what_recurrence_does(label, kind):
    """It needs no further pass; for the rare class recurrence helps on top."""
    plain = found(kind, label, "ddpm")
    assert plain < 0.4 * found(kind, label, "ddim")
    if label == RARE:
        assert found("noisy", label, "ddpm") < found(kind, label, "ddpm", 2) < plain


@pytest.mark.long
def test_what_recurrence_leaves_is_the_error_of_the_approximation():
    """The exact gradient leads to p(x) p(y | D(x)), which is not p(x) p(y | x).

    Where the stretch ends they are apart, and the remaining steps, even by the noisy classifier,
    do not repair it. For the common class it is worse than what DDPM reaches without recurrence.
    """
    rest = [step for step in STEPS if step.timestep <= (1 - END_PERCENT) * 999]
    sigma, alpha = vp_levels(rest[0].alpha_bar)
    draws = torch.Generator().manual_seed(8)
    x = alpha * exact_samples(None, 7, 20 * COUNT).double()
    x = x + sigma * torch.randn(x.shape, generator=draws, dtype=x.dtype)
    of_x = logits(x, sigma, alpha)
    of_denoised = logits(denoised(x, sigma, alpha), 0.0, 1.0)

    def ends(opinion):
        chosen = torch.multinomial(opinion.softmax(dim=1)[:, RARE], COUNT, generator=draws)
        start = torch.cat([x[chosen], torch.zeros(COUNT, 1)], dim=1).float()
        return missed(run("noisy", RARE, start=start.view(-1, 3, 1, 1), steps=rest), RARE)

    right, wrong = ends(of_x), ends(of_denoised)
    assert right < 0.04 and 2 * right < wrong
    assert wrong < 1.5 * found("exact", RARE, "ddpm", 4)
    assert found("exact", COMMON, "ddpm", 4) > found("exact", COMMON, "ddpm")
