"""What the demo and the tests stand on: finding a ComfyUI, and ending what was started."""

from __future__ import annotations

import subprocess
import sys
import time

import pytest

import comfy_run
import comfyui as tools


def checkout(folder, version="1.2.3"):
    """A folder that looks like a ComfyUI."""
    (folder / "main.py").write_text("")
    (folder / "comfyui_version.py").write_text(f'__version__ = "{version}"\n')
    return folder


def test_comfyui_path_is_used(monkeypatch, tmp_path):
    monkeypatch.setenv("COMFYUI_PATH", str(checkout(tmp_path)))
    found = tools.find_comfyui()
    assert (found.path, found.version, found.found_by) == (tmp_path, "1.2.3", "COMFYUI_PATH")


def test_comfyui_path_without_a_comfyui(monkeypatch, tmp_path):
    """A name that is wrong is an error, not a reason to look elsewhere."""
    monkeypatch.setenv("COMFYUI_PATH", str(tmp_path))
    with pytest.raises(tools.ComfyUIError, match="main.py"):
        tools.find_comfyui()


def test_old_comfyui_is_refused(monkeypatch, tmp_path):
    monkeypatch.setenv("COMFYUI_PATH", str(checkout(tmp_path, version="0.18.9")))
    with pytest.raises(tools.NoComfyUI, match=r"0\.18\.9.*0\.19\.0"):
        tools.find_comfyui()


def test_comfy_cli_workspace_without_a_comfyui(monkeypatch, tmp_path):
    monkeypatch.delenv("COMFYUI_PATH", raising=False)
    monkeypatch.setattr(tools, "comfy_cli_workspace", lambda: tmp_path)
    with pytest.raises(tools.NoComfyUI, match="comfy install"):
        tools.find_comfyui()


@pytest.mark.processes
def test_leash_ends_the_whole_tree(root, tmp_path):
    """The command and its own children end when the parent lets go."""
    ticks = tmp_path / "ticks"
    child = f"""
import time
while True:
    open({str(ticks)!r}, "a").write("tick")
    time.sleep(0.05)
"""
    parent = f"import subprocess, sys; subprocess.run([sys.executable, '-c', {child!r}])"
    process = subprocess.Popen(
        [sys.executable, str(root / "scripts" / "leash.py"), sys.executable, "-c", parent],
        stdin=subprocess.PIPE,
    )
    deadline = time.monotonic() + 30
    while not ticks.exists() and time.monotonic() < deadline:
        time.sleep(0.05)
    process.stdin.close()
    process.wait(timeout=30)
    time.sleep(0.3)  # a tick that was under way
    size = ticks.stat().st_size
    time.sleep(0.5)
    assert size > 0
    assert ticks.stat().st_size == size


@pytest.mark.processes
def test_leash_passes_the_exit_status_on(root):
    command = [sys.executable, str(root / "scripts" / "leash.py"), sys.executable, "-c", "exit(7)"]
    with subprocess.Popen(command, stdin=subprocess.PIPE) as process:
        assert process.wait(timeout=30) == 7


def test_run_error_tells_rejected_from_failed():
    """Who reads the error needs to know whether the workflow or a node is at fault."""
    rejected = {
        "error": {"code": "prompt_rejected", "message": "m", "details": {"node_errors": []}}
    }
    failed = {"error": {"code": "execution_error", "message": "m", "details": {"node_id": "1"}}}
    assert isinstance(comfy_run.run_error(rejected, ""), comfy_run.WorkflowRejected)
    assert isinstance(comfy_run.run_error(failed, ""), comfy_run.WorkflowFailed)
    assert "no envelope" in str(comfy_run.run_error({}, "no envelope"))
