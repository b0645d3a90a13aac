"""What people get wrong, over the real HTTP API: one clear sentence, and the server goes on."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest
import torch
from schedule_inputs import SCHEDULE_INPUTS
from tiny_models import SIZE, write_classifier, write_unet

ANIMALS = ("cat", "catfish", "horse", "zebra")


@pytest.fixture(scope="module")
def models(server):
    """The folders of the server's model files, with small models in them."""
    folder = {kind: server.base / "models" / kind for kind in ("classifiers", "diffusion_models")}
    for path in folder.values():
        path.mkdir(parents=True, exist_ok=True)
    write_unet(folder["diffusion_models"] / "plain.safetensors", classes=None)
    write_unet(folder["diffusion_models"] / "dropout.safetensors")
    write_unet(folder["diffusion_models"] / "classes.safetensors", classes=4, null_class=None)
    write_unet(
        folder["diffusion_models"] / "deep.safetensors",
        classes=None,
        channel_mult=(1, 1, 1, 1, 1),
        attention_levels=(4,),
    )
    write_classifier(folder["classifiers"] / "animals.safetensors", labels=ANIMALS)
    write_classifier(folder["classifiers"] / "any_size.safetensors", pool="adaptive")
    return folder


def sampling(
    *,
    model="plain.safetensors",
    classifier="animals.safetensors",
    label="zebra",
    positive="",
    negative=None,
    cfg=1.0,
    size=SIZE,
    batch=2,
    steps=2,
    seed=0,
):
    """A whole prompt: loaders, guidance, KSampler, decoded images."""
    schedule = {"noise_schedule": "auto", "dtype": "auto"}
    labelled = {"class_type": "ADMClassLabel"}
    return {
        "model": {
            "class_type": "ADMModelLoader",
            "inputs": {"model_name": model, "clip_denoised": True, **schedule},
        },
        "classifier": {
            "class_type": "NoisyClassifierLoader",
            "inputs": {"classifier_name": classifier, **schedule},
        },
        "guided": {
            "class_type": "ClassifierGuidance",
            "inputs": {
                "model": ["model", 0],
                "classifier": ["classifier", 0],
                "label": label,
                "scale": 1.0,
            },
        },
        "positive": labelled | {"inputs": {"model": ["guided", 0], "label": positive}},
        "negative": labelled
        | {
            "inputs": {
                "model": ["guided", 0],
                "label": positive if negative is None else negative,
            }
        },
        "latent": {
            "class_type": "EmptyLatentImage",
            "inputs": {"width": size, "height": 16, "batch_size": batch},
        },
        "sampled": {
            "class_type": "KSampler",
            "inputs": {
                "model": ["guided", 0],
                "positive": ["positive", 0],
                "negative": ["negative", 0],
                "latent_image": ["latent", 0],
                "seed": seed,
                "steps": steps,
                "cfg": cfg,
                "sampler_name": "euler",
                "scheduler": "normal",
                "denoise": 1.0,
            },
        },
        "decoded": {
            "class_type": "VAEDecode",
            "inputs": {"samples": ["sampled", 0], "vae": ["model", 1]},
        },
        "shown": {"class_type": "PreviewImage", "inputs": {"images": ["decoded", 0]}},
    }


seeds = iter(range(1, 10_000))


@pytest.fixture
def good_prompt_runs(models, submit):
    """To be asked after a failure: whether the server still draws (and not from its cache)."""

    def run():
        answer = submit(sampling(seed=next(seeds)))
        assert not answer.error and not answer.node_errors
        assert len(answer.outputs["shown"]["images"]) == 2

    return run


@pytest.fixture
def failure(models, submit, good_prompt_runs):
    """Runs a prompt that must fail in `node`; its one sentence. Then a good prompt must run."""

    def run(prompt, node):
        answer = submit(prompt)
        assert answer.error, f"did not fail: {answer}"
        said = answer.said
        print(f"{answer.error['node_type']}: {said}")
        assert answer.error["node_id"] == node, said
        assert "\n" not in said and said.endswith((".", "?"))
        good_prompt_runs()
        return said

    return run


def has(text, *parts):
    """Each part is in the text."""
    missing = [part for part in parts if part not in text]
    assert not missing, f"{missing} not in {text!r}"


# --- files -----------------------------------------------------------------------------------


def test_name_that_is_not_in_the_list(models, submit, good_prompt_runs):
    answer = submit(sampling(classifier="nowhere.safetensors"))
    reason = next(r for r in answer.refused if r["type"] == "value_not_in_list")
    print(reason["details"])
    has(reason["details"], "classifier_name", "nowhere.safetensors", "animals.safetensors")
    good_prompt_runs()


