"""The state of one sampling run: created when the run starts, dropped when it ends.

It is stored in the run's transformer_options. Core copies these for each run, and some samplers
copy them for each step; all copies refer to the same object.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, TypeVar

import torch
from torch import Tensor

from ...guidance.core.cuda_graph import EAGER, GraphCache
from ...guidance.core.replaced import replaced
from ...guidance.sampling.nan_guard import NaNGuard
from ...guidance.schedules.run_position import RunPosition
from . import hooks
from .cuda_graphs import graphs_of_run
from .known_sigmas import KnownSigmas, known_sigmas
from .sigma_schedule import SigmaSchedule

T = TypeVar("T")


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

    nan_guard: checks the gradients of all classifiers. graphs: its CUDA graphs. known: the sigmas
    of its evaluations, where they need not be read from the device.
    """

    def __init__(self, graphs: GraphCache = EAGER, known: KnownSigmas | None = None) -> None:
        self.graphs, self.known = graphs, known
        self.nan_guard = NaNGuard()
        self.cfg_function: Any = None  # that the guider's evaluations use, where it is not core's
        self.cfg_is_followed = False  # whether the guider was seen to read its cfg
        self._caches: dict[Any, Any] = {}
        self._values: dict[Any, Any] = {}
        self._at_end: dict[Any, Callable[[], None]] = {}
        self._sigmas: SigmaSchedule | None = None
        self._sum: GuidanceSum | None = None

    def sigmas(self, model: Any, model_options: dict) -> SigmaSchedule:
        """The run's sigmas; `model` is the base model that it samples."""
        if self.known is not None and not self.known.wrong:
            return self.known.schedule
        if self._sigmas is None:
            sigmas = hooks.options_of(model_options)["sample_sigmas"]
            self._sigmas = SigmaSchedule(model.model_sampling, sigmas)
        return self._sigmas

    def begin_evaluation(self, sigma: Tensor, model_options: dict) -> None:
        """The guider's next evaluation begins, at sigma (B,)."""
        if self.known is not None and not self.known.wrong:
            self.known.begin(sigma, hooks.options_of(model_options)["sample_sigmas"])

    def sigma(self, sigma: Tensor) -> float:
        """The value of sigma (B,); waits for the device where it is not known."""
        known = None if self.known is None else self.known.value(sigma)
        return float(sigma.flatten()[0]) if known is None else known

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
        if self.known is not None:
            self.known.end()
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
    hooks.wrap_once(model, hooks.PREDICTION, hooks.RUN_STATE, _evaluation)
    # patches further in may skip an evaluation, or make two of one
    hooks.move_outermost(model, hooks.PREDICTION, hooks.RUN_STATE)


def _run_with_state(
    executor: Any, noise: Any, latent: Any, sampler: Any, sigmas: Tensor, *rest: Any, **options: Any
) -> Any:
    guider = executor.class_obj
    with contextlib.closing(graphs_of_run(guider, noise.shape, len(sigmas) - 1)) as graphs:
        state = RunState(graphs, known_sigmas(guider, sampler, sigmas))
        # the guider's options are a copy for this run
        hooks.options_of(guider.model_options)[hooks.RUN_STATE] = state
        result = executor(noise, latent, sampler, sigmas, *rest, **options)
        state.end()
    return result


def _evaluation(
    executor: Any, x: Tensor, sigma: Tensor, model_options: dict, seed: Any = None
) -> Tensor:
    run_state(model_options).begin_evaluation(sigma, model_options)
    return executor(x, sigma, model_options, seed)


def run_state(model_options: dict) -> RunState:
    """The run state stored in these options."""
    return hooks.options_of(model_options).setdefault(hooks.RUN_STATE, RunState())


def run_position(guider: Any, sigma: Tensor, model_options: dict) -> RunPosition:
    """The position in the run at sigma (B,); see `RunState.sigma`."""
    state = run_state(model_options)
    value = state.sigma(sigma)
    return state.sigmas(guider.inner_model, model_options).position(value)
