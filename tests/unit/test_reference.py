"""guidance against OpenAI's modules (PyPI guided-diffusion-sdk): same weights, same seeds."""

from __future__ import annotations

import itertools
import warnings

import pytest
import torch
from long_cases import long_but

from guidance import DiffusionModel, NoisyClassifier
from guidance.adm import ClassifierLayout, UNetLayout
from guidance.adm.build import build_network
from guidance.core.noise import NoiseSchedule
from guidance.sampling.classifier_guidance import Guide
from guidance.sampling.loop import sample
from guidance.sampling.respacing import respaced_timesteps
from guidance.sampling.steps import chain
from guidance.sampling.strength import Strength

with warnings.catch_warnings():
    warnings.simplefilter("ignore", FutureWarning)
    reference_unet = pytest.importorskip("guided_diffusion.unet")
    from guided_diffusion import gaussian_diffusion, respace

BAR = 1e-4
CLASSES = 5
SIZE = 16
COMMON = {"model_channels": 32, "num_res_blocks": 1, "image_size": SIZE}
THEIRS = {"attention_resolutions": (2, 4), "in_channels": 3}


def pair(make, layout, theirs, ours):
    """OpenAI's network and ours with the same random weights, also where training starts at 0."""
    torch.manual_seed(0)
    network = make(**COMMON | THEIRS | theirs).eval()
    for parameter in network.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    copy = build_network(layout(**COMMON | {"attention_levels": (1, 2)} | ours)).eval()
    copy.load_state_dict(network.state_dict(), strict=True)
    return network, copy


def unet_pair(make=reference_unet.UNetModel, **options):
    """The U-Nets; options in our words."""
    ours = {"channel_mult": (1, 2, 3), "num_classes": CLASSES, "out_channels": 6}
    ours |= {"num_heads": 2, "num_head_channels": 32} | options
    words = {"scale_shift_norm": "use_scale_shift_norm"}
    words |= {"new_attention_order": "use_new_attention_order"}
    theirs = {"use_scale_shift_norm": True, "resblock_updown": True}
    theirs |= {words.get(name, name): value for name, value in ours.items()}
    theirs["num_head_channels"] = ours["num_head_channels"] or -1
    return pair(make, UNetLayout, theirs | {"in_channels": 3}, ours)


def classifier_pair(pool):
    """The halves of U-Nets that classify."""
    common = {"channel_mult": (1, 2, 4), "pool": pool, "out_channels": CLASSES}
    common["num_head_channels"] = 32
    theirs = common | {"use_scale_shift_norm": True, "resblock_updown": True}
    return pair(reference_unet.EncoderUNetModel, ClassifierLayout, theirs, common)


def noisy_inputs():
    torch.manual_seed(1)
    return torch.randn(3, 3, SIZE, SIZE), torch.tensor([0.0, 417.0, 999.0]), torch.tensor([0, 2, 4])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"new_attention_order": True},
        {"num_head_channels": None},
        {"num_head_channels": None, "new_attention_order": True},
        {"scale_shift_norm": False},
        {"resblock_updown": False},
        {"num_classes": None, "out_channels": 3},
        {"channel_mult": (1, 1, 2), "num_res_blocks": 2},
    ],
    ids=str,
)
def test_unet_outputs(options):
    theirs, ours = unet_pair(**options)
    x, t, y = noisy_inputs()
    y = None if options.get("num_classes", 1) is None else y
    with torch.no_grad():
        expected = theirs(x, t, y)
        assert expected.abs().max() > 0.1
        assert (ours(x, t, y) - expected).abs().max() < BAR


@torch.no_grad()
def test_upsampler_outputs():
    theirs, ours = unet_pair(reference_unet.SuperResModel, in_channels=6)
    x, t, y = noisy_inputs()
    low_res = x[:, :, ::4, ::4].clamp(-1, 1)
    got = torch.cat(DiffusionModel(ours, "linear")(x, t, y, low_res), dim=1)
    assert (got - theirs(x, t, y=y, low_res=low_res)).abs().max() < BAR


