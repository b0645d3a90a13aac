"""Images batch by batch: what is drawn in which order, for which labels, by which process."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from progress_bar import Bar
from tiny_networks import CLASSES, NAMES, SIZE, diffusion_model, noisy_classifier

from guidance import DiffusionModel, GuidanceSchedule
from guidance.core.distributed import Processes
from guidance.evaluation.compute_cost import count_compute
from guidance.sampling import generate as generation
from guidance.sampling.cfg_cache import CFGCacheConfig
from guidance.sampling.generate import SamplingConfig, check_schedules, generate
from guidance.sampling.strength import Strength
from guidance.schedules.curves import Formula, StepList


def test_the_options_of_a_config_are_those_of_its_parts():
    plain = SamplingConfig(num_samples=1)
    assert plain.strength == Strength(scale=0.0) and plain.cfg_cache.is_off
    shape = {"scale": 2.0, "entropy_limit": 3.0, "cap": 0.5, "label_smoothing": 0.25}
    config = SamplingConfig(num_samples=1, **shape, cfg_interval=4, cfg_tolerance=0.125)
    assert config.strength == Strength(**shape)
    assert config.cfg_cache == CFGCacheConfig(4, 0.125)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_samples": 0}, "num_samples is 0 and batch_size 50; .* at least 1"),
        ({"batch_size": 0}, "batch_size 0; both must be at least 1"),
        ({"seed": 2**63}, "seed is 9223372036854775808; .* 64 bits"),
        ({"seed": -(2**63) - 1}, "seed is -9223372036854775809"),
        ({"cap": -1.0}, "cap is -1.0"),
        ({"cfg_interval": 0}, "cfg_interval is 0"),
        ({"cfg_tolerance": 1.0}, "tolerance is 1"),
        ({"gradient_interval": 0}, "gradient_interval is 0"),
        ({"recurrence": 0}, "recurrence is 0; .*from 1 .* 100"),
    ],
)
def test_a_config_that_cannot_be_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        SamplingConfig(**{"num_samples": 3} | options)
    for seed in (2**63 - 1, -(2**63)):
        assert SamplingConfig(num_samples=1, batch_size=1, seed=seed).seed == seed


@pytest.fixture
def draw(monkeypatch):
    """`generate` with a sampler that draws its noise and no more; what it was called with."""
    calls, bars = [], []

    def sample(model, x, steps, *, noise, progress, **options):
        call = SimpleNamespace(model=model, x=x, steps=list(steps), **options)
        call.noise = [noise(x) for _ in call.steps]
        progress(len(x))
        calls.append(call)
        return (x / 8).clamp(-1, 1)

    def tqdm(**options):
        bars.append(Bar(**options))
        return bars[-1]

    monkeypatch.setattr(generation, "sample", sample)
    monkeypatch.setattr(generation, "tqdm", tqdm)

    def run(model, classifier, size=None, more=None, **options):
        calls.clear()
        bars.clear()
        config = SamplingConfig(**{"num_samples": 1, "respacing": "1"} | options)
        images, labels = generate(model, classifier, config, size, **more or {})
        return SimpleNamespace(calls=list(calls), bar=bars[0], images=images, labels=labels)

    return run


def test_each_batch_draws_labels_then_the_image_then_a_noise_for_each_step(draw):
    options = {"num_samples": 5, "batch_size": 2, "seed": 7, "respacing": "ddim3"}
    found = draw(diffusion_model(), None, **options)
    chance = torch.Generator().manual_seed(7)
    labels = []
    for count, call in zip((2, 2, 1), found.calls, strict=True):
        shape = (count, 3, SIZE, SIZE)
        labels += torch.randint(0, CLASSES, (count,), generator=chance).tolist()
        assert call.labels.tolist() == labels[-count:]
        assert torch.equal(call.x, torch.randn(shape, generator=chance))
        assert len(call.noise) == 3
        assert all(torch.equal(one, torch.randn(shape, generator=chance)) for one in call.noise)
    assert (found.labels.tolist(), found.labels.dtype) == (labels, np.int64)
    drawn = torch.cat([call.x for call in found.calls])
    expected = (((drawn / 8).clamp(-1, 1) + 1) * 127.5).to(torch.uint8).permute(0, 2, 3, 1)
    assert found.images.dtype == np.uint8 and (found.images == expected.numpy()).all()
    assert found.bar.updates == [2, 2, 1]
    assert (found.bar.options["total"], found.bar.options["disable"]) == (15, False)
    assert found.bar.options["desc"] == "sample"
    assert draw(diffusion_model(), None, more={"title": "row 1"}).bar.options["desc"] == "row 1"


def test_a_config_goes_to_the_sampler(draw):
    schedule = GuidanceSchedule.from_json("4")
    options = {"method": "ddpm", "eta": 0.5, "cfg": 3.0, "clip_denoised": False}
    model, classifier = diffusion_model(), noisy_classifier()
    more = {"num_samples": 3, "batch_size": 2, "label": "1", "respacing": "5"}
    more |= {"scale": 2.0, "cap": 0.5, "schedule": schedule, "gradient_interval": 3}
    more |= {"cfg_interval": 2, "cfg_tolerance": 0.25, "recurrence": 3}
    first, second = draw(model, classifier, **options, **more).calls
    assert first.model is model and first.low_res is None
    assert {name: getattr(first, name) for name in options} == options
    assert first.cfg_cache == CFGCacheConfig(2, 0.25) and first.recurrence == 3
    assert [step.timestep for step in first.steps] == [999, 749, 500, 250, 0]
    (guide,), (other,) = first.guides, second.guides
    assert guide.classifier is classifier and guide.schedule is schedule
    assert guide.strength == Strength(scale=2.0, cap=0.5)
    assert guide.labels is first.labels and first.labels.tolist() == [1, 1]
    assert guide.cache.interval == 3
    assert guide.cache is not other.cache, "each batch has a cache of its own"
    # a schedule takes the place of cfg
    assert draw(model, None, cfg=3.0, cfg_schedule=schedule).calls[0].cfg is schedule


def unconditional():
    return diffusion_model(num_classes=None, null_class=None)


def test_an_unconditional_model_gets_no_labels_but_its_classifier_does(draw):
    found = draw(unconditional(), noisy_classifier(), num_samples=2, label="zebra")
    (call,) = found.calls
    assert call.labels is None
    assert call.guides[0].labels.tolist() == found.labels.tolist() == [2, 2]
    alone = draw(unconditional(), None, num_samples=2)
    assert alone.calls[0].labels is None and alone.calls[0].guides == []
    assert alone.labels.tolist() == [0, 0]


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("all", [0, 1, 2, 0, 1]),
        ("2,0", [2, 0, 2, 0, 2]),
        ([1, 2], [1, 2, 1, 2, 1]),
        ((0, 2, 1, 1), [0, 2, 1, 1, 0]),
    ],
)
def test_labels_go_on_in_the_next_batch(draw, label, expected):
    found = draw(diffusion_model(), None, num_samples=5, batch_size=2, label=label)
    assert found.labels.tolist() == expected


def test_random_labels_name_only_real_classes(draw):
    assert set(draw(diffusion_model(), None, num_samples=60).labels.tolist()) == set(range(CLASSES))


def test_names_are_the_classifiers_before_the_models(draw):
    model, classifier = diffusion_model(), noisy_classifier()
    model.labels = ("one", "two", "three")
    assert draw(model, None, label="two").labels.tolist() == [1]
    assert draw(model, classifier, label=NAMES[2]).labels.tolist() == [2]
    with pytest.raises(ValueError, match="label is 'two', but none of the 3 classes"):
        draw(model, classifier, label="two")
    classifier.labels = None
    assert draw(model, classifier, label="two").labels.tolist() == [1]


@pytest.mark.parametrize(
    ("model", "classifier", "options", "said"),
    [
        ({}, None, {"label": [0, 3]}, "label is 3.* from 0 to 2; .*--label"),
        ({}, None, {"label": [-1]}, "label is -1"),
        ({"num_classes": None, "null_class": None}, None, {"label": "all"}, "remove --label"),
        ({"num_classes": None, "null_class": None}, None, {"label": [0]}, "remove --label"),
        ({}, {"out_channels": 5}, {}, "has 3 classes and the classifier 5"),
        ({}, {"in_channels": 4}, {}, "have 3 channels and the classifier's 4"),
        ({"image_size": None}, None, {}, "give --image-size"),
        ({}, None, {"image_size": 0}, "image_size is 0; .* at least 1"),
    ],
)
def test_what_does_not_fit_is_refused(draw, model, classifier, options, said):
    options = dict(options)
    size = options.pop("image_size", None)
    classifier = None if classifier is None else noisy_classifier(**classifier)
    with pytest.raises(ValueError, match=said):
        draw(diffusion_model(**model), classifier, size, **options)


def test_the_size_of_the_images(draw):
    small = torch.arange(3.0)[:, None, None, None].expand(3, 3, 2, 4) / 10
    for changes, size, low_res, shape in (
        ({}, None, None, (SIZE, SIZE)),
        ({}, 1, None, (1, 1)),
        ({"image_size": None}, 16, None, (16, 16)),
        ({}, None, small, (8, 16)),
        ({}, 8, small, (8, 8)),
    ):
        found = draw(diffusion_model(**changes), None, size, more={"low_res": low_res})
        assert found.images.shape == (1, *shape, 3)
    found = draw(diffusion_model(), None, num_samples=5, batch_size=2, more={"low_res": small})
    taken = [(call.low_res[:, 0, 0, 0] * 10).round().tolist() for call in found.calls]
    assert taken == [[0, 1], [2, 0], [1]]


def test_processes_share_the_batches_out_and_draw_the_same(draw, monkeypatch):
    """Each draws what the others draw, too, so that its own images are those of one process."""
    options = {"num_samples": 7, "batch_size": 2, "respacing": "ddim2", "seed": 3}
    model, shares = diffusion_model(), []
    alone = draw(model, None, **options)

    def gathered(self, value):
        shares.append(value)
        return shares

    monkeypatch.setattr(Processes, "gathered", gathered)
    # the first one cannot be given what the second has not drawn yet
    with pytest.raises(KeyError):
        draw(model, None, more={"processes": Processes(0, 2)}, **options)
    second = draw(model, None, more={"processes": Processes(1, 2)}, **options)
    assert [sorted(share) for share in shares] == [[0, 4], [0, 2, 4, 6]]
    assert (second.images == alone.images).all() and (second.labels == alone.labels).all()
    for call, whole in zip(second.calls, alone.calls[1::2], strict=True):
        assert torch.equal(call.x, whole.x)
    assert (second.bar.options["total"], second.bar.options["disable"]) == (2 * 3, True)


@pytest.mark.parametrize("recurrence", [1, 3])
def test_draws_of_another_process_are_passed_over(monkeypatch, recurrence):
    bars = []
    monkeypatch.setattr(
        generation, "tqdm", lambda **options: bars.append(Bar(**options)) or bars[-1]
    )
    monkeypatch.setattr(Processes, "gathered", lambda self, value: [whole, value])
    whole: dict[int, np.ndarray] = {}
    options = {"method": "ddpm", "respacing": "ddim4", "recurrence": recurrence}
    config = SamplingConfig(num_samples=5, batch_size=2, **options)
    alone, _ = generate(diffusion_model(), None, config)
    whole |= {0: alone[:2], 4: alone[4:]}
    second, _ = generate(diffusion_model(), None, config, processes=Processes(1, 2))
    assert (second == alone).all()
    # three of the four steps are repeated
    evaluations = 1 + 3 * recurrence
    assert [bar.options["total"] for bar in bars] == [5 * evaluations, 2 * evaluations]
    assert [sum(bar.updates) for bar in bars] == [5 * evaluations, 2 * evaluations]


def test_a_run_without_a_step_to_repeat_is_refused():
    config = SamplingConfig(num_samples=1, respacing="ddim1", recurrence=2)
    with pytest.raises(ValueError, match="recurrence is 2, but no timestep .*'ddim1'"):
        generate(diffusion_model(), None, config)


def test_a_seed_decides_labels_and_images_and_leaves_torchs_own_alone():
    networks = diffusion_model(), noisy_classifier()
    before = torch.get_rng_state()
    options = {"num_samples": 5, "respacing": "ddim2", "scale": 2.0, "method": "ddpm"}
    first, same, other = (
        generate(*networks, SamplingConfig(**options, seed=seed)) for seed in (4, 4, 5)
    )
    assert (first[0] == same[0]).all() and (first[1] == same[1]).all()
    assert (first[0] != other[0]).any()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("method", ["ddim", "ddpm"])
def test_passes_and_gradients_of_a_run(method):
    """Of 12 steps, 9 of them in the stretch that recurrence repeats.

    At cfg 1 and 0 there is no term of CFG.
    """
    model, classifier, drawn = diffusion_model(), noisy_classifier(), {}
    for gradient_interval, cfg_interval, cfg, recurrence, gradients, passes in (
        (1, 1, 4.0, 1, 12, 24),
        (2, 3, 4.0, 1, 6, 16),
        (5, 5, 4.0, 1, 3, 15),
        (100, 100, 4.0, 1, 1, 13),
        (1, 3, 1.0, 1, 12, 12),
        (1, 3, 0.0, 1, 12, 12),
        (1, 1, 0.0, 2, 21, 21),
        (1, 1, 4.0, 3, 30, 60),
        (2, 3, 4.0, 2, 11, 28),
    ):
        intervals = {"gradient_interval": gradient_interval, "cfg_interval": cfg_interval}
        intervals["recurrence"] = recurrence
        options = {"label": [0, 2], "scale": 20.0, "respacing": "12", "method": method}
        config = SamplingConfig(num_samples=2, cfg=cfg, **options, **intervals)
        with count_compute(model, classifier) as cost:
            drawn[gradient_interval, cfg, recurrence], _ = generate(model, classifier, config)
        assert (cost.gradients / 2, cost.passes / 2) == (gradients, passes)
    assert (drawn[1, 4.0, 1] != drawn[5, 4.0, 1]).any()


def test_a_small_image_is_needed_by_an_upsampler():
    with pytest.raises(ValueError, match="enlarges a small image"):
        generate(diffusion_model(in_channels=6), None, SamplingConfig(num_samples=1))


def test_a_model_of_a_short_schedule_is_respaced_within_it(draw):
    model = DiffusionModel(diffusion_model().network, torch.linspace(0.99, 0.01, 20))
    (call,) = draw(model, None, respacing="2").calls
    assert [step.timestep for step in call.steps] == [19, 0]


def each(count):
    return replace(GuidanceSchedule.constant(1.0), per_image=(1.0,) * count)


@pytest.mark.parametrize("name", ["schedule", "cfg_schedule"])
@pytest.mark.parametrize(
    ("samples", "batch", "respacing", "schedule", "said"),
    [
        (4, 2, "2", lambda: each(2), None),
        (2, 4, "2", lambda: each(2), None),
        (4, 2, "2", lambda: each(1), None),
        (5, 2, "2", lambda: each(2), "the batch has 1"),
        (2, 4, "2", lambda: each(4), "the batch has 2"),
        (1, 1, "3", lambda: GuidanceSchedule(StepList((1, 2, 3))), None),
        (1, 1, "4", lambda: GuidanceSchedule(StepList((1, 2, 3))), "lists 3 scales"),
        (1, 1, "2", lambda: GuidanceSchedule(Formula("1 / percent")), "zero"),
        (1, 1, "2", lambda: replace(each(1), models="flow"), "for flow models"),
    ],
)
def test_schedules_have_to_fit_every_step_and_batch(
    name, samples, batch, respacing, schedule, said
):
    config = SamplingConfig(
        num_samples=samples, batch_size=batch, respacing=respacing, **{name: schedule()}
    )
    if said is None:
        check_schedules(diffusion_model(), config)
        return
    with pytest.raises(ValueError, match=said):
        check_schedules(diffusion_model(), config)
