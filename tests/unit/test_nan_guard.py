"""The watch over gradients, and values on their way from a device."""

from __future__ import annotations

import pytest
import torch

from guidance.core.autograd import tracked
from guidance.core.host_copy import HostCopy, device_of, to_device
from guidance.sampling import nan_guard
from guidance.sampling.nan_guard import NaNGuard

GOOD = torch.ones(3, 1, 2, 2)
SIGMA = torch.tensor([1.0, 2.5, 1.0 / 3])


def broken(index, value=torch.nan):
    values = GOOD.clone()
    values[index, 0, 1, 1] = value
    return values


def test_finite_gradients_pass():
    guard = NaNGuard()
    guard.check(GOOD, GOOD, SIGMA, GOOD)
    guard.check(GOOD * 1e38, GOOD, SIGMA, GOOD)
    guard.check(GOOD, broken(1), SIGMA, GOOD)  # an image alone is no reason to stop
    guard.finish()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(("index", "sigma"), [(0, "1"), (1, "2.5"), (2, "0.33333")])
def test_a_gradient_that_is_not_finite(value, index, sigma):
    said = f"gradient is not finite at sigma {sigma} in image {index} .*fp32 or bf16"
    with pytest.raises(ValueError, match=said):
        NaNGuard().check(broken(index, value), GOOD, SIGMA, GOOD)


def test_an_image_that_was_not_finite_before():
    said = "image itself is not finite at sigma 2.5 in image 1 .*before guidance; lower the scale"
    with pytest.raises(ValueError, match=said):
        NaNGuard().check(broken(1), broken(1), SIGMA, GOOD)
    with pytest.raises(ValueError, match="gradient is not finite at sigma 1 in image 0 "):
        NaNGuard().check(broken(0) + broken(1), broken(1), SIGMA, GOOD)


def test_a_prediction_that_is_not_finite():
    with pytest.raises(ValueError, match="diffusion model's prediction .* sigma 2.5 in image 1 "):
        NaNGuard().check(broken(1), GOOD, SIGMA, broken(1))


def test_a_decoded_image_that_is_not_finite():
    decoded = torch.tensor([0.0, torch.nan, 0.0])
    with pytest.raises(ValueError, match="VAE decodes .* sigma 2.5 in image 1 .*fp32-vae"):
        NaNGuard().check(broken(1), GOOD, SIGMA, GOOD, decoded)


class Slow(HostCopy):
    """Values that arrive when the test says so."""

    here = False
    waited = 0

    @property
    def arrived(self):
        return Slow.here

    def wait(self):
        Slow.waited += 1
        return super().wait()


@pytest.fixture
def slow(monkeypatch):
    monkeypatch.setattr(nan_guard, "HostCopy", Slow)
    Slow.here, Slow.waited = False, 0
    return Slow


def test_what_was_found_is_an_error_when_it_has_arrived(slow):
    guard = NaNGuard()
    guard.check(broken(1), GOOD, SIGMA, GOOD)
    guard.check(GOOD, GOOD, SIGMA, GOOD)
    assert slow.waited == 0
    slow.here = True
    with pytest.raises(ValueError, match="not finite at sigma 2.5"):
        guard.check(GOOD, GOOD, SIGMA, GOOD)
    guard.finish()
    assert slow.waited == 3, "each once, in their order"


def test_the_end_waits_for_all(slow):
    guard = NaNGuard()
    for gradient in (GOOD, broken(0)):
        guard.check(gradient, GOOD, SIGMA, GOOD)
    with pytest.raises(ValueError, match="not finite at sigma 1 "):
        guard.finish()
    assert slow.waited == 2


def test_at_most_a_hundred_looks_are_pending(slow):
    guard = NaNGuard()
    for looks in range(1, 102):
        guard.check(GOOD, GOOD, SIGMA, GOOD)
        assert slow.waited == (0 if looks < 100 else 100)


def test_values_of_the_cpu_are_here_at_once():
    values = torch.ones(2, requires_grad=True)
    copy = HostCopy(values * 2)
    assert copy.arrived is True
    assert copy.wait().tolist() == [2.0, 2.0] and not copy.wait().requires_grad
    # a device without events cannot say when they are
    assert HostCopy(torch.ones(2, device="meta")).arrived is False


def test_a_network_is_where_its_weights_are():
    elsewhere = torch.device("meta")
    assert device_of(torch.nn.Linear(1, 1, device="meta"), torch.device("cpu")) == elsewhere
    assert device_of(torch.nn.ReLU(), elsewhere) == elsewhere


@pytest.mark.parametrize(("device", "waits"), [("cpu", True), ("meta", False)])
def test_only_a_copy_to_main_memory_is_waited_for(device, waits):
    class Values:
        def to(self, *where, **how):
            return where, how

    device = torch.device(device)
    assert to_device(device, Values()) == ((device,), {"non_blocking": not waits})


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_x_is_tracked_where_that_is_wanted(mode):
    x = torch.ones(2)
    with mode():
        before = torch.is_grad_enabled()
        with tracked(x) as x_in:
            assert x_in is not x and x_in.requires_grad
            (gradient,) = torch.autograd.grad((x_in**2).sum(), x_in)
        assert gradient.tolist() == [2.0, 2.0]
        with tracked(x, False) as x_in:
            assert x_in is x and torch.is_grad_enabled() == before
    assert not x.requires_grad
