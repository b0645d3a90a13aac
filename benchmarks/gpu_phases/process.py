"""Each phase in a fresh process, with a limit of time; what it found comes line by line."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from harness import Row, kind, versions

from .setup import LeftOut, Setup

Say = Callable[..., None]


@dataclass
class Found:
    """What a phase gave: rows, notes, what failed, and the machine."""

    rows: list[Row] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    failures: list[str] = field(default_factory=list)
    kind: str = ""
    about: str = ""

    def read(self, lines: Iterator[str]) -> None:
        """The lines that `measure` wrote; the last one may be cut off."""
        for line in lines:
            with contextlib.suppress(ValueError):
                said = json.loads(line)
                self.rows += [Row(**said["row"])] if "row" in said else []
                self.notes += [said["note"]] if "note" in said else []
                self.failures += [said["failed"]] if "failed" in said else []
                self.kind, self.about = said.get("kind", self.kind), said.get("about", self.about)


def measure(phase: str, setup: Setup, file: Path) -> None:
    """Runs a phase in this process, and writes what it finds."""
    with file.open("a", encoding="utf-8") as opened:

        def say(**about: Any) -> None:
            opened.write(json.dumps(about) + "\n")
            opened.flush()

        try:
            _measure(importlib.import_module(f"gpu_phases.{phase}"), setup, say)
        except LeftOut as reason:
            say(note=str(reason))
        except Exception as error:
            say(failed=described(error))
            raise


def _measure(module: Any, setup: Setup, say: Say) -> None:
    """One part after the other; if one fails, the others go on."""
    parts = module.parts(setup)
    from .timing import free_memory  # imports torch, which a phase may have to prepare for

    say(kind=kind(not setup.rehearse), about=versions(not setup.rehearse))
    for name, rows in parts:
        try:
            for row in rows():
                say(row=asdict(row)) if isinstance(row, Row) else say(note=str(row))
        except LeftOut as reason:
            say(note=str(reason))
        except Exception as error:
            traceback.print_exc()
            say(failed=f"{name}: {described(error)}")
        free_memory()


def described(error: BaseException) -> str:
    """An error in one line."""
    lines = str(error).strip().splitlines() or [""]
    return f"{type(error).__name__}: {lines[0][:300]}"


def found_by(
    script: str, phase: str, limit: float, rehearse: bool = False, verbose: bool = False
) -> Found:
    """What `script --phase PHASE` finds in a fresh process, within `limit` seconds.

    verbose: also prints what that process prints.
    """
    found = Found()
    with tempfile.TemporaryDirectory() as folder:
        file, log = Path(folder) / "found.jsonl", Path(folder) / "log.txt"
        command = [sys.executable, script, "--phase", phase, "--into", str(folder)]
        command += ["--rehearse"] * rehearse
        with log.open("wb") as said:
            ended = _run(command, None if verbose else said, limit)
        if file.is_file():
            found.read(iter(file.read_text("utf-8").splitlines()))
        if ended is None:
            found.failures.append(f"stopped after its limit of {limit:g} seconds")
        elif ended and not found.failures:
            lines = log.read_text("utf-8", "replace").strip().splitlines() or [""]
            found.failures.append(f"ended with status {ended}: {lines[-1][:300]}")
    return found


def _run(command: list[str], output: Any, limit: float) -> int | None:
    """The exit status; None if it did not end in time."""
    process = subprocess.Popen(
        command,
        stdin=subprocess.DEVNULL,
        stdout=output,
        stderr=subprocess.STDOUT,
        start_new_session=True,  # so that its own processes end with it
    )
    try:
        return process.wait(limit)
    except subprocess.TimeoutExpired:
        return None
    finally:
        if process.poll() is None:
            _kill(process)


def _kill(process: subprocess.Popen) -> None:
    if hasattr(os, "killpg"):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
    process.kill()
    process.wait()
