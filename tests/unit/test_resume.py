"""A training that was stopped in any way goes on as if it had not been."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from tiny_networks import classifier_layout

from guidance import NoiseSchedule
from guidance.__main__ import main
from guidance.training import loop
from guidance.training import resume as resume_module
from guidance.training.data import LabelledImages
from guidance.training.loop import OptimizerConfig, TrainingContext
from guidance.training.resume import ResumeFile, TrainingState, prune
from guidance.training.train_classifier import train_classifier

SIDE = 8
SMALL = {"channel_mult": (1,), "attention_levels": (), "image_size": SIDE, "out_channels": 2}


class Stop(Exception):
    """What a cancelled run raises."""


def data():
    images = torch.randint(0, 256, (20, 3, SIDE, SIDE), generator=torch.Generator().manual_seed(0))
    return LabelledImages(images.to(torch.uint8), torch.arange(20) % 2, ("even", "odd"))


def trained(resume=None, stop_at=None, dropout=0.0, **recipe):
    def on_step(step, loss):
        if step == stop_at:
            raise Stop

    recipe = {"steps": 12, "batch_size": 6, "ema": 0.9} | recipe
    run = TrainingContext(resume=resume, on_step=on_step)
    layout, steps = classifier_layout(**SMALL, dropout=dropout), OptimizerConfig(**recipe)
    schedule = NoiseSchedule("linear")
    return train_classifier(data(), layout, schedule, steps, held_out=data(), run=run)


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_a_training_stopped_twice_ends_with_the_same_weights(tmp_path, dropout):
    whole = trained(dropout=dropout)
    for stop_at in (3, 4, 9):
        resume = ResumeFile(tmp_path / "c.resume", {"seed": 0})
        with pytest.raises(Stop):
            trained(resume, stop_at, dropout)
    parts = trained(ResumeFile(tmp_path / "c.resume", {"seed": 0}), dropout=dropout)
    assert parts.losses == whole.losses and len(whole.losses) == 12
    assert parts.validations == whole.validations
    for name, weight in whole.network.state_dict().items():
        assert torch.equal(parts.network.state_dict()[name], weight), name


def test_chance_elsewhere_is_left_alone():
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    trained(dropout=0.5, steps=2)
    assert torch.equal(torch.rand(3), expected)


def test_a_state_of_another_training_is_refused(tmp_path):
    path = tmp_path / "c.safetensors.resume"
    with pytest.raises(Stop):
        trained(ResumeFile(path, {"seed": 0, "data": "a"}), 3)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="with data 'a', but this one has 'b'; delete it"):
        trained(ResumeFile(path, {"seed": 0, "data": "b"}))
    assert path.read_bytes() == before


def test_a_damaged_state_and_a_full_disk(tmp_path, no_room):
    resume = ResumeFile(tmp_path / "c.resume", {}, seconds=0)
    with pytest.raises(Stop):
        trained(resume, 3)
    before = resume.path.read_bytes()
    with no_room(len(before) // 2), pytest.raises(OSError, match=r"c\.resume could not be written"):
        trained(resume)
    assert resume.path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [resume.path]
    for content in (b"", b"no state", before[: len(before) // 2]):
        resume.path.write_bytes(content)
        with pytest.raises(ValueError, match=r"c\.resume is not a state that this training can"):
            trained(resume)


@pytest.mark.parametrize("number", [0, 2])
def test_a_step_that_was_half_done_is_not_kept(tmp_path, monkeypatch, number):
    file = ResumeFile(tmp_path / "a.resume", {})
    real, calls = loop._average, iter(range(9))

    def average(*arguments):
        if next(calls) == number:
            raise Stop
        real(*arguments)

    monkeypatch.setattr(loop, "_average", average)
    with pytest.raises(Stop):
        trained(file)
    assert not file.path.exists()


def test_a_state_is_due_when_the_last_time_is_long_enough_ago(tmp_path, monkeypatch):
    now = [100.0]
    monkeypatch.setattr(resume_module, "time", SimpleNamespace(monotonic=lambda: now[0]))
    network = torch.nn.Linear(1, 1)
    state = TrainingState(network, torch.nn.Linear(1, 1), torch.optim.AdamW(network.parameters()))
    file = ResumeFile(tmp_path / "a.resume", {})
    for moment, saved in ((129.9, False), (130.0, True), (159.9, False), (160.0, True)):
        now[0] = moment
        assert file.due == saved
        if file.due:
            file.save(state)


def test_states_of_abandoned_trainings_are_deleted(tmp_path):
    """But not this training's own, whatever its age, nor what is none."""
    ages = {"new.resume": 29.9, "old.resume": 30.1, "own.resume": 99.0, "old.safetensors": 99.0}
    for name, days in ages.items():
        (tmp_path / name).touch()
        moment = time.time() - days * 24 * 60 * 60
        os.utime(tmp_path / name, (moment, moment))
    assert prune(tmp_path, 30, tmp_path / "own.resume") == ["old.resume"]
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(ages.keys() - {"old.resume"})
    assert prune(tmp_path / "missing", 30, tmp_path / "own.resume") == []


