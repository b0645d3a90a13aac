#!/usr/bin/env python3
"""Make the environment that a job needs, in .venv/, and do the job in it.

python3 run.py demo                   digits drawn by a guided diffusion model, in output/
python3 run.py test [pytest args]     the linters and all tests
"""

from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parent
VENV = ROOT / ".venv"
JOBS = ("demo", "test")
OLDEST_PYTHON = (3, 10)


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
    command = [str(venv_python()), str(ROOT / "scripts" / f"{job}.py"), *rest]
    if os.name == "nt":
        return subprocess.call(command)
    # In our place, so that Ctrl-C and the exit status are the job's own.
    os.execv(command[0], command)


def venv_python() -> Path:
    """The environment's Python."""
    return VENV / ("Scripts/python.exe" if os.name == "nt" else "bin/python")


def make_venv() -> None:
    """Make the environment where it is missing or its Python is gone."""
    if venv_python().exists() and pip("--version", output=subprocess.DEVNULL) == 0:
        return
    print(f"Making {VENV} ...", flush=True)
    if subprocess.call([sys.executable, "-m", "venv", "--clear", VENV]) != 0:
        sys.exit(
            "Python could not make a virtual environment with pip (its own words are above); "
            "on Debian and Ubuntu `apt install python3-venv` gives it what it needs."
        )


def install(job: str) -> None:
    """Install what a job needs, unless the very same was installed for it before."""
    # comfy-cli comes first, because it knows where ComfyUI is, and ComfyUI has requirements of its
    # own. All that depends on torch follows in one call, so that torch is chosen and fetched once.
    pip_install("comfy-cli", ["comfy-cli"])
    files = [ROOT / f"requirements-{job}.txt"]
    comfyui = find_comfyui()
    if comfyui:
        files.append(comfyui / "requirements.txt")
    included = sorted(ROOT.glob("requirements*.txt"))
    pip_install(job, [part for file in files for part in ("-r", str(file))], [*included, *files])


def pip_install(name: str, arguments: list[str], files: list[Path] | None = None) -> None:
    """Install once: again only when the arguments or what the files say have changed."""
    contents = [hashlib.sha256(file.read_bytes()).hexdigest() for file in files or []]
    wanted = "\n".join([*arguments, *contents])
    stamp = VENV / f"installed-{name}.txt"
    if stamp.exists() and stamp.read_text("utf-8") == wanted:
        return
    print("Installing", " ".join(arguments), "into", VENV, "...", flush=True)
    if pip("install", "--disable-pip-version-check", *arguments) != 0:
        sys.exit("pip could not install this; its own words are above.")
    stamp.write_text(wanted, "utf-8")


def find_comfyui() -> Path | None:
    """The ComfyUI on this machine, if any."""
    finder = [venv_python(), ROOT / "scripts" / "comfyui.py"]
    answer = subprocess.run(finder, stdout=subprocess.PIPE, text=True)
    if answer.returncode != 0:
        sys.exit(answer.returncode)
    return Path(answer.stdout.strip()) if answer.stdout.strip() else None


def pip(*arguments: str, output: int | None = None) -> int:
    """Run the environment's pip and return its exit status."""
    return subprocess.call([venv_python(), "-m", "pip", *arguments], stdout=output, stderr=output)


if __name__ == "__main__":
    try:
        sys.exit(main(sys.argv[1:]))
    except KeyboardInterrupt:
        sys.exit("Interrupted; run it again to go on.")
