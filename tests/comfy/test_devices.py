"""Devices that are not here: reviewed with fake tensors, and with CPUs that pass for several."""

from __future__ import annotations

import pytest
import torch
from fake_device import Dtypes, FakeDevice, Waits
from sampler_runs import core_guider, drawn, evaluated, few_sigmas, latent_noise, noise

CPU = torch.device("cpu")
# Another device to ComfyUI, and the same one to torch.
SECOND = torch.device("cpu", 1)


@pytest.fixture
def roomy(comfy, monkeypatch):
    """Every device has memory for everything."""
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management, "get_free_memory", lambda *_, **__: 1e12)


def run(wiring, model, kind="cfg 3"):
    return drawn(wiring.guider(kind, model), few_sigmas(model))


@pytest.mark.parametrize("here, there", [("lazy", "meta"), ("lazy", "cpu"), ("meta", "lazy")])
def test_the_classifier_may_be_on_another_device(
    roomy, root, steered, pack_module, unconditional, here, there
):
    """The model was put onto a second GPU or the CPU: what is added comes to where it is."""
    fake = FakeDevice(pack_module, here)
    model = steered(unconditional, fake.classifier(device=there), entropy_limit=4.0, cap=0.5)
    fake.evaluate(model, Waits(root))  # fake tensors refuse to be mixed across devices


@pytest.mark.parametrize(
    "options", [{"entropy_limit": 4.0, "cap": 0.5}, {"gradient_interval": 2}], ids=str
)
@pytest.mark.parametrize("double", [True, False])
def test_no_float64_where_there_is_none(
    roomy, steered, pack_module, unconditional, monkeypatch, double, options
):
    """Levels are float64 where the device has it: not on MPS, nor on every XPU."""
    fake, noise = FakeDevice(pack_module), pack_module("guidance.core.noise")
    assert {"mps", "xpu"} <= set(noise.WITHOUT_FLOAT64)
    if not double:
        monkeypatch.setattr(noise, "WITHOUT_FLOAT64", (fake.device.type,))
    seen = fake.evaluate(steered(unconditional, fake.classifier(), **options), Dtypes(fake.device))
    assert torch.float32 in seen and (torch.float64 in seen) == double


def test_a_classifier_is_placed_whole_where_memory_is_short(call, load_classifier):
    """`lowvram`: core loads as many layers as fit, and later unloads some."""
    patcher = load_classifier().patcher
    for room in (1, 1000, 1e32):
        patcher.partially_load(CPU, room)
        assert patcher.loaded_size() == patcher.model_size()
        assert not patcher.model.model_lowvram
    assert patcher.partially_unload(CPU, 1000) == 0
    assert patcher.loaded_size() == patcher.model_size()
    patcher.detach()
    assert patcher.loaded_size() == 0