# Forks trainings that save after each step, and kills them; torch is imported once.
KILLER = """
import json, os, random, signal, sys, time
repository, state, kills, *command = sys.argv[1:]
sys.path.insert(0, repository)
from pathlib import Path
from safetensors import safe_open
import guidance.cli.train_classifier
from guidance.__main__ import main
from guidance.training.resume import ResumeFile, TrainingState, prune
ResumeFile.__init__.__defaults__ = (0.0,)
chance, state = random.Random(0), Path(state)

def written():
    return state.stat().st_mtime_ns if state.exists() else 0

def train():
    child = os.fork()
    if not child:
        os._exit(main(command))
    return child

for _ in range(int(kills)):
    before, child = written(), train()
    while written() == before:
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "it ended: give it more steps"
        time.sleep(0.002)
    time.sleep(chance.uniform(0, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    with safe_open(state, "pt") as file:
        for key in file.keys():
            file.get_tensor(key)
        print(json.loads(file.metadata()["training"])["step"], flush=True)
sys.exit(os.waitstatus_to_exitcode(os.waitpid(train(), 0)[1]))
"""


@pytest.fixture(scope="module")
def npz(tmp_path_factory):
    """The data as a file."""
    path = tmp_path_factory.mktemp("data") / "data.npz"
    images = data().images.permute(0, 2, 3, 1).numpy()
    np.savez(path, arr_0=images, arr_1=data().labels.numpy())
    return path


def arguments(npz, output, steps):
    return [
        *["train-classifier", "--data", str(npz), "--output", str(output), "--steps", str(steps)],
        *["--channels", "32", "--channel-mult", "1", "--attention-levels", "", "--device", "cpu"],
        *["--batch-size", "4", "--held-out", "0", "--history", str(output.with_suffix(".json"))],
    ]


@pytest.mark.processes
@pytest.mark.skipif(os.name != "posix", reason="sends SIGKILL")
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("kills", "steps"), [(3, 24), pytest.param(20, 600, marks=pytest.mark.long)]
)
def test_killed_many_times(root, npz, tmp_path, kills, steps):
    """It always goes on, and ends as a training that nobody killed."""
    killed, whole = tmp_path / "killed.safetensors", tmp_path / "whole.safetensors"
    command = [sys.executable, "-c", KILLER, str(root), f"{killed}.resume", str(kills)]
    done = subprocess.run(
        [*command, *arguments(npz, killed, steps)],
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert not list(tmp_path.glob("*.resume"))
    alone(arguments(npz, whole, steps))
    at = [int(line) for line in done.stdout.splitlines() if line.isdigit()]
    assert len(at) == kills and at == sorted(at) and at[-1] > at[0]
    one, other = (json.loads(p.with_suffix(".json").read_text()) for p in (killed, whole))
    assert one == other
    assert all(
        torch.equal(load_file(whole)[name], weight) for name, weight in load_file(killed).items()
    )


def alone(command):
    """In this process with one thread, as the others: sums in another order differ."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    assert main(command) == 0
    torch.set_num_threads(threads)


def run_processes(root, count, command):
    """`torchrun --nproc-per-node COUNT -m guidance ...` on this machine, on the CPU."""
    run = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
    run += [f"--nproc-per-node={count}", "-m", "guidance", *command]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(run, cwd=root, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    return done.stdout


@pytest.mark.processes
def test_two_processes_train_as_one(root, npz, tmp_path):
    losses = []
    for count, run in ((1, alone), (2, lambda command: run_processes(root, 2, command))):
        output = tmp_path / f"{count}.safetensors"
        run(arguments(npz, output, 10))
        losses.append(json.loads(output.with_suffix(".json").read_text())["losses"])
        assert not list(tmp_path.glob("*.resume"))
    assert len(losses[0]) == 10
    assert losses[1] == pytest.approx(losses[0], abs=1e-5)
    ours, theirs = (load_file(tmp_path / f"{count}.safetensors") for count in (1, 2))
    assert all(torch.allclose(ours[name], theirs[name], atol=1e-4) for name in ours)


@pytest.mark.processes
@pytest.mark.long
def test_two_processes_draw_the_images_of_one(root, tmp_path):
    models = root / "models"
    command = [
        *["sample", "--model", str(models / "diffusion_models" / "digits_adm.safetensors")],
        *["--classifier", str(models / "classifiers" / "digits_classifier.safetensors")],
        *["--num-samples", "5", "--batch-size", "2", "--method", "ddpm", "--device", "cpu"],
        *["--respacing", "3", "--output"],
    ]
    alone([*command, str(tmp_path / "1.npz")])
    run_processes(root, 2, [*command, str(tmp_path / "2.npz")])
    one, two = (np.load(tmp_path / f"{count}.npz") for count in (1, 2))
    assert len(one["arr_0"]) == 5
    assert all((one[key] == two[key]).all() for key in ("arr_0", "arr_1"))
