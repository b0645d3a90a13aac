"""From pixels in [-1, 1] to the input of an image classifier: exact values."""

from __future__ import annotations

import pytest
import torch

from guidance.classifiers.preprocessing import Preprocessing

PLAIN = {"mean": (0.0,), "std": (1.0,)}


def row(*values):
    """One image of one row, of pixels in [0, 1]."""
    return (torch.tensor(values) * 2 - 1).view(1, 1, 1, -1)


def output(chain, x):
    return chain(x).flatten().tolist()


def test_pixels_stay_as_they_are_by_default():
    x = torch.tensor([-1.0, 0.0, 1.0, 1.5]).view(1, 1, 2, 2).expand(1, 3, 2, 2)
    torch.testing.assert_close(Preprocessing()(x), x.contiguous())
    assert Preprocessing()(x.double()).dtype == torch.float64


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"mean": (0.0, 0.5, 1.0), "std": (1.0, 0.5, 0.25)}, [0.25, 0.0, -1.0]),
        # BGR before they are normalised
        ({"mean": (0.0, 0.0, 0.5), "std": (1.0, 1.0, 0.5), "bgr": True}, [0.75, 0.5, -0.5]),
    ],
)
def test_pixels_are_normalised_channel_by_channel(options, expected):
    x = torch.tensor([0.25, 0.5, 0.75]).view(1, 3, 1, 1) * 2 - 1
    assert output(Preprocessing(**options), x) == pytest.approx(expected)


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
        ((1, 1), (8, 8), (1, 1)),
        (None, (3, 5), (3, 5)),
    ],
)
def test_the_size_after_resizing(resize, size, found):
    image = torch.zeros(1, 1, *size)
    assert tuple(Preprocessing(resize=resize, **PLAIN)(image).shape[2:]) == found


@pytest.mark.parametrize(
    ("interpolation", "pixels", "expected"),
    [
        # the pixel in the middle
        ("nearest", (0.0, 0.25, 0.5, 0.25, 0.75, 1.0), [0.25, 0.75]),
        # a triangle of weights, as Pillow has it: 3, 3 and 1 eighths at the edge
        ("bilinear", (0.0, 0.5, 1.0, 0.25), [(3 * 0.5 + 1) / 7, (0.5 + 3 + 3 * 0.25) / 7]),
        (None, (0.0, 0.5, 1.0, 0.25), [(3 * 0.5 + 1) / 7, (0.5 + 3 + 3 * 0.25) / 7]),
    ],
)
def test_resizing_to_two_pixels(interpolation, pixels, expected):
    options = PLAIN | ({"interpolation": interpolation} if interpolation else {})
    chain = Preprocessing(resize=(1, 2), **options)
    assert output(chain, row(*pixels)) == pytest.approx(expected)


def test_bicubic_goes_beyond_an_edge():
    chain = Preprocessing(resize=(1, 8), interpolation="bicubic", **PLAIN)
    found = output(chain, row(0.0, 0.0, 1.0, 1.0))
    assert min(found) < -0.01 and max(found) > 1.01


@pytest.mark.parametrize(
    ("width", "found"),
    [
        (1, [3]),
        (2, [3, 4]),
        (3, [2, 3, 4]),
        (5, [1, 2, 3, 4, 5]),
        (6, [1, 2, 3, 4, 5, 0]),
        (7, [0, 1, 2, 3, 4, 5, 0]),
        (8, [0, 1, 2, 3, 4, 5, 0, 0]),
    ],
)
def test_the_middle_is_taken_and_what_is_missing_is_black(width, found):
    """Half a pixel too many is rounded as Python rounds; rows as columns."""
    pixels = row(0.1, 0.2, 0.3, 0.4, 0.5)
    expected = pytest.approx([x / 10 for x in found], abs=1e-6)
    assert output(Preprocessing(crop=(1, width), **PLAIN), pixels) == expected
    assert output(Preprocessing(crop=(width, 1), **PLAIN), pixels.transpose(2, 3)) == expected


@pytest.mark.parametrize(("down", "place"), [(False, 2), (True, 1)])
def test_an_odd_difference_beside_a_side_that_is_padded(down, place):
    pixels, expected = row(0.1, 0.2, 0.3, 0.4), pytest.approx([(place + 1) / 10, 0], abs=1e-6)
    assert output(Preprocessing(crop=(2, 1), crop_down=down, **PLAIN), pixels) == expected
    tall = Preprocessing(crop=(1, 2), crop_down=down, **PLAIN)
    assert output(tall, pixels.transpose(2, 3)) == expected


def test_an_image_is_resized_before_it_is_cropped():
    chain = Preprocessing(resize=2, crop=(2, 2), interpolation="nearest", **PLAIN)
    x = torch.arange(32.0).view(1, 1, 4, 8) * 2 - 1
    assert output(chain, x) == [11.0, 13.0, 27.0, 29.0]


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"resize": 0}, "resize is 0 and crop None; .* positive"),
        ({"resize": (1, 0)}, r"resize is \(1, 0\) "),
        ({"crop": (0, 1)}, r"crop \(0, 1\); .* positive"),
        ({"mean": (0.5,)}, r"mean is \(0.5,\) and std \(0.5, 0.5, 0.5\)"),
        ({"mean": (0.5,), "std": (0.0,)}, r"std \(0.0,\); std must be above 0"),
        ({"interpolation": "lanczos"}, "interpolation is 'lanczos'; .* nearest, bilinear, bicubic"),
    ],
)
def test_what_cannot_be_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        Preprocessing(**options)
    Preprocessing(resize=1, crop=(1, 1))
