"""Samples of a 2-D mixture, guided by its exact classifier through the nodes, against p(x0 | y)."""

from __future__ import annotations

import pytest
import torch
from sampler_runs import sampler_named
from torch import nn

from guidance.noise import NoiseSchedule

MEANS = torch.tensor([[-1.0, 0.3], [-0.4, 1.2], [0.9, 0.8], [1.1, -0.9], [0.2, -1.3]])
CLASS = torch.tensor([0, 0, 1, 1, 2])  # of each component
WEIGHTS = torch.tensor([0.16, 0.06, 0.4, 0.3, 0.08])
SPREAD = 0.35
LABEL = 1
COUNT, STEPS = 20_000, 50

BARS = dict.fromkeys(
    ["euler", "heun", "dpmpp_2m", "dpmpp_2m_sde", "dpmpp_3m_sde", "dpm_2", "lms", "er_sde"], 0.03
)
BARS |= {"res_multistep": 0.03, "euler_ancestral": 0.06, "ddpm": 0.06}
CASES = [(kind, name) for kind in ("EPS", "V_PREDICTION", "EDM") for name in BARS]
CASES += [("FLOW", "euler"), ("FLOW", "heun")]


def log_joint(x, sigma, alpha):
    """log p(x, component), (B, 5), for x (B, 2) = alpha x0 + sigma eps; levels (B, 1)."""
    variance = (alpha * SPREAD) ** 2 + sigma**2
    distance = (x[:, None] - alpha[..., None] * MEANS.to(x)).square().sum(dim=2)
    return WEIGHTS.to(x).log() - 0.5 * distance / variance


def exact_denoised(x, sigma, alpha):
    """E[x0 | x], (B, 2)."""
    share = log_joint(x, sigma, alpha).softmax(dim=1)
    gain = (alpha * SPREAD**2 / ((alpha * SPREAD) ** 2 + sigma**2))[..., None]
    means = MEANS.to(x)
    each = means + gain * (x[:, None] - alpha[..., None] * means)
    return (share[..., None] * each).sum(dim=1)


class ExactClassifier(nn.Module):
    """Logits of p(y | x_t) from x_vp and the timestep."""

    def __init__(self):
        super().__init__()
        self.log_ratios = nn.Parameter(NoiseSchedule("linear").ratios.log(), requires_grad=False)
        self.compute_dtype = torch.float64

    def forward(self, x_vp, t):
        low = t.long().clamp(max=len(self.log_ratios) - 2)
        near, far = self.log_ratios[low], self.log_ratios[low + 1]
        ratio = torch.lerp(near, far, (t - low).to(near)).exp()[:, None]
        alpha = 1 / (1 + ratio**2).sqrt()
        joint = log_joint(x_vp.flatten(1), ratio * alpha, alpha)
        return torch.stack([joint[:, k == CLASS].logsumexp(dim=1) for k in range(3)], dim=1)


class ExactNetwork(nn.Module):
    """What a perfect network of that kind would put out; told the sigma by `tell_sigma`."""

    dtype = torch.float32

    def __init__(self, kind, sampling):
        super().__init__()
        self.kind, self.sampling, self.sigma = kind, sampling, None

    def tell_sigma(self, apply_model, args):
        """A model function wrapper: timesteps alone are too coarse to be exact."""
        self.x, self.sigma = args["input"], args["timestep"]
        return apply_model(args["input"], args["timestep"], **args["c"])

    def forward(self, x_in, timesteps, **_):
        x, sigma = self.x.flatten(1).double(), self.sigma.double()[:, None]
        flow = self.kind == "FLOW"
        x0 = exact_denoised(x, sigma, 1 - sigma if flow else torch.ones_like(sigma))
        if self.kind in ("EPS", "FLOW"):
            output = (x - x0) / sigma
        else:
            data = float(self.sampling.sigma_data)
            total = sigma**2 + data**2
            output = (x0 - x * data**2 / total) * total.sqrt() / (sigma * data)
            output = -output if self.kind == "V_PREDICTION" else output
        return output.view_as(x_in).to(x_in)


