"""What a pickle of tensors says, without running it.

A pickle is a program: it names functions and calls them. Here its instructions are read as data.
No name is imported and nothing is called; the few names that a dictionary of tensors needs stand
for entries of a table, and any other ends the reading. That holds for every version of torch,
whatever its own unpickler lets through.
"""

from __future__ import annotations

import io
import math
import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from ..core.bounded_read import MOST_DIMENSIONS

MOST_INSTRUCTIONS = 250_000  # some 40 make a tensor
MOST_NESTED = 100
STORAGES = {
    "torch.DoubleStorage": torch.float64,
    "torch.FloatStorage": torch.float32,
    "torch.HalfStorage": torch.float16,
    "torch.BFloat16Storage": torch.bfloat16,
    "torch.LongStorage": torch.int64,
    "torch.IntStorage": torch.int32,
    "torch.ShortStorage": torch.int16,
    "torch.CharStorage": torch.int8,
    "torch.ByteStorage": torch.uint8,
    "torch.BoolStorage": torch.bool,
}
DICTIONARY = "collections.OrderedDict"
TENSORS = ("torch._utils._rebuild_tensor", "torch._utils._rebuild_tensor_v2")
PARAMETERS = ("torch._utils._rebuild_parameter", "torch.nn.parameter.Parameter")
KNOWN = frozenset((DICTIONARY, *TENSORS, *PARAMETERS, *STORAGES))


class UnsafePickle(ValueError):
    """It names something that could run code; the message is that name."""


class OtherContent(ValueError):
    """It holds what no dictionary of plain tensors does; the message is what."""


@dataclass(frozen=True)
class Name:
    """A function or class that the pickle names, by its full name."""

    text: str


@dataclass(frozen=True)
class Storage:
    """Numbers in the file: under which key, of which dtype, how many."""

    key: str
    dtype: torch.dtype
    count: int

    @property
    def nbytes(self) -> int:
        """How many bytes those numbers take."""
        return self.count * self.dtype.itemsize


@dataclass(frozen=True)
class StoredTensor:
    """A tensor's place in a storage; offset and stride in numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    stride: tuple[int, ...]

    @property
    def nbytes(self) -> int:
        """How many bytes it would take by itself."""
        return math.prod(self.shape) * self.storage.dtype.itemsize

    @property
    def end(self) -> int:
        """How many numbers its storage must have at least."""
        if not math.prod(self.shape):
            return 0
        steps = ((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))
        return self.offset + sum(steps) + 1


def read_pickle(file: io.BytesIO) -> Any:
    """The value of the pickle at the file's position, which is left behind it.

    Made of dicts, lists, tuples, numbers, texts, `Storage` and `StoredTensor`. Raises UnsafePickle,
    OtherContent, or ValueError for damaged bytes.
    """
    machine = _Machine()
    try:
        for count, (instruction, argument, _) in enumerate(pickletools.genops(file)):
            if count > MOST_INSTRUCTIONS:
                raise OtherContent(f"more than {MOST_INSTRUCTIONS} instructions")
            if instruction.name == "STOP":
                break
            machine.step(instruction.name, argument)
        return machine.stack.pop()
    except (LookupError, TypeError, AttributeError, OverflowError) as error:
        raise ValueError(f"damaged ({type(error).__name__})") from error


class _Machine:
    """The stack, the marks and the memo of the pickle format."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def step(self, name: str, argument: Any) -> None:
        """One instruction."""
        if name in PUSHED:
            self.stack.append(argument)
        elif name in MADE:
            self.stack.append(MADE[name]())
        elif name in HANDLERS:
            HANDLERS[name](self, argument)
        elif name not in IGNORED:
            raise OtherContent(f"the pickle instruction {name}")

    def mark(self, _: Any) -> None:
        if len(self.marks) >= MOST_NESTED:
            raise OtherContent(f"more than {MOST_NESTED} things within each other")
        self.marks.append(self.stack)
        self.stack = []

    def _since_mark(self) -> list[Any]:
        found, self.stack = self.stack, self.marks.pop()
        return found

    def name(self, argument: str) -> None:
        self._push_name(argument.replace(" ", ".", 1))

    def name_from_stack(self, _: Any) -> None:
        name, module = self.stack.pop(), self.stack.pop()
        if type(name) is not str or type(module) is not str:
            raise ValueError("damaged (a name that is no text)")
        self._push_name(f"{module}.{name}")

    def instance(self, argument: str) -> None:
        """Of a class that it names: an instruction no tensor needs."""
        raise UnsafePickle(argument.replace(" ", ".", 1)[:80])

    def _push_name(self, text: str) -> None:
        if text not in KNOWN:
            kind = OtherContent if _is_other_tensor(text) else UnsafePickle
            raise kind(text[:80])
        self.stack.append(Name(text))

    def put(self, index: int) -> None:
        self.memo[index] = self.stack[-1]

    def memoize(self, _: Any) -> None:
        self.put(len(self.memo))

    def get(self, index: int) -> None:
        self.stack.append(self.memo[index])

    def tuple_since_mark(self, _: Any) -> None:
        items = tuple(self._since_mark())  # which changes the stack
        self.stack.append(items)

    def tuple_of(self, count: int) -> None:
        items = self.stack[-count:]
        if len(items) != count:
            raise ValueError("damaged (a tuple is too short)")
        self.stack[-count:] = [tuple(items)]

    def append(self, _: Any) -> None:
        self._extend([self.stack.pop()])

    def appends(self, _: Any) -> None:
        self._extend(self._since_mark())

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not list:
            raise ValueError("damaged (no list to append to)")
        target += items

    def set_item(self, _: Any) -> None:
        value, key = self.stack.pop(), self.stack.pop()
        self._update([key, value])

    def set_items(self, _: Any) -> None:
        self._update(self._since_mark())

    def _update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if type(target) is not dict:
            raise OtherContent(f"entries of a {type(target).__name__}")
        for key, value in zip(items[::2], items[1::2], strict=True):
            # anything else may take forever to be hashed
            if type(key) not in (str, int):
                raise OtherContent(f"a key that is a {type(key).__name__}")
            target[key] = value

    def persistent(self, _: Any) -> None:
        self.stack.append(_storage(self.stack.pop()))

    def call(self, _: Any) -> None:
        arguments = self.stack.pop()
        self.stack[-1] = _result(self.stack[-1], arguments)

    def build(self, _: Any) -> None:
        """State of an ordered dictionary or a parameter: not needed."""
        self.stack.pop()
        if type(self.stack[-1]) not in (dict, StoredTensor):
            raise OtherContent(f"the state of a {type(self.stack[-1]).__name__}")


