"""python -m guidance train-classifier"""

from __future__ import annotations

import argparse

from PIL import Image

from ..adm import ClassifierLayout
from ..adm.layout import POOLS
from ..adm.presets import NETWORK_SIZES, classifier_layout
from ..core.atomic_write import atomic_path, check_target
from ..training.data import Augment, LabelledImages, load_images
from ..training.new_classifier import TrainingConfig, new_classifier
from ..training.plot import plot_training
from . import options
from .training import running, save

HELP = "train a classifier on noisy images (or a clean one, to judge with)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_training(parser, steps=10_000, decay=0.05)
    options.add_network(parser, channels=32, mult="1,2,4")
    parser.add_argument(
        "--preset",
        choices=tuple(NETWORK_SIZES),
        help="a network by its size, in place of the options",
    )
    parser.add_argument(
        "--pool", choices=POOLS, default="attention", help="how features become classes"
    )
    parser.add_argument("--clean", action="store_true", help="no noise: a judge, not for guidance")
    parser.add_argument("--held-out", type=float, default=0.1, help="share kept for validation")
    parser.add_argument(
        "--patience",
        type=int,
        default=0,
        help="stop when validation has not improved for so many times; 0: never",
    )
    parser.add_argument("--plot", help="also draw losses and accuracies into this .png")


def run(args: argparse.Namespace) -> None:
    options.check_training_targets(args)
    if args.plot:
        check_target(args.plot, ".png")
    options.set_threads(args)
    data = load_images(args.data, args.image_size)
    plan = TrainingConfig(
        data=data,
        layout=_layout(args, data),
        recipe=options.recipe(args),
        noise_schedule=args.noise_schedule,
        clean=args.clean,
        augment=Augment(args.shift, args.flip),
        held_out=args.held_out,
        patience=args.patience,
    )
    with running(args, data, plan.settings()) as where:
        trained, description = new_classifier(plan, where)
        if not where.processes.first:
            return
        save(args, trained, description)
        for t, share in description.training["accuracy_by_timestep"].items():
            print(f"  held-out accuracy at timestep {t}: {share:.3f}")
        if args.plot:
            with atomic_path(args.plot) as temporary:
                plot = plot_training(trained.losses, trained.validations)
                Image.fromarray(plot).save(temporary, format="PNG")


def _layout(args: argparse.Namespace, data: LabelledImages) -> ClassifierLayout:
    channels, height, width = data.images.shape[1:]
    classes = len(data.names)
    if args.preset:
        size = (height, width)
        return classifier_layout(
            args.preset, channels=channels, size=size, classes=classes, pool=args.pool
        )
    chosen = options.values(args, ClassifierLayout)
    chosen |= {"in_channels": channels, "out_channels": classes, "image_size": width}
    return ClassifierLayout(**chosen)
