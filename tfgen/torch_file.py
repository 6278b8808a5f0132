"""Reads files written by PyTorch's `torch.save`, without PyTorch and without running anything of them.

    weights = torch_file.state_dict("imagenet32-iter-1700000-model-ema.th")  # name -> read-only float32 array
    optimizer = torch_file.load("imagenet32-iter-1700000-opt.th")            # dicts, lists, numbers, arrays

Both containers are read: the zip archive (PyTorch 1.6 and later) and the stream of pickles before it. Tensors are
views of the memory-mapped file: opening costs no more than the description of the tensors, and the file must stay
as it is while they are in use. Tensors that shared memory share it here. Arrays of the stream may be unaligned, which
NumPy and TensorFlow handle. As in PyTorch, the checksums of the zip archive are not verified.

Of what a file can ask for, only what `_NAMES` lists is understood; see `restricted_pickle` for why that is safe.
"""

from __future__ import annotations

import dataclasses
import math
import os
import pathlib
import re
import struct
import types
import zipfile
from collections.abc import Callable, Mapping
from typing import Any, BinaryIO

import ml_dtypes  # comes with TensorFlow
import numpy as np

from tfgen.restricted_pickle import Constructor, ForbiddenNameError, MalformedError, describe, interpret, shorten

# Bytes that describe 15,000 tensors; the largest optimizer state of the published systems has some 6,000. The limit
# bounds the memory (400 MB) and the time (seconds) that a hostile file can cost.
PICKLE_LIMIT = 1 << 21

_ZIP_SIGNATURE = b"PK\x03\x04"
_STREAM_SIGNATURE = b"\x80\x02\x8a\x0al\xfc\x9cF\xf9 j\xa8P\x19."  # the pickled number 0x1950a86a20f9469cfc6c
_STREAM_VERSION = 1001


class TorchFileError(ValueError):
    """A file that is not what `torch.save` writes of tensors; names the file, what was expected and what was found."""


def load(path: str | os.PathLike) -> Any:
    """The object saved in a file.

    Returns:
      dict, list, tuple, int, float, bool, str and None as saved; OrderedDict as dict, torch.Size as tuple; tensors
      and parameters as read-only arrays of the same shape, strides and dtype (bfloat16: `ml_dtypes.bfloat16`).

    Raises:
      TorchFileError: the file is truncated, damaged, not from `torch.save`, from a big-endian machine, or holds
        something else than the above (sparse and quantised tensors, whole modules, other code).
      OSError: it cannot be opened.
    """
    path = pathlib.Path(path)
    try:
        return _load(path)
    except ForbiddenNameError as error:
        hints = [hint for prefix, hint in _HINTS.items() if error.name.startswith(prefix)]
        raise TorchFileError(f"{path}: {error}: {hints[0]}") from None
    except MalformedError as error:
        raise TorchFileError(f"{path}: {error}") from None


def state_dict(path: str | os.PathLike, prefix: str = "module.") -> dict[str, np.ndarray]:
    """The tensors of a saved state dictionary by name, in the file's order.

    Args:
      prefix: removed from the names that start with it ("module." is what data-parallel wrappers add).

    Raises:
      TorchFileError: as `load`; or the file holds something else than a dictionary from names to tensors.
      OSError: the file cannot be opened.
    """
    saved = load(path)
    if type(saved) is not dict:
        raise TorchFileError(f"{path}: expected a dictionary from names to tensors, found {describe(saved)}")
    tensors: dict[str, np.ndarray] = {}
    for key, value in saved.items():
        if type(key) is not str or not isinstance(value, np.ndarray):
            raise TorchFileError(f"{path}: expected names and tensors, found {describe(value)} under {describe(key)}")
        name = key.removeprefix(prefix)
        if name in tensors:
            raise TorchFileError(
                f"{path}: expected one tensor {shorten(name)}, found one with and one without {prefix!r}"
            )
        tensors[name] = value
    return tensors


def _load(path: pathlib.Path) -> Any:
    if path.exists() and not path.is_file():
        raise MalformedError(
            f"expected a file written by torch.save, found a {'folder' if path.is_dir() else 'device'}"
        )
    with open(path, "rb") as file:
        if not os.fstat(file.fileno()).st_size:
            raise MalformedError("expected a file written by torch.save, found an empty file")
        contents = np.memmap(file, np.uint8, mode="r").view(np.ndarray)  # the mapping outlives the open file
        head = contents[:512].tobytes()
        if head.startswith(_ZIP_SIGNATURE):
            return _ZipArchive(file, contents).load()
        if head.startswith(_STREAM_SIGNATURE):
            return _Stream(contents).load()
        found = _other_format(path.name, head, contents[-8:].tobytes())
        raise MalformedError(f"expected a file written by torch.save, found {found}")


