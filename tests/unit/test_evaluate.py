"""python -m guidance evaluate: its rows, what they cost, and the files it reads and writes."""

from __future__ import annotations

import json
import pkgutil
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from test_resume import run_processes
from tiny_networks import SIZE, diffusion_model, noisy_classifier

from guidance import GuidanceSchedule, load_classifier
from guidance.evaluation.compute_cost import count_compute
from guidance.evaluation.judge import Score
from guidance.evaluation.report import Row, table
from guidance.evaluation.report_plot import plot_rows
from guidance.schedules.curves import shortened as short_form

JUDGE = ["evaluate", "--judge", "@judge.safetensors"]
DRAW = [*JUDGE, "--model", "@diffusion.safetensors", "--device", "cpu", "--num-samples", "5"]
DRAW += ["--batch-size", "2", "--respacing", "ddim4"]
CLASSIFIER = ["--classifier", "@classifier.safetensors"]
REAL = ["--reference", "@data.npz"]
NO_SCALES = ["--scales", "", "--cfg-scales", ""]
HALF = '{"axis": "step", "last": 2, "scale": 4, "outside": %d}'
COMPARED = ("accuracy", "diversity", "frechet", "precision", "recall")


@pytest.fixture
def rows(guidance):
    """Runs `evaluate` and gives its rows: all but the seconds, and what it printed."""

    def run(*arguments):
        said = guidance(*arguments, "--output", "rows.json")
        return json.loads(Path("rows.json").read_text()), said

    return run


def names_here():
    return sorted(str(p) for p in Path().rglob("*") if p.is_file())


# --- the table -------------------------------------------------------------------------------


def test_it_prints_a_table_and_writes_its_rows(rows):
    arguments = ["--samples", "@data.npz", "--scales", "0,2.5", "--cfg-scales", "1"]
    found, said = rows(*DRAW, *CLASSIFIER, *arguments)
    assert [(row["kind"], row["guidance"], row["scale"]) for row in found] == [
        ("file", "data.npz", None),
        ("none", "none", 0.0),
        ("classifier", "classifier", 2.5),
        ("CFG", "CFG", 1.0),
    ]
    assert [row["images"] for row in found] == [24, 5, 5, 5]
    assert all(0 <= row["accuracy"] <= 1 and row["diversity"] > 0 for row in found)
    lines = said.strip().splitlines()
    assert lines[0] == (
        "| guidance | scale | judge accuracy | diversity | passes | gradients | seconds |"
    )
    row = found[2]
    assert lines[4] == (
        f"| classifier | 2.5 | {row['accuracy']:.3f} | {row['diversity']:.2f} | 4 | 4 | "
        f"{row['seconds']:.3g} |"
    )
    assert lines[6] == ""
    assert "give them with --reference" in lines[-1]


def test_it_judges_samples_alone(rows, files):
    (row,), said = rows(*JUDGE, "--samples", "@data.npz")
    with np.load(files / "data.npz") as data:
        x = torch.from_numpy(data["arr_0"]).permute(0, 3, 1, 2) / 127.5 - 1
        guesses = load_classifier(files / "judge.safetensors").log_probs(x, 0.0).argmax(dim=1)
        assert row["accuracy"] == pytest.approx((guesses.numpy() == data["arr_1"]).mean())
    assert said.startswith("| guidance | scale | judge accuracy | diversity |\n|---|---|---|---|\n")


def test_an_empty_column_is_left_out_and_a_name_cannot_break_the_table():
    row = Row("file", "a|b.npz", None, Score(0.5, 2.0), 7)
    assert table([row]).splitlines()[2] == r"| a\|b.npz |  | 0.500 | 2.00 |"


# --- real images -----------------------------------------------------------------------------


def test_real_images_are_close_to_themselves(rows):
    (row,), said = rows(*JUDGE, "--samples", "@data.npz", *REAL)
    assert row["frechet"] == pytest.approx(0, abs=1e-6)
    assert (row["precision"], row["recall"]) == (1.0, 1.0)
    assert "| judge accuracy | Frechet distance | precision | recall | diversity |" in said
    assert "to the 24 images" in said
    assert "24 images are too few for a covariance of 64 features" in said


