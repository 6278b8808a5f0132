import io
import zipfile

import numpy as np
import pytest

from tfgen.data.arrays import ArraySource, open_array
from tfgen.data.errors import DataError

IMAGES = np.random.RandomState(0).randint(0, 256, (7, 4, 6, 3)).astype(np.uint8)
SOME = np.array([5, 0, 5])


def test_interleaved_planar_flat_and_grey_hold_the_same_images():
    planar = IMAGES.transpose(0, 3, 1, 2)
    sources = [
        ArraySource(IMAGES, "nhwc"),
        ArraySource(planar, "nchw", layout="planar"),
        ArraySource(IMAGES.reshape(7, -1), "flat", shape=(4, 6, 3)),
        ArraySource(planar.reshape(7, -1), "flat planar", shape=(4, 6, 3), layout="planar"),
    ]
    for source in sources:
        assert source.spec.shape == (4, 6, 3)
        assert source.spec.num_classes is None
        np.testing.assert_array_equal(source.read(SOME)["image"], IMAGES[SOME])
    grey = ArraySource(IMAGES[..., 0], "grey")
    assert grey.spec.shape == (4, 6, 1)
    np.testing.assert_array_equal(grey.read(SOME)["image"], IMAGES[SOME, :, :, :1])


def test_npy_is_memory_mapped_and_read_copies(tmp_path):
    np.save(tmp_path / "a.npy", IMAGES)
    source = open_array(tmp_path / "a.npy")
    assert isinstance(source._images, np.memmap)
    read = source.read(SOME)["image"]
    assert type(read) is np.ndarray
    np.testing.assert_array_equal(read, IMAGES[SOME])


def test_npz_with_labels(tmp_path):
    labels = np.array([0, 2, 1, 2, 0, 0, 1])
    np.savez_compressed(tmp_path / "a.npz", x=IMAGES, y=labels, scale=np.float32(1))
    source = open_array(tmp_path / "a.npz")
    assert source.spec.num_classes == 3
    batch = source.read(SOME)
    np.testing.assert_array_equal(batch["image"], IMAGES[SOME])
    np.testing.assert_array_equal(batch["label"], labels[SOME])
    assert batch["label"].dtype == np.int32


def test_npy_with_labels_beside_it(tmp_path):
    labels = np.array([0, 2, 1, 2, 0, 0, 1])
    np.save(tmp_path / "a.npy", IMAGES)
    np.save(tmp_path / "a_labels.npy", labels)
    source = open_array(tmp_path / "a.npy")
    assert source.spec.num_classes == 3
    batch = source.read(SOME)
    np.testing.assert_array_equal(batch["image"], IMAGES[SOME])
    np.testing.assert_array_equal(batch["label"], labels[SOME])
    for wrong in (labels[:-1], labels - 1, labels / 2, labels[:, None], np.array([{}] * 7)):
        np.save(tmp_path / "a_labels.npy", wrong)
        with pytest.raises(DataError, match=r"a_labels\.npy"):
            open_array(tmp_path / "a.npy")
    (tmp_path / "a_labels.npy").unlink()
    assert open_array(tmp_path / "a.npy").spec.num_classes is None


def test_npz_with_one_array_of_any_name(tmp_path):
    np.savez(tmp_path / "a.npz", faces=IMAGES, weights=np.zeros(3))
    np.testing.assert_array_equal(open_array(tmp_path / "a.npz").read(SOME)["image"], IMAGES[SOME])


