"""A ComfyUI in this process, with the pack and with random models of the usual sizes."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from harness import find_comfyui, load_pack, start_comfyui, use_library

from .setup import LeftOut, Setup

UNET = {
    **{"image_size": 32, "in_channels": 4, "out_channels": 4, "model_channels": 320},
    **{"num_res_blocks": [2, 2, 2], "channel_mult": [1, 2, 4], "num_head_channels": 64},
    **{"transformer_depth": [0, 0, 2, 2, 10, 10], "transformer_depth_middle": 10},
    **{"transformer_depth_output": [0, 0, 0, 2, 2, 2, 10, 10, 10], "context_dim": 2048},
    **{"use_spatial_transformer": True, "use_linear_in_transformer": True},
    **{"num_classes": "sequential", "adm_in_channels": 2816, "legacy": False},
    **{"use_temporal_attention": False, "use_temporal_resblock": False},
    "use_checkpoint": False,
}
SMALL_UNET = {
    **{"model_channels": 64, "context_dim": 64, "transformer_depth": [0, 0, 1, 1, 1, 1]},
    **{"transformer_depth_middle": 1, "transformer_depth_output": [0, 0, 0, 1, 1, 1, 1, 1, 1]},
}
VAE = {
    **{"double_z": True, "z_channels": 4, "resolution": 256, "in_channels": 3, "out_ch": 3},
    **{"ch": 128, "ch_mult": [1, 2, 4, 4], "num_res_blocks": 2, "attn_resolutions": []},
    "dropout": 0.0,
}
SMALL_VIT = {
    **{"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2},
    "intermediate_size": 64,
}
PREPROCESSOR = {
    **{"image_processor_type": "ViTImageProcessor", "do_resize": True, "resample": 2},
    **{"size": {"height": 224, "width": 224}, "do_rescale": True, "rescale_factor": 1 / 255},
    **{"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3},
}
CLASSES, LABEL = 10, "3"


def comfy_nodes(setup: Setup) -> Any:
    """ComfyUI's `nodes` with the pack, which finds classifiers in the setup's folder."""
    try:
        path = find_comfyui().path
    except Exception as reason:  # of a module that only find_comfyui imports
        raise LeftOut(str(reason)) from reason
    nodes = start_comfyui(str(path), cpu=setup.rehearse)
    use_library()
    if not load_pack(nodes):
        raise RuntimeError("ComfyUI could not load the pack")
    import folder_paths

    folder_paths.add_model_folder_path("classifiers", str(setup.folder))
    return nodes


def randomise(network: Any) -> Any:
    """Random weights that keep the size of what passes through them; the same each time."""
    import torch

    device = next(network.parameters()).device
    chance = torch.Generator(device).manual_seed(0)
    with torch.no_grad():
        for name, weight in network.named_parameters():
            if weight.ndim > 1:
                weight.normal_(0, weight[0].numel() ** -0.5, generator=chance)
            else:
                weight.normal_(float(name.endswith("weight")), 0.02, generator=chance)
    return network


class SDXL:
    """SDXL's U-Net with random weights, and runs with random prompts."""

    def __init__(self, setup: Setup):
        import torch

        self.setup = setup
        self.config = UNET | setup.pick({}, SMALL_UNET)
        self.dtype = setup.pick(torch.float16, torch.float32)
        self.side = setup.pick(128, 8)  # of the latents: 1024 pixels
        chance = torch.Generator().manual_seed(0)
        width = self.config["context_dim"]
        self.positive, self.negative = (
            [
                [
                    torch.randn(1, 77, width, generator=chance),
                    {"pooled_output": torch.randn(1, 1280, generator=chance)},
                ]
            ]
            for _ in range(2)
        )
        self.noise = torch.randn(1, 4, self.side, self.side, generator=chance)

    def base(self) -> Any:
        """The network as core makes it."""
        import comfy.model_base
        import comfy.supported_models
        import torch

        config = comfy.supported_models.SDXL(self.config)
        config.set_inference_dtype(self.dtype, None)
        with torch.inference_mode():  # as when a node loads a model
            model = comfy.model_base.SDXL(config, device=self.setup.device)
            randomise(model.diffusion_model)
        return model

    def patcher(self) -> Any:
        """The MODEL, in main memory until it is used."""
        import comfy.model_management
        import comfy.model_patcher

        offload = comfy.model_management.unet_offload_device()
        device = comfy.model_management.get_torch_device()
        return comfy.model_patcher.CoreModelPatcher(
            self.base().to(offload), load_device=device, offload_device=offload
        )

    def run(self, model: Any, cfg: float, steps: int) -> Any:
        """A run of euler from noise to latents."""
        import comfy.sample
        import torch

        conds = self.positive, self.negative
        with torch.inference_mode():
            latents = comfy.sample.sample(
                *(model, self.noise, steps, cfg, "euler", "normal", *conds),
                torch.zeros_like(self.noise),
                disable_pbar=True,
                seed=0,
            )
        if not bool(latents.isfinite().all()):
            raise RuntimeError("the latents are not finite")
        return latents


