"""A record of guidance at each evaluation of the model."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from threading import Lock
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from ..classifiers.base import ClassifierOutput
from ..core.host_copy import HostCopy
from ..core.noise import mean_norm
from ..schedules.run_position import RunPosition
from .classifier_record import ClassifierRecord, PictureSeries, TracedClassifier

MOST_RUNS = 8  # that a trace keeps


@dataclass
class Evaluation:
    """One evaluation of a guided model.

    cfg_norm: the length of (cfg - 1) (cond - uncond), the term that CFG adds to the conditional
    prediction; None if uncond was not computed. passes: number of conditionings that the network
    was run for. saved: number of those that were skipped thanks to the CFG cache. Scales and
    lengths are means over the batch. A run does not wait for its device: `position_of` gives the
    position when sigma has arrived.
    """

    sigma: HostCopy
    position_of: Callable[[float], RunPosition]
    cfg: float | HostCopy | None = None
    cfg_norm: HostCopy | None = None
    passes: int = 0
    saved: int = 0
    classifiers: list[ClassifierRecord] = field(default_factory=list)

    @property
    def position(self) -> RunPosition:
        return self.position_of(float(self.sigma.wait()))

    @property
    def arrived(self) -> bool:
        """Whether its numbers can be read without waiting."""
        numbers = [self.sigma, self.cfg, self.cfg_norm]
        arrived = [one.arrived for one in numbers if isinstance(one, HostCopy)]
        return all(arrived) and all(record.arrived for record in self.classifiers)

    def to_dict(self) -> dict[str, Any]:
        """As numbers."""
        position = self.position
        return {
            "sigma": position.sigma,
            "step": position.step,
            "percent": position.percent,
            "cfg": _number(self.cfg),
            "cfg_norm": _number(self.cfg_norm),
            "passes": self.passes,
            "saved": self.saved,
            "classifiers": [record.to_dict() for record in self.classifiers],
        }

    def to_plain(self) -> dict[str, Any]:
        """The same for JSON, with None for values that are not finite."""
        return _plain(self.to_dict())


class Trace:
    """The evaluations of one sampling run, in order.

    planned: the scale that a schedule has at each step of the run, None where it has none; by
    "cfg", or by the key of a classifier.
    """

    def __init__(self, evaluations: list[Evaluation] | None = None) -> None:
        self.evaluations = evaluations or []
        self.planned: dict[str, list[float | None]] = {}
        self._pictures: dict[str, PictureSeries] = {}  # of each classifier, by its key
        self._runs: list[tuple[list[Evaluation], Tensor]] = []  # with what came out
        self._counting = Lock()  # with several GPUs, each has a thread

    def begin(self) -> None:
        """Starts a new run."""
        self.evaluations, self.planned, self._pictures = [], {}, {}

    def end(self, samples: Tensor) -> None:
        """Keeps the run beside the few before it, by the samples (B, ...) that came out."""
        self._runs = [*self._runs[1 - MOST_RUNS :], (self.evaluations, _fingerprint(samples))]

    def run_of(self, samples: Tensor) -> Trace:
        """The kept run that these samples came out of; where none is kept, the last one."""
        wanted = _fingerprint(samples)
        runs = [(float((wanted - print_).abs().max()), seen) for seen, print_ in self._runs]
        nearest = min(runs, key=lambda run: run[0], default=(0.0, self.evaluations))
        return Trace(nearest[1])

    def evaluation(self, sigma: Tensor, position_of: Callable[[float], RunPosition]) -> Evaluation:
        """The next evaluation, at sigma (B,); `position_of` gives the position of a sigma."""
        self.evaluations.append(Evaluation(HostCopy(sigma.flatten()[0]), position_of))
        return self.evaluations[-1]

    def passes(self, count: int) -> None:
        """The network was run for this many conditionings."""
        if self.evaluations:
            with self._counting:
                self.evaluations[-1].passes += count

    def saved(self, count: int) -> None:
        """The CFG cache replaced this many conditionings."""
        if self.evaluations:
            self.evaluations[-1].saved += count

    def cfg(self, scale: Any, cond: Tensor | None = None, uncond: Tensor | None = None) -> None:
        """CFG has this scale, a number or a tensor with one value per image; of these images."""
        if not self.evaluations:
            return
        current = self.evaluations[-1]
        current.cfg = _mean(scale)
        if cond is not None and uncond is not None:
            current.cfg_norm = HostCopy(mean_norm((scale - 1) * (cond - uncond)))

    def plans(self) -> dict[str, list[float | None]]:
        """What is planned: by "cfg", or by the number of a classifier that has a record."""
        numbers = {key: str(number) for number, key in enumerate(self._pictures)}
        known = {"cfg": "cfg"} | numbers
        return {known[key]: scales for key, scales in self.planned.items() if key in known}

    @property
    def classifiers(self) -> list[TracedClassifier]:
        """The classifiers of the run, by their numbers: in the order in which they came."""
        found = {
            record.number: record.classifier
            for evaluation in self.evaluations
            for record in evaluation.classifiers
        }
        return [found[number] for number in sorted(found)]

    def classifier(
        self,
        which: TracedClassifier,
        scales: Tensor,
        term: Tensor,
        labels: Tensor,
        output: ClassifierOutput,
    ) -> None:
        """A classifier added `term` (B, ...) for these labels (B,) at these scales (B,).

        `output.seen`, if any, are RGB images in [-1, 1].
        """
        if not self.evaluations:
            return
        pictures = self._pictures.setdefault(which.key, PictureSeries())
        number = list(self._pictures).index(which.key)
        record = ClassifierRecord(number, which, scales, term, labels, output)
        self.evaluations[-1].classifiers.append(record)
        pictures.add(record)

    def to_dict(self) -> dict[str, Any]:
        """As numbers: {"passes": ..., "saved": ..., "classifiers": [...], "evaluations": [...]}."""
        seen = [evaluation.to_dict() for evaluation in self.evaluations]
        totals = {name: sum(one[name] for one in seen) for name in ("passes", "saved")}
        classifiers = [classifier.to_dict() for classifier in self.classifiers]
        return {**totals, "classifiers": classifiers, "evaluations": seen}

    def to_json(self) -> str:
        """The same as JSON, with null for values that are not finite."""
        return json.dumps(_plain(self.to_dict()), allow_nan=False)


def _mean(scale: Any) -> float | HostCopy:
    return HostCopy(scale.as_subclass(Tensor).mean()) if isinstance(scale, Tensor) else float(scale)


def _number(value: float | HostCopy | None) -> Any:
    return value.wait().tolist() if isinstance(value, HostCopy) else value


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_plain(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _fingerprint(samples: Tensor) -> Tensor:
    """Eight numbers that tell one result from another, also in another precision."""
    flat = samples.detach().float().flatten()
    return F.adaptive_avg_pool1d(flat[None], 8)[0].cpu()
