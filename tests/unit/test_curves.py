"""Curves of a guidance schedule: exact scales, JSON, descriptions, and what is refused."""

from __future__ import annotations

import json
import math
import sys

import pytest

from guidance import GuidanceSchedule
from guidance.schedules import curves
from guidance.schedules.curve import Curve, ScheduleError, is_finite_number, shortened
from guidance.schedules.curves import (
    CURVES,
    Formula,
    LastSteps,
    Points,
    StepList,
    curve_from_dict,
)
from guidance.schedules.preview import preview
from guidance.schedules.run_position import RunPosition, step_of


def place(percent=0.5, step=10.0, steps=21, sigma=1.0):
    return RunPosition(percent=percent, step=step, steps=steps, sigma=sigma)


def refused(said, make, *arguments):
    """That `make` raises a ScheduleError with all of these words."""
    with pytest.raises(ScheduleError) as error:
        make(*arguments)
    for words in said.split(" ... "):
        assert words in str(error.value)


def test_coordinates_on_each_axis():
    here = RunPosition(percent=0.3, step=3.0, steps=7, sigma=2.0)
    assert [here.on(axis) for axis in ("percent", "step", "sigma")] == [0.3, 0.5, 2.0]
    assert [place(step=step, steps=5).share for step in (0, 1, 2.5, 4)] == [0, 0.25, 0.625, 1]
    assert place(step=1.0, steps=2).share == 1
    assert place(step=1.0, steps=1).share == 0, "a run of one step is at its start"


FALLING = [8.0, 4.0, 2.0, 0.0]


@pytest.mark.parametrize(
    ("sigmas", "sigma", "step"),
    [
        (FALLING, 8.0, 0.0),
        (FALLING, 7.0, 0.25),
        (FALLING, 4.0, 1.0),
        (FALLING, 3.0, 1.5),
        (FALLING, 0.5, 2.75),
        (FALLING, 0.0, 3.0),
        (FALLING, 9.0, 0.0),  # beyond both ends, the nearer one
        (FALLING, -1.0, 3.0),
        # where noise is put back: the first pair that encloses it, rising ones too
        ([1.0, 3.0, 2.0], 1.5, 0.25),
        ([1.0, 3.0, 2.0], 2.5, 0.75),
        ([1.0, 3.0, 2.0], 3.0, 1.0),
        ([4.0, 2.0, 3.0, 0.0], 2.5, 0.75),
        # float32 is off by less than a hundred-thousandth, of the larger end
        (FALLING, 8.0 * (1 + 5e-6), 0.0),
        ([2.0, 0.0], -1e-5, 1.0),
        ([0.0, 2.0], -1e-5, 0.0),
        # equal neighbours have no way between them
        ([4.0, 4.0, 2.0], 4.0, 1.0),
        ([4.0, 4.0], 4.0, 0.0),
        ([4.0], 1.0, 0.0),
    ],
)
def test_the_step_of_a_sigma(sigmas, sigma, step):
    found = step_of(sigmas, sigma)
    assert found == step and isinstance(found, float)


def test_a_sigma_that_was_rounded_has_its_own_step():
    for rounded in (4.0 * (1 + 5e-6), 4.0 * (1 - 5e-6)):
        assert 1.0 <= step_of(FALLING, rounded) == pytest.approx(1.0, abs=1e-4)
    assert step_of(FALLING, 4.0 * (1 + 5e-5)) < 1.0


SOME = ((0.0, 4.0), (1.0, 1.0))
EXAMPLES = {  # by what describes them; made in the test, where an error is a failure
    "cosine, step: 4 at 0, 1 at 1": lambda: Points("step", SOME, "cosine"),
    "smooth, percent: 4 at 0, 1 at 1": lambda: Points("percent", SOME, "smooth"),
    "power 0.5, step: 4 at 0, 1 at 1": lambda: Points("step", SOME, "power", exponent=0.5),
    "percent: 4 at 0, 1 at 1": lambda: Points("percent", SOME),
    "2 everywhere": lambda: Points("sigma", ((5.0, 2.0),), "power", exponent=3.0),
    "4 for step 0.2 to 0.8, else 1": lambda: Points("step", ((0.2, 4.0), (0.8, 4.0)), "hold", 1.0),
    "sigma: 2 at 5, else 0": lambda: Points("sigma", ((5.0, 2.0),), outside=0.0),
    "hold, percent: 1 at 0, 2 at 0.1, 3 at 0.2, ..., 7 at 0.6": lambda: Points(
        "percent", tuple((x / 10, x + 1) for x in range(7)), "hold"
    ),
    "step by step 7, 7, 5, 2.5, 1": lambda: StepList((7.0, 7.0, 5.0, 2.5, 1.0)),
    "step by step 7, 7, 5, ..., 1": lambda: StepList((7.0, 7.0, 5.0, 3.0, 2.0, 1.0)),
    "4 in the last 5 steps, else 0.5": lambda: LastSteps(5, 4.0, 0.5),
    "1 + sigma * step": lambda: Formula("1 + sigma * step"),
}


