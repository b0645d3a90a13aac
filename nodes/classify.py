"""Nodes that look at finished images."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from comfy_api.latest import io, ui

from ..guidance.adm import EncoderUNet
from ..guidance.classifiers.base import Classifier, class_name
from .schema import NoisyClassifierType, Schema, number

# what the node shows; its output has everything
MOST_IMAGES, MOST_CLASSES = 64, 10
THUMBNAIL = 112  # its longer side in pixels, twice as many as on the page


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
        found = most_likely(inner, log_probs.cpu(), top_k)
        text = describe(found, inner.is_score)
        shown = {
            "classified": [
                {"classes": classes[:MOST_CLASSES], "thumbnail": file}
                for classes, file in zip(found, thumbnails(image[:MOST_IMAGES]), strict=False)
            ],
            "count": [len(found)],
            "is_score": [inner.is_score],
        }
        return io.NodeOutput(text, ui=ui.PreviewText(text).as_dict() | shown)


def most_likely(
    classifier: Classifier, log_probs: torch.Tensor, top_k: int
) -> list[list[tuple[str, float]]]:
    """Of each image of log_probs (B, classes) its most likely classes, with their percent.

    Of a score (B, 1): the score itself.
    """
    found = log_probs if classifier.is_score else 100 * log_probs.exp()
    values, classes = found.topk(min(top_k, found.shape[1]), dim=1)
    return [
        [(class_name(classifier, index), value) for index, value in zip(*row, strict=True)]
        for row in zip(classes.tolist(), values.tolist(), strict=True)
    ]


def describe(found: list[list[tuple[str, float]]], is_score: bool) -> str:
    """One line per image: "1: seven 91.2 %, one 4.0 %"."""
    shown = "{} {:.2f}" if is_score else "{} {:.1f} %"
    lines = []
    for image, classes in enumerate(found, 1):
        named = ", ".join(shown.format(*one) for one in classes)
        lines.append(f"{image}: {named}" if len(found) > 1 else named)
    return "\n".join(lines)


def thumbnails(images: torch.Tensor) -> list[dict | None]:
    """Small files of the images (B, H, W, C) for the page; None where they have no colours."""
    if images.shape[-1] not in (3, 4):
        return [None] * len(images)
    small = images[..., :3].movedim(-1, 1).float()
    share = THUMBNAIL / max(small.shape[-2:])
    if share < 1:
        size = [max(1, round(side * share)) for side in small.shape[-2:]]
        small = F.interpolate(small, size, mode="area")
    # without cls: the workflow need not be in these files
    return ui.PreviewImage(small.movedim(1, -1)).as_dict()["images"]
