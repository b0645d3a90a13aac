"""Images batch by batch: what is drawn in which order, for which labels, by which process."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from progress_bar import Bar
from tiny_networks import CLASSES, NAMES, SIZE, diffusion_model, noisy_classifier

from guidance import GuidanceSchedule
from guidance.classifiers.gradient_cache import CachedClassifier
from guidance.core.distributed import Processes
from guidance.sampling import generate as generation
from guidance.sampling.cfg_cache import CFGCacheConfig
from guidance.sampling.generate import SamplingConfig, check_schedules, generate, replace_scales
from guidance.sampling.strength import Strength

DEFAULTS = {
    "num_samples": 3,
    "batch_size": 50,
    "label": "random",
    "cfg": 1.0,
    "scale": 0.0,
    "method": "ddim",
    "eta": 0.0,
    "respacing": "ddim50",
    "seed": 0,
    "clip_denoised": True,
    "entropy_limit": 1.0,
    "cap": 0.0,
    "label_smoothing": 0.0,
    "schedule": None,
    "cfg_schedule": None,
    "every": 1,
    "cfg_every": 1,
    "cfg_tolerance": 0.0,
}


def test_a_job_draws_without_guidance_unless_it_is_told_to():
    assert vars(SamplingConfig(num_samples=3)) == DEFAULTS
    assert SamplingConfig(num_samples=1).strength == Strength(scale=0.0)
    assert SamplingConfig(num_samples=1).reuse == CFGCacheConfig(1, 0.0)


def test_the_options_of_a_job_are_those_of_its_parts():
    job = SamplingConfig(
        num_samples=1,
        scale=2.0,
        entropy_limit=3.0,
        cap=0.5,
        label_smoothing=0.25,
        cfg_every=4,
        cfg_tolerance=0.125,
    )
    assert job.strength == Strength(scale=2.0, entropy_limit=3.0, cap=0.5, label_smoothing=0.25)
    assert job.reuse == CFGCacheConfig(4, 0.125)
    assert replace_scales(job, 5.0, 6.0) == SamplingConfig(**vars(job) | {"scale": 5.0, "cfg": 6.0})


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"num_samples": 0}, "num_samples is 0 and batch_size 50; both must be at least 1."),
        (
            {"num_samples": 1, "batch_size": 0},
            "num_samples is 1 and batch_size 0; both must be at least 1.",
        ),
        ({"seed": 2**63}, "seed is 9223372036854775808; it must fit into 64 bits."),
        ({"seed": -(2**63) - 1}, "seed is -9223372036854775809; it must fit into 64 bits."),
        ({"cap": -1.0}, "cap is -1.0; it must be 0 (off) or more."),
        ({"cfg_every": 0}, "every is 0; it must be at least 1."),
        ({"cfg_tolerance": 1.0}, "tolerance is 1; it must be at least 0 and below 1."),
        ({"every": 0}, "every is 0; it must be at least 1."),
    ],
)
def test_a_job_that_cannot_be_is_refused(options, said):
    with pytest.raises(ValueError) as caught:
        SamplingConfig(**{"num_samples": 3} | options)
    assert str(caught.value) == said


@pytest.mark.parametrize("seed", [2**63 - 1, -(2**63)])
def test_the_outermost_seeds(seed):
    assert SamplingConfig(num_samples=1, batch_size=1, seed=seed).seed == seed


@pytest.fixture
def asked(monkeypatch):
    """`generate` with a sampler that draws its noise and no more: what it was asked for."""
    calls, bars = [], []

    def sample(model, x, steps, *, noise, **options):
        call = SimpleNamespace(model=model, x=x, steps=list(steps), **options)
        call.noise = [noise(x) for _ in call.steps]
        calls.append(call)
        return (x / 8).clamp(-1, 1)

    def tqdm(**options):
        bars.append(Bar(**options))
        return bars[-1]

    monkeypatch.setattr(generation, "sample", sample)
    monkeypatch.setattr(generation, "tqdm", tqdm)

    def run(model, classifier, job, *arguments, **more):
        calls.clear()
        bars.clear()
        images, labels = generate(model, classifier, job, *arguments, **more)
        return SimpleNamespace(calls=list(calls), bar=bars[0], images=images, labels=labels)

    return run


def test_each_batch_draws_labels_then_the_image_then_a_noise_for_each_step(asked):
    job = SamplingConfig(num_samples=5, batch_size=2, seed=7, respacing="ddim3")
    found = asked(diffusion_model(), None, job)
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
    assert (found.images.shape, found.images.dtype) == ((5, SIZE, SIZE, 3), np.uint8)
    assert found.bar.updates == [2] * 6 + [1] * 3
    shown = {"total": 15, "desc": "sample", "unit": "eval", "mininterval": 0.5, "disable": False}
    assert found.bar.options == shown
    assert asked(diffusion_model(), None, job, title="row 1").bar.options["desc"] == "row 1"


def test_images_come_in_the_order_of_their_batches(asked):
    found = asked(
        diffusion_model(), None, SamplingConfig(num_samples=5, batch_size=2, respacing="ddim1")
    )
    drawn = torch.cat([call.x for call in found.calls])
    expected = ((drawn / 8).clamp(-1, 1) + 1) * 127.5
    assert (found.images == expected.to(torch.uint8).permute(0, 2, 3, 1).numpy()).all()


def test_a_job_goes_to_the_sampler(asked):
    schedule = GuidanceSchedule.from_json("4")
    job = SamplingConfig(
        num_samples=2,
        label="1",
        cfg=3.0,
        scale=2.0,
        method="ddpm",
        eta=0.5,
        respacing="5",
        clip_denoised=False,
        cap=0.5,
        schedule=schedule,
        cfg_every=2,
        cfg_tolerance=0.25,
    )
    model, classifier = diffusion_model(), noisy_classifier()
    (call,) = asked(model, classifier, job).calls
    assert call.model is model
    assert (call.method, call.eta, call.cfg, call.clip_denoised) == ("ddpm", 0.5, 3.0, False)
    assert (call.reuse, call.low_res, call.labels.tolist()) == (job.reuse, None, [1, 1])
    assert [step.timestep for step in call.steps] == [999, 749, 500, 250, 0]
    (guide,) = call.guides
    assert (guide.classifier, guide.strength, guide.schedule) == (
        classifier,
        job.strength,
        schedule,
    )
    assert guide.labels is call.labels


def test_a_schedule_takes_the_place_of_cfg(asked):
    schedule = GuidanceSchedule.from_json("4")
    job = SamplingConfig(num_samples=1, cfg=3.0, cfg_schedule=schedule, respacing="1")
    assert asked(diffusion_model(), None, job).calls[0].cfg == schedule


def test_each_batch_has_a_memory_of_its_own(asked):
    job = SamplingConfig(num_samples=2, batch_size=1, every=3, respacing="1")
    first, second = asked(diffusion_model(), noisy_classifier(), job).calls
    memories = [call.guides[0].classifier for call in (first, second)]
    assert all(isinstance(one, CachedClassifier) and one.memory.every == 3 for one in memories)
    assert memories[0].memory is not memories[1].memory


def unconditional():
    return diffusion_model(num_classes=None, null_class=None)


def test_an_unconditional_model_gets_no_labels_but_its_classifier_does(asked):
    job = SamplingConfig(num_samples=2, label="zebra", respacing="1")
    found = asked(unconditional(), noisy_classifier(), job)
    (call,) = found.calls
    assert call.labels is None
    assert call.guides[0].labels.tolist() == found.labels.tolist() == [2, 2]
    alone = asked(unconditional(), None, SamplingConfig(num_samples=2, respacing="1"))
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
def test_labels_go_on_in_the_next_batch(asked, label, expected):
    job = SamplingConfig(num_samples=5, batch_size=2, label=label, respacing="1")
    assert asked(diffusion_model(), None, job).labels.tolist() == expected


def test_names_are_the_classifiers_before_the_models(asked):
    model, classifier = diffusion_model(), noisy_classifier()
    model.labels = ("one", "two", "three")
    job = SamplingConfig(num_samples=1, label="two", respacing="1")
    assert asked(model, None, job).labels.tolist() == [1]
    with pytest.raises(ValueError, match="label is 'two', but none of the 3 classes has this name"):
        asked(model, classifier, job)
    assert classifier.labels == NAMES
    classifier = noisy_classifier()
    classifier.labels = None
    assert asked(model, classifier, job).labels.tolist() == [1]


@pytest.mark.parametrize("label", [3, -1])
def test_a_label_that_is_no_class_is_refused(asked, label):
    with pytest.raises(ValueError) as caught:
        asked(diffusion_model(), None, SamplingConfig(num_samples=1, label=[0, label]))
    assert str(caught.value) == (
        f"label is {label}, but the classes go from 0 to 2; choose others with --label."
    )


@pytest.mark.parametrize("label", ["all", "0", [0]])
def test_without_classes_there_is_no_label(asked, label):
    with pytest.raises(ValueError) as caught:
        asked(unconditional(), None, SamplingConfig(num_samples=1, label=label))
    assert str(caught.value) == ("Neither the model nor a classifier has classes; remove --label.")


def test_a_classifier_of_other_classes_or_images_is_refused(asked):
    job = SamplingConfig(num_samples=1, respacing="1")
    with pytest.raises(ValueError) as caught:
        asked(diffusion_model(), noisy_classifier(out_channels=5), job)
    assert str(caught.value) == (
        "The diffusion model has 3 classes and the classifier 5; both must have the same classes."
    )
    with pytest.raises(ValueError) as caught:
        asked(diffusion_model(), noisy_classifier(in_channels=4), job)
    assert str(caught.value) == (
        "The diffusion model's images have 3 channels and the classifier's 4; both must be made "
        "for the same images."
    )


def small(count):
    return torch.arange(count * 1.0)[:, None, None, None].expand(count, 3, 2, 4) / 10


def test_small_images_are_enlarged_in_turn(asked):
    job = SamplingConfig(num_samples=5, batch_size=2, respacing="1")
    found = asked(diffusion_model(), None, job, low_res=small(3))
    taken = [(call.low_res[:, 0, 0, 0] * 10).round().tolist() for call in found.calls]
    assert taken == [[0, 1], [2, 0], [1]]
    assert found.images.shape == (5, 8, 16, 3)
    assert asked(diffusion_model(), None, job, 8, low_res=small(3)).images.shape == (5, 8, 8, 3)


def test_the_size_of_the_images(asked):
    job = SamplingConfig(num_samples=1, respacing="1")
    assert asked(diffusion_model(), None, job).images.shape == (1, SIZE, SIZE, 3)
    assert asked(diffusion_model(), None, job, 1).images.shape == (1, 1, 1, 3)
    assert asked(diffusion_model(image_size=None), None, job, 16).images.shape == (1, 16, 16, 3)
    for model, size, said in (
        (
            diffusion_model(image_size=None),
            None,
            "The file does not say how large its images are; give --image-size.",
        ),
        (diffusion_model(), 0, "image_size is 0; it must be at least 1."),
    ):
        with pytest.raises(ValueError) as caught:
            asked(model, None, job, size)
        assert str(caught.value) == said


def test_processes_share_the_batches_out_and_draw_the_same(asked, monkeypatch):
    """Each draws what the others draw, too, so that its own images are those of one process."""
    job = SamplingConfig(num_samples=7, batch_size=2, respacing="ddim2", seed=3)
    model = diffusion_model()
    alone = asked(model, None, job)
    shares = []

    def gathered(self, value):
        shares.append(value)
        return shares

    monkeypatch.setattr(Processes, "gathered", gathered)
    # the first one cannot be given what the second has not drawn yet
    with pytest.raises(KeyError):
        asked(model, None, job, processes=Processes(0, 2))
    second = asked(model, None, job, processes=Processes(1, 2))
    assert [sorted(share) for share in shares] == [[0, 4], [0, 2, 4, 6]]
    assert (second.images == alone.images).all()
    assert (second.labels == alone.labels).all()
    for call, whole in zip(second.calls, alone.calls[1::2], strict=True):
        assert torch.equal(call.x, whole.x)
    assert (second.bar.options["total"], second.bar.options["disable"]) == (2 * 3, True)


# --- schedules that do not fit ---------------------------------------------------------------


def each(count):
    factors = ", ".join(["1"] * count)
    return GuidanceSchedule.from_json(f'{{"points": [[0, 1]], "per_image": [{factors}]}}')


@pytest.mark.parametrize("name", ["schedule", "cfg_schedule"])
@pytest.mark.parametrize(
    ("samples", "batch", "factors", "fits"),
    [(4, 2, 2, True), (2, 4, 2, True), (5, 2, 2, False), (2, 4, 4, False), (4, 2, 1, True)],
)
def test_factors_have_to_fit_every_batch(name, samples, batch, factors, fits):
    job = SamplingConfig(
        num_samples=samples, batch_size=batch, respacing="2", **{name: each(factors)}
    )
    if fits:
        check_schedules(diffusion_model(), job)
    else:
        with pytest.raises(ValueError, match="per_image|the batch has"):
            check_schedules(diffusion_model(), job)


def test_every_step_of_a_schedule_is_looked_at():
    schedule = GuidanceSchedule.from_json('{"axis": "step", "values": [1, 2, 3]}')
    check_schedules(
        diffusion_model(), SamplingConfig(num_samples=1, respacing="3", schedule=schedule)
    )
    with pytest.raises(ValueError, match="lists 3 scales"):
        check_schedules(
            diffusion_model(), SamplingConfig(num_samples=1, respacing="4", schedule=schedule)
        )
    flow = GuidanceSchedule.from_json('{"points": [[0, 1]], "models": "flow"}')
    with pytest.raises(ValueError, match="for flow models"):
        check_schedules(
            diffusion_model(), SamplingConfig(num_samples=1, respacing="2", schedule=flow)
        )
