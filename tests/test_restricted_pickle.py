"""The interpreter of pickles: what it builds, and that whatever else a pickle holds is refused and not executed."""

from __future__ import annotations

import os
import pickle
import pickletools
import re

import pytest

from tests.torch_files import Opcodes, call, named, opcodes, pickled
from tfgen import restricted_pickle
from tfgen.restricted_pickle import Constructor, ForbiddenNameError, MalformedError, interpret

NAMES = {"ours.pair": Constructor("ours.pair", lambda arguments: list(arguments)), "ours.number": 7}
KNOWN = """
    BININT1 BININT2 BININT LONG1 BINFLOAT BINUNICODE NONE NEWTRUE NEWFALSE EMPTY_TUPLE TUPLE TUPLE1 TUPLE2 TUPLE3
    EMPTY_LIST APPEND APPENDS EMPTY_DICT SETITEM SETITEMS MARK PROTO STOP GLOBAL REDUCE BUILD BINPERSID
    BINPUT LONG_BINPUT BINGET LONG_BINGET
"""


def value_of(data: bytes):
    return interpret(data, NAMES, persistent=lambda persistent_id: f"storage {persistent_id}")[0]


def refuses(code: bytes, text: str):
    with pytest.raises(MalformedError, match=re.escape(text)) as caught:
        value_of(pickled(Opcodes(code)))
    assert len(str(caught.value)) < 400
    assert str(caught.value).isprintable()


@pytest.mark.parametrize(
    "value",
    [
        *(None, True, False, 0, 255, 256, 65535, 65536, -1, -(1 << 31), 1 << 31, 1 << 80, -(1 << 80), 0.1, -1e300),
        *("", "ß\n\0", "x" * 300, (), [], {}, (1,), (1, 2), (1, 2, 3), (1, 2, 3, 4), [[1], [2, [3]]]),
        {"a": {0: [None], -1: {}}, "": ()},
        {number: (str(number), float(number)) for number in range(2000)},  # more than a thousand: several groups
    ],
    ids=lambda value: repr(value)[:20],
)
def test_what_python_writes(value):
    data = pickle.dumps(value, protocol=2)
    read, size = interpret(data + b"more", {}, persistent=str)
    assert size == len(data)
    assert type(read) is type(value)
    assert read == value


def test_shared_values_stay_shared_and_names_are_ours():
    first, second = value_of(pickle.dumps([shared := [1], shared], protocol=2))
    assert first is second
    assert value_of(pickled([call("ours.pair", 1, "b"), named("ours.number")])) == [[1, "b"], 7]
    assert value_of(pickled(Opcodes(opcodes(3) + pickle.BINPERSID))) == "storage 3"
    assert value_of(pickled(Opcodes(opcodes({"a": 1}) + opcodes({"b": 2}) + pickle.BUILD))) == {"a": 1}


