"""CFG by a schedule, in a real ComfyUI."""

from __future__ import annotations

import pytest
import torch
from sampler_runs import (
    core_guider,
    counted_passes,
    differ,
    drawn,
    few_sigmas,
    latent_noise,
    noise,
)

SIGMA_KINDS = ["EPS", "V_PREDICTION", "EDM", "V_PREDICTION_CONTINUOUS", "FLOW", "FLUX"]


def test_passes_of_an_interval_over_half_of_the_steps(wiring, conditional, made, scheduled):
    model, passes = counted_passes(conditional)
    half = made("interval", axis="step", start=0.0, end=0.5, scale=4.0)
    sigmas = few_sigmas(model, 40)
    drawn(wiring.cfg_guider(scheduled(model, half)), sigmas)
    assert (len(passes), passes.count(0)) == (60, 40)
    passes.clear()
    drawn(wiring.cfg_guider(model), sigmas)
    assert len(passes) == 80


@pytest.mark.parametrize("cfg", [4.0, 1.0])
def test_constant_is_core_cfg_with_every_sampler(blocks, scheduled, cfg):
    import comfy.samplers

    pair = [[[torch.full((1, 3, 8), value), {}]] for value in (0.5, -0.5)]
    model, sigmas, start = scheduled(blocks, cfg), few_sigmas(blocks, 3), latent_noise(2, 4, 8, 8)
    names, different = comfy.samplers.KSampler.SAMPLERS, []
    for name in names:
        core = drawn(core_guider(blocks, cfg, *pair), sigmas, name, start=start)
        if not torch.equal(core, drawn(core_guider(model, 2.0, *pair), sigmas, name, start=start)):
            different.append(name)
    assert len(names) > 30
    assert not different


def test_the_guiders_own_cfg_comes_back(wiring, conditional, scheduled):
    guider = wiring.cfg_guider(scheduled(conditional, 2.0), 7.0)
    kind = type(guider)
    drawn(guider, few_sigmas(conditional))
    assert guider.cfg == 7.0 and type(guider) is kind


def test_our_guider_follows_too(call, wiring, conditional, made, scheduled):
    schedule = made("linear", axis="step", scale=6.0)
    pair = wiring.pair(conditional)
    (ours,) = call("ClassifierFreeGuidance", model=conditional, cfg=9.0, schedule=schedule, **pair)
    (plain,) = call(
        "ClassifierFreeGuidance", model=scheduled(conditional, schedule), cfg=1.0, **pair
    )
    sigmas = few_sigmas(conditional)
    assert torch.equal(drawn(ours, sigmas), drawn(plain, sigmas))


def test_a_ramp_is_a_constant_at_each_step(wiring, conditional, made, scheduled):
    """Against core, one step at a time."""
    sigmas = few_sigmas(conditional, 3)
    ramp = scheduled(conditional, made("linear", axis="step", scale=5.0, end_scale=1.0))
    whole = drawn(wiring.cfg_guider(ramp), sigmas)
    # core starts a whole run a little above sigma
    x = noise() * (1 + sigmas[0] ** 2).sqrt()
    for cfg, pair in zip((5.0, 3.0, 1.0), zip(sigmas, sigmas[1:], strict=False), strict=True):
        # as a split run goes on: from a latent, without noise
        guider, nothing = wiring.cfg_guider(conditional, cfg), torch.zeros_like(x)
        x = drawn(guider, torch.stack(pair), latent=x, start=nothing)
    assert differ(whole, x) < 1e-4


@pytest.mark.parametrize("kind", SIGMA_KINDS)
def test_percent_is_cores(core_model, pack_module, kind):
    """What core's percent_to_sigma gives is read back, whatever the model's sigmas are."""
    sampling = core_model(kind).get_model_object("model_sampling")
    host = pack_module("nodes.host.sigma_schedule")
    run = host.SigmaSchedule(sampling, torch.tensor([1.0, 0.5, 0.0]))
    for percent in (0.0, 0.01, 0.1, 0.35, 0.5, 0.75, 0.99, 1.0):
        sigma = float(sampling.percent_to_sigma(percent))
        assert run.position(sigma).percent == pytest.approx(percent, abs=2e-5)


