"""The repository keeps its own rules: the linters', the types', and what imports what."""

from __future__ import annotations

import ast
import graphlib
import re
import subprocess
import sys
from collections.abc import Iterable, Iterator
from importlib.util import resolve_name
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.processes
OF_HOST = {"comfy", "comfy_extras", "folder_paths", "server"}
COMFYUI = OF_HOST | {"comfy_api", "comfy_execution", "nodes"}  # comfy_api is for nodes/, too
MOST_LINES = 400
# What each room may import, besides itself. guidance itself is the public names.
ROOMS = {
    "guidance.core": (),
    "guidance.schedules": ("core",),
    "guidance.adm": ("core",),
    "guidance.classifiers": ("core", "adm"),
    "guidance.sampling": ("core", "adm", "schedules", "classifiers"),
    "guidance.checkpoints": ("core", "adm", "classifiers", "sampling.model"),
    "guidance.evaluation": ("core", "adm", "classifiers", "sampling"),
    "guidance.training": ("core", "adm", "sampling", "checkpoints"),
}


@pytest.mark.parametrize("tool", ["ruff check", "ruff format --check", "mypy"])
def test_tools_find_nothing(root, tool):
    command = [sys.executable, "-m", *tool.split()]
    result = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stdout + result.stderr


def test_requirements_are_the_dependencies(root):
    """ComfyUI Manager installs requirements.txt, everyone else the dependencies.

    A pin could take ComfyUI's own torch or numpy away.
    """
    dependencies = tomllib.loads((root / "pyproject.toml").read_text("utf-8"))["project"]
    lines = [line.strip() for line in (root / "requirements.txt").read_text("utf-8").splitlines()]
    lines = [line for line in lines if line and not line.startswith(("#", "-"))]
    assert sorted(lines) == sorted(dependencies["dependencies"])
    assert all(re.fullmatch(r"[A-Za-z0-9._-]+(>=[0-9.]+)?", line) for line in lines)


def test_test_files_have_names_of_their_own(root):
    """Each folder of tests is on sys.path by itself, so pytest collects one of a name alone."""
    names = [path.name for path in (root / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


def imports(root: Path, folder: str) -> list[tuple[str, str]]:
    """Pairs (file, what it imports), by their dotted names; also within functions.

    Read in the syntax itself, so that no comment can switch it off.
    """
    files = {module_name(root, file): file for file in sorted((root / folder).rglob("*.py"))}
    found = []
    for name, file in files.items():
        package = f"pack.{name}" + (".x" if file.name == "__init__.py" else "")
        package = package.rpartition(".")[0]
        for node in at_run_time(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                found += [(name, alias.name) for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                base = "." * node.level + (node.module or "")
                base = resolve_name(base, package).removeprefix("pack.") if node.level else base
                within = {f"{base}.{alias.name}" for alias in node.names} & files.keys()
                found += [(name, other) for other in within or {base}]
    return found


def module_name(root: Path, file: Path) -> str:
    """guidance/core/noise.py -> guidance.core.noise."""
    return ".".join(file.relative_to(root).with_suffix("").parts).removesuffix(".__init__")


def at_run_time(node: ast.AST) -> Iterator[ast.AST]:
    """All nodes but those below `if TYPE_CHECKING:`."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and ast.unparse(child.test) == "TYPE_CHECKING":
            continue
        yield child
        yield from at_run_time(child)


def is_in(name: str, places: Iterable[str]) -> bool:
    """Whether the module is one of these, or in one of them."""
    return any(name == place or name.startswith(f"{place}.") for place in places)


def test_imports_go_down_from_room_to_room(root):
    """Within functions, too. guidance/cli may import all of guidance.

    nodes -> nodes/runtime -> nodes/host -> guidance; only nodes/host knows ComfyUI's own modules.
    """
    for file, name in imports(root, "nodes"):
        inner = next((r for r in ("nodes.host", "nodes.runtime") if is_in(file, [r])), "nodes")
        below = {"nodes.host": ["nodes.host"], "nodes.runtime": ["nodes.host", "nodes.runtime"]}
        assert not is_in(name, ["nodes"]) or is_in(name, below.get(inner, ["nodes"])), (file, name)
        assert inner == "nodes.host" or not is_in(name, OF_HOST), f"{file} imports {name}"
    found = imports(root, "guidance")
    assert not [pair for pair in found if is_in(pair[1], COMFYUI)]
    found = [pair for pair in found if is_in(pair[1], ["guidance"])]
    for room, allowed in ROOMS.items():
        below = [room, *(f"guidance.{one}" for one in allowed)]
        for file, name in found:
            assert not is_in(file, [room]) or is_in(name, below), f"{file} imports {name}"
    rooms = {file.name for file in (root / "guidance").iterdir() if (file / "__init__.py").exists()}
    assert {room.removeprefix("guidance.") for room in ROOMS} == rooms - {"cli"}


@pytest.mark.parametrize("folder", ["guidance", "nodes"])
def test_no_imports_go_round_in_a_circle(root, folder):
    below: dict[str, set[str]] = {}
    for file, name in imports(root, folder):
        below.setdefault(file, set()).add(name)
    # a package's __init__ is run before what is in it, so only the files themselves are looked at
    sorter = graphlib.TopologicalSorter(
        {file: names & below.keys() - {file} for file, names in below.items()}
    )
    sorter.prepare()  # raises CycleError


def test_no_file_of_code_is_long(root):
    folders = ("guidance", "nodes", "scripts", "web")
    files = [file for folder in folders for file in (root / folder).rglob("*")]
    files = [file for file in [*files, root / "run.py"] if file.suffix in (".py", ".js")]
    lines = {str(file.relative_to(root)): file.read_text("utf-8").count("\n") for file in files}
    assert len(lines) > 100
    assert {name: count for name, count in lines.items() if count > MOST_LINES} == {}
