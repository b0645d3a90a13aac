#!/usr/bin/env python3
"""What a small decoder saves beside a whole VAE: python benchmarks/decoders.py

The decoders of SD 1.5's and SDXL's latents, one image of 256x256 pixels, fp32: decoding and the
gradient back to the latents, and the bytes that torch keeps for it. The weights are random, since
time and memory do not depend on them.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

from harness import Row, find_comfyui, in_turn, print_rows, start_comfyui, use_library

SIDE = 32  # of the latents
WHOLE, SMALL = "whole VAE", "taesd"
CONFIG = {
    **{"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3},
    **{"ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": []},
    "dropout": 0.0,
}


def decoders() -> dict[str, Any]:
    """Core's networks."""
    import torch
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.taesd.taesd import TAESD

    found = {WHOLE: AutoencoderKL(ddconfig=CONFIG, embed_dim=4), SMALL: TAESD(latent_channels=4)}
    for network in found.values():
        for weight in network.requires_grad_(False).parameters():
            torch.nn.init.normal_(weight, std=weight[0].numel() ** -0.5 if weight.ndim else 1.0)
    return found


def decoded_and_back(network: Any) -> Callable[[], Any]:
    """Decodes latents, and goes back to their gradient."""
    import torch

    z = torch.randn(1, 4, SIDE, SIDE, generator=torch.Generator().manual_seed(0))

    def run() -> Any:
        latents = z.clone().requires_grad_()
        return torch.autograd.grad(network.decode(latents).square().mean(), latents)

    return run


def kept_bytes(run: Callable[[], Any]) -> int:
    """What torch's graph keeps, without weights."""
    use_library()
    from guidance.core.kept_bytes import KeptBytes

    with KeptBytes() as kept:
        run()
    return kept.bytes


def rows() -> Iterator[Row]:
    """The small one in proportion to the whole."""
    start_comfyui(str(find_comfyui().path))
    runs = {name: decoded_and_back(network) for name, network in decoders().items()}
    taken = in_turn(runs)
    yield taken[SMALL].row(f"{SMALL}, decoded and back", WHOLE, taken[WHOLE], 0.1)
    size = {name: kept_bytes(run) for name, run in runs.items()}
    yield Row(f"{SMALL}, bytes kept", WHOLE, size[SMALL] / size[WHOLE], 0.2)


if __name__ == "__main__":
    print_rows(rows())
