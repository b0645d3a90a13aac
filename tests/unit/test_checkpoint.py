"""Model files: what they are recognised as, that they come back whole, and what is refused."""

from __future__ import annotations

import json
import re
from dataclasses import replace

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from tiny_networks import (
    NAMES,
    SIZE,
    classifier_layout,
    diffusion_model,
    half_unet,
    unet,
    unet_layout,
    write_model,
)

from guidance import CheckpointError, load_adm, load_classifier
from guidance.adm import released
from guidance.adm.build import build_network, shapes_of
from guidance.adm.detect import detect_layout, released_schedule
from guidance.checkpoints.checkpoint import METADATA_KEY, read_checkpoint

# Millions of parameters, as published or counted in the files.
MILLIONS = {
    "64x64_classifier": 65.4,
    "128x128_classifier": 42.6,
    "256x256_classifier": 54.1,
    "512x512_classifier": 54.4,
    "64x64_diffusion": 296,
    "128x128_diffusion": 421,
    "256x256_diffusion": 554,
    "256x256_diffusion_uncond": 553,
    "512x512_diffusion": 559,
    "64_256_upsampler": 312,
    "128_512_upsampler": 309,
}
RELEASED = {one.file.removesuffix(".pt"): one for one in released.RELEASED}


def build(layout, device="meta"):
    return build_network(layout, device=device)


@pytest.mark.parametrize("name", MILLIONS)
def test_a_released_model_is_recognised_by_its_shapes(name):
    layout, millions = RELEASED[name].layout, MILLIONS[name]
    network = build(layout)
    found = detect_layout(shapes_of(network))
    assert found == layout
    assert released_schedule(found) == ("cosine" if name.startswith("64x64") else "linear")
    count = sum(p.numel() for p in network.parameters()) / 1e6
    assert abs(count - millions) < (0.6 if millions > 100 else 0.06)


@pytest.mark.parametrize("pool", ["attention", "adaptive", "spatial", "spatial_v2"])
@pytest.mark.parametrize("size", [64, 256])
def test_every_pool_is_recognised(pool, size):
    layout = replace(RELEASED[f"{size}x{size}_classifier"].layout, pool=pool)
    assert detect_layout(shapes_of(build(layout))) == layout


NARROW = {"model_channels": 96, "num_heads": 4, "num_head_channels": None}
# improved-diffusion changes sizes outside residual blocks, and has these defaults.
IMPROVED = {"resblock_updown": False, "num_heads": 4, "num_head_channels": None, "image_size": 32}
SMALL = {"model_channels": 64, "num_head_channels": 64, "image_size": 64, "attention_levels": (1,)}


@pytest.mark.parametrize(
    "changes",
    [
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
    ],
    ids=str,
)
def test_small_diffusion_models_are_recognised(changes):
    layout = unet_layout(**{**SMALL, "null_class": None, "num_classes": 10, **changes})
    assert detect_layout(shapes_of(build(layout))) == layout


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"image_size": 32},
        {"channel_mult": (1, 2, 4), "num_res_blocks": 2, "attention_levels": (1, 2)},
        {"in_channels": 4, "out_channels": 7},
        {"scale_shift_norm": False},
        {"resblock_updown": False},
        {"attention_levels": (0,), **NARROW},
    ],
    ids=str,
)
def test_small_classifiers_are_recognised(changes):
    layout = classifier_layout(**{**SMALL, **changes})
    assert detect_layout(shapes_of(build(layout))) == layout


@pytest.mark.parametrize(
    "shapes",
    [
        {},
        {"weight": (3, 3)},
        {"time_embed.0.weight": (128,), "input_blocks.0.0.weight": (), "middle_block.1": ()},
    ],
)
def test_other_networks_are_not_taken_for_adm(shapes):
    assert detect_layout(shapes) is None


@pytest.mark.parametrize(
    ("key", "shape"),
    [
        ("input_blocks.99999999999.0.weight", (1,)),
        ("time_embed.0.weight", (128, 0)),
        ("out.2.positional_embedding", (64, 0)),
        ("out.2.positional_embedding", ()),
        ("input_blocks.1.0.out_layers.3.weight", (33, 33, 3, 3)),
    ],
)
def test_strange_shapes_are_not_taken_for_adm(key, shape):
    shapes = shapes_of(build(classifier_layout(**SMALL)))
    assert detect_layout(shapes) is not None
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
        {"scale_shift_norm": False, "resblock_updown": False, "channel_mult": (1, 1.5)},
    ],
    ids=str,
)
def test_a_diffusion_model_comes_back_whole(tmp_path, changes):
    changes = {"attention_levels": (), **changes}
    if changes.get("channel_mult") == (1, 1.5):
        changes |= {"model_channels": 64}
    network = unet(**changes)
    classes = network.layout.class_count
    names = tuple(f"class {n}" for n in range(classes)) or None
    path = write_model(tmp_path / "d.safetensors", network, names, "cosine")
    model = load_adm(path)
    assert model.layout == network.layout
    assert (model.labels, model.num_classes, model.schedule.name) == (names, classes, "cosine")
    assert same_weights(model.network, network)


