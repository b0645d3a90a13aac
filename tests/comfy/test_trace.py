"""Guidance Trace and Guidance Plot, in a real ComfyUI."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from sampler_runs import core_guider, drawn, evaluated, few_sigmas, latent_noise, noise


@pytest.fixture
def run(call, wiring, load_classifier, steered, scheduled):
    """Samples a MODEL with a trace, `first` or last in the row; (samples, trace)."""

    def sampled(
        model, *, guide=0.0, schedule=None, kind="cfg 3", first=False, steps=6, twice=False
    ):
        trace = None
        if first:
            model, trace = call("GuidanceTrace", model=model)
        if schedule is not None:
            model = scheduled(model, schedule)
        for _ in range(2 if twice else bool(guide)):
            model = steered(model, load_classifier(), "1,2", guide)
        if not first:
            model, trace = call("GuidanceTrace", model=model)
        return drawn(wiring.guider(kind, model), few_sigmas(model, steps)), trace

    return sampled


@pytest.fixture
def half(made):
    """CFG 4 in the first half of the steps, 1 after."""
    return made("interval", axis="step", start=0.0, end=0.5, scale=4.0)


@pytest.mark.parametrize("first", [True, False])
def test_what_is_seen(run, conditional, half, first):
    """Wherever the trace stands in the row."""
    _, trace = run(conditional, guide=50.0, schedule=half, first=first)
    seen = trace.to_dict()
    assert seen["passes"] == 3 * 2 + 3
    assert [one["passes"] for one in seen["evaluations"]] == [2] * 3 + [1] * 3
    assert [one["cfg"] for one in seen["evaluations"]] == [4.0] * 3 + [1.0] * 3
    assert [one["step"] for one in seen["evaluations"]] == list(range(6))
    for one in seen["evaluations"]:
        assert (one["cfg_norm"] is None) == (one["cfg"] == 1)
        assert one["cfg_norm"] is None or one["cfg_norm"] > 0
        (record,) = one["classifiers"]
        assert record["scale"] == 50.0 and record["norm"] > 0
        assert len(record["log_probs"]) == 2 and max(record["log_probs"]) < 0


def test_what_is_planned(run, conditional, half):
    """The schedule at each step, also of the steps that are still to come; nothing without one."""
    _, trace = run(conditional, guide=50.0, schedule=half)
    assert trace.plans() == {"cfg": [4.0] * 3 + [1.0] * 3}
    _, trace = run(conditional, guide=50.0)
    assert trace.plans() == {}


def test_norm_of_the_cfg_term(run, wiring, unclipped):
    """(cfg - 1)(cond - uncond), by core's own two predictions."""
    _, trace = run(unclipped, steps=1)
    sigma = float(few_sigmas(unclipped, 1)[0])
    x = noise() * (1 + sigma**2) ** 0.5
    cond, uncond = (evaluated(wiring.guider(k, unclipped), x, sigma) for k in ("cfg 1", "cfg 0"))
    expected = (2 * (cond - uncond)).flatten(1).norm(dim=1).mean()
    (one,) = trace.to_dict()["evaluations"]
    assert one["cfg_norm"] == pytest.approx(float(expected), rel=1e-3)


@pytest.mark.parametrize("kind", ["basic", "cfg 1", "cfg 3", "perp-neg", "dual", "areas"])
def test_the_picture_is_the_same_with_a_trace(run, wiring, conditional, kind):
    samples, trace = run(conditional, kind=kind)
    sigmas = few_sigmas(conditional, 6)
    plain = drawn(wiring.guider(kind, conditional), sigmas)
    assert torch.equal(samples, plain)
    evaluations = trace.to_dict()["evaluations"]
    per_step = {"basic": 1, "cfg 1": 1, "cfg 3": 2, "perp-neg": 3, "dual": 3, "areas": 5}[kind]
    assert [one["passes"] for one in evaluations] == [per_step] * 6


def test_a_new_run_begins_anew(call, wiring, conditional):
    model, trace = call("GuidanceTrace", model=conditional)
    for steps in (5, 3):
        drawn(wiring.guider("cfg 3", model), few_sigmas(model, steps))
        assert len(trace.evaluations) == steps


def test_plot(run, call, conditional, half):
    samples, trace = run(conditional, guide=50.0, schedule=half, twice=True)
    image, text = call("GuidancePlot", trace=trace, samples={"samples": samples})
    assert image.shape[0] == 1 and image.shape[-1] == 3 and image.shape[1] > 400
    assert 0 <= image.min() < 0.3 and image.max() == 1
    seen = json.loads(text)
    assert len(seen["evaluations"]) == 6
    assert len(seen["evaluations"][0]["classifiers"]) == 2