@pytest.mark.parametrize(
    ("array", "advice"),
    [
        (IMAGES.astype(np.float32), r"float32 .*\[0, 255\], save np.rint\(images\)"),
        (IMAGES / 255.0, r"float64 .*\[0, 1\], save np.rint\(images \* 255\)"),
        (IMAGES / 127.5 - 1, r"\[-1, 1\], save np.rint\(\(images \+ 1\)"),
        (IMAGES.astype(np.int64), r"int64 .*astype\('uint8'\)"),
        (IMAGES.transpose(0, 3, 1, 2), r"second axis looks like the channels"),
        (IMAGES[0, :, 0, 0], r"shape \[4\]"),
        (IMAGES[:0], r"non-empty"),
        (IMAGES.reshape(7, -1), r"flat rows of 72 values"),
        (IMAGES[..., :2], r"1 or 3 channels, found 2"),
        (np.array([None, 1]), r"Python objects, which are never loaded"),
    ],
)
@pytest.mark.parametrize("suffix", [".npy", ".npz"])
def test_unusable_arrays_are_refused_with_advice(tmp_path, array, advice, suffix):
    path = tmp_path / f"bad{suffix}"
    if suffix == ".npy":
        np.save(path, array, allow_pickle=True)
    else:
        np.savez(path, images=array)
        if array.dtype.kind == "f":
            advice = "expected uint8 levels"  # the values are not looked at before the header is accepted
    with pytest.raises(DataError, match=advice) as caught:
        open_array(path)
    assert path.name in str(caught.value)


def test_object_array_runs_no_code(tmp_path):
    class Payload:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    np.savez(tmp_path / "evil.npz", images=np.array([Payload()], object))
    with pytest.raises(DataError, match=r"evil\.npz.*Python objects"):
        open_array(tmp_path / "evil.npz")
    assert not (tmp_path / "ran").exists()


def _npy_header(shape) -> bytes:
    stream = io.BytesIO()
    np.lib.format.write_array_header_1_0(stream, {"descr": "|u1", "fortran_order": False, "shape": shape})
    return stream.getvalue()


def test_npz_that_declares_too_much_is_refused_before_loading(tmp_path):
    np.savez_compressed(tmp_path / "zeros.npz", images=np.zeros((1000, 8, 8, 3), np.uint8))
    with pytest.raises(DataError, match=r"declares 192\d+ bytes, more than the limit of 1000"):
        open_array(tmp_path / "zeros.npz", largest_load=1000)


def test_npz_member_shorter_than_its_header_says(tmp_path):
    with zipfile.ZipFile(tmp_path / "bomb.npz", "w") as archive:
        archive.writestr("images.npy", _npy_header((10**9, 32, 32, 3)) + b"x")
    with pytest.raises(DataError, match=r"bomb\.npz\['images\.npy'\] is damaged: 3072\d+ bytes declared"):
        open_array(tmp_path / "bomb.npz")


def test_truncated_and_foreign_files(tmp_path):
    np.save(tmp_path / "a.npy", IMAGES)
    (tmp_path / "short.npy").write_bytes((tmp_path / "a.npy").read_bytes()[:-10])
    with pytest.raises(DataError, match="truncated: it declares 632 bytes and has 622"):
        open_array(tmp_path / "short.npy")
    for name in ("text.npy", "text.npz"):
        (tmp_path / name).write_text("no array")
        with pytest.raises(DataError, match=rf"{name} is not"):
            open_array(tmp_path / name)
    with pytest.raises(DataError, match="no file"):
        open_array(tmp_path / "absent.npy")
    (tmp_path / "array.txt").write_text("")
    with pytest.raises(DataError, match=r"ends in \.npy or \.npz"):
        open_array(tmp_path / "array.txt")


def test_corrupt_compressed_member(tmp_path):
    np.savez_compressed(tmp_path / "a.npz", images=IMAGES)
    content = bytearray((tmp_path / "a.npz").read_bytes())
    content[len(content) // 2] ^= 0xFF
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DataError, match=r"a\.npz"):
        open_array(tmp_path / "a.npz")


def test_ambiguous_npz_lists_what_it_has(tmp_path):
    np.savez(tmp_path / "two.npz", cats=IMAGES, dogs=IMAGES)
    with pytest.raises(DataError, match=r"found cats uint8 \[7, 4, 6, 3\], dogs uint8"):
        open_array(tmp_path / "two.npz")


def test_labels_of_another_length_are_refused():
    with pytest.raises(DataError, match="expected 7 labels"):
        ArraySource(IMAGES, "x", labels=np.zeros(6, np.int64))
    with pytest.raises(DataError, match="negative"):
        ArraySource(IMAGES, "x", labels=np.full(7, -1))
