"""The last output of a classifier, used for the evaluations of a run between two of its own."""

from __future__ import annotations

from torch import Tensor

from .base import Classifier, ClassifierOutput, SamplingPoint, Target


class GradientCache:
    """Of one run: the classifier is evaluated every `interval` evaluations of the model.

    Between two of them the gradient stays as it is in the classifier's own coordinates, and is
    weighted for the noise level at hand. Raises ValueError for an interval below 1.
    """

    def __init__(self, interval: int = 1):
        if interval < 1:
            raise ValueError(f"gradient_interval is {interval}; it must be at least 1.")
        self.interval = interval
        self._output: ClassifierOutput | None = None
        self._age = 0

    def is_due(self, x: Tensor) -> bool:
        """Whether the next evaluation, of images like x (B, ...), computes the gradient."""
        matches = self._output is not None and self._output.gradient.shape == x.shape
        return not matches or self._age >= self.interval

    def output(
        self, classifier: Classifier, point: SamplingPoint, target: Target
    ) -> ClassifierOutput:
        """The classifier's output at this point, or its last one for this noise level."""
        if self.is_due(point.x):
            self._output, self._age = classifier.output(point, target), 1
            return self._output
        self._age += 1
        assert self._output is not None
        return classifier.rescale(self._output, point.sigma, point.alpha)
