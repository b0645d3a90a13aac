"""Nodes that read model files."""

from __future__ import annotations

from comfy_api.latest import io

from ..guidance.checkpoints.checkpoint import ATTENTION_ORDERS
from ..guidance.checkpoints.zero_shot import PLACE
from ..guidance.classifiers.image import GRADIENTS
from ..guidance.classifiers.looks import MOST_LOOKS, Looks
from .host.adm_model import load_adm, pixel_vae
from .host.classifiers import (
    load_classifier,
    load_image_classifier,
    load_zero_shot_classifier,
)
from .host.files import DTYPE_NAMES
from .host.paths import (
    CLASSIFIERS,
    DIFFUSION_MODELS,
    fingerprint,
    image_classifier_names,
    image_classifier_path,
    model_names,
    model_path,
    zero_shot_names,
)
from .schema import ADVANCED, NoisyClassifierType, Schema, number

EXAMPLE_CLASSES = "a photo of a cat\na photo of a dog"
SCHEDULES = ["auto", "linear", "cosine"]


def attention_inputs() -> list[io.Input]:
    """What cannot be read from a file's tensors about its attention. Optional and advanced."""
    return [
        number("num_heads", 0, 0, 256, **ADVANCED),
        number("num_head_channels", 0, 0, 4096, **ADVANCED),
        io.Combo.Input(
            "attention_order", options=list(ATTENTION_ORDERS), default="auto", **ADVANCED
        ),
    ]


def clean_inputs() -> list[io.Input]:
    """How a classifier of clean images guides. Optional."""
    return [
        io.Vae.Input("vae", optional=True),
        io.Combo.Input("gradient", options=list(GRADIENTS), default="cheap", optional=True),
        io.Combo.Input("dtype", options=DTYPE_NAMES, default="auto", optional=True),
        number("looks", 4, 0, MOST_LOOKS, optional=True),
        io.Boolean.Input("flip", default=False, **ADVANCED),
    ]


class NoisyClassifierLoader(io.ComfyNode):
    """A noisy classifier from models/classifiers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="NoisyClassifierLoader",
            search_aliases=[
                "classifier guidance",
                "guided diffusion classifier",
                "ADM classifier",
                "ImageNet classifier",
            ],
            inputs=[
                io.Combo.Input("classifier_name", options=model_names(CLASSIFIERS)),
                io.Combo.Input("noise_schedule", options=SCHEDULES),
                io.Combo.Input("dtype", options=DTYPE_NAMES),
                *attention_inputs(),
            ],
            outputs=[NoisyClassifierType.Output(display_name="classifier")],
        )

    @classmethod
    def fingerprint_inputs(cls, classifier_name, **_):
        return fingerprint(model_path, CLASSIFIERS, classifier_name)

    @classmethod
    def execute(cls, classifier_name, dtype, **overrides) -> io.NodeOutput:
        return io.NodeOutput(load_classifier(classifier_name, dtype, **overrides))


class ImageClassifierLoader(io.ComfyNode):
    """A classifier of clean images from models/classifiers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="ImageClassifierLoader",
            search_aliases=[
                "clean classifier",
                "universal guidance",
                "aesthetic score",
                "ImageNet classifier",
                "ViT",
                "ResNet",
                "Hugging Face image classification",
                "timm",
                "torchvision",
            ],
            inputs=[
                io.Combo.Input("classifier_name", options=image_classifier_names()),
                *clean_inputs(),
            ],
            outputs=[NoisyClassifierType.Output(display_name="classifier")],
        )

    @classmethod
    def fingerprint_inputs(cls, classifier_name, **_):
        return fingerprint(image_classifier_path, classifier_name)

    @classmethod
    def execute(
        cls, classifier_name, vae=None, gradient="cheap", dtype="auto", looks=0, flip=False
    ) -> io.NodeOutput:
        taken = Looks(count=looks, flip=flip)
        return io.NodeOutput(load_image_classifier(classifier_name, gradient, dtype, vae, taken))


class ZeroShotClassifier(io.ComfyNode):
    """A CLIP or SigLIP model from models/classifiers, with lines of text as its classes."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="ZeroShotClassifier",
            search_aliases=[
                "CLIP guidance",
                "zero shot",
                "SigLIP",
                "words as classes",
                "text classifier",
                "prompt guidance",
                "universal guidance",
            ],
            inputs=[
                io.Combo.Input("classifier_name", options=zero_shot_names()),
                io.String.Input("classes", default=EXAMPLE_CLASSES, multiline=True),
                io.String.Input("template", default=PLACE),
                *clean_inputs(),
            ],
            outputs=[NoisyClassifierType.Output(display_name="classifier")],
        )

    @classmethod
    def fingerprint_inputs(cls, classifier_name, **_):
        return fingerprint(image_classifier_path, classifier_name)

    @classmethod
    def execute(
        cls,
        classifier_name,
        classes,
        template,
        vae=None,
        gradient="cheap",
        dtype="auto",
        looks=4,
        flip=False,
    ) -> io.NodeOutput:
        words = (classes.strip().splitlines(), template)
        about = (gradient, dtype, vae, Looks(count=looks, flip=flip))
        return io.NodeOutput(load_zero_shot_classifier(classifier_name, *words, *about))


class ADMModelLoader(io.ComfyNode):
    """An ADM diffusion model from models/diffusion_models, as a core MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="ADMModelLoader",
            search_aliases=["guided diffusion", "ADM", "pixel diffusion", "ImageNet model"],
            inputs=[
                io.Combo.Input("model_name", options=model_names(DIFFUSION_MODELS)),
                io.Combo.Input("noise_schedule", options=SCHEDULES),
                io.Boolean.Input("clip_denoised", default=True),
                io.Combo.Input("dtype", options=DTYPE_NAMES),
                *attention_inputs(),
            ],
            outputs=[
                io.Model.Output(),
                io.Vae.Output(),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, model_name, **_):
        return fingerprint(model_path, DIFFUSION_MODELS, model_name)

    @classmethod
    def execute(cls, model_name, clip_denoised, dtype, **overrides) -> io.NodeOutput:
        return io.NodeOutput(load_adm(model_name, clip_denoised, dtype, overrides), pixel_vae())
