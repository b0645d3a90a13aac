"""CFG and classifier guidance by a schedule, in a real ComfyUI."""

from __future__ import annotations

import pytest
import torch
from sampler_runs import few_sigmas, noise, sampler_named, with_guider
from schedule_inputs import SCHEDULE_INPUTS

SIGMA_KINDS = ["EPS", "V_PREDICTION", "EDM", "V_PREDICTION_CONTINUOUS", "FLOW", "FLUX"]


@pytest.fixture(scope="module")
def made(call):
    """A GUIDANCE_SCHEDULE by the node."""

    def run(shape, **inputs):
        return call("GuidanceSchedule", **SCHEDULE_INPUTS | inputs | {"shape": shape})[0]

    return run


@pytest.fixture(scope="module")
def scheduled(call):
    """The MODEL with CFG Scale Scheduler."""
    return lambda model, schedule: call("CFGScaleScheduler", model=model, schedule=schedule)[0]


def counted(model):
    """The MODEL, and a list that grows by the conditionings of each call of its network."""
    passes = []

    def count(apply_model, args):
        passes.extend(args["cond_or_uncond"])
        return apply_model(args["input"], args["timestep"], **args["c"])

    model = model.clone()
    model.set_model_unet_function_wrapper(count)
    return model, passes


def guider_of(wiring, model, cfg=7.0):
    guider = wiring.guider("cfg 3", model)
    guider.set_cfg(cfg)
    return guider


def test_passes_of_an_interval_over_half_of_the_steps(wiring, conditional, made, scheduled):
    model, passes = counted(conditional)
    half = made("interval", axis="step", start=0.0, end=0.5, scale=4.0)
    sigmas = few_sigmas(model, 40)
    with_guider(guider_of(wiring, scheduled(model, half)), sampler_named("euler"), sigmas)
    assert len(passes) == 60
    assert passes.count(0) == 40
    passes.clear()
    with_guider(guider_of(wiring, model), sampler_named("euler"), sigmas)
    assert len(passes) == 80


def samplers():
    """Every name that KSampler offers; read late, so that collecting needs no ComfyUI."""
    import comfy.samplers

    return comfy.samplers.KSampler.SAMPLERS


@pytest.mark.parametrize("cfg", [4.0, 1.0])
def test_constant_is_core_cfg_with_every_sampler(wiring, conditional, made, scheduled, cfg):
    model = scheduled(conditional, made("constant", scale=cfg))
    sigmas = few_sigmas(conditional, 3)
    different = []
    for name in samplers():
        core = with_guider(guider_of(wiring, conditional, cfg), sampler_named(name), sigmas)
        ours = with_guider(guider_of(wiring, model, 2.0), sampler_named(name), sigmas)
        if not torch.equal(core, ours):
            different.append(name)
    assert len(samplers()) > 30
    assert not different


def test_the_guiders_own_cfg_comes_back(wiring, conditional, made, scheduled):
    guider = guider_of(wiring, scheduled(conditional, made("constant", scale=2.0)), 7.0)
    with_guider(guider, sampler_named("euler"), few_sigmas(conditional))
    assert guider.cfg == 7.0


def test_our_guider_follows_too(call, label_of, wiring, conditional, made, scheduled):
    schedule = made("linear", axis="step", scale=6.0)
    y = {"positive": label_of(conditional, "1,2"), "negative": label_of(conditional, "")}
    (ours,) = call("ClassifierFreeGuidance", model=conditional, cfg=9.0, schedule=schedule, **y)
    (plain,) = call("ClassifierFreeGuidance", model=scheduled(conditional, schedule), cfg=1.0, **y)
    sigmas = few_sigmas(conditional)
    euler = sampler_named("euler")
    assert torch.equal(with_guider(ours, euler, sigmas), with_guider(plain, euler, sigmas))


def test_a_ramp_is_a_constant_at_each_step(wiring, conditional, made, scheduled):
    """Against core, one step at a time."""
    sigmas = few_sigmas(conditional, 3)
    ramp = scheduled(conditional, made("linear", axis="step", scale=5.0, end_scale=1.0))
    whole = with_guider(guider_of(wiring, ramp), sampler_named("euler"), sigmas)
    # core starts a whole run a little above sigma
    euler, x = sampler_named("euler"), noise() * (1 + sigmas[0] ** 2).sqrt()
    for cfg, pair in zip((5.0, 3.0, 1.0), zip(sigmas, sigmas[1:], strict=False), strict=True):
        # as a split run goes on: from a latent, without noise
        guider = guider_of(wiring, conditional, cfg)
        nothing = torch.zeros_like(x)
        x = with_guider(guider, euler, torch.stack(pair), latent=x, start=nothing)
    assert (whole - x).abs().max() < 1e-4


