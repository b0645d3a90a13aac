"""Frozen convolutions' weights, packed once for oneDNN instead of in every call.

On a CPU torch has oneDNN reorder a weight each time that it is used, forward and back. The gradient
with respect to the input of a convolution that keeps its maps' size is a convolution, too, of the
kernel flipped and its channels exchanged, so that it can be packed in the same way.

A layer has at most two packed copies, one forward and one back, in the precision that it computes
in: with them a classifier's weights take three times their memory on a CPU. They are in no state
dict and no pickle, and go with the layer, with a change of its weight, and wherever it is moved.
Where memory is short, in `unpacked`, there are none.
"""

from __future__ import annotations

import functools
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

DTYPES = (torch.float32, torch.bfloat16)
ONE = (1, 1)


class PackedWeight:
    """The packed copies of one state of a convolution's weight, made when they are needed.

    Maps (B, C, H, W) are in channels-last memory, without dilation or groups.
    """

    def __init__(self, weight: Tensor):
        self._weight = weakref.ref(weight)
        self._state = _state(weight)
        self._copies: dict[str, tuple[Any, Tensor]] = {}

    def is_of(self, weight: Tensor) -> bool:
        """Whether nothing changed: the tensor, what it holds or where."""
        return self._weight() is weight and self._state == _state(weight)

    def forward(
        self, x: Tensor, weight: Tensor, bias: Tensor | None, stride: tuple, padding: tuple
    ) -> Tensor:
        """F.conv2d in x's dtype; weight (O, I, h, w) is the layer's, in any precision."""
        bias = None if bias is None else bias.to(x.dtype)
        copy = self._copy("forward", x, stride, padding, lambda: weight.to(x.dtype))
        return _convolve(x, copy, bias, stride, padding)

    def input_gradient(self, grad: Tensor, weight: Tensor, padding: tuple) -> Tensor:
        """Of the input, from the output's (B, O, H, W), where `keeps_size`."""
        grad = grad.contiguous(memory_format=torch.channels_last)
        copy = self._copy("backward", grad, ONE, padding, lambda: exchanged(weight.to(grad.dtype)))
        return _convolve(grad, copy, None, ONE, padding)

    def _copy(
        self, way: str, x: Tensor, stride: tuple, padding: tuple, plain: Callable[[], Tensor]
    ) -> Tensor:
        # oneDNN chooses by the maps' size; another number of images is no reason to pack again
        kind = (x.dtype, x.shape[2:])
        if way not in self._copies or self._copies[way][0] != kind:
            self._copies.pop(way, None)  # never two of a kind in memory
            self._copies[way] = kind, pack(plain(), x.shape, stride, padding)
        return self._copies[way][1]


# by layer, outside of it: nothing to copy, pickle or move with it
_KEPT: weakref.WeakKeyDictionary[nn.Module, PackedWeight] = weakref.WeakKeyDictionary()
_SHORT: ContextVar[bool] = ContextVar("_SHORT", default=False)


@contextmanager
def unpacked() -> Iterator[None]:
    """Frees the packed weights of the layers that are used in the block, and packs none."""
    token = _SHORT.set(True)
    try:
        yield
    finally:
        _SHORT.reset(token)


def weight_for(layer: nn.Module | None, x: Tensor) -> PackedWeight | None:
    """The packed weight of a frozen layer, for x; None where packing is not possible."""
    if layer is None or torch.compiler.is_compiling():
        return None
    if _SHORT.get():
        forget(layer)
        return None
    weight: Any = layer.weight
    if not (_plain(x) and _plain(weight)) or weight.is_inference() or not _computes(x):
        return None
    kept = _KEPT.get(layer)
    if kept is None or not kept.is_of(weight):
        kept = _KEPT[layer] = PackedWeight(weight)
    return kept


def forget(layer: nn.Module | None) -> None:
    """Frees the layer's packed weights."""
    if layer is not None and not torch.compiler.is_compiling():
        _KEPT.pop(layer, None)


class Forgetting(nn.Module):
    """A layer that frees its packed weights when it is moved or cast."""

    def _apply(self, fn: Any, recurse: bool = True) -> Any:
        forget(self)
        return super()._apply(fn, recurse)


def keeps_size(weight: Tensor, stride: tuple, padding: tuple) -> bool:
    """Whether the convolution's maps come out in the size that they went in."""
    sides = zip(weight.shape[2:], padding, strict=True)
    return tuple(stride) == ONE and all(side == 2 * pad + 1 for side, pad in sides)


def exchanged(weight: Tensor) -> Tensor:
    """(I, O, h, w), flipped: the convolution that is the other's gradient."""
    return weight.flip(2, 3).transpose(0, 1).contiguous()


def pack(weight: Tensor, shape: torch.Size, stride: tuple, padding: tuple) -> Tensor:
    """An opaque copy of the weight, for inputs of that shape."""
    with torch.no_grad():
        opaque = weight.detach().contiguous().to_mkldnn()
        reorder: Any = torch._C._nn.mkldnn_reorder_conv2d_weight  # its stub knows lists alone
        return reorder(opaque, padding, stride, ONE, 1, shape)


def _convolve(
    x: Tensor, copy: Tensor, bias: Tensor | None, stride: tuple, padding: tuple
) -> Tensor:
    """A convolution by a packed weight and nothing after it."""
    return torch.ops.mkldnn._convolution_pointwise(
        x, copy, bias, padding, stride, ONE, 1, "none", [], ""
    )


def _state(weight: Tensor) -> tuple:
    return weight.data_ptr(), weight._version, weight.dtype, weight.device, weight.shape


def _plain(tensor: Tensor) -> bool:
    """No subclass, whose operations may be others, and on the CPU."""
    return type(tensor) in (Tensor, nn.Parameter) and tensor.device.type == "cpu"


def _computes(x: Tensor) -> bool:
    """Whether oneDNN would be what computes x, too, without packing."""
    last = x.ndim == 4 and x.numel() > 0 and x.is_contiguous(memory_format=torch.channels_last)
    allowed = bool(torch.backends.mkldnn.enabled) and not torch.is_autocast_enabled("cpu")
    return last and allowed and x.dtype in DTYPES and works(x.dtype)


@functools.cache
def works(dtype: torch.dtype) -> bool:
    """Whether this torch and processor pack weights of that precision: tried, once.

    The operations are torch's own, and may change or be missing. In bf16 they refuse where the
    processor cannot compute it.
    """
    if not torch.backends.mkldnn.is_available():
        return False
    x = torch.linspace(-1, 1, 2 * 16 * 4 * 4).view(2, 16, 4, 4).to(dtype)
    x = x.contiguous(memory_format=torch.channels_last)
    weight = torch.linspace(-1, 1, 16 * 16 * 9).sin().view(16, 16, 3, 3).to(dtype)
    with torch.no_grad():
        try:
            got = PackedWeight(weight).forward(x, weight, None, ONE, ONE)
        except Exception:  # whatever a torch without them raises
            return False
        return torch.allclose(got, F.conv2d(x, weight, padding=1), rtol=1e-2, atol=1e-2)
