"""What every kind of curve has in common, and how it says what is wrong."""

from __future__ import annotations

import sys
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

from .run_position import RunPosition

AXES = ("percent", "step", "sigma")
MOST_LISTED = 5  # points or steps that a description names


class ScheduleError(ValueError):
    """A schedule that cannot be used; the message says what was found and what is expected."""


class Curve(ABC):
    """The curve of a schedule.

    key: the JSON key that only this kind has. keys: all its JSON keys. steps: the number of steps
    that a run must have; None for any. outside: its scale where guidance is off, or None.
    """

    key: ClassVar[str]
    keys: ClassVar[frozenset[str]]
    steps: int | None = None
    outside: float | None = None

    @property
    def knots(self) -> Sequence[float]:
        """The positions on its axis where it bends."""
        return ()

    @property
    @abstractmethod
    def depends_on(self) -> frozenset[str]:
        """Which of percent, step and sigma the scale depends on."""

    @abstractmethod
    def at(self, position: RunPosition) -> float:
        """The scale at a position, also between two steps."""

    @abstractmethod
    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""

    @classmethod
    @abstractmethod
    def from_dict(cls, values: dict[str, Any]) -> Curve:
        """From its JSON form, after the keys have been checked."""

    @abstractmethod
    def describe(self) -> str:
        """A short text for a table or a legend, such as "4 for percent 0.2 to 0.8, else 1".

        Long lists are shortened.
        """


def check_finite(name: str, value: Any) -> None:
    if not is_finite_number(value):
        raise ScheduleError(f"The {name} is {shortened(value)}; it must be a finite number.")


def check_one_of(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ScheduleError(f"{name} is {value!r}; expected one of {', '.join(known)}.")


def listed(parts: list[str]) -> str:
    """The first few and the last."""
    if len(parts) > MOST_LISTED:
        parts = [*parts[: MOST_LISTED - 2], "...", parts[-1]]
    return ", ".join(parts)


def is_finite_number(value: Any) -> bool:
    """Whether it is a number that a float can hold; an integer may be too large."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and -sys.float_info.max <= value <= sys.float_info.max


def shortened(value: Any) -> str:
    """What was found, for an error."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."
