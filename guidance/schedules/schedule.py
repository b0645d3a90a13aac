"""GuidanceSchedule: a guidance scale over the run, and its JSON form."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from ..core.bounded_read import one_line, parse_json
from .curve import Curve, ScheduleError, check_one_of, is_finite_number, listed, shortened
from .curves import FORMS, Points, curve_from_dict
from .run_position import RunPosition

MODELS = ("any", "ve", "flow")


@dataclass(frozen=True)
class GuidanceSchedule:
    """A scale for each position in a run, for CFG or for classifier guidance.

    curve: gives the scale. per_image: one factor per image of a batch, multiplied with the curve's
    scale where it differs from `outside`. models: "ve" (x = x0 + sigma eps) or "flow" if its sigmas
    only fit these models. Raises ScheduleError, a ValueError.
    """

    curve: Curve
    per_image: tuple[float, ...] = ()
    models: str = "any"

    def __post_init__(self) -> None:
        check_one_of("models", self.models, MODELS)
        if not all(map(is_finite_number, self.per_image)):
            raise ScheduleError(
                f"per_image is {shortened(list(self.per_image))}; expected finite numbers."
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
        """A ramp through points (position, scale), in the order of the run."""
        return cls(Points(axis, tuple(points), interpolation, outside, exponent))

    @classmethod
    def interval(
        cls, axis: str, start: float, end: float, scale: float, outside: float = 1.0
    ) -> GuidanceSchedule:
        """`scale` from start to end, exactly `outside` elsewhere (Kynkaanniemi et al. 2024)."""
        return cls.ramp(axis, ((start, scale), (end, scale)), "hold", outside)

    # --- reading ---

    def at(self, position: RunPosition) -> float:
        """The scale there, a finite number."""
        return float(self.curve.at(position))

    def scales(self, position: RunPosition, batch: int) -> float | list[float]:
        """The scale there, or one scale per image of the batch if they differ."""
        scale = self.at(position)
        if not self.per_image or scale == self.curve.outside:
            return scale
        if len(self.per_image) not in (1, batch):
            raise ScheduleError(
                f"per_image lists {len(self.per_image)} factors, but the batch has {batch} "
                "images; list one per image."
            )
        each = [scale * factor for factor in self.per_image]
        return each[0] if len(set(each)) == 1 else each

    def check_model(self, flow: bool) -> None:
        """Raises ScheduleError if its sigmas do not fit this kind of model."""
        if self.models not in ("any", "flow" if flow else "ve"):
            raise ScheduleError(_wrong_kind(f"is for {self.models} models", flow))
        top = max(self.curve.knots, default=0)
        if flow and top > 1:  # only possible on the axis sigma; the others end at 1
            raise ScheduleError(_wrong_kind(f"starts at sigma {top:g}", flow))

    def describe(self) -> str:
        """ "4 for percent 0.2 to 0.8, else 1"; long lists are shortened and may look equal."""
        text = self.curve.describe()
        if self.per_image:
            factors = listed([f"{factor:g}" for factor in self.per_image])
            text += f", per image times {factors}"
        return text

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
        """From its JSON form; also from a plain number or a plain list of points."""
        try:
            values = parse_json(text)
        except ValueError as error:
            raise ScheduleError(
                f"schedule is not readable JSON ({one_line(error)}); expected {FORMS}."
            ) from error
        return cls.from_dict(values)

    @classmethod
    def from_dict(cls, values: Any) -> GuidanceSchedule:
        """From the value of the JSON form."""
        if isinstance(values, (int, float)) and not isinstance(values, bool):
            return cls.constant(values)
        if isinstance(values, list):
            values = {"axis": "percent", "points": values}
        if not isinstance(values, dict):
            raise ScheduleError(f"schedule is {shortened(values)}; expected {FORMS}.")
        values = dict(values)
        per_image = values.pop("per_image", [])
        if not isinstance(per_image, list):
            raise ScheduleError(f"per_image is {shortened(per_image)}; expected a list of numbers.")
        models = values.pop("models", "any")
        return cls(curve_from_dict(values), tuple(per_image), models)


def _wrong_kind(what: str, flow: bool) -> str:
    reason = (
        "a flow model, whose sigma goes from 1 to 0"
        if flow
        else "a model whose sigma is a standard deviation of noise and goes far above 1"
    )
    return f"The schedule {what}, but this is {reason}; use the axis percent or step instead."
