"""Whether everything says the same version: `python scripts/check_release.py v0.1.0`.

Run before a version is published; it needs nothing but Python.
"""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
# https://semver.org without build metadata, which the Registry does not take
SEMANTIC = re.compile(r"(0|[1-9]\d*)\.(0|[1-9]\d*)\.(0|[1-9]\d*)")


def problems(tag: str, root: Path = ROOT) -> list[str]:
    """What keeps this tag from being published; empty where nothing does."""
    version = tag.removeprefix("v")
    if not tag.startswith("v") or not SEMANTIC.fullmatch(version):
        return [f"The tag is {tag!r}; expected v and three numbers, like v0.1.0."]
    found = []
    said = project_version(root) or "missing"
    if said != version:
        found.append(f"pyproject.toml: version is {said}, the tag says {version}.")
    top = re.search(r"^## \[(.+?)\] - (\S+)", (root / "CHANGELOG.md").read_text("utf-8"), re.M)
    if top is None or top.group(1) != version:
        said = top.group(1) if top else "missing"
        found.append(f"CHANGELOG.md: the first version is {said}, the tag says {version}.")
    elif not re.fullmatch(r"\d{4}-\d\d-\d\d", top.group(2)):
        found.append(f"CHANGELOG.md: {version} has no date, but {top.group(2)!r}.")
    nodes = root / "tests" / "released" / "nodes.json"
    released = json.loads(nodes.read_text("utf-8"))["version"]
    if released != version:
        found.append(
            f"tests/released/nodes.json is of {released}: python scripts/node_schema.py --write."
        )
    return found


def project_version(root: Path = ROOT) -> str | None:
    """The version in pyproject.toml (tomllib is not in Python 3.10)."""
    found = re.search(r'^version = "(.+)"$', (root / "pyproject.toml").read_text("utf-8"), re.M)
    return found.group(1) if found else None


def main(arguments: list[str]) -> int:
    if len(arguments) != 1:
        print(__doc__)
        return 2
    found = problems(arguments[0])
    print("\n".join(found) or f"{arguments[0]} can be published.")
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
