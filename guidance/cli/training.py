"""Shared parts of the training commands: processes, resume file, messages at the end."""

from __future__ import annotations

import argparse
import contextlib
import json
from collections.abc import Iterator
from typing import Any

from ..core.atomic_write import atomic_path
from ..core.distributed import process_group
from ..training.loop import Trained, TrainingContext
from ..training.resume import ResumeFile
from . import options


@contextlib.contextmanager
def running(
    args: argparse.Namespace, settings: dict[str, Any], title: str
) -> Iterator[TrainingContext]:
    """The context of a training; its resume file is deleted if the block succeeds."""
    with process_group() as processes:
        resume = ResumeFile.beside(args.output, settings)
        if args.fresh and processes.first:
            resume.delete()
        processes.from_first(None)  # no process may look for the file before it is deleted
        device = str(options.device(args.device))
        try:
            yield TrainingContext(title=title, device=device, processes=processes, resume=resume)
        except KeyboardInterrupt:
            raise KeyboardInterrupt(_how_to_go_on(resume)) from None
        if processes.first:
            resume.delete()


def _how_to_go_on(resume: ResumeFile) -> str:
    if not resume.path.exists():
        return ""
    return f"interrupted; the same command goes on from where it was ({resume.path})."


def write_log(path: str | None, trained: Trained) -> None:
    """Writes the loss of each step and the validation results as JSON, with --history."""
    if path is None:
        return
    with atomic_path(path) as temporary:
        about = {"losses": trained.losses, "validations": trained.validations}
        temporary.write_text(json.dumps(about))


def warn_skipped(skipped: tuple[str, ...]) -> None:
    """Prints the images that could not be read."""
    if skipped:
        some = ", ".join(skipped[:5]) + (", ..." if len(skipped) > 5 else "")
        print(f"warning: left out {len(skipped)} unreadable pictures: {some}")
