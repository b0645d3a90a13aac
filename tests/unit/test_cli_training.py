"""python -m guidance train-classifier and train-diffusion."""

from __future__ import annotations

import json
import shutil
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from test_cli import NETWORK, TRAINING, is_one_line, names_here
from tiny_networks import CLASSES, NAMES, SIZE, classifier_layout, unet_layout

from guidance import load_classifier
from guidance.adm import EncoderUNet, UNet
from guidance.adm.presets import classifier_layout as preset_layout
from guidance.checkpoints.checkpoint import Description, read_checkpoint
from guidance.core.distributed import Processes
from guidance.training.data import Augment, LabelledImages, load_images, save_latents
from guidance.training.loop import OptimizerConfig, Trained
from guidance.training.new_classifier import TrainingConfig

BOTH = pytest.mark.parametrize("command", ["train-classifier", "train-diffusion"])
DATA = ["--data", "@data.npz"]


def test_a_classifier_says_what_it_is(guidance):
    said = guidance(
        "train-classifier", "--data", "@pictures", "--output", "new/c.safetensors",
        "--image-size", str(SIZE), "--noise-schedule", "cosine", "--held-out", "0.25",
        "--pool", "spatial", "--save-dtype", "fp16", *TRAINING,
    )  # fmt: skip
    assert "held-out accuracy at timestep 0" in said
    about = read_checkpoint("new/c.safetensors").description
    assert (about.kind, about.noise_schedule, about.space) == ("classifier", "cosine", "rgb")
    assert (about.labels, about.layout.pool) == (NAMES, "spatial")
    assert (about.training["images"], about.training["held_out"]) == (18, 6)
    classifier = load_classifier("new/c.safetensors")
    assert classifier.log_probs(torch.zeros(1, 3, SIZE, SIZE), 1.0).shape == (1, CLASSES)


@pytest.mark.parametrize(("options", "shape"), [([], (3, 4)), (["--unconditional"], (4, 4))])
def test_a_diffusion_model_draws_while_it_is_trained(guidance, options, shape):
    """A column for each class; in steps 2 and, because it is the last one, 3."""
    arguments = [*DATA, *TRAINING, *options]
    guidance("train-diffusion", *arguments, "--output", "d.safetensors", "--sample-every", "2")
    assert names_here() == ["d.safetensors", "d_step_0000002.png", "d_step_0000003.png"]
    sides = tuple(2 * (count * (SIZE + 2) + 2) for count in shape)
    assert Image.open("d_step_0000003.png").size == sides
    guidance("train-diffusion", *arguments, "--output", "e.safetensors")
    one, two = (read_checkpoint(f"{name}.safetensors").tensors for name in "de")
    assert all(torch.equal(one[key], two[key]) for key in one)  # looking changes nothing


def test_a_diffusion_model_goes_on_from_an_earlier_one(guidance):
    guidance("train-diffusion", *DATA, "--output", "first.safetensors", *TRAINING)
    more = [*DATA, "--output", "second.safetensors", "--init", "first.safetensors", *TRAINING]
    guidance("train-diffusion", *more, "--lr", "1e-9", "--seed", "1")
    earlier, later = (read_checkpoint(f"{name}.safetensors") for name in ("first", "second"))
    for name, tensor in earlier.tensors.items():
        assert torch.allclose(tensor, later.tensors[name], atol=1e-6)
    assert later.description.training["before"] == earlier.description.training
    said = guidance("train-diffusion", *more, "--norm-groups", "16", status=1)
    assert "norm_groups 8" in said and "16" in said


@pytest.mark.parametrize(
    ("command", "options", "said"),
    [
        ("train-classifier", ["--data", "missing.npz"], "missing.npz is neither a folder"),
        ("train-diffusion", ["--data", "@pictures"], "--image-size"),
        ("train-diffusion", ["--accumulate", "3"], "batch_size is 4; it must be a multiple of 3"),
        ("train-classifier", ["--attention-levels", "2"], "attention_levels holds 2"),
        ("train-diffusion", ["--channel-mult", "1,1.2"], "multiple of 8"),
        ("train-classifier", ["--output", "c.pt"], "c.pt; its name must end in .safetensors"),
        ("train-diffusion", ["--history", "c.txt"], "c.txt; its name must end in .json"),
        ("train-diffusion", ["--channel-mult", "1,1,1,1,1"], "multiples of 16; they are 8x8"),
        ("train-classifier", ["--plot", "p.jpg"], "p.jpg; its name must end in .png"),
        ("train-diffusion", ["--sample-every", "-1"], "sample-every is -1"),
    ],
)
def test_a_training_that_cannot_be_is_refused_before_it_starts(guidance, command, options, said):
    error = guidance(command, *DATA, *TRAINING, "--output", "c.safetensors", *options, status=1)
    is_one_line(error, said)
    assert len(error.strip().splitlines()) == 1
    assert names_here() == []


