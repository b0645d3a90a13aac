"""Many images, batch by batch: what `sample` and `evaluate` share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from ..classifiers.base import Classifier
from ..classifiers.gradient_cache import Memory, cached_classifier
from ..core.distributed import ALONE, Processes
from ..core.images import to_uint8
from ..core.labels import parse_labels
from ..schedules.schedule import GuidanceSchedule
from .cfg_cache import CFGCacheConfig
from .loop import Guide, Step, chain, place_of, sample
from .low_res import UPSCALE
from .model import DiffusionModel
from .respacing import respaced_timesteps
from .strength import Strength


@dataclass(frozen=True, kw_only=True)
class SamplingConfig:
    """What to draw. `cfg` 0 runs the model without labels; `scale` follows the classifier.

    Their
    schedules, where given, take their place. `label` is "random", "all", indices and names with
    commas, or the indices themselves.
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
    every: int = 1
    cfg_every: int = 1
    cfg_tolerance: float = 0.0

    @property
    def strength(self) -> Strength:
        """How the classifier is followed."""
        return Strength(
            scale=self.scale,
            entropy_limit=self.entropy_limit,
            cap=self.cap,
            label_smoothing=self.label_smoothing,
        )

    @property
    def reuse(self) -> CFGCacheConfig:
        """When CFG's term is computed."""
        return CFGCacheConfig(self.cfg_every, self.cfg_tolerance)

    def __post_init__(self) -> None:
        if self.num_samples < 1 or self.batch_size < 1:
            raise ValueError(
                f"num_samples is {self.num_samples} and batch_size {self.batch_size}; "
                "both must be at least 1."
            )
        if not -(2**63) <= self.seed < 2**63:
            raise ValueError(f"seed is {self.seed}; it must fit into 64 bits.")
        _ = self.strength, self.reuse, Memory(self.every)  # say what is wrong with them


def generate(
    model: DiffusionModel,
    classifier: Classifier | None,
    job: SamplingConfig,
    image_size: int | None = None,
    title: str = "sample",
    low_res: Tensor | None = None,
    processes: Processes = ALONE,
) -> tuple[np.ndarray, np.ndarray]:
    """Images uint8 (N, H, W, C) and the labels asked for (N,); shows a progress bar.

    low_res (n, C, h, w) in [-1, 1] are what an upsampler enlarges, taken in turn. Draws follow
    guided-diffusion: for each batch the random labels, then x_T, then one noise per step, from
    one generator. Several processes share the batches out, and each gets all of the images: the
    same as from one.
    """
    _check_channels(model, classifier)
    size = _size(model, image_size, low_res)
    generator = torch.Generator(model.device).manual_seed(job.seed)
    steps = _steps(model, job)
    wanted = _fixed_labels(model, classifier, job)
    images: dict[int, np.ndarray] = {}
    labels: list[int] = []
    starts = range(0, job.num_samples, job.batch_size)
    mine = [start for number, start in enumerate(starts) if processes.has(number)]
    total = len(steps) * sum(min(job.batch_size, job.num_samples - start) for start in mine)
    quiet = not processes.first
    with tqdm(total=total, desc=title, unit="eval", mininterval=0.5, disable=quiet) as bar:
        for start in starts:
            count = min(job.batch_size, job.num_samples - start)
            batch = _batch_labels(model, classifier, wanted, start, count, generator)
            labels += batch.tolist() if batch is not None else [0] * count
            shape = (count, model.layout.image_channels, *size)
            if start not in mine:
                _pass_over(shape, len(steps), generator)
                continue
            small = _turn(low_res, start, count)
            drawn = _draw(model, classifier, job, steps, batch, small, shape, generator, bar)
            images[start] = to_uint8(drawn)
    for others in processes.gathered(images):
        images |= others
    whole = np.concatenate([images[start] for start in starts])
    return whole, np.array(labels, dtype=np.int64)


def check_schedules(model: DiffusionModel, job: SamplingConfig) -> None:
    """Raises ScheduleError for a schedule that does not fit the job's run, before it starts."""
    steps = _steps(model, job)
    whole = min(job.batch_size, job.num_samples)
    last = job.num_samples % job.batch_size or whole
    for schedule in filter(None, (job.schedule, job.cfg_schedule)):
        schedule.check_model(flow=False)
        for index, step in enumerate(steps):
            place = place_of(step, index, len(steps), len(model.schedule))
            for batch in (whole, last):
                schedule.scales(place, batch)