@pytest.mark.parametrize("kind", SIGMA_KINDS)
def test_percent_is_cores(core_model, pack_module, kind):
    """What core's percent_to_sigma gives is read back, whatever the model's sigmas are."""
    sampling = core_model(kind).get_model_object("model_sampling")
    adapter = pack_module("nodes.host.comfy_adapter")
    run = adapter.Run(sampling, torch.tensor([1.0, 0.5, 0.0]))
    for percent in (0.0, 0.01, 0.1, 0.35, 0.5, 0.75, 0.99, 1.0):
        sigma = float(sampling.percent_to_sigma(percent))
        assert run.place(sigma).percent == pytest.approx(percent, abs=2e-5)


def seen(model, sampler, sigmas, scheduled, wiring):
    """The places at which a run read its schedule."""
    places = []
    schedule = type("Seen", (), {})()
    schedule.check_model = lambda flow: None
    schedule.scales = lambda place, batch: places.append(place) or 1.0
    guider = guider_of(wiring, scheduled(model, schedule))
    with_guider(guider, sampler_named(sampler), sigmas)
    return places


def test_places_of_a_run_and_of_its_two_halves(conditional, scheduled, wiring):
    sigmas = few_sigmas(conditional, 8)
    rest = (scheduled, wiring)
    whole = seen(conditional, "euler", sigmas, *rest)
    assert [place.step for place in whole] == list(range(8))
    assert {place.steps for place in whole} == {8}
    percents = [place.percent for place in whole]
    assert percents == sorted(percents) and percents[0] < 1e-6 and 0.8 < percents[-1] <= 1
    second = seen(conditional, "euler", sigmas[5:], *rest)
    assert [place.step for place in second] == [0, 1, 2]
    assert [place.percent for place in second] == percents[5:]


@pytest.mark.parametrize("sampler", ["heun", "dpm_2", "dpmpp_sde", "dpm_adaptive", "dpm_fast"])
def test_places_between_the_steps(conditional, scheduled, wiring, sampler):
    sigmas = few_sigmas(conditional, 6)
    places = seen(conditional, sampler, sigmas, scheduled, wiring)
    assert len(places) >= 6
    if sampler != "heun":  # it asks at the next step's sigma
        assert any(place.step != int(place.step) for place in places)
    for place in places:
        step = int(place.step)
        assert 0 <= place.step <= 5
        if place.step < 5 and sigmas[-1] < place.sigma <= sigmas[0]:
            assert sigmas[step] * 1.0001 >= place.sigma >= sigmas[step + 1] * 0.9999


@pytest.mark.parametrize("shape", ["linear", "curve", "expression", "last steps"])
def test_two_ksamplers_are_one(call_core, label_of, conditional, made, scheduled, shape):
    """A percent is the same in a run and in its two parts; so is a run of denoise below 1."""
    inputs = {"axis": "percent", "scale": 6.0, "expression": "1 + 5 * percent ** 2"}
    inputs["curve"] = '{"points": [[0.2, 1], [0.7, 6]]}'
    model = scheduled(conditional, made(shape, **inputs))
    conds = {"positive": label_of(model, "1,2"), "negative": label_of(model, "")}
    sampling = {"seed": 5, "cfg": 9.0, "sampler_name": "euler", "scheduler": "normal", **conds}
    latent = {"samples": torch.zeros(2, 3, 16, 16)}

    def advanced(latent, start, end, noise):
        (out,) = call_core(
            "nodes",
            "KSamplerAdvanced",
            model=model,
            add_noise=noise,
            noise_seed=sampling["seed"],
            steps=8,
            start_at_step=start,
            end_at_step=end,
            return_with_leftover_noise="enable" if end < 8 else "disable",
            latent_image=latent,
            **{k: v for k, v in sampling.items() if k != "seed"},
        )
        return out

    whole = advanced(latent, 0, 8, "enable")["samples"]
    parts = advanced(advanced(latent, 0, 5, "enable"), 5, 8, "disable")["samples"]
    if shape == "last steps":  # of the first run, too
        assert (whole - parts).abs().max() > 1e-3
    else:
        assert (whole - parts).abs().max() < 1e-4
    (half,) = call_core(
        "nodes", "KSampler", model=model, steps=4, denoise=0.5, latent_image=latent, **sampling
    )
    late = advanced(latent, 4, 8, "enable")["samples"]
    assert (half["samples"] - late).abs().max() < 1e-4


