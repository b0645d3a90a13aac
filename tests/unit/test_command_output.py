"""What each command hands on, prints and writes, word for word."""

from __future__ import annotations

import json
import re
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_networks import (
    CLASSES,
    NAMES,
    SIZE,
    classifier_layout,
    diffusion_model,
    half_unet,
    noisy_classifier,
    unet,
    unet_layout,
    write_model,
)

from guidance import GuidanceSchedule
from guidance.adm import EncoderUNet, UNet
from guidance.adm.presets import classifier_layout as preset_layout
from guidance.checkpoints.checkpoint import Description, read_checkpoint
from guidance.cli.runs import named_schedule, with_options
from guidance.cli.training import warn_skipped
from guidance.core.distributed import Processes
from guidance.sampling.generate import SamplingConfig
from guidance.training.data import Augment, LabelledImages, load_images, save_latents
from guidance.training.loop import OptimizerConfig, Trained

FOUR = '{"points": [[0, 4]]}'


def sample(*more):
    return ["sample", "--model", "@diffusion.safetensors", "--device", "cpu", *more]


# --- info and convert ------------------------------------------------------------------------


def test_info_line_by_line(guidance):
    network = half_unet()
    write_model("c.safetensors", network)
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    assert guidance("info", "c.safetensors").splitlines() == [
        f"c.safetensors: classifier, {millions:.2f} M parameters, float32",
        "  noise schedule: linear (from metadata)",
        "  space: rgb",
        "  labels: cat, catfish, zebra",
        *(f"  {name}: {value}" for name, value in asdict(network.layout).items()),
    ]


def test_info_of_a_model_that_knows_little(guidance):
    from guidance.checkpoints.checkpoint import save_checkpoint

    network = unet(num_classes=None, null_class=None)
    tensors = network.state_dict()
    key = next(iter(tensors))
    tensors[key] = tensors[key].half()
    about = Description(
        kind="diffusion",
        layout=network.layout,
        noise_schedule="cosine",
        training={"steps": 3, "loss": 0.5},
    )
    save_checkpoint("d.safetensors", tensors, about)
    lines = guidance("info", "d.safetensors").splitlines()
    assert lines[0].endswith(" M parameters, float16, float32")
    assert lines[1:4] == [
        "  noise schedule: cosine (from metadata)",
        "  space: unknown",
        "  labels: no names",
    ]
    assert lines[-1] == '  training: {"steps": 3, "loss": 0.5}'


def test_convert_says_what_it_wrote(guidance):
    said = guidance("convert", "@diffusion.safetensors", "a.safetensors")
    assert said == "a.safetensors: diffusion, noise schedule linear\n"
    said = guidance("convert", "@diffusion.safetensors", "a.pt", status=1)
    assert said == "error: output is a.pt; its name must end in .safetensors.\n"


