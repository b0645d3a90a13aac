"""A watch over gradients: one that is not finite ends the run, and no step waits for the look."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from ..core.host_copy import HostCopy

# So many looks are kept at most where nobody can say when a copy has arrived.
MOST_PENDING = 100


class NaNGuard:
    """Over the evaluations of one run.

    What `check` finds is told by a later `check`, once it has come from the device, or by `finish`;
    on a CPU at once.
    """

    def __init__(self) -> None:
        self._pending: deque[HostCopy] = deque()

    def check(self, gradient: Tensor, x: Tensor, sigma: Tensor) -> None:
        """At a gradient (B, ...) that was computed at x (B, ...) and sigma (B,).

        Raises ValueError for this one or for one before.
        """
        facts = torch.stack([_nan_unless_finite(gradient), _nan_unless_finite(x), sigma.float()])
        self._pending.append(HostCopy(facts))
        if len(self._pending) >= MOST_PENDING:
            self.finish()
        while self._pending and self._pending[0].arrived:
            _check(self._pending.popleft().wait())

    def finish(self) -> None:
        """Waits for all that were looked at. Raises ValueError as `check`."""
        while self._pending:
            _check(self._pending.popleft().wait())


def _nan_unless_finite(values: Tensor) -> Tensor:
    """0 of each image (B, ...) that is finite, else NaN."""
    return values.detach().flatten(1).mul(0).sum(dim=1).float()


def _check(facts: Tensor) -> None:
    gradient, x, sigma = facts.tolist()
    wrong = [index for index, value in enumerate(gradient) if value != 0]
    if not wrong:
        return
    index = wrong[0]
    where = f"at sigma {sigma[index]:.5g} in image {index} of the batch (counted from 0)"
    if x[index] != 0:
        raise ValueError(
            f"The image itself is not finite {where}, before guidance; "
            "lower the scale or cfg, or load the diffusion model in fp32."
        )
    raise ValueError(
        f"The classifier's gradient is not finite {where}; "
        "load the classifier in fp32 or bf16, or use another one."
    )
