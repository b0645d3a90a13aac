"""The model's prediction of x0 in a step, with classifier-free guidance and the CFG cache."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from ..core.host_copy import to_device
from ..core.noise import levels_like
from .cfg import classifier_free
from .cfg_cache import CFGCache
from .model import DiffusionModel
from .steps import Step, predict_x0

Scale = float | list[float]


@dataclass(frozen=True)
class Denoiser:
    """The model, its conditioning, and the CFG cache of one run.

    labels (B,) or None; low_res: the small images of an upsampler, or None.
    """

    model: DiffusionModel
    labels: Tensor | None
    low_res: Tensor | None
    cache: CFGCache

    def __call__(self, x: Tensor, step: Step, cfg: Scale) -> tuple[Tensor, Tensor | None]:
        """x0 (B, C, H, W) from x_t, and v, the variance of the conditional prediction.

        cfg is one scale, or one per image. If the CFG cache has a valid term, the unconditional
        prediction is not computed.
        """
        due = self.cache.due()
        t = torch.full((len(x),), float(step.timestep), device=x.device)
        if self.labels is None or cfg in (0, 1):
            eps, v = self._one_pass(x, t, conditional=cfg == 1)
            return predict_x0(x, eps, step.alpha_bar), v
        levels = levels_like(x, (1 - step.alpha_bar) ** 0.5, step.alpha_bar**0.5)
        if due or not self.cache.matches_shape(x.shape):
            cond, uncond, v = self._two_passes(x, t)
            term = (uncond - cond).detach() * (1 / step.alpha_bar - 1) ** 0.5
            self.cache.store(term, *levels)
            eps = classifier_free(cond, uncond, _scale_like(cfg, cond))
            return predict_x0(x, eps, step.alpha_bar), v
        eps, v = self._one_pass(x, t, conditional=True)
        x0 = predict_x0(x, eps, step.alpha_bar)
        return classifier_free(x0, x0 - self.cache.term_at(*levels), _scale_like(cfg, x0)), v

    def _one_pass(self, x: Tensor, t: Tensor, conditional: bool) -> tuple[Tensor, Tensor | None]:
        """eps and v for the labels, or for no class."""
        labels = self.labels if conditional else None
        labels = self.model.null_labels(len(x)) if labels is None else labels
        return self.model(x, t, labels, self.low_res)

    def _two_passes(self, x: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """eps of cond and uncond, and v of cond, computed in one batch."""
        assert self.labels is not None
        null = self.model.null_labels(len(x))
        if null is None:
            raise ValueError(
                "This diffusion model has no classes, so cfg cannot be used; remove it."
            )
        low_res = self.low_res
        if low_res is not None and len(low_res) > 1:
            low_res = torch.cat([low_res, low_res])
        eps, v = self.model(
            torch.cat([x, x]), torch.cat([t, t]), torch.cat([self.labels, null]), low_res
        )
        cond, uncond = eps.chunk(2)
        return cond, uncond, None if v is None else v.chunk(2)[0]


def _scale_like(cfg: Scale, like: Tensor) -> float | Tensor:
    return (
        to_device(like.device, torch.tensor(cfg).to(like.dtype)) if isinstance(cfg, list) else cfg
    )
