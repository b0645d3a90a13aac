"""What the page asks about a Guidance Schedule, over the real HTTP API."""

from __future__ import annotations

import json
import urllib.error
import urllib.request

import pytest
from schedule_inputs import SCHEDULE_INPUTS

PATH = "/classifier_guidance/schedule"


@pytest.fixture(scope="module")
def ask(server):
    """Asks about a node with these inputs; the answer, which always has status 200."""

    def asked(steps=20, **inputs):
        question = {"inputs": SCHEDULE_INPUTS | inputs, "steps": steps}
        status, answer = server.request(PATH, question)
        assert status == 200
        return answer

    return asked


@pytest.fixture(scope="module")
def send(server):
    """Sends bytes that may be anything; the answer."""
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))

    def sent(body, **headers):
        request = urllib.request.Request(server.url + PATH, data=body, headers=headers)
        with opener.open(request, timeout=60) as response:
            return json.loads(response.read())

    return sent


def test_answer(ask):
    seen = ask(shape="last steps", scale=4.0, last_steps=5)
    assert (seen["axis"], seen["steps"], seen["passes"]) == ("step", 20, 25)
    assert len(seen["positions"]) == len(seen["scales"]) > 100
    assert (seen["scales"][0], seen["scales"][-1]) == (1.0, 4.0)
    assert seen["intervals"] == [[pytest.approx(15 / 19), 1.0]]


def test_what_a_widget_leaves_out_has_its_default(server):
    status, seen = server.request(PATH, {"inputs": {"shape": "constant"}})
    assert status == 200 and set(seen["scales"]) == {7.5}


def test_per_image_is_read(ask):
    assert "per_image is '1; 2'" in ask(per_image="1; 2")["error"]
    assert "times 1, 2 per image" in ask(per_image="1, 2")["note"]


@pytest.mark.parametrize(
    "inputs",
    [
        {"shape": "curve", "curve": "{"},
        {"end": 1.5},
        {"start": 0.7, "end": 0.3},
        {"shape": "exponential", "end_scale": 0.0},
        {"shape": "expression", "expression": "percnt"},
        {"shape": "keyframes", "keyframes": "a: 4"},
    ],
    ids=str,
)
def test_the_sentence_that_the_node_raises(ask, submit, inputs):
    prompt = {
        "schedule": {"class_type": "GuidanceSchedule", "inputs": SCHEDULE_INPUTS | inputs},
        "shown": {"class_type": "PreviewAny", "inputs": {"source": ["schedule", 0]}},
    }
    assert ask(**inputs) == {"error": submit(prompt).said}


@pytest.mark.parametrize(
    "inputs, part",
    [
        ({"steps": 10_001}, "steps is 10001"),
        ({"steps": -1}, "steps is -1"),
        ({"steps": 2.5}, "steps is 2.5"),
        ({"steps": True}, "steps is True"),
        ({"steps": "20"}, "steps is '20'"),
        ({"shape": "spiral"}, "shape is 'spiral'"),
        ({"shape": ["constant"]}, "shape is ['constant']"),
        ({"axis": None}, "axis is None"),
        ({"scale": "7"}, "scale is '7'; expected a number from -1000 to 1000"),
        ({"scale": 1e9}, "scale is 1000000000.0"),
        ({"scale": 10**400}, "scale is 1000"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"last_steps": 2.5, "shape": "last steps"}, "last is 2.5"),
        ({"keyframes": {"a": 1}}, "keyframes is {'a': 1}"),
        ({"shape": "curve", "curve": "[" * 100_000}, "not readable JSON"),
        ({"shape": "curve", "curve": '{"points": [[0, -1e308], [1, 1e308]]}'}, "too large"),
        ({"shape": "expression", "expression": "9 ** 9 ** 9 ** 9"}, "cannot be used"),
        ({"shape": "expression", "expression": "__import__('os')"}, "cannot be used"),
        ({"shape": "expression", "expression": "(" * 499}, "cannot be used"),
        ({"shape": "expression", "expression": "1" * 600}, "600 characters"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bad_values(ask, inputs, part):
    answer = ask(**inputs)
    assert set(answer) == {"error"} and part in answer["error"]
    assert len(answer["error"]) < 400


@pytest.mark.parametrize(
    "body",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b'{"inputs": 3}',
        b"[" * 100_000,
        b"\xff\xfe\x00",
        b'{"inputs": {}, "steps": 1e400}',
        b'{"inputs": {}, "steps": ' + b"9" * 5000 + b"}",
    ],
    ids=lambda body: str(body[:20]),
)
def test_bad_bodies(send, body):
    answer = send(body)
    assert set(answer) == {"error"} and answer["error"].endswith(".")


def test_long_body_is_refused(send):
    question = {"inputs": {"shape": "curve", "curve": "1" * 300_000}}
    assert "at most 262144 bytes" in send(json.dumps(question).encode())["error"]


def test_most_steps_of_the_longest_expression(ask):
    longest = "+".join(["sin(percent)"] * 38)
    seen = ask(10_000, shape="expression", expression=longest)
    assert seen["passes"] == 20_000


def test_server_goes_on(ask, server):
    assert ask()["passes"] == 40
    assert "Error handling request" not in server.log
