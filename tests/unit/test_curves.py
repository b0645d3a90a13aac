"""Curves, keyframes and presets at their edges: exact scales, defaults and sentences."""

from __future__ import annotations

import math
import sys

import pytest

from guidance import GuidanceSchedule
from guidance.schedules.curves import (
    Formula,
    LastSteps,
    Points,
    ScheduleError,
    StepList,
    brief,
    is_finite,
)
from guidance.schedules.keyframes import parse_keyframes
from guidance.schedules.presets import PRESETS, preset
from guidance.schedules.run_position import RunPosition, step_of


def place(percent=0.5, step=10.0, steps=21, sigma=1.0):
    return RunPosition(percent=percent, step=step, steps=steps, sigma=sigma)


def sentence(make, *arguments):
    """What a ScheduleError says."""
    with pytest.raises(ScheduleError) as error:
        make(*arguments)
    return str(error.value)


# --- places ----------------------------------------------------------------------------------


def test_the_share_of_a_runs_steps():
    shares = [place(step=step, steps=5).share for step in (0, 1, 2.5, 4)]
    assert shares == [0, 0.25, 0.625, 1]
    assert place(step=1.0, steps=2).share == 1
    assert place(step=1.0, steps=1).share == 0, "a run of one step is at its start"


def test_coordinates_on_each_axis():
    here = RunPosition(percent=0.3, step=3.0, steps=7, sigma=2.0)
    assert [here.on(axis) for axis in ("percent", "step", "sigma")] == [0.3, 0.5, 2.0]


FALLING = [8.0, 4.0, 2.0, 0.0]


@pytest.mark.parametrize(
    "sigma, step",
    [
        (8.0, 0.0),
        (7.0, 0.25),
        (6.0, 0.5),
        (4.0, 1.0),
        (3.0, 1.5),
        (2.0, 2.0),
        (0.5, 2.75),
        (0.0, 3.0),
        (9.0, 0.0),  # beyond both ends, the nearer one
        (-1.0, 3.0),
    ],
)
def test_the_step_of_a_sigma(sigma, step):
    found = step_of(FALLING, sigma)
    assert found == step and isinstance(found, float)


def test_the_step_where_noise_is_put_back():
    """Of the first pair that encloses it; rising pairs count too."""
    sigmas = [1.0, 3.0, 2.0]
    assert [step_of(sigmas, sigma) for sigma in (1.5, 2.5, 3.0)] == [0.25, 0.75, 1.0]
    assert step_of([4.0, 2.0, 3.0, 0.0], 2.5) == 0.75


def test_a_sigma_that_was_rounded_has_its_own_step():
    """float32 is off by less than a hundred-thousandth."""
    for rounded in (4.0 * (1 + 5e-6), 4.0 * (1 - 5e-6)):
        assert step_of(FALLING, rounded) == pytest.approx(1.0, abs=1e-4)
        assert step_of(FALLING, rounded) >= 1.0
    assert step_of(FALLING, 4.0 * (1 + 5e-5)) < 1.0
    assert step_of(FALLING, 8.0 * (1 + 5e-6)) == 0.0
    # with the larger end's precision, though the smaller end is 0
    assert step_of([2.0, 0.0], -1e-5) == 1.0
    assert step_of([0.0, 2.0], -1e-5) == 0.0


def test_equal_neighbours_have_no_way_between_them():
    assert step_of([4.0, 4.0, 2.0], 4.0) == 1.0
    assert step_of([4.0, 4.0], 4.0) == 0.0
    assert step_of([4.0], 1.0) == 0.0


# --- points ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "interpolation, scale",
    [
        ("hold", 1.0),
        ("linear", 3.5),
        ("cosine", 1 + 15 * (1 - math.cos(math.pi / 6)) / 2),
        ("power", 1 + 15 * (1 / 6) ** 3),
        ("exponential", 16 ** (1 / 6)),
    ],
)
def test_a_sixth_of_the_way_between_two_points(interpolation, scale):
    points = ((0.0, 1.0), (0.6, 16.0), (1.0, 2.0))
    curve = Points("percent", points, interpolation, exponent=3.0)
    assert curve.at(place(percent=0.1)) == pytest.approx(scale)


def test_what_points_are_without_more():
    curve = Points("percent", ((0.2, 4.0), (0.4, 8.0)))
    assert (curve.interpolation, curve.outside, curve.exponent) == ("linear", None, 2.0)
    assert [curve.at(place(percent=x)) for x in (0.0, 0.2, 0.4, 1.0)] == [4, 4, 8, 8]
    assert curve.at(place(percent=0.3)) == pytest.approx(6)
    squared = Points("percent", ((0.0, 0.0), (1.0, 1.0)), "power")
    assert squared.at(place(percent=0.5)) == 0.25