# What the pickles may name ----------------------------------------------------------------------------------

_DTYPES = {
    "Double": "<f8",
    "Float": "<f4",
    "Half": "<f2",
    "BFloat16": ml_dtypes.bfloat16,
    "Long": "<i8",
    "Int": "<i4",
    "Short": "<i2",
    "Char": "<i1",
    "Byte": "<u1",
    "Bool": "?",
    "ComplexFloat": "<c8",
    "ComplexDouble": "<c16",
}


@dataclasses.dataclass(frozen=True)
class Storage:
    """The memory of one or several tensors: one axis, read-only."""

    values: np.ndarray


def _build_dict(arguments: tuple) -> dict:
    if arguments:
        raise MalformedError(f"expected no arguments of OrderedDict, found {len(arguments)}")
    return {}


def _build_size(arguments: tuple) -> tuple:
    if len(arguments) != 1 or type(arguments[0]) is not tuple:
        raise MalformedError(f"expected one tuple as argument of torch.Size, found {describe(arguments)}")
    return arguments[0]


def _build_parameter(arguments: tuple) -> np.ndarray:
    match arguments:  # (data, requires_grad, hooks)
        case (np.ndarray() as data, bool(), dict()):
            return data
    raise MalformedError(f"expected a tensor, a bool and hooks as parameter, found {_describe_all(arguments)}")


def _build_tensor(arguments: tuple) -> np.ndarray:
    match arguments:  # (storage, offset, size, stride, requires_grad, hooks[, metadata]), in elements
        case (Storage(values), int() as offset, tuple() as size, tuple() as strides, bool(), dict(), *rest):
            pass
        case _:
            raise MalformedError(f"expected a storage and a layout as tensor, found {_describe_all(arguments)}")
    if not _all_empty(rest):
        raise MalformedError("found a tensor with a pending conjugation or sign: save it with .resolve_conj().clone()")
    plain = all(type(number) is int and 0 <= number < 1 << 63 for number in (offset, *size, *strides))
    if not plain or len(size) != len(strides) or len(size) > 32:
        found = f"offset {describe(offset)}, size {_describe_all(size)}, stride {_describe_all(strides)}"
        raise MalformedError(f"expected sizes and strides of up to 32 axes, none negative, found {found}")
    layout = f"offset {offset}, size {size}, stride {strides}"
    count = math.prod(size)
    if count:
        last = offset + sum((length - 1) * stride for length, stride in zip(size, strides, strict=True))
        if last >= values.size:
            raise MalformedError(f"expected a tensor within its storage of {values.size} elements, found {layout}")
        # A view of a few bytes that would fill the memory of whoever copies it.
        if count > values.size:
            raise MalformedError(f"found a tensor that repeats its elements ({layout}): save it with .contiguous()")
    # The stride of an axis of one element is arbitrary, and may not fit a machine word.
    steps = tuple(stride * values.itemsize if length > 1 else 0 for length, stride in zip(size, strides, strict=True))
    try:
        if count:
            return np.ndarray(size, values.dtype, values, offset * values.itemsize, steps)
        empty = np.empty(size, values.dtype)
    except ValueError as error:  # (0, 2**62, 2**62)
        raise MalformedError(f"expected a tensor that NumPy can hold, found {layout} ({error})") from None
    empty.flags.writeable = False
    return empty


def _describe_all(arguments: tuple) -> str:
    return shorten("(" + ", ".join(describe(argument) for argument in arguments[:8]) + ")")


def _all_empty(extras: list[Any]) -> bool:
    return all(extra is None or (type(extra) is dict and not extra) for extra in extras)


def _names(tensor: Callable[[tuple], Any], parameter: Callable[[tuple], Any]) -> dict[str, Any]:
    constructors = {
        "collections.OrderedDict": _build_dict,
        "torch.Size": _build_size,
        "torch._utils._rebuild_parameter": parameter,
        "torch._utils._rebuild_tensor_v2": tensor,
    }
    names: dict[str, Any] = {name: Constructor(name, build) for name, build in constructors.items()}
    return names | {f"torch.{name}Storage": np.dtype(dtype) for name, dtype in _DTYPES.items()}


_NAMES = _names(_build_tensor, _build_parameter)
_NAMES_WITHOUT_TENSORS = _names(lambda arguments: None, lambda arguments: None)

_HINTS = {  # by the start of a name that is not allowed; the last fits all
    "torch._utils._rebuild_sparse": "sparse tensors are not supported; save tensor.to_dense()",
    "torch._utils._rebuild_qtensor": "quantised tensors are not supported; save tensor.dequantize()",
    "torch._utils._rebuild_tensor_v3": "types newer than bfloat16 are not supported; save tensor.float()",
    "torch._utils._rebuild_meta_tensor": "a tensor on the device `meta` has no values",
    "torch.nn.": "whole modules are not supported; save module.state_dict()",
    "numpy.": "NumPy's values are not supported; save tensors and Python's numbers",
    "": "a file of tensors needs no other code, and none was executed",
}


