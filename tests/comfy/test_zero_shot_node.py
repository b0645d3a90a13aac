"""Zero-Shot Classifier, and scores, in a real ComfyUI."""

from __future__ import annotations

import shutil

import clean_digits
import pytest
import torch
from sampler_runs import core_guider, differ, drawn, evaluated, few_sigmas, noise
from tiny_zero_shot import write_zero_shot

PETS = "a photo of a cat\na photo of a dog\nthe zebra"
CLIP, SIGLIP, SCORE = "words/clip", "words/siglip", "words/score"
SIGMA = 2.0


@pytest.fixture(scope="module", autouse=True)
def folders(files):
    """A model of each kind, and a folder of an ordinary classifier with one output."""
    from transformers import ResNetConfig, ResNetForImageClassification

    write_zero_shot(files["classifiers"] / CLIP, "clip")
    write_zero_shot(files["classifiers"] / SIGLIP, "siglip", seed=1)
    torch.manual_seed(0)
    small = {"embedding_size": 8, "hidden_sizes": [8], "depths": [1]}
    model = ResNetForImageClassification(ResNetConfig(**small, num_labels=1)).eval()
    clean_digits.save(model, files["classifiers"] / SCORE)
    yield
    shutil.rmtree(files["classifiers"] / "words")


@pytest.fixture
def words(call):
    """A NOISY_CLASSIFIER of lines."""

    def run(classes=PETS, name=CLIP, template="{}", **options):
        inputs = {"classifier_name": name, "classes": classes, "template": template}
        return call("ZeroShotClassifier", **inputs, **{"dtype": "fp32", "looks": 0} | options)[0]

    return run


@pytest.fixture
def term(unconditional, steered):
    """What guidance adds to the denoised image at SIGMA."""

    def run(classifier, label, scale=2.0):
        model = steered(unconditional, classifier, label, scale)
        x = SIGMA * noise()
        plain = evaluated(core_guider(unconditional), x, SIGMA)
        return evaluated(core_guider(model), x, SIGMA) - plain, plain

    return run


def test_each_loader_offers_its_folders(pack_nodes):
    def offered(node):
        return pack_nodes[node].define_schema().inputs[0].options

    assert offered("ZeroShotClassifier") == [CLIP, SIGLIP]
    images = offered("ImageClassifierLoader")
    assert SCORE in images and not [name for name in images if name.startswith(CLIP)]


@pytest.mark.parametrize("name", [CLIP, SIGLIP])
@pytest.mark.parametrize("gradient", ["cheap", "exact"])
def test_a_line_and_its_number_are_the_same_label(words, term, name, gradient):
    classifier = words(name=name, gradient=gradient)
    by_line, plain = term(classifier, "A photo of a dog")
    assert torch.equal(term(classifier, "1")[0], by_line)
    assert differ(term(classifier, "the")[0], by_line) > 1e-5  # a unique beginning
    if gradient == "cheap":
        inner = classifier.on_device()
        x0 = plain.detach().clone().requires_grad_()
        pixels = inner.preprocessing(x0)
        chosen = inner.network(pixels).log_softmax(dim=1)[:, 1].sum()
        (g,) = torch.autograd.grad(chosen, x0)
        expected = 2.0 * SIGMA**2 / (1 + SIGMA**2) * g
        assert expected.abs().max() > 1e-3
        assert differ(by_line, expected) < 1e-4 * float(expected.abs().max())


def test_an_unknown_line_is_refused(words, term):
    with pytest.raises(ValueError, match="did you mean 'a photo of a dog'"):
        term(words(), "a photo of a fog")
    with pytest.raises(ValueError, match="label is 3, but the classes go from 0 to 2"):
        term(words(), "3")


