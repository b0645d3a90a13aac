"""Classifier guidance (Dhariwal & Nichol 2021) in the sampler's coordinates."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from ..classifiers.base import Classifier, ClassifierOutput, SamplingPoint, Target
from ..classifiers.gradient_cache import GradientCache
from ..core.cuda_graph import EAGER, GraphCache
from ..core.noise import per_image
from ..schedules.run_position import RunPosition
from ..schedules.schedule import GuidanceSchedule
from .nan_guard import NaNGuard
from .strength import Strength, normalized_weight

Report = Callable[[Tensor, Tensor, ClassifierOutput], None]
LOOKS = 0x6C6F6F6B73  # any number but 0


@dataclass(frozen=True)
class Guide:
    """A classifier, the label of each image (B,), and the strength of the guidance in a run.

    A schedule replaces the strength's scale. cache: the gradient cache of this run. generator,
    graphs: the classifier's random numbers and CUDA graphs in this run (`SamplingPoint`).
    """

    classifier: Classifier
    labels: Tensor
    strength: Strength
    schedule: GuidanceSchedule | None = None
    cache: GradientCache = field(default_factory=GradientCache)
    generator: torch.Generator | None = None
    graphs: GraphCache = EAGER

    def at(self, position: RunPosition | None, batch: int) -> Guide | None:
        """The guide with its scale at this position; None if it is off there.

        Without a schedule, the position is not used and can be None.
        """
        if self.schedule is None:
            return self if self.strength.is_on else None
        assert position is not None
        scales = self.schedule.scales(position, batch)
        scale = tuple(scales) if isinstance(scales, list) else scales
        strength = replace(self.strength, scale=scale)
        return replace(self, strength=strength) if strength.is_on else None

    def needs_graph(self, x: Tensor) -> bool:
        """Whether the next `term` at x (B, ...) needs `denoised` connected with x in the graph."""
        return self.classifier.through_model and self.cache.is_due(x)

    def start(self, x: Tensor, sigma: Tensor, alpha: Tensor) -> None:
        """Starts what the next `term`, at the same x (B, ...), computes of x, sigma and alpha (B,).

        Call it before the diffusion model predicts: a GPU computes both at the same time.
        """
        if self.cache.is_due(x):
            self.classifier.start(x, sigma, alpha, self._target, self.graphs)

    @property
    def _target(self) -> Target:
        return Target(self.labels, self.strength.label_smoothing)

    def term(
        self, point: SamplingPoint, guard: NaNGuard | None = None, report: Report | None = None
    ) -> Tensor:
        """The guidance term to add to the denoised image (B, ...) at this point (algorithm 2).

        scale * weight * gradient of log p(label | x), with the options of the strength. It is
        finite and continuous, also if sigma / alpha is beyond the classifier's range. `report` is
        called with the scales (B,), the term (B, ...) and the classifier's output. Raises
        ValueError if the gradient is not finite. With the `guard` of a run, which does not wait for
        the device, a later call or the end of the run may raise it.
        """
        point = replace(point, generator=self.generator, graphs=self.graphs)
        output = self.cache.output(self.classifier, point, self._target)
        checks = guard or NaNGuard()
        checks.check(output.gradient, point.x, point.sigma, point.denoised, output.decoded)
        if guard is None:
            checks.finish()
        scales = self.strength.scales(output.log_probs)
        weight = output.weight
        if self.strength.normalize:
            weight = normalized_weight(output.gradient, output.sigma, output.alpha)
        term = guidance_term(output.gradient, weight, scales)
        term = self.strength.capped(term, point.denoised.detach())
        if report is not None:
            report(scales, term, output)
        return term


def looks_generator(seed: int) -> torch.Generator:
    """The generator of a run's looks: other numbers than those of the image's noise."""
    return torch.Generator().manual_seed((seed ^ LOOKS) & (2**63 - 1))


def guide_denoised(
    denoised: Tensor,
    gradient: Tensor,
    sigma: Tensor | float,
    scale: Tensor | float,
    alpha: Tensor | float = 1.0,
) -> Tensor:
    """denoised + scale * (sigma^2 / alpha) * gradient, for x = alpha x0 + sigma eps.

    denoised, gradient (B, ...): E[x0 | x] and grad_x log p(y | x); sigma, scale, alpha: numbers
    or (B,). At scale 1 the result is E[x0 | x, y] (Tweedie's formula on both sides of Bayes'
    rule). It is algorithm 2 of the paper written for x0:
    eps_hat = eps - scale * sqrt(1 - alpha_bar) * gradient.
    """
    return denoised + guidance_term(gradient, sigma**2 / alpha, scale)


def guidance_term(gradient: Tensor, weight: Tensor | float, scale: Tensor | float) -> Tensor:
    """scale * weight * gradient (B, ...); weight and scale are numbers or (B,)."""
    factor = scale * weight
    if isinstance(factor, Tensor):
        factor = factor.to(torch.promote_types(gradient.dtype, torch.float32))
    term = per_image(factor, gradient) * gradient
    return term.to(gradient.dtype)
