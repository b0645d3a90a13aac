"""How many mutations of the code tests/unit notice: python scripts/mutation.py [--sample N]

Of the rooms where the methods are: guidance/sampling, classifiers, schedules.

Needs mutmut (pip install mutmut), which the tests do not. Works on a clone of what is committed, in
a folder of its own. mutmut makes the mutants and runs every test once to see which functions it
reaches; then each mutant is tried in a Python of its own, by the tests of its function, the
quickest first. Prints the share killed, with its 95 % interval, and what survived.
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
from functools import partial
from multiprocessing.pool import ThreadPool
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
# Tests that take long, or that start Python anew, where no mutant is chosen.
LEFT_OUT = "not processes"
ROOMS = ("sampling", "classifiers", "schedules")
# What pytest's exit status under a mutant says. Where it cannot even begin, that is not counted as
# killed: it may have another reason.
OUTCOMES = {0: "survived", 1: "killed", 2: "killed"}
SPARE = 60  # seconds beside three times what the tests took


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
    }
    lines = [f"{name} = {json.dumps(value)}" for name, value in settings.items()]
    with (folder / "pyproject.toml").open("a", encoding="utf-8") as file:
        file.write("\n[tool.mutmut]\n" + "\n".join(lines) + "\n")


def make_mutants(folder: Path) -> None:
    """Has mutmut make all mutants, and see which tests reach which function."""
    command = [sys.executable, "-m", "mutmut", "run", "--max-children", "1"]
    command.append("guidance.schedules.run_position.*")
    subprocess.run(command, cwd=folder, env=os.environ | {"OMP_NUM_THREADS": "1"})


def mutants(folder: Path) -> list[str]:
    """The names of those in ROOMS."""
    files = sorted((folder / "mutants").rglob("*.meta"))
    names = (name for file in files for name in json.loads(file.read_text())["exit_code_by_key"])
    return [name for name in names if name.split(".")[1] in ROOMS]


def outcome(folder: Path, seen: dict[str, Any], mutant: str) -> str:
    """killed, survived, timed out, no test (reaches the function) or not run.

    seen: what mutmut saw of the tests.
    """
    seconds = seen["duration_by_test"]
    tests = seen["tests_by_mangled_function_name"].get(mutant.partition("__mutmut_")[0], [])
    if not tests:
        return "no test"
    tests = sorted(tests, key=lambda test: seconds.get(test, 0.0))
    limit = SPARE + 3 * sum(seconds.get(test, 0.0) for test in tests)
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
    command += ["--rootdir=.", "-c", "tests/pytest.ini", *tests]
    environment = os.environ | {"OMP_NUM_THREADS": "1", "MUTANT_UNDER_TEST": mutant}
    try:
        done = subprocess.run(
            command, cwd=folder, env=environment, capture_output=True, timeout=limit
        )
    except subprocess.TimeoutExpired:
        return "timed out"
    return OUTCOMES.get(done.returncode, "not run")


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--sample", type=int, default=300, help="how many mutants; 0: all")
    parser.add_argument("--seed", type=int, default=0, help="which of them")
    parser.add_argument("--processes", type=int, default=os.cpu_count() or 1)
    parser.add_argument("--folder", type=Path, help="where to work, or go on; else a new one")
    options = parser.parse_args(arguments)
    folder = options.folder or Path(tempfile.mkdtemp()) / "clone"
    if not (folder / "mutants").exists():
        prepare(folder)
        make_mutants(folder)
    names = sorted(mutants(folder))
    if not names:
        sys.exit("mutmut made no mutants; its own words are above.")
    size = min(options.sample or len(names), len(names))
    chosen = random.Random(options.seed).sample(names, size)
    stats = json.loads((folder / "mutants" / "mutmut-stats.json").read_text("utf-8"))
    counts: Counter[str] = Counter()
    with ThreadPool(options.processes) as pool:
        said = pool.imap(partial(outcome, folder / "mutants", stats), chosen)
        for number, (name, found) in enumerate(zip(chosen, said, strict=True), 1):
            counts[found] += 1
            print(f"{number}. {found}: {name}", flush=True)
    # a mutant that runs without end is noticed; one that was not run is not
    share = (counts["killed"] + counts["timed out"]) / size
    interval = 1.96 * math.sqrt(share * (1 - share) / size)
    print(f"{dict(counts)} of {size} mutants, of {len(names)}; in {folder}")
    print(f"killed: {share:.1%} (+- {interval:.1%})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
