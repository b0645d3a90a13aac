"""Files that were made to do harm: nothing runs, little memory is taken, one sentence is said."""

from __future__ import annotations

import ast
import copyreg
import io
import json
import os
import pickle
import struct
import tarfile
import zipfile
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from bounded import ROOM, outcome, peak_growth, sentence
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_networks import CLASSES, half_unet, write_model

from guidance.checkpoints.checkpoint import METADATA_KEY, CheckpointError, read_checkpoint
from guidance.checkpoints.hugging_face import classes_of_folder, open_folder
from guidance.checkpoints.torch_format import read_torch_file
from guidance.cli.options import read_schedule
from guidance.core.bounded_read import MOST_CLASSES, MOST_HEADER, MOST_TENSORS
from guidance.core.images import load_samples, open_picture
from guidance.training.data import load_images, load_latents
from guidance.training.resume import ResumeFile, TrainingState

# --- pickles that run code -------------------------------------------------------------------


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def data(value: bytes) -> bytes:
    return b"B" + struct.pack("<I", len(value)) + value


def call(module: str, name: str, *arguments: str) -> bytes:
    """Instructions that call a function with texts."""
    return f"c{module}\n{name}\n(".encode() + b"".join(map(text, arguments)) + b"tR"


def program(body: bytes, protocol: int = 2) -> bytes:
    return b"\x80" + bytes([protocol]) + body + b"."


def legacy(content: bytes) -> bytes:
    """A file as before torch 1.6, without numbers."""
    system = {"protocol_version": 1001, "little_endian": True}
    head = (0x1950A86A20F9469CFC6C, 1001, system)
    return b"".join(pickle.dumps(part, 2) for part in head) + content + pickle.dumps([], 2)


def archive(content: bytes, how: int = zipfile.ZIP_STORED, **records: bytes) -> bytes:
    """A file as since torch 1.6."""
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", how) as file:
        file.writestr("a/data.pkl", content)
        file.writestr("a/version", b"3\n")
        for name, value in records.items():
            file.writestr(f"a/{name.replace('__', '/')}", value)
    return made.getvalue()


class SetState:
    """Creates a file when its state is set."""

    def __setstate__(self, state):
        Path(state["marker"]).touch()


EXTENSION = 0xF0  # a number for private use


def a_number_of_the_registry(marker: Path) -> bytes:
    if ("os", "system") not in copyreg._extension_registry:
        copyreg.add_extension("os", "system", EXTENSION)
    return b"\x82" + bytes([EXTENSION]) + text(shell(marker)) + b"\x85R"


def a_module_that_runs_when_imported(marker: Path) -> bytes:
    name = f"trap_{abs(hash(marker))}"
    marker.with_name(f"{name}.py").write_text(f"{python(marker)}\nvalue = 1\n")
    return f"c{name}\nvalue\n".encode()


def shell(marker: Path) -> str:
    return f"echo > {marker}"


def python(marker: Path) -> str:
    return f"open({str(marker)!r}, 'w').close()"


def system(marker: Path) -> bytes:
    return call("os", "system", shell(marker))