def test_a_folder_of_class_folders_is_the_same(rows):
    reference = ["--reference", "@pictures", "--image-size", str(SIZE)]
    sampled = [*JUDGE, "--samples", "@data.npz"]
    first, second = rows(*sampled, *REAL)[0][0], rows(*sampled, *reference)[0][0]
    assert second["frechet"] == pytest.approx(first["frechet"], abs=1e-6)
    assert rows(*DRAW, "--cfg-scales", "1", "--reference", "@pictures")[0][0]["frechet"] > 0.001


def test_another_reference_is_another_distance(rows):
    images = (
        np.zeros((9, SIZE, SIZE, 3), np.uint8) + np.arange(9, dtype=np.uint8)[:, None, None, None]
    )
    np.savez("dark.npz", arr_0=images, arr_1=np.zeros(9, np.int64))
    (row,), _ = rows(*JUDGE, "--samples", "@data.npz", "--reference", "dark.npz")
    assert row["frechet"] > 0.001
    assert (row["precision"], row["recall"]) == (0.0, 0.0)


# --- schedules and what they cost ------------------------------------------------------------


def test_scales_and_schedules_cost_what_the_networks_did(rows):
    Path("late.json").write_text(HALF % 0)
    schedules = ["--schedules", "late.json", "4", "--cfg-schedules", HALF % 1]
    found, said = rows(*DRAW, *CLASSIFIER, "--scales", "0,4", "--cfg-scales", "1,3", *schedules)
    assert [(row["guidance"], row["passes"], row["gradients"]) for row in found] == [
        ("none", 4, 0),
        ("classifier", 4, 4),
        ("classifier, late", 4, 2),
        ("classifier, 4 everywhere", 4, 4),
        ("CFG", 4, 0),
        ("CFG", 8, 0),
        ("CFG, 4 in the last 2 steps, else 1", 6, 0),
    ]
    assert found[2]["schedule"] == json.loads(HALF % 0)
    assert [row["schedule"] is None for row in found] == [1, 1, 0, 0, 1, 1, 0]
    same = [[row[name] for name in COMPARED] for row in (found[1], found[3])]
    assert same[0] == same[1]
    assert "| classifier, late |  |" in said


def test_schedules_can_come_without_scales(rows):
    found, _ = rows(*DRAW, *NO_SCALES, "--cfg-schedules", HALF % 1)
    assert [row["kind"] for row in found] == ["CFG"]


def test_only_what_runs_in_the_block_is_counted():
    model, classifier = diffusion_model(), noisy_classifier()
    x, t = torch.zeros(3, 3, SIZE, SIZE), torch.zeros(3)
    with count_compute(model, classifier) as work:
        model(x, t, torch.tensor([0, 1, 2]))
        model(x[:1], t[:1], torch.tensor([0]))
        classifier.log_probs(x, 1.0)
        classifier.gradient(x[:2], 1.0, 1)
    model(x, t, torch.tensor([0, 1, 2]))
    classifier.gradient(x, 1.0, 1)
    assert (work.passes, work.gradients) == (4, 2)
    half = work.per_image(2)
    assert (half.passes, half.gradients, half.seconds) == (2, 1, work.seconds / 2)
    assert not model.network._forward_hooks and not classifier.network._forward_hooks


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("4", "4 everywhere"),
        ("[[0, 7.5], [0.6, 7.5], [1, 1]]", "percent: 7.5 at 0, 7.5 at 0.6, 1 at 1"),
        (
            '{"axis": "sigma", "points": [[5, 4], [0.3, 4]], "outside": 1}',
            "4 for sigma 5 to 0.3, else 1",
        ),
        (
            '{"points": [[0, 1], [1, 4]], "interpolation": "power", "exponent": 3, "outside": 0}',
            "power 3, percent: 1 at 0, 4 at 1, else 0",
        ),
        ('{"points": [[0.5, 3]], "outside": 1}', "percent: 3 at 0.5, else 1"),
        (
            '{"axis": "step", "values": [1, 2, 3, 4, 5, 6, 7]}',
            "step by step 1, 2, 3, ..., 7",
        ),
        (HALF % 1, "4 in the last 2 steps, else 1"),
        ('{"expression": "1 + 3 * percent"}', "1 + 3 * percent"),
        (
            '{"points": [[0, 4]], "per_image": [1, 0.5]}',
            "4 everywhere, per image times 1, 0.5",
        ),
    ],
)
def test_a_schedule_has_a_short_form(text, name):
    assert short_form(GuidanceSchedule.from_json(text)) == name


