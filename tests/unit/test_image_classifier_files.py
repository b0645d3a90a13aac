"""Classifiers of clean images, read from files and folders as other tools write them."""

from __future__ import annotations

import json
import socket
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

from guidance import CheckpointError, load_classifier, load_image_classifier
from guidance.checkpoints.image_classifiers import (
    classes_of_image_classifier,
    open_image_classifier,
)
from guidance.checkpoints.image_processor import processing
from guidance.checkpoints.torchvision import _preprocessing
from guidance.classifiers.base import Target
from guidance.classifiers.looks import Looks
from guidance.core.autograd import compute_dtype
from guidance.core.labels import parse_labels

NAMES = ("cat", "dog", "zebra")


@pytest.fixture(scope="module")
def models():
    return pytest.importorskip("torchvision.models")


@pytest.fixture(scope="module")
def transformers():
    return pytest.importorskip("transformers")


@pytest.fixture
def no_network(monkeypatch):
    """Whoever opens a connection fails."""

    def refused(*_, **__):
        raise AssertionError("something wants to use the network")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


def picture(height, width):
    """Waves and a ramp, PIL and (1, 3, H, W) in [-1, 1]."""
    y, x = np.mgrid[:height, :width]
    bands = [127 + 100 * np.sin(x / 5), 127 + 100 * np.cos((x + 2 * y) / 9), 255 * y / height]
    pixels = np.stack(bands, axis=-1).astype(np.uint8)
    tensor = torch.from_numpy(pixels).permute(2, 0, 1)[None].float() / 127.5 - 1
    return Image.fromarray(pixels), tensor


def images(count=2, side=40):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def randomised(network, seed=0):
    """Random everywhere, running statistics, too."""
    generator = torch.Generator().manual_seed(seed)
    for value in network.state_dict().values():
        if value.is_floating_point():
            value.copy_(0.1 * torch.randn(value.shape, generator=generator).abs() + 0.01)
    return network.eval()


@pytest.mark.parametrize("size", [(48, 60), (300, 200), (224, 224)])
@pytest.mark.parametrize("name", ["resnet18", "swin_v2_t", "efficientnet_b1"])
def test_it_is_torchvisions(models, name, size):
    preset = list(models.get_model_weights(name))[0].transforms()
    image, x = picture(*size)
    as_tensor = torch.from_numpy(np.array(image)).permute(2, 0, 1).float() / 255
    assert (_preprocessing(preset)(x) - preset(as_tensor)[None]).abs().max() < 1e-4


PROCESSORS = [
    ("ViTImageProcessor", {"size": {"height": 32, "width": 48}}),
    ("ViTImageProcessor", {"size": {"height": 32, "width": 32}, "do_normalize": False}),
    ("CLIPImageProcessor", {"size": {"shortest_edge": 40}, "crop_size": 32}),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 32}, "crop_pct": 0.8}),
    ("ConvNextImageProcessor", {"size": {"shortest_edge": 384}}),
    ("EfficientNetImageProcessor", {"size": {"height": 32, "width": 32}, "rescale_offset": True}),
    ("MobileViTImageProcessor", {"size": {"shortest_edge": 40}, "crop_size": 32}),
    ("SiglipImageProcessor", {"size": {"height": 64, "width": 64}}),
]


@pytest.mark.parametrize(("kind", "options"), PROCESSORS)
def test_it_is_transformers(transformers, tmp_path, kind, options):
    """From the file that the image processor itself writes."""
    processor = getattr(transformers, kind)(**options)
    processor.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "preprocessor_config.json").read_text())
    image, x = picture(60, 90)
    expected = processor(image, return_tensors="pt")["pixel_values"]
    got = processing(tmp_path, {}, settings)(x)
    assert got.shape == expected.shape
    # theirs rounds to 256 levels after resizing
    level = (got - expected).abs() / (got.amax() - got.amin())
    assert level.max() < 0.01


@pytest.fixture
def vit(transformers, tmp_path):
    """A folder of a tiny ViT, and the model itself."""
    sizes = {"hidden_size": 32, "intermediate_size": 32, "image_size": 32, "patch_size": 8}
    sizes |= {"num_hidden_layers": 2, "num_attention_heads": 2}
    names = dict(enumerate(NAMES))
    labels = {"id2label": names, "label2id": {name: index for index, name in names.items()}}
    config = transformers.ViTConfig(**sizes, **labels)
    torch.manual_seed(0)
    model = transformers.ViTForImageClassification(config).eval()
    folder = tmp_path / "tiny vit"
    model.save_pretrained(folder)
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained(folder)
    return folder, model


