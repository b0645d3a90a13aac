"""Files that were made to do harm: nothing runs, little memory is taken, one sentence is said."""

from __future__ import annotations

import ast
import copyreg
import io
import json
import os
import pickle
import re
import struct
import tarfile
import warnings
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from bounded import ROOM, outcome, peak_growth, sentence
from PIL import Image
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from test_pictures_in_and_out import forged
from tiny_networks import CLASSES, half_unet, write_model

from guidance.checkpoints.checkpoint import METADATA_KEY, CheckpointError, read_checkpoint
from guidance.checkpoints.hugging_face import classes_of_folder, open_folder
from guidance.checkpoints.torch_format import read_torch_file
from guidance.cli.options import read_schedule
from guidance.core.bounded_read import MOST_CLASSES, MOST_HEADER, MOST_TENSORS
from guidance.core.images import load_samples, open_picture
from guidance.training.data import load_images, load_latents
from guidance.training.resume import ResumeFile, TrainingState


def text(value: str | bytes) -> bytes:
    content = value if isinstance(value, bytes) else value.encode()
    return (b"B" if content is value else b"X") + struct.pack("<I", len(content)) + content


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
        b"cbuiltins\ngetattr\n(cos\n__dict__\n%stR%s\x85R%s\x85R"
        % (text("get"), text("system"), text(shell(m)))
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
    "a pickle in a pickle": lambda m: b"cpickle\nloads\n" + text(program(system(m))) + b"\x85R",
    "a torch file in a pickle": lambda m: (
        b"ctorch.storage\n_load_from_bytes\n" + text(legacy(program(system(m)))) + b"\x85R"
    ),
    "a key": lambda m: b"}" + system(m) + b"K\x01s",
    "a value": lambda m: b"}" + text("weight") + system(m) + b"s",
    "metadata": lambda m: b"ccollections\nOrderedDict\n)R}" + text("_metadata") + system(m) + b"sb",
}


def tarred(content: bytes) -> bytes:
    """A file as of the oldest torch."""
    numbers = pickle.dumps(0, 2)
    members = {"storages": numbers + pickle.dumps([], 2), "tensors": numbers, "pickle": content}
    with tarfile.open(fileobj=(made := io.BytesIO()), mode="w") as tar:
        for name, value in members.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(value)
            tar.addfile(entry, io.BytesIO(value))
    return made.getvalue()


# How a pickle gets into a file, and words of the sentences that it is refused with.
WRAPPINGS = (
    (archive, "may run code|is not a plain dictionary of tensors"),
    (bytes, "before version 1.6"),
    (legacy, "before version 1.6"),
    (tarred, "is not a torch file"),
)


@pytest.fixture
def marker(tmp_path, monkeypatch):
    """What a trap creates; modules beside it can be imported."""
    monkeypatch.syspath_prepend(tmp_path)
    return tmp_path / "it_ran"


@pytest.mark.parametrize("kind", TRAPS)
def test_a_pickle_that_runs_code_does_not(marker, kind):
    path = marker.with_name("evil.pt")
    content = program(TRAPS[kind](marker))
    for wrap, words in WRAPPINGS:
        path.write_bytes(wrap(content))
        assert re.search(words, outcome(path))
        assert not marker.exists()
    pickle.loads(content)
    assert marker.exists(), "the trap works, so its absence above means something"


