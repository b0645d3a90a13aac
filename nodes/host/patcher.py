"""How ComfyUI places the networks that are attached to a MODEL."""

from __future__ import annotations

from typing import Any

import comfy.model_management
import comfy.model_patcher

from . import hooks


class AllOrNothingPatcher(comfy.model_patcher.ModelPatcher):
    """Loads a model completely or not at all.

    A classifier is small, and its layers are plain torch modules. Its backward pass would fail if
    half of it were on another device.
    """

    def partially_load(self, device_to: Any, extra_memory: float = 0, **options: Any) -> Any:
        """Loads everything, regardless of the free memory."""
        return super().partially_load(device_to, 1e32, **options)

    def partially_unload(self, device_to: Any, memory_to_free: float = 0, **options: Any) -> int:
        """Frees nothing, which makes ComfyUI unload the whole model instead."""
        return 0

    def deepclone_multigpu(self, new_load_device: Any = None, models_cache: Any = None) -> Any:
        """The same network on its device; the steered model may be on any device."""
        return self.clone()


def placed(network: Any) -> AllOrNothingPatcher:
    """The network on ComfyUI's offload device."""
    device = comfy.model_management.get_torch_device()
    offload = comfy.model_management.unet_offload_device()
    return AllOrNothingPatcher(network, load_device=device, offload_device=offload)


def attach(model: Any, key: str, patchers: list[Any]) -> None:
    """Makes ComfyUI load these models whenever it loads the MODEL."""
    model.set_additional_models(key, patchers)
    hooks.on_multigpu_clone(model, _without_classifiers)


def _without_classifiers(model: Any, clone: Any) -> None:
    """A clone for another GPU only computes the MODEL's prediction; the first one guides."""
    for key, patchers in list(clone.additional_models.items()):
        if any(isinstance(patcher, AllOrNothingPatcher) for patcher in patchers):
            clone.remove_additional_models(key)


def is_streamed(patcher: Any) -> bool:
    """Whether ComfyUI streams the weights layer by layer (dynamic VRAM)."""
    is_dynamic = getattr(patcher, "is_dynamic", None)
    return is_dynamic is not None and is_dynamic()