def test_a_folder_is_the_model_itself(vit, no_network):
    """Code in the folder never runs, also where the config does not even announce it."""
    folder, model = vit
    for name in ("modeling_vit.py", "configuration_vit.py", "__init__.py"):
        (folder / name).write_text("raise SystemExit('code of the folder ran')")
    loaded = load_image_classifier(folder)
    assert loaded.labels == NAMES and loaded.num_classes == 3
    x = images(2, 32)
    with torch.no_grad():
        expected = model(pixel_values=x).logits.log_softmax(dim=1)
    assert (loaded.image_log_probs(x) - expected).abs().max() < 1e-5
    gradient, *_ = loaded.image_gradient(images(), Target(torch.tensor([0, 2])))
    assert gradient.shape == images().shape and gradient.abs().max() > 0
    assert classes_of_image_classifier(folder) == (3, NAMES)
    model.save_pretrained(folder, max_shard_size="40KB")
    (folder / "model.safetensors").unlink()
    assert len(list(folder.glob("*.safetensors"))) > 1, "weights in parts"
    assert torch.allclose(load_image_classifier(folder).image_log_probs(x), expected, atol=1e-5)


def test_a_resnet_in_half_precision(transformers, tmp_path, no_network):
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], num_labels=4)
    model = transformers.ResNetForImageClassification(config).eval()
    model.half().save_pretrained(tmp_path)
    opened = open_image_classifier(tmp_path)
    assert compute_dtype(opened.network, images()) == torch.float16 and opened.labels is None
    # without a preprocessor_config.json: 224 pixels, ImageNet's mean and std
    assert opened.preprocessing.resize == (224, 224)
    assert opened.preprocessing.mean == pytest.approx((0.485, 0.456, 0.406))
    loaded = load_image_classifier(tmp_path, dtype="auto")  # fp32, on a CPU
    assert next(loaded.network.parameters()).dtype == torch.float32
    assert loaded.image_log_probs(images()).shape == (2, 4)


def test_one_output_is_a_score(transformers, tmp_path, no_network):
    """The output itself, and its gradient; with looks that of the mean."""
    config = transformers.ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], num_labels=1)
    torch.manual_seed(0)
    model = transformers.ResNetForImageClassification(config).eval()
    model.save_pretrained(tmp_path)
    loaded = load_image_classifier(tmp_path, gradient="exact")
    assert loaded.is_score and loaded.through_model and loaded.labels == ("score",)
    assert classes_of_image_classifier(tmp_path) == (1, ("score",))
    for label in ("score", "SCORE", "0"):
        assert parse_labels(label, loaded.num_classes, loaded.labels) == [0]
    x = images().requires_grad_()
    expected = model(pixel_values=loaded.preprocessing(x)).logits
    (wanted,) = torch.autograd.grad(expected.sum(), x)
    gradient, score, *_ = loaded.image_gradient(x.detach(), Target(0))
    assert wanted.abs().max() > 1e-6
    assert torch.allclose(score, expected) and torch.allclose(gradient, wanted, atol=1e-7)
    looks = Looks(count=3, shift=0.1, zoom=0, noise=0)
    looked = load_image_classifier(tmp_path, looks=looks)
    generator = torch.Generator().manual_seed(1)
    copies = looks.of(images(), torch.Generator().manual_seed(1))
    found = looked.image_gradient(images(), Target(0), generator)[1]
    mean = torch.stack([loaded.image_log_probs(copy) for copy in copies]).mean(0)
    assert torch.allclose(found, mean, atol=1e-5)


PREPARING, WEIGHTS = "preprocessor_config.json", "model.safetensors"


def changed(name="config.json", **values):
    def change(folder):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def written(name, content):
    return lambda folder: (folder / name).write_bytes(content)


def renamed(*names, index=None):
    """The weights under these names instead, and an index of parts."""

    def change(folder):
        content = (folder / WEIGHTS).read_bytes()
        (folder / WEIGHTS).unlink()
        for name in names:
            (folder / name).write_bytes(content)
        if index:
            (folder / f"{WEIGHTS}.index.json").write_text(json.dumps({"weight_map": index}))

    return change


def weights(change):
    def rewrite(folder):
        tensors = change(load_file(folder / WEIGHTS))
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})

    return rewrite


