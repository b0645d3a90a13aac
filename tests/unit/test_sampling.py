"""The loop over the steps of a run, with both guidances and their schedules."""

from __future__ import annotations

import math

import pytest
import torch
from tiny_networks import CLASSES, diffusion_model, images, noisy_classifier

from guidance import GuidanceSchedule, NoiseSchedule
from guidance.sampling.classifier_guidance import Guide
from guidance.sampling.loop import sample, step_position
from guidance.sampling.respacing import respaced_timesteps
from guidance.sampling.steps import Step, chain, ddpm_step, ddpm_variance, predict_x0
from guidance.sampling.strength import Strength

ALPHA_BAR = NoiseSchedule("linear").alpha_bar.tolist()
LABELS = torch.tensor([0, 2])
methods = pytest.mark.parametrize("method", ["ddim", "ddpm"])


@pytest.fixture(scope="module")
def model():
    return diffusion_model()


@pytest.fixture
def calls(model):
    """The timesteps and labels that the model's network is run for, as lists."""
    seen = []
    hook = model.network.register_forward_hook(
        lambda module, inputs, output: seen.append([one.tolist() for one in inputs[1:]])
    )
    yield seen
    hook.remove()


@pytest.fixture(scope="module")
def classifier():
    return noisy_classifier()


X = images(seed=9)


def guide(classifier, labels, scale, schedule=None):
    return Guide(classifier, labels, Strength(scale=scale), schedule)


def run(model, seed=0, **options):
    torch.manual_seed(seed)
    steps = chain(ALPHA_BAR, respaced_timesteps(options.pop("respacing", "ddim5")))
    return sample(model, X, steps, **{"labels": LABELS} | options)


@methods
@pytest.mark.parametrize("cfg", [1.0, 0.0])
def test_cfg_at_zero_and_one_is_a_single_pass(model, calls, method, cfg):
    got = run(model, method=method, cfg=cfg)
    labels = [0, 2] if cfg == 1 else [CLASSES, CLASSES]
    assert calls == [[[t, t], labels] for t in (800, 600, 400, 200, 0)]
    assert torch.equal(got, run(model, method=method, cfg=1.0, labels=torch.tensor(labels)))


def test_without_labels_a_model_runs_with_its_null_class(model):
    assert torch.equal(run(model, labels=None), run(model, cfg=0.0))
    assert torch.equal(run(model, labels=None, cfg=5.0), run(model, cfg=0.0))


@pytest.mark.parametrize("cfg", [3.0, -1.5])
def test_cfg_is_its_formula_in_one_batch(model, calls, cfg):
    (step,) = chain(ALPHA_BAR, [600])
    got = sample(model, X, [step], labels=LABELS, cfg=cfg, clip_denoised=False)
    assert calls == [[[600] * 4, [0, 2, CLASSES, CLASSES]]]
    t = torch.full((2,), 600.0)
    with torch.no_grad():
        cond, _ = model(X, t, LABELS)
        uncond, _ = model(X, t, model.null_labels(2))
    expected = predict_x0(X, uncond + cfg * (cond - uncond), step.alpha_bar)
    assert (cond - uncond).abs().max() > 1e-3
    assert torch.allclose(got, expected, atol=1e-4)


def test_cfg_keeps_the_conditional_variance(model):
    x, t = X, torch.full((2,), 600.0)
    first, _ = chain(ALPHA_BAR, [0, 600])
    with torch.no_grad():
        eps, v = model(x, t, LABELS)
        null_eps, _ = model(x, t, model.null_labels(2))
    x0 = predict_x0(x, null_eps + 3 * (eps - null_eps), first.alpha_bar).clamp(-1, 1)
    expected = ddpm_step(x, x0, ddpm_variance(first, v, x), first, 0.0, torch.ones_like(x))
    got = sample(model, x, [first], method="ddpm", labels=LABELS, cfg=3.0, noise=torch.ones_like)
    assert torch.allclose(got, expected, atol=1e-5)


class Untouchable:
    """A classifier that must not be evaluated."""

    through_model = True

    def output(self, *_):
        raise AssertionError("a scale of 0 must cost nothing")


@methods
@pytest.mark.parametrize(("scale", "schedule"), [(0.0, None), (-0.0, None), (2.0, 0.0)])
def test_a_scale_of_zero_costs_nothing_and_changes_nothing(model, method, scale, schedule):
    schedule = None if schedule is None else GuidanceSchedule.constant(schedule)
    nothing = guide(Untouchable(), LABELS, scale, schedule)
    plain = run(model, method=method)
    assert torch.equal(run(model, method=method, guides=[nothing]), plain)


