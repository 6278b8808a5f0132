import collections
import pickle

import numpy as np
import pytest

from tfgen.data import cifar
from tfgen.data.errors import DataError


def planar(count: int, seed: int = 0) -> np.ndarray:
    return np.random.RandomState(seed).randint(0, 256, (count, 3072)).astype(np.uint8)


def write_batch(path, images, labels, keys=bytes, protocol=2):
    content = {"data": images, "labels": labels, "batch_label": "a batch", "filenames": ["x.png"] * len(labels)}
    if keys is bytes:
        content = {key.encode(): value for key, value in content.items()}
    path.write_bytes(pickle.dumps(content, protocol))


def write_cifar(folder, per_batch=4):
    folder.mkdir(parents=True)
    for number, name in enumerate((*cifar.TRAIN_FILES, cifar.TEST_FILE)):
        write_batch(folder / name, planar(per_batch, number), [number] * per_batch)


@pytest.mark.parametrize("protocol", [0, 1, 2, 3, 4])
@pytest.mark.parametrize("keys", [bytes, str])
def test_reads_what_pickle_writes(tmp_path, protocol, keys):
    write_batch(tmp_path / "batch", planar(3), [5, 0, 9], keys, protocol)
    images, labels = cifar.read_batch(tmp_path / "batch")
    np.testing.assert_array_equal(images, planar(3))
    assert labels.tolist() == [5, 0, 9]


def test_reads_what_python_2_wrote(tmp_path):
    """Protocol 2 as Python 2 spells it: text and the array's bytes are both plain byte strings."""
    content = planar(1).tobytes()
    stream = b"\x80\x02}q\x01(U\x04data"
    stream += b"cnumpy.core.multiarray\n_reconstruct\n(cnumpy\nndarray\nK\x00\x85U\x01btR"
    stream += b"(K\x01K\x01M\x00\x0c\x86cnumpy\ndtype\n(U\x02u1K\x00K\x01tR"
    stream += b"(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb"
    stream += b"\x89T" + len(content).to_bytes(4, "little") + content + b"tb"
    stream += b"U\x06labels](K\x07eu."
    (tmp_path / "batch").write_bytes(stream)
    images, labels = cifar.read_batch(tmp_path / "batch")
    np.testing.assert_array_equal(images, planar(1))
    assert labels.tolist() == [7]


def test_column_major_arrays(tmp_path):
    write_batch(tmp_path / "batch", np.asfortranarray(planar(3)), [5, 0, 9])
    np.testing.assert_array_equal(cifar.read_batch(tmp_path / "batch")[0], planar(3))


class Payload:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_a_pickle_that_would_run_code_is_refused(tmp_path, protocol):
    marker = tmp_path / "ran"
    write_batch(tmp_path / "batch", Payload(open, str(marker), "w"), [1], protocol=protocol)
    with pytest.raises(DataError, match=r"asks for (io|_io|builtins|__builtin__)\.open.*not loaded"):
        cifar.read_batch(tmp_path / "batch")
    assert not marker.exists()


@pytest.mark.parametrize(
    "content",
    [
        {"data": np.zeros((2, 3072)), "labels": [1, 2]},
        {"data": planar(2)[:, :30], "labels": [1, 2]},
        {"data": planar(2), "labels": [1]},
        {"data": planar(2), "labels": ["a", "b"]},
        {"data": [1, 2], "labels": [1, 2]},
        {"data": planar(2)},
        [1, 2],
    ],
)
def test_other_contents_are_refused(tmp_path, content):
    (tmp_path / "batch").write_bytes(pickle.dumps(content, 2))
    with pytest.raises(DataError, match=r"batch.*(expected|damaged)"):
        cifar.read_batch(tmp_path / "batch")


def test_an_object_array_is_refused(tmp_path):
    write_batch(tmp_path / "batch", np.array([[{}] * 3072], object), [1])
    with pytest.raises(DataError, match="batch"):
        cifar.read_batch(tmp_path / "batch")


