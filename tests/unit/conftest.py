"""What the tests of the commands share: files to work on, and a way to run a command."""

from __future__ import annotations

import contextlib

import numpy as np
import pytest
from PIL import Image
from tiny_networks import CLASSES, NAMES, SIZE, half_unet, unet, write_model

from guidance.__main__ import main


@pytest.fixture(scope="session")
def files(tmp_path_factory):
    """Data as .npz and as pictures, and random models made for it."""
    folder = tmp_path_factory.mktemp("files")
    generator = np.random.default_rng(0)
    images = generator.integers(0, 256, (24, SIZE, SIZE, 3), dtype=np.uint8)
    labels = np.arange(24) % CLASSES
    np.savez(folder / "data.npz", arr_0=images, arr_1=labels, names=np.array(NAMES))
    for index, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = folder / "pictures" / NAMES[label] / f"{index}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(path)
    write_model(folder / "diffusion.safetensors", unet())
    uncond = unet(num_classes=None, null_class=None)
    write_model(folder / "uncond.safetensors", uncond, labels=None)
    write_model(folder / "classifier.safetensors", half_unet())
    write_model(folder / "judge.safetensors", half_unet(pool="adaptive"))
    return folder


@pytest.fixture
def guidance(files, tmp_path, monkeypatch, capsys):
    """Runs a command in an empty folder; "@name" stands for a file of `files`."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments, status=0):
        given = [str(files / a[1:]) if a.startswith("@") else a for a in arguments]
        got = main(given)
        printed = capsys.readouterr()
        assert got == status, printed.err
        return printed.out if status == 0 else printed.err

    return run


@pytest.fixture
def no_room():
    """`with no_room(size)`: the system refuses to make any file of this process larger."""
    resource = pytest.importorskip("resource")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)

    @contextlib.contextmanager
    def limited(size):
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
        try:
            yield
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, before)

    yield limited
    resource.setrlimit(resource.RLIMIT_FSIZE, before)
