"""Nodes that steer a model: class labels, classifier guidance, classifier-free guidance."""

from __future__ import annotations

import comfy.patcher_extension
import comfy.samplers
import torch
from comfy_api.latest import io

from ..guidance.core.labels import parse_labels
from ..guidance.sampling.cfg_cache import CFGCacheConfig
from ..guidance.sampling.strength import Strength
from .host import comfy_adapter as adapter
from .runtime.cfg_cache import cache_cfg, cfg_cache_inputs
from .runtime.cfg_schedule import check_schedule, schedule_cfg
from .runtime.classifier_guide import KEY, ClassifierGuide, check_fit
from .sockets import CATEGORY, GuidanceScheduleType, NoisyClassifierType

LABEL_TOOLTIP = (
    "A class: its index (207) or its name (golden retriever; the beginning is enough when only "
    "one class begins so). Several with commas: one for each image of the batch."
)


class ADMClassLabel(io.ComfyNode):
    """The class that a conditional ADM model is asked for."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ADMClassLabel",
            display_name="ADM Class Label",
            category=CATEGORY,
            description="Conditioning for an ADM model. Empty: no class, for unconditional models "
            "and for models trained with label dropout (the negative of CFG).",
            search_aliases=["class label", "class conditioning", "ImageNet class"],
            inputs=[
                io.Model.Input("model", tooltip="The ADM model whose classes are meant."),
                io.String.Input(
                    "label",
                    default="",
                    tooltip=LABEL_TOOLTIP + " Empty: no class.",
                    extra_dict={"widgetType": "GUIDANCE_LABEL"},
                ),
            ],
            outputs=[io.Conditioning.Output(tooltip="The class.")],
        )

    @classmethod
    def execute(cls, model, label) -> io.NodeOutput:
        adm = adapter.adm_model(model)
        if adm is None:
            raise ValueError(
                "model is not an ADM model, so it takes no class labels; use Load ADM Model for it."
            )
        # core expects a text embedding beside the options; an ADM model never reads it
        return io.NodeOutput([[torch.zeros(1, 1, 1), {"adm_labels": _labels(adm, label)}]])


def _labels(adm, label: str) -> list[int] | None:
    layout, text = adm.layout, label.strip()
    if layout.num_classes is None:
        if text:
            raise ValueError(
                f"label is {text!r}, but {adm.file_name} is unconditional; "
                "leave the label empty and choose the class on Classifier Guidance."
            )
        return None
    if text:
        return parse_labels(text, layout.class_count, adm.labels)
    if layout.null_class is None:
        raise ValueError(
            f"label is empty, but {adm.file_name} was trained without label dropout and has no "
            "null class: give a class and set cfg to 1. Classifier Guidance still applies."
        )
    return [layout.null_class]


class ADMUpscaleConditioning(io.ComfyNode):
    """The small image that an ADM upsampler enlarges."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ADMUpscaleConditioning",
            display_name="ADM Upscale Conditioning",
            category=CATEGORY,
            description="Adds the small image to the conditioning of an ADM upsampler (64 to 256, "
            "128 to 512). The latent to draw is four times the image's width and height.",
            search_aliases=["ADM upsampler", "super resolution", "64 to 256", "128 to 512"],
            inputs=[
                io.Conditioning.Input(
                    "conditioning", tooltip="The upsampler's own ADM Class Label."
                ),
                io.Image.Input("image", tooltip="One for the whole batch, or one for each image."),
            ],
            outputs=[io.Conditioning.Output(tooltip="The same with the small image.")],
        )

    @classmethod
    def execute(cls, conditioning, image) -> io.NodeOutput:
        # images are 0..1 (B, H, W, C), with alpha or without; pixel models read -1..1 (B, C, H, W)
        low_res = image[..., :3].movedim(-1, 1) * 2 - 1
        given = [[text, {**options, "adm_low_res": low_res}] for text, options in conditioning]
        return io.NodeOutput(given)


def _schedule_input(instead_of: str, saves: str) -> io.Input:
    """The socket of a schedule that takes the place of a scale."""
    tooltip = f"The scale over the run, instead of {instead_of}. {saves}"
    return GuidanceScheduleType.Input("schedule", optional=True, tooltip=tooltip)


