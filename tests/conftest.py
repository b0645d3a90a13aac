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


# What tests import from the repository all the same.
MODULES = {"guidance": ROOT / "guidance" / "__init__.py"}
SCRIPTS = (
    *("check_release", "comfyui", "comfy_run", "comfy_server"),
    *("demo", "node_schema"),
)
for name in SCRIPTS:
    MODULES[name] = ROOT / "scripts" / f"{name}.py"
MODULES["released_table"] = ROOT / "docs" / "released_table.py"
MODULES["which_guidance"] = ROOT / "docs" / "which_guidance" / "draw.py"
for name in ("gpu", "harness", "loading"):
    MODULES[name] = ROOT / "benchmarks" / f"{name}.py"
MODULES["gpu_phases"] = ROOT / "benchmarks" / "gpu_phases" / "__init__.py"
SHARED = (
    *("bounded", "fake_graphs", "latent_digits", "long_cases", "mixture", "real_digits"),
    *("schedule_inputs", "tiny_models", "tiny_zero_shot"),
)
for name in SHARED:
    MODULES[name] = TESTS / f"{name}.py"
MODULES["prompts"] = TESTS / "server" / "prompts.py"


class RepositoryModules(importlib.abc.MetaPathFinder):
    """Finds these modules, in folders that are not on sys.path."""

    def find_spec(self, fullname, path=None, target=None):
        """The module's place, for the names above."""
        file = MODULES.get(fullname)
        return file and importlib.util.spec_from_file_location(fullname, file)


sys.meta_path.insert(0, RepositoryModules())

import comfyui as finder  # noqa: E402 (found by the line above)

try:
    found_comfyui = finder.find_comfyui()
except finder.NoComfyUI as reason:
    found_comfyui, no_comfyui = None, str(reason)
except finder.ComfyUIError as error:
    raise pytest.UsageError(str(error)) from None


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
def comfyui_if_any():
    """The same, or None where there is none."""
    return found_comfyui


@pytest.fixture(scope="session")
def server(comfyui):
    """A running ComfyUI with this pack: `server.run(workflow)`, `server.request(path)`, `.log`.

    One for all tests, in a base directory of its own (`server.base`).
    """
    from comfy_server import ComfyServer

    with ComfyServer(comfyui) as running:
        yield running


def pytest_addoption(parser):
    """--all: the long tests, too. --write-tables: the tables of docs/models.md."""
    parser.addoption("--all", action="store_true", help="also the tests that take minutes")
    words = "write what tests/comfy/test_zoo.py finds to docs/models.md"
    parser.addoption("--write-tables", action="store_true", help=words)


# They take longest, in one of two processes: the other tests go on beside them.
FIRST = ("test_train_template.py", "test_latent_space.py", "test_released.py")


def pytest_collection_modifyitems(config, items):
    """The longest files come first; those marked `long` wait for --all."""
    items.sort(key=lambda item: item.path.name not in FIRST)
    if config.getoption("--all"):
        return
    long = [item for item in items if item.get_closest_marker("long")]
    config.hook.pytest_deselected(items=long)
    items[:] = [item for item in items if not item.get_closest_marker("long")]


RESULTS: list[str] = []


@pytest.fixture(scope="session")
def say_at_the_end():
    """`say_at_the_end(line)` adds a line to the last words of the run."""
    return RESULTS.append


@pytest.hookimpl(trylast=True)
def pytest_sessionfinish(session):
    """One of several processes hands its lines to the first one."""
    handed = getattr(session.config, "workeroutput", None)
    if handed is not None:
        handed["results"] = RESULTS


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node, error):
    """The first process takes them."""
    RESULTS.extend(getattr(node, "workeroutput", {}).get("results", ()))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_terminal_summary(terminalreporter):
    """Say at the end, after pytest's own summary, which ComfyUI was used and what was skipped."""
    result = yield
    terminalreporter.section("what was tested")
    terminalreporter.line(str(found_comfyui) if found_comfyui else no_comfyui)
    for line in RESULTS:
        terminalreporter.line(line)
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
