"""CFG with a schedule: a wrapper around the prediction of any guider that reads its `cfg`."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ...guidance.core.bounded_read import one_line
from ...guidance.core.host_copy import to_device
from ...guidance.core.replaced import replaced
from ...guidance.schedules.schedule import GuidanceSchedule
from ..host import hooks, model_info
from ..host.run_state import keep_run_state, run_position, run_state
from .planned_scales import note_plan

KEY = "cfg_schedule"


def schedule_cfg(model: Any, schedule: GuidanceSchedule) -> Any:
    """The MODEL with the scheduled cfg; ScheduleError if the schedule does not fit its sigmas."""
    schedule.check_model(model_info.is_flow(model.get_model_object("model_sampling")))
    scheduled = model.clone()
    keep_run_state(scheduled)
    scheduled.add_wrapper_with_key(hooks.RUN, KEY, prepared_for_any_cfg)
    scheduled.add_wrapper_with_key(hooks.PREDICTION, KEY, ScheduledCFG(schedule))
    scheduled.add_wrapper_with_key(hooks.CONDITIONINGS, KEY, note_cfg_function)
    return scheduled


def prepared_for_any_cfg(executor: Any, *args: Any, **options: Any) -> Any:
    """Keeps the negative in the run of a guider that starts at cfg 1."""
    guider = executor.class_obj
    if getattr(guider, "cfg", None) != 1:
        return executor(*args, **options)
    # core does not treat it as 1; each evaluation sets the real value
    with replaced(guider, "cfg", 1 + 1e-3):
        return executor(*args, **options)


class PerImageScale(Tensor):
    """One scale per image where core expects a number. As a float it is NaN, never equal to 1."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    def __float__(self) -> float:
        return float("nan")


@dataclass(frozen=True)
class ScheduledCFG:
    """Sets the guider's cfg for one evaluation."""

    schedule: GuidanceSchedule

    def __call__(
        self, executor: Any, x: Tensor, sigma: Tensor, model_options: dict, seed: Any = None
    ) -> Tensor:
        """The guider's denoised image at x and sigma (B,)."""
        guider, state = executor.class_obj, run_state(model_options)
        if "negative" not in guider.conds:  # it has no CFG
            raise ValueError(
                f"CFG Scale Scheduler needs a negative conditioning, and {type(guider).__name__} "
                "has none; use Classifier-Free Guidance or CFGGuider, or remove CFG Scale "
                "Scheduler."
            )
        position = run_position(guider, sigma, model_options)
        scales = self.schedule.scales(position, len(x))
        note_plan("cfg", self.schedule, guider, model_options, len(x))
        cfg = scales if isinstance(scales, float) else _per_image(scales, x)
        for trace in hooks.options_of(model_options).get(hooks.TRACES, ()):
            trace.cfg(cfg)  # core calls no CFG function where it is 1
        followed = state.cfg_is_followed
        try:
            with replaced(guider, "cfg", cfg) if followed else cfg_followed(guider, cfg):
                denoised = executor(x, sigma, model_options, seed)
        except (RuntimeError, TypeError) as error:
            _check_per_image(state.cfg_function, cfg, x, sigma, error)
            raise
        if not followed and ignores_scale(state.cfg_function, x, sigma):
            raise _keeps_its_own(f"{type(guider).__name__}, or a CFG patch on model,")
        state.cfg_is_followed = True
        return denoised


def note_cfg_function(
    executor: Any, model: Any, conds: list, x: Tensor, sigma: Tensor, options: dict
) -> Any:
    """A wrapper around the conditionings: some guiders bring a CFG function of their own."""
    run_state(options).cfg_function = options.get("sampler_cfg_function")
    return executor(model, conds, x, sigma, options)


def ignores_scale(function: Any, x: Tensor, sigma: Tensor) -> bool:
    """Whether a CFG function gives the same for every scale; tried once, on constant images."""
    try:
        return torch.equal(*(_tried(function, scale, x, sigma) for scale in (2.0, 3.0)))
    except Exception:  # there is none, or it needs more than this, so it cannot be tried
        return False


def _check_per_image(function: Any, cfg: Any, x: Tensor, sigma: Tensor, error: Exception) -> None:
    """Raises ValueError if the error is that a CFG function takes no scale per image."""
    if function is None or not isinstance(cfg, PerImageScale):
        return
    try:
        _tried(function, 2.0, x, sigma)
    except Exception:  # it cannot be tried
        return
    try:
        _tried(function, cfg, x, sigma)
    except Exception:
        raise ValueError(
            "CFG Scale Scheduler has a scale per image, but a CFG patch on model takes one scale "
            f"({one_line(error)}); leave per_image empty, or remove the patch."
        ) from error


def _tried(function: Any, scale: Any, x: Tensor, sigma: Tensor) -> Tensor:
    """What a CFG function gives for constant images."""
    cond, uncond = torch.ones_like(x), torch.zeros_like(x)
    names = ("input", "cond", "cond_denoised", "uncond", "uncond_denoised")
    about = dict(zip(names, (uncond, cond, cond, uncond, uncond), strict=True))
    about |= {"timestep": sigma, "sigma": sigma, "model": None, "model_options": {}}
    return function({**about, "cond_scale": scale})


def _per_image(scales: list[float], x: Tensor) -> Tensor:
    shape = (len(x), *[1] * (x.ndim - 1))
    with torch.inference_mode(False):  # an exact gradient may go through it
        values = to_device(x.device, torch.tensor(scales, dtype=x.dtype))
        return values.view(shape).as_subclass(PerImageScale)


@contextmanager
def cfg_followed(guider: Any, cfg: Any) -> Iterator[None]:
    """Sets the guider's cfg during the block; raises ValueError after it if it was not read.

    During the block, the guider's class is replaced by one whose `cfg` property records reads and
    writes. So it works for guiders of any pack, also if their methods are wrapped.
    """
    kind, seen = type(guider), set()

    class Watched(kind):  # type: ignore[misc, valid-type]
        @property
        def cfg(self) -> Any:
            seen.add("read")
            return cfg

        @cfg.setter
        def cfg(self, value: Any) -> None:
            seen.add("replaced")

    Watched.__name__ = Watched.__qualname__ = kind.__name__
    guider.__class__ = Watched
    try:
        yield
    finally:
        guider.__class__ = kind
    if seen != {"read"}:
        raise _keeps_its_own(kind.__name__)


def _keeps_its_own(name: str) -> ValueError:
    """The error for a guider that a schedule cannot steer."""
    return ValueError(
        f"CFG Scale Scheduler sets one scale, but {name} has scales of its own and "
        "ignores it; use a guider with one cfg, or remove CFG Scale Scheduler."
    )
