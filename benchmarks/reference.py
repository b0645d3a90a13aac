"""The original's networks and loop (PyPI guided-diffusion-sdk), and ours with the same weights."""

from __future__ import annotations

import copy
import warnings
from dataclasses import replace
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


def their_classifier(size: int, device: str = "cpu", **options: Any) -> torch.nn.Module:
    """As the original's scripts make it; options change what the released ones have."""
    released = {"image_size": size, "classifier_depth": 4 if size == 64 else 2}
    with torch.device(device):
        network = script_util.create_classifier(
            **script_util.classifier_defaults() | released | options
        )
        return randomised(network)


# the class-conditional and the unconditional model, by image size
UNETS: dict[int, dict[str, Any]] = {
    64: {
        **{"num_channels": 192, "num_res_blocks": 3},
        **{"class_cond": True, "use_new_attention_order": True},
    },
    256: {"num_channels": 256, "num_res_blocks": 2},
}


def their_unet(size: int = 64, device: str = "cpu", **options: Any) -> torch.nn.Module:
    """The class-conditional 64x64 model of the original, or the unconditional one of 256x256."""
    released = {
        **{"image_size": size, "learn_sigma": True, "attention_resolutions": "32,16,8"},
        **{"num_head_channels": 64, "use_scale_shift_norm": True, "resblock_updown": True},
    }
    with torch.device(device):
        return randomised(script_util.create_model(**released | UNETS[size] | options))


def in_fp16(theirs: torch.nn.Module) -> torch.nn.Module:
    """A copy whose torso computes in fp16, by the original's own conversion."""
    half = copy.deepcopy(theirs)
    half.dtype = torch.float16  # what its option use_fp16 sets
    half.convert_to_fp16()
    return half


def ours_of(theirs: torch.nn.Module, file: str, **changes: Any) -> Any:
    """Our network of that released file with the same weights, frozen, on the same device.

    changes: what the layout of theirs has otherwise.
    """
    device = next(theirs.parameters()).device
    ours = build_network(replace(layout_of(file), **changes), device)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    return ours.eval().requires_grad_(False)


def their_gradient(network: Any, x: Any, t: Any, y: Any) -> Any:
    """As in the original's classifier_sample.py."""
    with torch.enable_grad():
        x_in = x.detach().requires_grad_(True)
        log_probs = torch.log_softmax(network(x_in, t), dim=-1)
        return torch.autograd.grad(log_probs[range(len(y)), y.view(-1)].sum(), x_in)[0]


def their_diffusion(respacing: str, schedule: str = "cosine") -> Any:
    """The original's sampler."""
    return respace.SpacedDiffusion(
        use_timesteps=respace.space_timesteps(1000, respacing),
        betas=gaussian_diffusion.get_named_beta_schedule(schedule, 1000),
        model_mean_type=gaussian_diffusion.ModelMeanType.EPSILON,
        model_var_type=gaussian_diffusion.ModelVarType.LEARNED_RANGE,
        loss_type=gaussian_diffusion.LossType.MSE,
        rescale_timesteps=False,
    )
