"""The kernels of a run: how many, how long, and of what kind."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

CONVOLUTION, PRODUCT, NORM = "convolution", "matrix product, attention", "norm"
LAYOUT, COPY, OTHER = "layout copy", "other copy, cast", "elementwise, other"
KINDS = (CONVOLUTION, PRODUCT, NORM, LAYOUT, COPY, OTHER)

# The first that is found in a kernel's name, in lower case, says its kind. Names of attention
# also hold those of products and convolutions, and those of convolutions their memory layout.
PATTERNS = (
    (LAYOUT, r"n(chw|hwc)to|to_?n(chw|hwc)"),
    (PRODUCT, r"flash|fmha|sdpa|attention|softmax"),
    (NORM, r"norm|rowwisemoments|fusedparams|computeinternalgradients"),
    (CONVOLUTION, r"conv|[fdw](prop|grad)|implicit|winograd|scudnn|hcudnn"),
    (PRODUCT, r"gemm|gemv|cutlass|nvjet|cublas|splitk"),
    (COPY, r"copy|memcpy|memset|cast|catarray|transpose"),
)
# Inductor names a fused kernel after all that is in it. tem: a product or a convolution of its own.
FUSED = re.compile(r"triton_(poi|red|per)")


def kind_of(name: str) -> str:
    """One of KINDS."""
    name = name.lower()
    if FUSED.match(name):
        return NORM if "norm" in name else OTHER
    return next((kind for kind, pattern in PATTERNS if re.search(pattern, name)), OTHER)


@dataclass(frozen=True)
class Kernel:
    """All launches of a kernel in one run, on average; milliseconds of all of them."""

    name: str
    milliseconds: float
    launches: float


def kernels_of(run: Callable[[], Any], repeats: int = 1) -> list[Kernel]:
    """The kernels that a GPU computes in a run; on a CPU, torch's functions."""
    import torch
    from torch.profiler import ProfilerActivity, profile

    on_gpu = torch.cuda.is_initialized()
    activity = ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU
    with profile(activities=[activity]) as profiled:
        for _ in range(repeats):
            run()
        if on_gpu:
            torch.cuda.synchronize()
    found = [
        Kernel(event.key, _microseconds(event, on_gpu) / 1000 / repeats, event.count / repeats)
        for event in profiled.key_averages()
        if not getattr(event, "is_user_annotation", False)
    ]
    return [kernel for kernel in found if kernel.milliseconds > 0]


def _microseconds(event: Any, on_gpu: bool) -> float:
    """Of a kernel itself: torch also counts its time for the function that started it."""
    if not on_gpu:
        return event.self_cpu_time_total
    is_kernel = str(event.device_type).endswith("CUDA")
    return event.self_device_time_total if is_kernel else 0.0


def total(kernels: Iterable[Kernel]) -> float:
    """Their milliseconds."""
    return sum(kernel.milliseconds for kernel in kernels)


def by_kind(kernels: Iterable[Kernel]) -> dict[str, float]:
    """Their milliseconds by kind, all of KINDS."""
    found: dict[str, float] = defaultdict(float)
    for kernel in kernels:
        found[kind_of(kernel.name)] += kernel.milliseconds
    return {kind: found[kind] for kind in KINDS}
