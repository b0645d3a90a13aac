"""The loop of a training, and what the trainings of both networks minimise: exact values."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_networks import SIZE, classifier_layout, half_unet, unet, unet_layout

from guidance import NoiseSchedule
from guidance.sampling.generate import SamplingConfig
from guidance.training import new_classifier, samples, train_classifier
from guidance.training.data import Augment, LabelledImages
from guidance.training.loop import OptimizerConfig, Trained, TrainingContext, optimise
from guidance.training.new_classifier import TrainingConfig
from guidance.training.samples import Sampler
from guidance.training.train_classifier import measured
from guidance.training.train_classifier import train_classifier as train
from guidance.training.train_diffusion import VarianceLoss, drop_labels, train_diffusion


class Weight(torch.nn.Module):
    def __init__(self, value=1.0):
        super().__init__()
        self.value = torch.nn.Parameter(torch.tensor([value]))


def slope(network, rows):
    return (network.value * rows).mean()


def optimised(network=None, draw=None, run=None, **recipe):
    recipe = OptimizerConfig(**{"steps": 4, "batch_size": 2, "weight_decay": 0.0} | recipe)
    draw = draw or (lambda step: (torch.ones(recipe.batch_size),))
    return optimise(network or Weight(), draw, slope, recipe, run)


def test_settings_out_of_range_are_refused():
    OptimizerConfig(steps=1, batch_size=1, accumulate=1, ema=0.0, seed=2**63 - 1)
    OptimizerConfig(steps=1, seed=-(2**63))
    for name, values in {
        "steps": [0],
        "batch_size": [0],
        "accumulate": [-1],
        "ema": [1.0, -0.5],
        "seed": [2**63, -(2**63) - 1],
    }.items():
        for value in values:
            with pytest.raises(ValueError, match=f"{name} is {value}"):
                OptimizerConfig(**{"steps": 1} | {name: value})


def test_the_loop_reaches_the_minimum_and_returns_a_frozen_average():
    network = Weight(0.0)
    recipe = OptimizerConfig(steps=400, learning_rate=0.1, weight_decay=0.0, ema=0.9)
    draw = lambda step: (torch.zeros(64),)  # noqa: E731
    trained = optimise(network, draw, lambda net, _: ((net.value - 2) ** 2).sum(), recipe)
    average = trained.network
    assert len(trained.losses) == 400
    assert average.value.item() == pytest.approx(2, abs=0.02)
    assert not average.training and not average.value.requires_grad
    assert average is not network


def test_the_learning_rate_falls_linearly():
    """AdamW goes by the rate where the gradient is always the same: 4/4, 3/4, 2/4 and 1/4 of it."""
    network, seen = Weight(), []
    seeing = lambda step, loss: seen.append((step, network.value.item(), loss))  # noqa: E731
    run = TrainingContext(on_step=seeing)
    trained = optimised(network, run=run, learning_rate=0.1)
    assert [step for step, _, _ in seen] == [1, 2, 3, 4]
    assert [value for _, value, _ in seen] == pytest.approx([0.9, 0.825, 0.775, 0.75], abs=1e-5)
    assert trained.losses == pytest.approx([1.0, 0.9, 0.825, 0.775], abs=1e-5)
    assert [loss for _, _, loss in seen] == trained.losses
    last = Trained(None, [9.0] * 50 + [1.0, 3.0] * 100, []), Trained(None, [9.0, 1.0, 2.0], [])
    assert [one.loss for one in last] == [2.0, 4.0], "of the last 200 steps"


def test_weights_decay_and_a_step_has_its_own_gradient():
    decays, network = {"steps": 1, "learning_rate": 0.5, "weight_decay": 0.5}, Weight()
    optimised(network, lambda step: (torch.zeros(2),), **decays)
    assert network.value.item() == pytest.approx(0.75)
    optimised(network, lambda step: (torch.full((2,), step + 1.0),), steps=3)
    assert network.value.grad.item() == pytest.approx(3.0)


def test_weights_are_averaged():
    for ema, expected in (
        # at first the average follows within (1 + step) / (10 + step): 1/10, then 2/11
        (0.999, (0.1 * 1.0 + 0.9 * 0.9) * 2 / 11 + 0.85 * 9 / 11),
        (0.15, (0.1 * 1.0 + 0.9 * 0.9) * 0.15 + 0.85 * 0.85),
        (0.0, 0.85),
    ):
        trained = optimised(steps=2, learning_rate=0.1, ema=ema)
        assert trained.network.value.item() == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("bf16", [False, True])
def test_parts_of_a_batch_are_averaged(bf16):
    values = torch.tensor([1.0, 2.0, 3.0, 6.0])
    seen = []

    def loss(network, rows):
        seen.append((rows.tolist(), torch.is_autocast_enabled("cpu")))
        return slope(network, rows)

    network = Weight(2.0)
    recipe = OptimizerConfig(steps=1, batch_size=4, accumulate=2, learning_rate=0.0, bf16=bf16)
    trained = optimise(network, lambda step: (values,), loss, recipe)
    assert seen == [([1.0, 2.0], bf16), ([3.0, 6.0], bf16)]
    assert trained.losses == [pytest.approx(6.0)]
    assert network.value.grad.item() == pytest.approx(3.0)


def test_validation_and_pictures_come_when_they_are_due():
    shown, validated = [], []

    def validate(network):
        validated.append(network)
        return {"loss": 1.0, "more": 2}

    run = TrainingContext(
        validate=validate,
        validate_every=2,
        show=lambda network, step: shown.append((network, step)),
        show_every=3,
    )
    trained = optimised(steps=5, run=run)
    assert trained.validations == [{"step": step, "loss": 1.0, "more": 2} for step in (2, 4, 5)]
    assert [step for _, step in shown] == [3, 5]
    assert all(network is trained.network for network in [*validated, *(n for n, _ in shown)])
    shown.clear()
    optimised(steps=2, run=TrainingContext(show=run.show, show_every=0))
    assert shown == []


FALLS, RISES = [3.0, 2.0, 2.5, 2.1, 1.0], [1.0, 2.0, 3.0, 4.0, 5.0]


@pytest.mark.parametrize(
    ("losses", "patience", "steps"),
    [([1.0] * 5, 2, 3), ([3.0, 2.0, 2.0, 1.0, 1.0], 2, 5), (FALLS, 2, 4), (RISES, 1, 2)]
    + [(RISES, 3, 4), (RISES, 4, 5), (RISES, 0, 5)],
)
def test_a_training_stops_when_its_best_validation_is_so_old(losses, patience, steps):
    seen = iter(losses)
    validate = lambda network: {"loss": next(seen)}  # noqa: E731
    run = TrainingContext(validate=validate, validate_every=1, patience=patience)
    assert len(optimised(steps=5, run=run).losses) == steps


def test_too_little_memory_is_said_with_what_to_try():
    def train(error):
        def loss(network, rows):
            raise error

        steps = OptimizerConfig(steps=1, batch_size=64)
        optimise(Weight(), lambda step: (torch.ones(64),), loss, steps)

    no_memory = RuntimeError("cannot allocate memory: 9 bytes")
    for error in (MemoryError(), no_memory, torch.OutOfMemoryError("GPU")):
        with pytest.raises(ValueError, match=r"batch_size 64 .* cpu; try accumulate 2, or .* 32"):
            train(error)
    with pytest.raises(RuntimeError, match="a bug"):
        train(RuntimeError("a bug"))


def stripes(count=20):
    images = torch.zeros(count, 3, SIZE, SIZE, dtype=torch.uint8)
    images[1::2, :, ::2] = 255
    return LabelledImages(images, torch.arange(count) % 2, ("plain", "striped"))


def plan(**changes):
    small = {"channel_mult": (1,), "attention_levels": (), "out_channels": 2}
    recipe = OptimizerConfig(**{"steps": 3, "batch_size": 4, "seed": 5} | changes.pop("recipe", {}))
    return TrainingConfig(
        data=stripes(), layout=classifier_layout(**small), recipe=recipe, **changes
    )


def test_the_settings_of_a_plan_are_all_that_decides_its_result():
    found = plan().settings()
    assert found.keys() == {
        *vars(OptimizerConfig(steps=1)),
        *("layout", "noise_schedule", "clean", "augment", "held_out", "data"),
    }
    assert (found["steps"], found["seed"], found["data"]) == (3, 5, stripes().digest())
    assert found["augment"] == {"shift": 0, "flip": False}
    for change in ({"clean": True}, {"held_out": 0.5}, {"augment": Augment(1)}):
        assert plan(**change).settings() != found
    assert plan(patience=3).settings() == found, "it may stop earlier or later when it goes on"


def test_a_new_classifier_says_how_it_was_trained(monkeypatch):
    clock = SimpleNamespace(monotonic=iter([10.0, 12.6]).__next__)
    monkeypatch.setattr(new_classifier, "time", clock)
    trained, about = new_classifier.new_classifier(plan(held_out=0.2), TrainingContext())
    assert (about.kind, about.noise_schedule, about.space) == ("classifier", "linear", "rgb")
    assert (about.labels, about.layout) == (("plain", "striped"), plan().layout)
    shares = about.training.pop("accuracy_by_timestep")
    assert list(shares) == ["0", "100", "200", "300", "400", "500", "600", "800"]
    assert all(share in (0.0, 0.25, 0.5, 0.75, 1.0) for share in shares.values())
    assert trained.validations[-1]["accuracy"] == shares
    expected = {"images": 16, "held_out": 4, "steps": 3, "batch_size": 4, "clean": False, "seed": 5}
    assert about.training == expected | {"seconds": 3, "loss": trained.loss}


def test_a_classifier_is_validated_ten_times(monkeypatch):
    seen = {}

    def train(data, layout, schedule, recipe, **options):
        seen.update(options)
        return Trained(half_unet(), [1.0], [])

    monkeypatch.setattr(new_classifier, "train_classifier", train)
    given = {"patience": 4, "held_out": 0.0, "clean": True, "augment": Augment(1)}
    for steps, often in ((1, 100), (1000, 100), (1009, 100), (1010, 101), (5000, 500)):
        plans = plan(recipe={"steps": steps}, **given)
        new_classifier.new_classifier(plans, TrainingContext(title="one"))
        run = seen["run"]
        assert (run.validate_every, run.patience, run.title) == (often, 4, "one")
    assert (seen["clean"], seen["augment"], len(seen["held_out"])) == (True, Augment(1), 0)


def test_one_class_alone_is_refused():
    images, labels = torch.zeros(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64)
    for names, shown in ((("a",), "a"), (("a", "b"), "a"), ((), "name")):
        with pytest.raises(ValueError, match=f"one class only .*{shown}"):
            train_classifier.check_classes(LabelledImages(images, labels, names))
    train_classifier.check_classes(LabelledImages(images, torch.tensor([0, 1]), ("a", "b")))


class Judge(torch.nn.Module):
    """Says class 1 where the first pixel is above 0, with logits 0 and 2; remembers what it saw."""

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.seen = []

    def forward(self, x, t):
        self.seen.append((x.clone(), t.clone()))
        striped = (x[:, 0, 0, 0] > 0).float()
        return 2 * torch.stack([1 - striped, striped], dim=1)


def test_accuracy_and_loss_at_one_noise_level():
    judge, data = Judge(), stripes(4)
    data = LabelledImages(data.images, torch.tensor([0, 1, 1, 1]), data.names)
    share, loss = measured(judge, data, 1.0, 0)
    assert share == 0.75
    right, wrong = np.log(1 + np.exp(-2)), np.log(1 + np.exp(2))
    assert loss == pytest.approx((3 * right + wrong) / 4)
    (x, t), *_ = judge.seen
    assert torch.equal(x, data.x0(slice(None))) and t.tolist() == [0.0] * 4


def test_validation_goes_through_the_noise_levels():
    judge, schedule = Judge(), NoiseSchedule("linear")
    found = train_classifier.validated(judge, stripes(6), schedule)
    levels = [0, 100, 200, 300, 400, 500, 600, 800]
    assert list(found["accuracy"]) == [str(level) for level in levels]
    assert [t.unique().tolist() for _, t in judge.seen] == [[float(level)] for level in levels]
    each = [measured(judge, stripes(6), float(schedule.alpha_bar[t]), t) for t in levels]
    assert found["loss"] == pytest.approx(sum(loss for _, loss in each) / 8)
    assert list(found["accuracy"].values()) == [share for share, _ in each]
    short = NoiseSchedule(schedule.alpha_bar[:200])
    assert list(train_classifier.validated(judge, stripes(6), short)["accuracy"]) == ["0", "100"]
    found = train_classifier.validated(judge, stripes(6), schedule, clean=True)
    assert found["accuracy"] == {"0": 1.0}
    assert torch.equal(judge.seen[-1][0], stripes(6).x0(slice(None))), "without noise"


def test_a_step_sees_images_noise_time_and_label():
    data = stripes(10)
    recipe = OptimizerConfig(steps=1, batch_size=200, seed=2)
    draw = train_classifier.drawing(data, recipe, 5, Augment())
    x0, noise, t, labels = draw(0)
    assert x0.shape == noise.shape == (200, 3, SIZE, SIZE)
    assert t.unique().tolist() == [0, 1, 2, 3, 4]
    assert torch.equal((x0[:, 0, 0, 0] > 0).long(), labels)
    assert abs(float(noise.mean())) < 0.05 and abs(float(noise.std()) - 1) < 0.05
    again, other = draw(0), draw(1)
    assert all(torch.equal(a, b) for a, b in zip(again, (x0, noise, t, labels), strict=True))
    assert not torch.equal(other[1], noise)
    flipped = train_classifier.drawing(data, recipe, 5, Augment(flip=True))(0)
    assert not torch.equal(flipped[1], noise), "chance is drawn for the mirror images first"
    x0, noise = torch.full((2, 1, 2, 2), 3.0), torch.full((2, 1, 2, 2), 5.0)
    got = train_classifier.diffuse(x0, torch.tensor([1.0, 0.36]), noise)
    assert got.flatten(1)[:, 0].tolist() == pytest.approx([3.0, 0.6 * 3 + 0.8 * 5])


def striped():
    """Two classes: rows or columns of stripes, under noise."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(64) % 2
    noise = torch.randint(0, 60, (64, 3, SIZE, SIZE), generator=generator)
    rows = (190 * (torch.arange(SIZE) % 2)).view(-1, 1).expand(SIZE, SIZE)
    stripes = torch.stack([rows, rows.T])[labels]
    images = (noise + stripes[:, None]).to(torch.uint8)
    return LabelledImages(images, labels, ("rows", "columns"))


