"""GuidanceSchedule: a guidance scale over the run, and its one JSON form."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .curves import (
    AXES,
    Curve,
    Formula,
    LastSteps,
    Points,
    ScheduleError,
    StepList,
    brief,
    is_finite,
)
from .run_position import RunPosition

MODELS = ("any", "ve", "flow")
FORMS = (
    'a number, {"axis": ..., "points": [[position, scale], ...]}, {"axis": "step", "values": '
    '[...]}, {"axis": "step", "last": k, "scale": ...} or {"expression": "..."}'
)


@dataclass(frozen=True)
class GuidanceSchedule:
    """A scale for each place in a run: of CFG, or of classifier guidance.

    curve: what is read. per_image: factors, one for each image of a batch, of the curve's scale
    (where it differs from `outside`). models: "ve" (x = x0 + sigma eps) or "flow" when its sigmas
    mean nothing on the others. Raises ScheduleError, a ValueError.
    """

    curve: Curve
    per_image: tuple[float, ...] = ()
    models: str = "any"

    def __post_init__(self) -> None:
        if self.models not in MODELS:
            raise ScheduleError(f"models is {self.models!r}; expected {', '.join(MODELS)}.")
        if not all(map(is_finite, self.per_image)):
            raise ScheduleError(
                f"per_image is {brief(list(self.per_image))}; expected finite numbers."
            )

    # --- kinds ---

    @classmethod
    def constant(cls, scale: float) -> GuidanceSchedule:
        """The same scale everywhere."""
        return cls(Points("percent", ((0.0, scale),)))

    @classmethod
    def ramp(
        cls,
        axis: str,
        points: Sequence[tuple[float, float]],
        interpolation: str = "linear",
        outside: float | None = None,
        exponent: float = 2.0,
    ) -> GuidanceSchedule:
        """Through points (position, scale), in the run's order."""
        return cls(Points(axis, tuple(points), interpolation, outside, exponent))

    @classmethod
    def interval(
        cls, axis: str, start: float, end: float, scale: float, outside: float = 1.0
    ) -> GuidanceSchedule:
        """`scale` from start to end, exactly `outside` elsewhere (Kynkaanniemi et al. 2024)."""
        return cls.ramp(axis, ((start, scale), (end, scale)), "hold", outside)

    # --- reading ---

    def at(self, place: RunPosition) -> float:
        """The scale there, a finite number."""
        return float(self.curve.at(place))

    def scales(self, place: RunPosition, batch: int) -> float | list[float]:
        """The scale there, or one for each image of the batch where they differ."""
        scale = self.at(place)
        if not self.per_image or scale == getattr(self.curve, "outside", None):
            return scale
        if len(self.per_image) not in (1, batch):
            raise ScheduleError(
                f"per_image lists {len(self.per_image)} factors, but the batch has {batch} "
                "images; list one for each."
            )
        each = [scale * factor for factor in self.per_image]
        return each[0] if len(set(each)) == 1 else each

    def check_model(self, flow: bool) -> None:
        """Raises ScheduleError when its sigmas mean nothing on that kind of model."""
        if self.models not in ("any", "flow" if flow else "ve"):
            raise ScheduleError(_wrong_kind(f"is for {self.models} models", flow))
        top = self.curve.points[0][0] if isinstance(self.curve, Points) else 0
        if flow and top > 1:  # on the axis sigma: the others end at 1
            raise ScheduleError(_wrong_kind(f"starts at sigma {top:g}", flow))

    # --- JSON ---

    def to_dict(self) -> dict[str, Any]:
        """The JSON form, as a dictionary."""
        values = self.curve.to_dict()
        if self.per_image:
            values["per_image"] = list(self.per_image)
        return values if self.models == "any" else values | {"models": self.models}

    def to_json(self) -> str:
        """The JSON form: docs/guidance_schedule.schema.json."""
        return json.dumps(self.to_dict())

    @classmethod
    def from_json(cls, text: str) -> GuidanceSchedule:
        """From its JSON form; a bare number and a bare list of points are read, too."""
        try:
            values = json.loads(text, parse_constant=_no_constant)
        except (ValueError, RecursionError) as error:
            raise ScheduleError(
                f"schedule is not readable JSON ({' '.join(str(error).split())[:100]}); "
                f"expected {FORMS}."
            ) from error
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: Any) -> GuidanceSchedule:
        """From what the JSON holds."""
        if _is_number(values):
            return cls.constant(values)
        if isinstance(values, list):
            values = {"axis": "percent", "points": values}
        if not isinstance(values, dict):
            raise ScheduleError(f"schedule is {brief(values)}; expected {FORMS}.")
        values = dict(values)
        per_image = values.pop("per_image", [])
        if not isinstance(per_image, list):
            raise ScheduleError(f"per_image is {brief(per_image)}; expected a list of numbers.")
        models = values.pop("models", "any")
        return cls(_curve(values), tuple(per_image), models)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is not a number")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _wrong_kind(what: str, flow: bool) -> str:
    reason = (
        "a flow model, whose sigma goes from 1 to 0"
        if flow
        else "a model whose sigma is a standard deviation of noise and goes far above 1"
    )
    return f"The schedule {what}, but this is {reason}; use the axis percent or step instead."


