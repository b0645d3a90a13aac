"""Guidance schedules: kinds, shapes, presets, one JSON form, one sentence for what is not one."""

from __future__ import annotations

import json
import time

import pytest

from guidance import GuidanceSchedule
from guidance.schedules.curves import Formula, LastSteps, Points, ScheduleError, StepList
from guidance.schedules.presets import SCHEDULE_PRESETS
from guidance.schedules.run_position import RunPosition
from guidance.schedules.shapes import SHAPES, parse_keyframes, schedule_of_shape


def place(percent=0.5, step=10.0, steps=21, sigma=1.0):
    return RunPosition(percent=percent, step=step, steps=steps, sigma=sigma)


def test_kinds_of_schedules():
    assert GuidanceSchedule.constant(7.5).at(place()) == 7.5
    some = [(0.2, 8.0), (0.6, 2.0)]
    ramp = GuidanceSchedule.ramp("step", some, "power", 1.0, 3.0)
    assert ramp.curve == Points("step", tuple(some), "power", 1.0, 3.0)
    plain = GuidanceSchedule.ramp("percent", some)
    assert plain == GuidanceSchedule(Points("percent", tuple(some), "linear", None, 2.0))
    interval = GuidanceSchedule.interval("percent", 0.25, 0.75, 7.0)
    assert interval.curve == Points("percent", ((0.25, 7.0), (0.75, 7.0)), "hold", 1.0)
    scales = [interval.at(place(percent=index / 20)) for index in range(21)]
    assert scales == [1.0] * 5 + [7.0] * 11 + [1.0] * 5
    falling = GuidanceSchedule.interval("sigma", 5.42, 0.28, 7.0, 0.5)
    found = [falling.at(place(sigma=sigma)) for sigma in (14.6, 5.43, 5.42, 0.28, 0.27, 0.0)]
    assert found == [0.5, 0.5, 7, 7, 0.5, 0.5]


def test_a_scale_for_each_image():
    schedule = GuidanceSchedule.from_dict(
        {"points": [[0, 4], [0.5, 4]], "outside": 1, "per_image": [1, 0.5]}
    )
    assert schedule.scales(place(percent=0.2), 2) == [4, 2]
    assert schedule.scales(place(percent=0.9), 2) == 1  # exactly, for both
    with pytest.raises(ScheduleError, match="lists 2 factors, but the batch has 3 images"):
        schedule.scales(place(percent=0.2), 3)
    for factors in ([0.5], [0.5, 0.5, 0.5]):
        same = GuidanceSchedule.from_dict({"points": [[0, 4]], "per_image": factors})
        assert same.scales(place(), 3) == 2
    assert GuidanceSchedule.constant(4.0).scales(place(), 3) == 4


def test_descriptions():
    each = GuidanceSchedule(LastSteps(5, 4.0), per_image=(1.0, 0.5))
    assert each.describe() == "4 in the last 5 steps, else 1, per image times 1, 0.5"
    many = GuidanceSchedule(LastSteps(5, 4.0), per_image=(1.0, 2.0, 3.0, 4.0, 5.0, 6.0))
    assert many.describe().endswith("per image times 1, 2, 3, ..., 6")
    assert GuidanceSchedule.constant(2.5).describe() == "2.5 everywhere"


FOR_FLOW = '{"points": [[0, 4]], "models": "flow"}'


@pytest.mark.parametrize(
    ("schedule", "on_ve", "on_flow"),
    [
        (lambda: SCHEDULE_PRESETS["interval for SDXL"](7.0), None, "is for ve models.*from 1 to 0"),
        (lambda: GuidanceSchedule.from_json(FOR_FLOW), "is for flow models.*far above 1", None),
        (lambda: GuidanceSchedule.interval("sigma", 5.0, 0.3, 7.0), None, "starts at sigma 5, but"),
        (lambda: GuidanceSchedule.interval("sigma", 1.0, 0.3, 7.0), None, None),
        (lambda: GuidanceSchedule.interval("percent", 0.1, 0.3, 7.0), None, None),
        (lambda: GuidanceSchedule(Formula("1 + sigma")), None, None),
    ],
)
def test_sigmas_of_the_other_kind_of_model(schedule, on_ve, on_flow):
    schedule = schedule()
    for flow, said in ((False, on_ve), (True, on_flow)):
        if said is None:
            schedule.check_model(flow=flow)
            continue
        with pytest.raises(ScheduleError, match=f"{said}.*axis percent or step"):
            schedule.check_model(flow=flow)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1 + 6 * (1 - percent)", 4.0),
        ("step / (steps - 1) * 8", 4.0),
        ("7 if sigma > 0.5 else 1", 7.0),
        ("clamp(sigma ** 2, 0, 0.5) + max(1, 2) * abs(-pi) / pi", 2.5),
        ("clamp(percent, 2, 3) + clamp(9, 2, 3)", 5.0),
        ("log(e) + sin(0) + cos(0) + exp(0) + sqrt(4) + floor(1.5) + ceil(1.5)", 8.0),
        ("(5 % 3) + min(1, 2) + (+2) - 1", 4.0),
        ("1 if 0 < percent <= 0.5 and not sigma != 1 or steps == 1 else 2", 1.0),
        ("1 if percent >= 0.5 and percent < 0.5 else 3", 3.0),
    ],
)
def test_expressions(text, expected):
    schedule = GuidanceSchedule.from_dict({"expression": text})
    assert schedule.at(place()) == pytest.approx(expected)


