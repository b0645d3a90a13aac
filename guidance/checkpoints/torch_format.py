"""Tensors of .pt and .pth files, the zip archives that torch writes since version 1.6.

Everything is checked before torch opens the file: the content of the archive, the names in its
pickle (with the standard library's pickletools, which runs nothing), and the size of every storage.
Then torch loads it with weights_only, mapped into memory.
"""

from __future__ import annotations

import os
import pickletools
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

MOST_PICKLE = 4 << 20  # bytes; a 559 M U-Net's has 0.2 MB
MOST_INSTRUCTIONS = 250_000  # a tensor needs about 40
LOCAL_HEADER = 30  # bytes of a record's header, before its name
ALIGNED = 8  # bytes; data that does not start at a multiple of this is copied
ITEM_SIZES = {
    **dict.fromkeys(("DoubleStorage", "LongStorage"), 8),
    **dict.fromkeys(("FloatStorage", "IntStorage"), 4),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
    **dict.fromkeys(("CharStorage", "ByteStorage", "BoolStorage"), 1),
}
NAMES = {f"torch {kind}": size for kind, size in ITEM_SIZES.items()} | {
    "collections OrderedDict": 0,
    "torch._utils _rebuild_tensor": 0,
    "torch._utils _rebuild_tensor_v2": 0,
    "torch._utils _rebuild_parameter": 0,
}
# Instructions for plain values, lists, dictionaries, and calls of the names above.
VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"}
VALUES |= {"NONE", "NEWTRUE", "NEWFALSE"}
TUPLES = {"TUPLE", "TUPLE1", "TUPLE2", "TUPLE3"}
KNOWN = VALUES | {"GLOBAL", "MARK", "BINPERSID", "PROTO", "STOP", "REDUCE", "NEWOBJ", "BUILD"}
KNOWN |= {"EMPTY_DICT", "EMPTY_LIST", "EMPTY_TUPLE", "APPEND", "APPENDS", "SETITEM", "SETITEMS"}


class Unsafe(ValueError):
    """The pickle uses a name that may run code; the message says which."""


class OtherContent(ValueError):
    """The file has something other than a dictionary of plain tensors; the message says what."""


class Hollow(ValueError):
    """The file claims more values than it has; the message says where."""


def read_torch_file(path: Path, mmap: bool = True) -> dict[str, Tensor]:
    """The tensors of a state dict; raises CheckpointError with one sentence.

    mmap: the values stay in the file until they are used.
    """
    try:
        with path.open("rb") as file:
            _check_kind(path, file.read(2))
            copied = not _check_archive(file)
            size = os.fstat(file.fileno()).st_size
        # always mapped; without it, torch would trust the size that a storage claims
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
    except Exception as error:  # zipfile, pickletools and torch can raise any error
        raise CheckpointError(
            f"{path.name} is not a whole torch file ({one_line(error)}); download it again."
        ) from error


def _check_kind(path: Path, start: bytes) -> None:
    if start == b"PK":
        return
    if start[:1] == b"\x80":
        raise CheckpointError(
            f"{path.name} is a bare pickle, as torch wrote before version 1.6: it may run code "
            "when opened, so it was not opened; get it as .safetensors, or save it with a newer "
            "torch."
        )
    raise CheckpointError(
        f"{path.name} is not a torch file (perhaps a web page that was saved under its name); "
        "download it again."
    )


# --- the archive -----------------------------------------------------------------------------


