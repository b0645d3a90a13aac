"""python -m guidance info"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict

from ..checkpoints.checkpoint import read_checkpoint
from . import options

HELP = "say what a model file is"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", help="a .safetensors, .pt or .pth file")
    options.add_architecture_overrides(parser)


def run(args: argparse.Namespace) -> None:
    checkpoint = read_checkpoint(args.file, **options.architecture_overrides(args))
    about = checkpoint.description
    network = checkpoint.network()
    millions = sum(p.numel() for p in network.parameters()) / 1e6
    dtypes = sorted({str(t.dtype).removeprefix("torch.") for t in checkpoint.tensors.values()})
    print(f"{args.file}: {about.kind}, {millions:.2f} M parameters, {', '.join(dtypes)}")
    print(f"  noise schedule: {about.noise_schedule} (from {about.source})")
    print(f"  space: {about.space or 'unknown'}")
    print(f"  labels: {', '.join(about.labels) if about.labels else 'no names'}")
    for name, value in asdict(about.layout).items():
        print(f"  {name}: {value}")
    if about.training:
        print(f"  training: {json.dumps(about.training)}")