@pytest.mark.parametrize("name", ["fp32", "bf16", "fp16"])
def test_the_dtype_is_kept_in_the_file_and_chosen_at_loading(tmp_path, name):
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[name]
    network = half_unet()
    path = write_model(tmp_path / "c.safetensors", network, dtype=name)
    assert {t.dtype for t in read_checkpoint(path).tensors.values()} == {dtype}
    assert same_weights(read_checkpoint(path).network(), network.to(dtype))
    for other in ("fp32", "bf16", "fp16"):
        loaded = load_classifier(path, dtype=other)
        assert loaded.log_probs(torch.zeros(1, 3, SIZE, SIZE), 1.0).isfinite().all()


def test_the_noise_schedule_can_be_overridden(tmp_path):
    path = write_model(tmp_path / "c.safetensors", half_unet(), schedule="cosine")
    assert load_classifier(path, noise_schedule="linear").schedule.name == "linear"
    with pytest.raises(CheckpointError, match="'sqrt'; expected auto, linear, cosine"):
        load_classifier(path, noise_schedule="sqrt")


WIDE = {"model_channels": 64, "num_head_channels": 64, "image_size": 64}


@pytest.mark.parametrize("suffix", [".pt", ".pth"])
def test_a_state_dict_is_read_and_recognised(tmp_path, suffix):
    network = half_unet(**WIDE)
    path = tmp_path / f"64x64_classifier{suffix}"
    torch.save(network.state_dict(), path)
    classifier = load_classifier(path)
    assert classifier.layout == network.layout
    assert same_weights(classifier.network, network)
    assert (classifier.schedule.name, classifier.labels, classifier.space) == (
        "cosine",
        None,
        "rgb",
    )
    latent = tmp_path / "latent.pt"
    torch.save(half_unet(**WIDE, in_channels=4).state_dict(), latent)
    assert load_classifier(latent).space is None


def test_a_state_dict_of_parameters_loads_frozen(tmp_path):
    network = half_unet(**WIDE).requires_grad_(True)
    path = tmp_path / "c.pt"
    torch.save(dict(network.named_parameters()), path)
    loaded = load_classifier(path).network
    assert not any(p.requires_grad for p in loaded.parameters())


def rewrite(path, about):
    """The same tensors under another description."""
    text = about if isinstance(about, str) else json.dumps(about)
    save_file(load_file(path), path, {METADATA_KEY: text})


def described(path):
    with safe_open(path, "pt") as file:
        return json.loads(file.metadata()[METADATA_KEY])


def refused(path, kind=None, use=False):
    """The one sentence that the file is refused with; `use` builds the network too."""
    with pytest.raises(CheckpointError) as caught:
        checkpoint = read_checkpoint(path, kind)
        if use:
            checkpoint.network()
    message = str(caught.value)
    assert path.name in message
    assert "\n" not in message
    assert len(message) < 400
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


@pytest.mark.parametrize("size", [0, 4, 100, 20_000])
def test_a_truncated_safetensors_file(tmp_path, size):
    path = write_model(tmp_path / "c.safetensors", half_unet())
    path.write_bytes(path.read_bytes()[:size])
    assert "download or copy it again" in refused(path)


