"""What all tests share: `guidance` without ComfyUI, the ComfyUI that is used, and the last word."""

from __future__ import annotations

import importlib.abc
import importlib.util
import sys
from collections import Counter
from pathlib import Path

import pytest

TESTS = Path(__file__).resolve().parent
ROOT = TESTS.parent

# With the repository on sys.path its nodes/ would stand in for ComfyUI's nodes.py; with tests/ on
# it, tests/comfy would be taken for a part of ComfyUI's comfy.
sys.path[:] = [entry for entry in sys.path if Path(entry or ".").resolve() not in (ROOT, TESTS)]


class OnePackage(importlib.abc.MetaPathFinder):
    """Finds one package in a folder that is not on sys.path."""

    def __init__(self, name: str, file: Path):
        self.name, self.file = name, file

    def find_spec(self, fullname, path=None, target=None):
        if fullname != self.name:
            return None
        return importlib.util.spec_from_file_location(fullname, self.file)


def load_module(name: str, file: Path):
    """Import `file` as the module `name`, whatever sys.path says."""
    spec = importlib.util.spec_from_file_location(name, file)
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    spec.loader.exec_module(module)
    return module


sys.meta_path.insert(0, OnePackage("guidance", ROOT / "guidance" / "__init__.py"))
comfyui_tools = load_module("comfyui", ROOT / "scripts" / "comfyui.py")

try:
    found_comfyui = comfyui_tools.find_comfyui()
except comfyui_tools.NoComfyUI as reason:
    found_comfyui, no_comfyui = None, str(reason)


@pytest.fixture(scope="session")
def root() -> Path:
    """The repository."""
    return ROOT


@pytest.fixture(scope="session")
def comfyui():
    """The ComfyUI on this machine (path, version, found_by); skips where there is none."""
    if found_comfyui is None:
        pytest.skip(no_comfyui)
    return found_comfyui


@pytest.fixture(scope="session")
def server(comfyui):
    """A running ComfyUI with this pack: `server.run(workflow)`, `server.request(path)`, `.log`.

    One for all tests, in a base directory of its own (`server.base`).
    """
    with comfyui_tools.ComfyServer(comfyui) as running:
        yield running


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter):
    """Say at the end, after pytest's own summary, which ComfyUI was used and what was skipped."""
    result = yield
    terminalreporter.section("what was tested")
    terminalreporter.line(str(found_comfyui) if found_comfyui else no_comfyui)
    reasons = Counter(skip_reason(report) for report in terminalreporter.stats.get("skipped", []))
    terminalreporter.line(f"{sum(reasons.values())} skipped")
    for reason, count in reasons.most_common():
        terminalreporter.line(f"  {count}: {reason}")
    return result


def skip_reason(report) -> str:
    """Why a test was skipped, in one line."""
    if not isinstance(report.longrepr, tuple):
        return str(report.longrepr)
    return report.longrepr[2].removeprefix("Skipped: ")
