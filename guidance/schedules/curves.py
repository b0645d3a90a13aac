"""The kinds of curves that a guidance schedule can be: a scale for a place in the run.

`at(place)` reads a curve anywhere, also between the steps; `to_dict()` is its JSON form, and the
constructors refuse what is not one with a ScheduleError.
"""

from __future__ import annotations

import math
import sys
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

from .expression import Expression, ExpressionError
from .run_position import RunPosition

AXES = ("percent", "step", "sigma")
INTERPOLATIONS = ("hold", "linear", "cosine", "power", "exponential")
VARIABLES = ("percent", "step", "steps", "sigma")
# a sigma comes out of a float32 list, and a percent out of that sigma
SLACK = 1e-5


class ScheduleError(ValueError):
    """A schedule that cannot be used; one sentence says what was found and what would do."""


class Curve(Protocol):
    """What a schedule is made of."""

    def at(self, place: RunPosition) -> float:
        """The scale there."""

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""


@dataclass(frozen=True)
class Points:
    """Points (position, scale) in the order of the run, and what is between and outside them.

    Positions rise from 0 to 1 on the axes percent and step, and fall on the axis sigma. Between two
    points: "hold" the first one's scale, "linear", "cosine" (flat at both), "power" (share **
    exponent), or "exponential" (equal ratios; scales above 0). Outside: exactly `outside`, or with
    None the scale of the nearest end.
    """

    axis: str
    points: tuple[tuple[float, float], ...]
    interpolation: str = "linear"
    outside: float | None = None
    exponent: float = 2.0

    def __post_init__(self) -> None:
        _one_of("axis", self.axis, AXES)
        _one_of("interpolation", self.interpolation, INTERPOLATIONS)
        if not self.points:
            raise ScheduleError("points is empty; give at least one [position, scale].")
        for position, scale in self.points:
            _finite("position of a point", position)
            _finite("scale of a point", scale)
            self._check_on_axis(position)
        self._check_order()
        if self.outside is not None:
            _finite("outside", self.outside)
        _finite("exponent", self.exponent)
        if self.exponent <= 0:
            raise ScheduleError(f"exponent is {self.exponent:g}; it must be above 0.")
        if self.interpolation == "exponential" and min(s for _, s in self.points) <= 0:
            low = min(s for _, s in self.points)
            raise ScheduleError(
                f"interpolation is exponential and a scale {low:g}; all must be above 0."
            )

    def _check_on_axis(self, position: float) -> None:
        if self.axis == "sigma" and position < 0:
            raise ScheduleError(f"A point is at sigma {position:g}; it must be 0 or more.")
        if self.axis != "sigma" and not 0 <= position <= 1:
            raise ScheduleError(
                f"A point is at {self.axis} {position:g}; the axis goes from 0 to 1."
            )

    def _check_order(self) -> None:
        for (a, _), (b, _) in zip(self.points, self.points[1:], strict=False):
            if self._sign * a >= self._sign * b:
                way = "fall, as sigma does in a run" if self.axis == "sigma" else "rise"
                raise ScheduleError(
                    f"points go from {self.axis} {a:g} to {b:g}; their positions must {way}."
                )

    @property
    def _sign(self) -> int:
        return -1 if self.axis == "sigma" else 1

    @cached_property
    def _positions(self) -> list[float]:
        return [self._sign * position for position, _ in self.points]

    def at(self, place: RunPosition) -> float:
        """The scale there."""
        found = place.on(self.axis)
        slack = SLACK * (found if self.axis == "sigma" else 1)
        position, (first, last) = self._sign * found, (self._positions[0], self._positions[-1])
        if not first - slack <= position <= last + slack and self.outside is not None:
            return self.outside
        if position >= last:
            return self.points[-1][1]
        if position <= first:
            return self.points[0][1]
        after = bisect_right(self._positions, position)
        low, high = self._positions[after - 1], self._positions[after]
        share = (position - low) / (high - low)
        return self._between(self.points[after - 1][1], self.points[after][1], share)

    def _between(self, a: float, b: float, share: float) -> float:
        if self.interpolation == "hold":
            return a
        if self.interpolation == "exponential":
            return a * (b / a) ** share
        if self.interpolation == "cosine":
            share = (1 - math.cos(math.pi * share)) / 2
        elif self.interpolation == "power":
            share = share**self.exponent
        return a + (b - a) * share

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        values: dict[str, Any] = {"axis": self.axis, "interpolation": self.interpolation}
        if self.interpolation == "power":
            values["exponent"] = self.exponent
        values["points"] = [list(point) for point in self.points]
        return values if self.outside is None else values | {"outside": self.outside}