OPENERS = {
    "guidance/core/bounded_read.py": {"open", "safe_open", "ZipFile", "loads"},
    "guidance/checkpoints/torch_format.py": {"open", "load"},  # of what was looked at
    "guidance/core/images.py": {"open", "read_array"},
    "guidance/core/figures.py": {"open"},  # a picture that was made in memory
    "guidance/training/resume.py": {"loads"},  # what was dumped in the same line
    "guidance/schedules/schedule.py": {"loads"},
    "nodes/runtime/schedule_preview_api.py": {"loads"},
    "nodes/schema.py": {"loads"},  # the pack's own
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


def refused(read, path: Path, *arguments) -> str:
    """The one sentence that `read` refuses the file with, in little memory."""
    with peak_growth() as grown, pytest.raises(ValueError) as caught:
        read(path, *arguments)
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


def saved(content, **options) -> bytes:
    torch.save(content, made := io.BytesIO(), **options)
    return made.getvalue()


def parts(content: bytes) -> tuple[bytes, bytes]:
    """The records of an archive, and its directory."""
    length, offset = struct.unpack("<2L", content[-10:-2])
    return content[:offset], content[offset : offset + length]


GOOD = stored(64, (8, 8), (8, 1))
WHOLE = holding(GOOD)
HOLLOW = [
    *[(64, (10**6, 10**6), (0, 0)), (64, (65,), (0,)), (64, (64,), (2,)), (64, (64,), (1,), 1)],
    *[(64, (10**9, 8), (8, 1)), (10**12, (10**12,), (1,)), (65, (65,), (1,)), (64, (64,), (-1,))],
    *[(64, (-64,), (1,)), (64, (2**46, 2**46), (0, 0)), (64, (2, 2), (1,))],
    *[(64, (1,) * 9, (1,) * 9), (2**62, (4,), (1,))],
]


def with_a_key(key: bytes) -> bytes:
    """What torch looks up has to be the record whose size was checked."""
    body = b"}" + text("a") + GOOD.replace(text("0"), key) + b"s"
    return archive(program(body), **{"data/\u00e9": bytes(256)})


def many_tensors() -> bytes:
    names = b"".join(text(f"t{i}") + b"h\x01s" for i in range(MOST_TENSORS + 1))
    return archive(program(stored(1, (0,), (1,)) + b"q\x01}" + names), data__0=b"1234")


def with_another(name: str) -> bytes:
    """One of them could be what is looked at, and the other what is read."""
    made = io.BytesIO(WHOLE)
    with zipfile.ZipFile(made, "a") as file, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        file.writestr(name, program(b"}"))
    return made.getvalue()


def ending_after_the_file() -> bytes:
    content = bytearray(WHOLE)
    entry = content.rfind(b"PK\x01\x02")  # of data/0, the last
    content[entry + 20 : entry + 28] = struct.pack("<II", 2**31, 2**31)
    return bytes(content)


RECORDS, DIRECTORY = parts(WHOLE)
LOCATOR = struct.pack("<4sLQL", b"PK\x06\x07", 0, 0, 1)
ENDS = [  # of an archive that torch and zipfile could take for others
    *[WHOLE + b"more", WHOLE[:-2] + b"\x04\x00more", b"PK" + WHOLE, WHOLE[-22:]],
    RECORDS + DIRECTORY + LOCATOR + WHOLE[-22:],
    RECORDS + DIRECTORY + b"PK\x06\x06" + bytes(52) + LOCATOR + WHOLE[-22:],  # begins elsewhere
]


def short(body: bytes, **records: bytes) -> bytes:
    return archive(program(body), **records)


def item(body: bytes) -> bytes:
    return archive(program(b"}" + text("a") + body + b"s"), data__0=bytes(4))


WIDE = stored(1, (10**9, 2), (0, 0))
ORDERED = b"ccollections\nOrderedDict\n"
HALVES = stored(64, (4,), (1,)).replace(b"FloatStorage", b"HalfStorage")
# Hostile files by a word of the sentence that they are refused with.
FILES = {
    "": [holding(GOOD, stored(*claim)) for claim in HOLLOW],
    "share memory": [holding(*[stored(4096, (4096,), (1,))] * 1000, numbers=4096)],
    "claims a tensor 'weight' larger": [saved({"weight": torch.zeros(1).expand(10**5, 10**5)})],
    # calls that torch itself would follow, and take gigabytes for
    "a call of": [
        item(ORDERED + WIDE + b"R"),  # a tensor for its arguments
        item(ORDERED + WIDE + b"\x85R"),  # a tensor for its items
        item(b"ctorch._utils\n_rebuild_tensor\n(" + ORDERED + b")RK\x00))tR"),  # of no storage
        item(b"ctorch._utils\n_rebuild_parameter\n(N\x89)tR"),  # of nothing
        item(b"ctorch\nFloatStorage\n" + WIDE + b"\x85R"),
    ],
    "used as a dictionary": [
        item(ORDERED + b")R" + WIDE + b"b"),  # a state that is a tensor
        item(stored(1, (1,), (1,)) + WIDE + b"b"),  # a state of a tensor
    ],
    "may run code": [
        item(ORDERED + WIDE + b"\x81"),  # a new object of a tensor
        item(b"cbuiltins\nbytearray\n\x8a\x05\x00\x00\x00\x00\x02\x85R"),
    ],
    "of no known type": [
        *map(with_a_key, (b"U\x02\xc3\xa9", text("\u00e9"), b"ctorch\nFloatStorage\n"))
    ],
    "two sizes or types": [holding(stored(64, (4,), (1,)), HALVES)],
    "more than": [short(b"}" * 10**6), short(b"(" * 10**6), short(b")" + b"\x85" * 10**6)],
    "is not a whole torch": [short(b"j\xfe\xff\xff\xff"), short(b"j\xff\xff\xff\xff"), *ENDS],
    "a key that is a tuple": [short(b"})" + b"q\x00h\x00\x86" * 90 + b"Ns")],  # hashed forever
    f"more than {MOST_TENSORS}": [many_tensors()],
    "compressed, which torch never": [archive(program(bytes(100 << 20)), zipfile.ZIP_DEFLATED)],
    "its directory has more than": [short(b"}", **{f"{i:0150}": b"" for i in range(12_000)})],
    "2 data.pkl": [with_another(name) for name in ("a/data.pkl", "A/DATA.PKL", "b/data.pkl")],
    "two records": [with_another("a/data/0"), with_another("a/Data/0")],  # the same for torch
    "TorchScript": [with_another("a/constants.pkl"), with_another("a/CONSTANTS.pkl")],
    # zipfile takes a name for ended where it holds a zero
    "has a second name": [short(b"}").replace(b"a/data.pkl", b"a/data.p\0l")],
    "ends after the file": [ending_after_the_file()],
    "big-endian": [short(b"}", byteorder=b"big")],
    "in protocol 4 or later": [saved({"a": torch.ones(2)}, pickle_protocol=4)],
}


@pytest.mark.parametrize("said", FILES)
def test_a_hostile_torch_file(tmp_path, said):
    path = tmp_path / "evil.pt"
    for content in FILES[said]:
        path.write_bytes(content)
        assert said in refused(read_torch_file, path)


def test_whole_torch_files_are_read(tmp_path):
    """So it is not for their form that those above are refused."""
    path = tmp_path / "good.pt"
    path.write_bytes(WHOLE)
    assert read_torch_file(path)["t0"].shape == (8, 8)
    for index in (b"\xfe\xff\xff\xff", b"\xff\xff\xff\xff"):
        path.write_bytes(short(b"}r" + index))
        assert read_torch_file(path) == {}


def test_an_archive_of_two_directories(tmp_path):
    """zipfile takes the one before the end, torch the one whose offset is given."""
    path = tmp_path / "two.pt"
    evil, good = (short(b"}" + text(word) + b"K\x01s") for word in ("evil", "good"))
    path.write_bytes(b"".join(parts(evil) + parts(good)) + evil[-22:])
    assert torch.load(path, weights_only=True) == {"evil": 1}
    with zipfile.ZipFile(path) as file:
        assert b"good" in file.read("a/data.pkl")
    assert "its directory is not at its end" in refused(read_torch_file, path)


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


@pytest.mark.parametrize(("name", "save"), [("a.pt", torch.save), ("a.safetensors", save_file)])
def test_every_cut_of_a_file(tmp_path, name, save):
    path = tmp_path / name
    save({"a": torch.arange(9.0).reshape(3, 3), "b": torch.zeros(2)}, path)
    content = path.read_bytes()
    for size in range(0, len(content), 5):
        path.write_bytes(content[:size])
        assert "again" in outcome(path)


def headed(header: bytes | dict, numbers: bytes = b"") -> bytes:
    header = header if isinstance(header, bytes) else json.dumps(header).encode()
    return struct.pack("<Q", len(header)) + header + numbers


def entry(shape=(0,), size: int = 0, dtype: str = "F32") -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": [0, size]}


HEADERS = {
    "a length of exabytes": b"\xff" * 8 + b"{}",
    "a length beyond the end": struct.pack("<Q", 10**9) + b"{}",
    "nothing": b"",
    "a long header": headed(b"{" + b" " * MOST_HEADER + b"}"),
    "many tensors": headed({f"{i}": entry() for i in range(MOST_TENSORS + 1)}),
    "much metadata": headed({"__metadata__": {f"{i}": "" for i in range(250_000)}}),
    "many dimensions": headed({"a": entry([0] * 3_000_001)}),
    "nine dimensions": headed({"a": entry([0] + [1] * 8)}),
    "depth": headed(b'{"a":' * 300_001),
    "more numbers than there are": headed({"a": entry([10**12], 4 * 10**12)}),
    "sizes that wrap around": headed({"a": entry([2**32, 2**32])}),
    "tensors that share memory": headed({"a": entry([2], 8), "b": entry([2], 8)}, bytes(8)),
    "eighths": headed({"a": entry([4], 4, "F8_E4M3")}, bytes(4)),
    "a description without end": headed({"__metadata__": {METADATA_KEY: "[" * 300_000}}),
    "many lists": headed({"__metadata__": {METADATA_KEY: "[" + "[]," * 10**6 + "[]]"}}),
}


@pytest.mark.parametrize("kind", HEADERS)
def test_a_hostile_header(tmp_path, kind):
    path = tmp_path / "evil.safetensors"
    path.write_bytes(HEADERS[kind])
    assert "again" in outcome(path)


def described(path: Path, **changes) -> Path:
    """The model file, its description changed; layout is updated."""
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()[METADATA_KEY])
    about["layout"] |= changes.pop("layout", {})
    save_file(load_file(path), path, {METADATA_KEY: json.dumps(about | changes)})
    return path


