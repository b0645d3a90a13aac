"""An ADM diffusion model with its noise schedule."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..adm import UNet, UNetLayout
from ..core.autograd import compute_dtype
from ..core.noise import NoiseSchedule
from .low_res import check_low_res, enlarged


class DiffusionModel:
    """A U-Net that predicts eps, with its noise schedule and class names."""

    def __init__(
        self, network: UNet, noise_schedule: str | Tensor, labels: Sequence[str] | None = None
    ):
        self.network = network
        self.schedule = NoiseSchedule(noise_schedule)
        self.labels = tuple(labels) if labels is not None else None

    @property
    def layout(self) -> UNetLayout:
        return self.network.layout

    @property
    def num_classes(self) -> int:
        """Number of classes without the null class; 0 for an unconditional model."""
        return self.layout.class_count

    @property
    def device(self) -> torch.device:
        return next(self.network.parameters()).device

    def to(self, device: torch.device | str) -> DiffusionModel:
        self.network.to(device)
        return self

    def null_labels(self, batch: int) -> Tensor | None:
        """Labels (B,) that mean "no class"; None for an unconditional model.

        Raises ValueError for a conditional model trained without label dropout.
        """
        if self.layout.num_classes is None:
            return None
        if self.layout.null_class is None:
            raise ValueError(
                "This class-conditional model was trained without label dropout, so it cannot run "
                "unconditionally and cfg must be 1; steer it with a classifier instead."
            )
        return torch.full((batch,), self.layout.null_class, device=self.device)

    def __call__(
        self, x: Tensor, t: Tensor, labels: Tensor | None, low_res: Tensor | None = None
    ) -> tuple[Tensor, Tensor | None]:
        """eps and the variance logits v (None when not learned), both (B, C, H, W) fp32.

        x (B, C, H, W) is x_t in VP coordinates, t (B,) original timesteps, labels (B,) or None.
        low_res (B, C, H/4, W/4), or one image for all, in [-1, 1] are the small images of an
        upsampler; raises ValueError if they are missing, have a wrong size, or are given to a model
        that is not an upsampler.
        """
        dtype = compute_dtype(self.network, x)
        output = self.network(self._beside(x, low_res).to(dtype), t, labels).float()
        channels = self.layout.image_channels
        return output[:, :channels], output[:, channels:] if self.layout.learned_variance else None

    def _beside(self, x: Tensor, low_res: Tensor | None) -> Tensor:
        """The network's input: x, concatenated with the enlarged low_res of an upsampler."""
        if low_res is None and not self.layout.upsampler:
            return x
        if low_res is None:
            raise ValueError(
                "This diffusion model enlarges a small image: it is an upsampler and needs low_res."
            )
        if not self.layout.upsampler:
            raise ValueError(
                "This diffusion model draws from noise alone and takes no low_res; "
                "use an upsampler to enlarge an image."
            )
        check_low_res(low_res, x.shape)
        large = enlarged(low_res.to(x), x.shape[-2:])
        return torch.cat([x, large.expand(len(x), -1, -1, -1)], dim=1)