SMALL = {"channel_mult": (1,), "attention_levels": (), "image_size": SIZE}


def test_a_classifier_learns_what_is_easy_to_tell_apart():
    layout = classifier_layout(**SMALL, out_channels=2)
    recipe = OptimizerConfig(steps=60, batch_size=16, learning_rate=2e-3, ema=0.9)
    trained = train(striped(), layout, NoiseSchedule("cosine"), recipe)
    network, losses = trained.network, trained.losses
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    data = striped()
    assert measured(network, data, 1.0, 0)[0] > 0.95
    alpha_bar = NoiseSchedule("cosine").alpha_bar
    assert measured(network, data, float(alpha_bar[300]), 300)[0] > 0.9
    assert 0.2 < measured(network, data, float(alpha_bar[999]), 999)[0] < 0.8, "only noise"


def test_a_clean_classifier_sees_images_without_noise():
    layout = classifier_layout(**SMALL, out_channels=2)
    recipe = OptimizerConfig(steps=25, batch_size=16, learning_rate=2e-3, ema=0.5)
    schedule = NoiseSchedule(torch.tensor([1e-6, 1e-7]))
    network = train(striped(), layout, schedule, recipe, clean=True).network
    assert measured(network, striped(), 1.0, 0)[0] > 0.95


def test_the_share_of_dropped_labels():
    labels = torch.arange(3).repeat(4000)
    for share in (0.0, 0.1, 0.5, 1.0):
        dropped = drop_labels(labels, unet_layout(), share)
        is_null = dropped == 3
        assert is_null.float().mean().item() == pytest.approx(share, abs=0.02)
        assert torch.equal(dropped[~is_null], labels[~is_null])
    assert drop_labels(labels, unet_layout(null_class=None), 0.9) is labels
    assert drop_labels(labels, unet_layout(num_classes=None, null_class=None), 0.9) is labels


