"""The classifier's gradient from the cache: how often its network is evaluated in a run."""

from __future__ import annotations

import pytest
import torch
from sampler_runs import counted_calls, drawn, few_sigmas


@pytest.mark.parametrize("sampler", ["euler", "ddpm of the pack", "copies its options"])
@pytest.mark.parametrize("interval, count", [(1, 8), (2, 4), (3, 3), (4, 2)])
def test_gradients_of_eight_steps(
    wiring, unconditional, load_classifier, steered, sampler_of, sampler, interval, count
):
    classifier = load_classifier()
    gradients = counted_calls(classifier.patcher.model)
    inputs = {"label": "1,2", "scale": 30.0}
    model = steered(unconditional, classifier, gradient_interval=interval, **inputs)
    sigmas, sampler = few_sigmas(model, 8), sampler_of(sampler)
    cached = drawn(wiring.guider("basic", model), sigmas, sampler)
    assert gradients == [2] * count
    model = steered(unconditional, classifier, **inputs)
    plain = drawn(wiring.guider("basic", model), sigmas, sampler)
    assert torch.equal(plain, cached) == (interval == 1)


def test_two_nodes_keep_their_own_gradients(wiring, unconditional, load_classifier, steered):
    one, two = load_classifier(), load_classifier("attention.safetensors")
    model = steered(unconditional, one, gradient_interval=4)
    model = steered(model, two, gradient_interval=2)
    counts = [counted_calls(each.patcher.model) for each in (one, two)]
    drawn(wiring.guider("basic", model), few_sigmas(model, 8))
    assert [len(count) for count in counts] == [2, 4]
