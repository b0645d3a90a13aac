"""Where a schedule's picture has its points, what it takes for granted and what it says."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest

from guidance import GuidanceSchedule
from guidance.schedules.curves import Formula, LastSteps, ScheduleError
from guidance.schedules.preview import preview


def formula(text):
    return GuidanceSchedule(Formula(text))


def at(seen, position):
    """The scale that is drawn at a position."""
    return seen.scales[seen.positions.index(position)]


@pytest.mark.parametrize(
    "steps, points",
    [
        (1, 201),  # about 200 pieces for a line
        (2, 201),
        (3, 201),  # two ways of 100 pieces
        (4, 199),  # three ways of 66 pieces
        (101, 201),
        (201, 201),
        (300, 300),  # no less than the steps
    ],
)
def test_a_line_has_about_200_pieces_however_many_steps(steps, points):
    positions = preview(GuidanceSchedule.constant(4.0), steps).positions
    assert len(positions) == points
    gaps = [b - a for a, b in itertools.pairwise(positions)]
    assert (positions[0], positions[-1]) == (0, 1)
    assert max(gaps) == pytest.approx(min(gaps))


def test_the_points_of_a_schedule_are_on_its_line():
    seen = preview(GuidanceSchedule.ramp("percent", [(0.1234, 3.0), (0.5678, 9.0)]), 5)
    assert at(seen, 0.1234) == 3 and at(seen, 0.5678) == 9
    assert len(seen.positions) == 203


def test_steps_between_two_steps_are_fractions():
    seen = preview(formula("step + 1"), 5)
    assert seen.axis == "step"
    assert at(seen, 0.0) == 1 and at(seen, 0.25) == 2 and at(seen, 1.0) == 5
    assert at(seen, 0.125) == 1.5
    assert at(preview(formula("steps + 0 * percent"), 5), 0.5) == 5


def test_a_run_of_one_step():
    """It is at 0; the picture goes on to 1, and the step stays the first."""
    seen = preview(formula("2 + step"), 1)
    assert set(seen.scales) == {2.0} and seen.passes == 2
    rising = preview(formula("1 + percent"), 1)
    assert (rising.scales[0], rising.scales[-1]) == (1, 2)
    assert rising.passes == 1, "the last point is no step"


@pytest.mark.parametrize(
    "text, axis, counted",
    [
        ("7", "percent", True),
        ("steps", "percent", True),
        ("step", "step", True),
        ("step / steps", "step", True),
        ("step + percent", "percent", True),
        ("sigma", "sigma", False),
        ("sigma + steps", "sigma", False),
        ("sigma + step", "step", False),
        ("sigma + percent + step", "percent", False),
    ],
)
def test_the_axis_of_a_formula(text, axis, counted):
    seen = preview(formula(f"2 + {text}"), 4)
    assert (seen.axis, seen.passes) == (axis, 8 if counted else None)


def test_the_axis_of_other_curves():
    assert preview(GuidanceSchedule(LastSteps(2, 4.0))).axis == "step"
    for axis in ("percent", "step"):
        seen = preview(GuidanceSchedule.ramp(axis, [(0.0, 3.0)]), 4)
        assert (seen.axis, seen.passes, seen.note) == (axis, 8, "")


def test_where_only_the_model_tells():
    on_sigma = preview(GuidanceSchedule.interval("sigma", 5.0, 1.0, 4.0))
    assert on_sigma.note == "the model decides which steps have these sigmas"
    assert on_sigma.steps == 20
    beside = preview(formula("1 + sigma * step"), 4)
    assert beside.note == (
        "drawn with sigma as in SD and SDXL, 14.6 to 0.03; another model has others"
    )


def test_sigmas_are_even_in_their_logarithm_from_stable_diffusions_first_to_its_last():
    seen = preview(formula("sigma"))
    assert len(seen.positions) == 201
    # sqrt((1 - alpha_bar) / alpha_bar) of betas from 0.00085 to 0.012, even in their roots
    assert seen.positions[0] == pytest.approx(14.6146, abs=5e-5)
    assert seen.positions[-1] == pytest.approx(math.sqrt(0.00085 / 0.99915), abs=5e-7)
    assert seen.positions[100] == pytest.approx(
        math.sqrt(seen.positions[0] * seen.positions[-1]), rel=1e-9
    )


def test_sigma_over_percent_is_stable_diffusions():
    """Even in timesteps: 999 at percent 0, 0 at percent 1."""
    seen = preview(formula("sigma + 0 * percent"), 3)
    assert at(seen, 0.0) == pytest.approx(14.6146, abs=5e-5)
    assert at(seen, 0.5) == pytest.approx(1.6156, abs=2e-3)
    assert at(seen, 1.0) == pytest.approx(0.02917, abs=5e-6)
    assert seen.scales == sorted(seen.scales, reverse=True)


def test_a_point_at_no_noise_is_not_on_a_logarithmic_axis():
    at_least = preview(GuidanceSchedule.ramp("sigma", [(5.0, 2.0), (0.001, 3.0), (0.0, 4.0)]))
    assert at_least.positions[-1] == 0.001
    below = preview(GuidanceSchedule.ramp("sigma", [(5.0, 2.0), (0.0009, 3.0)]))
    assert below.positions[-1] == pytest.approx(0.0292, abs=1e-4)
    assert len(below.positions) == 202


def test_a_formula_of_sigma_is_read_at_the_start_of_a_run():
    """Its percent and step are not asked for; the number of steps is."""
    assert set(preview(formula("steps + 0 * sigma"), 7).scales) == {7.0}


def test_the_first_thing_wrong_is_said_where_there_is_no_scale_at_all():
    everywhere = formula("1 if steps == 20 else 1 / (0 * sigma)")
    with pytest.raises(ScheduleError, match=r"division by zero at .* steps 21, sigma 14\.61"):
        preview(everywhere, 21)
    assert set(preview(everywhere, 20).scales) == {1.0}


def test_the_end_of_a_line_is_an_error_only_at_a_step():
    beyond = formula("1 / (percent - 1)")
    with pytest.raises(ScheduleError, match="division by zero"):
        preview(beyond, 20)
    assert preview(beyond, 1).scales[-1] is None  # its one step is at 0


def test_gaps_are_named_and_guide_nothing():
    seen = preview(formula("1 + sqrt(9 - sigma)"))
    missing = [
        position
        for position, scale in zip(seen.positions, seen.scales, strict=True)
        if scale is None
    ]
    assert min(missing) > 9
    assert seen.note == ("the model decides which steps have these sigmas; no scale in the gaps")
    ((start, end),) = seen.intervals
    assert start < 9 and end == seen.positions[-1]


def test_a_scale_that_no_number_holds():
    huge = GuidanceSchedule.ramp("percent", [(0.0, -1.5e308), (1.0, 1.5e308)])
    with pytest.raises(ScheduleError) as error:
        preview(huge, 3)
    assert str(error.value) == (
        "The scale at percent 0.5 is too large for a number; choose smaller ones."
    )
    each = replace(GuidanceSchedule.constant(1e308), per_image=(1.0, 10.0))
    with pytest.raises(ScheduleError, match="The scale at percent 0 is too large"):
        preview(each, 2)
    power = GuidanceSchedule.ramp("percent", [(0.0, 1e-300), (1.0, 1e300)], "exponential")
    with pytest.raises(ScheduleError, match="is too large for a number"):
        preview(power, 3)


@pytest.mark.parametrize(
    "text, intervals",
    [
        ("4", [(0.0, 1.0)]),
        ("1", []),
        ("4 if step < 1.5 else 1", [(0.0, 0.745)]),
        ("4 if step > 1.5 else 1", [(0.755, 1.0)]),
        ("4 if step == 1 else 1", [(0.5, 0.5)]),
        ("4 if step == 0 or step == 2 else 1", [(0.0, 0.0), (1.0, 1.0)]),
        ("1 - step", [(0.005, 1.0)]),
    ],
)
def test_intervals_go_from_their_first_point_to_their_last(text, intervals):
    found = preview(formula(text + " + 0 * step"), 3).intervals
    assert len(found) == len(intervals)
    for one, other in zip(found, intervals, strict=True):
        assert one == pytest.approx(other, abs=1e-9)


def test_factors_of_images_in_the_note():
    constant = GuidanceSchedule.constant(2.0)

    def note(*factors):
        return preview(replace(constant, per_image=factors), 2).note

    assert note(1.0, 0.25) == "times 1, 0.25 per image"
    assert note(1.0, 2.0, 3.0, 4.5) == "times 1, 2, 3, 4.5 per image"
    assert note(1.0, 2.0, 3.0, 4.5, 5.0) == "times 1, 2, 3, 4.5, ... per image"
    assert note(3.0, 3.0) == ""
    sigma = replace(GuidanceSchedule.interval("sigma", 5.0, 1.0, 4.0), per_image=(1.0, 2.0))
    assert preview(sigma).note == (
        "the model decides which steps have these sigmas; times 1, 2 per image"
    )


def test_the_curves_own_scale_is_drawn_for_a_batch():
    both = replace(GuidanceSchedule.constant(2.0), per_image=(4.0, 8.0))
    assert set(preview(both, 2).scales) == {2.0}
    alike = replace(GuidanceSchedule.constant(2.0), per_image=(4.0, 4.0))
    assert set(preview(alike, 2).scales) == {8.0}


@pytest.mark.parametrize("steps", [0, 10_001])
def test_a_number_of_steps_that_is_not_drawn(steps):
    with pytest.raises(ScheduleError) as error:
        preview(GuidanceSchedule.constant(4.0), steps)
    assert str(error.value) == f"steps is {steps}; a schedule is drawn for 1 to 10000."


def test_the_most_steps_that_are_drawn():
    seen = preview(GuidanceSchedule.constant(4.0), 10_000)
    assert (seen.steps, len(seen.positions), seen.passes) == (10_000, 10_000, 20_000)
