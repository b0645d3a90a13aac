"""What graphs and models of other people's hold: other tables, prompts that change, odd guiders."""

from __future__ import annotations

import pytest
import torch
from core_guiders import SAMPLING
from sampler_runs import core_guider, counted_calls, drawn, few_sigmas, noise
from zoo import ZOO, latent, prompt, zoo_model, zoo_vae

STEPS = 8
MODEL_SAMPLINGS = {
    "Stable Diffusion": ("comfy.model_sampling", "ModelSamplingDiscrete"),
    "LCM": ("comfy_extras.nodes_model_advanced", "ModelSamplingDiscreteDistilled"),
    "Stable Cascade": ("comfy.model_sampling", "StableCascadeSampling"),
    "EDM": ("comfy.model_sampling", "ModelSamplingContinuousEDM"),
    "V": ("comfy.model_sampling", "ModelSamplingContinuousV"),
    "flow": ("comfy.model_sampling", "ModelSamplingDiscreteFlow"),
    "Flux": ("comfy.model_sampling", "ModelSamplingFlux"),
    "Cosmos": ("comfy.model_sampling", "ModelSamplingCosmosRFlow"),
}


@pytest.mark.parametrize("kind", MODEL_SAMPLINGS)
def test_percent_is_cores_own_for_every_model_sampling(pack_module, kind):
    module, name = MODEL_SAMPLINGS[kind]
    sampling = getattr(pytest.importorskip(module), name)()
    host = pack_module("nodes.host.sigma_schedule")
    sigmas = host.SigmaSchedule(sampling, torch.linspace(1, 0, 5))
    for percent in (0.05, 0.2, 0.45, 0.7, 0.95):
        sigma = float(sampling.percent_to_sigma(percent))
        assert sigmas.position(sigma).percent == pytest.approx(percent, abs=1e-5)


def test_a_cached_term_ends_with_its_prompt(call_core, conditional, wiring, scheduled):
    """Two prompts, each for half of the run: the second one's first evaluation is computed."""
    pair = wiring.pair(conditional, "1")
    ranged = [
        call_core("nodes", "ConditioningSetTimestepRange", conditioning=one, start=a, end=b)[0]
        for one, a, b in (
            (wiring.label_of(conditional, "1"), 0.0, 0.5),
            (wiring.label_of(conditional, "2"), 0.5, 1.0),
        )
    ]
    (positive,) = call_core(
        "nodes", "ConditioningCombine", conditioning_1=ranged[0], conditioning_2=ranged[1]
    )

    def run(interval):
        model = scheduled(conditional, 3.0, cfg_interval=interval)
        guider = call_core(
            SAMPLING,
            "CFGGuider",
            model=model,
            positive=positive,
            negative=pair["negative"],
            cfg=3.0,
        )[0]
        images = counted_calls(model.model.diffusion_model)
        drawn(guider, few_sigmas(model, STEPS), latent=noise(1))
        return sum(images)

    assert run(1) == 2 * STEPS
    assert run(100) == STEPS + 2  # a negative for each prompt


def test_perp_neg_has_both_of_its_others_from_the_cache(conditional, wiring, scheduled):
    model = scheduled(conditional, 3.0, cfg_interval=4)
    images = counted_calls(model.model.diffusion_model)
    drawn(wiring.guider("perp-neg", model), few_sigmas(model, STEPS), latent=noise(2))
    assert sum(images) / 2 == 3 * STEPS - 2 * (STEPS - 2)


def test_a_cache_without_effect_says_so(call_core, conditional, wiring, scheduled, caplog):
    model = scheduled(conditional, 3.0, cfg_interval=4)
    (model,) = call_core(
        "comfy_extras.nodes_slg",
        "SkipLayerGuidanceDiTSimple",
        model=model,
        double_layers="0",
        single_layers="0",
        start_percent=0.0,
        end_percent=1.0,
    )
    drawn(wiring.guider("cfg 3", model), few_sigmas(model, 2))
    assert "cfg_interval and tolerance save nothing" in caplog.text


def test_a_cache_with_an_effect_says_nothing(conditional, wiring, scheduled, caplog):
    model = scheduled(conditional, 3.0, cfg_interval=4)
    drawn(wiring.guider("cfg 3", model), few_sigmas(model, 2))
    assert "save nothing" not in caplog.text


def test_a_cfg_function_that_ignores_the_scale_is_refused(conditional, wiring, scheduled):
    """As LTXVDualCFGGuider's, which has a scale for sound and one for video."""
    guider = wiring.guider("cfg 3", scheduled(conditional, 5.0))
    own = guider.predict_noise

    def predict_noise(x, sigma, model_options, seed=None):
        def two_scales(args):
            return args["uncond"] + 3.0 * (args["cond"] - args["uncond"])

        options = {**model_options, "sampler_cfg_function": two_scales}
        return own(x, sigma, options, seed)

    guider.predict_noise = predict_noise
    with pytest.raises(ValueError, match="CFG Scale Scheduler .* scales of its own"):
        drawn(guider, few_sigmas(conditional, 2))


