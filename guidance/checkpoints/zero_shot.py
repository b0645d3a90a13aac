"""Words as classes: a CLIP, SigLIP or SigLIP 2 folder and one line of text for each class.

p(line | image) compares the embeddings of the image and the lines (Radford et al. 2021, "Learning
Transferable Visual Models From Natural Language Supervision", section 3.1; Zhai et al. 2023,
"Sigmoid Loss for Language Image Pre-Training"). The lines are encoded once, and the text tower is
dropped.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..classifiers.image import ImageClassifier
from ..classifiers.looks import NO_LOOKS, Looks
from ..classifiers.preprocessing import Preprocessing
from ..core.autograd import at_least_fp32
from ..core.bounded_read import quoted
from .checkpoint import CheckpointError, check_finite
from .folder import (
    PREPROCESSOR,
    TEXT_AND_IMAGE,
    ModelFolder,
    pretrained,
    read_folder,
    refuse_channels,
    refused_as,
)
from .image_classifiers import loaded
from .image_processor import processing
from .tokenizer import tokenized

MOST_LINES = 256
PLACE = "{}"  # of a line in the template
LINES_AT_ONCE = 64  # that the text tower encodes


def load_zero_shot_classifier(
    path: str | Path,
    classes: Sequence[str],
    *,
    template: str = PLACE,
    gradient: str = "cheap",
    looks: Looks = NO_LOOKS,
    dtype: str = "fp32",
    device: torch.device | str = "cpu",
) -> ImageClassifier:
    """A classifier whose classes are lines of text; arguments as for `open_zero_shot_classifier`.

    dtype is "fp32", "bf16", "fp16", or "auto": as stored, and fp32 on a CPU.
    """
    opened = open_zero_shot_classifier(path, classes, template, gradient, looks)
    return loaded(opened, dtype, device)


def open_zero_shot_classifier(
    path: str | Path,
    classes: Sequence[str],
    template: str = PLACE,
    gradient: str = "cheap",
    looks: Looks = NO_LOOKS,
) -> ImageClassifier:
    """The folder as a classifier of these classes; frozen, weights as stored.

    classes: 1 to 256 lines of text, which are also its labels. template: the text of a class, with
    {} in the place of its line. gradient, looks: see `ImageClassifier`. With s the model's
    temperature, b its bias (SigLIP's) and cos_k the cosine of image and line k:

    - several lines: p = softmax(s cos + b).
    - one line, SigLIP: p = sigmoid(s cos + b).
    - one line, CLIP: s cos as a score. Its softmax over one line would be constant.

    Raises ValueError for lines or a template that cannot be used, CheckpointError for the folder.
    """
    texts = class_texts(classes, template)
    path = Path(path)
    if not path.exists():
        raise CheckpointError(
            f"{path} does not exist; choose the folder of a CLIP or SigLIP model."
        )
    if not path.is_dir():
        raise CheckpointError(
            f"{path.name} is no folder, and words need the folder of a CLIP or SigLIP model with "
            "its config.json, weights and tokenizer; leave the words out for a file."
        )
    # ordinary tensors, also when called in inference mode: gradients flow through them
    with torch.inference_mode(False):
        about = read_folder(path)
        _check_kind(about)
        network = _network(about, texts)
        preprocessing = _preprocessing(about, network.image_size)
        check_finite(path.name, network.state_dict())
        network.eval().requires_grad_(False)
    alone = "score" if network.projection is not None else "sigmoid"  # of CLIP, of SigLIP
    return ImageClassifier(
        network,
        preprocessing,
        len(texts),
        [line.strip() for line in classes],
        gradient=gradient,
        looks=looks,
        activation=alone if len(texts) == 1 else "softmax",
    )


def class_texts(classes: Sequence[str], template: str = PLACE) -> list[str]:
    """The text of each class, its line in the template; raises ValueError with one sentence."""
    lines = [line.strip() for line in classes]
    if not any(lines):
        raise ValueError("classes is empty; write one line of text for each class.")
    if not all(lines):
        raise ValueError(
            f"Line {lines.index('') + 1} of classes is empty; remove it, or write its text."
        )
    if len(lines) > MOST_LINES:
        raise ValueError(f"classes has {len(lines)} lines; at most {MOST_LINES} are possible.")
    line, count = Counter(map(str.casefold, lines)).most_common(1)[0]
    if count > 1:
        raise ValueError(f"classes has the line {quoted(line)} {count} times; keep one of them.")
    if PLACE not in template:
        raise ValueError(
            f"template is {quoted(template)}, without {PLACE} for the line of a class; write for "
            f'example "a photo of {PLACE}", or only {PLACE}.'
        )
    return [template.replace(PLACE, line) for line in lines]


def _check_kind(about: ModelFolder) -> None:
    name, architectures = about.path.name, about.architectures
    if "Siglip2Model" in architectures:
        raise CheckpointError(
            f"{name} is a NaFlex model of SigLIP 2, whose images have no fixed size; use one with "
            "a fixed size, such as siglip2-base-patch16-224."
        )
    if any("ForImageClassification" in one for one in architectures) or (
        "architecture" in about.config and not architectures
    ):
        raise CheckpointError(
            f"{name} has classes of its own and no text tower; load it with Load Image Classifier "
            "(command line: leave --classes out)."
        )
    if not TEXT_AND_IMAGE & set(architectures):
        raise CheckpointError(
            f"{name} has no text tower for words (architectures in its config: "
            f"{', '.join(architectures)[:80] or 'none'}); use a CLIP, SigLIP or SigLIP 2 model "
            "(CLIPModel, SiglipModel)."
        )
    vision = about.config.get("vision_config")
    refuse_channels(name, vision if isinstance(vision, dict) else {})


def _network(about: ModelFolder, texts: Sequence[str]) -> ZeroShotNetwork:
    """The vision tower with the embeddings of the texts; the text tower is dropped."""
    name = about.path.name
    model = pretrained(about.path, about.weights, "AutoModel", "a CLIP or SigLIP model")
    text, siglip = model.config.text_config, hasattr(model, "logit_bias")
    tokens = tokenized(about.path, texts, text.max_position_embeddings, siglip)
    with refused_as(f"{name} cannot encode the text of classes", Exception):
        embeddings = _text_embeddings(model, tokens)
    scale, bias = float(model.logit_scale.detach().float().exp()), 0.0
    if siglip:
        bias = float(model.logit_bias.detach())
    if not (math.isfinite(scale) and math.isfinite(bias) and bool(embeddings.isfinite().all())):
        raise CheckpointError(
            f"{name} has weights of its text tower, or a temperature, that are not finite (NaN or "
            "infinity); download it again."
        )
    projection = getattr(model, "visual_projection", None)
    return ZeroShotNetwork(model.vision_model, projection, embeddings, scale, bias)


@torch.no_grad()
def _text_embeddings(model: Any, tokens: dict[str, Tensor]) -> Tensor:
    """Of unit length (texts, dim), computed in fp32."""
    tower = model.text_model.eval().float()
    projection = getattr(model, "text_projection", None)
    found = []
    for start in range(0, len(tokens["input_ids"]), LINES_AT_ONCE):
        part = {key: value[start : start + LINES_AT_ONCE] for key, value in tokens.items()}
        pooled = tower(**part)[1]
        found.append(pooled if projection is None else projection.float()(pooled))
    return unit_length(torch.cat(found))


def unit_length(vectors: Tensor) -> Tensor:
    """The vectors (..., dim), divided by their lengths."""
    return vectors / vectors.norm(dim=-1, keepdim=True)


class ZeroShotNetwork(nn.Module):
    """A vision tower that compares images with texts: logits = scale cos(image, text) + bias."""

    text_embeddings: Tensor

    def __init__(
        self, vision: Any, projection: Any, text_embeddings: Tensor, scale: float, bias: float
    ):
        super().__init__()
        self.vision, self.projection = vision, projection
        self.register_buffer("text_embeddings", text_embeddings)
        self.scale, self.bias = scale, bias

    @property
    def image_size(self) -> tuple[int, int]:
        """Height and width that the tower reads."""
        size = self.vision.config.image_size
        return (size, size) if isinstance(size, int) else tuple(size)

    def forward(self, x: Tensor) -> Tensor:
        """x (B, 3, H, W), the output of its image processor -> logits (B, texts) in fp32."""
        pooled = self.vision(pixel_values=x)[1]  # of the last hidden state and its pooling
        pooled = pooled if self.projection is None else self.projection(pooled)
        image = unit_length(at_least_fp32(pooled))
        return self.scale * image @ self.text_embeddings.to(image.dtype).T + self.bias


def _preprocessing(about: ModelFolder, size: tuple[int, int]) -> Preprocessing:
    """Of the image processor, whose images have the tower's size."""
    name = about.path.name
    if about.preprocessor is None:
        raise CheckpointError(
            f"{name} has no {PREPROCESSOR}, which says how its images are prepared; download that "
            "file, too."
        )
    found = processing(about.path, {}, about.preprocessor)
    if (found.crop or found.resize) not in (size, size[0]):
        raise CheckpointError(
            f"{name} makes images of the size {found.crop or found.resize} ({PREPROCESSOR}), but "
            f"its vision tower reads {size}; download both files again, from the same model."
        )
    return found
