"""What a gradient costs: what torch keeps for it, which kernels it takes, and the ways to save."""

from __future__ import annotations

import pytest
import torch
from tiny_networks import (
    SmoothClassifier,
    classifier_layout,
    half_unet,
    images,
    noisy_classifier,
    randomised,
)
from torch.profiler import ProfilerActivity, profile
from torch.utils._python_dispatch import TorchDispatchMode

from guidance import NoisyClassifier
from guidance.adm import EncoderUNet, layers
from guidance.classifiers.base import Target
from guidance.classifiers.gradient_memory import (
    WHOLE,
    GradientMemoryPlan,
    gradient_bytes,
    memory_plan_within,
)
from guidance.core.kept_bytes import KeptBytes

LABELS = torch.tensor([2, 0, 1])
FUSED = "aten::_scaled_dot_product_flash_attention_for_cpu"


def kept_by(compute):
    """Bytes that torch keeps for the gradient of what `compute` gives, weights aside."""
    with KeptBytes() as kept:
        compute()
    return kept.bytes


LAYERS = [
    *[(layers.Conv2d, 4, 6, size, stride, size // 2) for size, stride in ((3, 1), (3, 2), (1, 1))],
    (layers.GroupNorm, 2, 4),
]


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("layer", LAYERS)
def test_frozen_layers_have_torchs_gradient(layer, memory):
    torch.manual_seed(0)
    layer = layer[0](*layer[1:]).double()
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


@pytest.mark.parametrize("memory", [torch.contiguous_format, torch.channels_last])
def test_the_mean_of_2x2_has_torchs_gradient_and_keeps_nothing(memory):
    x = images(3, size=12).contiguous(memory_format=memory).requires_grad_(True)
    direction = images(3, size=6, seed=8).contiguous(memory_format=memory)
    (expected,) = torch.autograd.grad(torch.nn.functional.avg_pool2d(x, 2), x, direction)
    (got,) = torch.autograd.grad(layers.mean_2x2(x), x, direction)
    assert torch.equal(got, expected) and got.is_contiguous(memory_format=memory)
    assert kept_by(lambda: layers.mean_2x2(x)) == 0


def test_a_frozen_convolution_keeps_nothing_of_its_input():
    layer, x = layers.Conv2d(4, 4, 3, padding=1), images(3)[:, :1].repeat(1, 4, 1, 1)
    x.requires_grad_(True)
    assert kept_by(lambda: layer(x)) >= x.untyped_storage().nbytes()
    layer.requires_grad_(False)
    assert kept_by(lambda: layer(x)) == 0


class Casts(TorchDispatchMode):
    """Counts the conversions from one precision to another."""

    count = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Passes every operation on."""
        if func.overloadpacket is torch.ops.aten._to_copy and (kwargs or {}).get("dtype"):
            self.count += 1
        return func(*args, **(kwargs or {}))


def test_half_precision_casts_nothing_layer_by_layer():
    """As a GPU computes it; "meta" is a device that computes nothing."""
    counts = []
    for blocks in (1, 3):
        layout = classifier_layout(num_res_blocks=blocks, attention_levels=())
        network = EncoderUNet(layout, dtype=torch.float16, device="meta").requires_grad_(False)
        x = torch.empty(2, 3, 8, 8, dtype=torch.float16, device="meta", requires_grad=True)
        with Casts() as casts:
            torch.autograd.grad(network(x, torch.empty(2, device="meta")).sum(), x)
        counts.append(casts.count)
    assert counts[0] == counts[1] > 0


def kernels(compute):
    """The names of the operations that ran."""
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        compute()
    return {event.key for event in seen.key_averages()}


@pytest.mark.parametrize("new_order", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_attention_takes_the_fused_kernel(dtype, new_order):
    network = randomised(EncoderUNet(classifier_layout(new_attention_order=new_order))).to(dtype)
    classifier = NoisyClassifier(network, "linear")
    names = kernels(lambda: classifier.gradient(images(3), 1.5, LABELS))
    assert {FUSED, f"{FUSED}_backward"} <= names
    assert not {"aten::bmm", "aten::softmax", "aten::_softmax"} & names
    assert FUSED in kernels(lambda: classifier.log_probs(images(3), 1.5))


@pytest.mark.parametrize("pool", ["attention", "adaptive", "spatial", "spatial_v2"])
def test_recomputed_stages_give_the_same_gradient_to_the_bit(pool):
    whole = noisy_classifier(pool=pool)
    saving = whole.with_memory_plan(GradientMemoryPlan(recompute=True))
    expected, got = (one.gradient(images(3), 1.5, LABELS) for one in (whole, saving))
    assert expected.abs().max() > 0
    assert torch.equal(got, expected)


@pytest.mark.parametrize("at_once", [1, 2, 3, 5])
@pytest.mark.parametrize("label", [LABELS, 1, torch.tensor([1])])
def test_parts_of_a_batch_give_the_same_gradient(at_once, label):
    """The plan may be a function of the images."""
    whole, seen, sigma = noisy_classifier(), [], torch.tensor([0.5, 3.0, 20.0])
    whole.network.register_forward_hook(lambda module, inputs, output: seen.append(len(output)))
    expected = whole.gradient_and_log_probs(images(3), sigma, Target(label))
    plan = GradientMemoryPlan(images=at_once)
    for memory_plan in (plan, lambda x: plan if len(x) == 3 else None):
        seen.clear()
        parts = whole.with_memory_plan(memory_plan)
        got = parts.gradient_and_log_probs(images(3), sigma, Target(label))
        assert max(seen) == min(at_once, 3) and sum(seen) == 3
        for one, other in zip(got, expected, strict=True):
            assert (one - other).abs().max() < 1e-5 * other.abs().max()


def test_plans_that_cannot_be():
    for at_once, batch, parts in (
        (0, 5, [slice(0, 5)]),
        (2, 5, [slice(0, 2), slice(2, 4), slice(4, 6)]),
        (2, 4, [slice(0, 2), slice(2, 4)]),
        (9, 5, [slice(0, 9)]),
        (0, 0, [slice(0, 1)]),  # one part that is empty
        (3, 0, [slice(0, 3)]),
    ):
        assert list(GradientMemoryPlan(at_once).parts(batch)) == parts
    assert GradientMemoryPlan() == GradientMemoryPlan(images=0, recompute=False) == WHOLE
    GradientMemoryPlan(images=1).check(SmoothClassifier())
    GradientMemoryPlan(recompute=True).check(half_unet())
    with pytest.raises(ValueError, match="images is -1; .* 0 .* or more"):
        GradientMemoryPlan(images=-1)
    with pytest.raises(ValueError, match="recompute .*SmoothClassifier. Set images to 1"):
        plan = GradientMemoryPlan(recompute=True)
        NoisyClassifier(SmoothClassifier(), "linear", memory_plan=plan)


# Numbers that each stage reads and keeps, counted by hand: (reads, keeps).
STAGES = [
    (32 * 128, 2 * (32 + 32) * 128 + 5 * 32 * 128),  # blocks with attention, of 8x16 places
    (32 * 128, 2 * (32 + 32) * 128 + 5 * 32 * 128),
    (32 * 128, 2 * 32 * 128 + 2 * 32 * 32),  # half the size
    (32 * 32, 2 * (32 + 64) * 32),
    (64 * 32, 2 * (64 + 64) * 32),
    (64 * 32, 2 * 64 * 32 + 2 * 64 * 8),
    (64 * 8, 2 * (64 + 96) * 8),
    (96 * 8, 2 * (96 + 96) * 8),
    (96 * 8, 13 * 96 * 8),  # the middle
]


@pytest.mark.parametrize(("dtype", "width"), [(torch.float32, 4), (torch.float16, 2)])
def test_the_memory_of_a_gradient(dtype, width):
    """What is kept, and three times the largest for what is computed meanwhile."""
    layout = classifier_layout(num_res_blocks=2, channel_mult=(1, 2, 3), attention_levels=(0,))
    reads, keeps = (sum(numbers) for numbers in zip(*STAGES, strict=True))
    largest = max(kept for _, kept in STAGES)
    assert gradient_bytes(layout, (8, 16), dtype) == width * (keeps + 3 * largest)
    recomputed = gradient_bytes(layout, (8, 16), dtype, recompute=True)
    assert recomputed == width * (reads + 4 * largest)


ESTIMATED = [{"attention_levels": (0, 1), "num_res_blocks": 3}]
ESTIMATED += [{"channel_mult": (1, 1, 2, 2), "attention_levels": (2, 3)}]
MORE = {"num_res_blocks": 2, "channel_mult": (1, 2, 3), "norm_groups": 8}


@pytest.mark.parametrize("changes", [*ESTIMATED, {"model_channels": 64, **MORE}])
def test_the_estimate_is_what_torch_keeps_and_some_more(changes):
    layout = classifier_layout(image_size=32, num_head_channels=16, **changes)
    network = randomised(EncoderUNet(layout))
    x, t = images(1, size=32).requires_grad_(True), torch.tensor([5.0])
    kept = kept_by(lambda: network(x, t))
    estimate = gradient_bytes(layout, (32, 32), torch.float32)
    assert kept < estimate < 2.2 * kept
    recomputed = gradient_bytes(layout, (32, 32), torch.float32, recompute=True)
    assert kept_by(lambda: network(x, t, recompute=True)) < recomputed < estimate


def test_the_quickest_plan_that_fits_is_chosen():
    layout, size = classifier_layout(), (8, 16)
    whole, less = (
        gradient_bytes(layout, size, torch.float16, recompute) for recompute in (False, True)
    )
    for free, at_once, recompute in (
        (3 * whole, 0, False),
        (3 * whole - 1, 0, True),
        (3 * less, 0, True),
        (3 * less - 1, 2, True),
        (2 * less, 2, True),
        (2 * less - 1, 1, True),
        (0, 1, True),
    ):
        found = memory_plan_within(free, layout, (3, 3, *size), torch.float16)
        assert found == GradientMemoryPlan(at_once, recompute)