def test_a_cfg_patch_that_takes_no_scale_per_image_is_named(
    call_core, conditional, wiring, scheduled, made
):
    module = "comfy_extras.nodes_video_model"
    (model,) = call_core(module, "VideoLinearCFGGuidance", model=conditional, min_cfg=1.0)
    schedule = made("constant", scale=3.0, per_image="1, 2")
    with pytest.raises(ValueError, match="scale per image, but a CFG patch .*per_image empty"):
        drawn(wiring.guider("cfg 3", scheduled(model, schedule)), few_sigmas(model, 2))


def test_a_trace_shows_cfg_where_the_guider_applies_none(call, conditional, wiring, scheduled):
    """DualModelGuider at cfg 1: from the guider, and from a schedule."""
    traced, trace = call("GuidanceTrace", model=conditional)
    for model, cfg in ((traced, 1.0), (scheduled(traced, 1.0), 3.0)):
        guider = wiring.guider("dual model", model)
        guider.set_cfg(cfg)
        drawn(guider, few_sigmas(model, 2))
        assert [one["cfg"] for one in trace.to_dict()["evaluations"]] == [1.0, 1.0]


def test_an_exact_gradient_that_torch_cannot_take_is_one_sentence(pack_module):
    autograd = pack_module("nodes.host.autograd")
    x = torch.ones(2, requires_grad=True)
    with (
        pytest.raises(ValueError, match="cannot be differentiated.*set gradient to cheap"),
        autograd.differentiating(),
    ):
        x.mul_(2)  # where the graph begins, nothing can be written


def test_a_vae_that_decodes_nan_is_named(load_image, steered):
    """As SDXL's does in fp16."""
    kind = ZOO["SDXL"]
    vae = zoo_vae(kind)
    vae.first_stage_model.mix.data.fill_(torch.nan)
    guided = steered(zoo_model(kind), load_image("cheap", vae=vae), "1")
    guider = core_guider(guided, 3.0, prompt(kind, 1), prompt(kind, 2))
    with pytest.raises(ValueError, match="image that the VAE decodes .* not finite .*fp32-vae"):
        drawn(guider, few_sigmas(guided, 2), start=latent(kind))


def test_one_frame_in_a_video_models_shape_is_an_image(pack_module):
    guide = pack_module("nodes.runtime.classifier_guide")
    presets, adm = pack_module("guidance.adm.presets"), pack_module("guidance.adm")
    layout = presets.classifier_layout("small", channels=4, size=(8, 8), classes=3)
    network = adm.EncoderUNet(layout).eval().requires_grad_(False)
    classifier = pack_module("guidance").NoisyClassifier(network, "linear")
    framed = classifier.with_network(guide.SingleFrame(network))
    x = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    expected = classifier.gradient(x, 1.5, 1)
    assert torch.equal(framed.gradient(x.unsqueeze(2), 1.5, 1), expected.unsqueeze(2))
    model_info = pack_module("nodes.host.model_info")
    assert model_info.is_single_frame(x.unsqueeze(2)) and not model_info.is_single_frame(x)


def test_a_trace_keeps_the_runs_of_two_samplers(call, conditional, wiring):
    model, trace = call("GuidanceTrace", model=conditional)
    first = drawn(wiring.guider("cfg 3", model), few_sigmas(model, 3))
    second = drawn(wiring.guider("cfg 3", model), few_sigmas(model, 5), seed=5)
    assert len(trace.run_of(first).evaluations) == 3
    assert len(trace.run_of(second.half()).evaluations) == 5
    assert len(trace.evaluations) == 5


def test_an_evaluation_that_a_patch_skips_has_a_record_of_its_own(call, conditional, wiring):
    """A cache of steps, as LazyCache, was put on the MODEL before the trace."""
    skipping = conditional.clone()
    last = []

    def skip(executor, *arguments, **options):
        if len(last) % 2 == 0:
            last.append(executor(*arguments, **options))
        else:
            last.append(last[-1])
        return last[-1]

    skipping.add_wrapper_with_key("predict_noise", "skip", skip)
    model, trace = call("GuidanceTrace", model=skipping)
    drawn(wiring.guider("cfg 3", model), few_sigmas(model, 4))
    assert [one["passes"] for one in trace.to_dict()["evaluations"]] == [2, 0, 2, 0]


def test_training_refuses_latents_that_are_not_finite(call, core_model):
    latents = torch.randn(4, 4, 8, 8)
    latents[1, 0, 0, 0] = torch.nan
    with pytest.raises(ValueError, match="latents .* not finite .*encode"):
        call(
            "TrainNoisyClassifier",
            labels="a\nb\na\nb",
            preset="small",
            steps=1,
            batch_size=4,
            learning_rate=1e-3,
            noise_schedule="cosine",
            pool="attention",
            seed=0,
            latents={"samples": latents},
            model=core_model(),
        )
