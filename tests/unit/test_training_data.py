"""Labelled images and latents: what is read, refused, split, augmented and drawn."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from guidance.training import rng as draws
from guidance.training.data import (
    Augment,
    LabelledImages,
    load_images,
    save_latents,
    shifted,
)
from guidance.training.rng import Batches, generator, seed_of

SIDE = 8


def write_folder(root, classes, size=(12, 8)):
    """A folder of class folders; every picture has a grey of its own."""
    shade = 0
    for name, files in classes.items():
        for file in files:
            path = root / name / file
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.new("RGB", size, (shade, shade, shade)).save(path)
            shade += 20
    return root


FOLDERS = {"zebra": ["2.png", "10.png", "1.png"], "Cat": ["a.bmp"], "10": ["x.png", "sub/y.png"]}
FOLDERS |= {"9": ["p.tif", "q.ppm"], "dog": ["d.PNG"]}


def test_a_folder_loads_as_torchvisions_image_folder_does(tmp_path):
    datasets = pytest.importorskip("torchvision.datasets")
    root = write_folder(tmp_path / "data", FOLDERS)
    (root / "zebra" / "notes.txt").write_text("no picture")
    (root / "readme.txt").write_text("no class")
    theirs, ours = datasets.ImageFolder(root), load_images(root, SIDE)
    assert list(ours.names) == theirs.classes == ["10", "9", "Cat", "dog", "zebra"]

    def by_shade(pairs):
        return sorted((int(shade), int(label)) for shade, label in pairs)

    expected = by_shade((image.getpixel((0, 0))[0], label) for image, label in theirs)
    got = by_shade(zip(ours.images[:, 0, 0, 0], ours.labels, strict=True))
    assert got == expected
    assert len(got) == 9


def test_pictures_are_cropped_to_the_centre_square_and_resized(tmp_path):
    pixels = np.zeros((8, 24, 3), np.uint8)
    pixels[:, 8:16] = (255, 128, 0)
    pixels[:, 16:] = 255
    (tmp_path / "class").mkdir()
    for axes in ((0, 1, 2), (1, 0, 2)):
        Image.fromarray(pixels.transpose(axes)).save(tmp_path / "class" / "long.png")
        data = load_images(tmp_path, 4)
        assert data.images.shape == (1, 3, 4, 4)
        assert data.images[0].flatten(1).unique(dim=1).flatten().tolist() == [255, 128, 0]


def test_pictures_of_every_known_ending_are_read(tmp_path):
    (tmp_path / "a").mkdir()
    endings = ("png", "jpg", "jpeg", "webp", "bmp", "ppm", "pgm", "tif", "tiff")
    for ending in endings:
        kind = {"jpg": "JPEG", "tif": "TIFF", "pgm": "PPM"}.get(ending, ending.upper())
        mode = "L" if ending == "pgm" else "RGB"
        Image.new(mode, (2, 2)).save(tmp_path / "a" / f"a.{ending}", format=kind)
    for mode in ("L", "P", "RGBA", "1"):
        Image.new(mode, (2, 2), 1).save(tmp_path / "a" / f"{mode}.png")
    announced = []
    data = load_images(tmp_path, 2, announced.append)
    assert (len(data), data.skipped, data.names) == (13, (), ("a",))
    assert announced == [13], "before they are read"


def test_a_folder_that_cannot_be_used_says_why(tmp_path):
    with pytest.raises(ValueError, match="--image-size"):
        load_images(tmp_path)
    with pytest.raises(ValueError, match="no class folders with pictures"):
        load_images(tmp_path, SIDE)
    root = write_folder(tmp_path / "data", {"cat": ["1.png"]})
    (root / "dog").mkdir()
    with pytest.raises(ValueError, match="dog holds no pictures"):
        load_images(root, SIDE)
    (root / "dog" / "broken.png").write_bytes(b"<html>")
    with pytest.raises(ValueError, match=r"broken\.png is not a whole picture, nor is any other"):
        load_images(root, SIDE)
    whole = (root / "cat" / "1.png").read_bytes()
    (root / "dog" / "broken.png").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ValueError, match=r"broken\.png is not a whole picture"):
        load_images(root, SIDE)
    (root / "dog" / "whole.png").write_bytes(whole)
    data = load_images(root, SIDE)
    assert (len(data), data.skipped) == (2, (str(Path("dog") / "broken.png"),))


def arrays(**changes):
    pixels = np.arange(4 * SIDE * SIDE * 3, dtype=np.uint8).reshape(4, SIDE, SIDE, 3)
    whole = {"arr_0": pixels, "arr_1": np.array([0, 2, 1, 2])} | changes
    return {name: values for name, values in whole.items() if values is not None}


def test_an_npz_file_loads_in_its_order(tmp_path):
    np.savez(tmp_path / "data.npz", **arrays())
    data = load_images(tmp_path / "data.npz")
    assert (data.images.permute(0, 2, 3, 1).numpy() == arrays()["arr_0"]).all()
    assert (data.labels.tolist(), data.names) == ([0, 2, 1, 2], ("0", "1", "2"))
    np.savez(tmp_path / "named.npz", **arrays(names=np.array(["a", "b", "c", "d"])))
    assert load_images(tmp_path / "named.npz").names == ("a", "b", "c", "d")


def test_files_that_do_not_fit_are_refused(tmp_path):
    path, empty = tmp_path / "data.npz", np.zeros((0, SIDE, SIDE, 3), np.uint8)
    for changes, said in (
        ({"arr_1": None}, r"data\.npz .*holds \['arr_0'\]; expected arr_0"),
        ({"arr_0": None}, "expected arr_0"),
        ({"arr_0": empty, "arr_1": np.zeros(0, int)}, "from 0"),
        ({"arr_1": np.array(["a", "b", "c", "d"])}, "labels <U1"),
        ({"arr_1": np.array([{}, 1, 2, 3], dtype=object)}, "not a whole .npz file"),
        ({"names": np.array(["a", "b"])}, "has label 2, but names only 2 classes"),
    ):
        np.savez(path, **arrays(**changes))
        with pytest.raises(ValueError, match=said):
            load_images(path)
    np.savez(path, **arrays())
    for content in (b"", b"<html></html>", b"PK\x03\x04 and no more", path.read_bytes()[:-100]):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"data\.npz is not a whole \.npz file"):
            load_images(path)
    (tmp_path / "data.csv").touch()
    for name in ("data.csv", "missing.npz", "missing"):
        with pytest.raises(ValueError, match=f"{name} is neither"):
            load_images(tmp_path / name)
    np.savez(path, **arrays(arr_0=np.zeros((4, 2, 3, 1), np.uint8)))
    with pytest.raises(ValueError, match="has 3x2 images, not 16"):
        load_images(path, 16)


def some_latents(**changes):
    latents = torch.randn(12, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    data = LabelledImages(latents, torch.arange(12) % 2, ("cat", "dog"), space="SD15")
    return replace(data, **changes)


def test_latents_come_back_as_they_were_saved(tmp_path):
    data = some_latents()
    save_latents(tmp_path / "a.safetensors", data)
    again = load_images(tmp_path / "a.safetensors")
    assert torch.equal(again.images, data.images) and torch.equal(again.labels, data.labels)
    assert (again.names, again.space) == (data.names, "SD15")
    assert torch.equal(again.x0(slice(3)), data.images[:3])
    assert again.split(0.5, 0)[0].space == "SD15"


def test_latents_that_do_not_fit_are_refused(tmp_path):
    path = tmp_path / "a.safetensors"
    for changes, said in (
        ({"images": torch.zeros(12, 4, 8)}, r"latents torch.float32 \(12, 4, 8\)"),
        ({"labels": torch.zeros(5)}, r"labels torch.int64 \(5,\)"),
        ({"labels": torch.arange(12)}, "labels from 0 to 11, but names 2 classes"),
        ({"images": torch.full((12, 4, 8, 8), float("nan"))}, "not finite"),
    ):
        save_latents(path, some_latents(**changes))
        with pytest.raises(ValueError, match=said):
            load_images(path)
    save_file({"weight": torch.zeros(2)}, path)
    for content in (path.read_bytes(), b"", b"nonsense", b"\xff" * 64):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"a\.safetensors is not a file of labelled latents"):
            load_images(path)


def numbered(count):
    """Image i is filled with i; even and odd ones are the classes."""
    images = torch.arange(count, dtype=torch.uint8)[:, None, None, None]
    images = images.expand(count, 1, 2, 2).contiguous()
    return LabelledImages(images, torch.arange(count) % 2, ("a", "b"), ("lost.png",), "rgb")


def which(data):
    return data.images[:, 0, 0, 0].tolist()


def test_a_split_loses_nothing():
    few = ((3, 0.99, 3), (4, 0.1, 0))
    for count, share, held in (*few, (10, 0.0, 0), (10, 0.1, 1), (10, 0.14, 1), (10, 0.16, 2)):
        rest, out = numbered(count).split(share, 0)
        assert (len(out), len(rest)) == (held, count - held)
        assert sorted(which(rest) + which(out)) == list(range(count))
        assert rest.labels.tolist() == [number % 2 for number in which(rest)]
        assert (rest.skipped, out.skipped, rest.names, rest.space) == ((), (), ("a", "b"), "rgb")


def test_a_split_depends_on_its_seed_alone():
    """A larger share holds out the same images and more."""
    for share in (1.0, -0.1):
        with pytest.raises(ValueError, match=f"held_out is {share}"):
            numbered(4).split(share, seed=0)
    data = numbered(20)
    few, more, other = (which(data.split(*how)[1]) for how in ((0.2, 3), (0.5, 3), (0.5, 4)))
    assert more[: len(few)] == few and len(few) == 4
    assert other != more
    assert which(data.pick(slice(2))) == [0, 1] and len(data.pick(slice(99))) == 20


def test_a_digest_tells_data_apart():
    data = numbered(6)
    assert data.digest() == numbered(6).digest()
    assert len(data.digest()) == 32
    images, labels = data.images.clone(), data.labels.clone()
    images[5, 0, 1, 1] += 1
    labels[0] = 1
    changes = ({"images": images}, {"labels": labels}, {"names": ("a", "c")})
    changes += ({"images": data.images.view(6, 1, 1, 4)},)
    assert len({data.digest(), *(replace(data, **change).digest() for change in changes)}) == 5


def test_of_large_data_a_part_is_looked_at(monkeypatch):
    """24 bytes with a limit of 8: every third image."""
    monkeypatch.setattr("guidance.training.data.HASHED", 8)
    whole = numbered(6).digest()
    for number in range(6):
        images = numbered(6).images.clone()
        images[number] += 1
        same = LabelledImages(images, numbered(6).labels, ("a", "b")).digest() == whole
        assert same == (number not in (0, 3)), number


def test_grey_values_become_what_models_see():
    pixels = torch.tensor([0, 51, 255], dtype=torch.uint8).view(3, 1, 1, 1)
    data = LabelledImages(pixels, torch.zeros(3, dtype=torch.int64), ("a",))
    assert data.x0(slice(None)).flatten().tolist() == pytest.approx([-1, -0.6, 1])
    latents = some_latents(images=torch.randn(12, 4, 2, 2).half())
    assert torch.equal(latents.x0(slice(1, 3)), latents.images[1:3].float())


def test_mirror_images_are_mirrored_left_to_right():
    image = torch.arange(6.0).view(1, 1, 2, 3)
    chance = torch.Generator().manual_seed(0)
    augmented = Augment(flip=True)(image.expand(300, 1, 2, 3), chance)
    seen = [tuple(one.flatten().tolist()) for one in augmented]
    assert set(seen) == {(0, 1, 2, 3, 4, 5), (2, 1, 0, 5, 4, 3)}
    assert 0.4 < seen.count((0, 1, 2, 3, 4, 5)) / 300 < 0.6
    assert Augment()(image, chance) is image


def test_a_shift_goes_both_ways_and_repeats_the_edge():
    image = torch.arange(9.0).view(1, 1, 3, 3).expand(300, 1, 3, 3)
    chance = torch.Generator().manual_seed(0)
    seen = {tuple(one.flatten().int().tolist()) for one in shifted(image, 1, chance)}
    assert len(seen) == 9
    assert (0, 0, 1, 0, 0, 1, 3, 3, 4) in seen
    assert (4, 5, 5, 7, 8, 8, 7, 8, 8) in seen
    moved = Augment(shift=1)(image, torch.Generator().manual_seed(0))
    assert torch.equal(moved, shifted(image, 1, torch.Generator().manual_seed(0)))


@pytest.mark.parametrize("size", [1, 4, 10, 25])
def test_every_pass_through_the_data_shows_each_image_once(size):
    batches = Batches(10, size, seed=0)
    drawn = torch.cat([batches.at(step) for step in range(50)])[: 50 * size // 10 * 10]
    passes = drawn.view(-1, 10)
    assert torch.equal(passes.sort(dim=1).values, torch.arange(10).expand_as(passes))
    assert not torch.equal(passes[0], passes[1])
    anew = Batches(10, size, seed=0)
    assert torch.equal(anew.at(7), batches.at(7)), "a step's batch needs no step before it"
    assert not torch.equal(Batches(10, 10, seed=1).at(0), Batches(10, 10, seed=0).at(0))


def test_seeds_of_a_training_stay_what_they_were():
    """numpy keeps these numbers from version to version, so that trainings can be repeated."""
    assert seed_of(0) == 6569863346532939966
    assert seed_of(0, 1) == 5836529245451711556
    assert seed_of(-1, 3) == seed_of(2**64 - 1, 3) == 2691144761069918725
    words = ("ORDER", "STEP", "WEIGHTS", "VALIDATION", "DROPOUT", "NETWORK")
    assert [getattr(draws, word) for word in words] == list(range(6))
    places = [seed_of(0, 1), seed_of(0, 2), seed_of(1, 1), seed_of(0, 1, 1), seed_of(0, 2, 1)]
    assert len(set(places)) == 5
    assert all(0 <= place < 2**63 for place in places)
    one, two = (torch.rand(3, generator=generator(4, 1, step)) for step in (0, 1))
    same = torch.rand(3, generator=torch.Generator().manual_seed(seed_of(4, 1, 0)))
    assert torch.equal(one, same) and not torch.equal(one, two)