def test_a_model_that_is_partly_loaded_draws_the_same(
    steered, wiring, load_model, load_classifier, monkeypatch
):
    """Core casts the layers of the diffusion model that stayed behind, when they are used."""
    import comfy.model_management as management

    model = steered(load_model()[0], load_classifier())
    whole = run(wiring, model, "basic")
    load = management.load_models_gpu

    def load_in_part(models, **options):
        load(models, **options)
        for each in models:
            each.partially_unload(each.offload_device, each.model_size() // 2)

    management.unload_all_models()
    monkeypatch.setattr(management, "load_models_gpu", load_in_part)
    assert torch.equal(run(wiring, model, "basic"), whole)
    assert model.model.model_lowvram
    (classifier,) = model.get_nested_additional_models()
    assert not classifier.model.model_lowvram
    model.detach()


@pytest.fixture
def two_devices(comfy, monkeypatch):
    """Core's nodes for several GPUs, with two CPUs in the place of GPUs."""
    multigpu = pytest.importorskip("comfy.multigpu", reason="this ComfyUI uses one GPU")
    import comfy.model_management as management

    monkeypatch.setattr(management, "get_all_torch_devices", lambda **_: [CPU, SECOND])
    monkeypatch.setattr(management, "get_gpu_device_options", lambda: ["default", "gpu:1"])
    monkeypatch.setattr(
        management, "resolve_gpu_device_option", lambda name: SECOND if name == "gpu:1" else None
    )
    # core looks through what is loaded, and trips over what is no longer there
    management.unload_all_models()
    management.current_loaded_models.clear()
    return multigpu


def split(multigpu, model):
    """MultiGPU CFG Split."""
    with torch.inference_mode():
        return multigpu.create_multigpu_deepclones(model, 2, reuse_loaded=True)


@pytest.mark.parametrize("split_first", [True, False])
def test_guidance_with_two_gpus(
    two_devices, steered, wiring, conditional, load_classifier, split_first
):
    """Each computes one of the conditionings; the first of them guides."""
    x, labels = noise() * 3, conditional.model.diffusion_model.label_emb.weight
    plain = evaluated(wiring.guider("cfg 3", conditional), x, 3.0)
    alone = evaluated(
        wiring.guider("cfg 3", steered(conditional, load_classifier(), scale=30.0)), x, 3.0
    )
    computed = []
    if split_first:
        model = steered(split(two_devices, conditional), load_classifier(), scale=30.0)
    else:
        model = split(two_devices, steered(conditional, load_classifier(), scale=30.0))
    (clone,) = model.get_additional_models_with_key("multigpu")
    hooks = []
    for one in (model, clone):
        network, device = one.model.diffusion_model, one.load_device
        network.label_emb.weight = labels  # conftest made them stronger than the file has them
        hooks.append(network.register_forward_hook(lambda *_, on=device: computed.append(on)))
    both = evaluated(wiring.guider("cfg 3", model), x, 3.0)
    for hook in hooks:
        hook.remove()
    print(f"two GPUs: max abs difference {(both - alone).abs().max():.1e}")
    assert torch.allclose(both, alone, atol=1e-4)
    assert (alone - plain).abs().max() > 0.01
    assert sorted(map(str, computed)) == ["cpu", "cpu:1"]
    (clone,) = model.get_additional_models_with_key("multigpu")
    assert clone.load_device == SECOND and not clone.get_additional_models()


@pytest.mark.parametrize("first", [True, False])
def test_a_model_that_is_put_onto_another_gpu(
    two_devices, steered, call_core, wiring, unconditional, load_classifier, first
):
    """Select Model Device, before or after Classifier Guidance."""
    expected = run(wiring, steered(unconditional, load_classifier()), "basic")

    def select(model):
        return call_core(
            "comfy_extras.nodes_multigpu", "SelectModelDeviceNode", model=model, device="gpu:1"
        )[0]

    if first:
        model = steered(select(unconditional), load_classifier())
    else:
        model = select(steered(unconditional, load_classifier()))
    assert model.load_device == SECOND
    assert torch.equal(run(wiring, model, "basic"), expected)


def of_dimensions(core_model, dimensions):
    """A core MODEL whose latents have so many dimensions beside batch and channels."""
    import comfy.latent_formats

    class Format(comfy.latent_formats.LatentFormat):
        latent_channels, latent_dimensions = 2, dimensions

    class Network(torch.nn.Module):
        def __init__(self, channels=2, dtype=None, device=None, operations=None):
            super().__init__()
            self.dtype = dtype or torch.float32
            self.layer = operations.Linear(channels, channels, dtype=dtype, device=device)

        def forward(self, x, timesteps, **_):
            return self.layer(x.movedim(1, -1)).movedim(-1, 1) if x.shape[1] == 2 else x * 0.1

    return core_model("EPS", Format, Network)


VIDEO = torch.zeros(2, 2, 3, 4, 4)


def sampled(model, latent):
    """As core's KSampler does it, with two different conditionings."""
    import comfy.nested_tensor

    pair = ([[torch.zeros(1, 1, 1), {"strength": strength}]] for strength in (1.0, 0.5))
    start = latent_noise(*VIDEO.shape)
    if latent is not VIDEO:
        start = comfy.nested_tensor.NestedTensor((start, latent_noise(2, 2, 5)))
    return drawn(core_guider(model, 3.0, *pair), few_sigmas(model), latent=latent, start=start)


def packed():
    """A latent of video and sound."""
    nested = pytest.importorskip("comfy.nested_tensor", reason="this ComfyUI packs nothing")
    return nested.NestedTensor((VIDEO, torch.zeros(2, 2, 5)))


LATENTS = {"video": lambda: VIDEO, "video and sound": packed}


@pytest.mark.parametrize("kind", LATENTS)
def test_what_is_no_image_is_refused_by_name(steered, core_model, place_classifier, kind):
    model = of_dimensions(core_model, 3)
    classifier = place_classifier(torch.nn.Flatten())
    guided = steered(model, classifier, "1")
    with pytest.raises(ValueError, match=rf"this latent is .*{kind}.*Classifier Guidance"):
        sampled(guided, LATENTS[kind]())


@pytest.mark.parametrize("kind", LATENTS)
def test_cfg_schedules_and_traces_work_with_any_latent(call, pack_module, core_model, kind):
    schedule = pack_module("guidance").GuidanceSchedule.interval("step", 0.0, 0.5, 4.0)
    (model,) = call("CFGScaleScheduler", model=of_dimensions(core_model, 3), schedule=schedule)
    model, trace = call("GuidanceTrace", model=model)
    out = sampled(model, LATENTS[kind]())
    for part in out.unbind() if kind != "video" else (out,):
        assert bool(part.isfinite().all())
    seen = trace.to_dict()["evaluations"]
    assert [one["cfg"] for one in seen] == [4.0, 4.0, 1.0, 1.0]
    assert [one["passes"] for one in seen] == [2, 2, 1, 1]
