"""What the command line understands: every option, its default, and what is made of it."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from guidance import GuidanceSchedule
from guidance.__main__ import COMMANDS, main
from guidance.adm.layout import POOLS
from guidance.adm.presets import NETWORK_SIZES as PRESETS
from guidance.cli import options

SHARED = {"device": None, "threads": None}
SAMPLING = {
    "classifier": None,
    "gradient": None,
    "method": "ddim",
    "eta": 0.0,
    "respacing": "ddim50",
    "batch_size": 50,
    "seed": 0,
    "image_size": None,
    "no_clip": False,
    "entropy_limit": 1.0,
    "cap": 0.0,
    "every": 1,
    "label_smoothing": 0.0,
    "cfg_every": 1,
    "cfg_tolerance": 0.0,
    "dtype": "fp32",
    "noise_schedule": "auto",
    "classifier_schedule": "auto",
}
UNTOLD = {
    "noise_schedule": "auto",
    "num_heads": 0,
    "num_head_channels": 0,
    "attention_order": "auto",
}
TRAINING = {
    "data": "d",
    "output": "o",
    "image_size": None,
    "noise_schedule": "linear",
    "save_dtype": "fp32",
    "batch_size": 64,
    "lr": 3e-4,
    "ema": 0.999,
    "seed": 0,
    "shift": 0,
    "history": None,
    "flip": False,
    "accumulate": 1,
    "fresh": False,
    "bf16": False,
    "channels": 32,
    "res_blocks": 1,
    "attention_levels": (2,),
    "head_channels": 32,
    "norm_groups": 8,
    "dropout": 0.0,
}
TRAIN = ["--data", "d", "--output", "o"]
LEAST = {
    "sample": ["--model", "m", "--output", "o"],
    "info": ["f"],
    "convert": ["s", "t"],
    "train-classifier": TRAIN,
    "train-diffusion": TRAIN,
    "evaluate": ["--judge", "j"],
}
DEFAULTS = {
    "sample": {
        **SHARED,
        **SAMPLING,
        "model": "m",
        "output": "o",
        "low_res": None,
        "label": None,
        "scale": 1.0,
        "cfg": None,
        "schedule": None,
        "cfg_schedule": None,
        "num_samples": None,
        "columns": None,
    },
    "info": {**UNTOLD, "file": "f"},
    "convert": {**UNTOLD, "source": "s", "target": "t", "dtype": None},
    "train-classifier": {
        **SHARED,
        **TRAINING,
        "steps": 10_000,
        "weight_decay": 0.05,
        "channel_mult": (1.0, 2.0, 4.0),
        "preset": None,
        "pool": "attention",
        "clean": False,
        "held_out": 0.1,
        "patience": 0,
        "plot": None,
    },
    "train-diffusion": {
        **SHARED,
        **TRAINING,
        "steps": 20_000,
        "weight_decay": 0.0,
        "channel_mult": (1.0, 2.0, 3.0, 3.0),
        "unconditional": False,
        "p_uncond": 0.1,
        "init": None,
        "fixed_variance": False,
        "sample_every": 0,
        "sample_cfg": 2.0,
    },
    "evaluate": {
        **SHARED,
        **SAMPLING,
        "model": None,
        "judge": "j",
        "samples": [],
        "reference": None,
        "scales": (0.0, 1.0, 2.0, 4.0, 8.0),
        "cfg_scales": (0.0, 1.0, 2.0, 4.0, 8.0),
        "schedules": [],
        "cfg_schedules": [],
        "num_samples": 500,
        "output": None,
        "plot": None,
        "save_samples": None,
    },
}


@pytest.fixture
def parsed(monkeypatch):
    """The options of a command line, which is not run: a dictionary of them."""

    def parse(command, *more):
        seen = []
        module = f"guidance.cli.{command.replace('-', '_')}"
        __import__(module)
        monkeypatch.setattr(sys.modules[module], "run", seen.append)
        assert main([command, *LEAST[command], *more]) == 0
        values = vars(seen[0])
        assert values.pop("command") == command
        del values["run"]
        return values

    return parse


def refused(capsys, *arguments):
    """What argparse says about a command line that it does not take."""
    with pytest.raises(SystemExit) as caught:
        main(list(arguments))
    assert caught.value.code == 2
    return capsys.readouterr().err


def test_there_are_these_commands():
    assert tuple(LEAST) == COMMANDS


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_has_its_default_and_there_are_no_others(parsed, command):
    found = parsed(command)
    assert found == DEFAULTS[command]
    assert {name: type(value) for name, value in found.items()} == {
        name: type(value) for name, value in DEFAULTS[command].items()
    }


NETWORK = [
    ("--channels", "16", "channels", 16),
    ("--channel-mult", "1,1.5", "channel_mult", (1.0, 1.5)),
    ("--res-blocks", "3", "res_blocks", 3),
    ("--attention-levels", "", "attention_levels", ()),
    ("--attention-levels", "0,2", "attention_levels", (0, 2)),
    ("--head-channels", "8", "head_channels", 8),
    ("--norm-groups", "4", "norm_groups", 4),
    ("--dropout", "0.25", "dropout", 0.25),
    ("--steps", "7", "steps", 7),
    ("--batch-size", "3", "batch_size", 3),
    ("--lr", "0.5", "lr", 0.5),
    ("--weight-decay", "0.5", "weight_decay", 0.5),
    ("--ema", "0.5", "ema", 0.5),
    ("--seed", "5", "seed", 5),
    ("--shift", "2", "shift", 2),
    ("--history", "h", "history", "h"),
    ("--accumulate", "2", "accumulate", 2),
    ("--image-size", "16", "image_size", 16),
    ("--noise-schedule", "cosine", "noise_schedule", "cosine"),
    ("--save-dtype", "bf16", "save_dtype", "bf16"),
    ("--save-dtype", "fp16", "save_dtype", "fp16"),
    ("--device", "cuda", "device", "cuda"),
    ("--threads", "2", "threads", 2),
]
DRAWING = [
    ("--classifier", "c", "classifier", "c"),
    ("--gradient", "cheap", "gradient", "cheap"),
    ("--gradient", "exact", "gradient", "exact"),
    ("--method", "ddpm", "method", "ddpm"),
    ("--eta", "0.5", "eta", 0.5),
    ("--respacing", "10,15", "respacing", "10,15"),
    ("--batch-size", "3", "batch_size", 3),
    ("--seed", "5", "seed", 5),
    ("--image-size", "16", "image_size", 16),
    ("--entropy-limit", "2", "entropy_limit", 2.0),
    ("--cap", "0.5", "cap", 0.5),
    ("--every", "2", "every", 2),
    ("--label-smoothing", "0.5", "label_smoothing", 0.5),
    ("--cfg-every", "2", "cfg_every", 2),
    ("--cfg-tolerance", "0.5", "cfg_tolerance", 0.5),
    ("--dtype", "bf16", "dtype", "bf16"),
    ("--dtype", "fp16", "dtype", "fp16"),
    ("--noise-schedule", "linear", "noise_schedule", "linear"),
    ("--noise-schedule", "cosine", "noise_schedule", "cosine"),
    ("--classifier-schedule", "linear", "classifier_schedule", "linear"),
    ("--classifier-schedule", "cosine", "classifier_schedule", "cosine"),
    ("--num-samples", "4", "num_samples", 4),
    ("--threads", "2", "threads", 2),
]
FILE = [
    ("--noise-schedule", "linear", "noise_schedule", "linear"),
    ("--noise-schedule", "cosine", "noise_schedule", "cosine"),
    ("--num-heads", "4", "num_heads", 4),
    ("--num-head-channels", "64", "num_head_channels", 64),
    ("--attention-order", "old", "attention_order", "old"),
    ("--attention-order", "new", "attention_order", "new"),
]
TAKEN = [
    *(("sample", *case) for case in DRAWING),
    ("sample", "--low-res", "l", "low_res", "l"),
    ("sample", "--label", "1", "label", "1"),
    ("sample", "--scale", "2", "scale", 2.0),
    ("sample", "--cfg", "0", "cfg", 0.0),
    ("sample", "--schedule", "4", "schedule", "4"),
    ("sample", "--cfg-schedule", "4", "cfg_schedule", "4"),
    ("sample", "--columns", "3", "columns", 3),
    *(("evaluate", *case) for case in DRAWING),
    ("evaluate", "--model", "m", "model", "m"),
    ("evaluate", "--reference", "r", "reference", "r"),
    ("evaluate", "--scales", "0,2.5", "scales", (0.0, 2.5)),
    ("evaluate", "--cfg-scales", "", "cfg_scales", ()),
    ("evaluate", "--schedules", "4", "schedules", ["4"]),
    ("evaluate", "--cfg-schedules", "4", "cfg_schedules", ["4"]),
    ("evaluate", "--samples", "s", "samples", ["s"]),
    ("evaluate", "--output", "o", "output", "o"),
    ("evaluate", "--plot", "p", "plot", "p"),
    ("evaluate", "--save-samples", "s", "save_samples", "s"),
    *(("info", *case) for case in FILE),
    *(("convert", *case) for case in FILE),
    *(("convert", "--dtype", name, "dtype", name) for name in ("fp32", "bf16", "fp16")),
    *(("train-classifier", *case) for case in NETWORK),
    *(("train-classifier", "--preset", name, "preset", name) for name in PRESETS),
    *(("train-classifier", "--pool", name, "pool", name) for name in POOLS),
    ("train-classifier", "--held-out", "0.5", "held_out", 0.5),
    ("train-classifier", "--patience", "2", "patience", 2),
    ("train-classifier", "--plot", "p", "plot", "p"),
    *(("train-diffusion", *case) for case in NETWORK),
    ("train-diffusion", "--p-uncond", "0.5", "p_uncond", 0.5),
    ("train-diffusion", "--init", "i", "init", "i"),
    ("train-diffusion", "--sample-every", "9", "sample_every", 9),
    ("train-diffusion", "--sample-cfg", "1.5", "sample_cfg", 1.5),
]


@pytest.mark.parametrize(("command", "option", "text", "name", "value"), TAKEN)
def test_an_option_sets_its_value_and_no_other(parsed, command, option, text, name, value):
    found = parsed(command, option, text)
    assert found == DEFAULTS[command] | {name: value}
    assert type(found[name]) is type(value)


@pytest.mark.parametrize(
    ("command", "option"),
    [
        *(("train-classifier", name) for name in ("flip", "fresh", "bf16", "clean")),
        *(("train-diffusion", name) for name in ("flip", "fresh", "bf16", "unconditional")),
        ("train-diffusion", "fixed-variance"),
        ("sample", "no-clip"),
        ("evaluate", "no-clip"),
    ],
)
def test_a_switch_is_off_until_it_is_named(parsed, command, option):
    found = parsed(command, f"--{option}")
    assert found == DEFAULTS[command] | {option.replace("-", "_"): True}


@pytest.mark.parametrize(
    ("command", "option", "text"),
    [
        ("sample", "--method", "euler"),
        ("sample", "--gradient", "rough"),
        ("sample", "--dtype", "fp8"),
        ("sample", "--noise-schedule", "sqrt"),
        ("sample", "--classifier-schedule", "sqrt"),
        ("sample", "--seed", "1.5"),
        ("sample", "--columns", "two"),
        ("evaluate", "--scales", "1,x"),
        ("evaluate", "--cfg-scales", "x"),
        ("info", "--noise-schedule", "sqrt"),
        ("info", "--attention-order", "random"),
        ("convert", "--dtype", "fp8"),
        ("train-classifier", "--noise-schedule", "auto"),
        ("train-classifier", "--save-dtype", "auto"),
        ("train-classifier", "--pool", "max"),
        ("train-classifier", "--preset", "huge"),
        ("train-classifier", "--attention-levels", "1.5"),
        ("train-diffusion", "--steps", "1e3"),
    ],
)
def test_what_an_option_does_not_take_shows_the_usage(capsys, command, option, text):
    said = refused(capsys, command, *LEAST[command], option, text)
    assert said.startswith(f"usage: python -m guidance {command} ")
    assert option in said.splitlines()[-1]


@pytest.mark.parametrize(
    ("command", "missing"),
    [
        ("sample", "--model, --output"),
        ("evaluate", "--judge"),
        ("train-classifier", "--data, --output"),
        ("train-diffusion", "--data, --output"),
        ("info", "file"),
        ("convert", "source, target"),
    ],
)
def test_what_a_command_cannot_do_without(capsys, command, missing):
    said = refused(capsys, command)
    assert said.strip().endswith(f"error: the following arguments are required: {missing}")


def test_samples_and_schedules_can_be_several_or_none(parsed):
    found = parsed("evaluate", "--samples", "a", "b", "--schedules", "--cfg-schedules", "1", "2")
    assert (found["samples"], found["schedules"]) == (["a", "b"], [])
    assert found["cfg_schedules"] == ["1", "2"]


def helped(capsys, *command):
    """The help in one line, its spaces single."""
    with pytest.raises(SystemExit) as caught:
        main([*command, "--help"])
    assert caught.value.code == 0
    return " ".join(capsys.readouterr().out.split())


def test_the_help_says_what_the_commands_are_for(capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    said = helped(capsys)
    assert said.startswith("usage: python -m guidance [-h]")
    for sentence in (
        "python -m guidance COMMAND: sampling, training and evaluation without ComfyUI.",
        "sample draw images with classifier guidance, classifier-free guidance, or both",
        "info say what a model file is",
        "convert turn a .pt file into .safetensors that says what it holds",
        "train-classifier train a classifier on noisy images (or a clean one, to judge with)",
        "train-diffusion train a diffusion model, with label dropout so that CFG works",
        "evaluate judge how well samples follow their class over a range of scales and schedules",
    ):
        assert sentence in said


HELP = {
    "sample": [
        "ADM diffusion model file",
        "DDIM's share of noise, 0 to 1 (default: 0.0)",
        '"250", "ddim25" or "10,15,20" (default: ddim50)',
        "side in pixels; default: the model's",
        "do not clip x0 to [-1, 1]",
        "above 1: scale times ln K / H(p), at most by this factor (default: 1.0)",
        "above 0: the largest share of the denoised image (default: 0.0)",
        "ask the classifier in each so-many-th step, and use its gradient again between",
        "compute CFG's term (cond - uncond) in each so-many-th step, and use it again between",
        "0 unconditional, 1 conditional, above: stronger",
        "left out: 0 with a classifier if the model can, else 1",
        ".png (a grid) or .npz (arr_0, arr_1)",
        "what an upsampler enlarges 4 times",
        "index, name, list of them, all; default: random",
        "default: 50, or one for each image of --low-res",
        "passes that CFG can do without",
        "--cfg-tolerance CFG_TOLERANCE above 0: less and less often, while the last term foretells "
        "the next one to within this share (default: 0.0)",
        "strength of classifier guidance, image by image",
    ],
    "evaluate": [
        "classifier of clean images",
        ".npz files to judge as they are",
        "real images, .npz or a folder of class folders",
        "of the classifier: JSON of schedules, or files of it; a row for each",
        "of CFG: JSON of schedules, or files of it; a row for each",
        "also write the rows to this .json file",
        "also draw the rows into this .png file",
        "write the images of each row into this folder, as .npz files",
    ],
    "convert": [
        "a .pt, .pth or .safetensors file",
        "target the .safetensors file to write",
        "default: as in the source",
        "what a file's tensors cannot tell",
        "in each attention block; 0: auto",
    ],
    "train-classifier": [
        "folder of class folders, .npz (arr_0, arr_1), or .safetensors of labelled latents",
        "side in pixels; needed for folders",
        "random moves by up to this many pixels",
        "random mirror images",
        "go through each batch in so many parts",
        "begin anew where an earlier run was stopped",
        "stop when validation has not improved for so many times; 0: never",
        "share kept for validation (default: 0.1)",
        "no noise: a judge, not for guidance",
    ],
    "train-diffusion": [
        "share of labels dropped (default: 0.1)",
        "a model file whose training goes on",
        "--sample-every STEPS draw images with the averaged weights, into OUTPUT_step_....png; "
        "0: never",
        "the CFG of these images (default: 2.0)",
        "looking at it while it is trained",
    ],
}


@pytest.mark.parametrize("command", HELP)
def test_the_help_says_what_a_value_means(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "300")
    said = helped(capsys, command)
    assert [sentence for sentence in HELP[command] if sentence not in said] == []


# --- how a command ends ----------------------------------------------------------------------


def ended(monkeypatch, capsys, error=None):
    """Status, output and error output of a command that ends so."""

    def run(args):
        print("said before")
        if error is not None:
            raise error

    monkeypatch.setattr("guidance.cli.info.run", run)
    status = main(["info", "f"])
    return (status, *capsys.readouterr())


def test_a_command_that_succeeds_has_status_0(monkeypatch, capsys):
    assert ended(monkeypatch, capsys) == (0, "said before\n", "")


@pytest.mark.parametrize("error", [ValueError("it is 3."), OSError("it is 3.")])
def test_an_error_that_can_be_mended_has_status_1(monkeypatch, capsys, error):
    assert ended(monkeypatch, capsys, error) == (1, "said before\n", "error: it is 3.\n")


@pytest.mark.parametrize("error", [TypeError("a bug"), RuntimeError("a bug"), KeyError("a bug")])
def test_any_other_error_is_not_hidden(monkeypatch, capsys, error):
    with pytest.raises(type(error)):
        ended(monkeypatch, capsys, error)


@pytest.mark.parametrize(
    ("words", "said"),
    [((), "interrupted; nothing was written."), (("kept: 2 rows.",), "kept: 2 rows.")],
)
def test_an_interruption_has_status_130(monkeypatch, capsys, words, said):
    error = KeyboardInterrupt(*words)
    assert ended(monkeypatch, capsys, error) == (130, "said before\n", f"\n{said}\n")


# --- what options are made of ----------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "found"),
    [("", ()), ("1", (1.0,)), ("1,2,2.5", (1.0, 2.0, 2.5)), (" 1, ,-2,", (1.0, -2.0))],
)
def test_numbers(text, found):
    assert options.numbers(text) == found
    assert all(type(value) is float for value in options.numbers(text))


@pytest.mark.parametrize(("text", "found"), [("", ()), ("0", (0,)), ("1, ,2,", (1, 2))])
def test_integers(text, found):
    assert options.integers(text) == found
    assert all(type(value) is int for value in options.integers(text))


@pytest.mark.parametrize(
    "text", ["4", " 2.5", '{"points": [[0, 4]]}', '  {"points": [[0, 4]]}', "[[0, 4], [1, 1]]"]
)
def test_a_schedule_that_is_json_comes_from_no_file(text):
    assert options.read_schedule(text) == (None, GuidanceSchedule.from_json(text))


def test_a_schedule_out_of_a_file_comes_with_its_file(tmp_path):
    file = tmp_path / "four.json"
    file.write_text("4")
    assert options.read_schedule(str(file)) == (file, GuidanceSchedule.from_json("4"))


def test_a_schedule_that_is_neither_is_quoted_in_part():
    with pytest.raises(ValueError) as caught:
        options.read_schedule("x" * 150)
    assert str(caught.value) == (
        f"schedule is '{'x' * 100}', which is neither the JSON of a schedule nor a file of it."
    )


def test_a_file_of_a_schedule_that_cannot_be_used_is_named(tmp_path):
    file = tmp_path / "a.json"
    file.write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError) as caught:
        options.read_schedule(str(file))
    said = str(caught.value)
    assert said.startswith(f"schedule is {file}, which cannot be read ('utf-8' codec can't decode")
    assert said.endswith("); give a file of its JSON.")
    file.write_text('{"points": [[2, 1]]}')
    with pytest.raises(ValueError) as caught:
        options.read_schedule(str(file))
    assert str(caught.value).startswith(f"{file}: A point is at percent 2")


def test_a_named_device_is_taken():
    assert options.device("cpu") == torch.device("cpu")


@pytest.mark.parametrize("error", [RuntimeError, AssertionError, NotImplementedError])
def test_a_device_that_cannot_be_used_is_refused_in_one_short_line(monkeypatch, error):
    def empty(*_, **__):
        raise error("no" * 150 + "\nand more")

    monkeypatch.setattr(torch, "empty", empty)
    with pytest.raises(ValueError) as caught:
        options.device("abacus")
    assert str(caught.value) == f"device is 'abacus', which cannot be used: {'no' * 100}"


@pytest.mark.parametrize(
    ("cuda", "mps", "rank", "found"),
    [
        (True, True, None, "cuda:0"),
        (True, False, "2", "cuda:2"),
        (False, True, "2", "mps"),
        (False, False, None, "cpu"),
    ],
)
@pytest.mark.parametrize("name", [None, ""])
def test_the_fastest_device_is_taken_where_none_is_named(monkeypatch, cuda, mps, rank, found, name):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    assert options.device(name) == torch.device(found)
    assert options.device() == torch.device(found)


def test_threads_are_set_where_a_number_is_given(monkeypatch):
    given = []
    monkeypatch.setattr(torch, "set_num_threads", given.append)
    options.set_threads(SimpleNamespace(threads=None))
    assert given == []
    options.set_threads(SimpleNamespace(threads=1))
    assert given == [1]
    for threads in (0, -1):
        with pytest.raises(ValueError) as caught:
            options.set_threads(SimpleNamespace(threads=threads))
        assert str(caught.value) == f"threads is {threads}; it must be at least 1."
    assert given == [1]


def test_what_a_file_cannot_tell_goes_to_its_reader():
    args = argparse.Namespace(**UNTOLD | {"num_heads": 4, "more": 1})
    assert options.architecture_overrides(args) == UNTOLD | {"num_heads": 4}


def test_network_options_are_named_as_a_layout_names_them():
    args = argparse.Namespace(
        channels=1,
        channel_mult=(2.0,),
        res_blocks=3,
        attention_levels=(4,),
        head_channels=5,
        norm_groups=6,
        dropout=0.7,
    )
    assert options.network_options(args) == {
        "model_channels": 1,
        "channel_mult": (2.0,),
        "num_res_blocks": 3,
        "attention_levels": (4,),
        "num_head_channels": 5,
        "norm_groups": 6,
        "dropout": 0.7,
    }


def test_a_recipe_is_what_the_options_say(parsed):
    more = ["--steps", "7", "--batch-size", "4", "--lr", "0.5", "--weight-decay", "0.25"]
    more += ["--ema", "0.125", "--seed", "3", "--accumulate", "2", "--bf16"]
    found = options.recipe(argparse.Namespace(**parsed("train-diffusion", *more)))
    assert vars(found) == {
        "steps": 7,
        "batch_size": 4,
        "learning_rate": 0.5,
        "weight_decay": 0.25,
        "ema": 0.125,
        "seed": 3,
        "bf16": True,
        "accumulate": 2,
    }


def test_a_training_writes_safetensors_and_json(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    good = {"output": "a.safetensors", "history": "a.json"}
    options.check_training_targets(argparse.Namespace(**good))
    options.check_training_targets(argparse.Namespace(**good | {"history": None}))
    for wrong, said in (
        ({"output": "a.json"}, "output is a.json; its name must end in .safetensors."),
        ({"history": "a.txt"}, "output is a.txt; its name must end in .json."),
    ):
        with pytest.raises(ValueError) as caught:
            options.check_training_targets(argparse.Namespace(**good | wrong))
        assert str(caught.value) == said
    assert list(Path().iterdir()) == []
