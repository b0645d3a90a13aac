"""The curves of a guidance schedule: a scale for each position in the run.

A new kind of curve is one class here, listed in CURVES. Constructors and `from_dict` raise
ScheduleError.
"""

from __future__ import annotations

import math
from bisect import bisect_right
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise
from typing import Any, ClassVar

from .curve import (
    AXES,
    Curve,
    ScheduleError,
    check_finite,
    check_one_of,
    listed,
    shortened,
)
from .expression import Formula
from .monotone import hermite, monotone_slopes
from .run_position import RunPosition

INTERPOLATIONS = ("hold", "linear", "cosine", "power", "exponential", "smooth")
# tolerance, because sigma is a float32 and percent is computed from it
SLACK = 1e-5


def curve_from_dict(values: dict[str, Any]) -> Curve:
    """The curve of a JSON object, recognised by the key of its kind."""
    for kind in CURVES:
        if kind.key in values:
            unknown = sorted(values.keys() - kind.keys)
            if unknown:
                raise ScheduleError(
                    f"schedule has {unknown[0]!r}, which is not allowed with {kind.key!r}; "
                    f"expected only {', '.join(sorted(kind.keys))}."
                )
            return kind.from_dict(values)
    raise ScheduleError(f"schedule is {shortened(values)}; expected {FORMS}.")


@dataclass(frozen=True)
class Points(Curve):
    """Points (position, scale) in the order of the run, with interpolation between them.

    Positions rise from 0 to 1 on the axes percent and step, and fall on the axis sigma. Between two
    points: "hold" (the scale of the first point), "linear", "cosine" (flat at both points), "power"
    (share ** exponent), "exponential" (equal ratios; scales above 0), or "smooth" (a cubic without
    corners that never overshoots, see `monotone`). Outside of the points: exactly `outside`, or for
    None the scale of the nearest point.
    """

    axis: str
    points: tuple[tuple[float, float], ...]
    interpolation: str = "linear"
    outside: float | None = None
    exponent: float = 2.0

    key: ClassVar[str] = "points"
    keys: ClassVar[frozenset[str]] = frozenset(
        {"axis", "points", "interpolation", "outside", "exponent"}
    )

    def __post_init__(self) -> None:
        check_one_of("axis", self.axis, AXES)
        check_one_of("interpolation", self.interpolation, INTERPOLATIONS)
        if not self.points:
            raise ScheduleError("points is empty; give at least one [position, scale].")
        for position, scale in self.points:
            check_finite("position of a point", position)
            check_finite("scale of a point", scale)
            self._check_on_axis(position)
        self._check_order()
        if self.outside is not None:
            check_finite("outside", self.outside)
        check_finite("exponent", self.exponent)
        if self.exponent <= 0:
            raise ScheduleError(f"exponent is {self.exponent:g}; it must be above 0.")
        low = min(scale for _, scale in self.points)
        if self.interpolation == "exponential" and low <= 0:
            raise ScheduleError(
                f"interpolation is exponential, but a scale is {low:g}; all scales must be above 0."
            )

    def _check_on_axis(self, position: float) -> None:
        if self.axis == "sigma" and position < 0:
            raise ScheduleError(f"A point is at sigma {position:g}; it must be 0 or more.")
        if self.axis != "sigma" and not 0 <= position <= 1:
            raise ScheduleError(
                f"A point is at {self.axis} {position:g}; the axis goes from 0 to 1."
            )

    def _check_order(self) -> None:
        for a, b in pairwise(self.knots):
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

    def at(self, position: RunPosition) -> float:
        found = position.on(self.axis)
        slack = SLACK * (found if self.axis == "sigma" else 1)
        along, (first, last) = self._sign * found, (self._positions[0], self._positions[-1])
        if not first - slack <= along <= last + slack and self.outside is not None:
            return self.outside
        if along >= last:
            return self.points[-1][1]
        if along <= first:
            return self.points[0][1]
        after = bisect_right(self._positions, along)
        low, high = self._positions[after - 1], self._positions[after]
        share = (along - low) / (high - low)
        a, b = self.points[after - 1][1], self.points[after][1]
        if self.interpolation == "smooth":
            at_a, at_b = (slope * (high - low) for slope in self._slopes[after - 1 : after + 1])
            return hermite(a, b, at_a, at_b, share)
        return self._between(a, b, share)

    @cached_property
    def _slopes(self) -> list[float]:
        """Of the interpolation "smooth": at each point, along the run."""
        return monotone_slopes(self._positions, [scale for _, scale in self.points])

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

    @property
    def knots(self) -> list[float]:
        return [position for position, _ in self.points]

    @property
    def depends_on(self) -> frozenset[str]:
        return frozenset({self.axis})

    def to_dict(self) -> dict[str, Any]:
        values: dict[str, Any] = {"axis": self.axis, "interpolation": self.interpolation}
        if self.interpolation == "power":
            values["exponent"] = self.exponent
        values["points"] = [list(point) for point in self.points]
        return values if self.outside is None else values | {"outside": self.outside}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> Points:
        points = values["points"]
        if not isinstance(points, list) or not all(
            isinstance(point, list) and len(point) == 2 for point in points
        ):
            raise ScheduleError(
                f"points is {shortened(points)}; expected a list of [position, scale]."
            )
        return cls(**{"axis": "percent", **values, "points": tuple(map(tuple, points))})

    def describe(self) -> str:
        scales = {scale for _, scale in self.points}
        if len(scales) == 1 and self.outside is None:
            return f"{scales.pop():g} everywhere"
        if len(scales) == 1 and len(self.points) > 1:
            start, end = self.points[0][0], self.points[-1][0]
            text = f"{scales.pop():g} for {self.axis} {start:g} to {end:g}"
        else:
            pairs = [f"{scale:g} at {position:g}" for position, scale in self.points]
            kinds = {"linear": "", "power": f"power {self.exponent:g}, "}
            kind = kinds.get(self.interpolation, f"{self.interpolation}, ")
            text = f"{kind}{self.axis}: {listed(pairs)}"
        return text if self.outside is None else f"{text}, else {self.outside:g}"


