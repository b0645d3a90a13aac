"""Classifier-free guidance (Ho & Salimans 2022)."""

from __future__ import annotations

from torch import Tensor

from ..core.noise import per_image


def classifier_free(cond: Tensor, uncond: Tensor, scale: Tensor | float) -> Tensor:
    """uncond + scale * (cond - uncond), on eps or on denoised, (B, ...).

    scale is a number or (B,), with ComfyUI's meaning: 0 is unconditional, 1 conditional only;
    the paper's w (eq. 6) is scale - 1.
    """
    return uncond + per_image(scale, cond) * (cond - uncond)
