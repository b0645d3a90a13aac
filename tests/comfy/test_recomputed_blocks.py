"""Exact gradients while memory is short: blocks are computed again, in core's own models."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
import zoo
from sampler_runs import core_guider, counted_calls, evaluated
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from zoo import ZOO, latent, prompt, zoo_model, zoo_vae
from zoo_cells import with_attention
from zoo_patches import PATCHES, controlled, patched

# with skips and a prompt; writing into its own tensors; one frame of a video model; others
NAMES = ("SD 1.5", "SDXL", "SD3", "Flux", "Flux 2", "Qwen-Image", "Z-Image", "Stable Cascade")
SIGMA = 0.6


class Peak(TorchDispatchMode):
    """The most bytes that what is made in the block took at the same time."""

    def __init__(self):
        super().__init__()
        self.alive, self.most = {}, 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        """Passes every operation on."""
        result = func(*args, **(kwargs or {}))
        for one in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(one, torch.Tensor):
                storage = StorageWeakRef(one.untyped_storage())
                self.alive[storage] = one.untyped_storage().nbytes()
        self.alive = {key: size for key, size in self.alive.items() if not key.expired()}
        self.most = max(self.most, sum(self.alive.values()))
        return result


@pytest.fixture
def both(call, load_image, steered, pack_module, monkeypatch):
    """(guided image, most bytes, passes, traced passes) with enough memory, and without."""

    def run(kind, model, positive):
        module = pack_module("nodes.host.autograd")
        guided = steered(model, load_image("exact", vae=zoo_vae(kind)), "1")
        guided, trace = call("GuidanceTrace", model=guided)
        guider, found = core_guider(guided, 3.0, positive, prompt(kind, 2)), []
        passes = counted_calls(model.model.diffusion_model)
        for short in (False, True):
            monkeypatch.setattr(module, "_short_of_memory", lambda _, short=short: lambda: short)
            passes.clear()
            with Peak() as peak:
                image = evaluated(guider, SIGMA * latent(kind), SIGMA)
            found.append((image, peak.most, list(passes), trace.to_dict()["passes"]))
        return found

    return run


@pytest.mark.parametrize("attention", [None, "pytorch"])
@pytest.mark.parametrize("name", NAMES)
def test_the_gradient_is_the_same(both, name, attention):
    kind = ZOO[name]
    model = with_attention(zoo_model(kind), attention)
    (image, _, *passes), (again, _, *counted) = both(kind, model, prompt(kind, 1))
    assert torch.equal(again, image) and counted == passes


@pytest.mark.parametrize("patch", [name for name in PATCHES if PATCHES[name][0] != "SVD"])
def test_the_gradient_is_the_same_through_patches_of_blocks(both, call_core, patch):
    """Random tiles, tokens that are merged and put back, options that say which block it is."""
    kind = ZOO[PATCHES[patch][0]]
    positive = prompt(kind, 1)
    positive = controlled(call_core, positive) if patch == "ControlNet" else positive
    (image, *_), (again, *_) = both(kind, patched(call_core, patch, zoo_model(kind)), positive)
    assert torch.equal(again, image)


def test_the_graph_of_a_deep_model_is_small(both, monkeypatch, say_at_the_end):
    deep = zoo.FLUX | {"depth": 6, "depth_single_blocks": 12}
    monkeypatch.setitem(zoo.CONFIGS, "Flux", zoo.CONFIGS["Flux"] | deep)
    kind = replace(ZOO["Flux"], shape=(16, 32, 32))
    model = with_attention(zoo_model.__wrapped__(kind), "pytorch")
    (image, most, *_), (again, least, *_) = both(kind, model, prompt(kind, 1))
    assert torch.equal(again, image)
    say_at_the_end(f"blocks computed again: {least / most:.2f} of the memory, 18 blocks of Flux")
    assert least < 0.35 * most


def test_what_does_not_repeat_is_refused(both):
    """A patch that changes from call to call."""
    kind, calls = ZOO["SDXL"], []

    def patch(q, k, v, options):
        calls.append(1)
        return (q, k, v) if len(calls) % 3 else (q * q.sigmoid(), k, v)

    model = zoo_model(kind).clone()
    model.set_model_attn1_patch(patch)
    with pytest.raises(ValueError, match="computes something else .* memory is short"):
        both(kind, model, prompt(kind, 1))
