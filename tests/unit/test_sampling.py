"""Respacing, the chain of steps, and sampling with both guidances."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from tiny_networks import CLASSES, SIZE, diffusion_model, noisy_classifier

from guidance import DiffusionModel, GuidanceSchedule, NoiseSchedule
from guidance.sampling.generate import SamplingConfig, generate
from guidance.sampling.loop import (
    Guide,
    Step,
    chain,
    ddim_step,
    ddpm_step,
    ddpm_variance,
    place_of,
    posterior_variance,
    predict_x0,
    sample,
)
from guidance.sampling.respacing import respaced_timesteps

ALPHA_BAR = NoiseSchedule("linear").alpha_bar.tolist()
methods = pytest.mark.parametrize("method", ["ddim", "ddpm"])


class Recorder(DiffusionModel):
    """A diffusion model that keeps what it was asked."""

    def __init__(self, model):
        self.network, self.schedule, self.labels = model.network, model.schedule, model.labels
        self.calls = []

    def __call__(self, x, t, labels, low_res=None):
        self.calls.append(SimpleNamespace(x=x, t=t, labels=labels))
        return super().__call__(x, t, labels, low_res)


@pytest.fixture(scope="module")
def model():
    return diffusion_model()


@pytest.fixture(scope="module")
def classifier():
    return noisy_classifier()


def x_t(batch=2):
    return torch.randn(batch, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(9))


def steps(respacing="ddim5"):
    return chain(ALPHA_BAR, respaced_timesteps(respacing))


def run(model, seed=0, **options):
    torch.manual_seed(seed)
    respacing = options.pop("respacing", "ddim5")
    options.setdefault("labels", torch.tensor([0, 2]))
    return sample(model, x_t(), steps(respacing), **options)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1", [0]),
        ("2", [0, 999]),
        ("ddim1", [0]),
        ("ddim4", [0, 250, 500, 750]),
        ("ddim7", list(range(0, 1000, 143))),
        (" DDIM2 ", [0, 500]),
        ("1,1", [0, 500]),
        ("2,1,2", [0, 333, 334, 667, 999]),
        ("1000", list(range(1000))),
    ],
)
def test_respacing_picks_timesteps(text, expected):
    assert respaced_timesteps(text) == expected


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("ddim45", "no whole stride through 1000 timesteps gives 45"),
        ("ddim999", "no whole stride"),
        ("ddim1001", "no whole stride"),
        ("ddim", "expected a count"),
        ("ddim0", "expected a count"),
        ("abc", "expected a count"),
        ("", "expected a count"),
        ("0", "expected a count"),
        ("-5", "expected a count"),
        ("2.5", "expected a count"),
        ("10,,5", "expected a count"),
        ("²", "expected a count"),
        ("2000", "2000 steps do not fit into a section of 1000 timesteps"),
        ("10,600", "600 steps do not fit into a section of 500 timesteps"),
    ],
)
def test_a_bad_respacing_is_refused_with_its_text(text, said):
    with pytest.raises(ValueError) as caught:
        respaced_timesteps(text)
    assert repr(text) in str(caught.value)
    assert said in str(caught.value)


def test_a_chain_goes_from_noise_to_image():
    got = chain(ALPHA_BAR, [3, 500, 999])
    assert [step.timestep for step in got] == [999, 500, 3]
    assert [step.alpha_bar for step in got] == [ALPHA_BAR[t] for t in (999, 500, 3)]
    assert [step.alpha_bar_prev for step in got] == [ALPHA_BAR[500], ALPHA_BAR[3], 1.0]
    assert [step.last for step in got] == [False, False, True]


def test_a_chain_of_all_timesteps_has_the_schedules_betas():
    betas = torch.tensor([step.beta for step in steps("1000")[::-1]], dtype=torch.float64)
    assert (betas - torch.linspace(1e-4, 2e-2, 1000, dtype=torch.float64)).abs().max() < 1e-12


def test_the_last_steps_variance_is_clipped_to_its_neighbours():
    *_, before, last = chain(ALPHA_BAR, [3, 500, 999])
    low, high = last.log_variance_range
    clipped = posterior_variance(before.alpha_bar, before.alpha_bar_prev)
    assert low == pytest.approx(math.log(clipped))
    assert high == pytest.approx(math.log(1 - last.alpha_bar))


def test_a_chain_of_one_step_has_finite_variances():
    (only,) = chain(ALPHA_BAR, [999])
    assert only.last
    assert all(math.isfinite(end) for end in only.log_variance_range)


@pytest.mark.parametrize("timesteps", [[], [5, 3], [3, 3], [0, 1000], [-1, 5]], ids=str)
def test_timesteps_that_do_not_rise_within_the_schedule_are_refused(timesteps):
    with pytest.raises(ValueError, match="timesteps are .*from 0 to 999"):
        chain(ALPHA_BAR, timesteps)


def test_the_clean_image_is_found_from_its_noise():
    x0, eps = x_t(), torch.randn(2, 3, SIZE, SIZE)
    for alpha_bar in (0.99, 0.5, 0.01):
        noisy = alpha_bar**0.5 * x0 + (1 - alpha_bar) ** 0.5 * eps
        assert torch.allclose(predict_x0(noisy, eps, alpha_bar), x0, atol=1e-4)


def test_the_learned_variance_goes_from_the_posteriors_to_beta():
    step = steps()[1]
    low, high = math.exp(step.log_variance_range[0]), math.exp(step.log_variance_range[1])
    v = torch.tensor([-1.0, 0.0, 1.0])
    assert ddpm_variance(step, v, v).tolist() == pytest.approx([low, (low * high) ** 0.5, high])
    assert low == pytest.approx(posterior_variance(step.alpha_bar, step.alpha_bar_prev))


def test_a_fixed_variance_is_beta_but_clipped_in_the_last_step():
    *_, before, last = steps()
    x = x_t()
    assert ddpm_variance(before, None, x).unique().item() == pytest.approx(before.beta)
    assert ddpm_variance(last, None, x).unique().item() == pytest.approx(last.floor)


def exact_step(eta_or_variance, step, noise):
    """ddim at eta 1, or ddpm with the posterior's variance, from the same x_t and x0."""
    x, x0 = x_t().double(), 0.5 * torch.ones(2, 3, SIZE, SIZE, dtype=torch.float64)
    if eta_or_variance == "eta":
        return ddim_step(x, x0, step, 1.0, noise)
    variance = torch.tensor(posterior_variance(step.alpha_bar, step.alpha_bar_prev)).double()
    return ddpm_step(x, x0, variance, step, 0.0, noise)