@pytest.mark.parametrize("share", [0.0, 0.001, 0.5, 0.99])
def test_a_truncated_torch_file(tmp_path, share):
    path = tmp_path / "c.pt"
    torch.save(half_unet(**WIDE).state_dict(), path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    assert "download it again" in refused(path)


def test_a_diffusion_model_is_no_classifier_and_the_other_way_round(tmp_path):
    diffusion = write_model(tmp_path / "d.safetensors", unet())
    classifier = write_model(tmp_path / "c.safetensors", half_unet())
    message = refused(diffusion, "classifier")
    assert "is an ADM diffusion model, not a noisy classifier" in message
    assert "other loader" in message
    message = refused(classifier, "diffusion")
    assert "is a noisy classifier, not an ADM diffusion model" in message


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_foreign_state_dict(tmp_path, suffix):
    path = tmp_path / f"foreign{suffix}"
    save = torch.save if suffix == ".pt" else save_file
    save({"conv1.weight": torch.zeros(8, 3, 3, 3), "fc.weight": torch.zeros(10, 8)}, path)
    assert "neither an ADM diffusion model nor an ADM classifier" in refused(path)


def broken(tensors, how):
    tensors = dict(tensors)
    key = "middle_block.0.in_layers.2.weight"
    if how == "missing":
        del tensors[key]
    elif how == "extra":
        tensors["middle_block.7.weight"] = torch.zeros(3)
    elif how == "wrongly shaped":
        tensors[key] = tensors[key][:, :-1].contiguous()
    elif how == "integer":
        tensors[key] = tensors[key].long()
    return tensors


@pytest.mark.parametrize("how", ["missing", "extra", "wrongly shaped", "integer"])
@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_a_state_dict_that_does_not_fit(tmp_path, how, suffix):
    path = tmp_path / f"c{suffix}"
    if suffix == ".pt":
        torch.save(broken(half_unet(**WIDE).state_dict(), how), path)
    else:
        write_model(path, half_unet())
        about = described(path)
        save_file(broken(load_file(path), how), path, {METADATA_KEY: json.dumps(about)})
    message = refused(path, use=True)
    said = {
        "missing": "1 tensor is missing ('middle_block.0.in_layers.2.weight')",
        "extra": "1 tensor is too many ('middle_block.7.weight')",
        "wrongly shaped": "1 tensor is of another shape ('middle_block.0.in_layers.2.weight'): (",
        "integer": "1 tensor is not floating-point ('middle_block.0.in_layers.2.weight')",
    }
    assert said[how] in message
    assert "guided-diffusion's own" in message


@pytest.mark.parametrize(
    "content",
    [
        {"step": 3},
        {"state_dict": {"weight": torch.zeros(1)}},
        [torch.zeros(1)],
        torch.zeros(3),
        {1: torch.zeros(1)},
        "text",
        None,
    ],
    ids=lambda value: str(value)[:30],
)
def test_what_is_no_dictionary_of_tensors(tmp_path, content):
    path = tmp_path / "c.pt"
    torch.save(content, path)
    message = refused(path)
    assert "is not a plain dictionary of tensors" in message and "state_dict()" in message


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ("not json", "Expecting value"),
        ("[]", ""),
        ("null", ""),
        ("3", ""),
        ("{}", "'kind' is missing"),
        ({"kind": "vae"}, "'vae'"),
        ({"format": 2}, "format 2, newer than 1: update the pack"),
        ({"kind": ["classifier"]}, ""),
        ({"kind": "x" * 5000}, "..."),
        ({"noise_schedule": "sqrt"}, "noise_schedule is 'sqrt', expected one of linear, cosine"),
        ({"noise_schedule": None}, "noise_schedule is None"),
        ({"noise_schedule": []}, "noise_schedule is []"),
        ({"layout": None}, ""),
        ({"layout": {}}, "model_channels"),
        ({"labels": "abc"}, "labels is not a list of names"),
        ({"labels": [1, 2, 3]}, "labels is not a list of names"),
        ({"labels": ["only one"]}, "1 labels for 3 classes"),
        ({"labels": 7}, "labels is not a list of names"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_a_corrupt_description(tmp_path, change, said):
    path = write_model(tmp_path / "c.safetensors", half_unet())
    rewrite(path, {**described(path), **change} if isinstance(change, dict) else change)
    message = refused(path)
    assert said in message and "save the model again" in message


@pytest.mark.parametrize(
    "change",
    [
        {"model_channels": 33},
        {"model_channels": 0},
        {"model_channels": "32"},
        {"model_channels": 32 * 10**14},
        {"model_channels": None},
        {"num_res_blocks": 0},
        {"num_res_blocks": 10**12},
        {"num_res_blocks": 1.5},
        {"channel_mult": []},
        {"channel_mult": [1e400]},
        {"channel_mult": 2},
        {"channel_mult": [1, 3]},
        {"attention_levels": [2]},
        {"attention_levels": [-1]},
        {"attention_levels": [0.5]},
        {"num_head_channels": 0},
        {"num_head_channels": 48},
        {"num_head_channels": None, "num_heads": 0},
        {"out_channels": 10**15},
        {"in_channels": -3},
        {"image_size": None},
        {"image_size": 10**9},
        {"pool": "mean"},
        {"dropout": 2.0},
    ],
    ids=str,
)
def test_a_description_of_an_impossible_network(tmp_path, change):
    path = write_model(tmp_path / "c.safetensors", half_unet(), labels=None)
    about = described(path)
    about["layout"] |= change
    rewrite(path, about)
    refused(path, use=True)


def test_the_wrong_image_size_for_an_attention_pool(tmp_path):
    classifier = load_classifier(write_model(tmp_path / "c.safetensors", half_unet()))
    for call in (classifier.log_probs, lambda x, sigma: classifier.gradient(x, sigma, 0)):
        with pytest.raises(ValueError) as caught:
            call(torch.zeros(1, 3, 16, 16), 1.0)
        assert re.search("8x8.* is 16x16.*Make it 8x8", str(caught.value))


def test_a_diffusion_model_says_which_sizes_it_can_halve():
    model = diffusion_model(num_classes=None, null_class=None)
    with pytest.raises(ValueError, match="halves its input 1 times.* multiples of 2; they are 7x8"):
        model(torch.zeros(1, 3, 8, 7), torch.zeros(1), None)


def test_saving_creates_the_folder_and_keeps_the_usual_rights(tmp_path):
    path = write_model(tmp_path / "new" / "c.safetensors", half_unet())
    other = tmp_path / "plain"
    other.touch()
    assert path.stat().st_mode == other.stat().st_mode
    assert list(path.parent.iterdir()) == [path]


def test_a_save_without_room_keeps_the_old_file(tmp_path, no_room):
    path = write_model(tmp_path / "c.safetensors", half_unet())
    before = path.read_bytes()
    with no_room(len(before) // 2), pytest.raises(OSError, match=r"c\.safetensors could not be"):
        write_model(path, half_unet())
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


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