@pytest.mark.parametrize("text", EXAMPLES)
def test_a_curve_there_and_back(text):
    curve = EXAMPLES[text]()
    values = json.loads(json.dumps(curve.to_dict()))
    assert curve_from_dict(values) == type(curve).from_dict(values) == curve
    assert curve.describe() == text and isinstance(curve, Curve)
    assert values.keys() <= curve.keys and curve.key in values


def test_each_kind_of_curve_has_an_example_and_a_key_of_its_own():
    assert {type(make()) for make in EXAMPLES.values()} == set(CURVES)
    assert len({kind.key for kind in CURVES}) == len(CURVES)


@pytest.mark.parametrize(
    ("curve", "depends_on", "knots", "steps", "outside"),
    [
        (lambda: Points("step", SOME), {"step"}, [0, 1], None, None),
        (lambda: Points("sigma", ((5.0, 2.0),), outside=0.0), {"sigma"}, [5], None, 0.0),
        (lambda: StepList((7.0, 7.0, 5.0)), {"step"}, [], 3, None),
        (lambda: LastSteps(5, 4.0), {"step"}, [], None, 1.0),
        (lambda: Formula("sigma * step + pi"), {"sigma", "step"}, [], None, None),
        (lambda: Formula("steps"), set(), [], None, None),
    ],
)
def test_what_a_curve_says_of_itself(curve, depends_on, knots, steps, outside):
    curve = curve()
    assert (curve.depends_on, list(curve.knots)) == (depends_on, knots)
    assert (curve.steps, curve.outside) == (steps, outside)


@pytest.mark.parametrize("kind", CURVES, ids=lambda kind: kind.key)
def test_a_key_that_the_kind_does_not_have(kind):
    curve = next(one for one in (make() for make in EXAMPLES.values()) if type(one) is kind)
    refused(f"'colour' ... {kind.key!r}", curve_from_dict, curve.to_dict() | {"colour": 1})


def test_a_new_kind_of_curve_is_one_class(monkeypatch):
    """All that reads a schedule takes it from CURVES and from the curve itself."""

    class Wave(Curve):
        key = "wave"
        keys = frozenset({"wave"})
        depends_on = frozenset({"percent"})
        knots = (0.123,)

        def __init__(self, height):
            self.height = height

        def at(self, position):
            return self.height * math.cos(position.percent)

        def to_dict(self):
            return {"wave": self.height}

        @classmethod
        def from_dict(cls, values):
            return cls(values["wave"])

        def describe(self):
            return f"a wave of {self.height:g}"

    monkeypatch.setattr(curves, "CURVES", (*CURVES, Wave))
    schedule = GuidanceSchedule.from_json('{"wave": 3, "per_image": [1, 2]}')
    assert schedule.scales(place(percent=0.0), 2) == [3, 6]
    assert json.loads(schedule.to_json()) == {"wave": 3, "per_image": [1, 2]}
    assert schedule.describe() == "a wave of 3, per image times 1, 2"
    seen = preview(schedule, 4)
    assert seen.axis == "percent" and 0.123 in seen.positions and seen.scales[0] == 3
    refused("'wave' ... 'height'", GuidanceSchedule.from_dict, {"wave": 3, "height": 4})


@pytest.mark.parametrize(
    ("interpolation", "scale"),
    [
        ("hold", 1.0),
        ("linear", 3.5),
        ("cosine", 1 + 15 * (1 - math.cos(math.pi / 6)) / 2),
        ("power", 1 + 15 * (1 / 6) ** 3),
        ("exponential", 16 ** (1 / 6)),
    ],
)
def test_a_sixth_of_the_way_between_two_points(interpolation, scale):
    curve = Points("percent", ((0.0, 1.0), (0.6, 16.0), (1.0, 2.0)), interpolation, exponent=3.0)
    assert curve.at(place(percent=0.1)) == pytest.approx(scale)


