"""Packed weights of frozen convolutions: the same gradients, and copies only where they are due."""

from __future__ import annotations

import copy
import pickle
from unittest import mock

import pytest
import torch
from tiny_networks import noisy_classifier

from guidance.adm import layers, packed
from guidance.classifiers.gradient_memory import GradientMemoryPlan

LABELS = torch.tensor([2, 0, 1])
IMAGES = torch.randn(3, 3, 8, 8, generator=torch.Generator().manual_seed(3))

needs_packing = pytest.mark.skipif(
    not packed.works(torch.float32), reason="this torch packs no weights here"
)
LAYERS = [
    lambda: layers.Conv2d(4, 6, 3, padding=1),
    lambda: layers.Conv2d(4, 6, 3, stride=2, padding=1),
    lambda: layers.Conv2d(4, 6, 1),
    lambda: layers.Conv2d(4, 6, 3, padding=1, bias=False),
    lambda: layers.Conv2d(4, 6, 5, padding=1),
]


def frozen_layer(make=LAYERS[0]):
    torch.manual_seed(0)
    return make().requires_grad_(False)


def maps(batch=3, size=8, dtype=torch.float32):
    x = torch.randn(batch, 4, size, size, generator=torch.Generator().manual_seed(1)).to(dtype)
    return x.contiguous(memory_format=torch.channels_last).requires_grad_(True)


def output_and_gradient(layer, x):
    y = layer(x)
    direction = torch.randn(y.shape, generator=torch.Generator().manual_seed(2)).to(y.dtype)
    return y.detach(), torch.autograd.grad(y, x, direction)[0]


def unpacked(compute, *inputs):
    with mock.patch.object(packed, "weight_for", lambda layer, x: None):
        return compute(*inputs)


def close(got, expected, bound=1e-6):
    return all(
        (one - other).abs().max() <= bound * other.abs().max()
        for one, other in zip(got, expected, strict=True)
    )


@pytest.fixture
def packs():
    """Spies on packing: each call is one packed copy."""
    with mock.patch.object(packed, "pack", side_effect=packed.pack) as spy:
        yield spy


@needs_packing
@pytest.mark.parametrize("stored", [torch.float32, torch.float16])
@pytest.mark.parametrize("make", LAYERS)
def test_packed_convolutions_have_the_same_values_and_gradients(make, stored, packs):
    layer, x = frozen_layer(make).to(stored), maps()
    expected = unpacked(output_and_gradient, layer, x)
    assert not packs.called
    got = output_and_gradient(layer, x)
    assert packs.called
    assert close(got, expected)
    assert all(one.is_contiguous(memory_format=torch.channels_last) for one in got)


@pytest.mark.skipif(not packed.works(torch.bfloat16), reason="no bf16 in hardware")
def test_bf16_is_packed_where_the_processor_computes_it(packs):
    layer, x = frozen_layer().bfloat16(), maps(dtype=torch.bfloat16)
    expected = unpacked(output_and_gradient, layer, x)
    assert close(output_and_gradient(layer, x), expected, bound=1e-2)
    assert packs.call_count == 2


@needs_packing
@pytest.mark.parametrize("pool", ["attention", "adaptive", "spatial", "spatial_v2"])
def test_a_classifiers_gradient_is_the_same(pool, packs):
    classifier = noisy_classifier(pool=pool)
    classifier.network.requires_grad_(False)
    expected = unpacked(classifier.gradient, IMAGES, 1.5, LABELS)
    got = classifier.gradient(IMAGES, 1.5, LABELS)
    assert packs.called and close([got], [expected], bound=1e-5)


@needs_packing
def test_each_weight_is_packed_once(packs):
    classifier = noisy_classifier()
    classifier.network.requires_grad_(False)
    classifier.gradient(IMAGES, 1.5, LABELS)
    first = packs.call_count
    with torch.inference_mode():
        classifier.gradient(IMAGES, 0.5, LABELS)
    classifier.gradient(IMAGES[:2], 0.5, LABELS[:2])
    assert packs.call_count == first > 0


@needs_packing
def test_maps_of_another_size_replace_the_copies(packs):
    layer = frozen_layer()
    for size in (8, 6):
        output_and_gradient(layer, maps(size=size))
    assert packs.call_count == 4
    assert len(packed._KEPT[layer]._copies) == 2


def in_place(layer):
    layer.weight.mul_(2)


def in_inference_mode(layer):
    with torch.inference_mode():
        layer.weight.mul_(2)


def other_parameter(layer):
    layer.weight = torch.nn.Parameter(layer.weight * 2, requires_grad=False)


def other_data(layer):
    layer.weight.data = layer.weight * 2


def loaded(layer):
    layer.load_state_dict({name: weight * 2 for name, weight in layer.state_dict().items()})


