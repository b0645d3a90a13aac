"""Predictions that can be differentiated, in loops that otherwise keep no graph."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor


@contextmanager
def tracked(x: Tensor, wanted: bool = True) -> Iterator[Tensor]:
    """Yields x as it is, or, where it is `wanted`, an x that torch keeps the graph of.

    For the time of the block; also inside torch.inference_mode and under no_grad.
    """
    if not wanted:
        yield x
        return
    with torch.inference_mode(False), torch.enable_grad():
        yield x.detach().clone().requires_grad_(True)
