"""A training whose losses are read late ends as if each had been read at once.

A CPU stands in for a device with events; its fused AdamW leaves out updates as a GPU's does.
"""

from __future__ import annotations

import json
import math

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from guidance.core.host_copy import HostCopy
from guidance.training import losses, optimizer
from guidance.training.loop import OptimizerConfig, TrainingContext, optimise
from guidance.training.losses import LATE
from guidance.training.resume import ResumeFile

STEPS = 9
CPU = torch.device("cpu")
BAD = [float("nan"), float("inf"), -float("inf")]


class Stop(Exception):
    """What a cancelled run raises."""


@pytest.fixture
def made(monkeypatch):
    """Losses are read late; the numbers of copies that had been made when each was read."""
    made, when = [], []

    class Counted(HostCopy):
        def __init__(self, values):
            super().__init__(values)
            made.append(self)

        def wait(self):
            when.append(len(made))
            return super().wait()

    monkeypatch.setattr(losses, "HostCopy", Counted)
    monkeypatch.setattr(optimizer, "WITH_EVENTS", ("cpu",))
    return when


def network():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Tanh(), torch.nn.Linear(4, 1))


def trained(run=None, bad=(), value=math.nan, **recipe):
    """A training; the losses of the steps `bad` are `value`."""

    def draw(step):
        rows = torch.randn(4, 3, generator=torch.Generator().manual_seed(step))
        return rows, torch.full((4,), value if step in bad else 0.0)

    def loss(net, rows, more):
        return (net(rows)[:, 0] - rows.sum(dim=1)).square().mean() + more.mean()

    settings = {"steps": STEPS, "batch_size": 4, "learning_rate": 0.05, "ema": 0.8}
    return optimise(network(), draw, loss, OptimizerConfig(**settings | recipe), run)


def file(tmp_path, name):
    return ResumeFile(tmp_path / f"{name}.resume", {"seed": 0})


def progress(path):
    with safe_open(path, "pt") as opened:
        return json.loads(opened.metadata()["training"])


def state_of(trained):
    return trained.network.state_dict()


def stop_at(when):
    def stop(one, other):
        if when in (one, other):
            raise Stop

    return stop


@pytest.fixture
def before(tmp_path, made):
    """`before(step)`: the file of a training that ended when this many steps were done."""

    def run(step):
        kept = file(tmp_path, f"before {step}")
        with pytest.raises(Stop):
            trained(TrainingContext(resume=kept, show=stop_at(step), show_every=step))
        assert progress(kept.path)["step"] == step == len(progress(kept.path)["losses"])
        return kept.path

    return run


def test_each_loss_is_told_once_in_order_and_all_at_the_end(made):
    told = []
    run = TrainingContext(on_step=lambda step, loss: told.append((step, loss, len(made))))
    found = trained(run)
    assert [(step, loss) for step, loss, _ in told] == list(enumerate(found.losses, start=1))
    assert len(found.losses) == STEPS
    assert made == [min(number + LATE, STEPS) for number in range(1, STEPS + 1)]


def test_it_ends_as_if_each_loss_were_read_at_once(made, monkeypatch):
    late = trained()
    monkeypatch.setattr(losses, "LATE", 0)
    once = trained()
    assert late.losses == once.losses
    monkeypatch.setattr(optimizer, "WITH_EVENTS", ())
    plain = trained()
    assert plain.losses == pytest.approx(late.losses, abs=1e-5)
    assert state_of(late).keys() == state_of(plain).keys()
    for name, weight in state_of(late).items():
        for other in (once, plain):
            assert torch.allclose(weight, state_of(other)[name], atol=1e-5), name


@pytest.mark.parametrize("step", range(1, STEPS))
@pytest.mark.parametrize("value", BAD)
def test_what_was_before_a_loss_that_is_not_finite_is_kept(tmp_path, before, step, value):
    """Weights, average and optimiser are those of a training that ended there, bit for bit."""
    told, kept = [], file(tmp_path, "bad")
    run = TrainingContext(resume=kept, on_step=lambda step, loss: told.append(step))
    with pytest.raises(ValueError, match=rf"loss is {value} at step {step}, so the weights before"):
        trained(run, bad={step}, value=value)
    assert told == list(range(1, step + 1))
    assert kept.path.read_bytes() == before(step).read_bytes()
    whole = trained()
    assert trained(TrainingContext(resume=kept)).losses == whole.losses, "and it goes on from there"


def test_the_first_step_may_be_the_bad_one(tmp_path, made):
    kept, net = file(tmp_path, "bad"), network()
    weights = [weight.clone() for weight in net.parameters()]
    nan = lambda net, rows: net(rows).mean() * math.nan  # noqa: E731
    recipe = OptimizerConfig(steps=STEPS, batch_size=4)
    with pytest.raises(ValueError, match="at step 0,"):
        optimise(net, lambda step: (torch.ones(4, 3),), nan, recipe, TrainingContext(resume=kept))
    assert not kept.path.exists()
    assert all(torch.equal(a, b) for a, b in zip(weights, net.parameters(), strict=True))


