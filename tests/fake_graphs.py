"""CUDA graphs without CUDA: a recording computes nothing until it is started, as on a GPU."""

from __future__ import annotations

import torch


class FakeRecorder:
    """Records on any device. What it did is in `events`."""

    def __init__(self, fails=(), free=1e12):
        self.fails, self.free = fails, free
        self.events, self.needs = [], []

    def works_on(self, device):
        """Everywhere."""
        return True

    def room(self, device):
        """Free bytes."""
        return self.free

    def record(self, compute, inputs):
        """A recording; its results are not numbers until it is started."""
        self.events.append("record")
        if "record" in self.fails:
            raise RuntimeError("operation not permitted when stream is capturing\nmore")
        with torch.inference_mode(False):
            results = tuple(torch.full_like(one, torch.nan) for one in compute(*inputs))
        return FakeRecording(self, compute, inputs, results)

    def close(self):
        """Notes it."""
        self.events.append("close")


class FakeRecording:
    """Computes from the inputs' places into the results' places when it is started."""

    def __init__(self, recorder, compute, inputs, results):
        self.recorder, self.compute = recorder, compute
        self.inputs, self.own = inputs, results

    def start(self):
        """Computes."""
        self.recorder.events.append("start")
        if "start" in self.recorder.fails:
            raise torch.OutOfMemoryError("CUDA out of memory")
        with torch.inference_mode(False):
            for own, computed in zip(self.own, self.compute(*self.inputs), strict=True):
                own.copy_(computed)

    def results(self):
        """What the last start computed."""
        return self.own