def test_convert_refuses_what_fits_no_network(guidance, files):
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(files / "classifier.safetensors", "pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    tensors.pop(next(iter(tensors)))
    save_file(tensors, "less.safetensors", metadata)
    guidance("convert", "less.safetensors", "a.safetensors", status=1)
    assert not Path("a.safetensors").exists()


# --- sample ----------------------------------------------------------------------------------


@pytest.fixture
def asked(guidance, monkeypatch):
    """What `sample` asks `generate` for, and what it prints: it draws nothing."""

    def run(*arguments, images=None):
        seen = {}

        def generate(model, classifier, job, image_size, *, low_res, processes):
            seen.update(job=job, image_size=image_size, low_res=low_res, processes=processes)
            seen.update(model=model, classifier=classifier)
            count = job.num_samples
            drawn = np.zeros((count, 4, 6, 3), np.uint8) if images is None else images
            return drawn, np.zeros(count, np.int64)

        monkeypatch.setattr("guidance.cli.sample.generate", generate)
        seen["said"] = guidance(*arguments)
        return seen

    return run


def test_sample_asks_for_fifty_random_images(asked):
    seen = asked(*sample("--output", "a.npz"))
    assert seen["job"] == SamplingConfig(num_samples=50, label="random", scale=1.0, cfg=1.0)
    assert (seen["image_size"], seen["low_res"], seen["classifier"]) == (None, None, None)
    assert seen["processes"] == Processes(0, 1)
    assert seen["said"] == "a.npz: 50 images of 6x4\n"


def test_sample_hands_every_option_on(asked):
    options = [
        *["--output", "a.npz", "--num-samples", "3", "--batch-size", "2", "--label", "zebra"],
        *["--scale", "2", "--cfg", "3", "--method", "ddpm", "--eta", "0.5", "--respacing", "7"],
        *["--seed", "5", "--no-clip", "--entropy-limit", "4", "--cap", "0.25", "--every", "6"],
        *["--label-smoothing", "0.125", "--cfg-every", "2", "--cfg-tolerance", "0.75"],
        *["--image-size", "16"],
    ]
    seen = asked(*sample(*options))
    assert seen["job"] == SamplingConfig(
        num_samples=3,
        batch_size=2,
        label="zebra",
        scale=2.0,
        cfg=3.0,
        method="ddpm",
        eta=0.5,
        respacing="7",
        seed=5,
        clip_denoised=False,
        entropy_limit=4.0,
        cap=0.25,
        every=6,
        label_smoothing=0.125,
        cfg_every=2,
        cfg_tolerance=0.75,
    )
    assert seen["image_size"] == 16


CLASSIFIER = ["--classifier", "@classifier.safetensors"]


@pytest.mark.parametrize(
    ("model", "more", "cfg"),
    [
        ("diffusion", [], 1.0),
        ("diffusion", CLASSIFIER, 0.0),
        ("uncond", CLASSIFIER, 1.0),
        ("diffusion", [*CLASSIFIER, "--cfg", "0.5"], 0.5),
        ("diffusion", ["--cfg", "0"], 0.0),
    ],
)
def test_cfg_is_0_with_a_classifier_where_the_model_can(asked, model, more, cfg):
    command = ["sample", "--model", f"@{model}.safetensors", "--device", "cpu"]
    assert asked(*command, *more, "--output", "a.npz")["job"].cfg == cfg


def test_schedules_go_to_the_classifier_or_else_to_cfg(asked):
    four, five = GuidanceSchedule.from_json(FOUR), GuidanceSchedule.from_json("5")

    def schedules(*more):
        job = asked(*sample("--output", "a.npz", *more))["job"]
        return job.schedule, job.cfg_schedule

    assert schedules() == (None, None)
    assert schedules("--schedule", FOUR) == (None, four)
    assert schedules("--cfg-schedule", FOUR) == (None, four)
    assert schedules(*CLASSIFIER, "--schedule", FOUR) == (four, None)
    assert schedules(*CLASSIFIER, "--cfg-schedule", FOUR) == (None, four)
    assert schedules(*CLASSIFIER, "--schedule", FOUR, "--cfg-schedule", "5") == (four, five)


def test_two_schedules_without_a_classifier_are_refused(guidance):
    said = guidance(
        *sample("--schedule", "4", "--cfg-schedule", "4", "--output", "a.npz"), status=1
    )
    assert said == (
        "error: --schedule and --cfg-schedule are both given, but there is no --classifier for the "
        "first; leave one out.\n"
    )


def test_small_images_say_how_many_and_which(asked):
    np.savez("small.npz", arr_0=np.full((3, 2, 2, 3), 255, np.uint8), arr_1=np.array([2, 0, 1]))
    low = ["--output", "a.npz", "--low-res", "small.npz"]
    seen = asked(*sample(*low))
    assert torch.equal(seen["low_res"], torch.ones(3, 3, 2, 2))
    assert (seen["job"].num_samples, seen["job"].label) == (3, [2, 0, 1])
    seen = asked(*sample(*low, "--num-samples", "2", "--label", "1"))
    assert (seen["job"].num_samples, seen["job"].label) == (2, "1")
    uncond = ["sample", "--model", "@uncond.safetensors", "--device", "cpu"]
    assert asked(*uncond, *low)["job"].label == "random"
    assert asked(*uncond, *CLASSIFIER, *low)["job"].label == [2, 0, 1]


def test_a_small_picture_shows_no_class(asked):
    Image.new("RGB", (2, 2)).save("small.png")
    seen = asked(*sample("--output", "a.npz", "--low-res", "small.png"))
    assert (seen["job"].num_samples, seen["job"].label) == (1, "random")


def test_only_the_first_process_writes(guidance, monkeypatch):
    import contextlib

    @contextlib.contextmanager
    def second():
        yield Processes(1, 2)

    monkeypatch.setattr("guidance.cli.sample.process_group", second)
    drawn = np.zeros((1, 4, 4, 3), np.uint8), np.zeros(1, np.int64)
    monkeypatch.setattr("guidance.cli.sample.generate", lambda *_, **__: drawn)
    assert guidance(*sample("--output", "a.npz")) == ""
    assert list(Path().iterdir()) == []


@pytest.fixture
def loads(asked, monkeypatch):
    """How `sample` loads its models."""

    def run(*more):
        seen = []

        def loader(name, made):
            def load(path, **options):
                seen.append((name, str(path), options))
                return made

            monkeypatch.setattr(f"guidance.cli.sample.{name}", load)

        loader("load_adm", diffusion_model())
        loader("load_classifier", noisy_classifier())
        loader("load_image_classifier", noisy_classifier())
        asked("sample", "--model", "m", "--output", "a.npz", "--device", "cpu", *more)
        return seen

    return run


CPU = torch.device("cpu")


def test_models_are_loaded_as_the_options_say(loads):
    where = {"dtype": "fp32", "device": CPU}
    assert loads() == [("load_adm", "m", {"noise_schedule": "auto", **where})]
    options = ["--dtype", "bf16", "--noise-schedule", "linear", "--classifier-schedule", "cosine"]
    where["dtype"] = "bf16"
    model = ("load_adm", "m", {"noise_schedule": "linear", **where})
    noisy = ("load_classifier", "c", {"noise_schedule": "cosine", **where})
    assert loads(*options, "--classifier", "c") == [model, noisy]


def test_a_gradient_or_a_folder_asks_for_a_classifier_of_clean_images(loads):
    where = {"dtype": "fp32", "device": CPU}
    exact = ("load_image_classifier", "c", {"gradient": "exact", **where})
    assert loads("--classifier", "c", "--gradient", "exact")[1:] == [exact]
    Path("folder").mkdir()
    cheap = ("load_image_classifier", "folder", {"gradient": "cheap", **where})
    assert loads("--classifier", "folder")[1:] == [cheap]


# --- evaluate --------------------------------------------------------------------------------

JUDGE = ["evaluate", "--judge", "@judge.safetensors", "--device", "cpu"]
DRAW = [*JUDGE, "--model", "@diffusion.safetensors"]


@pytest.fixture
def runs(guidance, monkeypatch):
    """The runs that `evaluate` plans, each with the title of its progress bar; none is drawn."""

    def plan(*arguments):
        seen = []

        def draw(args, model, classifier, job, title, processes):
            from guidance.evaluation.compute_cost import ComputeCost

            seen.append((title, job))
            images = np.random.default_rng(0).integers(0, 256, (4, SIZE, SIZE, 3), dtype=np.uint8)
            return images, np.arange(4) % 3, ComputeCost(1, 2, 3.0)

        monkeypatch.setattr("guidance.cli.evaluate._draw", draw)
        guidance(*arguments, "--output", "rows.json")
        return json.loads(Path("rows.json").read_text()), seen

    return plan


def test_evaluate_goes_through_every_scale_once(runs):
    rows, seen = runs(*DRAW, *CLASSIFIER)
    classifier = [("classifier", scale) for scale in (1.0, 2.0, 4.0, 8.0)]
    cfg = [("CFG", scale) for scale in (1.0, 2.0, 4.0, 8.0)]
    assert [(row["kind"], row["scale"]) for row in rows] == [("none", 0.0), *classifier, *cfg]
    assert [row["guidance"] for row in rows] == [row["kind"] for row in rows]
    assert [title for title, _ in seen[:2]] == ["1/9 none 0", "2/9 classifier 1"]
    assert seen[-1][0] == "9/9 CFG 8"
    plain = SamplingConfig(num_samples=500, label="all", cfg=0.0)
    assert [job for _, job in seen[:2]] == [
        plain,
        SamplingConfig(num_samples=500, label="all", scale=1, cfg=0),
    ]
    assert seen[-1][1] == SamplingConfig(num_samples=500, label="all", cfg=8.0)


def test_a_model_without_label_dropout_is_run_with_its_labels(runs, guidance):
    write_model("labelled.safetensors", unet(num_classes=CLASSES, null_class=None))
    command = [*JUDGE, "--model", "labelled.safetensors", *CLASSIFIER]
    _, seen = runs(*command, "--scales", "0,2")
    assert [(job.scale, job.cfg) for _, job in seen] == [(0.0, 1.0), (2.0, 1.0)]
    said = guidance(*command, "--cfg-schedules", "4", status=1)
    assert said == (
        "error: --cfg-schedules need a model trained with label dropout, and this one was not; "
        "leave them out, or steer it with a classifier and --schedules.\n"
    )


def test_without_a_scale_of_0_there_is_no_row_without_guidance(runs):
    rows, seen = runs(*DRAW, "--cfg-scales", "1.5,2")
    assert [(row["kind"], row["scale"]) for row in rows] == [("CFG", 1.5), ("CFG", 2.0)]
    assert [title for title, _ in seen] == ["1/2 CFG 1.5", "2/2 CFG 2"]


def test_a_row_of_a_schedule_is_called_by_it(runs):
    four = GuidanceSchedule.from_json(FOUR)
    none = ["--scales", "", "--cfg-scales", ""]
    options = ["--cap", "0.5", "--schedules", FOUR, "--cfg-schedules", FOUR]
    rows, seen = runs(*DRAW, *CLASSIFIER, *none, *options)
    names = ["classifier, cap 0.5, 4 everywhere", "CFG, 4 everywhere"]
    assert [row["guidance"] for row in rows] == names
    assert [row["scale"] for row in rows] == [None, None]
    assert [row["kind"] for row in rows] == ["classifier", "CFG"]
    assert [title for title, _ in seen] == [f"1/2 {names[0]}", f"2/2 {names[1]}"]
    assert [job.schedule for _, job in seen] == [four, None]
    assert [job.cfg_schedule for _, job in seen] == [None, four]
    assert [row["schedule"] for row in rows] == [four.to_dict()] * 2


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "classifier"),
        ({"scale": 3.0}, "classifier"),
        ({"entropy_limit": 2.0}, "classifier, entropy limit 2"),
        ({"label_smoothing": 0.125, "cap": 0.5}, "classifier, cap 0.5, label smoothing 0.125"),
    ],
)
def test_rows_of_a_classifier_say_its_options(options, name):
    assert with_options(SamplingConfig(num_samples=1, **options)) == name


