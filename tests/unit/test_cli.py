"""python -m guidance: how commands are read and how they end; info and convert."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from tiny_networks import CLASSES, NAMES, half_unet, unet

from guidance import GuidanceSchedule
from guidance.__main__ import main
from guidance.checkpoints.checkpoint import Description, read_checkpoint, save_checkpoint
from guidance.cli import options
from guidance.training.loop import OptimizerConfig

NETWORK = ["--channels", "32", "--channel-mult", "1,2", "--attention-levels", "1"]
TRAINING = [*NETWORK, "--steps", "3", "--batch-size", "4", "--ema", "0.5", "--device", "cpu"]
SAMPLING = ["--respacing", "ddim2", "--device", "cpu"]
CLASSIFIER = ["--classifier", "@classifier.safetensors"]
OUT = ["--output", "a.npz"]


def sample(*more):
    return ["sample", "--model", "@diffusion.safetensors", *SAMPLING, *more]


def raising(error):
    def call(*_, **__):
        raise error

    return call


def names_here():
    return sorted(path.name for path in Path.cwd().iterdir())


def is_one_line(text, said):
    """An error in one line, at most with a progress bar before it."""
    *before, last = text.strip().splitlines()
    assert last.startswith("error: ") and said in last
    assert all("|" in line for line in before)


def test_a_wrong_command_line_shows_the_usage(capsys):
    for arguments, said in (
        ([], "command"),
        (["evaluate", "--scales", "1,x"], "--scales"),
        (["train-classifier", "--attention-levels", "1.5"], "--attention-levels"),
    ):
        with pytest.raises(SystemExit, match="2"):
            main(arguments)
        text = capsys.readouterr().err
        assert "usage: python -m guidance" in text and said in text.splitlines()[-1]


def test_how_a_command_ends(monkeypatch, capsys):
    for error, status, said in (
        (None, 0, ""),
        (ValueError("it is 3."), 1, "error: it is 3.\n"),
        (OSError("it is 3."), 1, "error: it is 3.\n"),
        (KeyboardInterrupt(), 130, "\ninterrupted; nothing was written.\n"),
        (KeyboardInterrupt("kept: 2 rows."), 130, "\nkept: 2 rows.\n"),
    ):
        monkeypatch.setattr("guidance.cli.info.run", raising(error) if error else print)
        assert main(["info", "f"]) == status
        assert capsys.readouterr().err == said
    monkeypatch.setattr("guidance.cli.info.run", raising(KeyError("a bug")))
    with pytest.raises(KeyError):
        main(["info", "f"])


def test_lists_of_numbers_and_schedules_as_json_or_a_file(tmp_path):
    assert options.numbers("") == options.integers("") == ()
    assert options.numbers(" 1, ,-2.5,") == (1.0, -2.5) and options.integers("1, ,2,") == (1, 2)
    file = tmp_path / "a.json"
    for text in (" 2.5", '  {"points": [[0, 4]]}', "[[0, 4], [1, 1]]"):
        schedule = GuidanceSchedule.from_json(text)
        file.write_text(text)
        assert options.read_schedule(text) == (None, schedule)
        assert options.read_schedule(str(file)) == (file, schedule)
    file.write_text('{"points": [[2, 1]]}')
    with pytest.raises(ValueError, match="a.json: A point is at percent 2"):
        options.read_schedule(str(file))
    with pytest.raises(ValueError, match="'x{100}'"):  # and no more of it
        options.read_schedule("x" * 150)


def test_the_fastest_device_is_taken_where_none_is_named(monkeypatch):
    for cuda, mps, rank, found in (
        (True, True, {}, "cuda:0"),
        (True, False, {"LOCAL_RANK": "2"}, "cuda:2"),
        (False, True, {"LOCAL_RANK": "2"}, "mps"),
        (False, False, {}, "cpu"),
    ):
        monkeypatch.setattr(torch.cuda, "is_available", lambda cuda=cuda: cuda)
        monkeypatch.setattr(torch.backends.mps, "is_available", lambda mps=mps: mps)
        monkeypatch.setattr(os, "environ", rank)
        assert options.device() == options.device("") == torch.device(found)
        assert options.device("cpu") == torch.device("cpu")


def test_devices_and_threads_that_cannot_be_used(monkeypatch):
    given = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    for threads in (None, 1):
        options.set_threads(SimpleNamespace(threads=threads))
    with pytest.raises(ValueError, match="threads is 0"):
        options.set_threads(SimpleNamespace(threads=0))
    assert given == [1]
    for error in (RuntimeError, AssertionError, NotImplementedError):
        monkeypatch.setattr(torch, "empty", raising(error("no" * 150 + "\nand more")))
        with pytest.raises(ValueError, match="device is 'abacus'") as caught:
            options.device("abacus")
        assert len(str(caught.value)) < 300 and "\n" not in str(caught.value)


def test_the_optimizer_is_what_the_options_say(monkeypatch):
    more = ["--steps", "7", "--batch-size", "4", "--lr", "0.5", "--weight-decay", "0.25"]
    more += ["--ema", "0.125", "--seed", "3", "--accumulate", "2", "--bf16"]
    seen = []
    monkeypatch.setattr("guidance.cli.train_diffusion.run", seen.append)
    main(["train-diffusion", "--data", "d", "--output", "o", *more])
    expected = {"steps": 7, "batch_size": 4, "learning_rate": 0.5, "weight_decay": 0.25}
    expected |= {"ema": 0.125, "seed": 3, "bf16": True, "accumulate": 2}
    assert options.recipe(seen[0]) == OptimizerConfig(**expected)


@pytest.mark.parametrize("command", ["info", "convert"])
def test_what_a_file_cannot_tell_goes_to_its_reader(monkeypatch, command):
    seen = []
    monkeypatch.setattr(f"guidance.cli.{command}.run", seen.append)
    told = ["--noise-schedule", "cosine", "--num-heads", "4", "--attention-order", "new"]
    main([command, *["f", "g"][: 1 + (command == "convert")], *told])
    expected = {"noise_schedule": "cosine", "num_heads": 4, "num_head_channels": 0}
    assert options.architecture_overrides(seen[0]) == expected | {"attention_order": "new"}


def test_info_tells_what_is_in_a_file(guidance):
    layout = half_unet().layout
    first, *lines = guidance("info", "@classifier.safetensors").splitlines()
    assert "classifier" in first and "float32" in first
    assert {"  space: rgb", "  labels: cat, catfish, zebra"} <= set(lines)
    assert {f"  {name}: {value}" for name, value in asdict(layout).items()} <= set(lines)


WIDE = {"model_channels": 64, "num_head_channels": 64, "image_size": 64, "null_class": None}


def test_a_converted_state_dict_samples_as_before(guidance):
    torch.save(unet(**WIDE, num_classes=CLASSES).state_dict(), "original.pt")
    assert "diffusion" in guidance("convert", "original.pt", "converted.safetensors")
    assert "(from metadata)" in guidance("info", "converted.safetensors")
    more = [*SAMPLING, "--image-size", "8", "--num-samples", "2", "--label", "1"]
    for source, output in (("original.pt", "a.npz"), ("converted.safetensors", "b.npz")):
        guidance("sample", "--model", source, *more, "--output", output)
    a, b = np.load("a.npz"), np.load("b.npz")
    assert (a["arr_0"] == b["arr_0"]).all()
    assert a["arr_0"].std() > 0


def test_convert_can_change_dtype_and_noise_schedule(guidance):
    more = ["--dtype", "bf16", "--noise-schedule", "cosine"]
    guidance("convert", "@classifier.safetensors", "half.safetensors", *more)
    checkpoint = read_checkpoint("half.safetensors")
    assert {t.dtype for t in checkpoint.tensors.values()} == {torch.bfloat16}
    about = checkpoint.description
    assert (about.noise_schedule, about.labels) == ("cosine", NAMES)


def test_convert_refuses_what_fits_no_network(guidance):
    tensors = unet().state_dict()
    tensors.pop(next(iter(tensors)))
    save_checkpoint(
        "less.safetensors",
        tensors,
        Description(kind="diffusion", layout=unet().layout, noise_schedule="linear"),
    )
    guidance("convert", "less.safetensors", "a.safetensors", status=1)
    assert names_here() == ["less.safetensors"]


UNCOND = ["sample", "--model", "@uncond.safetensors", *SAMPLING, *OUT]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["info", "missing.safetensors"], "missing.safetensors does not exist"),
        (["convert", "@classifier.safetensors", "a.pt"], "a.pt; its name must end in .safetensors"),
        (sample("--output", "a.jpg"), "a.jpg; its name must end in .png"),
        (sample(*OUT, "--label", "zibra"), "did you mean 'zebra'?"),
        (sample(*OUT, "--device", "abacus"), "device is 'abacus'"),
        (sample(*OUT, "--classifier", "@diffusion.safetensors"), "is an ADM diffusion model, not"),
        (sample(*OUT, "--schedule", "{"), "not readable JSON"),
        (sample(*OUT, "--schedule", "4", "--cfg-schedule", "4"), "no --classifier"),
        ([*UNCOND, "--label", "1"], "Neither the model nor a classifier has classes"),
        ([*UNCOND, *CLASSIFIER, "--image-size", "16"], "takes 8x8 inputs"),
    ],
    ids=lambda value: " ".join(value)[:60] if isinstance(value, list) else "",
)
def test_an_error_is_one_line_and_leaves_nothing(guidance, arguments, said):
    is_one_line(guidance(*arguments, status=1), said)
    assert names_here() == []


@pytest.mark.parametrize("command", ["sample", "train-classifier", "train-diffusion", "evaluate"])
def test_an_output_that_cannot_be_written_is_refused_before_the_work(guidance, command):
    suffix = {"sample": ".npz", "evaluate": ".json"}.get(command, ".safetensors")
    Path("file").touch()
    Path(f"folder{suffix}").mkdir()
    arguments = {
        "sample": sample(),
        "evaluate": ["evaluate", "--samples", "@data.npz", "--judge", "@judge.safetensors"],
    }.get(command, [command, "--data", "@data.npz", *TRAINING])
    for output in (f"file/a{suffix}", f"file/new/a{suffix}", f"folder{suffix}"):
        error = guidance(*arguments, "--output", output, status=1)
        is_one_line(error, f"output is {output}")
        assert len(error.strip().splitlines()) == 1
    assert names_here() == ["file", f"folder{suffix}"]


stop = raising(KeyboardInterrupt())


def half_file_then_stop(_, target, *__, **___):
    """Stands in for a writer that is interrupted in the middle of its file."""
    Path(target).write_bytes(b"half")
    raise KeyboardInterrupt


def half_arrays_then_stop(file, **_):
    file.write(b"half")
    raise KeyboardInterrupt


TRAIN = ["--data", "@data.npz", "--output", "out.safetensors", *TRAINING]
CONVERT = ["convert", "@classifier.safetensors", "out.safetensors"]
ARRAYS = sample("--output", "out.npz", "--num-samples", "1")
GRID = sample("--output", "out.png", "--num-samples", "1")
STEP, SAVE_FILE = "guidance.training.loop._average", "guidance.core.atomic_write.save_file"
INTERRUPTIONS = {
    "in a classifier's training": (STEP, stop, ["train-classifier", *TRAIN]),
    "in a diffusion model's training": (STEP, stop, ["train-diffusion", *TRAIN]),
    "in saving a classifier": (SAVE_FILE, half_file_then_stop, ["train-classifier", *TRAIN]),
    "in converting": (SAVE_FILE, half_file_then_stop, CONVERT),
    "in sampling": ("guidance.sampling.loop.ddim_step", stop, ARRAYS),
    "in saving arrays": ("guidance.core.images.np.savez_compressed", half_arrays_then_stop, ARRAYS),
    "in saving a grid": ("PIL.Image.Image.save", half_file_then_stop, GRID),
}


@pytest.mark.parametrize("moment", INTERRUPTIONS)
def test_an_interruption_leaves_no_half_file(guidance, monkeypatch, moment):
    where, act, arguments = INTERRUPTIONS[moment]
    output = next(Path(a) for a in arguments if a.startswith("out."))
    monkeypatch.setattr(where, act)
    for before in ([], [b"what was there"]):
        for content in before:
            output.write_bytes(content)
        said = guidance(*arguments, status=130)
        assert "nothing was written" in said.strip().splitlines()[-1] and "Traceback" not in said
        assert [Path(name).read_bytes() for name in names_here()] == before


@pytest.mark.processes
@pytest.mark.skipif(os.name != "posix", reason="sends SIGINT")
def test_ctrl_c_ends_a_training_without_a_trace(root, files, tmp_path):
    """A process started by a background shell ignores SIGINT, so it is told not to."""
    output = tmp_path / "c.safetensors"
    output.write_bytes(b"what was there")
    command = [sys.executable, "-m", "guidance", "train-classifier", *TRAINING]
    command += ["--data", str(files / "data.npz"), "--output", str(output), "--steps", "1000000"]
    process = subprocess.Popen(
        command,
        **{"cwd": root, "env": os.environ | {"OMP_NUM_THREADS": "1"}, "text": True},
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
        **{"stdout": subprocess.DEVNULL, "stderr": subprocess.PIPE},
    )
    try:
        said = ""
        while "loss=" not in said and (character := process.stderr.read(1)):
            said += character
        process.send_signal(signal.SIGINT)
        said += process.communicate(timeout=300)[1]
    finally:
        process.kill()
    assert process.returncode == 130 and "Traceback" not in said, said
    assert "the same command goes on" in said.strip().splitlines()[-1]
    assert (tmp_path / "c.safetensors.resume").stat().st_size > 1000
    assert output.read_bytes() == b"what was there"
    assert len(list(tmp_path.iterdir())) == 2