@pytest.mark.parametrize("index", [0, 2, 4])
def test_ddim_at_eta_one_is_ddpm_with_the_posteriors_variance(index):
    step, noise = steps()[index], torch.randn(2, 3, SIZE, SIZE, dtype=torch.float64)
    for drawn in (noise, torch.zeros_like(noise)):
        got, expected = exact_step("eta", step, drawn), exact_step("variance", step, drawn)
        assert (got - expected).abs().max() < 1e-6


def test_ddim_at_eta_one_has_the_posteriors_variance():
    step, x = steps()[1], torch.zeros(1)
    spread = ddim_step(x, x, step, 1.0, torch.ones(1)) - ddim_step(x, x, step, 1.0, x)
    expected = posterior_variance(step.alpha_bar, step.alpha_bar_prev)
    assert spread.item() ** 2 == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("step", [Step(3, 0.4, 1.0, 0.1)])
def test_the_last_step_adds_no_noise(step):
    x, x0 = x_t(), torch.zeros(2, 3, SIZE, SIZE)
    noise = torch.full_like(x, 1e6)
    for got in (
        ddim_step(x, x0, step, 1.0, noise),
        ddpm_step(x, x0, torch.ones(1), step, 0.0, noise),
    ):
        assert got.abs().max() < 1e-5


def test_the_deterministic_step_keeps_a_point_on_its_line_of_noise():
    x0, eps = x_t(), torch.randn(2, 3, SIZE, SIZE)
    step = steps()[2]
    x = step.alpha_bar**0.5 * x0 + (1 - step.alpha_bar) ** 0.5 * eps
    expected = step.alpha_bar_prev**0.5 * x0 + (1 - step.alpha_bar_prev) ** 0.5 * eps
    assert torch.allclose(ddim_step(x, x0, step, 0.0, eps), expected, atol=1e-4)


