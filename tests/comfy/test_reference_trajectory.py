"""Core's euler, step for step, against OpenAI's own DDIM loop (PyPI guided-diffusion-sdk)."""

from __future__ import annotations

import warnings

import pytest
import torch
from safetensors.torch import load_file
from sampler_runs import core_guider, differ, drawn, latent_noise
from tiny_models import CLASSES, SIZE, write_classifier, write_unet

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    reference_unet = pytest.importorskip("guided_diffusion.unet")
    from guided_diffusion import gaussian_diffusion, respace

BAR = 1e-4
SCALE = 3.0
NETWORK = {
    "image_size": SIZE,
    "in_channels": 3,
    "model_channels": 32,
    "num_res_blocks": 1,
    "attention_resolutions": (2,),
    "channel_mult": (1, 2),
    "num_head_channels": 32,
    "use_scale_shift_norm": True,
    "resblock_updown": True,
}


@pytest.fixture(params=["linear", "cosine"])
def trajectory_files(request, files):
    """A small model and a classifier; (file names, the schedule)."""
    paths = {
        "diffusion": files["diffusion_models"] / f"trajectory_{request.param}.safetensors",
        "classifier": files["classifiers"] / "trajectory.safetensors",
    }
    write_unet(paths["diffusion"], classes=None, schedule=request.param)
    write_classifier(paths["classifier"])
    return paths, request.param


def reference_models(paths):
    """OpenAI's networks with the files' weights."""
    unet = reference_unet.UNetModel(out_channels=6, **NETWORK)
    unet.load_state_dict(load_file(paths["diffusion"]), strict=True)
    classifier = reference_unet.EncoderUNetModel(out_channels=CLASSES, pool="attention", **NETWORK)
    classifier.load_state_dict(load_file(paths["classifier"]), strict=True)
    return unet.eval(), classifier.eval()


def reference_trajectory(paths, schedule, x_t, labels):
    """x_t (VP) after each of DDIM's 25 steps."""
    unet, classifier = reference_models(paths)

    def cond_fn(x, t, **_):
        with torch.enable_grad():
            x = x.detach().requires_grad_(True)
            log_probs = torch.log_softmax(classifier(x, t), dim=-1)
            chosen = log_probs[range(len(labels)), labels].sum()
            return torch.autograd.grad(chosen, x)[0] * SCALE

    diffusion = respace.SpacedDiffusion(
        use_timesteps=respace.space_timesteps(1000, "ddim25"),
        betas=gaussian_diffusion.get_named_beta_schedule(schedule, 1000),
        model_mean_type=gaussian_diffusion.ModelMeanType.EPSILON,
        model_var_type=gaussian_diffusion.ModelVarType.LEARNED_RANGE,
        loss_type=gaussian_diffusion.LossType.MSE,
        rescale_timesteps=False,
    )
    options = {"noise": x_t, "clip_denoised": True, "model_kwargs": {}, "device": "cpu"}
    options |= {"cond_fn": cond_fn}
    steps = diffusion.ddim_sample_loop_progressive(unet, x_t.shape, **options)
    return [step["sample"] for step in steps]


@pytest.fixture
def comfy_trajectory(call, load_model, load_classifier, label_of, steered):
    """(x_T, x_t after each step), both in VP coordinates, of euler through the nodes."""

    def run(paths, schedule, noise, label):
        model = load_model(paths["diffusion"].name, dtype="fp32")[0]
        # the classifier's own schedule is the model's, as in the original
        classifier = load_classifier(paths["classifier"].name, schedule, "fp32")
        guided, none = steered(model, classifier, label, SCALE), label_of(model, "")
        sigmas = call("ADMScheduler", model=model, respacing="ddim25", denoise=1.0)[0]
        seen = []
        last = drawn(
            core_guider(guided, positive=none),
            sigmas,
            start=noise,
            callback=lambda step, denoised, x, total: seen.append(x.clone()),
        )
        to_vp = (1 + sigmas**2).sqrt()
        images = [x / scale for x, scale in zip([*seen, last], to_vp, strict=True)]
        return images[0], images[1:]

    return run


def test_whole_trajectory(trajectory_files, comfy_trajectory):
    paths, schedule = trajectory_files
    noise = latent_noise(2, 3, SIZE, SIZE, seed=8)
    start, got = comfy_trajectory(paths, schedule, noise, "1,3")
    expected = reference_trajectory(paths, schedule, start, torch.tensor([1, 3]))
    assert len(got) == len(expected) == 25
    assert max(differ(a, b) for a, b in zip(got, expected, strict=True)) < BAR
    # another label's run is elsewhere: the comparison sees guidance
    unguided = comfy_trajectory(paths, schedule, noise, "2,0")[1]
    assert differ(unguided[-1], got[-1]) > 100 * BAR
