"""Tensors of .pt and .pth files: the zip archive of torch 1.6 and later, and what came before.

The pickle inside is read as data (pickled.py) and never run, so these files are as safe as
.safetensors, with any version of torch. Whatever a file claims is compared with its size before
memory is taken.
"""

from __future__ import annotations

import io
import os
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO
from zipfile import BadZipFile

import torch
from torch import Tensor

from ..core.bounded_read import MOST_TENSORS, CheckpointError, one_line, open_zip, quoted
from .pickled import OtherContent, Storage, StoredTensor, UnsafePickle, read_pickle

ZIP, PICKLE = b"PK", b"\x80"
MOST_PICKLE = 4 << 20  # bytes; a 559 M U-Net's has 0.2 MB
LEGACY_MAGIC = 0x1950A86A20F9469CFC6C
LEGACY_VERSION = 1001
LOCAL_HEADER = 30  # bytes before a record's name


def read_torch_file(path: Path, mmap: bool = True) -> dict[str, Tensor]:
    """The tensors of a state dict; raises CheckpointError with one sentence.

    mmap: an archive's numbers stay in the file until they are used; older files are read whole.
    """
    try:
        with path.open("rb") as file:
            return _tensors(path, file, mmap)
    except UnsafePickle as error:
        raise CheckpointError(
            f"{path.name} holds more than tensors ({one_line(error)}: it may run code when opened), "
            "so it was not opened; get it as .safetensors or from its original source."
        ) from error
    except OtherContent as error:
        raise CheckpointError(
            f"{path.name} is not a plain dictionary of tensors (it holds {one_line(error)}); save the "
            "network's state_dict()."
        ) from error
    except _Hollow as error:
        raise CheckpointError(
            f"{path.name} claims {one_line(error)} than what it holds, so it was not used; get it "
            "from its original source."
        ) from error
    except (ValueError, OSError, RuntimeError, LookupError, struct.error, BadZipFile) as error:
        raise CheckpointError(
            f"{path.name} is not a whole torch file ({one_line(error)}); download it again."
        ) from error


class _Hollow(ValueError):
    """It claims more numbers than are in the file."""


def _tensors(path: Path, file: BinaryIO, mmap: bool) -> dict[str, Tensor]:
    start = file.read(2)
    file.seek(0)
    source: _Archive | _Legacy
    if start == ZIP:
        content, source = _open_archive(path, file, mmap)
    elif start[:1] == PICKLE:
        content, source = _open_legacy(file)
    else:
        raise CheckpointError(
            f"{path.name} is not a torch file (perhaps a web page that was saved under its "
            "name); download it again."
        )
    table = _state_dict(content)
    _check_sizes(table, os.fstat(file.fileno()).st_size)
    return source.tensors(table)


def _state_dict(content: Any) -> dict[str, StoredTensor]:
    if type(content) is not dict:
        raise OtherContent(f"a {type(content).__name__}")
    if len(content) > MOST_TENSORS:
        raise OtherContent(f"{len(content)} entries, more than {MOST_TENSORS}")
    for key, value in content.items():
        if type(key) is not str:
            raise OtherContent(f"the key {quoted(key)}")
        if type(value) is not StoredTensor:
            raise OtherContent(f"a {type(value).__name__} under {quoted(key)}")
    return content


def _check_sizes(table: dict[str, StoredTensor], size: int) -> None:
    """Raises ValueError for storages larger than the file, which was cut off, then; _Hollow for
    tensors larger than their storage, or all of them than the file.

    Tensors can share memory or repeat it: any size fits into a few bytes until it is copied.
    """
    if sum(storage.nbytes for storage in _storages(table).values()) > size:
        raise ValueError("it ends within its numbers")
    for key, tensor in table.items():
        if tensor.nbytes > tensor.storage.nbytes or tensor.end > tensor.storage.count:
            raise _Hollow(f"a tensor {quoted(key)} larger")
    if sum(tensor.nbytes for tensor in table.values()) > size:
        raise _Hollow("tensors that share memory and are larger")


def _storages(table: dict[str, StoredTensor]) -> dict[str, Storage]:
    """By their keys; raises ValueError where one key means two of them."""
    found: dict[str, Storage] = {}
    for tensor in table.values():
        if found.setdefault(tensor.storage.key, tensor.storage) != tensor.storage:
            raise ValueError("a storage has two sizes or types")
    return found


def _placed(tensor: StoredTensor, storage: torch.UntypedStorage) -> Tensor:
    empty = torch.empty(0, dtype=tensor.storage.dtype)
    return empty.set_(storage, tensor.offset, tensor.shape, tensor.stride)


# --- archives --------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Record:
    """Bytes of an archive, as they are in its file."""

    offset: int
    size: int


