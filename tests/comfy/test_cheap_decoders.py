"""Core's small decoders (TAESD and its kin) as `vae` of Load Image Classifier."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from sampler_runs import core_guider, differ, evaluated
from zoo import ZOO, latent, prompt, zoo_model

# the models that they decode, and the channels of their VAE's latents
KINDS = {"taesd": "SD 1.5", "taesdxl": "SDXL", "taesd3": "SD3", "taef1": "Flux", "taef2": "Flux 2"}


@pytest.fixture
def small_vae(comfy, call_core):
    """A VAE by its name in core's Load VAE, of files with random weights."""
    import folder_paths
    from comfy.taesd.taesd import TAESD

    import nodes

    def load(name):
        if name not in nodes.VAELoader.image_taes:
            pytest.skip(f"this ComfyUI has no {name}")
        folder = Path(folder_paths.models_dir) / "vae_approx"
        folder.mkdir(exist_ok=True)
        network = TAESD(latent_channels=ZOO[KINDS[name]].shape[0])
        draws = torch.Generator().manual_seed(len(name))
        for part in ("encoder", "decoder"):
            weights = getattr(network, f"taesd_{part}").state_dict()
            for value in weights.values():
                value.copy_(torch.randn(value.shape, generator=draws) / value[0].numel() ** 0.5)
            *_, scale, bias = weights.values()  # of the last layer: pixels are mostly in 0..1
            scale.mul_(0.02), bias.fill_(0.5)
            save_file(weights, folder / f"{name}_{part}.safetensors")
        assert name in nodes.VAELoader.vae_list(nodes.VAELoader)
        return call_core("nodes", "VAELoader", vae_name=name)[0]

    return load


@pytest.mark.parametrize("name", KINDS)
def test_pixels_are_cores(small_vae, load_image, name):
    """-1..1 in place of 0..1; in fp32, also of latents that core has not clamped yet."""
    vae, kind = small_vae(name), ZOO[KINDS[name]]
    placed, model = load_image(vae=vae).vae, zoo_model(kind).model
    x0 = latent(kind).requires_grad_()
    pixels = placed.decode(placed.patcher.model, model, x0)
    with torch.inference_mode():
        wanted = vae.decode(model.process_latent_out(x0.detach())).movedim(-1, 1)
    assert pixels.shape == wanted.shape
    inside = (wanted > 0) & (wanted < 1)
    assert inside.float().mean() > 0.3
    assert differ(pixels.clamp(-1, 1), 2 * wanted - 1) < 1e-5
    (gradient,) = torch.autograd.grad(pixels.sum(), x0)
    assert bool(gradient.isfinite().all()) and gradient.abs().max() > 0


@pytest.mark.parametrize("gradient", ["cheap", "exact"])
@pytest.mark.parametrize("name", ["taesd", "taef1"])
def test_they_guide(small_vae, load_image, steered, name, gradient):
    kind = ZOO[KINDS[name]]
    model, x = zoo_model(kind), 0.6 * latent(kind)
    guided = steered(model, load_image(gradient, vae=small_vae(name)), "1")
    plain, towards = (
        evaluated(core_guider(each, 3.0, prompt(kind, 1), prompt(kind, 2)), x, 0.6)
        for each in (model, guided)
    )
    assert differ(plain, towards) > 1e-6 and bool(towards.isfinite().all())


def test_the_wrong_one_is_named(small_vae, load_image, steered):
    with pytest.raises(ValueError, match="decodes 4-channel latents.*16"):
        steered(zoo_model(ZOO["Flux"]), load_image(vae=small_vae("taesd")), "1")
