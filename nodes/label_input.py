"""The class label input, shared by all nodes that have one."""

from __future__ import annotations

from comfy_api.latest import io

TOOLTIP = (
    "A class, as its index (207) or its name (golden retriever). The start of a name is enough if "
    "it is unique. For different classes in one batch, give one per image, separated by commas."
)


def label_input(default: str, more: str = "") -> io.Input:
    """The input `label`. Its widget offers the class names; `more` is added to the tooltip."""
    return io.String.Input(
        "label",
        default=default,
        tooltip=TOOLTIP + more,
        extra_dict={"widgetType": "GUIDANCE_LABEL"},
    )
