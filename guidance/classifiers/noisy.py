"""A classifier of noisy images, p(y | x_t, t), in a sampler's coordinates."""

from __future__ import annotations

import functools
from collections.abc import Callable, Hashable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ..core.autograd import compute_dtype, log_softmax, scaled_gradient, use_ordinary_weights
from ..core.cuda_graph import EAGER, GraphCache
from ..core.host_copy import device_of, to_device
from ..core.noise import (
    NoiseSchedule,
    levels_like,
    per_image,
    tweedie_weight,
    vp_scale,
    within_range,
)
from .base import (
    ClassifierOutput,
    SamplingPoint,
    Target,
    check_labels,
    label_of_each,
    likelihood_of,
)
from .gradient_memory import WHOLE, GradientMemoryPlan

# the plan, or a function that returns it for x (B, C, H, W)
MemoryPlan = GradientMemoryPlan | Callable[[Tensor], GradientMemoryPlan]


class NoisyClassifier:
    """`network(x_vp, t) -> logits` with its noise schedule, class names and space.

    `network` is any torch module in the ADM convention: x_vp (B, C, H, W) variance preserving,
    t (B,) float timesteps that may be fractional, logits (B, classes). `noise_schedule` is
    "linear", "cosine" or a 1-D tensor of alpha_bar. `space` is "rgb" or a latent format's name;
    None means that it is not checked against the model. `memory_plan`, or a function that returns
    it for x (B, C, H, W), sets how gradients save memory. Raises ValueError if the number of labels
    is not the number of classes.
    """

    reads_images = False
    through_model = False
    is_score = False

    def __init__(
        self,
        network: nn.Module,
        noise_schedule: str | Tensor | NoiseSchedule,
        labels: Sequence[str] | None = None,
        space: str | None = None,
        memory_plan: MemoryPlan = WHOLE,
    ):
        if not isinstance(noise_schedule, NoiseSchedule):
            noise_schedule = NoiseSchedule(noise_schedule)
        self.schedule: NoiseSchedule = noise_schedule
        self.network = network
        self.labels = tuple(labels) if labels is not None else None
        self.space = space
        if isinstance(memory_plan, GradientMemoryPlan):
            memory_plan.check(network)
        self.memory_plan = memory_plan
        if labels is not None and self.layout is not None:
            classes = self.layout.class_count
            if len(labels) != classes:
                raise ValueError(f"labels names {len(labels)} classes; the network has {classes}.")

    def with_network(self, network: nn.Module) -> NoisyClassifier:
        """The same classifier with another copy of its network."""
        return NoisyClassifier(network, self.schedule, self.labels, self.space, self.memory_plan)

    def with_memory_plan(self, memory_plan: MemoryPlan) -> NoisyClassifier:
        """The same classifier with another memory plan for its gradient."""
        return NoisyClassifier(self.network, self.schedule, self.labels, self.space, memory_plan)

    @property
    def layout(self) -> Any:
        """The network's ADM layout, or None for other networks."""
        return getattr(self.network, "layout", None)

    @property
    def num_classes(self) -> int | None:
        """Number of classes, or None if neither the network nor the labels have it."""
        if self.labels is not None:
            return len(self.labels)
        return self.layout.class_count if self.layout is not None else None

    @property
    def channels(self) -> int | None:
        """Input channels, or None if the network does not have them."""
        return self.layout.in_channels if self.layout is not None else None

    @torch.no_grad()
    def log_probs(self, x: Tensor, sigma: Tensor | float, alpha: Tensor | float = 1.0) -> Tensor:
        """log p(y | x) of every class, (B, classes), at least fp32.

        x (B, C, H, W) = alpha x0 + sigma eps; sigma and alpha are numbers or (B,). Computed on
        the network's device; the result is on x's device.
        """
        x_in = x.to(device_of(self.network, x.device))
        sigma, alpha = levels_like(x_in, sigma, alpha)
        return self._log_probs(x_in, sigma, alpha).to(x.device)

    def gradient(
        self,
        x: Tensor,
        sigma: Tensor | float,
        label: Tensor | int,
        alpha: Tensor | float = 1.0,
        graphs: GraphCache = EAGER,
    ) -> Tensor:
        """grad_x log p(label | x), with x's shape and dtype, in the sampler's coordinates.

        Arguments as for `log_probs`; label is an int or LongTensor (B,). Works inside
        torch.inference_mode and under no_grad. Raises ValueError for a label that is not a class
        or does not fit the batch (Dhariwal & Nichol 2021, algorithm 1 and 2).
        """
        return self.gradient_and_log_probs(x, sigma, Target(label), alpha, graphs)[0]

    def gradient_and_log_probs(
        self,
        x: Tensor,
        sigma: Tensor | float,
        target: Target,
        alpha: Tensor | float = 1.0,
        graphs: GraphCache = EAGER,
    ) -> tuple[Tensor, Tensor]:
        """Like `gradient`, plus log p(y | x) of every class (B, classes), from one evaluation."""
        results = graphs.started(_key(target), self.network, x)
        if results is None:
            results = self._computed(x, sigma, target, alpha, graphs)
        gradient, log_probs = (result.to(x.device) for result in results)
        return gradient, log_probs

    def _computed(
        self,
        x: Tensor,
        sigma: Tensor | float,
        target: Target,
        alpha: Tensor | float,
        graphs: GraphCache,
    ) -> tuple[Tensor, ...]:
        """The gradient and log p(y | x), where the network is."""
        whole, key = self._inputs(x, sigma, target, alpha), _key(target)
        if graphs.holds(key, self.network, *whole):
            plan = WHOLE  # a graph has its memory, whatever is free now
        elif isinstance(self.memory_plan, GradientMemoryPlan):
            plan = self.memory_plan
        else:
            plan = self.memory_plan(x)
        compute = functools.partial(self._gradient, target.label_smoothing, plan.recompute)
        if plan == WHOLE:
            return graphs.run(key, self.network, compute, *whole)
        parts = [compute(*(one[part] for one in whole)) for part in plan.parts(len(x))]
        return tuple(map(torch.cat, zip(*parts, strict=True)))

    def start(
        self, x: Tensor, sigma: Tensor, alpha: Tensor, target: Target, graphs: GraphCache
    ) -> None:
        """Starts what `output` computes at x (B, C, H, W), sigma, alpha (B,), if it is recorded."""
        if graphs.is_on:
            near = within_range(sigma, alpha, self.schedule.max_ratio)
            inputs = self._inputs(x, near[0], target, near[1])
            graphs.start(_key(target), self.network, *inputs, of=x)

    def _inputs(
        self, x: Tensor, sigma: Tensor | float, target: Target, alpha: Tensor | float
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """x (B, C, H, W), sigma, alpha and labels (B,), where the network is."""
        device = device_of(self.network, x.device)
        with torch.inference_mode(False):
            x_in = x.detach().to(device)
            sigma, alpha = levels_like(x_in, sigma, alpha)
            labels = label_of_each(target.labels, len(x))
            if self.num_classes is not None:  # else the output tells it
                check_labels(labels, self.num_classes)
                labels = to_device(device, labels)
            return x_in, sigma, alpha, labels

    def _gradient(
        self,
        label_smoothing: float,
        recompute: bool,
        x: Tensor,
        sigma: Tensor,
        alpha: Tensor,
        labels: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """The gradient (B, C, H, W) and log p(y | x) (B, classes)."""
        with torch.inference_mode(False), torch.enable_grad():
            use_ordinary_weights(self.network)
            # the clone is an ordinary tensor, even if x is an inference tensor
            x_in = x.clone().requires_grad_(True)
            log_probs = self._log_probs(x_in, sigma, alpha, recompute)
            if self.num_classes is None:
                check_labels(labels, log_probs.shape[1])
                labels = to_device(log_probs.device, labels)
            chosen = likelihood_of(log_probs, labels, label_smoothing)
            gradient = scaled_gradient(chosen, x_in, compute_dtype(self.network, x))
            return gradient, log_probs.detach()

    def output(self, point: SamplingPoint, target: Target) -> ClassifierOutput:
        """The gradient at x, with sigma / alpha clamped to the range of the schedule.

        `denoised` is only passed on. Above its range, the classifier is evaluated at the end of the
        range, so the weight of the gradient is clamped too.
        """
        near = within_range(point.sigma, point.alpha, self.schedule.max_ratio)
        gradient, log_probs = self.gradient_and_log_probs(
            point.x, near[0], target, near[1], point.graphs
        )
        seen = point.denoised.detach()
        return ClassifierOutput(gradient, tweedie_weight(*near), log_probs, *near, seen=seen)

    def rescale(self, output: ClassifierOutput, sigma: Tensor, alpha: Tensor) -> ClassifierOutput:
        """The output for another noise level: the gradient in x_vp stays the same."""
        near = within_range(sigma, alpha, self.schedule.max_ratio)
        change = vp_scale(output.sigma, output.alpha) / vp_scale(*near)
        gradient = output.gradient * per_image(change.to(output.gradient), output.gradient)
        return ClassifierOutput(gradient, tweedie_weight(*near), output.log_probs, *near)

    def image_log_probs(self, images: Tensor) -> Tensor:
        """log p(y | image) of every class (B, classes), for finished images (B, C, H, W)."""
        return self.log_probs(images, 0.0)

    def _log_probs(
        self, x: Tensor, sigma: Tensor, alpha: Tensor, recompute: bool = False
    ) -> Tensor:
        dtype = compute_dtype(self.network, x)
        x_vp = x / per_image(vp_scale(sigma, alpha), x)
        t = self.schedule.timestep(sigma / alpha).to(torch.promote_types(dtype, torch.float32))
        options = {"recompute": True} if recompute else {}
        logits = self.network(x_vp.to(dtype), t, **options)
        return log_softmax(logits)


def _key(target: Target) -> Hashable:
    """What the computation depends on besides its inputs and its network."""
    return "noisy", target.label_smoothing
