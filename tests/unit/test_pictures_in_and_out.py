"""Pictures in and out: pixels, grids, what files hold, and the small image of an upsampler."""

from __future__ import annotations

import io
import struct
import zipfile
import zlib

import numpy as np
import pytest
import torch
from PIL import Image

from guidance.core import images as module
from guidance.core.images import (
    from_uint8,
    grid,
    load_samples,
    open_picture,
    save_grid,
    save_samples,
    to_uint8,
)
from guidance.sampling.low_res import enlarged


def sentence(refused, *arguments):
    """What a ValueError says."""
    with pytest.raises(ValueError) as error:
        refused(*arguments)
    return str(error.value)


def test_pixels_are_rounded_down_and_clamped_and_their_channels_go_last():
    values = torch.tensor([-1.5, -1.0, 0.0, 0.9999, 1.0, 1.5])
    assert to_uint8(values.view(1, 1, 1, 6)).ravel().tolist() == [0, 0, 127, 254, 255, 255]
    pixels = np.arange(2 * 3 * 4 * 5, dtype=np.uint8).reshape(2, 3, 4, 5)
    images = from_uint8(pixels)
    assert images.shape == (2, 5, 3, 4) and images.dtype == torch.float32
    assert float(images[1, 4, 2, 3]) == pytest.approx(119 / 127.5 - 1)
    out = to_uint8(images + 1e-5)
    assert (out == pixels).all() and out.flags["C_CONTIGUOUS"]
    pixels[:] = 0
    assert float(images[1, 4, 2, 3]) == pytest.approx(119 / 127.5 - 1), "a copy"


def plain(count, height=2, width=3, channels=3):
    """Images of one value each: 100, 101, ..."""
    values = np.arange(100, 100 + count, dtype=np.uint8)
    return np.broadcast_to(values[:, None, None, None], (count, height, width, channels)).copy()


def test_a_grid_goes_row_by_row_with_gaps_of_two():
    sheet = grid(plain(3), columns=2)
    assert (sheet.shape, sheet.dtype) == ((2 + 2 * (2 + 2), 2 + 2 * (3 + 2), 3), np.uint8)
    gap = ["." * 12] * 2
    rows = [*gap, *["..aaa..bbb.."] * 2, *gap, *["..ccc......."] * 2, *gap]
    shades = {".": 64, "a": 100, "b": 101, "c": 102}
    assert (sheet[..., 0] == [[shades[letter] for letter in row] for row in rows]).all()
    assert (sheet == sheet[..., :1]).all()


def test_a_grid_is_about_square_where_nobody_says():
    for count, rows, columns in ((1, 1, 1), (2, 1, 2), (4, 2, 2), (5, 2, 3), (7, 3, 3), (10, 3, 4)):
        sheet = grid(plain(count), gap=0)
        assert sheet.shape == (2 * rows, 3 * columns, 3)
        assert sheet[-1, -1, 0] == (99 + count if count == rows * columns else 64)


def test_small_images_are_shown_at_twice_their_size(tmp_path):
    """By their height; every pixel is a square of four."""
    for side, times in ((64, 2), (65, 1)):
        images = np.random.default_rng(0).integers(0, 256, (2, side, 9, 3), dtype=np.uint8)
        save_grid(tmp_path / "a.png", images, columns=2)
        shown = np.asarray(Image.open(tmp_path / "a.png"))
        assert shown.shape == ((side + 4) * times, 24 * times, 3)
        assert (shown == grid(images, 2).repeat(times, axis=0).repeat(times, axis=1)).all()
    save_grid(tmp_path / "a", plain(2, channels=1))
    picture = Image.open(tmp_path / "a")
    assert (picture.format, picture.mode, picture.size) == ("PNG", "L", (24, 12))
    assert picture.getpixel((4, 4)) == 100 and picture.getpixel((0, 0)) == 64


def test_samples_are_written_by_their_names_ending(tmp_path):
    images, labels = plain(3), np.array([2, 0, 1])
    save_samples(tmp_path / "deep" / "a.npz", images, labels, None)
    loaded = load_samples(tmp_path / "deep" / "a.npz")
    assert (loaded[0] == images).all() and loaded[1].tolist() == [2, 0, 1] and loaded[2] is None
    with zipfile.ZipFile(tmp_path / "deep" / "a.npz") as archive:
        assert {one.compress_type for one in archive.infolist()} == {zipfile.ZIP_DEFLATED}
    for columns, size in ((3, (34, 12)), (None, (24, 20))):
        save_samples(tmp_path / "a.png", images, labels, columns)
        assert Image.open(tmp_path / "a.png").size == size