@methods
@pytest.mark.parametrize("cfg", [1.0, 0.0])
def test_cfg_at_zero_and_one_is_a_single_pass(model, method, cfg):
    recorder = Recorder(model)
    got = run(recorder, method=method, cfg=cfg)
    labels = [0, 2] if cfg == 1 else [CLASSES, CLASSES]
    assert [call.labels.tolist() for call in recorder.calls] == [labels] * 5
    assert [call.t.tolist() for call in recorder.calls] == [[t, t] for t in (800, 600, 400, 200, 0)]
    assert torch.equal(got, run(model, method=method, cfg=1.0, labels=torch.tensor(labels)))


def test_without_labels_a_model_runs_with_its_null_class(model):
    assert torch.equal(run(model, labels=None), run(model, cfg=0.0))
    assert torch.equal(run(model, labels=None, cfg=5.0), run(model, cfg=0.0))


@pytest.mark.parametrize("cfg", [3.0, -1.5])
def test_cfg_is_its_formula_in_one_batch(model, cfg):
    recorder = Recorder(model)
    (step,) = chain(ALPHA_BAR, [600])
    x, labels = x_t(), torch.tensor([0, 2])
    got = sample(recorder, x, [step], labels=labels, cfg=cfg, clip_denoised=False)
    assert [call.labels.tolist() for call in recorder.calls] == [[0, 2, CLASSES, CLASSES]]

    t = torch.full((2,), 600.0)
    with torch.no_grad():
        cond, _ = model(x, t, labels)
        uncond, _ = model(x, t, model.null_labels(2))
    expected = predict_x0(x, uncond + cfg * (cond - uncond), step.alpha_bar)
    assert (cond - uncond).abs().max() > 1e-3
    assert torch.allclose(got, expected, atol=1e-4)


def test_cfg_keeps_the_conditional_variance(model):
    x, labels, t = x_t(), torch.tensor([0, 2]), torch.full((2,), 600.0)
    first, last = chain(ALPHA_BAR, [0, 600])
    noise = torch.ones_like(x)
    with torch.no_grad():
        eps, v = model(x, t, labels)
        null_eps, _ = model(x, t, model.null_labels(2))
    x0 = predict_x0(x, null_eps + 3 * (eps - null_eps), first.alpha_bar).clamp(-1, 1)
    expected = ddpm_step(x, x0, ddpm_variance(first, v, x), first, 0.0, noise)
    got = sample(model, x, [first], method="ddpm", labels=labels, cfg=3.0, noise=torch.ones_like)
    assert torch.allclose(got, expected, atol=1e-5)


class Untouchable:
    """A classifier that must not be asked."""

    def gradient(self, *_):
        raise AssertionError("a scale of 0 must cost nothing")


@methods
@pytest.mark.parametrize("scale", [0, 0.0, -0.0])
def test_a_scale_of_zero_costs_nothing_and_changes_nothing(model, method, scale):
    guides = [Guide(Untouchable(), torch.tensor([0, 2]), scale)]
    plain = run(model, method=method)
    assert torch.equal(run(model, method=method, guides=guides), plain)


@methods
def test_two_guides_add_up(model, classifier, method):
    """Seen in one step, which is linear in the gradients."""
    (step,) = chain(ALPHA_BAR, [600])
    y, other = torch.tensor([0, 2]), torch.tensor([1, 1])

    def pulled(*guides):
        middle = Step(600, step.alpha_bar, ALPHA_BAR[400], step.floor)
        options = {"method": method, "labels": y, "noise": torch.zeros_like}
        return sample(model, x_t(), [middle], guides=guides, **options)

    plain = pulled()
    first, second = pulled(Guide(classifier, y, 2.0)), pulled(Guide(classifier, other, -3.0))
    both = pulled(Guide(classifier, y, 2.0), Guide(classifier, other, -3.0))
    assert (first - plain).abs().max() > 1e-4
    assert torch.allclose(both - plain, (first - plain) + (second - plain), atol=1e-5)
    halves = pulled(Guide(classifier, y, 1.0), Guide(classifier, y, 1.0))
    assert torch.allclose(halves, first, atol=1e-5)


