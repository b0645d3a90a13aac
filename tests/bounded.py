"""Reading one file as the pack does, and what that may end in, take and allocate."""

from __future__ import annotations

import contextlib
import functools
import re
from pathlib import Path

from guidance.adm import ClassifierLayout
from guidance.adm.build import build_network
from guidance.adm.detect import nearest_released
from guidance.checkpoints.checkpoint import CheckpointError, read_checkpoint

ROOM = 64 << 20  # bytes above twice the file
LONGEST = 500  # characters of an error
STATUS, CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def memory(name: str) -> int:
    """VmRSS or VmHWM of this process in bytes."""
    return int(re.search(rf"{name}:\s+(\d+) kB", STATUS.read_text())[1]) << 10


@contextlib.contextmanager
def peak_growth():
    """Yields a function that says, after the block, by how much the memory's peak rose within it.

    0 where the system does not tell (elsewhere than on Linux).
    """
    grown = [0]
    try:
        CLEAR.write_text("5")  # the peak begins anew
    except OSError:
        yield lambda: 0
        return
    before = memory("VmRSS")
    try:
        yield lambda: grown[0]
    finally:
        grown[0] = memory("VmHWM") - before


@functools.cache
def warm_up() -> None:
    """What torch and the pack load once, whatever the file."""
    layout = ClassifierLayout(
        model_channels=64, out_channels=2, num_res_blocks=1, channel_mult=(1,), image_size=8
    )
    build_network(layout, device="meta")
    nearest_released({})


def sentence(error: Exception, name: str) -> str:
    """The error's text, which is one sentence that names the file."""
    said = str(error)
    assert name in said and "\n" not in said and said.endswith("."), said
    assert len(said) < LONGEST, said
    return said


def outcome(path: Path) -> str:
    """ "loaded", or the sentence that the file is refused with; whole, and in little memory.

    Raises whatever else happens.
    """
    warm_up()
    size = path.stat().st_size
    with peak_growth() as grown:
        try:
            network = read_checkpoint(path).network()
            assert sum(p.numel() for p in network.parameters()) <= size
            said = "loaded"
        except CheckpointError as error:
            said = sentence(error, path.name)
    assert grown() <= 2 * size + ROOM, f"{grown() >> 20} MB for a file of {size} bytes: {said}"
    return said
