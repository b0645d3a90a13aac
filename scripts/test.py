"""The linters and all tests: `python3 run.py test [pytest args]`.

All of them run in two processes, file by file; those that the arguments name, in this one.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent


def names_tests(argument: str) -> bool:
    """Whether a pytest argument is a file, a folder or a test in one."""
    return not argument.startswith("-") and Path(argument.split("::")[0]).exists()


def main(arguments: list[str]) -> int:
    """Run pytest, over all of tests/ unless the arguments name some of it."""
    os.chdir(ROOT)
    everything = not any(map(names_tests, arguments))
    chosen = [*in_two_processes(), "tests", *arguments] if everything else arguments
    return pytest.main(["-c", "tests/pytest.ini", "--durations=10", *chosen])


def in_two_processes() -> list[str]:
    """pytest's arguments for that; none where there is one core.

    The cores are shared out: the threads of two torch processes on the same cores would wait for
    each other.
    """
    cores = os.cpu_count() or 1
    if cores < 2:
        return []
    os.environ["OMP_NUM_THREADS"] = str(cores // 2)
    # in the order of collection, in which tests/conftest.py puts the trainings first
    return ["-n", "2", "--dist", "loadfile", "--no-loadscope-reorder"]


if __name__ == "__main__":
    # Python put this folder first, and it has modules whose names others use, `test` for one.
    sys.path.remove(str(Path(__file__).resolve().parent))
    sys.exit(main(sys.argv[1:]))
