"""The repository keeps its own rules: the linters', the types', and what imports what."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

pytestmark = pytest.mark.processes
OLDEST_PYTHON = (3, 10)
COMFYUI_MODULES = {"comfy", "comfy_api", "comfy_execution", "folder_paths", "nodes", "server"}


def tool(root: Path, *arguments: str, stdin: str | None = None) -> subprocess.CompletedProcess:
    """Run a Python tool in the repository."""
    command = [sys.executable, "-m", *arguments]
    return subprocess.run(command, cwd=root, input=stdin, capture_output=True, text=True)


def passes(root: Path, *arguments: str) -> None:
    """Assert that a tool finds nothing, and show what it found."""
    result = tool(root, *arguments)
    assert result.returncode == 0, result.stdout + result.stderr


def project(root: Path) -> dict:
    """pyproject.toml, read."""
    return tomllib.loads((root / "pyproject.toml").read_text("utf-8"))


def requirements(file: Path) -> list[str]:
    """The lines of a requirements file that name a package."""
    lines = (line.strip() for line in file.read_text("utf-8").splitlines())
    return [line for line in lines if line and not line.startswith(("#", "-"))]


def python_files(root: Path, folder: str) -> list[Path]:
    """All Python files below a folder of the repository."""
    return sorted((root / folder).rglob("*.py"))


def test_ruff_check(root):
    passes(root, "ruff", "check")


def test_ruff_format(root):
    passes(root, "ruff", "format", "--check")


def test_mypy(root):
    passes(root, "mypy")


def test_requirements_are_the_dependencies(root):
    """ComfyUI Manager installs requirements.txt, everyone else the dependencies."""
    dependencies = project(root)["project"]["dependencies"]
    assert sorted(requirements(root / "requirements.txt")) == sorted(dependencies)


def test_runtime_requirements_are_not_pinned(root):
    """A pin could take ComfyUI's own torch or numpy away."""
    for line in requirements(root / "requirements.txt"):
        assert re.fullmatch(r"[A-Za-z0-9._-]+(>=[0-9.]+)?", line), line


def test_test_files_have_names_of_their_own(root):
    """Each folder of tests is on sys.path by itself, so pytest collects one of a name alone."""
    names = [path.name for path in (root / "tests").rglob("test_*.py")]
    assert sorted(names) == sorted(set(names))


@pytest.mark.parametrize("module", sorted(COMFYUI_MODULES))
def test_linter_keeps_comfyui_out_of_guidance(root, module):
    """The rule is on for guidance/, and for guidance/ alone."""
    arguments = ("ruff", "check", "--select", "TID251", "--stdin-filename")
    source = f"import {module}\n"
    assert "TID251" in tool(root, *arguments, "guidance/any.py", "-", stdin=source).stdout
    assert tool(root, *arguments, "nodes/any.py", "-", stdin=source).returncode == 0


def test_guidance_imports_nothing_of_comfyui(root):
    """Looked up in the syntax itself, so that no comment can switch it off."""
    for file in python_files(root, "guidance"):
        depth = len(file.relative_to(root).parents) - 1
        for node in ast.walk(ast.parse(file.read_text("utf-8"))):
            if isinstance(node, ast.Import):
                modules = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                assert node.level <= depth, f"{file}:{node.lineno} reaches out of guidance/"
                modules = [node.module or ""] if node.level == 0 else []
            else:
                continue
            found = COMFYUI_MODULES & {module.split(".")[0] for module in modules}
            assert not found, f"{file}:{node.lineno} imports {found}"


def test_oldest_python_can_read_it(root):
    """Everything that ships parses as the oldest Python that is supported."""
    files = [root / "run.py", root / "__init__.py"]
    for folder in ("guidance", "nodes", "scripts"):
        files += python_files(root, folder)
    for file in filter(Path.exists, files):
        ast.parse(file.read_text("utf-8"), filename=str(file), feature_version=OLDEST_PYTHON)
