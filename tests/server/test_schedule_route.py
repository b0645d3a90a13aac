"""The preview of a Guidance Schedule that the page requests, over the real HTTP API."""

from __future__ import annotations

import json
import urllib.request

import pytest
from prompts import node
from schedule_inputs import SCHEDULE_INPUTS

PATH = "/classifier_guidance/schedule"


@pytest.fixture(scope="module")
def preview(server):
    """The preview of a node with these inputs; its status is always 200."""

    def run(steps=20, **inputs):
        status, answer = server.request(PATH, {"inputs": SCHEDULE_INPUTS | inputs, "steps": steps})
        assert status == 200
        return answer

    return run


@pytest.fixture(scope="module")
def send(server):
    """Sends any bytes; the answer."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def run(body):
        request = urllib.request.Request(server.url + PATH, data=body)
        with opener.open(request, timeout=60) as response:
            return json.loads(response.read())

    return run


def test_preview(preview):
    seen = preview(shape="last steps", scale=4.0, last_steps=5)
    assert (seen["axis"], seen["steps"], seen["passes"]) == ("step", 20, 25)
    assert len(seen["positions"]) == len(seen["scales"]) > 100
    assert (seen["scales"][0], seen["scales"][-1]) == (1.0, 4.0)
    assert seen["intervals"] == [[pytest.approx(15 / 19), 1.0]]


def test_missing_inputs_have_their_defaults(server):
    status, seen = server.request(PATH, {"inputs": {"shape": "constant"}})
    assert status == 200 and set(seen["scales"]) == {7.5}


@pytest.mark.parametrize(
    "inputs",
    [
        {"shape": "curve", "curve": "{"},
        {"start": 0.7, "end": 0.3},
        {"shape": "expression", "expression": "percnt"},
        {"shape": "keyframes", "keyframes": "a: 4"},
        {"per_image": "1; 2"},
    ],
    ids=str,
)
def test_the_error_is_the_one_that_the_node_raises(preview, queue, inputs):
    schedule = node("GuidanceSchedule", **SCHEDULE_INPUTS | inputs)
    shown = node("PreviewAny", source=["schedule", 0])
    _, said = queue.run({"schedule": schedule, "shown": shown}).error
    assert preview(**inputs) == {"error": said}


@pytest.mark.parametrize(
    "inputs, parts",
    [
        ({"steps": 10_001}, ["steps", "10001", "10000"]),
        ({"steps": 2.5}, ["steps", "2.5"]),
        ({"steps": True}, ["steps", "True"]),
        ({"shape": "spiral"}, ["shape", "'spiral'"]),
        ({"shape": ["constant"]}, ["shape", "['constant']"]),
        ({"axis": None}, ["axis", "None"]),
        ({"scale": "7"}, ["scale", "'7'", "-1000 to 1000"]),
        ({"scale": 10**400}, ["scale", "1000"]),
        ({"scale": float("nan")}, ["scale", "nan"]),
        ({"shape": "curve", "curve": "[" * 100_000}, ["JSON"]),
        ({"shape": "expression", "expression": "9 ** 9 ** 9 ** 9"}, ["9 ** 9"]),
        ({"shape": "expression", "expression": "(" * 499}, ["((("]),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_values(preview, inputs, parts):
    answer = preview(**inputs)
    assert set(answer) == {"error"} and len(answer["error"]) < 400
    assert not [part for part in parts if part not in answer["error"]], answer


BODIES = [b"", b"{", b"[]", b'{"inputs": 3}', b"[" * 100_000, b"\xff\xfe\x00"]
BODIES += [b'{"inputs": {}, "steps": 1e400}', b'{"inputs": {}, "steps": ' + b"9" * 5000 + b"}"]
BODIES += [json.dumps({"inputs": {"curve": "1" * 300_000}}).encode()]


@pytest.mark.parametrize("body", BODIES, ids=lambda body: str(body[:20]))
def test_bad_bodies(send, body):
    answer = send(body)
    assert set(answer) == {"error"} and answer["error"].endswith(".")


def test_most_steps_of_the_longest_expression(preview):
    longest = "+".join(["sin(percent)"] * 38)
    assert preview(10_000, shape="expression", expression=longest)["passes"] == 20_000


def test_the_server_still_answers(preview, server):
    assert preview()["passes"] == 40
    assert "Error handling request" not in server.log
