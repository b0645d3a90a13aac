"""Blocks that are computed again: what they write, what they share, when they are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from guidance.core.autograd import graph_despite_writes
from guidance.core.recompute import blocks_of, recomputed_blocks

CPU = torch.device("cpu")


class Block(nn.Module):
    """Writes into its input and into what it saved; reads options that change, draws, and a gate
    that it finds elsewhere than in its arguments.
    """

    def __init__(self, gates):
        super().__init__()
        self.layer, self.gates, self.calls = nn.Linear(6, 6).double(), gates, 0

    def forward(self, x, options, shift=None):
        self.calls += 1
        y = self.layer(x).sin()
        y[:, 2:5] = y[:, 2:5] / y[:, 2:5].norm(dim=-1, keepdim=True)
        y *= torch.rand(6, dtype=y.dtype) * options["place"] * self.gates[0]
        x += y.cos() + shift
        return x.mul_(y)


class Network(nn.Module):
    """Three blocks, whose first input needs no gradient of its own."""

    def __init__(self):
        super().__init__()
        self.gates = [None]
        self.blocks = nn.ModuleList(Block(self.gates) for _ in range(3))
        self.inner = nn.ModuleDict({"list": nn.Sequential(nn.Linear(6, 6), nn.SiLU())}).double()

    def forward(self, x):
        options, shift, self.gates[0] = {}, torch.ones(6).double(), x.cos()
        h = torch.ones_like(x)
        for place, block in enumerate(self.blocks, 1):
            options["place"] = place
            h = block(h, options, shift=shift)
            shift.add_(1)
        return self.inner["list"](h).sum()


@pytest.fixture
def network():
    torch.manual_seed(0)
    return Network().requires_grad_(False)


def gradients(network, is_short, times=1):
    """The gradient by x, once or more from one graph, and what is drawn afterwards."""
    x = torch.linspace(-1, 1, 24, dtype=torch.float64).view(4, 6).requires_grad_()
    torch.manual_seed(1)
    with graph_despite_writes(), recomputed_blocks([network, network], CPU, is_short):
        result = network(x)
    found = [torch.autograd.grad(result, x, retain_graph=True)[0] for _ in range(times)]
    return *found, torch.rand(3)


def test_the_outermost_blocks_of_lists_are_found(network):
    assert blocks_of(network) == list(network.blocks)


def test_the_gradient_is_the_same_each_time(network):
    whole, drawn = gradients(network, lambda: False)
    first, second, after = gradients(network, lambda: True, times=2)
    assert torch.equal(first, whole) and torch.equal(second, whole) and torch.equal(after, drawn)
    assert whole.abs().min() > 0


def test_only_while_memory_is_short(network):
    answers = iter([False, True, False])
    gradients(network, lambda: next(answers))
    assert [block.calls for block in network.blocks] == [1, 2, 1]
    network(torch.zeros(4, 6).double())  # and not without a graph, nor afterwards
    assert [block.calls for block in network.blocks] == [2, 3, 2]
