"""Labelled images, the optimisation loop, and what both trainings minimise."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from tiny_networks import classifier_layout, unet_layout

from guidance import NoiseSchedule
from guidance.training.data import (
    Augment,
    LabelledImages,
    load_images,
    save_latents,
    shifted,
    to_unit_range,
)
from guidance.training.loop import OptimizerConfig, Trained, optimise
from guidance.training.rng import Batches
from guidance.training.train_classifier import accuracy, diffuse, train_classifier
from guidance.training.train_diffusion import VarianceLoss, drop_labels, train_diffusion

SIDE = 8


def striped(count=64, channels=3):
    """Two classes: rows or columns of stripes, under noise."""
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(count) % 2
    noise = torch.randint(0, 60, (count, channels, SIDE, SIDE), generator=generator)
    rows = (190 * (torch.arange(SIDE) % 2)).view(-1, 1).expand(SIDE, SIDE)
    stripes = torch.stack([rows, rows.T])[labels]
    images = (noise + stripes[:, None]).to(torch.uint8)
    return LabelledImages(images, labels, ("rows", "columns"))


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


FOLDERS = {
    "zebra": ["2.png", "10.png", "1.png"],
    "Cat": ["a.bmp"],
    "10": ["x.png", "sub/y.png"],
    "9": ["p.tif", "q.ppm"],
    "dog": ["d.PNG"],
}


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
    Image.fromarray(pixels).save(tmp_path / "class" / "wide.png")
    data = load_images(tmp_path, 4)
    assert data.images.shape == (1, 3, 4, 4)
    assert data.images[0].flatten(1).unique(dim=1).flatten().tolist() == [255, 128, 0]


def test_grey_and_palette_pictures_become_rgb(tmp_path):
    (tmp_path / "class").mkdir()
    for mode in ("L", "P", "RGBA", "1"):
        Image.new(mode, (SIDE, SIDE), 1).save(tmp_path / "class" / f"{mode}.png")
    assert load_images(tmp_path, SIDE).images.shape == (4, 3, SIDE, SIDE)


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
    whole = {
        "arr_0": np.arange(4 * SIDE * SIDE * 3, dtype=np.uint8).reshape(4, SIDE, SIDE, 3),
        "arr_1": np.array([0, 2, 1, 2]),
    }
    return {k: v for k, v in {**whole, **changes}.items() if v is not None}


def test_an_npz_file_loads_in_its_order(tmp_path):
    np.savez(tmp_path / "data.npz", **arrays())
    data = load_images(tmp_path / "data.npz")
    assert (data.images.permute(0, 2, 3, 1).numpy() == arrays()["arr_0"]).all()
    assert (data.labels.tolist(), data.names) == ([0, 2, 1, 2], ("0", "1", "2"))
    np.savez(tmp_path / "named.npz", **arrays(names=np.array(["a", "b", "c", "d"])))
    assert load_images(tmp_path / "named.npz").names == ("a", "b", "c", "d")


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"arr_1": None}, r"holds \['arr_0'\]; expected arr_0"),
        ({"arr_0": None}, "expected arr_0"),
        ({"arr_0": np.zeros((4, SIDE, SIDE), np.uint8)}, r"uint8 \(4, 8, 8\)"),
        ({"arr_0": np.zeros((4, SIDE, SIDE, 3))}, "images float64"),
        ({"arr_0": np.zeros((0, SIDE, SIDE, 3), np.uint8), "arr_1": np.zeros(0, int)}, "from 0"),
        ({"arr_1": np.array([0, 1])}, r"labels int64 \(2,\)"),
        ({"arr_1": np.zeros((4, 3), int)}, r"labels int64 \(4, 3\)"),
        ({"arr_1": np.array([0, 1, -1, 0])}, "class indices from 0"),
        ({"arr_1": np.array([0.5, 1, 1, 0])}, "labels float64"),
        ({"arr_1": np.array(["a", "b", "c", "d"])}, "labels <U1"),
        ({"arr_1": np.array([{}, 1, 2, 3], dtype=object)}, "not a whole .npz file"),
        ({"names": np.array(["a", "b"])}, "has label 2, but names only 2 classes"),
    ],
    ids=str,
)
def test_arrays_that_do_not_fit_are_refused(tmp_path, changes, said):
    path = tmp_path / "data.npz"
    np.savez(path, **arrays(**changes))
    with pytest.raises(ValueError, match=said) as caught:
        load_images(path)
    assert "data.npz" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"<html></html>", b"PK\x03\x04 and no more", None])
def test_a_damaged_npz_file_is_refused(tmp_path, content):
    path = tmp_path / "data.npz"
    if content is None:
        np.savez(path, **arrays())
        content = path.read_bytes()[:-100]
    path.write_bytes(content)
    with pytest.raises(ValueError, match=r"data\.npz is not a whole \.npz file"):
        load_images(path)


def test_what_is_neither_folder_nor_npz_is_refused(tmp_path):
    (tmp_path / "data.csv").touch()
    for name in ("data.csv", "missing.npz", "missing"):
        with pytest.raises(ValueError, match=f"{name} is neither"):
            load_images(tmp_path / name)


def test_an_npz_of_another_size_is_refused(tmp_path):
    np.savez(tmp_path / "data.npz", **arrays())
    with pytest.raises(ValueError, match="has 8x8 images, not 16"):
        load_images(tmp_path / "data.npz", 16)


def test_pixels_fill_the_range_of_diffusion_models():
    assert to_unit_range(torch.tensor([0, 255], dtype=torch.uint8)).tolist() == [-1, 1]


def test_a_split_parts_the_images_without_loss():
    data = striped(40)
    rest, held_out = data.split(0.25, seed=3)
    assert (len(rest), len(held_out)) == (30, 10)
    together = torch.cat([rest.images, held_out.images]).flatten(1)
    assert torch.equal(together.sort(dim=0).values, data.images.flatten(1).sort(dim=0).values)
    assert torch.equal(data.split(0.25, seed=3)[1].images, held_out.images)
    assert not torch.equal(data.split(0.25, seed=4)[1].images, held_out.images)
    assert len(data.split(0.0, seed=3)[1]) == 0


@pytest.mark.parametrize("share", [1.0, -0.1, 2.0])
def test_a_split_of_everything_or_nothing_is_refused(share):
    with pytest.raises(ValueError, match=f"held_out is {share}"):
        striped(4).split(share, seed=0)


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


def test_pixels_and_latents_as_a_model_sees_them():
    data = striped(4)
    assert torch.equal(data.x0(torch.tensor([2])), to_unit_range(data.images[2:3]))
    latents = LabelledImages(torch.randn(4, 4, 2, 2).half(), data.labels, data.names)
    assert torch.equal(latents.x0(slice(1, 3)), latents.images[1:3].float())


def test_mirror_images_and_moves():
    images = torch.arange(SIDE * 1.0).expand(300, 1, SIDE, SIDE)
    chance = torch.Generator().manual_seed(0)
    changed = Augment(flip=True)(images, chance)
    mirrored = (changed[:, 0, 0, 0] == SIDE - 1).float().mean()
    assert 0.4 < mirrored < 0.6
    assert set(changed[:, 0, 0, 0].tolist()) == {0.0, SIDE - 1.0}
    assert Augment()(images, chance) is images


def test_shifted_images_keep_their_size_and_move_within_bounds():
    torch.manual_seed(0)
    images = torch.arange(SIDE * 1.0).expand(200, 1, SIDE, SIDE)
    moved = shifted(images, 2)
    assert moved.shape == images.shape
    assert set((moved[:, 0, 3, 4] - 4).tolist()) == {-2.0, -1.0, 0.0, 1.0, 2.0}
    assert shifted(images, 0) is images


def test_noise_is_added_as_the_schedule_says():
    x0, noise = torch.full((2, 1, 2, 2), 3.0), torch.full((2, 1, 2, 2), 5.0)
    got = diffuse(x0, torch.tensor([1.0, 0.36]), noise)
    assert got.flatten(1)[:, 0].tolist() == pytest.approx([3.0, 0.6 * 3 + 0.8 * 5])


def test_a_recipe_is_checked():
    for options, said in [
        ({"steps": 0}, "steps is 0"),
        ({"steps": 1, "batch_size": 0}, "batch_size is 0"),
        ({"steps": 1, "accumulate": 0}, "accumulate is 0"),
        ({"steps": 1, "ema": 1.0}, "ema is 1.0"),
        ({"steps": 1, "seed": 2**64}, "seed is 18446744073709551616"),
    ]:
        with pytest.raises(ValueError, match=said):
            OptimizerConfig(**options)


class Weight(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.value = torch.nn.Parameter(torch.zeros(1))


def test_the_loop_reaches_the_minimum_and_returns_a_frozen_average():
    network = Weight()
    recipe = OptimizerConfig(steps=400, learning_rate=0.1, weight_decay=0.0, ema=0.9)
    draw = lambda step: (torch.zeros(64),)  # noqa: E731
    trained = optimise(network, draw, lambda net, _: ((net.value - 2) ** 2).sum(), recipe)
    average = trained.network
    assert len(trained.losses) == 400
    assert average.value.item() == pytest.approx(2, abs=0.02)
    assert not average.training and not average.value.requires_grad
    assert average is not network


SMALL = {"channel_mult": (1,), "attention_levels": (), "image_size": SIDE}


@pytest.fixture(scope="module")
def trained():
    layout = classifier_layout(**SMALL, out_channels=2)
    recipe = OptimizerConfig(steps=60, batch_size=16, learning_rate=2e-3, ema=0.9)
    return train_classifier(striped(), layout, NoiseSchedule("cosine"), recipe)


def test_a_classifier_learns_what_is_easy_to_tell_apart(trained):
    network, losses = trained.network, trained.losses
    assert sum(losses[-10:]) < 0.5 * sum(losses[:10])
    data = striped()
    assert accuracy(network, data) > 0.95
    alpha_bar = NoiseSchedule("cosine").alpha_bar
    assert accuracy(network, data, float(alpha_bar[300]), 300) > 0.9
    assert 0.2 < accuracy(network, data, float(alpha_bar[999]), 999) < 0.8, "nothing but noise"


def test_a_training_repeats_with_its_seed(trained):
    layout = classifier_layout(**SMALL, out_channels=2)

    def losses(seed):
        recipe = OptimizerConfig(steps=3, batch_size=16, seed=seed)
        data, schedule = striped(), NoiseSchedule("cosine")
        return train_classifier(data, layout, schedule, recipe, augment=Augment(shift=1)).losses

    assert losses(1) == losses(1)
    assert losses(1) != losses(2)


def test_a_clean_classifier_sees_images_without_noise():
    layout = classifier_layout(**SMALL, out_channels=2)
    recipe = OptimizerConfig(steps=25, batch_size=16, learning_rate=2e-3, ema=0.5)
    schedule = NoiseSchedule(torch.tensor([1e-6, 1e-7]))
    network = train_classifier(striped(), layout, schedule, recipe, clean=True).network
    assert accuracy(network, striped()) > 0.95


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 1.0])
def test_the_share_of_dropped_labels(share):
    labels = torch.arange(3).repeat(4000)
    dropped = drop_labels(labels, unet_layout(), share)
    is_null = dropped == 3
    assert is_null.float().mean().item() == pytest.approx(share, abs=0.02)
    assert torch.equal(dropped[~is_null], labels[~is_null])


def test_labels_stay_without_a_null_class():
    labels = torch.arange(3)
    assert drop_labels(labels, unet_layout(null_class=None), 0.9) is labels
    assert drop_labels(labels, unet_layout(num_classes=None, null_class=None), 0.9) is labels


@pytest.mark.parametrize(
    ("p_uncond", "said"), [(0.1, "needs a layout with a null class"), (1.5, "p_uncond is 1.5")]
)
def test_label_dropout_that_cannot_be_is_refused(p_uncond, said):
    layout = unet_layout(num_classes=2, null_class=None, **SMALL)
    with pytest.raises(ValueError, match=said):
        train_diffusion(
            striped(),
            layout,
            NoiseSchedule("linear"),
            OptimizerConfig(steps=1, batch_size=4),
            p_uncond=p_uncond,
        )


def test_a_diffusion_model_learns_to_see_the_noise():
    layout = unet_layout(**SMALL, num_classes=3, null_class=2)
    recipe = OptimizerConfig(steps=40, batch_size=16, learning_rate=2e-3, ema=0.9)
    schedule = NoiseSchedule("cosine")
    trained = train_diffusion(striped(), layout, schedule, recipe, p_uncond=0.2)
    assert sum(trained.losses[-10:]) < 0.8 * sum(trained.losses[:10])
    assert not trained.network.training


def variance_setting(t):
    """The loss, its schedule, x0, x_t, t and the right eps."""
    schedule = NoiseSchedule("cosine")
    torch.manual_seed(0)
    x0, noise = torch.rand(2, 3, 4, 4) * 2 - 1, torch.randn(2, 3, 4, 4)
    steps = torch.full((2,), t)
    x = diffuse(x0, schedule.alpha_bar[steps].float(), noise)
    return VarianceLoss(schedule, "cpu"), schedule, x0, x, steps, noise


def first_gradient(monkeypatch):
    """The gradient of one step's loss on the last convolution: eps channels, variance channels."""

    def one_step(network, draw, loss, recipe, run):
        loss(network, *draw(0)).backward()
        return Trained(network, [], [])

    monkeypatch.setattr("guidance.training.train_diffusion.optimise", one_step)
    layout = unet_layout(**SMALL, num_classes=None, null_class=None)
    recipe = OptimizerConfig(steps=1, batch_size=8)
    trained = train_diffusion(striped(), layout, NoiseSchedule("linear"), recipe)
    return trained.network.out[2].weight.grad.split(3)


