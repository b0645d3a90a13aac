"""Training a noisy classifier in a real ComfyUI: folder, training, file, guidance."""

from __future__ import annotations

import logging
from pathlib import Path

import pytest
import torch
from PIL import Image
from sampler_runs import few_sigmas, sampler_named, with_guider

SIDE = 16
TRAINING = {
    "preset": "small",
    "steps": 60,
    "batch_size": 16,
    "learning_rate": 2e-3,
    "noise_schedule": "linear",
    "pool": "adaptive",
    "seed": 0,
    "ema": 0.9,
    "held_out": 0.25,
}


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
def loaded(call, pictures):
    """(IMAGE, labels) of that folder."""
    return call("LabelledImageFolder", folder="shapes", size=SIDE)


@pytest.fixture(scope="module")
def trained(call, loaded):
    """(NOISY_CLASSIFIER, plot)."""
    return call("TrainNoisyClassifier", images=loaded[0], labels=loaded[1], **TRAINING)


def test_a_folder(loaded, pack_nodes, caplog, call):
    images, labels = loaded
    assert images.shape == (48, SIDE, SIDE, 3)
    assert labels.split("\n") == ["dark"] * 24 + ["light"] * 24
    assert images[0].mean() < 0.5 < images[-1].mean()
    with caplog.at_level(logging.WARNING):
        call("LabelledImageFolder", folder="shapes", size=SIDE)
    assert "left out 1 unreadable pictures: light/broken.png" in caplog.text.replace("\\", "/")


def test_folders_that_are_offered(pack_module, pictures):
    assert "shapes" in pack_module("nodes.host.paths").class_folder_names()


@pytest.mark.parametrize("folder", ["nowhere", "..", "../..", "/etc"])
def test_folders_elsewhere_are_refused(call, pictures, folder):
    with pytest.raises(ValueError, match="which is no folder in"):
        call("LabelledImageFolder", folder=folder, size=SIDE)


def test_what_was_trained_is_saved_loaded_and_followed(
    call, load_classifier, trained, unconditional, wiring
):
    classifier, plot = trained
    assert classifier.description.training["accuracy_by_timestep"]["0"] > 0.9
    assert plot.shape[0] == 1 and plot.shape[-1] == 3
    call("SaveNoisyClassifier", classifier=classifier, filename_prefix="classifiers/shapes")
    again = load_classifier("shapes_00001_.safetensors")
    assert again.classifier.labels == ("dark", "light") and again.classifier.space == "rgb"
    steer = {"model": unconditional, "label": "light", "scale": 40.0}
    light, same = (
        with_guider(
            wiring.guider("basic", call("ClassifierGuidance", classifier=one, **steer)[0]),
            sampler_named("euler"),
            few_sigmas(unconditional, 8),
        )
        for one in (classifier, again)
    )
    assert torch.equal(light, same)
    dark = call("ClassifierGuidance", classifier=again, **steer | {"label": "dark"})[0]
    sigmas = few_sigmas(unconditional, 8)
    dark = with_guider(wiring.guider("basic", dark), sampler_named("euler"), sigmas)
    assert light.mean() > dark.mean()


@pytest.mark.parametrize("size", [(SIDE, SIDE), (24, 16), (40, 56)])
@pytest.mark.parametrize("pool", ["adaptive", "spatial_v2"])
def test_it_guides_images_of_another_size(call, loaded, unconditional, wiring, pool, size):
    few = {"pool": pool, "steps": 2, "held_out": 0.0}
    inputs = {"images": loaded[0], "labels": loaded[1], **TRAINING, **few}
    classifier, _ = call("TrainNoisyClassifier", **inputs)
    steer = {"model": unconditional, "classifier": classifier, "label": "light", "scale": 3.0}
    (model,) = call("ClassifierGuidance", **steer)
    noise = torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(0))
    drawn = [
        with_guider(
            wiring.guider("basic", each),
            sampler_named("euler"),
            few_sigmas(unconditional),
            start=noise,
        )
        for each in (model, unconditional)
    ]
    assert drawn[0].shape == noise.shape and not torch.equal(*drawn)


