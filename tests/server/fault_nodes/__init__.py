"""A custom node pack for tests: it makes things go wrong inside a server."""

from __future__ import annotations

import functools
import hashlib
import sys
import time
from pathlib import Path

import comfy.model_management
import comfy.patcher_extension
import folder_paths
import torch
from safetensors.torch import save_file

PREDICT_NOISE = comfy.patcher_extension.WrappersMP.PREDICT_NOISE
APPLY_MODEL = comfy.patcher_extension.WrappersMP.APPLY_MODEL


def signal(name):
    """A file in the temporary folder, by which a test and this pack tell each other something."""
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(exist_ok=True)
    return folder / name


def ask_to_stop():
    """Like the page's cancel button: the run ends after this step."""
    comfy.model_management.interrupt_current_processing()


def stop_here():
    """An interruption in the middle of a step, as core's operations raise it."""
    raise comfy.model_management.InterruptProcessingException


def out_of_memory():
    """The device has no memory left."""
    raise torch.OutOfMemoryError("Allocation on device")


def unload_models():
    """Memory is short: all models leave the device, in inference mode as core does it.

    On a CPU there is no other device, so the weights are copied.
    """
    loaded = [each.model for each in comfy.model_management.current_loaded_models]
    comfy.model_management.unload_all_models()
    with torch.inference_mode():
        for patcher in loaded:
            for weight in patcher.model.parameters():
                weight.data = copied(weight.data)


def copied(values):
    """A copy with the original's alignment to 64 bytes, which can change how sums are rounded."""
    size = values.element_size()
    shift = values.data_ptr() % 64 // size
    room = torch.empty(values.numel() + 128 // size, dtype=values.dtype)
    shift = (shift - room.data_ptr() % 64 // size) % (64 // size)
    return torch.as_strided(room, values.shape, values.stride(), shift).copy_(values)


def wait():
    """A step that lasts until the test signals "go on", or until it is interrupted."""
    signal("waiting").touch()
    deadline = time.monotonic() + 60
    while not signal("go on").exists() and time.monotonic() < deadline:
        time.sleep(0.02)
        comfy.model_management.throw_exception_if_processing_interrupted()
    signal("go on").unlink()


FAULTS = {
    "ask to stop": (PREDICT_NOISE, ask_to_stop),
    "stop in the guider": (PREDICT_NOISE, stop_here),
    "stop in the network": (APPLY_MODEL, stop_here),
    "out of memory": (APPLY_MODEL, out_of_memory),
    "wait": (PREDICT_NOISE, wait),
    "memory pressure": (PREDICT_NOISE, unload_models),
}


class Fault:
    """A MODEL with a fault where the file "armed" says so: a fault's name, and in which evaluation.

    `nonce` is not used: a new value makes this node and all after it run again.
    """

    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "execute", ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "nonce": ("INT", {"default": 0})}}

    def execute(self, model, nonce):
        model = model.clone()
        for kind in (PREDICT_NOISE, APPLY_MODEL):
            wrapper = functools.partial(self.evaluate, kind)
            model.add_wrapper_with_key(kind, "tests.fault", wrapper)
        return (model,)

    @staticmethod
    def evaluate(kind, executor, *arguments, **options):
        if signal("armed").exists():
            name, at = signal("armed").read_text().rsplit(" ", 1)
            happens_in, happens = FAULTS[name]
            if happens_in == kind and at == "1":
                signal("armed").unlink()
                happens()
            elif happens_in == kind:
                signal("armed").write_text(f"{name} {int(at) - 1}")
        return executor(*arguments, **options)


class Digest:
    """Shows a hash of every bit of a latent and of an image."""

    CATEGORY, FUNCTION, RETURN_TYPES, OUTPUT_NODE = "tests", "execute", (), True

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"samples": ("LATENT",), "image": ("IMAGE",)}}

    def execute(self, samples, image):
        digest = hashlib.sha256()
        for values in (samples["samples"], image):
            digest.update(str((values.dtype, tuple(values.shape))).encode())
            digest.update(values.contiguous().numpy().tobytes())
        return {"ui": {"text": [digest.hexdigest()]}}


class StallingDisk:
    """A NOISY_CLASSIFIER; the next safetensors file that the pack writes stays half written."""

    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "execute", ("NOISY_CLASSIFIER",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"classifier": ("NOISY_CLASSIFIER",)}}

    def execute(self, classifier):
        def half(tensors, path, metadata):
            save_file(tensors, path, metadata)
            whole = path.read_bytes()
            path.write_bytes(whole[: len(whole) // 2])
            signal("half").touch()
            time.sleep(600)

        package = type(classifier).__module__.partition(".nodes.")[0]
        for name, module in list(sys.modules.items()):
            if name.startswith(f"{package}.guidance.") and hasattr(module, "save_file"):
                module.save_file = half
        return (classifier,)


NODE_CLASS_MAPPINGS = {
    "TestsFault": Fault,
    "TestsDigest": Digest,
    "TestsStallingDisk": StallingDisk,
}