def test_several_bad_losses_are_the_first_one(made):
    with pytest.raises(ValueError, match="at step 4,"):
        trained(bad={4, 6})


@pytest.mark.parametrize("at", range(1, STEPS + 1))
def test_a_cancelled_training_keeps_all_its_steps(tmp_path, made, at):
    kept = file(tmp_path, "cancelled")
    with pytest.raises(Stop):
        trained(TrainingContext(resume=kept, on_step=stop_at(at)))
    found = progress(kept.path)
    assert found["step"] == len(found["losses"]) == min(at + LATE, STEPS)
    whole = trained()
    parts = trained(TrainingContext(resume=kept))
    assert parts.losses == whole.losses
    one, other = state_of(parts), state_of(whole)
    assert all(torch.equal(one[name], other[name]) for name in other)


@pytest.mark.parametrize("bad", [4, 5])
def test_a_cancelled_training_keeps_nothing_after_a_bad_loss(tmp_path, before, bad):
    """Steps 4 and 5, counted from 0, are done when step 3 is reported; nobody knows of them yet."""
    kept = file(tmp_path, "cancelled")
    with pytest.raises(Stop):
        trained(TrainingContext(resume=kept, on_step=stop_at(4)), bad={bad})
    assert kept.path.read_bytes() == before(bad).read_bytes()
    with pytest.raises(ValueError, match=f"at step {bad},"):
        trained(TrainingContext(resume=kept), bad={bad})


@pytest.mark.parametrize("error", [Stop, MemoryError, KeyboardInterrupt])
def test_a_failed_step_keeps_those_before_it(tmp_path, before, error):
    kept = file(tmp_path, "failed")

    def draw(step):
        if step == 5:
            raise error
        return (torch.randn(4, 3, generator=torch.Generator().manual_seed(step)),)

    settings = {"steps": STEPS, "batch_size": 4, "learning_rate": 0.05, "ema": 0.8}
    loss = lambda net, rows: (net(rows)[:, 0] - rows.sum(dim=1)).square().mean()  # noqa: E731
    run = TrainingContext(resume=kept)
    with pytest.raises((error, ValueError)):
        optimise(network(), draw, loss, OptimizerConfig(**settings), run)
    kept, expected = load_file(kept.path), load_file(before(5))
    assert kept.keys() == expected.keys()
    assert all(torch.equal(kept[name], expected[name]) for name in expected)


def test_an_interruption_while_a_loss_is_read(tmp_path, before, monkeypatch):
    """It is read again, and the loss of the step that was not finished is left out."""
    kept, real, calls = file(tmp_path, "interrupted"), losses.math.isfinite, []

    def isfinite(value):
        calls.append(value)
        if len(calls) == 4:
            raise KeyboardInterrupt
        return real(value)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(losses.math, "isfinite", isfinite)
        trained(TrainingContext(resume=kept))
    assert kept.path.read_bytes() == before(4 + LATE).read_bytes()


def test_a_validation_sees_weights_whose_losses_are_known(tmp_path, made):
    validated, kept = [], file(tmp_path, "validated")

    def validate(network):
        validated.append(len(made))
        return {"loss": 1.0}

    run = TrainingContext(validate=validate, validate_every=2, resume=kept)
    with pytest.raises(ValueError, match="at step 5,"):
        trained(run, bad={5})
    assert [seen["step"] for seen in progress(kept.path)["validations"]] == [2, 4]
    assert validated == [2, 4]


def test_a_file_that_is_due_is_saved_with_all_losses(tmp_path, made):
    kept, seen = ResumeFile(tmp_path / "a.resume", {}, seconds=0), []

    def on_step(step, loss):
        if kept.path.exists():
            about = progress(kept.path)
            seen.append((about["step"], len(about["losses"])))

    trained(TrainingContext(resume=kept, on_step=on_step))
    assert seen == [(step, step) for step in range(1, STEPS)]


def test_an_optimiser_that_leaves_nothing_out_is_not_used(made, monkeypatch):
    assert optimizer.can_leave_out(CPU)
    assert not optimizer.can_leave_out(torch.device("meta")), "it has no fused kernel"
    monkeypatch.setattr(optimizer, "leaves_out", lambda optimizer, stopped: None)
    assert not optimizer.can_leave_out(CPU)
    assert not optimizer.is_fused(optimizer.adamw(network(), CPU, lr=0.1))
    trained()
    assert made == list(range(1, STEPS + 1)), "losses are read at once"


def test_a_cpu_reads_each_loss_at_once():
    adamw = optimizer.adamw(network(), CPU, lr=0.1, weight_decay=0.5)
    assert not optimizer.is_fused(adamw)
    assert (adamw.defaults["lr"], adamw.defaults["weight_decay"]) == (0.1, 0.5)
    assert adamw.defaults["fused"] is adamw.defaults["foreach"] is None, "as torch chooses"
