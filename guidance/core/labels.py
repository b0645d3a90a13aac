"""Class labels as text: an index, a name, or a comma-separated list."""

from __future__ import annotations

import difflib
import re
from collections.abc import Sequence
from functools import cache

IMAGENET_CLASSES = 1000


class LabelError(ValueError):
    """A label that matches no class, or several classes."""


@cache
def imagenet_names() -> tuple[str, ...] | None:
    """The 1,000 ImageNet class names from torchvision's metadata; None without torchvision."""
    try:
        from torchvision.models import ResNet18_Weights
    except Exception:  # torchvision is optional; a broken installation must not stop a run
        return None
    return tuple(ResNet18_Weights.IMAGENET1K_V1.meta["categories"])


def class_names(num_classes: int, names: Sequence[str] | None) -> tuple[str, ...] | None:
    """The names to use: a model's own, ImageNet's for 1,000 classes, else None."""
    if names is not None:
        return tuple(names)
    return imagenet_names() if num_classes == IMAGENET_CLASSES else None


def parse_labels(text: str, num_classes: int, names: Sequence[str] | None = None) -> list[int]:
    """Class indices of a comma-separated list of indices and names.

    A name is matched as a whole (case-insensitive), then as a unique prefix. Raises LabelError
    with the most similar names.
    """
    parts = [part.strip() for part in text.split(",")]
    if not all(parts):
        raise LabelError(
            f"label is {text!r}; expected a class index or name, or several with commas."
        )
    return [_parse_one(part, num_classes, class_names(num_classes, names)) for part in parts]


def spread_labels(labels: Sequence[int], batch: int, name: str = "label") -> list[int]:
    """One label per image of a batch, from one label for all or one per image; else LabelError.

    The error message uses `name` for them.
    """
    if len(labels) == 1:
        return list(labels) * batch
    if len(labels) != batch:
        raise LabelError(
            f"{name} lists {len(labels)} classes, but the batch has {batch} images; "
            f"give one class for all of them, or {batch}."
        )
    return list(labels)


def _parse_one(part: str, num_classes: int, names: tuple[str, ...] | None) -> int:
    folded = [name.casefold() for name in names or ()]
    wanted = part.casefold()
    whole = [index for index, name in enumerate(folded) if name == wanted]
    if len(whole) == 1:
        return whole[0]
    if re.fullmatch(r"[+-]?\d{1,9}", part):
        return _checked_index(int(part), num_classes)
    found = whole or [index for index, name in enumerate(folded) if name.startswith(wanted)]
    if len(found) == 1:
        return found[0]
    raise LabelError(_unknown(part, found, names, num_classes))


def _checked_index(index: int, num_classes: int) -> int:
    if not 0 <= index < num_classes:
        raise LabelError(f"label is {index}, but the classes go from 0 to {num_classes - 1}.")
    return index


def _unknown(part: str, found: list[int], names: tuple[str, ...] | None, num_classes: int) -> str:
    if names is None:
        return (
            f"label is {part!r}, but this model's classes have no names; "
            f"give an index from 0 to {num_classes - 1}."
        )
    if found:
        options = ", ".join(f"{names[index]!r} ({index})" for index in found[:5])
        return f"label {part!r} could be any of {len(found)} classes: {options}; give the index."
    near = difflib.get_close_matches(
        part.casefold(), [n.casefold() for n in names], n=3, cutoff=0.5
    )
    spelled = [next(n for n in names if n.casefold() == match) for match in near]
    hint = f"did you mean {' or '.join(map(repr, spelled))}?" if spelled else "no name is similar."
    return f"label is {part!r}, but none of the {num_classes} classes has this name; {hint}"
