"""python -m guidance train-classifier"""

from __future__ import annotations

import argparse

from ..adm import ClassifierLayout
from ..adm.layout import POOLS
from ..adm.presets import PRESETS, classifier_layout
from ..checkpoints.checkpoint import save_checkpoint
from ..core.atomic_write import atomic_path, check_target
from ..training.data import Augment, LabelledImages, load_images
from ..training.loop import Trained
from ..training.new_classifier import TrainingConfig, new_classifier
from . import options
from .training import running, warn_skipped, write_log

HELP = "train a classifier on noisy images (or a clean one, to judge with)"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_training(parser, steps=10_000, decay=0.05)
    options.add_network(parser, channels=32, mult="1,2,4")
    parser.add_argument(
        "--preset", choices=tuple(PRESETS), help="a network by its size, in place of the options"
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
    with running(args, plan.settings(), "train-classifier") as where:
        if where.processes.first:
            warn_skipped(data.skipped)
        trained, description = new_classifier(plan, where)
        if not where.processes.first:
            return
        weights = trained.network.state_dict()
        save_checkpoint(args.output, weights, description, args.save_dtype)
        write_log(args.history, trained)
        if args.plot:
            _plot(args.plot, trained)
    training = description.training
    print(f"{args.output}: {training['seconds']} s, loss {training['loss']:.4f}")
    for t, share in training["accuracy_by_timestep"].items():
        print(f"  held-out accuracy at timestep {t}: {share:.3f}")


def _plot(path: str, trained: Trained) -> None:
    from PIL import Image

    from ..training.plot import plot_training  # matplotlib, on first use

    with atomic_path(path) as temporary:
        picture = Image.fromarray(plot_training(trained.losses, trained.validations))
        picture.save(temporary, format="PNG")


def _layout(args: argparse.Namespace, data: LabelledImages) -> ClassifierLayout:
    channels, height, width = data.images.shape[1:]
    if args.preset:
        return classifier_layout(
            args.preset,
            channels=channels,
            size=(height, width),
            classes=len(data.names),
            pool=args.pool,
        )
    return ClassifierLayout(
        **options.network_options(args),
        in_channels=channels,
        out_channels=len(data.names),
        image_size=width,
        pool=args.pool,
    )
