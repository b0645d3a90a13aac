#!/usr/bin/env python3
"""Make the environment that a job needs, in .venv/, and do the job in it.

python3 run.py demo                   digits drawn by a guided diffusion model, in output/
python3 run.py test [pytest args]     the linters and the tests; --all: also the long ones
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
JOBS = ("demo", "test")
OLDEST_PYTHON = (3, 10)
FIRST_TIME = (
    "The first run installs torch and what goes with it into .venv/: 1 to 5 minutes, by the "
    "connection (up to 3 GB on Linux). Later runs start at once."
)


def main(arguments: list[str]) -> int:
    """Do the job that the command line names, and return its exit status."""
    if not arguments or arguments[0] not in JOBS:
        print(__doc__)
        return 0 if arguments and arguments[0] in ("-h", "--help") else 2
    if sys.version_info < OLDEST_PYTHON:
        sys.exit(f"This is Python {sys.version.split()[0]}; 3.10 or later is needed.")
    job, *rest = arguments
    make_venv()
    install(job)
    command = [str(venv_program("python")), str(ROOT / "scripts" / f"{job}.py"), *rest]
    if os.name == "nt":
        return subprocess.call(command)
    # In our place, so that Ctrl-C and the exit status are the job's own.
    os.execv(command[0], command)


def venv_program(name: str) -> Path:
    """A program of the environment, "python" for one."""
    return VENV / (f"Scripts/{name}.exe" if os.name == "nt" else f"bin/{name}")


def make_venv() -> None:
    """Make the environment where it is missing or its Python is gone."""
    python = venv_program("python")
    if python.exists() and works([python, "-m", "pip", "--version"]):
        return
    print(FIRST_TIME)
    with step("Making .venv"):
        if subprocess.call([sys.executable, "-m", "venv", "--clear", VENV]) != 0:
            sys.exit(
                "Python could not make a virtual environment with pip (its own words are above); "
                "on Debian and Ubuntu `apt install python3-venv` gives it what it needs."
            )


def works(command: list[str | Path]) -> bool:
    """Whether a command succeeds; what it says is not shown."""
    return subprocess.run(command, capture_output=True).returncode == 0


@contextlib.contextmanager
def step(words: str) -> Iterator[None]:
    """A line that says what is done, and how long it took."""
    print(f"{words} ...", end=" ", flush=True)
    start = time.monotonic()
    yield
    print(f"{time.monotonic() - start:.0f} s", flush=True)


def install(job: str) -> None:
    """Install what a job needs, unless the very same was installed for it before."""
    # comfy-cli comes first: it brings uv, which installs the rest, and knows where ComfyUI is,
    # which has requirements of its own. All that depends on torch follows in one call.
    install_once("comfy-cli", ["comfy-cli"], [])
    files = [ROOT / f"requirements-{job}.txt"]
    comfyui = find_comfyui()
    if comfyui:
        files.append(comfyui / "requirements.txt")
    included = sorted(ROOT.glob("requirements*.txt"))
    arguments = [part for file in files for part in ("-r", str(file))]
    install_once(f"what `{job}` needs", arguments, [*included, *files])


def install_once(what: str, arguments: list[str], files: list[Path]) -> None:
    """Install; later again only when the arguments or what the files say have changed."""
    contents = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files]
    wanted = "\n".join([*arguments, *contents])
    stamp = VENV / f"installed-{hashlib.sha256(what.encode()).hexdigest()[:8]}.txt"
    if stamp.exists() and stamp.read_text("utf-8") == wanted:
        return
    with step(f"Installing {what}"):
        # uv trusts the system's certificates, as pip does: some networks have their own
        environment = os.environ | {"UV_SYSTEM_CERTS": "1", "UV_NATIVE_TLS": "1"}
        commands = ([*command, *arguments] for command in installers())
        if not any(subprocess.call(command, env=environment) == 0 for command in commands):
            sys.exit("it could not be installed; the installer's own words are above.")
    stamp.write_text(wanted, "utf-8")


def installers() -> list[list[str]]:
    """uv where the environment has it, since it is the quicker one; then pip."""
    python, uv = str(venv_program("python")), venv_program("uv")
    pip = [python, "-m", "pip", "install", "-q", "--disable-pip-version-check"]
    quick = [str(uv), "pip", "install", "-q", "--python", python]
    return [quick, pip] if uv.exists() else [pip]


def find_comfyui() -> Path | None:
    """The ComfyUI on this machine, if any."""
    finder = [venv_program("python"), ROOT / "scripts" / "comfyui.py"]
    answer = subprocess.run(finder, stdout=subprocess.PIPE, text=True)
    if answer.returncode != 0:
        sys.exit(answer.returncode)
    return Path(answer.stdout.strip()) if answer.stdout.strip() else None


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit("Interrupted; run it again to go on.")
