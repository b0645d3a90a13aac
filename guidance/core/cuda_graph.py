"""CUDA graphs: work that a GPU repeats, recorded once, and then started with one launch.

The gradient of a small network is a thousand short kernels. To start them one by one takes the host
longer than it takes the GPU to compute them. A recorded graph reads its inputs and its weights
where they were when it was recorded, so inputs are copied there, and the weights' places are
checked.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Hashable
from typing import Any

import torch
from torch import Tensor, nn

from .cuda_recording import CUDARecorder, Tensors
from .kept_bytes import KeptBytes

# A graph costs about three computations: one to warm up, one to record, and what they wait for.
FEWEST = 8
# of what torch keeps for a gradient, with the buffers and the gaps of a pool
POOL_SHARE = 1.5
OFF = "CLASSIFIER_GUIDANCE_GRAPHS"

Compute = Callable[..., Tensors]


class GraphCache:
    """The graphs of one run, on NVIDIA GPUs; on other devices everything is computed as usual.

    evaluations: of the diffusion model in the run; below FEWEST nothing is recorded. room: bytes
    of a device that nothing else in the run needs. recorder: makes the graphs. The environment
    variable CLASSIFIER_GUIDANCE_GRAPHS=0 turns graphs off.
    """

    def __init__(
        self,
        evaluations: int = 0,
        room: Callable[[torch.device], float] | None = None,
        recorder: Any = None,
    ):
        self.recorder = recorder or CUDARecorder()
        self.room = room or self.recorder.room
        self.evaluations = evaluations
        self.is_on = evaluations >= FEWEST and os.environ.get(OFF) != "0"
        self._needs: dict[Hashable, float] = {}  # bytes, of what was computed once
        self._graphs: dict[Hashable, _Graph] = {}
        self._started: dict[Hashable, tuple[Tensor, _Graph]] = {}

    def every(self, interval: int) -> GraphCache:
        """The graphs of what is computed in every `interval`-th evaluation; EAGER if too seldom."""
        return self if self.evaluations // interval >= FEWEST else EAGER

    def holds(self, key: Hashable, network: nn.Module, *inputs: Tensor) -> bool:
        """Whether a graph of this computation is recorded, and its weights are where they were."""
        return self._current(_key(key, network, inputs)) is not None

    def run(self, key: Hashable, network: nn.Module, compute: Compute, *inputs: Tensor) -> Tensors:
        """compute(*inputs), which may read the weights of the network and nothing else.

        It is computed as usual the first time, and recorded the second time. Equal keys are equal
        computations of a network. The results are new tensors.
        """
        if not self._can_record(*inputs):
            return compute(*inputs)
        place = _key(key, network, inputs)
        graph = self._current(place)
        if graph is None and place not in self._needs:
            with KeptBytes() as kept:
                results = compute(*inputs)
            self._needs[place] = POOL_SHARE * kept.bytes
            return results
        try:
            graph = graph or self._recorded(place, network, compute, inputs)
            if graph is None:
                return compute(*inputs)
            graph.start(inputs)
            return graph.results()
        except RuntimeError as error:
            failure = _first_line(error)
        # not in the block above, whose error keeps its tensors alive
        graph = None
        self._give_up(failure)
        return compute(*inputs)

    def start(self, key: Hashable, network: nn.Module, *inputs: Tensor, of: Tensor) -> None:
        """Starts a recorded computation beside what the device does next, for `started`.

        of: the tensor that the inputs were made of. Does nothing where there is no graph.
        """
        graph = self._current(_key(key, network, inputs))
        if graph is None:
            return
        try:
            graph.start(inputs)
            self._started[key, id(network)] = of, graph
            return
        except RuntimeError as error:
            failure = _first_line(error)
        graph = None
        self._give_up(failure)

    def started(self, key: Hashable, network: nn.Module, of: Tensor) -> Tensors | None:
        """The results of what was started of this very tensor, or None; only the device waits."""
        begun = self._started.pop((key, id(network)), None)
        if begun is None:
            return None
        known, graph = begun
        return graph.results() if known is of and not graph.weights.moved else None

    def close(self) -> None:
        """The run has ended: gives the memory of its graphs back."""
        self.is_on = False
        self._graphs.clear()
        self._started.clear()
        self.recorder.close()

    def _can_record(self, *inputs: Tensor) -> bool:
        (device, *others) = {one.device for one in inputs}
        return self.is_on and not others and self.recorder.works_on(device)

    def _current(self, key: Hashable) -> _Graph | None:
        graph = self._graphs.get(key)
        if graph is not None and graph.weights.moved:
            del self._graphs[key]
            return None
        return graph

    def _recorded(
        self, key: Hashable, network: nn.Module, compute: Compute, inputs: Tensors
    ) -> _Graph | None:
        """A new graph; None where memory is short."""
        if self._needs[key] > self.room(inputs[0].device):
            return None
        graph = _Graph(self.recorder, network, compute, inputs)
        self._graphs[key] = graph
        return graph

    def _give_up(self, failure: str) -> None:
        logging.warning(
            "Classifier Guidance computes gradients without CUDA graphs in this run, more slowly: "
            "%s",
            failure,
        )
        self.close()


EAGER = GraphCache()


class _Graph:
    """One recorded computation, with the tensors that it reads."""

    def __init__(self, recorder: Any, network: nn.Module, compute: Compute, inputs: Tensors):
        self.network, self.weights = network, _Weights(network)
        with torch.inference_mode(False):
            self._inputs = tuple(torch.empty_like(one).copy_(one) for one in inputs)
        self._recording = recorder.record(compute, self._inputs)

    def start(self, inputs: Tensors) -> None:
        self._recording.results()  # an earlier start may still read its inputs
        with torch.inference_mode(False):
            for own, given in zip(self._inputs, inputs, strict=True):
                own.copy_(given)
        self._recording.start()

    def results(self) -> Tensors:
        """New tensors, since the next start overwrites the graph's own."""
        return tuple(result.clone() for result in self._recording.results())


class _Weights:
    """Where the weights of a network are."""

    def __init__(self, network: nn.Module):
        holders = [held for each in network.modules() for held in (each._parameters, each._buffers)]
        named = [(held, name) for held in holders for name in held]
        self._places = [(held, name, _place(held[name])) for held, name in named]

    @property
    def moved(self) -> bool:
        """Whether a weight was moved or replaced since."""
        return any(_place(held.get(name)) != place for held, name, place in self._places)


def _place(weight: Tensor | None) -> tuple | None:
    return None if weight is None else (weight.data_ptr(), weight.dtype)


def _key(key: Hashable, network: nn.Module, inputs: Tensors) -> Hashable:
    return key, id(network), tuple((one.shape, one.dtype, one.device) for one in inputs)


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0] or type(error).__name__
