"""Reads pickles as data, with no way to run anything.

A pickle is a program for a small stack machine. Python's machine imports and calls whatever the program names, and
its restricted form (`Unpickler.find_class`) still sets attributes, calls `__setstate__` and allocates what the
program asks for. The machine here has no import, no attributes and no call but of the constructors handed to it. It
knows the part of protocol 2 that numbers, texts, dictionaries, lists and tuples need, and stops at any other opcode.
"""

from __future__ import annotations

import dataclasses
import pickle
import pickletools
import struct
from collections.abc import Callable, Mapping
from typing import Any

DEPTH_LIMIT = 64  # levels of containers in a result: whoever walks it may recurse
VALUES_LIMIT = 1 << 19  # values in a result, shared ones counted each time: whoever walks it comes to an end

_OPCODE_NAMES = {opcode.code.encode("latin-1"): opcode.name for opcode in pickletools.opcodes}


class MalformedError(ValueError):
    """What a file holds is not what may be there. The text does not name the file: its reader does."""


class ForbiddenNameError(MalformedError):
    """A pickle names something that it may not use.

    Attributes:
      name: the full name, "os.system".
    """

    def __init__(self, name: str):
        super().__init__(f"{shorten(name)} is not among the names allowed")
        self.name = name


@dataclasses.dataclass(frozen=True)
class Constructor:
    """A function of ours that stands in for a name in the file; `build` takes the tuple of arguments."""

    name: str
    build: Callable[[tuple], Any]


def interpret(
    data: bytes, names: Mapping[str, Any], persistent: Callable[[Any], Any], leaves: tuple[type, ...] = ()
) -> tuple[Any, int]:
    """The value of the pickle at the start of `data`, and the number of bytes that it takes.

    Args:
      data: the pickle, and what follows it. Memory and time are bounded by its length (some 100 bytes for each).
      names: what each name that the pickle may use stands for. Only a `Constructor` is ever called.
      persistent: gives the object for a persistent id, which is any value of the pickle.
      leaves: types that the result may hold besides None, bool, int, float, str, dict, list and tuple.

    Raises:
      ForbiddenNameError: the pickle uses a name outside `names`.
      MalformedError: it is damaged, truncated, nested too deep, or uses another opcode.
    """
    machine = _Machine(data, names, persistent)
    value = machine.run()
    _check_plain(value, (type(None), bool, int, float, str, *leaves))
    return value, machine.position


