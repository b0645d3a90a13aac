"""What a phase runs on: a GPU with everything in full size, or a CPU with little of it."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from harness import Row

if TYPE_CHECKING:
    import torch

Value = TypeVar("Value")
Part = tuple[str, Callable[[], Iterable[Row]]]  # its name, and what measures it


class LeftOut(Exception):
    """Something that is measured needs what this machine does not have; the message says what."""


@dataclass(frozen=True)
class Setup:
    """rehearse: on the CPU, with small networks and few steps, to see that everything runs."""

    rehearse: bool = False
    folder: Path = field(default_factory=lambda: Path(tempfile.gettempdir()))

    def pick(self, full: Value, small: Value) -> Value:
        """The first on a GPU, the second in a rehearsal."""
        return small if self.rehearse else full

    @property
    def device(self) -> torch.device:
        """Where the networks are."""
        import torch

        return torch.device("cpu" if self.rehearse else "cuda")

    def bar(self, milliseconds: float | None) -> float | None:
        """A bar in milliseconds counts on an H100 or an H200; a ratio's counts on every card."""
        return milliseconds if not self.rehearse and is_hopper(card()) else None


def card() -> str:
    """The GPU's name."""
    import torch

    return torch.cuda.get_device_name(0)


def is_hopper(name: str) -> bool:
    """Whether it is a card that the bars in milliseconds are for."""
    return any(known in name for known in ("H100", "H200"))


def reference() -> Any:
    """The module with the original's networks."""
    try:
        import reference
    except ModuleNotFoundError as missing:
        raise LeftOut(
            f"The original's code is missing ({missing.name}): pip install guided-diffusion-sdk"
        ) from missing
    return reference