def _is_other_tensor(name: str) -> bool:
    """Whether it is torch's name for a kind of tensor or storage that is not read here."""
    owner, _, last = name.rpartition(".")
    if owner == "torch._utils":
        return last.startswith("_rebuild_")
    if owner == "torch":
        return last.endswith("Storage") or isinstance(vars(torch).get(last), torch.dtype)
    return name in ("torch.serialization._get_layout", "torch.device", "torch.Size")


def _storage(told: Any) -> Storage:
    """("storage", its type, key, device, count), and in old files a view, which is none."""
    if type(told) is not tuple or len(told) not in (5, 6) or told[0] != "storage":
        raise OtherContent("something that is stored elsewhere")
    _, kind, key, _, count, *view = told
    if view not in ([], [None]):
        raise OtherContent("a storage that is part of another one")
    if type(kind) is not Name or kind.text not in STORAGES or type(key) is not str:
        raise ValueError("damaged (a storage of no known type)")
    return Storage(key[:200], STORAGES[kind.text], _count(count))


def _result(name: Any, arguments: Any) -> Any:
    if type(name) is not Name or type(arguments) is not tuple:
        raise ValueError("damaged (a call of what cannot be called)")
    if name.text == DICTIONARY:
        return _dictionary(*arguments)
    if name.text in PARAMETERS and arguments and type(arguments[0]) is StoredTensor:
        return arguments[0]
    if name.text in TENSORS:
        return _tensor(*arguments[:4])
    raise ValueError(f"damaged ({name.text} of something else)")


def _dictionary(pairs: Any = ()) -> dict[Any, Any]:
    """As written by Python 2: of pairs; else empty."""
    found = {}
    for key, value in pairs:
        if type(key) is not str:
            raise OtherContent(f"a key that is a {type(key).__name__}")
        found[key] = value
    return found


def _tensor(storage: Any, offset: Any, shape: Any, stride: Any) -> StoredTensor:
    if type(storage) is not Storage or type(shape) is not tuple or type(stride) is not tuple:
        raise ValueError("damaged (a tensor of something else)")
    if len(shape) != len(stride) or len(shape) > MOST_DIMENSIONS:
        raise ValueError("damaged (a tensor whose strides do not fit its shape)")
    sizes, steps = tuple(map(_count, shape)), tuple(map(_count, stride))
    return StoredTensor(storage, _count(offset), sizes, steps)


def _count(value: Any) -> int:
    """A size, an offset or a stride, within what torch can compute with."""
    if type(value) is not int or not 0 <= value < 2**47:
        raise ValueError("damaged (a size that cannot be)")
    return value


NUMBERS = ("BININT", "BININT1", "BININT2", "LONG1", "BINFLOAT")
TEXTS = ("BINUNICODE", "SHORT_BINUNICODE", "BINSTRING", "SHORT_BINSTRING")
PUSHED = frozenset((*NUMBERS, *TEXTS))
MADE: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_DICT": dict,
    "EMPTY_LIST": list,
    "EMPTY_TUPLE": tuple,
}
HANDLERS: dict[str, Callable[[_Machine, Any], None]] = {
    "MARK": _Machine.mark,
    "GLOBAL": _Machine.name,
    "STACK_GLOBAL": _Machine.name_from_stack,
    "INST": _Machine.instance,
    "MEMOIZE": _Machine.memoize,
    "BINPUT": _Machine.put,
    "LONG_BINPUT": _Machine.put,
    "BINGET": _Machine.get,
    "LONG_BINGET": _Machine.get,
    "TUPLE": _Machine.tuple_since_mark,
    "TUPLE1": lambda machine, _: machine.tuple_of(1),
    "TUPLE2": lambda machine, _: machine.tuple_of(2),
    "TUPLE3": lambda machine, _: machine.tuple_of(3),
    "APPEND": _Machine.append,
    "APPENDS": _Machine.appends,
    "SETITEM": _Machine.set_item,
    "SETITEMS": _Machine.set_items,
    "BINPERSID": _Machine.persistent,
    "REDUCE": _Machine.call,
    "NEWOBJ": _Machine.call,
    "BUILD": _Machine.build,
}
IGNORED = frozenset(("PROTO", "FRAME"))
