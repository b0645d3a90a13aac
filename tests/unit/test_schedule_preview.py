"""A schedule read over a run that is not there yet: scales, where it guides, and what CFG costs."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import pytest

from guidance import GuidanceSchedule
from guidance.schedules.curves import Formula, LastSteps, StepList
from guidance.schedules.keyframes import parse_keyframes
from guidance.schedules.presets import PRESETS, preset
from guidance.schedules.preview import MOST_STEPS, STEPS, preview
from guidance.schedules.schedule import ScheduleError


def formula(text):
    return GuidanceSchedule(Formula(text))


def at(seen, position):
    """The scale that is drawn at a position."""
    return seen.scales[seen.positions.index(position)]


def test_line_of_an_expression():
    seen = preview(formula("1 + 6 * (1 - percent)"), 20)
    assert (seen.axis, seen.steps, seen.note) == ("percent", 20, "")
    assert seen.positions[0] == 0 and seen.positions[-1] == 1
    assert seen.positions == sorted(seen.positions) and len(seen.positions) > 100
    assert seen.scales == [1 + 6 * (1 - x) for x in seen.positions]


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_a_line(name):
    seen = preview(preset(name, 7.5), 20)
    assert seen.axis == {"interval for SDXL": "sigma", "power-cosine rise": "percent"}.get(
        name, "step"
    )
    assert all(map(math.isfinite, seen.scales)) and len(set(seen.scales)) > 1


@pytest.mark.parametrize("steps", [1, 2, 7, 20, 300])
def test_passes_are_those_of_a_run(steps):
    """Counted at the steps alone, however many places are drawn between them."""
    count = min(3, steps)
    assert preview(GuidanceSchedule(LastSteps(3, 7.0)), steps).passes == steps + count
    assert preview(GuidanceSchedule.constant(1.0), steps).passes == steps
    assert preview(GuidanceSchedule.constant(1.0 + 1e-12), steps).passes == 2 * steps


def test_steps_are_whole_numbers_for_a_formula():
    seen = preview(formula("1 if step == floor(step) else 2"), 50)
    assert seen.passes == 50
    assert seen.scales.count(1) == 50


def test_intervals_where_it_guides():
    seen = preview(GuidanceSchedule.interval("percent", 0.213, 0.7, 5.0), 20)
    assert seen.intervals == [(0.213, 0.7)]
    assert at(seen, 0.213) == at(seen, 0.7) == 5
    twice = preview(formula("1 if 0.25 < percent < 0.75 else 4"), 21)
    ((a, b), (c, d)) = twice.intervals
    assert (a, d) == (0.0, 1.0) and b == pytest.approx(0.25, abs=0.01) and b < c
    assert preview(GuidanceSchedule.constant(1.0)).intervals == []
    assert preview(GuidanceSchedule(LastSteps(1, 4.0)), 20).intervals == [(1.0, 1.0)]


def test_narrow_interval_is_not_lost():
    seen = preview(GuidanceSchedule.interval("percent", 0.50101, 0.50102, 5.0), 20)
    assert seen.intervals == [(0.50101, 0.50102)]
    seen = preview(GuidanceSchedule.interval("sigma", 1.0001, 1.0, 5.0), 20)
    assert seen.intervals == [(1.0001, 1.0)]


def test_axis_sigma_is_drawn_and_not_counted():
    seen = preview(preset("interval for SDXL", 6.0), 20)
    assert (seen.axis, seen.passes) == ("sigma", None)
    assert "model" in seen.note
    assert seen.intervals == [(5.42, 0.28)]
    assert seen.positions == sorted(seen.positions, reverse=True)
    assert seen.positions[0] == pytest.approx(14.6146, abs=1e-3)  # of Stable Diffusion
    assert seen.positions[-1] == pytest.approx(0.0292, abs=1e-4)
    ratios = [b / a for a, b in itertools.pairwise(seen.positions[:20])]
    assert max(ratios) - min(ratios) < 1e-9


def test_axis_sigma_goes_as_far_as_its_points():
    seen = preview(GuidanceSchedule.ramp("sigma", [(80.0, 4.0), (0.002, 2.0), (0.0, 1.0)]))
    assert (seen.positions[0], seen.positions[-1]) == (80.0, 0.002)


def test_expression_in_sigma():
    alone = preview(formula("1 + sigma"), 20)
    assert (alone.axis, alone.passes) == ("sigma", None)
    assert alone.scales == [1 + sigma for sigma in alone.positions]
    mixed = preview(formula("1 + sigma * percent"), 20)
    assert (mixed.axis, mixed.passes) == ("percent", None)
    assert "SDXL" in mixed.note
    assert at(mixed, 1.0) == pytest.approx(1.0292, abs=1e-4)


def test_expression_that_some_sigmas_do_not_have():
    """On a flow model it would do: a gap in the line, and no error."""
    seen = preview(formula("1 + sqrt(1 - sigma)"), 20)
    assert None in seen.scales and seen.scales[-1] > 1
    assert "gaps" in seen.note


def test_gap_between_two_steps():
    seen = preview(formula("1 / (step - 0.5)"), 21)
    assert seen.axis == "step" and seen.passes == 42
    assert seen.scales.count(None) == 1


def test_step_without_a_scale_is_an_error():
    with pytest.raises(ScheduleError, match=r"division by zero at .*step 3"):
        preview(formula("1 / (step - 3)"), 20)
    with pytest.raises(ScheduleError, match="too large"):
        preview(GuidanceSchedule.ramp("percent", [(0.0, -1e308), (1.0, 1e308)]), 20)


def test_list_of_steps():
    schedule = parse_keyframes("7, 5, 1, 1")
    seen = preview(schedule)  # in the run that it fits
    assert (seen.axis, seen.steps, seen.passes) == ("step", 4, 6)
    assert [at(seen, i / 3) for i in range(4)] == [7, 5, 1, 1]
    with pytest.raises(ScheduleError, match="lists 4 scales, but this run has 20 steps"):
        preview(schedule, 20)


def test_scale_for_each_image():
    schedule = replace(GuidanceSchedule.constant(2.0), per_image=(1.0, 0.5))
    seen = preview(schedule, 10)
    assert set(seen.scales) == {2.0} and seen.passes == 20
    assert "times 1, 0.5 per image" in seen.note
    halved = preview(replace(schedule, per_image=(0.5,)), 10)  # exactly 1
    assert set(halved.scales) == {1.0} and halved.passes == 10 and halved.note == ""
    # one image is guided where the curve itself says 1
    lone = replace(GuidanceSchedule.constant(1.0), per_image=(1.0, 3.0))
    assert preview(lone, 10).passes == 20 and preview(lone, 10).intervals == [(0.0, 1.0)]


@pytest.mark.parametrize("steps", [0, -1, MOST_STEPS + 1])
def test_number_of_steps_is_bounded(steps):
    with pytest.raises(ScheduleError, match=f"steps is {steps}; .* 1 to 10000"):
        preview(GuidanceSchedule.constant(4.0), steps)


def test_without_a_number_of_steps():
    assert preview(GuidanceSchedule.constant(4.0)).steps == STEPS
    assert preview(GuidanceSchedule(StepList((4.0,) * 9))).steps == 9


@pytest.mark.parametrize(
    "text",
    [
        '{"points": [[0, 1%s]]}',
        "1%s",
        '{"points": [[0, 4]], "interpolation": "power", "exponent": 1%s}',
        '{"points": [[0, 4]], "per_image": [1%s]}',
    ],
)
def test_integer_that_no_float_holds(text):
    """Also by the library alone: a ScheduleError of one short sentence."""
    with pytest.raises(ScheduleError, match="finite") as error:
        GuidanceSchedule.from_json(text % ("0" * 400))
    assert len(str(error.value)) < 200
