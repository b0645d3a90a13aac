"""Where the data of a training is, and that its random numbers on a CPU stay what they were."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch
from tiny_networks import classifier_layout, unet_layout

from guidance import NoiseSchedule
from guidance.training import placement
from guidance.training.data import Augment, LabelledImages, shifted
from guidance.training.loop import OptimizerConfig
from guidance.training.placement import PlacedImages, free_memory, place_of_draws
from guidance.training.rng import Batches
from guidance.training.train_classifier import train_classifier
from guidance.training.train_diffusion import train_diffusion

SIDE = 8
CPU, ELSEWHERE = torch.device("cpu"), torch.device("meta")
SMALL = {"channel_mult": (1,), "attention_levels": (), "image_size": SIDE}


def data(floats=False):
    images = torch.randint(0, 256, (20, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    images = images / 100 - 1 if floats else images.to(torch.uint8)
    return LabelledImages(images, torch.arange(20) % 2, ("even", "odd"))


@pytest.mark.parametrize("floats", [False, True])
def test_a_batch_is_what_the_data_has_there(floats):
    placed, index = PlacedImages(data(floats), CPU), torch.tensor([3, 0, 19, 3])
    x0, labels = placed.batch(index)
    assert torch.equal(x0, data(floats).x0(index)) and labels.tolist() == [1, 0, 1, 1]
    assert x0.dtype == torch.float32


SIZE = 20 * 3 * SIDE * SIDE + 20 * 8  # bytes of images and labels


@pytest.mark.parametrize(("free", "fits"), [(2 * SIZE, True), (2 * SIZE - 1, False), (0, False)])
def test_data_that_takes_half_of_the_free_memory_is_put_on_the_device(monkeypatch, free, fits):
    monkeypatch.setattr(placement, "free_memory", lambda device: free)
    placed = PlacedImages(data(), ELSEWHERE)
    assert (placed.data.images.device == ELSEWHERE) == fits
    assert placed.data.labels.device == placed.data.images.device
    x0, labels = placed.batch(torch.arange(5))
    assert (x0.device, labels.device) == (ELSEWHERE, ELSEWHERE)
    assert (x0.shape, x0.dtype, labels.shape) == ((5, 3, SIDE, SIDE), torch.float32, (5,))


def test_free_memory_is_asked_of_the_device(monkeypatch):
    asked = []
    kind = SimpleNamespace(mem_get_info=lambda device: asked.append(device) or (7, 9))
    monkeypatch.setattr(torch, "cuda", kind)
    assert free_memory(torch.device("cuda", 1)) == 7 and asked == [torch.device("cuda", 1)]
    assert free_memory(ELSEWHERE) == 0, "torch cannot tell"


def test_bytes_go_to_cuda_from_pinned_memory(monkeypatch):
    sent = []

    class Pinned(torch.Tensor):
        def pin_memory(self):
            sent.append("pinned")
            return self

    to_device = lambda device, values: sent.append((device.type, values.dtype))  # noqa: E731
    monkeypatch.setattr(placement, "to_device", to_device)
    values = torch.zeros(3, dtype=torch.uint8).as_subclass(Pinned)
    placement._sent(values, torch.device("cuda"))
    placement._sent(values, torch.device("xpu"))
    placement._sent(values, CPU)
    kinds = [(kind, torch.uint8) for kind in ("cuda", "xpu", "cpu")]
    assert sent == ["pinned", *kinds]


@pytest.mark.parametrize(
    ("device", "place"), [("cpu", "cpu"), ("mps", "cpu"), ("cuda:1", "cuda:1"), ("xpu", "xpu")]
)
def test_chance_is_drawn_where_the_host_need_not_wait_for_it(device, place):
    assert place_of_draws(device) == place_of_draws(torch.device(device)) == torch.device(place)


@pytest.mark.parametrize("most", [1, 3, 9])
def test_a_shift_is_a_window_of_the_padded_image(most):
    images = torch.randn(40, 2, 5, 7)
    moved = shifted(images, most, torch.Generator().manual_seed(1))
    chance = torch.Generator().manual_seed(1)
    offsets = torch.randint(0, 2 * most + 1, (40, 2), generator=chance).tolist()
    padded = torch.nn.functional.pad(images, (most,) * 4, mode="replicate")
    for one, (y, x), got in zip(padded, offsets, moved, strict=True):
        assert torch.equal(got, one[:, y : y + 5, x : x + 7])
    assert moved.is_contiguous()


@pytest.mark.parametrize("size", [1, 4, 7, 10, 25])
def test_a_batch_is_the_next_places_of_the_passes(size):
    batches, alone = Batches(7, size, seed=3), Batches(7, 1, seed=3)
    for step in (0, 1, 5):
        places = range(step * size, (step + 1) * size)
        assert torch.equal(batches.at(step), torch.cat([alone.at(place) for place in places]))


def losses(train, layout, **more):
    settings = {"steps": 9, "batch_size": 6, "ema": 0.9} | more.pop("recipe", {})
    recipe, images = OptimizerConfig(**settings), data(more.pop("floats", False))
    return train(images, layout, NoiseSchedule("linear"), recipe, **more).losses


def test_trainings_on_a_cpu_can_be_repeated():
    """Losses of trainings of the first version: the same images, chance and updates."""
    classifier = classifier_layout(**SMALL, out_channels=2)
    unet = unet_layout(**SMALL, num_classes=3, null_class=2)
    found = [
        losses(train_classifier, classifier, recipe={"accumulate": 2}, augment=Augment(2, True)),
        losses(
            train_classifier,
            classifier,
            **{"floats": True, "clean": True, "augment": Augment(3), "recipe": {"batch_size": 47}},
        ),
        losses(train_diffusion, unet, p_uncond=0.3, augment=Augment(1, True)),
    ]
    for got, expected in zip(found, EXPECTED, strict=True):
        assert got == pytest.approx(expected, abs=2e-5)


EXPECTED = [
    [0.695394, 0.693698, 0.695109, 0.69485, 0.709509, 0.680824, 0.707256, 0.694588, 0.693663],
    [0.700194, 0.693533, 0.690739, 0.694578, 0.692287, 0.693545, 0.695123, 0.691534, 0.691441],
    [0.945736, 1.037903, 0.955885, 1.039775, 0.990195, 0.958317, 0.925755, 1.207623, 1.058362],
]