@pytest.mark.parametrize(
    "folder, chosen, node",
    [("classifiers", "classifier", "classifier"), ("diffusion_models", "model", "model")],
)
def test_file_deleted_while_the_prompt_waits(
    server, models, post, result, good_prompt_runs, folder, chosen, node
):
    """It was there when the prompt was validated, and is gone when its turn comes."""
    write = write_classifier if folder == "classifiers" else write_unet
    file = models[folder] / "passing.safetensors"
    write(file)
    ahead = post(sampling(steps=10_000, seed=next(seeds)))
    waiting = post(sampling(**{chosen: file.name}))
    assert isinstance(waiting, str), waiting
    file.unlink()
    while server.request("/queue")[1]["queue_running"] == []:
        pass
    server.request("/interrupt", {})
    result(ahead)
    answer = result(waiting)
    print(answer.said)
    assert answer.error["node_id"] == node
    has(answer.said, "passing.safetensors", str(models[folder]))
    good_prompt_runs()


def test_truncated_safetensors(models, failure):
    whole = (models["classifiers"] / "animals.safetensors").read_bytes()
    (models["classifiers"] / "cut.safetensors").write_bytes(whole[: len(whole) // 2])
    said = failure(sampling(classifier="cut.safetensors"), "classifier")
    has(said, "cut.safetensors", "not a whole safetensors file", "again")


def test_truncated_pt(models, failure):
    whole = models["classifiers"] / "whole.pt"
    torch.save({"weight": torch.ones(1000)}, whole)
    cut = models["classifiers"] / "cut.pt"
    cut.write_bytes(whole.read_bytes()[:2000])
    has(failure(sampling(classifier="cut.pt"), "classifier"), "cut.pt", "not a whole", "again")


def test_empty_and_web_page_pt(models, failure):
    (models["classifiers"] / "empty.pt").write_bytes(b"")
    has(failure(sampling(classifier="empty.pt"), "classifier"), "empty.pt", "download it again")
    (models["classifiers"] / "page.pt").write_text("<html><body>Sign in</body></html>")
    has(failure(sampling(classifier="page.pt"), "classifier"), "page.pt", "web page")


class Touch:
    """Creates a file when it is unpickled."""

    def __init__(self, marker: Path):
        self.marker = marker

    def __reduce__(self):
        return Path.touch, (self.marker,)


@pytest.mark.parametrize("how", ["pickle", "torch"])
def test_pt_that_would_run_code(models, failure, tmp_path, how):
    marker = tmp_path / "it_ran"
    file = models["classifiers"] / f"evil_{how}.pt"
    content = {"weight": torch.ones(1), "more": Touch(marker)}
    if how == "torch":
        torch.save(content, file)
    else:
        file.write_bytes(pickle.dumps(content, protocol=2))
    said = failure(sampling(classifier=file.name), "classifier")
    has(said, file.name, "run code", "not opened", ".safetensors")
    assert not marker.exists()
    # the file is what it is taken for: without the pack's care it would have run
    pickle.loads(pickle.dumps(Touch(marker)))
    assert marker.exists()


def test_foreign_safetensors(models, failure):
    from safetensors.torch import save_file

    save_file({"weight": torch.ones(3)}, models["classifiers"] / "lora.safetensors")
    said = failure(sampling(classifier="lora.safetensors"), "classifier")
    has(said, "lora.safetensors", "neither", "ADM classifier", "choose")


def test_diffusion_model_as_a_classifier(models, failure):
    write_unet(models["classifiers"] / "unet.safetensors")
    said = failure(sampling(classifier="unet.safetensors"), "classifier")
    has(said, "unet.safetensors is an ADM diffusion model, not a noisy classifier", "other loader")


def test_classifier_as_a_diffusion_model(models, failure):
    write_classifier(models["diffusion_models"] / "judge.safetensors")
    said = failure(sampling(model="judge.safetensors"), "model")
    has(said, "judge.safetensors is a noisy classifier, not an ADM diffusion model", "other loader")


# --- labels ----------------------------------------------------------------------------------


def test_label_out_of_range(failure):
    has(failure(sampling(label="4"), "guided"), "label is 4", "0 to 3")
    has(failure(sampling(label="0,-1"), "guided"), "label is -1", "0 to 3")


def test_misspelled_label_offers_the_nearest(failure):
    has(failure(sampling(label="zibra"), "guided"), "label is 'zibra'", "'zebra'")


def test_ambiguous_label(failure):
    """ "cat" is a name of its own; "ca" could be two."""
    has(failure(sampling(label="ca"), "guided"), "'ca'", "'cat' (0)", "'catfish' (1)", "index")


def test_empty_label_of_classifier_guidance(failure):
    has(failure(sampling(label=""), "guided"), "label is ''", "index or name")
    has(failure(sampling(label="cat,,"), "guided"), "'cat,,'", "index or name")


def test_name_for_classes_without_names(failure):
    said = failure(sampling(classifier="any_size.safetensors", label="zebra"), "guided")
    has(said, "'zebra'", "no names", "0 to 3")


def test_labels_that_do_not_match_the_batch(failure):
    said = failure(sampling(label="0,1,2"), "sampled")
    has(said, "label of Classifier Guidance lists 3 classes", "2 images", "one class for all")
    said = failure(sampling(model="dropout.safetensors", positive="0,1,2"), "sampled")
    has(said, "label of ADM Class Label lists 3 classes", "2 images", "one class for all")


def test_class_of_an_unconditional_model(failure):
    said = failure(sampling(positive="3", negative=""), "positive")
    has(said, "label is '3'", "plain.safetensors is unconditional", "Classifier Guidance")


def test_no_class_for_a_model_without_null_class(failure):
    prompt = sampling(model="classes.safetensors", positive="1", negative="", cfg=2.0)
    said = failure(prompt, "negative")
    has(said, "label is empty", "classes.safetensors", "no null class", "cfg to 1")


def test_null_class_row_cannot_be_asked_for(failure):
    prompt = sampling(model="dropout.safetensors", positive="4", negative="")
    said = failure(prompt, "positive")
    has(said, "label is 4", "0 to 3")


def conditioned_by(other, label, model="dropout.safetensors"):
    """A prompt whose positive conditioning was made for another model."""
    prompt = sampling(model=model)
    loader = prompt["model"]
    prompt["other"] = loader | {"inputs": loader["inputs"] | {"model_name": other}}
    prompt["positive"]["inputs"] = {"model": ["other", 0], "label": label}
    return prompt


def test_conditioning_of_an_unconditional_model(failure):
    said = failure(conditioned_by("plain.safetensors", ""), "sampled")
    has(said, "dropout.safetensors", "class label", "ADM Class Label")


def test_conditioning_of_a_model_with_more_classes(models, failure):
    """An index beyond the embedding would end a GPU's whole process."""
    write_unet(models["diffusion_models"] / "many.safetensors", classes=20, null_class=None)
    said = failure(conditioned_by("many.safetensors", "17"), "sampled")
    has(said, "class label is 17", "dropout.safetensors", "0 to 3", "ADM Class Label")


# --- sizes and settings ----------------------------------------------------------------------


def test_size_that_the_attention_pool_was_not_trained_for(failure):
    said = failure(sampling(size=32), "sampled")
    has(said, "classifier", "16x16", "32x16")


def test_width_that_the_unet_cannot_halve(failure):
    prompt = sampling(model="deep.safetensors", classifier="any_size.safetensors", label="0")
    prompt["latent"]["inputs"]["width"] = 24
    said = failure(prompt, "sampled")
    has(said, "diffusion model", "multiples of 16", "24x16")


def classified(width, classifier="animals.safetensors"):
    return {
        "classifier": sampling(classifier=classifier)["classifier"],
        "image": {
            "class_type": "EmptyImage",
            "inputs": {"width": width, "height": 16, "batch_size": 1, "color": 0},
        },
        "seen": {
            "class_type": "ClassifyImage",
            "inputs": {"classifier": ["classifier", 0], "image": ["image", 0], "top_k": 3},
        },
    }


def test_classify_image_of_another_size(failure):
    has(failure(classified(24), "seen"), "classifier", "16x16", "24x16")
    said = failure(classified(17, "any_size.safetensors"), "seen")
    has(said, "multiples of 2", "17x16")


def test_classify_image_with_another_number_of_channels(models, failure):
    write_classifier(models["classifiers"] / "latents.safetensors", channels=4)
    said = failure(classified(16, "latents.safetensors"), "seen")
    has(said, "latents.safetensors", "4-channel", "3 channels", "use a classifier")


@pytest.mark.parametrize(
    "respacing, parts",
    [
        ("fast", ["'fast'", "ddim25", "250"]),
        ("", ["''", "ddim25", "250"]),
        ("0", ["'0'", "250"]),
        ("2000", ["'2000'", "at most 1000"]),
        ("ddim300", ["'ddim300'", "ddim25", "300"]),
        ("10,,20", ["'10,,20'", "10,15,20"]),
        ("9" * 30, ["9" * 30, "at most 1000"]),
    ],
)
def test_bad_respacing(failure, respacing, parts):
    prompt = {
        "model": sampling()["model"],
        "sigmas": {
            "class_type": "ADMScheduler",
            "inputs": {"model": ["model", 0], "respacing": respacing, "denoise": 1.0},
        },
        "shown": {"class_type": "PreviewAny", "inputs": {"source": ["sigmas", 0]}},
    }
    has(failure(prompt, "sigmas"), "respacing is", *parts)


@pytest.mark.parametrize(
    "node, name, value",
    [
        ("guided", "scale", 1e6),
        ("model", "dtype", "fp8"),
        ("classifier", "noise_schedule", "sigmoid"),
    ],
)
def test_values_out_of_range_are_refused(models, submit, good_prompt_runs, node, name, value):
    prompt = sampling()
    prompt[node]["inputs"][name] = value
    (reason,) = submit(prompt).node_errors[node]["errors"]
    has(reason["details"], name)
    good_prompt_runs()


# --- broken weights --------------------------------------------------------------------------


def altered(source, change, name):
    """A copy of a model file, its tensors as `change` leaves them; description and all."""
    from safetensors import safe_open
    from safetensors.torch import save_file

    with safe_open(source, framework="pt") as file:
        tensors = {key: file.get_tensor(key) for key in file.keys()}  # noqa: SIM118
        metadata = file.metadata()
    change(tensors)
    save_file(tensors, source.with_name(name), metadata)
    return name


WEIGHT = "input_blocks.0.0.weight"  # of both kinds
LAST = "out.2.c_proj.weight"  # of the classifier


def one_nan(tensors):
    tensors[WEIGHT][0, 0, 0, 0] = torch.nan


def one_infinite(tensors):
    tensors[WEIGHT][0, 0, 0, 0] = -torch.inf


def one_missing(tensors):
    del tensors[WEIGHT]


def one_too_many(tensors):
    tensors["attic.weight"] = torch.ones(3)


def another_shape(tensors):
    tensors[WEIGHT] = tensors[WEIGHT][:, :, :1].contiguous()


@pytest.mark.parametrize(
    "change, parts",
    [
        (one_nan, ["not finite", WEIGHT, "again"]),
        (one_infinite, ["not finite", WEIGHT, "again"]),
        (one_missing, ["1 tensor is missing", WEIGHT]),
        (one_too_many, ["1 tensor is too many", "attic.weight"]),
        (another_shape, ["of another shape", WEIGHT, "(32, 3, 1, 3)", "(32, 3, 3, 3)"]),
    ],
)
@pytest.mark.parametrize("node", ["classifier", "model"])
def test_weights_that_cannot_be_right(models, failure, node, change, parts):
    """Said when the file is loaded, with the tensor's name."""
    folder = {"classifier": "classifiers", "model": "diffusion_models"}[node]
    good = {"classifier": "animals.safetensors", "model": "plain.safetensors"}[node]
    name = altered(models[folder] / good, change, f"{change.__name__}.safetensors")
    has(failure(sampling(**{node: name}), node), name, *parts)


def test_gradient_that_is_not_finite(models, failure):
    """The weights are finite, but too large for what is computed with them."""

    def huge(tensors):
        tensors[LAST] = tensors[LAST].sign() * 3e38

    name = altered(models["classifiers"] / "animals.safetensors", huge, "huge.safetensors")
    said = failure(sampling(classifier=name), "sampled")
    has(said, "gradient is not finite", "sigma", "image 0 of the batch", "another one")


@pytest.mark.parametrize("node", ["classifier", "model"])
@pytest.mark.parametrize(
    "overrides, parts",
    [
        ({"num_heads": 2, "num_head_channels": 16}, ["num_heads is 2", "num_head_channels 16"]),
        ({"num_heads": 5}, ["num_heads", "5"]),
        ({"num_head_channels": 48}, ["num_head_channels", "48"]),
    ],
)
def test_heads_that_do_not_fit(failure, node, overrides, parts):
    prompt = sampling()
    prompt[node]["inputs"] |= overrides
    has(failure(prompt, node), *parts)


# --- upsamplers ------------------------------------------------------------------------------


@pytest.fixture
def upsampler(models):
    """An ADM upsampler's file."""
    path = models["diffusion_models"] / "upsampler.safetensors"
    write_unet(path, classes=None, in_channels=6)
    return path.name


def test_upsampler_as_a_plain_model(failure, upsampler):
    said = failure(sampling(model=upsampler), "sampled")
    has(said, upsampler, "is an upsampler", "ADM Upscale Conditioning")


def upscaling(model, side):
    """A prompt that enlarges an image of that width; its latent is SIZE wide."""
    prompt = sampling(model=model)
    prompt["image"] = {
        "class_type": "EmptyImage",
        "inputs": {"width": side, "height": 4, "batch_size": 1, "color": 0},
    }
    for name in ("positive", "negative"):
        prompt[f"enlarging_{name}"] = {
            "class_type": "ADMUpscaleConditioning",
            "inputs": {"conditioning": [name, 0], "image": ["image", 0]},
        }
        prompt["sampled"]["inputs"][name] = [f"enlarging_{name}", 0]
    return prompt


def test_small_image_of_the_wrong_size(failure, upsampler):
    said = failure(upscaling(upsampler, SIZE // 4 + 1), "sampled")
    has(said, "image", "5x4", "20x16", "16x16")


def test_small_image_for_a_plain_model(failure):
    said = failure(upscaling("plain.safetensors", SIZE // 4), "sampled")
    has(said, "plain.safetensors", "remove ADM Upscale Conditioning")


# --- schedules -------------------------------------------------------------------------------


def scheduled(**inputs):
    """A prompt whose CFG follows a schedule."""
    prompt = sampling(model="dropout.safetensors", positive="1", negative="")
    prompt["schedule"] = {"class_type": "GuidanceSchedule", "inputs": SCHEDULE_INPUTS | inputs}
    prompt["cfg"] = {
        "class_type": "CFGScaleScheduler",
        "inputs": {"model": ["guided", 0], "schedule": ["schedule", 0]},
    }
    prompt["sampled"]["inputs"]["model"] = ["cfg", 0]
    return prompt


def curve(text):
    return {"shape": "curve", "curve": text}


@pytest.mark.parametrize(
    "inputs, parts",
    [
        (curve("{"), ["not readable JSON", "points"]),
        (curve('{"points": [[0, NaN]]}'), ["NaN is not a number"]),
        (curve('{"points": [[0.6, 4], [0.4, 1]]}'), ["0.6 to 0.4", "must rise"]),
        (curve('{"points": [[0, 4], [1.5, 1]]}'), ["percent 1.5", "0 to 1"]),
        ({"end": 1.5}, ["percent 1.5", "0 to 1"]),
        ({"start": 0.7, "end": 0.3}, ["0.7 to 0.3", "must rise"]),
        ({"axis": "sigma", "start": 1.0, "end": 5.0}, ["1 to 5", "must fall"]),
        ({"shape": "exponential", "end_scale": 0.0}, ["scale 0", "above 0"]),
        ({"shape": "expression", "expression": "percnt"}, ["percnt", "percent, step"]),
        ({"shape": "expression", "expression": "9 ** 9 ** 9 ** 9"}, ["9 ** 9", "formula"]),
        ({"shape": "keyframes", "keyframes": "a: 4"}, ["keyframes has 'a'", "number"]),
        ({"per_image": "1; 2"}, ["per_image is '1; 2'", "commas"]),
    ],
    ids=str,
)
def test_what_is_not_a_schedule(failure, inputs, parts):
    has(failure(scheduled(**inputs), "schedule"), *parts)


@pytest.mark.parametrize(
    "inputs, parts",
    [
        ({"shape": "keyframes", "keyframes": "4, 3, 2"}, ["lists 3 scales", "2 steps"]),
        ({"per_image": "1, 2, 3"}, ["lists 3 factors", "2 images"]),
        ({"shape": "expression", "expression": "1 / (steps - 2)"}, ["1 / (steps - 2)", "zero"]),
    ],
    ids=str,
)
def test_schedule_that_does_not_fit_the_run(failure, inputs, parts):
    has(failure(scheduled(**inputs), "sampled"), *parts)


def test_sigma_schedule_on_a_flow_model(failure):
    prompt = scheduled(shape="interval for SDXL")
    prompt["flow"] = {
        "class_type": "ModelSamplingSD3",
        "inputs": {"model": ["guided", 0], "shift": 3.0},
    }
    prompt["cfg"]["inputs"]["model"] = ["flow", 0]
    has(failure(prompt, "cfg"), "is for ve models", "flow model", "percent or step")


def test_plot_of_a_run_that_was_not_traced(failure):
    prompt = sampling()
    prompt["trace"] = {"class_type": "GuidanceTrace", "inputs": {"model": ["guided", 0]}}
    prompt["plot"] = {
        "class_type": "GuidancePlot",
        "inputs": {"trace": ["trace", 1], "samples": ["sampled", 0]},
    }
    has(failure(prompt, "plot"), "trace holds no evaluation", "Guidance Trace")
