"""Upsamplers: the small image beside x_t, in the library and on the command line."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from PIL import Image
from tiny_networks import CLASSES, SIZE, diffusion_model, half_unet, unet, write_model

from guidance import DiffusionModel, NoisyClassifier
from guidance.__main__ import main
from guidance.sampling.loop import Guide, chain, sample
from guidance.sampling.respacing import respaced_timesteps

LARGE = 4 * SIZE
UPSAMPLER = {"in_channels": 6, "image_size": LARGE}


def upsampler(**changes):
    return diffusion_model(**UPSAMPLER, **changes)


def inputs(batch=2):
    generator = torch.Generator().manual_seed(3)
    x = torch.randn(batch, 3, LARGE, LARGE, generator=generator)
    low_res = torch.rand(batch, 3, SIZE, SIZE, generator=generator) * 2 - 1
    return x, torch.full((batch,), 400.0), torch.arange(batch), low_res


def run(model, x, **options):
    steps = chain(model.schedule.alpha_bar.tolist(), respaced_timesteps("ddim4"))
    return sample(model, x, steps, **options)


@torch.no_grad()
def test_the_small_image_is_enlarged_and_goes_after_x():
    model = upsampler()
    x, t, y, low_res = inputs()
    large = F.interpolate(
        low_res, scale_factor=4.0, mode="bilinear", align_corners=False, antialias=False
    )
    expected = model.network(torch.cat([x, large], dim=1), t, y)
    eps, v = model(x, t, y, low_res)
    assert torch.equal(torch.cat([eps, v], dim=1), expected)
    assert (model(x, t, y, -low_res)[0] - eps).abs().max() > 0.01


@torch.no_grad()
def test_one_small_image_serves_a_whole_batch():
    model = upsampler()
    x, t, y, low_res = inputs()
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
        (
            upsampler,
            (2, 3, SIZE + 1, SIZE),
            "8x9, which an ADM upsampler enlarges to 32x36, but the image to draw is 32x32",
        ),
        (upsampler, (2, 3, LARGE, LARGE), "enlarges to 128x128, but the image to draw is 32x32"),
        (upsampler, (3, 3, SIZE, SIZE), "3 low-res images for a batch of 2"),
        (upsampler, (2, 1, SIZE, SIZE), "has 1 channels, but the image to draw has 3"),
    ],
)
def test_what_does_not_fit_is_refused(model, low_res, said):
    x, t, y, _ = inputs()
    with pytest.raises(ValueError, match=said):
        model()(x, t, y, None if low_res is None else torch.zeros(low_res))


@pytest.mark.parametrize("method", ["ddim", "ddpm"])
def test_a_guided_run_equals_the_originals(method):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        theirs = pytest.importorskip("guided_diffusion.unet")
        from guided_diffusion import script_util
    network = theirs.SuperResModel(
        image_size=LARGE,
        in_channels=3,
        model_channels=32,
        out_channels=6,
        num_res_blocks=1,
        attention_resolutions=(2,),
        channel_mult=(1, 2),
        num_classes=CLASSES,
        num_head_channels=32,
        use_scale_shift_norm=True,
        resblock_updown=True,
    ).eval()
    ours = unet(**UPSAMPLER, num_classes=CLASSES, null_class=None)
    network.load_state_dict(ours.state_dict())
    classifier = NoisyClassifier(half_unet(image_size=LARGE), "linear")
    _, _, y, low_res = inputs()

    def cond_fn(x, t, **_):
        with torch.enable_grad():
            x_in = x.detach().requires_grad_(True)
            log_probs = classifier.network(x_in, t).log_softmax(dim=-1)
            chosen = log_probs[range(len(y)), y].sum()
            return torch.autograd.grad(chosen, x_in)[0] * 2.0

    respacing = "ddim10" if method == "ddim" else "10"
    diffusion = script_util.create_gaussian_diffusion(
        learn_sigma=True, timestep_respacing=respacing
    )
    loop = diffusion.ddim_sample_loop if method == "ddim" else diffusion.p_sample_loop
    shape = (2, 3, LARGE, LARGE)
    kwargs = {"y": y, "low_res": low_res}
    torch.manual_seed(7)
    expected = loop(network, shape, model_kwargs=kwargs, cond_fn=cond_fn, device="cpu")
    model = DiffusionModel(ours, "linear")
    torch.manual_seed(7)
    got = sample(
        model,
        torch.randn(shape),
        chain(model.schedule.alpha_bar.tolist(), respaced_timesteps(respacing)),
        method=method,
        labels=y,
        low_res=low_res,
        guides=[Guide(classifier, y, 2.0)],
    )
    difference = (got - expected).abs().max().item()
    print(f"{method}: {difference:.1e} of {expected.abs().max():.2f}")
    assert difference < 1e-4


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A base model, upsamplers with and without classes, a picture and samples of unequal sides."""
    folder = tmp_path_factory.mktemp("files")
    write_model(folder / "base.safetensors", unet())
    # names that look like indices: labels of a file are indices all the same
    write_model(folder / "upsampler.safetensors", unet(**UPSAMPLER), labels=("1", "2", "0"))
    plain = unet(**UPSAMPLER, num_classes=None, null_class=None)
    write_model(folder / "no_classes.safetensors", plain, labels=None)
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (3, SIZE, 2 * SIZE, 3), dtype=np.uint8)
    np.savez(folder / "wide.npz", arr_0=images, arr_1=np.array([2, 0, 1]))
    np.savez(folder / "strange.npz", arr_0=images, arr_1=np.array([2, 0, CLASSES]))
    np.savez(folder / "grey.npz", arr_0=images[..., :1], arr_1=np.array([2, 0, 1]))
    Image.fromarray(images[1]).save(folder / "wide.png")
    (folder / "torn.png").write_bytes((folder / "wide.png").read_bytes()[:60])
    return folder


