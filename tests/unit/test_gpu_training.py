"""A training on a real CUDA device: no step waits, and a bad loss changes nothing."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_networks import classifier_layout, unet_layout

from guidance import NoiseSchedule
from guidance.training import losses, optimizer, placement
from guidance.training.data import Augment, LabelledImages
from guidance.training.loop import OptimizerConfig, TrainingContext, optimise
from guidance.training.resume import ResumeFile
from guidance.training.train_classifier import train_classifier
from guidance.training.train_diffusion import train_diffusion

pytestmark = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA GPU")
SIDE, STEPS = 16, 12


class Stop(Exception):
    """What a cancelled run raises."""


def data():
    images = torch.randint(0, 256, (50, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    return LabelledImages(images.to(torch.uint8), torch.arange(50) % 2, ("even", "odd"))


def classifier(recipe, **more):
    layout = classifier_layout(out_channels=2, image_size=SIDE, dropout=0.1)
    return train_classifier(data(), layout, NoiseSchedule("linear"), recipe, **more)


def diffusion(recipe, **more):
    layout = unet_layout(num_classes=3, null_class=2, image_size=SIDE, dropout=0.1)
    return train_diffusion(data(), layout, NoiseSchedule("linear"), recipe, **more)


@pytest.fixture
def errors_on_waits():
    """An on_step that makes torch raise where a step waits: after the first, until the last."""

    def on_step(step, loss):
        torch.cuda.set_sync_debug_mode("error" if step < STEPS else "default")

    yield on_step
    torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("train", [classifier, diffusion])
@pytest.mark.parametrize("room", [0, None], ids=["data in main memory", "data on the device"])
@pytest.mark.parametrize("bf16", [False, True])
def test_a_step_does_not_wait(monkeypatch, errors_on_waits, train, room, bf16):
    if bf16 and not torch.cuda.is_bf16_supported():
        pytest.skip("this GPU has no bf16")
    if room is not None:
        monkeypatch.setattr(placement, "free_memory", lambda device: room)
    recipe = OptimizerConfig(steps=STEPS, batch_size=8, accumulate=2, bf16=bf16)
    run = TrainingContext(device="cuda", on_step=errors_on_waits)
    found = train(recipe, run=run, augment=Augment(2, True)).losses
    assert len(found) == STEPS and all(map(math.isfinite, found))


def test_a_wait_in_a_step_is_an_error(errors_on_waits):
    run = TrainingContext(device="cuda", on_step=errors_on_waits)
    network = torch.nn.Linear(3, 1).cuda()
    loss = lambda net, rows: net(rows).mean() * float(rows.sum())  # noqa: E731
    recipe = OptimizerConfig(steps=STEPS, batch_size=4)
    draw = lambda step: (torch.ones(4, 3, device="cuda"),)  # noqa: E731
    with pytest.raises(RuntimeError, match="synchroniz"):
        optimise(network, draw, loss, recipe, run)


def trained(run, bad=None):
    """A training of a linear network; the loss of the step `bad` is not finite."""
    torch.manual_seed(0)
    network = torch.nn.Linear(3, 1).cuda()

    def draw(step):
        chance = torch.Generator("cuda").manual_seed(step)
        more = torch.full((4,), math.inf if step == bad else 0.0, device="cuda")
        return torch.randn(4, 3, generator=chance, device="cuda"), more

    def loss(net, rows, more):
        return (net(rows)[:, 0] - rows.sum(dim=1)).square().mean() + more.mean()

    return optimise(network, draw, loss, OptimizerConfig(steps=STEPS, batch_size=4), run)


@pytest.mark.parametrize("step", [1, 2, 6, STEPS - 1])
def test_what_was_before_a_bad_loss_is_kept(tmp_path, step):
    def stop(network, at):
        raise Stop

    bad, good = (ResumeFile(tmp_path / f"{name}.resume", {}) for name in ("bad", "good"))
    with pytest.raises(ValueError, match=f"loss is inf at step {step},"):
        trained(TrainingContext(device="cuda", resume=bad), bad=step)
    with pytest.raises(Stop):
        trained(TrainingContext(device="cuda", resume=good, show=stop, show_every=step))
    assert bad.path.read_bytes() == good.path.read_bytes()
    rest = trained(TrainingContext(device="cuda", resume=bad))
    assert rest.losses == trained(TrainingContext(device="cuda")).losses


def test_losses_are_read_late_and_updates_can_be_left_out():
    assert optimizer.can_leave_out(torch.device("cuda"))
    adamw = optimizer.adamw(torch.nn.Linear(1, 1).cuda(), torch.device("cuda"), lr=0.1)
    assert optimizer.is_fused(adamw) and losses.LATE > 0
