"""DDPM and DDIM steps in VP coordinates, and the loop over them.

DDPM: Ho et al. 2020, eq. 6-7, with the learned variance of Nichol & Dhariwal 2021, eq. 15.
DDIM: Song et al. 2021, eq. 12 and 16. Guidance: Dhariwal & Nichol 2021, algorithms 1 and 2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ..classifiers.base import Classifier
from ..core.autograd import tracked
from ..core.noise import levels_like
from ..schedules.run_position import RunPosition
from ..schedules.schedule import GuidanceSchedule
from .cfg import classifier_free
from .cfg_cache import ALWAYS, CFGCache, CFGCacheConfig
from .classifier_guidance import classifier_term, mean_shift
from .model import DiffusionModel
from .nan_guard import NaNGuard
from .strength import Strength

METHODS = ("ddim", "ddpm")
Noise = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Step:
    """One reverse step of a (respaced) chain, from alpha_bar to alpha_bar_prev > alpha_bar.

    `floor` is the variance used where the posterior's own is zero, in the chain's last step:
    the posterior variance one step earlier.
    """

    timestep: int
    alpha_bar: float
    alpha_bar_prev: float
    floor: float

    @property
    def last(self) -> bool:
        return self.alpha_bar_prev >= 1.0

    @property
    def beta(self) -> float:
        return 1 - self.alpha_bar / self.alpha_bar_prev

    @property
    def log_variance_range(self) -> tuple[float, float]:
        """log beta_tilde (clipped) and log beta: the ends of the learned range."""
        low = posterior_variance(self.alpha_bar, self.alpha_bar_prev) or self.floor
        return math.log(low), math.log(self.beta)


def posterior_variance(alpha_bar: float, alpha_bar_prev: float) -> float:
    """beta_tilde = (1 - alpha_bar_prev) / (1 - alpha_bar) * beta (Ho et al. 2020, eq. 7)."""
    return (1 - alpha_bar_prev) / (1 - alpha_bar) * (1 - alpha_bar / alpha_bar_prev)


def chain(alpha_bar: Sequence[float], timesteps: Sequence[int]) -> list[Step]:
    """The steps through ascending `timesteps` of the schedule `alpha_bar`, noisiest first.

    Raises ValueError for timesteps that do not rise, or lie outside the schedule.
    """
    rising = all(low < high for low, high in zip(timesteps, timesteps[1:], strict=False))
    if not timesteps or not rising or not 0 <= timesteps[0] <= timesteps[-1] < len(alpha_bar):
        raise ValueError(
            f"timesteps are {_shortened(timesteps)}; expected at least one, rising, from 0 to "
            f"{len(alpha_bar) - 1}."
        )
    values = [float(alpha_bar[t]) for t in timesteps]
    previous = [1.0, *values[:-1]]
    floor = posterior_variance(values[1], values[0]) if len(values) > 1 else 1 - values[0]
    steps = [
        Step(t, now, prev, floor) for t, now, prev in zip(timesteps, values, previous, strict=True)
    ]
    return steps[::-1]


def _shortened(timesteps: Sequence[int]) -> str:
    return str(list(timesteps[:8])) + ("..." if len(timesteps) > 8 else "")


def predict_x0(x: Tensor, eps: Tensor, alpha_bar: float) -> Tensor:
    """(x_t - sqrt(1 - alpha_bar) eps) / sqrt(alpha_bar)."""
    return x * (1 / alpha_bar) ** 0.5 - eps * (1 / alpha_bar - 1) ** 0.5


def ddpm_variance(step: Step, v: Tensor | None, like: Tensor) -> Tensor:
    """Sigma: between beta_tilde and beta as the network's `v` in [-1, 1] says; beta without it."""
    low, high = step.log_variance_range
    if v is None:
        return torch.full_like(like[:1], step.floor if step.last else step.beta)
    share = (v + 1) / 2
    return (share * high + (1 - share) * low).exp()


def ddpm_step(
    x: Tensor, x0: Tensor, variance: Tensor, step: Step, shift: Tensor | float, noise: Tensor
) -> Tensor:
    """x_{t-1} ~ N(mu_tilde(x_t, x0) + shift, variance); without noise in the last step."""
    ab, prev, beta = step.alpha_bar, step.alpha_bar_prev, step.beta
    mean = (beta * prev**0.5 / (1 - ab)) * x0 + ((1 - prev) * (1 - beta) ** 0.5 / (1 - ab)) * x
    mean = mean + shift
    return mean if step.last else mean + variance.sqrt() * noise


