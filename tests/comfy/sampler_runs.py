"""How the tests run a guider: over given sigmas, or for one evaluation."""

from __future__ import annotations

import torch
from tiny_models import SIZE

SEED = 11


def noise(batch=2, size=SIZE):
    """The noise that runs start from."""
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(3))


def picture(batch=2):
    """A latent that a model would not draw by itself."""
    return torch.linspace(-0.9, 0.9, SIZE).expand(batch, 3, SIZE, SIZE).contiguous()


def sampler_named(name):
    """A core SAMPLER."""
    import comfy.samplers

    return comfy.samplers.sampler_object(name)


def few_sigmas(model, steps=4):
    """The SIGMAS of the scheduler "normal"."""
    import comfy.samplers

    sampling = model.get_model_object("model_sampling")
    return comfy.samplers.calculate_sigmas(sampling, "normal", steps)


def with_guider(
    guider, sampler, sigmas, latent=None, mask=None, start=None, seed=SEED, callback=None
):
    """As SamplerCustomAdvanced does."""
    if latent is None:
        latent = torch.zeros(2, 3, SIZE, SIZE) if start is None else torch.zeros_like(start)
    start = noise(len(latent)) if start is None else start
    with torch.inference_mode():
        return guider.sample(
            start, latent, sampler, sigmas, denoise_mask=mask, callback=callback, seed=seed
        )


def evaluated(guider, x, sigma, latent=None, mask=None, start=None):
    """The denoised image that the guider gives a sampler at x and sigma."""
    import comfy.samplers

    def once(model, _, sigmas, extra_args=None, **__):
        return model(x, sigmas[:1].expand(len(x)), **extra_args)

    sigmas = torch.tensor([sigma, 0.0])
    start = torch.zeros_like(x) if start is None else start
    latent = torch.zeros_like(x) if latent is None else latent
    return with_guider(guider, comfy.samplers.KSAMPLER(once), sigmas, latent, mask, start)