def exact_samples(label, seed):
    """From p(x0), or p(x0 | label); (COUNT, 2)."""
    generator = torch.Generator().manual_seed(seed)
    weights = WEIGHTS if label is None else WEIGHTS * (label == CLASS)
    component = torch.multinomial(weights, COUNT, replacement=True, generator=generator)
    return MEANS[component] + SPREAD * torch.randn(COUNT, 2, generator=generator)


def distance(a, b):
    """Sliced Wasserstein distance (W1): the mean over 64 directions."""
    angles = torch.arange(64) * torch.pi / 64
    directions = torch.stack([angles.cos(), angles.sin()])
    return ((a @ directions).sort(dim=0)[0] - (b @ directions).sort(dim=0)[0]).abs().mean().item()


@pytest.fixture(scope="module")
def mixture_model(core_model):
    """A core MODEL of that kind whose network is exact."""
    import comfy.latent_formats

    class Plane(comfy.latent_formats.LatentFormat):
        latent_channels = 2

    def make(kind):
        patcher = core_model(kind, Plane)
        sampling = patcher.model.model_sampling
        if kind in ("EPS", "V_PREDICTION"):
            # up to sigma 157: from the 15 of Stable Diffusion's schedule, core's er_sde alone is
            # 0.05 off, guided or not
            sampling.set_sigmas(NoiseSchedule("linear").ratios)
        network = ExactNetwork(kind, sampling)
        # core compares every sigma with all 1,000 of its table, for timesteps that are not read
        sampling.timestep = lambda sigma: sigma
        patcher.model.diffusion_model = network
        patcher.set_model_unet_function_wrapper(network.tell_sigma)
        return patcher

    return make


@pytest.fixture(scope="module")
def drawn(call, mixture_model, place_classifier):
    """(COUNT, 2) samples by a core sampler, steered towards LABEL unless scale is 0."""
    import comfy.samplers

    classifier = place_classifier(ExactClassifier(), 3)

    def run(kind, sampler, scale=1.0):
        model = mixture_model(kind)
        inputs = {"classifier": classifier, "label": str(LABEL), "scale": scale}
        (steered,) = call("ClassifierGuidance", model=model, **inputs)
        schedule = "simple" if kind == "FLOW" else "karras"
        sampling = model.get_model_object("model_sampling")
        sigmas = comfy.samplers.calculate_sigmas(sampling, schedule, STEPS)
        guider = comfy.samplers.CFGGuider(steered)
        guider.set_conds([[torch.zeros(1, 1, 1), {}]], [[torch.zeros(1, 1, 1), {}]])
        guider.set_cfg(1.0)
        noise = torch.randn(COUNT, 2, 1, 1, generator=torch.Generator().manual_seed(6))
        if sampler == "SamplerADM":
            (chosen,) = call("SamplerADM", method="ddpm", eta=0.0)
        else:
            chosen = sampler_named(sampler)
        with torch.inference_mode():
            return guider.sample(noise, torch.zeros_like(noise), chosen, sigmas, seed=5).flatten(1)

    return run


def test_the_distance_tells_conditional_from_unconditional(drawn, say_at_the_end):
    floor = distance(exact_samples(LABEL, 1), exact_samples(LABEL, 2))
    between = distance(exact_samples(None, 1), exact_samples(LABEL, 2))
    unguided = distance(drawn("EPS", "euler", 0.0), exact_samples(LABEL, 2))
    say_at_the_end(f"sliced Wasserstein: floor {floor:.3f}, unconditional {between:.3f}")
    assert floor < 0.015
    assert between > 0.2
    assert unguided > 0.2


@pytest.mark.parametrize(("kind", "sampler"), CASES)
def test_samples_follow_the_exact_conditional(drawn, say_at_the_end, kind, sampler):
    found = distance(drawn(kind, sampler), exact_samples(LABEL, 2))
    say_at_the_end(f"sliced Wasserstein: {kind} {sampler} {found:.4f}")
    assert found <= BARS[sampler]


@pytest.mark.parametrize("kind", ["EPS", "V_PREDICTION", "EDM"])
def test_algorithm_1_follows_the_exact_conditional(drawn, say_at_the_end, kind):
    found = distance(drawn(kind, "SamplerADM"), exact_samples(LABEL, 2))
    say_at_the_end(f"sliced Wasserstein: {kind} ADM Sampler ddpm {found:.4f}")
    assert found <= 0.06