def kept(trace):
    """(evaluation, number of the classifier, its pictures) of all that the trace keeps."""
    return [
        (index, record.number, record.pictures.wait())
        for index, evaluation in enumerate(trace.evaluations)
        for record in evaluation.classifiers
        if record.pictures is not None
    ]


def as_seen(images):
    """uint8 (B, H, W, C) of images in [-1, 1]."""
    return ((images.clamp(-1, 1) + 1) * 127.5).round().movedim(1, -1)


def test_a_trace_keeps_what_classifiers_saw(
    call, wiring, steered, load_model, load_classifier, load_image
):
    """The predicted image at every evaluation; both classifiers by their files' names."""
    model = load_model("digits_adm.safetensors", dtype="fp32")[0]
    model = steered(model, load_classifier("digits_classifier.safetensors"), "3,8", 1.0)
    model = steered(model, load_image(), "3,8", 5.0, gradient_interval=2)
    model, trace = call("GuidanceTrace", model=model)
    shown = []
    start = 100 * latent_noise(2, 3, 32, 32)
    drawn(
        wiring.guider("basic", model),
        few_sigmas(model, 4),
        start=start,
        callback=lambda step, denoised, x, steps: shown.append(denoised),
    )
    classifiers = trace.to_dict()["classifiers"]
    by_name = {one["name"]: number for number, one in enumerate(classifiers)}
    assert set(by_name) == {"digits_classifier", "digits_judge"}
    assert all(one["labels"] == ["3", "8"] for one in classifiers)
    found = kept(trace)
    noisy, clean = (by_name[name] for name in ("digits_classifier", "digits_judge"))
    assert [index for index, number, _ in found if number == noisy] == [0, 1, 2, 3]
    # the cached output of the evaluations in between is of an earlier image
    assert [index for index, number, _ in found if number == clean] == [0, 2]
    assert {tuple(pictures.shape) for *_, pictures in found} == {(2, 32, 32, 3)}
    # both saw the same prediction, in which none of their own terms is
    last = [next(p for i, n, p in found if (i, n) == (2, number)) for number in (noisy, clean)]
    assert torch.equal(*last) and (last[0] - as_seen(shown[2])).abs().max() > 1


@pytest.mark.parametrize("name", ["SD15", "SDXL", "Flux", "Wan21", "Flux2"])
def test_a_predicted_latent_is_seen_as_core_previews_it(comfy, pack_module, name):
    import comfy.latent_formats
    import latent_preview

    kind = getattr(comfy.latent_formats, name, None)
    if kind is None:
        pytest.skip(f"this ComfyUI has no {name}")
    latent_format = kind()
    patcher = SimpleNamespace(get_model_object=lambda _: latent_format)
    frame = (1,) if latent_format.latent_dimensions == 3 else ()
    x0 = latent_noise(2, latent_format.latent_channels, *frame, 6, 4)
    images = pack_module("nodes.host.latent_preview").latent_preview(patcher, x0)
    assert len(images) == 2
    of_format = ("", "_bias", "_reshape")
    factors = [getattr(latent_format, f"latent_rgb_factors{end}", None) for end in of_format]
    previewer = latent_preview.Latent2RGBPreviewer(*factors)
    for image, latent in zip(as_seen(images), x0.split(1), strict=True):
        _, expected, _ = previewer.decode_latent_to_preview_image("JPEG", latent)
        expected = torch.from_numpy(np.asarray(expected).copy()).float()
        assert image.shape == expected.shape and (image - expected).abs().max() <= 1


def test_a_latent_that_core_cannot_preview_has_no_picture(
    call, steered, core_model, place_classifier
):
    """The rest of the record is there."""
    import comfy.latent_formats

    class Unknown(comfy.latent_formats.LatentFormat):
        latent_channels = 4

    class Sums(torch.nn.Module):
        layout = None

        def forward(self, x, t):
            """Logits (B, 4)."""
            return x.mean(dim=(2, 3))

    for latent_format, pictures in ((Unknown, 0), (comfy.latent_formats.SD15, 3)):
        model = core_model(latent_format=latent_format)
        model, trace = call("GuidanceTrace", model=steered(model, place_classifier(Sums()), "1"))
        start = latent_noise(1, 4, 8, 8)
        drawn(core_guider(model), few_sigmas(model, 3), start=start)
        assert len(kept(trace)) == pictures
        seen = trace.to_dict()["evaluations"]
        assert [len(one["classifiers"]) for one in seen] == [1, 1, 1]


def test_plot_of_nothing(call, conditional):
    _, trace = call("GuidanceTrace", model=conditional)
    with pytest.raises(ValueError, match="trace holds no evaluation; sample with the MODEL"):
        call("GuidancePlot", trace=trace, samples={"samples": torch.zeros(1, 3, 16, 16)})
