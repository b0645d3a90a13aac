"""What guidance did, at each evaluation of the model."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

from torch import Tensor

from ..core.host_copy import HostCopy
from ..schedules.run_position import RunPosition


@dataclass
class ClassifierRecord:
    """What one classifier did; lengths are means over the batch."""

    scale: HostCopy
    norm: HostCopy
    log_probs: HostCopy

    @property
    def arrived(self) -> bool:
        """Whether nobody has to wait for its numbers."""
        return self.scale.arrived and self.norm.arrived and self.log_probs.arrived

    def to_dict(self) -> dict[str, Any]:
        """As numbers."""
        return {
            "scale": float(self.scale.wait()),
            "norm": float(self.norm.wait()),
            "log_probs": self.log_probs.wait().tolist(),
        }


@dataclass
class Evaluation:
    """One evaluation of a guided model.

    cfg_norm: of (cfg - 1) (cond - uncond), what CFG adds to the conditional prediction; None where
    uncond was not computed. passes: conditionings that the network was run for. saved: those that
    it was not run for, because CFG's last term was used again. A run does not wait for what is
    computed on its device: `place_at` tells the place once its sigma has come from there.
    """

    sigma: HostCopy
    place_at: Callable[[float], RunPosition]
    cfg: float | HostCopy | None = None
    cfg_norm: HostCopy | None = None
    passes: int = 0
    saved: int = 0
    classifiers: list[ClassifierRecord] = field(default_factory=list)

    @property
    def place(self) -> RunPosition:
        """Where in the run it was."""
        return self.place_at(float(self.sigma.wait()))

    @property
    def arrived(self) -> bool:
        """Whether nobody has to wait for its numbers."""
        numbers = (self.sigma, self.cfg, self.cfg_norm)
        return all(one.arrived for one in numbers if isinstance(one, HostCopy)) and all(
            record.arrived for record in self.classifiers
        )

    def to_dict(self) -> dict[str, Any]:
        """As numbers."""
        place = self.place
        return {
            "sigma": place.sigma,
            "step": place.step,
            "percent": place.percent,
            "cfg": float(self.cfg.wait()) if isinstance(self.cfg, HostCopy) else self.cfg,
            "cfg_norm": None if self.cfg_norm is None else float(self.cfg_norm.wait()),
            "passes": self.passes,
            "saved": self.saved,
            "classifiers": [record.to_dict() for record in self.classifiers],
        }

    def to_plain(self) -> dict[str, Any]:
        """The same for JSON: what is not a number there is None."""
        return _plain(self.to_dict())


class Trace:
    """The evaluations of one sampling run, in order."""

    def __init__(self) -> None:
        self.evaluations: list[Evaluation] = []
        self._counting = Lock()  # with several GPUs, each has a thread

    def begin(self) -> None:
        """A new run: what was seen before goes."""
        self.evaluations = []

    def evaluation(self, sigma: Tensor, place_at: Callable[[float], RunPosition]) -> Evaluation:
        """The next one, at sigma (B,); `place_at` tells where a sigma is in the run."""
        self.evaluations.append(Evaluation(HostCopy(sigma.flatten()[0]), place_at))
        return self.evaluations[-1]

    def passes(self, count: int) -> None:
        """The network ran for so many conditionings."""
        if self.evaluations:
            with self._counting:
                self.evaluations[-1].passes += count

    def saved(self, count: int) -> None:
        """CFG's last term stood in for so many conditionings."""
        if self.evaluations:
            self.evaluations[-1].saved += count

    def cfg(self, scale: Any, cond: Tensor, uncond: Tensor | None) -> None:
        """CFG of that scale (a number, or a tensor with one for each image) was applied."""
        if not self.evaluations:
            return
        current = self.evaluations[-1]
        current.cfg = _mean(scale)
        if uncond is not None:
            current.cfg_norm = HostCopy(mean_norm((scale - 1) * (cond - uncond)))

    def classifier(self, scales: Tensor, term: Tensor, log_probs: Tensor) -> None:
        """A classifier added `term` (B, ...); its scales and log p(label | x) are (B,)."""
        if self.evaluations:
            seen = (HostCopy(values) for values in (scales.mean(), mean_norm(term), log_probs))
            self.evaluations[-1].classifiers.append(ClassifierRecord(*seen))

    def to_dict(self) -> dict[str, Any]:
        """As numbers: {"passes": ..., "saved": ..., "evaluations": [...]}."""
        seen = [evaluation.to_dict() for evaluation in self.evaluations]
        totals = {name: sum(one[name] for one in seen) for name in ("passes", "saved")}
        return {**totals, "evaluations": seen}

    def to_json(self) -> str:
        """The same as JSON; what is not a number there is null."""
        return json.dumps(_plain(self.to_dict()), allow_nan=False)


def mean_norm(values: Tensor) -> Tensor:
    """The L2 norm of each image (B, ...), averaged over the batch."""
    return values.detach().float().flatten(1).norm(dim=1).mean()


def _mean(scale: Any) -> float | HostCopy:
    return HostCopy(scale.as_subclass(Tensor).mean()) if isinstance(scale, Tensor) else float(scale)


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    if isinstance(value, float) and (value != value or value in (float("inf"), float("-inf"))):
        return None
    return value
