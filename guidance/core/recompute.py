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
    networks: Iterable[nn.Module],
    device: torch.device,
    is_short: Callable[[], bool],
    again: Context = nullcontext,
) -> Iterator[None]:
    """Torch's graph keeps the inputs of the networks' blocks on a device, not what they compute.

    It does so for each call of a block at whose beginning `is_short()` is true. again: the context
    in which a block computes the second time. The gradient is the same. The backward pass raises
    ValueError if a block does not compute the same again.
    """
    run = _Run(device, again)
    with ExitStack() as stack:
        for block in dict.fromkeys(block for network in networks for block in blocks_of(network)):
            forward = run.recomputed(block.forward, is_short)
            stack.enter_context(replaced(block, "forward", forward))
        yield


class _Run:
    """The calls of all blocks. Only one of them keeps what it computed again, at a time."""

    def __init__(self, device: torch.device, again: Context):
        self.again = again
        # where random numbers come from: those of a block must be the same again
        self.draws: list[Any] = [torch]
        if device.type != "cpu":
            self.draws.append(torch.get_device_module(device))
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
        self.states = _states(run.draws)
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
        self.kept = []

        def keep(tensor: Tensor) -> None:
            """Leaves nothing in the second graph, which is not used."""
            if not is_weight(tensor):
                self.kept.append(tensor.detach().clone())  # the block may write into it later

        with (
            torch.inference_mode(False),
            torch.enable_grad(),
            self.run.again(),
            self._draws(),
        ):
            # the block may write into its inputs, and the graph may be used again
            args, kwargs = _mapped(self.inputs, _writable)
            with torch.autograd.graph.saved_tensors_hooks(keep, _unused):
                self.forward(*args, **kwargs)
        if [(tensor.shape, tensor.dtype) for tensor in self.kept] != self.kinds:
            raise ValueError(
                "model, or a patch on it, computes something else when a block is computed again "
                "because memory is short, so an exact gradient is not possible."
            )

    @contextmanager
    def _draws(self) -> Iterator[None]:
        """The random numbers of the first time, and afterwards those that would have come."""
        before = _states(self.run.draws)
        _set_states(self.run.draws, self.states)
        try:
            yield
        finally:
            _set_states(self.run.draws, before)


def _states(draws: list[Any]) -> list[Tensor]:
    return [each.get_rng_state() for each in draws]


def _set_states(draws: list[Any], states: list[Tensor]) -> None:
    for each, state in zip(draws, states, strict=True):
        each.set_rng_state(state)


def _unused(packed: Any) -> Tensor:
    raise AssertionError("the second graph is not used")


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
