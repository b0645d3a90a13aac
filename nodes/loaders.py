"""Nodes that read model files."""

from __future__ import annotations

from comfy_api.latest import io

from ..guidance.checkpoints.checkpoint import ATTENTION_ORDERS
from ..guidance.classifiers.image import GRADIENTS
from .host.adm_model import load_adm
from .host.classifiers import load_classifier, load_image_classifier
from .host.files import DTYPE_NAMES
from .host.paths import (
    CLASSIFIERS,
    DIFFUSION_MODELS,
    file_fingerprint,
    image_classifier_fingerprint,
    image_classifier_names,
    model_names,
)
from .sockets import CATEGORY, NoisyClassifierType

SCHEDULES = ["auto", "linear", "cosine"]
SCHEDULE_TOOLTIP = (
    "The noise schedule of the model's training. auto: read from the file. For OpenAI's files, "
    "auto is cosine for 64x64 models and linear for the others."
)
DTYPE_TOOLTIP = (
    "Precision of the weights. auto: as stored in the file. If the device cannot compute in this "
    "precision, the weights are cast when they are used."
)


def attention_inputs() -> list[io.Input]:
    """What cannot be read from a file's tensors about its attention. Optional and advanced."""
    hidden = {"optional": True, "advanced": True}
    only_for_others = " Only needed for files without a description that are not OpenAI's."
    return [
        io.Int.Input(
            "num_heads",
            default=0,
            min=0,
            max=256,
            tooltip="Number of attention heads in every block. 0: automatic." + only_for_others,
            **hidden,
        ),
        io.Int.Input(
            "num_head_channels",
            default=0,
            min=0,
            max=4096,
            tooltip="Channels per attention head. Replaces num_heads. 0: automatic."
            + only_for_others,
            **hidden,
        ),
        io.Combo.Input(
            "attention_order",
            options=list(ATTENTION_ORDERS),
            default="auto",
            tooltip="Order of q, k and v in memory. old: head by head. new: first q, then k, then "
            "v (guided-diffusion's use_new_attention_order)." + only_for_others,
            **hidden,
        ),
    ]


class NoisyClassifierLoader(io.ComfyNode):
    """A noisy classifier from models/classifiers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="NoisyClassifierLoader",
            display_name="Load Noisy Classifier",
            category=CATEGORY,
            description="Loads a classifier that was trained on noisy images, p(y given x_t, t), "
            "from models/classifiers.",
            search_aliases=["classifier guidance", "guided diffusion classifier", "ADM classifier"],
            inputs=[
                io.Combo.Input(
                    "classifier_name",
                    options=model_names(CLASSIFIERS),
                    tooltip="A .safetensors, .pt or .pth file in models/classifiers.",
                ),
                io.Combo.Input("noise_schedule", options=SCHEDULES, tooltip=SCHEDULE_TOOLTIP),
                io.Combo.Input("dtype", options=DTYPE_NAMES, tooltip=DTYPE_TOOLTIP),
                *attention_inputs(),
            ],
            outputs=[
                NoisyClassifierType.Output(
                    display_name="classifier",
                    tooltip="For Classifier Guidance and Classify Image.",
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, classifier_name, **_):
        return file_fingerprint(CLASSIFIERS, classifier_name)

    @classmethod
    def execute(cls, classifier_name, noise_schedule, dtype, **attention) -> io.NodeOutput:
        overrides = {"noise_schedule": noise_schedule, **attention}
        placed = load_classifier(classifier_name, dtype, **overrides)
        return io.NodeOutput(placed)


class ImageClassifierLoader(io.ComfyNode):
    """A classifier of clean images from models/classifiers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ImageClassifierLoader",
            display_name="Load Image Classifier",
            category=CATEGORY,
            description="Loads an ordinary classifier of clean images, p(y given x0), from "
            "models/classifiers. It reads the image that the model predicts at each step.",
            search_aliases=[
                "clean classifier",
                "universal guidance",
                "ViT",
                "ResNet",
                "Hugging Face image classification",
                "timm",
                "torchvision",
            ],
            inputs=[
                io.Combo.Input(
                    "classifier_name",
                    options=image_classifier_names(),
                    tooltip="A Hugging Face or timm folder in models/classifiers (config.json, "
                    "model.safetensors), a torchvision file (resnet50-11ad3fa6.pth), or a "
                    "classifier of clean images trained with this pack.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="The VAE of the model to steer. It decodes the predicted latent for "
                    "the classifier. Pixel models need no VAE.",
                ),
                io.Combo.Input(
                    "gradient",
                    options=list(GRADIENTS),
                    default="cheap",
                    optional=True,
                    tooltip="cheap: the gradient of the classifier (and the VAE) only. exact: also "
                    "through the diffusion model. exact needs more time and memory, and a much "
                    "smaller scale.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=DTYPE_NAMES,
                    default="auto",
                    optional=True,
                    tooltip="Precision of the weights. auto: as stored in the file. If the device "
                    "cannot compute in this precision, fp32 is used.",
                ),
            ],
            outputs=[
                NoisyClassifierType.Output(
                    display_name="classifier",
                    tooltip="For Classifier Guidance and Classify Image.",
                )
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, classifier_name, **_):
        return image_classifier_fingerprint(classifier_name)

    @classmethod
    def execute(cls, classifier_name, vae=None, gradient="cheap", dtype="auto") -> io.NodeOutput:
        return io.NodeOutput(load_image_classifier(classifier_name, gradient, dtype, vae))


class ADMModelLoader(io.ComfyNode):
    """An ADM diffusion model from models/diffusion_models, as a core MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ADMModelLoader",
            display_name="Load ADM Model",
            category=CATEGORY,
            description="Loads a pixel-space diffusion model of the ADM (guided-diffusion) family. "
            "It works with every core sampler. Decode with this node's VAE output.",
            search_aliases=["guided diffusion", "ADM", "pixel diffusion", "ablated diffusion"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=model_names(DIFFUSION_MODELS),
                    tooltip="An ADM model (.safetensors or .pt) in models/diffusion_models.",
                ),
                io.Combo.Input("noise_schedule", options=SCHEDULES, tooltip=SCHEDULE_TOOLTIP),
                io.Boolean.Input(
                    "clip_denoised",
                    default=True,
                    tooltip="Clamps the predicted image to -1..1 before classifier guidance, as "
                    "guided-diffusion does.",
                ),
                io.Combo.Input("dtype", options=DTYPE_NAMES, tooltip=DTYPE_TOOLTIP),
                *attention_inputs(),
            ],
            outputs=[
                io.Model.Output(tooltip="The model, for any sampler."),
                io.Vae.Output(tooltip="A pixel-space VAE. It does not change the images."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, model_name, **_):
        return file_fingerprint(DIFFUSION_MODELS, model_name)

    @classmethod
    def execute(
        cls, model_name, noise_schedule, clip_denoised, dtype, **attention
    ) -> io.NodeOutput:
        overrides = {"noise_schedule": noise_schedule, **attention}
        return io.NodeOutput(*load_adm(model_name, clip_denoised, dtype, **overrides))
