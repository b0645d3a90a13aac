"""A schedule read over a run that is not there yet: its line, where it guides, what CFG costs."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest

from guidance import GuidanceSchedule
from guidance.schedules.curves import Formula, LastSteps, ScheduleError, StepList
from guidance.schedules.presets import SCHEDULE_PRESETS
from guidance.schedules.preview import preview

OF_THE_MODEL = "the model decides which steps have these sigmas"


def constant(scale=4.0):
    return GuidanceSchedule.constant(scale)


def formula(text):
    return GuidanceSchedule(Formula(text))


def steps_of(*scales):
    return GuidanceSchedule(StepList(scales))


def at(seen, position):
    """The scale that is drawn at a position."""
    return seen.scales[seen.positions.index(position)]


@pytest.mark.parametrize(
    ("steps", "points"),
    [(1, 201), (2, 201), (3, 201), (4, 199), (101, 201), (201, 201), (300, 300), (10_000, 10_000)],
)
def test_a_line_has_about_200_pieces_however_many_steps(steps, points):
    """The same number between every two steps, and no fewer points than steps."""
    seen = preview(constant(), steps)
    assert (len(seen.positions), seen.steps, seen.passes) == (points, steps, 2 * steps)
    gaps = [b - a for a, b in itertools.pairwise(seen.positions)]
    assert (seen.positions[0], seen.positions[-1]) == (0, 1)
    assert max(gaps) == pytest.approx(min(gaps))


@pytest.mark.parametrize("steps", [0, -1, 10_001])
def test_a_number_of_steps_that_is_not_drawn(steps):
    with pytest.raises(ScheduleError, match=f"steps is {steps}; .* 1 to 10000"):
        preview(constant(), steps)


def test_scales_along_the_line():
    seen = preview(formula("1 + 6 * (1 - percent)"), 20)
    assert (seen.axis, seen.steps, seen.note) == ("percent", 20, "")
    assert seen.scales == [1 + 6 * (1 - x) for x in seen.positions]
    points = preview(GuidanceSchedule.ramp("percent", [(0.1234, 3.0), (0.5678, 9.0)]), 5)
    assert at(points, 0.1234) == 3 and at(points, 0.5678) == 9
    assert len(points.positions) == 203 and points.positions == sorted(points.positions)
    between = preview(formula("step + 1"), 5)
    assert [at(between, x) for x in (0.0, 0.125, 0.25, 1.0)] == [1, 1.5, 2, 5]
    assert at(preview(formula("steps + 0 * percent"), 5), 0.5) == 5


def test_a_run_of_one_step():
    """It is at 0; the picture goes on to 1, and the step stays the first."""
    seen = preview(formula("2 + step"), 1)
    assert set(seen.scales) == {2.0} and seen.passes == 2
    rising = preview(formula("1 + percent"), 1)
    assert (rising.scales[0], rising.scales[-1]) == (1, 2)
    assert rising.passes == 1, "the last point is no step"


def test_a_list_of_steps_is_drawn_in_the_run_that_it_fits():
    seen = preview(steps_of(7.0, 5.0, 1.0, 1.0))
    assert (seen.axis, seen.steps, seen.passes) == ("step", 4, 6)
    assert [at(seen, i / 3) for i in range(4)] == [7, 5, 1, 1]
    with pytest.raises(ScheduleError, match="lists 4 scales, but this run has 20 steps"):
        preview(steps_of(7.0, 5.0, 1.0, 1.0), 20)
    assert preview(constant()).steps == 20


@pytest.mark.parametrize(
    ("schedule", "axis", "counted"),
    [
        (lambda: formula("9"), "percent", True),
        (lambda: formula("2 + steps"), "percent", True),
        (lambda: formula("2 + step / steps"), "step", True),
        (lambda: formula("2 + step + percent"), "percent", True),
        (lambda: formula("2 + sigma"), "sigma", False),
        (lambda: formula("2 + sigma + steps"), "sigma", False),
        (lambda: formula("2 + sigma + step"), "step", False),
        (lambda: formula("2 + sigma + percent + step"), "percent", False),
        (lambda: GuidanceSchedule(LastSteps(4, 4.0)), "step", True),
        (lambda: steps_of(4.0, 4.0, 4.0, 4.0), "step", True),
        (lambda: GuidanceSchedule.ramp("percent", [(0.0, 3.0)]), "percent", True),
        (lambda: GuidanceSchedule.ramp("step", [(0.0, 3.0)]), "step", True),
    ],
)
def test_the_axis_and_the_passes(schedule, axis, counted):
    seen = preview(schedule(), 4)
    assert (seen.axis, seen.passes) == (axis, 8 if counted else None)
    notes = {"sigma": OF_THE_MODEL}.get(axis, "drawn with sigma as in SD and SDXL")
    assert seen.note == "" if counted else seen.note.startswith(notes)


FIRST, LAST = 14.6146, math.sqrt(0.00085 / 0.99915)  # of Stable Diffusion's sigmas


def test_sigmas_are_even_in_their_logarithm_from_stable_diffusions_first_to_its_last():
    # sqrt((1 - alpha_bar) / alpha_bar) of betas from 0.00085 to 0.012, even in their roots
    seen = preview(formula("steps + 0 * sigma"), 7)
    assert len(seen.positions) == 201 and set(seen.scales) == {7.0}
    assert seen.positions == sorted(seen.positions, reverse=True)
    assert seen.positions[0] == pytest.approx(FIRST, abs=5e-5)
    assert seen.positions[-1] == pytest.approx(LAST, abs=5e-7)
    ratios = [b / a for a, b in itertools.pairwise(seen.positions)]
    assert max(ratios) == pytest.approx(min(ratios))
    interval = preview(SCHEDULE_PRESETS["interval for SDXL"](6.0), 20)
    assert interval.intervals == [(5.42, 0.28)] and interval.note == OF_THE_MODEL


def test_sigma_over_percent_is_stable_diffusions():
    """Even in timesteps: 999 at percent 0, 0 at percent 1."""
    seen = preview(formula("sigma + 0 * percent"), 3)
    assert at(seen, 0.0) == pytest.approx(FIRST, abs=5e-5)
    assert at(seen, 0.5) == pytest.approx(1.6156, abs=2e-3)
    assert at(seen, 1.0) == pytest.approx(LAST, abs=5e-6)
    assert seen.scales == sorted(seen.scales, reverse=True)
    alone = preview(formula("1 + sigma"), 20)
    assert alone.scales == [1 + sigma for sigma in alone.positions]


@pytest.mark.parametrize(
    ("points", "first", "last", "count"),
    [
        ([(80.0, 4.0), (0.002, 2.0), (0.0, 1.0)], 80.0, 0.002, 201),
        # a logarithmic axis has no 0, and ends at 0.001
        ([(5.0, 2.0), (0.001, 3.0), (0.0, 4.0)], FIRST, 0.001, 202),
        ([(5.0, 2.0), (0.0009, 3.0)], FIRST, LAST, 202),
    ],
)
def test_the_axis_sigma_goes_as_far_as_its_points(points, first, last, count):
    seen = preview(GuidanceSchedule.ramp("sigma", points))
    assert seen.positions[0] == pytest.approx(first, abs=5e-5)
    assert seen.positions[-1] == pytest.approx(last, abs=5e-7)
    assert len(seen.positions) == count


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 300])
def test_passes_are_those_of_a_run(steps):
    """Counted at the steps alone, however many places are drawn between them."""
    assert preview(GuidanceSchedule(LastSteps(3, 7.0)), steps).passes == steps + min(3, steps)
    assert preview(constant(1.0), steps).passes == steps
    assert preview(constant(1.0 + 1e-12), steps).passes == 2 * steps
    whole = preview(formula("1 if step == floor(step) else 2"), steps)
    assert whole.passes == steps


@pytest.mark.parametrize(
    ("schedule", "intervals"),
    [
        (constant, [(0.0, 1.0)]),
        (lambda: constant(1.0), []),
        (lambda: formula("4 if step < 1.5 else 1"), [(0.0, 0.745)]),
        (lambda: formula("4 if step > 1.5 else 1"), [(0.755, 1.0)]),
        (lambda: formula("4 if step == 1 else 1"), [(0.5, 0.5)]),
        (lambda: formula("4 if step == 0 or step == 2 else 1"), [(0.0, 0.0), (1.0, 1.0)]),
        (lambda: formula("1 - step"), [(0.005, 1.0)]),
        (lambda: GuidanceSchedule(LastSteps(1, 4.0)), [(1.0, 1.0)]),
        (lambda: GuidanceSchedule.interval("percent", 0.213, 0.7, 5.0), [(0.213, 0.7)]),
        # narrow ones are not lost
        (lambda: GuidanceSchedule.interval("percent", 0.50101, 0.50102, 5.0), [(0.50101, 0.50102)]),
        (lambda: GuidanceSchedule.interval("sigma", 1.0001, 1.0, 5.0), [(1.0001, 1.0)]),
    ],
)
def test_intervals_go_from_their_first_point_to_their_last(schedule, intervals):
    found = preview(schedule(), 3).intervals
    assert len(found) == len(intervals)
    for one, other in zip(found, intervals, strict=True):
        assert one == pytest.approx(other, abs=1e-9)


def test_gaps_are_named_and_guide_nothing():
    seen = preview(formula("1 + sqrt(9 - sigma)"))
    drawn = list(zip(seen.positions, seen.scales, strict=True))
    assert all((scale is None) == (position > 9) for position, scale in drawn)
    assert seen.note == f"{OF_THE_MODEL}; no scale in the gaps"
    ((start, end),) = seen.intervals
    assert start < 9 and end == seen.positions[-1]
    # between two steps, too
    between = preview(formula("1 / (step - 0.5)"), 21)
    assert between.axis == "step" and between.passes == 42
    assert between.scales.count(None) == 1


def test_a_step_without_a_scale_is_an_error():
    for text, steps in (("1 / (step - 3)", 20), ("1 / (percent - 1)", 20)):
        with pytest.raises(ScheduleError, match="division by zero at "):
            preview(formula(text), steps)
    assert preview(formula("1 / (percent - 1)"), 1).scales[-1] is None  # its one step is at 0
    everywhere = formula("1 if steps == 20 else 1 / (0 * sigma)")
    with pytest.raises(ScheduleError, match=r"division by zero at .* steps 21, sigma 14\.61"):
        preview(everywhere, 21)
    assert set(preview(everywhere, 20).scales) == {1.0}


@pytest.mark.parametrize(
    ("schedule", "percent"),
    [
        (lambda: GuidanceSchedule.ramp("percent", [(0.0, -1.5e308), (1.0, 1.5e308)]), "0.5"),
        (lambda: GuidanceSchedule.ramp("percent", [(0.0, -(10**308)), (1.0, 10**308)]), "0.5"),
        (lambda: replace(constant(1e308), per_image=(1.0, 10.0)), "0"),
        (
            lambda: GuidanceSchedule.ramp("percent", [(0.0, 1e-300), (1.0, 1e300)], "exponential"),
            "0.5",
        ),
    ],
)
def test_a_scale_that_no_number_holds(schedule, percent):
    with pytest.raises(ScheduleError, match=f"at percent {percent} is too large"):
        preview(schedule(), 3)


@pytest.mark.parametrize(
    ("scale", "factors", "drawn", "passes", "note"),
    [
        (2.0, (1.0, 0.25), 2.0, 20, "times 1, 0.25 per image"),
        (2.0, (1.0, 2.0, 3.0, 4.5), 2.0, 20, "times 1, 2, 3, 4.5 per image"),
        (2.0, (1.0, 2.0, 3.0, 4.5, 5.0), 2.0, 20, "times 1, 2, 3, 4.5, ... per image"),
        (2.0, (4.0, 4.0), 8.0, 20, ""),
        (2.0, (0.5,), 1.0, 10, ""),  # exactly 1
        (1.0, (1.0, 3.0), 1.0, 20, "times 1, 3 per image"),  # one image is guided
    ],
)
def test_factors_of_images(scale, factors, drawn, passes, note):
    seen = preview(replace(constant(scale), per_image=factors), 10)
    assert (set(seen.scales), seen.passes, seen.note) == ({drawn}, passes, note)
    assert seen.intervals == ([(0.0, 1.0)] if passes == 20 else [])


def test_notes_are_joined():
    sigma = replace(GuidanceSchedule.interval("sigma", 5.0, 1.0, 4.0), per_image=(1.0, 2.0))
    assert preview(sigma).note == f"{OF_THE_MODEL}; times 1, 2 per image"
    beside = preview(formula("1 + sigma * step"), 4)
    assert beside.note.endswith("14.6 to 0.03; another model has others")
