"""One process, or several that torchrun started: what each draws, and what they send."""

from __future__ import annotations

import pytest
import torch

from guidance.core import distributed
from guidance.core.distributed import ALONE, Processes, process_group


def test_one_process_alone():
    assert (ALONE.rank, ALONE.count, ALONE.first) == (0, 1, True)
    assert all(ALONE.has(number) for number in range(3))
    network, value = torch.nn.Linear(1, 1), object()
    assert ALONE.wrapped(network) is network
    assert ALONE.from_first(value) is value
    assert ALONE.gathered(value) == [value]
    assert ALONE.mean(torch.tensor(2.5)) == 2.5
    assert ALONE.share(torch.arange(3)).tolist() == [0, 1, 2]


def test_batches_and_rows_of_several_processes():
    three = [Processes(rank, 3) for rank in range(3)]
    batches = [[number for number in range(7) if one.has(number)] for one in three]
    assert batches == [[0, 3, 6], [1, 4], [2, 5]]
    assert [one.share(torch.arange(6)).tolist() for one in three] == [[0, 1], [2, 3], [4, 5]]
    assert [one.first for one in three] == [True, False, False]


@pytest.mark.parametrize(
    ("count", "parts", "batch", "fits"),
    [(1, 1, 1, True), (2, 3, 6, True), (2, 3, 12, True), (2, 3, 4, False), (2, 3, 9, False)],
)
def test_a_batch_is_shared_out_evenly(count, parts, batch, fits):
    if fits:
        Processes(0, count).check(batch, parts)
        return
    with pytest.raises(ValueError, match=f"batch_size is {batch}; .* multiple of 6"):
        Processes(0, count).check(batch, parts)


def test_what_processes_send(monkeypatch):
    def broadcast(held):
        held[0] = "the first's"

    def gather(found, value):
        found[:] = [value, "another"]

    monkeypatch.setattr(distributed.dist, "broadcast_object_list", broadcast)
    monkeypatch.setattr(distributed.dist, "all_gather_object", gather)
    monkeypatch.setattr(distributed.dist, "all_reduce", lambda value: value.add_(3.0))
    assert Processes(1, 2).from_first("mine") == "the first's"
    assert Processes(1, 2).gathered("mine") == ["mine", "another"]
    value = torch.tensor(1.0)
    assert Processes(0, 2).mean(value) == 2.0 and value.item() == 1.0


@pytest.mark.parametrize("size", [None, "1"])
def test_without_torchrun_there_is_one_process(monkeypatch, size):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if size is not None:
        monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.setattr(distributed.dist, "init_process_group", None)
    with process_group() as found:
        assert found is ALONE


@pytest.mark.parametrize(
    ("cuda", "rank", "backend", "device"),
    [(False, None, "gloo", []), (True, "1", "nccl", [1]), (True, None, "nccl", [0])],
)
def test_processes_are_joined_for_the_time_of_the_block(monkeypatch, cuda, rank, backend, device):
    said, devices, dist = [], [], distributed.dist
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    if rank is not None:
        monkeypatch.setenv("LOCAL_RANK", rank)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.cuda, "set_device", devices.append)
    monkeypatch.setattr(dist, "init_process_group", said.append)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: said.append("left"))
    monkeypatch.setattr(dist, "get_rank", lambda: 1)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    with pytest.raises(KeyError), process_group() as found:
        assert found == Processes(1, 2)
        assert said == [backend]
        raise KeyError
    assert (said, devices) == ([backend, "left"], device)
