"""What a server's log says."""

from __future__ import annotations

# a node of core's, which needs OpenGL also where there is no screen
CORES_OWN = ("nodes_glsl.py",)


def failed_imports(log: str) -> list[str]:
    """The lines of packs and nodes that failed to import."""
    lines = [line for line in log.splitlines() if "IMPORT FAILED" in line]
    return [line for line in lines if not line.rstrip().endswith(CORES_OWN)]