def ddim_step(x: Tensor, x0: Tensor, step: Step, eta: float, noise: Tensor) -> Tensor:
    """The implicit step at eta 0, with the variance of DDPM's posterior at eta 1."""
    ab, prev = step.alpha_bar, step.alpha_bar_prev
    eps = (x * (1 / ab) ** 0.5 - x0) / (1 / ab - 1) ** 0.5
    sigma = eta * posterior_variance(ab, prev) ** 0.5
    mean = x0 * prev**0.5 + eps * (1 - prev - sigma**2) ** 0.5
    return mean if step.last or sigma == 0 else mean + sigma * noise


@dataclass(frozen=True)
class Guide:
    """A classifier, the class of each image (B,) and how strongly it is followed.

    A schedule takes the place of the scale.
    """

    classifier: Classifier
    labels: Tensor
    strength: Strength | float
    schedule: GuidanceSchedule | None = None

    def at(self, place: RunPosition, batch: int) -> Guide | None:
        """The guide with the scale that it has there; None where it changes nothing."""
        if self.schedule is None:
            return self if self._strength.scale != 0 else None
        strength = self._strength.at(self.schedule, place, batch)
        return None if strength is None else replace(self, strength=strength)

    @property
    def _strength(self) -> Strength:
        if isinstance(self.strength, Strength):
            return self.strength
        return Strength(scale=self.strength)

    def term(self, x: Tensor, x0: Tensor, step: Step, watch: NaNGuard | None = None) -> Tensor:
        """What algorithm 2 adds to x0 (B, ...), at x_t (B, ...) in VP coordinates.

        x0 must be computed from x in torch's graph where the classifier's `through_model` is set.
        """
        ab = step.alpha_bar
        about = ((1 - ab) ** 0.5, self.labels, self._strength, ab**0.5)
        return classifier_term(self.classifier, x, x0, *about, watch=watch)

    def guidance_update(
        self, method: str, x: Tensor, x0: Tensor, step: Step, watch: NaNGuard | None = None
    ) -> Tensor:
        """What a step of "ddim" (`term`) or "ddpm" (`gradient`) is guided by."""
        asked = self.gradient if method == "ddpm" else self.term
        return asked(x, x0, step, watch)

    def gradient(self, x: Tensor, x0: Tensor, step: Step, watch: NaNGuard | None = None) -> Tensor:
        """scale * grad log p(y | x_t), as algorithm 1 wants it: the term without its factor."""
        return self.term(x, x0, step, watch) * (step.alpha_bar**0.5 / (1 - step.alpha_bar))


@torch.no_grad()
def sample(
    model: DiffusionModel,
    x: Tensor,
    steps: Iterable[Step],
    *,
    method: str = "ddim",
    eta: float = 0.0,
    labels: Tensor | None = None,
    cfg: float | GuidanceSchedule = 1.0,
    reuse: CFGCacheConfig = ALWAYS,
    guides: Sequence[Guide] = (),
    low_res: Tensor | None = None,
    clip_denoised: bool = True,
    noise: Noise = torch.randn_like,
) -> Tensor:
    """Images x0 (B, C, H, W) from x_T ~ N(0, I), by `method` "ddim" or "ddpm".

    labels (B,) condition the model with classifier-free guidance of scale `cfg`, a number or a
    schedule, whose term is computed as `reuse` says; `guides` add classifier guidance (algorithm 2
    for ddim, algorithm 1 for ddpm). low_res (B, C, H/4, W/4), or
    one for all, in [-1, 1] is what an upsampler enlarges. x0 is clipped to [-1, 1] before
    classifier guidance, as in the original. `noise(x)` is drawn once in every step, also where it
    is not used, so that equal seeds give the original's draws.
    """
    if method not in METHODS:
        raise ValueError(f"method is {method!r}; expected one of {', '.join(METHODS)}.")
    if not 0 <= eta <= 1:
        raise ValueError(f"eta is {eta}; expected 0 (no noise) to 1 (the noise of DDPM).")
    steps = list(steps)
    held, watch = CFGCache(reuse), NaNGuard()
    for index, step in enumerate(steps):
        place = place_of(step, index, len(steps), len(model.schedule))
        active = [guide for each in guides if (guide := each.at(place, len(x))) is not None]
        scale = cfg.scales(place, len(x)) if isinstance(cfg, GuidanceSchedule) else cfg
        through = any(guide.classifier.through_model for guide in active)
        with tracked(x, through) as x_in:
            x0, v = _denoised(model, x_in, step, labels, scale, low_res, held)
            x0 = x0.clamp(-1, 1) if clip_denoised else x0
            updates = [guide.guidance_update(method, x_in, x0, step, watch) for guide in active]
        x0, v = _cut(x0, v)
        drawn = noise(x)
        if method == "ddpm":
            variance = ddpm_variance(step, v, x)
            guidance_update = sum(updates, torch.zeros_like(x))
            x = ddpm_step(x, x0, variance, step, mean_shift(guidance_update, variance, 1.0), drawn)
        else:
            x = ddim_step(x, sum(updates, x0), step, eta, drawn)
    watch.finish()
    return x