# Bodies of pickles that create the file `marker`, in as many ways.
TRAPS = {
    "os.system": system,
    "posix.system": lambda m: call(os.name, "system", shell(m)),
    "subprocess": lambda m: call("subprocess", "getoutput", shell(m)),
    "eval": lambda m: call("builtins", "eval", python(m)),
    "exec": lambda m: call("builtins", "exec", python(m)),
    "Python 2's eval": lambda m: call("__builtin__", "eval", python(m)),
    "open": lambda m: call("builtins", "open", str(m), "w"),
    "a profiler": lambda m: call("cProfile", "run", python(m)),
    "an attribute of a module": lambda m: (
        b"cbuiltins\ngetattr\n(cos\n__dict__\n"
        + text("get")
        + b"tR"
        + text("system")
        + b"\x85R"
        + text(shell(m))
        + b"\x85R"
    ),
    "a name from the stack": lambda m: (
        text("os") + text("system") + b"\x93" + text(shell(m)) + b"\x85R"
    ),
    "an instance": lambda m: b"(" + text(shell(m)) + b"ios\nsystem\n",
    "an object": lambda m: b"(cos\nsystem\n" + text(shell(m)) + b"o",
    "a state": lambda m: (
        f"c{__name__}\nSetState\n)\x81}}".encode("latin-1") + text("marker") + text(str(m)) + b"sb"
    ),
    "a number of the registry": a_number_of_the_registry,
    "a module": a_module_that_runs_when_imported,
    "a pickle in a pickle": lambda m: b"cpickle\nloads\n" + data(program(system(m))) + b"\x85R",
    "a torch file in a pickle": lambda m: (
        b"ctorch.storage\n_load_from_bytes\n" + data(legacy(program(system(m)))) + b"\x85R"
    ),
    "a key": lambda m: b"}" + system(m) + b"K\x01s",
    "a value": lambda m: b"}" + text("weight") + system(m) + b"s",
    "metadata": lambda m: b"ccollections\nOrderedDict\n)R}" + text("_metadata") + system(m) + b"sb",
}
WRAPPINGS = {"bare": bytes, "archive": archive, "legacy": legacy}


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """What a trap creates; modules beside it can be imported."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "it_ran"


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("kind", TRAPS)
def test_a_pickle_that_runs_code_does_not(marker, kind, wrapping):
    path = marker.with_name("evil.pt")
    content = program(TRAPS[kind](marker))
    path.write_bytes(WRAPPINGS[wrapping](content))
    said = outcome(path)
    assert not marker.exists()
    if wrapping == "archive":
        assert "may run code" in said or "is not a plain dictionary of tensors" in said
    else:
        assert "before version 1.6" in said
    pickle.loads(content)
    assert marker.exists(), "the trap works, so its absence above means something"


def test_the_oldest_files_are_not_read(marker):
    path = marker.with_name("evil.pt")
    members = {
        "storages": pickle.dumps(0, 2) + pickle.dumps([], 2),
        "tensors": pickle.dumps(0, 2),
        "pickle": program(system(marker)),
    }
    with tarfile.open(path, "w") as tar:
        for name, content in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    assert "is not a torch file" in outcome(path)
    assert not marker.exists()
    torch.load(path, weights_only=False)
    assert marker.exists()


# --- the modules that open files -------------------------------------------------------------

OPENERS = {
    "guidance/core/bounded_read.py": {"open", "safe_open", "ZipFile", "loads"},
    "guidance/checkpoints/torch_format.py": {"open", "load"},  # of what was looked at
    "guidance/core/images.py": {"open", "read_array"},
    "guidance/core/figures.py": {"open"},  # a picture that was made in memory
    "guidance/training/resume.py": {"loads"},  # what was dumped in the same line
    "guidance/schedules/schedule.py": {"loads"},
    "nodes/runtime/schedule_preview_api.py": {"loads"},
}
OPENING = {"open", "safe_open", "load", "loads", "load_file", "ZipFile", "read_text", "read_bytes"}
OPENING |= {"read_array", "from_file", "fromfile", "genfromtxt", "memmap", "imread"}


def opened_by(file: Path) -> set[str]:
    """Calls in the source by which a file's content gets in."""
    nodes = ast.walk(ast.parse(file.read_text("utf-8")))
    calls = (node.func for node in nodes if type(node) is ast.Call)
    return {getattr(called, "attr", getattr(called, "id", "")) for called in calls} & OPENING


def test_files_are_opened_in_the_reading_room_alone(root):
    for file in (*root.glob("guidance/**/*.py"), *root.glob("nodes/**/*.py")):
        name = file.relative_to(root).as_posix()
        found = opened_by(file) - {"read_text"}
        assert found <= OPENERS.get(name, set()), f"{name} calls {found}"


# --- torch files that claim too much ---------------------------------------------------------


def refused_at_once(path: Path) -> str:
    """The sentence, said without memory for what the file claims."""
    with peak_growth() as grown, pytest.raises(CheckpointError) as caught:
        read_torch_file(path)
    assert grown() <= 2 * path.stat().st_size + ROOM
    return sentence(caught.value, path.name)


