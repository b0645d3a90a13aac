"""A device that computes nothing: torch's fake tensors, which need no hardware.

They know which tensor is on which device, refuse to mix them, and have no values: so it is seen
what an accelerator would have to do, and what would make the host wait for it.
"""

from __future__ import annotations

import dataclasses
import traceback
from types import SimpleNamespace

import torch
from tiny_models import CLASSIFIER, SIZE
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
READS = {aten._local_scalar_dense, aten.is_nonzero, aten.nonzero, aten.equal}
READS |= {aten.masked_select, aten._unique2}
COPIES = {aten._to_copy, aten.copy_}
CPU = torch.device("cpu")


class Waits(TorchDispatchMode):
    """Notes what makes the host wait for the device: values that are read, copies that block."""

    def __init__(self, root):
        super().__init__()
        self.root, self.seen = str(root), []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Passes every operation on."""
        kwargs = kwargs or {}
        on = {one.device for one in args if isinstance(one, torch.Tensor)}
        if func.overloadpacket in READS and on - {CPU}:
            self._note(func)
        if func.overloadpacket in COPIES and not kwargs.get("non_blocking"):
            on.add(torch.device(kwargs.get("device") or next(iter(on))))
            blocking = func.overloadpacket is aten._to_copy or not (len(args) > 2 and args[2])
            if len({device.type for device in on}) > 1 and blocking:
                self._note(func)
        return func(*args, **kwargs)

    def _note(self, func):
        files = [frame for frame in traceback.extract_stack() if frame.filename != __file__]
        ours = [frame for frame in files if frame.filename.startswith(self.root)]
        place = (ours or files)[-1]
        self.seen.append(f"{func} at {place.filename.removeprefix(self.root)}:{place.lineno}")


class Dtypes(TorchDispatchMode):
    """Notes the dtypes of all that is computed on a device."""

    def __init__(self, device):
        super().__init__()
        self.device, self.seen = device, set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Passes every operation on."""
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(one, torch.Tensor) and one.device.type == self.device.type:
                self.seen.add(one.dtype)
        return result


class FakeDevice:
    """Classifiers and evaluations on a device of that name; what is real joins from the CPU.

    "lazy" and "meta" are two that torch can differentiate on without their hardware.
    """

    def __init__(self, pack_module, name="lazy"):
        self.pack_module = pack_module
        self.device = torch.device(name)
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)

    def classifier(self, pool="attention", dtype=torch.float32, device=None):
        """A NOISY_CLASSIFIER whose network is there."""
        import comfy.ops

        adm = self.pack_module("guidance.adm")
        layout = adm.ClassifierLayout(**CLASSIFIER, pool=pool)
        device = torch.device(device or self.device)
        with self.mode:
            # core's layers leave their weights as they are made
            operations = comfy.ops.disable_weight_init
            network = adm.EncoderUNet(layout, operations, dtype, device)
            network.eval().requires_grad_(False)
        patcher = self.pack_module("nodes.host.patcher").AllOrNothingPatcher(
            network, load_device=device, offload_device=device
        )
        classifier = self.pack_module("guidance").NoisyClassifier(network, "linear")
        kind = self.pack_module("nodes.host.classifiers").PlacedClassifier
        return kind(classifier, patcher, "a classifier")

    def clean(self, **looks):
        """A NOISY_CLASSIFIER of clean images on the device, which takes these looks."""
        placed, library = self.classifier(), self.pack_module("guidance")
        files = self.pack_module("guidance.checkpoints.image_classifiers")
        taken = self.pack_module("guidance.classifiers.looks").Looks(**looks)
        prepared = self.pack_module("guidance.classifiers.preprocessing").Preprocessing()
        network = files.ZeroNoiseWrapper(placed.patcher.model)
        placed.patcher.model = network
        classifier = library.ImageClassifier(network, prepared, 4, looks=taken)
        return dataclasses.replace(placed, classifier=classifier)

    def evaluate(self, model, seen, number=3):
        """Runs a MODEL's wrappers, its prediction replaced, under the mode `seen`."""
        with self.mode:
            self._evaluate(model, seen, number)
        return seen.seen

    def _evaluate(self, model, seen, number):
        import comfy.patcher_extension as extension

        sigmas = torch.linspace(10, 1, number, device=self.device)
        options = dict(model.model_options["transformer_options"])
        options |= {"sample_sigmas": sigmas}
        sampling = SimpleNamespace(log_sigmas=torch.zeros(1000, device=self.device))
        inner = SimpleNamespace(model_sampling=sampling)
        guider = SimpleNamespace(model_patcher=model, inner_model=inner, conds={})
        wrappers = model.get_all_wrappers(extension.WrappersMP.PREDICT_NOISE)
        executor = extension.WrapperExecutor.new_class_executor(
            lambda x, sigma, options, seed: x * 0.5, guider, wrappers
        )
        with torch.inference_mode(), seen:
            x = torch.empty(2, 3, SIZE, SIZE, device=self.device)
            for sigma in sigmas.unbind():
                every = sigma * x.new_ones(len(x))
                x = executor.execute(x, every, {"transformer_options": options}, None)
                assert x.device.type == self.device.type and x.dtype == torch.float32
