"""Model files: what they are recognised as, that they come back whole, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_networks import (
    NAMES,
    SIZE,
    classifier_layout,
    half_unet,
    unet,
    unet_layout,
    write_model,
)

from guidance import CheckpointError, load_adm, load_classifier
from guidance.adm import released
from guidance.adm.build import build_network, shapes_of
from guidance.adm.detect import detect_layout, released_schedule
from guidance.checkpoints.checkpoint import (
    METADATA_KEY,
    Description,
    read_checkpoint,
    save_checkpoint,
)

# Millions of parameters, as published or counted in the files.
MILLIONS = {"64x64_classifier": 65.4, "128x128_classifier": 42.6, "256x256_classifier": 54.1}
MILLIONS |= {"512x512_classifier": 54.4, "64x64_diffusion": 296, "128x128_diffusion": 421}
MILLIONS |= {"256x256_diffusion": 554, "256x256_diffusion_uncond": 553, "512x512_diffusion": 559}
MILLIONS |= {"64_256_upsampler": 312, "128_512_upsampler": 309}
RELEASED = {one.file.removesuffix(".pt"): one for one in released.RELEASED}


def on_meta(layout):
    return build_network(layout, device="meta")


@pytest.mark.parametrize("name", MILLIONS)
def test_a_released_model_is_recognised_by_its_shapes(name):
    layout, millions = RELEASED[name].layout, MILLIONS[name]
    network = on_meta(layout)
    found = detect_layout(shapes_of(network))
    assert found == layout
    assert released_schedule(found) == ("cosine" if name.startswith("64x64") else "linear")
    count = sum(p.numel() for p in network.parameters()) / 1e6
    assert abs(count - millions) < (0.6 if millions > 100 else 0.06)


NARROW = {"model_channels": 96, "num_heads": 4, "num_head_channels": None}
# improved-diffusion changes sizes outside residual blocks, and has these defaults.
IMPROVED = {"resblock_updown": False, "num_heads": 4, "num_head_channels": None, "image_size": 32}
SMALL = {"model_channels": 64, "num_head_channels": 64, "image_size": 64, "attention_levels": (1,)}


DIFFUSION = [
    {},
    {"num_res_blocks": 2},
    {"channel_mult": (1, 1, 2), "num_res_blocks": 3},
    {"channel_mult": (2,), "attention_levels": (), "image_size": None},
    {"attention_levels": (), "image_size": None},
    {"channel_mult": (1, 1), "num_res_blocks": 3, "attention_levels": (), "image_size": None},
    {"channel_mult": (1,), "num_res_blocks": 3, "attention_levels": (), "image_size": None},
    {"attention_levels": (0,), "image_size": 32},
    {"attention_levels": (0,), "image_size": 32, **NARROW},
    IMPROVED,
    {"scale_shift_norm": False},
    {"scale_shift_norm": False, "num_res_blocks": 2, **IMPROVED},
    {"in_channels": 4, "image_channels": 4, "out_channels": 4},
    {"in_channels": 1, "image_channels": 1, "out_channels": 2},
    {"num_classes": None},
    {"in_channels": 6, "num_classes": None},
    {"out_channels": 3},
]
CLASSIFIERS = [
    {},
    {"image_size": 32},
    {"channel_mult": (1, 2, 4), "num_res_blocks": 2, "attention_levels": (1, 2)},
    {"in_channels": 4, "out_channels": 7},
    {"scale_shift_norm": False},
    {"resblock_updown": False},
    {"attention_levels": (0,), **NARROW},
]


@pytest.mark.parametrize("kind", ["diffusion", "classifier"])
def test_small_models_are_recognised(kind):
    plain = {**SMALL, "null_class": None, "num_classes": 10}
    layouts = [unet_layout(**plain | changes) for changes in DIFFUSION]
    if kind == "classifier":
        layouts = [classifier_layout(**SMALL | changes) for changes in CLASSIFIERS]
        for pool in ("attention", "adaptive", "spatial", "spatial_v2"):
            layouts += [
                replace(RELEASED[f"{s}x{s}_classifier"].layout, pool=pool) for s in (64, 256)
            ]
    for layout in layouts:
        assert detect_layout(shapes_of(on_meta(layout))) == layout


def test_other_networks_are_not_taken_for_adm():
    no_sizes = {"time_embed.0.weight": (128,), "input_blocks.0.0.weight": (), "middle_block.1": ()}
    for shapes in ({}, {"weight": (3, 3)}, no_sizes):
        assert detect_layout(shapes) is None
    shapes = shapes_of(on_meta(classifier_layout(**SMALL)))
    assert detect_layout(shapes) is not None
    for key, shape in (
        ("input_blocks.99999999999.0.weight", (1,)),
        ("time_embed.0.weight", (128, 0)),
        ("out.2.positional_embedding", (64, 0)),
        ("out.2.positional_embedding", ()),
        ("input_blocks.1.0.out_layers.3.weight", (33, 33, 3, 3)),
    ):
        assert detect_layout({**shapes, key: shape}) is None


def same_weights(network, other):
    ours, theirs = network.state_dict(), other.state_dict()
    return ours.keys() == theirs.keys() and all(torch.equal(ours[k], theirs[k]) for k in ours)


@pytest.mark.parametrize("pool", ["attention", "adaptive", "spatial", "spatial_v2"])
def test_a_classifier_comes_back_whole(tmp_path, pool):
    network = half_unet(pool=pool)
    path = write_model(tmp_path / "c.safetensors", network, schedule="cosine")
    classifier = load_classifier(path)
    assert classifier.labels == NAMES
    assert (classifier.schedule.name, classifier.space) == ("cosine", "rgb")
    assert classifier.layout == network.layout
    assert same_weights(classifier.network, network)
    assert not any(p.requires_grad for p in classifier.network.parameters())
    assert not classifier.network.training


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"num_classes": None, "null_class": None},
        {"null_class": None},
        {"num_head_channels": None, "num_heads": 4, "new_attention_order": True, "dropout": 0.25},
        {"scale_shift_norm": False, "resblock_updown": False, "model_channels": 64},
    ],
    ids=str,
)
def test_a_diffusion_model_comes_back_whole(tmp_path, changes):
    mult = (1, 1.5) if "model_channels" in changes else (1, 2)
    network = unet(**{"attention_levels": (), "channel_mult": mult} | changes)
    classes = network.layout.class_count
    names = tuple(f"class {n}" for n in range(classes)) or None
    model = load_adm(write_model(tmp_path / "d.safetensors", network, names, "cosine"))
    assert model.layout == network.layout
    assert (model.labels, model.num_classes, model.schedule.name) == (names, classes, "cosine")
    assert same_weights(model.network, network)


def test_the_dtype_is_kept_in_the_file_and_chosen_at_loading(tmp_path):
    dtypes = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
    for name, dtype in dtypes.items():
        network = half_unet()
        path = write_model(tmp_path / "c.safetensors", network, schedule="cosine", dtype=name)
        assert {t.dtype for t in read_checkpoint(path).tensors.values()} == {dtype}
        assert same_weights(read_checkpoint(path).network(), network.to(dtype))
        for other in dtypes:
            loaded = load_classifier(path, dtype=other)
            assert loaded.log_probs(torch.zeros(1, 3, SIZE, SIZE), 1.0).isfinite().all()
    assert load_classifier(path, noise_schedule="linear").schedule.name == "linear"
    with pytest.raises(CheckpointError, match="'sqrt'; expected auto, linear, cosine"):
        load_classifier(path, noise_schedule="sqrt")


WIDE = {"model_channels": 64, "num_head_channels": 64, "image_size": 64}


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_a_state_dict_is_read_and_recognised(tmp_path, suffix):
    network = half_unet(**WIDE).requires_grad_(True)
    path = tmp_path / f"64x64_classifier{suffix}"
    torch.save(dict(network.named_parameters()), path)
    classifier = load_classifier(path)
    assert classifier.layout == network.layout
    assert same_weights(classifier.network, network)
    assert (classifier.schedule.name, classifier.labels) == ("cosine", None)
    assert classifier.space == "rgb"
    assert not any(p.requires_grad for p in classifier.network.parameters())
    torch.save(half_unet(**WIDE, in_channels=4).state_dict(), path)
    assert load_classifier(path).space is None


def changed(path, **changes):
    """The same tensors under another description, which is given whole as `text` or changed."""
    with safe_open(path, "pt") as file:
        about = json.loads(file.metadata()[METADATA_KEY])
    layout = about["layout"] | changes.pop("of_layout", {})
    text = changes.pop("text", None) or json.dumps(about | {"layout": layout} | changes)
    save_file(load_file(path), path, {METADATA_KEY: text})
    return path


def refused(path, kind=None, use=False):
    """The one sentence that the file is refused with; `use` builds the network too."""
    with pytest.raises(CheckpointError) as caught:
        checkpoint = read_checkpoint(path, kind)
        if use:
            checkpoint.network()
    message = str(caught.value)
    assert path.name in message and "\n" not in message and len(message) < 400
    return message


def test_what_is_no_model_file(tmp_path):
    """Missing, a folder, of another ending, or a web page that was saved under its name."""
    assert "does not exist" in refused(tmp_path / "no.safetensors")
    (tmp_path / "folder.pt").mkdir()
    assert "choose an existing model file" in refused(tmp_path / "folder.pt")
    for name in ("model.ckpt", "model", "page.pt", "page.safetensors"):
        (tmp_path / name).write_text("<!DOCTYPE html><html><body>Not found</body></html>")
        said = refused(tmp_path / name)
        assert ("again" if "page" in name else ".safetensors, .pt, .pth") in said
        assert "may run code" not in said
    torch.save({"a": torch.zeros(1)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    assert "before version 1.6" in refused(tmp_path / "old.pt")


def test_another_kind_of_model(tmp_path):
    diffusion = write_model(tmp_path / "d.safetensors", unet())
    classifier = write_model(tmp_path / "c.safetensors", half_unet())
    assert "is an ADM diffusion model, not a noisy" in refused(diffusion, "classifier")
    assert "is a noisy classifier, not an ADM diff" in refused(classifier, "diffusion")
    tensors = {"conv1.weight": torch.zeros(8, 3, 3, 3), "fc.weight": torch.zeros(10, 8)}
    for name, save in (("a.pt", torch.save), ("a.safetensors", save_file)):
        save(tensors, tmp_path / name)
        assert "neither an ADM diffusion model nor an ADM classifier" in refused(tmp_path / name)


KEY = "middle_block.0.in_layers.2.weight"


@pytest.mark.parametrize(
    ("key", "change", "said"),
    [
        (KEY, None, f"1 tensor is missing ('{KEY}')"),
        ("middle_block.7.weight", lambda _: torch.zeros(3), "too many ('middle_block.7.weight')"),
        (KEY, lambda weight: weight[:, :-1], f"1 tensor is of another shape ('{KEY}'): ("),
        (KEY, lambda weight: weight.long(), f"1 tensor is not floating-point ('{KEY}')"),
    ],
)
def test_a_state_dict_that_does_not_fit(tmp_path, key, change, said):
    network = half_unet(**WIDE)
    tensors = network.state_dict()
    weight = tensors.pop(key, None)
    if change:
        tensors[key] = change(weight).contiguous()
    torch.save(tensors, tmp_path / "c.pt")
    about = Description(kind="classifier", layout=network.layout, noise_schedule="linear")
    save_checkpoint(tmp_path / "c.safetensors", tensors, about)
    for name in ("c.pt", "c.safetensors"):
        message = refused(tmp_path / name, use=True)
        assert said in message and "guided-diffusion's own" in message


def test_what_is_no_dictionary_of_tensors(tmp_path):
    one, path = torch.zeros(1), tmp_path / "c.pt"
    for content in ({"step": 3}, {"state_dict": {"weight": one}}, [one], one, {1: one}, "a", None):
        torch.save(content, path)
        message = refused(path)
        assert "is not a plain dictionary of tensors" in message and "state_dict()" in message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        *(({"text": text}, "") for text in ("[]", "null", "3")),
        ({"text": "not json"}, "Expecting value"),
        ({"text": "{}"}, "'kind' is missing"),
        ({"kind": "vae"}, "'vae'"),
        ({"kind": ["classifier"]}, ""),
        ({"kind": "x" * 5000}, "..."),
        ({"format": 2}, "format 2, newer than 1: update the pack"),
        ({"noise_schedule": "sqrt"}, "noise_schedule is 'sqrt', expected one of linear, cosine"),
        ({"noise_schedule": []}, "noise_schedule is []"),
        ({"layout": None}, ""),
        ({"layout": {}}, "model_channels"),
        ({"labels": "abc"}, "labels is not a list of names"),
        ({"labels": [1, 2, 3]}, "labels is not a list of names"),
        ({"labels": ["only one"]}, "1 labels for 3 classes"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_corrupt_description(tmp_path, change, said):
    message = refused(changed(write_model(tmp_path / "c.safetensors", half_unet()), **change))
    assert said in message and "save the model again" in message


IMPOSSIBLE = {
    "model_channels": [33, 0, "32", 32 * 10**14, None],
    "num_res_blocks": [0, 10**12, 1.5],
    "channel_mult": [[], [1e400], 2, [1, 3]],
    "attention_levels": [[2], [-1], [0.5]],
    "num_head_channels": [0, 48],
    "num_heads": [0],  # where they decide
    "out_channels": [10**15],
    "in_channels": [-3],
    "image_size": [None, 10**9],
    "pool": ["mean"],
    "dropout": [2.0],
}


@pytest.mark.parametrize("key", IMPOSSIBLE)
def test_a_description_of_an_impossible_network(tmp_path, key):
    more = {"num_head_channels": None} if key == "num_heads" else {}
    path = write_model(tmp_path / "c.safetensors", half_unet(), labels=None)
    for value in IMPOSSIBLE[key]:
        refused(changed(path, of_layout={key: value} | more), use=True)


def test_a_file_can_be_saved_over_the_one_it_was_read_from(tmp_path):
    path = write_model(tmp_path / "c.safetensors", half_unet())
    checkpoint = read_checkpoint(path)
    write_model(path, checkpoint.network(), dtype="fp16")
    assert same_weights(read_checkpoint(path).network(), half_unet().half())


def test_tensors_that_share_memory_are_saved_apart(tmp_path):
    network = half_unet()
    shared = torch.zeros_like(network.time_embed[2].weight)
    network.time_embed[2].weight = torch.nn.Parameter(shared, requires_grad=False)
    twin = network.middle_block[0].emb_layers[1]
    twin.weight = torch.nn.Parameter(shared[: len(twin.weight)], requires_grad=False)
    loaded = load_classifier(write_model(tmp_path / "c.safetensors", network)).network
    assert same_weights(loaded, network)
