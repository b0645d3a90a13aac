"""python -m guidance sample"""

from __future__ import annotations

import argparse
from pathlib import Path

from ..checkpoints.image_classifiers import load_image_classifier
from ..checkpoints.loading import load_adm, load_classifier
from ..checkpoints.zero_shot import PLACE, load_zero_shot_classifier
from ..classifiers.base import Classifier
from ..classifiers.image import GRADIENTS
from ..classifiers.looks import Looks
from ..core.atomic_write import check_target
from ..core.distributed import Processes, process_group
from ..core.images import save_samples
from ..sampling.generate import SamplingConfig, generate
from ..sampling.loop import METHODS
from ..sampling.low_res import read_low_res
from ..sampling.model import DiffusionModel
from ..sampling.recurrence import END_PERCENT
from . import options

HELP = "draw images with classifier guidance, classifier-free guidance, or both"


def add_sampling(parser: argparse.ArgumentParser, needs_model: bool = True) -> None:
    """Options shared with `evaluate`."""
    parser.add_argument("--model", required=needs_model, help="ADM diffusion model file")
    parser.add_argument(
        "--classifier", help="to follow: a noisy classifier, or with --gradient one of clean images"
    )
    parser.add_argument(
        "--gradient",
        choices=GRADIENTS,
        help="--classifier reads clean images (a Hugging Face folder, a torchvision file, a clean "
        "classifier of this pack): cheap leaves the model out of its gradient, exact does not",
    )
    parser.add_argument(
        "--classes",
        help='--classifier is the folder of a CLIP or SigLIP model, and these are its classes: "a '
        'photo of a cat;a photo of a dog"',
    )
    parser.add_argument(
        "--template",
        help=f'text of a class, with its line of --classes for {PLACE}: "a photo of {PLACE}"',
    )
    parser.add_argument(
        "--looks",
        type=int,
        default=0,
        help="augmented copies of the image that the gradient of a classifier of clean images is "
        "averaged over; 0: the image itself",
    )
    parser.add_argument("--flip", action="store_true", help="half of the looks are mirror images")
    parser.add_argument("--method", choices=METHODS, default="ddim")
    parser.add_argument("--eta", type=float, default=0.0, help="DDIM's share of noise, 0 to 1")
    parser.add_argument("--respacing", default="ddim50", help='"250", "ddim25" or "10,15,20"')
    parser.add_argument(
        "--recurrence",
        type=int,
        default=1,
        metavar="R",
        help=f"take each step of the first {END_PERCENT:.0%} of the timesteps R times, with noise "
        "put back between".replace("%", "%%"),
    )
    parser.add_argument("--batch-size", type=int, default=50)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--image-size", type=int, help="side in pixels; default: the model's")
    parser.add_argument("--no-clip", action="store_true", help="do not clip x0 to [-1, 1]")
    add_strength(parser)
    add_cfg_cache(parser)
    parser.add_argument("--dtype", choices=("fp32", "bf16", "fp16"), default="fp32")
    options.add_architecture_overrides(parser)
    options.add_architecture_overrides(parser, "classifier-")
    options.add_device(parser)


