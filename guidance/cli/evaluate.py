"""python -m guidance evaluate"""

from __future__ import annotations

import argparse
import contextlib
import json
import re
from pathlib import Path

import numpy as np
from PIL import Image

from ..checkpoints.loading import load_classifier
from ..classifiers.base import Classifier
from ..classifiers.noisy import NoisyClassifier
from ..core.atomic_write import atomic_path, check_folder, check_target
from ..core.distributed import Processes, process_group
from ..core.images import load_samples, save_samples
from ..evaluation.compute_cost import ComputeCost, count_compute
from ..evaluation.judge import Reference, check_judge, judge_samples, judged
from ..evaluation.metrics import check_enough
from ..evaluation.report import Row, table
from ..evaluation.report_plot import plot_rows
from ..sampling.generate import SamplingConfig, check_schedules, generate
from ..sampling.model import DiffusionModel
from ..training.data import load_images
from . import options
from .runs import EvaluationRun, distinct, planned
from .sample import add_sampling, load_models
from .training import warn_skipped
from .variants import HELP as VARY_HELP
from .variants import of_variant, variants

HELP = "judge how well samples follow their class over a range of scales and schedules"
ASK_FOR_REFERENCE = (
    "Frechet distance, precision and recall need real images: give them with --reference."
)
PER_IMAGE = "Passes of the diffusion network, gradients of the classifier, and seconds: per image."


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_sampling(parser, needs_model=False)
    parser.add_argument("--judge", required=True, help="classifier of clean images")
    parser.add_argument("--samples", nargs="*", default=[], help=".npz files to judge as they are")
    parser.add_argument(
        "--reference",
        help="real images, .npz or a folder of class folders: adds the Frechet distance to them, "
        "precision and recall",
    )
    scales = options.numbers("0,1,2,4,8")
    parser.add_argument("--scales", type=options.numbers, default=scales, help="of the classifier")
    parser.add_argument("--cfg-scales", type=options.numbers, default=scales, help="of CFG")
    schedules = "JSON of schedules, or files of it; a row for each"
    parser.add_argument(
        "--schedules", nargs="*", default=[], help=f"of the classifier: {schedules}"
    )
    parser.add_argument("--cfg-schedules", nargs="*", default=[], help=f"of CFG: {schedules}")
    parser.add_argument("--vary", nargs="*", default=[], metavar="NAME=VALUES", help=VARY_HELP)
    parser.add_argument("--num-samples", type=int, default=500)
    parser.add_argument("--output", help="also write the rows to this .json file")
    parser.add_argument("--plot", help="also draw the rows into this .png file")
    parser.add_argument(
        "--save-samples", help="write the images of each row into this folder, as .npz files"
    )


def run(args: argparse.Namespace) -> None:
    _check(args)
    options.set_threads(args)
    saved: list[str] = []
    try:
        with process_group() as processes:
            rows, reference = _rows(args, processes, saved)
            if processes.first:
                _report(args, rows, reference)
    except KeyboardInterrupt:
        if not saved:
            raise
        kept = f"interrupted; rows with samples written: {len(saved)}, the last is {saved[-1]}."
        raise KeyboardInterrupt(kept) from None


def _check(args: argparse.Namespace) -> None:
    """Raises ValueError for invalid options or unwritable files, before the work."""
    if not args.model and not args.samples:
        raise ValueError("evaluate needs --model to draw from, or --samples to judge.")
    for name in ("schedules", "cfg_schedules", "save_samples"):
        if getattr(args, name) and not args.model:
            raise ValueError(f"--{name.replace('_', '-')} needs --model to draw from.")
    if args.reference and args.model:
        check_enough(args.num_samples, f"num_samples is {args.num_samples}")
    if args.output:
        check_target(args.output)
    if args.plot:
        check_target(args.plot, ".png")
    if args.save_samples:
        check_folder(args.save_samples)


