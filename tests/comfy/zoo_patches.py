"""Core's patches of a MODEL, and a ControlNet, for models of the zoo."""

from __future__ import annotations

import functools

import torch
from zoo import CONFIGS, random_weights

SKIPPED = {"double_layers": "0", "single_layers": "0", "start_percent": 0.0, "end_percent": 1.0}
# by name: the model that they are for, the node's module and its inputs
PATCHES = {
    "FreeU_V2": ("SD 1.5", "nodes_freelunch", {"b1": 1.3, "b2": 1.4, "s1": 0.9, "s2": 0.2}),
    "NAGuidance": ("Flux", "nodes_nag", {"nag_scale": 5.0, "nag_alpha": 0.5, "nag_tau": 1.5}),
    "PerturbedAttentionGuidance": ("SDXL", "nodes_pag", {"scale": 3.0}),
    "SelfAttentionGuidance": ("SDXL", "nodes_sag", {"scale": 0.5, "blur_sigma": 2.0}),
    "SkipLayerGuidanceDiT": ("SD3", "nodes_slg", SKIPPED | {"scale": 3.0}),
    "SkipLayerGuidanceDiTSimple": ("SD3", "nodes_slg", SKIPPED),
    "HyperTile": (
        "SDXL",
        "nodes_hypertile",
        {"tile_size": 32, "swap_size": 1, "max_depth": 0, "scale_depth": False},
    ),
    "TomePatchModel": ("SDXL", "nodes_tomesd", {"ratio": 0.3}),
    "VideoLinearCFGGuidance": ("SVD", "nodes_video_model", {"min_cfg": 1.0}),
    "ControlNet": ("SD 1.5", None, {}),
}


def patched(call_core, name, model):
    """The MODEL with the patch of that name; as it is without a name."""
    _, module, inputs = PATCHES.get(name, ("", None, {}))
    return call_core(f"comfy_extras.{module}", name, model=model, **inputs)[0] if module else model


def controlled(call_core, positive):
    """The CONDITIONING with a ControlNet of SD 1.5."""
    image = torch.linspace(0, 1, 64)[:, None, None].expand(1, 64, 64, 3)
    inputs = {"control_net": _control_net(), "image": image, "strength": 1.0}
    return call_core("nodes", "ControlNetApply", conditioning=positive, **inputs)[0]


@functools.cache
def _control_net():
    import comfy.cldm.cldm
    import comfy.controlnet

    unused = ("out_channels", "use_temporal_attention")
    config = {name: value for name, value in CONFIGS["SD15"].items() if name not in unused}
    config |= {"num_heads": 8, "hint_channels": 3, "dtype": torch.float32}
    network = comfy.cldm.cldm.ControlNet(**config)
    network.load_state_dict(random_weights(network))
    return comfy.controlnet.ControlNet(network, load_device=torch.device("cpu"))