def add_cfg_cache(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("fewer passes for CFG")
    group.add_argument(
        "--cfg-interval",
        type=int,
        default=1,
        help="compute CFG's term (cond - uncond) every N steps, and keep it for the steps between",
    )
    group.add_argument(
        "--cfg-tolerance",
        type=float,
        default=0.0,
        help="above 0: less and less often, while the last term predicts the next one to within "
        "this share",
    )


def add_strength(parser: argparse.ArgumentParser) -> None:
    group = parser.add_argument_group("strength of classifier guidance, image by image")
    group.add_argument(
        "--entropy-limit",
        type=float,
        default=1.0,
        help="above 1: scale times ln K / H(p), at most by this factor",
    )
    group.add_argument(
        "--cap", type=float, default=0.0, help="above 0: the largest share of the denoised image"
    )
    group.add_argument(
        "--gradient-interval",
        type=int,
        default=1,
        help="compute the classifier's gradient every N steps, and keep it for the steps between",
    )
    group.add_argument(
        "--label-smoothing", type=float, default=0.0, help="share of the target for all classes"
    )
    group.add_argument(
        "--normalize",
        action="store_true",
        help="use the direction of the gradient alone; a scale of 0.2 to 1 then fits every "
        "classifier",
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    add_sampling(parser)
    parser.add_argument("--output", required=True, help=".png (a grid) or .npz (arr_0, arr_1)")
    parser.add_argument(
        "--low-res",
        help="what an upsampler enlarges 4 times: a picture, or an .npz of `sample`, whose labels "
        "are then used",
    )
    parser.add_argument("--label", help="index, name, list of them, all; default: random")
    parser.add_argument("--scale", type=float, default=1.0, help="classifier guidance")
    parser.add_argument(
        "--cfg",
        type=float,
        help="classifier-free guidance: 0 unconditional, 1 conditional, above: stronger; "
        "left out: 0 with a classifier if the model can, else 1",
    )
    parser.add_argument(
        "--schedule",
        help="JSON of a schedule, or a file of it, in the place of --scale, or of --cfg where "
        'there is no --classifier: \'{"axis": "percent", "points": [[0, 7.5], [1, 1]]}\'',
    )
    parser.add_argument("--cfg-schedule", help="the same in the place of --cfg")
    parser.add_argument(
        "--num-samples", type=int, help="default: 50, or one for each image of --low-res"
    )
    parser.add_argument("--columns", type=int, help="images in a row of the grid")


def run(args: argparse.Namespace) -> None:
    check_target(args.output, ".png", ".npz")
    options.set_threads(args)
    with process_group() as processes:
        _sample(args, processes)


def _sample(args: argparse.Namespace, processes: Processes) -> None:
    low_res, shown = read_low_res(args.low_res) if args.low_res else (None, None)
    model, classifier = load_models(args)
    chosen = sampling_options(args) | _schedules(args)
    if args.num_samples is None:
        chosen["num_samples"] = 50 if low_res is None else len(low_res)
    if args.label is None:
        knows_classes = model.num_classes or classifier is not None
        chosen["label"] = shown if shown is not None and knows_classes else "random"
    if args.cfg is None:
        free = classifier is not None and model.layout.null_class is not None
        chosen["cfg"] = 0.0 if free else 1.0
    config = SamplingConfig(**chosen)
    images, labels = generate(
        model, classifier, config, args.image_size, low_res=low_res, processes=processes
    )
    if not processes.first:
        return
    save_samples(args.output, images, labels, args.columns)
    print(f"{args.output}: {len(images)} images of {images.shape[2]}x{images.shape[1]}")


def _schedules(args: argparse.Namespace) -> dict:
    """The fields of a SamplingConfig from --schedule and --cfg-schedule."""
    texts = {"schedule": args.schedule, "cfg_schedule": args.cfg_schedule}
    if args.schedule and args.classifier is None:
        if args.cfg_schedule:
            raise ValueError(
                "--schedule and --cfg-schedule are both given, but there is no --classifier for "
                "the first; leave one out."
            )
        texts = {"schedule": None, "cfg_schedule": args.schedule}
    given = {name: options.read_schedule(text)[1] for name, text in texts.items() if text}
    return dict.fromkeys(texts) | given


def load_models(
    args: argparse.Namespace,
) -> tuple[DiffusionModel, Classifier | None]:
    """The diffusion model, and the classifier or None."""
    where = {"dtype": args.dtype, "device": options.device(args.device)}
    model = load_adm(args.model, **options.architecture_overrides(args), **where)
    overrides = options.architecture_overrides(args, "classifier-")
    _check_words(args)
    is_clean = args.gradient or args.looks or args.classes is not None
    if args.classifier and not is_clean and not Path(args.classifier).is_dir():
        return model, load_classifier(args.classifier, **overrides, **where)
    if any(value not in (0, "auto") for value in overrides.values()):
        raise ValueError(
            "--classifier-noise-schedule, --classifier-num-heads and their like are for a noisy "
            "classifier, and --classifier names none; leave them out."
        )
    if args.classifier is None:
        if args.looks or args.normalize:
            raise ValueError(
                "--looks and --normalize are of a classifier's gradient; give --classifier, or "
                "leave them out."
            )
        return model, None
    gradient = args.gradient or GRADIENTS[0]
    where |= {"gradient": gradient, "looks": looks_of(args)}
    if args.classes is None:
        return model, load_image_classifier(args.classifier, **where)
    template = PLACE if args.template is None else args.template
    lines = args.classes.split(";")
    return model, load_zero_shot_classifier(args.classifier, lines, template=template, **where)


def looks_of(args: argparse.Namespace) -> Looks:
    """The looks of --looks and --flip."""
    return Looks(count=args.looks, flip=args.flip)


def _check_words(args: argparse.Namespace) -> None:
    """Raises ValueError for --classes without --classifier, or --template without --classes."""
    if args.classes is not None and args.classifier is None:
        raise ValueError(
            "--classes needs --classifier, the folder of a CLIP or SigLIP model to compare with."
        )
    if args.template is not None and args.classes is None:
        raise ValueError("--template is for the lines of --classes, which are not given.")


def sampling_options(args: argparse.Namespace) -> dict:
    """The fields of a SamplingConfig from the options of `add_sampling`."""
    return options.values(args, SamplingConfig) | {"clip_denoised": not args.no_clip}