@dataclass(frozen=True)
class StepList(Curve):
    """One scale per step of the run; between two steps, the scale of the earlier one."""

    values: tuple[float, ...]

    key: ClassVar[str] = "values"
    keys: ClassVar[frozenset[str]] = frozenset({"axis", "values"})
    depends_on: ClassVar[frozenset[str]] = frozenset({"step"})

    def __post_init__(self) -> None:
        if not self.values:
            raise ScheduleError("values is empty; give one scale for each step.")
        for value in self.values:
            check_finite("one of values", value)

    def at(self, position: RunPosition) -> float:
        """The scale there; ScheduleError if the run has another number of steps."""
        if position.steps != len(self.values):
            raise ScheduleError(
                f"values lists {len(self.values)} scales, but this run has {position.steps} steps; "
                "list one for each, or use points, which fit any number."
            )
        return self.values[int(position.step + SLACK)]

    def to_dict(self) -> dict[str, Any]:
        return {"axis": "step", "values": list(self.values)}

    @property
    def steps(self) -> int:  # type: ignore[override]
        return len(self.values)

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> StepList:
        _check_axis_is_step(values)
        if not isinstance(values["values"], list):
            raise ScheduleError(
                f"values is {shortened(values['values'])}; expected a list of scales."
            )
        return cls(tuple(values["values"]))

    def describe(self) -> str:
        return f"step by step {listed([f'{value:g}' for value in self.values])}"


@dataclass(frozen=True)
class LastSteps(Curve):
    """`scale` in the last `last` steps of the run, `outside` before them."""

    last: int
    scale: float
    outside: float = 1.0

    key: ClassVar[str] = "last"
    keys: ClassVar[frozenset[str]] = frozenset({"axis", "last", "scale", "outside"})
    depends_on: ClassVar[frozenset[str]] = frozenset({"step"})

    def __post_init__(self) -> None:
        if isinstance(self.last, bool) or not isinstance(self.last, int) or self.last < 1:
            raise ScheduleError(f"last is {self.last!r}; it must be a whole number, 1 or more.")
        check_finite("scale", self.scale)
        check_finite("outside", self.outside)

    def at(self, position: RunPosition) -> float:
        inside = position.step + SLACK >= position.steps - self.last
        return self.scale if inside else self.outside

    def to_dict(self) -> dict[str, Any]:
        return {"axis": "step", "last": self.last, "scale": self.scale, "outside": self.outside}

    @classmethod
    def from_dict(cls, values: dict[str, Any]) -> LastSteps:
        _check_axis_is_step(values)
        if "scale" not in values:
            raise ScheduleError(
                "schedule has 'last' but no 'scale'; give the scale of the last steps."
            )
        return cls(values["last"], values["scale"], values.get("outside", 1.0))

    def describe(self) -> str:
        return f"{self.scale:g} in the last {self.last} steps, else {self.outside:g}"


CURVES: tuple[type[Curve], ...] = (Points, StepList, LastSteps, Formula)
FORMS = (
    'a number, {"axis": ..., "points": [[position, scale], ...]}, {"axis": "step", "values": '
    '[...]}, {"axis": "step", "last": k, "scale": ...} or {"expression": "..."}'
)


def _check_axis_is_step(values: dict[str, Any]) -> None:
    if values.get("axis", "step") != "step":
        raise ScheduleError(
            f"axis is {shortened(values['axis'])}; for a list of steps it must be step."
        )