def _cut(x0: Tensor, v: Tensor | None) -> tuple[Tensor, Tensor | None]:
    """The two without the graph that an exact gradient needed."""
    return x0.detach(), None if v is None else v.detach()


def place_of(step: Step, index: int, steps: int, timesteps: int) -> RunPosition:
    """Where the run of `steps` steps through a chain of `timesteps` is, at its index-th step."""
    return RunPosition(
        percent=1 - step.timestep / max(timesteps - 1, 1),
        step=index,
        steps=steps,
        sigma=((1 - step.alpha_bar) / step.alpha_bar) ** 0.5,
    )


def _denoised(
    model: DiffusionModel,
    x: Tensor,
    step: Step,
    labels: Tensor | None,
    cfg: float | list[float],
    low_res: Tensor | None,
    held: CFGCache,
) -> tuple[Tensor, Any]:
    """x0 and the variance that `_predict` gives, or x0 by the term of CFG that is held."""
    due = held.due()
    scaled = labels is not None and cfg not in (0, 1)
    if not scaled or due or not held.matches_shape(x):
        eps, v, term = _predict(model, x, step, labels, cfg, low_res)
        if term is not None:
            held.renew(-term.detach() * (1 / step.alpha_bar - 1) ** 0.5, *_levels(x, step))
        return predict_x0(x, eps, step.alpha_bar), v
    eps, v, _ = _predict(model, x, step, labels, 1.0, low_res)
    cond = predict_x0(x, eps, step.alpha_bar)
    term = held.at(*_levels(x, step))
    return classifier_free(cond, cond - term, _scale(cfg, cond)), v


def _levels(x: Tensor, step: Step) -> tuple[Tensor, Tensor]:
    """sigma and alpha (B,) of x_t in VP coordinates."""
    sigma, alpha = levels_like(x, (1 - step.alpha_bar) ** 0.5, step.alpha_bar**0.5)
    return sigma, alpha


def _scale(cfg: float | list[float], like: Tensor) -> float | Tensor:
    return torch.tensor(cfg).to(like) if isinstance(cfg, list) else cfg


def _predict(
    model: DiffusionModel,
    x: Tensor,
    step: Step,
    labels: Tensor | None,
    cfg: float | list[float],
    low_res: Tensor | None,
) -> tuple[Tensor, Any, Tensor | None]:
    """eps after classifier-free guidance, the variance of the conditional prediction, and cond -
    uncond of eps where both were computed."""
    t = torch.full((len(x),), float(step.timestep), device=x.device)
    if labels is None or cfg in (0, 1):
        alone = labels if labels is not None and cfg == 1 else model.null_labels(len(x))
        eps, v = model(x, t, alone, low_res)
        return eps, v, None
    both = torch.cat([labels, _required_null(model, len(x))])
    if low_res is not None and len(low_res) > 1:
        low_res = torch.cat([low_res, low_res])
    eps, v = model(torch.cat([x, x]), torch.cat([t, t]), both, low_res)
    cond, uncond = eps.chunk(2)
    guided = classifier_free(cond, uncond, _scale(cfg, cond))
    return guided, None if v is None else v.chunk(2)[0], cond - uncond


def _required_null(model: DiffusionModel, batch: int) -> Tensor:
    null = model.null_labels(batch)
    if null is None:
        raise ValueError(
            "This diffusion model has no classes, so cfg cannot be used; leave it out."
        )
    return null
