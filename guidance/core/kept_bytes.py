"""The memory that torch keeps for a gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .autograd import is_weight


class KeptBytes:
    """Counts in `bytes` what torch's graph keeps of what is computed in the block; no weights."""

    def __init__(self) -> None:
        self._storages: dict[int, int] = {}
        self._hooks = torch.autograd.graph.saved_tensors_hooks(self._count, lambda kept: kept)

    def __enter__(self) -> KeptBytes:
        self._hooks.__enter__()
        return self

    def __exit__(self, *error: Any) -> None:
        self._hooks.__exit__(*error)

    @property
    def bytes(self) -> int:
        return sum(self._storages.values())

    def _count(self, tensor: Tensor) -> Tensor:
        if not is_weight(tensor):
            storage = tensor.untyped_storage()
            self._storages[storage.data_ptr()] = storage.nbytes()
        return tensor
