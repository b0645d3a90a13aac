#!/usr/bin/env python3
"""What guidance costs on an NVIDIA GPU: python benchmarks/gpu.py [--only NAME,NAME] [--write]

Under five minutes on an H100 or H200. Networks have their usual sizes and random weights. Each
phase runs in a fresh process with a limit of time; one that fails is reported in a line, and the
others go on (the exit status is 1 then). Prints a Markdown table last. --write puts the figures
into results.json and results.md under the card's name. --rehearse runs every phase with small
networks on the CPU, to see that it runs, and writes nothing.
"""

from __future__ import annotations

import argparse
import sys
import time
from datetime import date
from pathlib import Path

from gpu_phases.process import Found, found_by, measure
from gpu_phases.setup import Setup
from harness import Row, number, table

SCRIPT = str(Path(__file__).resolve())
NO_GPU = "There is no NVIDIA GPU that torch can use here, so there is nothing to measure."
# Modules in gpu_phases/, each with the most seconds that it may take.
PHASES = {
    "gradients": 120,
    "compiled": 120,
    "guided_runs": 100,
    "sdxl": 150,
    "little_memory": 150,
    "training": 80,
}


def has_gpu() -> bool:
    """Whether torch can use an NVIDIA GPU; ROCm passes for one."""
    import torch

    return torch.cuda.is_available() and torch.version.hip is None


def arguments_of(given: list[str]) -> argparse.Namespace:
    """The options; a mistake in them ends the program."""
    parser = argparse.ArgumentParser(description="What guidance costs on an NVIDIA GPU.")
    parser.add_argument("--only", default=",".join(PHASES), help=", ".join(PHASES))
    parser.add_argument("--write", action="store_true", help="commit to this run's figures")
    parser.add_argument("--rehearse", action="store_true", help="small, on the CPU")
    parser.add_argument("--verbose", action="store_true", help="show what the phases print")
    # for the phases' own processes
    parser.add_argument("--phase", choices=PHASES, help=argparse.SUPPRESS)
    parser.add_argument("--into", type=Path, help=argparse.SUPPRESS)
    chosen = parser.parse_args(given)
    unknown = sorted(set(chosen.only.split(",")) - set(PHASES))
    if unknown:
        parser.error(f"there is no phase {unknown[0]!r}; there are {', '.join(PHASES)}")
    if chosen.write and chosen.rehearse:
        parser.error("a rehearsal measures nothing that is worth writing down")
    return chosen


def report(phase: str, found: Found, seconds: float) -> None:
    """What a phase found, line by line."""
    print(f"{phase}: {len(found.rows)} figures in {seconds:.0f} seconds", flush=True)
    for row in found.rows:
        print(f"  {row.name}: {number(row.value)}{row.unit}")
    for note in found.notes:
        print(f"  {note}")
    for failure in found.failures:
        print(f"{phase} failed: {failure}", file=sys.stderr)
    sys.stdout.flush()


def write(found: Found) -> None:
    """At once: a later phase may take the machine down."""
    from run import write as commit

    if found.rows:
        commit(found.rows, f"{date.today():%B %Y}, {found.about}", found.kind)


def main(given: list[str]) -> int:
    """Runs the phases; 1 when one failed."""
    chosen = arguments_of(given)
    if chosen.phase:
        setup = Setup(chosen.rehearse, chosen.into)
        measure(chosen.phase, setup, chosen.into / "found.jsonl")
        return 0
    if not chosen.rehearse and not has_gpu():
        print(NO_GPU)
        return 0
    rows: list[Row] = []
    failed, about = False, ""
    for phase in chosen.only.split(","):
        start = time.perf_counter()
        found = found_by(SCRIPT, phase, PHASES[phase], chosen.rehearse, chosen.verbose)
        report(phase, found, time.perf_counter() - start)
        rows += found.rows
        failed, about = failed or bool(found.failures), found.about or about
        if chosen.write:
            write(found)
    print(f"\n{about}\n\n{table(rows)}")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
