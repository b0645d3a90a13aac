"""python -m guidance convert"""

from __future__ import annotations

import argparse

from ..checkpoints.checkpoint import DTYPES, read_checkpoint, save_checkpoint
from ..core.atomic_write import check_target
from . import options

HELP = "turn a .pt file into .safetensors that says what it holds"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", help="a .pt, .pth or .safetensors file")
    parser.add_argument("target", help="the .safetensors file to write")
    parser.add_argument("--dtype", choices=tuple(DTYPES), help="default: as in the source")
    options.add_architecture_overrides(parser)


def run(args: argparse.Namespace) -> None:
    check_target(args.target, ".safetensors")
    checkpoint = read_checkpoint(args.source, **options.architecture_overrides(args))
    checkpoint.network()  # refuse a file that does not fit its network now, not when it is used
    save_checkpoint(args.target, checkpoint.tensors, checkpoint.description, args.dtype)
    about = checkpoint.description
    print(f"{args.target}: {about.kind}, noise schedule {about.noise_schedule}")
