"""How a CUDA graph is recorded, started and freed; here torch's CUDA functions only note calls."""

from __future__ import annotations

import contextlib
from types import SimpleNamespace

import pytest
import torch

from guidance.core import cuda_recording
from guidance.core.cuda_recording import CUDARecorder

CPU = torch.device("cpu")


class Stream:
    """Notes what it waits for."""

    def __init__(self, name, log):
        self.name, self.log, self.device = name, log, CPU

    def wait_stream(self, other):
        """Notes it."""
        self.log.append(f"{self.name} waits for {other.name}")


class Graph:
    """Notes what is done with it."""

    def __init__(self, log):
        self.replay = lambda: log.append("replay")
        self.reset = lambda: log.append("reset")


@pytest.fixture
def log(monkeypatch):
    """The calls, in order, of a device with 10 GB, of which torch holds 4 and uses 3."""
    calls = []
    main, side = Stream("main", calls), Stream("side", calls)

    @contextlib.contextmanager
    def noted(name):
        calls.append(name)
        yield
        calls.append(f"end of {name}")

    def graph(recorded, pool, stream, capture_error_mode):
        assert (pool, stream, capture_error_mode) == ("pool", side, "thread_local")
        return noted("recording")

    fakes = {
        "current_stream": lambda device=None: main,
        "Stream": lambda device: side,
        "stream": lambda stream: noted(stream.name),
        "device": lambda device: contextlib.nullcontext(),
        "graph": graph,
        "graph_pool_handle": lambda: "pool",
        "CUDAGraph": lambda: Graph(calls),
        "synchronize": lambda device: calls.append("synchronize"),
        "empty_cache": lambda: calls.append("empty"),
        "get_allocator_backend": lambda: "native",
        "mem_get_info": lambda device: (6e9, 10e9),
        "memory_reserved": lambda device: 4e9,
        "memory_allocated": lambda device: 3e9,
        "max_memory_allocated": lambda device: 5e9,
        "is_current_stream_capturing": lambda: False,
    }
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    cuda_recording._stream.cache_clear()
    yield calls
    cuda_recording._stream.cache_clear()


def double(log):
    def compute(x):
        log.append("compute")
        return (2 * x,)

    return compute


def test_recording_and_starting(log):
    """Warmed up on the side stream first; started there, between what the main stream does."""
    recorder, x = CUDARecorder(), torch.ones(2)
    recording = recorder.record(double(log), (x,))
    warm = ["side waits for main", "side", "compute", "end of side", "main waits for side"]
    assert log == [*warm, "recording", "compute", "end of recording"]
    log.clear()
    recording.start()
    (result,) = recording.results()
    assert log == ["side waits for main", "side", "replay", "end of side", "main waits for side"]
    assert result.tolist() == [2, 2]


@pytest.mark.parametrize("backend", ["native", "cudaMallocAsync"])
def test_memory_is_given_back(log, monkeypatch, backend):
    """Where the driver allocates, it keeps a graph's memory until it is told to trim it."""
    trimmed = []
    library = SimpleNamespace(cuDeviceGraphMemTrim=trimmed.append)
    monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: backend)
    monkeypatch.setattr(cuda_recording.ctypes, "CDLL", lambda name: library)
    recorder = CUDARecorder()
    recorder.close()
    assert log == []
    for _ in range(2):
        recorder.record(double(log), (torch.ones(2),))
    log.clear()
    recorder.close()
    assert log == ["synchronize", "reset", "reset", "empty"]
    assert trimmed == ([0] if backend == "cudaMallocAsync" else [])
    recorder.close()
    assert len(log) == 4


def test_a_driver_without_trimming(log, monkeypatch):
    def missing(name):
        raise OSError(name)

    monkeypatch.setattr(torch.cuda, "get_allocator_backend", lambda: "cudaMallocAsync")
    monkeypatch.setattr(cuda_recording.ctypes, "CDLL", missing)
    recorder = CUDARecorder()
    recorder.record(double(log), (torch.ones(2),))
    recorder.close()
    assert log[-1] == "empty"


def test_the_room_for_a_graph(log):
    """What is free now, less what the run used at once beside what it uses now."""
    assert CUDARecorder().room(CPU) == 6e9 + (4e9 - 3e9) - (5e9 - 3e9)


def test_where_graphs_work(log, monkeypatch):
    recorder, gpu = CUDARecorder(), torch.device("cuda")
    assert recorder.works_on(gpu)
    assert not any(recorder.works_on(torch.device(kind)) for kind in ("cpu", "mps", "xpu"))
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    assert not recorder.works_on(gpu)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: False)
    monkeypatch.setattr(torch.version, "hip", "6.4")
    assert not recorder.works_on(gpu)
