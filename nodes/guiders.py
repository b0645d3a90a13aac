"""Classifier guidance and classifier-free guidance."""

from __future__ import annotations

from comfy_api.latest import io

from ..guidance.core.labels import parse_labels
from ..guidance.sampling.cfg_cache import CFGCacheConfig
from ..guidance.sampling.strength import Strength
from .cfg_cache_inputs import cfg_cache_inputs
from .host.samplers import cfg_guider
from .label_input import label_input
from .runtime.cfg_cache import cache_cfg
from .runtime.cfg_schedule import schedule_cfg
from .runtime.classifier_guide import guided
from .sockets import CATEGORY, GuidanceScheduleType, NoisyClassifierType


def _schedule_input(replaced: str, saves: str) -> io.Input:
    """The socket of a schedule that replaces a scale."""
    tooltip = f"A scale that changes during the run. Replaces {replaced}. {saves}"
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
                    "model", tooltip="The model to steer. It must work in the classifier's space."
                ),
                NoisyClassifierType.Input(
                    "classifier",
                    tooltip="A noisy classifier trained in this model's space, or an image "
                    "classifier that reads the predicted image.",
                ),
                label_input("0"),
                io.Float.Input(
                    "scale",
                    default=1.0,
                    min=-1000.0,
                    max=1000.0,
                    step=0.1,
                    round=0.001,
                    tooltip="Strength of the guidance. 1 follows Bayes' rule. Larger values follow "
                    "the class more and give less variety. 0 is off. Negative values steer away "
                    "from the class.",
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
                    tooltip="Increases the scale when the classifier is sure, by ln K / H(p) for K "
                    "classes and entropy H (Li et al. 2022). This is the largest allowed factor. "
                    "1: off.",
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
                    tooltip="Limits the guidance term to this fraction of the denoised image: "
                    "term * min(1, cap * norm(denoised) / norm(term)) (after Sadat et al. 2024). "
                    "0: off.",
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
                    tooltip="Fraction a of the target that is spread over all K classes: (1 - a) "
                    "for the label, plus a / K for each class (Szegedy et al. 2016). 0: off.",
                ),
                _schedule_input("scale", "Where it is 0, the gradient is not computed."),
                io.Int.Input(
                    "gradient_interval",
                    default=1,
                    min=1,
                    max=100,
                    optional=True,
                    advanced=True,
                    tooltip="Computes the classifier's gradient only every N model evaluations. "
                    "The evaluations in between reuse the last gradient, weighted for their noise "
                    "level. 2 halves the classifier's time and costs little accuracy. 1: off.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="The model with classifier guidance.")],
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
        gradient_interval=1,
    ) -> io.NodeOutput:
        strength = Strength(
            scale=scale, entropy_limit=entropy_limit, cap=cap, label_smoothing=label_smoothing
        )
        inner = classifier.classifier
        labels = parse_labels(label, inner.num_classes, inner.labels)
        steered = guided(model, classifier, labels, strength, schedule, gradient_interval)
        return io.NodeOutput(steered)


class ClassifierFreeGuidance(io.ComfyNode):
    """Standard classifier-free guidance as a guider."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="ClassifierFreeGuidance",
            display_name="Classifier-Free Guidance",
            category=CATEGORY,
            description="Standard CFG as a guider: uncond + cfg * (cond - uncond). At cfg 1 the "
            "negative is not computed.",
            search_aliases=["CFG", "CFG guider", "classifier free"],
            inputs=[
                io.Model.Input("model", tooltip="Any model."),
                io.Conditioning.Input("positive", tooltip="What you want in the image."),
                io.Conditioning.Input(
                    "negative", tooltip="Empty, or what you do not want in the image."
                ),
                io.Float.Input(
                    "cfg",
                    default=4.0,
                    min=0.0,
                    max=100.0,
                    step=0.1,
                    round=0.01,
                    tooltip="0: unconditional. 1: conditional only. Larger values follow the "
                    "positive more.",
                ),
                _schedule_input("cfg", "Where it is exactly 1, the negative is not computed."),
                *cfg_cache_inputs(),
            ],
            outputs=[io.Guider.Output(tooltip="For SamplerCustomAdvanced.")],
        )

    @classmethod
    def execute(
        cls, model, positive, negative, cfg, schedule=None, cfg_interval=1, tolerance=0.0
    ) -> io.NodeOutput:
        if schedule is not None:
            model = schedule_cfg(model, schedule)
        model = cache_cfg(model, CFGCacheConfig(cfg_interval, tolerance))
        return io.NodeOutput(cfg_guider(model, positive, negative, cfg))