@dataclass(frozen=True)
class _Archive:
    path: Path
    file: BinaryIO
    records: dict[str, _Record]
    mmap: bool

    def tensors(self, table: dict[str, StoredTensor]) -> dict[str, Tensor]:
        """Views of the mapped file, or of the storages that are read."""
        size = os.fstat(self.file.fileno()).st_size
        mapped = torch.UntypedStorage.from_file(str(self.path), False, size) if self.mmap else None
        storages: dict[str, torch.UntypedStorage] = {}
        for key, tensor in table.items():
            storage = tensor.storage
            record = self.records.get(storage.key)
            if record is None or record.size < storage.nbytes:
                raise _Hollow(f"a tensor {quoted(key)} larger")
            if storage.key not in storages:
                storages[storage.key] = self._storage(storage, record, mapped)
        return {key: _placed(value, storages[value.storage.key]) for key, value in table.items()}

    def _storage(self, storage: Storage, record: _Record, mapped: Any) -> torch.UntypedStorage:
        aligned = record.offset % storage.dtype.itemsize == 0
        if mapped is not None and aligned:
            return mapped[record.offset : record.offset + storage.nbytes]
        self.file.seek(record.offset)
        return _read_storage(self.file, storage.nbytes)


def _open_archive(path: Path, file: BinaryIO, mmap: bool) -> tuple[Any, _Archive]:
    try:
        with open_zip(file) as archive:
            entries = archive.infolist()
    except NotImplementedError as error:  # a kind of archive that zipfile does not know
        raise ValueError(one_line(error)) from error
    main = [entry.filename for entry in entries if entry.filename.endswith("/data.pkl")]
    if len(main) != 1:
        raise ValueError(f"an archive with {len(main)} data.pkl")
    folder = main[0].removesuffix("data.pkl")
    if any(entry.filename == f"{folder}constants.pkl" for entry in entries):
        raise UnsafePickle("a TorchScript program")
    records = dict(_records(file, entries, folder))
    if _content(file, records.get("byteorder"), 16) not in (b"", b"little"):
        raise ValueError("its numbers are big-endian")
    pickle = _content(file, records["data.pkl"], MOST_PICKLE)
    storages = {name[5:]: record for name, record in records.items() if name.startswith("data/")}
    return read_pickle(io.BytesIO(pickle)), _Archive(path, file, storages, mmap)


def _records(
    file: BinaryIO, entries: list[zipfile.ZipInfo], folder: str
) -> Iterator[tuple[str, _Record]]:
    """By their names; torch compresses nothing, so what is compressed hides its size."""
    size = os.fstat(file.fileno()).st_size
    seen: set[str] = set()
    for entry in entries:
        name = entry.filename.removeprefix(folder)
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
        yield name, _Record(start, entry.file_size)


def _content(file: BinaryIO, record: _Record | None, most: int) -> bytes:
    if record is None:
        return b""
    if record.size > most:
        raise ValueError(f"a record of {record.size} bytes where at most {most} are expected")
    file.seek(record.offset)
    return file.read(record.size)


# --- before torch 1.6 ------------------------------------------------------------------------


@dataclass(frozen=True)
class _Legacy:
    """keys: of its storages, in the order in which they follow at `start`."""

    file: BinaryIO
    keys: Any
    start: int

    def tensors(self, table: dict[str, StoredTensor]) -> dict[str, Tensor]:
        """Views of the storages."""
        told = _storages(table)
        named = type(self.keys) is list and all(type(key) is str for key in self.keys)
        if not named or sorted(self.keys) != sorted(told):
            raise ValueError("its storages are not those of its tensors")
        self.file.seek(self.start)
        storages = {key: _next_storage(self.file, told[key]) for key in self.keys}
        return {key: _placed(each, storages[each.storage.key]) for key, each in table.items()}


def _open_legacy(file: BinaryIO) -> tuple[Any, _Legacy]:
    """Pickles of a magic number, a version, the system, the content, the storages' keys; then each
    storage in that order: its count in 8 bytes, and its numbers.
    """
    start = io.BytesIO(file.read(MOST_PICKLE))
    magic = read_pickle(start)
    if magic != LEGACY_MAGIC:
        raise OtherContent("a bare pickle of something else")
    if read_pickle(start) != LEGACY_VERSION:
        raise ValueError("of a version that is not known")
    system = read_pickle(start)
    if type(system) is not dict or system.get("little_endian") is not True:
        raise ValueError("its numbers are big-endian")
    content, keys = read_pickle(start), read_pickle(start)
    return content, _Legacy(file, keys, start.tell())


def _next_storage(file: BinaryIO, storage: Storage) -> torch.UntypedStorage:
    if int.from_bytes(file.read(8), "little") != storage.count:
        raise ValueError("a storage has another size than its tensors say")
    return _read_storage(file, storage.nbytes)


def _read_storage(file: BinaryIO, size: int) -> torch.UntypedStorage:
    content = bytearray(size)
    if file.readinto(content) != size:  # type: ignore[attr-defined]
        raise ValueError("it ends within its numbers")
    if not size:
        return torch.UntypedStorage(0)
    return torch.frombuffer(content, dtype=torch.uint8).untyped_storage()