@pytest.fixture
def training(guidance, monkeypatch):
    """What a command trains, with which settings, and what it prints; nothing is trained."""

    def run(command, *more, stop=False):
        seen = {}

        def new_classifier(plan, where):
            seen.update(plan=plan, run=where)
            if stop:
                raise KeyboardInterrupt
            about = {"seconds": 7, "loss": 0.12345, "accuracy_by_timestep": {"0": 0.5, "10": 1.0}}
            kind = {"kind": "classifier", "noise_schedule": "linear", "training": about}
            checks = [{"step": 2, "loss": 0.5, "accuracy": {"0": 0.5}}]
            network = EncoderUNet(plan.layout)
            return Trained(network, [0.5, 0.25], checks), Description(layout=plan.layout, **kind)

        def train_diffusion(data, layout, schedule, recipe, **options):
            seen.update(data=data, layout=layout, schedule=schedule, recipe=recipe, **options)
            if stop:
                raise KeyboardInterrupt
            return Trained(UNet(layout), [0.5, 0.25], [])

        module = "guidance.cli." + command.replace("-", "_")
        for fake in (new_classifier, train_diffusion):
            monkeypatch.setattr(f"{module}.{fake.__name__}", fake, raising=False)
        arguments = [command, *DATA, "--device", "cpu", "--output", "a.safetensors", *more]
        seen["said"] = guidance(*arguments, status=130 if stop else 0)
        return seen

    return run


@BOTH
def test_the_state_is_beside_the_output_and_goes_when_the_training_has_ended(training, command):
    state = Path("a.safetensors.resume")
    for more, said, left in (([], f"({state})", [state.name]), (["--fresh"], "nothing was", [])):
        state.write_bytes(b"a state")
        assert said in training(command, *more, stop=True)["said"]
        assert names_here() == left
    state.write_bytes(b"a state")
    seen = training(command, "--history", "h.json", "--save-dtype", "bf16")
    run = seen["run"]
    assert (run.device, run.processes, run.resume.path) == ("cpu", Processes(0, 1), state)
    assert names_here() == ["a.safetensors", "h.json"]
    assert json.loads(Path("h.json").read_text())["losses"] == [0.5, 0.25]
    assert read_checkpoint("a.safetensors").dtype == torch.bfloat16


def test_pictures_that_cannot_be_read_are_named(training, files):
    shutil.copytree(files / "pictures", "real")
    for number in range(6):
        Path(f"real/cat/_{number}.png").write_bytes(b"no picture")
    said = training("train-diffusion", "--data", "real", "--image-size", "8")["said"]
    first = said.splitlines()[0]
    assert "left out 6 " in first and "_0.png" in first and "_5.png" not in first, "some of many"


def test_a_classifiers_loss_and_accuracy_are_printed_and_drawn(training):
    said = training("train-classifier", "--plot", "p.png")["said"]
    for part in ("a.safetensors", "7 s", "0.1235", "timestep 0: 0.500", "timestep 10: 1.000"):
        assert part in said
    assert Image.open("p.png").format == "PNG"


def test_a_classifier_is_planned_as_the_options_say(training, files):
    more = [*NETWORK, "--pool", "spatial", "--noise-schedule", "cosine", "--clean", "--flip"]
    more += ["--shift", "2", "--held-out", "0.25", "--patience", "3", "--image-size", "8"]
    seen = training("train-classifier", *more, "--steps", "7")
    plan = seen["plan"]
    layout = classifier_layout(pool="spatial", norm_groups=8)
    expected = {"clean": True, "augment": Augment(2, True), "held_out": 0.25, "patience": 3}
    expected |= {"noise_schedule": "cosine", "recipe": OptimizerConfig(steps=7)}
    assert plan == TrainingConfig(data=plan.data, layout=layout, **expected)
    assert plan.data.digest() == load_images(files / "data.npz").digest()
    assert seen["run"].resume.settings == json.loads(json.dumps(plan.settings()))


