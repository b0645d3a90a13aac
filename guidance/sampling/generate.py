"""Sampling of many images, batch by batch, for the commands `sample` and `evaluate`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..classifiers.base import Classifier
from ..classifiers.gradient_cache import GradientCache
from ..core.distributed import ALONE, Processes
from ..core.images import to_uint8
from ..core.labels import parse_labels
from ..schedules.schedule import GuidanceSchedule
from .cfg_cache import CFGCacheConfig
from .classifier_guidance import Guide, looks_generator
from .loop import sample, step_position, turns
from .low_res import UPSCALE
from .model import DiffusionModel
from .recurrence import END_PERCENT, check_repeats
from .respacing import respaced_timesteps
from .steps import Step, chain
from .strength import Strength


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """What to sample. `cfg` 0 runs the model without labels; `scale` is the classifier's.

    `cfg_schedule` and `schedule` replace them. `label` is "random", "all", a comma-separated list
    of indices and names, or a sequence of indices.
    """

    num_samples: int
    batch_size: int = 50
    label: str | Sequence[int] = "random"
    cfg: float = 1.0
    scale: float = 0.0
    method: str = "ddim"
    eta: float = 0.0
    respacing: str = "ddim50"
    seed: int = 0
    clip_denoised: bool = True
    entropy_limit: float = 1.0
    cap: float = 0.0
    label_smoothing: float = 0.0
    schedule: GuidanceSchedule | None = None
    cfg_schedule: GuidanceSchedule | None = None
    normalize: bool = False
    gradient_interval: int = 1
    cfg_interval: int = 1
    cfg_tolerance: float = 0.0
    recurrence: int = 1

    @property
    def strength(self) -> Strength:
        return Strength(
            scale=self.scale,
            entropy_limit=self.entropy_limit,
            cap=self.cap,
            label_smoothing=self.label_smoothing,
            normalize=self.normalize,
        )

    @property
    def cfg_cache(self) -> CFGCacheConfig:
        return CFGCacheConfig(self.cfg_interval, self.cfg_tolerance)

    def __post_init__(self) -> None:
        if self.num_samples < 1 or self.batch_size < 1:
            raise ValueError(
                f"num_samples is {self.num_samples} and batch_size {self.batch_size}; "
                "both must be at least 1."
            )
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; it must fit into 64 bits.")
        # these raise for invalid values
        check_repeats(self.recurrence)
        _ = self.strength, self.cfg_cache, GradientCache(self.gradient_interval)


def generate(
    model: DiffusionModel,
    classifier: Classifier | None,
    config: SamplingConfig,
    image_size: int | None = None,
    title: str = "sample",
    low_res: Tensor | None = None,
    processes: Processes = ALONE,
) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, H, W, C) and their labels (N,); shows a progress bar.

    low_res (n, C, h, w) in [-1, 1] are the small images of an upsampler, used in turn. Random
    numbers are drawn as in guided-diffusion: for each batch the labels, then x_T, then one noise
    per step, from one generator. With recurrence, each further turn of a step draws two: what is
    put back, and the noise of its step. Several processes share the batches, and each returns all
    images; the images are the same as from one process.

    Raises ValueError if the models, the labels or the steps do not fit the config.
    """
    _check_channels(model, classifier)
    size = _size(model, image_size, low_res)
    generator = torch.Generator(model.device).manual_seed(config.seed)
    steps = _steps(model, config)
    classes = _classes(model, classifier)
    wanted = _fixed_labels(model, classifier, config, classes)
    images: dict[int, np.ndarray] = {}
    labels: list[int] = []
    starts = range(0, config.num_samples, config.batch_size)
    batches = [range(config.num_samples)[start : start + config.batch_size] for start in starts]
    mine = [numbers for index, numbers in enumerate(batches) if processes.has(index)]
    evaluations, draws = _counts(model, config, steps)
    total = evaluations * sum(map(len, mine))
    quiet = not processes.first
    with tqdm(total=total, desc=title, unit="eval", mininterval=0.5, disable=quiet) as bar:

        def noise(like: Tensor) -> Tensor:
            return torch.randn(like.shape, generator=generator, device=like.device)

        for numbers in batches:
            batch = _batch_labels(wanted, classes, numbers, generator)
            labels += batch.tolist() if batch is not None else [0] * len(numbers)
            shape = (len(numbers), model.layout.image_channels, *size)
            x = torch.randn(shape, generator=generator, device=model.device)
            if numbers not in mine:  # only passes over the random numbers of another process
                for _ in range(draws):
                    torch.randn(shape, generator=generator, device=model.device)
                continue
            small = None if low_res is None else low_res[[n % len(low_res) for n in numbers]]
            run = {"noise": noise, "progress": bar.update}
            at = numbers.start
            drawn = _draw(model, classifier, config, at, x, steps, batch, small, **run)
            images[at] = to_uint8(drawn)
    for others in processes.gathered(images):
        images |= others
    whole = np.concatenate([images[start] for start in starts])
    return whole, np.array(labels, dtype=np.int64)


