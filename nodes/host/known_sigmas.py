"""The sigma of each evaluation of a run, without reading it from the device.

To read it, the host would wait until the device has done all that was handed to it. A sampler that
evaluates once per step leaves nothing to read: its n-th evaluation is at the n-th sigma of the run,
and main memory has those. Patches may evaluate more often, so what the device says is compared.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, TypeVar

import comfy.extra_samplers.uni_pc
import comfy.k_diffusion.sampling
import comfy.samplers
import numpy as np
from torch import Tensor

from ...guidance.core.host_copy import HostCopy
from .model_info import is_flow
from .server import show_on_node
from .sigma_schedule import SigmaSchedule

F = TypeVar("F", bound=Callable[..., Any])

FREE_TO_READ = ("cpu",)  # devices whose values can be read without waiting
# A comparison is made that many evaluations later, when the device has long copied the value. A
# fixed number, so that a run does not depend on when a copy arrives.
LATER = 2
ONCE_PER_STEP = """
euler euler_cfg_pp euler_ancestral euler_ancestral_cfg_pp lms dpmpp_2m dpmpp_2m_cfg_pp ddpm lcm
ipndm ipndm_v deis res_multistep res_multistep_cfg_pp res_multistep_ancestral
res_multistep_ancestral_cfg_pp gradient_estimation gradient_estimation_cfg_pp unipc unipc_bh2
"""
# These begin a little below the first sigma of a flow model.
EXCEPT_ON_FLOW = """
dpmpp_2m_sde dpmpp_2m_sde_gpu dpmpp_2m_sde_heun dpmpp_2m_sde_heun_gpu dpmpp_3m_sde dpmpp_3m_sde_gpu
er_sde sa_solver
"""
# Options of theirs with which they evaluate elsewhere, or twice.
ELSEWHERE = ("s_churn", "use_pece")


def _functions(names: str) -> list[Any]:
    """Core's samplers of these names; an older ComfyUI does not have all of them."""
    modules = (comfy.k_diffusion.sampling, comfy.extra_samplers.uni_pc)
    found = [getattr(one, f"sample_{name}", None) for name in names.split() for one in modules]
    return [function for function in found if function is not None]


_always, _except_on_flow = _functions(ONCE_PER_STEP), _functions(EXCEPT_ON_FLOW)


def once_per_step(function: F) -> F:
    """Marks a sampler of the pack that evaluates once per step, at the step's own sigma."""
    _always.append(function)
    return function


def evaluates_once_per_step(sampler: Any, model_sampling: Any) -> bool:
    """Whether the n-th evaluation of this SAMPLER is at the n-th sigma.

    Functions of other packs may have the same name, so the function itself must be known.
    """
    if type(sampler) is not comfy.samplers.KSAMPLER:
        return False
    if any(sampler.extra_options.get(name) for name in ELSEWHERE):
        return False
    known = _always if is_flow(model_sampling) else _always + _except_on_flow
    return any(sampler.sampler_function is one for one in known)


def known_sigmas(guider: Any, sampler: Any, sigmas: Tensor) -> KnownSigmas | None:
    """Those of a run of the guider; None where they must be read, or where reading is free."""
    patcher = guider.model_patcher
    if patcher.load_device.type in FREE_TO_READ:
        return None
    model_sampling = patcher.get_model_object("model_sampling")
    if not evaluates_once_per_step(sampler, model_sampling):
        return None
    return KnownSigmas(SigmaSchedule(model_sampling, sigmas), len(sigmas) - 1)


class KnownSigmas:
    """The sigmas of a run whose n-th evaluation is at the n-th sigma.

    steps: their number. wrong: whether they were seen not to be; then each sigma must be read.
    """

    def __init__(self, schedule: SigmaSchedule, steps: int):
        self.schedule, self.steps = schedule, steps
        self.wrong = False
        self._count = 0  # of the evaluations that have begun
        self._sigma: Tensor | None = None  # of the evaluation that goes on
        self._checks: deque[tuple[int, HostCopy]] = deque()  # of values that were given

    def begin(self, sigma: Tensor, of_run: Tensor) -> None:
        """An evaluation begins at sigma (B,), in a run over the device's sigmas `of_run`."""
        self._count += 1
        self._sigma = sigma
        while self._checks and self._checks[0][0] + LATER <= self._count:
            if not self._checks[0][1].on_its_way:
                break  # compared at the end
            self._compare(*self._checks.popleft())
        # a patch may hand the sampler other sigmas, or evaluate more often: seen without the device
        if len(of_run) - 1 != self.steps or self._count > self.steps:
            self.wrong = True

    def value(self, sigma: Tensor) -> float | None:
        """The sigma (B,) of the evaluation that goes on; None where it must be read."""
        # a patch further out may evaluate somewhere else
        if self.wrong or sigma is not self._sigma:
            return None
        if not self._checks or self._checks[-1][0] != self._count:
            self._checks.append((self._count, HostCopy(sigma)))
        return self._expected(self._count)

    def end(self) -> None:
        """The run has ended: compares the rest."""
        while self._checks:
            self._compare(*self._checks.popleft())

    def _expected(self, number: int) -> float:
        """As the sampler hands it over: in single precision."""
        return float(np.float32(self.schedule.sigmas[number - 1]))

    def _compare(self, number: int, copied: HostCopy) -> None:
        found, expected = copied.wait().tolist()[0], self._expected(number)
        if abs(found - expected) <= 1e-4 * abs(expected):
            return
        self.wrong = True
        self._checks.clear()
        show_on_node(
            f"evaluation {number} of this run was at sigma {found:.5g}, where its sampler has "
            f"{expected:.5g}, because a patch on the model evaluates more or less often. So up to "
            f"{LATER} evaluations had the scale of another step of the schedule. The others read "
            "sigma from the device, which takes a little longer.",
            None,
        )