def _parse_storage_id(value: Any) -> tuple[str, np.dtype, int]:
    """Key, type and number of elements of the storage that a persistent id stands for."""
    match value:  # (kind, type, key, device, elements[, view]); the device tells only where it once was
        case (str() as kind, np.dtype() as dtype, str() as key, str(), int() as size, *view) if kind == "storage":
            if not _all_empty(view):
                raise MalformedError("found a view of a storage (PyTorch before 0.4): save it again with a newer one")
            if size >= 0:
                return key, dtype, size
        case (str() as kind, *_) if kind == "module":
            raise MalformedError("found a whole module with its source code: save module.state_dict() instead")
    found = _describe_all(value) if type(value) is tuple else describe(value)
    raise MalformedError(f"expected a reference to a storage of tensors, found {found}")


def _no_storage(persistent_id: Any) -> None:
    raise MalformedError("found a storage outside the object: the file is damaged")


def _as_storage(key: str, data: np.ndarray, dtype: np.dtype, size: int) -> Storage:
    """The bytes `data` as `size` elements of `dtype`."""
    if data.size != size * dtype.itemsize:
        expected = f"{size} x {dtype} = {size * dtype.itemsize} bytes"
        raise MalformedError(f"expected {expected} of storage {shorten(key)}, found {data.size}: truncated or damaged")
    return Storage(data.view(dtype))


# The zip archive --------------------------------------------------------------------------------------------


class _ZipArchive:
    """`<stem>/data.pkl` describes the object, `<stem>/data/<key>` are its storages, all of them stored as they are.

    Nothing is extracted, so that names of records are only looked up, never used as paths.
    """

    def __init__(self, file: BinaryIO, contents: np.ndarray):
        self.contents = contents
        try:
            with zipfile.ZipFile(file) as archive:
                entries = archive.infolist()
        except (zipfile.BadZipFile, ValueError, OSError, OverflowError, NotImplementedError, struct.error) as error:
            found = f"{error} in {contents.size} bytes: the file is truncated or damaged"
            raise MalformedError(f"expected a zip directory at the end, found: {found}") from None
        self.entries = {entry.filename: entry for entry in entries}
        if len(self.entries) != len(entries):
            raise MalformedError("expected one record of each name, found several of the same name")
        stems = [name.removesuffix("/data.pkl") for name in self.entries if re.fullmatch(r"[^/]+/data\.pkl", name)]
        if len(stems) != 1:
            some = shorten(", ".join(list(self.entries)[:4]) or "no record at all")
            raise MalformedError(f"expected a zip archive of torch.save with one <name>/data.pkl, found {some}")
        self.stem = stems[0]

    def load(self) -> Any:
        if f"{self.stem}/constants.pkl" in self.entries:
            raise MalformedError("found a TorchScript program: save the module's state_dict() with torch.save instead")
        if f"{self.stem}/byteorder" in self.entries:
            order = self.record("byteorder")[:64].tobytes()
            if order != b"little":
                raise MalformedError(f"expected little-endian numbers, found byte order {shorten(repr(order))}")
        described = self.record("data.pkl")
        if described.size > PICKLE_LIMIT:
            raise MalformedError(f"expected at most {PICKLE_LIMIT} bytes in data.pkl, found {described.size}")
        return interpret(described.tobytes(), _NAMES, self.storage, leaves=(np.ndarray,))[0]

    def storage(self, persistent_id: Any) -> Storage:
        key, dtype, size = _parse_storage_id(persistent_id)
        return _as_storage(key, self.record(f"data/{key}"), dtype, size)

    def record(self, name: str) -> np.ndarray:  # uint8 [bytes], a view
        entry = self.entries.get(f"{self.stem}/{name}")
        if entry is None:
            raise MalformedError(f"expected a record {shorten(name)}, found none of the name: the file is incomplete")
        if entry.compress_type != zipfile.ZIP_STORED or entry.flag_bits & 1:
            kind = "an encrypted" if entry.flag_bits & 1 else "a compressed"
            raise MalformedError(f"expected records stored as they are, found {kind} one: unpack and zip with `zip -0`")
        # The directory's sizes count; the record's own header only says where its data begin.
        header = self.contents[max(entry.header_offset, 0) :][:30].tobytes()
        if entry.header_offset < 0 or len(header) < 30 or not header.startswith(_ZIP_SIGNATURE):
            raise MalformedError(f"expected the record {shorten(name)} at {entry.header_offset}, found none: damaged")
        begin = entry.header_offset + 30 + sum(struct.unpack_from("<HH", header, 26))
        if entry.compress_size != entry.file_size or begin + entry.file_size > self.contents.size:
            raise MalformedError(f"expected {entry.file_size} bytes in record {shorten(name)}, found less: damaged")
        return self.contents[begin : begin + entry.file_size]