def test_the_third_of_four_points_begins_its_own_piece():
    curve = Points("percent", ((0.0, 1.0), (0.25, 2.0), (0.5, 6.0), (1.0, 8.0)))
    assert [curve.at(place(percent=x)) for x in (0.125, 0.25, 0.375, 0.5, 0.75)] == [
        1.5,
        2,
        4,
        6,
        7,
    ]
    held = Points("percent", ((0.0, 1.0), (0.25, 2.0), (0.5, 6.0)), "hold")
    assert [held.at(place(percent=x)) for x in (0.2, 0.25, 0.4, 0.5, 0.6)] == [1, 2, 2, 6, 6]


def test_points_in_sigma_are_linear_in_sigma():
    curve = Points("sigma", ((10.0, 1.0), (2.0, 5.0), (0.0, 3.0)))
    assert [curve.at(place(sigma=x)) for x in (20, 10, 4, 2, 1, 0)] == [1, 1, 4, 5, 4, 3]


@pytest.mark.parametrize("axis", ["percent", "step"])
def test_the_slack_at_the_ends_of_an_interval(axis):
    def at(position):
        return curve.at(place(**{axis: position * 20 if axis == "step" else position}))

    curve = Points(axis, ((0.25, 7.0), (0.75, 7.0)), "hold", outside=2.0)
    assert at(0.25 - 0.9e-5) == at(0.75 + 0.9e-5) == 7
    assert at(0.25 - 1.1e-5) == at(0.75 + 1.1e-5) == 2


def test_the_slack_in_sigma_is_a_share_of_it():
    curve = Points("sigma", ((1000.0, 7.0), (0.01, 7.0)), "hold", outside=0.0)
    inside = [curve.at(place(sigma=x)) for x in (1000.009, 0.00999991)]
    outside = [curve.at(place(sigma=x)) for x in (1000.011, 0.0099998)]
    assert (inside, outside) == ([7, 7], [0, 0])


@pytest.mark.parametrize(
    "arguments, said",
    [
        (("time", ((0, 1),)), "axis is 'time'; expected one of percent, step, sigma."),
        (
            ("step", ((0, 1),), "spline"),
            "interpolation is 'spline'; expected one of hold, linear, cosine, power, exponential.",
        ),
        (("step", ()), "points is empty; give at least one [position, scale]."),
        (
            ("step", ((math.nan, 1),)),
            "The position of a point is nan; it must be a finite number.",
        ),
        (("step", ((0, None),)), "The scale of a point is None; it must be a finite number."),
        (("sigma", ((-0.5, 1),)), "A point is at sigma -0.5; it must be 0 or more."),
        (("step", ((1.5, 1),)), "A point is at step 1.5; the axis goes from 0 to 1."),
        (("percent", ((-0.1, 1),)), "A point is at percent -0.1; the axis goes from 0 to 1."),
        (
            ("step", ((0.5, 1), (0.25, 1))),
            "points go from step 0.5 to 0.25; their positions must rise.",
        ),
        (
            ("sigma", ((1, 1), (1, 2))),
            "points go from sigma 1 to 1; their positions must fall, as sigma does in a run.",
        ),
        (("step", ((0, 1),), "hold", True), "The outside is True; it must be a finite number."),
        (
            ("step", ((0, 1),), "power", None, math.inf),
            "The exponent is inf; it must be a finite number.",
        ),
        (("step", ((0, 1),), "power", None, 0.0), "exponent is 0; it must be above 0."),
        (("step", ((0, 1),), "hold", None, -1.5), "exponent is -1.5; it must be above 0."),
        (
            ("step", ((0, 1), (0.5, -2), (1, 0)), "exponential"),
            "interpolation is exponential, but a scale is -2; all scales must be above 0.",
        ),
        (
            ("step", ((0, 0),), "exponential"),
            "interpolation is exponential, but a scale is 0; all scales must be above 0.",
        ),
    ],
)
def test_points_that_cannot_be(arguments, said):
    assert sentence(Points, *arguments) == said


def test_points_at_the_very_ends_of_an_axis():
    assert Points("step", ((0.0, -3.0), (1.0, 0.0))).at(place(step=0)) == -3
    assert Points("sigma", ((0.0, 4.0),)).at(place()) == 4
    assert Points("step", ((0, 0.5), (1, 1)), "exponential").at(place(step=20)) == 1
    assert Points("step", ((0, 1), (1, 2)), "power", exponent=0.5).at(place(step=5)) == 1.5


