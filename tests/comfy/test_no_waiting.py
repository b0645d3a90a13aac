"""A step of a guided run hands its work to the device and goes on: it does not wait for a value.

There is no accelerator here, so the pack's code runs on a device that computes nothing: torch's
fake tensors. They know which tensor is on which device, refuse to mix them, and have no values, so
whatever would wait for one is seen.
"""

from __future__ import annotations

import traceback
from types import SimpleNamespace

import pytest
import torch
from sampler_runs import few_sigmas, sampler_named, with_guider
from tiny_models import SIZE
from torch._subclasses.fake_tensor import DataDependentOutputException, FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode

DEVICE = "lazy"  # one that torch knows by name alone, and differentiates on
aten = torch.ops.aten
READS = {
    aten._local_scalar_dense,
    aten.is_nonzero,
    aten.nonzero,
    aten.equal,
    aten.masked_select,
    aten._unique2,
}
COPIES = {aten._to_copy, aten.copy_}


class Waits(TorchDispatchMode):
    """Notes what makes the host wait for the device: values that are read, copies that block."""

    def __init__(self, root):
        super().__init__()
        self.root, self.seen = str(root), []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Passes every operation on."""
        kwargs = kwargs or {}
        on = {one.device for one in args if isinstance(one, torch.Tensor)}
        cpu = torch.device("cpu")
        if func.overloadpacket in READS and on - {cpu}:
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


@pytest.fixture
def device(comfy, monkeypatch):
    """The device that computes nothing; it has memory for everything."""
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_, **__: 1e12)
    return torch.device(DEVICE)


@pytest.fixture
def fake():
    """The mode in which tensors on it are made and used; what is real joins them from the CPU."""
    return FakeTensorMode(allow_non_fake_inputs=True)


@pytest.fixture
def evaluations(root, pack_module, device, fake):
    """Evaluates a MODEL's wrappers so many times, the model itself replaced; what it waited for."""
    import comfy.patcher_extension as extension

    watch_key = pack_module("nodes.comfy_adapter").WATCH_KEY
    watch = pack_module("guidance.finite").Watch

    def run(model, number=3, watched=True):
        with fake:
            return waited_for(model, number, watched)

    def waited_for(model, number, watched):
        sigmas = torch.linspace(10, 1, number, device=device)
        options = {"transformer_options": dict(model.model_options["transformer_options"])}
        options["transformer_options"] |= {
            "sample_sigmas": sigmas,
            watch_key: watch() if watched else None,
        }
        sampling = SimpleNamespace(log_sigmas=torch.zeros(1000, device=device))
        guider = SimpleNamespace(
            model_patcher=model,
            inner_model=SimpleNamespace(model_sampling=sampling),
            model_options=options,
        )
        executor = extension.WrapperExecutor.new_class_executor(
            lambda x, sigma, options, seed: x * 0.5,
            guider,
            model.get_all_wrappers(extension.WrappersMP.PREDICT_NOISE),
        )
        with torch.inference_mode(), Waits(root) as waits:
            x = torch.empty(2, 3, SIZE, SIZE, device=device)
            for sigma in sigmas.unbind():
                x = executor.execute(x, sigma * x.new_ones(len(x)), options, None)
                assert x.device.type == DEVICE
        return waits.seen

    return run


@pytest.fixture
def on_the_device(pack_module, device, fake):
    """A NOISY_CLASSIFIER whose network is on the device."""
    adapter, adm = pack_module("nodes.comfy_adapter"), pack_module("guidance.adm")

    def make(pool="attention", dtype=torch.float32):
        layout = adm.ClassifierLayout(
            model_channels=32,
            out_channels=4,
            num_res_blocks=1,
            channel_mult=(1, 2),
            attention_levels=(1,),
            num_head_channels=32,
            image_size=SIZE,
            pool=pool,
        )
        with fake, torch.device(device):
            network = adm.HalfUNet(layout, dtype=dtype).eval().requires_grad_(False)
        classifier = pack_module("guidance").NoisyClassifier(network, "linear")
        patcher = adapter.WholePatcher(network, load_device=device, offload_device=device)
        return adapter.PlacedClassifier(classifier, patcher, "a classifier")

    return make


def test_what_waits_is_seen(root, device, fake):
    with fake, Waits(root) as waits:
        x = torch.empty(2, device=device)
        x.to("cpu")
        torch.tensor([1.0, 2.0]).to(x)
        x.to("cpu", non_blocking=True)
        x.double()
        with pytest.raises(DataDependentOutputException):
            bool(x.isfinite().all())
    assert [one.split(" at ")[0] for one in waits.seen] == [
        "aten._to_copy.default",
        "aten._to_copy.default",
        "aten._local_scalar_dense.default",
    ]


