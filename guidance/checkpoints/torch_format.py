"""Tensors of .pt and .pth files, the zip archives that torch has written since version 1.6.

Everything is checked before torch opens the file: what the archive holds, the instructions of its
pickle (`torch_pickle`), and that every storage is as large as it claims. Then torch reads it with
weights_only, mapped into memory.
"""

from __future__ import annotations

import os
import struct
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from ..core.bounded_read import (
    MOST_DIMENSIONS,
    MOST_TENSORS,
    CheckpointError,
    one_line,
    open_zip,
    quoted,
)
from .torch_pickle import ITEM_SIZES, OtherContent, Unsafe, storages_of

MOST_PICKLE = 4 << 20  # bytes; a 559 M U-Net's has 0.2 MB
LOCAL_HEADER = 30  # bytes before a record's name
END, LOCATOR_64, END_64 = 22, 20, 56  # bytes of the records that end an archive
ALIGNED = 8  # bytes: numbers that do not start at a multiple of it are copied


class Hollow(ValueError):
    """It claims more numbers than it holds; the message says where."""


def read_torch_file(path: Path, mmap: bool = True) -> dict[str, Tensor]:
    """The tensors of a state dict; raises CheckpointError with one sentence.

    mmap: the numbers stay in the file until they are used.
    """
    try:
        with path.open("rb") as file:
            _check_kind(path, file.read(2))
            copied = not _check_archive(file)
            size = os.fstat(file.fileno()).st_size
        # always mapped: without it torch would believe what a storage claims
        content = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
        _check_tensors(content, size)
        if copied or not mmap:
            return {key: value.clone() for key, value in content.items()}
        return dict(content)
    except CheckpointError:
        raise
    except Unsafe as error:
        raise CheckpointError(
            f"{path.name} holds more than tensors ({one_line(error)}: it may run code when it is "
            "opened), so it was not opened; get it as .safetensors or from its original source."
        ) from error
    except OtherContent as error:
        raise CheckpointError(
            f"{path.name} is not a plain dictionary of tensors (it holds {one_line(error)}); save "
            "the network's state_dict()."
        ) from error
    except Hollow as error:
        raise CheckpointError(
            f"{path.name} claims {one_line(error)} than what it holds, so it was not used; get it "
            "from its original source."
        ) from error
    except Exception as error:  # damaged bytes make zipfile, pickletools and torch fail in any way
        raise CheckpointError(
            f"{path.name} is not a whole torch file ({one_line(error)}); download it again."
        ) from error


def _check_kind(path: Path, start: bytes) -> None:
    if start == b"PK":
        return
    if start[:1] == b"\x80":
        raise CheckpointError(
            f"{path.name} is a bare pickle, as torch wrote before version 1.6: it may run code "
            "when it is opened, so it was not opened; get it as .safetensors, or save it again "
            "with a newer torch."
        )
    raise CheckpointError(
        f"{path.name} is not a torch file (perhaps a web page that was saved under its name); "
        "download it again."
    )


# --- the archive -----------------------------------------------------------------------------


def _check_archive(file: BinaryIO) -> bool:
    """Whether its numbers are aligned in memory when they are mapped; raises where it is unsafe."""
    _check_end(file)
    with open_zip(file) as archive:
        entries = archive.infolist()
    main = [name for entry in entries if (name := _name(entry)).endswith("/data.pkl")]
    if len(main) != 1:
        raise ValueError(f"an archive with {len(main)} data.pkl")
    records = dict(_records(file, entries, main[0].removesuffix("data.pkl")))
    if "constants.pkl" in records:
        raise Unsafe("a TorchScript program")
    if _content(file, records.get("byteorder"), 16) not in (b"", b"little"):
        raise ValueError("its numbers are big-endian")
    pickle = _content(file, records["data.pkl"], MOST_PICKLE)
    if b"\x80\x04" <= pickle[:2] <= b"\x80\xff":
        raise CheckpointError(
            f"{Path(file.name).name} is pickled in protocol 4 or later, which torch's safe reader "
            "does not take; save it again with torch.save's default protocol."
        )
    storages = storages_of(pickle)
    for key, (kind, count) in storages.items():
        _, size = records.get(f"data/{key}", (0, 0))
        if count * ITEM_SIZES[kind] > size:
            raise Hollow(f"a storage {quoted(key)} larger")
    return all(records[f"data/{key}"][0] % ALIGNED == 0 for key in storages)


