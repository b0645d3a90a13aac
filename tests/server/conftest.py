"""Tests of the pack in a ComfyUI server, over its HTTP API.

The `server` fixture is in tests/conftest.py: the tests in a browser use the same server.
"""