@pytest.mark.parametrize(
    ("name", "classes", "label"),
    [(CLIP, PETS, "2"), (CLIP, "the zebra", "the zebra"), (SIGLIP, "the zebra", "0")],
)
def test_a_run_goes_towards_the_line_and_with_a_negative_scale_away(
    words, unconditional, steered, name, classes, label
):
    """Several lines, CLIP's score of a single line, SigLIP's sigmoid of a single line."""
    classifier = words(classes, name)
    index, sigmas = int(label) if label.isdecimal() else 0, few_sigmas(unconditional, 6)

    def seen(scale):
        model = steered(unconditional, classifier, label, scale)
        images = drawn(core_guider(model), sigmas, start=noise())
        return classifier.on_device().image_log_probs(images)[:, index]

    away, plain, towards = seen(-1.0), seen(0.0), seen(1.0)
    assert bool((away < plain).all() and (plain < towards).all())


def test_a_score_guides_by_its_gradient(call, term):
    scoring = call("ImageClassifierLoader", classifier_name=SCORE, dtype="fp32")[0]
    towards, plain = term(scoring, "score")
    x0 = plain.detach().clone().requires_grad_()
    inner = scoring.on_device()
    (g,) = torch.autograd.grad(inner.network(inner.preprocessing(x0)).sum(), x0)
    expected = 2.0 * SIGMA**2 / (1 + SIGMA**2) * g
    assert expected.abs().max() > 1e-6
    assert differ(towards, expected) < 1e-4 * float(expected.abs().max())
    assert differ(term(scoring, "0")[0], towards) == 0


def test_classify_image_tells_scores_from_shares(call, words):
    image = torch.rand(2, 40, 40, 3, generator=torch.Generator().manual_seed(0))

    def shown(classifier):
        (text,) = call("ClassifyImage", classifier=classifier, image=image, top_k=3)
        values = classifier.on_device().image_log_probs(image.movedim(-1, 1) * 2 - 1)
        return text.splitlines(), values

    lines, log_probs = shown(words())
    best, index = log_probs[0].exp().max(dim=0)
    assert lines[0].startswith(f"1: {PETS.splitlines()[index]} {100 * best:.1f} %, ")
    lines, values = shown(words("the zebra"))
    assert lines[1] == f"2: the zebra {float(values[1, 0]):.2f}"
    lines, values = shown(words("the zebra", SIGLIP))
    assert lines[0] == f"1: the zebra {100 * float(values[0, 0].exp()):.1f} %"
    lines, values = shown(call("ImageClassifierLoader", classifier_name=SCORE, dtype="fp32")[0])
    assert lines[0] == f"1: score {float(values[0, 0]):.2f}"


def test_only_the_vision_tower_is_placed(words):
    placed = words(dtype="auto")
    network = placed.classifier.network
    weights = sum(weight.nbytes for weight in network.parameters())
    small = sum(buffer.nbytes for buffer in network.buffers())
    assert placed.patcher.model_size() <= weights + small < 1.02 * weights
    assert not [name for name, _ in network.named_modules() if "text" in name]


def test_a_template(words):
    x = noise()
    short = words("cat\ndog", template="a photo of a {}")
    long = words("a photo of a cat\na photo of a dog\n")
    assert short.classifier.labels == ("cat", "dog")
    found = [one.on_device().image_log_probs(x) for one in (short, long)]
    assert torch.equal(*found)


def test_what_is_refused(call, words):
    with pytest.raises(ValueError, match=r"score has classes of its own.*Load Image Classifier"):
        words(name=SCORE)
    with pytest.raises(ValueError, match=r"clip compares images with words.*Zero-Shot Classifier"):
        call("ImageClassifierLoader", classifier_name=CLIP)
    for classes, said in (
        (" \n", "classes is empty"),
        ("cat\n\ndog", "Line 2 of classes is empty"),
        ("cat\nCAT", "has the line 'cat' 2 times"),
    ):
        with pytest.raises(ValueError, match=said):
            words(classes)
    with pytest.raises(ValueError, match="template is 'cat', without {}"):
        words(template="cat")
    with pytest.raises(ValueError, match="digits_judge.safetensors is no folder"):
        words(name="digits_judge.safetensors")
