"""Training a noisy classifier in a real ComfyUI: folder, training, file, guidance."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from PIL import Image
from sampler_runs import drawn, few_sigmas, latent_noise

SIDE = 16
# fp32: the same on every processor
TRAINING = {"preset": "small", "steps": 60, "batch_size": 16, "learning_rate": 2e-3}
TRAINING |= {"noise_schedule": "linear", "pool": "adaptive", "seed": 0}
TRAINING |= {"ema": 0.9, "held_out": 0.25, "precision": "fp32"}
FEW = {"steps": 2, "held_out": 0.0}


@pytest.fixture(scope="module")
def pictures(comfy):
    """A folder "shapes" in the input folder: dark and light pictures, and one that is broken."""
    import folder_paths

    root = Path(folder_paths.get_input_directory()) / "shapes"
    chance = torch.Generator().manual_seed(0)
    for name, level in (("dark", 50), ("light", 200)):
        (root / name).mkdir(parents=True)
        for index in range(24):
            shade = level + int(torch.randint(-40, 40, (), generator=chance))
            Image.new("RGB", (SIDE + 4, SIDE), (shade,) * 3).save(root / name / f"{index}.png")
    (root / "light" / "broken.png").write_bytes(b"no picture")
    return root


@pytest.fixture(scope="module")
def train(call, pictures):
    """(NOISY_CLASSIFIER, plot) of that folder, with other inputs where some are given."""
    images, labels = call("LabelledImageFolder", folder="shapes", size=SIDE)

    def run(**inputs):
        return call(
            "TrainNoisyClassifier", **{"images": images, "labels": labels, **TRAINING, **inputs}
        )

    return run


@pytest.fixture(scope="module")
def trained(train):
    """The one training that has to learn something."""
    return train()


@pytest.fixture
def sampled(wiring):
    """What a MODEL draws."""
    return lambda model, **start: drawn(
        wiring.guider("basic", model), few_sigmas(model, 8), **start
    )


def test_a_folder(call, pictures, pack_module, caplog):
    assert "shapes" in pack_module("nodes.host.paths").class_folder_names()
    with caplog.at_level(logging.WARNING):
        images, labels = call("LabelledImageFolder", folder="shapes", size=SIDE)
    assert "light/broken.png" in caplog.text.replace("\\", "/")
    assert images.shape == (48, SIDE, SIDE, 3)
    assert labels.split("\n") == ["dark"] * 24 + ["light"] * 24
    assert images[0].mean() < 0.5 < images[-1].mean()


def test_what_was_trained_is_saved_loaded_and_followed(
    call, load_classifier, trained, unconditional, sampled, steered
):
    classifier, plot = trained
    # of two classes, half are right by chance
    assert classifier.description.training["accuracy_by_timestep"]["0"] > 0.9
    assert plot.shape[0] == 1 and plot.shape[-1] == 3
    call("SaveNoisyClassifier", classifier=classifier, filename_prefix="classifiers/shapes")
    loaded = load_classifier("shapes_00001_.safetensors")
    assert loaded.classifier.labels == ("dark", "light") and loaded.classifier.space == "rgb"
    light, same, dark = (
        sampled(steered(unconditional, one, label, 40.0))
        for one, label in ((classifier, "light"), (loaded, "light"), (loaded, "dark"))
    )
    assert torch.equal(light, same)
    plain = sampled(unconditional).mean()
    assert light.mean() > plain + 0.01 and plain - 0.01 > dark.mean()


@pytest.mark.parametrize("pool", ["adaptive", "spatial_v2"])
def test_it_guides_images_of_another_size(train, unconditional, sampled, steered, pool):
    classifier, _ = train(pool=pool, **FEW)
    model = steered(unconditional, classifier, "light", 3.0)
    for size in ((SIDE, SIDE), (24, 16), (40, 56)):
        start = latent_noise(2, 3, *size)
        plain, guided = (sampled(each, start=start) for each in (unconditional, model))
        assert guided.shape == start.shape and not torch.equal(plain, guided)


def test_an_attention_pool_names_the_size_that_it_takes(train, unconditional, sampled, steered):
    classifier, _ = train(pool="attention", **FEW)
    model = steered(unconditional, classifier, "light", 3.0)
    with pytest.raises(ValueError, match="takes 16x16 inputs.*24x32"):
        sampled(model, start=torch.zeros(1, 3, 32, 24))


def test_latents_are_trained_in_the_models_space(
    train, core_model, pack_module, monkeypatch, steered
):
    """What the classifier saw is what process_latent_in gives; its file says which space."""
    import comfy.latent_formats

    model, seen = core_model("EPS"), []
    module = pack_module("guidance.training.new_classifier")
    config = module.TrainingConfig

    def noted(**about):
        seen.append(about["data"].images)
        return config(**about)

    monkeypatch.setattr(module, "TrainingConfig", noted)
    latents = latent_noise(12, 4, 8, 8, seed=0)
    latents[::2] += 6
    inputs = {"images": None, "latents": {"samples": latents}, "labels": "a, b, " * 5 + "a, b"}
    classifier, _ = train(model=model, **inputs, **FEW)
    assert torch.allclose(seen[0], latents * 0.18215)
    assert classifier.classifier.space == "SD15"
    with pytest.raises(ValueError, match="space SD15.*works in SDXL"):
        steered(core_model("EPS", comfy.latent_formats.SDXL), classifier, "a")
    assert steered(model, classifier, "a")


def test_a_cancelled_training_goes_on(train, pack_module, monkeypatch):
    import comfy.model_management as management

    module = pack_module("nodes.runtime.training")
    inputs = {"steps": 8, "held_out": 0.0}
    whole, _ = train(**inputs)
    progress, steps = module.training_progress, []

    def cancelled_at_5(total):
        on_step = progress(total)

        def each(step, loss):
            management.interrupt_current_processing(step == 5)
            on_step(step, loss)

        return each

    monkeypatch.setattr(module, "training_progress", cancelled_at_5)
    with pytest.raises(management.InterruptProcessingException):
        train(**inputs)
    monkeypatch.setattr(
        module, "training_progress", lambda _: lambda step, loss: steps.append(step)
    )
    resumed, _ = train(**inputs)
    assert steps == [6, 7, 8]
    networks = (one.classifier.network.parameters() for one in (whole, resumed))
    assert all(torch.equal(*pair) for pair in zip(*networks, strict=True))


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"labels": "a, b"}, "labels.*2 classes.*48 images"),
        ({"labels": "\n".join(["a"] * 48)}, r"one class only \(a\)"),
        ({"images": None}, "neither"),
        ({"latents": {"samples": torch.zeros(2, 4, 8, 8)}}, "both"),
        ({"images": None, "latents": {"samples": torch.zeros(48, 4, 8, 8)}}, "no model"),
        ({"pool": "attention", "images": torch.zeros(48, 16, 24, 3)}, "square"),
        ({"model": "latent"}, "SD15 latents.*images are connected"),
    ],
    ids=str,
)
def test_what_cannot_be_trained_is_refused(train, core_model, change, said):
    if "model" in change:
        change = {"model": core_model("EPS")}
    with pytest.raises(ValueError, match=said):
        train(**change)