@needs_packing
@pytest.mark.parametrize(
    "change", [in_place, in_inference_mode, other_parameter, other_data, loaded]
)
def test_a_changed_weight_is_noticed(change):
    layer, x = frozen_layer(), maps()
    before = output_and_gradient(layer, x)
    change(layer)
    expected = unpacked(output_and_gradient, layer, x)
    assert not close(before, expected)
    assert close(output_and_gradient(layer, x), expected)


@needs_packing
@pytest.mark.parametrize(
    "move", [lambda layer: layer.to("meta"), lambda layer: layer.half(), lambda layer: layer.cpu()]
)
def test_what_is_moved_or_cast_frees_its_copies(move):
    layer = frozen_layer()
    output_and_gradient(layer, maps())
    assert layer in packed._KEPT
    move(torch.nn.Sequential(layer))
    assert layer not in packed._KEPT


@needs_packing
def test_a_gradient_that_saves_memory_packs_nothing_and_frees_what_was(packs):
    classifier = noisy_classifier()
    classifier.gradient(IMAGES, 1.5, LABELS)
    layers = [layer for layer in classifier.network.input_blocks.modules() if layer in packed._KEPT]
    assert layers and packs.called
    packs.reset_mock()
    saving = classifier.with_economy(GradientMemoryPlan(recompute=True))
    saving.gradient(IMAGES, 1.5, LABELS)
    assert not packs.called
    assert not any(layer in packed._KEPT for layer in layers)


@needs_packing
def test_copies_go_with_their_layer():
    before = len(packed._KEPT)
    layer = frozen_layer()
    output_and_gradient(layer, maps())
    assert len(packed._KEPT) == before + 1
    del layer
    assert len(packed._KEPT) == before


@needs_packing
def test_packed_weights_are_in_no_state_dict_copy_or_pickle():
    layer = frozen_layer()
    names, size = list(layer.state_dict()), len(pickle.dumps(layer))
    expected = output_and_gradient(layer, maps())
    assert list(layer.state_dict()) == names
    assert len(pickle.dumps(layer)) == size
    for other in (copy.deepcopy(layer), pickle.loads(pickle.dumps(layer))):
        assert other not in packed._KEPT
        assert close(output_and_gradient(other, maps()), expected)


def test_a_copy_of_a_used_classifier_is_whole():
    classifier = noisy_classifier()
    expected = classifier.gradient(IMAGES, 1.5, LABELS)
    other = copy.deepcopy(classifier.network)
    assert not any(layer in packed._KEPT for layer in other.modules())
    got = classifier.with_network(other).gradient(IMAGES, 1.5, LABELS)
    assert close([got], [expected], bound=1e-5)


def test_training_packs_nothing(packs):
    layer, x = layers.Conv2d(4, 6, 3, padding=1), maps()
    output_and_gradient(layer, x)
    layer(x).sum().backward()
    with torch.no_grad():
        layer.requires_grad_(False)(x)
    assert not packs.called and layer not in packed._KEPT


@needs_packing
def test_a_layer_that_is_trained_again_frees_its_copies():
    layer = frozen_layer()
    output_and_gradient(layer, maps())
    layer.requires_grad_(True)(maps())
    assert layer not in packed._KEPT


@pytest.mark.parametrize(
    "x",
    [maps().detach().contiguous(), maps(dtype=torch.float16), maps(0)],
    ids=["channels first", "fp16", "no images"],
)
def test_other_inputs_are_left_to_torch(x, packs):
    layer, x = frozen_layer(), x.detach().requires_grad_(True)
    expected = unpacked(output_and_gradient, layer, x)
    got = output_and_gradient(layer, x)
    assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
    assert not packs.called


@pytest.mark.filterwarnings("ignore:TF32")  # torch's, on leaving the block
def test_autocast_and_a_disabled_onednn_are_left_to_torch(packs):
    layer = frozen_layer()
    with torch.autocast("cpu", torch.bfloat16):
        layer(maps())
    with torch.backends.mkldnn.flags(enabled=False):
        layer(maps())
    assert not packs.called


@pytest.fixture
def forgotten_probe():
    packed.works.cache_clear()
    yield
    packed.works.cache_clear()


def test_without_torchs_operations_the_gradient_is_torchs_own(forgotten_probe, recwarn):
    layer, x = frozen_layer(), maps()
    expected = unpacked(output_and_gradient, layer, x)
    with mock.patch.object(
        packed, "pack", side_effect=AttributeError("no such operation")
    ) as tried:
        for _ in range(2):
            got = output_and_gradient(layer, x)
            assert all(torch.equal(one, other) for one, other in zip(got, expected, strict=True))
    assert tried.call_count == torch.backends.mkldnn.is_available()
    assert not recwarn
