import os
import pathlib
import zipfile

import numpy as np
import pytest

from tests.seeds import SEED
from tfgen.data.errors import DataError
from tfgen.data.listing import class_name, is_image_name, list_folder, number_classes, open_listed


def touch(root: pathlib.Path, names: list[str]) -> None:
    for name in names:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"")


def zipped(root: pathlib.Path, target: pathlib.Path) -> pathlib.Path:
    with zipfile.ZipFile(target, "w") as archive:
        for path in root.rglob("*"):
            archive.write(path, path.relative_to(root).as_posix())
    return target


def test_order_of_a_small_tree(tmp_path):
    names = [
        "b.png",
        "a.jpg",
        "Z.PNG",
        "sub/c.png",
        "sub.png",
        "sub-1.png",
        "a/z.gif",
        ".png",
        "notes.txt",
        "noext",
        "é.png",
    ]
    touch(tmp_path, names)
    # "sub" stands before "sub-1.png" though "sub/" as text would not; capitals before small letters.
    assert list_folder(tmp_path) == [
        ".png", "Z.PNG", "a/z.gif", "a.jpg", "b.png", "sub/c.png", "sub-1.png", "sub.png", "é.png",
    ]  # fmt: skip


@pytest.mark.parametrize("name", ["a.jpg", "a.JPEG", "x.tar.gif", ".png", "..png", " .PnG", "a_.png"])
def test_image_names(name):
    assert is_image_name(name)


@pytest.mark.parametrize("name", ["png", "a.png.", "a.png ", "a.tar.gz", "a.bmp", "a.webp", "a.jpe", "", "a."])
def test_other_names(name):
    assert not is_image_name(name)


def random_tree(random: np.random.RandomState, root: pathlib.Path, depth: int = 3) -> None:
    """Files and folders whose names share their beginnings, end in image suffixes or not, and sort in odd places."""
    stems = ["a", "A", "a_", "a-", "a b", "_", "z9", "z10", "a.b", "é", ""]
    endings = [".png", ".PNG", ".Jpg", ".jpeg", ".gif", ".txt", "", ".png.zip", ".tif"]
    for _ in range(random.randint(2, 9)):
        path = root / ((random.choice(stems) + random.choice(endings)) or "x")
        if path.exists():
            continue
        if depth and random.rand() < 0.4:
            path.mkdir()
            random_tree(random, path, depth - 1)
        else:
            path.write_bytes(b"")


def expected_listing(folder: pathlib.Path, prefix: str = "") -> list[str]:
    """The rule in the words of the specification, but for folders named as images, which are entered."""
    listed = []
    for name in sorted(os.listdir(folder)):
        if (folder / name).is_dir():
            listed += expected_listing(folder / name, prefix + name + "/")
        elif "." in name and name.split(".")[-1].lower() in ("jpg", "jpeg", "png", "gif"):
            listed.append(prefix + name)
    return listed


@pytest.mark.parametrize("case", range(20))
def test_random_trees_and_their_archives(tmp_path, case):
    root = tmp_path / "data"
    root.mkdir()
    random_tree(np.random.RandomState([SEED & 0xFFFFFFFF, case]), root)
    expected = expected_listing(root)
    assert list_folder(root) == expected
    assert open_listed(root).names == expected
    assert open_listed(zipped(root, tmp_path / "data.zip")).names == expected


@pytest.mark.parametrize("case", range(20))
def test_random_labels(case):
    random = np.random.RandomState([SEED & 0xFFFFFFFF, 1, case])
    parts = ["a", "B", "b", "ab", "", "é", "n01", "x.y"]
    names = []
    for _ in range(random.randint(1, 40)):
        words = random.choice(parts, random.randint(1, 4))
        names.append(f"{random.choice(parts)}/{'_'.join(words)}.png")
    classes, labels = number_classes(names)
    bases = [name.split("/")[-1].split("_")[0] for name in names]
    assert classes == tuple(sorted(set(bases)))
    assert [classes[label] for label in labels] == bases
    assert labels.dtype == np.int32


@pytest.mark.parametrize(
    ("name", "expected"),
    [("x/cat_17_b.png", "cat"), ("dog.png", "dog.png"), ("a_b/c.png", "c.png"), ("_1.png", ""), (".png", ".png")],
)
def test_class_names(name, expected):
    assert class_name(name) == expected


def test_a_folder_named_as_an_image_is_entered(tmp_path):
    touch(tmp_path, ["x.png/a.png", "w.png", "y.png"])
    assert list_folder(tmp_path) == ["w.png", "x.png/a.png", "y.png"]


def test_links(tmp_path, caplog):
    touch(tmp_path, ["a/1.png"])
    (tmp_path / "b").symlink_to("a")
    (tmp_path / "a" / "up").symlink_to("..")
    assert list_folder(tmp_path) == ["a/1.png", "b/1.png"]
    assert "is a link to a folder that it lies in" in caplog.text


def test_what_macos_adds_to_archives_is_left_out(tmp_path):
    touch(tmp_path / "data", ["a.png", "__MACOSX/._a.png"])
    assert open_listed(zipped(tmp_path / "data", tmp_path / "data.zip")).names == ["a.png"]


def test_missing_and_closed_folders(tmp_path, monkeypatch):
    with pytest.raises(DataError, match="no folder"):
        open_listed(tmp_path / "absent")
    with pytest.raises(DataError, match="no file"):
        open_listed(tmp_path / "absent.zip")
    touch(tmp_path, ["a/1.png"])
    scandir = os.scandir

    def closed(folder):
        if str(folder).endswith("a"):
            raise PermissionError(13, "Permission denied", folder)
        return scandir(folder)

    monkeypatch.setattr(os, "scandir", closed)
    with pytest.raises(DataError, match=r"cannot list the folder .*Permission denied"):
        list_folder(tmp_path)