def test_schedules_of_sample_can_be_files(guidance):
    Path("four.json").write_text("4")
    command = ["sample", "--model", "@diffusion.safetensors", "--device", "cpu", "--respacing"]
    command += ["ddim2", "--num-samples", "2", "--label", "1", "--output", "x.npz"]
    drawn = []
    for schedule in ("4", "four.json"):
        guidance(*command, "--cfg-schedule", schedule)
        with np.load("x.npz") as file:
            drawn.append(file["arr_0"])
    assert (drawn[0] == drawn[1]).all()


# --- files -----------------------------------------------------------------------------------


def test_saved_samples_are_judged_the_same_again(rows):
    options = [*CLASSIFIER, "--scales", "0,4", "--cfg-scales", "3", "--schedules", HALF % 0, *REAL]
    first, _ = rows(*DRAW, *options, "--save-samples", "new/samples")
    saved = [row["samples"] for row in first]
    assert saved == [
        str(Path("new/samples") / name)
        for name in (
            "01_none_0.npz",
            "02_classifier_4.npz",
            "03_classifier_4_in_the_last_2_steps_else_0.npz",
            "04_CFG_3.npz",
        )
    ]
    with np.load(saved[0]) as file:
        assert (file["arr_0"].shape, file["arr_0"].dtype) == ((5, SIZE, SIZE, 3), np.uint8)
        assert file["arr_1"].tolist() == [0, 1, 2, 0, 1]
    again, _ = rows(*JUDGE, "--samples", *saved, *REAL)
    assert [[row[name] for name in COMPARED] for row in again] == [
        [row[name] for name in COMPARED] for row in first
    ]
    assert first[0]["frechet"] != first[1]["frechet"]


def shows(picture, colour):
    return bool((np.abs(picture.astype(int) - colour).max(axis=-1) < 8).any())


ORANGE, BLUE, BLACK = (255, 127, 14), (31, 119, 180), (0, 0, 0)


def test_the_picture_has_a_line_for_each_guidance():
    def row(kind, name, scale, value, compared=True):
        score = Score(value, value) if not compared else Score(value, value, value, value, value)
        return Row(kind, name, scale, score, 9)

    steered = [row("none", "none", 0.0, 0.1), row("classifier", "classifier", 2.0, 0.5)]
    free = [row("CFG", "CFG", 2.0, 0.7), row("CFG", "CFG, $x_1$ | " + "long " * 50, None, 0.2)]
    both, one = plot_rows(steered + free), plot_rows(steered)
    assert both.dtype == np.uint8 and both.shape[2] == 3
    assert shows(both, ORANGE) and shows(both, BLUE)
    assert shows(one, ORANGE) and not shows(one, BLUE)
    alone = plot_rows([row("file", "_a.npz", None, 0.3, compared=False)])
    assert alone.shape[1] < both.shape[1], "one part instead of two"
    assert not shows(alone, ORANGE)


@pytest.mark.parametrize("reference", [[], REAL], ids=["alone", "compared"])
def test_a_picture_is_written(guidance, reference):
    guidance(*DRAW, "--cfg-scales", "0,2", "--samples", "@data.npz", *reference, "--plot", "a.png")
    with Image.open("a.png") as picture:
        assert picture.format == "PNG"
        assert shows(np.asarray(picture.convert("RGB")), BLUE)
    assert names_here() == ["a.png"]


# --- errors and interruptions ----------------------------------------------------------------