class ClassifierGuidance(io.ComfyNode):
    """Follows the gradient of a noisy classifier at every step."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ClassifierGuidance",
            display_name="Classifier Guidance",
            category=CATEGORY,
            description="Steers a model towards a class with the gradient of a noisy classifier: "
            "denoised + scale * sigma^2 / alpha * grad log p(label given x).",
            search_aliases=["classifier guidance", "guided diffusion", "noisy classifier", "steer"],
            inputs=[
                io.Model.Input(
                    "model", tooltip="Any model that samples what the classifier reads."
                ),
                NoisyClassifierType.Input(
                    "classifier",
                    tooltip="Trained on noisy images of this model's space, or an image classifier "
                    "that reads the predicted image.",
                ),
                io.String.Input(
                    "label",
                    default="0",
                    tooltip=LABEL_TOOLTIP,
                    extra_dict={"widgetType": "GUIDANCE_LABEL"},
                ),
                io.Float.Input(
                    "scale",
                    default=1.0,
                    min=-1000.0,
                    max=1000.0,
                    step=0.1,
                    round=0.001,
                    tooltip="1 follows Bayes' rule; larger follows the class more, with less "
                    "variety; 0 switches it off; negative steers away.",
                ),
                io.Float.Input(
                    "entropy_limit",
                    default=1.0,
                    min=1.0,
                    max=1000.0,
                    step=0.5,
                    round=0.01,
                    optional=True,
                    advanced=True,
                    tooltip="Above 1: the surer the classifier, the larger the scale, by ln K / "
                    "H(p) for K classes and entropy H, at most by this factor (Li et al. 2022). "
                    "1 is off.",
                ),
                io.Float.Input(
                    "cap",
                    default=0.0,
                    min=0.0,
                    max=100.0,
                    step=0.05,
                    round=0.001,
                    optional=True,
                    advanced=True,
                    tooltip="Above 0: guidance moves the denoised image by at most this share of "
                    "its own length: term * min(1, cap norm(denoised) / norm(term)) (after "
                    "Sadat et al. 2024). 0 is off.",
                ),
                io.Float.Input(
                    "label_smoothing",
                    default=0.0,
                    min=0.0,
                    max=0.99,
                    step=0.01,
                    round=0.001,
                    optional=True,
                    advanced=True,
                    tooltip="The share a of the target that goes to all K classes alike: "
                    "(1 - a) for the label + a / K for each (Szegedy et al. 2016). 0 is off.",
                ),
                _schedule_input("scale", "Where it is 0, no gradient is computed."),
                io.Int.Input(
                    "every",
                    default=1,
                    min=1,
                    max=100,
                    optional=True,
                    advanced=True,
                    tooltip="Above 1: the classifier is asked at each so-many-th evaluation, and "
                    "its gradient is used again between, weighed for the noise level. 2 costs "
                    "little accuracy and half of the time.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The MODEL, steered.")],
        )

    @classmethod
    def execute(
        cls,
        model,
        classifier,
        label,
        scale,
        entropy_limit=1.0,
        cap=0.0,
        label_smoothing=0.0,
        schedule=None,
        every=1,
    ) -> io.NodeOutput:
        check_fit(classifier, model)
        if schedule is not None:
            check_schedule(schedule, model)
        strength = Strength(
            scale=scale, entropy_limit=entropy_limit, cap=cap, label_smoothing=label_smoothing
        )
        inner = classifier.classifier
        labels = parse_labels(label, inner.num_classes, inner.labels)
        if scale == 0 and schedule is None:
            return io.NodeOutput(model)
        steered = model.clone()
        # a number of its own for each node in a row, so that they add up
        key = f"{KEY}_{sum(name.startswith(KEY) for name in steered.additional_models)}"
        adapter.attach(steered, key, classifier.patchers(model))
        adapter.reserve_gradient_memory(steered)
        adapter.watch_gradients(steered)
        steered.add_wrapper_with_key(
            comfy.patcher_extension.WrappersMP.PREDICT_NOISE,
            key,
            ClassifierGuide(classifier, labels, strength, key, schedule, every),
        )
        return io.NodeOutput(steered)


class ClassifierFreeGuidance(io.ComfyNode):
    """Standard classifier-free guidance as a guider."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ClassifierFreeGuidance",
            display_name="Classifier-Free Guidance",
            category=CATEGORY,
            description="uncond + cfg * (cond - uncond). At cfg 1 the negative is not computed.",
            search_aliases=["CFG", "CFG guider", "classifier free"],
            inputs=[
                io.Model.Input("model", tooltip="Any model."),
                io.Conditioning.Input("positive", tooltip="What is wanted."),
                io.Conditioning.Input(
                    "negative", tooltip="What it is compared with: nothing, or what is not wanted."
                ),
                io.Float.Input(
                    "cfg",
                    default=4.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="0 is unconditional, 1 conditional only, larger follows more.",
                ),
                _schedule_input("cfg", "Where it is exactly 1, the negative is not computed."),
                *cfg_cache_inputs(),
            ],
            outputs=[io.Guider.Output(tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(
        cls, model, positive, negative, cfg, schedule=None, every=1, tolerance=0.0
    ) -> io.NodeOutput:
        if schedule is not None:
            model = schedule_cfg(model, schedule)
        model = cache_cfg(model, CFGCacheConfig(every, tolerance))
        guider = comfy.samplers.CFGGuider(model)
        guider.set_conds(positive, negative)
        guider.set_cfg(cfg)
        return io.NodeOutput(guider)
