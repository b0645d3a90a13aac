"""python -m guidance, with networks and data small enough to train in a test."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_networks import CLASSES, NAMES, SIZE, half_unet, unet

from guidance import load_adm, load_classifier
from guidance.__main__ import COMMANDS, main
from guidance.checkpoints.checkpoint import read_checkpoint
from guidance.training.data import LabelledImages, save_latents

NETWORK = ["--channels", "32", "--channel-mult", "1,2", "--attention-levels", "1"]
TRAINING = [*NETWORK, "--steps", "3", "--batch-size", "4", "--ema", "0.5", "--device", "cpu"]
SAMPLING = ["--respacing", "ddim2", "--device", "cpu"]


def sample(*more):
    return ["sample", "--model", "@diffusion.safetensors", *SAMPLING, *more]


def names_here():
    return sorted(path.name for path in Path.cwd().iterdir())


@pytest.mark.parametrize("data", ["data.npz", "pictures"])
def test_train_classifier_writes_a_classifier_that_says_what_it_is(guidance, data):
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


def test_train_diffusion_writes_a_model_with_a_null_class(guidance):
    guidance("train-diffusion", "--data", "@data.npz", "--output", "d.safetensors", *TRAINING)
    model = load_adm("d.safetensors")
    assert (model.num_classes, model.layout.null_class, model.labels) == (3, 3, NAMES)
    assert model.layout.learned_variance
    guidance("sample", "--model", "d.safetensors", *SAMPLING, "--cfg", "3", "--output", "a.npz")


@pytest.mark.parametrize(
    ("options", "shape"), [([], (3, 4)), (["--unconditional"], (4, 4))], ids=["classes", "none"]
)
def test_train_diffusion_draws_while_it_trains(guidance, options, shape):
    """A column for each class; in steps 2 and, because it is the last one, 3."""
    arguments = ["--data", "@data.npz", *TRAINING, *options]
    guidance("train-diffusion", *arguments, "--output", "d.safetensors", "--sample-every", "2")
    assert names_here() == ["d.safetensors", "d_step_0000002.png", "d_step_0000003.png"]
    with Image.open("d_step_0000003.png") as picture:
        columns, rows = shape
        assert picture.size == (2 * (columns * (SIZE + 2) + 2), 2 * (rows * (SIZE + 2) + 2))
    guidance("train-diffusion", *arguments, "--output", "e.safetensors")
    one, two = (read_checkpoint(f"{name}.safetensors").tensors for name in "de")
    assert all(torch.equal(one[key], two[key]) for key in one)  # looking changes nothing


def test_train_classifier_on_latents(guidance):
    chance = torch.Generator().manual_seed(0)
    labels = torch.arange(12) % 2
    latents = torch.randn(12, 4, 8, 8, generator=chance) + labels[:, None, None, None]
    save_latents("data.safetensors", LabelledImages(latents, labels, ("a", "b"), space="SDXL"))
    output = ["--output", "c.safetensors", "--pool", "adaptive"]
    guidance("train-classifier", "--data", "data.safetensors", *output, *TRAINING)
    about = read_checkpoint("c.safetensors").description
    assert (about.space, about.labels, about.layout.in_channels) == ("SDXL", ("a", "b"), 4)
    said = guidance("info", "c.safetensors")
    assert "SDXL" in said


@pytest.mark.parametrize(
    ("options", "classes", "null"),
    [(["--unconditional", "--fixed-variance"], None, None), (["--p-uncond", "0"], 3, None)],
)
def test_train_diffusion_without_dropout_or_classes(guidance, options, classes, null):
    arguments = ["--data", "@data.npz", "--output", "d.safetensors", *TRAINING, *options]
    guidance("train-diffusion", *arguments)
    layout = load_adm("d.safetensors").layout
    assert (layout.num_classes, layout.null_class) == (classes, null)
    assert layout.learned_variance == ("--fixed-variance" not in options)


def test_train_diffusion_goes_on_where_an_earlier_training_ended(guidance):
    first = ["--data", "@data.npz", "--output", "first.safetensors"]
    guidance("train-diffusion", *first, *TRAINING)
    more = ["--data", "@data.npz", "--output", "second.safetensors", "--init", "first.safetensors"]
    guidance("train-diffusion", *more, *TRAINING, "--lr", "1e-9", "--seed", "1")
    earlier, later = (read_checkpoint(f"{name}.safetensors") for name in ("first", "second"))
    for name, tensor in earlier.tensors.items():
        assert torch.allclose(tensor, later.tensors[name], atol=1e-6)
    assert later.description.training["before"] == earlier.description.training
    said = guidance("train-diffusion", *more, *TRAINING, "--norm-groups", "16", status=1)
    assert "norm_groups 8" in said and "16" in said


@pytest.mark.parametrize("command", ["train-classifier", "train-diffusion"])
def test_a_training_repeats_with_its_seed(guidance, command):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        output = ["--output", f"{name}.safetensors", "--seed", seed]
        guidance(command, "--data", "@data.npz", *TRAINING, *output)
    a, b, c = (read_checkpoint(f"{name}.safetensors").tensors for name in "abc")
    assert all(torch.equal(a[key], b[key]) for key in a)
    assert any(not torch.equal(a[key], c[key]) for key in a)


def test_info_tells_everything(guidance):
    said = guidance("info", "@classifier.safetensors")
    millions = sum(p.numel() for p in half_unet().parameters()) / 1e6
    assert f"classifier, {millions:.2f} M parameters, float32" in said
    for line in (
        "noise schedule: linear (from metadata)",
        "space: rgb",
        "labels: cat, catfish, zebra",
        "image_size: 8",
        "pool: attention",
        "channel_mult: (1, 2)",
    ):
        assert line in said
    assert "diffusion" in guidance("info", "@uncond.safetensors")


WIDE = {"model_channels": 64, "num_head_channels": 64, "image_size": 64, "null_class": None}


def test_a_converted_state_dict_samples_as_before(guidance):
    torch.save(unet(**WIDE, num_classes=CLASSES).state_dict(), "original.pt")
    assert "diffusion" in guidance("convert", "original.pt", "converted.safetensors")
    assert "(from metadata)" in guidance("info", "converted.safetensors")
    options = [*SAMPLING, "--image-size", "8", "--num-samples", "2", "--label", "1"]
    for source, output in (("original.pt", "a.npz"), ("converted.safetensors", "b.npz")):
        guidance("sample", "--model", source, *options, "--output", output)
    a, b = np.load("a.npz"), np.load("b.npz")
    assert (a["arr_0"] == b["arr_0"]).all()
    assert a["arr_0"].std() > 0


def test_convert_can_change_dtype_and_noise_schedule(guidance):
    options = ["--dtype", "bf16", "--noise-schedule", "cosine"]
    guidance("convert", "@classifier.safetensors", "half.safetensors", *options)
    checkpoint = read_checkpoint("half.safetensors")
    assert {t.dtype for t in checkpoint.tensors.values()} == {torch.bfloat16}
    assert checkpoint.description.noise_schedule == "cosine"
    assert checkpoint.description.labels == NAMES


def test_sample_writes_arrays_for_the_evaluator(guidance):
    said = guidance(*sample("--output", "new/a.npz", "--num-samples", "5", "--label", "all"))
    assert "5 images of 8x8" in said
    with np.load("new/a.npz") as file:
        assert sorted(file) == ["arr_0", "arr_1"]
        images, labels = file["arr_0"], file["arr_1"]
    assert (images.shape, images.dtype) == ((5, SIZE, SIZE, 3), np.uint8)
    assert (labels.tolist(), labels.dtype) == ([0, 1, 2, 0, 1], np.int64)


def test_sample_writes_a_grid_of_the_same_images(guidance):
    options = ["--num-samples", "6", "--seed", "3"]
    guidance(*sample("--output", "a.npz", *options))
    guidance(*sample("--output", "a.png", *options, "--columns", "3"))
    picture = np.asarray(Image.open("a.png"))
    gap, step = 2 * 2, 2 * (SIZE + 2)
    assert picture.shape == (2 * step + gap, 3 * step + gap, 3)
    for index, image in enumerate(np.load("a.npz")["arr_0"]):
        top, left = gap + index // 3 * step, gap + index % 3 * step
        shown = picture[top : top + 2 * SIZE : 2, left : left + 2 * SIZE : 2]
        assert (shown == image).all()


@pytest.mark.parametrize("method", ["ddim", "ddpm"])
def test_sampling_repeats_with_its_seed(guidance, method):
    for name, seed in (("a", "1"), ("b", "1"), ("c", "2")):
        options = ["--output", f"{name}.npz", "--seed", seed, "--method", method]
        guidance(*sample("--num-samples", "3", *options))
    a, b, c = (np.load(f"{name}.npz")["arr_0"] for name in "abc")
    assert (a == b).all()
    assert (a != c).any()


@pytest.mark.parametrize(
    ("label", "expected"),
    [
        ("zebra", [2, 2, 2, 2]),
        ("ZEB, cat", [2, 0, 2, 0]),
        ("1,2,0", [1, 2, 0, 1]),
        ("all", [0, 1, 2, 0]),
    ],
)
def test_labels_are_taken_in_turn(guidance, label, expected):
    guidance(*sample("--output", "a.npz", "--num-samples", "4", "--label", label))
    assert np.load("a.npz")["arr_1"].tolist() == expected


def test_random_labels_repeat_with_the_seed(guidance):
    options = ["--num-samples", "30", "--label", "random", "--respacing", "1"]
    guidance(*sample(*options, "--output", "a.npz"))
    guidance(*sample(*options, "--output", "b.npz", "--batch-size", "30"))
    a, b = np.load("a.npz")["arr_1"], np.load("b.npz")["arr_1"]
    assert set(a.tolist()) == {0, 1, 2}
    assert (a == b).all()


def test_guidance_reaches_the_images(guidance):
    base = ["--num-samples", "4", "--label", "zebra", "--cfg", "0"]
    classifier = ["--classifier", "@classifier.safetensors"]
    variants = {
        "plain": base,
        "zero": [*base, *classifier, "--scale", "0"],
        "guided": [*base, *classifier, "--scale", "40"],
        "cfg": [*base, "--cfg", "4"],
    }
    images = {}
    for name, options in variants.items():
        guidance(*sample(*options, "--output", f"{name}.npz"))
        images[name] = np.load(f"{name}.npz")["arr_0"]
    assert (images["zero"] == images["plain"]).all()
    assert (images["guided"] != images["plain"]).any()
    assert (images["cfg"] != images["plain"]).any()


def test_an_unconditional_model_follows_a_classifier(guidance):
    guidance(
        "sample", "--model", "@uncond.safetensors", "--classifier", "@classifier.safetensors",
        *SAMPLING, "--label", "zebra", "--scale", "10", "--output", "a.npz", "--num-samples", "2",
    )  # fmt: skip
    assert np.load("a.npz")["arr_1"].tolist() == [2, 2]


CLASSIFIER = ["--classifier", "@classifier.safetensors"]
OUT = ["--output", "a.npz"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["info", "missing.safetensors"], "missing.safetensors does not exist"),
        (["info", "@data.npz"], "data.npz is not one of .safetensors"),
        (["convert", "@classifier.safetensors", "a.pt"], "a.pt; its name must end in .safetensors"),
        (sample("--output", "a.jpg"), "a.jpg; its name must end in .png"),
        (sample(*OUT, "--label", "zibra"), "did you mean 'zebra'?"),
        (sample(*OUT, "--label", "ca"), "'cat' (0), 'catfish' (1)"),
        (sample(*OUT, "--label", "3"), "label is 3, but the classes go from 0 to 2"),
        (sample(*OUT, "--label", "1,,2"), "expected a class index or name"),
        (sample(*OUT, "--respacing", "abc"), "respacing is 'abc'"),
        (sample(*OUT, "--respacing", "2000"), "2000 steps do not fit"),
        (sample(*OUT, "--num-samples", "0"), "num_samples is 0"),
        (sample(*OUT, "--eta", "2"), "eta is 2.0"),
        (sample(*OUT, "--device", "abacus"), "device is 'abacus'"),
        (sample(*OUT, "--threads", "-1"), "threads is -1"),
        (sample(*OUT, "--seed", str(2**70)), "seed is 1180591620717411303424"),
        (sample(*OUT, "--image-size", "7"), "multiples of 2; they are 7x7"),
        (sample(*OUT, "--classifier", "@diffusion.safetensors"), "is an ADM diffusion model, not"),
        (["sample", "--model", "@classifier.safetensors", *OUT], "is a noisy classifier, not"),
        (
            ["sample", "--model", "@uncond.safetensors", *SAMPLING, *OUT, "--label", "1"],
            "Neither the model nor a classifier has classes",
        ),
        (
            ["sample", "--model", "@uncond.safetensors", *SAMPLING, *OUT, *CLASSIFIER]
            + ["--image-size", "16"],
            "takes 8x8 inputs",
        ),
        (["evaluate", "--judge", "@judge.safetensors"], "needs --model to draw from, or --samples"),
        (
            ["evaluate", "--judge", "@judge.safetensors", "--model", "@uncond.safetensors"],
            "no scale to go through",
        ),
        (
            ["evaluate", "--judge", "@judge.safetensors", "--samples", "missing.npz"],
            "missing.npz",
        ),
        (
            ["evaluate", "--judge", "@judge.safetensors", "--samples", "@judge.safetensors"],
            "is not a whole .npz file",
        ),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_an_error_is_one_line_and_leaves_nothing(guidance, arguments, said):
    is_one_line(guidance(*arguments, status=1), said)
    assert names_here() == []


@pytest.mark.parametrize("command", ["train-classifier", "train-diffusion"])
@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--data", "missing.npz"], "missing.npz is neither a folder"),
        (["--data", "@pictures"], "--image-size"),
        (["--data", "@data.npz", "--image-size", "16"], "has 8x8 images, not 16"),
        (["--data", "@data.npz", "--steps", "0"], "steps is 0"),
        (
            ["--data", "@data.npz", "--accumulate", "3"],
            "batch_size is 4; it must be a multiple of 3",
        ),
        (["--data", "@data.npz", "--attention-levels", "2"], "attention_levels holds 2"),
        (["--data", "@data.npz", "--channel-mult", "1,1.2"], "multiple of 8"),
        (["--data", "@data.npz", "--head-channels", "24"], "num_head_channels 24"),
        (["--data", "@data.npz", "--ema", "1"], "ema is 1.0"),
        (["--data", "@data.npz", "--output", "c.pt"], "c.pt; its name must end in .safetensors"),
        (["--data", "@data.npz", "--channel-mult", "1,1,1,1,1"], "multiples of 16; they are 8x8"),
    ],
    ids=lambda value: " ".join(value[1:]) if isinstance(value, list) else "",
)
def test_a_training_that_cannot_be_is_refused_before_it_starts(guidance, command, options, said):
    defaults = [*TRAINING, "--output", "c.safetensors"]
    error = guidance(command, *defaults, *options, status=1)
    is_one_line(error, said)
    assert len(error.strip().splitlines()) == 1
    assert names_here() == []


def is_one_line(text, said):
    lines = text.strip().splitlines()
    assert lines[-1].startswith("error: ")
    assert said in lines[-1]
    assert "Traceback" not in text
    assert all("|" in line for line in lines[:-1]), "at most a progress bar before it"


@pytest.mark.parametrize("output", ["file/a{}", "file/new/a{}", "folder{}"])
@pytest.mark.parametrize("command", ["sample", "train-classifier", "train-diffusion", "evaluate"])
def test_an_output_that_cannot_be_written_is_refused_before_the_work(guidance, command, output):
    suffix = {"sample": ".npz", "evaluate": ".json"}.get(command, ".safetensors")
    Path("file").touch()
    Path(f"folder{suffix}").mkdir()
    arguments = {
        "sample": sample(),
        "evaluate": ["evaluate", "--samples", "@data.npz", "--judge", "@judge.safetensors"],
    }.get(command, [command, "--data", "@data.npz", *TRAINING])
    error = guidance(*arguments, "--output", output.format(suffix), status=1)
    is_one_line(error, f"output is {output.format(suffix)}")
    assert len(error.strip().splitlines()) == 1
    assert names_here() == ["file", f"folder{suffix}"]


def stop(*_, **__):
    raise KeyboardInterrupt


def half_file_then_stop(_, target, *__, **___):
    """Stands in for a writer that is interrupted in the middle of its file."""
    Path(target).write_bytes(b"half")
    raise KeyboardInterrupt


def half_arrays_then_stop(file, **_):
    file.write(b"half")
    raise KeyboardInterrupt


TRAIN = ["--data", "@data.npz", "--output", "out.safetensors", *TRAINING]
EVALUATE = ["evaluate", "--model", "@diffusion.safetensors", "--judge", "@judge.safetensors"]
EVALUATE += ["--cfg-scales", "1", "--num-samples", "1", "--output", "out.json", *SAMPLING]
CONVERT = ["convert", "@classifier.safetensors", "out.safetensors"]
ARRAYS = sample("--output", "out.npz", "--num-samples", "1")
GRID = sample("--output", "out.png", "--num-samples", "1")
STEP, SAVE_FILE = "guidance.training.loop._average", "guidance.core.atomic_write.save_file"
INTERRUPTIONS = {
    "in a classifier's training": (STEP, stop, ["train-classifier", *TRAIN]),
    "in a diffusion model's training": (STEP, stop, ["train-diffusion", *TRAIN]),
    "in saving a classifier": (SAVE_FILE, half_file_then_stop, ["train-classifier", *TRAIN]),
    "in saving a diffusion model": (SAVE_FILE, half_file_then_stop, ["train-diffusion", *TRAIN]),
    "in converting": (SAVE_FILE, half_file_then_stop, CONVERT),
    "in sampling": ("guidance.sampling.loop.ddim_step", stop, ARRAYS),
    "in saving arrays": ("guidance.core.images.np.savez_compressed", half_arrays_then_stop, ARRAYS),
    "in saving a grid": ("PIL.Image.Image.save", half_file_then_stop, GRID),
    "in evaluating": ("guidance.sampling.loop.ddim_step", stop, EVALUATE),
    "in saving rows": ("guidance.core.atomic_write.os.replace", stop, EVALUATE),
}


@pytest.mark.parametrize("moment", INTERRUPTIONS)
@pytest.mark.parametrize("before", [None, b"what was there"], ids=["new", "existing"])
def test_an_interruption_leaves_no_half_file(guidance, monkeypatch, moment, before):
    where, act, arguments = INTERRUPTIONS[moment]
    output = next(Path(a) for a in arguments if a.startswith("out."))
    if before is not None:
        output.write_bytes(before)

    monkeypatch.setattr(where, act)
    said = guidance(*arguments, status=130)
    assert said.strip().splitlines()[-1] == "interrupted; nothing was written."
    assert "Traceback" not in said
    assert names_here() == ([] if before is None else [output.name])
    assert before is None or output.read_bytes() == before


def test_a_finished_run_replaces_the_old_file(guidance):
    Path("out.npz").write_bytes(b"what was there")
    guidance(*sample("--output", "out.npz", "--num-samples", "1"))
    assert len(np.load("out.npz")["arr_0"]) == 1
    assert names_here() == ["out.npz"]


@pytest.mark.parametrize("arguments", [[], ["no-such-command"], ["sample"], ["sample", "--scale"]])
def test_a_wrong_command_line_shows_the_usage(capsys, arguments):
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: python -m guidance" in capsys.readouterr().err


@pytest.mark.parametrize("command", COMMANDS)
def test_every_command_explains_its_options(capsys, command):
    with pytest.raises(SystemExit) as caught:
        main([command, "--help"])
    assert caught.value.code == 0
    assert f"usage: python -m guidance {command}" in capsys.readouterr().out


def started(root, *arguments, **more):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(root)}
    command = [sys.executable, "-m", "guidance", *arguments]
    return subprocess.Popen(command, env=environment, stderr=subprocess.PIPE, text=True, **more)


@pytest.mark.processes
def test_the_module_runs_by_itself(root, tmp_path):
    process = started(root, "--help", cwd=tmp_path, stdout=subprocess.PIPE)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 0, err
    assert all(command in out for command in COMMANDS)


@pytest.mark.processes
@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_ends_a_training_without_a_trace(root, files, tmp_path):
    """A process started by a background shell ignores SIGINT, so it is told not to."""
    output = tmp_path / "c.safetensors"
    output.write_bytes(b"what was there")
    process = started(
        root,
        *["train-classifier", "--data", str(files / "data.npz"), "--output", str(output)],
        *[*TRAINING, "--steps", "1000000"],
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        stdout=subprocess.DEVNULL,
    )
    try:
        said = ""
        while "loss=" not in said and (character := process.stderr.read(1)):
            said += character
        process.send_signal(signal.SIGINT)
        said += process.communicate(timeout=300)[1]
    finally:
        process.kill()
    assert process.returncode == 130, said
    assert "Traceback" not in said
    last = said.strip().splitlines()[-1]
    assert last.startswith("interrupted; the same command goes on from where it was")
    assert (tmp_path / "c.safetensors.resume").stat().st_size > 1000
    assert output.read_bytes() == b"what was there"
    assert len(list(tmp_path.iterdir())) == 2


def test_schedules_of_sample(guidance):
    """--schedule is the classifier's, or CFG's where there is none."""

    def drawn(*more):
        guidance(*sample("--num-samples", "2", "--seed", "3", *more, "--output", "x.npz"))
        with np.load("x.npz") as saved:
            return saved["arr_0"]

    steered = ["--classifier", "@classifier.safetensors", "--label", "1"]
    four = '{"points": [[0, 4]]}'
    plain = drawn(*steered, "--scale", "4")
    assert np.array_equal(drawn(*steered, "--scale", "0", "--schedule", four), plain)
    cfg = drawn("--label", "1", "--cfg", "4")
    assert not np.array_equal(cfg, plain)
    assert np.array_equal(drawn("--label", "1", "--schedule", four), cfg)
    assert np.array_equal(drawn("--label", "1", "--cfg-schedule", four), cfg)


@pytest.mark.parametrize(
    "more, parts",
    [
        (["--schedule", "{"], ["not readable JSON"]),
        (["--cfg-schedule", '{"points": [[2, 1]]}'], ["percent 2", "from 0 to 1"]),
        (["--schedule", "4", "--cfg-schedule", "4"], ["no --classifier", "leave one out"]),
    ],
)
def test_bad_schedules_of_sample(guidance, more, parts):
    said = guidance(*sample("--label", "1", *more, "--output", "x.npz"), status=1)
    assert all(part in said for part in parts)
    assert names_here() == []
