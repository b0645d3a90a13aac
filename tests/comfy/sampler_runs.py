"""How the tests run a guider: over given sigmas, or for one evaluation."""

from __future__ import annotations

import itertools

import torch
from tiny_models import SIZE

SEED = 11


def noise(batch=2, size=SIZE):
    """The noise that runs start from."""
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(3))


def latent_noise(*shape, seed=3):
    """Noise of that shape, from a seed."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def picture(batch=2):
    """A latent that a model would not draw by itself."""
    return torch.linspace(-0.9, 0.9, SIZE).expand(batch, 3, SIZE, SIZE).contiguous()


def differ(a, b):
    """The largest difference between two tensors."""
    return (a - b).abs().max().item()


def sampler_named(name):
    """A core SAMPLER."""
    import comfy.samplers

    return comfy.samplers.sampler_object(name)


def few_sigmas(model, steps=4, scheduler="normal"):
    """The SIGMAS of a core scheduler."""
    import comfy.samplers

    sampling = model.get_model_object("model_sampling")
    return comfy.samplers.calculate_sigmas(sampling, scheduler, steps)


def core_guider(model, cfg=1.0, positive=None, negative=None):
    """Core's CFGGuider, without a prompt unless one is given."""
    import comfy.samplers

    positive = positive or [[torch.zeros(1, 1, 1), {}]]
    guider = comfy.samplers.CFGGuider(model)
    guider.set_conds(positive, negative or positive)
    guider.set_cfg(cfg)
    return guider


def drawn(
    guider, sigmas, sampler="euler", latent=None, mask=None, start=None, seed=SEED, callback=None
):
    """As SamplerCustomAdvanced does, with a SAMPLER or the name of one."""
    if latent is None:
        latent = torch.zeros(2, 3, SIZE, SIZE) if start is None else torch.zeros_like(start)
    start = noise(len(latent)) if start is None else start
    sampler = sampler_named(sampler) if isinstance(sampler, str) else sampler
    with torch.inference_mode():
        return guider.sample(
            start, latent, sampler, sigmas, denoise_mask=mask, callback=callback, seed=seed
        )


def evaluated(guider, x, sigma, latent=None, mask=None, start=None, rest=(0.0,)):
    """The denoised image (in x's dtype) that the guider gives a sampler at x and sigma.

    rest: the sigmas of the run after this one.
    """
    import comfy.samplers

    seen = []

    def once(model, begin, sigmas, extra_args=None, **__):
        seen.append(model(x, x.new_full((len(x),), sigma), **extra_args))
        return begin  # what a run returns is cast to float32

    sigmas = torch.tensor([sigma, *rest])
    start = torch.zeros(x.shape) if start is None else start
    latent = torch.zeros(x.shape) if latent is None else latent
    drawn(guider, sigmas, comfy.samplers.KSAMPLER(once), latent, mask, start)
    return seen[0]


def copying_sampler():
    """A SAMPLER: Euler, whose model options are a copy of their own at each step."""
    import comfy.samplers

    def euler(model, x, sigmas, extra_args=None, **_):
        for sigma, following in itertools.pairwise(sigmas):
            options = extra_args["model_options"]
            options = comfy.model_patcher.create_model_options_clone(options)
            denoised = model(
                x, sigma * x.new_ones(len(x)), **extra_args | {"model_options": options}
            )
            x = denoised + following / sigma * (x - denoised)
        return x

    return comfy.samplers.KSAMPLER(euler)


def counted_passes(model):
    """The MODEL, and a list that grows by the conditionings of each call of its network."""
    passes = []

    def count(apply_model, args):
        passes.extend(args["cond_or_uncond"])
        return apply_model(args["input"], args["timestep"], **args["c"])

    model = model.clone()
    model.set_model_unet_function_wrapper(count)
    return model, passes


def counted_calls(network):
    """A list that grows by the batch of every forward pass of a network."""
    batches = []
    network.register_forward_pre_hook(lambda _, inputs: batches.append(len(inputs[0])))
    return batches
