"""How many mutations of guidance/ tests/unit notice: python scripts/mutation.py [--sample N]

Needs mutmut (pip install mutmut), which the tests do not. Works on a clone of what is committed, in
a folder of its own; every test is run once to see which functions it reaches, then each mutant with
the tests of its function. Prints the share killed, with its 95 % interval, and what survived.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# Tests that take long, or that start Python anew, where no mutant is chosen.
LEFT_OUT = "not on_demand and not slow and not processes"
# What pytest's exit status under a mutant says, as mutmut keeps it; all else is not known.
KILLED = {1, 3}
TIMED_OUT = {-24, 24, 36, 152, -9}
NO_TESTS = 33
SURVIVED = {0}


def prepare(folder: Path) -> None:
    """A clone in the folder, and mutmut's settings in it."""
    subprocess.run(["git", "clone", "-q", str(ROOT), str(folder)], check=True)
    besides = sorted(
        path.name for path in folder.iterdir() if path.name not in {".git", "guidance", "tests"}
    )
    settings = {
        "source_paths": ["guidance"],
        "also_copy": besides,
        "pytest_add_cli_args": ["-c", "tests/pytest.ini", "-p", "no:cacheprovider"],
        "pytest_add_cli_args_test_selection": ["tests/unit", "-m", LEFT_OUT],
        "track_dependencies": False,
        "timeout_constant": 20.0,
        "timeout_multiplier": 5.0,
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    with (folder / "pyproject.toml").open("a", encoding="utf-8") as file:
        file.write("\n[tool.mutmut]\n" + "\n".join(lines) + "\n")


def mutmut(folder: Path, names: list[str], processes: int) -> int:
    """mutmut's exit status over the mutants of these names."""
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", str(processes), *names]
    # one thread each: threads do not survive a fork
    return subprocess.run(command, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"}).returncode


def results(folder: Path) -> dict[str, int | None]:
    """pytest's exit status under each mutant, None where it was not tried."""
    found: dict[str, int | None] = {}
    for path in sorted((folder / "mutants").rglob("*.meta")):
        found |= json.loads(path.read_text("utf-8"))["exit_code_by_key"]
    return found


def outcome(status: int | None) -> str:
    """In a word."""
    if status is None or status == NO_TESTS:
        return "no test" if status == NO_TESTS else "not run"
    if status in TIMED_OUT:
        return "timed out"
    return "killed" if status in KILLED else "survived" if status in SURVIVED else "not run"


def interval(share: float, count: int) -> float:
    """Half the width of the share's 95 % interval in a sample of this size."""
    return 1.96 * math.sqrt(share * (1 - share) / count)


def main(arguments: list[str] | None = None) -> int:
    """Sample, run, print."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sample", type=int, default=300, help="how many mutants; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="which of them")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--folder", type=Path, help="where to work, or go on; else a new one")
    options = parser.parse_args(arguments)
    folder = options.folder or Path(tempfile.mkdtemp()) / "clone"
    if not (folder / "mutants").exists():
        prepare(folder)
        # the smallest run that makes all mutants and sees which tests reach what
        mutmut(folder, ["guidance.place.*"], options.processes)
    names = sorted(results(folder))
    if not names:
        sys.exit("mutmut made no mutants; its own words are above.")
    size = min(options.sample or len(names), len(names))
    chosen = random.Random(options.seed).sample(names, size)
    mutmut(folder, chosen, options.processes)
    seen = {name: outcome(status) for name, status in results(folder).items() if name in chosen}
    for name, said in sorted(seen.items()):
        if said not in ("killed", "timed out"):
            print(f"{said}: {name}")
    counts = Counter(seen.values())
    # a mutant that runs without end is noticed; one that was not run is not
    share = (counts["killed"] + counts["timed out"]) / len(seen)
    print(f"{dict(counts)} of {len(seen)} mutants, of {len(names)}; in {folder}")
    print(f"killed: {share:.1%} (+- {interval(share, len(seen)):.1%})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