def test_label_dropout_that_cannot_be_is_refused():
    layout = unet_layout(num_classes=2, null_class=None, **SMALL)
    given = striped(), layout, NoiseSchedule("linear"), OptimizerConfig(steps=1, batch_size=4)
    for p_uncond, said in ((0.1, "needs a layout with a null class"), (1.5, "p_uncond is 1.5")):
        with pytest.raises(ValueError, match=said):
            train_diffusion(*given, p_uncond=p_uncond)


def test_a_diffusion_model_learns_to_see_the_noise():
    layout = unet_layout(**SMALL, num_classes=3, null_class=2)
    recipe = OptimizerConfig(steps=40, batch_size=16, learning_rate=2e-3, ema=0.9)
    schedule = NoiseSchedule("cosine")
    trained = train_diffusion(striped(), layout, schedule, recipe, p_uncond=0.2)
    assert sum(trained.losses[-10:]) < 0.8 * sum(trained.losses[:10])
    assert not trained.network.training


def variance_setting(t):
    """The loss, its schedule, x0, x_t, t and the right eps."""
    schedule = NoiseSchedule("cosine")
    torch.manual_seed(0)
    x0, noise = torch.rand(2, 3, 4, 4) * 2 - 1, torch.randn(2, 3, 4, 4)
    steps = torch.full((2,), t)
    x = train_classifier.diffuse(x0, schedule.alpha_bar[steps].float(), noise)
    return VarianceLoss(schedule, "cpu"), schedule, x0, x, steps, noise


