"""Start a ComfyUI for this pack alone, and run workflows in it. comfy-cli does both.

with ComfyServer(find_comfyui()) as server:
    run = server.run("example_workflows/01 Guide digits with a classifier.json")
    print(run.images, server.log)
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import site
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from comfy_run import Progress, follow, run_error
from comfyui import ComfyUI, ComfyUIError, comfy, decoded, tail

ROOT = Path(__file__).resolve().parent.parent
PACK = "classifier-guidance"
LEASH = Path(__file__).with_name("leash.py")

no_proxy = urllib.request.build_opener(urllib.request.ProxyHandler({}))


@dataclass(frozen=True)
class FinishedRun:
    """A finished run of a workflow."""

    outputs: dict[str, dict[str, list]]  # node id -> what the node showed, as in /history
    images: list[Path]  # files saved under output/, in order


class ComfyServer:
    """A headless ComfyUI with this pack and no other, on a free loopback port.

    It works in a temporary base directory (`base`, with input/, output/, models/), so neither the
    user's ComfyUI folder nor a server they have running is touched.
    """

    def __init__(
        self,
        comfyui: ComfyUI,
        *,
        install: Callable[[Path], None] | None = None,
        extra_packs: tuple[Path, ...] = (),
    ):
        """install: puts the pack into a base directory; else this checkout is linked there.

        extra_packs: folders of other packs that it loads all the same.
        """
        self.comfyui = comfyui
        self.install = install or link_pack
        self.extra_packs = extra_packs

    @property
    def url(self) -> str:
        """Where the server listens."""
        return f"http://127.0.0.1:{self.port}"

    @property
    def process_id(self) -> int:
        """Of the process that the server's own descends from."""
        return self._process.pid

    @property
    def log(self) -> str:
        """All that the server has written so far."""
        return self._log_path.read_text("utf-8", errors="replace")

    def __enter__(self) -> ComfyServer:
        with contextlib.ExitStack() as cleanup:
            folder = cleanup.enter_context(
                # On Windows a file can stay locked a moment after its process has ended.
                tempfile.TemporaryDirectory(prefix=f"{PACK}-", ignore_cleanup_errors=True)
            )
            self.base = Path(folder).resolve() / "base"
            for name in ("input", "output", "temp", "user", "custom_nodes"):
                (self.base / name).mkdir(parents=True)
            self.install(self.base)
            for pack in self.extra_packs:
                link_folder(self.base / "custom_nodes" / pack.name, pack)
            self._home = self.base.parent / "home"
            self._home.mkdir()
            self._log_path = self.base.parent / "server.log"
            self.port = free_port()
            cleanup.enter_context(self._launched())
            self._cleanup = cleanup.pop_all()
        return self

    def kill(self) -> None:
        """End the server as a crash does, in the middle of whatever it is doing."""
        assert self._process.stdin is not None
        self._process.stdin.close()
        self._process.wait()

    def start_again(self) -> None:
        """Start it after `kill`, in the same base directory; its log begins anew."""
        self._cleanup.enter_context(self._launched())

    def __exit__(self, *exception: object) -> None:
        self._cleanup.close()

    @contextlib.contextmanager
    def _launched(self) -> Iterator[None]:
        # In the foreground, as our own child: `launch --background` keeps one server per user on
        # record, refuses while the user's own is running, and `comfy stop` ends the one on record.
        command = comfy("--skip-prompt", f"--workspace={self.comfyui.path}", "launch", "--")
        command += self._server_arguments()
        with self._log_path.open("wb") as log:
            self._process = subprocess.Popen(
                [sys.executable, str(LEASH), *command],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=self._environment(),
            )
        try:
            self._wait_until_ready()
            yield
        finally:
            self.kill()

    def _server_arguments(self) -> list[str]:
        import torch

        arguments = ["--port", str(self.port), "--base-directory", str(self.base)]
        arguments += ["--disable-all-custom-nodes", "--whitelist-custom-nodes", PACK]
        arguments += [pack.name for pack in self.extra_packs]
        arguments += ["--disable-api-nodes", "--database-url", "sqlite:///:memory:"]
        return arguments if torch.accelerator.is_available() else [*arguments, "--cpu"]

    def _environment(self) -> dict[str, str]:
        return os.environ | {
            "DO_NOT_TRACK": "1",
            # comfy-cli starts the server with the Python of VIRTUAL_ENV, before the workspace's.
            "VIRTUAL_ENV": sys.prefix,
            # comfy-cli notes the last workspace and every run in the home directory. Those notes
            # are the user's: ours go to a home of our own.
            "HOME": str(self._home),
            "USERPROFILE": str(self._home),
            "PYTHONUSERBASE": site.getuserbase(),
            # Not empty: comfy-cli then fetches no model knowledge from the network at launch.
            "COMFY_KNOWLEDGE_FILE": os.devnull,
            # A proxy cannot reach this machine's loopback.
            "no_proxy": ",".join(filter(None, [os.environ.get("no_proxy"), "127.0.0.1"])),
            "PYTHONUNBUFFERED": "1",
            "PYTHONIOENCODING": "utf-8",
        }

    def _wait_until_ready(self, seconds: float = 300.0) -> None:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if self._process.poll() is not None:
                raise ComfyUIError(f"{self.comfyui} ended while starting:\n{tail(self.log)}")
            with contextlib.suppress(OSError):
                self.request("/object_info")
                return
            time.sleep(0.25)
        raise ComfyUIError(
            f"{self.comfyui} did not answer within {seconds:.0f} s:\n{tail(self.log)}"
        )

    def request(self, path: str, body: Any = None, *, timeout: float = 60.0) -> tuple[int, Any]:
        """GET `path`, or POST `body` to it as JSON; the status and the decoded answer.

        For what `run` does not show, e.g. the server's own words on a prompt that it rejects.
        """
        data = None if body is None else json.dumps(body).encode()
        request = urllib.request.Request(
            self.url + path, data=data, headers={"Content-Type": "application/json"}
        )
        try:
            with no_proxy.open(request, timeout=timeout) as response:
                return response.status, decoded(response.read())
        except urllib.error.HTTPError as error:
            return error.code, decoded(error.read())

    def run(self, workflow: dict | str | Path, *, progress: Progress | None = None) -> FinishedRun:
        """Run a workflow, saved by the page or in API form, to its end.

        Raises WorkflowRejected or WorkflowFailed, or ComfyUIError where the server says nothing
        for ten minutes.
        """
        if isinstance(workflow, dict):
            path = self.base.parent / "workflow.json"
            path.write_text(json.dumps(workflow), "utf-8")
        else:
            path = Path(workflow)
        command = comfy("--skip-prompt", "run", "--workflow", str(path), "--wait", "--json")
        command += ["--where", "local", "--host", "127.0.0.1", "--port", str(self.port)]
        command += ["--timeout", "600"]
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            encoding="utf-8",
            errors="replace",
            env=self._environment(),
        )
        with process:
            try:
                envelope, said = follow(process, progress)
            except BaseException:
                process.kill()
                raise
        if not envelope.get("ok"):
            raise run_error(envelope, said)
        return self._finished(envelope["data"]["prompt_id"])

    def _finished(self, prompt_id: str) -> FinishedRun:
        # The history also has what cached nodes show, and text, which comfy-cli leaves out.
        _, history = self.request(f"/history/{prompt_id}")
        outputs = history[prompt_id]["outputs"]
        images = [
            self.base / "output" / image["subfolder"] / image["filename"]
            for shown in outputs.values()
            for image in shown.get("images", [])
            if image.get("type") == "output"
        ]
        return FinishedRun(outputs, images)


def link_pack(base: Path) -> None:
    """Puts this checkout and its models at hand in a base directory."""
    link_folder(base / "custom_nodes" / PACK, ROOT)
    # A copy: what a test saves beside the models must not land in the repository.
    shutil.copytree(ROOT / "models", base / "models")


def link_folder(link: Path, target: Path) -> None:
    """Make `link` lead to the folder `target`."""
    try:
        link.symlink_to(target, target_is_directory=True)
    except OSError:
        # Windows gives symbolic links to few users, junctions to all.
        subprocess.run(["cmd", "/c", "mklink", "/J", str(link), str(target)], check=True)


def free_port() -> int:
    """A loopback port that nobody listens on now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]
