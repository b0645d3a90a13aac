"""python -m guidance evaluate: its rows, what they cost, and the files it reads and writes."""

from __future__ import annotations

import json
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from test_resume import run_processes
from tiny_networks import CLASSES, SIZE, unet, write_model

from guidance import GuidanceSchedule, load_classifier
from guidance.evaluation.compute_cost import ComputeCost
from guidance.evaluation.judge import Score
from guidance.evaluation.report import Row, table
from guidance.evaluation.report_plot import plot_rows
from guidance.sampling import loop as guidance_loop
from guidance.sampling.generate import SamplingConfig

JUDGE = ["evaluate", "--judge", "@judge.safetensors", "--device", "cpu"]
DRAW = [*JUDGE, "--model", "@diffusion.safetensors", "--num-samples", "5"]
DRAW += ["--batch-size", "2", "--respacing", "ddim4"]
CLASSIFIER = ["--classifier", "@classifier.safetensors"]
SAMPLES, REAL = ["--samples", "@data.npz"], ["--reference", "@data.npz"]
NO_SCALES = ["--scales", "", "--cfg-scales", ""]
FOUR = '{"points": [[0, 4]]}'
HALF = '{"axis": "step", "last": 2, "scale": 4, "outside": %d}'
COMPARED = ("accuracy", "diversity", "frechet", "precision", "recall")


@pytest.fixture
def rows(guidance):
    """Runs `evaluate` and gives its rows and what it printed."""

    def run(*arguments):
        said = guidance(*arguments, "--output", "rows.json")
        return json.loads(Path("rows.json").read_text()), said

    return run


@pytest.fixture
def runs(rows, monkeypatch):
    """Rows and the settings of the runs that `evaluate` plans; none is drawn."""

    def plan(*arguments):
        seen = []

        def draw(args, model, classifier, config, title, processes):
            seen.append(config)
            images = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)
            return images, np.arange(4) % 3, ComputeCost(1, 2, 3.0)

        monkeypatch.setattr("guidance.cli.evaluate._draw", draw)
        return rows(*arguments)[0], seen

    return plan


def names_here():
    return sorted(str(p) for p in Path().rglob("*") if p.is_file())


def write_samples(name, count, size=SIZE, channels=3):
    shape = (count, size, size, channels)
    images = np.random.default_rng(0).integers(0, 256, shape, dtype=np.uint8)
    np.savez(name, arr_0=images, arr_1=np.arange(count) % CLASSES)


def test_it_prints_a_table_and_writes_its_rows(rows):
    arguments = [*SAMPLES, "--scales", "0,2.5", "--cfg-scales", "1"]
    found, said = rows(*DRAW, *CLASSIFIER, *arguments)
    assert [(row["kind"], row["guidance"], row["scale"]) for row in found] == [
        ("file", "data.npz", None),
        ("none", "none", 0.0),
        ("classifier", "classifier", 2.5),
        ("CFG", "CFG", 1.0),
    ]
    assert [row["images"] for row in found] == [24, 5, 5, 5]
    assert all(0 <= row["accuracy"] <= 1 and row["diversity"] > 0 for row in found)
    row = found[2]
    cells = [cell.strip() for cell in said.splitlines()[4].strip("|").split("|")]
    assert cells[:4] == ["classifier", "2.5", f"{row['accuracy']:.3f}", f"{row['diversity']:.2f}"]
    assert cells[4:] == ["4", "4", f"{row['seconds']:.3g}"]
    assert "--reference" in said.splitlines()[-1]


def test_it_judges_samples_alone(rows, files):
    (row,), _ = rows(*JUDGE, *SAMPLES)
    with np.load(files / "data.npz") as data:
        x = torch.from_numpy(data["arr_0"]).permute(0, 3, 1, 2) / 127.5 - 1
        guesses = load_classifier(files / "judge.safetensors").log_probs(x, 0.0).argmax(dim=1)
        assert row["accuracy"] == pytest.approx((guesses.numpy() == data["arr_1"]).mean())
    assert Path(row["samples"]).name == "data.npz" and Path(row["samples"]).is_absolute()
    assert (row["passes"], row["gradients"], row["seconds"]) == (None, None, None)


