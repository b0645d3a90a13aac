"""torch.compile for a network's gradients, and the way back where it cannot compile."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

T = TypeVar("T")


def compile_network(network: nn.Module) -> None:
    """Has torch compile the network, in place, when it is used for the first time."""
    network.compile()


@contextmanager
def uncompiled(network: nn.Module) -> Iterator[None]:
    """The network as it was before `compile_network`, for the time of the block."""
    compiled = network._compiled_call_impl
    network._compiled_call_impl = None  # what nn.Module.compile sets
    try:
        yield
    finally:
        network._compiled_call_impl = compiled


def compiled_if_possible(network: nn.Module, compute: Callable[[], T]) -> T:
    """What `compute` does with the network; uncompiled from now on where that fails compiled.

    What fails in both ways was not compilation's fault: that error is raised.
    """
    if network._compiled_call_impl is None:
        return compute()
    try:
        return compute()
    except Exception as error:  # compilers fail in their own ways
        with uncompiled(network):
            result = compute()
        network._compiled_call_impl = None
        reason = " ".join(str(error).split())[:160]
        warnings.warn(
            f"The classifier could not be compiled, so it runs uncompiled: {reason}", stacklevel=2
        )
        return result
