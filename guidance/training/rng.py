"""The random numbers of a training, which depend only on the seed and the step.

So the result does not depend on the number of processes or parts, or on a resume after a crash.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

ORDER, STEP, WEIGHTS, VALIDATION, DROPOUT, NETWORK = range(6)


def seed_of(seed: int, *place: int) -> int:
    """A seed for this place in the training with this seed."""
    words = np.random.SeedSequence([seed % 2**64, *place]).generate_state(1, np.uint64)
    return int(words[0]) % 2**63


def generator(seed: int, *place: int, device: torch.device | str = "cpu") -> torch.Generator:
    """A generator of the device for this place; the same seed draws other numbers elsewhere."""
    return torch.Generator(device).manual_seed(seed_of(seed, *place))


class Batches:
    """Indices of endless batches: shuffled passes through the data, one after another."""

    def __init__(self, count: int, size: int, seed: int):
        self.count, self.size, self.seed = count, size, seed
        self._pass = lru_cache(maxsize=1)(self._shuffled)

    def at(self, step: int) -> Tensor:
        """The indices of batch number `step`, (size,)."""
        found, place, end = [], step * self.size, (step + 1) * self.size
        while place < end:
            number, first = divmod(place, self.count)
            found.append(self._pass(number)[first : first + end - place])
            place += len(found[-1])
        return torch.cat(found)

    def _shuffled(self, number: int) -> Tensor:
        return torch.randperm(self.count, generator=generator(self.seed, ORDER, number))
