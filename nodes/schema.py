"""What the nodes' schemas share: texts, menu categories, socket types, and inputs of several nodes.

Names, descriptions and tooltips are written once, in locales/en/nodeDefs.json, beside the
translations.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from comfy_api.latest import io

NoisyClassifierType = io.Custom("NOISY_CLASSIFIER")
GuidanceScheduleType = io.Custom("GUIDANCE_SCHEDULE")
GuidanceTraceType = io.Custom("GUIDANCE_TRACE")
CATEGORY = "classifier guidance"
TRAINING = f"{CATEGORY}/training"
ADVANCED: dict[str, Any] = {"optional": True, "advanced": True}

_LOCALES = Path(__file__).resolve().parent.parent / "locales"
_TEXTS: dict[str, Any] = json.loads((_LOCALES / "en" / "nodeDefs.json").read_text("utf-8"))
# the page searches all languages at once, so the words of another one are aliases
_ALIASES: dict[str, list[str]] = json.loads((_LOCALES / "zh" / "search.json").read_text("utf-8"))


class Schema(io.Schema):
    """The schema of a node with its texts; options: inputs, outputs and others of io.Schema.

    The Registry reads `Schema(node_id="...")` without running anything, so ids are literals.
    """

    def __init__(self, node_id: str, *, category: str = CATEGORY, **options: Any):
        texts = _TEXTS[node_id]
        options["search_aliases"] = [*options["search_aliases"], *_ALIASES[node_id]]
        about = {name: texts[name] for name in ("display_name", "description")}
        super().__init__(node_id, category=category, **about, **options)
        for one in self.inputs:
            one.tooltip = texts["inputs"][one.id]["tooltip"]
        for index, one in enumerate(self.outputs):
            one.tooltip = texts["outputs"][str(index)]["tooltip"]


def number(name: str, default: float, low: float, high: float, **options: Any) -> io.Input:
    """An Int or a Float input, by the default's type."""
    kind = io.Int if isinstance(default, int) else io.Float
    return kind.Input(name, default=default, min=low, max=high, **options)


def label_input(default: str) -> io.Input:
    """label: its widget on the page offers the names of the classes."""
    return io.String.Input("label", default=default, extra_dict={"widgetType": "GUIDANCE_LABEL"})


def cfg_cache_inputs() -> list[io.Input]:
    """How often CFG's term is computed."""
    return [
        number("cfg_interval", 1, 1, 100, **ADVANCED),
        number("tolerance", 0.0, 0.0, 0.99, step=0.05, round=0.001, **ADVANCED),
    ]