def test_a_schedule_is_called_as_its_file_or_as_what_it_does(tmp_path):
    file = tmp_path / "late.one.json"
    file.write_text(FOUR)
    four = GuidanceSchedule.from_json(FOUR)
    assert named_schedule(str(file)) == ("late.one", four)
    assert named_schedule(FOUR) == ("4 everywhere", four)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (JUDGE, "evaluate needs --model to draw from, or --samples to judge."),
        (
            [*JUDGE, "--samples", "@data.npz", "--schedules", "4"],
            "--schedules needs --model to draw from.",
        ),
        (
            [*JUDGE, "--samples", "@data.npz", "--cfg-schedules", "4"],
            "--cfg-schedules needs --model to draw from.",
        ),
        (
            [*JUDGE, "--samples", "@data.npz", "--save-samples", "a"],
            "--save-samples needs --model to draw from.",
        ),
        (
            [*DRAW, "--schedules", "4"],
            "--schedules need a --classifier that follows them; those of CFG go to "
            "--cfg-schedules.",
        ),
        (
            [*JUDGE, "--model", "@uncond.safetensors"],
            "There is no scale to go through: give --classifier, or a model trained with label "
            "dropout.",
        ),
        (
            [*DRAW, "--reference", "@data.npz", "--num-samples", "3"],
            "num_samples is 3; a Frechet distance, precision and recall take at least 4 images.",
        ),
        ([*DRAW, "--plot", "a.svg"], "output is a.svg; its name must end in .png."),
        ([*DRAW, "--threads", "0"], "threads is 0; it must be at least 1."),
    ],
)
def test_evaluate_refuses_in_these_words(guidance, arguments, said):
    assert guidance(*arguments, status=1) == f"error: {said}\n"


