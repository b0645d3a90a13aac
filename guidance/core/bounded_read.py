"""The reading room: what every file that is opened has to pass, before memory is taken for it.

Files come from anywhere. Whatever is in one, the outcome is its content or one clear sentence,
in time and memory that its size justifies.
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
MOST_TENSORS = 5_000  # of one file; a 559 M U-Net has 800
MOST_DIMENSIONS = 8
MOST_CLASSES = 100_000
MOST_JSON = 16 << 20  # bytes of a JSON file
MOST_HEADER = 8 << 20  # bytes of a safetensors header, metadata and all
MOST_DIRECTORY = 2 << 20  # bytes of the list of what a zip archive holds
MOST_MARKS = 400_000  # of each of those in that header that begin or end a value
# as safetensors calls them: what the networks here are made of
SAFE_DTYPES = frozenset(("F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8", "BOOL"))


class CheckpointError(ValueError):
    """A model file that cannot be used; the message says which, why, and what would do."""


def one_line(error: Exception) -> str:
    """The error in one line of at most 160 characters."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, KeyError):
        text = f"{text} is missing or unknown"
    return text if len(text) <= 160 else text[:157] + "..."


def quoted(name: object) -> str:
    """A name out of a file, in quotes and in at most 90 characters, also if none can be printed."""
    text = repr(str(name)[:80])
    return text if len(text) <= 90 else text[:86] + "..." + text[0]


def check_file(path: Path, suffixes: Iterable[str]) -> None:
    """Raises CheckpointError unless it is an ordinary file of one of these endings."""
    if not path.is_file():
        raise CheckpointError(
            f"{path} does not exist or is not a file; choose an existing model file."
        )
    if path.suffix not in suffixes:
        raise CheckpointError(
            f"{path.name} is not one of {', '.join(suffixes)}; save its tensors as .safetensors."
        )


def is_within(path: Path, folders: Iterable[str | Path]) -> bool:
    """Whether it is, with every link followed, in one of the folders."""
    try:
        real = Path(os.path.realpath(path))
        return any(real.is_relative_to(os.path.realpath(folder)) for folder in folders)
    except ValueError:  # a name with a null character
        return False


# --- JSON ------------------------------------------------------------------------------------


def parse_json(text: str | bytes) -> Any:
    """The value; raises ValueError, also where it is nested without end."""
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
    """The archive in the file; raises BadZipFile, also for a directory that is too long."""
    return zipfile.ZipFile(_ShortReads(file))  # type: ignore[call-overload]


class _ShortReads:
    """A file for `zipfile`, whose directory takes many times its size when it is read."""

    def __init__(self, file: BinaryIO):
        self.file = file
        self.seek, self.tell = file.seek, file.tell

    def seekable(self) -> bool:
        """For zipfile."""
        return True

    def read(self, size: int = -1) -> bytes:
        """Of the file; raises BadZipFile for more than what a directory may have."""
        found = self.file.read(MOST_DIRECTORY + 1 if size < 0 else min(size, MOST_DIRECTORY + 1))
        if len(found) > MOST_DIRECTORY:
            raise zipfile.BadZipFile(f"its directory has more than {MOST_DIRECTORY} bytes")
        return found


# --- safetensors -----------------------------------------------------------------------------


@contextmanager
def open_safetensors(path: str | Path) -> Iterator[Any]:
    """`safe_open` of a file whose header was looked at: how large it is, and what it announces.

    Raises ValueError, SafetensorError or OSError that say what is wrong, without the file's name.
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
    """The header's length comes first, in 8 bytes; parsing it takes several times its size."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or length > size - 8:
        raise ValueError("it ends within its header")
    if length > MOST_HEADER:
        raise ValueError(f"its header has {length} bytes, more than {MOST_HEADER}")
    header = file.read(length)
    # each value takes many times its bytes; quotes within texts are escaped
    quotes = header.count(b'"') - header.count(b'\\"')
    if max(quotes, *map(header.count, (b",", b"[", b"{"))) > MOST_MARKS:
        raise ValueError(f"its header has more than {MOST_MARKS // 2} names and values")


def _check_slice(key: str, part: Any) -> None:
    shape, dtype = part.get_shape(), part.get_dtype()
    if len(shape) > MOST_DIMENSIONS:
        raise ValueError(f"{quoted(key)} has {len(shape)} dimensions, more than {MOST_DIMENSIONS}")
    if dtype not in SAFE_DTYPES:
        raise ValueError(f"{quoted(key)} is {dtype}, which the networks here are not made of")