@pytest.fixture
def guidance(files, tmp_path, monkeypatch, capsys):
    """Runs `sample` in an empty folder; "@name" stands for a file of `files`."""
    monkeypatch.chdir(tmp_path)

    def run(model, *arguments, status=0):
        given = [str(files / a[1:]) if a.startswith("@") else a for a in arguments]
        given = ["--model", str(files / f"{model}.safetensors"), *given]
        got = main(["sample", *given, "--respacing", "ddim2", "--device", "cpu"])
        printed = capsys.readouterr()
        assert got == status, printed.err
        return printed.out if status == 0 else printed.err

    return run


def written(name):
    with np.load(name) as file:
        return file["arr_0"], file["arr_1"].tolist()


def test_samples_of_one_model_are_enlarged_by_another(guidance):
    guidance("base", "--num-samples", "3", "--label", "1,2", "--output", "small.npz")
    said = guidance("upsampler", "--low-res", "small.npz", "--output", "large.npz")
    assert "large.npz: 3 images of 32x32" in said
    images, labels = written("large.npz")
    assert images.shape == (3, LARGE, LARGE, 3)
    assert labels == [1, 2, 1]


def test_the_command_draws_what_the_library_draws(guidance, files):
    options = ["--low-res", "@wide.npz", "--seed", "4", "--batch-size", "2"]
    guidance("upsampler", *options, "--output", "a.npz")
    with np.load(files / "wide.npz") as file:
        low_res = torch.from_numpy(file["arr_0"]).permute(0, 3, 1, 2) / 127.5 - 1
    model = upsampler()
    steps = chain(model.schedule.alpha_bar.tolist(), respaced_timesteps("ddim2"))
    generator = torch.Generator().manual_seed(4)
    drawn = []
    for index, y in (([0, 1], [2, 0]), ([2], [1])):
        x = torch.randn(len(index), 3, LARGE, 2 * LARGE, generator=generator)

        def noise(like):
            return torch.randn(like.shape, generator=generator)

        y = torch.tensor(y)
        drawn.append(sample(model, x, steps, labels=y, low_res=low_res[index], noise=noise))
    expected = ((torch.cat(drawn) + 1) * 127.5).clamp(0, 255).to(torch.uint8)
    got, labels = written("a.npz")
    assert labels == [2, 0, 1]
    assert (got == expected.permute(0, 2, 3, 1).numpy()).all()
    assert got.std() > 1


def test_small_images_are_taken_in_turn(guidance):
    options = ["--low-res", "@wide.npz", "--batch-size", "2"]
    guidance("no_classes", *options, "--num-samples", "5", "--output", "a.npz")
    images, labels = written("a.npz")
    assert images.shape == (5, LARGE, 2 * LARGE, 3)
    assert labels == [0] * 5


def test_the_label_given_is_the_label_drawn(guidance):
    for name, label in (("a", ["--label", "1"]), ("b", ["--label", "all"]), ("c", [])):
        guidance("upsampler", "--low-res", "@wide.npz", *label, "--output", f"{name}.npz")
    assert written("a.npz")[1] == [0, 0, 0]  # the class that is called "1"
    assert written("b.npz")[1] == [0, 1, 2]
    assert written("c.npz")[1] == [2, 0, 1]


def test_a_picture_is_enlarged(guidance):
    guidance("no_classes", "--low-res", "@wide.png", "--num-samples", "2", "--output", "a.npz")
    guidance("no_classes", "--low-res", "@wide.png", "--output", "b.npz")
    (two, _), (one, _) = written("a.npz"), written("b.npz")
    assert (two.shape, one.shape) == ((2, LARGE, 2 * LARGE, 3), (1, LARGE, 2 * LARGE, 3))
    assert (two[0] != two[1]).any()


@pytest.mark.parametrize(
    ("model", "options", "said"),
    [
        ("upsampler", [], "is an upsampler and needs low_res"),
        ("base", ["--low-res", "@wide.png"], "takes no low_res"),
        ("upsampler", ["--low-res", "missing.png"], "missing.png"),
        ("upsampler", ["--low-res", "@torn.png"], "torn.png is not a whole picture"),
        ("upsampler", ["--low-res", "@base.safetensors"], "is not a whole picture"),
        ("upsampler", ["--low-res", "@strange.npz"], "label is 3, but the classes go"),
        ("upsampler", ["--low-res", "@grey.npz"], "has 1 channels"),
        ("upsampler", ["--low-res", "@wide.npz", "--image-size", "64"], "16x8, which an ADM ups"),
    ],
)
def test_what_cannot_be_enlarged_is_said_in_one_sentence(guidance, model, options, said):
    printed = guidance(model, *options, "--output", "a.npz", status=1)
    assert said in printed
    assert "Traceback" not in printed