def test_four_samples_are_enough_to_compare(runs):
    rows, _ = runs(*DRAW, "--reference", "@data.npz", "--num-samples", "4", "--cfg-scales", "2")
    assert rows[0]["frechet"] > 0


def write_samples(name, count):
    images = np.random.default_rng(0).integers(0, 256, (count, SIZE, SIZE, 3), dtype=np.uint8)
    np.savez(name, arr_0=images, arr_1=np.arange(count) % CLASSES)


ASK = "Frechet distance, precision and recall need real images: give them with --reference."
PER_IMAGE = "Passes of the diffusion network, gradients of the classifier, and seconds: per image."


def notes(said):
    """What follows the table, paragraph by paragraph."""
    return said.strip().split("\n\n")[1:]


def test_evaluate_asks_for_real_images(guidance, runs, capsys):
    assert notes(guidance(*JUDGE, "--samples", "@data.npz")) == [ASK]
    short = ["--num-samples", "1", "--respacing", "1", "--cfg-scales", "1"]
    assert notes(guidance(*DRAW, *short)) == [PER_IMAGE, ASK]


def compared(count):
    return (
        f"Frechet distance, precision and recall: to the {count} images of real.npz, in 64 "
        "features of the judge."
    )


def too_few(count):
    return (
        f"{count} images are too few for a covariance of 64 features: the Frechet distance comes "
        "out too large; take more than 64, the more the better."
    )


