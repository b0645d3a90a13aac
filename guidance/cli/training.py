"""Shared parts of the training commands: processes, resume file, messages at the end."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator
from typing import Any

from ..checkpoints.checkpoint import Description, save_checkpoint
from ..core.atomic_write import atomic_path
from ..core.distributed import process_group
from ..training.data import LabelledImages
from ..training.loop import Trained, TrainingContext
from ..training.resume import SUFFIX, ResumeFile
from . import options


@contextlib.contextmanager
def running(
    args: argparse.Namespace, data: LabelledImages, settings: dict[str, Any]
) -> Iterator[TrainingContext]:
    """The context of a training; its resume file is deleted if the block succeeds."""
    with process_group() as processes:
        if processes.first:
            warn_skipped(data.skipped)
        resume = ResumeFile(f"{args.output}{SUFFIX}", settings)
        if args.fresh and processes.first:
            resume.delete()
        processes.from_first(None)  # no process may look for the file before it is deleted
        device = str(options.device(args.device))
        try:
            yield TrainingContext(
                title=args.command, device=device, processes=processes, resume=resume
            )
        except KeyboardInterrupt:
            if not resume.path.exists():
                raise
            raise KeyboardInterrupt(
                f"interrupted; the same command goes on from where it was ({resume.path})."
            ) from None
        if processes.first:
            resume.delete()


def save(args: argparse.Namespace, trained: Trained, description: Description) -> None:
    """Writes the model file and, with --history, all losses and validation results as JSON."""
    save_checkpoint(args.output, trained.network.state_dict(), description, args.save_dtype)
    if args.history:
        with atomic_path(args.history) as temporary:
            about = {"losses": trained.losses, "validations": trained.validations}
            temporary.write_text(json.dumps(about))
    training = description.training
    print(f"{args.output}: {training['seconds']} s, loss {training['loss']:.4f}")


def warn_skipped(skipped: tuple[str, ...]) -> None:
    """Prints the images that could not be read."""
    if skipped:
        some = ", ".join(skipped[:5]) + (", ..." if len(skipped) > 5 else "")
        print(f"warning: left out {len(skipped)} unreadable pictures: {some}")
