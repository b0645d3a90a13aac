"""The digits' models, and images drawn with them, for what is measured of images."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from harness import ROOT, quick_bf16, use_library

use_library()

from guidance import load_adm, load_classifier  # noqa: E402
from guidance.evaluation.compute_cost import ComputeCost, count_compute  # noqa: E402
from guidance.sampling.generate import SamplingConfig, generate  # noqa: E402


class Digits:
    """The shipped networks; the U-Net in bf16 where the processor is quick at it."""

    def __init__(self) -> None:
        models = ROOT / "models"
        dtype = "bf16" if quick_bf16() else "fp32"
        self.model = load_adm(models / "diffusion_models/digits_adm.safetensors", dtype=dtype)
        self.classifier = load_classifier(models / "classifiers/digits_classifier.safetensors")
        self.judge = load_classifier(models / "classifiers/digits_judge.safetensors")

    def drawn(
        self, job: SamplingConfig, guided: bool, **options: Any
    ) -> tuple[Any, Any, ComputeCost]:
        """Images uint8 (N, H, W, C), their labels (N,), and what each of them cost."""
        classifier = self.classifier if guided else None
        with count_compute(self.model, classifier) as work:
            images, labels = generate(self.model, classifier, replace(job, **options))
        return images, labels, work.per_image(job.num_samples)


def distance(images: Any, others: Any) -> float:
    """Mean squared, of pixels in -1..1."""
    from guidance.core.images import from_uint8

    return float(((from_uint8(images) - from_uint8(others)) ** 2).mean())
