"""A cache of a classifier's last output, reused for the evaluations in between."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from .base import Classifier, ClassifierOutput, SamplingPoint, Target


class GradientCache:
    """The cache of one run: the classifier runs every `interval` evaluations of the model.

    In between, the gradient stays the same in the classifier's coordinates and is rescaled to the
    current noise level. Raises ValueError for an interval below 1.
    """

    def __init__(self, interval: int = 1):
        if interval < 1:
            raise ValueError(f"gradient_interval is {interval}; it must be at least 1.")
        self.interval = interval
        self._output: ClassifierOutput | None = None
        self._age = 0

    def is_due(self, x: Tensor) -> bool:
        """Whether the next evaluation, with images like x (B, ...), computes the gradient."""
        matches = self._output is not None and self._output.gradient.shape == x.shape
        return not matches or self._age >= self.interval

    def output(
        self, classifier: Classifier, point: SamplingPoint, target: Target
    ) -> ClassifierOutput:
        """The classifier's output at this point, or the cached one rescaled to its noise level."""
        if self.is_due(point.x):
            output = classifier.output(point, target)
            self._output, self._age = replace(output, seen=None), 1
            return output
        self._age += 1
        assert self._output is not None
        return classifier.rescale(self._output, point.sigma, point.alpha)