@methods
def test_guidance_raises_what_it_follows_and_a_negative_scale_lowers_it(model, classifier, method):
    y = torch.tensor([0, 2])

    def log_prob(scale):
        images = run(model, method=method, guides=[Guide(classifier, y, scale)], cfg=0.0)
        return classifier.log_probs(images, 0.0)[[0, 1], y].sum()

    assert log_prob(-30.0) < log_prob(0.0) < log_prob(30.0)


@methods
def test_equal_seeds_give_equal_images(model, method):
    options = {"method": method, "eta": 1.0}
    assert torch.equal(run(model, seed=1, **options), run(model, seed=1, **options))
    assert not torch.equal(run(model, seed=1, **options), run(model, seed=2, **options))


@methods
def test_noise_is_drawn_once_in_every_step(model, method):
    drawn = []

    def noise(like):
        drawn.append(like)
        return torch.zeros_like(like)

    run(model, method=method, noise=noise)
    assert len(drawn) == 5


def test_clipping_keeps_the_clean_image_within_range(model):
    assert run(model, respacing="1").abs().max() <= 1
    assert run(model, respacing="2", clip_denoised=False).abs().max() > 1


@pytest.mark.parametrize("cfg", [0.0, 2.0])
def test_a_model_without_a_null_class_runs_with_labels_only(cfg):
    model = diffusion_model(num_classes=CLASSES, null_class=None)
    assert run(model, cfg=1.0).isfinite().all()
    with pytest.raises(ValueError, match="trained without label dropout.*cfg must be 1"):
        run(model, cfg=cfg)
    with pytest.raises(ValueError, match="trained without label dropout"):
        run(model, labels=None)


def test_an_unconditional_model_takes_no_labels_and_no_cfg():
    model = diffusion_model(num_classes=None, null_class=None)
    assert run(model, labels=None).isfinite().all()
    with pytest.raises(ValueError, match="has no classes, so cfg cannot be used"):
        run(model, cfg=2.0)
    with pytest.raises(ValueError, match="takes no class labels"):
        run(model, cfg=1.0)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"method": "euler"}, "method is 'euler'; expected one of ddim, ddpm"),
        ({"eta": 1.5}, "eta is 1.5"),
        ({"eta": -0.1}, "eta is -0.1"),
        ({"eta": math.nan}, "eta is nan"),
    ],
    ids=str,
)
def test_a_bad_option_is_refused_with_its_value(model, options, said):
    with pytest.raises(ValueError, match=said):
        run(model, **options)


def test_a_fixed_variance_model_samples():
    model = diffusion_model(out_channels=3)
    assert run(model, method="ddpm").isfinite().all()


JOB = {"num_samples": 5, "batch_size": 2, "respacing": "ddim2"}


def test_a_job_is_drawn_in_batches(model):
    recorder = Recorder(model)
    images, labels = generate(recorder, None, SamplingConfig(**JOB, label="all"))
    assert (images.shape, images.dtype) == ((5, SIZE, SIZE, 3), "uint8")
    assert labels.tolist() == [0, 1, 2, 0, 1]
    assert [len(call.x) for call in recorder.calls] == [2, 2, 2, 2, 1, 1]


def test_a_jobs_seed_decides_labels_and_images(model):
    first, again, other = (
        generate(model, None, SamplingConfig(**JOB, seed=seed)) for seed in (4, 4, 5)
    )
    assert (first[0] == again[0]).all() and (first[1] == again[1]).all()
    assert (first[0] != other[0]).any()


def test_a_jobs_draws_are_not_torchs_global_ones(model):
    torch.manual_seed(0)
    before = torch.get_rng_state()
    generate(model, None, SamplingConfig(**JOB, method="ddpm"))
    assert torch.equal(torch.get_rng_state(), before)


def test_random_labels_name_only_real_classes(model):
    _, labels = generate(model, None, SamplingConfig(num_samples=60, respacing="1"))
    assert set(labels.tolist()) == set(range(CLASSES))