def test_the_variance_loss_trains_the_variance_and_not_eps(monkeypatch):
    eps, variance = first_gradient(monkeypatch)
    assert variance.abs().max() > 0
    monkeypatch.setattr(VarianceLoss, "__call__", lambda self, x0, x, t, eps, v: 0 * v.sum())
    eps_alone, variance_alone = first_gradient(monkeypatch)
    assert torch.equal(eps, eps_alone)
    assert eps.abs().max() > 0
    assert not variance_alone.any()


@pytest.mark.parametrize("t", [1, 10, 500, 900])
def test_the_variance_loss_is_zero_at_the_posterior_when_eps_is_right(t):
    loss, _, x0, x, steps, noise = variance_setting(t)
    lower = loss(x0, x, steps, noise, torch.full_like(x0, -1.0))
    higher = loss(x0, x, steps, noise, torch.full_like(x0, 1.0))
    assert abs(lower.item()) < 1e-4
    assert higher.item() > lower.item()


@pytest.mark.parametrize("t", [10, 500])
def test_the_variance_loss_is_least_at_the_right_variance(t):
    """KL(N(m, s) || N(m + d, S)) is least at S = s + d^2."""
    loss, schedule, x0, x, steps, noise = variance_setting(t)
    ab, prev = schedule.alpha_bar[t], schedule.alpha_bar[t - 1]
    beta = 1 - ab / prev
    low = beta * (1 - prev) / (1 - ab)
    best = 0.5 * (low + beta)
    to_mean = prev.sqrt() * beta / (1 - ab)
    error = ((best - low).sqrt() / to_mean * (ab / (1 - ab)).sqrt()).float()
    v_best = float(2 * (best / low).log() / (beta / low).log() - 1)
    assert -0.99 < v_best < 0.99

    def at(v):
        return loss(x0, x, steps, noise + error, torch.full_like(x0, v)).item()

    v = torch.full_like(x0, v_best).requires_grad_(True)
    loss(x0, x, steps, noise + error, v).backward()
    steep = torch.full_like(x0, -1.0).requires_grad_(True)
    loss(x0, x, steps, noise + error, steep).backward()
    assert v.grad.abs().max() < 0.02 * steep.grad.abs().max()
    assert at(v_best) < min(at(-1.0), at(1.0))
    expected = 0.5 * float((best / low).log()) / np.log(2)
    assert at(v_best) == pytest.approx(expected, rel=0.02)


