#!/usr/bin/env python3
"""All benchmarks in one: python benchmarks/run.py [--only NAME,NAME] [--write]

Each takes what it compares in turn and gives the ratio of medians, so that a busy machine slows
both alike. Prints a Markdown table, and fails when a figure is worse by more than 15 % than the one
in results.json of a processor that can do the same: by the processor's time, where there is one,
which other programs disturb least. --write puts this run's figures there and into results.md
instead.
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

from harness import Row, kind, number, table, versions

FOLDER = Path(__file__).resolve().parent
RESULTS, TABLE = FOLDER / "results.json", FOLDER / "results.md"
WORSE = 1.15
NOISE = 0.01  # below it a figure is as good as none
BENCHMARKS = {
    "gradient": lambda: _rows("gradient"),
    "memory": lambda: _rows("memory"),
    "loading": lambda: _rows("loading"),
    "sampling": lambda: _rows("sampling"),
    "schedules": lambda: _rows("schedules"),
    "gradient_interval": lambda: _rows("gradient_interval"),
    "cfg_cache": lambda: _rows("cfg_cache"),
    "decoders": lambda: _rows("decoders"),
    "looks": lambda: _rows("looks"),
}


def _rows(module: str) -> Iterable[Row]:
    if str(FOLDER) not in sys.path:  # a ComfyUI takes this folder's place
        sys.path.append(str(FOLDER))
    return importlib.import_module(module).rows()


def worse(rows: list[Row], committed: dict[str, Row]) -> list[str]:
    """A line for each figure that is more than 15 % above the committed one."""
    return [
        f"{row.name} is {row.steady:.3g}; committed is {committed[row.name].steady:.3g}."
        for row in rows
        if row.name in committed and row.steady > WORSE * max(committed[row.name].steady, NOISE)
    ]


def read_committed(on: str) -> dict[str, Row]:
    """The committed figures of that kind of processor, by their names."""
    return {name: _row(one) for name, one in _kept().get(on, {}).items()}


def _kept() -> dict[str, dict[str, dict]]:
    """What results.json holds: kinds of processors, and in each the figures by their names."""
    return json.loads(RESULTS.read_text("utf-8")) if RESULTS.is_file() else {}


def _row(one: dict) -> Row:
    return Row(**{name: value for name, value in one.items() if name != "about"})


def write(rows: list[Row], about: str, on: str | None = None) -> None:
    """The committed figures; those of benchmarks that were not run stay as they are.

    on: the kind of processor or card, by default this machine's processor.
    """
    kept = _kept()
    mine = kept.setdefault(on or kind(), {})
    for row in rows:
        mine[row.name] = vars(row) | {"about": about}
    RESULTS.write_text(json.dumps(kept, indent=2) + "\n", "utf-8")
    TABLE.write_text(_page(kept), "utf-8")


def _page(kept: dict[str, dict[str, dict]]) -> str:
    text = "# What the benchmarks measured\n\nRatios of medians, less is better; "
    text += "written by `python benchmarks/run.py --write`,\n"
    text += "and for GPUs (cuda) by `python benchmarks/gpu.py --write`.\n"
    for on, figures in kept.items():
        text += f"\n## {on}\n"
        for about in dict.fromkeys(one["about"] for one in figures.values()):
            rows = [_row(one) for one in figures.values() if one["about"] == about]
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
            print(f"{row.name}: {number(row.value)}{row.unit}", flush=True)
            rows.append(row)
        if chosen.write:  # at once: an hour may pass before the last
            write(rows, f"{date.today():%B %Y}, {versions()}")
    about = versions()
    print(f"\n{about}\n\n{table(rows)}")
    if chosen.write:
        return 0
    committed = read_committed(kind())
    if not committed:
        print(f"There are no committed figures of a processor like this one ({kind()}).")
    lines = worse(rows, committed)
    print("\n".join(lines), file=sys.stderr)
    return 1 if lines else 0


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "2")
    sys.exit(main(sys.argv[1:]))
