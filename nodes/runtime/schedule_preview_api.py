"""The preview on a Guidance Schedule node, from the values of its widgets."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

from ...guidance.schedules.curve import ScheduleError, is_finite_number, shortened
from ...guidance.schedules.preview import preview
from ...guidance.schedules.shapes import schedule_of_shape


def preview_response(inputs: Sequence[Any], text: str) -> dict[str, Any]:
    """The fields of a Preview, or {"error": the message that the node would raise}.

    text: JSON, {"inputs": the widgets' values, "steps": steps of the run or null}.
    inputs: the inputs of the node's schema, which limit the values.
    """
    try:
        request = json.loads(text)
        if not isinstance(request, dict) or not isinstance(request.get("inputs"), dict):
            return {"error": 'The request is not {"inputs": {...}, "steps": ...}.'}
        schedule = schedule_of_shape(**_checked(request["inputs"], inputs))
        return asdict(preview(schedule, _steps(request.get("steps"))))
    except ScheduleError as error:
        return {"error": str(error)}
    except Exception as error:  # no request may stop the server
        return {"error": f"The schedule cannot be drawn ({type(error).__name__})."}


def _checked(values: dict[str, Any], inputs: Sequence[Any]) -> dict[str, Any]:
    """The values, checked as ComfyUI would check them; missing ones get their default."""
    checked = {}
    for about in inputs:
        value = values.get(about.id, about.default)
        options, low, high = (getattr(about, name, None) for name in ("options", "min", "max"))
        if options is not None:
            good, expected = value in options, f"one of {', '.join(options)}"
        elif low is not None:
            good = is_finite_number(value) and low <= value <= high
            expected = f"a number from {low:g} to {high:g}"
        else:
            good, expected = isinstance(value, str), "text"
        if not good:
            raise ScheduleError(f"{about.id} is {shortened(value)}; expected {expected}.")
        checked[about.id] = value
    return checked


def _steps(value: Any) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int)):
        raise ScheduleError(f"steps is {shortened(value)}; expected a whole number, or null.")
    return value
