"""Small parts: a watch over gradients, values on their way, processes, files, labels in words."""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from guidance import LabelError
from guidance.core import atomic_write as files
from guidance.core import distributed as processes
from guidance.core.atomic_write import atomic_path, check_folder, check_target, write_tensors
from guidance.core.autograd import tracked
from guidance.core.distributed import ALONE, Processes, process_group
from guidance.core.host_copy import HostCopy, device_of, to_device
from guidance.core.labels import class_names, imagenet_names, parse_labels, spread_labels
from guidance.sampling import nan_guard as finite
from guidance.sampling.nan_guard import NaNGuard

# --- a watch over gradients ------------------------------------------------------------------

GOOD = torch.ones(3, 1, 2, 2)
SIGMA = torch.tensor([1.0, 2.5, 1.0 / 3])


def broken(index, value=torch.nan):
    values = GOOD.clone()
    values[index, 0, 1, 1] = value
    return values


def test_finite_gradients_pass():
    watch = NaNGuard()
    watch.check(GOOD, GOOD, SIGMA)
    watch.check(GOOD * 1e38, GOOD, SIGMA)
    watch.finish()


@pytest.mark.parametrize("value", [torch.nan, torch.inf, -torch.inf])
@pytest.mark.parametrize(("index", "sigma"), [(0, "1"), (1, "2.5"), (2, "0.33333")])
def test_a_gradient_that_is_not_finite_is_told(value, index, sigma):
    with pytest.raises(ValueError) as caught:
        NaNGuard().check(broken(index, value), GOOD, SIGMA)
    assert str(caught.value) == (
        f"The classifier's gradient is not finite at sigma {sigma} in image {index} of the batch "
        "(counted from 0); load the classifier in fp32 or bf16, or use another one."
    )


def test_an_image_that_was_not_finite_before_is_told():
    with pytest.raises(ValueError) as caught:
        NaNGuard().check(broken(1), broken(1), SIGMA)
    assert str(caught.value) == (
        "The image itself is not finite at sigma 2.5 in image 1 of the batch (counted from 0), "
        "before guidance; lower the scale or cfg, or load the diffusion model in fp32."
    )
    with pytest.raises(ValueError, match="gradient is not finite at sigma 1 in image 0 "):
        NaNGuard().check(broken(0) + broken(1), broken(1), SIGMA)


def test_an_image_alone_is_no_reason_to_stop():
    watch = NaNGuard()
    watch.check(GOOD, broken(1), SIGMA)
    watch.finish()


class Slow(HostCopy):
    """Values that arrive when the test says so."""

    here = False
    waited = 0

    @property
    def arrived(self):
        return Slow.here

    def wait(self):
        Slow.waited += 1
        return super().wait()


@pytest.fixture
def slow(monkeypatch):
    monkeypatch.setattr(finite, "Later", Slow)
    Slow.here, Slow.waited = False, 0
    return Slow


def test_what_was_found_is_told_when_it_has_arrived(slow):
    watch = NaNGuard()
    watch.check(broken(1), GOOD, SIGMA)
    watch.check(GOOD, GOOD, SIGMA)
    assert slow.waited == 0
    slow.here = True
    with pytest.raises(ValueError, match="not finite at sigma 2.5"):
        watch.check(GOOD, GOOD, SIGMA)
    watch.finish()
    assert slow.waited == 3, "each once, in their order"


def test_the_end_waits_for_all(slow):
    watch = NaNGuard()
    watch.check(GOOD, GOOD, SIGMA)
    watch.check(broken(0), GOOD, SIGMA)
    with pytest.raises(ValueError, match="not finite at sigma 1 "):
        watch.finish()
    assert slow.waited == 2


def test_at_most_a_hundred_looks_are_pending(slow):
    watch = NaNGuard()
    for _ in range(99):
        watch.check(GOOD, GOOD, SIGMA)
    assert slow.waited == 0
    watch.check(GOOD, GOOD, SIGMA)
    assert slow.waited == 100
    watch.check(GOOD, GOOD, SIGMA)
    assert slow.waited == 100