def headless(tensors):
    return {key: value for key, value in tensors.items() if "classifier" not in key}


PARTS = {"a": "../../etc/passwd", "b": "one.safetensors"}
WRONG = [
    (lambda folder: (folder / "config.json").unlink(), "tiny vit has no config.json"),
    (written("config.json", b"{"), "config.json in tiny vit cannot be read"),
    (renamed("pytorch_model.bin"), "has only pytorch_model.bin, but model.safetensors is needed"),
    (renamed(), "has no weights, but model.safetensors is needed"),
    (renamed("a.safetensors", "b.safetensors"), "has a.safetensors, b.safetensors, but neither"),
    (renamed("one.safetensors", index=PARTS), "lacks '../../etc/passwd', a part of its weights"),
    (written(WEIGHTS, b"12345678910"), "is not a whole safetensors file"),
    (weights(headless), "2 tensors are missing or do not fit, classifier"),
    (weights(lambda old: old | {"classifier.bias": old["classifier.bias"] / 0}), "is not finite"),
    (written("adapter_config.json", b'{"base_model_name_or_path": "x/y"}'), "is an adapter"),
    (changed(auto_map={"AutoConfig": "mine.Config"}), "needs code from its folder"),
    (changed(PREPARING, auto_map={"AutoImageProcessor": "x.Y"}), "needs code from its folder"),
    (changed(quantization_config={"quant_method": "x"}), "is quantised"),
    (changed(architectures=["ViTModel"]), r"is not an image classifier .*ViTModel"),
    (changed(architectures=None), "is not an image classifier .*none"),
    (changed(num_channels=1), "reads 1-channel images"),
    (changed(model_type="nothing"), "cannot be read as an image classifier"),
    (changed(hidden_size=10**6), "far more weights than the files hold"),
    (changed(PREPARING, size="big"), "cannot be used"),
    (changed(PREPARING, image_std=[0, 0, 0]), "cannot be used"),
    (changed(PREPARING, image_processor_type="LevitImageProcessor"), "with LevitImageProcessor"),
]


@pytest.mark.parametrize(("break_it", "said"), WRONG)
def test_folders_that_are_refused(vit, no_network, break_it, said):
    folder, _ = vit
    break_it(folder)
    with pytest.raises(CheckpointError, match=said) as caught:
        open_image_classifier(folder)
    assert "\n" not in str(caught.value)


def timm_folder(folder, tensors, **config):
    folder.mkdir()
    save_file(tensors, folder / "model.safetensors")
    about = {"mean": [0.4, 0.5, 0.6], "std": [0.2] * 3, "input_size": [3, 32, 32], "crop_pct": 0.8}
    about |= {"interpolation": "bicubic", "label_names": list(NAMES)}
    config = {"architecture": "resnet18", "num_classes": 3, "pretrained_cfg": about} | config
    (folder / "config.json").write_text(json.dumps(config))
    return folder


def test_timm_is_asked_for_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    folder = timm_folder(tmp_path / "t", {"a": torch.zeros(1)})
    with pytest.raises(CheckpointError, match=r"model of timm \('resnet18'\).*pip install timm"):
        open_image_classifier(folder)
    assert classes_of_image_classifier(folder) == (3, NAMES)


def test_a_timm_folder(tmp_path, no_network):
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    model = timm.create_model("resnet18", num_classes=3).eval()
    folder = timm_folder(tmp_path / "t", model.state_dict())
    loaded = load_image_classifier(folder)
    assert loaded.labels == NAMES
    about = json.loads((folder / "config.json").read_text())["pretrained_cfg"]
    transform = timm.data.create_transform(**timm.data.resolve_data_config(pretrained_cfg=about))
    image, x = picture(60, 90)
    with torch.no_grad():
        expected = model(transform(image)[None]).log_softmax(dim=1)
    assert (loaded.image_log_probs(x) - expected).abs().max() < 0.05
    for refused in ({"architecture": "hf-hub:x/y"}, {"model_args": {"checkpoint_path": "x.pth"}}):
        changed(**refused)(folder)
        with pytest.raises(CheckpointError, match="cannot be read as an image classifier of timm"):
            open_image_classifier(folder)


def test_a_timm_config_that_asks_for_far_more_than_the_file_holds(tmp_path, monkeypatch):
    timm = pytest.importorskip("timm")
    made, create = [], timm.create_model
    monkeypatch.setattr(
        timm, "create_model", lambda *a, **b: made.append(create(*a, **b)) or made[-1]
    )
    folder = timm_folder(tmp_path / "t", {"a": torch.zeros(1000)})
    with pytest.raises(CheckpointError, match="far more weights than the files hold"):
        open_image_classifier(folder)
    assert made and all(weight.is_meta for model in made for weight in model.parameters())