def _check_end(file: BinaryIO) -> None:
    """Raises where zipfile and torch could find different directories in the archive.

    zipfile takes the one that ends where the last records begin, torch the one at the offset that
    these give. What was looked at has to be what is read.
    """
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - END - LOCATOR_64 - END_64))
    tail = file.read()
    sign, *_, length, offset, comment = struct.unpack("<4s4H2LH", tail[-END:])
    end = size - END
    if sign != b"PK\x05\x06" or comment:
        raise ValueError("it does not end as a zip archive of torch")
    if tail[-END - LOCATOR_64 :].startswith(b"PK\x06\x07"):
        end -= LOCATOR_64 + END_64
        (at,) = struct.unpack_from("<Q", tail, END_64 + 8)
        sign, *_, length, offset = struct.unpack("<4sQ2H2L4Q", tail[:END_64])
        if sign != b"PK\x06\x06" or at != end:
            raise ValueError("it ends as two zip archives")
    if offset + length != end:
        raise ValueError("its directory is not at its end")


def _name(entry: zipfile.ZipInfo) -> str:
    """In small letters: torch looks records up without regard to them."""
    if entry.filename != entry.orig_filename:
        raise ValueError(f"{quoted(entry.filename)} has a second name")
    return entry.filename.lower()


def _records(
    file: BinaryIO, entries: list[zipfile.ZipInfo], folder: str
) -> Iterator[tuple[str, tuple[int, int]]]:
    """Offset and size by name; torch compresses nothing, so what is compressed hides its size."""
    size = os.fstat(file.fileno()).st_size
    seen: set[str] = set()
    for entry in entries:
        name = _name(entry).removeprefix(folder)
        if name in seen:
            raise ValueError(f"two records {quoted(name)}")
        seen.add(name)
        if entry.compress_type != zipfile.ZIP_STORED or entry.file_size != entry.compress_size:
            raise ValueError(f"{quoted(name)} is compressed, which torch never does")
        file.seek(entry.header_offset)
        header = file.read(LOCAL_HEADER)
        if len(header) < LOCAL_HEADER or header[:4] != b"PK\x03\x04":
            raise ValueError(f"{quoted(name)} is not where it should be")
        start = entry.header_offset + LOCAL_HEADER + sum(struct.unpack("<HH", header[26:]))
        if start + entry.file_size > size:
            raise ValueError(f"{quoted(name)} ends after the file")
        yield name, (start, entry.file_size)


def _content(file: BinaryIO, record: tuple[int, int] | None, most: int) -> bytes:
    if record is None:
        return b""
    offset, size = record
    if size > most:
        raise ValueError(f"a record of {size} bytes where at most {most} are expected")
    file.seek(offset)
    return file.read(size)


# --- the tensors -----------------------------------------------------------------------------


def _check_tensors(content: Any, size: int) -> None:
    """Raises for what is no dictionary of plain tensors, or claims more than the file's `size`.

    Tensors can share memory or repeat it: any shape fits into a few bytes until it is copied.
    """
    if not isinstance(content, dict):
        raise OtherContent(f"a {type(content).__name__}")
    if len(content) > MOST_TENSORS:
        raise OtherContent(f"{len(content)} entries, more than {MOST_TENSORS}")
    total = 0
    for key, value in content.items():
        if not isinstance(key, str):
            raise OtherContent(f"the key {quoted(key)}")
        plain = isinstance(value, Tensor) and value.layout == torch.strided
        if not plain or value.ndim > MOST_DIMENSIONS:
            raise OtherContent(f"a {type(value).__name__} under {quoted(key)}")
        if value.nbytes > value.untyped_storage().nbytes():
            raise Hollow(f"a tensor {quoted(key)} larger")
        total += value.nbytes
    if total > size:
        raise Hollow("tensors that share memory and are larger")
