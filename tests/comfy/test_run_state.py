"""What a run keeps ends with it: a second run of the same MODEL draws the same bits."""

from __future__ import annotations

import pytest
import torch
from sampler_runs import counted_calls, counted_passes, drawn, few_sigmas

STEPS = 8


@pytest.fixture
def guided(wiring, conditional, load_classifier, steered, scheduled):
    """A GUIDER of a MODEL with two nodes that cache (the order is `first`'s), and their counts."""

    def run(first):
        classifier, (model, passes) = load_classifier(), counted_passes(conditional)

        def steer(model):
            return steered(model, classifier, scale=30.0, gradient_interval=3)

        def schedule(model):
            return scheduled(model, 4.0, cfg_interval=3)

        row = (steer, schedule) if first == "gradient" else (schedule, steer)
        model = row[1](row[0](model))
        return wiring.guider("cfg 3", model), passes, counted_calls(classifier.patcher.model)

    return run


@pytest.mark.parametrize("first", ["gradient", "cfg"])
def test_a_second_run_begins_afresh(guided, conditional, first):
    guider, passes, gradients = guided(first)
    sigmas = few_sigmas(conditional, STEPS)
    one = drawn(guider, sigmas)
    # 8 steps are no multiple of 3: a state that stayed would be out of step
    assert (len(passes), len(gradients)) == (STEPS + 3, 3)
    assert torch.equal(one, drawn(guider, sigmas))
    assert (len(passes), len(gradients)) == (2 * (STEPS + 3), 6)
    assert torch.equal(one, drawn(guided(first)[0], sigmas))


@pytest.mark.parametrize("first", ["gradient", "cfg"])
@pytest.mark.parametrize("steps", [1, 2])
def test_also_after_an_interruption(guided, conditional, first, steps):
    import comfy.model_management as management

    guider, passes, gradients = guided(first)
    sigmas = few_sigmas(conditional, STEPS)

    def interrupt(step, *_):
        if step == steps - 1:
            raise management.InterruptProcessingException

    with pytest.raises(management.InterruptProcessingException):
        drawn(guider, sigmas, callback=interrupt)
    assert (len(passes), len(gradients)) == (steps + 1, 1)
    assert torch.equal(drawn(guider, sigmas), drawn(guided(first)[0], sigmas))
