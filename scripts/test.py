"""The linters and all tests: `python3 run.py test [pytest args]`."""

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
    chosen = arguments if any(map(names_tests, arguments)) else ["tests", *arguments]
    return pytest.main(["-c", "tests/pytest.ini", "--durations=10", *chosen])


if __name__ == "__main__":
    # Python put this folder first, and it has modules whose names others use, `test` for one.
    sys.path.remove(str(Path(__file__).resolve().parent))
    sys.exit(main(sys.argv[1:]))
