"""Nodes that read model files."""

from __future__ import annotations

from comfy_api.latest import io

from ..guidance.checkpoints.checkpoint import ATTENTION_ORDERS
from ..guidance.classifiers.image import GRADIENTS
from .host import comfy_adapter as adapter
from .sockets import CATEGORY, NoisyClassifierType

SCHEDULES = ["auto", "linear", "cosine"]
SCHEDULE_TOOLTIP = (
    "The noise the model was trained with. auto: what the file says; for OpenAI's files, "
    "cosine for 64x64 models and linear for the others."
)
DTYPE_TOOLTIP = (
    "Precision of the weights. auto: as they are stored. Where the device cannot compute in it, "
    "they are cast when they are used."
)


def attention_inputs() -> list[io.Input]:
    """What a file's tensors cannot tell about its attention; appended, advanced."""
    hidden = {"optional": True, "advanced": True}
    only_for_others = " The tensors cannot tell; needed only for files that are none of OpenAI's."
    return [
        io.Int.Input(
            "num_heads",
            default=0,
            min=0,
            max=256,
            tooltip="Attention heads in every block. 0: what the file or the rule says."
            + only_for_others,
            **hidden,
        ),
        io.Int.Input(
            "num_head_channels",
            default=0,
            min=0,
            max=4096,
            tooltip="Instead of num_heads: channels in each head. 0: as for num_heads."
            + only_for_others,
            **hidden,
        ),
        io.Combo.Input(
            "attention_order",
            options=list(ATTENTION_ORDERS),
            default="auto",
            tooltip="How q, k and v lie in memory: old is head by head, new (the original's "
            "use_new_attention_order) is q, k, v first." + only_for_others,
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
                    options=adapter.model_names(adapter.CLASSIFIERS),
                    tooltip="A .safetensors, .pt or .pth file in models/classifiers.",
                ),
                io.Combo.Input("noise_schedule", options=SCHEDULES, tooltip=SCHEDULE_TOOLTIP),
                io.Combo.Input("dtype", options=adapter.DTYPE_NAMES, tooltip=DTYPE_TOOLTIP),
                *attention_inputs(),
                io.Boolean.Input(
                    "compile",
                    default=False,
                    optional=True,
                    advanced=True,
                    tooltip="torch.compile for the gradient: the first step of a run may take "
                    "minutes, the others may be quicker. Where it cannot compile, the log says so "
                    "and it runs as usual.",
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
        return adapter.file_fingerprint(adapter.CLASSIFIERS, classifier_name)

    @classmethod
    def execute(
        cls, classifier_name, noise_schedule, dtype, compile=False, **attention
    ) -> io.NodeOutput:
        overrides = {"noise_schedule": noise_schedule, **attention}
        placed = adapter.load_classifier(classifier_name, dtype, compile, **overrides)
        return io.NodeOutput(placed)


class ImageClassifierLoader(io.ComfyNode):
    """A classifier of ordinary images from models/classifiers."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ImageClassifierLoader",
            display_name="Load Image Classifier",
            category=CATEGORY,
            description="Loads an ordinary classifier of clean images, p(y given x0), from "
            "models/classifiers. It guides through the image that the model predicts at each step.",
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
                    options=adapter.image_classifier_names(),
                    tooltip="In models/classifiers: the folder of a Hugging Face or timm image "
                    "classifier (config.json, model.safetensors), a torchvision file "
                    "(resnet50-11ad3fa6.pth), or this pack's own classifier of clean images.",
                ),
                io.Vae.Input(
                    "vae",
                    optional=True,
                    tooltip="The VAE of the latent model that is to be steered: the classifier "
                    "reads what it decodes. Pixel models need none.",
                ),
                io.Combo.Input(
                    "gradient",
                    options=list(GRADIENTS),
                    default="cheap",
                    optional=True,
                    tooltip="cheap: only through the classifier (and the VAE). exact: also through "
                    "the diffusion model, which takes more time and memory, and follows the class "
                    "at a much smaller scale.",
                ),
                io.Combo.Input(
                    "dtype",
                    options=adapter.DTYPE_NAMES,
                    default="auto",
                    optional=True,
                    tooltip="Precision of the weights. auto: as they are stored. Where the device "
                    "cannot compute in it, fp32.",
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
        return adapter.image_classifier_fingerprint(classifier_name)

    @classmethod
    def execute(cls, classifier_name, vae=None, gradient="cheap", dtype="auto") -> io.NodeOutput:
        return io.NodeOutput(adapter.load_image_classifier(classifier_name, gradient, dtype, vae))


class ADMModelLoader(io.ComfyNode):
    """An ADM diffusion model from models/diffusion_models, as a core MODEL."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ADMModelLoader",
            display_name="Load ADM Model",
            category=CATEGORY,
            description="Loads a pixel-space diffusion model of the ADM (guided-diffusion) family. "
            "Works with every core sampler; decode with the VAE that comes with it.",
            search_aliases=["guided diffusion", "ADM", "pixel diffusion", "ablated diffusion"],
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=adapter.model_names(adapter.DIFFUSION_MODELS),
                    tooltip="An ADM model (.safetensors or .pt) in models/diffusion_models.",
                ),
                io.Combo.Input("noise_schedule", options=SCHEDULES, tooltip=SCHEDULE_TOOLTIP),
                io.Boolean.Input(
                    "clip_denoised",
                    default=True,
                    tooltip="Keep the predicted image within -1..1 before classifier guidance, "
                    "as the original does.",
                ),
                io.Combo.Input("dtype", options=adapter.DTYPE_NAMES, tooltip=DTYPE_TOOLTIP),
                *attention_inputs(),
            ],
            outputs=[
                io.Model.Output(tooltip="An ordinary MODEL."),
                io.Vae.Output(tooltip="Of pixel space: images stay what they are."),
            ],
        )

    @classmethod
    def fingerprint_inputs(cls, model_name, **_):
        return adapter.file_fingerprint(adapter.DIFFUSION_MODELS, model_name)

    @classmethod
    def execute(
        cls, model_name, noise_schedule, clip_denoised, dtype, **attention
    ) -> io.NodeOutput:
        overrides = {"noise_schedule": noise_schedule, **attention}
        return io.NodeOutput(*adapter.load_adm(model_name, clip_denoised, dtype, **overrides))