def _check_archive(file: BinaryIO) -> bool:
    """Whether its data is aligned in memory when it is mapped; raises if the file is unsafe."""
    with open_zip(file) as archive:
        entries = archive.infolist()
    main = [entry.filename for entry in entries if entry.filename.endswith("/data.pkl")]
    if len(main) != 1:
        raise ValueError(f"an archive with {len(main)} data.pkl")
    folder = main[0].removesuffix("data.pkl")
    if any(entry.filename == f"{folder}constants.pkl" for entry in entries):
        raise Unsafe("a TorchScript program")
    records = dict(_records(file, entries, folder))
    if _content(file, records.get("byteorder"), 16) not in (b"", b"little"):
        raise ValueError("its numbers are big-endian")
    storages = _storages(_content(file, records["data.pkl"], MOST_PICKLE))
    for key, (kind, count) in storages.items():
        _, size = records.get(f"data/{key}", (0, 0))
        if count * ITEM_SIZES[kind] > size:
            raise Hollow(f"a storage {quoted(key)} larger")
    return all(records[f"data/{key}"][0] % ALIGNED == 0 for key in storages)


def _records(
    file: BinaryIO, entries: list[zipfile.ZipInfo], folder: str
) -> Iterator[tuple[str, tuple[int, int]]]:
    """Offset and size by name. torch compresses nothing, so compressed records are refused."""
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
        yield name, (start, entry.file_size)


def _content(file: BinaryIO, record: tuple[int, int] | None, most: int) -> bytes:
    if record is None:
        return b""
    offset, size = record
    if size > most:
        raise ValueError(f"a record of {size} bytes where at most {most} are expected")
    file.seek(offset)
    return file.read(size)


# --- the pickle ------------------------------------------------------------------------------


class _Tuple:
    """A tuple in the pickle's memo."""


def _storages(pickle: bytes) -> dict[str, tuple[str, int]]:
    """The storages in a pickle: by key, their type and the number of values that they claim.

    The instructions are read, not run. Raises Unsafe for an instruction that a dictionary of
    tensors does not need, and for a name that is not in NAMES.
    """
    found: dict[str, tuple[str, int]] = {}
    memo: dict[int, Any] = {}
    # the plain values since the last mark, and the tuple of them, as in a storage
    plain: list[Any] | None = None
    made: list[Any] | None = None
    last: Any = None
    argument: Any
    for number, (code, argument, _) in enumerate(pickletools.genops(pickle)):
        name = code.name
        if number > MOST_INSTRUCTIONS:
            raise OtherContent(f"more than {MOST_INSTRUCTIONS} instructions")
        if name in ("BINPUT", "LONG_BINPUT"):
            memo[argument] = last
            continue
        if name == "BINPERSID":
            key, storage = _storage(made)
            if found.setdefault(key, storage) != storage:
                raise ValueError("a storage has two sizes or types")
        made = plain if name == "TUPLE" else None
        if name == "GLOBAL" and argument not in NAMES:
            raise Unsafe(str(argument).replace(" ", ".")[:80])
        if name in ("BINGET", "LONG_BINGET"):
            argument = memo.get(argument)
            if isinstance(argument, _Tuple):  # nested tuples would take too long to hash
                raise OtherContent("a tuple that is used twice")
        elif name in TUPLES:
            argument = _Tuple()
        elif name not in KNOWN:
            raise Unsafe(f"the pickle instruction {name}")
        last = argument
        is_value = name in VALUES or name in ("GLOBAL", "BINGET", "LONG_BINGET")
        if name == "MARK":
            plain = []
        elif plain is not None:
            plain = [*plain, argument] if is_value and len(plain) < 6 else None
    return found


def _storage(values: list[Any] | None) -> tuple[str, tuple[str, int]]:
    """Key, kind and count of ("storage", its type, key, device, count)."""
    if values is None or len(values) != 5 or values[0] != "storage":
        raise OtherContent("something that is stored elsewhere")
    _, name, key, _, count = values
    kind = name.removeprefix("torch ") if isinstance(name, str) else ""
    if kind not in ITEM_SIZES or not isinstance(key, str) or type(count) is not int or count < 0:
        raise ValueError("damaged (a storage of no known type)")
    return key[:200], (kind, count)


# --- the tensors -----------------------------------------------------------------------------


def _check_tensors(content: Any, size: int) -> None:
    """Raises if it is not a dictionary of plain tensors, or claims more than the file's `size`.

    Tensors can share or repeat memory: any shape fits into a few bytes until it is copied.
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