# --- values on their way ---------------------------------------------------------------------


def test_values_of_the_cpu_are_here_at_once():
    values = torch.ones(2, requires_grad=True)
    later = HostCopy(values * 2)
    assert later.arrived is True
    assert later.wait().tolist() == [2.0, 2.0] and not later.wait().requires_grad


def test_values_of_a_device_without_events_are_not_known_to_be_here():
    later = HostCopy(torch.ones(2, device="meta"))
    assert later.arrived is False


def test_a_network_is_where_its_weights_are():
    elsewhere = torch.device("meta")
    assert device_of(torch.nn.Linear(1, 1, device="meta"), torch.device("cpu")) == elsewhere
    assert device_of(torch.nn.ReLU(), elsewhere) == elsewhere


@pytest.mark.parametrize(("device", "waits"), [("cpu", True), ("meta", False)])
def test_only_a_copy_to_main_memory_is_waited_for(device, waits):
    class Values:
        def to(self, *where, **how):
            return where, how

    device = torch.device(device)
    assert to_device(device, Values()) == ((device,), {"non_blocking": not waits})


# --- predictions that can be differentiated --------------------------------------------------


def test_x_is_tracked_where_that_is_wanted():
    x = torch.ones(2)
    for mode in (torch.no_grad, torch.inference_mode, torch.enable_grad):
        with mode():
            before = torch.is_grad_enabled()
            with tracked(x) as x_in:
                assert x_in is not x and x_in.requires_grad and torch.is_grad_enabled()
                (gradient,) = torch.autograd.grad((x_in**2).sum(), x_in)
            assert gradient.tolist() == [2.0, 2.0]
            assert torch.is_grad_enabled() == before
            with tracked(x, False) as x_in:
                assert x_in is x and torch.is_grad_enabled() == before
    assert not x.requires_grad


# --- processes -------------------------------------------------------------------------------


def test_one_process_alone():
    assert (ALONE.rank, ALONE.count, ALONE.first) == (0, 1, True)
    assert Processes() == ALONE
    assert all(ALONE.has(number) for number in range(3))
    network, value = torch.nn.Linear(1, 1), object()
    assert ALONE.wrapped(network) is network
    assert ALONE.from_first(value) is value
    assert ALONE.gathered(value) == [value]
    assert ALONE.mean(torch.tensor(2.5)) == 2.5
    assert ALONE.share(torch.arange(3)).tolist() == [0, 1, 2]


def test_batches_and_rows_of_several_processes():
    three = [Processes(rank, 3) for rank in range(3)]
    assert [[number for number in range(7) if one.has(number)] for one in three] == [
        [0, 3, 6],
        [1, 4],
        [2, 5],
    ]
    assert [one.share(torch.arange(6)).tolist() for one in three] == [[0, 1], [2, 3], [4, 5]]
    assert [one.first for one in three] == [True, False, False]


@pytest.mark.parametrize(("count", "parts", "batch"), [(1, 1, 1), (2, 3, 6), (2, 3, 12)])
def test_a_batch_that_can_be_shared_out(count, parts, batch):
    Processes(0, count).check(batch, parts)


@pytest.mark.parametrize("batch", [3, 4, 5, 7])
def test_a_batch_that_cannot_be_shared_out(batch):
    with pytest.raises(ValueError) as caught:
        Processes(0, 2).check(batch, 3)
    assert str(caught.value) == (
        f"batch_size is {batch}; it must be a multiple of 6 (2 processes, 3 parts each)."
    )


def test_numbers_are_averaged_over_processes(monkeypatch):
    monkeypatch.setattr(processes.dist, "all_reduce", lambda value: value.add_(3.0))
    value = torch.tensor(1.0)
    assert Processes(0, 2).mean(value) == 2.0
    assert value.item() == 1.0


def test_what_processes_tell_each_other(monkeypatch):
    def broadcast(held):
        held[0] = "the first's"

    def gather(found, value):
        found[:] = [value, "another"]

    monkeypatch.setattr(processes.dist, "broadcast_object_list", broadcast)
    monkeypatch.setattr(processes.dist, "all_gather_object", gather)
    assert Processes(1, 2).from_first("mine") == "the first's"
    assert Processes(1, 2).gathered("mine") == ["mine", "another"]


