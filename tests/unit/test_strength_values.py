"""The strength of a classifier: exact factors, defaults, what is off, and sentences."""

from __future__ import annotations

import math

import pytest
import torch

from guidance import GuidanceSchedule
from guidance.sampling.strength import Strength, cap_factor, entropy_factor, smoothed_target
from guidance.schedules.run_position import RunPosition

PLACE = RunPosition(percent=0.5, step=1.0, steps=3, sigma=1.0)
UNEVEN = torch.tensor([[0.5, 0.5, 0.0, 0.0], [1.0, 0.0, 0.0, 0.0], [0.25] * 4]).log()


def test_options_are_off_by_default():
    strength = Strength(scale=2.0)
    assert (strength.entropy_limit, strength.cap, strength.label_smoothing) == (1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    "options, said",
    [
        ({"scale": math.inf}, "scale is inf; it must be a finite number."),
        ({"scale": (1.0, math.nan)}, "scale is (1.0, nan); it must be a finite number."),
        (
            {"entropy_limit": 0.99},
            "entropy_limit is 0.99; it must be 1 (off) or more.",
        ),
        ({"cap": -0.01}, "cap is -0.01; it must be 0 (off) or more."),
        ({"cap": math.nan}, "cap is nan; it must be 0 (off) or more."),
        (
            {"label_smoothing": 1.0},
            "label_smoothing is 1.0; it must be 0 (off) or more, below 1.",
        ),
        (
            {"label_smoothing": -0.01},
            "label_smoothing is -0.01; it must be 0 (off) or more, below 1.",
        ),
    ],
)
def test_options_outside_their_range(options, said):
    with pytest.raises(ValueError) as error:
        Strength(**{"scale": 1.0} | options)
    assert str(error.value) == said


def test_options_at_the_ends_of_their_range():
    Strength(scale=(-1.0, 0.0), entropy_limit=1.0, cap=0.0, label_smoothing=0.0)
    Strength(scale=1.0, entropy_limit=math.inf, cap=9.0, label_smoothing=0.999)


def test_one_scale_is_that_of_every_image():
    scales = Strength(scale=2.5).scales(UNEVEN.double())
    assert scales.dtype == torch.float64 and scales.tolist() == [2.5, 2.5, 2.5]
    assert Strength(scale=(2.5,)).scales(UNEVEN).tolist() == [2.5, 2.5, 2.5]


def test_each_image_has_its_scale_and_its_factor():
    scales = (1.0, -2.0, 3.0)
    assert Strength(scale=scales).scales(UNEVEN).tolist() == [1, -2, 3]
    assert Strength(scale=scales).scales(UNEVEN).dtype == torch.float32
    entropic = Strength(scale=scales, entropy_limit=5.0).scales(UNEVEN)
    assert entropic.tolist() == pytest.approx([2.0, -10.0, 3.0])


def test_the_entropy_factor_in_half_precision():
    """The entropy of a nearly sure p is below what half precision tells from nothing."""
    nearly = torch.tensor([[1 - 1e-3, 1e-3]]).log()
    exact = math.log(2) / -(1e-3 * math.log(1e-3) + (1 - 1e-3) * math.log(1 - 1e-3))
    assert float(entropy_factor(nearly, 1e6)) == pytest.approx(exact, rel=1e-3)
    half = entropy_factor(nearly.half(), 1e6)
    assert half.dtype == torch.float32 and float(half) == pytest.approx(exact, rel=0.05)
    assert entropy_factor(nearly.double(), 2.0).dtype == torch.float64


def test_the_entropy_factor_lies_between_one_and_its_limit():
    assert entropy_factor(UNEVEN, 1.5).tolist() == pytest.approx([1.5, 1.5, 1.0])
    # a sum of shares above 1 has more entropy than there can be
    assert float(entropy_factor(torch.tensor([[0.4, 0.4, 0.4]]).log(), 9.0)) == 1.0


def test_the_strength_at_a_place_of_a_schedule():
    rising = GuidanceSchedule.ramp("percent", [(0.0, 2.0), (1.0, 6.0)])
    before = Strength(scale=9.0, entropy_limit=2.0, cap=0.5, label_smoothing=0.1)
    assert before.at(rising, PLACE, 3) == Strength(
        scale=(4.0,), entropy_limit=2.0, cap=0.5, label_smoothing=0.1
    )
    each = GuidanceSchedule(rising.curve, per_image=(1.0, 0.0, -0.5))
    assert before.at(each, PLACE, 3).scale == (4.0, 0.0, -2.0)


def test_a_scale_of_zero_is_no_strength():
    nothing = GuidanceSchedule.constant(0.0)
    assert Strength(scale=1.0).at(nothing, PLACE, 2) is None
    both = GuidanceSchedule(GuidanceSchedule.constant(1.0).curve, per_image=(0.0, 0.0))
    assert Strength(scale=1.0).at(both, PLACE, 2) is None
    one = GuidanceSchedule(GuidanceSchedule.constant(1.0).curve, per_image=(0.0, 3.0))
    assert Strength(scale=1.0).at(one, PLACE, 2).scale == (0.0, 3.0)


TERM = torch.tensor([[[3.0, 4.0]], [[30.0, 40.0]], [[0.0, 1.0]]])
DENOISED = torch.tensor([[[6.0, 8.0]], [[6.0, 8.0]], [[0.0, 2.0]]])


def test_the_cap_is_a_share_of_the_image():
    assert cap_factor(TERM, DENOISED, 0.5).tolist() == pytest.approx([1.0, 0.1, 1.0])
    assert cap_factor(TERM, DENOISED, 0.25).tolist() == pytest.approx([0.5, 0.05, 0.5])
    assert cap_factor(TERM, DENOISED, 9.0).tolist() == [1, 1, 1]


def test_a_capped_term():
    assert Strength(scale=1.0).capped(TERM, DENOISED) is TERM
    short = Strength(scale=1.0, cap=0.5).capped(TERM, DENOISED)
    assert torch.allclose(short, torch.tensor([[[3.0, 4.0]], [[3.0, 4.0]], [[0.0, 1.0]]]))
    large = torch.full((1, 2), 60000.0, dtype=torch.float16)
    assert float(cap_factor(large, large, 0.5)) == pytest.approx(0.5)


def test_a_smoothed_target():
    target = smoothed_target(torch.tensor([2, 0]), 4, 0.2)
    assert target.dtype == torch.float32
    assert target.tolist() == [
        pytest.approx([0.05, 0.05, 0.85, 0.05]),
        pytest.approx([0.85, 0.05, 0.05, 0.05]),
    ]
    assert smoothed_target(torch.tensor([1]), 2, 0.0).tolist() == [[0.0, 1.0]]
