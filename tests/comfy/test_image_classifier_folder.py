"""Load Image Classifier with the folder of a Hugging Face classifier, and with the pack's own."""

from __future__ import annotations

import json
import shutil

import clean_digits
import pytest
import torch
from sampler_runs import core_guider, drawn, few_sigmas, noise

JUDGE = "digits_judge.safetensors"
FOLDER = "people/digit_resnet"


@pytest.fixture(scope="module")
def resnet(files):
    """A small ResNet, not trained; it is in FOLDER."""
    model = clean_digits.new_resnet().eval()
    clean_digits.save(model, files["classifiers"] / FOLDER)
    yield model
    shutil.rmtree(files["classifiers"] / "people")


@pytest.fixture
def load(call, resnet):
    """A NOISY_CLASSIFIER of clean images."""

    def run(name, dtype="fp32", gradient="cheap"):
        inputs = {"classifier_name": name, "dtype": dtype, "gradient": gradient}
        return call("ImageClassifierLoader", **inputs)[0]

    return run


def test_folders_are_offered_and_what_is_in_them_is_not(pack_nodes, resnet, files):
    (files["classifiers"] / "people" / "lone.safetensors").write_bytes(b"")
    offered = pack_nodes["ImageClassifierLoader"].define_schema().inputs[0].options
    assert {FOLDER, JUDGE, "people/lone.safetensors"} <= set(offered)
    assert not [name for name in offered if name.startswith(FOLDER + "/")]


def test_a_fingerprint_notices_a_new_file(pack_nodes, resnet, files):
    node = pack_nodes["ImageClassifierLoader"]
    before = node.fingerprint_inputs(FOLDER)
    assert before == node.fingerprint_inputs(FOLDER)
    path = files["classifiers"] / FOLDER / "preprocessor_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"note": "other"}))
    assert node.fingerprint_inputs(FOLDER) != before
    assert node.fingerprint_inputs(JUDGE) != node.fingerprint_inputs("nowhere")


@pytest.mark.parametrize("name", ["../diffusion_models", "nowhere", "/", "people"])
def test_names_that_are_none(load, name):
    with pytest.raises(ValueError, match="There is no model file"):
        load(name)


def test_its_classes_are_offered(pack_module, resnet):
    classes_of = pack_module("nodes.host.server").classes_of
    for name, third in ((FOLDER, "digit 3"), (JUDGE, "3")):
        classes, _ = classes_of("image_classifiers", name)
        assert classes[3] == third


@pytest.mark.parametrize("dtype", ["auto", "fp32", "bf16"])
def test_classify_image_reads_real_digits(call, load, dtype):
    images, labels = clean_digits.digits()
    shown = (images[-40:].movedim(1, -1) + 1) / 2
    (text,) = call("ClassifyImage", classifier=load(JUDGE, dtype), image=shown, top_k=1)
    seen = [int(line.split()[1]) for line in text.splitlines()]
    assert sum(map(int.__eq__, seen, labels[-40:].tolist())) >= 36


def test_a_folder_is_read_as_transformers_does(load, resnet):
    images = clean_digits.digits()[0][-8:]
    with torch.no_grad():
        expected = resnet(pixel_values=images).logits.log_softmax(dim=1)
    got = load(FOLDER).on_device().image_log_probs(images)
    assert (got - expected).abs().max() < 1e-5
    assert expected.std() > 1e-3


@pytest.mark.long
def test_a_trained_clean_classifier_raises_the_judges_accuracy(
    load_model, load, steered, label_of, files, say_at_the_end
):
    """By at least 30 points, in both ways, on the model that draws any digit."""
    trained, count = clean_digits.new_resnet(), 40
    assert clean_digits.train(trained) > 0.9
    clean_digits.save(trained, files["classifiers"] / "people" / "trained")
    model = load_model("digits_adm.safetensors", dtype="fp32")[0]
    judge, none = load(JUDGE).on_device(), label_of(model, "")
    labels, start, sigmas = torch.arange(count) % 10, noise(count, 32), few_sigmas(model, 20)

    def accuracy(guided):
        images = drawn(core_guider(guided, positive=none), sigmas, start=start)
        return float((judge.image_log_probs(images).argmax(dim=1) == labels).float().mean())

    names, found = ",".join(map(str, labels.tolist())), {"unguided": accuracy(model)}
    for gradient, scale in (("cheap", 40.0), ("exact", 3.0)):
        classifier = load("people/trained", gradient=gradient)
        found[gradient] = accuracy(steered(model, classifier, names, scale))
    say_at_the_end(f"judge accuracy with an image classifier: {found}")
    assert found["unguided"] < 0.25
    assert min(found["cheap"], found["exact"]) >= found["unguided"] + 0.3
