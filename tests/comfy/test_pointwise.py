"""One evaluation through the node, in every parameterisation of core's, against E[x0 | x, y]."""

from __future__ import annotations

import pytest
from mixture import denoised, points
from mixture_model import OUTPUTS
from sampler_runs import core_guider, evaluated

VE_LEVELS, FLOW_LEVELS = (0.15, 0.5, 1.0, 2.7, 9.0), (0.12, 0.4, 0.75, 0.93)
CASES = [
    (kind, sigma)
    for kind, name in OUTPUTS.items()
    for sigma in (FLOW_LEVELS if name == "flow" else VE_LEVELS)
]


@pytest.fixture
def guided(steered, exact_classifier):
    """The MODEL with Classifier Guidance."""
    return lambda model, label: steered(model, exact_classifier, label, 1.0)


def at(model, x, sigma):
    """(B, 2) denoised, in x's dtype, through the guider of KSampler."""
    return evaluated(core_guider(model), x, sigma).flatten(1)


def check(model, guided, sigma, unit, alpha):
    """Scale 1 is E[x0 | x, y], for each label."""
    x = points(unit, alpha)
    pixels = x[..., None, None]
    plain = at(model, pixels, sigma)
    assert (plain - denoised(x, unit, alpha)).abs().max() < 1e-10
    for label in range(3):
        towards = at(guided(model, str(label)), pixels, sigma)
        expected = denoised(x, unit, alpha, label)
        assert (plain - expected).abs().max() > 1e-3
        assert (towards - expected).abs().max() < 1e-10


@pytest.mark.parametrize(("kind", "sigma"), CASES)
def test_scale_one_is_the_conditional_expectation(exact_model, guided, kind, sigma):
    check(exact_model(kind), guided, sigma, sigma, 1 - sigma if OUTPUTS[kind] == "flow" else 1.0)


@pytest.mark.parametrize("sigma", FLOW_LEVELS)
def test_flow_with_a_noise_scale(exact_model, guided, sigma):
    check(exact_model("FLOW", noise_scale=2.5), guided, sigma, 2.5 * sigma, 1 - sigma)
