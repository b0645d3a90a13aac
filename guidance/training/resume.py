"""The state of a training in a file next to its output, to resume it after a crash.

It has only tensors and JSON in the safetensors format, so reading it runs no code.
"""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor, nn

from ..core.atomic_write import write_tensors
from ..core.bounded_read import open_safetensors, parse_json

SUFFIX = ".resume"  # loaders do not list this suffix as a model file
KEY = "training"


@dataclass
class TrainingState:
    network: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    step: int = 0
    whole: bool = True  # between two steps, where it is safe to save
    losses: list[float] = field(default_factory=list)
    validations: list[dict[str, Any]] = field(default_factory=list)

    def tensors(self) -> dict[str, Tensor]:
        """The tensors by name, as they are saved."""
        found = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        found |= {f"average.{k}": v for k, v in self.average.state_dict().items()}
        for index, about in self.optimizer.state_dict()["state"].items():
            found |= {f"optimizer.{index}.{k}": torch.as_tensor(v) for k, v in about.items()}
        return {k: v.detach().cpu().contiguous().clone() for k, v in found.items()}

    def restore(self, tensors: dict[str, Tensor], about: dict[str, Any]) -> None:
        for name, network in (("network", self.network), ("average", self.average)):
            prefix = f"{name}."
            kept = {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}
            network.load_state_dict(kept)
        state: dict[int, dict[str, Tensor]] = {}
        for key, value in tensors.items():
            if key.startswith("optimizer."):
                _, index, name = key.split(".", 2)
                state.setdefault(int(index), {})[name] = value
        self._check_state(state)
        _check_progress(about)
        whole = self.optimizer.state_dict()
        self.optimizer.load_state_dict({**whole, "state": state})
        self.step, self.losses = about["step"], about["losses"]
        self.validations = about["validations"]

    def _check_state(self, state: dict[int, dict[str, Tensor]]) -> None:
        """Raises ValueError for a tensor that does not fit the optimiser's parameters."""
        parameters = [p for group in self.optimizer.param_groups for p in group["params"]]
        for index, about in state.items():
            shapes = {tuple(value.shape) for value in about.values()}
            if index >= len(parameters) or shapes - {(), tuple(parameters[index].shape)}:
                raise ValueError(f"the optimiser's state {index} does not fit")


def _check_progress(about: dict[str, Any]) -> None:
    """Raises TypeError if step is not a count, or if losses or validations are not lists."""
    kinds = {"step": int, "losses": list, "validations": list}
    wrong = [name for name, kind in kinds.items() if type(about[name]) is not kind]
    if wrong or about["step"] < 0:
        raise TypeError(f"{wrong or 'step'} is not what was saved")


def prune(folder: Path, days: float, keep: Path) -> list[str]:
    """Deletes the states in a folder that were not written to for so many days, but for `keep`.

    Their trainings were abandoned. Returns the names of those deleted.
    """
    oldest = time.time() - days * 24 * 60 * 60
    deleted = []
    for path in sorted(folder.glob(f"*{SUFFIX}")):
        try:
            if path != keep and path.stat().st_mtime < oldest:
                path.unlink()
                deleted.append(path.name)
        except OSError:  # another process deleted it, or it may not be deleted
            continue
    return deleted


class ResumeFile:
    """The file with the state of one training.

    `settings` is everything that determines the result; a file with other settings is refused.
    It is `due` every `seconds`.
    """

    def __init__(self, path: str | Path, settings: dict[str, Any], seconds: float = 30.0):
        self.path = Path(path)
        self.settings = json.loads(json.dumps(settings))
        self.seconds = seconds
        self._last = time.monotonic()

    def read_into(self, state: TrainingState) -> bool:
        """Loads the state; returns whether there was one.

        Raises ValueError for a file that is damaged or from another training.
        """
        if not self.path.exists():
            return False
        try:
            with open_safetensors(self.path) as file:
                about = parse_json((file.metadata() or {})[KEY])
                # copies, because the file is replaced while they are in use
                tensors = {key: file.get_tensor(key).clone() for key in file.keys()}  # noqa: SIM118
            theirs, ours = dict(about["settings"]), self.settings
            names = sorted(theirs.keys() | ours.keys())
            different = [name for name in names if theirs.get(name) != ours.get(name)]
            if not different:
                state.restore(tensors, about)
        except (SafetensorError, OSError, LookupError, RuntimeError, TypeError, ValueError) as why:
            raise ValueError(
                f"{self.path} is not a state that this training can resume from "
                f"({type(why).__name__}); delete it to start again."
            ) from why
        if different:
            name = different[0]
            raise ValueError(
                f"{self.path} is of a training with {name} {theirs.get(name)!r}, but this one has "
                f"{ours.get(name)!r}; delete it to start again, or use the same settings."
            )
        return True

    @property
    def due(self) -> bool:
        """Whether the last save was long enough ago."""
        return time.monotonic() - self._last >= self.seconds

    def save(self, state: TrainingState) -> None:
        """Writes the state; atomic."""
        about = {"settings": self.settings, "step": state.step, "losses": state.losses}
        about["validations"] = state.validations
        write_tensors(self.path, state.tensors(), {KEY: json.dumps(about)})
        self._last = time.monotonic()

    def delete(self) -> None:
        self.path.unlink(missing_ok=True)
