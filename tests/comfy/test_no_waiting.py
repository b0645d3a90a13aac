"""A step of a guided run hands its work to the device and goes on: it does not wait for a value.

Seen on a device that computes nothing, for there is no accelerator here: fake_device.py.
"""

from __future__ import annotations

import pytest
import torch
from fake_device import FakeDevice, Waits
from sampler_runs import drawn, few_sigmas
from torch._subclasses.fake_tensor import DataDependentOutputException

OPTIONS = [{"entropy_limit": 10.0, "cap": 0.5, "label_smoothing": 0.1}]
OPTIONS += [{"gradient_interval": 2}, {"label": "1"}, {"normalize": "on"}]


@pytest.fixture
def fake(comfy, pack_module, monkeypatch):
    """The device; it has memory for everything."""
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_, **__: 1e12)
    # the models are on the CPU
    monkeypatch.setattr(pack_module("nodes.host.known_sigmas"), "FREE_TO_READ", ())
    fake = FakeDevice(pack_module)
    fake.copies_arrive(monkeypatch)
    return fake


@pytest.fixture
def waits(root, fake):
    """What some evaluations of a MODEL would wait for."""
    return lambda model, **options: fake.evaluate(model, Waits(root), **options)


def test_what_waits_is_seen(root, fake):
    with fake.mode, Waits(root) as waits:
        x = torch.empty(2, device=fake.device)
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
def test_an_evaluation_does_not_wait(steered, unconditional, fake, waits, pool, dtype):
    assert waits(steered(unconditional, fake.classifier(pool, dtype))) == []


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_no_option_makes_it_wait(steered, unconditional, fake, waits, options):
    assert waits(steered(unconditional, fake.classifier(), **options)) == []


def test_looks_do_not_make_it_wait(steered, unconditional, fake, waits, pack_module, monkeypatch):
    # random numbers have no values there
    looks = pack_module("guidance.classifiers.looks")
    monkeypatch.setattr(looks, "drawn", lambda count, _: [[0.1, 0.7, 0.9, 0.2]] * count)
    model = steered(unconditional, fake.clean(count=3, flip=True), normalize="auto")
    assert waits(model) == []


@pytest.mark.parametrize("first", [True, False])
def test_a_trace_with_a_page_does_not_make_it_wait(
    steered, pack_module, unconditional, fake, waits, first
):
    tracing, trace = (
        pack_module("nodes.runtime.trace_wrapper"),
        pack_module("guidance.sampling.trace").Trace(),
    )
    model = tracing.traced(unconditional, trace, "1") if first else unconditional
    model = steered(model, fake.classifier())
    model = model if first else tracing.traced(model, trace, "1")
    assert waits(model) == []
    assert len(trace.evaluations) == 3
    assert all(len(one.classifiers) == 1 for one in trace.evaluations)


SCHEDULES = {
    "constant": ("constant", {"scale": 3.0}),
    "interval": ("interval", {"axis": "step", "start": 0.0, "end": 0.5, "scale": 3.0}),
    "percent": ("linear", {"axis": "percent", "scale": 3.0}),
    "of images": ("constant", {"scale": 3.0, "per_image": "1, 0.5"}),
}


@pytest.fixture(params=["EPS", "FLOW"])
def planned(request, core_model):
    """A MODEL whose positions come from a table, and one whose positions are computed."""
    return core_model(request.param)


# core is given scales of images as a kind of tensor of its own, which fake tensors cannot become
@pytest.mark.parametrize("shape", [shape for shape in SCHEDULES if shape != "of images"])
def test_a_schedule_of_cfg_does_not_make_it_wait(scheduled, made, planned, waits, shape):
    kind, inputs = SCHEDULES[shape]
    assert waits(scheduled(planned, made(kind, **inputs)), number=6, cfg=2.0) == []


@pytest.mark.parametrize("cache", [{"cfg_interval": 3}, {"tolerance": 0.5}], ids=str)
def test_a_cache_of_cfg_does_not_make_it_wait(scheduled, planned, waits, cache):
    assert waits(scheduled(planned, 3.0, **cache), number=14, cfg=2.0) == []