def stored(count: int, shape: tuple[int, ...], stride: tuple[int, ...], offset: int = 0) -> bytes:
    """Instructions for a tensor in storage 0."""

    def number(value: int) -> bytes:
        return b"\x8a\x08" + value.to_bytes(8, "little", signed=True)

    def numbers(values: tuple[int, ...]) -> bytes:
        return b"(" + b"".join(map(number, values)) + b"t"

    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text("0") + text("cpu")
    storage += number(count) + b"tQ"
    rest = number(offset) + numbers(shape) + numbers(stride) + b"\x89ccollections\nOrderedDict\n)R"
    return b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + rest + b"tR"


def holding(*tensors: bytes, numbers: int = 64) -> bytes:
    body = b"}" + b"".join(text(f"t{i}") + t + b"s" for i, t in enumerate(tensors))
    return archive(program(body), data__0=bytes(4 * numbers))


@pytest.mark.parametrize(
    "tensor",
    [
        stored(64, (10**6, 10**6), (0, 0)),
        stored(64, (65,), (0,)),
        stored(64, (64,), (2,)),
        stored(64, (64,), (1,), offset=1),
        stored(64, (10**9, 8), (8, 1)),
        stored(10**12, (10**12,), (1,)),
        stored(65, (65,), (1,)),
        stored(64, (64,), (-1,)),
        stored(64, (-64,), (1,)),
        stored(64, (2**46, 2**46), (0, 0)),
        stored(64, (2, 2), (1,)),
        stored(64, (1,) * 9, (1,) * 9),
        stored(2**62, (4,), (1,)),
    ],
    ids=range(13),
)
def test_a_tensor_that_is_not_in_the_file(tmp_path, tensor):
    path = tmp_path / "hollow.pt"
    path.write_bytes(holding(stored(64, (8, 8), (8, 1)), tensor))
    refused_at_once(path)
    path.write_bytes(holding(stored(64, (8, 8), (8, 1))))
    assert read_torch_file(path)["t0"].shape == (8, 8)


def test_many_tensors_that_share_memory(tmp_path):
    """Each is in the file, but casting them one by one would take a thousand times as much."""
    path = tmp_path / "aliased.pt"
    path.write_bytes(holding(*[stored(4096, (4096,), (1,))] * 1000, numbers=4096))
    assert "share memory" in refused_at_once(path)


def test_an_expanded_tensor(tmp_path):
    path = tmp_path / "expanded.pt"
    torch.save({"weight": torch.zeros(1).expand(10**5, 10**5)}, path)
    assert "claims a tensor 'weight' larger" in refused_at_once(path)


# Calls that torch itself would follow, and take gigabytes for.
WIDE = stored(1, (10**9, 2), (0, 0))
ORDERED = b"ccollections\nOrderedDict\n"
HUNGRY = {
    "a tensor for its arguments": ORDERED + WIDE + b"R",
    "a tensor for its items": ORDERED + WIDE + b"\x85R",
    "a new object of a tensor": ORDERED + WIDE + b"\x81",
    "a state that is a tensor": ORDERED + b")R" + WIDE + b"b",
    "a state of a tensor": stored(1, (1,), (1,)) + WIDE + b"b",
    "a storage that is none": b"ctorch._utils\n_rebuild_tensor\n(" + ORDERED + b")RK\x00))tR",
    "a parameter of nothing": b"ctorch._utils\n_rebuild_parameter\n(N\x89)tR",
    "a storage that is called": b"ctorch\nFloatStorage\n" + WIDE + b"\x85R",
    "an empty bytearray": b"cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x02\x85R",
}


@pytest.mark.parametrize("kind", HUNGRY)
def test_a_call_that_takes_memory(tmp_path, kind):
    path = tmp_path / "hungry.pt"
    body = b"}" + text("a") + HUNGRY[kind] + b"s"
    path.write_bytes(archive(program(body), data__0=bytes(4)))
    said = refused_at_once(path)
    assert "may run code" in said or "is not a plain dictionary of tensors" in said


