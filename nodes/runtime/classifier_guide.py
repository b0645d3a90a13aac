"""Classifier guidance as a wrapper around the prediction of any guider."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from ...guidance.adm import EncoderUNet
from ...guidance.classifiers.base import ClassifierOutput, SamplingPoint
from ...guidance.classifiers.gradient_cache import GradientCache
from ...guidance.classifiers.noisy import NoisyClassifier
from ...guidance.core.host_copy import to_device
from ...guidance.core.labels import class_names, spread_labels
from ...guidance.core.noise import levels_like, per_image
from ...guidance.sampling.classifier_guidance import Guide, Report, looks_generator
from ...guidance.sampling.classifier_record import MOST_IMAGES, TracedClassifier
from ...guidance.sampling.strength import Strength
from ...guidance.sampling.trace import Trace
from ...guidance.schedules.schedule import GuidanceSchedule
from ..host import hooks, model_info
from ..host.autograd import differentiating, predict_with_graph
from ..host.classifiers import PlacedClassifier
from ..host.delegate import differentiable
from ..host.latent_preview import latent_preview
from ..host.memory import reserve_gradient_memory
from ..host.patcher import attach
from ..host.paths import short_name
from ..host.run_state import keep_run_state, run_position, run_state
from ..host.server import faults_of
from .fit import check_fit
from .planned_scales import note_plan

KEY = "classifier_guidance"
NAME = "label of Classifier Guidance"


def guided(
    model: Any,
    placed: PlacedClassifier,
    labels: list[int],
    strength: Strength,
    schedule: GuidanceSchedule | None = None,
    gradient_interval: int = 1,
    node: str | None = None,
) -> Any:
    """The MODEL with guidance; raises ValueError if the classifier cannot steer it.

    node: where the page shows an input that turns out to be wrong when sampling begins.
    """
    check_fit(placed, model)
    if schedule is not None:
        schedule.check_model(model_info.is_flow(model.get_model_object("model_sampling")))
    if schedule is None and not strength.is_on:
        return model
    # here, so that all that follows the node in the graph belongs to the MODEL that is sampled
    steered = differentiable(model).clone() if placed.classifier.through_model else model.clone()
    # a different key for each node in a row, so that their guidance adds up
    key = f"{KEY}_{sum(name.startswith(KEY) for name in steered.additional_models)}"
    attach(steered, key, placed.patchers(model))
    reserve_gradient_memory(steered)
    keep_run_state(steered)
    wrapper = ClassifierGuide(placed, labels, strength, key, schedule, gradient_interval, node)
    steered.add_wrapper_with_key(hooks.PREDICTION, key, wrapper)
    return steered


@dataclass(frozen=True)
class ClassifierGuide:
    """Adds the classifier's term to the denoised image of each evaluation."""

    placed: PlacedClassifier
    labels: list[int]
    strength: Strength
    key: str
    schedule: GuidanceSchedule | None = None
    gradient_interval: int = 1
    node: str | None = None

    def __call__(
        self, executor: Any, x: Tensor, sigma: Tensor, model_options: dict, seed: Any = None
    ) -> Tensor:
        """The guider's denoised image (B, C, H, W) at x and sigma (B,), guided."""
        # checked before the diffusion model runs, so that a wrong label or size fails at once
        with faults_of(self.node):
            labels = torch.tensor(spread_labels(self.labels, len(x), NAME))
            self._check_shape(x)
        state, options = run_state(model_options), hooks.options_of(model_options)
        guide = self._guide(executor.class_obj, x, sigma, labels, model_options, seed)
        if guide is None:
            return executor(x, sigma, model_options, seed)
        with state.guidance_sum() as total:
            total.terms = 0.0  # an outer wrapper may evaluate more than once
            model = executor.class_obj.inner_model
            level, alpha = model_info.levels_of(model.model_sampling, sigma)
            levels = levels_like(x, level, alpha)
            exact = guide.needs_graph(x)
            if exact:
                x_in, denoised = predict_with_graph(executor, x, sigma, model_options, seed)
            else:
                guide.start(x, *levels)
                x_in, denoised = x, executor(x, sigma, model_options, seed)
            point = SamplingPoint(x_in, total.removed_from(denoised), *levels)
            with differentiating() if exact else contextlib.nullcontext():
                report = self._reporting(options.get(hooks.TRACES, ()), guide, executor.class_obj)
                term = guide.term(point, state.nan_guard, report).detach()
            # an outer wrapper that differentiates needs the graph; otherwise it is freed here
            denoised = denoised if x.requires_grad else denoised.detach()
            side_outputs = options.get(hooks.SIDE_OUTPUTS)
            if side_outputs is not None:
                # the gradient of this term: algorithm 1 weights it with another variance
                side_outputs.gradients.append(term * per_image(alpha / level**2, term))
                return denoised
            total.terms = total.terms + term
            return denoised + term

    def _guide(
        self, guider: Any, x: Tensor, sigma: Tensor, labels: Tensor, model_options: dict, seed: Any
    ) -> Guide | None:
        """The guide of this run with its current scale; None if it is off."""
        position = None
        if self.schedule is not None:
            position = run_position(guider, sigma, model_options)
            note_plan(self.key, self.schedule, guider, model_options, len(x))
        # looked up by key, because cloning a MODEL also clones the attached models
        patchers = guider.model_patcher.get_additional_models_with_key(self.key)
        classifier = self.placed.bind(patchers, guider.inner_model)
        cache = run_state(model_options).cache
        if model_info.is_single_frame(x) and isinstance(classifier, NoisyClassifier):
            network = classifier.network
            # one for the run, so that its CUDA graph is found again
            frame = cache((self.key, network, "frame"), lambda: SingleFrame(network))
            classifier = classifier.with_network(frame)
        return Guide(
            classifier,
            to_device(x.device, labels),
            self.strength,
            self.schedule,
            cache(self.key, lambda: GradientCache(self.gradient_interval)),
            cache((self.key, "looks"), lambda: looks_generator(seed or 0)),
            run_state(model_options).graphs.every(self.gradient_interval),
        ).at(position, len(x))

    def _reporting(self, traces: tuple[Trace, ...], guide: Guide, guider: Any) -> Report | None:
        """A function that writes to the traces; None without traces."""
        if not traces:
            return None
        classifier = guide.classifier
        which = TracedClassifier(
            self.key,
            short_name(self.placed.file_name),
            tuple(self.labels),
            class_names(classifier.num_classes or 0, classifier.labels),
            classifier.is_score,
        )

        def report(scales: Tensor, term: Tensor, output: ClassifierOutput) -> None:
            if output.seen is not None and not classifier.reads_images:
                images = latent_preview(guider.model_patcher, output.seen[:MOST_IMAGES])
                output = replace(output, seen=images)
            for trace in traces:
                trace.classifier(which, scales, term, guide.labels, output)

        return report

    def _check_shape(self, x: Tensor) -> None:
        if x.ndim != 4 and not model_info.is_single_frame(x):
            raise ValueError(
                f"Classifier Guidance steers images (B, C, H, W), but this latent is {_kind(x)}, "
                f"{tuple(x.shape)}; remove Classifier Guidance, or sample an image."
            )
        network = self.placed.classifier.network
        if isinstance(network, EncoderUNet):
            network.check_size(x.shape[-2:])


class SingleFrame(torch.nn.Module):
    """A network of images, for images in a video model's shape."""

    def __init__(self, network: torch.nn.Module):
        super().__init__()
        self.network = network
        self.layout = getattr(network, "layout", None)
        self.compute_dtype = getattr(network, "compute_dtype", None)

    def forward(self, x: Tensor, t: Tensor, **options: Any) -> Tensor:
        """x (B, C, 1, H, W) and t (B,) -> logits (B, classes)."""
        return self.network(x.squeeze(2), t, **options)


def _kind(x: Tensor) -> str:
    """Names a latent that is not an image; core packs several latents into (B, 1, N)."""
    if x.ndim == 5:
        return "a video (B, C, T, H, W)"
    return "sound, or video and sound packed together" if x.ndim == 3 else "no image"
