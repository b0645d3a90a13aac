"""What a trace keeps of a classifier: numbers at each evaluation, and a few small pictures."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from ..classifiers.base import ClassifierOutput
from ..core.host_copy import HostCopy
from ..core.images import thumbnails
from ..core.noise import mean_norm

BEST = 3  # classes of each image
MOST_IMAGES = 4  # of a batch, whose best classes and pictures are kept
LONGEST_SIDE = 128  # of a picture, in pixels
MOST_PICTURES = 24  # of a classifier in a run: of so many evaluations, evenly spread


@dataclass(frozen=True)
class TracedClassifier:
    """A classifier of a run, and its target.

    key: what tells it from the run's other classifiers. labels: the class of each image, or one
    for all. names: of its classes, or None. is_score: its only output is a score and not the
    logarithm of a probability.
    """

    key: str
    name: str = "classifier"
    labels: tuple[int, ...] = ()
    names: Sequence[str] | None = None
    is_score: bool = False

    @property
    def kind(self) -> str:
        """What its values are: "probability" or "score"."""
        return "score" if self.is_score else "probability"

    def class_name(self, index: int) -> str:
        """The name of a class, or its number if it has no name."""
        return self.names[index] if self.names else str(index)

    def to_dict(self) -> dict[str, Any]:
        """Its name, its kind and the names of its labels."""
        labels = [self.class_name(label) for label in self.labels]
        return {"name": self.name, "kind": self.kind, "labels": labels}


class ClassifierRecord:
    """One evaluation of a classifier; its values are on their way from the device.

    number: of the classifier in its run. Means over the batch are kept of scales (B,) and of the
    lengths of the term (B, ...); log p(label | x), or the score, of each image. Of the first
    images, the best classes and, if `output.seen` are RGB images, a small picture.
    """

    def __init__(
        self,
        number: int,
        classifier: TracedClassifier,
        scales: Tensor,
        term: Tensor,
        labels: Tensor,
        output: ClassifierOutput,
    ):
        self.number, self.classifier = number, classifier
        self.scale, self.norm = HostCopy(scales.mean()), HostCopy(mean_norm(term))
        log_probs = output.log_probs
        self.values = HostCopy(log_probs.gather(1, labels[:, None])[:, 0])
        best = log_probs[:MOST_IMAGES].topk(min(BEST, log_probs.shape[1]))
        self.best, self.best_classes = HostCopy(best.values), HostCopy(best.indices)
        self.pictures: HostCopy | None = None
        if output.seen is not None:
            self.pictures = HostCopy(thumbnails(output.seen[:MOST_IMAGES], LONGEST_SIDE))

    @property
    def arrived(self) -> bool:
        """Whether its numbers can be read without waiting."""
        numbers = (self.scale, self.norm, self.values, self.best, self.best_classes)
        return all(one.arrived for one in numbers)

    def best_of_each(self) -> list[list[tuple[int, float]]]:
        """The best classes of the first images, with their probabilities or scores."""
        value = float if self.classifier.is_score else math.exp
        rows = zip(self.best_classes.wait().tolist(), self.best.wait().tolist(), strict=True)
        return [[(index, value(one)) for index, one in zip(*row, strict=True)] for row in rows]

    def to_dict(self) -> dict[str, Any]:
        """As numbers; a probability as its logarithm."""
        of_label = "scores" if self.classifier.is_score else "log_probs"
        name = self.classifier.class_name
        best = [[[name(one), round(value, 4)] for one, value in row] for row in self.best_of_each()]
        return {
            "classifier": self.number,
            "scale": self.scale.wait().tolist(),
            "norm": self.norm.wait().tolist(),
            of_label: self.values.wait().tolist(),
            "best": best,
        }


class PictureSeries:
    """Lets at most MOST_PICTURES records of a classifier in a run keep their pictures.

    They are every n-th one that has pictures, and the last one. n doubles as the run gets longer.
    """

    def __init__(self) -> None:
        self._kept: list[tuple[int, ClassifierRecord]] = []
        self._every, self._count = 1, 0

    def add(self, record: ClassifierRecord) -> None:
        """The next record, in the order of the run."""
        if record.pictures is None:
            return
        self._keep_every_nth()  # also of the one that was the last until now
        self._kept.append((self._count, record))
        self._count += 1
        while len(self._kept) > MOST_PICTURES:
            self._every *= 2
            last = self._kept.pop()
            self._keep_every_nth()
            self._kept.append(last)

    def _keep_every_nth(self) -> None:
        for place, record in self._kept:
            if place % self._every:
                record.pictures = None
        self._kept = [kept for kept in self._kept if kept[0] % self._every == 0]
