"""Values of schedules: which numbers can be used, and how errors and descriptions show them."""

from __future__ import annotations

import sys
from typing import Any

MOST_LISTED = 5  # points or steps that a description names


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
