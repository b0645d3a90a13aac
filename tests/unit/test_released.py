"""OpenAI's released models at full width: the original's modules, made from the README's flags,
against ours, made from the shapes of the same tensors. The weights are random.

All but the smallest wait for `--all`; the 512x512 ones need 6 GB of memory.
"""

from __future__ import annotations

import argparse
import gc
import warnings
from dataclasses import replace

import pytest
import torch
from released_table import markdown_table

from guidance import DiffusionModel, NoisyClassifier
from guidance.adm.build import build_network, shapes_of
from guidance.adm.detect import detect_layout, released_schedule
from guidance.adm.released import RELEASED, released_like

BAR = 1e-4
QUICK = "64x64_classifier"  # the one whose full width takes seconds
BY_FILE = {one.file.removesuffix(".pt"): one for one in RELEASED}
# one layout, 256x256_diffusion_uncond's: test_lsun_models_have_the_unconditional_layout
LSUN = [name for name in BY_FILE if name.startswith("lsun")]
# of all models of a kind
UNET_FLAGS = (
    "--diffusion_steps 1000 --learn_sigma True --resblock_updown True --use_scale_shift_norm True"
)
CLASSIFIER_FLAGS = (
    "--classifier_width 128 --classifier_attention_resolutions 32,16,8 --classifier_pool attention "
    "--classifier_resblock_updown True --classifier_use_scale_shift_norm True"
)


def cases(classifiers):
    """A test case for each released network that is a classifier, or is not."""
    names = [name for name, one in BY_FILE.items() if (one.kind == "classifier") == classifiers]
    long = [pytest.mark.timeout(1800), pytest.mark.long]
    return [pytest.param(n, marks=() if n == QUICK else long, id=n) for n in names if n not in LSUN]


@pytest.fixture(scope="module")
def script_util():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return pytest.importorskip("guided_diffusion.script_util")


@pytest.fixture(autouse=True)
def one_model_in_memory():
    yield
    gc.collect()


def options(script_util, one, defaults):
    """The README's flags, read by the original's own parser."""
    parser = argparse.ArgumentParser()
    script_util.add_dict_to_argparser(parser, defaults)
    common = CLASSIFIER_FLAGS if one.kind == "classifier" else UNET_FLAGS
    return vars(parser.parse_args(f"{one.flags} {common}".split()))


def original(script_util, one):
    """The original's network for the flags of `one`, with random weights."""
    both = {"classifier": "classifier", "diffusion": "model", "upsampler": "sr_model"}[one.kind]
    create = {"upsampler": "sr_create_model"}.get(one.kind, f"create_{both}")
    make = getattr(script_util, f"{create}_and_diffusion")
    defaults = getattr(script_util, f"{both}_and_diffusion_defaults")()
    with torch.device("meta"):
        network, _ = make(**options(script_util, one, defaults))
    return with_random_weights(network.to_empty(device="cpu")).eval()


def with_random_weights(network, seed=0):
    """Weights that keep activations of order 1, so that the whole network matters."""
    generator = torch.Generator().manual_seed(seed)
    assert not list(network.buffers())
    with torch.no_grad():
        for name, parameter in network.named_parameters():
            norm = parameter.ndim == 1 and name.endswith("weight")
            fan_in = parameter[0].numel() if parameter.ndim > 1 else 100
            parameter.normal_(float(norm), fan_in**-0.5, generator=generator)
    return network


def build(layout):
    """Our network, without memory."""
    return build_network(layout, device="meta")


def ours(theirs):
    """Our network, found out from the shapes of their tensors, over the same memory."""
    tensors = theirs.state_dict()
    network = build(detect_layout(shapes_of(theirs)))
    network.load_state_dict(tensors, strict=True, assign=True)
    return network.eval().requires_grad_(False)


def inputs(one):
    """x_t, timesteps, class labels: two images where they are small."""
    batch = 2 if one.image_size == 64 else 1
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(batch, 3, one.image_size, one.image_size, generator=generator)
    return x, torch.tensor([417.0, 999.0])[:batch], torch.tensor([207, 3])[:batch]


def assert_close(got, expected, scale=1.0):
    assert got.shape == expected.shape
    assert (got - expected).abs().max() < BAR * scale