def first_gradient(monkeypatch):
    """The gradient of one step's loss on the last convolution: eps channels, variance channels."""

    def one_step(network, draw, loss, recipe, run):
        loss(network, *draw(0)).backward()
        return Trained(network, [], [])

    monkeypatch.setattr("guidance.training.train_diffusion.optimise", one_step)
    layout = unet_layout(**SMALL, num_classes=None, null_class=None)
    recipe = OptimizerConfig(steps=1, batch_size=8)
    trained = train_diffusion(striped(), layout, NoiseSchedule("linear"), recipe)
    return trained.network.out[2].weight.grad.split(3)


def test_the_variance_loss_trains_the_variance_and_not_eps(monkeypatch):
    eps, variance = first_gradient(monkeypatch)
    assert variance.abs().max() > 0
    monkeypatch.setattr(VarianceLoss, "__call__", lambda self, x0, x, t, eps, v: 0 * v.sum())
    eps_alone, variance_alone = first_gradient(monkeypatch)
    assert torch.equal(eps, eps_alone)
    assert eps.abs().max() > 0
    assert not variance_alone.any()


@pytest.mark.parametrize("t", [1, 10, 500, 900])
def test_the_variance_loss_is_zero_at_the_posterior_when_eps_is_right(t):
    loss, _, x0, x, steps, noise = variance_setting(t)
    lower = loss(x0, x, steps, noise, torch.full_like(x0, -1.0))
    higher = loss(x0, x, steps, noise, torch.full_like(x0, 1.0))
    assert abs(lower.item()) < 1e-4
    assert higher.item() > lower.item()