SMALL = ["--reference", "small.npz"]
SAMPLES = ["--samples", "@data.npz"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ([*JUDGE, *SAMPLES, "--schedules", "4"], "--schedules needs --model"),
        ([*JUDGE, *SAMPLES, "--cfg-schedules", "4"], "--cfg-schedules needs --model"),
        ([*JUDGE, *SAMPLES, "--save-samples", "a"], "--save-samples needs --model"),
        ([*DRAW, "--schedules", "4"], "--schedules need a --classifier"),
        (
            [*JUDGE, "--model", "@uncond.safetensors", *CLASSIFIER, "--cfg-schedules", "4"],
            "--cfg-schedules need a model trained with label dropout",
        ),
        ([*DRAW, "--cfg-schedules", "none.json"], "neither the JSON of a schedule nor a file"),
        ([*DRAW, "--cfg-schedules", "{"], "not readable JSON"),
        ([*DRAW, "--cfg-schedules", "small.npz"], "small.npz"),
        ([*DRAW, "--cfg-schedules", "bad.json"], "bad.json: A point is at percent 2"),
        ([*DRAW, "--cfg-schedules", '{"axis": "step", "values": [1, 2]}'], "lists 2 scales"),
        (
            [*DRAW, "--cfg-schedules", '{"points": [[0, 1]], "per_image": [1, 2]}'],
            "the batch has 1",
        ),
        ([*DRAW, "--cfg-schedules", '{"points": [[0, 1]], "models": "flow"}'], "for flow models"),
        ([*DRAW, *REAL, "--num-samples", "3"], "num_samples is 3; .* at least 4"),
        ([*DRAW, *SMALL], "images of 8x8x3, but those of small.npz are 4x4x3"),
        ([*JUDGE, *SAMPLES, *SMALL], "images of 8x8x3, but those of small.npz are 4x4x3"),
        ([*JUDGE, "--samples", "few.npz", *REAL], "few.npz has 3 images; .* at least 4"),
        ([*DRAW, "--reference", "few.npz"], "few.npz has 3 images; .* at least 4"),
        ([*JUDGE, "--samples", "grey.npz"], "reads images of 3 channels, but these have 1"),
        ([*DRAW, "--reference", "none.npz"], "none.npz is neither a folder"),
        ([*DRAW, "--plot", "a.jpg"], "a.jpg; its name must end in .png"),
        ([*DRAW, "--save-samples", "few.npz"], "few.npz is no folder that can be written to"),
        ([*DRAW, "--save-samples", "few.npz/new"], "few.npz is no folder that can be written to"),
    ],
    ids=lambda value: " ".join(value)[-60:] if isinstance(value, list) else "",
)
def test_what_cannot_be_is_refused_in_one_line_before_the_work(guidance, arguments, said):
    for name, shape in {"small": (9, 4, 4, 3), "few": (3, 8, 8, 3), "grey": (9, 8, 8, 1)}.items():
        np.savez(f"{name}.npz", arr_0=np.zeros(shape, np.uint8), arr_1=np.zeros(shape[0], int))
    Path("bad.json").write_text('{"points": [[2, 1]]}')
    before = names_here()
    error = guidance(*arguments, status=1)
    assert len(error.strip().splitlines()) == 1, error
    assert error.startswith("error: ")
    assert re.search(said, error), error
    assert names_here() == before


def stop_in_call(monkeypatch, where, number):
    """Ctrl-C in the so-many-th call of what is found there."""
    real, calls = pkgutil.resolve_name(where), iter(range(1, 1000))

    def stops(*arguments, **options):
        if next(calls) == number:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(where, stops)


FILES = ["--cfg-scales", "0,1", "--output", "a.json", "--plot", "a.png"]


@pytest.mark.parametrize(
    ("where", "number"),
    [
        ("guidance.cli.evaluate.judge_samples", 2),
        ("guidance.cli.evaluate.plot_rows", 1),
        ("guidance.core.atomic_write.os.replace", 1),
    ],
)
def test_an_interruption_leaves_neither_rows_nor_picture(guidance, monkeypatch, where, number):
    stop_in_call(monkeypatch, where, number)
    said = guidance(*DRAW, *FILES, status=130)
    assert said.strip().splitlines()[-1] == "interrupted; nothing was written."
    assert names_here() == []


def test_an_interruption_leaves_the_samples_of_whole_rows(guidance, monkeypatch):
    stop_in_call(monkeypatch, "guidance.sampling.loop.ddim_step", 3 * 4 + 2)
    said = guidance(*DRAW, *FILES, "--save-samples", "samples", status=130)
    first = str(Path("samples") / "01_none_0.npz")
    assert said.strip().splitlines()[-1] == (
        f"interrupted; rows with samples written: 1, the last is {first}."
    )
    assert names_here() == [first]
    with np.load(first) as file:
        assert len(file["arr_0"]) == 5


def test_two_processes_evaluate_as_one(root, rows, files, tmp_path):
    command = [*DRAW, *CLASSIFIER, *REAL, "--scales", "4", "--cfg-scales", "3", "--threads", "1"]
    threads = torch.get_num_threads()
    one, _ = rows(*command)
    torch.set_num_threads(threads)
    given = [str(files / a[1:]) if a.startswith("@") else a for a in command]
    said = run_processes(root, 2, [*given, "--output", str(tmp_path / "two.json")])
    two = json.loads((tmp_path / "two.json").read_text())
    assert said.count("| guidance |") == 1
    assert [row["passes"] for row in one] == [4, 8]
    assert all(row.pop("seconds") > 0 for row in one + two)
    assert one == two
