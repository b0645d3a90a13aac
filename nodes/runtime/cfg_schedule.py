"""CFG by a schedule: a wrapper around the prediction of any guider that reads its own `cfg`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import comfy.patcher_extension
import torch
from torch import Tensor

from ...guidance.core.host_copy import to_device
from ...guidance.schedules.schedule import GuidanceSchedule
from ..host import comfy_adapter as adapter

KEY = "cfg_schedule"


def schedule_cfg(model: Any, schedule: GuidanceSchedule) -> Any:
    """The MODEL, with its cfg following the schedule; ScheduleError when its kind does not fit."""
    check_schedule(schedule, model)
    scheduled = model.clone()
    wrappers = comfy.patcher_extension.WrappersMP
    scheduled.add_wrapper_with_key(wrappers.OUTER_SAMPLE, KEY, prepared_for_any_cfg)
    scheduled.add_wrapper_with_key(wrappers.PREDICT_NOISE, KEY, ScheduledCFG(schedule))
    return scheduled


def prepared_for_any_cfg(executor: Any, *args: Any, **options: Any) -> Any:
    """An OUTER_SAMPLE wrapper: a guider that begins at cfg 1 does not leave the negative out."""
    guider = executor.class_obj
    saved = getattr(guider, "cfg", None)
    if saved == 1:
        guider.cfg = 1 + 1e-3  # not taken for 1; each evaluation sets its own
    try:
        return executor(*args, **options)
    finally:
        if saved is not None:
            guider.cfg = saved


def check_schedule(schedule: GuidanceSchedule, model: Any) -> None:
    """Raises ScheduleError when the schedule's sigmas mean nothing on this MODEL."""
    schedule.check_model(adapter.is_flow(model.get_model_object("model_sampling")))


class PerImageScale(Tensor):
    """A scale for each image where core expects a number: as a number it is none, not even 1."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __float__(self) -> float:
        return float("nan")


@dataclass(frozen=True)
class ScheduledCFG:
    """A PREDICT_NOISE wrapper that sets the guider's cfg for one evaluation."""

    schedule: GuidanceSchedule

    def __call__(
        self, executor: Any, x: Tensor, sigma: Tensor, model_options: dict, seed: Any = None
    ) -> Tensor:
        """The guider's denoised image at x and sigma (B,)."""
        guider = executor.class_obj
        check_guider(guider)
        place = adapter.place_of(guider, sigma, model_options)
        scales = self.schedule.scales(place, len(x))
        saved = guider.cfg
        guider.cfg = scales if isinstance(scales, float) else _per_image(scales, x)
        try:
            return executor(x, sigma, model_options, seed)
        finally:
            guider.cfg = saved


def _per_image(scales: list[float], x: Tensor) -> Tensor:
    shape = (len(x), *[1] * (x.ndim - 1))
    values = to_device(x.device, torch.tensor(scales, dtype=x.dtype))
    return values.view(shape).as_subclass(PerImageScale)


def check_guider(guider: Any) -> None:
    """Raises ValueError for a guider that would not follow: without a negative, or a cfg of its."""
    name = type(guider).__name__
    if "negative" not in guider.conds:
        raise ValueError(
            f"CFG Scale Scheduler needs a negative conditioning, and {name} has none; use "
            "Classifier-Free Guidance or CFGGuider, or take CFG Scale Scheduler away."
        )
    # what its prediction reads, in whatever pack it was written
    read = type(guider).predict_noise.__code__.co_names
    if "cfg" not in read and "super" not in read:
        raise ValueError(
            f"CFG Scale Scheduler sets one scale, but {name} keeps scales of its own and would "
            "not follow; use a guider with one cfg, or take CFG Scale Scheduler away."
        )