@methods
def test_a_step_adds_the_sum_of_its_guides_terms(model, classifier, method):
    """Algorithm 2 moves x0 by scale * sigma^2 / alpha * gradient, algorithm 1 the mean by Sigma."""
    now, before = ALPHA_BAR[600], ALPHA_BAR[400]
    step = Step(600, now, before, 0.1)
    other = torch.tensor([1, 1])
    options = {"method": method, "labels": LABELS, "noise": torch.zeros_like}

    def pulled(*guides):
        return sample(model, X, [step], guides=guides, **options)

    gradients = [
        classifier.gradient(X, (1 - now) ** 0.5, labels, now**0.5) for labels in (LABELS, other)
    ]
    moved = 2 * gradients[0] - 3 * gradients[1]
    if method == "ddpm":
        with torch.no_grad():
            _, v = model(X, torch.full((2,), 600.0), LABELS)
        expected = ddpm_variance(step, v, X) * moved
    else:
        # of x0, and of the eps that goes with it
        term = moved * (1 - now) / now**0.5
        expected = term * (before**0.5 - (1 - before) ** 0.5 / (1 / now - 1) ** 0.5)
    both = pulled(guide(classifier, LABELS, 2.0), guide(classifier, other, -3.0)) - pulled()
    assert expected.abs().max() > 1e-4
    assert (both - expected).abs().max() < 1e-5 * max(1, expected.abs().max())


@methods
def test_a_gradient_that_is_not_finite_ends_the_run(model, method):
    broken = noisy_classifier()
    broken.network.out[0].weight.data[0] = math.nan
    with pytest.raises(ValueError, match="gradient is not finite at sigma 0.9"):
        run(model, method=method, guides=[guide(broken, LABELS, 1.0)])


def test_passes_of_a_cfg_interval(model, calls):
    run(model, cfg=GuidanceSchedule.interval("step", 0.0, 0.5, 4.0))
    assert [len(labels) for _, labels in calls] == [4, 4, 4, 2, 2]


@methods
def test_a_schedule_with_a_scale_for_each_image(model, classifier, method):
    each = GuidanceSchedule.from_dict({"points": [[0, 4]], "per_image": [1, 0.25]})
    options = {"method": method, "noise": torch.zeros_like}
    both = run(model, cfg=each, guides=[guide(classifier, LABELS, 0.0, each)], **options)
    for index, scale in enumerate((4.0, 1.0)):
        alone = run(model, cfg=scale, guides=[guide(classifier, LABELS, scale)], **options)
        assert (both[index] - alone[index]).abs().max() < 1e-5


def test_positions_of_a_run():
    """percent counts as ComfyUI does: of the model's timesteps."""
    steps = chain(ALPHA_BAR, [0, 333, 999])
    found = [step_position(step, index, 3, 1000) for index, step in enumerate(steps)]
    assert [one.percent for one in found] == pytest.approx([0.0, 1 - 333 / 999, 1.0])
    assert [(one.step, one.steps) for one in found] == [(0, 3), (1, 3), (2, 3)]
    for one, step in zip(found, steps, strict=True):
        assert one.sigma == pytest.approx(((1 - step.alpha_bar) / step.alpha_bar) ** 0.5)
    assert step_position(Step(0, 0.5, 1.0, 0.1), 0, 1, 1).percent == 1.0


@methods
def test_noise_decides_the_image_and_is_drawn_once_in_every_step(model, method):
    drawn = []

    def noise(like):
        drawn.append(like)
        return torch.zeros_like(like)

    run(model, method=method, noise=noise)
    assert len(drawn) == 5
    first, second, other = (run(model, seed, method=method, eta=1.0) for seed in (1, 1, 2))
    assert torch.equal(first, second) and not torch.equal(first, other)
    assert torch.equal(run(model, 1), run(model, 2)), "DDIM without eta has no noise"


def test_clipping_keeps_the_clean_image_within_range(model):
    assert run(model, respacing="1").abs().max() <= 1
    assert run(model, respacing="2", clip_denoised=False).abs().max() > 1


NO_NULL = {"num_classes": CLASSES, "null_class": None}
NO_CLASSES = {"num_classes": None, "null_class": None}


@pytest.mark.parametrize(
    ("changes", "works", "fails", "said"),
    [
        (NO_NULL, {"cfg": 1.0}, {"cfg": 2.0}, "without label dropout.*cfg must be 1"),
        (NO_NULL, {"cfg": 1.0}, {"labels": None}, "without label dropout"),
        (NO_CLASSES, {"labels": None}, {"cfg": 2.0}, "has no classes, so cfg cannot be used"),
        (NO_CLASSES, {"labels": None, "cfg": 3.0}, {"cfg": 1.0}, "takes no class labels"),
        (
            {"out_channels": 3},
            {"method": "ddpm", "cfg": 2.0},
            {"method": "euler"},
            "'euler'; .*ddim",
        ),
        ({}, {"eta": 1.0}, {"eta": 1.01}, "eta is 1.01; .* 0 .* 1 "),
        ({}, {"eta": 0.0}, {"eta": -0.1}, "eta is -0.1"),
        ({}, {"eta": 0.0}, {"eta": math.nan}, "eta is nan"),
    ],
)
def test_models_and_options_that_go_together(changes, works, fails, said):
    model = diffusion_model(**changes)
    assert run(model, **works).isfinite().all()
    with pytest.raises(ValueError, match=said):
        run(model, **fails)
