"""python -m guidance sample: what it loads, draws and writes."""

from __future__ import annotations

import contextlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_cli import CLASSIFIER, OUT, SAMPLING, is_one_line, names_here, sample
from tiny_networks import SIZE, diffusion_model, noisy_classifier
from tiny_zero_shot import write_zero_shot

from guidance.classifiers.looks import Looks
from guidance.core.distributed import Processes
from guidance.sampling.generate import SamplingConfig

FOUR = '{"points": [[0, 4]]}'
UNCOND = ["sample", "--model", "@uncond.safetensors", *SAMPLING, *OUT]


def drawn(guidance, *more):
    """Images and labels."""
    guidance(*sample(*more, "--output", "x.npz"))
    with np.load("x.npz") as file:
        return file["arr_0"], file["arr_1"]


def test_arrays_for_the_evaluator(guidance):
    said = guidance(*sample("--output", "new/a.npz", "--num-samples", "5", "--label", "all"))
    assert "5 images of 8x8" in said
    with np.load("new/a.npz") as file:
        assert sorted(file) == ["arr_0", "arr_1"]
        images, labels = file["arr_0"], file["arr_1"]
    assert (images.shape, images.dtype) == ((5, SIZE, SIZE, 3), np.uint8)
    assert (labels.tolist(), labels.dtype) == ([0, 1, 2, 0, 1], np.int64)


def test_a_grid(guidance):
    guidance(*sample("--output", "a.png", "--num-samples", "6", "--columns", "3"))
    assert Image.open("a.png").size == tuple(2 * (n * (SIZE + 2) + 2) for n in (3, 2))


def test_guidance_reaches_the_images(guidance):
    base = ["--num-samples", "4", "--label", "zebra", "--cfg", "0"]
    plain = drawn(guidance, *base)[0]
    assert (drawn(guidance, *base, *CLASSIFIER, "--scale", "0")[0] == plain).all()
    assert (drawn(guidance, *base, *CLASSIFIER, "--scale", "40")[0] != plain).any()
    assert (drawn(guidance, *base, "--cfg", "4")[0] != plain).any()


def test_a_schedule_takes_the_place_of_a_scale(guidance):
    """--schedule is the classifier's, or CFG's where there is none; JSON, or a file of it."""
    base = ["--num-samples", "2", "--seed", "3", "--label", "1"]
    Path("four.json").write_text("4")
    plain = drawn(guidance, *base, *CLASSIFIER, "--scale", "4")[0]
    steered = drawn(guidance, *base, *CLASSIFIER, "--scale", "0", "--schedule", FOUR)[0]
    assert np.array_equal(steered, plain)
    cfg = drawn(guidance, *base, "--cfg", "4")[0]
    assert not np.array_equal(cfg, plain)
    for more in (["--schedule", FOUR], ["--cfg-schedule", "four.json"]):
        assert np.array_equal(drawn(guidance, *base, *more)[0], cfg)


def test_only_the_first_process_writes(guidance, monkeypatch):
    @contextlib.contextmanager
    def second():
        yield Processes(1, 2)

    monkeypatch.setattr("guidance.cli.sample.process_group", second)
    images = np.zeros((1, 4, 4, 3), np.uint8), np.zeros(1, np.int64)
    monkeypatch.setattr("guidance.cli.sample.generate", lambda *_, **__: images)
    assert guidance(*sample(*OUT)) == ""
    assert names_here() == []


@pytest.fixture
def asked(guidance, monkeypatch):
    """What `sample` asks `generate` for; nothing is drawn."""

    def run(*arguments):
        seen = {}

        def generate(model, classifier, job, image_size, *, low_res, processes):
            seen.update(job=job, image_size=image_size, low_res=low_res, classifier=classifier)
            return np.zeros((job.num_samples, 4, 6, 3), np.uint8), np.zeros(job.num_samples, int)

        monkeypatch.setattr("guidance.cli.sample.generate", generate)
        guidance(*arguments)
        return seen

    return run


def test_every_option_is_handed_on(asked):
    values = {"num_samples": 3, "batch_size": 2, "label": "zebra", "scale": 2.0, "cfg": 3.0}
    values |= {"method": "ddpm", "eta": 0.5, "respacing": "7", "seed": 5, "entropy_limit": 4.0}
    values |= {"cap": 0.25, "gradient_interval": 6, "label_smoothing": 0.125}
    values |= {"cfg_interval": 2, "cfg_tolerance": 0.75, "recurrence": 3}
    options = [f"--{name.replace('_', '-')}={value}" for name, value in values.items()]
    seen = asked(*sample(*OUT, *options, "--no-clip", "--image-size", "16"))
    assert seen["job"] == SamplingConfig(**values, clip_denoised=False)
    assert seen["image_size"] == 16


def test_cfg_is_0_with_a_classifier_where_the_model_can(asked):
    for model, more, cfg in (
        ("diffusion", [], 1.0),
        ("diffusion", CLASSIFIER, 0.0),
        ("uncond", CLASSIFIER, 1.0),
        ("diffusion", [*CLASSIFIER, "--cfg", "0.5"], 0.5),
    ):
        command = ["sample", "--model", f"@{model}.safetensors", "--device", "cpu"]
        assert asked(*command, *more, *OUT)["job"].cfg == cfg


