"""A device that computes nothing: torch's fake tensors, which need no hardware.

They know which tensor is on which device, refuse to mix them, and have no values: so it is seen
what an accelerator would have to do, and what would make the host wait for it.
"""

from __future__ import annotations

import contextlib
import copy
import dataclasses
import traceback
from types import SimpleNamespace
from unittest import mock

import torch
from tiny_models import CLASSIFIER, SIZE
from torch._subclasses.fake_tensor import FakeTensorMode, unset_fake_temporarily
from torch.utils._python_dispatch import TorchDispatchMode

aten = torch.ops.aten
READS = {aten._local_scalar_dense, aten.is_nonzero, aten.nonzero, aten.equal}
READS |= {aten.masked_select, aten._unique2}
COPIES = {aten._to_copy, aten.copy_}
CPU = torch.device("cpu")
ARRIVES = 2  # evaluations after a copy to main memory was asked for


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
        # an environment may be in the repository's folder
        files = [frame for frame in files if "site-packages" not in frame.filename]
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


class Arrived(torch.Tensor):
    """Values in main memory, to be read where all other tensors are fake."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    def tolist(self):
        with unset_fake_temporarily():
            return super().tolist()

    def numpy(self):
        with unset_fake_temporarily():
            return super().numpy()

    def to(self, *_, **__):
        return self

    def __float__(self):
        return float(self.tolist())


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
        self._fill(network)
        patcher = self.pack_module("nodes.host.patcher").AllOrNothingPatcher(
            network, load_device=device, offload_device=device
        )
        classifier = self.pack_module("guidance").NoisyClassifier(network, "linear")
        kind = self.pack_module("nodes.host.classifiers").PlacedClassifier
        return kind(classifier, patcher, "a classifier")

    def _fill(self, network):
        """Gives a network its weights."""

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

    def copies_arrive(self, monkeypatch):
        """Copies to main memory arrive, as on CUDA: two evaluations later; to read one is to wait.

        They hold what the tensor was said to hold (its attribute `holds`), or zeros.
        """
        kind, fake = self.pack_module("guidance.core.host_copy").HostCopy, self
        made, waited = kind.__init__, kind.wait

        def make(self, values):
            made(self, values)
            self.at, self.holds = fake.evaluation, getattr(values, "holds", None)

        def arrived(self):
            return self._here or self.at + ARRIVES <= fake.evaluation

        def wait(self):
            if not arrived(self):
                return waited(self)
            with unset_fake_temporarily():
                if self._here:
                    return waited(self).as_subclass(Arrived)
                here = torch.zeros(self._values.shape) if self.holds is None else self.holds
                return here.as_subclass(Arrived)

        for name, value in {"__init__": make, "wait": wait}.items():
            monkeypatch.setattr(kind, name, value)
        monkeypatch.setattr(kind, "arrived", property(arrived))
        monkeypatch.setattr(kind, "on_its_way", True)

    def evaluate(self, model, seen, number=3, cfg=None, sampler="euler"):
        """Runs a MODEL's wrappers, its prediction replaced, under the mode `seen`.

        cfg: of core's CFG; without one there is no negative.
        """
        import comfy.samplers

        sampler, sigmas = comfy.samplers.sampler_object(sampler), torch.linspace(1, 0.1, number + 1)
        model, self.evaluation = model.clone(), -ARRIVES
        model.add_object_patch("model_sampling", self._moved(model))
        guider = Guider(model, cfg)
        host = self.pack_module("nodes.host.run_state")
        state = host.RunState(known=host.known_sigmas(guider, sampler, sigmas))
        computed = mock.patch.object(comfy.samplers, "_calc_cond_batch", computed_conditionings)
        levels = [self._there(sigma.expand(2)) for sigma in sigmas[:-1]]
        there = self._there(sigmas)
        with computed, self.mode:
            self._evaluate(guider, seen, there, levels, state)
        return seen.seen

    def _moved(self, model):
        """The MODEL's sampling, its tables on the device."""
        moved = copy.deepcopy(model.get_model_object("model_sampling"))
        for name, table in moved.named_buffers():
            moved._buffers[name] = self._there(table)
        return moved

    def _there(self, values):
        """A tensor on the device that stands for these values."""
        with self.mode:
            there = torch.empty(values.shape, device=self.device)
        there.holds = values
        return there

    def _evaluate(self, guider, seen, sigmas, levels, state):
        import comfy.patcher_extension as extension

        hooks, model = self.pack_module("nodes.host.hooks"), guider.model_patcher
        options = dict(model.model_options["transformer_options"])
        options["sample_sigmas"] = sigmas
        options[hooks.RUN_STATE] = state
        options["wrappers"] = model.wrappers
        options = {**model.model_options, "transformer_options": options}
        wrappers = model.get_all_wrappers(extension.WrappersMP.PREDICT_NOISE)
        executor = extension.WrapperExecutor.new_class_executor(
            guider.predict_noise, guider, wrappers
        )
        with torch.inference_mode(), seen:
            x = torch.zeros(2, 3, SIZE, SIZE, device=self.device)
            for self.evaluation, every in enumerate(levels):
                x = executor.execute(x, every, options, None)
                assert x.device.type == self.device.type and x.dtype == torch.float32


class RealDevice(FakeDevice):
    """The same on a device that is here, and computes."""

    def __init__(self, pack_module, name):
        super().__init__(pack_module, name)
        self.mode = contextlib.nullcontext()

    def _fill(self, network):
        for weight in network.parameters():
            torch.nn.init.normal_(weight, std=0.02)

    def _there(self, values):
        return values.to(self.device)


class Guider:
    """As core's CFGGuider; without a cfg, as one that has no negative."""

    def __init__(self, model, cfg=None):
        self.model_patcher, self.cfg = model, cfg
        self.inner_model = SimpleNamespace(
            model_sampling=model.get_model_object("model_sampling"), current_patcher=model
        )
        names = () if cfg is None else ("positive", "negative")
        self.conds = {name: [{"uuid": name}] for name in names}

    def predict_noise(self, x, sigma, model_options, seed):
        """A prediction that computes next to nothing."""
        import comfy.samplers

        if not self.conds:
            return x * 0.5
        pair = (self.conds["negative"], self.conds["positive"])
        return comfy.samplers.sampling_function(
            self.inner_model, x, sigma, *pair, self.cfg, model_options, seed
        )


def computed_conditionings(model, conds, x, sigma, model_options):
    """In place of the network."""
    return [torch.zeros_like(x) if cond is None else x * 0.5 for cond in conds]
