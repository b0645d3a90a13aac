"""Names, shapes and dtypes of tensors, drawn by hypothesis: each file ends well, and whole."""

from __future__ import annotations

import functools
import io
import json
import math
import struct

import pytest
import torch
from bounded import outcome, sentence
from hypothesis import HealthCheck, assume, given, settings
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from tiny_networks import half_unet

from guidance.adm.build import build_network, shapes_of
from guidance.adm.detect import detect_layout
from guidance.checkpoints.checkpoint import (
    METADATA_KEY,
    CheckpointError,
    read_checkpoint,
    read_tensors,
)

# the same examples each time, and as many however slow the machine
SAME = {"derandomize": True, "deadline": None, "database": None, "max_examples": 40}
SLOW = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
PROFILE = settings(**SAME, suppress_health_check=SLOW)

READ = [torch.float32, torch.float64, torch.float16, torch.bfloat16, torch.int64, torch.int32]
READ += [torch.int16, torch.int8, torch.uint8, torch.bool]
NOT_READ = [torch.complex64, torch.float8_e4m3fn, torch.uint16]
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=40)
names = texts.filter(lambda name: name != "__metadata__")
shapes = st.lists(st.integers(0, 4), max_size=4).map(tuple)


@st.composite
def state_dicts(draw, dtypes=READ):
    """Some tensors by their names; strided in any order, some of them views of one."""
    found = {}
    for name in draw(st.lists(names, max_size=5, unique=True)):
        shape, dtype = draw(shapes), draw(st.sampled_from(dtypes))
        values = torch.arange(math.prod(shape)).reshape(shape).to(dtype)
        found[name] = values.permute(draw(st.permutations(range(len(shape)))))
    return found


def same(found, tensors) -> bool:
    """Whether names, dtypes, shapes and values are the same."""
    return found.keys() == tensors.keys() and all(
        found[name].dtype == value.dtype and torch.equal(found[name], value)
        for name, value in tensors.items()
    )


@pytest.mark.parametrize("mmap", [True, False])
@PROFILE
@given(tensors=state_dicts())
def test_any_state_dict_comes_back(tmp_path, tensors, mmap):
    path = tmp_path / "a.pt"
    torch.save(tensors, path)
    found, _ = read_tensors(path, mmap)
    expected = torch.load(path, weights_only=False)
    assert same(found, tensors) and same(found, expected)
    assert all(found[name].stride() == value.stride() for name, value in expected.items())


@PROFILE
@given(tensors=state_dicts(), about=st.dictionaries(names, names, max_size=3))
def test_any_safetensors_file_comes_back(tmp_path, tensors, about):
    assume(tensors)  # safetensors writes what it cannot read itself for metadata alone
    path = tmp_path / "a.safetensors"
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    save_file(tensors, path, about)
    found, metadata = read_tensors(path)
    assert same(found, tensors) and metadata == about


@PROFILE
@given(tensors=state_dicts([*READ, *NOT_READ]), suffix=st.sampled_from([".pt", ".safetensors"]))
def test_any_dtype_ends_well(tmp_path, tensors, suffix):
    path = tmp_path / f"a{suffix}"
    tensors = {name: value.contiguous() for name, value in tensors.items()}
    (torch.save if suffix == ".pt" else save_file)(tensors, path)
    dtypes = {value.dtype for value in tensors.values()}
    try:
        assert same(read_tensors(path)[0], tensors) and not dtypes & set(NOT_READ)
    except CheckpointError as error:
        sentence(error, path.name)
        assert dtypes & set(NOT_READ)
    assert outcome(path) != "loaded"


SHAPES = shapes_of(half_unet(model_channels=64, num_head_channels=64))
sizes = st.one_of(st.integers(0, 3), st.integers(0, 2**40))
new_shapes = st.one_of(st.none(), st.lists(sizes, max_size=4).map(tuple))
changed = st.dictionaries(st.sampled_from(sorted(SHAPES)), new_shapes, min_size=1, max_size=3)


@PROFILE
@given(changes=changed, more=st.dictionaries(names, shapes, max_size=2))
def test_any_shapes_are_a_layout_or_none(changes, more):
    """A layout is found or not; one that is found can be built without memory, or says why not."""
    found = {name: changes.get(name, shape) for name, shape in SHAPES.items()} | more
    layout = detect_layout({name: shape for name, shape in found.items() if shape is not None})
    if layout is not None and layout.num_res_blocks * len(layout.channel_mult) <= len(found):
        try:
            build_network(layout, device="meta")
        except (ValueError, TypeError, RuntimeError) as error:  # what `Checkpoint.built` expects
            assert str(error)


json_values = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(allow_nan=True), names)
    | st.sampled_from([-1, 0, 10**9, 10**30]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3),
    max_leaves=6,
)
FIELDS = ("kind", "noise_schedule", "labels", "space", "training", "format", "layout")
LAYOUT = {"model_channels": 4, "norm_groups": 2, "num_head_channels": 4, "out_channels": 3}
LAYOUT |= {"num_res_blocks": 1, "channel_mult": [1], "attention_levels": [], "pool": "adaptive"}
SMALL = half_unet(**{**LAYOUT, "channel_mult": (1,), "attention_levels": ()}).state_dict()


fields = st.dictionaries(st.sampled_from(FIELDS), json_values, max_size=2)
layout_keys = st.sampled_from([*LAYOUT, "image_size", "dropout"])


@PROFILE
@given(changes=fields, layout=st.dictionaries(layout_keys, json_values, max_size=2))
def test_any_description_ends_well(tmp_path, changes, layout):
    path = tmp_path / "a.safetensors"
    about = {"format": 1, "kind": "classifier", "noise_schedule": "linear"}
    about["layout"] = LAYOUT | layout
    save_file(SMALL, path, {METADATA_KEY: json.dumps(about | changes)})
    said = outcome(path)
    if not layout and not changes:
        assert said == "loaded"
    if said == "loaded":
        assert read_checkpoint(path).description.layout.class_count == 3


@functools.cache
def whole_file(kind):
    """The same bytes for all examples: torch's old format has addresses in memory in it."""
    tensors = {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.zeros(2)}
    if kind == "safetensors":
        return save(tensors)
    file = io.BytesIO()
    torch.save(tensors, file, _use_new_zipfile_serialization=kind == "pt")
    return file.getvalue()


@pytest.mark.parametrize("kind", ["pt", "legacy", "safetensors"])
@PROFILE
@given(data=st.data())
def test_any_damage_ends_well(tmp_path, kind, data):
    path = tmp_path / ("a.safetensors" if kind == "safetensors" else "a.pt")
    content = bytearray(whole_file(kind))
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(content) - 1))
        content[at] = data.draw(st.integers(0, 255))
    path.write_bytes(content[: data.draw(st.integers(len(content) // 2, len(content)))])
    assert outcome(path) != "loaded"


@PROFILE
@given(content=st.binary(max_size=300), suffix=st.sampled_from([".pt", ".pth", ".safetensors"]))
def test_any_bytes_end_well(tmp_path, content, suffix):
    path = tmp_path / f"a{suffix}"
    starts = {".safetensors": struct.pack("<Q", len(content))}
    for start in (b"", starts.get(suffix, b"\x80\x02")):
        path.write_bytes(start + content)
        assert outcome(path) != "loaded"
