"""Run a command that cannot outlive the process that started it.

The parent keeps our standard input open. When that closes, because the parent let go, was
interrupted or crashed, the command and everything it started are ended.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading


def end_with_parent(child: subprocess.Popen) -> None:
    """Wait for the parent to let go of our standard input, then end the child's whole tree."""
    while os.read(sys.stdin.fileno(), 1):
        pass
    if sys.platform == "win32":
        subprocess.run(["taskkill", "/T", "/F", "/PID", str(child.pid)], capture_output=True)
    else:
        os.killpg(os.getpgrp(), signal.SIGKILL)


def main(command: list[str]) -> int:
    if sys.platform != "win32":
        # A group of our own: Ctrl-C in the terminal does not reach it, and ending it ends only us.
        os.setsid()
    child = subprocess.Popen(command, stdin=subprocess.DEVNULL)
    threading.Thread(target=end_with_parent, args=(child,), daemon=True).start()
    return child.wait()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
