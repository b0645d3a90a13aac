"""Checks that every file must pass before memory is allocated for it.

Files can come from anywhere. Reading any file gives its content or one clear error, with time and
memory in proportion to its size.
"""

from __future__ import annotations

import json
import os
import zipfile
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from safetensors import safe_open

MODEL_SUFFIXES = (".safetensors", ".pt", ".pth")
MOST_TENSORS = 5_000  # in one file; a 559 M U-Net has 800
MOST_DIMENSIONS = 8
MOST_CLASSES = 100_000
MOST_JSON = 16 << 20  # bytes of a JSON file
MOST_HEADER = 8 << 20  # bytes of a safetensors header with its metadata
MOST_DIRECTORY = 2 << 20  # bytes of the directory of a zip archive
MOST_MARKS = 400_000  # of each character in that header that starts or ends a value
# safetensors' names of the dtypes that the networks use
SAFE_DTYPES = frozenset(("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"))


class CheckpointError(ValueError):
    """A model file that cannot be used; the message says which, why, and what to do."""


def one_line(error: Exception) -> str:
    """The error in one line of at most 160 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, KeyError):
        text = f"{text} is missing or unknown"
    return text if len(text) <= 160 else text[:157] + "..."


def quoted(name: object) -> str:
    """A name from a file in quotes, at most 90 characters, also if it is not printable."""
    text = repr(str(name)[:80])
    return text if len(text) <= 90 else text[:86] + "..." + text[0]


def check_file(path: Path, suffixes: Iterable[str]) -> None:
    """Raises CheckpointError unless it is a regular file with one of these suffixes."""
    if not path.is_file():
        raise CheckpointError(
            f"{path} does not exist or is not a file; choose an existing model file."
        )
    if path.suffix not in suffixes:
        raise CheckpointError(
            f"{path.name} is not one of {', '.join(suffixes)}; save its tensors as .safetensors."
        )


def is_within(path: Path, folders: Iterable[str | Path]) -> bool:
    """Whether the file is in one of the folders, after following all links."""
    try:
        real = Path(os.path.realpath(path))
        return any(real.is_relative_to(os.path.realpath(folder)) for folder in folders)
    except ValueError:  # the name has a null character
        return False


# --- JSON ------------------------------------------------------------------------------------


def parse_json(text: str | bytes) -> Any:
    """The parsed value; raises ValueError, also if it is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None


def read_text(path: Path, most: int = MOST_JSON) -> str:
    """A small UTF-8 text file. Raises ValueError for a larger one or another encoding."""
    with path.open("rb") as file:
        content = file.read(most + 1)
    if len(content) > most:
        raise ValueError(f"it has more than {most} bytes")
    return content.decode("utf-8")


# --- archives --------------------------------------------------------------------------------


def open_zip(file: BinaryIO) -> zipfile.ZipFile:
    """The archive in the file; raises BadZipFile, also if its directory is too long."""
    return zipfile.ZipFile(_ShortReads(file))  # type: ignore[call-overload]


class _ShortReads:
    """A file for `zipfile` with a limit on the directory, which needs much memory when read."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.seek, self.tell, self.seekable = file.seek, file.tell, file.seekable

    def read(self, size: int = -1) -> bytes:
        """Reads from the file; raises BadZipFile for more bytes than a directory may have."""
        found = self.file.read(MOST_DIRECTORY + 1 if size < 0 else min(size, MOST_DIRECTORY + 1))
        if len(found) > MOST_DIRECTORY:
            raise zipfile.BadZipFile(f"its directory has more than {MOST_DIRECTORY} bytes")
        return found


# --- safetensors -----------------------------------------------------------------------------


@contextmanager
def open_safetensors(path: str | Path) -> Iterator[Any]:
    """`safe_open` of a file after checking its header: its size, and the tensors it lists.

    Raises ValueError, SafetensorError or OSError with the reason, without the file's name.
    """
    with open(path, "rb") as raw:
        _check_header(raw)
    with safe_open(path, framework="pt", device="cpu") as file:
        keys = list(file.keys())
        if len(keys) > MOST_TENSORS:
            raise ValueError(f"it has {len(keys)} tensors, more than {MOST_TENSORS}")
        for key in keys:
            _check_slice(key, file.get_slice(key))
        yield file


def _check_header(file: BinaryIO) -> None:
    """Checks the header: 8 bytes with its length come first; parsing needs much memory."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise ValueError("it ends within its header")
    if length > MOST_HEADER:
        raise ValueError(f"its header has {length} bytes, more than {MOST_HEADER}")
    header = file.read(length)
    # each value needs many times its bytes in memory; quotes inside of texts are escaped
    quotes = header.count(b'"') - header.count(b'\\"')
    if max(quotes, *map(header.count, (b",", b"[", b"{"))) > MOST_MARKS:
        raise ValueError(f"its header has more than {MOST_MARKS // 2} names and values")


def _check_slice(key: str, part: Any) -> None:
    shape, dtype = part.get_shape(), part.get_dtype()
    if len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"{quoted(key)} has {len(shape)} dimensions, more than {MOST_DIMENSIONS}")
    if dtype not in SAFE_DTYPES:
        raise ValueError(f"{quoted(key)} is {dtype}, which the networks here are not made of")
