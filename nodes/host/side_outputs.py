"""Additional outputs of a model evaluation, for the ADM sampler."""

from __future__ import annotations

from typing import Any

import comfy.samplers
import torch
from torch import Tensor

from . import hooks


class SideOutputs:
    """The learned variance, and the gradients of all classifiers.

    variances: for each part of the batch of conditionings: index of the conditioning, its uuid, v
    of its area. gradients: scale * grad log p(y | x) (B, ...), in the sampler's coordinates.
    """

    def __init__(self, guider: Any) -> None:
        self._guider = guider
        self.begin()

    def begin(self) -> None:
        """Starts a new evaluation."""
        self.variances: list[tuple[int, Any, Tensor]] = []
        self.gradients: list[Tensor] = []
        self.v: Tensor | None = None

    def gradient(self, x: Tensor) -> Tensor:
        """The sum of all gradients."""
        return sum(self.gradients, torch.zeros_like(x))

    def blend(
        self, executor: Any, model: Any, conds: list, x: Tensor, sigma: Tensor, options: dict
    ) -> Any:
        """A wrapper around the evaluation of the conditionings that sets `v`.

        Guiders order their conditionings differently, patches may evaluate the network again, and
        areas cover a part of the image. So v is taken from the positive conditioning in the first
        evaluation, and its areas and masks are blended as core blends the prediction.
        """
        output = executor(model, conds, x, sigma, options)
        if self.v is None and self.variances:
            self.v = self._blended(conds, x, sigma)
        return output

    def _blended(self, conds: list, x: Tensor, sigma: Tensor) -> Tensor:
        positive = getattr(self._guider, "conds", {}).get("positive")
        places = [i for i, cond in enumerate(conds) if cond is not None and cond is positive]
        index = places[0] if places else 0
        parts = {uuid: v for which, uuid, v in self.variances if which == index}
        total, weight = torch.zeros_like(x), torch.full_like(x, 1e-37)
        for cond in conds[index] or ():
            placed = comfy.samplers.get_area_and_mult(cond, x, sigma)
            if placed is None or cond["uuid"] not in parts:
                continue
            where = _region(placed.area)
            total[where] += parts[cond["uuid"]].to(x) * placed.mult
            weight[where] += placed.mult
        return total / weight


def _region(area: Any) -> tuple:
    """The index of a conditioning's area (h, w, y, x) in (B, C, H, W); everything for None."""
    if area is None:
        return (...,)
    height, width, top, left = area
    return (..., slice(top, top + height), slice(left, left + width))


def keep_variance(transformer_options: dict | None, variance: Tensor) -> None:
    """Stores v (N, C, H, W), one row per conditioning and image, if it is requested."""
    options = transformer_options or {}
    outputs = options.get(hooks.SIDE_OUTPUTS)
    if outputs is None or "uuids" not in options:
        return
    which = options["cond_or_uncond"]
    parts = variance.float().chunk(len(which))
    outputs.variances += zip(which, options["uuids"], parts, strict=True)
