"""Class labels as text: an index, a name, or a list of them."""

from __future__ import annotations

import difflib
import re
from collections import Counter
from collections.abc import Sequence
from functools import cache

from .bounded_read import quoted

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
    """Class indices of a text: an index or a name, or a list with commas or one per line.

    A line that is a name as a whole, commas and all, is that class. In a list, names with commas
    can stand in quotes or as they are. A name is matched whole, in any case, then as a prefix that
    only one name has. Raises LabelError that offers the nearest names.
    """
    known = class_names(num_classes, names)
    lines = [line.strip() for line in text.splitlines() if line.strip()] or [text]
    return [index for line in lines for index in _parse_line(line, num_classes, known)]


def distinct_names(names: Sequence[str]) -> tuple[str, ...]:
    """The names, those that several classes have with their index: "crane (134)"."""
    counts = Counter(name.casefold() for name in names)
    return tuple(
        f"{name} ({index})" if counts[name.casefold()] > 1 else name
        for index, name in enumerate(names)
    )


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


# a name and the index of its class, as `distinct_names` writes them
NUMBERED = re.compile(r"(.+) \((\d{1,9})\)")
# a label of a list, in quotes or not, and the comma that ends it
LISTED = re.compile(r'\s*"([^"]*)"\s*,|([^,]*),')


def _parse_line(line: str, num_classes: int, names: tuple[str, ...] | None) -> list[int]:
    if "," in line:
        whole = _named(line, names)
        if len(whole) == 1:
            return whole
    parts = [(match[1] or match[2] or "").strip() for match in LISTED.finditer(line + ",")]
    if not all(parts):
        raise LabelError(
            f"label is {quoted(line)}; expected a class index or name, or several with commas."
        )
    return [_parse_one(part, num_classes, names) for part in _joined(parts, names)]


def _joined(parts: list[str], names: tuple[str, ...] | None) -> list[str]:
    """The parts of a list; those that are one name together, the longest first, are joined."""
    whole = {_spaced(name.casefold()): name for name in names or () if "," in name}
    most = max((name.count(",") for name in whole), default=0) + 1
    found, start = [], 0
    while start < len(parts):
        ends = range(min(start + most, len(parts)), start + 1, -1)
        joined = {end: ", ".join(parts[start:end]).casefold() for end in ends}
        end = next((end for end, text in joined.items() if text in whole), start + 1)
        found.append(whole[joined[end]] if end in joined else parts[start])
        start = end
    return found


def _spaced(name: str) -> str:
    """The name with exactly one space after each comma, as the parts of a list are joined."""
    return ", ".join(part.strip() for part in name.split(","))


def _named(part: str, names: tuple[str, ...] | None) -> list[int]:
    """The classes that are called so, or else whose names begin so."""
    numbered = NUMBERED.fullmatch(part)
    if numbered and names and int(numbered[2]) < len(names):
        index = int(numbered[2])
        if names[index].casefold() == numbered[1].casefold():
            return [index]
    folded, wanted = [name.casefold() for name in names or ()], part.casefold()
    whole = [index for index, name in enumerate(folded) if name == wanted]
    return whole or [index for index, name in enumerate(folded) if name.startswith(wanted)]


def _parse_one(part: str, num_classes: int, names: tuple[str, ...] | None) -> int:
    found = _named(part, names)
    whole = len(found) == 1 and names is not None and names[found[0]].casefold() == part.casefold()
    if not whole and re.fullmatch(r"[+-]?\d{1,9}", part):
        index = int(part)
        if not 0 <= index < num_classes:
            raise LabelError(f"label is {index}, but the classes go from 0 to {num_classes - 1}.")
        return index
    if len(found) == 1:
        return found[0]
    raise LabelError(_unknown(part, found, names, num_classes))


def _unknown(part: str, found: list[int], names: tuple[str, ...] | None, num_classes: int) -> str:
    if names is None:
        return (
            f"label is {quoted(part)}, but this model's classes have no names; "
            f"give an index from 0 to {num_classes - 1}."
        )
    if found:
        options = ", ".join(f"{names[index]!r} ({index})" for index in found[:5])
        return (
            f"label {quoted(part)} could be any of {len(found)} classes: {options}; give the index."
        )
    spelled = {name.casefold(): name for name in reversed(names)}
    near = difflib.get_close_matches(part[:80].casefold(), spelled, n=3, cutoff=0.5)
    offered = " or ".join(repr(spelled[match]) for match in near)
    hint = f"did you mean {offered}?" if near else "no name is similar."
    return f"label is {quoted(part)}, but none of the {num_classes} classes has this name; {hint}"
