"""The pack adds little to ComfyUI's start, because it imports little."""

from __future__ import annotations

import json
import subprocess
import sys


def test_loading_brings_no_foreign_modules(comfyui, root):
    """Beside its own files it needs what ComfyUI has imported already, and the standard library.

    `benchmarks/import_time.py` says how long that takes.
    """
    script = root / "benchmarks" / "import_time.py"
    command = [sys.executable, str(script), "--once", str(comfyui.path)]
    done = subprocess.run(command, capture_output=True, text=True, encoding="utf-8")
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["loaded"] is True, done.stderr
    own = [name for name in found["modules"] if name.startswith(str(root).replace(".", "_x_"))]
    assert len(own) > 10  # nodes/ and guidance/ were loaded at all
    foreign = {name.partition(".")[0] for name in found["modules"] if name not in own}
    assert foreign <= sys.stdlib_module_names
    # what only training and the command line need stays away
    assert not [name for name in own if ".guidance.training" in name or ".cli" in name]