def _rows(
    args: argparse.Namespace, processes: Processes, saved: list[str]
) -> tuple[list[Row], Reference | None]:
    """The rows and the reference; only the first process has rows.

    The name of every written file is added to `saved`.
    """
    judge = load_classifier(args.judge, device=options.device(args.device))
    model, classifier = load_models(args) if args.model else (None, None)
    runs: list[EvaluationRun] = []
    shape = None  # of the model's images, if known
    if model is not None:
        for variant in variants(args):
            runs += planned(variant, model, of_variant(classifier, variant))
        runs = distinct(runs)
        for one in runs:
            check_schedules(model, one.config)
        if side := args.image_size or model.layout.image_size:
            shape = (side, side, model.layout.image_channels)
            check_judge(judge, shape)
    reference = _reference(args, judge, shape) if args.reference and processes.first else None
    rows = [_file_row(judge, file, reference) for file in args.samples if processes.first]
    for number, one in enumerate(runs, 1):
        assert model is not None  # without a model there are no runs
        title = f"{number}/{len(runs)} {one.title}"
        images, labels, work = _draw(args, model, one.classifier, one.config, title, processes)
        if not processes.first:
            continue
        file = None
        if args.save_samples:
            file = _save(args.save_samples, number, one, images, labels)
            saved.append(file)
        score = judge_samples(judge, images, labels, reference)
        schedule = one.schedule.to_dict() if one.schedule else None
        about = (one.kind, one.guidance, one.scale)
        rows.append(Row(*about, score, len(images), schedule, work, file))
    return rows, reference


def _draw(
    args: argparse.Namespace,
    model: DiffusionModel,
    classifier: Classifier | None,
    config: SamplingConfig,
    title: str,
    processes: Processes,
) -> tuple[np.ndarray, np.ndarray, ComputeCost]:
    """Images, labels, and the cost per image."""
    with count_compute(model, classifier) as work:
        images, labels = generate(
            model, classifier, config, args.image_size, title, processes=processes
        )
    return images, labels, work.of_all(processes).per_image(len(images))


def _reference(
    args: argparse.Namespace, judge: NoisyClassifier, shape: tuple[int, int, int] | None
) -> Reference:
    """The real images, with the judge's features; shape (H, W, C): of the model's."""
    side = shape[0] if shape else args.image_size or judge.layout.image_size
    real = load_images(args.reference, side if Path(args.reference).is_dir() else None)
    warn_skipped(real.skipped)
    check_enough(len(real), f"{args.reference} has {len(real)} images")
    images = real.images.permute(0, 2, 3, 1).numpy()
    reference = Reference(judged(judge, images)[1], images.shape[1:], args.reference)
    if shape:
        reference.check(shape, args.model)
    return reference


def _file_row(judge: NoisyClassifier, file: str, reference: Reference | None) -> Row:
    images, labels, _ = load_samples(file)
    if reference is not None:
        reference.check(images.shape[1:], file)
        check_enough(len(images), f"{file} has {len(images)} images")
    score = judge_samples(judge, images, labels, reference)
    return Row("file", Path(file).name, None, score, len(images), samples=file)


def _save(
    folder: str, number: int, one: EvaluationRun, images: np.ndarray, labels: np.ndarray
) -> str:
    """Writes the images of a run and returns the file's name."""
    words = re.sub(r"[^A-Za-z0-9.-]+", "_", one.title).strip("_")[:60]
    file = Path(folder) / f"{number:02d}_{words}.npz"
    save_samples(file, images, labels, None)
    return str(file)


def _report(args: argparse.Namespace, rows: list[Row], reference: Reference | None) -> None:
    """Prints the table with notes, and writes the files, both or none."""
    print(table(rows))
    for note in _notes(rows, reference):
        print(f"\n{note}")
    with contextlib.ExitStack() as files:
        if args.output:
            file = files.enter_context(atomic_path(args.output))
            file.write_text(json.dumps([row.to_dict() for row in rows], indent=1))
        if args.plot:
            file = files.enter_context(atomic_path(args.plot))
            Image.fromarray(plot_rows(rows)).save(file, format="PNG")


def _notes(rows: list[Row], reference: Reference | None) -> list[str]:
    notes = []
    if any(row.work is not None for row in rows):
        notes.append(PER_IMAGE)
    if reference is None:
        return [*notes, ASK_FOR_REFERENCE]
    real, size = reference.features.shape
    notes.append(
        f"Frechet distance, precision and recall: to the {real} images of {reference.name}, in "
        f"{size} features of the judge."
    )
    if len({row.images for row in rows}) > 1:
        notes.append("They change with the number of images; compare rows that have as many.")
    fewest = min(real, *(row.images for row in rows))
    if fewest <= size:
        notes.append(
            f"{fewest} images are too few for a covariance of {size} features: the Frechet "
            f"distance comes out too large; take more than {size}, the more the better."
        )
    return notes
