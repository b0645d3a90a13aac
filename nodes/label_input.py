"""The input for a class label, of every node that has one."""

from __future__ import annotations

from comfy_api.latest import io

TOOLTIP = (
    "A class: its index (207) or its name (golden retriever; the beginning is enough when only "
    "one class begins so). Several with commas: one for each image of the batch."
)


def label_input(default: str, more: str = "") -> io.Input:
    """label, whose widget on the page offers the names; `more` is added to its tooltip."""
    return io.String.Input(
        "label",
        default=default,
        tooltip=TOOLTIP + more,
        extra_dict={"widgetType": "GUIDANCE_LABEL"},
    )
