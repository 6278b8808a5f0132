"""The reader of torch files: what it reads, and all that it refuses without running or allocating anything."""

from __future__ import annotations

import gzip
import os
import pickle
import struct
import tracemalloc
import zipfile

import ml_dtypes
import numpy as np
import pytest
import tensorflow as tf

from tests.seeds import SEED
from tests.torch_files import (
    CONTAINERS,
    STORAGE_NAMES,
    STREAM_START,
    Opcodes,
    Storage,
    call,
    named,
    opcodes,
    pickled,
    stream,
    tensor,
    zip_archive,
)
from tfgen import torch_file
from tfgen.torch_file import TorchFileError

MATRIX = np.arange(24, dtype=np.float32).reshape(4, 6)
STORAGES = {"0": MATRIX}
BOTH = pytest.mark.parametrize("write", CONTAINERS.values(), ids=CONTAINERS.keys())


@pytest.fixture
def load(tmp_path):
    """Writes bytes to a file and loads it."""

    def load(contents: bytes, name: str = "model.th"):
        (tmp_path / name).write_bytes(contents)
        return torch_file.load(tmp_path / name)

    return load


@pytest.fixture
def refuses(load, tmp_path):
    """Asserts that a file is refused with a message that names it and holds `text`."""

    def refuses(contents: bytes, text: str, name: str = "model.th"):
        with pytest.raises(TorchFileError) as caught:
            load(contents, name)
        message = str(caught.value)
        assert message.startswith(f"{tmp_path / name}: ")
        assert text in message
        assert len(message) < 600
        assert message.isprintable()

    return refuses


# What is read -----------------------------------------------------------------------------------------------


@BOTH
@pytest.mark.parametrize("dtype", STORAGE_NAMES)
def test_every_type(load, write, dtype):
    array = (np.arange(12) % 5).astype(ml_dtypes.bfloat16 if dtype == "bfloat16" else dtype).reshape(3, 4)
    loaded = load(write([tensor("0", array)], {"0": array}))[0]
    assert type(loaded) is np.ndarray
    assert loaded.dtype == array.dtype
    np.testing.assert_array_equal(loaded, array)


@BOTH
def test_numbers_texts_and_containers(load, write):
    value = {
        "state": {0: {"step": 3, "exp_avg": None}, 1: {}},
        "param_groups": [{"lr": 2.5e-4, "betas": (0.9, 0.999), "amsgrad": False, "params": [0, 1]}],
        "": [[], (), (1,), True, -1, 255, 256, 65536, -(1 << 31), 1 << 31, 1 << 80, -(1 << 80), "ß\n", float("inf")],
    }
    assert load(write(value, {})) == value


@BOTH
def test_ordered_dictionary_with_metadata_size_and_parameter(load, write):
    weights = opcodes(call("collections.OrderedDict")) + opcodes("w") + opcodes(tensor("0", MATRIX)) + pickle.SETITEM
    weights += opcodes({"_metadata": {"": {"version": 1}}}) + pickle.BUILD
    parameter = call("torch._utils._rebuild_parameter", tensor("0", MATRIX), True, call("collections.OrderedDict"))
    loaded = load(write([Opcodes(weights), call("torch.Size", (2, 3)), parameter], STORAGES))
    assert type(loaded[0]) is dict
    assert list(loaded[0]) == ["w"]
    assert loaded[1] == (2, 3)
    np.testing.assert_array_equal(loaded[0]["w"], MATRIX)
    np.testing.assert_array_equal(loaded[2], MATRIX)