def test_an_attention_pool_says_which_size_it_takes(call, loaded, unconditional, wiring):
    inputs = {"images": loaded[0], "labels": loaded[1], **TRAINING}
    few = {"pool": "attention", "steps": 2, "held_out": 0.0}
    classifier, _ = call("TrainNoisyClassifier", **inputs | few)
    steer = {"model": unconditional, "classifier": classifier, "label": "light", "scale": 3.0}
    guider = wiring.guider("basic", call("ClassifierGuidance", **steer)[0])
    with pytest.raises(ValueError, match="takes 16x16 inputs .* the image or latent is 24x32"):
        with_guider(
            guider,
            sampler_named("euler"),
            few_sigmas(unconditional),
            start=torch.zeros(1, 3, 32, 24),
        )


def test_latents_are_trained_in_the_models_space(call, core_model, pack_module):
    """What the classifier saw is what process_latent_in gives; its file says which space."""
    model = core_model("EPS")
    seen = []
    module = pack_module("guidance.training.new_classifier")
    plan_of = module.TrainingConfig

    def noted(**about):
        seen.append(about["data"].images)
        return plan_of(**about)

    latents = torch.randn(12, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    latents[::2] += 6
    module.TrainingConfig = noted
    try:
        classifier, _ = call(
            "TrainNoisyClassifier",
            latents={"samples": latents},
            labels="a, b, " * 5 + "a, b",
            model=model,
            **TRAINING | {"steps": 2, "held_out": 0.0},
        )
    finally:
        module.TrainingConfig = plan_of
    assert torch.allclose(seen[0], latents * 0.18215)
    assert classifier.classifier.space == "SD15"
    import comfy.latent_formats

    other = core_model("EPS", comfy.latent_formats.SDXL)
    with pytest.raises(ValueError, match="trained in the space SD15, but this model works in SDXL"):
        call("ClassifierGuidance", model=other, classifier=classifier, label="a", scale=1.0)
    assert call("ClassifierGuidance", model=model, classifier=classifier, label="a", scale=1.0)


def test_a_cancelled_training_goes_on(call, loaded, pack_module, monkeypatch):
    import comfy.model_management as management

    module = pack_module("nodes.training")
    inputs = {"images": loaded[0], "labels": loaded[1], **TRAINING, "steps": 8}
    whole, _ = call("TrainNoisyClassifier", **inputs)
    progress = module.training_progress

    def cancelled_at_5(steps):
        on_step = progress(steps)

        def each(step, loss):
            management.interrupt_current_processing(step == 5)
            on_step(step, loss)

        return each

    monkeypatch.setattr(module, "training_progress", cancelled_at_5)
    with pytest.raises(management.InterruptProcessingException):
        call("TrainNoisyClassifier", **inputs)
    steps = []
    monkeypatch.setattr(
        module, "training_progress", lambda _: lambda step, loss: steps.append(step)
    )
    again, _ = call("TrainNoisyClassifier", **inputs)
    assert steps == [6, 7, 8]
    for one, two in zip(
        whole.classifier.network.parameters(), again.classifier.network.parameters(), strict=True
    ):
        assert torch.equal(one, two)


@pytest.mark.parametrize(
    "change, said",
    [
        ({"labels": "a, b"}, "labels names 2 classes, but there are 48 images"),
        ({"labels": "\n".join(["a"] * 48)}, r"one class only \(a\)"),
        ({"images": None}, "neither of them connected"),
        ({"latents": {"samples": torch.zeros(2, 4, 8, 8)}}, "both of them connected"),
        ({"images": None, "latents": {"samples": torch.zeros(48, 4, 8, 8)}}, "but no model"),
        ({"pool": "attention", "images": torch.zeros(48, 16, 24, 3)}, "takes square inputs"),
    ],
    ids=str,
)
def test_what_cannot_be_trained_says_why(call, loaded, change, said):
    inputs = {"images": loaded[0], "labels": loaded[1], **TRAINING, **change}
    with pytest.raises(ValueError, match=said):
        call("TrainNoisyClassifier", **inputs)


def test_images_for_a_latent_model_are_refused(call, loaded, core_model):
    with pytest.raises(ValueError, match="works on SD15 latents, but images are connected"):
        inputs = {"images": loaded[0], "labels": loaded[1], "model": core_model("EPS")}
        call("TrainNoisyClassifier", **inputs, **TRAINING)
