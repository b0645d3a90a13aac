"""Files that were made to do harm: nothing runs, little memory is taken, one sentence is said."""

from __future__ import annotations

import ast
import contextlib
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


def test_there_are_enough_kinds():
    assert len(TRAPS) >= 12


@pytest.mark.parametrize("wrapping", WRAPPINGS)
@pytest.mark.parametrize("kind", TRAPS)
def test_a_pickle_that_runs_code_does_not(marker, kind, wrapping):
    path = marker.with_name("evil.pt")
    content = program(TRAPS[kind](marker))
    path.write_bytes(WRAPPINGS[wrapping](content))
    said = outcome(path)
    print(said)
    assert not marker.exists()
    assert "may run code" in said or "is not a plain dictionary of tensors" in said
    pickle.loads(content)
    assert marker.exists(), "the trap works, so its absence above means something"


@pytest.mark.parametrize("place", ["system", "keys"])
def test_other_pickles_of_an_old_file_do_not_run_either(marker, place):
    path = marker.with_name("evil.pt")
    parts = [0x1950A86A20F9469CFC6C, 1001, {"little_endian": True}, {"a": 1}, []]
    pickles = [pickle.dumps(part, 2) for part in parts]
    pickles[{"system": 2, "keys": 4}[place]] = program(system(marker))
    path.write_bytes(b"".join(pickles))
    outcome(path)
    assert not marker.exists()
    with contextlib.suppress(TypeError):
        torch.load(path, weights_only=False)
    assert marker.exists()


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


def test_a_program_of_torchscript_is_not_opened(tmp_path):
    path = tmp_path / "program.pt"
    path.write_bytes(archive(program(b"}"), constants__pkl=b"", **{"constants.pkl": b""}))
    assert "a TorchScript program" in outcome(path)


# --- the modules that open files -------------------------------------------------------------

OPENERS = {
    "guidance/core/bounded_read.py": {"open", "safe_open", "ZipFile", "loads"},
    "guidance/checkpoints/torch_format.py": {"open"},
    "guidance/core/images.py": {"open", "read_array"},
    "guidance/core/figures.py": {"open"},  # a picture that was made in memory
    "guidance/training/resume.py": {"loads"},  # what was dumped in the same line
    "guidance/schedules/schedule.py": {"loads"},
    "nodes/schedules.py": {"loads"},
}
OPENING = {"open", "safe_open", "load", "loads", "load_file", "ZipFile", "read_text", "read_bytes"}
OPENING |= {"read_array", "from_file", "fromfile", "genfromtxt", "memmap", "imread"}


def opened_by(file: Path) -> set[str]:
    """Calls in the source by which a file's content gets in."""
    nodes = ast.walk(ast.parse(file.read_text("utf-8")))
    calls = (node.func for node in nodes if type(node) is ast.Call)
    return {getattr(called, "attr", getattr(called, "id", "")) for called in calls} & OPENING


def test_files_are_opened_in_the_reading_room_alone(root):
    """And torch.load is not called at all."""
    for file in (*root.glob("guidance/**/*.py"), *root.glob("nodes/**/*.py")):
        name = file.relative_to(root).as_posix()
        own = {"from_file"} if name == "guidance/checkpoints/torch_format.py" else set()
        found = opened_by(file) - {"read_text"} - own
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
    print(refused_at_once(path))
    path.write_bytes(holding(stored(64, (8, 8), (8, 1))))
    assert read_torch_file(path)["t0"].shape == (8, 8)


def test_many_tensors_that_share_memory(tmp_path):
    """Each is in the file, but casting them one by one would take a thousand times as much."""
    path = tmp_path / "aliased.pt"
    path.write_bytes(holding(*[stored(4096, (4096,), (1,))] * 1000, numbers=4096))
    assert "share memory" in refused_at_once(path)


@pytest.mark.parametrize("old_format", [True, False])
def test_an_expanded_tensor(tmp_path, old_format):
    path = tmp_path / "expanded.pt"
    tensors = {"weight": torch.zeros(1).expand(10**5, 10**5)}
    torch.save(tensors, path, _use_new_zipfile_serialization=not old_format)
    assert "claims a tensor 'weight' larger" in refused_at_once(path)


def test_two_meanings_of_one_storage(tmp_path):
    path = tmp_path / "two.pt"
    halves = stored(64, (4,), (1,)).replace(b"FloatStorage", b"HalfStorage")
    path.write_bytes(holding(stored(64, (4,), (1,)), halves))
    assert "two sizes or types" in refused_at_once(path)


def test_an_old_file_of_a_storage_that_is_not_there(tmp_path):
    path = tmp_path / "old.pt"
    content = program(b"}" + text("weight") + stored(10**11, (2,), (1,)) + b"s")
    path.write_bytes(legacy(content))
    assert "is not a whole torch file" in refused_at_once(path)


@pytest.mark.parametrize("instructions", [b"}" * 10**6, b"(" * 10**6, b")" + b"\x85" * 10**6])
def test_a_pickle_of_a_million_instructions(tmp_path, instructions):
    path = tmp_path / "long.pt"
    path.write_bytes(archive(program(instructions)))
    assert "more than" in refused_at_once(path)


def test_a_memo_of_four_billion_entries(tmp_path):
    path = tmp_path / "memo.pt"
    path.write_bytes(archive(program(b"}r\xfe\xff\xff\xff")))
    assert read_torch_file(path) == {}


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


def test_a_directory_of_very_many_records(tmp_path):
    path = tmp_path / "many.pt"
    path.write_bytes(archive(program(b"}"), **{f"{i:0150}": b"" for i in range(12_000)}))
    assert "its directory has more than" in refused_at_once(path)


@pytest.mark.filterwarnings("ignore:Duplicate name")
def test_two_records_of_one_name(tmp_path):
    """One of them could be what is looked at, and the other what is read."""
    path = tmp_path / "two.pt"
    path.write_bytes(holding(stored(64, (8, 8), (8, 1))))
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("a/data.pkl", program(b"}"))
    assert "archive with 2 data.pkl" in refused_at_once(path)
    path.write_bytes(holding(stored(64, (8, 8), (8, 1))))
    with zipfile.ZipFile(path, "a") as file:
        file.writestr("a/data/0", bytes(256))
    assert "two records" in refused_at_once(path)


def test_a_record_that_ends_after_the_file(tmp_path):
    path = tmp_path / "long.pt"
    content = bytearray(holding(stored(64, (8, 8), (8, 1))))
    entry = content.rfind(b"PK\x01\x02")  # of data/0, the last
    content[entry + 20 : entry + 28] = struct.pack("<II", 2**31, 2**31)
    path.write_bytes(content)
    assert "ends after the file" in refused_at_once(path)


@pytest.mark.parametrize("old_format", [True, False])
def test_every_cut_of_a_torch_file(tmp_path, old_format):
    path = tmp_path / "cut.pt"
    tensors = {"a": torch.arange(9.0).reshape(3, 3), "b": torch.zeros(2)}
    torch.save(tensors, path, _use_new_zipfile_serialization=not old_format)
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
    print(said)
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
    print(refused(load_samples, path))
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
    print(sentence(caught.value, folder.name))
    with peak_growth() as grown:
        try:
            count, labels = classes_of_folder(folder)
            assert 0 <= count <= MOST_CLASSES and (labels is None or len(labels) <= 1)
        except CheckpointError as error:
            sentence(error, folder.name)
    assert grown() <= 2 * len(config) + ROOM