@pytest.fixture
def seen(wiring, scheduled):
    """The positions at which a run reads its schedule."""

    def run(model, sampler, sigmas):
        positions = []
        schedule = type("Seen", (), {})()
        schedule.check_model = lambda flow: None
        schedule.scales = lambda position, batch: positions.append(position) or 1.0
        drawn(wiring.cfg_guider(scheduled(model, schedule)), sigmas, sampler)
        return positions

    return run


def test_positions_of_a_run_and_of_its_two_halves(conditional, seen):
    sigmas = few_sigmas(conditional, 8)
    whole = seen(conditional, "euler", sigmas)
    assert [position.step for position in whole] == list(range(8))
    assert {position.steps for position in whole} == {8}
    percents = [position.percent for position in whole]
    assert percents == sorted(percents) and percents[0] < 1e-6 and 0.8 < percents[-1] <= 1
    second = seen(conditional, "euler", sigmas[5:])
    assert [position.step for position in second] == [0, 1, 2]
    assert [position.percent for position in second] == percents[5:]


@pytest.mark.parametrize("sampler", ["heun", "dpm_2", "dpmpp_sde", "dpm_adaptive", "dpm_fast"])
def test_positions_between_the_steps(conditional, seen, sampler):
    sigmas = few_sigmas(conditional, 6)
    positions = seen(conditional, sampler, sigmas)
    assert len(positions) >= 6
    if sampler != "heun":  # it evaluates at the next step's sigma
        assert any(position.step != int(position.step) for position in positions)
    for position in positions:
        step = int(position.step)
        assert 0 <= position.step <= 5
        if position.step < 5 and sigmas[-1] < position.sigma <= sigmas[0]:
            assert sigmas[step] * 1.0001 >= position.sigma >= sigmas[step + 1] * 0.9999


@pytest.mark.parametrize("shape", ["linear", "curve", "expression", "last steps"])
def test_two_ksamplers_are_one(wiring, conditional, made, scheduled, shape):
    """A percent is the same in a run and in its two parts; so is a run of denoise below 1."""
    inputs = {"axis": "percent", "scale": 6.0, "expression": "1 + 5 * percent ** 2"}
    inputs["curve"] = '{"points": [[0.2, 1], [0.7, 6]]}'
    model = scheduled(conditional, made(shape, **inputs))
    empty = {"samples": torch.zeros(2, 3, 16, 16)}

    def run(latent, **steps):
        return wiring.ksampler_advanced(model, latent, cfg=9.0, steps=8, **steps)

    whole = run(empty)["samples"]
    parts = run(run(empty, end=5), start=5)["samples"]
    if shape == "last steps":  # of the first run, too
        assert differ(whole, parts) > 1e-3
    else:
        assert differ(whole, parts) < 1e-4
    half = wiring.ksampler(model, empty, cfg=9.0, steps=4, denoise=0.5)["samples"]
    late = wiring.ksampler_advanced(model, empty, cfg=9.0, steps=8, start=4, fresh=True)["samples"]
    assert differ(half, late) < 1e-4


@pytest.mark.parametrize("patch", ["RescaleCFG", "APG", "CFGZeroStar", "TCFG", "Mahiro"])
def test_with_cores_cfg_patches(wiring, conditional, scheduled, patch):
    """A constant schedule is what the patch does at that cfg."""
    patched, sigmas = wiring.patched(patch, conditional), few_sigmas(conditional)
    core = drawn(wiring.cfg_guider(patched, 4.0), sigmas)
    assert torch.equal(core, drawn(wiring.cfg_guider(scheduled(patched, 4.0)), sigmas))
    assert not torch.equal(core, drawn(wiring.cfg_guider(conditional, 4.0), sigmas))