@dataclass(frozen=True)
class StepList:
    """A scale for each step of the run; between two steps, the earlier one's."""

    values: tuple[float, ...]

    def __post_init__(self) -> None:
        if not self.values:
            raise ScheduleError("values is empty; give one scale for each step.")
        for value in self.values:
            _finite("one of values", value)

    def at(self, place: RunPosition) -> float:
        """The scale there; ScheduleError when the run has another number of steps."""
        if place.steps != len(self.values):
            raise ScheduleError(
                f"values lists {len(self.values)} scales, but this run has {place.steps} steps; "
                "list one for each, or use points, which fit any number."
            )
        return self.values[int(place.step + SLACK)]

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {"axis": "step", "values": list(self.values)}


@dataclass(frozen=True)
class LastSteps:
    """`scale` in the last `last` steps of the run, `outside` before them."""

    last: int
    scale: float
    outside: float = 1.0

    def __post_init__(self) -> None:
        if isinstance(self.last, bool) or not isinstance(self.last, int) or self.last < 1:
            raise ScheduleError(f"last is {self.last!r}; it must be a whole number, 1 or more.")
        _finite("scale", self.scale)
        _finite("outside", self.outside)

    def at(self, place: RunPosition) -> float:
        """The scale there."""
        inside = place.step + SLACK >= place.steps - self.last
        return self.scale if inside else self.outside

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {"axis": "step", "last": self.last, "scale": self.scale, "outside": self.outside}


class Formula:
    """An expression in percent, step, steps and sigma."""

    def __init__(self, text: str):
        try:
            self._expression = Expression(text, VARIABLES)
            # what fails everywhere is said before a run
            self.at(RunPosition(percent=0.5, step=9.5, steps=20, sigma=0.5))
        except ExpressionError as error:
            raise ScheduleError(str(error)) from error

    @property
    def reads(self) -> frozenset[str]:
        """Which of percent, step, steps and sigma decide on the scale."""
        return self._expression.reads

    def at(self, place: RunPosition) -> float:
        """The scale there; ScheduleError where there is none."""
        try:
            return self._expression(**{name: float(getattr(place, name)) for name in VARIABLES})
        except ExpressionError as error:
            raise ScheduleError(str(error)) from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Formula) and other.to_dict() == self.to_dict()

    def __hash__(self) -> int:
        return hash(self._expression.text)

    def to_dict(self) -> dict[str, Any]:
        """The JSON form."""
        return {"expression": self._expression.text}


def _finite(name: str, value: Any) -> None:
    if not is_finite(value):
        raise ScheduleError(f"The {name} is {brief(value)}; it must be a finite number.")


def is_finite(value: Any) -> bool:
    """Whether it is a number that a float can hold; an integer may be too large."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return number and -sys.float_info.max <= value <= sys.float_info.max


def brief(value: Any) -> str:
    """What was found, for an error."""
    text = repr(value)
    return text if len(text) <= 60 else text[:57] + "..."


def _one_of(name: str, value: Any, known: tuple[str, ...]) -> None:
    if value not in known:
        raise ScheduleError(f"{name} is {value!r}; expected one of {', '.join(known)}.")