@pytest.mark.parametrize("pool", ["attention", "adaptive", "spatial", "spatial_v2"])
def test_classifier_outputs_and_gradient(pool):
    theirs, ours = classifier_pair(pool)
    x, t, y = noisy_inputs()
    x_in = x.clone().requires_grad_(True)
    logits = theirs(x_in, t)
    chosen = torch.log_softmax(logits, dim=-1)[range(len(y)), y].sum()
    (expected,) = torch.autograd.grad(chosen, x_in)
    assert expected.abs().max() > 1e-6

    schedule = NoiseSchedule("linear")
    ab = schedule.alpha_bar[t.long()]
    classifier = NoisyClassifier(ours, schedule)
    got = classifier.gradient(x, (1 - ab).sqrt(), y, ab.sqrt())
    log_probs = classifier.log_probs(x, (1 - ab).sqrt(), ab.sqrt())
    assert (log_probs - logits.log_softmax(dim=-1)).abs().max() < BAR
    assert (got - expected).abs().max() < BAR * expected.abs().max()


def their_diffusion(schedule, respacing):
    return respace.SpacedDiffusion(
        use_timesteps=respace.space_timesteps(1000, respacing),
        betas=gaussian_diffusion.get_named_beta_schedule(schedule, 1000),
        model_mean_type=gaussian_diffusion.ModelMeanType.EPSILON,
        model_var_type=gaussian_diffusion.ModelVarType.LEARNED_RANGE,
        loss_type=gaussian_diffusion.LossType.MSE,
        rescale_timesteps=False,
    )


RUNS = list(
    itertools.product(
        [("ddim", "ddim10", 0.0), ("ddim", "ddim10", 0.7), ("ddpm", "10", 0.0)],
        ["linear", "cosine"],
        [True, False],
    )
)


@pytest.mark.parametrize(
    ("sampler", "schedule", "clip"),
    long_but(RUNS[::3], RUNS),
)
def test_guided_run(sampler, schedule, clip):
    method, respacing, eta = sampler
    their_unet, our_unet = unet_pair()
    their_classifier, our_classifier = classifier_pair("attention")
    scale = 3.0
    y = torch.tensor([0, 3])

    def cond_fn(x, t, y=None):
        with torch.enable_grad():
            x_in = x.detach().requires_grad_(True)
            log_probs = torch.log_softmax(their_classifier(x_in, t), dim=-1)
            selected = log_probs[range(len(y)), y.view(-1)]
            return torch.autograd.grad(selected.sum(), x_in)[0] * scale

    diffusion = their_diffusion(schedule, respacing)
    loop = diffusion.ddim_sample_loop if method == "ddim" else diffusion.p_sample_loop
    torch.manual_seed(7)
    expected = loop(
        their_unet,
        (2, 3, SIZE, SIZE),
        clip_denoised=clip,
        model_kwargs={"y": y},
        cond_fn=cond_fn,
        device="cpu",
        **({"eta": eta} if method == "ddim" else {}),
    )
    model = DiffusionModel(our_unet, schedule)
    torch.manual_seed(7)
    got = sample(
        model,
        torch.randn(2, 3, SIZE, SIZE),
        chain(model.schedule.alpha_bar.tolist(), respaced_timesteps(respacing)),
        method=method,
        eta=eta,
        labels=y,
        guides=[Guide(NoisyClassifier(our_classifier, schedule), y, Strength(scale=scale))],
        clip_denoised=clip,
    )
    # without clipping a random network sends x far outside the range of images
    bar = BAR if clip else BAR * max(1.0, expected.abs().max())
    assert (got - expected).abs().max() < bar


RESPACINGS = ["250", "25", "1", "1000", "10,15,20", "7", "3,1,4"]
RESPACINGS += [f"ddim{count}" for count in (2, 25, 50, 100, 250, 1000)]


@pytest.mark.parametrize("text", RESPACINGS)
def test_respacing(text):
    assert respaced_timesteps(text) == sorted(respace.space_timesteps(1000, text))


@pytest.mark.parametrize("name", ["linear", "cosine"])
def test_noise_schedules(name):
    betas = torch.from_numpy(gaussian_diffusion.get_named_beta_schedule(name, 1000))
    expected = torch.cumprod(1 - betas, dim=0)
    assert (NoiseSchedule(name).alpha_bar - expected).abs().max() < 1e-12
