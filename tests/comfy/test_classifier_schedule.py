"""Classifier Guidance by a schedule, in a real ComfyUI."""

from __future__ import annotations

import pytest
import torch
from sampler_runs import counted_calls, differ, drawn, few_sigmas


@pytest.fixture(scope="module")
def classifier(load_classifier):
    """A NOISY_CLASSIFIER."""
    return load_classifier()


def test_classifier_schedule_at_0_computes_nothing(wiring, conditional, made, steered, classifier):
    guided = steered(conditional, classifier, schedule=made("constant", scale=0.0))
    gradients, sigmas = counted_calls(classifier.patcher.model), few_sigmas(conditional)
    plain = drawn(wiring.cfg_guider(conditional), sigmas)
    assert torch.equal(drawn(wiring.cfg_guider(guided), sigmas), plain)
    assert not gradients


def test_classifier_schedule_is_the_scale(wiring, conditional, made, steered, classifier):
    sigmas = few_sigmas(conditional)
    constant = steered(conditional, classifier, scale=0.0, schedule=made("constant", scale=50.0))
    plain = steered(conditional, classifier, scale=50.0)
    got, expected, without = (
        drawn(wiring.cfg_guider(model), sigmas) for model in (constant, plain, conditional)
    )
    assert torch.equal(got, expected)
    assert not torch.equal(got, without)
    half = {"axis": "step", "start": 0.5, "end": 1.0, "scale": 50.0, "outside": 0.0}
    late = steered(conditional, classifier, schedule=made("interval", **half))
    gradients = counted_calls(classifier.patcher.model)
    drawn(wiring.cfg_guider(late), sigmas)
    assert len(gradients) == 2


def test_classifier_scale_for_each_image(wiring, conditional, made, steered, classifier):
    sigmas = few_sigmas(conditional)
    each = made("constant", scale=50.0, per_image="1, 0")
    both = drawn(wiring.cfg_guider(steered(conditional, classifier, schedule=each)), sigmas)
    for index, model in enumerate((steered(conditional, classifier, scale=50.0), conditional)):
        assert differ(both[index], drawn(wiring.cfg_guider(model), sigmas)[index]) < 1e-5