class Attack:
    """Creates a folder when Python unpickles it."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def test_attack_is_not_executed(tmp_path):
    sentinel = tmp_path / "sentinel"
    attack = pickle.dumps(Attack(sentinel), protocol=2)
    pickle.loads(attack)
    assert sentinel.exists()  # so it is one
    sentinel.rmdir()
    for value in (Opcodes(attack[2:-1]), {"w": [1, Opcodes(attack[2:-1])]}, call("ours.pair", Opcodes(attack[2:-1]))):
        with pytest.raises(ForbiddenNameError, match=r"posix\.mkdir is not among the names allowed") as caught:
            value_of(pickled(value))
        assert caught.value.name == "posix.mkdir"
        assert not sentinel.exists()


@pytest.mark.parametrize("name", ["os.system", "builtins.eval", "ours.pair.__init__", "ours.", "\x1b[31m" + "x" * 9000])
def test_names_outside_the_table(name):
    shown = "".join(c if c.isprintable() else "?" for c in name)[:80]
    refuses(named(name), shown)
    refuses(named(name), "is not among the names allowed")


@pytest.mark.parametrize(
    "opcode", [o for o in pickletools.opcodes if o.name not in KNOWN.split()], ids=lambda o: o.name
)
def test_other_opcodes(opcode):
    """INST, OBJ, NEWOBJ, EXT, PERSID, BYTEARRAY8 and the rest: refused at sight, whatever their arguments."""
    code = opcodes("a") + opcodes(()) + opcode.code.encode("latin-1") + b"\xff" * 8
    refuses(code, f"found opcode {opcode.name} at position")


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (opcodes([]) + opcodes({}) + pickle.BUILD, "expected a dict to take attributes, found list of 0"),
        (named("ours.pair") + opcodes({"build": 1}) + pickle.BUILD, "found the name ours.pair itself"),
        (opcodes("os.system") + opcodes(("ls",)) + pickle.REDUCE, "name of a constructor, found 'os.system'"),
        (named("ours.number") + opcodes((3,)) + pickle.REDUCE, "name of a constructor, found 7"),
        (named("ours.pair") + opcodes([1]) + pickle.REDUCE, "expected a tuple of arguments of ours.pair, found list"),
        (named("ours.pair"), "expected tensors, numbers, texts and containers of them, found the name ours.pair"),
        (opcodes([named("ours.pair")]), "containers of them, found the name ours.pair itself"),
        (opcodes(1) + opcodes(2) + opcodes(3) + pickle.SETITEM, "expected a dict to take items, found 1"),
        (opcodes(()) + opcodes(2) + pickle.APPEND, "expected a list to take values, found tuple of 0"),
        (pickle.EMPTY_DICT + pickle.MARK + opcodes(1) + pickle.SETITEMS, "a key without a value"),
        (opcodes({(): 1}), "expected a text or an int as key of a dictionary, found tuple of 0"),
        (pickle.BINGET + b"\x07", "refers to its value 7"),
        (pickle.TUPLE, "closes a group that it did not open"),
        (pickle.TUPLE2, "from an empty stack"),
        (pickle.BINPUT + b"\x00", "from an empty stack"),
        (opcodes(1) + pickle.MARK, "from an empty stack"),
        (pickle.BINUNICODE + b"\x01\x00\x00\x00\xff", "expected text in UTF-8"),
        (pickle.PROTO + b"\x05", "expected pickle protocol 2, torch.save's own choice, found 5"),
        (pickle.GLOBAL + b"os system", "does not end within"),
        (opcodes(1) + opcodes(2), "ends with values left over"),
    ],
)
def test_damaged(code, text):
    refuses(code, text)


def shared_twice(levels: int) -> bytes:
    """A tuple of twice the same tuple of twice the same ...: 2**levels paths in 5 bytes a level."""
    return opcodes("x") + (pickle.BINPUT + b"\x00" + pickle.BINGET + b"\x00" + pickle.TUPLE2) * levels


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (pickle.BINUNICODE + b"\xff\xff\xff\xff", "does not end within"),
        (pickle.LONG1 + b"\xff", "does not end within"),
        (opcodes(1) + pickle.LONG_BINPUT + b"\xff\xff\xff\xff" + pickle.BINGET + b"\x00", "refers to its value 0"),
        (opcodes(()) + pickle.TUPLE1 * 100_000, "nested more than 64 deep"),
        (pickle.EMPTY_LIST * 100_000 + pickle.APPEND * 99_999, "nested more than 64 deep"),
        (pickle.MARK * 100_000 + pickle.TUPLE * 100_000, "nested more than 64 deep"),
        (pickle.EMPTY_LIST + pickle.BINPUT + b"\x00" + pickle.BINGET + b"\x00" + pickle.APPEND, "or hold themselves"),
        (pickle.EMPTY_DICT + pickle.BINPUT + b"\x00K\x00h\x00" + pickle.SETITEM, "or hold themselves"),
        (shared_twice(40), "values, or the same ones over"),
        (pickle.EMPTY_DICT + shared_twice(60) + opcodes(1) + pickle.SETITEM, "as key of a dictionary, found tuple"),
    ],
)
def test_small_pickles_of_large_things(code, text):
    refuses(code, text)


def test_number_of_values_is_bounded(monkeypatch):
    monkeypatch.setattr(restricted_pickle, "VALUES_LIMIT", 1000)
    assert value_of(pickled([0] * 900)) == [0] * 900
    refuses(opcodes([0] * 1000), "more than 1000 values")
    refuses(opcodes([[]] * 1002), "more than 1000 values")


def test_depth_that_is_allowed():
    value = 0
    for _ in range(64):
        value = [value]
    assert value_of(pickled(value)) == value
    refuses(opcodes([value]), "nested more than 64 deep")