def test_scales_along_an_axis():
    four = ((0.0, 1.0), (0.25, 2.0), (0.5, 6.0), (1.0, 8.0))
    inside, falling = ((0.25, 7.0), (0.75, 7.0)), ((1000.0, 7.0), (0.01, 7.0))
    for curve, axis, scales in (
        (Points("percent", ((0.2, 4.0), (0.4, 8.0))), "percent", {0: 4, 0.2: 4, 0.4: 8, 1: 8}),
        (Points("percent", four), "percent", {0.125: 1.5, 0.25: 2, 0.375: 4, 0.5: 6, 0.75: 7}),
        (Points("percent", four, "hold"), "percent", {0.2: 1, 0.25: 2, 0.4: 2, 0.5: 6, 1: 8}),
        (Points("percent", ((0.0, 0.0), (1.0, 1.0)), "power"), "percent", {0.5: 0.25}),
        (Points("step", ((0, 1), (1, 2)), "power", exponent=0.5), "step", {5: 1.5}),
        (Points("step", ((0.0, -3.0), (1.0, 0.0))), "step", {0: -3, 20: 0}),
        (Points("step", ((0, 0.5), (1, 1)), "exponential"), "step", {20: 1}),
        (Points("sigma", ((0.0, 4.0),)), "sigma", {0: 4, 1: 4}),
        (Points("sigma", ((10, 1), (2, 5), (0, 3))), "sigma", {20: 1, 10: 1, 4: 4, 2: 5, 0: 3}),
        # the slack at the ends of an interval
        (Points("percent", inside, "hold", 2.0), "percent", {0.25 - 0.9e-5: 7, 0.75 + 0.9e-5: 7}),
        (Points("percent", inside, "hold", 2.0), "percent", {0.25 - 1.1e-5: 2, 0.75 + 1.1e-5: 2}),
        (Points("step", inside, "hold", 2.0), "step", {5 - 19e-5: 7, 5 - 21e-5: 2, 15 + 19e-5: 7}),
        # in sigma it is a share of it
        (Points("sigma", falling, "hold", 0.0), "sigma", {1000.009: 7, 0.00999991: 7}),
        (Points("sigma", falling, "hold", 0.0), "sigma", {1000.011: 0, 0.0099998: 0}),
        # a list of steps: a step that was rounded down has its own scale
        (StepList((7,) * 10 + (5,) * 11), "step", {9.99: 7, 10 - 0.9e-5: 5, 10 - 1.1e-5: 7}),
        # the last steps; more than there are is all
        (LastSteps(2, 7.0), "step", {18: 1, 19: 7, 20: 7, 19 - 0.9e-5: 7, 19 - 1.1e-5: 1}),
        (LastSteps(30, 7.0), "step", {0: 7}),
        (LastSteps(1, 7.0, 0.5), "step", {0: 0.5, 20: 7}),
        (Formula("steps + step / 10"), "step", {5: 21.5}),
    ):
        found = {position: curve.at(place(**{axis: position})) for position in scales}
        assert found == pytest.approx(scales), curve.describe()


def test_what_no_json_can_hold():
    """The rest is in the table of test_schedule."""
    refused("position of a point is nan ... finite", Points, "step", ((math.nan, 1),))
    refused("exponent is inf ... finite", Points, "step", ((0, 1),), "power", None, math.inf)
    refused("scale is nan ... finite", LastSteps, 1, math.nan)
    refused("outside is inf ... finite", LastSteps, 1, 7.0, math.inf)


def test_a_list_of_steps_fits_runs_of_its_length():
    for steps in (2, 4):
        said = f"lists 3 scales ... {steps} steps ... use points"
        refused(said, StepList((7.0, 5.0, 3.0)).at, place(steps=steps))


def test_a_formula_reads_where_the_run_is():
    curve = Formula("percent + 10 * step + 1000 * steps + 100000 * sigma")
    assert curve.at(RunPosition(percent=0.5, step=3.0, steps=7, sigma=2.0)) == 207030.5
    assert curve.depends_on == {"percent", "step", "sigma"}


@pytest.mark.parametrize("part", ["percent - 0.5", "step - 9.5", "steps - 20", "sigma - 0.5"])
def test_a_formula_is_tried_in_the_middle_of_a_run_of_20_steps(part):
    said = "division by zero at percent 0.5, step 9.5, steps 20, sigma 0.5"
    refused(said, Formula, f"1 / ({part})")


def test_a_formula_that_fails_in_the_run():
    curve = Formula("sqrt(sigma - 0.4)")
    assert curve.at(place(sigma=0.4)) == 0
    refused("expression 'sqrt(sigma - 0.4)'", curve.at, place(sigma=0.1))
    refused("zero at percent 0, step 10", Formula("1 / percent").at, place(percent=0.0))


def test_equal_formulas():
    one, same, other = Formula("1 + percent"), Formula("1 + percent"), Formula("2 + percent")
    assert one == same and len({one, same, other}) == 2
    assert one != other and one != "1 + percent"


def test_what_is_a_finite_number():
    largest = sys.float_info.max
    good = [0, -1, 1.5, largest, -largest, int(largest)]
    bad = [math.inf, -math.inf, math.nan, 10**400, -(10**400), True, False, "1", None, [1]]
    assert all(map(is_finite_number, good)) and not any(map(is_finite_number, bad))


def test_what_was_found_is_shortened_to_60_characters():
    assert shortened("x" * 58) == "'" + "x" * 58 + "'"
    assert shortened("x" * 59) == "'" + "x" * 56 + "..."
    assert len(shortened([1] * 100)) == 60