def test_keys_and_names_of_a_storage_have_one_meaning(tmp_path):
    """What torch looks up has to be the record whose size was checked."""
    path = tmp_path / "key.pt"
    whole = stored(64, (8, 8), (8, 1))
    for key in (b"U\x02\xc3\xa9", b"X\x02\x00\x00\x00\xc3\xa9", b"ctorch\nFloatStorage\n"):
        body = b"}" + text("a") + whole.replace(text("0"), key) + b"s"
        path.write_bytes(archive(program(body), **{"data/\u00e9": bytes(256)}))
        assert "a storage of no known type" in refused_at_once(path)


def test_two_meanings_of_one_storage(tmp_path):
    path = tmp_path / "two.pt"
    halves = stored(64, (4,), (1,)).replace(b"FloatStorage", b"HalfStorage")
    path.write_bytes(holding(stored(64, (4,), (1,)), halves))
    assert "two sizes or types" in refused_at_once(path)


@pytest.mark.parametrize("instructions", [b"}" * 10**6, b"(" * 10**6, b")" + b"\x85" * 10**6])
def test_a_pickle_of_a_million_instructions(tmp_path, instructions):
    path = tmp_path / "long.pt"
    path.write_bytes(archive(program(instructions)))
    assert "more than" in refused_at_once(path)


@pytest.mark.parametrize("index", [b"\xfe\xff\xff\xff", b"\xff\xff\xff\xff"])
def test_a_memo_index_of_four_billion(tmp_path, index):
    path = tmp_path / "memo.pt"
    path.write_bytes(archive(program(b"}r" + index)))
    assert read_torch_file(path) == {}
    path.write_bytes(archive(program(b"j" + index)))
    assert "is not a whole torch file" in refused_at_once(path)


def test_a_key_that_takes_forever_to_be_hashed(tmp_path):
    path = tmp_path / "key.pt"
    path.write_bytes(archive(program(b"})" + b"q\x00h\x00\x86" * 90 + b"Ns")))
    assert "a key that is a tuple" in refused_at_once(path)


def test_more_tensors_than_any_network_has(tmp_path):
    path = tmp_path / "many.pt"
    names = b"".join(text(f"t{i}") + b"h\x01s" for i in range(MOST_TENSORS + 1))
    path.write_bytes(archive(program(stored(1, (0,), (1,)) + b"q\x01}" + names), data__0=b"1234"))
    assert f"more than {MOST_TENSORS}" in refused_at_once(path)


# --- archives --------------------------------------------------------------------------------


def test_a_zip_bomb(tmp_path):
    path = tmp_path / "bomb.pt"
    content = program(b"}") + bytes(100 << 20)
    path.write_bytes(archive(content, zipfile.ZIP_DEFLATED))
    assert path.stat().st_size < 1 << 20
    assert "compressed, which torch never does" in refused_at_once(path)


def parts(content: bytes) -> tuple[bytes, bytes]:
    """The records of an archive, and its directory."""
    length, offset = struct.unpack("<2L", content[-10:-2])
    return content[:offset], content[offset : offset + length]


def test_an_archive_of_two_directories(tmp_path):
    """zipfile takes the one before the end, torch the one whose offset is given."""
    path = tmp_path / "two.pt"
    bodies = (program(b"}" + text(word) + b"K\x01s") for word in ("evil", "good"))
    evil, good = map(archive, bodies)
    path.write_bytes(b"".join(parts(evil) + parts(good)) + evil[-22:])
    assert torch.load(path, weights_only=True) == {"evil": 1}
    with zipfile.ZipFile(path) as file:
        assert b"good" in file.read("a/data.pkl")
    assert "its directory is not at its end" in refused_at_once(path)


def test_other_ends_of_an_archive(tmp_path):
    path = tmp_path / "end.pt"
    whole = holding(stored(64, (8, 8), (8, 1)))
    records, directory = parts(whole)
    locator = struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 1)
    end_64 = b"PK\x06\x06" + bytes(52)
    for content in (
        whole + b"more",
        whole[:-2] + b"\x04\x00more",  # a comment
        records + directory + locator + whole[-22:],
        records + directory + end_64 + locator + whole[-22:],  # that begins elsewhere
        b"PK" + whole,
        whole[-22:],
    ):
        path.write_bytes(content)
        assert "is not a whole torch file" in refused_at_once(path)
    path.write_bytes(whole)
    assert read_torch_file(path)["t0"].shape == (8, 8)


