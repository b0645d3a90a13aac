"""Conditioning for ADM models: the class label, and the small image of an upsampler."""

from __future__ import annotations

import torch
from comfy_api.latest import io

from ..guidance.core.labels import parse_labels
from .host.adm_model import adm_model
from .schema import Schema, label_input


class ADMClassLabel(io.ComfyNode):
    """The class that a conditional ADM model should draw."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="ADMClassLabel",
            search_aliases=["class label", "class conditioning", "ImageNet class"],
            inputs=[
                io.Model.Input("model"),
                label_input(""),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, model, label) -> io.NodeOutput:
        adm = adm_model(model)
        if adm is None:
            raise ValueError(
                "model is not an ADM model, so it takes no class labels; use Load ADM Model for it."
            )
        # core expects a text embedding with the options; an ADM model does not read it
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
            "null class: give a class and set cfg to 1. Classifier Guidance still works."
        )
    return [layout.null_class]


class ADMUpscaleConditioning(io.ComfyNode):
    """The small image that an ADM upsampler enlarges."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return Schema(
            node_id="ADMUpscaleConditioning",
            search_aliases=["ADM upsampler", "super resolution", "64 to 256", "128 to 512"],
            inputs=[
                io.Conditioning.Input("conditioning"),
                io.Image.Input("image"),
            ],
            outputs=[io.Conditioning.Output()],
        )

    @classmethod
    def execute(cls, conditioning, image) -> io.NodeOutput:
        # images are 0..1 (B, H, W, C), with alpha or without; pixel models read -1..1 (B, C, H, W)
        low_res = image[..., :3].movedim(-1, 1) * 2 - 1
        given = [[text, {**options, "adm_low_res": low_res}] for text, options in conditioning]
        return io.NodeOutput(given)
