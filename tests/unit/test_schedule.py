"""Guidance schedules: read anywhere in a run, one JSON form, one sentence for what is not one."""

from __future__ import annotations

import json
import math
import time

import pytest

from guidance import GuidanceSchedule
from guidance.schedules.presets import PRESETS, preset
from guidance.schedules.schedule import RunPosition, ScheduleError


def place(percent=0.5, step=10.0, steps=21, sigma=1.0):
    return RunPosition(percent=percent, step=step, steps=steps, sigma=sigma)


def read(schedule, axis, position):
    """The scale at a position of an axis; steps by the share of 21."""
    where = {"percent": "percent", "sigma": "sigma", "step": "step"}[axis]
    return schedule.at(place(**{where: position * 20 if axis == "step" else position}))


def test_constant():
    assert GuidanceSchedule.constant(7.5).at(place()) == 7.5


@pytest.mark.parametrize("axis", ["percent", "step"])
@pytest.mark.parametrize(
    "interpolation, halfway",
    [("hold", 8.0), ("linear", 5.0), ("cosine", 5.0), ("power", 6.5), ("exponential", 4.0)],
)
def test_ramps(axis, interpolation, halfway):
    schedule = GuidanceSchedule.ramp(axis, [(0.2, 8.0), (0.6, 2.0)], interpolation)
    assert read(schedule, axis, 0.4) == pytest.approx(halfway)
    assert read(schedule, axis, 0.2) == 8.0
    assert read(schedule, axis, 0.6) == 2.0
    assert read(schedule, axis, 0.0) == 8.0  # without `outside` the ends go on
    assert read(schedule, axis, 1.0) == 2.0


def test_cosine_is_flat_at_its_ends():
    schedule = GuidanceSchedule.ramp("percent", [(0.0, 0.0), (1.0, 1.0)], "cosine")
    assert read(schedule, "percent", 0.01) < 0.001
    assert read(schedule, "percent", 0.25) == pytest.approx((1 - math.cos(math.pi / 4)) / 2)


def test_interval_is_exactly_outside():
    schedule = GuidanceSchedule.interval("percent", 0.25, 0.75, 7.0)
    scales = [schedule.at(place(percent=index / 20)) for index in range(21)]
    assert scales == [1.0] * 5 + [7.0] * 11 + [1.0] * 5


def test_interval_in_sigma_falls():
    schedule = GuidanceSchedule.interval("sigma", 5.42, 0.28, 7.0)
    found = [schedule.at(place(sigma=sigma)) for sigma in (14.6, 5.43, 5.42, 1.0, 0.28, 0.27, 0.0)]
    assert found == [1, 1, 7, 7, 7, 1, 1]


def test_rounded_positions_are_still_inside():
    """percent comes from float32 sigmas."""
    schedule = GuidanceSchedule.interval("percent", 0.25, 0.75, 7.0)
    assert schedule.at(place(percent=0.25 - 1e-6)) == schedule.at(place(percent=0.75 + 1e-6)) == 7
    assert schedule.at(place(percent=0.2499)) == schedule.at(place(percent=0.7501)) == 1


def test_the_last_step_reaches_the_end():
    schedule = GuidanceSchedule.ramp("step", [(0.0, 9.0), (1.0, 1.0)])
    assert [schedule.at(place(step=i, steps=5)) for i in range(5)] == [9, 7, 5, 3, 1]
    assert schedule.at(place(step=0, steps=1)) == 9


def test_last_steps():
    schedule = GuidanceSchedule.from_json('{"axis": "step", "last": 2, "scale": 5}')
    assert [schedule.at(place(step=i, steps=5)) for i in (0, 1, 2, 2.5, 3, 3.5, 4)] == [
        *[1] * 4,
        *[5] * 3,
    ]


def test_step_list():
    schedule = GuidanceSchedule.from_json('{"axis": "step", "values": [7, 5, 1]}')
    assert [schedule.at(place(step=i, steps=3)) for i in (0, 0.9, 1, 2)] == [7, 7, 5, 1]
    with pytest.raises(ScheduleError, match="values lists 3 scales, but this run has 20 steps"):
        schedule.at(place(steps=20))


@pytest.mark.parametrize(
    "text, expected",
    [
        ("1 + 6 * (1 - percent)", 4.0),
        ("step / (steps - 1) * 8", 4.0),
        ("7 if sigma > 0.5 else 1", 7.0),
        ("clamp(sigma ** 2, 0, 0.5) + max(1, 2) * abs(-pi) / pi", 2.5),
    ],
)
def test_expression(text, expected):
    schedule = GuidanceSchedule.from_dict({"expression": text})
    assert schedule.at(place()) == pytest.approx(expected)


