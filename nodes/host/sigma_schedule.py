"""The sigmas of a run, and where in the run a sigma is."""

from __future__ import annotations

import copy
import functools
import math
from typing import Any

import comfy.model_sampling
import numpy as np
from torch import Tensor

from ...guidance.core.host_copy import HostCopy
from ...guidance.schedules.run_position import RunPosition, step_of


class SigmaSchedule:
    """The sigmas of a run, and the position of a sigma in the run.

    What it needs of the device is copied when it is made, and waited for when it is first used.
    """

    def __init__(self, model_sampling: Any, sigmas: Tensor):
        self.sampling = model_sampling
        # the table of core's usual 1,000 timesteps; LCM and Stable Cascade read theirs differently
        usual = comfy.model_sampling.ModelSamplingDiscrete
        read_as_usual = getattr(type(model_sampling), "sigma", None) is usual.sigma
        self._sigmas = HostCopy(sigmas)
        self._log_sigmas = HostCopy(model_sampling.log_sigmas.float()) if read_as_usual else None
        # what moves to the device with the model
        tables = [] if read_as_usual else model_sampling.buffers()
        self._tables = [(table, HostCopy(table)) for table in tables]

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
        here = {id(table): copied.wait() for table, copied in self._tables}
        # a table that is in deepcopy's memo already is taken from there
        return copy.deepcopy(self.sampling, here).to("cpu")
