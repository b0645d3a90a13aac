"""Follow a `comfy run --json`: its progress, its end, and what went wrong."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable

from comfyui import ComfyUIError, decoded, tail

Progress = Callable[[str, int, int], None]  # (title of the node, steps done, steps in all)


class WorkflowRejected(ComfyUIError):
    """A workflow did not pass validation. `details` says what is wrong, node by node."""


class WorkflowFailed(ComfyUIError):
    """A node raised while a workflow ran."""


def follow(process: subprocess.Popen, progress: Progress | None) -> tuple[dict, str]:
    """Pass a `comfy run --json` stream's progress on; its closing envelope and all other lines."""
    titles: dict[str, str] = {}
    envelope: dict = {}
    said = ""
    assert process.stdout is not None
    for line in process.stdout:
        event = decoded(line)
        if not isinstance(event, dict):
            said += line
            continue
        kind = event.get("type")
        if kind == "executing":
            titles[event["node"]] = event["title"]
        elif kind == "progress" and progress is not None:
            title = titles.get(event["node"], "")
            progress(title, int(event["completed"]), int(event["total"]))
        elif kind == "queued" and event.get("validation_warnings"):
            # ComfyUI runs the valid branches and drops the others, which is no success.
            node_errors = event["validation_warnings"]
            raise WorkflowRejected(
                f"Part of it is not valid: {json.dumps(node_errors)}", node_errors
            )
        elif kind == "envelope":
            envelope = event
    return envelope, said


def run_error(envelope: dict, said: str) -> ComfyUIError:
    """The exception for a `comfy run` that did not succeed."""
    error = envelope.get("error") or {}
    details = error.get("details") or {}
    message = error.get("message") or f"comfy run ended without a result: {tail(said)}"
    node_errors = details.get("node_errors") or details.get("errors")
    if node_errors:
        return WorkflowRejected(f"{message}: {json.dumps(node_errors)}", node_errors)
    if error.get("code"):
        return WorkflowFailed(message, details)
    return ComfyUIError(message)