OTHER_COUNTS = "They change with the number of images; compare rows that have as many."


def test_evaluate_says_when_images_are_too_few(guidance):
    for count, said in ((64, [compared(64), too_few(64)]), (65, [compared(65)])):
        write_samples("real.npz", count)
        write_samples("a.npz", 65)
        found = guidance(*JUDGE, "--samples", "a.npz", "--reference", "real.npz")
        assert notes(found) == said
    write_samples("b.npz", 64)
    found = guidance(*JUDGE, "--samples", "a.npz", "b.npz", "--reference", "real.npz")
    assert notes(found) == [compared(65), OTHER_COUNTS, too_few(64)]
    found = guidance(*JUDGE, "--samples", "a.npz", "a.npz", "--reference", "real.npz")
    assert notes(found) == [compared(65)]


def test_evaluate_writes_its_rows_readably(guidance):
    guidance(*JUDGE, "--samples", "@data.npz", "--output", "rows.json")
    text = Path("rows.json").read_text()
    (row,) = json.loads(text)
    assert text == json.dumps([row], indent=1)
    assert (row["kind"], row["guidance"], row["images"]) == ("file", "data.npz", 24)
    assert Path(row["samples"]).name == "data.npz" and Path(row["samples"]).is_absolute()
    assert (row["passes"], row["gradients"], row["seconds"]) == (None, None, None)


def test_names_of_saved_samples_are_short_and_plain(runs):
    long = Path(" long(é)" * 15 + ".json")
    long.write_text("4")
    saved = ["--save-samples", "s", "--scales", "", "--cfg-scales", "2.5"]
    rows, _ = runs(*DRAW, *saved, "--cfg-schedules", str(long), FOUR)
    names = [Path(row["samples"]).name for row in rows]
    assert names[0] == "01_CFG_2.5.npz"
    assert names[1] == f"02_{'CFG' + '_long' * 11}_l.npz"
    assert names[2] == "03_CFG_4_everywhere.npz"
    with np.load(Path("s") / names[0]) as file:
        assert (file["arr_0"].shape, file["arr_1"].tolist()) == ((4, SIZE, SIZE, 3), [0, 1, 2, 0])