def test_a_directory_of_very_many_records(tmp_path):
    path = tmp_path / "many.pt"
    path.write_bytes(archive(program(b"}"), **{f"{i:0150}": b"" for i in range(12_000)}))
    assert "its directory has more than" in refused_at_once(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
@pytest.mark.parametrize(
    ("name", "said"),
    [
        ("a/data.pkl", "2 data.pkl"),
        ("A/DATA.PKL", "2 data.pkl"),
        ("b/data.pkl", "2 data.pkl"),
        ("a/data/0", "two records"),
        ("a/Data/0", "two records"),  # torch does not tell them apart
        ("a/constants.pkl", "TorchScript"),
        ("a/CONSTANTS.pkl", "TorchScript"),
    ],
)
def test_two_records_of_one_name(tmp_path, name, said):
    """One of them could be what is looked at, and the other what is read."""
    path = tmp_path / "two.pt"
    path.write_bytes(holding(stored(64, (8, 8), (8, 1))))
    with zipfile.ZipFile(path, "a") as file:
        file.writestr(name, program(b"}"))
    assert said in refused_at_once(path)


def test_a_record_of_two_names(tmp_path):
    """zipfile takes a name for ended where it holds a zero."""
    path = tmp_path / "two.pt"
    path.write_bytes(archive(program(b"}")).replace(b"a/data.pkl", b"a/data.p\0l"))
    assert "has a second name" in refused_at_once(path)


def test_numbers_that_are_not_aligned(tmp_path):
    """As where other programs have packed the archive anew; and a storage in a larger record."""
    path = tmp_path / "again.pt"
    tensors = {"a": torch.arange(9.0), "b": torch.arange(5), "c": torch.ones(3).half()}
    torch.save(tensors, tmp_path / "plain.pt")
    with zipfile.ZipFile(tmp_path / "plain.pt") as plain, zipfile.ZipFile(path, "w") as again:
        for entry in plain.infolist():
            again.writestr(entry.filename, plain.read(entry.filename))
    for name in ("plain.pt", "again.pt"):
        for mmap in (True, False):
            found = read_torch_file(tmp_path / name, mmap)
            assert found.keys() == tensors.keys()
            assert all(torch.equal(found[key], value) for key, value in tensors.items())


def test_without_mmap_tensors_are_on_their_own(tmp_path):
    """The file can be deleted or overwritten, also in place."""
    path = tmp_path / "a.pt"
    torch.save({"a": torch.arange(100.0)}, path)
    mapped, own = read_torch_file(path), read_torch_file(path, mmap=False)
    with path.open("r+b") as file:
        file.write(bytes(path.stat().st_size))
    assert torch.equal(own["a"], torch.arange(100.0))
    assert not mapped["a"].any() or os.name != "posix"
    own["a"][0] = 7


def test_a_record_that_ends_after_the_file(tmp_path):
    path = tmp_path / "long.pt"
    content = bytearray(holding(stored(64, (8, 8), (8, 1))))
    entry = content.rfind(b"PK\x01\x02")  # of data/0, the last
    content[entry + 20 : entry + 28] = struct.pack("<II", 2**31, 2**31)
    path.write_bytes(content)
    assert "ends after the file" in refused_at_once(path)


def test_every_cut_of_a_torch_file(tmp_path):
    path = tmp_path / "cut.pt"
    tensors = {"a": torch.arange(9.0).reshape(3, 3), "b": torch.zeros(2)}
    torch.save(tensors, path)
    content = path.read_bytes()
    for size in range(0, len(content), 7):
        path.write_bytes(content[:size])
        refused_at_once(path)


def test_numbers_of_a_big_endian_machine(tmp_path):
    path = tmp_path / "big.pt"
    path.write_bytes(archive(program(b"}"), byteorder=b"big"))
    assert "big-endian" in refused_at_once(path)


# --- safetensors -----------------------------------------------------------------------------


def headed(header: bytes, numbers: bytes = b"") -> bytes:
    return struct.pack("<Q", len(header)) + header + numbers


def entry(dtype: str = "F32", shape: str = "[0]", offsets: str = "[0,0]") -> str:
    return f'{{"dtype":"{dtype}","shape":{shape},"data_offsets":{offsets}}}'


HEADERS = {
    "a length of exabytes": b"\xff" * 8 + b"{}",
    "a length beyond the end": struct.pack("<Q", 10**9) + b"{}",
    "nothing": b"",
    "a long header": headed(b"{" + b" " * MOST_HEADER + b"}"),
    "many tensors": headed(
        json.dumps({f"{i}": json.loads(entry()) for i in range(MOST_TENSORS + 1)}).encode()
    ),
    "much metadata": headed(
        json.dumps({"__metadata__": {f"{i}": "" for i in range(250_000)}}).encode()
    ),
    "many dimensions": headed(f'{{"a":{entry(shape="[" + "0," * 3_000_000 + "0]")}}}'.encode()),
    "nine dimensions": headed(f'{{"a":{entry(shape="[0,1,1,1,1,1,1,1,1]")}}}'.encode()),
    "depth": headed(b'{"a":' + b'{"a":' * 300_000),
    "more numbers than there are": headed(
        f'{{"a":{entry(shape="[1000000000000]", offsets="[0,4000000000000]")}}}'.encode()
    ),
    "sizes that wrap around": headed(
        f'{{"a":{entry(shape="[4294967296,4294967296]", offsets="[0,0]")}}}'.encode()
    ),
    "tensors that share memory": headed(
        "{{{0}:{2},{1}:{2}}}".format('"a"', '"b"', entry("F32", "[2]", "[0,8]")).encode(), bytes(8)
    ),
    "eighths": headed(f'{{"a":{entry("F8_E4M3", "[4]", "[0,4]")}}}'.encode(), bytes(4)),
    "a description without end": headed(
        json.dumps({"__metadata__": {METADATA_KEY: "[" * 300_000}}).encode()
    ),
    "a description of many lists": headed(
        json.dumps({"__metadata__": {METADATA_KEY: "[" + "[]," * 10**6 + "[]]"}}).encode()
    ),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_hostile_header(tmp_path, kind):
    path = tmp_path / "evil.safetensors"
    path.write_bytes(HEADERS[kind])
    said = outcome(path)
    assert "again" in said


def test_every_cut_of_a_safetensors_file(tmp_path):
    path = tmp_path / "cut.safetensors"
    save_file({"a": torch.arange(9.0).reshape(3, 3)}, path)
    content = path.read_bytes()
    for size in range(0, len(content), 5):
        path.write_bytes(content[:size])
        outcome(path)


def described(path: Path, **changes) -> Path:
    """The model file, its description changed; layout is updated."""
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()[METADATA_KEY])
    about["layout"] |= changes.pop("layout", {})
    save_file(load_file(path), path, {METADATA_KEY: json.dumps(about | changes)})
    return path


@pytest.mark.parametrize("count", [CLASSES + 10**4, 10**9, 10**18])
def test_a_description_of_very_many_classes(tmp_path, count):
    """The list of them is made without the network."""
    path = write_model(tmp_path / "c.safetensors", half_unet(), labels=None)
    described(path, layout={"out_channels": count})
    assert f"{count} classes" in outcome(path)


@pytest.mark.parametrize("changes", [{"space": {}}, {"training": [1]}, {"labels": {"a": 1}}])
def test_a_description_of_other_types(tmp_path, changes):
    path = described(write_model(tmp_path / "c.safetensors", half_unet()), **changes)
    assert "cannot be used" in outcome(path)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("name", ["c.pt", "c.safetensors"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError, match="is not a file"):
        read_checkpoint(tmp_path / name)


# --- training data ---------------------------------------------------------------------------


def refused(read, path: Path, *arguments) -> str:
    """The one sentence that `read` refuses the file with, in little memory."""
    with peak_growth() as grown, pytest.raises(ValueError) as caught:
        read(path, *arguments)
    assert grown() <= 2 * path.stat().st_size + ROOM
    return sentence(caught.value, path.name)


def npz(path: Path, **records: bytes) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as file:
        for name, content in records.items():
            file.writestr(f"{name}.npy", content)
    return path


def npy(description: str, content: bytes = b"") -> bytes:
    header = description.ljust(117).encode() + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + content


def array(values) -> bytes:
    made = io.BytesIO()
    np.save(made, values)
    return made.getvalue()


IMAGES, LABELS = array(np.zeros((2, 4, 4, 3), np.uint8)), array(np.array([0, 1]))
HUGE = "{'descr': '|u1', 'fortran_order': False, 'shape': (1000000, 1000, 1000, 3)}"


@pytest.mark.parametrize(
    "records",
    [
        {"arr_0": npy(HUGE), "arr_1": LABELS},
        {"arr_0": npy(HUGE) + bytes(100 << 20), "arr_1": LABELS},
        {"arr_0": IMAGES, "arr_1": array(np.array([0, 10**9]))},
        {"arr_0": IMAGES, "arr_1": array(np.array([0, 2**64 - 1], np.uint64))},
        {"arr_0": IMAGES, "arr_1": LABELS, "names": npy(HUGE.replace("|u1", "<U0"))},
        {"arr_0": IMAGES, "arr_1": LABELS, "names": array(np.array("a"))},
        {"arr_0": IMAGES, "arr_1": LABELS, "names": array(np.array([["a"], ["b"]]))},
        {"arr_0": npy("{'descr': '|u1', 'shape': " + "(" * 50 + "}"), "arr_1": LABELS},
        {"arr_0": b"", "arr_1": LABELS},
    ],
    ids=range(9),
)
def test_hostile_arrays(tmp_path, records):
    path = npz(tmp_path / "data.npz", **records)
    refused(load_samples, path)
    refused(load_images, path)


def test_arrays_of_objects_are_not_unpickled(marker):
    class Trap:
        def __reduce__(self):
            return Path.touch, (marker,)

    path = marker.with_name("data.npz")
    np.savez(path, arr_0=np.array([Trap()], object), arr_1=np.array([0]))
    refused(load_samples, path)
    assert not marker.exists()
    np.load(path, allow_pickle=True)["arr_0"]
    assert marker.exists()


def test_blank_images_are_no_bomb(tmp_path):
    path = tmp_path / "data.npz"
    images = np.zeros((200, 32, 32, 3), np.uint8)
    np.savez_compressed(path, arr_0=images, arr_1=np.zeros(200, int), names=np.array(["none"]))
    assert len(load_images(path)) == 200


def test_an_enormous_picture(tmp_path):
    """60,000 x 60,000 pixels in 100 bytes."""
    path = tmp_path / "bomb.png"
    Image.new("1", (8, 8)).save(path)
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", 60_000, 60_000)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    Image.MAX_IMAGE_PIXELS, before = None, Image.MAX_IMAGE_PIXELS
    try:
        assert Image.open(path).size == (60_000, 60_000)
    finally:
        Image.MAX_IMAGE_PIXELS = before
    assert "not a whole picture" in refused(open_picture, path)


def test_a_program_for_printers_under_a_pictures_name(tmp_path):
    """Pillow would give it to Ghostscript."""
    path = tmp_path / "a.png"
    path.write_text("%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(a) show\n")
    assert Image.open(path).format == "EPS"
    assert "not a whole picture" in refused(open_picture, path)


@pytest.mark.parametrize(
    "about",
    [
        {},
        {"names": "[" * 300_000, "space": "rgb"},
        {"names": json.dumps({"a": 1}), "space": "rgb"},
        {"names": "7", "space": "rgb"},
    ],
    ids=range(4),
)
def test_hostile_latents(tmp_path, about):
    path = tmp_path / "latents.safetensors"
    tensors = {"latents": torch.zeros(2, 4, 1, 1), "labels": torch.tensor([0, 10**12])}
    save_file(tensors, path, about)
    refused(load_latents, path)


# --- states of trainings ---------------------------------------------------------------------

SETTINGS = {"steps": 3}
PROGRESS = {"settings": SETTINGS, "losses": [], "validations": []}


def a_state() -> TrainingState:
    network = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return TrainingState(network, torch.nn.Linear(2, 2), optimizer)


@pytest.mark.parametrize(
    "change",
    [
        {"training": "[" * 300_000},
        {"training": "[]"},
        {"training": json.dumps({"settings": 3})},
        {"training": json.dumps({"settings": SETTINGS, "step": 1})},
        {"training": json.dumps(PROGRESS | {"step": "1"})},
        {"training": json.dumps(PROGRESS | {"step": -1})},
        {"optimizer.7.exp_avg": torch.zeros(2)},
        {"optimizer.x.exp_avg": torch.zeros(2)},
        {"optimizer.0.exp_avg": torch.zeros(10**6)},
        {"network.weight": torch.zeros(3, 3)},
    ],
    ids=range(10),
)
def test_a_hostile_state_of_a_training(tmp_path, change):
    file = ResumeFile(tmp_path / "a.resume", SETTINGS)
    file.save(a_state())
    assert file.read_into(a_state())
    tensors = load_file(file.path)
    with safe_open(file.path, "pt") as opened:
        about = opened.metadata()
    ((key, value),) = change.items()
    (about if isinstance(value, str) else tensors)[key] = value
    save_file(tensors, file.path, about)
    said = refused(lambda path: file.read_into(a_state()), file.path)
    assert "delete it to start again" in said


def test_a_state_of_no_tensors_at_all(tmp_path):
    file = ResumeFile(tmp_path / "a.resume", SETTINGS)
    file.path.write_bytes(b"\x80\x02" + system(tmp_path / "it_ran") + b".")
    refused(lambda path: file.read_into(a_state()), file.path)
    assert not (tmp_path / "it_ran").exists()


# --- JSON ------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"[" * 10**5, b"\xff\xfe", b" " * (17 << 20) + b"1"])
def test_a_hostile_schedule(tmp_path, content):
    path = tmp_path / "schedule.json"
    path.write_bytes(content)
    refused(lambda path: read_schedule(str(path)), path)


@pytest.mark.parametrize(
    "config",
    [
        '{"a":' * 10**5,
        "[]",
        " " * (17 << 20) + "{}",
        json.dumps({"num_labels": 10**9, "model_type": "vit"}),
        json.dumps({"num_classes": 10**9, "architecture": "resnet18"}),
        json.dumps({"num_hidden_layers": 10**9, "model_type": "vit"}),
        json.dumps({"vision_config": {"depths": [2, 10**9]}, "model_type": "swin"}),
        json.dumps({"hidden_size": 10**30, "model_type": "vit"}),
        json.dumps({"id2label": {"9" * 5000: "a"}, "architectures": 7}),
        json.dumps({"id2label": 7, "architectures": [7]}),
        json.dumps({"pretrained_cfg": 7, "architecture": "resnet18", "label_names": 7}),
        json.dumps({"auto_map": {"AutoModel": "evil.Model"}}),
    ],
    ids=range(12),
)
def test_a_hostile_hugging_face_folder(tmp_path, config):
    folder = tmp_path / "classifier"
    folder.mkdir()
    from transformers import AutoConfig, AutoModelForImageClassification  # noqa: F401 (memory)

    (folder / "config.json").write_text(config)
    save_file({"a": torch.zeros(1)}, folder / "model.safetensors")
    with peak_growth() as grown, pytest.raises(CheckpointError) as caught:
        open_folder(folder)
    assert grown() <= 2 * len(config) + ROOM
    sentence(caught.value, folder.name)
    with peak_growth() as grown:
        try:
            count, labels = classes_of_folder(folder)
            assert 0 <= count <= MOST_CLASSES and (labels is None or len(labels) <= 1)
        except CheckpointError as error:
            sentence(error, folder.name)
    assert grown() <= 2 * len(config) + ROOM