@pytest.mark.parametrize("pool", ["attention", "adaptive", "spatial", "spatial_v2"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_an_evaluation_does_not_wait(call, unconditional, on_the_device, evaluations, pool, dtype):
    classifier = on_the_device(pool, dtype)
    (model,) = call(
        "ClassifierGuidance", model=unconditional, classifier=classifier, label="1,2", scale=2.0
    )
    assert evaluations(model) == []


@pytest.mark.parametrize(
    "options",
    [
        {"entropy_limit": 10.0},
        {"cap": 0.5},
        {"label_smoothing": 0.1},
        {"every": 2},
        {"label": "1"},
    ],
    ids=str,
)
def test_no_option_makes_it_wait(call, unconditional, on_the_device, evaluations, options):
    inputs = {"label": "1,2", "scale": 2.0} | options
    (model,) = call("ClassifierGuidance", model=unconditional, classifier=on_the_device(), **inputs)
    assert evaluations(model) == []


def test_outside_of_a_run_it_waits_for_its_one_look(
    call, unconditional, on_the_device, evaluations
):
    """Where nothing of ours ends the run, the error has to come at once."""
    inputs = {"label": "1,2", "scale": 2.0, "classifier": on_the_device()}
    (model,) = call("ClassifierGuidance", model=unconditional, **inputs)
    with pytest.raises(DataDependentOutputException):
        evaluations(model, number=1, watched=False)


@pytest.mark.parametrize("first", [True, False])
def test_a_trace_with_a_page_does_not_make_it_wait(
    call, pack_module, unconditional, on_the_device, evaluations, first
):
    tracing, trace = pack_module("nodes.tracing"), pack_module("guidance.trace").Trace()
    inputs = {"label": "1,2", "scale": 2.0, "classifier": on_the_device()}
    model = tracing.traced(unconditional, trace, "1") if first else unconditional
    (model,) = call("ClassifierGuidance", model=model, **inputs)
    model = model if first else tracing.traced(model, trace, "1")
    assert evaluations(model) == []
    assert len(trace.evaluations) == 3
    assert all(len(one.classifiers) == 1 for one in trace.evaluations)


# --- nothing is lost by not waiting -------------------------------------------------------------


class Overflowing(torch.nn.Module):
    """Its gradient is not finite at the third question, and only there."""

    layout = None

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(4), requires_grad=False)
        self.asked = 0

    def forward(self, x, t):
        """Logits (B, 4)."""
        self.asked += 1
        steep = float("inf") if self.asked == 3 else 1.0
        return x.flatten(1)[:, :4] * steep * self.weight


@pytest.mark.parametrize("arrives", ["at once", "two evaluations later", "never"])
def test_a_gradient_that_is_not_finite_still_ends_the_run(
    call, wiring, pack_module, unconditional, place_classifier, monkeypatch, arrives
):
    finite = pack_module("guidance.finite")
    network = Overflowing()

    class Slow(finite.Later):
        """As from a device whose copies take their time."""

        def __init__(self, values):
            super().__init__(values)
            self.asked = network.asked

        @property
        def arrived(self):
            """Whether the run has gone on for long enough."""
            return arrives == "two evaluations later" and network.asked >= self.asked + 2

    if arrives != "at once":
        monkeypatch.setattr(finite, "Later", Slow)
    (model,) = call(
        "ClassifierGuidance",
        model=unconditional,
        classifier=place_classifier(network),
        label="1",
        scale=1.0,
    )
    sigmas = few_sigmas(model, 8)
    with pytest.raises(ValueError, match="gradient is not finite at sigma") as error:
        with_guider(wiring.guider("basic", model), sampler_named("euler"), sigmas)
    assert f"{float(sigmas[2]):.5g} in image 0" in str(error.value)
    assert network.asked == {"at once": 3, "two evaluations later": 5, "never": 8}[arrives]


def test_a_trace_tells_the_page_of_every_evaluation_in_order(
    call, wiring, pack_module, unconditional, load_classifier, monkeypatch
):
    """Also where their numbers come late, or in no order."""
    tracing, trace_module = pack_module("nodes.tracing"), pack_module("guidance.trace")
    told, made = [], []

    class Slow(trace_module.Later):
        """As from a device whose copies take their time."""

        def __init__(self, values):
            super().__init__(values)
            made.append(self)

        @property
        def arrived(self):
            """Now and then."""
            return len(made) % 3 == 0

    monkeypatch.setattr(trace_module, "Later", Slow)
    monkeypatch.setattr(
        tracing.adapter, "tell_page", lambda event, about: told.append(about["number"])
    )
    trace = trace_module.Trace()
    inputs = {"label": "1,2", "scale": 2.0, "classifier": load_classifier()}
    (model,) = call("ClassifierGuidance", model=unconditional, **inputs)
    model = tracing.traced(model, trace, "1")
    with_guider(wiring.guider("basic", model), sampler_named("euler"), few_sigmas(model, 7))
    assert told == list(range(7))
    assert [one["step"] for one in trace.to_dict()["evaluations"]] == list(range(7))