def test_evaluate_names_pictures_that_cannot_be_read(guidance):
    for number in range(4):
        Path("real/a").mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (SIZE, SIZE), (60 * number,) * 3).save(f"real/a/{number}.png")
    Path("real/a/broken.png").write_bytes(b"no picture")
    said = guidance(*JUDGE, "--samples", "@data.npz", "--reference", "real", "--image-size", "8")
    broken = Path("a") / "broken.png"
    assert said.startswith(f"warning: left out 1 unreadable pictures: {broken}\n")


# --- what the two trainings share ------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "end"), [(1, "0"), (5, "0, 1, 2, 3, 4"), (6, "0, 1, 2, 3, 4, ...")]
)
def test_some_of_the_skipped_pictures_are_named(capsys, count, end):
    warn_skipped(tuple(map(str, range(count))))
    said = capsys.readouterr().out
    assert said == f"warning: left out {count} unreadable pictures: {end}\n"


def test_without_skipped_pictures_nothing_is_said(capsys):
    warn_skipped(())
    assert capsys.readouterr().out == ""


TRAINED = {
    "train-classifier": "guidance.cli.train_classifier.new_classifier",
    "train-diffusion": "guidance.cli.train_diffusion.train_diffusion",
}
OPTIONS = ["--data", "@data.npz", "--device", "cpu"]
NETWORK = ["--channels", "32", "--channel-mult", "1,2", "--attention-levels", "1"]


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
        status = 130 if stop else 0
        arguments = [command, *OPTIONS, "--output", "a.safetensors", *more]
        seen["said"] = guidance(*arguments, status=status)
        return seen

    return run


@pytest.mark.parametrize("command", TRAINED)
def test_a_training_runs_on_the_device_and_keeps_its_state_beside_its_output(training, command):
    run = training(command)["run"]
    assert (run.title, run.device, run.processes) == (command, "cpu", Processes(0, 1))
    assert run.resume.path == Path("a.safetensors.resume")
    assert run.resume.seconds == 30.0
    assert (run.show, run.show_every) == (None, 0)


@pytest.mark.parametrize("command", TRAINED)
def test_the_state_goes_when_the_training_has_ended(training, command):
    Path("a.safetensors.resume").write_bytes(b"a state")
    training(command)
    assert sorted(path.name for path in Path().iterdir()) == ["a.safetensors"]


@pytest.mark.parametrize("command", TRAINED)
@pytest.mark.parametrize("fresh", [False, True])
def test_an_interrupted_training_says_how_to_go_on(training, command, fresh):
    Path("a.safetensors.resume").write_bytes(b"a state")
    said = training(command, *["--fresh"] * fresh, stop=True)["said"]
    if fresh:
        assert said == "\ninterrupted; nothing was written.\n"
        assert list(Path().iterdir()) == []
    else:
        assert said == (
            "\ninterrupted; the same command goes on from where it was (a.safetensors.resume).\n"
        )
        assert [path.name for path in Path().iterdir()] == ["a.safetensors.resume"]


@pytest.mark.parametrize("command", TRAINED)
def test_a_training_writes_its_history(training, command):
    training(command, "--history", "h.json")
    assert json.loads(Path("h.json").read_text()) == {
        "losses": [0.5, 0.25],
        "validations": [{"step": 2, "loss": 0.5, "accuracy": {"0": 0.5}}]
        if command == "train-classifier"
        else [],
    }


@pytest.mark.parametrize("command", TRAINED)
def test_a_training_names_pictures_that_cannot_be_read(training, command):
    for name in ("a", "b"):
        Path("real", name).mkdir(parents=True)
        Image.new("RGB", (SIZE, SIZE)).save(f"real/{name}/whole.png")
    Path("real/b/broken.png").write_bytes(b"no picture")
    said = training(command, "--data", "real", "--image-size", "8")["said"]
    broken = Path("b") / "broken.png"
    assert said.splitlines()[0] == f"warning: left out 1 unreadable pictures: {broken}"


# --- train-classifier ------------------------------------------------------------------------


def test_train_classifier_says_how_it_went(training):
    assert training("train-classifier")["said"].splitlines() == [
        "a.safetensors: 7 s, loss 0.1235",
        "  held-out accuracy at timestep 0: 0.500",
        "  held-out accuracy at timestep 10: 1.000",
    ]


