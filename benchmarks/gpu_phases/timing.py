"""Times and memory of what a GPU computes."""

from __future__ import annotations

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest import mock

import torch
from harness import in_turn

Run = Callable[[], Any]


def wait() -> None:
    """Until the GPU has done everything."""
    if torch.cuda.is_initialized():
        torch.cuda.synchronize()


def synchronized(run: Run) -> Run:
    """The same, but it ends when the GPU has ended."""

    def waited() -> None:
        wait()
        run()
        wait()

    return waited


def seconds_in_turn(runs: dict[str, Run], turns: int, warm: int = 0) -> dict[str, float]:
    """The median seconds of each run, taken in turn, after `warm` + 1 that are not counted."""
    for run in runs.values():
        for _ in range(warm):
            run()
    waited = {name: synchronized(run) for name, run in runs.items()}
    return {name: taken.seconds for name, taken in in_turn(waited, turns).items()}


def free_memory() -> None:
    """Gives back what torch does not use any more."""
    gc.collect()
    wait()
    if torch.cuda.is_initialized():
        torch.cuda.empty_cache()


def peak_bytes(run: Run) -> int:
    """The most that torch had allocated on the GPU during the run, weights included."""
    if not torch.cuda.is_initialized():
        run()
        return 0
    free_memory()
    torch.cuda.reset_peak_memory_stats()
    run()
    wait()
    return torch.cuda.max_memory_allocated()


def held_bytes(run: Run) -> int:
    """What the GPU memory of torch's allocator has grown by after the run, without free blocks."""
    if not torch.cuda.is_initialized():
        run()
        return 0
    free_memory()
    before = torch.cuda.memory_reserved()
    run()
    free_memory()
    return torch.cuda.memory_reserved() - before


def replays(run: Run) -> int:
    """How many CUDA graphs the run starts."""
    count = 0
    replay = torch.cuda.CUDAGraph.replay

    def counted(graph: torch.cuda.CUDAGraph) -> None:
        nonlocal count
        count += 1
        replay(graph)

    with mock.patch.object(torch.cuda.CUDAGraph, "replay", counted):
        run()
    return count


@contextmanager
def exact_fp32() -> Iterator[None]:
    """Convolutions and products of fp32 are not rounded to TF32."""
    places = torch.backends.cuda.matmul, torch.backends.cudnn
    before = [place.allow_tf32 for place in places]
    try:
        for place in places:
            place.allow_tf32 = False
        yield
    finally:
        for place, allowed in zip(places, before, strict=True):
            place.allow_tf32 = allowed