@pytest.mark.parametrize("size", [None, "1"])
def test_without_torchrun_there_is_one_process(monkeypatch, size):
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    if size is not None:
        monkeypatch.setenv("WORLD_SIZE", size)
    monkeypatch.setattr(processes.dist, "init_process_group", None)
    with process_group() as found:
        assert found is ALONE


@pytest.mark.parametrize(
    ("cuda", "rank", "backend", "device"),
    [(False, None, "gloo", []), (True, "1", "nccl", [1]), (True, None, "nccl", [0])],
)
def test_processes_are_joined_for_the_time_of_the_block(monkeypatch, cuda, rank, backend, device):
    said, devices, dist = [], [], processes.dist
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


# --- files -----------------------------------------------------------------------------------


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refusal(check, *arguments):
    with pytest.raises(ValueError) as caught:
        check(*arguments)
    return str(caught.value)


def test_a_target_has_to_end_rightly_and_be_no_folder(here):
    for path, endings in (("a.png", (".png", ".npz")), ("new/a.npz", (".png", ".npz")), ("a", ())):
        check_target(path, *endings)
    assert refusal(check_target, "a.jpg", ".png") == "output is a.jpg; its name must end in .png."
    said = refusal(check_target, "a", ".png", ".npz")
    assert said == "output is a; its name must end in .png or .npz."
    Path("d.png").mkdir()
    said = refusal(check_target, "d.png", ".png")
    assert said == "output is d.png, which is a folder; give the name of a file."


def test_a_target_has_to_be_in_a_folder(here):
    Path("file").touch()
    end = f"but {here / 'file'} is no folder that can be written to."
    assert refusal(check_target, "file/a") == f"output is {Path('file/a')}, {end}"
    assert refusal(check_target, "file/b/a") == f"output is {Path('file/b/a')}, {end}"
    assert refusal(check_folder, "file") == f"output is file, {end}"
    check_folder("new/folder")
    check_folder(".")
    assert [path.name for path in here.iterdir()] == ["file"]


def test_a_folder_that_cannot_be_written_to_is_refused(here, monkeypatch):
    asked = []
    monkeypatch.setattr(files.os, "access", lambda path, mode: asked.append((path, mode)))
    said = refusal(check_target, "new/a")
    assert said == f"output is {Path('new/a')}, but {here} is no folder that can be written to."
    assert asked == [(here, os.W_OK)]


@pytest.mark.parametrize(("suffix", "ending"), [(None, ".txt"), (".part", ".part")])
def test_a_file_is_written_beside_its_place_first(here, suffix, ending):
    with atomic_path("new/a.txt", suffix) as temporary:
        assert temporary.parent.samefile("new") and temporary.exists()
        assert temporary.name.startswith(".a-") and temporary.suffix == ending
        temporary.write_text("whole")
        assert not Path("new/a.txt").exists()
    assert Path("new/a.txt").read_text() == "whole"
    assert [path.name for path in Path("new").iterdir()] == ["a.txt"]


def test_a_block_that_fails_leaves_the_old_file(here):
    Path("a.txt").write_text("old")
    with pytest.raises(KeyError), atomic_path("a.txt") as temporary:
        temporary.write_text("half")
        raise KeyError
    assert [(path.name, path.read_text()) for path in here.iterdir()] == [("a.txt", "old")]


@pytest.mark.skipif(os.name != "posix", reason="rights of POSIX")
@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o007, 0o660)])
def test_a_file_has_the_usual_rights(here, mask, mode):
    before = os.umask(mask)
    try:
        with atomic_path("a.txt"):
            pass
        assert os.umask(mask) == mask
    finally:
        os.umask(before)
    assert stat.S_IMODE(Path("a.txt").stat().st_mode) == mode