@pytest.mark.parametrize(
    "text, part",
    [
        ("", "cannot be used"),
        ("1 +", "cannot be used"),
        ("percnt", "no 'percnt'"),
        ("'7'", "'7' is not a number"),
        ("__import__('os').system('x')", "not allowed"),
        ("(1).__class__", "not allowed"),
        ("[x for x in range(9)]", "not allowed"),
        ("lambda: 1", "not allowed"),
        ("9 ** 9 ** 9 ** 9", "cannot be used"),
        ("1 << 10 ** 9", "not allowed"),
        ("1 / 0", "zero"),
        ("log(0)", "cannot be used"),
        ("(-1) ** 0.5", "cannot be used"),
        ("min", "cannot be used"),
        ("sin()", "cannot be used"),
        ("1" * 501, "501 characters"),
        ("(" * 240 + "1" + ")" * 240, "cannot be used"),
        ("max(*percent)", "not allowed"),
        ("max(1, 2, key=abs)", "not allowed"),
        ("1e999", "cannot be used"),
        ("steps if steps else 'no'", "not a number"),
    ],
)
def test_what_is_not_an_expression(text, part):
    start = time.monotonic()
    with pytest.raises(ScheduleError) as error:
        GuidanceSchedule.from_dict({"expression": text})
    said = str(error.value)
    assert part in said
    assert said.startswith("expression") and said.endswith(".") and "\n" not in said
    assert len(said) < 400
    assert time.monotonic() - start < 5  # seconds that a hostile one would take are minutes


def test_expression_that_fails_in_the_run_says_where():
    schedule = GuidanceSchedule.from_dict({"expression": "1 / percent"})
    with pytest.raises(ScheduleError, match="percent 0, "):
        schedule.at(place(percent=0.0))


def test_per_image():
    schedule = GuidanceSchedule.from_dict(
        {"points": [[0, 4], [0.5, 4]], "outside": 1, "per_image": [1, 0.5]}
    )
    assert schedule.scales(place(percent=0.2), 2) == [4, 2]
    assert schedule.scales(place(percent=0.9), 2) == 1  # exactly, for both
    with pytest.raises(ScheduleError, match="lists 2 factors, but the batch has 3 images"):
        schedule.scales(place(percent=0.2), 3)
    same = GuidanceSchedule.from_dict({"points": [[0, 4]], "per_image": [0.5]})
    assert same.scales(place(), 3) == 2


EXAMPLES = [
    {"axis": "percent", "interpolation": "linear", "points": [[0.0, 7.5], [1.0, 1.0]]},
    {"axis": "percent", "interpolation": "hold", "points": [[0.0, 7.5]], "outside": 1.0},
    {"axis": "sigma", "interpolation": "power", "exponent": 3.0, "points": [[5.0, 2.0]]},
    {"axis": "step", "values": [7.5, 1.0], "per_image": [1.0, 2.0]},
    {"axis": "step", "last": 3, "scale": 2.0, "outside": 1.0},
    {"expression": "1 + percent"},
    *(preset(name, 7.0).to_dict() for name in PRESETS),
]
OLD_FORMS = [7, 7.5, [[0, 7], [1, 1]], {"points": [[0.5, 2]]}]


@pytest.mark.parametrize("values", EXAMPLES, ids=str)
def test_json_there_and_back(values):
    schedule = GuidanceSchedule.from_json(json.dumps(values))
    assert json.loads(schedule.to_json()) == values
    assert GuidanceSchedule.from_json(schedule.to_json()) == schedule


@pytest.mark.parametrize("values", OLD_FORMS, ids=str)
def test_short_forms(values):
    schedule = GuidanceSchedule.from_json(json.dumps(values))
    assert GuidanceSchedule.from_json(schedule.to_json()) == schedule


