"""A classifier of noisy images, p(y | x_t, t), seen from a sampler's coordinates."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from ..core.host_copy import device_of
from ..core.noise import NoiseSchedule, levels_like, per_image, vp_scale, within_range
from .base import ClassifierOutput, class_name, label_of_each, log_likelihood
from .compiling import compiled_if_possible, uncompiled
from .gradient_memory import WHOLE, GradientMemoryPlan

# fp16 gradients of small log-probabilities underflow; 2**16 would overflow in the other direction
FP16_LOSS_SCALE = 1024.0


class NoisyClassifier:
    """`network(x_vp, t) -> logits` with its noise schedule, the names of its classes, its space.

    `network` is any torch module in the ADM convention: x_vp (B, C, H, W) variance preserving,
    t (B,) float timesteps that may be fractional, logits (B, classes). `noise_schedule` is
    "linear", "cosine" or a 1-D tensor of alpha_bar. `space` is "rgb" or a latent format's name;
    None means that it is not checked against the model. `economy`, or a function that gives it for
    x (B, C, H, W), says how gradients save memory.
    Raises ValueError when labels are not as many as the network's classes.
    """

    reads_images = False
    through_model = False

    def __init__(
        self,
        network: nn.Module,
        noise_schedule: str | Tensor | NoiseSchedule,
        labels: Sequence[str] | None = None,
        space: str | None = None,
        economy: GradientMemoryPlan | Callable[[Tensor], GradientMemoryPlan] = WHOLE,
    ):
        if not isinstance(noise_schedule, NoiseSchedule):
            noise_schedule = NoiseSchedule(noise_schedule)
        self.schedule: NoiseSchedule = noise_schedule
        self.network = network
        self.labels = tuple(labels) if labels is not None else None
        self.space = space
        if isinstance(economy, GradientMemoryPlan):
            economy.check(network)
        self.economy = economy
        if labels is not None and self.layout is not None:
            classes = self.layout.class_count
            if len(labels) != classes:
                raise ValueError(f"labels names {len(labels)} classes; the network has {classes}.")

    def with_network(self, network: nn.Module) -> NoisyClassifier:
        """The same classifier computed by another copy of its network."""
        return NoisyClassifier(network, self.schedule, self.labels, self.space, self.economy)

    def with_economy(
        self, economy: GradientMemoryPlan | Callable[[Tensor], GradientMemoryPlan]
    ) -> NoisyClassifier:
        """The same classifier, whose gradient saves memory in another way."""
        return NoisyClassifier(self.network, self.schedule, self.labels, self.space, economy)

    @property
    def layout(self) -> Any:
        """The network's ADM layout, or None for other networks."""
        return getattr(self.network, "layout", None)

    @property
    def num_classes(self) -> int | None:
        """Number of classes, where the network or the labels tell it."""
        if self.labels is not None:
            return len(self.labels)
        return self.layout.class_count if self.layout is not None else None

    @property
    def channels(self) -> int | None:
        """Input channels, where the network tells them."""
        return self.layout.in_channels if self.layout is not None else None

    def name(self, index: int) -> str:
        """What class `index` is called; its number where it has no name."""
        return class_name(index, self.num_classes, self.labels)

    @torch.no_grad()
    def log_probs(self, x: Tensor, sigma: Tensor | float, alpha: Tensor | float = 1.0) -> Tensor:
        """log p(y | x) of every class, (B, classes), at least fp32.

        x (B, C, H, W) = alpha x0 + sigma eps; sigma and alpha are numbers or (B,). Computed where
        the network is, and brought to x's device.
        """
        x_in = x.to(device_of(self.network, x.device))
        with uncompiled(self.network):  # another graph than the gradient's
            sigma, alpha = levels_like(x_in, sigma, alpha)
            return self._log_probs(x_in, sigma, alpha).to(x.device)

    def gradient(
        self,
        x: Tensor,
        sigma: Tensor | float,
        label: Tensor | int,
        alpha: Tensor | float = 1.0,
    ) -> Tensor:
        """grad_x log p(label | x), of x's shape and dtype, in the sampler's own coordinates.

        Arguments as for `log_probs`; label is an int or LongTensor (B,). Works inside
        torch.inference_mode and under no_grad. Raises ValueError for a label that is not a class
        or does not fit the batch (Dhariwal & Nichol 2021, algorithm 1 and 2).
        """
        return self.gradient_and_log_probs(x, sigma, label, alpha)[0]

    def gradient_and_log_probs(
        self,
        x: Tensor,
        sigma: Tensor | float,
        label: Tensor | int,
        alpha: Tensor | float = 1.0,
        label_smoothing: float = 0.0,
    ) -> tuple[Tensor, Tensor]:
        """As `gradient`, and log p(y | x) of every class (B, classes), from one evaluation.

        label_smoothing: see `guidance.strength.smoothed_target`.
        """
        labels = label_of_each(label, len(x))
        economy = self.economy if isinstance(self.economy, GradientMemoryPlan) else self.economy(x)
        with torch.inference_mode(False), torch.enable_grad():
            use_ordinary_weights(self.network)
            x_in = x.detach().to(device_of(self.network, x.device))
            sigma, alpha = levels_like(x_in, sigma, alpha)

            def gradient_of(part: slice) -> tuple[Tensor, Tensor]:
                levels = sigma[part], alpha[part]
                return self._part(
                    x_in[part], *levels, labels[part], label_smoothing, economy.recompute
                )

            parts = [
                compiled_if_possible(self.network, partial(gradient_of, part))
                for part in economy.parts(len(x))
            ]
        gradients, log_probs = zip(*parts, strict=True)
        return _joined(gradients).to(x.device), _joined(log_probs).to(x.device)

    def _part(
        self,
        x: Tensor,
        sigma: Tensor,
        alpha: Tensor,
        label: Tensor,
        label_smoothing: float,
        recompute: bool,
    ) -> tuple[Tensor, Tensor]:
        """`gradient_and_log_probs` of a part of the batch, in ordinary mode."""
        # a clone made here is an ordinary tensor, whatever mode x was made in
        x_in = x.clone().requires_grad_(True)
        log_probs = self._log_probs(x_in, sigma, alpha, recompute)
        chosen = log_likelihood(log_probs, label, label_smoothing)
        scale = FP16_LOSS_SCALE if compute_dtype(self.network, x) == torch.float16 else 1.0
        (gradient,) = torch.autograd.grad(chosen * scale, x_in)
        if scale != 1.0:
            gradient = (gradient.float() / scale).to(x.dtype)
        return gradient, log_probs.detach()

    def evidence(
        self,
        x: Tensor,
        denoised: Tensor,
        sigma: Tensor,
        label: Tensor | int,
        alpha: Tensor,
        label_smoothing: float = 0.0,
    ) -> ClassifierOutput:
        """The gradient at x itself; sigma / alpha at most what the schedule reaches.

        `denoised` is not looked at. Above its range the classifier answers for the range's end,
        so the gradient is weighed with it, too.
        """
        near = within_range(sigma, alpha, self.schedule.max_ratio)
        gradient, log_probs = self.gradient_and_log_probs(
            x, near[0], label, near[1], label_smoothing
        )
        return ClassifierOutput(gradient, log_probs, *near)

    def rescale(self, seen: ClassifierOutput, sigma: Tensor, alpha: Tensor) -> ClassifierOutput:
        """What it said, for another noise level: the gradient in x_vp stays as it is."""
        near = within_range(sigma, alpha, self.schedule.max_ratio)
        change = vp_scale(seen.sigma, seen.alpha) / vp_scale(*near)
        gradient = seen.gradient * per_image(change.to(seen.gradient), seen.gradient)
        return ClassifierOutput(gradient, seen.log_probs, *near)

    def image_log_probs(self, images: Tensor) -> Tensor:
        """log p(y | image) of every class (B, classes), of finished images (B, C, H, W)."""
        return self.log_probs(images, 0.0)

    def _log_probs(
        self, x: Tensor, sigma: Tensor, alpha: Tensor, recompute: bool = False
    ) -> Tensor:
        dtype = compute_dtype(self.network, x)
        x_vp = x / per_image(vp_scale(sigma, alpha), x)
        t = self.schedule.timestep(sigma / alpha).to(torch.promote_types(dtype, torch.float32))
        options = {"recompute": True} if recompute else {}
        logits = self.network(x_vp.to(dtype), t, **options)
        # in fp16 the gradients of unlikely classes underflow to exactly zero
        return logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(dim=-1)


def _joined(parts: Sequence[Tensor]) -> Tensor:
    """The parts of a batch in one; a single part as it is."""
    return parts[0] if len(parts) == 1 else torch.cat(list(parts))


def use_ordinary_weights(network: nn.Module) -> None:
    """Replaces weights that were made or moved in inference mode by ordinary copies.

    torch cannot save inference tensors for backward, and ComfyUI loads, moves and reloads models
    inside inference mode. One copy at a time, and only after such a move. Call it outside
    inference mode.
    """
    for module in network.modules():
        for name, weight in module._parameters.items():
            if weight is not None and weight.is_inference():
                module._parameters[name] = nn.Parameter(weight.clone(), weight.requires_grad)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_inference():
                module._buffers[name] = buffer.clone()


def compute_dtype(network: nn.Module, x: Tensor) -> torch.dtype:
    """What the network computes in: what it says, its weights' dtype, or x's."""
    said = getattr(network, "compute_dtype", None)
    if said is not None:
        return said
    floats = (p.dtype for p in network.parameters() if p.is_floating_point())
    return next(floats, x.dtype)