def test_train_classifier_plans_what_the_options_say(training, files):
    plan = training("train-classifier")["plan"]
    assert plan.recipe == OptimizerConfig(steps=10_000)
    wide = {"channel_mult": (1.0, 2.0, 4.0), "attention_levels": (2,)}
    assert plan.layout == classifier_layout(**wide, norm_groups=8)
    found = (plan.noise_schedule, plan.clean, plan.augment, plan.held_out, plan.patience)
    assert found == ("linear", False, Augment(0, False), 0.1, 0)
    assert plan.data.digest() == load_images(files / "data.npz").digest()
    more = [*NETWORK, "--pool", "spatial", "--noise-schedule", "cosine", "--clean", "--flip"]
    more += ["--shift", "2", "--held-out", "0.25", "--patience", "3", "--image-size", "8"]
    plan = training("train-classifier", *more)["plan"]
    assert plan.layout == classifier_layout(pool="spatial", norm_groups=8)
    found = (plan.noise_schedule, plan.clean, plan.augment, plan.held_out, plan.patience)
    assert found == ("cosine", True, Augment(2, True), 0.25, 3)


def test_the_state_of_a_classifier_belongs_to_its_plan(training):
    seen = training("train-classifier", *NETWORK)
    assert seen["run"].resume.settings == json.loads(json.dumps(seen["plan"].settings()))


def test_a_preset_takes_the_place_of_the_network_options(training):
    images = torch.zeros(4, 5, 6, 8)
    data = LabelledImages(images, torch.arange(4) % 2, ("a", "b"), space="x")
    save_latents("l.safetensors", data)
    more = ["--data", "l.safetensors", "--preset", "small", "--pool", "adaptive"]
    expected = preset_layout("small", channels=5, size=(6, 8), classes=2, pool="adaptive")
    assert training("train-classifier", *more)["plan"].layout == expected
    plain = training("train-classifier", "--data", "l.safetensors", "--pool", "adaptive")["plan"]
    assert (plain.layout.image_size, plain.layout.in_channels, plain.layout.out_channels) == (
        8,
        5,
        2,
    )


def test_train_classifier_draws_its_losses(training, guidance):
    training("train-classifier", "--plot", "p.png")
    with Image.open("p.png") as picture:
        assert picture.format == "PNG"
    command = ["train-classifier", *OPTIONS, "--output", "b.safetensors", "--plot", "p.jpg"]
    assert guidance(*command, status=1) == "error: output is p.jpg; its name must end in .png.\n"


def test_save_dtype_is_that_of_the_file(training):
    for command in TRAINED:
        for name, dtype in (("fp16", torch.float16), ("bf16", torch.bfloat16)):
            training(command, "--save-dtype", name)
            tensors = read_checkpoint("a.safetensors").tensors.values()
            assert {tensor.dtype for tensor in tensors} == {dtype}
        training(command)
        assert read_checkpoint("a.safetensors").dtype == torch.float32


# --- train-diffusion -------------------------------------------------------------------------


def test_train_diffusion_says_how_it_went(training):
    said = training("train-diffusion")["said"]
    assert re.fullmatch(r"a\.safetensors: \d+ s, loss 0\.3750\n", said)


def test_train_diffusion_describes_what_it_trained(training, monkeypatch):
    from types import SimpleNamespace

    clock = iter([10.0, 12.6])
    fake = SimpleNamespace(monotonic=lambda: next(clock))
    monkeypatch.setattr("guidance.cli.train_diffusion.time", fake)
    more = ["--steps", "5", "--batch-size", "4", "--seed", "3", "--p-uncond", "0.25"]
    said = training("train-diffusion", *more, "--noise-schedule", "cosine")["said"]
    assert said == "a.safetensors: 3 s, loss 0.3750\n"
    about = read_checkpoint("a.safetensors").description
    assert (about.kind, about.noise_schedule, about.labels, about.space) == (
        "diffusion",
        "cosine",
        NAMES,
        "rgb",
    )
    assert about.training == {
        "images": 24,
        "steps": 5,
        "batch_size": 4,
        "p_uncond": 0.25,
        "seed": 3,
        "before": None,
        "seconds": 3,
        "loss": 0.375,
    }