# The stream of pickles --------------------------------------------------------------------------------------


class _Stream:
    """Five pickles (signature, version, machine, object, keys), then each storage: its length (int64) and its bytes.

    Only the object tells the type of a storage, and only what follows it tells where the storage is: so the object
    is interpreted twice, first for the types, then with the storages.
    """

    def __init__(self, contents: np.ndarray):
        self.contents = contents
        self.position = len(_STREAM_SIGNATURE)
        self.declared: dict[str, tuple[np.dtype, int]] = {}
        self.storages: dict[str, Storage] = {}

    def load(self) -> Any:
        version = self.next_pickle()
        if version != _STREAM_VERSION:
            raise MalformedError(f"expected version {_STREAM_VERSION} of the format, found {describe(version)}")
        machine = self.next_pickle()
        if type(machine) is not dict or machine.get("little_endian") is not True:
            raise MalformedError("expected little-endian numbers, found a file from a big-endian machine")
        start = self.position
        self.next_pickle(_NAMES_WITHOUT_TENSORS, self.declare)
        keys = self.next_pickle()
        if type(keys) is not list or any(type(key) is not str for key in keys) or sorted(keys) != sorted(self.declared):
            raise MalformedError("expected the keys of all storages after the object, found others: damaged")
        for key in keys:
            self.storages[key] = self.next_storage(key)
        self.position = start
        return self.next_pickle(_NAMES, self.storage)

    def next_pickle(
        self, names: Mapping[str, Any] = types.MappingProxyType({}), persistent: Callable[[Any], Any] = _no_storage
    ) -> Any:
        data = self.contents[self.position : self.position + PICKLE_LIMIT].tobytes()
        value, size = interpret(data, names, persistent, leaves=(np.ndarray,))
        self.position += size
        return value

    def declare(self, persistent_id: Any) -> None:
        key, dtype, size = _parse_storage_id(persistent_id)
        if self.declared.setdefault(key, (dtype, size)) != (dtype, size):
            raise MalformedError(f"storage {shorten(key)} is declared twice, with different types or sizes")

    def next_storage(self, key: str) -> Storage:
        dtype, size = self.declared[key]
        begin = self.position + 8
        header = self.contents[self.position : begin].tobytes()
        if len(header) < 8:
            raise MalformedError(f"expected storage {shorten(key)}, found the end of the file: it is truncated")
        (found,) = struct.unpack("<q", header)
        if found != size:
            raise MalformedError(f"expected {size} elements in storage {shorten(key)}, found {found}: damaged")
        self.position = begin + size * dtype.itemsize
        return _as_storage(key, self.contents[begin : self.position], dtype, size)

    def storage(self, persistent_id: Any) -> Storage:
        return self.storages[_parse_storage_id(persistent_id)[0]]


# Files of other programs ------------------------------------------------------------------------------------

_SIGNATURES = {
    b"version https://git-lfs": "a Git LFS pointer: `git lfs pull` fetches the file itself",
    b"<": "a web page (HTML or XML): the download did not give the file",
    b"model_checkpoint_path:": "the list of a TensorFlow checkpoint folder",
    b"\x89HDF\r\n\x1a\n": "an HDF5 file, such as Keras writes",
    b"\x93NUMPY": "a NumPy array",
    b"\x1f\x8b": "a gzip archive: unpack it first",
    b"BZh": "a bzip2 archive: unpack it first",
    b"\xfd7zXZ": "an xz archive: unpack it first",
    b"\x80": "a pickle, but not as torch.save writes it unless told otherwise",
}
_TABLE_FOOTER = struct.pack("<Q", 0xDB4775248B80FB57)  # ends an `.index` of TensorFlow


def _other_format(name: str, head: bytes, tail: bytes) -> str:
    """What a file is that has neither signature."""
    if _STREAM_SIGNATURE.startswith(head) or _ZIP_SIGNATURE.startswith(head):
        return f"its first {len(head)} byte(s) only: the file is truncated"
    if tail == _TABLE_FOOTER or re.search(r"\.data-\d+-of-\d+$", name):
        return "a part of a TensorFlow checkpoint"
    if head[257:262] == b"ustar":
        return "a tar archive: unpack it first (or, from PyTorch before 0.1.10, save it again with a newer one)"
    for signature, description in _SIGNATURES.items():
        if head.lstrip(b"\xef\xbb\xbf \t\r\n").startswith(signature):
            return description
    return f"a file that starts with {head[:16]!r}"