@pytest.mark.parametrize("t", [10, 500])
def test_the_variance_loss_is_least_at_the_right_variance(t):
    """KL(N(m, s) || N(m + d, S)) is least at S = s + d^2."""
    loss, schedule, x0, x, steps, noise = variance_setting(t)
    ab, prev = schedule.alpha_bar[t], schedule.alpha_bar[t - 1]
    beta = 1 - ab / prev
    low = beta * (1 - prev) / (1 - ab)
    best = 0.5 * (low + beta)
    to_mean = prev.sqrt() * beta / (1 - ab)
    error = ((best - low).sqrt() / to_mean * (ab / (1 - ab)).sqrt()).float()
    v_best = float(2 * (best / low).log() / (beta / low).log() - 1)
    assert -0.99 < v_best < 0.99

    def at(v):
        return loss(x0, x, steps, noise + error, torch.full_like(x0, v)).item()

    v = torch.full_like(x0, v_best).requires_grad_(True)
    loss(x0, x, steps, noise + error, v).backward()
    steep = torch.full_like(x0, -1.0).requires_grad_(True)
    loss(x0, x, steps, noise + error, steep).backward()
    assert v.grad.abs().max() < 0.02 * steep.grad.abs().max()
    assert at(v_best) < min(at(-1.0), at(1.0))
    expected = 0.5 * float((best / low).log()) / np.log(2)
    assert at(v_best) == pytest.approx(expected, rel=0.02)


@pytest.mark.parametrize(
    ("classes", "null", "label", "cfg", "columns"),
    [
        (4, 3, [0, 1, 2], 2.5, 3),
        (3, None, [0, 1, 2], 1.0, 3),
        (None, None, "random", 1.0, 4),
        (12, 11, list(range(10)), 2.5, 10),
    ],
)
def test_a_column_is_drawn_for_each_class(
    tmp_path, monkeypatch, classes, null, label, cfg, columns
):
    seen, saved = [], []

    def generate(model, classifier, job, title):
        seen.append((model.network, classifier, job, title, torch.is_grad_enabled()))
        return np.zeros((job.num_samples, SIZE, SIZE, 3), np.uint8), None

    real = samples.save_grid
    monkeypatch.setattr(samples, "generate", generate)
    monkeypatch.setattr(samples, "save_grid", lambda *given: saved.append(given[2]) or real(*given))
    network = unet(num_classes=classes, null_class=null)
    Sampler(tmp_path / "a.safetensors", "linear", 2.5)(network, 7)
    count = {"num_samples": 4 * columns, "batch_size": 4 * columns}
    expected = SamplingConfig(respacing="ddim25", label=label, cfg=cfg, **count)
    assert seen == [(network, None, expected, "samples at step 7", False)]
    assert saved == [columns]
    assert [path.name for path in tmp_path.iterdir()] == ["a_step_0000007.png"]