def written(path, **arrays):
    np.savez(path, **{"arr_0": plain(2), "arr_1": np.array([1, 0])} | arrays)
    return path


@pytest.fixture
def path(tmp_path):
    return tmp_path / "a.npz"


def test_names_of_any_kind_are_text(path):
    for names, read in (
        (np.array(["cat", "Käse"]), ["cat", "Käse"]),
        (np.array([b"cat", "Käse".encode()]), ["cat", "Käse"]),
        (np.array([7, -8]), ["7", "-8"]),
        (np.zeros(100_000, np.uint8), ["0"] * 100_000),
    ):
        assert load_samples(written(path, names=names))[2] == read


def test_arrays_that_do_not_fit(path):
    for changes, said in (
        ({"arr_0": plain(2)[0]}, "images uint8 (2, 3, 3)"),
        ({"arr_0": plain(2) / 2}, "images float64 (2, 2, 3, 3)"),
        ({"arr_0": plain(2, height=0)}, "images uint8 (2, 0, 3, 3)"),
        ({"arr_1": np.array([1.0, 0.0])}, "labels float64 (2,)"),
        ({"arr_1": np.array([0, -1])}, "labels int64 (2,)"),
        ({"arr_1": np.array([0, 100_000])}, "label 100000"),
        ({"names": np.array([1.5, 2.5])}, "names float64 (2,)"),
        ({"names": np.zeros(100_001, np.uint8)}, "names uint8 (100001,)"),
    ):
        message = sentence(load_samples, written(path, **changes))
        assert str(path) in message and said in message
    assert load_samples(written(path, arr_1=np.array([0, 99_999])))[1].tolist() == [0, 99_999]


def test_versions_of_the_array_format(path):
    for version in (1, 2, 3):
        with zipfile.ZipFile(path, "w") as archive:
            for name, values in (("arr_0.npy", plain(2)), ("arr_1.npy", np.array([1, 0]))):
                np.lib.format.write_array(content := io.BytesIO(), values, (version, 0))
                archive.writestr(name, content.getvalue())
        if version < 3:
            assert (load_samples(path)[0] == plain(2)).all()
    assert "is not a whole .npz file" in sentence(load_samples, path)


def test_how_far_a_file_may_unpack(path):
    """Blank pictures to 64 MiB and a hundred times the file, no further; other arrays aside."""
    for mebibytes, read in ((64, True), (72, False)):
        pixels = np.zeros((1, mebibytes, 1 << 20, 1), np.uint8)
        np.savez_compressed(path, arr_0=pixels, arr_1=np.array([0]))
        if read:
            assert load_samples(path)[0].shape == pixels.shape
        else:
            total = (mebibytes << 20) + 128 + 136
            with pytest.raises(ValueError) as error:
                load_samples(path)
            assert str(error.value.__cause__) == f"it would unpack to {total} bytes"
    assert 100 * path.stat().st_size < 8 << 20


def test_arrays_of_no_use_count_for_nothing(path, monkeypatch):
    monkeypatch.setattr(module, "MOST_UNPACKED", 0)
    written(path, other=np.zeros(5000))
    needed = 128 + plain(2).size + 128 + 16
    monkeypatch.setattr(module, "UNPACKED_ANYWAY", needed)
    assert len(load_samples(path)[0]) == 2
    monkeypatch.setattr(module, "UNPACKED_ANYWAY", needed - 1)
    with pytest.raises(ValueError, match="is not a whole"):
        load_samples(path)


def forged(path, width, height):
    """A picture of a few bytes that claims another size."""
    Image.new("1", (8, 8)).save(path, format="PNG")
    content = bytearray(path.read_bytes())
    content[16:24] = struct.pack(">II", width, height)
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)
    return path


def test_how_many_pixels_a_picture_may_have(tmp_path, monkeypatch):
    """One row more than 128 Mi pixels is refused for its size, before any are read."""
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    for height, reason in ((8192, None), (8193, "16384x8193 pixels")):
        with pytest.raises(ValueError) as error:
            open_picture(forged(tmp_path / "a.png", 16384, height))
        said = str(error.value.__cause__)
        assert said == reason if reason else "pixels" not in said


def test_it_is_enlarged_bilinearly():
    """Pixels lie in the centres of their squares."""
    large = enlarged(torch.tensor([[[[0.0, 8.0]]]]), [1, 8])
    assert large.ravel().tolist() == [0, 0, 1, 3, 5, 7, 8, 8]
    assert enlarged(torch.zeros(2, 3, 4, 6), (16, 24)).shape == (2, 3, 16, 24)
