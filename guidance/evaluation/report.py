"""The results of an evaluation as a Markdown table."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from .compute_cost import ComputeCost
from .judge import Score

# key, heading, format
COLUMNS = (
    ("guidance", "guidance", ""),
    ("scale", "scale", "g"),
    ("accuracy", "judge accuracy", ".3f"),
    ("frechet", "Frechet distance", ".2f"),
    ("precision", "precision", ".3f"),
    ("recall", "recall", ".3f"),
    ("diversity", "diversity", ".2f"),
    ("passes", "passes", "g"),
    ("gradients", "gradients", "g"),
    ("seconds", "seconds", ".3g"),
)


@dataclass(frozen=True)
class Row:
    """The result of one run or one file.

    kind: "none", "classifier", "CFG" or "file". guidance: the name of the row. scale: None for a
    file or a schedule; `schedule` then has its JSON form. images: their number. work: the cost per
    image; None for a file. samples: the .npz file with the images, if there is one.
    """

    kind: str
    guidance: str
    scale: float | None
    score: Score
    images: int
    schedule: dict[str, Any] | None = None
    work: ComputeCost | None = None
    samples: str | None = None

    def to_dict(self) -> dict[str, Any]:
        """As a flat dictionary, including the score and the cost."""
        values = asdict(self)
        work = values.pop("work") or dict.fromkeys(("passes", "gradients", "seconds"))
        return values | values.pop("score") | work


def table(rows: Sequence[Row]) -> str:
    """The rows as a Markdown table; empty columns are left out, except the scale."""
    values = [row.to_dict() for row in rows]
    filled = {key for one in values for key, value in one.items() if value is not None}
    shown = [column for column in COLUMNS if column[0] in filled | {"scale"}]
    lines = [_line([heading for _, heading, _ in shown]), "|---" * len(shown) + "|"]
    lines += [_line([_cell(one[key], form) for key, _, form in shown]) for one in values]
    return "\n".join(lines)


def _line(cells: Sequence[str]) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(value: Any, form: str) -> str:
    return "" if value is None else format(value, form).replace("|", r"\|")
