"""CUDA graphs by torch: recording, starting, and giving their memory back."""

from __future__ import annotations

import contextlib
import ctypes
import functools
import sys
import threading
import warnings
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

ONE_AT_A_TIME = threading.Lock()  # two recordings would disturb each other
Tensors = tuple[Tensor, ...]


class CUDARecorder:
    """Records graphs that share one pool of memory; they must not run at the same time."""

    def __init__(self) -> None:
        self._pools: dict[torch.device, Any] = {}
        self._graphs: list[torch.cuda.CUDAGraph] = []

    def works_on(self, device: torch.device) -> bool:
        """Whether graphs can be recorded there; ROCm passes for CUDA, and is not tested."""
        if device.type != "cuda" or torch.version.hip is not None:
            return False
        # inside of another recording, or of a pack that compiles the whole step
        return not torch.cuda.is_current_stream_capturing() and not torch.compiler.is_compiling()

    def room(self, device: torch.device) -> float:
        """Free bytes, less the most that this process used at once beside what it uses now."""
        free, _ = torch.cuda.mem_get_info(device)
        used = torch.cuda.memory_allocated(device)
        free += torch.cuda.memory_reserved(device) - used
        return free - (torch.cuda.max_memory_allocated(device) - used)

    def record(self, compute: Callable[..., Tensors], inputs: Tensors) -> CUDARecording:
        """A recording of compute(*inputs), which has not been started yet."""
        device = inputs[0].device
        with ONE_AT_A_TIME, torch.cuda.device(device), torch.inference_mode(False):
            stream, current = _stream(device), torch.cuda.current_stream()
            stream.wait_stream(current)
            with torch.cuda.stream(stream):
                # makes what the libraries keep for each stream, outside of the pool
                results = tuple(torch.empty_like(one) for one in compute(*inputs))
            current.wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            pool = self._pools.setdefault(device, torch.cuda.graph_pool_handle())
            # other threads may use the GPU meanwhile
            with torch.cuda.graph(
                graph, pool=pool, stream=stream, capture_error_mode="thread_local"
            ):
                for own, computed in zip(results, compute(*inputs), strict=True):
                    own.copy_(computed)  # the pool is another graph's, too
        self._graphs.append(graph)
        return CUDARecording(graph, results, stream)

    def close(self) -> None:
        """Frees the graphs and gives their memory back to the device; waits for it."""
        devices = list(self._pools)
        if not devices:
            return
        for device in devices:
            torch.cuda.synchronize(device)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # cudaMallocAsync says that it frees what was recorded
            for graph in self._graphs:
                graph.reset()
        self._graphs.clear()
        self._pools.clear()
        torch.cuda.empty_cache()
        if torch.cuda.get_allocator_backend() == "cudaMallocAsync":
            for device in devices:
                _trim(device)


class CUDARecording:
    """A recorded graph with its results (tensors that each start overwrites)."""

    def __init__(self, graph: Any, results: Tensors, stream: Any):
        self._graph, self._results, self._stream = graph, results, stream

    def start(self) -> None:
        """Computes beside the current stream, after what it was given so far."""
        self._stream.wait_stream(torch.cuda.current_stream(self._stream.device))
        with torch.cuda.stream(self._stream):
            self._graph.replay()

    def results(self) -> Tensors:
        """The results; the current stream waits for them, the host does not."""
        torch.cuda.current_stream(self._stream.device).wait_stream(self._stream)
        return self._results


@functools.cache
def _stream(device: torch.device) -> torch.cuda.Stream:
    """One for all runs, because libraries keep memory for each stream."""
    return torch.cuda.Stream(device)


def _trim(device: torch.device) -> None:
    """Gives back what graphs had; torch does not, where the driver allocates (cudaMallocAsync)."""
    name = "nvcuda.dll" if sys.platform == "win32" else "libcuda.so.1"
    with contextlib.suppress(OSError, AttributeError):  # then the next graph uses it again
        ctypes.CDLL(name).cuDeviceGraphMemTrim(device.index or 0)