@pytest.mark.parametrize("patch", ["RescaleCFG", "APG", "CFGZeroStar", "TCFG", "Mahiro"])
def test_with_cores_cfg_patches(wiring, conditional, made, scheduled, patch):
    """A constant schedule is what the patch does at that cfg."""
    patched = wiring.patched(patch, conditional)
    sigmas = few_sigmas(conditional)
    euler = sampler_named("euler")
    core = with_guider(guider_of(wiring, patched, 4.0), euler, sigmas)
    plain = with_guider(guider_of(wiring, conditional, 4.0), euler, sigmas)
    ours = with_guider(
        guider_of(wiring, scheduled(patched, made("constant", scale=4.0))), euler, sigmas
    )
    assert torch.equal(core, ours)
    assert not torch.equal(core, plain)


class Blocks(torch.nn.Module):
    """A network of two blocks that core's skip-layer patches can take out, with a context."""

    def __init__(self, channels=4, dtype=None, device=None, operations=None):
        super().__init__()
        self.dtype = dtype or torch.float32
        self.layer = operations.Conv2d(channels, channels, 1, dtype=dtype, device=device)

    def forward(self, x, timesteps, context, transformer_options=None, **_):
        """As a DiT does: every block may be replaced."""
        replaced = (transformer_options or {}).get("patches_replace", {}).get("dit", {})
        img = x + context.mean(dim=(1, 2))[:, None, None, None]
        for key in (("double_block", 0), ("single_block", 0)):

            def block(args):
                return {"img": torch.tanh(self.layer(args["img"]))}

            patch = replaced.get(key)
            img = (
                patch({"img": img}, {"original_block": block}) if patch else block({"img": img})
            )["img"]
        return img


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
    sigmas, euler = few_sigmas(blocks, 4), sampler_named("euler")
    start = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))

    def run(model, cfg):
        model, passes = counted(model)
        positive, negative = ([[torch.full((1, 3, 8), v), {}]] for v in (0.5, -0.5))
        (guider,) = call_core(
            "comfy_extras.nodes_custom_sampler",
            "CFGGuider",
            model=model,
            positive=positive,
            negative=negative,
            cfg=cfg,
        )
        return with_guider(guider, euler, sigmas, start=start), len(passes)

    core, passes = run(patched, 4.0)
    ours, same = run(scheduled(patched, made("constant", scale=4.0)), 7.0)
    assert torch.equal(core, ours) and passes == same
    assert not torch.equal(core, run(blocks, 4.0)[0])
    half = made("interval", axis="step", start=0.0, end=0.5, scale=4.0)
    _, saved = run(scheduled(patched, half), 7.0)
    assert saved == passes / 2 + 2 * passes_at_1


def test_perp_neg_follows(wiring, conditional, made, scheduled):
    guiders = [
        wiring.guider("perp-neg", scheduled(conditional, made("constant", scale=cfg)))
        for cfg in (2.0, 6.0)
    ]
    sigmas = few_sigmas(conditional)
    a, b = (with_guider(guider, sampler_named("euler"), sigmas) for guider in guiders)
    assert (a - b).abs().max() > 1e-4


def test_two_models_follow_from_cfg_1_on(wiring, unconditional, made, scheduled):
    """The guider does not load its negative model for a run that begins at cfg 1."""
    model, passes = counted(unconditional)
    sigmas, euler = few_sigmas(unconditional), sampler_named("euler")
    core = with_guider(wiring.guider("dual model", unconditional), euler, sigmas)
    guider = wiring.guider("dual model", scheduled(model, made("constant", scale=3.0)))
    guider.set_cfg(1.0)
    assert torch.equal(with_guider(guider, euler, sigmas), core)
    assert guider.cfg == 1.0
    alone = wiring.guider("dual model", unconditional)
    alone.set_cfg(1.0)
    passes.clear()
    guider = wiring.guider("dual model", scheduled(model, made("constant", scale=1.0)))
    ours = with_guider(guider, euler, sigmas)
    assert len(passes) == 4
    assert torch.equal(ours, with_guider(alone, euler, sigmas))


