"""ADM diffusion models as core MODELs."""

from __future__ import annotations

from typing import Any

import comfy.conds
import comfy.latent_formats
import comfy.model_base
import comfy.model_management
import comfy.model_patcher
import comfy.model_sampling
import comfy.sd
import comfy.supported_models_base
import torch
from torch import Tensor

from ...guidance.adm import UNet, UNetLayout
from ...guidance.checkpoints.checkpoint import Checkpoint, CheckpointError
from ...guidance.core.labels import spread_labels
from ...guidance.core.noise import NoiseSchedule, sigma_from_alpha_bar
from ...guidance.sampling.low_res import check_low_res, enlarged
from .files import read_file, weight_dtype
from .paths import DIFFUSION_MODELS
from .side_outputs import keep_variance


class ComfyUNet(UNet):
    """The U-Net for ComfyUI: returns eps only, and keeps the variance as a side output."""

    def __init__(self, layout: UNetLayout, dtype: Any, operations: Any, device: Any = None):
        super().__init__(layout, operations, dtype, device)
        self.dtype = dtype

    def forward(  # type: ignore[override]
        self,
        x: Tensor,
        timesteps: Tensor,
        context: Any = None,
        control: Any = None,
        transformer_options: dict | None = None,
        y: Tensor | None = None,
        **_: Any,
    ) -> Tensor:
        """x (B, C, H, W) and timesteps (B,) -> eps (B, C, H, W)."""
        output = super().forward(x, timesteps, y)
        if not self.layout.learned_variance:
            return output
        eps, variance = output.chunk(2, dim=1)
        keep_variance(transformer_options, variance)
        return eps


class ADMSampling(comfy.model_sampling.ModelSamplingDiscrete, comfy.model_sampling.EPS):
    """OpenAI's noise schedules as a core model sampling."""

    def __init__(self, schedule: NoiseSchedule):
        super().__init__()
        self.num_timesteps = len(schedule)
        self.set_sigmas(sigma_from_alpha_bar(schedule.alpha_bar))


class ADMModel(comfy.model_base.BaseModel):
    """A core model around an ADM U-Net: pixels, eps, optional class labels."""

    def __init__(self, config: Any, checkpoint: Checkpoint, device: Any = None):
        super().__init__(config, comfy.model_base.ModelType.EPS, device, unet_model=ComfyUNet)
        about = checkpoint.description
        self.model_sampling = ADMSampling(NoiseSchedule(about.noise_schedule))
        self.layout: UNetLayout = about.layout  # type: ignore[assignment]
        self.labels = about.labels
        self.file_name = checkpoint.path.name

    def extra_conds(self, **kwargs: Any) -> dict[str, Any]:
        """The U-Net's y and the upsampler's small image; text conditioning is ignored."""
        return {**self._class_conds(**kwargs), **self._low_res_conds(**kwargs)}

    def _class_conds(self, noise: Tensor, device: Any, adm_labels: Any = None, **_: Any) -> dict:
        if self.layout.num_classes is None:
            return {}
        if adm_labels is None:
            raise ValueError(
                f"{self.file_name} needs a class label, and the conditioning has none; "
                "connect ADM Class Label to positive and negative."
            )
        outside = [label for label in adm_labels if label >= self.layout.num_classes]
        if outside:
            raise ValueError(
                f"The conditioning's class label is {outside[0]}, but the classes of "
                f"{self.file_name} go from 0 to {self.layout.class_count - 1}; "
                "connect this model to the ADM Class Label."
            )
        chosen = spread_labels(adm_labels, len(noise), "label of ADM Class Label")
        return {"y": comfy.conds.CONDRegular(torch.tensor(chosen, device=device))}

    def _low_res_conds(self, noise: Tensor, adm_low_res: Any = None, **_: Any) -> dict:
        if not self.layout.upsampler:
            if adm_low_res is None:
                return {}
            raise ValueError(
                f"{self.file_name} draws from noise alone, but its conditioning has an image; "
                "remove ADM Upscale Conditioning, or load an upsampler."
            )
        if adm_low_res is None:
            raise ValueError(
                f"{self.file_name} is an upsampler and needs the small image to enlarge; "
                "connect ADM Upscale Conditioning to positive and negative."
            )
        check_low_res(adm_low_res, noise.shape)
        return {"c_concat": comfy.conds.CONDNoiseShape(enlarged(adm_low_res, noise.shape[-2:]))}


def pixel_vae() -> comfy.sd.VAE:
    """Core's VAE for models of pixels."""
    return comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})


@torch.inference_mode()
def load_adm(
    name: str,
    clip_denoised: bool,
    dtype: str,
    overrides: dict[str, Any],
    disable_dynamic: bool = False,
) -> comfy.model_patcher.ModelPatcher:
    """A core MODEL. Its weights are never streamed, so disable_dynamic changes nothing."""
    checkpoint = read_file(DIFFUSION_MODELS, name, "diffusion", overrides)
    layout = checkpoint.description.layout
    assert isinstance(layout, UNetLayout)
    if layout.image_channels != 3:
        raise CheckpointError(
            f"{checkpoint.path.name} makes images of {layout.image_channels} channels; only RGB "
            "(3) is supported."
        )
    device = comfy.model_management.get_torch_device()
    offload = comfy.model_management.unet_offload_device()
    weights = weight_dtype(checkpoint, dtype)
    # built on the meta device; the file's tensors become its weights
    config, meta = _config(layout, weights, device), torch.device("meta")
    model = checkpoint.built(lambda: ADMModel(config, checkpoint, meta))
    checkpoint.fill(model.diffusion_model, weights)
    model.device = offload
    patcher = comfy.model_patcher.ModelPatcher(model, load_device=device, offload_device=offload)
    # core calls this to make a copy for another GPU
    patcher.cached_patcher_init = (load_adm, (name, clip_denoised, dtype, overrides))
    if clip_denoised:
        patcher.set_model_sampler_post_cfg_function(_clip)
    return patcher


def _clip(args: dict) -> Tensor:
    # after CFG and before classifier guidance, as in the original
    return args["denoised"].clamp(-1, 1)


def _config(layout: UNetLayout, weights: torch.dtype, device: torch.device) -> Any:
    class Config(comfy.supported_models_base.BASE):
        latent_format = comfy.latent_formats.ChromaRadiance
        unet_extra_config: dict[str, Any] = {}
        # relative to ComfyUI's estimate for Stable Diffusion; 0.3 for a 256-channel U-Net
        memory_usage_factor = 0.3 * layout.model_channels / 256

    config = Config({"layout": layout})
    compute = comfy.model_management.unet_manual_cast(weights, device)
    config.set_inference_dtype(weights, compute)
    return config


def adm_model(patcher: Any) -> ADMModel | None:
    """The ADM model in a MODEL, or None for another kind of model."""
    return patcher.model if isinstance(patcher.model, ADMModel) else None