def test_hostile_descriptions(tmp_path):
    """The list of very many classes is made without the network."""
    for count in (CLASSES + 10**4, 10**9, 10**18):
        path = write_model(tmp_path / "c.safetensors", half_unet(), labels=None)
        assert f"{count} classes" in outcome(described(path, layout={"out_channels": count}))
    for changes in ({"space": {}}, {"training": [1]}, {"labels": {"a": 1}}):
        path = write_model(tmp_path / "c.safetensors", half_unet())
        assert "cannot be used" in outcome(described(path, **changes))


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="this system has no named pipes")
@pytest.mark.parametrize("name", ["c.pt", "c.safetensors"])
def test_a_pipe_is_not_waited_for(tmp_path, name):
    os.mkfifo(tmp_path / name)
    with pytest.raises(CheckpointError, match="is not a file"):
        read_checkpoint(tmp_path / name)


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


ARRAYS = [
    {"arr_0": npy(HUGE)},
    {"arr_0": npy(HUGE) + bytes(100 << 20)},
    {"arr_1": array(np.array([0, 10**9]))},
    {"arr_1": array(np.array([0, 2**64 - 1], np.uint64))},
    {"names": npy(HUGE.replace("|u1", "<U0"))},
    {"names": array(np.array("a"))},
    {"names": array(np.array([["a"], ["b"]]))},
    {"arr_0": npy("{'descr': '|u1', 'shape': " + "(" * 50 + "}")},
    {"arr_0": b""},
]