BAD = [
    ("{", "not readable JSON"),
    ("[" * 100_000, "not readable JSON"),
    ('{"points": [[0, NaN]]}', "NaN is not a number"),
    ('{"points": [[0, 1e999]]}', "scale of a point is inf"),
    ("true", "schedule is True"),
    ('"7"', "schedule is '7'"),
    ("{}", "schedule is {}"),
    ('{"points": []}', "points is empty"),
    ('{"points": 7}', "points is 7"),
    ('{"points": [[0]]}', "points is [[0]]"),
    ('{"points": [[0, "7"]]}', "scale of a point is '7'"),
    ('{"points": [[0, true]]}', "scale of a point is True"),
    ('{"points": [[0.6, 1], [0.4, 2]]}', "from percent 0.6 to 0.4; their positions must rise"),
    ('{"points": [[0.5, 1], [0.5, 2]]}', "from percent 0.5 to 0.5"),
    ('{"axis": "sigma", "points": [[1, 1], [5, 2]]}', "must fall, as sigma does in a run"),
    ('{"points": [[1.2, 1]]}', "percent 1.2; the axis goes from 0 to 1"),
    ('{"axis": "sigma", "points": [[-1, 1]]}', "sigma -1; it must be 0 or more"),
    ('{"axis": "time", "points": [[0, 1]]}', "axis is 'time'; expected one of percent"),
    ('{"axis": ["step"], "points": [[0, 1]]}', "axis is ['step']"),
    ('{"interpolation": "spline", "points": [[0, 1]]}', "interpolation is 'spline'"),
    ('{"interpolation": "exponential", "points": [[0, 7], [1, 0]]}', "all must be above 0"),
    ('{"interpolation": "power", "exponent": 0, "points": [[0, 7]]}', "exponent is 0"),
    ('{"interpolation": "power", "exponent": "2", "points": [[0, 7]]}', "exponent is '2'"),
    ('{"points": [[0, 1]], "outside": "1"}', "outside is '1'"),
    ('{"points": [[0, 1]], "colour": "red"}', "'colour'"),
    ('{"points": [[0, 1]], "models": "sd"}', "models is 'sd'"),
    ('{"points": [[0, 1]], "per_image": 2}', "per_image is 2"),
    ('{"points": [[0, 1]], "per_image": ["a"]}', "per_image is ['a']"),
    ('{"values": []}', "values is empty"),
    ('{"values": 3}', "values is 3"),
    ('{"values": [1, null]}', "one of values is None"),
    ('{"axis": "percent", "values": [1]}', "axis is 'percent'"),
    ('{"last": 0, "scale": 2}', "last is 0"),
    ('{"last": 1.5, "scale": 2}', "last is 1.5"),
    ('{"last": 2}', "no 'scale'"),
    ('{"expression": 7}', "expression is 7"),
]


@pytest.mark.parametrize("text, part", BAD, ids=[text[:40] for text, _ in BAD])
def test_what_is_not_a_schedule(text, part):
    with pytest.raises(ScheduleError) as error:
        GuidanceSchedule.from_json(text)
    said = str(error.value)
    assert part in said
    assert said.endswith(".") and "\n" not in said and len(said) < 400


@pytest.fixture(scope="module")
def published(root):
    jsonschema = pytest.importorskip("jsonschema")
    text = (root / "docs" / "guidance_schedule.schema.json").read_text(encoding="utf-8")
    return jsonschema.Draft202012Validator(json.loads(text))


@pytest.mark.parametrize("values", [*EXAMPLES, *OLD_FORMS], ids=str)
def test_published_schema_takes_what_is_read(published, values):
    published.validate(values)


# an order, a NaN, a formula: what a JSON Schema cannot say
UNSAYABLE = ("rise", "fall", "0.5 to 0.5", "goes from 0", "above 0", "inf", "JSON", "NaN")


@pytest.mark.parametrize("text, part", [b for b in BAD if not any(u in b[1] for u in UNSAYABLE)])
def test_published_schema_refuses_what_is_not_read(published, text, part):
    assert not published.is_valid(json.loads(text))


@pytest.mark.parametrize("name", PRESETS)
def test_presets(name):
    schedule = preset(name, 7.0)
    scales = [
        schedule.at(RunPosition(percent=i / 40, step=i, steps=41, sigma=14.6 * (1 - i / 40) ** 3))
        for i in range(41)
    ]
    assert min(scales) == pytest.approx(1.0)
    assert max(scales) == pytest.approx(13.0 if "Wang" in PRESETS[name].paper else 7.0)
    if "Wang" in PRESETS[name].paper:
        assert sum(scales) / 41 == pytest.approx(7.0)


def test_unknown_preset():
    with pytest.raises(ScheduleError, match="preset is 'best'; expected one of interval for SDXL"):
        preset("best", 7.0)


def test_sigmas_of_the_other_kind_of_model():
    schedule = preset("interval for SDXL", 7.0)
    schedule.check_model(flow=False)
    with pytest.raises(ScheduleError, match="flow model, whose sigma goes from 1 to 0"):
        schedule.check_model(flow=True)
    typed = GuidanceSchedule.interval("sigma", 5.0, 0.3, 7.0)
    with pytest.raises(ScheduleError, match="starts at sigma 5, but this is a flow model"):
        typed.check_model(flow=True)
    GuidanceSchedule.interval("sigma", 0.9, 0.3, 7.0).check_model(flow=True)
    GuidanceSchedule.interval("percent", 0.1, 0.3, 7.0).check_model(flow=True)
