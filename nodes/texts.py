"""Descriptions and tooltips: written once, in locales/en/nodeDefs.json, beside the translations."""

from __future__ import annotations

import functools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from comfy_api.latest import io

FILE = Path(__file__).resolve().parent.parent / "locales" / "en" / "nodeDefs.json"


@functools.cache
def texts() -> dict[str, Any]:
    """By node id."""
    return json.loads(FILE.read_text("utf-8"))


def described(define_schema: Callable[..., io.Schema]) -> Callable[..., io.Schema]:
    """A `define_schema` whose schema gets the node's description and all tooltips."""

    @functools.wraps(define_schema)
    def with_texts(cls: type) -> io.Schema:
        schema = define_schema(cls)
        about = texts()[schema.node_id]
        schema.description = about["description"]
        for one in schema.inputs:
            one.tooltip = about["inputs"][one.id]["tooltip"]
        for index, one in enumerate(schema.outputs):
            one.tooltip = about["outputs"][str(index)]["tooltip"]
        return schema

    return with_texts