@pytest.mark.parametrize(
    ("changes", "options", "said"),
    [
        ({"in_channels": 1}, {}, "have 3 channels and the classifier's 1"),
        ({"out_channels": 7}, {}, "has 3 classes and the classifier 7"),
        ({}, {"image_size": 0}, "image_size is 0"),
        ({}, {"image_size": -8}, "image_size is -8"),
        ({}, {"image_size": 9}, "multiples of 2; they are 9x9"),
        ({}, {"image_size": 16}, "8x8 inputs .* is 16x16"),
    ],
    ids=str,
)
def test_models_that_do_not_fit_each_other_are_refused(model, changes, options, said):
    with pytest.raises(ValueError, match=said):
        generate(model, noisy_classifier(**changes), SamplingConfig(**JOB, scale=1.0), **options)


def test_an_upsampler_cannot_draw_from_noise():
    with pytest.raises(ValueError, match="enlarges a small image"):
        generate(diffusion_model(in_channels=6), None, SamplingConfig(**JOB))


def test_a_model_of_unknown_size_needs_one():
    model = diffusion_model(image_size=None)
    with pytest.raises(ValueError, match="give --image-size"):
        generate(model, None, SamplingConfig(**JOB))
    images, _ = generate(model, None, SamplingConfig(**JOB), image_size=SIZE)
    assert images.shape == (5, SIZE, SIZE, 3)


def test_a_model_of_a_short_schedule_is_respaced_within_it():
    model = DiffusionModel(diffusion_model().network, torch.linspace(0.99, 0.01, 20))
    recorder = Recorder(model)
    generate(recorder, None, SamplingConfig(num_samples=1, respacing="2"))
    assert [call.t.item() for call in recorder.calls] == [19, 0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_samples": 0}, "num_samples is 0"),
        ({"num_samples": 1, "batch_size": 0}, "batch_size 0"),
        ({"num_samples": 1, "seed": 2**64}, "seed is 18446744073709551616"),
    ],
    ids=str,
)
def test_a_bad_job_is_refused_with_its_value(options, said):
    with pytest.raises(ValueError, match=said):
        SamplingConfig(**options)


def test_labels_of_an_unconditional_model_need_a_classifier():
    model = diffusion_model(num_classes=None, null_class=None)
    with pytest.raises(ValueError, match="Neither the model nor a classifier has classes"):
        generate(model, None, SamplingConfig(**JOB, label="0"))
    _, labels = generate(
        model, noisy_classifier(), SamplingConfig(**JOB, label="zebra, cat", scale=1.0)
    )
    assert labels.tolist() == [2, 0, 2, 0, 2]


# --- schedules -------------------------------------------------------------------------------


@methods
def test_a_constant_schedule_is_the_scale(model, classifier, method):
    labels = torch.tensor([1, 2])
    constant = GuidanceSchedule.constant(3.0)
    plain = run(model, method=method, cfg=3.0, guides=[Guide(classifier, labels, 3.0)])
    guides = [Guide(classifier, labels, 0.0, constant)]
    assert torch.equal(run(model, method=method, cfg=constant, guides=guides), plain)


def test_passes_of_a_cfg_interval(model):
    recorder = Recorder(model)
    run(recorder, cfg=GuidanceSchedule.interval("step", 0.0, 0.5, 4.0))
    assert [len(call.x) for call in recorder.calls] == [4, 4, 4, 2, 2]


def test_a_classifiers_schedule_at_zero_costs_nothing(model):
    nothing = Guide(Untouchable(), torch.tensor([0, 1]), 2.0, GuidanceSchedule.constant(0.0))
    assert torch.equal(run(model, guides=[nothing]), run(model))


def test_a_scale_for_each_image(model, classifier):
    labels = torch.tensor([1, 2])
    each = GuidanceSchedule.from_dict({"points": [[0, 4]], "per_image": [1, 0.25]})
    both = run(model, cfg=each, guides=[Guide(classifier, labels, 0.0, each)])
    for index, scale in enumerate((4.0, 1.0)):
        alone = run(model, cfg=scale, guides=[Guide(classifier, labels, scale)])
        assert (both[index] - alone[index]).abs().max() < 1e-5


def test_places_of_a_run():
    """percent counts as ComfyUI does: of the model's timesteps."""
    chosen = steps("10,10")
    places = [place_of(step, index, 20, 1000) for index, step in enumerate(chosen)]
    assert places[0].percent == 0.0 and places[-1].percent == 1.0
    assert [place.step for place in places] == list(range(20))
    assert places[0].sigma == pytest.approx(157.4, abs=0.1)
