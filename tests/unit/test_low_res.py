"""Upsamplers: the small image beside x_t, in the library and on the command line."""

from __future__ import annotations

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_networks import CLASSES, SIZE, diffusion_model, unet, write_model

from guidance.sampling.loop import sample
from guidance.sampling.low_res import read_low_res
from guidance.sampling.respacing import respaced_timesteps
from guidance.sampling.steps import chain

LARGE = 4 * SIZE
UPSAMPLER = {"in_channels": 6, "image_size": LARGE}


def upsampler(**changes):
    return diffusion_model(**UPSAMPLER, **changes)


def inputs(batch=2):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(batch, 3, LARGE, LARGE, generator=generator)
    low_res = torch.rand(batch, 3, SIZE, SIZE, generator=generator) * 2 - 1
    return x, torch.full((batch,), 400.0), torch.arange(batch), low_res


def run(model, x, respacing="ddim4", **options):
    steps = chain(model.schedule.alpha_bar.tolist(), respaced_timesteps(respacing))
    return sample(model, x, steps, **options)


@torch.no_grad()
def test_the_small_image_is_enlarged_and_goes_after_x():
    model = upsampler()
    x, t, y, low_res = inputs()
    large = F.interpolate(low_res, scale_factor=4.0, mode="bilinear", align_corners=False)
    expected = model.network(torch.cat([x, large], dim=1), t, y)
    assert torch.equal(torch.cat(model(x, t, y, low_res), dim=1), expected)
    assert (model(x, t, y, -low_res)[0] - expected[:, :3]).abs().max() > 0.01
    # one serves a whole batch
    one = low_res[:1]
    assert torch.equal(model(x, t, y, one)[0], model(x, t, y, one.repeat(2, 1, 1, 1))[0])


@pytest.mark.parametrize("cfg", [0.0, 1.0, 2.5])
def test_each_image_of_a_run_keeps_its_own_small_image(cfg):
    model = upsampler()
    x, _, y, low_res = inputs()
    both = run(model, x, labels=y, low_res=low_res, cfg=cfg)
    for index in range(2):
        one = slice(index, index + 1)
        alone = run(model, x[one], labels=y[one], low_res=low_res[one], cfg=cfg)
        assert (both[one] - alone).abs().max() < 1e-5
    swapped = run(model, x, labels=y, low_res=low_res.flip(0), cfg=cfg)
    assert (swapped - both).abs().max() > 0.01


