"""Gradients of networks that write into their tensors."""

from __future__ import annotations

import pytest
import torch

from guidance.core.autograd import graph_despite_writes

WEIGHT = torch.randn(6, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def writes_through_a_view(x):
    """As patches of attention do: a part of the output is replaced by a function of itself."""
    values = (x @ WEIGHT).sin()
    part = values[:, 2:5]
    values[:, 2:5] = part * 5 / part.norm(p=1, dim=-1, keepdim=True)
    values += 1
    return (values @ WEIGHT).cos().mul_(values).sum()


def test_the_gradient_is_that_of_differences():
    x = torch.randn(4, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    along, step = x.cos(), 1e-6
    x_in = x.clone().requires_grad_()
    with pytest.raises(RuntimeError, match="inplace"):
        torch.autograd.grad(writes_through_a_view(x_in), x_in)
    with graph_despite_writes():
        result = writes_through_a_view(x_in)
    (gradient,) = torch.autograd.grad(result, x_in)
    ahead, behind = (writes_through_a_view(x + sign * step * along) for sign in (1, -1))
    slope = float(ahead - behind) / (2 * step)
    assert float((gradient * along).sum()) == pytest.approx(slope, rel=1e-7)
