"""The loss of each step, read without making a step wait for the device."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator

import torch
from torch import Tensor

from ..core.host_copy import HostCopy
from .optimizer import is_fused, leaves_out
from .resume import TrainingState

# With two steps in its queue, a device has work while the host prepares the next one. It does not
# depend on when a copy arrives, so several processes do the same.
LATE = 2


class Losses:
    """Reads losses into `state.losses`: at once, or `late` steps later with a fused optimiser.

    A loss that is not finite ends the training at its step: `failure` is this loss, and the state
    is that before the step. If the host learns of it late, the device has left out all updates
    since: `stopped` () is 1 there. It is None where losses are read at once.
    """

    def __init__(self, state: TrainingState):
        self.state = state
        self.late = LATE if is_fused(state.optimizer) else 0
        self.failure: float | None = None
        self.stopped: Tensor | None = None
        self._pending: deque[tuple[int, HostCopy]] = deque()
        self._told = len(state.losses)

    def add(self, loss: Tensor) -> None:
        """Takes the loss () of the step that is being done, before its update."""
        if self.late:
            self._stop_unless_finite(loss)
        self._pending.append((self.state.step, HostCopy(loss)))
        if not self.late:
            self.read()

    def read(self, late: int = 0) -> None:
        """Reads all losses but those of the `late` newest steps; waits for them."""
        while self.failure is None and len(self._pending) > late:
            step, copy = self._pending[0]
            value = float(copy.wait())
            if math.isfinite(value):
                # also right if it was interrupted here, and is done once more
                self.state.losses[step:] = [value]
                self._pending.popleft()
            else:
                self.state.step, self.failure = step, value

    def settle(self) -> None:
        """Reads all, so that the state has one loss for each step; also after an interruption."""
        self.read()
        del self.state.losses[self.state.step :]

    def news(self) -> Iterator[tuple[int, float]]:
        """What was read since the last call: (number of the step from 1, its loss)."""
        while self._told < len(self.state.losses):
            self._told += 1
            yield self._told, self.state.losses[self._told - 1]

    def _stop_unless_finite(self, loss: Tensor) -> None:
        """Sets `stopped` for good at the first loss that is not finite."""
        wrong = (~loss.isfinite()).float()
        if self.stopped is None:
            self.stopped = wrong
            leaves_out(self.state.optimizer, self.stopped)
        else:
            torch.maximum(self.stopped, wrong, out=self.stopped)
