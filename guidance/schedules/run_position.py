"""The position in a sampling run at one evaluation of the model."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class RunPosition:
    """The position in a run at one evaluation of the model.

    percent: in the model's timesteps, 0 at the noisiest (ComfyUI's convention), also if the run
    uses only a part of them. step: counted from 0, fractional between two steps. steps: the number
    of steps of this run. sigma: the sampler's sigma.
    """

    percent: float
    step: float
    steps: int
    sigma: float

    @property
    def share(self) -> float:
        """The position in this run's steps: 0 at the first, 1 at the last."""
        return self.step / (self.steps - 1) if self.steps > 1 else 0.0

    def on(self, axis: str) -> float:
        """Its coordinate on an axis."""
        return {"percent": self.percent, "step": self.share, "sigma": self.sigma}[axis]


def step_of(sigmas: list[float], sigma: float) -> float:
    """The step of a sigma, counted from 0 and fractional between two steps.

    It uses the first pair of neighbouring sigmas that encloses it. Sigmas may also rise, when noise
    is added back. Outside of the range, it is the nearer end.
    """
    for index, (a, b) in enumerate(zip(sigmas, sigmas[1:], strict=False)):
        close = 1e-5 * max(abs(a), abs(b))
        if min(a, b) - close <= sigma <= max(a, b) + close and abs(sigma - b) > close:
            return index + min(max((a - sigma) / (a - b), 0.0), 1.0)
    nearest = min(range(len(sigmas)), key=lambda index: abs(sigmas[index] - sigma))
    return float(nearest)
