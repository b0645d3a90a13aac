"""From pixels in [-1, 1] to the input of an image classifier: exact values."""

from __future__ import annotations

import pytest
import torch

from guidance.classifiers.preprocessing import INTERPOLATIONS, Preprocessing

PLAIN = {"mean": (0.0,), "std": (1.0,)}


def row(*values, channels=1):
    """One image of one row, of pixels in [0, 1]."""
    return (torch.tensor(values) * 2 - 1).view(1, 1, 1, -1).expand(1, channels, 1, -1)


def seen(chain, x):
    return chain(x).flatten().tolist()


def test_pixels_stay_as_they_are_by_default():
    chain = Preprocessing()
    assert vars(chain) == {
        "resize": None,
        "crop": None,
        "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5),
        "interpolation": "bilinear",
        "bgr": False,
    }
    x = torch.tensor([-1.0, 0.0, 1.0, 1.5]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    torch.testing.assert_close(chain(x), x.contiguous())
    assert INTERPOLATIONS == ("nearest", "bilinear", "bicubic")


def test_pixels_are_normalised_channel_by_channel():
    chain = Preprocessing(mean=(0.0, 0.5, 1.0), std=(1.0, 0.5, 0.25))
    assert seen(chain, row(0.75, channels=3)) == pytest.approx([0.75, 0.5, -1.0])


def test_bgr_turns_the_channels_before_they_are_normalised():
    chain = Preprocessing(mean=(0.0, 0.0, 0.5), std=(1.0, 1.0, 1.0), bgr=True)
    x = torch.tensor([0.25, 0.5, 0.75]).view(1, 3, 1, 1) * 2 - 1
    assert seen(chain, x) == pytest.approx([0.75, 0.5, -0.25])


def test_the_dtype_stays():
    assert Preprocessing(**PLAIN)(row(0.5).double()).dtype == torch.float64


def height_and_width(resize, size, **more):
    return tuple(Preprocessing(resize=resize, **PLAIN, **more)(torch.zeros(1, 1, *size)).shape[2:])


@pytest.mark.parametrize(
    ("resize", "size", "found"),
    [
        (4, (8, 12), (4, 6)),
        (4, (12, 8), (6, 4)),
        (4, (7, 13), (4, 7)),
        (1, (3, 8), (1, 2)),
        (4, (4, 9), (4, 9)),
        ((3, 5), (8, 8), (3, 5)),
        ((8, 8), (8, 8), (8, 8)),
        (None, (3, 5), (3, 5)),
    ],
)
def test_the_size_after_resizing(resize, size, found):
    assert height_and_width(resize, size) == found


def test_nearest_takes_the_pixel_in_the_middle():
    chain = Preprocessing(resize=(1, 2), interpolation="nearest", **PLAIN)
    assert seen(chain, row(0.0, 0.25, 0.5, 0.25, 0.75, 1.0)) == pytest.approx([0.25, 0.75])


def test_bilinear_averages_over_what_becomes_one_pixel():
    """A triangle of weights, as Pillow has it: 3, 3 and 1 eighths at the edge."""
    chain = Preprocessing(resize=(1, 2), **PLAIN)
    expected = [(3 * 0.0 + 3 * 0.5 + 1 * 1.0) / 7, (1 * 0.5 + 3 * 1.0 + 3 * 0.25) / 7]
    assert seen(chain, row(0.0, 0.5, 1.0, 0.25)) == pytest.approx(expected)


def test_bicubic_goes_beyond_an_edge():
    chain = Preprocessing(resize=(1, 8), interpolation="bicubic", **PLAIN)
    found = seen(chain, row(0.0, 0.0, 1.0, 1.0))
    assert min(found) < -0.01 and max(found) > 1.01
    plain = seen(Preprocessing(resize=(1, 8), **PLAIN), row(0.0, 0.0, 1.0, 1.0))
    assert (min(plain), max(plain)) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("width", "found"),
    [
        (1, [0.3]),
        (2, [0.3, 0.4]),
        (3, [0.2, 0.3, 0.4]),
        (5, [0.1, 0.2, 0.3, 0.4, 0.5]),
        (6, [0.1, 0.2, 0.3, 0.4, 0.5, 0.0]),
        (7, [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.0]),
        (8, [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.0, 0.0]),
    ],
)
def test_the_middle_is_taken_and_what_is_missing_is_black(width, found):
    """Half a pixel too many is rounded as Python rounds."""
    chain = Preprocessing(crop=(1, width), **PLAIN)
    got = seen(chain, row(0.1, 0.2, 0.3, 0.4, 0.5))
    assert got == pytest.approx(found, abs=1e-6)


def test_rows_are_cropped_as_columns_are():
    x = torch.arange(12.0).view(1, 1, 4, 3)
    chain = Preprocessing(crop=(2, 5), mean=(0.5,), std=(0.5,))
    assert chain(x).int().tolist() == [[[[-1, 3, 4, 5, -1], [-1, 6, 7, 8, -1]]]]
    chain = Preprocessing(crop=(7, 1), mean=(0.5,), std=(0.5,))
    assert chain(x).int().flatten().tolist() == [-1, 1, 4, 7, 10, -1, -1]


def test_an_image_is_resized_before_it_is_cropped():
    chain = Preprocessing(resize=2, crop=(2, 2), interpolation="nearest", **PLAIN)
    x = torch.arange(32.0).view(1, 1, 4, 8) * 2 - 1
    found = chain(x).flatten().tolist()
    assert found == [11.0, 13.0, 27.0, 29.0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"resize": 0}, "resize is 0 and crop None; both must be positive"),
        ({"resize": (1, 0)}, "resize is (1, 0) and crop None; both must be positive"),
        ({"crop": (0, 1)}, "resize is None and crop (0, 1); both must be positive"),
        ({"mean": (0.5,)}, "mean is (0.5,) and std (0.5, 0.5, 0.5); std must be above 0"),
        (
            {"mean": (0.5,), "std": (0.0,)},
            "mean is (0.5,) and std (0.0,); std must be above 0",
        ),
        (
            {"interpolation": "lanczos"},
            "interpolation is 'lanczos'; expected nearest, bilinear, bicubic",
        ),
    ],
)
def test_what_cannot_be_is_refused(options, said):
    with pytest.raises(ValueError) as caught:
        Preprocessing(**options)
    assert str(caught.value) == said


def test_the_smallest_sizes():
    Preprocessing(resize=1, crop=(1, 1))
    Preprocessing(resize=(1, 1))
