"""ComfyUI's streamed weights (dynamic VRAM) without a GPU: core's own patchers, on the CPU."""

from __future__ import annotations

from contextlib import contextmanager
from unittest import mock

import pytest
from safetensors.torch import save_file
from zoo import config_of, random_weights


class HostBuffer:
    """Stands for aimdo's pinned memory, of which nothing is used."""

    def __init__(self, size, *_):
        self.size = size

    def truncate(self, size, **_):
        """Shrinks it."""
        self.size = size


@contextmanager
def dynamic_vram():
    """Core makes streamed patchers of what is loaded in the block, and computes with them."""
    pytest.importorskip("comfy_aimdo", reason="this ComfyUI streams nothing")
    import comfy.model_management
    import comfy.model_patcher as patchers
    import comfy_aimdo.host_buffer

    if not hasattr(patchers, "ModelPatcherDynamic"):
        pytest.skip("this ComfyUI streams nothing")
    with (
        mock.patch.object(comfy_aimdo.host_buffer, "HostBuffer", HostBuffer),
        mock.patch.object(patchers, "CoreModelPatcher", patchers.ModelPatcherDynamic),
        mock.patch.object(comfy.model_management, "is_device_cpu", lambda device: False),
    ):
        yield


def model_file(kind, folder):
    """A file with that model of the zoo."""
    path = folder / f"{kind.config}.safetensors"
    weights = random_weights(config_of(kind).get_model({}, "").diffusion_model)
    save_file({name: weight.contiguous() for name, weight in weights.items()}, path)
    return str(path)