@BOTH
def test_layouts_are_kept_and_memory_is_shared(load, write):
    layouts = {
        "transposed": tensor("0", MATRIX, size=(6, 4), stride=(1, 6)),
        "slice": tensor("0", MATRIX, offset=6, size=(2, 3), stride=(6, 2)),
        "last": tensor("0", MATRIX, offset=23, size=(1, 1), stride=(1 << 62, 1 << 62)),
        "scalar": tensor("0", MATRIX, offset=7, size=(), stride=()),
        "empty": tensor("0", MATRIX, offset=24, size=(0, 3), stride=(3, 1)),
        "whole": tensor("0", MATRIX),
    }
    expected = {
        "transposed": MATRIX.T,
        "slice": MATRIX[1:3, ::2][:, :3],
        "last": MATRIX[3:, 5:],
        "scalar": MATRIX[1, 1],
        "empty": np.zeros((0, 3)),
        "whole": MATRIX,
    }
    loaded = load(write(layouts, STORAGES))
    for name, array in loaded.items():
        np.testing.assert_array_equal(array, expected[name])
        assert array.dtype == np.float32
        assert array.shape == expected[name].shape
        assert np.shares_memory(array, loaded["whole"]) == (name != "empty")
        with pytest.raises(ValueError, match="read-only"):
            array[...] = 0
        np.testing.assert_array_equal(tf.constant(array), expected[name])  # also where the stream is unaligned


def test_tensors_are_mapped_not_read(tmp_path):
    """Two storages of 1 GiB (a file with holes) are opened in less than 32 MiB."""
    size = 1 << 28
    references = [tensor(key, MATRIX, storage=Storage(key, "float32", size), size=(size,), stride=(1,)) for key in "01"]
    with open(tmp_path / "large.th", "wb") as file:
        file.write(stream(references, {}, keys=["0", "1"]))
        for _ in references:
            file.write(struct.pack("<q", size))
            file.truncate(file.seek(4 * size, os.SEEK_CUR))
        file.seek(-4, os.SEEK_END)
        file.write(struct.pack("<f", 1.5))
    tracemalloc.start()
    try:
        loaded = torch_file.load(tmp_path / "large.th")
        assert tracemalloc.get_traced_memory()[1] < 1 << 25
    finally:
        tracemalloc.stop()
    assert loaded[1][-1] == 1.5
    assert loaded[0][-1] == 0.0


def test_arrays_outlive_the_name_of_the_file(load, tmp_path):
    loaded = load(zip_archive([tensor("0", MATRIX)], STORAGES))
    (tmp_path / "model.th").unlink()
    np.testing.assert_array_equal(loaded[0], MATRIX)


# state_dict -------------------------------------------------------------------------------------------------


def test_state_dict_strips_the_prefix(tmp_path):
    path = tmp_path / "model.th"
    path.write_bytes(zip_archive({"module.b": tensor("0", MATRIX), "a.module.c": tensor("0", MATRIX)}, STORAGES))
    assert list(torch_file.state_dict(path)) == ["b", "a.module.c"]
    assert list(torch_file.state_dict(str(path), prefix="")) == ["module.b", "a.module.c"]
    np.testing.assert_array_equal(torch_file.state_dict(path)["b"], MATRIX)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ([{}, {}, 3], "expected a dictionary from names to tensors, found list of 3"),
        (tensor("0", MATRIX), "expected a dictionary from names to tensors, found ndarray"),
        ({"w": tensor("0", MATRIX), "step": 3}, "expected names and tensors, found 3 under 'step'"),
        ({0: tensor("0", MATRIX)}, "expected names and tensors, found ndarray under 0"),
        ({"w": tensor("0", MATRIX), "module.w": tensor("0", MATRIX)}, "one with and one without 'module.'"),
    ],
)
def test_state_dict_of_something_else(tmp_path, value, text):
    path = tmp_path / "model.th"
    path.write_bytes(zip_archive(value, STORAGES))
    with pytest.raises(TorchFileError) as caught:
        torch_file.state_dict(path)
    assert str(path) in str(caught.value)
    assert text in str(caught.value)


# Nothing of the file runs -----------------------------------------------------------------------------------


@BOTH
def test_attack_is_not_executed(refuses, write, tmp_path):
    attack = call("os.mkdir", str(tmp_path / "sentinel"))
    for value in (attack, {"w": tensor("0", MATRIX), "x": [attack]}):
        refuses(
            write(value, STORAGES), "os.mkdir is not among the names allowed: a file of tensors needs no other code"
        )
    assert [path.name for path in tmp_path.iterdir()] == ["model.th"]