def test_the_cells_of_a_table():
    """An empty column is left out, and a name cannot break the table."""
    full = Score(0.12345, 1.0, 3.14159, 0.5, 0.98765)
    of_file = Row("file", "a|b.npz", None, Score(0.5, 2.0), 7)
    work = ComputeCost(4, 0.5, 12.3456)
    whole = table([Row("CFG", "CFG", 2.5, full, 5, None, work, "a.npz"), of_file]).splitlines()
    assert whole[2] == "| CFG | 2.5 | 0.123 | 3.14 | 0.500 | 0.988 | 1.00 | 4 | 0.5 | 12.3 |"
    assert whole[3] == r"| a\|b.npz |  | 0.500 |  |  |  | 2.00 |  |  |  |"
    assert table([of_file]).splitlines()[2] == r"| a\|b.npz |  | 0.500 | 2.00 |"


def test_it_says_when_images_are_too_few_or_not_as_many(guidance):
    """For a covariance of the judge's 64 features."""
    for count in (64, 65):
        write_samples(f"{count}.npz", count)
    for real, samples, few, other in ((64, [65], 1, 0), (65, [65], 0, 0), (65, [65, 64], 1, 1)):
        names = [f"{count}.npz" for count in samples]
        said = guidance(*JUDGE, "--samples", *names, "--reference", f"{real}.npz")
        assert ("64 images are too few" in said, "as many" in said) == (few, other)


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


def test_recurrence_is_in_the_name_and_the_passes(rows):
    """Three of the four steps are taken three times."""
    scales = ["--scales", "0,4", "--cfg-scales", "3", "--recurrence", "3"]
    found, said = rows(*DRAW, *CLASSIFIER, *scales, "--entropy-limit", "2")
    assert [(row["kind"], row["guidance"], row["passes"], row["gradients"]) for row in found] == [
        ("none", "none, recurrence 3", 10, 0),
        ("classifier", "classifier, entropy limit 2, recurrence 3", 10, 10),
        ("CFG", "CFG, recurrence 3", 20, 0),
    ]
    assert "| CFG, recurrence 3 | 3 |" in said


def test_every_scale_is_drawn_once(runs):
    found, seen = runs(*JUDGE, "--model", "@diffusion.safetensors", *CLASSIFIER)
    each = [(kind, scale) for kind in ("classifier", "CFG") for scale in (1.0, 2.0, 4.0, 8.0)]
    assert [(row["kind"], row["scale"]) for row in found] == [("none", 0.0), *each]
    plain = {"num_samples": 500, "label": "all", "cfg": 0.0, "scale": 0.0}
    assert seen[:2] == [SamplingConfig(**plain), SamplingConfig(**plain | {"scale": 1.0})]
    assert seen[-1] == SamplingConfig(**plain | {"cfg": 8.0})


def test_a_model_without_label_dropout_is_run_with_its_labels(runs):
    write_model("labelled.safetensors", unet(num_classes=CLASSES, null_class=None))
    model = ["--model", "labelled.safetensors"]
    _, seen = runs(*JUDGE, *model, *CLASSIFIER, "--scales", "0,2")
    assert [(config.scale, config.cfg) for config in seen] == [(0.0, 1.0), (2.0, 1.0)]


def test_a_row_of_a_schedule_is_called_by_it(runs):
    four = GuidanceSchedule.from_json(FOUR)
    options = ["--cap", "0.5", "--schedules", FOUR, "--cfg-schedules", FOUR]
    found, seen = runs(*DRAW, *CLASSIFIER, *NO_SCALES, *options)
    names = ["classifier, cap 0.5, 4 everywhere", "CFG, 4 everywhere"]
    assert [(row["guidance"], row["scale"]) for row in found] == [(name, None) for name in names]
    assert [config.schedule for config in seen] == [four, None]
    assert [config.cfg_schedule for config in seen] == [None, four]
    assert [row["schedule"] for row in found] == [four.to_dict()] * 2


def test_saved_samples_are_judged_the_same_again(rows):
    options = [*CLASSIFIER, "--scales", "0,4", "--cfg-scales", "3", "--schedules", HALF % 0, *REAL]
    first, _ = rows(*DRAW, *options, "--save-samples", "new/samples")
    saved = [row["samples"] for row in first]
    assert [Path(name).name for name in saved][:2] == ["01_none_0.npz", "02_classifier_4.npz"]
    with np.load(saved[0]) as file:
        assert file["arr_0"].shape == (5, SIZE, SIZE, 3)
        assert file["arr_1"].tolist() == [0, 1, 2, 0, 1]
    again, _ = rows(*JUDGE, "--samples", *saved, *REAL)
    assert [[row[name] for name in COMPARED] for row in again] == [
        [row[name] for name in COMPARED] for row in first
    ]
    assert first[0]["frechet"] != first[1]["frechet"]


