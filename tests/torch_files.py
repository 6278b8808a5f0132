"""Writes files as torch.save does, opcode by opcode, so that tests can also write what torch.save never would."""

from __future__ import annotations

import dataclasses
import io
import pickle
import struct
import zipfile
from typing import Any

import numpy as np

STORAGE_NAMES = {
    "float64": "Double",
    "float32": "Float",
    "float16": "Half",
    "bfloat16": "BFloat16",
    "int64": "Long",
    "int32": "Int",
    "int16": "Short",
    "int8": "Char",
    "uint8": "Byte",
    "bool": "Bool",
    "complex64": "ComplexFloat",
    "complex128": "ComplexDouble",
}
STREAM_START = b"\x80\x02\x8a\nl\xfc\x9cF\xf9 j\xa8P\x19." + b"\x80\x02M\xe9\x03."  # signature, version 1001


class Opcodes(bytes):
    """A part of a pickle, put in as it is."""


@dataclasses.dataclass(frozen=True)
class Storage:
    """A reference to a storage; `size` is what the reference declares."""

    key: str
    dtype: str
    size: int


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor as its reference and layout in elements say, whether or not they make sense."""

    storage: Storage
    offset: Any
    size: Any
    stride: Any
    requires_grad: bool = False


def named(name: str) -> Opcodes:
    module, _, attribute = name.rpartition(".")
    return Opcodes(pickle.GLOBAL + f"{module}\n{attribute}\n".encode())


def call(name: str, *arguments: Any) -> Opcodes:
    return Opcodes(named(name) + opcodes(arguments) + pickle.REDUCE)


def opcodes(value: Any) -> bytes:
    """The opcodes that leave `value` on the stack."""
    match value:
        case Opcodes():
            return bytes(value)
        case None | bool():
            return {None: pickle.NONE, True: pickle.NEWTRUE, False: pickle.NEWFALSE}[value]
        case int() if 0 <= value < 256:
            return pickle.BININT1 + bytes([value])
        case int() if 0 <= value < 1 << 16:
            return pickle.BININT2 + struct.pack("<H", value)
        case int() if -(1 << 31) <= value < 1 << 31:
            return pickle.BININT + struct.pack("<i", value)
        case int():
            encoded = value.to_bytes(value.bit_length() // 8 + 1, "little", signed=True)
            return pickle.LONG1 + bytes([len(encoded)]) + encoded
        case float():
            return pickle.BINFLOAT + struct.pack(">d", value)
        case str():
            encoded = value.encode()
            return pickle.BINUNICODE + struct.pack("<I", len(encoded)) + encoded
        case tuple():
            return pickle.MARK + b"".join(map(opcodes, value)) + pickle.TUPLE
        case list():
            return pickle.EMPTY_LIST + pickle.MARK + b"".join(map(opcodes, value)) + pickle.APPENDS
        case dict():
            items = b"".join(opcodes(key) + opcodes(item) for key, item in value.items())
            return pickle.EMPTY_DICT + pickle.MARK + items + pickle.SETITEMS
        case Storage():
            kind = named(f"torch.{STORAGE_NAMES[value.dtype]}Storage")
            return opcodes(("storage", kind, value.key, "cuda:0", value.size)) + pickle.BINPERSID
        case Tensor():
            layout = (value.storage, value.offset, value.size, value.stride, value.requires_grad)
            return call("torch._utils._rebuild_tensor_v2", *layout, call("collections.OrderedDict"))
    raise TypeError(type(value))


def pickled(value: Any) -> bytes:
    return pickle.PROTO + b"\x02" + opcodes(value) + pickle.STOP


def zip_archive(
    value: Any,
    storages: dict[str, np.ndarray],
    byteorder: bytes | None = b"little",
    extra: dict[str, bytes] | None = None,
    compression: int = zipfile.ZIP_STORED,
) -> bytes:
    """The container of PyTorch 1.6 and later; `extra` are further records by their full name."""
    records = {"archive/data.pkl": pickled(value)}
    if byteorder is not None:
        records["archive/byteorder"] = byteorder
    records |= {f"archive/data/{key}": data.tobytes() for key, data in storages.items()}
    records |= {"archive/version": b"3\n", **(extra or {})}
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", compression) as archive:
        for name, data in records.items():
            archive.writestr(name, data)
    return file.getvalue()


def stream(
    value: Any, storages: dict[str, np.ndarray], start: bytes = STREAM_START, machine: Any = None, keys: Any = None
) -> bytes:
    """The container before 1.6."""
    header = {"protocol_version": 1001, "little_endian": True} if machine is None else machine
    keys = sorted(storages) if keys is None else keys
    data = b"".join(struct.pack("<q", storages[key].size) + storages[key].tobytes() for key in sorted(storages))
    return start + pickled(header) + pickled(value) + pickled(keys) + data


CONTAINERS = {"zip": zip_archive, "stream": stream}


def tensor(key: str, array: np.ndarray, **changes: Any) -> Tensor:
    """A contiguous tensor that is a whole storage, with `changes` to the fields of `Tensor`."""
    stride = tuple(int(np.prod(array.shape[axis + 1 :])) for axis in range(array.ndim))
    return dataclasses.replace(Tensor(Storage(key, str(array.dtype), array.size), 0, array.shape, stride), **changes)


def state_dict(arrays: dict[str, np.ndarray], **others: Any) -> bytes:
    """A file of named arrays, each in a storage of its own; `others` are further entries of the dictionary."""
    storages = {str(index): array for index, array in enumerate(arrays.values())}
    tensors = {name: tensor(str(index), array) for index, (name, array) in enumerate(arrays.items())}
    return zip_archive(tensors | others, storages)
