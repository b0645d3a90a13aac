"""python -m guidance train-classifier"""

from __future__ import annotations

import argparse
import time

from torch import nn

from ..adm import ClassifierLayout
from ..adm.layout import POOLS
from ..checkpoint import Description, save_checkpoint
from ..files import check_target
from ..noise import NoiseSchedule
from ..training.data import LabelledImages, load_images
from ..training.train_classifier import accuracy, train_classifier
from . import options

HELP = "train a classifier on noisy images (or a clean one, to judge with)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_training(parser, steps=10_000, decay=0.05)
    options.add_network(parser, channels=32, mult="1,2,4")
    parser.add_argument(
        "--pool", choices=POOLS, default="attention", help="how features become classes"
    )
    parser.add_argument("--clean", action="store_true", help="no noise: a judge, not for guidance")
    parser.add_argument("--held-out", type=float, default=0.1, help="share kept for validation")


def run(args: argparse.Namespace) -> None:
    check_target(args.output, ".safetensors")
    options.set_threads(args)
    data, held_out = load_images(args.data, args.image_size).split(args.held_out, args.seed)
    recipe = options.recipe(args)
    layout = ClassifierLayout(
        **options.network_options(args),
        in_channels=data.images.shape[1],
        out_channels=len(data.names),
        image_size=data.images.shape[-1],
        pool=args.pool,
    )
    schedule = NoiseSchedule(args.noise_schedule)
    started = time.monotonic()
    network, losses = train_classifier(
        data,
        layout,
        schedule,
        recipe,
        clean=args.clean,
        shift=args.shift,
        device=str(options.device(args.device)),
    )
    training = {
        "images": len(data),
        "held_out": len(held_out),
        "steps": args.steps,
        "batch_size": args.batch_size,
        "clean": args.clean,
        "seed": args.seed,
        "seconds": round(time.monotonic() - started),
        "loss": sum(losses[-200:]) / len(losses[-200:]),
        "accuracy_by_timestep": _accuracies(network, held_out, schedule, args.clean),
    }
    description = Description(
        kind="classifier",
        layout=layout,
        noise_schedule=args.noise_schedule,
        labels=data.names,
        space="rgb",
        training=training,
    )
    save_checkpoint(args.output, network.state_dict(), description, args.save_dtype)
    print(f"{args.output}: {training['seconds']} s, loss {training['loss']:.4f}")
    for t, share in training["accuracy_by_timestep"].items():
        print(f"  held-out accuracy at timestep {t}: {share:.3f}")


def _accuracies(
    network: nn.Module, data: LabelledImages, schedule: NoiseSchedule, clean: bool
) -> dict[str, float]:
    if not len(data):
        return {}
    if clean:
        return {"0": accuracy(network, data)}
    steps = (0, 100, 200, 300, 400, 500, 600, 800)
    return {str(t): accuracy(network, data, float(schedule.alpha_bar[t]), t) for t in steps}
