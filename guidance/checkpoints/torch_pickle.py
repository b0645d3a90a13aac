"""What the pickle of a torch file asks for, found without running it.

The standard library's pickletools takes its instructions apart. They are followed on a stack of
names, plain values and kinds of things, so that what torch would make of them is known exactly.
"""

from __future__ import annotations

import pickletools
from collections.abc import Sequence
from enum import Enum
from typing import Any

MOST_INSTRUCTIONS = 250_000  # some 40 make a tensor
ITEM_SIZES = {
    **dict.fromkeys(("DoubleStorage", "LongStorage"), 8),
    **dict.fromkeys(("FloatStorage", "IntStorage"), 4),
    **dict.fromkeys(("HalfStorage", "BFloat16Storage", "ShortStorage"), 2),
    **dict.fromkeys(("CharStorage", "ByteStorage", "BoolStorage"), 1),
}
ORDERED_DICT = "collections OrderedDict"
REBUILT = {"torch._utils _rebuild_tensor", "torch._utils _rebuild_tensor_v2"}
PARAMETER = "torch._utils _rebuild_parameter"
NAMES = {f"torch {kind}" for kind in ITEM_SIZES} | REBUILT | {ORDERED_DICT, PARAMETER}
# Instructions that make plain values.
VALUES = {"BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT", "BINUNICODE", "SHORT_BINSTRING"}
CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False, "EMPTY_TUPLE": ()}
TUPLES = {"TUPLE1": 1, "TUPLE2": 2, "TUPLE3": 3}


class Unsafe(ValueError):
    """It names something that may run code; the message says what."""


class OtherContent(ValueError):
    """It holds what no dictionary of plain tensors does; the message says what."""


Storage = tuple[str, int]  # its kind, and how many numbers it claims


class _Global(str):
    """A name that the pickle takes from a module."""


class _Kind(Enum):
    """What there is besides names and plain values; what is in it does not matter."""

    STORAGE = "a storage"
    TENSOR = "a tensor"
    LIST = "a list"
    DICT = "a dictionary"


def storages_of(pickle: bytes) -> dict[str, Storage]:
    """The storages that a pickle asks for, by key.

    Its instructions are followed without running them. Raises for every name, call or instruction
    that a dictionary of tensors does not need.
    """
    run = _DryRun()
    for number, (code, argument, _) in enumerate(pickletools.genops(pickle)):
        if number > MOST_INSTRUCTIONS:
            raise OtherContent(f"more than {MOST_INSTRUCTIONS} instructions")
        run.follow(code.name, argument)
    return run.storages


class _DryRun:
    """The stack and the memo of an unpickler that makes nothing."""

    def __init__(self) -> None:
        self.storages: dict[str, Storage] = {}
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []  # the stacks below the marks
        self.memo: dict[int, Any] = {}

    def follow(self, name: str, argument: Any) -> None:
        """What the instruction does to the stack."""
        if name in VALUES:
            self.stack.append(argument)
        elif name in CONSTANTS:
            self.stack.append(CONSTANTS[name])
        elif name in TUPLES:
            self.stack.append(self._last(TUPLES[name]))
        else:
            self._act(name, argument)

    def _act(self, name: str, argument: Any) -> None:
        match name:
            case "PROTO" | "STOP":
                pass
            case "MARK":
                self.marked.append(self.stack)
                self.stack = []
            case "TUPLE":
                found = tuple(self._since_mark())
                self.stack.append(found)
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "BINGET" | "LONG_BINGET":
                self.stack.append(self.memo[argument])
            case "EMPTY_LIST":
                self.stack.append(_Kind.LIST)
            case "APPEND":
                self._last(1)
                self._top(_Kind.LIST)
            case "APPENDS":
                self._since_mark()
                self._top(_Kind.LIST)
            case "EMPTY_DICT":
                self.stack.append(_Kind.DICT)
            case "SETITEM":
                self._set(self._last(2))
            case "SETITEMS":
                self._set(self._since_mark())
            case "BUILD":  # an OrderedDict gets the attributes that a dictionary lists
                self._top(_Kind.DICT)
                self.stack.pop()
                self._top(_Kind.DICT)
            case "GLOBAL":
                self._name(argument)
            case "BINPERSID":
                self._load_storage()
            case "REDUCE":
                self._call()
            case _:
                raise Unsafe(f"the pickle instruction {name}")

    def _last(self, count: int) -> tuple[Any, ...]:
        if len(self.stack) < count:
            raise ValueError("an instruction lacks its values")
        found = tuple(self.stack[-count:])
        del self.stack[-count:]
        return found

    def _since_mark(self) -> list[Any]:
        found, self.stack = self.stack, self.marked.pop()
        return found

    def _top(self, kind: _Kind) -> None:
        if self.stack[-1] is not kind:
            raise OtherContent(f"{_called(self.stack[-1])} that is used as {kind.value}")

    def _set(self, items: Sequence[Any]) -> None:
        self._top(_Kind.DICT)
        for key in items[::2]:  # tuples of tuples take forever to be hashed
            if type(key) is not str:
                raise OtherContent(f"a key that is {_called(key)}")

    def _name(self, name: str) -> None:
        if name not in NAMES:
            raise Unsafe(name.replace(" ", ".")[:80])
        self.stack.append(_Global(name))

    def _load_storage(self) -> None:
        """A storage from ("storage", its type, key, device, count)."""
        values = self.stack.pop()
        if not isinstance(values, tuple) or len(values) != 5 or values[0] != "storage":
            raise OtherContent("something that is stored elsewhere")
        _, name, key, _, count = values
        kind = name.removeprefix("torch ") if isinstance(name, _Global) else ""
        is_named = type(key) is str and key.isascii()
        if kind not in ITEM_SIZES or not is_named or type(count) is not int or count < 0:
            raise ValueError("damaged (a storage of no known type)")
        if self.storages.setdefault(key.lower(), (kind, count)) != (kind, count):
            raise ValueError("a storage has two sizes or types")
        self.stack.append(_Kind.STORAGE)

    def _call(self) -> None:
        """A call; what it is given decides what it may take."""
        name, given = self._last(2)
        first = given[0] if isinstance(given, tuple) and given else None
        if name == ORDERED_DICT and given == ():
            made = _Kind.DICT
        elif (name in REBUILT and first is _Kind.STORAGE) or (
            name == PARAMETER and first is _Kind.TENSOR
        ):
            made = _Kind.TENSOR
        else:
            raise OtherContent(f"a call of {_called(name)}")
        self.stack.append(made)


def _called(value: Any) -> str:
    if isinstance(value, _Global):
        return value.replace(" ", ".")
    return value.value if isinstance(value, _Kind) else f"a {type(value).__name__}"