def test_small_images_say_how_many_and_which(asked):
    np.savez("small.npz", arr_0=np.full((3, 2, 2, 3), 255, np.uint8), arr_1=np.array([2, 0, 1]))
    low = [*OUT, "--low-res", "small.npz"]
    seen = asked(*sample(*low))
    assert torch.equal(seen["low_res"], torch.ones(3, 3, 2, 2))
    assert (seen["job"].num_samples, seen["job"].label) == (3, [2, 0, 1])
    seen = asked(*sample(*low, "--num-samples", "2", "--label", "1"))
    assert (seen["job"].num_samples, seen["job"].label) == (2, "1")
    assert asked(*UNCOND, *low)["job"].label == "random"
    assert asked(*UNCOND, *CLASSIFIER, *low)["job"].label == [2, 0, 1]
    Image.new("RGB", (2, 2)).save("small.png")  # it shows no class
    seen = asked(*sample(*OUT, "--low-res", "small.png"))
    assert (seen["job"].num_samples, seen["job"].label) == (1, "random")


def test_models_are_loaded_as_the_options_say(asked, guidance, monkeypatch):
    seen = []

    def loader(name, made):
        def load(path, *_, **options):
            seen.append((name, str(path), options))
            return made

        monkeypatch.setattr(f"guidance.cli.sample.{name}", load)

    loader("load_adm", diffusion_model())
    for name in ("load_classifier", "load_image_classifier", "load_zero_shot_classifier"):
        loader(name, noisy_classifier())
    Path("folder").mkdir()

    def loads(*more):
        asked("sample", "--model", "m", *OUT, "--device", "cpu", *more)
        return [seen.pop(0) for _ in list(seen)]

    where = {"dtype": "bf16", "device": torch.device("cpu")}
    options = ["--dtype", "bf16", "--noise-schedule", "linear", "--num-heads", "2"]
    its = ["--classifier-noise-schedule", "cosine", "--classifier-num-head-channels", "64"]
    told = {"num_heads": 2, "num_head_channels": 0, "attention_order": "auto"}
    model = ("load_adm", "m", {"noise_schedule": "linear", **told, **where})
    told = {"num_heads": 0, "num_head_channels": 64, "attention_order": "auto"}
    noisy = ("load_classifier", "c", {"noise_schedule": "cosine", **told, **where})
    exact = ("load_image_classifier", "c", {"gradient": "exact", "looks": Looks(), **where})
    cheap = {"gradient": "cheap", "looks": Looks(), **where}
    words = ("load_zero_shot_classifier", "c", {"template": "a {}", **cheap})
    cheap = ("load_image_classifier", "folder", cheap)
    assert loads(*options) == [model]
    assert loads(*options, *its, "--classifier", "c") == [model, noisy]
    assert loads(*options, "--classifier", "c", "--gradient", "exact") == [model, exact]
    assert loads(*options, "--classifier", "folder") == [model, cheap]
    more = ["--classifier", "c", "--classes", "a;b", "--template", "a {}"]
    assert loads(*options, *more) == [model, words]
    for other in ([], ["--classifier", "folder"], ["--classifier", "c", "--gradient", "exact"]):
        said = guidance("sample", "--model", "m", *OUT, "--device", "cpu", *its, *other, status=1)
        assert "--classifier-num-heads" in said


@pytest.fixture(scope="module")
def clip(tmp_path_factory):
    """A folder of a tiny CLIP."""
    pytest.importorskip("transformers")
    folder = tmp_path_factory.mktemp("models") / "tiny clip"
    write_zero_shot(folder, "clip")
    return str(folder)


def test_words_as_classes(guidance, clip):
    """A line or its number; several lines, and one with a template."""
    words = ["--classifier", clip, "--classes", "a photo of a cat; a photo of a dog"]
    base = [*UNCOND[:-2], "--num-samples", "2", "--output", "x.npz"]

    def images(*more):
        guidance(*base, *more)
        with np.load("x.npz") as file:
            return file["arr_0"], file["arr_1"].tolist()

    plain, _ = images(*words, "--label", "0", "--scale", "0")
    by_line, labels = images(*words, "--label", "A photo of a dog", "--scale", "8")
    assert labels == [1, 1] and (by_line != plain).any()
    assert (images(*words, "--label", "1", "--scale", "8")[0] == by_line).all()
    short = ["--classifier", clip, "--classes", "cat;dog", "--template", "a photo of a {}"]
    assert (images(*short, "--label", "dog", "--scale", "8")[0] == by_line).all()
    one = ["--classifier", clip, "--classes", "the zebra", "--gradient", "exact"]
    assert (images(*one, "--scale", "2")[0] != plain).any()


def test_words_that_do_not_fit(guidance, clip):
    for more, said in (
        (["--classes", "a;b"], "--classes needs --classifier"),
        (["--classifier", clip, "--template", "a {}"], "--template is for the lines of --classes"),
        (["--classifier", clip], "compares images with words"),
        (["--classifier", clip, "--classes", "a;A"], "has the line 'a' 2 times"),
        (["--classifier", clip, "--classes", "a;;b"], "Line 2 of classes is empty"),
        (["--classifier", clip, "--classes", ""], "classes is empty"),
        (["--classifier", clip, "--classes", "a", "--template", ""], "template is ''"),
        (["--classifier", clip, "--classes", "a;b", "--label", "c"], "label is 'c'"),
        ([*CLASSIFIER, "--classes", "a;b"], "classifier.safetensors is no folder"),
    ):
        is_one_line(guidance(*UNCOND, *more, status=1), said)
    assert names_here() == []
