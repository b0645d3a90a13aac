"""A classifier of clean images, p(y | x0), that reads the predicted x0.

p(y | x) is approximated by p(y | D(x)), with the model's prediction D(x) = E[x0 | x] (Chung et al.
2023, "Diffusion Posterior Sampling"; Bansal et al. 2023, "Universal Guidance for Diffusion
Models"). With g = grad log p(y | x0) at x0 = D(x) and J = dD/dx, grad_x log p(y | D(x)) = J^T g,
and guidance adds sigma^2 / alpha * J^T g. See docs/image_classifiers.md for the maths and costs.
"""

from __future__ import annotations

import copy
import functools
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..core.autograd import (
    at_least_fp32,
    compute_dtype,
    log_softmax,
    loss_scale,
    tracked,
    use_ordinary_weights,
)
from ..core.cuda_graph import EAGER, GraphCache
from ..core.host_copy import device_of, to_device
from ..core.noise import tweedie_weight, within_range
from .base import (
    ClassifierOutput,
    SamplingPoint,
    Target,
    check_labels,
    label_of_each,
    likelihood_of,
    nan_unless_finite,
)
from .looks import NO_LOOKS, Looks, LooksMemory, log_mean_exp, noise_like
from .preprocessing import Preprocessing

GRADIENTS = ("cheap", "exact")
SCORE_LABELS = ("score",)
# From the network's output (B, classes) to what is guided by, at least in fp32.
ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": log_softmax,
    "sigmoid": lambda logits: F.logsigmoid(at_least_fp32(logits)),
    "score": at_least_fp32,
}
# of the linear schedule of Ho et al. 2020; above it x has no usable information about x0
MAX_RATIO = 157.4
Decode = Callable[[Tensor], Tensor]


