"""A custom node pack for tests alone: it makes things go wrong inside a server."""

from __future__ import annotations

import hashlib
import sys
import time
from pathlib import Path

import comfy.model_management
import comfy.patcher_extension
import folder_paths
import torch

PREDICT_NOISE = comfy.patcher_extension.WrappersMP.PREDICT_NOISE
APPLY_MODEL = comfy.patcher_extension.WrappersMP.APPLY_MODEL
NEVER = 0


def ask_to_stop():
    """What the page's cancel button does: the step at hand ends, then the run."""
    comfy.model_management.interrupt_current_processing()


def stop_here():
    """An interruption in the middle of a network, as core's operations raise it."""
    raise comfy.model_management.InterruptProcessingException


def out_of_memory():
    """The device has no room for the network at hand."""
    raise torch.OutOfMemoryError("Allocation on device")


def press():
    """Memory runs short: all models leave the device, in inference mode as core does it.

    On a CPU there is nowhere to go, so their weights are copied, as another device would do it.
    """
    loaded = [each.model for each in comfy.model_management.current_loaded_models]
    comfy.model_management.unload_all_models()
    with torch.inference_mode():
        for patcher in loaded:
            for weight in patcher.model.parameters():
                weight.data = copied(weight.data)


def slow():
    """A long step: until somebody interrupts it, or two seconds."""
    tell("slow")
    for _ in range(100):
        time.sleep(0.02)
        comfy.model_management.throw_exception_if_processing_interrupted()


def tell(name):
    """A file in the temporary folder tells the test that it has come to this."""
    folder = Path(folder_paths.get_temp_directory())
    folder.mkdir(exist_ok=True)
    (folder / name).touch()


def copied(values):
    """A copy as far from a multiple of 64 bytes as the original: sums may be rounded by that."""
    size = values.element_size()
    shift = values.data_ptr() % 64 // size
    room = torch.empty(values.numel() + 128 // size, dtype=values.dtype)
    shift = (shift - room.data_ptr() % 64 // size) % (64 // size)
    return torch.as_strided(room, values.shape, values.stride(), shift).copy_(values)


FAULTS = {
    "ask to stop": (PREDICT_NOISE, ask_to_stop),
    "stop in the guider": (PREDICT_NOISE, stop_here),
    "stop in the network": (APPLY_MODEL, stop_here),
    "out of memory": (APPLY_MODEL, out_of_memory),
    "slow": (PREDICT_NOISE, slow),
    "memory pressure": (PREDICT_NOISE, press),
}


class FaultAt:
    """A MODEL in whose evaluation number `at` (from 1; 0 is never) something goes wrong.

    `nonce` is not used: a new one makes everything behind this node run again.
    """

    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "execute", ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        number = ("INT", {"default": NEVER, "min": 0, "max": 2**31})
        return {
            "required": {
                "model": ("MODEL",),
                "fault": (list(FAULTS),),
                "at": number,
                "nonce": number,
            }
        }

    def execute(self, model, fault, at, nonce):
        model = model.clone()
        kind, happens = FAULTS[fault]
        evaluations = 0

        def wrapper(executor, *arguments, **options):
            nonlocal evaluations
            evaluations += 1
            if evaluations == at:
                happens()
            return executor(*arguments, **options)

        model.add_wrapper_with_key(kind, "tests.fault", wrapper)
        return (model,)


class ArmedFault:
    """A MODEL that is interrupted once the file `armed` says so: how many evaluations from now.

    Its inputs stay the same, so that what hangs on it comes from the cache.
    """

    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "execute", ("MODEL",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"model": ("MODEL",), "nonce": ("INT", {"default": 0})}}

    def execute(self, model, nonce):
        model = model.clone()
        armed = Path(folder_paths.get_temp_directory()) / "armed"

        def wrapper(executor, *arguments, **options):
            left = int(armed.read_text()) - 1 if armed.exists() else -1
            if left >= 0:
                armed.write_text(str(left))
            if left == 0:
                armed.unlink()
                stop_here()
            return executor(*arguments, **options)

        model.add_wrapper_with_key(APPLY_MODEL, "tests.armed", wrapper)
        return (model,)


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
    """A NOISY_CLASSIFIER whose next file is half written when the disk stops to answer."""

    CATEGORY, FUNCTION, RETURN_TYPES = "tests", "execute", ("NOISY_CLASSIFIER",)

    @classmethod
    def INPUT_TYPES(cls):
        return {"required": {"classifier": ("NOISY_CLASSIFIER",)}}

    def execute(self, classifier):
        package = type(classifier).__module__.removesuffix(".nodes.host.comfy_adapter")
        files = sys.modules[f"{package}.guidance.files"]
        save_file = files.save_file

        def half(tensors, path, metadata):
            save_file(tensors, path, metadata)
            whole = path.read_bytes()
            path.write_bytes(whole[: len(whole) // 2])
            tell("half")
            time.sleep(600)

        files.save_file = half
        return (classifier,)


NODE_CLASS_MAPPINGS = {
    "TestsFaultAt": FaultAt,
    "TestsArmedFault": ArmedFault,
    "TestsDigest": Digest,
    "TestsStallingDisk": StallingDisk,
}
