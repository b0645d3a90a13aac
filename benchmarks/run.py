#!/usr/bin/env python3
"""All benchmarks in one: python benchmarks/run.py [--only NAME,NAME] [--write]

Each takes what it compares in turn and gives the ratio of medians, so that a busy machine slows
both alike. Prints a Markdown table, and fails when a figure is worse by more than 15 % than the one
in results.json: by the processor's time, where there is one, which other programs disturb least.
--write puts this run's figures there and into results.md instead.
A new benchmark is a module with `rows()`, and a line in BENCHMARKS.
"""

from __future__ import annotations

import argparse
import importlib
import json
import os
import sys
from collections.abc import Callable, Iterable
from datetime import date
from pathlib import Path

from harness import Row, table, versions

FOLDER = Path(__file__).resolve().parent
RESULTS, TABLE = FOLDER / "results.json", FOLDER / "results.md"
WORSE = 1.15
NOISE = 0.01  # below it a figure is as good as none
BENCHMARKS = {
    "gradient": lambda: _rows("gradient"),
    "compile": lambda: _rows("gradient", compiled=True),
    "memory": lambda: _rows("memory"),
    "loading": lambda: _rows("loading"),
    "sampling": lambda: _rows("sampling"),
    "schedules": lambda: _rows("schedules"),
}


def _rows(module: str, **options: bool) -> Iterable[Row]:
    return importlib.import_module(module).rows(**options)


def worse(rows: list[Row], committed: dict[str, Row]) -> list[str]:
    """A line for each figure that is more than 15 % above the committed one."""
    return [
        f"{row.name} is {row.steady:.3g}; committed is {committed[row.name].steady:.3g}."
        for row in rows
        if row.name in committed and row.steady > WORSE * max(committed[row.name].steady, NOISE)
    ]


def read_committed() -> dict[str, Row]:
    """The committed figures by their names."""
    kept = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {}
    return {name: _row(one) for name, one in kept.items()}


def _row(one: dict) -> Row:
    return Row(**{name: value for name, value in one.items() if name != "on"})


def write(rows: list[Row], about: str) -> None:
    """The committed figures; those of benchmarks that were not run stay as they are."""
    kept = json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {}
    for row in rows:
        kept[row.name] = vars(row) | {"on": about}
    RESULTS.write_text(json.dumps(kept, indent=2) + "\n", "utf-8")
    TABLE.write_text(_page(list(kept.values())), "utf-8")


def _page(kept: list[dict]) -> str:
    text = "# What the benchmarks measured\n\nRatios of medians, less is better; "
    text += "written by `python benchmarks/run.py --write`.\n"
    for about in dict.fromkeys(one["on"] for one in kept):
        rows = [_row(one) for one in kept if one["on"] == about]
        text += f"\n{about}:\n\n{table(rows)}\n"
    return text


def main(arguments: list[str]) -> int:
    """Runs them; 1 when a figure got worse."""
    parser = argparse.ArgumentParser(description="All benchmarks in one.")
    parser.add_argument("--only", default=",".join(BENCHMARKS), help=", ".join(BENCHMARKS))
    parser.add_argument("--write", action="store_true", help="commit to this run's figures")
    chosen = parser.parse_args(arguments)
    names = chosen.only.split(",")
    unknown = sorted(set(names) - set(BENCHMARKS))
    if unknown:
        parser.error(f"there is no benchmark {unknown[0]!r}; there are {', '.join(BENCHMARKS)}")
    rows: list[Row] = []
    for name in names:
        found: Callable[[], Iterable[Row]] = BENCHMARKS[name]
        for row in found():
            print(f"{row.name}: {row.value:.3g}{row.unit}", flush=True)
            rows.append(row)
    about = versions()
    print(f"\n{about}\n\n{table(rows)}")
    if chosen.write:
        write(rows, f"{date.today():%B %Y}, {about}")
        return 0
    lines = worse(rows, read_committed())
    print("\n".join(lines), file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    sys.exit(main(sys.argv[1:]))