# --- latents -----------------------------------------------------------------------------------


def some_latents(**changes):
    about = {
        "images": torch.randn(12, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
        "labels": torch.arange(12) % 2,
        "names": ("cat", "dog"),
        "space": "SD15",
    }
    return LabelledImages(**about | changes)


def test_latents_come_back_as_they_were_saved(tmp_path):
    data = some_latents()
    save_latents(tmp_path / "a.safetensors", data)
    again = load_images(tmp_path / "a.safetensors")
    assert torch.equal(again.images, data.images) and torch.equal(again.labels, data.labels)
    assert (again.names, again.space) == (data.names, "SD15")
    assert torch.equal(again.x0(slice(3)), data.images[:3])
    assert again.split(0.5, 0)[0].space == "SD15"


@pytest.mark.parametrize(
    "changes, said",
    [
        ({"images": torch.zeros(12, 4, 8)}, r"latents torch.float32 \(12, 4, 8\)"),
        ({"labels": torch.zeros(5)}, r"labels torch.int64 \(5,\)"),
        ({"labels": torch.arange(12)}, "labels from 0 to 11, but names 2 classes"),
        ({"images": torch.full((12, 4, 8, 8), float("nan"))}, "not finite"),
    ],
)
def test_latents_that_do_not_fit_are_refused(tmp_path, changes, said):
    save_latents(tmp_path / "a.safetensors", some_latents(**changes))
    with pytest.raises(ValueError, match=said):
        load_images(tmp_path / "a.safetensors")


@pytest.mark.parametrize("content", [b"", b"nonsense", b"\xff" * 64])
def test_damaged_latents_are_refused(tmp_path, content):
    (tmp_path / "a.safetensors").write_bytes(content)
    with pytest.raises(ValueError, match=r"a\.safetensors is not a file of labelled latents"):
        load_images(tmp_path / "a.safetensors")


def test_a_model_file_is_no_file_of_latents(tmp_path):
    save_file({"weight": torch.zeros(2)}, tmp_path / "a.safetensors")
    with pytest.raises(ValueError, match="expected the tensors latents"):
        load_images(tmp_path / "a.safetensors")