def test_names_of_saved_samples_are_short_and_plain(runs):
    long = Path(" long(é)" * 15 + ".json")
    long.write_text("4")
    saved = ["--save-samples", "s", "--scales", "", "--cfg-scales", "2.5"]
    found, _ = runs(*DRAW, *saved, "--cfg-schedules", str(long), FOUR)
    names = ["CFG_2.5", f"{'CFG' + '_long' * 11}_l", "CFG_4_everywhere"]
    paths = [str(Path("s") / f"0{number}_{name}.npz") for number, name in enumerate(names, 1)]
    assert [row["samples"] for row in found] == paths


def test_the_picture_has_a_part_for_what_was_compared():
    def row(kind, name, scale, value, compared=True):
        score = Score(*[value] * (5 if compared else 2))
        return Row(kind, name, scale, score, 9)

    drawn = [row("none", "none", 0.0, 0.1), row("classifier", "classifier", 2.0, 0.5)]
    drawn += [row("CFG", "CFG", 2.0, 0.7), row("CFG", "CFG, $x_1$ | " + "long " * 50, None, 0.2)]
    both, alone = plot_rows(drawn), plot_rows([row("file", "_a.npz", None, 0.3, compared=False)])
    assert both.dtype == alone.dtype == np.uint8 and both.shape[2] == 3
    assert alone.shape[1] < both.shape[1], "one part instead of two"
    assert (plot_rows(drawn[:2])[:400, :300] != both[:400, :300]).any()


SMALL = ["--reference", "small.npz"]
UNCOND = [*JUDGE, "--model", "@uncond.safetensors"]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (JUDGE, "needs --model to draw from, or --samples"),
        ([*JUDGE, *SAMPLES, "--save-samples", "a"], "--save-samples needs --model"),
        (UNCOND, "no scale to go through"),
        ([*DRAW, "--schedules", "4"], "--schedules need a --classifier"),
        ([*UNCOND, *CLASSIFIER, "--cfg-schedules", "4"], "label dropout"),
        ([*DRAW, "--cfg-schedules", '{"axis": "step", "values": [1, 2]}'], "lists 2 scales"),
        ([*DRAW, "--recurrence", "-1"], "recurrence is -1; .* from 1 .* to 100"),
        ([*DRAW, *REAL, "--num-samples", "3"], "num_samples is 3; .* at least 4"),
        ([*DRAW, *SMALL], "images of 8x8x3, but those of small.npz are 4x4x3"),
        ([*JUDGE, "--samples", "few.npz", *REAL], "few.npz has 3 images; .* at least 4"),
        ([*JUDGE, "--samples", "grey.npz"], "reads images of 3 channels, but these have 1"),
        ([*DRAW, "--plot", "a.jpg"], "a.jpg; its name must end in .png"),
        ([*DRAW, "--save-samples", "few.npz"], "few.npz is no folder that can be written to"),
    ],
    ids=lambda value: " ".join(value)[-60:] if isinstance(value, list) else "",
)
def test_what_cannot_be_is_refused_in_one_line_before_the_work(guidance, arguments, said):
    write_samples("small.npz", 9, size=4)
    write_samples("few.npz", 3)
    write_samples("grey.npz", 9, channels=1)
    before = names_here()
    error = guidance(*arguments, status=1)
    assert len(error.strip().splitlines()) == 1, error
    assert error.startswith("error: ") and re.search(said, error), error
    assert names_here() == before


def test_an_interruption_leaves_the_samples_of_whole_rows(guidance, monkeypatch):
    real, calls = guidance_loop.ddim_step, iter(range(100))

    def step(*arguments, **options):
        if next(calls) == 3 * 4 + 1:
            raise KeyboardInterrupt
        return real(*arguments, **options)

    monkeypatch.setattr(guidance_loop, "ddim_step", step)
    files = ["--cfg-scales", "0,1", "--output", "a.json", "--plot", "a.png"]
    said = guidance(*DRAW, *files, "--save-samples", "samples", status=130)
    first = str(Path("samples") / "01_none_0.npz")
    assert f"written: 1, the last is {first}" in said.strip().splitlines()[-1]
    assert names_here() == [first]
    with np.load(first) as file:
        assert len(file["arr_0"]) == 5


@pytest.mark.long
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
