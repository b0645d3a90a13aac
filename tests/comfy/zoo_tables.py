"""The tables of docs/models.md: what works on which model, and under which guider.

A cell is "yes", or the number of the sentence that the pack says instead.
"""

from __future__ import annotations

import re
from pathlib import Path

from zoo_cells import WORKS

PAGE = Path(__file__).resolve().parents[2] / "docs" / "models.md"
BEGIN = "<!-- from here on written by tests/comfy/test_zoo.py -->"
FEATURES = {
    "schedule": "schedule",
    "cfg interval": "`cfg_interval`",
    "tolerance": "`tolerance`",
    "trace": "trace",
    "noisy classifier": "noisy classifier",
    "cheap": "image classifier, cheap",
    "exact": "image classifier, exact",
    "repeat": "same bits again",
}


def general(outcome: str) -> str:
    """An outcome without the shape of this latent."""
    return re.sub(r", \(\d+(, \d+)+\)", "", outcome).removeprefix("Classifier Guidance: ")


class Tables:
    """Outcomes by table ("Models", "Guiders"), row and feature."""

    def __init__(self) -> None:
        self.outcomes: dict[tuple[str, str, str], str] = {}

    @classmethod
    def read(cls) -> Tables:
        """What the page says."""
        tables, title = cls(), ""
        text = PAGE.read_text("utf-8").partition(BEGIN)[2]
        sentences = dict(re.findall(r"^(\d+)\. (.+)$", text, re.MULTILINE))
        for line in text.splitlines():
            title = line.removeprefix("## ") if line.startswith("## ") else title
            row, *cells = [cell.strip() for cell in line.strip("|").split("|")]
            if len(cells) == len(FEATURES) and cells[0].replace("yes", "0").isdigit():
                for feature, cell in zip(FEATURES, cells, strict=True):
                    said = WORKS if cell == "yes" else sentences[cell]
                    tables.outcomes[title, row, feature] = said
        return tables

    def write(self) -> None:
        """Replaces what the page says."""
        said = dict.fromkeys(one for one in self.outcomes.values() if one != WORKS)
        numbers = {sentence: number for number, sentence in enumerate(said, start=1)}
        lines = [BEGIN]
        for title in dict.fromkeys(title for title, *_ in self.outcomes):
            names = ["", *FEATURES.values()]
            lines += ["", f"## {title}", "", _row(names), _row(["---"] * len(names))]
            for row in dict.fromkeys(row for table, row, _ in self.outcomes if table == title):
                found = (self.outcomes[title, row, feature] for feature in FEATURES)
                lines.append(_row([row, *(str(numbers.get(one, "yes")) for one in found)]))
        lines += ["", "## What the pack says instead", ""]
        lines += [f"{number}. {sentence}" for sentence, number in numbers.items()]
        kept = PAGE.read_text("utf-8").partition(BEGIN)[0]
        PAGE.write_text(kept + "\n".join(lines) + "\n", "utf-8")


def _row(cells: list[str]) -> str:
    return f"| {' | '.join(cells)} |"
