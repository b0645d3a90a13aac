"""CFG Scale Scheduler with the guiders of core and of other packs: followed, or refused by name."""

from __future__ import annotations

import functools

import pytest
import torch
from sampler_runs import counted_passes, differ, drawn, few_sigmas


def test_perp_neg_follows(wiring, conditional, scheduled):
    sigmas = few_sigmas(conditional)
    guiders = (wiring.guider("perp-neg", scheduled(conditional, cfg)) for cfg in (2.0, 6.0))
    assert differ(*(drawn(guider, sigmas) for guider in guiders)) > 1e-4


def test_two_models_follow_from_cfg_1_on(wiring, unconditional, scheduled):
    """The guider does not load its negative model for a run that begins at cfg 1."""
    model, passes = counted_passes(unconditional)
    sigmas = few_sigmas(unconditional)

    def run(model, cfg=None):
        guider = wiring.guider("dual model", model)
        guider.set_cfg(3.0 if cfg is None else cfg)
        out = drawn(guider, sigmas)
        assert guider.cfg == (3.0 if cfg is None else cfg)
        return out

    assert torch.equal(run(scheduled(model, 3.0), 1.0), run(unconditional))
    passes.clear()
    assert torch.equal(run(scheduled(model, 1.0)), run(unconditional, 1.0))
    assert len(passes) == 4


def guider_of_another_pack(kind, model, pair):
    """A GUIDER as other packs derive it from core's."""
    import comfy.samplers

    class ReadsInAMethod(comfy.samplers.CFGGuider):
        def current_scale(self):
            return self.cfg

        def predict_noise(self, x, timestep, model_options=None, seed=None):
            conds = (self.conds["negative"], self.conds["positive"])
            options = model_options or {}
            return comfy.samplers.sampling_function(
                self.inner_model, x, timestep, *conds, self.current_scale(), options, seed=seed
            )

    class NeverReads(ReadsInAMethod):
        def current_scale(self):
            return 5.0

    class SetsItsOwn(comfy.samplers.CFGGuider):
        def predict_noise(self, *inputs, **options):
            self.cfg = 5.0
            return super().predict_noise(*inputs, **options)

    kinds = {"sets": SetsItsOwn, "never": NeverReads}
    guider = kinds.get(kind, ReadsInAMethod)(model)
    guider.set_conds(*pair.values())
    guider.set_cfg(2.0)
    predict = guider.predict_noise
    if kind == "partial":
        guider.predict_noise = functools.partial(predict)
    if kind == "lambda":
        guider.predict_noise = lambda *inputs, **options: predict(*inputs, **options)
    return guider


@pytest.mark.parametrize("kind", ["method", "partial", "lambda"])
def test_guiders_of_other_packs_follow(wiring, conditional, scheduled, kind):
    """Also where cfg is read in a method of its own, or predict_noise is wrapped."""
    model, sigmas = scheduled(conditional, 4.0), few_sigmas(conditional)
    guider = guider_of_another_pack(kind, model, wiring.pair(model))
    assert torch.equal(drawn(guider, sigmas), drawn(wiring.cfg_guider(conditional, 4.0), sigmas))
    assert guider.cfg == 2.0


@pytest.mark.parametrize(
    "kind, parts",
    [
        ("basic", ["negative", "CFGGuider"]),
        ("dual", ["scales of its own"]),
        ("never", ["scales of its own"]),
        ("sets", ["scales of its own"]),
    ],
)
def test_guiders_that_cannot_follow_are_refused(wiring, conditional, scheduled, kind, parts):
    model = scheduled(conditional, 4.0)
    if kind in ("never", "sets"):
        guider = guider_of_another_pack(kind, model, wiring.pair(model))
    else:
        guider = wiring.guider(kind, model)
    own = type(guider)
    with pytest.raises(ValueError) as error:
        drawn(guider, few_sigmas(conditional))
    for part in ("CFG Scale Scheduler", own.__name__, *parts):
        assert part in str(error.value)
    assert type(guider) is own