def _curve(values: dict[str, Any]) -> Curve:
    """The curve of a JSON object, recognised by the key that only its kind has."""
    for key, (allowed, read) in KINDS.items():
        if key in values:
            unknown = sorted(values.keys() - allowed)
            if unknown:
                raise ScheduleError(
                    f"schedule has {unknown[0]!r}, which does not go with {key!r}; "
                    f"it may have {', '.join(sorted(allowed))}."
                )
            return read(values)
    raise ScheduleError(f"schedule is {brief(values)}; expected {FORMS}.")


def _points(values: dict[str, Any]) -> Curve:
    points = values["points"]
    pairs = isinstance(points, list) and all(isinstance(p, list) and len(p) == 2 for p in points)
    if not pairs:
        raise ScheduleError(f"points is {brief(points)}; expected a list of [position, scale].")
    exponent = values.get("exponent", 2.0)
    if not _is_number(exponent):
        raise ScheduleError(f"exponent is {brief(exponent)}; it must be a number above 0.")
    return Points(
        values.get("axis", "percent"),
        tuple((p[0], p[1]) for p in points),
        values.get("interpolation", "linear"),
        values.get("outside"),
        exponent,
    )


def _step_list(values: dict[str, Any]) -> Curve:
    _on_steps(values)
    if not isinstance(values["values"], list):
        raise ScheduleError(f"values is {brief(values['values'])}; expected a list of scales.")
    return StepList(tuple(values["values"]))


def _last_steps(values: dict[str, Any]) -> Curve:
    _on_steps(values)
    if "scale" not in values:
        raise ScheduleError("schedule has 'last' and no 'scale'; give the scale of those steps.")
    return LastSteps(values["last"], values["scale"], values.get("outside", 1.0))


def _on_steps(values: dict[str, Any]) -> None:
    if values.get("axis", "step") != "step":
        raise ScheduleError(
            f"axis is {brief(values['axis'])}; a list of steps is on the axis step."
        )


def _formula(values: dict[str, Any]) -> Curve:
    text = values["expression"]
    if not isinstance(text, str):
        raise ScheduleError(f"expression is {brief(text)}; expected text.")
    return Formula(text)


KINDS: dict[str, tuple[set[str], Any]] = {
    "points": ({"axis", "points", "interpolation", "outside", "exponent"}, _points),
    "values": ({"axis", "values"}, _step_list),
    "last": ({"axis", "last", "scale", "outside"}, _last_steps),
    "expression": ({"expression"}, _formula),
}

__all__ = ["AXES", "GuidanceSchedule", "RunPosition", "ScheduleError"]
