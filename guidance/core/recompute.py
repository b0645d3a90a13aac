"""Activations that are computed again for the backward pass (gradient checkpointing).

Chen et al. 2016, "Training Deep Nets with Sublinear Memory Cost". `torch.utils.checkpoint` is not
used, because its gradients are wrong where a block writes into its own tensors, as Flux's do.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable, Iterable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from .autograd import is_weight
from .replaced import replaced

CONTAINERS = (nn.ModuleList, nn.Sequential, nn.ModuleDict)
Context = Callable[[], AbstractContextManager]


def blocks_of(network: nn.Module) -> list[nn.Module]:
    """The outermost blocks: what the network's lists hold, as far as it has layers of its own."""
    found: list[nn.Module] = []
    for child in network.children():
        in_list = isinstance(network, CONTAINERS) and not isinstance(child, CONTAINERS)
        if in_list and any(True for _ in child.children()):
            found.append(child)
        elif not in_list:
            found.extend(blocks_of(child))
    return found


@contextmanager
def recomputed_blocks(
    networks: Iterable[nn.Module], is_short: Callable[[], bool], again: Context = nullcontext
) -> Iterator[None]:
    """In the block, torch's graph keeps only the inputs of the networks' blocks, not what they
    compute, from a block on before which `is_short()` is true.

    again: the context in which a block computes the second time. The gradient is the same. The
    backward pass raises ValueError if a block does not compute the same again.
    """
    run = _Run(again)
    with ExitStack() as stack:
        for block in dict.fromkeys(block for network in networks for block in blocks_of(network)):
            forward = run.recomputed(block.forward, is_short)
            stack.enter_context(replaced(block, "forward", forward))
        yield


class _Run:
    """The calls of all blocks. Only one of them keeps what it computed again, at a time."""

    def __init__(self, again: Context):
        self.again = again
        self.copies: dict[int, tuple[Tensor, int, Tensor]] = {}
        # weak: the graph owns the calls, and frees what they keep
        self.latest: Callable[[], _Call | None] = lambda: None

    def recomputed(self, forward: Callable, is_short: Callable[[], bool]) -> Callable:
        """The forward method of a block, as it is while memory is not short."""

        def call(*args: Any, **kwargs: Any) -> Any:
            if not (torch.is_grad_enabled() and is_short()):
                return forward(*args, **kwargs)
            # some blocks and some models write into the inputs; core's options change as it goes on
            call = _Call(self, forward, _mapped((args, kwargs), self.copied))
            with torch.autograd.graph.saved_tensors_hooks(call.pack, call.unpack):
                return forward(*args, **kwargs)

        return call

    def copied(self, tensor: Tensor) -> Tensor:
        """A copy; one for all blocks of what they share, such as the positions of tokens."""
        if is_weight(tensor) or tensor.is_inference():  # written by nobody here
            return tensor
        if tensor.requires_grad:
            return tensor.detach().clone().requires_grad_()
        found = self.copies.get(id(tensor))
        if found is None or found[0] is not tensor or found[1] != tensor._version:
            found = self.copies[id(tensor)] = tensor, tensor._version, tensor.clone()
        return found[2]


class _Call:
    """One call of a block."""

    def __init__(self, run: _Run, forward: Callable, inputs: Any):
        self.run, self.forward, self.inputs = run, forward, inputs
        self.kinds: list[tuple] = []
        self.kept: list[Tensor] = []

    def pack(self, tensor: Tensor) -> Tensor | int:
        """What the graph keeps in place of a tensor: its number."""
        if is_weight(tensor):
            return tensor
        self.kinds.append((tensor.shape, tensor.dtype))
        return len(self.kinds) - 1

    def unpack(self, packed: Tensor | int) -> Tensor:
        """The tensor of that number, computed again unless it is there."""
        if isinstance(packed, Tensor):
            return packed
        latest = self.run.latest()
        if latest is not self:
            if latest is not None:
                latest.kept = []
            self._compute()
            self.run.latest = weakref.ref(self)
        return self.kept[packed]

    def _compute(self) -> None:
        def keep(tensor: Tensor) -> Tensor:
            if not is_weight(tensor):
                self.kept.append(tensor.detach().clone())  # the block may write into it later
            return tensor

        hooks = torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor)
        with torch.inference_mode(False), torch.enable_grad(), self.run.again(), hooks:
            # the block may write into its inputs, and the graph may be used again
            args, kwargs = _mapped(self.inputs, _writable)
            self.forward(*args, **kwargs)
        if [(tensor.shape, tensor.dtype) for tensor in self.kept] != self.kinds:
            raise ValueError(
                "model, or a patch on it, computes something else when a block is computed again "
                "because memory is short, so an exact gradient is not possible."
            )


def _writable(tensor: Tensor) -> Tensor:
    return tensor if is_weight(tensor) or tensor.is_inference() else tensor.clone()


def _mapped(value: Any, function: Callable[[Tensor], Tensor]) -> Any:
    """A copy of nested arguments with this function of each tensor; of a dict of options, a copy.

    Other objects stay as they are.
    """
    if isinstance(value, Tensor):
        return function(value)
    if type(value) in (tuple, list):
        return type(value)(_mapped(each, function) for each in value)
    if type(value) is dict:
        return {name: _mapped(each, function) for name, each in value.items()}
    return value
