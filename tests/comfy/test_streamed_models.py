"""Guidance of MODELs whose weights are streamed (dynamic VRAM), ComfyUI's default on NVIDIA."""

from __future__ import annotations

from unittest import mock

import pytest
import torch
from sampler_runs import core_guider, differ, drawn, evaluated, few_sigmas
from streaming import dynamic_vram, model_file
from zoo import ZOO, config_of, latent, prompt, random_weights, zoo_vae

KIND, SIGMA = ZOO["Flux"], 0.6
LOADED = "comfy.sd.load_diffusion_model"


@pytest.fixture
def load(comfy, tmp_path):
    """A MODEL as core's Load Diffusion Model gives it, all of one file."""
    import comfy.model_detection
    import comfy.sd

    file = model_file(KIND, tmp_path)
    found = mock.patch.object(
        comfy.model_detection, "model_config_from_unet", lambda *_, **__: config_of(KIND)
    )

    def run(disable_dynamic=False):
        with torch.inference_mode():
            options = {"dtype": torch.float32}
            return comfy.sd.load_diffusion_model(file, options, disable_dynamic=disable_dynamic)

    with dynamic_vram(), found:
        yield run


@pytest.fixture
def streamed(load):
    return load()


@pytest.fixture
def exact(load_image):
    return load_image("exact", vae=zoo_vae(KIND))


def guider(model):
    return core_guider(model, 3.0, prompt(KIND, 1), prompt(KIND, 2))


def at(model):
    return evaluated(guider(model), SIGMA * latent(KIND), SIGMA)


def changed(model, size=0.5):
    """The MODEL with a patch of its weights, as a LoRA makes one."""
    model = model.clone()
    name = "diffusion_model.double_blocks.0.img_mlp.0.weight"
    shape = model.model.state_dict()[name].shape
    model.add_patches({name: ("diff", (torch.full(shape, size),))})
    return model


def test_exact_is_that_of_the_same_model_loaded_whole(load, streamed, steered, exact):
    plain, whole = at(streamed), load(disable_dynamic=True)
    expected = at(steered(whole, exact, "1"))
    guided = steered(streamed, exact, "1")
    assert torch.equal(at(guided), expected) and differ(expected, plain) > 1e-3
    # the MODEL is still as it was, and so are branches without exact guidance
    assert streamed.is_dynamic() and not guided.is_dynamic()
    assert torch.equal(at(streamed), plain)


@pytest.mark.parametrize("first", [True, False])
def test_loras_before_and_after_the_node(load, streamed, steered, exact, first):
    whole = at(steered(changed(load(disable_dynamic=True)), exact, "1"))
    guided = steered(changed(streamed), exact, "1") if first else steered(streamed, exact, "1")
    guided = guided if first else changed(guided)
    assert torch.equal(at(guided), whole)
    assert differ(at(steered(streamed, exact, "1")), whole) > 1e-4


def test_a_whole_run_of_two_nodes_in_a_row(load, streamed, steered, exact, load_image):
    def run(model):
        for classifier in (load_image("cheap", vae=zoo_vae(KIND)), exact):
            model = steered(model, classifier, "1", 1.0)
        return drawn(guider(model), few_sigmas(model, 3), start=latent(KIND))

    assert torch.equal(run(streamed), run(load(disable_dynamic=True)))


def test_the_weights_are_read_once_for_all_nodes(streamed, steered, exact, load_image, monkeypatch):

    factory, arguments = streamed.cached_patcher_init
    reads = []
    streamed.cached_patcher_init = (lambda *a, **b: reads.append(1) or factory(*a, **b), arguments)
    models = [steered(model, exact, "1") for model in (streamed, changed(streamed), streamed)]
    assert len(reads) == 1 and len({id(model.model) for model in models}) == 1
    # those that need none take none
    assert steered(streamed, load_image("cheap", vae=zoo_vae(KIND)), "1").is_dynamic()
    assert steered(streamed, exact, "1", 0.0) is streamed


@pytest.mark.parametrize(
    ("memory", "said"),
    [("get_total_memory", "streamed.*the device has room"), ("get_free_memory", "main memory")],
)
def test_a_model_that_does_not_fit(streamed, steered, exact, monkeypatch, memory, said):
    import comfy.model_management

    monkeypatch.setattr(comfy.model_management, memory, lambda *_: 1000)
    with pytest.raises(ValueError, match=f"{said}"):
        steered(streamed, exact, "1")


def test_a_model_that_cannot_be_read_again(streamed, steered, exact):
    streamed.cached_patcher_init = None  # a custom node's
    with pytest.raises(ValueError, match="streamed.*set gradient to cheap.*--disable-dynamic-vram"):
        steered(streamed, exact, "1")


def test_a_second_model_of_the_run_is_streamed(load, streamed, steered, exact, call_core):
    inputs = {"positive": prompt(KIND, 1), "negative": prompt(KIND, 2), "cfg": 3.0}
    inputs |= {"model": steered(streamed, exact, "1"), "model_negative": load()}
    both = call_core("comfy_extras.nodes_custom_sampler", "DualModelGuider", **inputs)[0]
    with pytest.raises(ValueError, match="works together with model.*streamed"):
        evaluated(both, SIGMA * latent(KIND), SIGMA)


def test_vaes_are_whole(load, load_image, tmp_path):
    """A streamed VAE: core's delegate of it, or else a copy of it if it is small, or a sentence."""
    import comfy.sd
    from comfy.taesd.taesd import TAESD

    def vae(weights):
        with torch.inference_mode():
            return comfy.sd.VAE(sd={name: value.clone() for name, value in weights.items()})

    small = vae(random_weights(TAESD(latent_channels=16)))
    assert small.patcher.is_dynamic()
    placed = load_image(vae=small).vae.patcher
    assert not placed.is_dynamic() and placed.model is not small.first_stage_model
    for name, weight in small.first_stage_model.state_dict().items():
        assert torch.equal(placed.model.state_dict()[name], weight)
    other, cpu = zoo_vae(KIND), torch.device("cpu")
    other.patcher = comfy.model_patcher.CoreModelPatcher(other.first_stage_model, cpu, cpu)
    with pytest.raises(ValueError, match="vae.*streamed"):
        load_image(vae=other)
    other.patcher.cached_patcher_init = (lambda disable_dynamic: placed, ())
    assert load_image(vae=other).vae.patcher.model is placed.model