@pytest.mark.parametrize("shape", SCHEDULES)
def test_a_schedule_of_a_classifier_does_not_make_it_wait(
    steered, made, unconditional, fake, waits, shape
):
    kind, inputs = SCHEDULES[shape]
    model = steered(unconditional, fake.classifier(), schedule=made(kind, **inputs))
    assert waits(model, number=6) == []


def test_all_together_do_not_wait(steered, scheduled, made, pack_module, conditional, fake, waits):
    tracing, trace = (
        pack_module("nodes.runtime.trace_wrapper"),
        pack_module("guidance.sampling.trace").Trace(),
    )
    ramp, half = (made(kind, **inputs) for kind, inputs in list(SCHEDULES.values())[2:0:-1])
    model = tracing.traced(scheduled(conditional, half, tolerance=0.5), trace, "1")
    model = steered(model, fake.classifier(), schedule=ramp)
    assert waits(model, number=14, cfg=2.0) == []
    assert len(trace.evaluations) == 14


def test_that_a_sigma_is_read_is_seen(scheduled, made, planned, waits):
    """A sampler whose evaluations are elsewhere."""
    model = scheduled(planned, 3.0)
    with pytest.raises(DataDependentOutputException):
        waits(model, number=6, cfg=2.0, sampler="heun")


def test_that_a_number_is_read_too_early_is_seen(
    scheduled, planned, waits, pack_module, monkeypatch
):
    monkeypatch.setattr(pack_module("guidance.sampling.cfg_cache"), "LATER", 1)
    with pytest.raises(DataDependentOutputException):
        waits(scheduled(planned, 3.0, tolerance=0.5), number=14, cfg=2.0)


class Overflowing(torch.nn.Module):
    """Its gradient is not finite at the third evaluation, and only there."""

    layout = None

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.ones(4), requires_grad=False)
        self.count = 0

    def forward(self, x, t):
        """Logits (B, 4)."""
        self.count += 1
        steep = float("inf") if self.count == 3 else 1.0
        return x.flatten(1)[:, :4] * steep * self.weight


@pytest.fixture
def slow(pack_module, monkeypatch):
    """`slow(module, arrived)`: copies to main memory have arrived at the evaluation they say."""

    def run(module, arrived):
        class Slow(module.HostCopy):
            """As from a device whose copies take their time."""

            def __init__(self, values):
                super().__init__(values)
                self.check = arrived()

            @property
            def arrived(self):
                return self.check()

        monkeypatch.setattr(module, "HostCopy", Slow)

    return run


@pytest.mark.parametrize("arrives", ["at once", "two evaluations later", "never"])
def test_a_gradient_that_is_not_finite_still_ends_the_run(
    steered, wiring, pack_module, unconditional, place_classifier, slow, arrives
):
    network = Overflowing()

    def arrived():
        made = network.count
        return lambda: arrives != "never" and network.count >= made + 2

    if arrives != "at once":
        slow(pack_module("guidance.sampling.nan_guard"), arrived)
    model = steered(unconditional, place_classifier(network), "1")
    sigmas = few_sigmas(model, 8)
    with pytest.raises(ValueError, match="gradient is not finite at sigma") as error:
        drawn(wiring.guider("basic", model), sigmas)
    assert f"{float(sigmas[2]):.5g} in image 0" in str(error.value)
    assert network.count == {"at once": 3, "two evaluations later": 5, "never": 8}[arrives]


def test_a_trace_sends_every_evaluation_in_order(
    steered, wiring, pack_module, unconditional, load_classifier, monkeypatch, slow
):
    """Also where their numbers come late, or in no order."""
    tracing, record = map(pack_module, ("nodes.runtime.trace_wrapper", "guidance.sampling.trace"))
    sent, made = [], []
    slow(record, lambda: made.append(1) or (lambda: len(made) % 3 == 0))
    monkeypatch.setattr(tracing, "send_event", lambda event, about: sent.append(about["number"]))
    trace = record.Trace()
    model = tracing.traced(steered(unconditional, load_classifier()), trace, "1")
    drawn(wiring.guider("basic", model), few_sigmas(model, 7))
    assert sent == list(range(7))
    assert [one["step"] for one in trace.to_dict()["evaluations"]] == list(range(7))