@pytest.mark.parametrize(
    ("model", "low_res", "said"),
    [
        (upsampler, None, "is an upsampler and needs low_res"),
        (diffusion_model, (2, 3, SIZE, SIZE), "draws from noise alone and takes no low_res"),
        (upsampler, (2, 3, 9, 8), "8x9, .* to 32x36, but the image to draw is 32x32"),
        (upsampler, (2, 3, 8, 9), "9x8, .* to 36x32, but the image to draw is 32x32"),
        (upsampler, (3, 3, SIZE, SIZE), "3 low-res images for a batch of 2.*or 2"),
        (upsampler, (2, 1, SIZE, SIZE), "has 1 channels, but the image to draw has 3"),
    ],
)
def test_what_does_not_fit_is_refused(model, low_res, said):
    x, t, y, _ = inputs()
    with pytest.raises(ValueError, match=said):
        model()(x, t, y, None if low_res is None else torch.zeros(low_res))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A base model, upsamplers with and without classes, a picture and samples of unequal sides."""
    folder = tmp_path_factory.mktemp("files")
    write_model(folder / "base.safetensors", unet())
    # names that look like indices: labels of a file are indices all the same
    write_model(folder / "upsampler.safetensors", unet(**UPSAMPLER), labels=("1", "2", "0"))
    plain = unet(**UPSAMPLER, num_classes=None, null_class=None)
    write_model(folder / "no_classes.safetensors", plain, labels=None)
    images = np.random.default_rng(0).integers(0, 256, (3, SIZE, 2 * SIZE, 3), dtype=np.uint8)
    np.savez(folder / "wide.npz", arr_0=images, arr_1=np.array([2, 0, 1]))
    np.savez(folder / "strange.npz", arr_0=images, arr_1=np.array([2, 0, CLASSES]))
    np.savez(folder / "grey.npz", arr_0=images[..., :1], arr_1=np.array([2, 0, 1]))
    Image.fromarray(images[1]).save(folder / "wide.png")
    (folder / "torn.png").write_bytes((folder / "wide.png").read_bytes()[:60])
    return folder


@pytest.fixture
def draw(guidance):
    """Runs `sample` with a model: its images and labels, or its error."""

    def run(model, *arguments, status=0):
        given = ["--model", f"@{model}.safetensors", *arguments, "--output", "a.npz"]
        said = guidance("sample", *given, "--respacing", "ddim2", "--device", "cpu", status=status)
        if status:
            return said
        with np.load("a.npz") as file:
            return file["arr_0"], file["arr_1"].tolist()

    return run


def test_the_command_draws_what_the_library_draws(draw, files):
    got, labels = draw("upsampler", "--low-res", "@wide.npz", "--seed", "4", "--batch-size", "2")
    low_res, given = read_low_res(files / "wide.npz")
    assert low_res.shape == (3, 3, SIZE, 2 * SIZE) and labels == given == [2, 0, 1]
    model, generator = upsampler(), torch.Generator().manual_seed(4)
    drawn = []

    def noise(like):
        return torch.randn(like.shape, generator=generator)

    for part in (slice(0, 2), slice(2, 3)):
        x = torch.randn(len(labels[part]), 3, LARGE, 2 * LARGE, generator=generator)
        options = {"labels": torch.tensor(labels[part]), "low_res": low_res[part]}
        drawn.append(run(model, x, respacing="ddim2", noise=noise, **options))
    expected = ((torch.cat(drawn) + 1) * 127.5).clamp(0, 255).to(torch.uint8)
    assert (got == expected.permute(0, 2, 3, 1).numpy()).all()
    assert got.std() > 1


@pytest.mark.parametrize(
    ("model", "options", "labels"),
    [
        ("upsampler", ["--low-res", "@wide.npz", "--label", "1"], [0, 0, 0]),  # it is called "1"
        ("upsampler", ["--low-res", "@wide.npz", "--label", "all"], [0, 1, 2]),
        ("upsampler", ["--low-res", "@wide.npz"], [2, 0, 1]),
        ("no_classes", ["--low-res", "@wide.npz", "--num-samples", "5"], [0] * 5),
        ("no_classes", ["--low-res", "@wide.png", "--num-samples", "2"], [0] * 2),
        ("no_classes", ["--low-res", "@wide.png"], [0]),
    ],
)
def test_images_and_labels_of_the_command(draw, model, options, labels):
    images, found = draw(model, *options, "--batch-size", "2")
    assert found == labels and images.shape == (len(labels), LARGE, 2 * LARGE, 3)
    assert len(labels) == 1 or (images[0] != images[1]).any()


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("upsampler", [], "is an upsampler and needs low_res"),
        ("base", ["--low-res", "@wide.png"], "takes no low_res"),
        ("upsampler", ["--low-res", "@torn.png"], "torn.png is not a whole picture"),
        ("upsampler", ["--low-res", "@base.safetensors"], "is not a whole picture"),
        ("upsampler", ["--low-res", "@strange.npz"], "label is 3, but the classes go"),
        ("upsampler", ["--low-res", "@grey.npz"], "has 1 channels"),
        ("upsampler", ["--low-res", "@wide.npz", "--image-size", "64"], "16x8, which an ADM ups"),
    ],
)
def test_what_cannot_be_enlarged_is_one_sentence(draw, model, options, said):
    printed = draw(model, *options, status=1)
    assert said in printed and "Traceback" not in printed