def same_answers(loaded, model):
    x = images()
    with torch.no_grad():
        logits = model(loaded.preprocessing(x))
    expected = logits if loaded.is_score else logits.log_softmax(dim=1)
    assert (loaded.image_log_probs(x) - expected).abs().max() < 1e-4


def test_a_vision_transformer_of_another_size(models, tmp_path):
    model = models.vit_b_16(num_classes=2, image_size=48)
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    assert load_image_classifier(tmp_path / "vit.pth").preprocessing.crop == (48, 48)


STATES = [("resnet18", {}, "resnet18-f37072fd.pth")]
STATES += [("mobilenet_v3_small", {"num_classes": 2}, "any.safetensors")]
STATES += [("resnet18", {"num_classes": 1}, "score.pth")]
STATES += [("shufflenet_v2_x0_5", {"num_classes": 5}, "any.pth")]


@pytest.mark.parametrize(("name", "options", "file"), STATES)
def test_a_state_dict_is_recognised(models, tmp_path, no_network, name, options, file):
    model = randomised(models.get_model_builder(name)(weights=None, **options))
    (save_file if ".safe" in file else torch.save)(model.state_dict(), tmp_path / file)
    loaded = load_image_classifier(tmp_path / file)
    assert type(loaded.network) is type(model)
    assert loaded.num_classes == options.get("num_classes", 1000)
    same_answers(loaded, model)
    if not options:
        assert loaded.labels[207] == "golden retriever"
        assert loaded.preprocessing.resize == 256  # of these weights
    else:
        assert loaded.labels == (("score",) if loaded.is_score else None)
        assert loaded.is_score == (loaded.num_classes == 1)


def test_older_files(models, tmp_path):
    """DenseNet's released names, and batch norms that did not count yet."""
    torch.manual_seed(0)
    model = models.densenet121(num_classes=2).eval()
    old = {
        key.replace("norm1.", "norm.1.").replace("conv1.", "conv.1."): value
        for key, value in model.state_dict().items()
        if not key.endswith("num_batches_tracked")
    }
    assert any(".norm.1." in key for key in old)
    torch.save(old, tmp_path / "densenet121.pth")
    same_answers(load_image_classifier(tmp_path / "densenet121.pth"), model)


def test_files_that_are_refused(models, tmp_path):
    model = models.resnet18(num_classes=3)
    whole = model.state_dict()
    model.conv1 = torch.nn.Conv2d(1, 64, 7, 2, 3, bias=False)
    for said, tensors in (
        ("fit none of torchvision's image classifiers", whole | {"more": torch.zeros(1)}),
        ("a.pth reads 1-channel images", model.state_dict()),
        ("not finite .* in 'fc.bias'", whole | {"fc.bias": whole["fc.bias"] / 0}),
    ):
        torch.save(tensors, tmp_path / "a.pth")
        with pytest.raises(CheckpointError, match=said):
            open_image_classifier(tmp_path / "a.pth")
    with pytest.raises(CheckpointError, match="does not exist"):
        open_image_classifier(tmp_path / "nothing.pth")


def test_the_packs_own_clean_classifier(root):
    path = root / "models" / "classifiers" / "digits_judge.safetensors"
    loaded = load_image_classifier(path)
    x = images(2, 32)
    noisy = load_classifier(path)
    assert (loaded.image_log_probs(x) - noisy.log_probs(x, 0.0)).abs().max() < 1e-4
    assert loaded.labels == tuple("0123456789")
    # its attention pool takes one size: others are resized to it
    assert loaded.image_log_probs(images(2, 50)).shape == (2, 10)
    path = path.with_name("digits_classifier.safetensors")
    with pytest.raises(CheckpointError, match="trained on noisy images; load it with Load Noisy"):
        open_image_classifier(path)


@pytest.mark.processes
def test_starting_imports_nothing_heavy(root):
    script = "import sys, guidance; print([m for m in sys.modules if m.split('.')[0] in "
    script += "('transformers', 'torchvision', 'timm')])"
    done = subprocess.run([sys.executable, "-c", script], cwd=root, capture_output=True, text=True)
    assert done.stdout.strip() == "[]", done.stderr
