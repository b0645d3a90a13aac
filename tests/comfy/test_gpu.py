"""The same on a GPU, where torch itself says what makes the host wait for it."""

from __future__ import annotations

import warnings

import pytest
import torch
from fake_device import RealDevice
from sampler_runs import core_guider, drawn, few_sigmas, latent_noise

pytestmark = pytest.mark.skipif(
    not torch.cuda.is_available(), reason="torch finds no CUDA device, so nothing can wait for one"
)
EVALUATIONS = 14


class NoWaits:
    """Every operation that waits for the device is an error."""

    seen = ()

    def __enter__(self):
        torch.cuda.set_sync_debug_mode("error")

    def __exit__(self, *_):
        torch.cuda.set_sync_debug_mode("default")


@pytest.fixture
def gpu(pack_module, monkeypatch):
    """The device; the models are on the CPU, and what replaces them is not."""
    monkeypatch.setattr(pack_module("nodes.host.known_sigmas"), "FREE_TO_READ", ())
    return RealDevice(pack_module, "cuda")


@pytest.fixture
def goes_on(gpu):
    """Evaluates a MODEL: once for what is made only once, then without waiting."""

    def run(model, cfg=None):
        for seen in (torch.no_grad(), NoWaits()):
            seen.seen = ()
            gpu.evaluate(model, seen, number=EVALUATIONS, cfg=cfg)

    return run


@pytest.fixture
def trace(pack_module):
    """A TRACE."""
    return pack_module("guidance.sampling.trace").Trace()


def test_a_wait_is_an_error():
    value = torch.ones(1, device="cuda")
    with NoWaits(), pytest.raises(RuntimeError, match="synchroniz"):
        value.item()


@pytest.mark.parametrize(
    "schedule",
    [
        ("constant", {"scale": 3.0}),
        ("interval", {"axis": "step", "start": 0.0, "end": 0.5, "scale": 3.0}),
        ("constant", {"scale": 3.0, "per_image": "1, 0.5"}),
    ],
    ids=str,
)
@pytest.mark.parametrize("cache", [{}, {"cfg_interval": 3}, {"tolerance": 0.5}], ids=str)
def test_a_schedule_does_not_wait(scheduled, made, core_model, goes_on, schedule, cache):
    kind, inputs = schedule
    for model in map(core_model, ("EPS", "FLOW")):
        goes_on(scheduled(model, made(kind, **inputs), **cache), cfg=2.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
@pytest.mark.parametrize("pool", ["attention", "adaptive", "spatial"])
def test_a_classifier_does_not_wait(steered, made, unconditional, gpu, goes_on, pool, dtype):
    ramp = made("linear", axis="percent", scale=3.0)
    options = {"entropy_limit": 10.0, "cap": 0.5, "label_smoothing": 0.1}
    goes_on(steered(unconditional, gpu.classifier(pool, dtype), schedule=ramp, **options))


def test_a_trace_does_not_wait(
    steered, scheduled, made, pack_module, conditional, gpu, goes_on, trace
):
    traced = pack_module("nodes.runtime.trace_wrapper").traced
    half = made("interval", axis="step", start=0.0, end=0.5, scale=3.0)
    model = traced(scheduled(conditional, half, tolerance=0.5), trace, "1")
    goes_on(steered(model, gpu.classifier(), schedule=half), cfg=2.0)
    assert len(trace.evaluations) == 2 * EVALUATIONS


@pytest.fixture
def on_gpu(core_model):
    """A core MODEL there."""
    import comfy.model_management
    import comfy.model_patcher

    here, there = torch.device("cpu"), torch.device("cuda")
    model = core_model("EPS").model
    yield comfy.model_patcher.ModelPatcher(model, load_device=there, offload_device=here)
    comfy.model_management.unload_all_models()


@pytest.mark.parametrize("sampler", ["euler", "dpmpp_2m", "ddim of the pack"])
def test_no_step_of_a_run_waits_for_us(root, call, scheduled, made, sampler_of, on_gpu, sampler):
    """Core's own waits are its own: a warning counts where a line of the pack gave it."""
    ramp = made("interval", axis="step", start=0.0, end=0.5, scale=3.0)
    model, trace = call("GuidanceTrace", model=scheduled(on_gpu, ramp, tolerance=0.5))
    sigmas, start = few_sigmas(model, EVALUATIONS), latent_noise(2, 4, 8, 8)
    steps = []

    def begun(step, *_):
        steps.append(step)
        torch.cuda.set_sync_debug_mode("warn" if step < EVALUATIONS - 1 else "default")

    with warnings.catch_warnings(record=True) as given:
        warnings.simplefilter("always")
        try:
            samples = drawn(
                core_guider(model, 2.0), sigmas, sampler_of(sampler), start=start, callback=begun
            )
        finally:
            torch.cuda.set_sync_debug_mode("default")
    ours = [one for one in given if one.filename.startswith((f"{root}/nodes", f"{root}/guidance"))]
    assert [f"{one.filename}:{one.lineno}: {one.message}" for one in ours] == []
    assert steps == list(range(EVALUATIONS)) and bool(samples.isfinite().all())
    assert len(trace.evaluations) == EVALUATIONS


def test_a_run_there_is_the_one_on_the_cpu(scheduled, made, on_gpu):
    """The passes, and the images to rounding: no decision depends on when a copy arrives."""
    import comfy.model_patcher
    from sampler_runs import counted_passes

    cpu = torch.device("cpu")
    here = comfy.model_patcher.ModelPatcher(on_gpu.model, load_device=cpu, offload_device=cpu)
    ramp, found = made("linear", axis="step", scale=4.0, end_scale=2.0), []
    for model in (on_gpu, here):
        model, passes = counted_passes(model)
        guider = core_guider(scheduled(model, ramp, tolerance=0.3), 2.0)
        start = latent_noise(2, 4, 8, 8)
        found.append((drawn(guider, few_sigmas(model, 20), start=start).cpu(), list(passes)))
    assert found[0][1] == found[1][1]
    assert (found[0][0] - found[1][0]).abs().max() < 1e-3 * found[1][0].abs().max()
