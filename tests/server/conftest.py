"""Tests of the pack in a ComfyUI server, over its HTTP API.

The `server` fixture is in tests/conftest.py: the tests in a browser use the same server.
"""

from __future__ import annotations

import pytest
from prompts import Queue


@pytest.fixture(scope="session")
def queue(server):
    """The server's queue."""
    return Queue(server)
