"""Nodes that look at finished images."""

from __future__ import annotations

import torch
from comfy_api.latest import io, ui

from ..guidance.adm import EncoderUNet
from ..guidance.classifiers.base import Classifier, class_name
from .schema import NoisyClassifierType, Schema, number


class ClassifyImage(io.ComfyNode):
    """What a classifier sees in finished images."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="ClassifyImage",
            search_aliases=["classifier", "recognize", "predict class", "image classification"],
            is_output_node=True,
            inputs=[
                NoisyClassifierType.Input("classifier"),
                io.Image.Input("image"),
                number("top_k", 3, 1, 1000),
            ],
            outputs=[io.String.Output(display_name="classes")],
        )

    @classmethod
    def execute(cls, classifier, image, top_k) -> io.NodeOutput:
        inner = classifier.classifier
        if inner.channels == 3:
            image = image[..., :3]  # without its alpha, as core's VAEEncode takes it
        if inner.channels is not None and inner.channels != image.shape[-1]:
            raise ValueError(
                f"{classifier.file_name} reads {inner.channels}-channel images, but image has "
                f"{image.shape[-1]} channels; use a classifier for such images."
            )
        # images are 0..1 (B, H, W, C); classifiers of pixel models read -1..1 (B, C, H, W)
        x = image.movedim(-1, 1) * 2 - 1
        if isinstance(inner.network, EncoderUNet):
            inner.network.check_size(x.shape[-2:])
        log_probs = classifier.on_device().image_log_probs(x.to(classifier.patcher.load_device))
        text = describe(inner, log_probs.cpu(), top_k)
        return io.NodeOutput(text, ui=ui.PreviewText(text))


def describe(classifier: Classifier, log_probs: torch.Tensor, top_k: int) -> str:
    """One line per image of log_probs (B, classes): its most likely classes in percent.

    Of a score (B, 1): the score itself.
    """
    found = log_probs if classifier.is_score else 100 * log_probs.exp()
    shown = "{} {:.2f}" if classifier.is_score else "{} {:.1f} %"
    values, classes = found.topk(min(top_k, found.shape[1]), dim=1)
    lines = []
    for image, (row, indices) in enumerate(zip(values.tolist(), classes.tolist(), strict=True)):
        named = [
            shown.format(class_name(classifier, index), value)
            for index, value in zip(indices, row, strict=True)
        ]
        lines.append((f"{image + 1}: " if len(found) > 1 else "") + ", ".join(named))
    return "\n".join(lines)
