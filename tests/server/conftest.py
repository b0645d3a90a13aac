"""Tests of the pack in a ComfyUI server, over its HTTP API.

The `server` fixture is in tests/conftest.py: the tests in a browser use the same server.
"""

from __future__ import annotations

import time
from dataclasses import dataclass, field

import pytest


@dataclass
class Answer:
    """What the server says about a prompt."""

    node_errors: dict = field(default_factory=dict)  # where validation refuses it
    error: dict = field(default_factory=dict)  # where a node raises: the execution_error
    outputs: dict = field(default_factory=dict)

    @property
    def said(self) -> str:
        """The sentence that a node raised."""
        return self.error["exception_message"].strip()

    @property
    def refused(self) -> list[dict]:
        """Every reason why validation refuses the prompt."""
        return [reason for node in self.node_errors.values() for reason in node["errors"]]


@pytest.fixture(scope="session")
def post(server):
    """Queues a prompt in API form; its id, or an Answer where it is refused."""

    def run(prompt):
        status, answer = server.request("/prompt", {"prompt": prompt})
        if status != 200 or answer["node_errors"]:
            return Answer(node_errors=answer["node_errors"])
        return answer["prompt_id"]

    return run


@pytest.fixture(scope="session")
def result(server):
    """Waits for a queued prompt and gives the server's Answer."""

    def run(prompt_id):
        while True:
            _, history = server.request(f"/history/{prompt_id}")
            if prompt_id in history:
                break
            time.sleep(0.05)
        entry = history[prompt_id]
        errors = [
            about for event, about in entry["status"]["messages"] if event == "execution_error"
        ]
        return Answer(error=errors[0] if errors else {}, outputs=entry["outputs"])

    return run


@pytest.fixture(scope="session")
def submit(post, result):
    """Runs a prompt in API form to its end; the server's Answer."""

    def run(prompt):
        queued = post(prompt)
        return queued if isinstance(queued, Answer) else result(queued)

    return run