@BOTH
@pytest.mark.parametrize(
    ("name", "hint"),
    [
        ("os.system", "none was executed"),
        ("builtins.eval", "none was executed"),
        ("torch.nn.modules.linear.Linear", "save module.state_dict()"),
        ("torch._utils._rebuild_sparse_tensor", "save tensor.to_dense()"),
        ("torch._utils._rebuild_qtensor", "save tensor.dequantize()"),
        ("numpy.core.multiarray.scalar", "Python's numbers"),
    ],
)
def test_names_outside_the_table(refuses, write, name, hint):
    refuses(write([named(name)], {}), f"{name} is not among the names allowed")
    refuses(write([call(name, "echo")], {}), hint)


@pytest.mark.parametrize(
    ("code", "text"),
    [
        (opcodes(tensor("0", MATRIX)) + opcodes({}) + pickle.BUILD, "found ndarray"),
        (named("torch.FloatStorage") + opcodes((3,)) + pickle.REDUCE, "name of a constructor, found Float32DType"),
        (call("torch.Size", 3), "expected one tuple as argument of torch.Size"),
        (call("collections.OrderedDict", [("a", 1)]), "expected no arguments of OrderedDict, found 1"),
        (call("torch._utils._rebuild_parameter", 1, True, {}), "expected a tensor, a bool and hooks"),
        (call("torch._utils._rebuild_tensor_v2", 1, 0, (), (), False, {}), "expected a storage and a layout"),
        (call("torch._utils._rebuild_tensor_v2"), "expected a storage and a layout"),
        (
            call(
                "torch._utils._rebuild_tensor_v2", Storage("0", "float32", 24), 0, (1,), (1,), False, {}, {"conj": True}
            ),
            "pending conjugation",
        ),
        (named("torch.FloatStorage"), "expected tensors, numbers, texts and containers of them, found Float32DType"),
        (opcodes(Storage("0", "float32", 24)), "containers of them, found Storage"),
        (opcodes("0") + pickle.BINPERSID, "expected a reference to a storage of tensors, found '0'"),
        (opcodes((tensor("0", MATRIX), 1)) + pickle.BINPERSID, "found (ndarray, 1)"),
        (opcodes(("storage", "torch.FloatStorage", "0", "cpu", 24)) + pickle.BINPERSID, "found ('storage', 'torch.Fl"),
        (opcodes(("module", "Net", "net.py", "import os")) + pickle.BINPERSID, "save module.state_dict()"),
        (opcodes(Storage("0", "float32", -24)), "expected a reference to a storage"),
        (opcodes(Storage("../../etc/passwd", "float32", 24)), "record data/../../etc/passwd, found none"),
    ],
)
def test_what_constructors_do_not_take(refuses, code, text):
    refuses(zip_archive(Opcodes(code), STORAGES), text)


# Sizes ------------------------------------------------------------------------------------------------------


def test_size_of_the_pickle_is_bounded(refuses, monkeypatch):
    monkeypatch.setattr(torch_file, "PICKLE_LIMIT", 1000)
    refuses(zip_archive(["x" * 1000], {}), "expected at most 1000 bytes in data.pkl, found 10")
    refuses(stream(["x" * 1000], {}), "does not end within 1000 bytes")


@BOTH
@pytest.mark.parametrize(
    ("changes", "text"),
    [
        ({"offset": 1}, "within its storage of 24 elements, found offset 1"),
        ({"offset": 1 << 62}, "within its storage"),
        ({"offset": -1}, "none negative, found offset -1"),
        ({"offset": True}, "expected sizes and strides"),
        ({"size": (5, 6)}, "within its storage"),
        ({"size": (4, -6)}, "none negative"),
        ({"size": (1 << 40, 1 << 40), "stride": (0, 0)}, "repeats its elements"),
        ({"size": (25,), "stride": (0,)}, "repeats its elements"),
        ({"size": (5, 5), "stride": (4, 1)}, "repeats its elements"),
        ({"size": (4, 6), "stride": (-6, 1)}, "none negative"),
        ({"size": (2, 1), "stride": (24, 1)}, "within its storage"),
        ({"size": (2,), "stride": (1 << 62,)}, "within its storage"),
        ({"size": (1 << 64,), "stride": (1,)}, "none negative"),
        ({"size": (4, 6), "stride": (6,)}, "expected sizes and strides"),
        ({"size": (1,) * 33, "stride": (1,) * 33}, "up to 32 axes"),
        ({"size": (1.5,), "stride": (1,)}, "expected sizes and strides"),
        ({"size": [4, 6]}, "expected a storage and a layout"),
        ({"size": (0, 1 << 62, 1 << 62), "stride": (1, 1, 1)}, "that NumPy can hold"),
        ({"storage": Storage("0", "float32", 25)}, "25"),
        ({"storage": Storage("0", "float64", 24)}, "24 x float64 = 192 bytes of storage 0, found "),
    ],
)
def test_layouts_outside_the_storage(refuses, write, changes, text):
    refuses(write([tensor("0", MATRIX, **changes)], STORAGES), text)


