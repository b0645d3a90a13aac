"""Files that are written whole or not at all, and what is checked before the work."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file

from guidance.core import atomic_write
from guidance.core.atomic_write import atomic_path, check_folder, check_target, write_tensors


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def refused(said, check, *arguments):
    with pytest.raises(ValueError) as caught:
        check(*arguments)
    for words in said:
        assert words in str(caught.value)


def test_a_target_has_its_ending_and_is_in_a_folder(here):
    Path("d.png").mkdir()
    Path("file").touch()
    for path, endings in (("a.png", (".png", ".npz")), ("new/a.npz", (".png", ".npz")), ("a", ())):
        check_target(path, *endings)
    check_folder("new/folder")
    check_folder(".")
    refused(["a.jpg", "must end in .png."], check_target, "a.jpg", ".png")
    refused(["output is a;", ".png or .npz"], check_target, "a", ".png", ".npz")
    refused(["d.png", "is a folder"], check_target, "d.png", ".png")
    blocked = f"but {here / 'file'} is no folder"
    for check, path in (
        (check_target, "file/a"),
        (check_target, "file/b/a"),
        (check_folder, "file"),
    ):
        refused([f"output is {Path(path)},", blocked], check, path)
    assert sorted(path.name for path in here.iterdir()) == ["d.png", "file"]


def test_a_folder_that_cannot_be_written_to_is_refused(here, monkeypatch):
    seen = []
    monkeypatch.setattr(atomic_write.os, "access", lambda path, mode: seen.append((path, mode)))
    refused([str(Path("new/a")), f"{here} is no folder"], check_target, "new/a")
    assert seen == [(here, os.W_OK)]


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

    monkeypatch.setattr(atomic_write, "save_file", full)
    with pytest.raises(OSError, match=r"a.safetensors .*\(no space left\); .*untouched"):
        write_tensors("a.safetensors", {}, {"key": "value"})
    assert seen == [(".unfinished", {"key": "value"})]
    assert load_file("a.safetensors")["w"].tolist() == [1.0, 1.0]
    assert [path.name for path in here.iterdir()] == ["a.safetensors"]