class _Machine:
    """The stack machine. MARK puts the current stack aside; the opcodes that consume a mark bring it back."""

    def __init__(self, data: bytes, names: Mapping[str, Any], persistent: Callable[[Any], Any]):
        self.data, self.names, self.persistent = data, names, persistent
        self.position = 0
        self.stack: list[Any] = []
        self.stacks_below: list[list[Any]] = []
        self.memo: dict[int, Any] = {}

    def run(self) -> Any:
        while True:
            opcode = self.take(1)
            match opcode:  # the frequent ones first
                case pickle.BININT1:
                    self.push(self.take(1)[0])
                case pickle.LONG_BINPUT:
                    self.memo[self.unpack("<I")] = self.top()
                case pickle.BINPUT:
                    self.memo[self.take(1)[0]] = self.top()
                case pickle.BINGET:
                    self.push(self.recall(self.take(1)[0]))
                case pickle.LONG_BINGET:
                    self.push(self.recall(self.unpack("<I")))
                case pickle.MARK:
                    self.stacks_below.append(self.stack)
                    self.stack = []
                case pickle.TUPLE:
                    self.push(tuple(self.pop_to_mark()))
                case pickle.BINUNICODE:
                    self.push(self.text(self.take(self.unpack("<I"))))
                case pickle.EMPTY_TUPLE:
                    self.push(())
                case pickle.TUPLE1 | pickle.TUPLE2 | pickle.TUPLE3:
                    count = 1 + (pickle.TUPLE1, pickle.TUPLE2, pickle.TUPLE3).index(opcode)
                    self.push(tuple(reversed([self.pop() for _ in range(count)])))
                case pickle.NONE:
                    self.push(None)
                case pickle.NEWFALSE:
                    self.push(False)
                case pickle.NEWTRUE:
                    self.push(True)
                case pickle.BININT2:
                    self.push(self.unpack("<H"))
                case pickle.BININT:
                    self.push(self.unpack("<i"))
                case pickle.LONG1:
                    self.push(int.from_bytes(self.take(self.take(1)[0]), "little", signed=True))
                case pickle.BINFLOAT:
                    self.push(self.unpack(">d"))
                case pickle.EMPTY_DICT:
                    self.push({})
                case pickle.EMPTY_LIST:
                    self.push([])
                case pickle.SETITEM:
                    self.set_items([self.pop(), self.pop()][::-1])
                case pickle.SETITEMS:
                    self.set_items(self.pop_to_mark())
                case pickle.APPEND:
                    self.append([self.pop()])
                case pickle.APPENDS:
                    self.append(self.pop_to_mark())
                case pickle.BINPERSID:
                    self.push(self.persistent(self.pop()))
                case pickle.GLOBAL:
                    self.push(self.named(f"{self.line()}.{self.line()}"))
                case pickle.REDUCE:
                    arguments, function = self.pop(), self.pop()
                    self.push(self.construct(function, arguments))
                case pickle.BUILD:
                    # Attributes of a dictionary (`_metadata` of a state_dict) are dropped; nothing else has any.
                    self.pop()
                    self.top_of_type(dict, "attributes")
                case pickle.PROTO:
                    if (protocol := self.take(1)[0]) != 2:
                        raise MalformedError(f"expected pickle protocol 2, torch.save's own choice, found {protocol}")
                case pickle.STOP:
                    value = self.pop()
                    if self.stack or self.stacks_below:
                        raise MalformedError("a pickle ends with values left over: it is damaged")
                    return value
                case _:
                    found = f"{_OPCODE_NAMES.get(opcode, opcode)} at position {self.position - 1} of a pickle"
                    raise MalformedError(f"found opcode {found}: no tensors need it, or the file is damaged")

    # Reading --------------------------------------------------------------------------------------------

    def take(self, count: int) -> bytes:
        end = self.position + count
        if end > len(self.data):
            raise MalformedError(f"a pickle does not end within {len(self.data)} bytes: the file is truncated")
        taken = self.data[self.position : end]
        self.position = end
        return taken

    def unpack(self, layout: str) -> Any:
        return struct.unpack(layout, self.take(struct.calcsize(layout)))[0]

    def line(self) -> str:
        end = self.data.find(b"\n", self.position)
        return self.text(self.take((len(self.data) if end < 0 else end) + 1 - self.position)[:-1])

    @staticmethod
    def text(encoded: bytes) -> str:
        try:
            return encoded.decode("utf-8", "surrogatepass")  # as pickle encodes
        except UnicodeDecodeError:
            raise MalformedError(f"expected text in UTF-8, found {shorten(repr(encoded))}") from None

    # Stack and memo -------------------------------------------------------------------------------------

    def push(self, value: Any) -> None:
        self.stack.append(value)

    def top(self) -> Any:
        if not self.stack:
            raise MalformedError("a pickle takes a value from an empty stack: it is damaged")
        return self.stack[-1]

    def pop(self) -> Any:
        self.top()
        return self.stack.pop()

    def pop_to_mark(self) -> list[Any]:
        if not self.stacks_below:
            raise MalformedError("a pickle closes a group that it did not open: it is damaged")
        group, self.stack = self.stack, self.stacks_below.pop()
        return group

    def top_of_type(self, kind: type, purpose: str) -> Any:
        if type(self.top()) is not kind:
            raise MalformedError(f"expected a {kind.__name__} to take {purpose}, found {describe(self.top())}")
        return self.top()

    def recall(self, index: int) -> Any:
        if index not in self.memo:
            raise MalformedError(f"a pickle refers to its value {index}, which it has not stored: it is damaged")
        return self.memo[index]

    # Building -------------------------------------------------------------------------------------------

    def set_items(self, flat: list[Any]) -> None:
        target = self.top_of_type(dict, "items")
        if len(flat) % 2:
            raise MalformedError("a dictionary has a key without a value: the pickle is damaged")
        for key, value in zip(flat[::2], flat[1::2], strict=True):
            # Not tuples: hashing one that shares its parts ((t, t), 60 levels deep) would take for ever.
            if type(key) not in (str, int):
                raise MalformedError(f"expected a text or an int as key of a dictionary, found {describe(key)}")
            target[key] = value

    def append(self, values: list[Any]) -> None:
        self.top_of_type(list, "values").extend(values)

    def named(self, name: str) -> Any:
        if name not in self.names:
            raise ForbiddenNameError(name)
        return self.names[name]

    def construct(self, function: Any, arguments: Any) -> Any:
        if not isinstance(function, Constructor):
            raise MalformedError(f"expected the name of a constructor, found {describe(function)}")
        if type(arguments) is not tuple:
            raise MalformedError(f"expected a tuple of arguments of {function.name}, found {describe(arguments)}")
        return function.build(arguments)


def _check_plain(value: Any, leaves: tuple[type, ...]) -> None:
    """Raises unless `value` is a finite tree of dicts, lists, tuples and `leaves` that can be walked."""
    measured: dict[int, tuple[int, int]] = {}  # of containers, by identity: they may be shared

    def measure(item: Any, depth: int) -> tuple[int, int]:  # -> levels, values
        if type(item) in leaves:
            return 0, 1
        if type(item) not in (dict, list, tuple):
            raise MalformedError(f"expected tensors, numbers, texts and containers of them, found {describe(item)}")
        if id(item) not in measured and depth < DEPTH_LIMIT:
            parts = [measure(part, depth + 1) for part in (item.values() if type(item) is dict else item)]
            measured[id(item)] = (1 + max((p[0] for p in parts), default=0), 1 + sum(p[1] for p in parts))
        levels, values = measured.get(id(item), (1, 1))
        if max(values, len(measured)) > VALUES_LIMIT:
            raise MalformedError(f"more than {VALUES_LIMIT} values, or the same ones over and over")
        if depth + levels > DEPTH_LIMIT:
            raise MalformedError(f"containers are nested more than {DEPTH_LIMIT} deep, or hold themselves")
        return levels, values

    measure(value, 0)


def describe(value: Any) -> str:
    """A value of a file in a message: numbers and texts in short, otherwise what it is."""
    if value is None or isinstance(value, (str, int, float)):
        return shorten(repr(value))
    if isinstance(value, Constructor):
        return f"the name {value.name} itself"
    return f"{type(value).__name__} of {len(value)}" if isinstance(value, (dict, list, tuple)) else type(value).__name__


def shorten(text: str, limit: int = 120) -> str:
    """Text of a file in a message: printable and of bounded length."""
    kept = text if len(text) <= limit else text[: limit - 3] + "..."
    return "".join(c if c.isprintable() else "?" for c in kept)
