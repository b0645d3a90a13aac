"""Classifier guidance and classifier-free guidance."""

from __future__ import annotations

from comfy_api.latest import io

from ..guidance.core.labels import parse_labels
from ..guidance.sampling.cfg_cache import CFGCacheConfig
from ..guidance.sampling.strength import Strength
from .host.samplers import cfg_guider
from .runtime.cfg_cache import cache_cfg
from .runtime.cfg_schedule import schedule_cfg
from .runtime.classifier_guide import guided
from .schema import (
    ADVANCED,
    GuidanceScheduleType,
    NoisyClassifierType,
    Schema,
    cfg_cache_inputs,
    label_input,
    number,
)

NORMALIZE = ["auto", "on", "off"]


class ClassifierGuidance(io.ComfyNode):
    """Follows the gradient of a noisy classifier at every step."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="ClassifierGuidance",
            search_aliases=["classifier guidance", "guided diffusion", "noisy classifier", "steer"],
            inputs=[
                io.Model.Input("model"),
                NoisyClassifierType.Input("classifier"),
                label_input("0"),
                number("scale", 1.0, -1000.0, 1000.0, step=0.1, round=0.001),
                number("entropy_limit", 1.0, 1.0, 1000.0, step=0.5, round=0.01, **ADVANCED),
                number("cap", 0.0, 0.0, 100.0, step=0.05, round=0.001, **ADVANCED),
                number("label_smoothing", 0.0, 0.0, 0.99, step=0.01, round=0.001, **ADVANCED),
                GuidanceScheduleType.Input("schedule", optional=True),
                number("gradient_interval", 1, 1, 100, **ADVANCED),
                io.Combo.Input("normalize", options=NORMALIZE, default="auto", **ADVANCED),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[io.Model.Output()],
        )

    @classmethod
    def execute(
        cls,
        model,
        classifier,
        label,
        schedule=None,
        gradient_interval=1,
        normalize="off",
        **options,
    ) -> io.NodeOutput:
        inner = classifier.classifier
        labels = parse_labels(label, inner.num_classes, inner.labels)
        # the gradient of a noisy classifier already has the right size
        is_normalized = inner.reads_images if normalize == "auto" else normalize == "on"
        strength = Strength(normalize=is_normalized, **options)
        node = getattr(cls.hidden, "unique_id", None)
        return io.NodeOutput(
            guided(model, classifier, labels, strength, schedule, gradient_interval, node)
        )


class ClassifierFreeGuidance(io.ComfyNode):
    """Standard classifier-free guidance as a guider."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="ClassifierFreeGuidance",
            search_aliases=["CFG", "CFG guider", "classifier free"],
            inputs=[
                io.Model.Input("model"),
                io.Conditioning.Input("positive"),
                io.Conditioning.Input("negative"),
                number("cfg", 4.0, 0.0, 100.0, step=0.1, round=0.01),
                GuidanceScheduleType.Input("schedule", optional=True),
                *cfg_cache_inputs(),
            ],
            hidden=[io.Hidden.unique_id],
            outputs=[io.Guider.Output()],
        )

    @classmethod
    def execute(
        cls, model, positive, negative, cfg, schedule=None, cfg_interval=1, tolerance=0.0
    ) -> io.NodeOutput:
        if schedule is not None:
            model = schedule_cfg(model, schedule)
        node = getattr(cls.hidden, "unique_id", None)
        model = cache_cfg(model, CFGCacheConfig(cfg_interval, tolerance), node)
        return io.NodeOutput(cfg_guider(model, positive, negative, cfg))