def test_other_types_and_damage_are_refused(tmp_path):
    write_batch(tmp_path / "batch", collections.OrderedDict(), [1])
    with pytest.raises(DataError, match=r"asks for collections\.OrderedDict"):
        cifar.read_batch(tmp_path / "batch")
    write_batch(tmp_path / "batch", planar(2), [1, 2])
    (tmp_path / "batch").write_bytes((tmp_path / "batch").read_bytes()[:500])
    with pytest.raises(DataError, match="not a CIFAR-10 python batch, or damaged"):
        cifar.read_batch(tmp_path / "batch")


@pytest.mark.parametrize("inside", ["cifar10", "cifar10/cifar-10-batches-py", "cifar-10-batches-py"])
def test_batches_become_images_in_order(tmp_path, inside):
    write_cifar(tmp_path / inside)
    folder = cifar.find_folder(tmp_path)
    assert folder == tmp_path / inside
    train, test = cifar.open_batches(folder)
    assert (len(train), len(test)) == (20, 4)
    batch = train.read(np.array([4, 19]))
    for image, row in zip(batch["image"], (planar(4, 1)[0], planar(4, 4)[3]), strict=True):
        np.testing.assert_array_equal(image, row.reshape(3, 32, 32).transpose(1, 2, 0))
    assert batch["label"].tolist() == [1, 4]
    assert train.spec.num_classes == 10


def test_missing_batches_are_named(tmp_path):
    write_cifar(tmp_path / "cifar10")
    (tmp_path / "cifar10" / "data_batch_3").unlink()
    with pytest.raises(DataError, match="lacks data_batch_3: unpack the whole"):
        cifar.open_batches(tmp_path / "cifar10")
    assert cifar.find_folder(tmp_path / "elsewhere") is None


def test_split_is_that_of_scikit_learn():
    from sklearn.model_selection import train_test_split

    train, valid = cifar.split(300, 40)
    expected_train, expected_valid = train_test_split(np.arange(300), test_size=40, random_state=11172018)
    np.testing.assert_array_equal(train, expected_train)
    np.testing.assert_array_equal(valid, expected_valid)


@pytest.mark.parametrize("valid_size", [0, 20, 25])
def test_impossible_split(valid_size):
    with pytest.raises(DataError, match=f"cannot hold {valid_size} of 20 .*expected 1 to 19"):
        cifar.split(20, valid_size)


# CIFAR-100 -------------------------------------------------------------------------------------------------------


def write_cifar100(path, images, labels):
    path.parent.mkdir(parents=True)
    content = {b"data": images, b"fine_labels": labels, b"coarse_labels": [0] * len(labels)}
    path.write_bytes(pickle.dumps(content, 2))


@pytest.mark.parametrize("place", ["cifar-100-python", "cifar100/cifar-100-python"])
def test_fine_labels_of_cifar100(tmp_path, place):
    write_cifar100(tmp_path / place / "test", planar(3), [99, 0, 42])
    source = cifar.open_cifar100_test(tmp_path)
    batch = source.read(np.array([2, 0]))
    np.testing.assert_array_equal(batch["image"][0], planar(3)[2].reshape(3, 32, 32).transpose(1, 2, 0))
    assert batch["label"].tolist() == [42, 99]
    assert source.spec.num_classes == 100


def test_damaged_cifar100(tmp_path):
    write_cifar100(tmp_path / "a" / "cifar-100-python" / "test", planar(2), [0, 100])
    with pytest.raises(DataError, match="has labels 0 to 100; expected 0 to 99"):
        cifar.open_cifar100_test(tmp_path / "a")
    write_batch(tmp_path / "a" / "cifar-100-python" / "test", planar(2), [0, 1])
    with pytest.raises(DataError, match=r"not a CIFAR-100 python batch: expected .*'fine_labels'"):
        cifar.open_cifar100_test(tmp_path / "a")


def test_cifar100_without_files(tmp_path, monkeypatch):
    def refuse(name, data_dir):
        raise DataError(f"cannot prepare {name}")

    monkeypatch.setattr("tfgen.data.tfds.prepared_builder", refuse)
    with pytest.raises(DataError, match=r"cannot prepare cifar100\nOr place .*test of cifar-100-python.tar.gz as"):
        cifar.open_cifar100_test(tmp_path)
