"""One evaluation through the node, in every parameterisation of core's, against E[x0 | x, y]."""

from __future__ import annotations

import pytest
import torch
from mixture import ExactClassifier, denoised, network_output, points
from sampler_runs import core_guider, evaluated

from guidance.core.noise import NoiseSchedule

KINDS = {
    "EPS": "eps",
    "V_PREDICTION": "v",
    "V_PREDICTION_CONTINUOUS": "v",
    "EDM": "edm",
    "X0": "x0",
    "FLOW": "flow",
    "FLUX": "flow",
}
VE_LEVELS, FLOW_LEVELS = (0.15, 0.5, 1.0, 2.7, 9.0), (0.12, 0.4, 0.75, 0.93)
CASES = [
    (kind, sigma)
    for kind, name in KINDS.items()
    for sigma in (FLOW_LEVELS if name == "flow" else VE_LEVELS)
]


@pytest.fixture(scope="module")
def exact_model(plane_model):
    """A core MODEL whose network is exact, in float64: core's own model sampling reads it."""
    import comfy.model_sampling

    def make(kind, noise_scale=1.0):
        patcher = plane_model("EPS" if kind == "X0" else kind)
        model = patcher.model
        if kind == "X0":

            class Direct(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.X0):
                pass

            model.model_sampling = Direct()
        sampling = model.model_sampling
        if noise_scale != 1.0:
            sampling.noise_scale = noise_scale
        data = float(getattr(sampling, "sigma_data", 1.0))

        # core casts what a network puts out to float32
        def apply_model(x, sigma, **_):
            flow = KINDS[kind] == "flow"
            level = sigma.view(-1, 1)
            alpha = 1 - level if flow else torch.ones_like(level)
            unit = level * noise_scale if flow else level
            flat = x.flatten(1)
            output = network_output(KINDS[kind], flat, unit, alpha, data, noise_scale)
            return sampling.calculate_denoised(sigma, output.view_as(x), x)

        model.apply_model = apply_model
        return patcher

    return make


@pytest.fixture(scope="module")
def exact_classifier(place_classifier):
    """The mixture's NOISY_CLASSIFIER."""
    return place_classifier(ExactClassifier(NoiseSchedule("linear")), 3)


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
    check(exact_model(kind), guided, sigma, sigma, 1 - sigma if KINDS[kind] == "flow" else 1.0)


@pytest.mark.parametrize("sigma", FLOW_LEVELS)
def test_flow_with_a_noise_scale(exact_model, guided, sigma):
    check(exact_model("FLOW", noise_scale=2.5), guided, sigma, 2.5 * sigma, 1 - sigma)


def test_each_image_as_if_alone_and_in_any_order(exact_model, guided):
    x = points(1.0, 1.0, 6)[..., None, None]
    labels, order = [0, 1, 2, 2, 1, 0], [3, 0, 5, 1, 4, 2]
    listed = ",".join(map(str, labels))
    model = exact_model("EPS")
    whole = at(guided(model, listed), x, 1.0)
    permuted = ",".join(str(labels[i]) for i in order)
    assert torch.equal(at(guided(model, permuted), x[order], 1.0), whole[order])
    for index, label in enumerate(labels):
        one = slice(index, index + 1)
        alone = at(guided(model, str(label)), x[one], 1.0)
        assert (alone - whole[one]).abs().max() < 1e-12