def test_tensors_are_written_whole_or_not_at_all(here, monkeypatch):
    write_tensors("a.safetensors", {"w": torch.ones(2)}, {"key": "value"})
    assert load_file("a.safetensors")["w"].tolist() == [1.0, 1.0]
    seen = []

    def full(tensors, path, metadata):
        seen.append((path.suffix, metadata))
        raise SafetensorError("no space left")

    monkeypatch.setattr(files, "save_file", full)
    with pytest.raises(OSError) as caught:
        write_tensors("a.safetensors", {}, {"key": "value"})
    assert str(caught.value) == (
        "a.safetensors could not be written (no space left); what was there before is untouched. "
        "Make room, or choose another place."
    )
    assert seen == [(".unfinished", {"key": "value"})]
    assert load_file("a.safetensors")["w"].tolist() == [1.0, 1.0]
    assert [path.name for path in here.iterdir()] == ["a.safetensors"]


# --- labels in words -------------------------------------------------------------------------

ANIMALS = ("Cat", "catfish", "zebra", "crane", "crane", "12")


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (
            "cat,,2",
            "label is 'cat,,2'; expected a class index or name, or several with commas.",
        ),
        ("6", "label is 6, but the classes go from 0 to 5."),
        ("-1", "label is -1, but the classes go from 0 to 5."),
        ("c", "label 'c' could be any of 4 classes: 'Cat' (0), 'catfish' (1), 'crane' (3), 'crane' "
              "(4); give the index."),
        ("Crane", "label 'Crane' could be any of 2 classes: 'crane' (3), 'crane' (4); give the "
                  "index."),
        ("ZIBRA", "label is 'ZIBRA', but none of the 6 classes has this name; did you mean "
                  "'zebra'?"),
        ("catz", "label is 'catz', but none of the 6 classes has this name; did you mean 'Cat' or "
                 "'catfish'?"),
        ("qqq", "label is 'qqq', but none of the 6 classes has this name; no name is similar."),
        ("1234567890", "label is '1234567890', but none of the 6 classes has this name; no name "
                       "is similar."),
    ],
)  # fmt: skip
def test_a_label_is_refused_in_these_words(text, said):
    with pytest.raises(LabelError) as caught:
        parse_labels(text, 6, ANIMALS)
    assert str(caught.value) == said


def test_at_most_five_classes_are_offered():
    names = [f"c{number}" for number in range(6)]
    with pytest.raises(LabelError) as caught:
        parse_labels("c", 6, names)
    offered = "'c0' (0), 'c1' (1), 'c2' (2), 'c3' (3), 'c4' (4)"
    assert str(caught.value) == (f"label 'c' could be any of 6 classes: {offered}; give the index.")


def test_the_first_and_the_last_index():
    assert parse_labels("0, 5, 12, 1", 6, ANIMALS) == [0, 5, 5, 1]
    assert parse_labels("000000001", 6, ANIMALS) == [1]


def test_classes_without_names_take_an_index():
    with pytest.raises(LabelError) as caught:
        parse_labels("cat", 3)
    assert str(caught.value) == (
        "label is 'cat', but this model's classes have no names; give an index from 0 to 2."
    )


def test_a_thousand_classes_are_imagenets(monkeypatch):
    monkeypatch.setattr("guidance.core.labels.imagenet_names", lambda: ("tench",))
    assert class_names(1000, None) == ("tench",)
    assert class_names(999, None) is None and class_names(1001, None) is None
    assert class_names(1000, ["own"]) == ("own",)


def test_a_broken_torchvision_is_as_none(monkeypatch):
    monkeypatch.setitem(sys.modules, "torchvision.models", None)
    imagenet_names.cache_clear()
    try:
        assert imagenet_names() is None
    finally:
        imagenet_names.cache_clear()


def test_labels_that_do_not_fit_a_batch_are_refused_in_these_words():
    assert spread_labels((4,), 1) == [4] and spread_labels((4,), 2) == [4, 4]
    for name, given in (("label", ()), ("away from", ("away from",))):
        with pytest.raises(LabelError) as caught:
            spread_labels([1, 2], 3, *given)
        assert str(caught.value) == (
            f"{name} lists 2 classes, but the batch has 3 images; give one class for all of them, "
            "or 3."
        )
