"""Cases of a test of which the default run takes some."""

from __future__ import annotations

from collections.abc import Collection, Iterable

import pytest


def long_but(quick: Collection[tuple], cases: Iterable[tuple]) -> list:
    """The cases for `parametrize`; those that are not in `quick` run with --all."""
    long = pytest.mark.long
    return [case if case in quick else pytest.param(*case, marks=long) for case in cases]