def test_train_diffusion_hands_every_option_on(training):
    seen = training("train-diffusion")
    wide = {"channel_mult": (1.0, 2.0, 3.0, 3.0), "attention_levels": (2,)}
    assert seen["layout"] == unet_layout(**wide, norm_groups=8)
    assert seen["recipe"] == OptimizerConfig(steps=20_000, weight_decay=0.0)
    assert (seen["p_uncond"], seen["augment"], seen["weights"]) == (0.1, Augment(0, False), None)
    assert seen["run"].resume.settings == json.loads(
        json.dumps(
            {
                **asdict(seen["recipe"]),
                "layout": asdict(seen["layout"]),
                "noise_schedule": "linear",
                "p_uncond": 0.1,
                "augment": {"shift": 0, "flip": False},
                "init": None,
                "data": seen["data"].digest(),
            }
        )
    )
    more = ["--p-uncond", "0.5", "--shift", "2", "--flip", "--noise-schedule", "cosine"]
    seen = training("train-diffusion", *NETWORK, *more)
    assert seen["layout"] == unet_layout(norm_groups=8)
    assert (seen["p_uncond"], seen["augment"]) == (0.5, Augment(2, True))
    settings = seen["run"].resume.settings
    assert (settings["p_uncond"], settings["noise_schedule"]) == (0.5, "cosine")
    assert settings["augment"] == {"shift": 2, "flip": True}


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


def test_an_unconditional_model_names_no_classes(training):
    training("train-diffusion", "--unconditional")
    assert read_checkpoint("a.safetensors").description.labels is None


def test_a_diffusion_model_of_latents(training):
    data = LabelledImages(torch.zeros(4, 5, 8, 8), torch.arange(4) % 2, ("a", "b"), space="x")
    save_latents("l.safetensors", data)
    layout = training("train-diffusion", *NETWORK, "--data", "l.safetensors")["layout"]
    assert (layout.in_channels, layout.image_channels, layout.out_channels) == (5, 5, 10)
    about = read_checkpoint("a.safetensors").description
    assert (about.space, about.labels) == ("x", ("a", "b"))


def test_samples_while_it_trains_are_asked_for(training):
    more = ["--sample-every", "3", "--sample-cfg", "1.5", "--noise-schedule", "cosine"]
    run = training("train-diffusion", *more)["run"]
    assert run.show_every == 3
    assert (run.show.output, run.show.schedule, run.show.cfg) == (
        Path("a.safetensors"),
        "cosine",
        1.5,
    )
    assert run.show.respacing == "ddim25"


def test_samples_at_less_than_no_step_are_refused(guidance):
    command = ["train-diffusion", *OPTIONS, "--output", "a.safetensors", "--sample-every", "-1"]
    assert guidance(*command, status=1) == "error: sample-every is -1; it must be at least 0.\n"


def test_an_earlier_training_goes_on_with_its_network(training, guidance, files):
    init = str(files / "diffusion.safetensors")
    network = [*NETWORK, "--norm-groups", "32"]
    seen = training("train-diffusion", *network, "--init", init)
    earlier = read_checkpoint(init)
    assert seen["weights"].keys() == earlier.tensors.keys()
    assert all(torch.equal(seen["weights"][key], earlier.tensors[key]) for key in earlier.tensors)
    assert seen["run"].resume.settings["init"] == init
    assert read_checkpoint("a.safetensors").description.training["before"] == {}
    other = ["--channels", "64", "--channel-mult", "1,2", "--attention-levels", "1"]
    command = ["train-diffusion", *OPTIONS, "--output", "b.safetensors", "--init", init, *other]
    assert guidance(*command, status=1) == (
        f"error: {init} has model_channels 32, but the options ask for 64; continue a training "
        "with the network options it began with.\n"
    )
    classifier = str(files / "classifier.safetensors")
    command[command.index(init)] = classifier
    assert "is a noisy classifier, not" in guidance(*command, status=1)
