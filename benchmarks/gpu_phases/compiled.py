"""The gradient of a network that torch.compile has fused: time, kernels, and the first step."""

from __future__ import annotations

import importlib.util
import inspect
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from harness import Row, use_library

from .gradients import Case
from .graphs import Gradient, as_graph
from .kernels import kernels_of, total
from .setup import LeftOut, Part, Setup
from .timing import seconds_in_turn, wait

use_library()

from guidance import load_classifier  # noqa: E402
from guidance.checkpoints.checkpoint import Description, save_checkpoint  # noqa: E402


def parts(setup: Setup) -> list[Part]:
    """In fp16, the largest batch of each size."""
    if "compile" not in inspect.signature(load_classifier).parameters:
        raise LeftOut("load_classifier has no option `compile` in this version.")
    if not setup.rehearse and importlib.util.find_spec("triton") is None:
        raise LeftOut("torch.compile needs triton for a GPU, which is missing.")
    cases = setup.pick([(64, 8), (256, 4)], [(64, 1)])
    found = [(f"{size}x{size}", partial(rows, Case(setup, size, batch))) for size, batch in cases]
    return [*found, ("reduce-overhead", partial(torchs_graph, Case(setup, *cases[0])))]


def compiled(case: Case, dtype: str) -> Gradient:
    """The gradient of a compiled network, from a file, since the loader compiles."""
    network, path = case.network(case.theirs()), Path(case.setup.folder) / "compiled.safetensors"
    about = Description(
        kind="classifier", layout=network.layout, noise_schedule=case.schedule, space="rgb"
    )
    save_checkpoint(path, network.state_dict(), about)
    device = case.setup.device
    return case.gradient(load_classifier(path, dtype=dtype, device=device, compile=True))


def traced_only(*given: Any, **options: Any) -> Any:
    """torch.compile for a rehearsal: without the minutes that a compiler takes."""
    return COMPILE(*given, **options | {"backend": "eager"})


def with_torchs_graph(*given: Any, **options: Any) -> Any:
    """torch.compile that records CUDA graphs itself."""
    return COMPILE(*given, **options | {"mode": "reduce-overhead"})


COMPILE = torch.compile


def rows(case: Case) -> Iterator[Row]:
    """The same in a rehearsal, but nothing is fused."""
    with mock.patch.object(torch, "compile", case.setup.pick(COMPILE, traced_only)):
        yield from measured(case)


def measured(case: Case) -> Iterator[Row]:
    """Eagerly and as a graph, against the network that is not compiled."""
    dtype = case.setup.pick("fp16", "fp32")
    plain, fused = case.ours(case.theirs(), dtype), compiled(case, dtype)
    name = f"{case.name}, {dtype}"
    before = time.perf_counter()
    fused.eager()
    wait()
    yield Row(f"{name}, compiled", "first step", time.perf_counter() - before, unit=" s")
    graph, replayed = as_graph(fused, f"{dtype}, compiled")
    _, plain_replayed = as_graph(plain, dtype)
    runs = {f"{dtype}, compiled": fused.eager, graph: replayed, "not compiled": plain_replayed}
    seconds = seconds_in_turn(runs, case.setup.pick(10, 1))
    for run in (f"{dtype}, compiled", graph):
        yield Row(f"{case.name}, {run}", "time", seconds[run] * 1e3, unit=" ms")
    ratio = seconds[graph] / seconds["not compiled"]
    yield Row(f"{case.name}, {graph}", "the same, not compiled", ratio)
    milliseconds = total(kernels_of(fused.eager, case.setup.pick(3, 1)))
    yield Row(f"{name}, compiled, kernels", "time", milliseconds, unit=" ms")
    for gradient in (plain, fused):
        gradient.close()


def torchs_graph(case: Case) -> Iterator[Row]:
    """The graph that torch.compile records itself, against the pack's of the plain network."""
    dtype, warm_up = case.setup.pick("fp16", "fp32"), 3  # torch records at the second call
    with mock.patch.object(torch, "compile", case.setup.pick(with_torchs_graph, traced_only)):
        plain, fused = case.ours(case.theirs(), dtype), compiled(case, dtype)

        def step() -> Any:
            torch.compiler.cudagraph_mark_step_begin()
            return fused.eager()

        name, before = f"{dtype}, reduce-overhead", time.perf_counter()
        for _ in range(warm_up):
            step()
        wait()
        yield Row(f"{case.name}, {name}", "first steps", time.perf_counter() - before, unit=" s")
        graph, replayed = as_graph(plain, dtype)
        seconds = seconds_in_turn({name: step, graph: replayed}, case.setup.pick(10, 1))
        yield Row(f"{case.name}, {name}", "time", seconds[name] * 1e3, unit=" ms")
        yield Row(f"{case.name}, {name}", f"{graph}, not compiled", seconds[name] / seconds[graph])
        for gradient in (plain, fused):
            gradient.close()
