"""An attribute of another's object, replaced for a while."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def replaced(owner: Any, name: str, value: Any) -> Iterator[None]:
    """Sets an attribute of an object or a module during the block."""
    before, is_own = getattr(owner, name, None), name in vars(owner)
    setattr(owner, name, value)
    try:
        yield
    finally:
        if is_own or name not in vars(owner):  # the latter is a property
            setattr(owner, name, before)
        else:
            delattr(owner, name)  # it is the class's again