def test_points_as_json():
    some = ((0.0, 4.0), (1.0, 1.0))
    assert Points("step", some, "cosine").to_dict() == {
        "axis": "step",
        "interpolation": "cosine",
        "points": [[0.0, 4.0], [1.0, 1.0]],
    }
    powered = Points("step", some, "power", 0.0, 3.0).to_dict()
    assert (powered["exponent"], powered["outside"]) == (3.0, 0.0)


# --- steps -----------------------------------------------------------------------------------


def test_a_step_that_was_rounded_down_has_its_own_scale():
    curve = StepList((7.0, 5.0, 3.0))
    scales = [curve.at(place(step=x, steps=3)) for x in (0.99, 1 - 0.9e-5, 1.999, 2.0)]
    assert scales == [7, 5, 5, 3]
    assert curve.at(place(step=1 - 1.1e-5, steps=3)) == 7
    assert curve.to_dict() == {"axis": "step", "values": [7.0, 5.0, 3.0]}


def test_step_lists_that_cannot_be():
    assert sentence(StepList, ()) == "values is empty; give one scale for each step."
    assert sentence(StepList, (1.0, "2")) == "The one of values is '2'; it must be a finite number."
    for steps in (2, 4):
        assert sentence(StepList((7.0, 5.0, 3.0)).at, place(steps=steps)) == (
            f"values lists 3 scales, but this run has {steps} steps; list one for each, or use "
            "points, which fit any number."
        )


def test_the_last_steps_of_a_run():
    curve = LastSteps(2, 7.0)
    assert [curve.at(place(step=x, steps=4)) for x in range(4)] == [1, 1, 7, 7]
    assert curve.at(place(step=2 - 0.9e-5, steps=4)) == 7
    assert curve.at(place(step=2 - 1.1e-5, steps=4)) == 1
    assert LastSteps(9, 7.0).at(place(step=0, steps=4)) == 7, "more than there are is all"
    given = LastSteps(1, 7.0, 0.5)
    assert given.at(place(step=0, steps=4)) == 0.5
    assert given.to_dict() == {"axis": "step", "last": 1, "scale": 7.0, "outside": 0.5}


@pytest.mark.parametrize("last", [0, -1, 1.5, True, "2"])
def test_a_number_of_last_steps_that_cannot_be(last):
    said = f"last is {last!r}; it must be a whole number, 1 or more."
    assert sentence(LastSteps, last, 7.0) == said


def test_scales_of_last_steps_that_cannot_be():
    assert sentence(LastSteps, 1, math.nan) == "The scale is nan; it must be a finite number."
    said = "The outside is inf; it must be a finite number."
    assert sentence(LastSteps, 1, 7.0, math.inf) == said


# --- formulas --------------------------------------------------------------------------------


def test_a_formula_reads_where_the_run_is():
    curve = Formula("percent + 10 * step + 1000 * steps + 100000 * sigma")
    assert curve.at(RunPosition(percent=0.5, step=3.0, steps=7, sigma=2.0)) == 207030.5
    assert curve.reads == {"percent", "step", "steps", "sigma"}
    assert Formula("pi * sigma").reads == {"sigma"}
    assert Formula("7").reads == frozenset()


@pytest.mark.parametrize(
    "text", ["1 / (percent - 0.5)", "1 / (step - 9.5)", "1 / (steps - 20)", "1 / (sigma - 0.5)"]
)
def test_a_formula_is_tried_in_the_middle_of_a_run_of_20_steps(text):
    said = sentence(Formula, text)
    assert "division by zero at percent 0.5, step 9.5, steps 20, sigma 0.5" in said


def test_a_formula_that_fails_in_the_run():
    curve = Formula("sqrt(sigma - 0.4)")
    assert curve.at(place(sigma=0.4)) == 0
    assert sentence(curve.at, place(sigma=0.1)).startswith("expression 'sqrt(sigma - 0.4)'")


def test_equal_formulas():
    one, same, other = Formula("1 + percent"), Formula("1 + percent"), Formula("2 + percent")
    assert one == same and hash(one) == hash(same) and len({one, same, other}) == 2
    assert one != other and one != "1 + percent"
    assert one.to_dict() == {"expression": "1 + percent"}


# --- numbers ---------------------------------------------------------------------------------


def test_what_is_a_finite_number():
    largest = sys.float_info.max
    good = [0, -1, 1.5, largest, -largest, int(largest)]
    bad = [math.inf, -math.inf, math.nan, 10**400, -(10**400), True, False, "1", None, [1]]
    assert [is_finite(value) for value in good] == [True] * len(good)
    assert [is_finite(value) for value in bad] == [False] * len(bad)


