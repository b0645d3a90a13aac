"""Where the host waits for the GPU because of the pack's code."""

from __future__ import annotations

import sys
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

from harness import ROOT

OURS = tuple(str(ROOT / folder) for folder in ("guidance", "nodes"))


@contextmanager
def counted_waits() -> Iterator[Counter[str]]:
    """Counts them by their places, such as "nodes/runtime/cfg_cache.py:40".

    torch warns of each wait. The place is the innermost code that is not torch's own.
    """
    import torch

    found: Counter[str] = Counter()

    def seen(message: Any, *_: Any, **__: Any) -> None:
        if "synchroniz" in str(message):
            place = place_of(sys._getframe(1))
            if place is not None:
                found[place] += 1

    on_gpu = torch.cuda.is_initialized()
    if on_gpu:
        torch.cuda.set_sync_debug_mode("warn")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("always")
            warnings.showwarning = seen
            yield found
    finally:
        if on_gpu:
            torch.cuda.set_sync_debug_mode("default")


def place_of(frame: FrameType | None) -> str | None:
    """The pack's file and line in which a warning was caused; None if other code caused it."""
    import torch

    folder = str(Path(torch.__file__).parent)
    while frame is not None and _passes_on(frame.f_code.co_filename, folder):
        frame = frame.f_back
    if frame is None or not frame.f_code.co_filename.startswith(OURS):
        return None
    return f"{Path(frame.f_code.co_filename).relative_to(ROOT).as_posix()}:{frame.f_lineno}"


def _passes_on(file: str, torchs: str) -> bool:
    """Whether it is code of torch, or of the warning itself."""
    return file.startswith(torchs) or Path(file).name in ("warnings.py", "_py_warnings.py")


def waits_per_step(run: Callable[[int], Any], few: int, many: int) -> tuple[float, dict[str, int]]:
    """The waits of each further step, and the places of all in `many` steps.

    run(steps). What a run waits for once, when it begins or ends, does not count.
    """
    counts = []
    for steps in (few, many):
        with counted_waits() as found:
            run(steps)
        counts.append(found)
    more = counts[1].total() - counts[0].total()
    return more / (many - few), dict(counts[1])
