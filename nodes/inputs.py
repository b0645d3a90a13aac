"""Inputs that several nodes have, and a short form for numbers."""

from __future__ import annotations

from typing import Any

from comfy_api.latest import io

from .sockets import GuidanceScheduleType

ADVANCED: dict[str, Any] = {"optional": True, "advanced": True}


def number(name: str, default: float, low: float, high: float, **options: Any) -> io.Input:
    """An Int or a Float input, by the default's type."""
    kind = io.Int if isinstance(default, int) else io.Float
    return kind.Input(name, default=default, min=low, max=high, **options)


def label_input(default: str) -> io.Input:
    """label: its widget on the page offers the names of the classes."""
    return io.String.Input("label", default=default, extra_dict={"widgetType": "GUIDANCE_LABEL"})


def schedule_input() -> io.Input:
    """schedule: replaces a scale."""
    return GuidanceScheduleType.Input("schedule", optional=True)


def cfg_cache_inputs() -> list[io.Input]:
    """How often CFG's term is computed."""
    return [
        number("cfg_interval", 1, 1, 100, **ADVANCED),
        number("tolerance", 0.0, 0.0, 0.99, step=0.05, round=0.001, **ADVANCED),
    ]