class Blocks(torch.nn.Module):
    """A network of two blocks that core's skip-layer patches can take out, with a context."""

    def __init__(self, channels=4, dtype=None, device=None, operations=None):
        super().__init__()
        self.dtype = dtype or torch.float32
        self.layer = operations.Conv2d(channels, channels, 1, dtype=dtype, device=device)

    def forward(self, x, timesteps, context, transformer_options=None, **_):
        """As a DiT does: every block may be replaced."""
        replaced = (transformer_options or {}).get("patches_replace", {}).get("dit", {})
        args = {"img": x + context.mean(dim=(1, 2))[:, None, None, None]}

        def block(args):
            return {"img": torch.tanh(self.layer(args["img"]))}

        for key in (("double_block", 0), ("single_block", 0)):
            patch = replaced.get(key)
            args = patch(args, {"original_block": block}) if patch else block(args)
        return args["img"]


@pytest.fixture(scope="module")
def blocks(core_model):
    """A core MODEL of that network."""
    return core_model("FLOW", network=Blocks)


@pytest.mark.parametrize(
    "patch, options, passes_at_1",
    [
        ("SkipLayerGuidanceDiT", {"scale": 2.0, "rescaling_scale": 0.3}, 2),
        ("SkipLayerGuidanceDiTSimple", {}, 1),
    ],
)
def test_with_skip_layer_guidance(call_core, blocks, made, scheduled, patch, options, passes_at_1):
    layers = {"double_layers": "0", "single_layers": "0"}
    layers |= {"start_percent": 0.0, "end_percent": 1.0}
    node = ("comfy_extras.nodes_slg", patch)
    (patched,) = call_core(*node, model=blocks, **layers, **options)
    sigmas, start = few_sigmas(blocks), latent_noise(2, 4, 8, 8, seed=1)

    def run(model, cfg):
        model, passes = counted_passes(model)
        pair = ([[torch.full((1, 3, 8), v), {}]] for v in (0.5, -0.5))
        return drawn(core_guider(model, cfg, *pair), sigmas, start=start), len(passes)

    core, passes = run(patched, 4.0)
    ours, same = run(scheduled(patched, 4.0), 7.0)
    assert torch.equal(core, ours) and passes == same
    assert not torch.equal(core, run(blocks, 4.0)[0])
    half = made("interval", axis="step", start=0.0, end=0.5, scale=4.0)
    _, saved = run(scheduled(patched, half), 7.0)
    assert saved == passes / 2 + 2 * passes_at_1


@pytest.mark.parametrize("patch", [None, "RescaleCFG", "CFGZeroStar"])
def test_a_scale_for_each_image(wiring, conditional, made, scheduled, patch):
    model = wiring.patched(patch, conditional) if patch else conditional
    each = scheduled(model, made("constant", scale=4.0, per_image="1, 0.25"))
    sigmas = few_sigmas(conditional)
    both = drawn(wiring.cfg_guider(each), sigmas)
    for index, cfg in enumerate((4.0, 1.0)):
        alone = drawn(wiring.cfg_guider(scheduled(model, cfg + 1e-9)), sigmas)
        assert differ(both[index], alone[index]) < 1e-5
    assert type(both) is torch.Tensor


def test_preset_in_sigma_on_a_flow_model(core_model, made, scheduled):
    preset = made("interval for SDXL")
    with pytest.raises(ValueError, match="flow model"):
        scheduled(core_model("FLOW"), preset)
    scheduled(core_model("EPS"), preset)


def test_step_list_of_the_wrong_length(wiring, conditional, made, scheduled):
    guider = wiring.cfg_guider(scheduled(conditional, made("keyframes", keyframes="7, 5, 1")))
    with pytest.raises(ValueError, match="lists 3 scales.*4 steps"):
        drawn(guider, few_sigmas(conditional))
