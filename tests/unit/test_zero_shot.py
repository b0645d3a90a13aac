"""Words as classes: CLIP and SigLIP folders as transformers itself computes them."""

from __future__ import annotations

import gc
import json
import socket
import weakref

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_zero_shot import TOKENS, write_tokenizer, write_zero_shot

from guidance import CheckpointError, load_image_classifier, load_zero_shot_classifier
from guidance.checkpoints import zero_shot
from guidance.checkpoints.folder import reads_text
from guidance.checkpoints.zero_shot import class_texts, open_zero_shot_classifier
from guidance.classifiers.base import Target
from guidance.classifiers.looks import Looks
from guidance.core.autograd import compute_dtype
from guidance.core.labels import LabelError, parse_labels

transformers = pytest.importorskip("transformers")
KINDS = ("clip", "siglip")
PETS = ["a photo of a cat", "a photo of a dog", "the zebra"]
WEIGHTS, PREPARING = "model.safetensors", "preprocessor_config.json"


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    """The folder of each kind, and its model."""
    root = tmp_path_factory.mktemp("models")
    return {kind: (root / kind, write_zero_shot(root / kind, kind)) for kind in KINDS}


@pytest.fixture
def folder(tmp_path):
    """A folder of CLIP to break."""
    write_zero_shot(tmp_path / "tiny clip", "clip")
    return tmp_path / "tiny clip"


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    """Whoever opens a connection fails."""

    def refused(*_, **__):
        raise AssertionError("something wants to use the network")

    monkeypatch.setattr(socket.socket, "connect", refused)
    monkeypatch.setattr(socket, "getaddrinfo", refused)


def images(count=2, side=40):
    return torch.rand(count, 3, side, side, generator=torch.Generator().manual_seed(0)) * 2 - 1


