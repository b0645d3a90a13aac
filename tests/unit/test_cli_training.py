"""python -m guidance train-classifier and train-diffusion."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from PIL import Image
from test_cli import NETWORK, SAMPLING, TRAINING, is_one_line, names_here
from tiny_networks import CLASSES, NAMES, SIZE, classifier_layout, unet_layout

from guidance import load_adm, load_classifier
from guidance.adm import EncoderUNet, UNet
from guidance.adm.presets import classifier_layout as preset_layout
from guidance.checkpoints.checkpoint import Description, read_checkpoint
from guidance.cli.training import warn_skipped
from guidance.core.distributed import Processes
from guidance.training.data import Augment, LabelledImages, load_images, save_latents
from guidance.training.loop import OptimizerConfig, Trained

BOTH = pytest.mark.parametrize("command", ["train-classifier", "train-diffusion"])
DATA = ["--data", "@data.npz"]


# --- trainings, with networks and data small enough for a test -------------------------------


@pytest.mark.parametrize("data", ["data.npz", "pictures"])
def test_a_classifier_says_what_it_is(guidance, data):
    said = guidance(
        "train-classifier", "--data", f"@{data}", "--output", "new/c.safetensors",
        "--image-size", str(SIZE), "--noise-schedule", "cosine", "--held-out", "0.25",
        "--pool", "spatial", "--save-dtype", "fp16", *TRAINING,
    )  # fmt: skip
    assert "held-out accuracy at timestep 0" in said
    about = read_checkpoint("new/c.safetensors").description
    assert (about.kind, about.noise_schedule, about.space) == ("classifier", "cosine", "rgb")
    assert about.labels == NAMES
    assert (about.layout.pool, about.layout.image_size) == ("spatial", SIZE)
    assert (about.training["images"], about.training["held_out"]) == (18, 6)
    assert about.training["accuracy_by_timestep"].keys() >= {"0", "500"}
    classifier = load_classifier("new/c.safetensors")
    assert classifier.log_probs(torch.zeros(1, 3, SIZE, SIZE), 1.0).shape == (1, CLASSES)


def test_a_classifier_of_latents(guidance):
    chance = torch.Generator().manual_seed(0)
    labels = torch.arange(12) % 2
    latents = torch.randn(12, 4, 8, 8, generator=chance) + labels[:, None, None, None]
    save_latents("data.safetensors", LabelledImages(latents, labels, ("a", "b"), space="SDXL"))
    output = ["--output", "c.safetensors", "--pool", "adaptive"]
    guidance("train-classifier", "--data", "data.safetensors", *output, *TRAINING)
    about = read_checkpoint("c.safetensors").description
    assert (about.space, about.labels, about.layout.in_channels) == ("SDXL", ("a", "b"), 4)


def test_a_diffusion_model_has_a_null_class(guidance):
    guidance("train-diffusion", *DATA, "--output", "d.safetensors", *TRAINING)
    model = load_adm("d.safetensors")
    assert (model.num_classes, model.layout.null_class, model.labels) == (3, 3, NAMES)
    assert model.layout.learned_variance
    guidance("sample", "--model", "d.safetensors", *SAMPLING, "--cfg", "3", "--output", "a.npz")


@pytest.mark.parametrize(
    ("options", "shape"), [([], (3, 4)), (["--unconditional"], (4, 4))], ids=["classes", "none"]
)
def test_a_diffusion_model_draws_while_it_is_trained(guidance, options, shape):
    """A column for each class; in steps 2 and, because it is the last one, 3."""
    arguments = [*DATA, *TRAINING, *options]
    guidance("train-diffusion", *arguments, "--output", "d.safetensors", "--sample-every", "2")
    assert names_here() == ["d.safetensors", "d_step_0000002.png", "d_step_0000003.png"]
    with Image.open("d_step_0000003.png") as picture:
        columns, rows = shape
        assert picture.size == (2 * (columns * (SIZE + 2) + 2), 2 * (rows * (SIZE + 2) + 2))
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
    more[more.index("first.safetensors")] = "@classifier.safetensors"
    assert "is a noisy classifier, not" in guidance("train-diffusion", *more, status=1)


@BOTH
def test_a_training_repeats_with_its_seed(guidance, command):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        output = ["--output", f"{name}.safetensors", "--seed", seed]
        guidance(command, *DATA, *TRAINING, *output)
    a, b, c = (read_checkpoint(f"{name}.safetensors").tensors for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert any(not torch.equal(a[key], c[key]) for key in a)


@BOTH
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data", "missing.npz"], "missing.npz is neither a folder"),
        (["--data", "@pictures"], "--image-size"),
        (["--image-size", "16"], "has 8x8 images, not 16"),
        (["--steps", "0"], "steps is 0"),
        (["--accumulate", "3"], "batch_size is 4; it must be a multiple of 3"),
        (["--attention-levels", "2"], "attention_levels holds 2"),
        (["--channel-mult", "1,1.2"], "multiple of 8"),
        (["--head-channels", "24"], "num_head_channels 24"),
        (["--ema", "1"], "ema is 1.0"),
        (["--output", "c.pt"], "c.pt; its name must end in .safetensors"),
        (["--history", "c.txt"], "c.txt; its name must end in .json"),
        (["--channel-mult", "1,1,1,1,1"], "multiples of 16; they are 8x8"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_a_training_that_cannot_be_is_refused_before_it_starts(guidance, command, options, said):
    error = guidance(command, *DATA, *TRAINING, "--output", "c.safetensors", *options, status=1)
    is_one_line(error, said)
    assert len(error.strip().splitlines()) == 1
    assert names_here() == []


@pytest.mark.parametrize(
    ("command", "options", "said"),
    [
        ("train-classifier", ["--plot", "p.jpg"], "p.jpg; its name must end in .png"),
        ("train-diffusion", ["--sample-every", "-1"], "sample-every is -1"),
    ],
)
def test_options_of_one_command_are_checked(guidance, command, options, said):
    output = ["--output", "a.safetensors"]
    is_one_line(guidance(command, *DATA, *TRAINING, *output, *options, status=1), said)


# --- what the options lead to ----------------------------------------------------------------

TRAINED = {
    "train-classifier": "guidance.cli.train_classifier.new_classifier",
    "train-diffusion": "guidance.cli.train_diffusion.train_diffusion",
}


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
            description = Description(
                kind="classifier", layout=plan.layout, noise_schedule="linear", training=about
            )
            seen_by = [{"step": 2, "loss": 0.5, "accuracy": {"0": 0.5}}]
            return Trained(EncoderUNet(plan.layout), [0.5, 0.25], seen_by), description

        def train_diffusion(data, layout, schedule, recipe, **options):
            seen.update(data=data, layout=layout, schedule=schedule, recipe=recipe, **options)
            if stop:
                raise KeyboardInterrupt
            return Trained(UNet(layout), [0.5, 0.25], [])

        fakes = {"train-classifier": new_classifier, "train-diffusion": train_diffusion}
        monkeypatch.setattr(TRAINED[command], fakes[command])
        arguments = [command, *DATA, "--device", "cpu", "--output", "a.safetensors", *more]
        seen["said"] = guidance(*arguments, status=130 if stop else 0)
        return seen

    return run


@BOTH
def test_the_state_is_beside_the_output_and_goes_when_the_training_has_ended(training, command):
    Path("a.safetensors.resume").write_bytes(b"a state")
    run = training(command)["run"]
    assert (run.device, run.processes) == ("cpu", Processes(0, 1))
    assert run.resume.path == Path("a.safetensors.resume")
    assert names_here() == ["a.safetensors"]


@BOTH
@pytest.mark.parametrize("fresh", [False, True])
def test_an_interrupted_training_says_how_to_go_on(training, command, fresh):
    Path("a.safetensors.resume").write_bytes(b"a state")
    said = training(command, *["--fresh"] * fresh, stop=True)["said"]
    assert ("nothing was written" if fresh else "(a.safetensors.resume)") in said
    assert names_here() == ([] if fresh else ["a.safetensors.resume"])


@BOTH
def test_a_training_writes_its_history(training, command):
    training(command, "--history", "h.json")
    validations = [{"step": 2, "loss": 0.5, "accuracy": {"0": 0.5}}]
    assert json.loads(Path("h.json").read_text()) == {
        "losses": [0.5, 0.25],
        "validations": validations if command == "train-classifier" else [],
    }


@BOTH
def test_pictures_that_cannot_be_read_are_named(training, capsys, command):
    for name in ("a", "b"):
        Path("real", name).mkdir(parents=True)
        Image.new("RGB", (SIZE, SIZE)).save(f"real/{name}/whole.png")
    broken = Path("b") / "broken.png"
    (Path("real") / broken).write_bytes(b"no picture")
    said = training(command, "--data", "real", "--image-size", "8")["said"].splitlines()[0]
    assert "left out 1 " in said and str(broken) in said
    warn_skipped(tuple("012345"))
    said = capsys.readouterr().out
    assert "left out 6 " in said and "5" not in said, "some of many"
    warn_skipped(())
    assert capsys.readouterr().out == ""


@BOTH
@pytest.mark.parametrize("dtype", ["fp32", "fp16", "bf16"])
def test_save_dtype_is_that_of_the_file(training, command, dtype):
    training(command, "--save-dtype", dtype)
    found = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16}[dtype]
    assert read_checkpoint("a.safetensors").dtype == found


def test_a_classifiers_loss_and_accuracy_are_printed_and_drawn(training):
    said = training("train-classifier", "--plot", "p.png")["said"]
    for part in ("a.safetensors", "7 s", "0.1235", "timestep 0: 0.500", "timestep 10: 1.000"):
        assert part in said
    with Image.open("p.png") as picture:
        assert picture.format == "PNG"


def plan_of(plan):
    return plan.noise_schedule, plan.clean, plan.augment, plan.held_out, plan.patience


def test_a_classifier_is_planned_as_the_options_say(training, files):
    plan = training("train-classifier")["plan"]
    assert plan.recipe == OptimizerConfig(steps=10_000)
    wide = {"channel_mult": (1.0, 2.0, 4.0), "attention_levels": (2,)}
    assert plan.layout == classifier_layout(**wide, norm_groups=8)
    assert plan_of(plan) == ("linear", False, Augment(0, False), 0.1, 0)
    assert plan.data.digest() == load_images(files / "data.npz").digest()
    more = [*NETWORK, "--pool", "spatial", "--noise-schedule", "cosine", "--clean", "--flip"]
    more += ["--shift", "2", "--held-out", "0.25", "--patience", "3", "--image-size", "8"]
    seen = training("train-classifier", *more)
    assert seen["plan"].layout == classifier_layout(pool="spatial", norm_groups=8)
    assert plan_of(seen["plan"]) == ("cosine", True, Augment(2, True), 0.25, 3)
    assert seen["run"].resume.settings == json.loads(json.dumps(seen["plan"].settings()))


def test_every_option_of_the_network_reaches_its_layout(training):
    more = ["--channels=64", "--channel-mult=1,1.5", "--res-blocks=2", "--attention-levels=0"]
    more += ["--head-channels=16", "--norm-groups=16", "--dropout=0.25"]
    layout = training("train-diffusion", *more)["layout"]
    expected = {"model_channels": 64, "channel_mult": (1.0, 1.5), "num_res_blocks": 2}
    expected |= {"attention_levels": (0,), "num_head_channels": 16, "norm_groups": 16}
    assert layout == unet_layout(**expected, dropout=0.25)


def test_a_preset_takes_the_place_of_the_network_options(training):
    images = torch.zeros(4, 5, 6, 8)
    data = LabelledImages(images, torch.arange(4) % 2, ("a", "b"), space="x")
    save_latents("l.safetensors", data)
    more = ["--data", "l.safetensors", "--pool", "adaptive"]
    expected = preset_layout("small", channels=5, size=(6, 8), classes=2, pool="adaptive")
    assert training("train-classifier", *more, "--preset", "small")["plan"].layout == expected
    layout = training("train-classifier", *more)["plan"].layout
    assert (layout.image_size, layout.in_channels, layout.out_channels) == (8, 5, 2)


def test_a_diffusion_model_is_trained_as_the_options_say(training):
    seen = training("train-diffusion")
    wide = {"channel_mult": (1.0, 2.0, 3.0, 3.0), "attention_levels": (2,)}
    assert seen["layout"] == unet_layout(**wide, norm_groups=8)
    assert seen["recipe"] == OptimizerConfig(steps=20_000, weight_decay=0.0)
    assert (seen["p_uncond"], seen["augment"], seen["weights"]) == (0.1, Augment(0, False), None)
    more = ["--p-uncond", "0.5", "--shift", "2", "--flip", "--noise-schedule", "cosine"]
    seen = training("train-diffusion", *NETWORK, *more)
    assert (seen["p_uncond"], seen["augment"]) == (0.5, Augment(2, True))
    assert seen["run"].resume.settings == json.loads(
        json.dumps(
            {
                **asdict(seen["recipe"]),
                "layout": asdict(unet_layout(norm_groups=8)),
                "noise_schedule": "cosine",
                "p_uncond": 0.5,
                "augment": {"shift": 2, "flip": True},
                "init": None,
                "data": seen["data"].digest(),
            }
        )
    )


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        (["--fixed-variance"], {"out_channels": 3}),
        (["--unconditional"], {"num_classes": None, "null_class": None}),
        (["--p-uncond", "0"], {"num_classes": 3, "null_class": None}),
        (["--p-uncond", "0.01"], {"num_classes": 4, "null_class": 3}),
        (["--unconditional", "--p-uncond", "0"], {"num_classes": None, "null_class": None}),
    ],
)
def test_the_layout_of_a_diffusion_model(training, more, expected):
    layout = training("train-diffusion", *NETWORK, *more)["layout"]
    assert layout == unet_layout(**expected, norm_groups=8)
    named = read_checkpoint("a.safetensors").description.labels
    assert named == (None if "--unconditional" in more else NAMES)


def test_a_diffusion_model_of_latents(training):
    data = LabelledImages(torch.zeros(4, 5, 8, 8), torch.arange(4) % 2, ("a", "b"), space="x")
    save_latents("l.safetensors", data)
    layout = training("train-diffusion", *NETWORK, "--data", "l.safetensors")["layout"]
    assert (layout.in_channels, layout.image_channels, layout.out_channels) == (5, 5, 10)
    about = read_checkpoint("a.safetensors").description
    assert (about.space, about.labels) == ("x", ("a", "b"))


def test_a_diffusion_model_says_how_it_was_trained(training, monkeypatch):
    clock = iter([10.0, 12.6])
    fake = SimpleNamespace(monotonic=lambda: next(clock))
    monkeypatch.setattr("guidance.cli.train_diffusion.time", fake)
    more = ["--steps", "5", "--batch-size", "4", "--seed", "3", "--p-uncond", "0.25"]
    said = training("train-diffusion", *more, "--noise-schedule", "cosine")["said"]
    assert "3 s" in said and "0.3750" in said
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


def test_the_weights_of_an_earlier_training_are_taken(training, files):
    init = str(files / "diffusion.safetensors")
    seen = training("train-diffusion", *NETWORK, "--norm-groups", "32", "--init", init)
    earlier = read_checkpoint(init).tensors
    assert seen["weights"].keys() == earlier.keys()
    assert all(torch.equal(seen["weights"][key], earlier[key]) for key in earlier)
    assert seen["run"].resume.settings["init"] == init
