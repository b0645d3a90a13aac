"""Core's own models, shrunk, with random weights, through core's own loading code."""

from __future__ import annotations

import functools
from dataclasses import dataclass
from unittest import mock

import torch

TOKENS = 6
UNET = {
    "image_size": 32,
    "in_channels": 4,
    "out_channels": 4,
    "model_channels": 32,
    "num_res_blocks": [1, 1],
    "channel_mult": [1, 2],
    "use_spatial_transformer": True,
    "transformer_depth": [0, 1],
    "transformer_depth_middle": 1,
    "transformer_depth_output": [0, 0, 1, 1],
    "context_dim": 24,
    "legacy": False,
    "use_linear_in_transformer": True,
    "use_temporal_attention": False,
    "adm_in_channels": None,
}
# core tells SD 2's v-prediction by a bias of the last of its twelve output blocks
UNET_OF_SD2 = {
    **{"model_channels": 64, "num_res_blocks": [2] * 4, "channel_mult": [1] * 4},
    **{"transformer_depth": [0] * 8, "transformer_depth_output": [1] + [0] * 11},
}
FLUX = {
    **{"in_channels": 16, "out_channels": 16, "patch_size": 2, "axes_dim": [4, 6, 6]},
    **{"vec_in_dim": 8, "context_in_dim": 12, "hidden_size": 32, "num_heads": 2},
    **{"mlp_ratio": 2.0, "depth": 1, "depth_single_blocks": 1, "theta": 10000, "qkv_bias": True},
}
LUMINA = {
    **{"image_model": "lumina2", "patch_size": 2, "in_channels": 16, "cap_feat_dim": 12},
    **{"n_layers": 1, "n_refiner_layers": 1, "qk_norm": True, "n_heads": 2},
    **{"axes_lens": [300, 64, 64], "multiple_of": 16, "ffn_dim_multiplier": 1.0},
}
CONFIGS = {
    "SD15": {"use_linear_in_transformer": False} | UNET,
    "SD20": UNET | UNET_OF_SD2,
    "SDXL": UNET | {"num_classes": "sequential", "adm_in_channels": 16 + 6 * 256},
    "SVD_img2vid": {
        **UNET,
        **{"in_channels": 8, "num_classes": "sequential", "adm_in_channels": 768},
        **{"use_temporal_attention": True, "use_temporal_resblock": True},
        **{"extra_ff_mix_layer": True, "use_spatial_context": True, "merge_factor": 0.0},
        **{"merge_strategy": "learned_with_images", "video_kernel_size": [3, 1, 1]},
        "model_channels": 64,
    },
    "SD3": {
        **{"in_channels": 16, "out_channels": 16, "patch_size": 2, "depth": 2},
        **{"adm_in_channels": 16, "num_patches": 64, "pos_embed_max_size": 8, "qk_norm": "rms"},
        "context_embedder_config": {
            "target": "torch.nn.Linear",
            "params": {"in_features": 24, "out_features": 128},
        },
    },
    "Flux": FLUX | {"image_model": "flux", "guidance_embed": True, "txt_ids_dims": []},
    "Flux2": {
        **FLUX,
        **{"image_model": "flux2", "in_channels": 128, "out_channels": 128, "patch_size": 1},
        **{"vec_in_dim": None, "axes_dim": [4] * 4, "qkv_bias": False, "ops_bias": False},
        **{"global_modulation": True, "mlp_silu_act": True, "guidance_embed": True},
        **{"default_ref_method": "index", "txt_ids_dims": [3]},
    },
    "Chroma": {
        **FLUX,
        **{"image_model": "chroma", "in_channels": 64, "out_channels": 64, "in_dim": 64},
        **{"out_dim": 32, "hidden_dim": 32, "n_layers": 2, "vec_in_dim": None, "txt_ids_dims": []},
    },
    "QwenImage": {
        **{"image_model": "qwen_image", "num_layers": 1, "attention_head_dim": 16},
        **{"num_attention_heads": 2, "joint_attention_dim": 12, "axes_dims_rope": (4, 6, 6)},
    },
    "Lumina2": LUMINA | {"dim": 48, "n_kv_heads": 1, "axes_dims": [8, 8, 8]},
    "ZImage": {
        **LUMINA,
        **{"dim": 256, "n_kv_heads": 2, "axes_dims": [32, 48, 48], "rope_theta": 256.0},
        **{"z_image_modulation": True, "time_scale": 1000.0, "pad_tokens_multiple": 32},
    },
    "AuraFlow": {
        **{"cond_seq_dim": 12, "dim": 32, "n_heads": 2, "n_layers": 2, "n_double_layers": 1},
        **{"global_conddim": 32, "max_seq": 64},
    },
    "PixArtSigma": {
        **{"image_model": "pixart_sigma", "input_size": 40, "hidden_size": 32, "depth": 1},
        **{"num_heads": 2, "caption_channels": 12, "micro_condition": False},
        **{"model_max_length": TOKENS},
    },
    "Stable_Cascade_C": {
        **{"stable_cascade_stage": "c", "c_cond": 32, "c_hidden": [32, 32], "nhead": [2, 2]},
        **{"blocks": [[1, 1], [1, 1]], "c_clip_text": 24, "c_clip_text_pooled": 16},
    },
    "WAN21_T2V": {
        **{"image_model": "wan2.1", "dim": 48, "num_heads": 2, "ffn_dim": 32, "num_layers": 1},
        **{"freq_dim": 32, "text_dim": 12, "text_len": TOKENS},
    },
    "HunyuanVideo": {
        **FLUX,
        **{"image_model": "hunyuan_video", "patch_size": [1, 2, 2], "guidance_embed": True},
        **{"byt5": False, "meanflow": False, "meanflow_sum": False, "vision_in_dim": None},
        "use_cond_type_embedding": False,
    },
    "LTXV": {
        **{"image_model": "ltxv", "in_channels": 128, "cross_attention_dim": 48},
        **{"attention_head_dim": 24, "num_attention_heads": 2, "caption_channels": 12},
        "num_layers": 1,
    },
}


