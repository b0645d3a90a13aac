"""Find a ComfyUI on this machine. comfy-cli knows where it is."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

OLDEST_VERSION = (0, 19, 0)


class ComfyUIError(Exception):
    """ComfyUI could not be found, started or used. `details` is what it says about it, if any."""

    def __init__(self, message: str, details: Any = None):
        super().__init__(message)
        self.details = details


class NoComfyUI(ComfyUIError):
    """There is no ComfyUI here that would do; the message says how to get one."""


@dataclass(frozen=True)
class ComfyUI:
    """A ComfyUI checkout: where it is, its version, and how it was found."""

    path: Path
    version: str
    found_by: str

    def __str__(self) -> str:
        return f"ComfyUI {self.version} at {tilde(self.path)} (from {self.found_by})"


def find_comfyui() -> ComfyUI:
    """The ComfyUI that COMFYUI_PATH names, else comfy-cli's workspace.

    Raises NoComfyUI where there is none or it is too old, and ComfyUIError where COMFYUI_PATH names
    something else.
    """
    named = os.environ.get("COMFYUI_PATH")
    if named:
        comfyui = read_comfyui(Path(named).expanduser(), "COMFYUI_PATH")
        if comfyui is None:
            raise ComfyUIError(
                f"COMFYUI_PATH is {named!r}, where there is no main.py with comfyui_version.py; "
                "name the folder of a ComfyUI checkout."
            )
    else:
        workspace = comfy_cli_workspace()
        comfyui = read_comfyui(workspace, "comfy-cli") if workspace else None
        if comfyui is None:
            raise NoComfyUI(
                "No ComfyUI found: get one with `comfy install`, or name a checkout in COMFYUI_PATH"
            )
    version = tuple(int(number) for number in re.findall(r"\d+", comfyui.version)[:3])
    if version < OLDEST_VERSION:
        oldest = ".".join(map(str, OLDEST_VERSION))
        raise NoComfyUI(f"{comfyui} is too old: get {oldest} or later with `comfy update comfy`")
    return comfyui


def read_comfyui(path: Path, found_by: str) -> ComfyUI | None:
    """The ComfyUI in `path`, or None where there is none."""
    version_file = path / "comfyui_version.py"
    if not (path / "main.py").is_file() or not version_file.is_file():
        return None
    version = re.search(r"__version__\s*=\s*[\"']([^\"']+)", version_file.read_text("utf-8"))
    return ComfyUI(path.resolve(), version.group(1) if version else "unknown", found_by)


def comfy_cli_workspace() -> Path | None:
    """The workspace that comfy-cli has selected, or None without comfy-cli."""
    if importlib.util.find_spec("comfy_cli") is None:
        return None
    answer = subprocess.run(
        comfy("--skip-prompt", "--json", "which"),
        env=os.environ | {"DO_NOT_TRACK": "1"},
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        encoding="utf-8",
    )
    answers = [decoded(line) for line in answer.stdout.splitlines()]
    envelopes = [one for one in answers if isinstance(one, dict)]
    path = envelopes and (envelopes[-1].get("data") or {}).get("workspace_path")
    return Path(path) if path else None


def comfy(*arguments: str) -> list[str]:
    """A comfy-cli command line, run with this Python so that it needs no PATH."""
    return [sys.executable, "-m", "comfy_cli", *arguments]


def tilde(path: Path) -> str:
    """`path` with the home directory shown as ~."""
    with contextlib.suppress(ValueError):
        return str(Path("~") / path.relative_to(Path.home()))
    return str(path)


def decoded(text: str | bytes) -> Any:
    """`text` read as JSON, or the text itself where it is none."""
    try:
        return json.loads(text)
    except ValueError:
        return text.decode("utf-8", "replace") if isinstance(text, bytes) else text


def tail(text: str, lines: int = 30) -> str:
    """The last lines of a log."""
    return "\n".join(text.splitlines()[-lines:])


if __name__ == "__main__":
    # For run.py: the folder of the ComfyUI that would be used, or nothing.
    try:
        print(find_comfyui().path)
    except NoComfyUI:
        pass
    except ComfyUIError as error:
        sys.exit(f"error: {error}")
