"""Checks that gradients are finite, without making a step wait for the device."""

from __future__ import annotations

from collections import deque

import torch
from torch import Tensor

from ..classifiers.base import nan_unless_finite
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

    def check(
        self,
        gradient: Tensor,
        x: Tensor,
        sigma: Tensor,
        denoised: Tensor,
        decoded: Tensor | None = None,
    ) -> None:
        """Checks a gradient (B, ...) at x and denoised (B, ...) and sigma (B,).

        decoded (B,): see `ClassifierOutput`. Raises ValueError for this gradient or an earlier one.
        """
        values = map(nan_unless_finite, (gradient, x, denoised))
        decoded = torch.zeros_like(sigma) if decoded is None else decoded.to(sigma.device)
        facts = torch.stack([*values, decoded.float(), sigma.float()])
        self._pending.append(HostCopy(facts))
        if len(self._pending) >= MOST_PENDING:
            self.finish()
        while self._pending and self._pending[0].arrived:
            _check(self._pending.popleft().wait())

    def finish(self) -> None:
        """Waits for all pending checks. Raises ValueError like `check`."""
        while self._pending:
            _check(self._pending.popleft().wait())


def _check(facts: Tensor) -> None:
    gradient, x, denoised, decoded, sigma = facts.tolist()
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
    if denoised[index] != 0:
        raise ValueError(
            f"The diffusion model's prediction is not finite {where}, before guidance; load the "
            "diffusion model in fp32 or bf16."
        )
    if decoded[index] != 0:
        raise ValueError(
            f"The image that the VAE decodes for the classifier is not finite {where}; start "
            "ComfyUI with --fp32-vae or --bf16-vae."
        )
    raise ValueError(
        f"The classifier's gradient is not finite {where}; "
        "load the classifier, and the VAE if it "
        "reads images of latents, in fp32 or bf16."
    )