@pytest.mark.parametrize(
    "kind, parts",
    [("basic", ["negative", "CFGGuider"]), ("dual", ["scales of its own", "one cfg"])],
)
def test_guiders_that_cannot_follow_say_so(wiring, conditional, made, scheduled, kind, parts):
    guider = wiring.guider(kind, scheduled(conditional, made("constant")))
    with pytest.raises(ValueError) as error:
        with_guider(guider, sampler_named("euler"), few_sigmas(conditional))
    for part in ("CFG Scale Scheduler", type(guider).__name__, *parts):
        assert part in str(error.value)


@pytest.mark.parametrize("patch", [None, "RescaleCFG", "CFGZeroStar"])
def test_a_scale_for_each_image(wiring, conditional, made, scheduled, patch):
    model = wiring.patched(patch, conditional) if patch else conditional
    each = scheduled(model, made("constant", scale=4.0, per_image="1, 0.25"))
    sigmas, euler = few_sigmas(conditional), sampler_named("euler")
    both = with_guider(guider_of(wiring, each), euler, sigmas)
    for index, cfg in enumerate((4.0, 1.0)):
        same = scheduled(model, made("constant", scale=cfg + 1e-9))
        alone = with_guider(guider_of(wiring, same), euler, sigmas)
        assert (both[index] - alone[index]).abs().max() < 1e-5
    assert type(both) is torch.Tensor


def test_preset_in_sigma_on_a_flow_model(core_model, made, scheduled):
    flow = core_model("FLOW")
    with pytest.raises(ValueError, match="flow model, whose sigma goes from 1 to 0"):
        scheduled(flow, made("interval for SDXL"))
    scheduled(core_model("EPS"), made("interval for SDXL"))


def test_step_list_of_the_wrong_length(wiring, conditional, made, scheduled):
    guider = guider_of(wiring, scheduled(conditional, made("keyframes", keyframes="7, 5, 1")))
    with pytest.raises(ValueError, match="lists 3 scales, but this run has 4 steps"):
        with_guider(guider, sampler_named("euler"), few_sigmas(conditional, 4))


# --- classifier guidance ---------------------------------------------------------------------


@pytest.fixture
def steered(call, load_classifier):
    """The MODEL with Classifier Guidance, and a list that grows with each gradient."""

    def run(model, schedule=None, scale=50.0):
        classifier = load_classifier()
        gradients = []
        network = classifier.patcher.model
        network.register_forward_hook(lambda *_: gradients.append(1))
        inputs = {"classifier": classifier, "label": "1", "scale": scale}
        inputs |= {} if schedule is None else {"schedule": schedule}
        return call("ClassifierGuidance", model=model, **inputs)[0], gradients

    return run


def test_classifier_schedule_at_0_computes_nothing(wiring, conditional, made, steered):
    guided, gradients = steered(conditional, made("constant", scale=0.0))
    sigmas, euler = few_sigmas(conditional), sampler_named("euler")
    plain = with_guider(guider_of(wiring, conditional), euler, sigmas)
    assert torch.equal(with_guider(guider_of(wiring, guided), euler, sigmas), plain)
    assert not gradients


def test_classifier_schedule_is_the_scale(wiring, conditional, made, steered):
    sigmas, euler = few_sigmas(conditional), sampler_named("euler")
    constant, _ = steered(conditional, made("constant", scale=50.0), scale=0.0)
    plain, _ = steered(conditional, scale=50.0)
    got, expected, without = (
        with_guider(guider_of(wiring, model), euler, sigmas)
        for model in (constant, plain, conditional)
    )
    assert torch.equal(got, expected)
    assert not torch.equal(got, without)
    half, gradients = steered(
        conditional, made("interval", axis="step", start=0.5, end=1.0, scale=50.0, outside=0.0)
    )
    with_guider(guider_of(wiring, half), euler, sigmas)
    assert len(gradients) == 2


def test_classifier_scale_for_each_image(wiring, conditional, made, steered):
    sigmas, euler = few_sigmas(conditional), sampler_named("euler")
    each, _ = steered(conditional, made("constant", scale=50.0, per_image="1, 0"))
    both = with_guider(guider_of(wiring, each), euler, sigmas)
    full, _ = steered(conditional, scale=50.0)
    for index, model in enumerate((full, conditional)):
        alone = with_guider(guider_of(wiring, model), euler, sigmas)
        assert (both[index] - alone[index]).abs().max() < 1e-5