def whole_logits(folder, model, classifier, x, lines):
    """transformers' own: tokenizer, text tower, vision tower, temperature and bias."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    if "Siglip" in type(model).__name__:
        padding = {"padding": "max_length", "max_length": TOKENS}
        tokens = {"input_ids": tokenizer(lines, return_tensors="pt", **padding)["input_ids"]}
    else:
        found = tokenizer(lines, return_tensors="pt", padding=True)
        tokens = {name: found[name] for name in ("input_ids", "attention_mask")}
    return model(pixel_values=classifier.preprocessing(x), **tokens).logits_per_image


OF_LOGITS = {
    ("clip", 3): lambda logits: logits.log_softmax(dim=1),
    ("siglip", 3): lambda logits: logits.log_softmax(dim=1),
    ("clip", 1): lambda logits: logits,
    ("siglip", 1): lambda logits: torch.sigmoid(logits).log(),
}


@pytest.mark.parametrize(("kind", "count"), OF_LOGITS)
def test_it_is_transformers(models, kind, count):
    """log p of every line, and the gradient, through both of its towers."""
    folder, model = models[kind]
    classifier = load_zero_shot_classifier(folder, PETS[:count])
    labels = torch.tensor([0, count - 1])
    x = images().requires_grad_()
    expected = OF_LOGITS[kind, count](whole_logits(folder, model, classifier, x, PETS[:count]))
    (wanted,) = torch.autograd.grad(expected[[0, 1], labels].sum(), x)
    got, log_probs, *_ = classifier.image_gradient(x.detach(), Target(labels))
    assert wanted.abs().max() > 1e-3 and expected.std() > 1e-3
    assert (log_probs - expected).abs().max() < 1e-5 * expected.abs().max()
    assert (got - wanted).abs().max() < 1e-5 * wanted.abs().max()
    assert classifier.is_score == ((kind, count) == ("clip", 1))
    assert classifier.labels == tuple(PETS[:count])
    assert reads_text(folder)


@pytest.mark.parametrize("kind", KINDS)
def test_a_template_puts_words_around_each_line(models, kind):
    """The labels stay the lines."""
    folder, _ = models[kind]
    short = load_zero_shot_classifier(folder, [" cat", "dog "], template="a photo of a {}")
    long = load_zero_shot_classifier(folder, PETS[:2])
    assert torch.equal(short.image_log_probs(images()), long.image_log_probs(images()))
    assert short.labels == ("cat", "dog")
    assert parse_labels("dog", 2, short.labels) == parse_labels("1", 2, short.labels) == [1]
    with pytest.raises(LabelError, match="did you mean 'dog'"):
        parse_labels("dogs", 2, short.labels)


def test_many_lines_are_encoded_in_parts(models, monkeypatch):
    folder, _ = models["clip"]
    at_once = load_zero_shot_classifier(folder, PETS)
    monkeypatch.setattr(zero_shot, "LINES_AT_ONCE", 2)
    in_parts = load_zero_shot_classifier(folder, PETS)
    assert torch.allclose(
        in_parts.network.text_embeddings, at_once.network.text_embeddings, atol=1e-6
    )


def test_siglip_reads_lower_case(models):
    """Its tokenizers for SigLIP 2 do not make it themselves."""
    folder, _ = models["siglip"]
    small, large = (
        load_zero_shot_classifier(folder, lines) for lines in (["a cat", "dog"], ["A  Cat", "DOG"])
    )
    assert torch.equal(small.image_log_probs(images()), large.image_log_probs(images()))
    assert large.labels == ("A  Cat", "DOG")


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_the_text_tower_stays_in_memory(models, kind, monkeypatch):
    folder, model = models[kind]
    seen, load = [], zero_shot.pretrained

    def watched(*arguments):
        opened = load(*arguments)
        parts = [opened.text_model, getattr(opened, "text_projection", None)]
        of_text = [weight for part in parts if part is not None for weight in part.parameters()]
        seen.extend(map(weakref.ref, of_text))
        return opened

    monkeypatch.setattr(zero_shot, "pretrained", watched)
    gc.disable()
    try:
        classifier = open_zero_shot_classifier(folder, PETS)
        assert len(seen) > 20 and not [one for one in seen if one() is not None]
    finally:
        gc.enable()
    kept = sum(weight.untyped_storage().nbytes() for weight in classifier.network.parameters())
    parts = [model.vision_model, getattr(model, "visual_projection", None)]
    vision = sum(w.nbytes for part in parts if part is not None for w in part.parameters())
    assert kept == vision
    buffers = [b for b in classifier.network.buffers() if b.is_floating_point()]
    assert sum(buffer.nbytes for buffer in buffers) == 4 * 3 * (24 if kind == "clip" else 32)


def test_looks_and_half_precision(models):
    """A score with looks is their mean; half precision gives about the same."""
    folder, _ = models["clip"]
    plain = load_zero_shot_classifier(folder, PETS[:1])
    still = Looks(count=3, shift=0, zoom=0, noise=0)
    looked = load_zero_shot_classifier(folder, PETS[:1], gradient="exact", looks=still)
    assert looked.through_model and looked.looks.count == 3
    target = Target(0)
    for got, expected in zip(
        looked.image_gradient(images(), target)[:2],
        plain.image_gradient(images(), target)[:2],
        strict=True,
    ):
        assert torch.allclose(got, expected, atol=1e-5)
    half = load_zero_shot_classifier(folder, PETS, dtype="bf16")
    assert compute_dtype(half.network, images()) == torch.bfloat16
    found = half.image_log_probs(images())
    assert found.dtype == torch.float32
    expected = load_zero_shot_classifier(folder, PETS).image_log_probs(images())
    assert (found - expected).abs().max() < 0.3


def test_inside_inference_mode(models):
    folder, _ = models["siglip"]
    with torch.inference_mode():
        got, *_ = load_zero_shot_classifier(folder, PETS).image_gradient(images(), Target(1))
    expected, *_ = load_zero_shot_classifier(folder, PETS).image_gradient(images(), Target(1))
    assert torch.equal(got, expected)


@pytest.mark.parametrize(
    ("lines", "template", "said"),
    [
        ([], "{}", "classes is empty"),
        (["", " "], "{}", "classes is empty"),
        (["cat", " ", "dog"], "{}", "Line 2 of classes is empty"),
        (["cat", "dog", "Cat "], "{}", "has the line 'cat' 2 times"),
        ([f"cat {n}" for n in range(257)], "{}", "has 257 lines; at most 256"),
        (["cat"], "a photo", "template is 'a photo', without {}"),
        (["cat"], "", "template is '', without {}"),
    ],
)
def test_lines_that_are_refused(models, lines, template, said):
    with pytest.raises(ValueError, match=said) as caught:
        load_zero_shot_classifier(models["clip"][0], lines, template=template)
    assert "\n" not in str(caught.value)


def test_as_many_lines_as_possible():
    lines = [f"cat {n}" for n in range(256)]
    assert class_texts(lines, "a {}, {}")[255] == "a cat 255, cat 255"


@pytest.mark.parametrize("kind", KINDS)
def test_a_line_that_is_too_long(models, kind):
    with pytest.raises(ValueError, match=rf"has \d+ tokens, but {kind} reads at most {TOKENS}"):
        load_zero_shot_classifier(models[kind][0], ["a cat", "big " * TOKENS])


def changed(name="config.json", **values):
    def change(folder):
        path = folder / name
        path.write_text(json.dumps(json.loads(path.read_text()) | values))

    return change


def without(name):
    return lambda folder: (folder / name).unlink()


def weights(key, change):
    def rewrite(folder):
        tensors = load_file(folder / WEIGHTS)
        tensors[key] = change(tensors[key])
        save_file(tensors, folder / WEIGHTS, {"format": "pt"})

    return rewrite


def infinite(tensor):
    return tensor / 0


TOKENIZER = "tokenizer.json"
VIT = ["ViTForImageClassification"]
SMALLER = {"size": {"shortest_edge": 24}, "crop_size": {"height": 24, "width": 24}}
WRONG = [
    (changed(architectures=VIT), "classes of its own and no text tower; load it with Load Image"),
    (changed(architectures=["CLIPVisionModel"]), r"no text tower .*CLIPVisionModel"),
    (changed(architectures=None), "no text tower .*none"),
    (changed(architectures=["Siglip2Model"]), "NaFlex model"),
    (changed(architectures=["SiglipModel"], model_type="siglip"), "cannot be read as a CLIP or"),
    (changed(auto_map={"AutoConfig": "mine.Config"}), "needs code from its folder"),
    (changed("tokenizer_config.json", auto_map={"AutoTokenizer": "m.T"}), "needs code from its"),
    (changed(quantization_config={"quant_method": "x"}), "is quantised"),
    (changed(vision_config={"num_channels": 1}), "reads 1-channel images"),
    (changed(projection_dim=10**6), "far more weights than the files hold"),
    (changed(text_config={"num_hidden_layers": 10**6}), "more than 1000"),
    (without("config.json"), "tiny clip has no config.json"),
    (without(WEIGHTS), "has no weights"),
    (without(PREPARING), f"has no {PREPARING}"),
    (changed(PREPARING, **SMALLER), r"images of the size \(24, 24\) .*reads \(32, 32\)"),
    (without(TOKENIZER), f"has no tokenizer .{TOKENIZER}"),
    (lambda folder: (folder / TOKENIZER).write_text("{"), "tokenizer of tiny clip cannot be read"),
    (weights("text_projection.weight", infinite), "text tower, or a temperature.*not finite"),
    (weights("logit_scale", infinite), "text tower, or a temperature.*not finite"),
    (weights("visual_projection.weight", infinite), "not finite .*projection.weight"),
]


@pytest.mark.parametrize(("break_it", "said"), WRONG)
def test_folders_that_are_refused(folder, break_it, said):
    break_it(folder)
    with pytest.raises(CheckpointError, match=said) as caught:
        open_zero_shot_classifier(folder, PETS)
    assert "\n" not in str(caught.value)


def test_code_in_a_folder_never_runs(folder):
    for name in ("modeling_clip.py", "tokenization_clip.py", "__init__.py"):
        (folder / name).write_text("raise SystemExit('code of the folder ran')")
    assert load_zero_shot_classifier(folder, PETS).num_classes == 3


def test_what_is_no_folder(tmp_path):
    with pytest.raises(CheckpointError, match="does not exist"):
        load_zero_shot_classifier(tmp_path / "nothing", PETS)
    (tmp_path / "a.safetensors").write_bytes(b"")
    with pytest.raises(CheckpointError, match="a.safetensors is no folder"):
        load_zero_shot_classifier(tmp_path / "a.safetensors", PETS)
    assert not reads_text(tmp_path)


def test_a_folder_of_words_is_no_image_classifier(models):
    with pytest.raises(CheckpointError, match="load it with Zero-Shot Classifier .*--classes"):
        load_image_classifier(models["clip"][0])


def test_an_image_processor_as_transformers_5_writes_it(folder):
    """In processor_config.json."""
    settings = json.loads((folder / PREPARING).read_text())
    expected = load_zero_shot_classifier(folder, PETS).preprocessing
    (folder / PREPARING).unlink()
    (folder / "processor_config.json").write_text(json.dumps({"image_processor": settings}))
    assert load_zero_shot_classifier(folder, PETS).preprocessing == expected


def test_siglips_tokenizer_without_its_packages(tmp_path, monkeypatch):
    """sentencepiece and protobuf are not needed where there is a tokenizer.json."""
    folder = tmp_path / "siglip"
    write_zero_shot(folder, "siglip")
    expected = load_zero_shot_classifier(folder, PETS).image_log_probs(images())

    def refused(*_, **__):
        raise ImportError("SiglipTokenizer requires the SentencePiece library and protobuf.")

    monkeypatch.setattr(transformers.AutoTokenizer, "from_pretrained", refused)
    marked = ["a photo, of a cat!", *PETS[1:]]
    changed("tokenizer_config.json", tokenizer_class="SiglipTokenizer")(folder)
    assert torch.equal(
        load_zero_shot_classifier(folder, marked).image_log_probs(images()), expected
    )
    (folder / TOKENIZER).rename(folder / "spiece.model")
    with pytest.raises(CheckpointError, match=r"spiece.model.*\(sentencepiece and protobuf\)"):
        load_zero_shot_classifier(folder, PETS)


def test_lines_can_be_of_any_words(folder):
    """Also of none that the tokenizer knows; one tokenizer for another is noticed by its texts."""
    same = load_zero_shot_classifier(folder, ["xyz", "a cat"])
    write_tokenizer(folder, "$A </s>")
    other = load_zero_shot_classifier(folder, ["xyz", "a cat"])
    assert not torch.equal(same.image_log_probs(images()), other.image_log_probs(images()))
