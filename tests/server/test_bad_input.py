"""Mistakes that people make, over the real HTTP API: one clear error, and the server goes on.

One telling case for each node and kind of file; the unit tests have the others.
"""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from prompts import class_label, classifier, diffusion_model, guided_run, node, write_models
from safetensors import safe_open
from safetensors.torch import save_file
from schedule_inputs import SCHEDULE_INPUTS
from tiny_models import SIZE, write_classifier, write_unet
from tiny_zero_shot import write_zero_shot

ANIMALS = ("cat", "catfish", "horse", "zebra")
MARKER = "it_ran"
WEIGHT = "input_blocks.0.0.weight"  # of both kinds of model
CLASSES = {"model": "labels.safetensors"}
ANY_SIZE = {"classifier_name": "one.safetensors", "label": "0"}
DEEP = {"channel_mult": (1, 1, 1, 1, 1), "attention_levels": (4,)}


class CreatesAFile:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self):
        return Path.touch, (self.path,)


@pytest.fixture(scope="module")
def models(server):
    """The server's models folder, with good and bad files."""
    models = write_models(server.base)
    unets, classifiers = models / "diffusion_models", models / "classifiers"
    write_unet(unets / "no_null.safetensors", classes=4, null_class=None)
    write_unet(unets / "many.safetensors", classes=20, null_class=None)
    write_unet(unets / "deep.safetensors", classes=None, **DEEP)
    write_unet(unets / "upsampler.safetensors", classes=None, in_channels=6)
    write_classifier(unets / "judge.safetensors")
    write_classifier(classifiers / "animals.safetensors", labels=ANIMALS)
    write_zero_shot(classifiers / "clip", "clip")
    write_classifier(classifiers / "latents.safetensors", channels=4)
    write_unet(classifiers / "unet.safetensors")
    whole = (classifiers / "animals.safetensors").read_bytes()
    (classifiers / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    (classifiers / "page.pt").write_text("<html><body>Sign in</body></html>")
    evil = pickle.dumps({"weight": CreatesAFile(models / MARKER)}, protocol=2)
    (classifiers / "evil.pt").write_bytes(evil)
    altered(unets / "plain.safetensors", "missing.safetensors", lambda tensors: tensors.pop(WEIGHT))
    altered(classifiers / "animals.safetensors", "nan.safetensors", one_nan)
    altered(classifiers / "animals.safetensors", "huge.safetensors", huge)
    return models


def altered(source, name, change):
    """Writes a copy of a model file, with its tensors changed and its description kept."""
    with safe_open(source, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    change(tensors)
    save_file(tensors, source.with_name(name), metadata)


def one_nan(tensors):
    tensors[WEIGHT][0, 0, 0, 0] = torch.nan


def huge(tensors):
    """Finite weights, too large to compute with."""
    last = tensors["out.2.c_proj.weight"]
    last.copy_(last.sign() * 3e38)


# --- prompts with a mistake --------------------------------------------------------------------


def run(**changes):
    """A guided run by a classifier that knows names, of two images."""
    return guided_run(**{"classifier_name": "animals.safetensors", "batch": 2} | changes)


def changed(prompt, name, **inputs):
    """The prompt, with other inputs of one node."""
    about = prompt[name]
    return prompt | {name: node(about["class_type"], **about["inputs"] | inputs)}


def conditioned(other, label):
    """A conditioning that was made for another model."""
    conditioning = {"other": diffusion_model(other), "positive": class_label(label, "other")}
    return run(**CLASSES) | conditioning


def image(width):
    """An image of one colour."""
    return node("EmptyImage", width=width, height=SIZE, batch_size=1, color=0)


def classified(width, name="animals.safetensors"):
    """Classify Image."""
    seen = node("ClassifyImage", classifier=["classifier", 0], image=["image", 0], top_k=3)
    return {"classifier": classifier(name), "image": image(width), "seen": seen}


def words(classes, template="{}", label="0"):
    """Classifier Guidance by Zero-Shot Classifier."""
    inputs = {"classifier_name": "clip", "classes": classes, "template": template}
    guided = node("ClassifierGuidance", model=["model", 0], classifier=["words", 0], scale=1.0)
    guided["inputs"]["label"] = label
    return run() | {"words": node("ZeroShotClassifier", **inputs), "guided": guided}


def respaced(respacing):
    """ADM Scheduler."""
    sigmas = node("ADMScheduler", model=["model", 0], respacing=respacing, denoise=1.0)
    shown = node("PreviewAny", source=["sigmas", 0])
    return {"model": diffusion_model("plain.safetensors"), "sigmas": sigmas, "shown": shown}


def upscaling(model):
    """ADM Upscale Conditioning."""
    small = node("ADMUpscaleConditioning", conditioning=["negative", 0], image=["image", 0])
    return run(model=model) | {"image": image(4), "positive": small}


def scheduled(model="guided", **inputs):
    """A CFG that follows a schedule."""
    prompt = run(**CLASSES, positive="1")
    prompt["schedule"] = node("GuidanceSchedule", **SCHEDULE_INPUTS | inputs)
    prompt["cfg"] = node("CFGScaleScheduler", model=[model, 0], schedule=["schedule", 0])
    return changed(prompt, "sampled", model=["cfg", 0])


def sigma_schedule_of_a_flow_model():
    flow = node("ModelSamplingSD3", model=["guided", 0], shift=3.0)
    return scheduled("flow", shape="interval for SDXL") | {"flow": flow}


def compared(values="1, 2", **lines):
    """A run for each scale, as one picture of two images each."""
    prompt = changed(run(), "guided", scale=["scales", 0])
    prompt["scales"] = node("GuidanceScales", values=values, name="scale")
    prompt["compared"] = node("GuidanceComparison", images=["decoded", 0], size=16, **lines)
    return changed(prompt, "shown", images=["compared", 0])


def plot_of_no_run():
    trace = node("GuidanceTrace", model=["guided", 0])  # the sampler has another model
    plot = node("GuidancePlot", trace=["trace", 1], samples=["sampled", 0])
    return run() | {"trace": trace, "plot": plot}


# the prompt, the node that refuses it, and what its error names: input, value, remedy
CASES = [
    # files
    (run(classifier_name="cut.safetensors"), "classifier", ["cut.safetensors", "whole", "again"]),
    (run(classifier_name="page.pt"), "classifier", ["page.pt", "web page", "again"]),
    (run(classifier_name="evil.pt"), "classifier", ["evil.pt", "run code", ".safetensors"]),
    (run(classifier_name="unet.safetensors"), "classifier", ["unet.safetensors", "other loader"]),
    (run(classifier_name="nan.safetensors"), "classifier", ["nan.safetensors", WEIGHT, "again"]),
    (run(model="judge.safetensors"), "model", ["judge.safetensors", "other loader"]),
    (run(model="missing.safetensors"), "model", ["missing.safetensors", WEIGHT]),
    (changed(run(), "model", num_heads=5), "model", ["num_heads", "5"]),
    # labels
    (run(label="4"), "guided", ["label", "4", "0 to 3"]),
    (run(label="zibra"), "guided", ["label", "'zibra'", "'zebra'"]),
    (run(classifier_name="one.safetensors", label="zebra"), "guided", ["'zebra'", "0 to 3"]),
    (run(label="0,1,2"), "sampled", ["label", "Classifier Guidance", "3", "2", "one class"]),
    (run(**CLASSES, positive="0,1,2"), "sampled", ["label", "ADM Class Label", "3", "one class"]),
    (run(positive="3"), "positive", ["label", "'3'", "plain.safetensors", "Classifier Guidance"]),
    (run(**CLASSES, positive="4"), "positive", ["label", "4", "0 to 3"]),  # the null class's row
    (run(model="no_null.safetensors", positive="1"), "negative", ["label", "empty", "cfg to 1"]),
    # an index beyond the embedding would end a GPU's whole process
    (conditioned("many.safetensors", "17"), "sampled", ["17", "labels.safetensors", "0 to 3"]),
    (conditioned("plain.safetensors", ""), "sampled", ["labels.safetensors", "ADM Class Label"]),
    # sizes and numbers
    (run(width=32), "sampled", ["classifier", "16x16", "32x16"]),
    (run(model="deep.safetensors", **ANY_SIZE, width=24), "sampled", ["multiples of 16", "24x16"]),
    (run(classifier_name="huge.safetensors"), "sampled", ["gradient", "not finite", "image 0"]),
    (words("cat\n\ndog"), "words", ["classes", "Line 2", "empty"]),
    (words("cat\nCat"), "words", ["classes", "'cat'", "2 times", "keep one"]),
    (words("cat", template="a photo"), "words", ["template", "'a photo'", "{}"]),
    (words("cat\ndog", label="mouse"), "guided", ["label", "'mouse'", "2 classes"]),
    (classified(24), "seen", ["classifier", "16x16", "24x16"]),
    (classified(16, "latents.safetensors"), "seen", ["latents.safetensors", "4", "3 channels"]),
    (respaced("fast"), "sigmas", ["respacing", "'fast'", "ddim25", "250"]),
    (run(model="upsampler.safetensors"), "sampled", ["upsampler.safetensors", "ADM Upscale"]),
    (upscaling("plain.safetensors"), "sampled", ["plain.safetensors", "ADM Upscale"]),
    # schedules and traces
    (scheduled(shape="curve", curve="{"), "schedule", ["JSON", "points"]),
    (scheduled(shape="expression", expression="percnt"), "schedule", ["percnt", "percent, step"]),
    (scheduled(shape="keyframes", keyframes="4, 3, 2"), "sampled", ["3 scales", "2 steps"]),
    (scheduled(per_image="1, 2, 3"), "sampled", ["3 factors", "2 images"]),
    (sigma_schedule_of_a_flow_model(), "cfg", ["flow model", "percent or step"]),
    # comparisons
    (compared("1, two"), "scales", ["values", "'two'", "0, 1, 2"]),
    (compared(rows="one"), "compared", ["rows", "1 lines", "2 images"]),
    (plot_of_no_run(), "plot", ["trace", "Guidance Trace"]),
]


@pytest.mark.parametrize(
    "prompt, name, parts", CASES, ids=[f"{name}-{'-'.join(parts)}" for _, name, parts in CASES]
)
def test_one_error_names_the_input_its_value_and_the_remedy(models, queue, prompt, name, parts):
    raised_by, said = queue.run(prompt).error
    assert raised_by == name, said
    assert not [part for part in parts if part not in said], said
    assert "\n" not in said and said.endswith((".", "?"))


@pytest.mark.parametrize(
    "name, inputs, parts",
    [
        ("classifier", {"classifier_name": "nowhere.pt"}, ["nowhere.pt", "animals.safetensors"]),
        ("model", {"dtype": "fp8"}, ["fp8", "fp16"]),
        ("guided", {"scale": 1e6}, ["1000"]),
    ],
)
def test_values_that_the_server_refuses_at_once(models, queue, name, inputs, parts):
    (reason,) = queue.refusals(changed(run(), name, **inputs))[name]
    said = f"{reason['message']} {reason['details']}"
    assert not [part for part in [*inputs, *parts] if part not in said], said


def test_a_missing_folder_says_where_pictures_come_from(models, queue):
    """Of the user's own, or those that are included."""
    folder = node("LabelledImageFolder", folder="pets", size=32)
    shown = node("PreviewImage", images=["folder", 0])
    (reason,) = queue.refusals({"folder": folder, "shown": shown})["folder"]
    said = f"{reason['message']} {reason['details']}"
    assert not [part for part in ("'pets'", "digits", "input") if part not in said]


def test_the_server_still_draws_after_all_that(models, queue):
    """Last in this file: a good prompt, which no earlier one has left in the cache."""
    ended = queue.run(run(seed=1))
    assert ended.status == "success" and len(ended.outputs["shown"]["images"]) == 2
    assert "sampled" not in ended.cached


def test_no_file_has_run_code(models):
    assert not (models / MARKER).exists()
    pickle.loads((models / "classifiers" / "evil.pt").read_bytes())
    assert (models / MARKER).exists()  # the file would have, elsewhere