def test_hostile_arrays(tmp_path):
    for changes in ARRAYS:
        path = npz(tmp_path / "data.npz", **{"arr_0": IMAGES, "arr_1": LABELS} | changes)
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


EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n(a) show\n"


def test_hostile_pictures(tmp_path, monkeypatch):
    """60,000 x 60,000 pixels in 100 bytes; a program that Pillow would give to Ghostscript."""
    bomb, program = forged(tmp_path / "bomb.png", 60_000, 60_000), tmp_path / "a.png"
    program.write_bytes(EPS)
    assert Image.open(program).format == "EPS"
    for path in (bomb, program):
        assert "not a whole picture" in refused(open_picture, path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert Image.open(bomb).size == (60_000, 60_000)


def test_hostile_latents(tmp_path):
    path = tmp_path / "latents.safetensors"
    tensors = {"latents": torch.zeros(2, 4, 1, 1), "labels": torch.tensor([0, 10**12])}
    save_file(tensors, path)
    refused(load_latents, path)
    for names in ("[" * 300_000, json.dumps({"a": 1}), "7"):
        save_file(tensors, path, {"names": names, "space": "rgb"})
        refused(load_latents, path)


SETTINGS = {"steps": 3}
PROGRESS = {"settings": SETTINGS, "losses": [], "validations": []}


def a_state() -> TrainingState:
    network = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(network.parameters())
    network(torch.ones(1, 2)).sum().backward()
    optimizer.step()
    return TrainingState(network, torch.nn.Linear(2, 2), optimizer)


STATES = [
    ("training", "[" * 300_000),
    ("training", "[]"),
    ("training", json.dumps({"settings": 3})),
    ("training", json.dumps({"settings": SETTINGS, "step": 1})),
    ("training", json.dumps(PROGRESS | {"step": "1"})),
    ("training", json.dumps(PROGRESS | {"step": -1})),
    ("optimizer.7.exp_avg", torch.zeros(2)),
    ("optimizer.x.exp_avg", torch.zeros(2)),
    ("optimizer.0.exp_avg", torch.zeros(10**6)),
    ("network.weight", torch.zeros(3, 3)),
]


def test_hostile_states_of_a_training(tmp_path):
    file = ResumeFile(tmp_path / "a.resume", SETTINGS)
    file.save(a_state())
    assert file.read_into(a_state())
    whole = load_file(file.path)
    with safe_open(file.path, "pt") as opened:
        metadata = opened.metadata()
    for key, value in STATES:
        tensors, about = dict(whole), dict(metadata)
        (about if isinstance(value, str) else tensors)[key] = value
        save_file(tensors, file.path, about)
        said = refused(lambda path: file.read_into(a_state()), file.path)
        assert "delete it to start again" in said
    file.path.write_bytes(program(system(tmp_path / "it_ran")))
    refused(lambda path: file.read_into(a_state()), file.path)
    assert not (tmp_path / "it_ran").exists()


def test_a_hostile_schedule(tmp_path):
    path = tmp_path / "schedule.json"
    for content in (b"[" * 10**5, b"\xff\xfe", b" " * (17 << 20) + b"1"):
        path.write_bytes(content)
        refused(lambda path: read_schedule(str(path)), path)


CONFIGS = [
    '{"a":' * 10**5,
    "[]",
    " " * (17 << 20) + "{}",
    {"num_labels": 10**9, "model_type": "vit"},
    {"num_classes": 10**9, "architecture": "resnet18"},
    {"num_hidden_layers": 10**9, "model_type": "vit"},
    {"vision_config": {"depths": [2, 10**9]}, "model_type": "swin"},
    {"hidden_size": 10**30, "model_type": "vit"},
    {"id2label": {"9" * 5000: "a"}, "architectures": 7},
    {"id2label": 7, "architectures": [7]},
    {"pretrained_cfg": 7, "architecture": "resnet18", "label_names": 7},
    {"auto_map": {"AutoModel": "evil.Model"}},
]


@pytest.mark.parametrize("config", CONFIGS, ids=range(len(CONFIGS)))
def test_a_hostile_hugging_face_folder(tmp_path, config):
    folder = tmp_path / "classifier"
    folder.mkdir()
    from transformers import AutoConfig, AutoModelForImageClassification  # noqa: F401 (memory)

    config = config if isinstance(config, str) else json.dumps(config)
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
