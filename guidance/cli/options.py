"""Options that several commands share."""

from __future__ import annotations

import argparse
import os
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch

from ..checkpoints.checkpoint import ATTENTION_ORDERS
from ..core.atomic_write import check_target
from ..core.bounded_read import one_line, read_text
from ..schedules.schedule import GuidanceSchedule
from ..training.loop import OptimizerConfig


def numbers(text: str) -> tuple[float, ...]:
    """ "1,2,2.5" -> (1.0, 2.0, 2.5)."""
    return tuple(float(part) for part in text.split(",") if part.strip())


def integers(text: str) -> tuple[int, ...]:
    """ "1,2" -> (1, 2)."""
    return tuple(int(part) for part in text.split(",") if part.strip())


def read_schedule(text: str) -> tuple[Path | None, GuidanceSchedule]:
    """A schedule and its file, or None if `text` is the JSON itself.

    Raises ValueError if the file does not exist or has no schedule.
    """
    if _is_json(text):
        return None, GuidanceSchedule.from_json(text)
    file = Path(text)
    if not file.is_file():
        raise ValueError(
            f"schedule is {text[:100]!r}, which is neither the JSON of a schedule nor a file of it."
        )
    try:
        content = read_text(file)
    except (ValueError, OSError) as error:
        raise ValueError(
            f"schedule is {file}, which cannot be read ({one_line(error)}); give a file of JSON."
        ) from error
    try:
        return file, GuidanceSchedule.from_json(content)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def _is_json(text: str) -> bool:
    """Whether the text looks like JSON: an object, a list, or a number."""
    try:
        float(text)
    except ValueError:
        return text.lstrip()[:1] in ("{", "[")
    return True


def device(name: str | None = None) -> torch.device:
    """The named device, else the accelerator if torch finds one, else the CPU.

    Several processes on a machine use one accelerator each. Raises ValueError for a device that
    torch does not know or cannot use.
    """
    if name:
        try:
            return torch.empty(0, device=name).device
        except (RuntimeError, AssertionError, NotImplementedError) as error:
            reason = str(error).splitlines()[0]
            raise ValueError(f"device is {name!r}, which cannot be used: {reason[:200]}") from error
    if torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)))
    return torch.device("mps" if torch.backends.mps.is_available() else "cpu")


def add_device(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--device", help="cpu, cuda, mps, ...; default: the fastest there is")
    parser.add_argument("--threads", type=int, help="CPU threads; default: torch's choice")


def add_architecture_overrides(parser: argparse.ArgumentParser, whose: str = "") -> None:
    """What a file's tensors cannot tell; `whose` goes before the names, "classifier-" for one."""
    group = parser.add_argument_group(f"what the tensors of the {whose}file cannot tell")
    schedules = ("auto", "linear", "cosine")
    group.add_argument(f"--{whose}noise-schedule", choices=schedules, default="auto")
    group.add_argument(f"--{whose}num-heads", type=int, default=0, help="in each block; 0: auto")
    group.add_argument(f"--{whose}num-head-channels", type=int, default=0, help="instead; 0: auto")
    group.add_argument(f"--{whose}attention-order", choices=ATTENTION_ORDERS, default="auto")


def architecture_overrides(args: argparse.Namespace, whose: str = "") -> dict[str, Any]:
    """Arguments of `read_checkpoint` from the options of `add_architecture_overrides`."""
    names = ("noise_schedule", "num_heads", "num_head_channels", "attention_order")
    return {name: getattr(args, whose.replace("-", "_") + name) for name in names}


def values(args: argparse.Namespace, config: Any) -> dict[str, Any]:
    """The options that are stored under the name of a field of this dataclass."""
    return {field.name: getattr(args, field.name) for field in fields(config) if field.name in args}


def set_threads(args: argparse.Namespace) -> None:
    if args.threads is None:
        return
    if args.threads < 1:
        raise ValueError(f"threads is {args.threads}; it must be at least 1.")
    torch.set_num_threads(args.threads)


def add_network(parser: argparse.ArgumentParser, channels: int, mult: str) -> None:
    group = parser.add_argument_group("network")
    group.add_argument(
        "--channels", dest="model_channels", type=int, default=channels, help="of the finest level"
    )
    group.add_argument("--channel-mult", type=numbers, default=numbers(mult), help="width factors")
    group.add_argument("--res-blocks", dest="num_res_blocks", type=int, default=1, help="per level")
    group.add_argument("--attention-levels", type=integers, default=(2,), help="0 is full size")
    group.add_argument(
        "--head-channels", dest="num_head_channels", type=int, default=32, help="per head"
    )
    group.add_argument("--norm-groups", type=int, default=8, help="of the group norms")
    group.add_argument("--dropout", type=float, default=0.0)


def add_training(parser: argparse.ArgumentParser, steps: int, decay: float) -> None:
    parser.add_argument(
        "--data",
        required=True,
        help="folder of class folders, .npz (arr_0, arr_1), or .safetensors of labelled latents",
    )
    parser.add_argument("--output", required=True, help="the .safetensors file to write")
    parser.add_argument("--image-size", type=int, help="side in pixels; needed for folders")
    parser.add_argument("--noise-schedule", choices=("linear", "cosine"), default="linear")
    parser.add_argument("--save-dtype", choices=("fp32", "bf16", "fp16"), default="fp32")
    group = parser.add_argument_group("optimisation")
    group.add_argument("--steps", type=int, default=steps)
    group.add_argument("--batch-size", type=int, default=64)
    group.add_argument("--lr", type=float, default=3e-4, dest="learning_rate")
    group.add_argument("--weight-decay", type=float, default=decay)
    group.add_argument("--ema", type=float, default=0.999, help="decay of the averaged weights")
    group.add_argument("--seed", type=int, default=0)
    group.add_argument(
        "--shift", type=int, default=0, help="random moves by up to this many pixels"
    )
    group.add_argument("--history", help="also write the losses and validations to this .json file")
    group.add_argument("--flip", action="store_true", help="random mirror images")
    group.add_argument(
        "--accumulate", type=int, default=1, help="go through each batch in so many parts"
    )
    group.add_argument(
        "--fresh", action="store_true", help="begin anew where an earlier run was stopped"
    )
    group.add_argument("--bf16", action="store_true", help="compute in bfloat16 where it is safe")
    add_device(parser)


def check_training_targets(args: argparse.Namespace) -> None:
    """Raises ValueError if the output files of a training cannot be written, before the work."""
    check_target(args.output, ".safetensors")
    if args.history:
        check_target(args.history, ".json")


def recipe(args: argparse.Namespace) -> OptimizerConfig:
    """The OptimizerConfig from the options of `add_training`."""
    return OptimizerConfig(**values(args, OptimizerConfig))
