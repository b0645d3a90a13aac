"""Looks: what they are, and the gradient over them, at once and in parts."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_networks import images
from torch import nn

from guidance import ImageClassifier
from guidance.classifiers.base import Target
from guidance.classifiers.looks import Looks, log_mean_exp
from guidance.classifiers.preprocessing import Preprocessing

LABELS = torch.tensor([0, 2])
STILL = {"shift": 0.0, "zoom": 0.0, "noise": 0.0}
PREPARED = Preprocessing(resize=(6, 6), mean=(0.4, 0.5, 0.6), std=(0.2, 0.3, 0.4))


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Bent(nn.Module):
    """logits = V tanh(W x) of inputs (B, 3, 6, 6); refuses more images than `most`, as a GPU."""

    def __init__(self, classes=3, most=None):
        super().__init__()
        draw = seeded(7)
        self.hidden = nn.Parameter(torch.randn(16, 108, generator=draw).double() / 10, False)
        self.last = nn.Parameter(torch.randn(classes, 16, generator=draw).double(), False)
        self.most = most
        self.batches: list[int] = []

    def forward(self, x):
        self.batches.append(len(x))
        if self.most is not None and len(x) > self.most:
            raise torch.OutOfMemoryError("no memory")
        return (x.flatten(1) @ self.hidden.T).tanh() @ self.last.T


def classifier(looks, network=None, classes=3, **options):
    network = network or Bent(classes)
    return ImageClassifier(network, PREPARED, classes, looks=looks, **options)


def test_a_look_moves_the_image_by_whole_pixels():
    """At most by its share of the sides, each way; what comes in repeats the border."""
    picture = torch.arange(64.0).view(1, 1, 8, 8)
    looks = Looks(count=40, shift=0.25, zoom=0.0).of(picture, seeded())
    rows = {int(look[0, 0, 3, 3]) // 8 - 3 for look in looks}
    columns = {int(look[0, 0, 3, 3]) % 8 - 3 for look in looks}
    assert rows == columns == {-2, -1, 0, 1, 2}
    for look in looks:
        down, right = int(look[0, 0, 3, 3]) // 8 - 3, int(look[0, 0, 3, 3]) % 8 - 3
        at = [(torch.arange(8) + move).clamp(0, 7) for move in (down, right)]
        assert torch.equal(look, picture[:, :, at[0]][..., at[1]])


def test_a_look_of_another_size_keeps_the_shape_and_a_plain_image():
    plain = torch.full((2, 3, 30, 20), 0.25)
    looks = Looks(count=20, zoom=0.4).of(plain, seeded())
    assert all(torch.allclose(look, plain) for look in looks)
    ramp = torch.linspace(-1, 1, 40).expand(1, 1, 40, 40)
    slopes = [
        look[0, 0, 20, 12:28].diff().mean()
        for look in Looks(count=20, shift=0.0, zoom=0.4).of(ramp, seeded())
    ]
    steps = torch.stack(slopes) / (2 / 39)
    assert 0.59 < steps.min() < 0.75 and 1.25 < steps.max() < 1.41


def test_mirror_images_only_where_they_are_allowed():
    ramp = torch.linspace(-1, 1, 8).expand(1, 1, 8, 8)
    falling = [
        [bool(look[0, 0, 0, 0] > 0) for look in Looks(count=20, flip=flip).of(ramp, seeded())]
        for flip in (True, False)
    ]
    assert 5 <= sum(falling[0]) <= 15 and not any(falling[1])


@pytest.mark.parametrize("activation", ["softmax", "score"])
def test_the_gradient_is_of_the_mean_over_the_looks(activation):
    classes = 1 if activation == "score" else 3
    x0, looks = images(dtype=torch.float64), Looks(count=5)
    guide = classifier(looks, classes=classes, activation=activation)
    labels = torch.zeros(2, dtype=torch.long) if classes == 1 else LABELS
    gradient, log_probs, *_ = guide.image_gradient(x0, Target(labels), seeded(1))
    x_in, draw = x0.clone().requires_grad_(), seeded(1)
    moved = torch.stack([PREPARED(look) for look in looks.of(x_in, draw)])
    noise = torch.randn(moved.shape, generator=draw).double() * looks.noise
    # noise of pixels in [-1, 1] is half as large in [0, 1]
    seen = moved + noise / 2 / torch.tensor(PREPARED.std).double().view(3, 1, 1)
    outputs = torch.stack([Bent(classes)(one) for one in seen])
    if activation == "score":
        averaged = outputs.mean(dim=0)
    else:
        averaged = outputs.softmax(dim=-1).mean(dim=0).log()
    (expected,) = torch.autograd.grad(averaged[torch.arange(2), labels].sum(), x_in)
    assert torch.allclose(log_probs, averaged.detach(), atol=1e-6)
    assert (gradient - expected).abs().max() < 1e-6 * expected.abs().max()


def test_looks_that_change_nothing_are_the_image_itself():
    x0 = images(dtype=torch.float64)
    one, *_ = classifier(Looks()).image_gradient(x0, Target(LABELS))
    still, *_ = classifier(Looks(count=3, **STILL)).image_gradient(x0, Target(LABELS), seeded())
    assert (one - still).abs().max() < 1e-12 * one.abs().max()


def test_equal_seeds_take_equal_looks():
    guide, x0 = classifier(Looks(count=2)), images(dtype=torch.float64)
    first, again, other = (
        guide.image_gradient(x0, Target(LABELS), seeded(seed))[0] for seed in (3, 3, 4)
    )
    assert torch.equal(first, again) and not torch.equal(first, other)


@pytest.mark.parametrize(("most", "expected"), [(6, [16, 8, 4]), (2, [16, 8, 4, 2])])
def test_where_memory_is_short_the_looks_are_taken_in_parts(most, expected):
    """With the same result, and once it was short, in parts from the start."""
    x0, looks = images(dtype=torch.float64), Looks(count=8)
    whole = classifier(looks).image_gradient(x0, Target(LABELS), seeded(2))
    network = Bent(most=most)
    guide = classifier(looks, network)
    found = guide.image_gradient(x0, Target(LABELS), seeded(2))
    assert network.batches[: len(expected)] == expected
    for a, b in zip(whole[:2], found[:2], strict=True):
        assert (a - b).abs().max() < 1e-12
    network.batches.clear()
    guide.with_network(network).image_gradient(x0, Target(LABELS), seeded(2))
    assert max(network.batches) == expected[-1]


def test_no_memory_for_a_single_look():
    with pytest.raises(torch.OutOfMemoryError):
        classifier(Looks(count=4), Bent(most=1)).image_gradient(images().double(), Target(LABELS))


def test_log_of_a_mean_probability():
    log_probs = torch.tensor([[[-1000.0, -1.0]], [[-1001.0, -2.0]]])
    expected = [-1000 + math.log((1 + math.exp(-1)) / 2), -1 + math.log((1 + math.exp(-1)) / 2)]
    assert log_mean_exp(log_probs)[0].tolist() == pytest.approx(expected)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"count": -1}, "looks is -1"),
        ({"count": 65}, "looks is 65; .* 64"),
        ({"shift": 0.5}, "shift 0.5"),
        ({"noise": -0.1}, "noise -0.1"),
        ({"zoom": math.nan}, "zoom nan"),
    ],
)
def test_looks_outside_their_range(options, said):
    with pytest.raises(ValueError, match=said):
        Looks(**options)
