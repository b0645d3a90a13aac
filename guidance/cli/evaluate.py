"""python -m guidance evaluate"""

from __future__ import annotations

import argparse
import json
from dataclasses import fields
from pathlib import Path

from ..classifier import NoisyClassifier
from ..diffusion import DiffusionModel
from ..evaluation import Score, judge_samples
from ..files import check_target, replaced
from ..generation import Job, generate, with_scales
from ..images import load_samples
from ..loading import load_classifier
from ..strength import Strength
from . import options
from .sample import add_sampling, load_models, sampling_options

HELP = "judge how well samples follow their class over a range of scales"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_sampling(parser, needs_model=False)
    parser.add_argument("--judge", required=True, help="classifier of clean images")
    parser.add_argument("--samples", nargs="*", default=[], help=".npz files to judge as they are")
    scales = options.numbers("0,1,2,4,8")
    parser.add_argument("--scales", type=options.numbers, default=scales, help="of the classifier")
    parser.add_argument("--cfg-scales", type=options.numbers, default=scales, help="of CFG")
    parser.add_argument("--num-samples", type=int, default=500)
    parser.add_argument("--output", help="also write the rows to this .json file")


def run(args: argparse.Namespace) -> None:
    if not args.model and not args.samples:
        raise ValueError("evaluate needs --model to draw from, or --samples to judge.")
    if args.output:
        check_target(args.output)
    options.set_threads(args)
    judge = load_classifier(args.judge)
    rows = [_judge_file(judge, file) for file in args.samples]
    if args.model:
        rows += _judge_scales(args, judge)
    print(table(rows))
    if args.output:
        with replaced(args.output) as temporary:
            temporary.write_text(json.dumps(rows, indent=1))


def table(rows: list[dict]) -> str:
    """The rows as a Markdown table."""
    lines = ["| guidance | scale | judge accuracy | diversity |", "|---|---|---|---|"]
    for row in rows:
        scale = "" if row["scale"] is None else f"{row['scale']:g}"
        lines.append(
            f"| {row['guidance']} | {scale} | {row['accuracy']:.3f} | {row['diversity']:.2f} |"
        )
    return "\n".join(lines)


def _row(guidance: str, scale: float | None, score: Score) -> dict:
    return {"guidance": guidance, "scale": scale, **vars(score)}


def _judge_file(judge: NoisyClassifier, file: str) -> dict:
    images, labels, _ = load_samples(file)
    return _row(Path(file).name, None, judge_samples(judge, images, labels))


def _judge_scales(args: argparse.Namespace, judge: NoisyClassifier) -> list[dict]:
    model, classifier = load_models(args)
    job = Job(num_samples=args.num_samples, label="all", **sampling_options(args))
    rows = []
    for guidance, scale, what in _runs(args, model, classifier, job):
        drawn = generate(model, classifier, what, args.image_size, f"{guidance} {scale:g}")
        rows.append(_row(guidance, scale, judge_samples(judge, *drawn)))
    return rows


def _with_options(job: Job) -> str:
    """What the rows of classifier guidance are called."""
    values = {option: getattr(job.strength, option.name) for option in fields(Strength)}
    chosen = [
        f"{option.name.replace('_', ' ')} {value:g}"
        for option, value in values.items()
        if option.name != "scale" and value != option.default
    ]
    return ", ".join(["classifier", *chosen])


def _runs(
    args: argparse.Namespace, model: DiffusionModel, classifier: NoisyClassifier | None, job: Job
) -> list[tuple[str, float, Job]]:
    """Name, scale and job of each row; without guidance both kinds are the same, drawn once."""
    droppable = model.layout.null_class is not None
    base = 0.0 if droppable else 1.0
    runs = []
    if classifier is not None:
        runs += [
            (_with_options(job), scale, with_scales(job, scale, base)) for scale in args.scales
        ]
    if droppable:
        runs += [("CFG", scale, with_scales(job, 0.0, scale)) for scale in args.cfg_scales]
    if not runs:
        raise ValueError(
            "There is no scale to go through: give --classifier, or a model trained with label "
            "dropout."
        )
    plain = with_scales(job, 0.0, base)
    guided = [run for run in runs if run[2] != plain]
    return [("none", 0.0, plain)] * (len(guided) < len(runs)) + guided
