"""The state of one sampling run: created when the run starts, dropped when it ends.

It is stored in the run's transformer_options. Core copies these for each run, and some samplers
copy them for each step; all copies refer to the same object.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import comfy.model_sampling
import numpy as np
import torch
from torch import Tensor

from ...guidance.core.cuda_graph import EAGER, GraphCache
from ...guidance.core.host_copy import HostCopy
from ...guidance.core.replaced import replaced
from ...guidance.sampling.nan_guard import NaNGuard
from ...guidance.schedules.run_position import RunPosition, step_of
from . import hooks
from .cuda_graphs import graphs_of_run

T = TypeVar("T")


class SigmaSchedule:
    """The sigmas of a run, and the position of a sigma in the run."""

    def __init__(self, model_sampling: Any, sigmas: Tensor):
        self.sampling = model_sampling
        # the table of core's usual 1,000 timesteps; LCM and Stable Cascade read theirs differently
        usual = comfy.model_sampling.ModelSamplingDiscrete
        read_as_usual = getattr(type(model_sampling), "sigma", None) is usual.sigma
        self._sigmas = HostCopy(sigmas)
        self._log_sigmas = HostCopy(model_sampling.log_sigmas.float()) if read_as_usual else None

    @functools.cached_property
    def sigmas(self) -> list[float]:
        """The sigmas of the steps."""
        return self._sigmas.wait().tolist()

    @functools.cached_property
    def log_sigmas(self) -> np.ndarray | None:
        """The log sigmas of the model's timesteps; None if the model has no table."""
        return None if self._log_sigmas is None else self._log_sigmas.wait().numpy()

    def position(self, sigma: float) -> RunPosition:
        """The position of any sigma, also between two steps (second-order samplers)."""
        steps = max(len(self.sigmas) - 1, 1)
        step = min(step_of(self.sigmas, sigma), steps - 1)
        return RunPosition(percent=self._percent(sigma), step=step, steps=steps, sigma=sigma)

    def _percent(self, sigma: float) -> float:
        """The inverse of core's percent_to_sigma."""
        if sigma <= 0:
            return 1.0
        if self.log_sigmas is not None:
            timestep = np.interp(math.log(sigma), self.log_sigmas, np.arange(len(self.log_sigmas)))
            return min(max(1 - float(timestep) / 999.0, 0.0), 1.0)  # 999: as in core
        low, high = 0.0, 1.0
        for _ in range(30):
            middle = (low + high) / 2
            if float(self._on_cpu.percent_to_sigma(middle)) > sigma:
                low = middle
            else:
                high = middle
        return high

    @functools.cached_property
    def _on_cpu(self) -> Any:
        """The model sampling where nobody waits for the device."""
        return copy.deepcopy(self.sampling).to("cpu")


class GuidanceSum:
    """The sum of the guidance terms in one evaluation, from the innermost guide outwards.

    Guides in a row wrap each other, so an outer guide receives a guided image. Each guide must read
    the model's own prediction, so this sum is subtracted first. Then the guides add up.
    """

    def __init__(self) -> None:
        self.terms: Tensor | float = 0.0

    def removed_from(self, denoised: Tensor) -> Tensor:
        """The model's own prediction, in the graph of `denoised`."""
        if isinstance(self.terms, float):
            return denoised
        with torch.inference_mode(False), torch.set_grad_enabled(denoised.requires_grad):
            return denoised - self.terms


class RunState:
    """The state of one run.

    nan_guard: checks the gradients of all classifiers. graphs: the CUDA graphs of the run.
    """

    def __init__(self, graphs: GraphCache = EAGER) -> None:
        self.nan_guard = NaNGuard()
        self.graphs = graphs
        self.cfg_function: Any = None  # that the guider's evaluations use, where it is not core's
        self.cfg_is_followed = False  # whether the guider was seen to read its cfg
        self._caches: dict[Any, Any] = {}
        self._values: dict[Any, Any] = {}
        self._at_end: dict[Any, Callable[[], None]] = {}
        self._sigmas: SigmaSchedule | None = None
        self._sum: GuidanceSum | None = None

    def sigmas(self, model: Any, model_options: dict) -> SigmaSchedule:
        """The run's sigmas; `model` is the base model that it samples."""
        if self._sigmas is None:
            sigmas = hooks.options_of(model_options)["sample_sigmas"]
            self._sigmas = SigmaSchedule(model.model_sampling, sigmas)
        return self._sigmas

    def changed(self, key: Any, value: Any) -> bool:
        """Whether the value of that key is another one than at the last call in this run."""
        before = self._values.get(key, value)
        self._values[key] = value
        return before != value

    def at_end(self, key: Any, call: Callable[[], None]) -> None:
        """Calls call() when the run has ended; the first one that was given for a key."""
        self._at_end.setdefault(key, call)

    def end(self) -> None:
        """The run has ended; raises ValueError for a gradient that was not finite."""
        self.nan_guard.finish()
        for call in self._at_end.values():
            call()

    def cache(self, key: Any, make: Callable[[], T]) -> T:
        """The run's cache for this key; created on first use."""
        if key not in self._caches:
            self._caches[key] = make()
        return self._caches[key]

    @contextmanager
    def guidance_sum(self) -> Iterator[GuidanceSum]:
        """The sum shared by all guides of an evaluation; the outermost guide creates it."""
        if self._sum is not None:
            yield self._sum
            return
        total = GuidanceSum()
        with replaced(self, "_sum", total):
            yield total


def keep_run_state(model: Any) -> None:
    """Gives each run of the MODEL its own state; can be called by several nodes."""
    hooks.wrap_once(model, hooks.RUN, hooks.RUN_STATE, _run_with_state)


def _run_with_state(
    executor: Any,
    noise: Tensor,
    latent: Tensor,
    sampler: Any,
    sigmas: Tensor,
    *more: Any,
    **named: Any,
) -> Any:
    guider = executor.class_obj
    with contextlib.closing(graphs_of_run(guider, noise.shape, len(sigmas) - 1)) as graphs:
        state = RunState(graphs)
        # the guider's options are a copy for this run
        hooks.options_of(guider.model_options)[hooks.RUN_STATE] = state
        result = executor(noise, latent, sampler, sigmas, *more, **named)
        state.end()
    return result


def run_state(model_options: dict) -> RunState:
    """The run state stored in these options."""
    return hooks.options_of(model_options).setdefault(hooks.RUN_STATE, RunState())


def run_position(guider: Any, sigma: Tensor, model_options: dict) -> RunPosition:
    """The position in the run at sigma (B,); waits for the device to copy sigma."""
    sigmas = run_state(model_options).sigmas(guider.inner_model, model_options)
    return sigmas.position(float(sigma.flatten()[0]))
