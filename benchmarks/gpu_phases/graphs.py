"""A classifier's gradient as the pack's runs compute it: as a CUDA graph, where there is one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from .timing import held_bytes, replays

WARM = 3  # computations until a gradient is recorded


class Gradient:
    """classifier.gradient at one point, eagerly or as a graph."""

    def __init__(self, classifier: Any, x: Any, sigma: float, label: Any, alpha: float):
        self.classifier, self.label = classifier, label
        self.x, self.sigma, self.alpha = x, sigma, alpha
        self.cache = None

    def eager(self) -> Any:
        """As without a run."""
        return self.classifier.gradient(self.x, self.sigma, self.label, self.alpha)

    def replayed(self) -> Any:
        """As in a run; eagerly, where there are no graphs."""
        if self.cache is None:
            return self.eager()
        given = self.x, self.sigma, self.label, self.alpha
        return self.classifier.gradient(*given, graphs=self.cache)

    def record(self) -> None:
        """Has the graph recorded."""
        self.close()
        self.cache = new_cache()
        for _ in range(WARM):
            self.replayed()

    def close(self) -> None:
        """Gives the graph's memory back."""
        if self.cache is not None:
            self.cache.close()
        self.cache = None

    @property
    def is_graph(self) -> bool:
        """Whether a graph computes it now."""
        return replays(self.replayed) > 0

    def pool_bytes(self) -> int:
        """The memory that recording it takes, and keeps until the run ends."""
        self.record()  # now libraries have what they keep for good
        self.close()
        return held_bytes(self.record)


def new_cache() -> Any:
    """A run's graphs; None where the library has none."""
    try:
        from guidance.core.cuda_graph import GraphCache
    except ImportError:
        return None
    return GraphCache(1000)  # evaluations, far more than recording costs


def as_graph(gradient: Gradient, rows_name: str) -> tuple[str, Callable[[], Any]]:
    """The name for the table, and the run: it says so where the gradient is computed eagerly."""
    gradient.record()
    found = "CUDA graph" if gradient.is_graph else "no CUDA graph: eager"
    return f"{rows_name}, {found}", gradient.replayed
