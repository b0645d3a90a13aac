"""Core's euler, step for step, against OpenAI's own DDIM loop (PyPI guided-diffusion-sdk)."""

from __future__ import annotations

import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
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
def files(request, pack_nodes):
    """A small model and a classifier; (file names, the schedule)."""
    import folder_paths

    models = Path(folder_paths.models_dir)
    paths = {
        "diffusion": models / "diffusion_models" / f"trajectory_{request.param}.safetensors",
        "classifier": models / "classifiers" / "trajectory.safetensors",
    }
    for path in paths.values():
        path.parent.mkdir(parents=True, exist_ok=True)
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
    steps = diffusion.ddim_sample_loop_progressive(
        unet,
        x_t.shape,
        noise=x_t,
        clip_denoised=True,
        cond_fn=cond_fn,
        model_kwargs={},
        device="cpu",
    )
    return [step["sample"] for step in steps]


def comfy_trajectory(pack_nodes, paths, noise, label):
    """(x_T, x_t after each step), both in VP coordinates, of euler through the nodes."""
    import comfy.samplers

    def node(node_id, **inputs):
        with torch.inference_mode():
            return pack_nodes[node_id].execute(**inputs).result[0]

    auto = {"noise_schedule": "auto", "dtype": "fp32"}
    name = paths["diffusion"].name
    model = node("ADMModelLoader", model_name=name, clip_denoised=True, **auto)
    # the classifier's own schedule is the model's, as in the original
    schedule = "cosine" if "cosine" in name else "linear"
    classifier = node(
        "NoisyClassifierLoader",
        classifier_name=paths["classifier"].name,
        noise_schedule=schedule,
        dtype="fp32",
    )
    steered = node(
        "ClassifierGuidance", model=model, classifier=classifier, label=label, scale=SCALE
    )
    none = node("ADMClassLabel", model=model, label="")
    guider = node("ClassifierFreeGuidance", model=steered, positive=none, negative=none, cfg=1.0)
    sigmas = node("ADMScheduler", model=model, respacing="ddim25", denoise=1.0)
    seen = []
    with torch.inference_mode():
        last = guider.sample(
            noise,
            torch.zeros_like(noise),
            comfy.samplers.sampler_object("euler"),
            sigmas,
            callback=lambda step, denoised, x, total: seen.append(x.clone()),
            seed=0,
        )
    to_vp = (1 + sigmas**2).sqrt()
    images = [x / scale for x, scale in zip([*seen, last], to_vp, strict=True)]
    return images[0], images[1:]


def test_whole_trajectory(pack_nodes, files):
    paths, schedule = files
    noise = torch.randn(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(8))
    start, got = comfy_trajectory(pack_nodes, paths, noise, "1,3")
    expected = reference_trajectory(paths, schedule, start, torch.tensor([1, 3]))
    unguided = comfy_trajectory(pack_nodes, paths, noise, "2,0")[1]
    assert len(got) == len(expected) == 25
    differences = [(a - b).abs().max().item() for a, b in zip(got, expected, strict=True)]
    print(f"{schedule}: {max(differences):.1e} at worst over 25 steps")
    assert max(differences) < BAR
    # another label's run is elsewhere: the comparison sees guidance
    assert (unguided[-1] - got[-1]).abs().max() > 100 * BAR
