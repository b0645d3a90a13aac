"""Prompts in API form, small models for them, and a server's queue."""

from __future__ import annotations

import time

from tiny_models import SIZE, write_classifier, write_unet

AUTO = {"noise_schedule": "auto", "dtype": "auto"}
SMALL = {"channel_mult": (1,), "attention_levels": ()}


def node(kind, **inputs):
    """A node of a prompt."""
    return {"class_type": kind, "inputs": inputs}


def diffusion_model(name):
    """Load ADM Model."""
    return node("ADMModelLoader", model_name=name, clip_denoised=True, **AUTO)


def classifier(name):
    """Load Noisy Classifier."""
    return node("NoisyClassifierLoader", classifier_name=name, **AUTO)


def class_label(label, model="model"):
    """ADM Class Label for the model of that node."""
    return node("ADMClassLabel", model=[model, 0], label=label)


def guidance(label, scale, model="model", **options):
    """Classifier Guidance of that node's model by the node "classifier"."""
    links = {"model": [model, 0], "classifier": ["classifier", 0]}
    return node("ClassifierGuidance", **links, label=label, scale=scale, **options)


def ksampler(model, *, seed=0, steps=2, cfg=1.0):
    """KSampler for that node's model, with the nodes "positive", "negative" and "latent"."""
    return node(
        "KSampler",
        model=[model, 0],
        positive=["positive", 0],
        negative=["negative", 0],
        latent_image=["latent", 0],
        sampler_name="euler",
        scheduler="normal",
        denoise=1.0,
        seed=seed,
        steps=steps,
        cfg=cfg,
    )


def custom_sampler(guider, respacing, seed):
    """ADM Sampler with that node's guider, as the node "sampled", and the nodes that it needs."""
    links = {"noise": "noise", "sigmas": "steps", "sampler": "method", "latent_image": "latent"}
    links = {name: [source, 0] for name, source in (links | {"guider": guider}).items()}
    return {
        "steps": node("ADMScheduler", model=["model", 0], respacing=respacing, denoise=1.0),
        "method": node("SamplerADM", method="ddpm", eta=0.0),
        "noise": node("RandomNoise", noise_seed=seed),
        "sampled": node("SamplerCustomAdvanced", **links),
    }


def guided_run(
    *,
    model="plain.safetensors",
    classifier_name="one.safetensors",
    label="2",
    scale=1.0,
    positive="",
    negative="",
    width=SIZE,
    batch=1,
    **sampling,
):
    """A whole prompt: loaders, classifier guidance, KSampler, and the decoded images."""
    return {
        "model": diffusion_model(model),
        "classifier": classifier(classifier_name),
        "guided": guidance(label, scale),
        "positive": class_label(positive),
        "negative": class_label(negative),
        "latent": node("EmptyLatentImage", width=width, height=SIZE, batch_size=batch),
        "sampled": ksampler("guided", **sampling),
        "decoded": node("VAEDecode", samples=["sampled", 0], vae=["model", 1]),
        "shown": node("PreviewImage", images=["decoded", 0]),
    }


def write_models(base):
    """The files that `guided_run` names, and a model of classes, in a server's base directory."""
    for folder in ("diffusion_models", "classifiers"):
        (base / "models" / folder).mkdir(parents=True, exist_ok=True)
    models = base / "models"
    write_unet(models / "diffusion_models" / "plain.safetensors", classes=None, **SMALL)
    write_unet(models / "diffusion_models" / "labels.safetensors", **SMALL)
    write_classifier(models / "classifiers" / "one.safetensors", pool="adaptive", **SMALL)
    return models


class Ended:
    """What the server's history says about a prompt."""

    def __init__(self, entry):
        self.status, self.outputs = entry["status"]["status_str"], entry["outputs"]
        self.events = dict(entry["status"]["messages"])  # by event, its data

    @property
    def error(self):
        """The node that raised, and the text of its error."""
        about = self.events["execution_error"]
        return about["node_id"], about["exception_message"].strip()

    @property
    def interrupted_in(self):
        """The node in which the run was interrupted."""
        return self.events["execution_interrupted"]["node_id"]

    @property
    def cached(self):
        """The nodes that did not run, because their results were still valid."""
        return set(self.events["execution_cached"]["nodes"])

    @property
    def digest(self):
        """The hash of what a successful prompt drew, from a TestsDigest node."""
        assert self.status == "success", self.events
        return self.outputs["digest"]["text"][0]


class Queue:
    """The queue of a server."""

    def __init__(self, server):
        self.server = server

    def add(self, prompt):
        """The id of a prompt that the server accepts."""
        status, answer = self.server.request("/prompt", {"prompt": prompt})
        assert status == 200 and not answer["node_errors"], answer
        return answer["prompt_id"]

    def refusals(self, prompt):
        """By node, the reasons why the server refuses a prompt."""
        status, answer = self.server.request("/prompt", {"prompt": prompt})
        assert status == 400, answer
        return {name: about["errors"] for name, about in answer["node_errors"].items()}

    def end(self, prompt_id, seconds=120):
        """Waits until a prompt has ended."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            _, history = self.server.request(f"/history/{prompt_id}")
            if prompt_id in history:
                return Ended(history[prompt_id])
            time.sleep(0.02)
        raise AssertionError(f"no end within {seconds} s:\n{self.server.log[-3000:]}")

    def run(self, prompt):
        """Queues a prompt and waits until it has ended."""
        return self.end(self.add(prompt))
