"""A step of a training hands its work to the device and goes on: it does not wait for a value.

Seen on a device that computes nothing, for there is no accelerator here: fake_device.py.
"""

from __future__ import annotations

import contextlib
import importlib
from pathlib import Path

import pytest
import torch
from fake_device import Waits
from tiny_models import SIZE
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode

from guidance import NoiseSchedule
from guidance.adm import ClassifierLayout, UNetLayout
from guidance.training import losses, optimizer, placement, rng, train_classifier, train_diffusion
from guidance.training.data import Augment, LabelledImages
from guidance.training.loop import OptimizerConfig, TrainingContext

DEVICE = torch.device("lazy")  # one that torch can differentiate on
STEPS = 5
NETWORK = {"model_channels": 32, "channel_mult": (1, 2), "num_res_blocks": 1, "dropout": 0.1}
NETWORK |= {"attention_levels": (1,), "num_head_channels": 16, "norm_groups": 8}
NETWORK |= {"in_channels": 3, "image_size": SIZE}
OF_MODEL = {"image_channels": 3, "out_channels": 6, "num_classes": 3, "null_class": 2}


class Copies:
    """Counts copies of losses that were made and read. Their values are made up."""

    made = read = 0

    def __init__(self, values):
        assert values.device == DEVICE and values.shape == () and not values.requires_grad
        type(self).made += 1

    def wait(self):
        """A loss."""
        type(self).read += 1
        return 0.5


@pytest.fixture
def device(monkeypatch):
    """Fake tensors on a device that has events, a fused AdamW and, if told so, room for data."""
    for module in (optimizer, placement):
        monkeypatch.setattr(module, "WITH_EVENTS", (DEVICE.type,))
    monkeypatch.setattr(optimizer, "can_leave_out", lambda device: True)
    torchs = importlib.import_module("torch.optim.optimizer")
    monkeypatch.setattr(torchs, "_get_fused_kernels_supported_devices", lambda: [DEVICE.type])
    monkeypatch.setattr(Copies, "made", 0)
    monkeypatch.setattr(Copies, "read", 0)
    monkeypatch.setattr(losses, "HostCopy", Copies)
    # chance has no values there, and torch no generator for it
    for module in (train_classifier, train_diffusion):
        monkeypatch.setattr(module, "generator", without_device)
    # a look at the data, which is real, before the first step
    monkeypatch.setattr(train_classifier, "check_classes", lambda data: None)
    # torch's copy of a fake parameter is no fake one
    monkeypatch.setattr(FakeTensor, "__deepcopy__", copied, raising=False)
    # which this device does not have
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: contextlib.nullcontext())
    return FakeTensorMode(allow_non_fake_inputs=True)


def copied(parameter, memo):
    return torch.nn.Parameter(torch.empty_like(parameter), parameter.requires_grad)


def without_device(*place, device):
    assert torch.device(device) == DEVICE
    return rng.generator(*place)


def data():
    images = torch.zeros(20, 3, SIZE, SIZE, dtype=torch.uint8)
    return LabelledImages(images, torch.arange(20) % 2, ("even", "odd"))


def classifier():
    layout = ClassifierLayout(**NETWORK, out_channels=2, pool="attention")
    given = data(), layout, NoiseSchedule("linear")
    return lambda recipe, **more: train_classifier.train_classifier(*given, recipe, **more)


def diffusion():
    given = data(), UNetLayout(**NETWORK, **OF_MODEL), NoiseSchedule("linear")
    return lambda recipe, **more: train_diffusion.train_diffusion(*given, recipe, **more)


@pytest.mark.parametrize(
    ("kind", "free", "parts"),
    [(classifier, 0, 1), (classifier, 1e12, 2), (diffusion, 1e12, 1), (diffusion, 0, 2)],
    ids=lambda value: {0: "data in main memory", 1e12: "data on the device"}.get(value),
)
def test_a_step_does_not_wait(device, root, monkeypatch, kind, free, parts):
    monkeypatch.setattr(placement, "free_memory", lambda device: free)
    seen, waits, real = [], Waits(root), losses.Losses.add

    def add(self, loss):
        seen.append((len(waits.seen), Copies.made - Copies.read))
        real(self, loss)

    monkeypatch.setattr(losses.Losses, "add", add)
    told = []
    run = TrainingContext(device=DEVICE.type, on_step=lambda step, loss: told.append((step, loss)))
    recipe = OptimizerConfig(steps=STEPS, batch_size=6, accumulate=parts)
    train = kind()
    with device, waits:
        trained = train(recipe, run=run, augment=Augment(2, True))
    before = seen[0][0]
    assert waits.seen[before:] == [], "what is put there once comes before"
    assert [late for _, late in seen] == [0, 1, 2, 2, 2], "read two steps later"
    assert told == [(step, 0.5) for step in range(1, STEPS + 1)]
    assert trained.losses == [0.5] * STEPS


def test_a_wait_in_a_step_would_be_seen(device, root, monkeypatch):
    monkeypatch.setattr(placement, "to_device", lambda device, values: values.to(device))
    recipe, train, waits = OptimizerConfig(steps=2, batch_size=6), classifier(), Waits(root)
    with device, waits:
        train(recipe, run=TrainingContext(device=DEVICE.type))
    assert sum("_to_copy" in one and Path(__file__).name in one for one in waits.seen) == 2 * 2
