"""Classifier Guidance with every sampler of core, also those that know about CFG (CFG++)."""

from __future__ import annotations

import pytest
import torch
from mixture_model import Mixture
from sampler_runs import core_guider, drawn, evaluated, few_sigmas, noise

NAMES = """
euler euler_cfg_pp euler_ancestral euler_ancestral_cfg_pp heun heunpp2 exp_heun_2_x0
exp_heun_2_x0_sde dpm_2 dpm_2_ancestral lms dpm_fast dpm_adaptive dpmpp_2s_ancestral
dpmpp_2s_ancestral_cfg_pp dpmpp_sde dpmpp_sde_gpu dpmpp_2m dpmpp_2m_cfg_pp dpmpp_2m_sde
dpmpp_2m_sde_gpu dpmpp_2m_sde_heun dpmpp_2m_sde_heun_gpu dpmpp_3m_sde dpmpp_3m_sde_gpu ddpm lcm
ipndm ipndm_v deis res_multistep res_multistep_cfg_pp res_multistep_ancestral
res_multistep_ancestral_cfg_pp gradient_estimation gradient_estimation_cfg_pp er_sde seeds_2
seeds_3 sa_solver sa_solver_pece ddim uni_pc uni_pc_bh2
"""
SAMPLERS = NAMES.split()
LABELS = torch.tensor([0, 3])


def test_the_list_is_whole():
    import comfy.samplers

    assert set(comfy.samplers.SAMPLER_NAMES) <= set(SAMPLERS)


@pytest.fixture(autouse=True)
def only_what_there_is(request):
    """Skips a sampler that this ComfyUI does not have."""
    import comfy.samplers

    name = getattr(request.node, "callspec", None) and request.node.callspec.params.get("name")
    if name and name not in comfy.samplers.SAMPLER_NAMES:
        pytest.skip(f"this ComfyUI has no sampler {name}")


@pytest.fixture(scope="module")
def mixture():
    """The classes that guidance steers to."""
    return Mixture()


@pytest.fixture(scope="module")
def guided(steered, mixtures):
    """The MODEL with Classifier Guidance."""
    return lambda model, scale: steered(model, mixtures[0], "0,3", scale)


@pytest.fixture(scope="module")
def mixture_model(core_model, mixture):
    """A core MODEL that knows the mixture: E[x0 | x, label] as cond, or E[x0 | x] if blind."""
    import comfy.latent_formats

    def make(blind):
        def denoised(_, args):
            x, sigma = args["input"], args["timestep"]
            chunks = zip(
                args["cond_or_uncond"],
                x.chunk(len(args["cond_or_uncond"])),
                sigma.chunk(len(args["cond_or_uncond"])),
                strict=True,
            )
            return torch.cat(
                [
                    mixture.denoised(part, level, None if blind or which == 1 else LABELS)
                    for which, part, level in chunks
                ]
            )

        model = core_model("EPS", comfy.latent_formats.ChromaRadiance)
        model.set_model_unet_function_wrapper(denoised)
        return model

    return make


@pytest.mark.parametrize("name", SAMPLERS)
def test_a_classifier_does_what_cfg_does(mixture_model, guided, name):
    """Exact cond and uncond at cfg w, against uncond alone with the exact classifier at scale w.

    sigma^2 grad log p(label | x) = cond - uncond, so both give the sampler the same denoised and,
    for CFG++, the same unguided image: CFG++ treats a classifier as it treats CFG.
    """
    by_cfg = mixture_model(blind=False)
    by_classifier = guided(mixture_model(blind=True), 1.7)
    sigmas = few_sigmas(by_cfg, 6)
    expected = drawn(core_guider(by_cfg, 1.7), sigmas, name)
    got = drawn(core_guider(by_classifier), sigmas, name)
    unguided = drawn(core_guider(mixture_model(blind=True)), sigmas, name)
    print(f"{name}: {(got - expected).abs().max():.1e} of {expected.abs().max():.1f}")
    assert (got - expected).abs().max() < 1e-4 * expected.abs().max()
    assert (unguided - expected).abs().max() > 0.1


def test_a_step_of_cfg_pp(unconditional, guided, mixture):
    """The image takes the whole of guidance, the noise that is put back takes none of it."""
    sigma, following = 3.0, 1.0
    x = sigma * noise()
    steered = core_guider(guided(unconditional, 2.0))
    got = drawn(steered, torch.tensor([sigma, following]), "euler_cfg_pp")
    plain = evaluated(core_guider(unconditional), x, sigma)
    level = torch.full((2,), sigma)
    with torch.no_grad():
        term = 2.0 * (mixture.denoised(x, level, LABELS) - mixture.denoised(x, level))
    # CFG++ renoises with the network's own output, from before clipping
    unclipped = unconditional.clone()
    unclipped.model_options["sampler_post_cfg_function"] = []
    uncond = evaluated(core_guider(unclipped), x, sigma)
    expected = plain + term + following / sigma * (x - uncond)
    assert (got - expected).abs().max() < 1e-5