# Damaged and foreign containers -----------------------------------------------------------------------------


@BOTH
def test_truncated_at_any_byte(refuses, write):
    whole = write(
        {"a": tensor("0", MATRIX), "b": (1, "two"), "c": tensor("1", MATRIX[:1])}, {"0": MATRIX, "1": MATRIX[:1]}
    )
    for length in range(len(whole)):
        refuses(whole[:length], "" if length else "found an empty file")
    refuses(whole[: len(whole) // 2], "truncated")
    refuses(whole[:-1], "truncated")
    refuses(whole[:3], "truncated")


@BOTH
def test_any_byte_changed(load, write):
    """Whatever happens to a file, it is read or refused; no other exception, no array outside the file."""
    whole = write({"a": tensor("0", MATRIX), "b": [1, 2.0, None]}, STORAGES)
    draws = np.random.default_rng(SEED)
    outcomes = {True: 0, False: 0}
    for _ in range(500):
        damaged = bytearray(whole)
        for position in draws.integers(len(whole), size=draws.integers(1, 4)):
            damaged[position] = draws.integers(256)
        try:
            load(bytes(damaged))
            outcomes[True] += 1
        except TorchFileError:
            outcomes[False] += 1
    assert min(outcomes.values()) > 30


def test_zip_archives_of_other_kinds(refuses, load):
    tensors = [tensor("0", MATRIX)]
    whole = zip_archive(tensors, STORAGES)
    np.testing.assert_array_equal(load(zip_archive(tensors, STORAGES, byteorder=None))[0], MATRIX)  # before PyTorch 2.1
    refuses(zip_archive(tensors, STORAGES, byteorder=b"big"), "expected little-endian numbers, found byte order b'big'")
    refuses(zip_archive(tensors, STORAGES, compression=zipfile.ZIP_DEFLATED), "found a compressed one")
    refuses(zip_archive(tensors, {}), "expected a record data/0, found none of the name: the file is incomplete")
    refuses(zip_archive(tensors, {"0": MATRIX[:3]}), "expected 24 x float32 = 96 bytes of storage 0, found 72")
    refuses(whole.replace(b"archive/data.pkl", b"archive/data.txt"), "with one <name>/data.pkl, found archive/data.txt")
    refuses(
        zip_archive(tensors, STORAGES, extra={"other/data.pkl": b""}), "with one <name>/data.pkl, found archive/data"
    )
    twins = zip_archive(tensors, STORAGES, extra={"archive/data/1": b""}).replace(b"archive/data/1", b"archive/data/0")
    refuses(twins, "expected one record of each name")
    refuses(zip_archive(tensors, STORAGES, extra={"archive/constants.pkl": b""}), "found a TorchScript program")


def test_records_are_never_paths(load, tmp_path):
    extra = {"../../outside/data.pkl": b"", "/absolute": b"", "archive/data/../../up": MATRIX.tobytes()}
    loaded = load(zip_archive([tensor("../../up", MATRIX)], {}, extra=extra))
    np.testing.assert_array_equal(loaded[0], MATRIX)
    assert [path.name for path in tmp_path.iterdir()] == ["model.th"]


def test_zip_directory_that_lies(refuses):
    whole = zip_archive([tensor("0", MATRIX)], STORAGES)
    directory = whole.rindex(b"PK\x01\x02", 0, whole.rindex(b"archive/data/0"))

    def changed(offset: int, layout: str, *values: int) -> bytes:
        edited = bytearray(whole)
        struct.pack_into(layout, edited, directory + offset, *values)
        return bytes(edited)

    refuses(changed(8, "<H", 1), "found an encrypted one")
    refuses(changed(24, "<I", 95), "expected 95 bytes in record data/0, found less")
    refuses(changed(20, "<II", 1 << 31, 1 << 31), "found less: damaged")
    refuses(changed(42, "<I", 5), "expected the record data/0 at 5, found none")
    refuses(changed(42, "<I", len(whole) - 10), "found none: damaged")
    refuses(changed(20, "<II", 92, 92), "expected 24 x float32 = 96 bytes of storage 0, found 92")


def test_streams_of_other_kinds(refuses):
    tensors = [tensor("0", MATRIX)]
    refuses(
        stream(tensors, STORAGES, start=STREAM_START[:15] + pickled(1002)),
        "expected version 1001 of the format, found 1002",
    )
    refuses(stream(tensors, STORAGES, machine={"little_endian": False}), "from a big-endian machine")
    refuses(stream(tensors, STORAGES, machine=[]), "from a big-endian machine")
    for keys in ([], ["1"], ["0", "0"], [0], "0", {"0": 0}):
        refuses(stream(tensors, STORAGES, keys=keys), "expected the keys of all storages")
    refuses(stream(tensors, STORAGES, machine=tensor("0", MATRIX)), "is not among the names allowed")
    refuses(
        stream(tensors, STORAGES, keys=Opcodes(opcodes("0") + pickle.BINPERSID)), "found a storage outside the object"
    )
    refuses(stream(tensors, {"0": MATRIX[:3]}), "expected 24 elements in storage 0, found 18")
    twice = [tensor("0", MATRIX), tensor("0", MATRIX, storage=Storage("0", "int32", 24))]
    refuses(stream(twice, STORAGES), "storage 0 is declared twice")
    view = call(
        "torch._utils._rebuild_tensor_v2",
        Opcodes(opcodes(("storage", named("torch.FloatStorage"), "0", "cpu", 24, ("1", 0, 24))) + pickle.BINPERSID),
        0,
        (1,),
        (1,),
        False,
        {},
    )
    refuses(stream([view], STORAGES), "a view of a storage")


@pytest.mark.parametrize(
    ("contents", "found"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 1\n", "a Git LFS pointer: `git lfs pull`"),
        (b"\n<!DOCTYPE html><html>Sign in</html>", "a web page"),
        (b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>", "a web page"),
        (b"\x89HDF\r\n\x1a\n" + bytes(100), "an HDF5 file"),
        (b'model_checkpoint_path: "ckpt-1"\n', "the list of a TensorFlow checkpoint folder"),
        (gzip.compress(b"weights"), "a gzip archive: unpack it first"),
        (pickle.dumps({"a": 1}), "a pickle, but not as torch.save writes it"),
        (bytes(257) + b"ustar\x00", "a tar archive"),
        (b"\x00" * 600, "a file that starts with b'\\x00"),
    ],
)
def test_files_of_other_programs(refuses, contents, found):
    refuses(contents, f"expected a file written by torch.save, found {found}")


def test_tensorflow_checkpoint_and_numpy_archive(tmp_path):
    tf.train.Checkpoint(w=tf.Variable([1.0])).write(str(tmp_path / "ckpt"))
    np.savez(tmp_path / "weights.npz", w=MATRIX)
    np.save(tmp_path / "weights.npy", MATRIX)
    expected = {
        "ckpt.index": "found a part of a TensorFlow checkpoint",
        "ckpt.data-00000-of-00001": "found a part of a TensorFlow checkpoint",
        "weights.npz": "with one <name>/data.pkl, found w.npy",
        "weights.npy": "found a NumPy array",
        "": "found a folder",
    }
    for name, text in expected.items():
        with pytest.raises(TorchFileError, match=text):
            torch_file.load(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        torch_file.load(tmp_path / "absent.th")