def test_every_option_of_the_network_reaches_its_layout(training):
    more = ["--channels=64", "--channel-mult=1,1.5", "--res-blocks=2", "--attention-levels=0"]
    more += ["--head-channels=16", "--norm-groups=16", "--dropout=0.25"]
    layout = training("train-diffusion", *more)["layout"]
    expected = {"model_channels": 64, "channel_mult": (1.0, 1.5), "num_res_blocks": 2}
    expected |= {"attention_levels": (0,), "num_head_channels": 16, "norm_groups": 16}
    assert layout == unet_layout(**expected, dropout=0.25)


def test_a_diffusion_model_is_trained_as_the_options_say(training):
    more = ["--p-uncond", "0.5", "--shift", "2", "--flip", "--noise-schedule", "cosine"]
    seen = training("train-diffusion", *NETWORK, *more)
    assert (seen["p_uncond"], seen["augment"]) == (0.5, Augment(2, True))
    settings = {"layout": asdict(unet_layout(norm_groups=8)), "noise_schedule": "cosine"}
    settings |= {"p_uncond": 0.5, "augment": {"shift": 2, "flip": True}, "init": None}
    settings |= {"data": seen["data"].digest(), **asdict(seen["recipe"])}
    assert seen["run"].resume.settings == json.loads(json.dumps(settings))


def test_the_layout_of_a_diffusion_model(training):
    for more, labels, expected in (
        (["--fixed-variance"], NAMES, {"out_channels": 3}),
        (["--unconditional"], None, {"num_classes": None, "null_class": None}),
        (["--p-uncond", "0"], NAMES, {"num_classes": 3, "null_class": None}),
        (["--p-uncond", "0.01"], NAMES, {"num_classes": 4, "null_class": 3}),
    ):
        layout = training("train-diffusion", *NETWORK, *more)["layout"]
        assert layout == unet_layout(**expected, norm_groups=8)
        assert read_checkpoint("a.safetensors").description.labels == labels


def test_models_of_latents(training):
    data = LabelledImages(torch.zeros(4, 5, 6, 8), torch.arange(4) % 2, ("a", "b"), space="x")
    save_latents("l.safetensors", data)
    layout = training("train-diffusion", *NETWORK, "--data", "l.safetensors")["layout"]
    assert (layout.in_channels, layout.image_channels, layout.out_channels) == (5, 5, 10)
    about = read_checkpoint("a.safetensors").description
    assert (about.space, about.labels) == ("x", ("a", "b"))
    more = ["--data", "l.safetensors", "--pool", "adaptive", "--preset", "small"]
    expected = preset_layout("small", channels=5, size=(6, 8), classes=2, pool="adaptive")
    assert training("train-classifier", *more)["plan"].layout == expected


def test_a_diffusion_model_says_how_it_was_trained(training, monkeypatch):
    clock = SimpleNamespace(monotonic=iter([10.0, 12.6]).__next__)
    monkeypatch.setattr("guidance.cli.train_diffusion.time", clock)
    more = ["--steps", "5", "--batch-size", "4", "--seed", "3", "--p-uncond", "0.25"]
    training("train-diffusion", *more, "--noise-schedule", "cosine")
    about = read_checkpoint("a.safetensors").description
    assert (about.kind, about.noise_schedule, about.space) == ("diffusion", "cosine", "rgb")
    about_training = {"images": 24, "steps": 5, "batch_size": 4, "p_uncond": 0.25, "seed": 3}
    assert about.training == about_training | {"before": None, "seconds": 3, "loss": 0.375}


def test_samples_while_it_trains_are_as_the_options_say(training):
    more = ["--sample-every", "3", "--sample-cfg", "1.5", "--noise-schedule", "cosine"]
    run = training("train-diffusion", *more)["run"]
    assert run.show_every == 3
    show = run.show
    assert (show.output, show.schedule, show.cfg) == (Path("a.safetensors"), "cosine", 1.5)