@dataclass
class Classifiers:
    """Random classifiers, by the pack's loaders."""

    setup: Setup
    nodes: Any
    side: int

    def noisy(self, preset: str) -> Any:
        """A NOISY_CLASSIFIER of SDXL's latents."""
        from guidance.adm.build import build_network
        from guidance.adm.presets import classifier_layout
        from guidance.checkpoints.checkpoint import Description, save_checkpoint

        size = (self.side, self.side)
        layout = classifier_layout(preset, channels=4, size=size, classes=CLASSES)
        network = randomise(build_network(layout, self.setup.device))
        about = Description(
            kind="classifier",
            layout=layout,
            noise_schedule="linear",
            labels=tuple(map(str, range(CLASSES))),
            space="SDXL",
        )
        name = f"{preset}.safetensors"
        save_checkpoint(
            self.setup.folder / name, network.state_dict(), about, self.setup.pick("fp16", "fp32")
        )
        return self._call(
            "NoisyClassifierLoader", classifier_name=name, noise_schedule="auto", dtype="auto"
        )

    def clean(self, vae: Any, gradient: str) -> Any:
        """A NOISY_CLASSIFIER of images: ViT-B, with as many looks as the node has by default."""
        if not (self.setup.folder / "vit").is_dir():
            self._write_vit()
        schema = self.nodes.NODE_CLASS_MAPPINGS["ImageClassifierLoader"].GET_SCHEMA()
        inputs = {one.id: one.default for one in schema.inputs if getattr(one, "default", None)}
        inputs |= {"classifier_name": "vit", "vae": vae, "gradient": gradient}
        return self._call("ImageClassifierLoader", **inputs)

    def guided(self, model: Any, classifier: Any) -> Any:
        """The MODEL with Classifier Guidance."""
        inputs = {"model": model, "classifier": classifier, "label": LABEL, "scale": 1.0}
        return self._call("ClassifierGuidance", **inputs, normalize="auto")

    def _write_vit(self) -> None:
        import transformers

        config = transformers.ViTConfig(num_labels=CLASSES, **self.setup.pick({}, SMALL_VIT))
        folder = self.setup.folder / "vit"
        transformers.ViTForImageClassification(config).save_pretrained(folder)
        (folder / "preprocessor_config.json").write_text(json.dumps(PREPROCESSOR), "utf-8")

    def _call(self, node_id: str, **inputs: Any) -> Any:
        return call(self.nodes, node_id, **inputs)


def call(nodes: Any, node_id: str, **inputs: Any) -> Any:
    """A node's first output."""
    import torch

    with torch.inference_mode():
        return nodes.NODE_CLASS_MAPPINGS[node_id].execute(**inputs).result[0]


def random_vae(name: str) -> Any:
    """A VAE of SDXL's latents: "taesd" or "whole VAE"."""
    import comfy.sd
    import torch
    from comfy.ldm.models.autoencoder import AutoencoderKL
    from comfy.taesd.taesd import TAESD

    with torch.inference_mode(False):
        if name == "taesd":
            network = TAESD(latent_channels=4)
        else:
            network = AutoencoderKL(ddconfig=VAE, embed_dim=4)
        weights = randomise(network).state_dict()
    vae = comfy.sd.VAE(sd={key: weight.detach().clone() for key, weight in weights.items()})
    vae.throw_exception_if_invalid()
    return vae
