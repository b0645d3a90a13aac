"""What a gradient costs: what torch keeps for it, which kernels it takes, and the ways to save."""

from __future__ import annotations

import warnings

import pytest
import torch
import torch.nn.functional as F
from tiny_networks import SmoothClassifier, classifier_layout, noisy_classifier, randomised
from torch.profiler import ProfilerActivity, profile

from guidance import NoisyClassifier
from guidance.adm import EncoderUNet, layers
from guidance.classifiers.compiling import compile_network
from guidance.classifiers.gradient_memory import (
    GradientMemoryPlan,
    gradient_bytes,
    memory_plan_within,
)

LABELS = torch.tensor([2, 0, 1])
FUSED = "aten::_scaled_dot_product_flash_attention_for_cpu"


def images(batch=3, dtype=torch.float32, size=8):
    return torch.randn(batch, 3, size, size, generator=torch.Generator().manual_seed(3)).to(dtype)


def kept_by(compute):
    """Bytes that torch keeps for the gradient of what `compute` gives, weights aside."""
    storages = {}

    def pack(tensor):
        if not isinstance(tensor, torch.nn.Parameter):
            storages[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        compute()
    return sum(storage.nbytes() for storage in storages.values())


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize(
    "layer",
    [
        lambda: layers.Conv2d(4, 6, 3, padding=1),
        lambda: layers.Conv2d(4, 6, 3, stride=2, padding=1),
        lambda: layers.Conv2d(4, 6, 1),
        lambda: layers.GroupNorm(2, 4),
    ],
)
def test_frozen_layers_have_torchs_gradient(layer, memory):
    torch.manual_seed(0)
    layer = layer().double()
    for weight in layer.parameters():
        torch.nn.init.normal_(weight)
    x = (torch.randn(3, 4, 6, 8, dtype=torch.float64) + 2).contiguous(memory_format=memory)
    x.requires_grad_(True)
    direction = torch.randn_like(layer(x))
    (expected,) = torch.autograd.grad(layer(x), x, direction)  # torch's: weights want theirs, too
    layer.requires_grad_(False)
    output = layer(x)
    (got,) = torch.autograd.grad(output, x, direction)
    assert "Frozen" in output.grad_fn.name()
    assert (got - expected).abs().max() < 1e-12 * expected.abs().max()


def test_a_frozen_convolution_keeps_nothing_of_its_input():
    layer, x = layers.Conv2d(4, 4, 3, padding=1), images()[:, :1].repeat(1, 4, 1, 1)
    x.requires_grad_(True)
    assert kept_by(lambda: layer(x)) >= x.untyped_storage().nbytes()
    layer.requires_grad_(False)
    assert kept_by(lambda: layer(x)) == 0


def kernels(compute):
    """The names of the operations that ran."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        compute()
    return [event.key for event in seen.key_averages()]


@pytest.mark.parametrize("new_order", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_takes_the_fused_kernel(dtype, new_order):
    network = randomised(EncoderUNet(classifier_layout(new_attention_order=new_order))).to(dtype)
    classifier = NoisyClassifier(network, "linear")
    names = kernels(lambda: classifier.gradient(images(), 1.5, LABELS))
    assert {FUSED, f"{FUSED}_backward"} <= set(names)
    assert not {"aten::bmm", "aten::softmax", "aten::_softmax"} & set(names)
    assert FUSED in kernels(lambda: classifier.log_probs(images(), 1.5))


def test_nothing_of_a_step_is_kept():
    classifier = noisy_classifier()
    gradient, log_probs = classifier.gradient_and_log_probs(images(), 1.5, LABELS)
    assert not gradient.requires_grad and not log_probs.requires_grad
    assert all(weight.grad is None for weight in classifier.network.parameters())


@pytest.mark.parametrize("pool", ["attention", "adaptive", "spatial", "spatial_v2"])
def test_recomputed_stages_give_the_same_gradient_to_the_bit(pool):
    whole = noisy_classifier(pool=pool)
    saving = whole.with_economy(GradientMemoryPlan(recompute=True))
    expected, got = (one.gradient(images(), 1.5, LABELS) for one in (whole, saving))
    assert expected.abs().max() > 0
    assert torch.equal(got, expected)


@pytest.mark.parametrize("images_at_once", [1, 2, 3, 5])
@pytest.mark.parametrize("label", [LABELS, 1, torch.tensor([1])])
def test_parts_of_a_batch_give_the_same_gradient(images_at_once, label):
    whole = noisy_classifier()
    seen = []
    whole.network.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    sigma = torch.tensor([0.5, 3.0, 20.0])
    expected = whole.gradient_and_log_probs(images(), sigma, label)
    parts = whole.with_economy(GradientMemoryPlan(images=images_at_once))
    got = parts.gradient_and_log_probs(images(), sigma, label)
    assert max(seen[1:]) == min(images_at_once, 3) and sum(seen[1:]) == 3
    for one, other in zip(got, expected, strict=True):
        assert (one - other).abs().max() < 1e-5 * other.abs().max()


def test_what_cannot_be_economised_is_said():
    with pytest.raises(ValueError, match="images is -1"):
        GradientMemoryPlan(images=-1)
    with pytest.raises(ValueError, match="recompute needs an ADM classifier.*SmoothClassifier"):
        NoisyClassifier(SmoothClassifier(), "linear", economy=GradientMemoryPlan(recompute=True))


LAYOUTS = [
    {"model_channels": 64, "num_res_blocks": 2, "channel_mult": (1, 2, 3), "norm_groups": 8},
    {"attention_levels": (0, 1), "num_res_blocks": 3},
    {"channel_mult": (1, 1, 2, 2), "attention_levels": (2, 3)},
]


@pytest.mark.parametrize("changes", LAYOUTS)
def test_the_estimate_is_what_torch_keeps_and_some_more(changes):
    layout = classifier_layout(image_size=32, num_head_channels=16, **changes)
    network = randomised(EncoderUNet(layout)).requires_grad_(False)
    x, t = images(1, size=32).requires_grad_(True), torch.tensor([5.0])
    kept = kept_by(lambda: network(x, t))
    estimate = gradient_bytes(layout, (32, 32), torch.float32)
    assert kept < estimate < 2.2 * kept
    again = gradient_bytes(layout, (32, 32), torch.float32, recompute=True)
    assert kept_by(lambda: network(x, t, recompute=True)) < again < estimate
    assert gradient_bytes(layout, (32, 32), torch.bfloat16) == estimate // 2


def test_the_quickest_economy_that_fits_is_chosen():
    layout, shape = classifier_layout(), (4, 3, 8, 8)
    whole, again = (
        gradient_bytes(layout, (8, 8), torch.float32, recompute) for recompute in (False, True)
    )

    def chosen(free):
        return memory_plan_within(free, layout, shape, torch.float32)

    assert chosen(4 * whole) == GradientMemoryPlan()
    assert chosen(4 * whole - 1) == GradientMemoryPlan(recompute=True)
    assert chosen(4 * again - 1) == GradientMemoryPlan(images=3, recompute=True)
    assert chosen(0) == GradientMemoryPlan(images=1, recompute=True)


def no_compiler(*args, **kwargs):
    raise RuntimeError("no C++ compiler\nwas found")


def test_what_cannot_be_compiled_runs_uncompiled_after_one_warning():
    classifier = noisy_classifier()
    expected = classifier.gradient(images(), 1.5, LABELS)
    classifier.network._compiled_call_impl = no_compiler  # as nn.Module.compile leaves it
    classifier.log_probs(images(), 1.5)  # never compiled
    with pytest.warns(UserWarning, match="runs uncompiled: no C[+][+] compiler was found") as said:
        got = [classifier.gradient(images(), 1.5, LABELS) for _ in range(2)]
    assert len(said) == 1
    assert all(torch.equal(one, expected) for one in got)


def test_an_error_of_the_network_is_no_reason_to_give_up_compiling():
    classifier = noisy_classifier()
    classifier.network.compile(backend="eager")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(ValueError, match="8x8.* is 16x16"):
            classifier.gradient(images(size=16), 1.5, LABELS)
    assert classifier.network._compiled_call_impl is not None


def test_a_compiled_gradient_is_the_same(monkeypatch):
    classifier = noisy_classifier()
    expected = classifier.gradient(images(), 1.5, LABELS)
    compiled = torch.nn.Module.compile
    # without a compiler: everything up to it
    monkeypatch.setattr(
        torch.nn.Module, "compile", lambda network: compiled(network, backend="aot_eager")
    )
    compile_network(classifier.network)
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*uncompiled")
        got = classifier.gradient(images(), 1.5, LABELS)
    assert classifier.network._compiled_call_impl is not None
    assert F.cosine_similarity(got.flatten(), expected.flatten(), dim=0) > 1 - 1e-6


def test_few_pixels_stay_as_they_are_in_the_unet():
    """And a classifier's maps never do, whose weights are packed."""
    from guidance.adm.blocks import FEW_PIXELS, quickest_layout

    def last(x):
        return x.is_contiguous(memory_format=torch.channels_last)

    few, more = torch.zeros(1, 3, 64, 64), torch.zeros(2, 3, 64, 64)
    assert not last(quickest_layout(few, FEW_PIXELS)) and last(quickest_layout(more, FEW_PIXELS))
    assert last(quickest_layout(few))
    assert quickest_layout(few.to("meta")).stride() == few.stride()