def check_schedules(model: DiffusionModel, config: SamplingConfig) -> None:
    """Raises ScheduleError if a schedule does not fit the run, before it starts."""
    steps = _steps(model, config)
    whole = min(config.batch_size, config.num_samples)
    last = config.num_samples % config.batch_size or whole
    for schedule in filter(None, (config.schedule, config.cfg_schedule)):
        schedule.check_model(flow=False)
        for index, step in enumerate(steps):
            position = step_position(step, index, len(steps), len(model.schedule))
            for batch in (whole, last):
                schedule.scales(position, batch)


def _steps(model: DiffusionModel, config: SamplingConfig) -> list[Step]:
    timesteps = respaced_timesteps(config.respacing, len(model.schedule))
    return chain(model.schedule.alpha_bar.tolist(), timesteps)


def _counts(
    model: DiffusionModel, config: SamplingConfig, steps: Sequence[Step]
) -> tuple[int, int]:
    """How often a batch is evaluated, and how much noise is drawn for it after x_T."""
    plan = list(turns(steps, len(model.schedule), config.recurrence))
    put_back = sum(again for *_, again in plan)
    if config.recurrence > 1 and not put_back:
        raise ValueError(
            f"recurrence is {config.recurrence}, but no timestep of respacing "
            f"{config.respacing!r} is in the first {END_PERCENT:.0%} of the model's, where steps "
            "are repeated; leave it out."
        )
    return len(plan), len(plan) + put_back


def _check_channels(model: DiffusionModel, classifier: Classifier | None) -> None:
    channels = model.layout.image_channels
    if classifier is not None and classifier.channels not in (None, channels):
        raise ValueError(
            f"The diffusion model's images have {channels} channels and the classifier's "
            f"{classifier.channels}; use models for the same images."
        )


def _size(model: DiffusionModel, image_size: int | None, low_res: Tensor | None) -> tuple[int, int]:
    """H, W of the images."""
    if image_size is None and low_res is not None:
        return UPSCALE * low_res.shape[2], UPSCALE * low_res.shape[3]
    side = model.layout.image_size if image_size is None else image_size
    if side is None:
        raise ValueError("The file does not say how large its images are; give --image-size.")
    if side < 1:
        raise ValueError(f"image_size is {side}; it must be at least 1.")
    return side, side


def _draw(
    model: DiffusionModel,
    classifier: Classifier | None,
    config: SamplingConfig,
    first: int,
    x: Tensor,
    steps: Sequence[Step],
    labels: Tensor | None,
    low_res: Tensor | None,
    **run: Callable[..., Any],
) -> Tensor:
    guides = []
    if classifier is not None and labels is not None:
        cache = GradientCache(config.gradient_interval)
        generator = looks_generator(config.seed + first)
        about = (config.strength, config.schedule, cache, generator)
        guides.append(Guide(classifier, labels, *about))
    return sample(
        model,
        x,
        steps,
        method=config.method,
        eta=config.eta,
        labels=labels if model.num_classes else None,
        cfg=config.cfg if config.cfg_schedule is None else config.cfg_schedule,
        cfg_cache=config.cfg_cache,
        guides=guides,
        low_res=low_res,
        clip_denoised=config.clip_denoised,
        recurrence=config.recurrence,
        **run,
    )


def _classes(model: DiffusionModel, classifier: Classifier | None) -> int:
    of_model, of_classifier = model.num_classes, (classifier and classifier.num_classes) or 0
    if of_model and of_classifier and of_model != of_classifier:
        raise ValueError(
            f"The diffusion model has {of_model} classes and the classifier {of_classifier}; both "
            "must have the same classes."
        )
    return of_model or of_classifier


def _fixed_labels(
    model: DiffusionModel, classifier: Classifier | None, config: SamplingConfig, classes: int
) -> list[int] | None:
    """The classes to use in turn, or None for random ones."""
    if config.label == "random":
        return None
    if classes == 0:
        raise ValueError("Neither the model nor a classifier has classes; remove --label.")
    if config.label == "all":
        return list(range(classes))
    if isinstance(config.label, str):
        names = (classifier.labels if classifier else None) or model.labels
        return parse_labels(config.label, classes, names)
    outside = [label for label in config.label if not 0 <= label < classes]
    if outside:
        raise ValueError(
            f"label is {outside[0]}, but the classes go from 0 to {classes - 1}; "
            "choose others with --label."
        )
    return list(config.label)


def _batch_labels(
    wanted: list[int] | None, classes: int, numbers: range, generator: torch.Generator
) -> Tensor | None:
    """The labels of the images with these numbers."""
    if wanted is not None:
        turn = [wanted[number % len(wanted)] for number in numbers]
        return torch.tensor(turn, device=generator.device)
    if classes == 0:
        return None
    return torch.randint(0, classes, (len(numbers),), generator=generator, device=generator.device)
