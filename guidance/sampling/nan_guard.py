"""Checks that gradients are finite, without making a step wait for the device."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from ..core.host_copy import HostCopy

# The most pending checks on devices that cannot tell when a copy has arrived.
MOST_PENDING = 100


class NaNGuard:
    """Checks the evaluations of one run.

    On a CPU, `check` raises at once. On other devices, a later `check` or `finish` raises when the
    result has arrived.
    """

    def __init__(self) -> None:
        self._pending: deque[HostCopy] = deque()

    def check(self, gradient: Tensor, x: Tensor, sigma: Tensor) -> None:
        """Checks a gradient (B, ...) that was computed at x (B, ...) and sigma (B,).

        Raises ValueError for this gradient or an earlier one.
        """
        facts = torch.stack([_nan_unless_finite(gradient), _nan_unless_finite(x), sigma.float()])
        self._pending.append(HostCopy(facts))
        if len(self._pending) >= MOST_PENDING:
            self.finish()
        while self._pending and self._pending[0].arrived:
            _check(self._pending.popleft().wait())

    def finish(self) -> None:
        """Waits for all pending checks. Raises ValueError like `check`."""
        while self._pending:
            _check(self._pending.popleft().wait())


def _nan_unless_finite(values: Tensor) -> Tensor:
    """0 for each finite image (B, ...), else NaN."""
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