@pytest.mark.parametrize(
    ("text", "part"),
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
        ("1" * 501, "501 characters; at most 500"),
        ("(" * 240 + "1" + ")" * 240, "cannot be used"),
        ("max(*percent)", "not allowed"),
        ("max(1, 2, key=abs)", "not allowed"),
        ("1e999", "it is inf at"),
        ("steps if steps else 'no'", "not a number"),
        ("no + " + "1 + " * 30 + "1", "no + 1 + 1"),
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


def test_the_longest_expression():
    assert GuidanceSchedule(Formula("1." + "0" * 498)).at(place()) == 1


EXAMPLES = [
    {"axis": "percent", "interpolation": "linear", "points": [[0.0, 7.5], [1.0, 1.0]]},
    {"axis": "percent", "interpolation": "hold", "points": [[0.0, 7.5]], "outside": 1.0},
    {"axis": "sigma", "interpolation": "power", "exponent": 3.0, "points": [[5.0, 2.0]]},
    {"axis": "step", "interpolation": "smooth", "points": [[0.0, 1.0], [0.5, 7.0], [1.0, 1.0]]},
    {"axis": "step", "values": [7.5, 1.0], "per_image": [1.0, 2.0]},
    {"axis": "step", "last": 3, "scale": 2.0, "outside": 1.0},
    {"expression": "1 + percent"},
]
SHORT = {
    "7": lambda: GuidanceSchedule.constant(7),
    "[[0, 7], [1, 1]]": lambda: GuidanceSchedule.ramp("percent", [(0, 7), (1, 1)]),
    '{"points": [[0.5, 2]]}': lambda: GuidanceSchedule.ramp("percent", [(0.5, 2)]),
    '{"values": [2, 1]}': lambda: GuidanceSchedule(StepList((2, 1))),
    '{"last": 2, "scale": 3}': lambda: GuidanceSchedule(LastSteps(2, 3, 1.0)),
}


@pytest.mark.parametrize("values", EXAMPLES, ids=str)
def test_json_there_and_back(values):
    schedule = GuidanceSchedule.from_json(json.dumps(values))
    assert json.loads(schedule.to_json()) == values
    assert GuidanceSchedule.from_json(schedule.to_json()) == schedule


@pytest.mark.parametrize("text", SHORT)
def test_short_forms(text):
    schedule = GuidanceSchedule.from_json(text)
    assert schedule == SHORT[text]() == GuidanceSchedule.from_json(schedule.to_json())


HUGE = "1" + "0" * 400  # an integer that no float holds
BAD = [
    ("{", "not readable JSON"),
    ("[" * 100_000, "not readable JSON"),
    ('{"points": [[0, NaN]]}', "scale of a point is nan; it must be a finite number"),
    ('{"points": [[0, 1e999]]}', "scale of a point is inf"),
    ("true", "schedule is True"),
    ('"7"', "schedule is '7'"),
    ("{}", "schedule is {}"),
    ('{"points": []}', "points is empty"),
    ('{"points": 7}', "points is 7"),
    ('{"points": [[0]]}', "points is [[0]]"),
    ('{"points": [7]}', "points is [7]"),
    ('{"points": [[0, "7"]]}', "scale of a point is '7'"),
    ('{"points": [[0, true]]}', "scale of a point is True"),
    ('{"points": [["0", 1]]}', "position of a point is '0'"),
    ('{"points": [[0.6, 1], [0.4, 2]]}', "from percent 0.6 to 0.4; their positions must rise"),
    ('{"points": [[0.5, 1], [0.5, 2]]}', "percent 0.5 to 0.5; their positions must rise"),
    ('{"axis": "sigma", "points": [[1, 1], [1, 2]]}', "sigma 1 to 1; their positions must fall"),
    ('{"points": [[1.2, 1]]}', "percent 1.2; the axis goes from 0 to 1"),
    ('{"axis": "step", "points": [[-0.1, 1]]}', "step -0.1; the axis goes from 0 to 1"),
    ('{"axis": "sigma", "points": [[-0.5, 1]]}', "sigma -0.5; it must be 0 or more"),
    ('{"axis": "time", "points": [[0, 1]]}', "axis is 'time'; expected one of percent, step"),
    ('{"axis": ["step"], "points": [[0, 1]]}', "axis is ['step']"),
    ('{"interpolation": "spline", "points": [[0, 1]]}', "interpolation is 'spline'; expected one"),
    ('{"interpolation": "exponential", "points": [[0, 7], [1, 0]]}', "a scale is 0; all scales"),
    ('{"interpolation": "exponential", "points": [[0, -2]]}', "a scale is -2; all scales"),
    ('{"interpolation": "power", "exponent": 0, "points": [[0, 7]]}', "exponent is 0; it must be"),
    ('{"interpolation": "power", "exponent": "2", "points": [[0, 7]]}', "exponent is '2'"),
    ('{"points": [[0, 1]], "exponent": -1.5}', "exponent is -1.5"),
    ('{"points": [[0, 1]], "outside": "1"}', "outside is '1'"),
    ('{"points": [[0, 1]], "outside": true}', "outside is True"),
    ('{"points": [[0, 1]], "colour": "red"}', "'colour', which is not allowed with 'points'"),
    ('{"points": [[0, 1]], "models": "sd"}', "models is 'sd'"),
    ('{"points": [[0, 1]], "per_image": 2}', "per_image is 2"),
    ('{"points": [[0, 1]], "per_image": ["a"]}', "per_image is ['a']"),
    ('{"values": []}', "values is empty"),
    ('{"values": 3}', "values is 3"),
    ('{"values": [1, null]}', "one of values is None"),
    ('{"axis": "percent", "values": [1]}', "axis is 'percent'"),
    ('{"axis": "sigma", "last": 1, "scale": 2}', "axis is 'sigma'"),
    ('{"last": 0, "scale": 2}', "last is 0"),
    ('{"last": 1.5, "scale": 2}', "last is 1.5"),
    ('{"last": true, "scale": 2}', "last is True"),
    ('{"last": 2}', "no 'scale'"),
    ('{"expression": 7}', "expression is 7"),
    (HUGE, "finite"),
    (f'{{"points": [[0, 4]], "interpolation": "power", "exponent": {HUGE}}}', "finite"),
    (f'{{"points": [[0, 4]], "per_image": [{HUGE}]}}', "finite"),
]


@pytest.mark.parametrize(("text", "part"), BAD, ids=[text[:40] for text, _ in BAD])
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


@pytest.mark.parametrize("values", [*EXAMPLES, *map(json.loads, SHORT)], ids=str)
def test_published_schema_takes_what_is_read(published, values):
    published.validate(values)


# an order, a NaN, a formula: what a JSON Schema cannot say
BEYOND_A_SCHEMA = ("rise", "fall", "goes from 0", "all scales", "inf", "JSON", "finite")


@pytest.mark.parametrize(
    "text, part", [b for b in BAD if not any(u in b[1] for u in BEYOND_A_SCHEMA)]
)
def test_published_schema_refuses_what_is_not_read(published, text, part):
    assert not published.is_valid(json.loads(text))


@pytest.mark.parametrize("name", SCHEDULE_PRESETS)
def test_a_preset_goes_from_one_to_its_scale_or_has_it_as_its_mean(name):
    schedule = SCHEDULE_PRESETS[name](7.0)
    scales = [
        schedule.at(place(percent=i / 40, step=i, steps=41, sigma=14.6 * (1 - i / 40) ** 3))
        for i in range(41)
    ]
    mean = name in ("linear rise", "cosine rise")
    assert min(scales) == pytest.approx(1.0)
    assert max(scales) == pytest.approx(13.0 if mean else 7.0)
    assert not mean or sum(scales) / 41 == pytest.approx(7.0)


RISE = '"points": [[0.0, 1.0], [1.0, 13.0]]}'
OF_PRESETS = {
    "interval for SDXL": '{"axis": "sigma", "interpolation": "hold", '
    '"points": [[5.42, 7.0], [0.28, 7.0]], "outside": 1.0, "models": "ve"}',
    "linear rise": f'{{"axis": "step", "interpolation": "linear", {RISE}',
    "cosine rise": f'{{"axis": "step", "interpolation": "cosine", {RISE}',
    "power-cosine rise": '{"expression": "1 + 6 * (1 - cos(pi * percent ** 4)) / 2"}',
}


@pytest.mark.parametrize("name", SCHEDULE_PRESETS)
def test_presets(name):
    assert SCHEDULE_PRESETS[name](7.0).to_json() == OF_PRESETS[name]


def test_a_preset_keeps_ten_digits():
    exact = SCHEDULE_PRESETS["power-cosine rise"](2.123456789).curve.to_dict()["expression"]
    assert exact.startswith("1 + 1.123456789 * ")


VALUES = {"axis": "step", "scale": 7.0, "end_scale": 2.0, "start": 0.25, "end": 0.75}
VALUES |= {"outside": 0.5, "exponent": 3.0, "last_steps": 4, "keyframes": "0: 1, 1: 2"}
VALUES |= {"expression": "1 + sigma", "curve": "[[0, 7], [1, 1]]"}
ENDS = [(0.25, 7.0), (0.75, 2.0)]


def of_shapes():
    """What each shape makes of VALUES."""
    ramps = ("linear", "cosine", "power", "exponential")
    return {
        "constant": GuidanceSchedule.constant(7.0),
        **{name: GuidanceSchedule.ramp("step", ENDS, name, exponent=3.0) for name in ramps},
        "interval": GuidanceSchedule.interval("step", 0.25, 0.75, 7.0, 0.5),
        "last steps": GuidanceSchedule(LastSteps(4, 7.0, 0.5)),
        "keyframes": GuidanceSchedule.ramp("step", [(0.0, 1.0), (1.0, 2.0)]),
        "curve": GuidanceSchedule.ramp("percent", [(0, 7), (1, 1)]),
        "expression": GuidanceSchedule(Formula("1 + sigma")),
        **{name: SCHEDULE_PRESETS[name](7.0) for name in SCHEDULE_PRESETS},
    }


@pytest.mark.parametrize("shape", SHAPES)
def test_the_schedule_of_each_shape(shape):
    made = schedule_of_shape(shape, **VALUES)
    assert made == of_shapes()[shape]
    each = schedule_of_shape(shape, **VALUES, per_image=" 1, 0.5")
    assert each.per_image == (1.0, 0.5) and each.curve == made.curve and each.models == made.models


def test_factors_that_are_no_numbers():
    with pytest.raises(ScheduleError, match="per_image is '1, x'; expected comma-separated"):
        schedule_of_shape("constant", **VALUES, per_image="1, x")


@pytest.mark.parametrize(
    ("text", "axis", "curve"),
    [
        (
            "0: 7.5, 0.6: 7, 1: 1",
            "percent",
            lambda: Points("percent", ((0, 7.5), (0.6, 7), (1, 1))),
        ),
        ("0:7.5;0.6:7;1:1", "step", lambda: Points("step", ((0, 7.5), (0.6, 7), (1, 1)))),
        (
            "\n0 : 7.5\n0.6: 7,\n\n 1: 1 ;",
            "step",
            lambda: Points("step", ((0, 7.5), (0.6, 7), (1, 1))),
        ),
        ("9: 1, 2: 4", "sigma", lambda: Points("sigma", ((9.0, 1.0), (2.0, 4.0)))),
        ("7, 5, 1e0", "sigma", lambda: StepList((7.0, 5.0, 1.0))),
        ("7;5\n1,", "sigma", lambda: StepList((7.0, 5.0, 1.0))),
    ],
)
def test_keyframes(text, axis, curve):
    assert parse_keyframes(text, axis) == GuidanceSchedule(curve())
    if axis == "percent":
        assert parse_keyframes(text) == GuidanceSchedule(curve())


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("", "keyframes is ''; expected '0: 7.5, "),
        (" , ;\n", "expected '0: 7.5, "),
        ("0: 7, 5", "keyframes is '0: 7, 5'; expected"),
        ("7, 0: 5", "expected '0: 7.5, "),
        ("7" * 50 + ", 0: 1" + "0" * 9, "keyframes is '" + "7" * 50 + ", 0: 10000'"),
        ("7, x, 1", "keyframes has 'x'; expected a number"),
        ("0: 1, 1: a b ", "keyframes has 'a b'"),
        ("q: 1", "keyframes has 'q'"),
        ("x" * 41, f"keyframes has '{'x' * 40}'"),
    ],
)
def test_what_is_not_keyframes(text, said):
    with pytest.raises(ScheduleError) as error:
        parse_keyframes(text)
    assert said in str(error.value)
