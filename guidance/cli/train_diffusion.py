"""python -m guidance train-diffusion"""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict, replace

from ..adm import UNetLayout
from ..checkpoints.checkpoint import Checkpoint, Description, read_checkpoint
from ..core.noise import NoiseSchedule
from ..training.data import Augment, LabelledImages, load_images
from ..training.samples import Sampler
from ..training.train_diffusion import train_diffusion
from . import options
from .training import running, save

HELP = "train a diffusion model, with label dropout so that CFG works"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    options.add_training(parser, steps=20_000, decay=0.0)
    options.add_network(parser, channels=32, mult="1,2,3,3")
    parser.add_argument("--unconditional", action="store_true", help="learn without labels")
    parser.add_argument("--p-uncond", type=float, default=0.1, help="share of labels dropped")
    parser.add_argument("--init", help="a model file whose training goes on")
    parser.add_argument("--fixed-variance", action="store_true", help="do not learn the variance")
    group = parser.add_argument_group("looking at it while it is trained")
    group.add_argument(
        "--sample-every",
        type=int,
        default=0,
        metavar="STEPS",
        help="draw images with the averaged weights, into OUTPUT_step_....png; 0: never",
    )
    group.add_argument("--sample-cfg", type=float, default=2.0, help="the CFG of these images")


def run(args: argparse.Namespace) -> None:
    options.check_training_targets(args)
    if args.sample_every < 0:
        raise ValueError(f"sample-every is {args.sample_every}; it must be at least 0.")
    options.set_threads(args)
    data = load_images(args.data, args.image_size)
    recipe = options.recipe(args)
    layout = _layout(args, data)
    earlier = _earlier(args.init, layout) if args.init else None
    augment = Augment(args.shift, args.flip)
    settings = {
        **asdict(recipe),
        "layout": asdict(layout),
        "noise_schedule": args.noise_schedule,
        "p_uncond": args.p_uncond,
        "augment": asdict(augment),
        "init": args.init,
        "data": data.digest(),
    }
    started = time.monotonic()
    with running(args, data, settings) as where:
        if args.sample_every:
            sampler = Sampler(args.output, args.noise_schedule, args.sample_cfg)
            where = replace(where, show=sampler, show_every=args.sample_every)
        trained = train_diffusion(
            data,
            layout,
            NoiseSchedule(args.noise_schedule),
            recipe,
            p_uncond=args.p_uncond,
            augment=augment,
            run=where,
            weights=earlier.tensors if earlier else None,
        )
        if not where.processes.first:
            return
        training = {
            "images": len(data),
            "steps": args.steps,
            "batch_size": args.batch_size,
            "p_uncond": args.p_uncond,
            "seed": args.seed,
            "before": earlier.description.training if earlier else None,
            "seconds": round(time.monotonic() - started),
            "loss": trained.loss,
        }
        description = Description(
            kind="diffusion",
            layout=layout,
            noise_schedule=args.noise_schedule,
            labels=None if args.unconditional else data.names,
            space=data.space,
            training=training,
        )
        save(args, trained, description)


def _earlier(file: str, layout: UNetLayout) -> Checkpoint:
    """The file to continue from; its network must match the options."""
    checkpoint = read_checkpoint(file, "diffusion")
    found, wanted = asdict(checkpoint.description.layout), asdict(layout)
    different = [name for name, value in wanted.items() if found[name] != value]
    if different:
        name = different[0]
        raise ValueError(
            f"{file} has {name} {found[name]}, but the options ask for {wanted[name]}; "
            "continue a training with the network options it began with."
        )
    return checkpoint


def _layout(args: argparse.Namespace, data: LabelledImages) -> UNetLayout:
    channels = data.images.shape[1]
    classes = None if args.unconditional else len(data.names)
    null_class = classes if classes and args.p_uncond > 0 else None
    chosen = options.values(args, UNetLayout) | {
        "in_channels": channels,
        "image_channels": channels,
        "out_channels": channels if args.fixed_variance else 2 * channels,
        "image_size": data.images.shape[-1],
        "num_classes": classes if null_class is None else null_class + 1,
        "null_class": null_class,
    }
    return UNetLayout(**chosen)
