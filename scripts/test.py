"""The linters and all tests: `python3 run.py test [pytest args]`."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent


def names_tests(argument: str) -> bool:
    """Whether a pytest argument is a file, a folder or a test in one."""
    return not argument.startswith("-") and (ROOT / argument.split("::")[0]).exists()


def main(arguments: list[str]) -> int:
    """Run pytest, over all of tests/ unless the arguments name some of it."""
    chosen = arguments if any(map(names_tests, arguments)) else ["tests", *arguments]
    command = [sys.executable, "-m", "pytest", "-c", "tests/pytest.ini", "--durations=10"]
    return subprocess.call(command + chosen, cwd=ROOT)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