def _steps(model: DiffusionModel, job: SamplingConfig) -> list[Step]:
    timesteps = respaced_timesteps(job.respacing, len(model.schedule))
    return chain(model.schedule.alpha_bar.tolist(), timesteps)


def _pass_over(shape: tuple[int, ...], steps: int, generator: torch.Generator) -> None:
    """Draws what another process draws for its batch: x_T and a noise for each step."""
    for _ in range(1 + steps):
        torch.randn(shape, generator=generator, device=generator.device)


def _check_channels(model: DiffusionModel, classifier: Classifier | None) -> None:
    channels = model.layout.image_channels
    if classifier is not None and classifier.channels not in (None, channels):
        raise ValueError(
            f"The diffusion model's images have {channels} channels and the classifier's "
            f"{classifier.channels}; both must be made for the same images."
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
    job: SamplingConfig,
    steps: Sequence[Step],
    labels: Tensor | None,
    low_res: Tensor | None,
    shape: tuple[int, ...],
    generator: torch.Generator,
    bar: Any,
) -> Tensor:
    x = torch.randn(shape, generator=generator, device=model.device)

    def noise(like: Tensor) -> Tensor:
        bar.update(len(like))
        return torch.randn(like.shape, generator=generator, device=like.device)

    guides = []
    if classifier is not None and labels is not None:
        asked = cached_classifier(classifier, job.every)
        guides.append(Guide(asked, labels, job.strength, job.schedule))
    return sample(
        model,
        x,
        steps,
        method=job.method,
        eta=job.eta,
        labels=labels if model.num_classes else None,
        cfg=job.cfg if job.cfg_schedule is None else job.cfg_schedule,
        reuse=job.reuse,
        guides=guides,
        low_res=low_res,
        clip_denoised=job.clip_denoised,
        noise=noise,
    )


def _turn(low_res: Tensor | None, start: int, count: int) -> Tensor | None:
    """The small images of `count` images from the `start`-th on."""
    if low_res is None:
        return None
    return low_res[[index % len(low_res) for index in range(start, start + count)]]


def _classes(model: DiffusionModel, classifier: Classifier | None) -> int:
    counts = {model.num_classes, (classifier.num_classes or 0) if classifier else 0} - {0}
    if len(counts) > 1:
        raise ValueError(
            f"The diffusion model has {model.num_classes} classes and the classifier "
            f"{classifier.num_classes if classifier else 0}; both must mean the same ones."
        )
    return counts.pop() if counts else 0


def _fixed_labels(
    model: DiffusionModel, classifier: Classifier | None, job: SamplingConfig
) -> list[int] | None:
    """The classes to go through in turn, or None for random ones."""
    classes = _classes(model, classifier)
    if job.label == "random":
        return None
    if classes == 0:
        raise ValueError("Neither the model nor a classifier knows classes; leave --label out.")
    if job.label == "all":
        return list(range(classes))
    if not isinstance(job.label, str):
        return _known(job.label, classes)
    names = (classifier.labels if classifier else None) or model.labels
    return parse_labels(job.label, classes, names)


def _known(labels: Sequence[int], classes: int) -> list[int]:
    outside = [label for label in labels if not 0 <= label < classes]
    if outside:
        raise ValueError(
            f"label {outside[0]} is asked for, but the classes go from 0 to {classes - 1}; "
            "choose others with --label."
        )
    return list(labels)


def _batch_labels(
    model: DiffusionModel,
    classifier: Classifier | None,
    wanted: list[int] | None,
    start: int,
    count: int,
    generator: torch.Generator,
) -> Tensor | None:
    classes = _classes(model, classifier)
    if wanted is not None:
        turn = [wanted[index % len(wanted)] for index in range(start, start + count)]
        return torch.tensor(turn, device=model.device)
    if classes == 0:
        return None
    return torch.randint(0, classes, (count,), generator=generator, device=model.device)


def replace_scales(job: SamplingConfig, scale: float, cfg: float) -> SamplingConfig:
    """The same job at other strengths."""
    return replace(job, scale=scale, cfg=cfg)
