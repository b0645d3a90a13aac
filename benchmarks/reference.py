"""The original's networks and loop (PyPI guided-diffusion-sdk), and ours with the same weights."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from harness import use_library

use_library()

from guidance.adm.build import build_network  # noqa: E402
from guidance.adm.released import RELEASED  # noqa: E402

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    from guided_diffusion import gaussian_diffusion, respace, script_util


def layout_of(file: str) -> Any:
    """The layout of a released file."""
    return next(one.layout for one in RELEASED if one.file == file)


def randomised(network: torch.nn.Module) -> torch.nn.Module:
    """Random weights, also where training starts from zero."""
    torch.manual_seed(0)
    for weight in network.parameters():
        torch.nn.init.normal_(weight, std=0.03)
    return network.eval()


def their_classifier(size: int) -> torch.nn.Module:
    """As the original's scripts make it."""
    options = script_util.classifier_defaults()
    options |= {"image_size": size, "classifier_depth": 4 if size == 64 else 2}
    return randomised(script_util.create_classifier(**options))


def their_unet() -> torch.nn.Module:
    """The class-conditional 64x64 model of the original."""
    return randomised(
        script_util.create_model(
            image_size=64,
            num_channels=192,
            num_res_blocks=3,
            learn_sigma=True,
            class_cond=True,
            attention_resolutions="32,16,8",
            num_head_channels=64,
            use_scale_shift_norm=True,
            resblock_updown=True,
            use_new_attention_order=True,
        )
    )


def ours_of(theirs: torch.nn.Module, file: str) -> Any:
    """Our network of that released file with the same weights, frozen."""
    ours = build_network(layout_of(file))
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours.eval().requires_grad_(False)


def their_gradient(network: Any, x: Any, t: Any, y: Any) -> Any:
    """As in the original's classifier_sample.py."""
    with torch.enable_grad():
        x_in = x.detach().requires_grad_(True)
        log_probs = torch.log_softmax(network(x_in, t), dim=-1)
        return torch.autograd.grad(log_probs[range(len(y)), y.view(-1)].sum(), x_in)[0]


def their_diffusion(respacing: str) -> Any:
    """The original's sampler on the cosine schedule."""
    return respace.SpacedDiffusion(
        use_timesteps=respace.space_timesteps(1000, respacing),
        betas=gaussian_diffusion.get_named_beta_schedule("cosine", 1000),
        model_mean_type=gaussian_diffusion.ModelMeanType.EPSILON,
        model_var_type=gaussian_diffusion.ModelVarType.LEARNED_RANGE,
        loss_type=gaussian_diffusion.LossType.MSE,
        rescale_timesteps=False,
    )