@dataclass(frozen=True)
class Kind:
    """A model of the zoo: core's class, and what it reads.

    shape: of a latent, without the batch. text: channels of a prompt's tokens. pooled: length of
    its pooled vector; 0 for none. masked: its prompts bring an attention mask. frames: of a
    video whose frames are the batch.
    """

    name: str
    config: str
    shape: tuple[int, ...]
    text: int
    pooled: int = 0
    masked: bool = False
    frames: int = 1

    @property
    def is_video(self) -> bool:
        """Whether it draws more than one frame."""
        return len(self.shape) == 4 and self.shape[1] > 1


ZOO = {
    kind.name: kind
    for kind in (
        Kind("SD 1.5", "SD15", (4, 8, 8), 24),
        Kind("SD 2 v", "SD20", (4, 16, 16), 24),
        Kind("SDXL", "SDXL", (4, 8, 8), 24, 16),
        Kind("SVD", "SVD_img2vid", (4, 8, 8), 24, frames=2),
        Kind("SD3", "SD3", (16, 8, 8), 24, 16),
        Kind("Flux", "Flux", (16, 8, 8), 12, 8),
        Kind("Flux 2", "Flux2", (128, 4, 4), 12),
        Kind("Chroma", "Chroma", (16, 8, 8), 12),
        Kind("Qwen-Image", "QwenImage", (16, 1, 8, 8), 12),
        Kind("Lumina 2", "Lumina2", (16, 8, 8), 12, masked=True),
        Kind("Z-Image", "ZImage", (16, 8, 8), 12, masked=True),
        Kind("AuraFlow", "AuraFlow", (4, 8, 8), 12),
        Kind("PixArt Sigma", "PixArtSigma", (4, 40, 40), 12),
        Kind("Stable Cascade", "Stable_Cascade_C", (16, 8, 8), 24, 16),
        Kind("Wan 2.1", "WAN21_T2V", (16, 2, 4, 4), 12),
        Kind("Hunyuan Video", "HunyuanVideo", (16, 2, 4, 4), 12, 8),
        Kind("LTXV", "LTXV", (128, 2, 2, 2), 12, masked=True),
    )
}


@functools.cache
def zoo_model(kind: Kind, ordinary: bool = False):
    """The MODEL of that kind, made in inference mode as ComfyUI does, unless ordinary."""
    import comfy.model_detection
    import comfy.sd

    weights = random_weights(config_of(kind).get_model({}, "").diffusion_model)
    found = mock.patch.object(
        comfy.model_detection, "model_config_from_unet", lambda *_, **__: config_of(kind)
    )
    with found, torch.inference_mode(not ordinary):
        return comfy.sd.load_diffusion_model_state_dict(weights, {"dtype": torch.float32})


def prompt(kind: Kind, seed: int):
    """A CONDITIONING, as a text encoder of that model would give it."""
    draws = torch.Generator().manual_seed(seed)
    values = {"attention_mask": torch.ones(1, TOKENS, dtype=torch.long)} if kind.masked else {}
    if kind.pooled:
        values["pooled_output"] = torch.randn(1, kind.pooled, generator=draws)
    return [[torch.randn(1, TOKENS, kind.text, generator=draws), values]]


def latent(kind: Kind, seed: int = 3):
    """Noise of one image or video."""
    return torch.randn(kind.frames, *kind.shape, generator=torch.Generator().manual_seed(seed))


class Decoder(torch.nn.Module):
    """The decoder of a VAE of images or of video: a latent's pixel becomes a pixel."""

    def __init__(self, channels: int):
        super().__init__()
        generator = torch.Generator().manual_seed(channels)
        self.mix = torch.nn.Parameter(torch.randn(3, channels, generator=generator) / channels**0.5)

    def decode(self, z):
        return torch.einsum("oc,bc...->bo...", self.mix, z).tanh()


def zoo_vae(kind: Kind):
    """A core VAE of that model's latents."""
    import comfy.model_patcher
    import comfy.sd

    vae = comfy.sd.VAE(sd={"pixel_space_vae": torch.tensor(1.0)})
    cpu = torch.device("cpu")
    vae.first_stage_model = network = Decoder(kind.shape[0])
    vae.patcher = comfy.model_patcher.ModelPatcher(network, load_device=cpu, offload_device=cpu)
    vae.latent_channels, vae.output_channels = kind.shape[0], 3
    vae.latent_dim = len(kind.shape) - 1
    vae.process_output = lambda image: image.add(1.0).div(2.0)
    return vae


def config_of(kind: Kind):
    import comfy.supported_models

    config = getattr(comfy.supported_models, kind.config)(dict(CONFIGS[kind.config]))
    config.set_inference_dtype(torch.float32, None)
    return config


def random_weights(network) -> dict:
    """Weights for a network, always the same."""
    draws = torch.Generator().manual_seed(5)
    return {
        name: _random_weight(name, value.shape, draws)
        for name, value in network.state_dict().items()
    }


def _random_weight(name: str, shape: torch.Size, draws: torch.Generator) -> torch.Tensor:
    values = torch.randn(shape, generator=draws)
    if len(shape) > 1:
        return values / max(1, values[0].numel()) ** 0.5
    return 0.15 * values + ("bias" not in name)
