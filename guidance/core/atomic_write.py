"""Writes files so that an interruption leaves the old or the new file, never a partial one."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError
from safetensors.torch import save_file

if TYPE_CHECKING:
    from torch import Tensor

UNFINISHED = ".unfinished"  # loaders do not list this suffix as a model file


def check_target(path: str | Path, *suffixes: str) -> None:
    """Raises ValueError if `path` cannot be written or has another suffix, before the work."""
    path = Path(path)
    if suffixes and path.suffix not in suffixes:
        raise ValueError(f"output is {path}; its name must end in {' or '.join(suffixes)}.")
    if path.is_dir():
        raise ValueError(f"output is {path}, which is a folder; give the name of a file.")
    _check_writable(path, path.absolute().parent)


def check_folder(path: str | Path) -> None:
    """Raises ValueError if files cannot be written into the folder `path`, before the work."""
    _check_writable(Path(path), Path(path).absolute())


def _check_writable(path: Path, folder: Path) -> None:
    found = next(each for each in (folder, *folder.parents) if each.exists())
    if not found.is_dir() or not os.access(found, os.W_OK):
        raise ValueError(f"output is {path}, but {found} is no folder that can be written to.")


@contextmanager
def atomic_path(path: str | Path, suffix: str | None = None) -> Iterator[Path]:
    """Yields a temporary path next to `path`; renames it to `path` if the block succeeds.

    A killed process leaves the temporary file. With `suffix`, it is not mistaken for a whole file.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.stem}-{secrets.token_hex(4)}{suffix or path.suffix}")
    # not by tempfile, whose files are private
    temporary.touch(exist_ok=False)
    try:
        yield temporary
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def write_tensors(path: str | Path, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
    """Writes a .safetensors file atomically. Raises OSError with the file's name."""
    try:
        with atomic_path(path, UNFINISHED) as temporary:
            save_file(tensors, temporary, metadata)
    except SafetensorError as error:  # safetensors raises this if the disk is full
        raise OSError(
            f"{path} could not be written ({error}); what was there before is untouched. "
            "Make room, or choose another place."
        ) from error