@pytest.mark.parametrize("name", cases(False))
def test_diffusion_outputs(script_util, name):
    one = BY_FILE[name]
    theirs = original(script_util, one)
    model = DiffusionModel(ours(theirs), "linear")
    assert model.layout == one.layout
    assert released_schedule(model.layout) == one.noise_schedule
    x, t, y = inputs(one)
    labels = y if one.layout.num_classes else None
    low_res = x[:, :, ::4, ::4].clamp(-1, 1) if one.kind == "upsampler" else None
    extra = {} if low_res is None else {"low_res": low_res}
    with torch.inference_mode():
        expected = theirs(x, t, y=labels, **extra)
        assert 0.3 < expected.std() < 3
        got = torch.cat(model(x, t, labels, low_res), dim=1)
    assert_close(got, expected)


@pytest.mark.parametrize("name", cases(True))
def test_classifier_logits_and_gradient(script_util, name):
    one = BY_FILE[name]
    theirs = original(script_util, one)
    with torch.no_grad():
        theirs.out[2].c_proj.weight.mul_(2)  # the larger the image, the smaller its gradient
    classifier = NoisyClassifier(ours(theirs), one.noise_schedule)
    assert classifier.layout == one.layout
    assert released_schedule(classifier.layout) == one.noise_schedule
    x, t, y = inputs(one)
    x_in = x.clone().requires_grad_(True)
    logits = theirs(x_in, t)
    chosen = torch.log_softmax(logits, dim=-1)[range(len(y)), y].sum()
    (expected,) = torch.autograd.grad(chosen, x_in)
    logits = logits.detach()
    assert 0.3 < logits.std() < 3
    assert expected.abs().max() > 1e-4

    ab = classifier.schedule.alpha_bar[t.long()]
    sigma, alpha = (1 - ab).sqrt(), ab.sqrt()
    got = classifier.gradient(x, sigma, y, alpha)
    assert_close(classifier.log_probs(x, sigma, alpha), logits.log_softmax(-1))
    assert_close(got, expected, expected.abs().max())


NOT_IN_TENSORS = ("image_size", "num_heads", "num_head_channels", "new_attention_order")


@pytest.mark.parametrize("one", RELEASED, ids=lambda one: one.file)
def test_the_table_of_released_models(one):
    """Sizes; models that differ in classes alone agree in the rest; fine-tuned ones keep it."""
    count = sum(parameter.numel() for parameter in build(one.layout).parameters())
    assert one.megabytes == round(4 * count / 1e6)
    twin = released_like(one.layout)
    for name in NOT_IN_TENSORS:
        assert getattr(twin.layout, name) == getattr(one.layout, name)
    assert (twin.noise_schedule, twin.kind) == (one.noise_schedule, one.kind)
    name = "out_channels" if one.kind == "classifier" else "num_classes"
    layout = replace(one.layout, **{name: 7})
    found = detect_layout(shapes_of(build(layout)))
    assert found == layout
    assert released_like(found) is twin
    assert released_schedule(found) == one.noise_schedule


@pytest.mark.parametrize(
    ("name", "changes", "schedule"),
    [
        ("128x128_diffusion", {"num_heads": 1, "num_head_channels": 64}, "linear"),
        ("64_256_upsampler", {"num_heads": 1, "num_head_channels": 64}, "linear"),
        ("64x64_diffusion", {"new_attention_order": False}, "cosine"),
        ("64x64_diffusion", {"new_attention_order": False, "in_channels": 6}, "linear"),
    ],
)
def test_a_model_of_other_depth_falls_under_the_rule(name, changes, schedule):
    layout = replace(BY_FILE[name].layout, num_res_blocks=1, **changes)
    found = detect_layout(shapes_of(build(layout)))
    assert released_like(layout) is None
    assert found == layout
    assert released_schedule(found) == schedule


@pytest.mark.parametrize("name", LSUN)
def test_lsun_models_have_the_unconditional_layout(script_util, name):
    defaults = script_util.model_and_diffusion_defaults()
    theirs = options(script_util, BY_FILE[name], defaults)
    same = options(script_util, BY_FILE["256x256_diffusion_uncond"], defaults)
    assert theirs | {"dropout": 0.0} == same
    assert BY_FILE[name].layout == BY_FILE["256x256_diffusion_uncond"].layout


def test_the_document_holds_the_table(root):
    """docs/released_models.md is what released.py says."""
    assert markdown_table() in (root / "docs" / "released_models.md").read_text("utf-8")