class ImageClassifier:
    """`network(pixels) -> logits` (B, classes), with its preprocessing and its classes.

    `preprocessing` converts RGB in [-1, 1] to the network's input. `decode` (B, ...) ->
    (B, 3, H, W) converts the sampler's x0 to such pixels; None if x0 is pixels. `gradient`:

    - "exact": J by autograd through the model's whole prediction. Since J = alpha / sigma^2
      Cov(x0 | x) (Tweedie), guidance adds Cov(x0 | x) g.
    - "cheap": J of a denoiser of Gaussian data of standard deviation s = `data_std`,
      alpha s^2 / (alpha^2 s^2 + sigma^2) I, so that guidance adds r^2 g with
      r^2 = s^2 sigma^2 / (alpha^2 s^2 + sigma^2), the variance of x0 given x in Song et al. 2023,
      "Pseudoinverse-Guided Diffusion Models". The model is not differentiated.

    `activation` makes log p(y | x0) of the logits:

    - "softmax": of classes that exclude each other.
    - "sigmoid": of each class on its own, log sigmoid(logit).
    - "score": the network has one output, and it is used as it is: the rating of an aesthetic or
      reward model. Such a score takes the place of log p(y | x0) everywhere, so guidance follows
      its gradient.

    `looks`: g is of log (1/K) sum_k p(y | look k of x0), or of the mean score; see `Looks`.

    Raises ValueError for another gradient or activation, or a wrong number of labels or scores.
    """

    reads_images = True
    channels = 3
    space = "rgb"

    def __init__(
        self,
        network: nn.Module,
        preprocessing: Preprocessing,
        num_classes: int,
        labels: Sequence[str] | None = None,
        *,
        gradient: str = "cheap",
        data_std: float = 1.0,
        decode: Decode | None = None,
        activation: str = "softmax",
        looks: Looks = NO_LOOKS,
    ):
        _check_choice("gradient", gradient, GRADIENTS)
        _check_choice("activation", activation, ACTIVATIONS)
        if activation == "score" and num_classes != 1:
            raise ValueError(f"A score is one output; this network has {num_classes}.")
        if not data_std > 0:
            raise ValueError(f"data_std is {data_std}; it must be above 0.")
        if labels is not None and len(labels) != num_classes:
            raise ValueError(f"labels names {len(labels)} classes; the network has {num_classes}.")
        self.network = network
        self.preprocessing = preprocessing
        self.num_classes = num_classes
        self.labels = tuple(labels) if labels is not None else None
        self.through_model = gradient == "exact"
        self.data_std = data_std
        self.decode = decode
        self.activation = activation
        self.looks = looks
        self.memory = LooksMemory(looks.count)

    @classmethod
    def of_outputs(
        cls,
        network: nn.Module,
        preprocessing: Preprocessing,
        outputs: int,
        labels: Sequence[str] | None = None,
    ) -> ImageClassifier:
        """A classifier of as many classes; of one output a score, with the label "score"."""
        if outputs == 1:
            return cls(network, preprocessing, 1, SCORE_LABELS, activation="score")
        return cls(network, preprocessing, outputs, labels)

    @property
    def is_score(self) -> bool:
        """Whether its log_probs are a score: one number per image, of any size."""
        return self.activation == "score"

    def with_network(self, network: nn.Module, decode: Decode | None = None) -> ImageClassifier:
        """The same classifier with another copy of its network and this `decode`."""
        placed = copy.copy(self)
        placed.network, placed.decode = network, decode
        return placed

    def with_gradient(self, gradient: str) -> ImageClassifier:
        """The same classifier with another gradient, "cheap" or "exact"."""
        _check_choice("gradient", gradient, GRADIENTS)
        other = copy.copy(self)
        other.through_model = gradient == "exact"
        return other

    def with_looks(self, looks: Looks) -> ImageClassifier:
        """The same classifier with the gradient over these looks."""
        other = copy.copy(self)
        other.looks, other.memory = looks, LooksMemory(looks.count)
        return other

    @torch.no_grad()
    def image_log_probs(self, images: Tensor) -> Tensor:
        """log p(y | image) of every class (B, classes), at least fp32, of RGB in [-1, 1].

        Of a score: the score itself (B, 1).
        """
        return self._log_probs(images).to(images.device)

    def start(
        self, x: Tensor, sigma: Tensor, alpha: Tensor, target: Target, graphs: GraphCache
    ) -> None:
        """Nothing: it reads the prediction."""

    def output(self, point: SamplingPoint, target: Target) -> ClassifierOutput:
        """The output for the predicted x0, `point.denoised`.

        exact: raises ValueError if it was not computed from `point.x` under torch.enable_grad. Its
        graph is kept.
        """
        gradient, log_probs, seen = self.image_gradient(
            point.denoised, target, point.generator, point.graphs
        )
        decoded = None if self.decode is None else nan_unless_finite(seen)
        levels = point.sigma, point.alpha
        if not self.through_model:
            weight = self._variance(*levels)
            return ClassifierOutput(gradient, weight, log_probs, *levels, decoded, seen)
        near = within_range(*levels, MAX_RATIO)
        gradient = jacobian_product(point.denoised, point.x, gradient)
        return ClassifierOutput(gradient, tweedie_weight(*near), log_probs, *near, decoded, seen)

    def rescale(self, output: ClassifierOutput, sigma: Tensor, alpha: Tensor) -> ClassifierOutput:
        """The output for another noise level.

        cheap: g stays the same. exact: Cov(x0 | x) g, the term itself, stays the same.
        """
        if self.through_model:
            return output
        return replace(output, weight=self._variance(sigma, alpha), sigma=sigma, alpha=alpha)

    def _variance(self, sigma: Tensor, alpha: Tensor) -> Tensor:
        """r^2, the weight of cheap."""
        return self.data_std**2 * sigma**2 / (alpha**2 * self.data_std**2 + sigma**2)

    def image_gradient(
        self,
        x0: Tensor,
        target: Target,
        generator: torch.Generator | None = None,
        graphs: GraphCache = EAGER,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """g = grad_x0 log p(target | x0), log p(y | x0) (B, classes), and the pixels of x0.

        Of a score f: grad_x0 f(x0), and f(x0) (B, 1). Where memory is short, looks are taken in
        parts.
        """
        generator = generator or torch.default_generator
        while True:
            state = generator.get_state()
            try:
                return self._image_gradient(x0, target, generator, graphs)
            except torch.OutOfMemoryError:
                if not self.memory.can_shrink:
                    raise
            # after the except block, which keeps the tensors alive
            self.memory.shrink()
            generator.set_state(state)

    def _image_gradient(
        self, x0: Tensor, target: Target, generator: torch.Generator, graphs: GraphCache
    ) -> tuple[Tensor, Tensor, Tensor]:
        with tracked(x0.detach().to(device_of(self.network, x0.device))) as x_in:
            pixels = x_in if self.decode is None else self.decode(x_in)
            inputs = self._inputs(self._ready(pixels), generator)
            labels = label_of_each(target.labels, len(x0))
            check_labels(labels, self.num_classes)
            # VAEs may compute in fp16, too, so the loss is scaled through both
            scale = loss_scale(compute_dtype(self.network, x0), pixels.dtype)
            compute = functools.partial(self._inputs_gradient, target.label_smoothing, scale)
            given = inputs.detach(), to_device(inputs.device, labels)
            # in parts, memory is short
            using = EAGER if self.memory.is_short else graphs
            of_inputs, log_probs = using.run(
                ("image", target.label_smoothing, scale), self.network, compute, *given
            )
            (gradient,) = torch.autograd.grad(inputs, x_in, of_inputs)
        return (gradient / scale).to(x0.device), log_probs.to(x0.device), pixels.detach()

    def _inputs(self, pixels: Tensor, generator: torch.Generator) -> Tensor:
        """What the network reads at each look (looks, B, C, H, W); without looks at one."""
        if self.looks.count == 0:
            return self.preprocessing(pixels)[None]
        looks = torch.cat(self.looks.of(pixels, generator))
        inputs = self.preprocessing(looks).unflatten(0, (self.looks.count, -1))
        noise = self.looks.noise * noise_like(inputs, generator)
        return inputs + self.preprocessing.of_difference(noise)

    def _inputs_gradient(
        self, label_smoothing: float, scale: float, inputs: Tensor, labels: Tensor
    ) -> tuple[Tensor, Tensor]:
        """The gradient with respect to the inputs, times the scale, and log p (B, classes)."""
        with torch.inference_mode(False), torch.enable_grad():
            use_ordinary_weights(self.network)
            tracked_inputs = inputs.clone().requires_grad_(True)
            log_probs = self.memory.over_parts(self._of_inputs, tracked_inputs)
            log_probs = log_probs.mean(0) if self.is_score else log_mean_exp(log_probs)
            chosen = likelihood_of(log_probs, labels, label_smoothing)
            (gradient,) = torch.autograd.grad(chosen * scale, tracked_inputs)
            return gradient, log_probs.detach()

    def _log_probs(self, pixels: Tensor) -> Tensor:
        return self._of_inputs(self.preprocessing(self._ready(pixels)))

    def _ready(self, pixels: Tensor) -> Tensor:
        pixels = pixels.to(device_of(self.network, pixels.device))
        # resizing and normalising in half precision would round the image to its 256 levels
        return at_least_fp32(pixels)

    def _of_inputs(self, inputs: Tensor) -> Tensor:
        logits = self.network(inputs.to(compute_dtype(self.network, inputs)))
        return ACTIVATIONS[self.activation](logits)


def _check_choice(name: str, value: str, known: Iterable[str]) -> None:
    if value not in known:
        raise ValueError(f"{name} is {value!r}; expected one of {', '.join(known)}.")


def jacobian_product(denoised: Tensor, x: Tensor, gradient: Tensor) -> Tensor:
    """J^T gradient (B, ...), J = d denoised / d x, from torch's graph. The graph is kept."""
    if not (denoised.requires_grad and x.requires_grad):
        raise ValueError(
            "denoised is not connected with x in torch's graph, so there is no exact gradient; "
            "predict it under torch.enable_grad from an x that requires grad, or use cheap."
        )
    with torch.inference_mode(False):
        # fp16 models would lose small gradients; a power of two does not round. It is one for the
        # batch, since the images of a batch may depend on each other: frames of a video do
        size = gradient.abs().nan_to_num(0, 0).amax().clamp(min=torch.finfo(gradient.dtype).tiny)
        unit = torch.exp2(size.log2().floor())
        (product,) = torch.autograd.grad(denoised, x, gradient / unit, retain_graph=True)
        return product * unit