def test_what_was_found_is_told_in_60_characters():
    assert brief("x" * 58) == "'" + "x" * 58 + "'"
    assert brief("x" * 59) == "'" + "x" * 56 + "..."
    assert len(brief([1] * 100)) == 60


# --- keyframes -------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "text", ["0: 7.5, 0.6: 7, 1: 1", "0:7.5;0.6:7;1:1", "\n0 : 7.5\n0.6: 7,\n\n 1: 1 ;"]
)
def test_keyframes_are_points_with_lines_between(text):
    points = ((0.0, 7.5), (0.6, 7.0), (1.0, 1.0))
    assert parse_keyframes(text) == GuidanceSchedule(Points("percent", points, "linear"))


def test_keyframes_on_another_axis():
    assert parse_keyframes("9: 1, 2: 4", "sigma").curve == Points("sigma", ((9.0, 1.0), (2.0, 4.0)))


@pytest.mark.parametrize("text", ["7, 5, 1e0", "7;5\n1,"])
def test_a_scale_for_each_step(text):
    assert parse_keyframes(text, "sigma") == GuidanceSchedule(StepList((7.0, 5.0, 1.0)))


@pytest.mark.parametrize(
    "text", ["", " , ;\n", "0: 7, 5", "7, 0: 5", "7" * 50 + ", 0: 1" + "0" * 9]
)
def test_keyframes_that_are_neither(text):
    assert sentence(parse_keyframes, text) == (
        f"keyframes is {text[:60]!r}; expected '0: 7.5, 0.6: 7.5, 1: 1' (position: scale) or "
        "'7, 7, 5' (a scale for each step)."
    )


@pytest.mark.parametrize("text, found", [("7, x, 1", "x"), ("0: 1, 1: a b ", "a b"), ("q: 1", "q")])
def test_keyframes_that_are_no_numbers(text, found):
    said = f"keyframes has '{found}'; expected a number."
    assert sentence(parse_keyframes, text) == said


def test_a_long_keyframe_is_told_in_40_characters():
    assert sentence(parse_keyframes, "x" * 41) == f"keyframes has '{'x' * 40}'; expected a number."


# --- presets ---------------------------------------------------------------------------------


def test_the_interval_for_sdxl():
    schedule = preset("interval for SDXL", 6.5)
    assert schedule.models == "ve"
    assert schedule.to_dict() == {
        "axis": "sigma",
        "interpolation": "hold",
        "points": [[5.42, 6.5], [0.28, 6.5]],
        "outside": 1.0,
        "models": "ve",
    }


@pytest.mark.parametrize("kind, quarter", [("linear", 4.0), ("cosine", 1 + 12 * 0.1464466)])
def test_rises_have_their_scale_as_their_mean(kind, quarter):
    """From 1 to twice the scale, less 1, over the steps of the run."""
    schedule = preset(f"{kind} rise", 7.0)
    assert schedule.models == "any"
    scales = [schedule.at(place(percent=0.9, step=step)) for step in (0.0, 5.0, 10.0, 20.0)]
    assert scales == pytest.approx([1.0, quarter, 7.0, 13.0])


def test_the_power_cosine_rise():
    schedule = preset("power-cosine rise", 7.0)
    assert schedule.curve.to_dict() == {"expression": "1 + 6 * (1 - cos(pi * percent ** 4)) / 2"}
    scales = [schedule.at(place(percent=x, step=0.0)) for x in (0.0, 0.5, 0.5**0.25, 1.0)]
    assert scales == pytest.approx([1.0, 1 + 6 * (1 - math.cos(math.pi / 16)) / 2, 4.0, 7.0])
    exact = preset("power-cosine rise", 2.123456789).curve.to_dict()["expression"]
    assert exact.startswith("1 + 1.123456789 * ")


def test_what_is_said_of_presets():
    assert list(PRESETS) == [
        *("interval for SDXL", "linear rise", "cosine rise", "power-cosine rise")
    ]
    authors = [one.paper.split(" et al. ")[0] for one in PRESETS.values()]
    assert authors == ["Kynkaanniemi", "Wang", "Wang", "Gao"]
    assert PRESETS["interval for SDXL"].meant_for == (
        "SDXL and other EPS or V models with its range of sigma; refuses flow models"
    )
    for name in ("linear rise", "cosine rise"):
        assert PRESETS[name].meant_for == "any model; the mean over the steps is the scale"
    assert PRESETS["power-cosine rise"].meant_for == "class-conditional models at high scales"


def test_a_preset_that_is_not_there():
    assert sentence(preset, "rise", 7.0) == (
        "preset is 'rise'; expected one of interval for SDXL, linear rise, cosine rise, "
        "power-cosine rise."
    )
