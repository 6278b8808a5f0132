"""`python -m tfgen.convert` of data; conversion of checkpoints is in tests/e2e/test_commands.py."""

import os

import numpy as np
import pytest
from PIL import Image

from tests.data.images import damaged_inside, encode, pixels, write_folder
from tests.data.test_cifar import planar, write_cifar
from tfgen.convert import main
from tfgen.data.arrays import open_array
from tfgen.data.prepared_folder import open_image_folder


def run_verb(verb, *arguments) -> int:
    try:
        return main([verb, *map(str, arguments)])
    except SystemExit as error:
        return error.code


def run(*arguments) -> int:
    return run_verb("images", *arguments)


def test_images_become_an_array(tmp_path, capsys):
    stored = write_folder(tmp_path / "in", ["b.png", "a/c.png"])
    assert run(tmp_path / "in", tmp_path / "out.npy") == 0
    np.testing.assert_array_equal(np.load(tmp_path / "out.npy"), np.stack(stored))
    printed = capsys.readouterr()
    assert "uint8 [2, 6, 5, 3], sorted by path" in printed.out
    assert "convert: 2/2 (100%)" in printed.err


def test_rejects_are_listed_and_fail_unless_allowed(tmp_path, capsys):
    write_folder(tmp_path / "in", ["1.png", "2.png"])
    write_folder(tmp_path / "in", ["3.png"], height=9)
    assert run(tmp_path / "in", tmp_path / "out.npy") == 1
    printed = capsys.readouterr()
    assert "rejected 1 of 3 files:\n  3.png  9x5 pixels, expected 6x5" in printed.out
    assert "error: 1 of the 3 files" in printed.err
    assert not (tmp_path / "out.npy").exists()
    assert run(tmp_path / "in", tmp_path / "out.npy", "--allow_rejects") == 0
    assert "rejected 1 of 3 files:" in capsys.readouterr().out
    assert np.load(tmp_path / "out.npy").shape == (2, 6, 5, 3)
    assert run("--size=9x5", "--allow_rejects", tmp_path / "in", tmp_path / "out.npy", "--overwrite") == 0
    assert np.load(tmp_path / "out.npy").shape == (1, 9, 5, 3)


def test_nothing_is_overwritten_unasked(tmp_path, capsys):
    write_folder(tmp_path / "in", ["1.png"])
    (tmp_path / "out.npy").write_bytes(b"old")
    assert run(tmp_path / "in", tmp_path / "out.npy") == 1
    assert "exists already: choose another name, or replace it with --overwrite" in capsys.readouterr().err
    assert (tmp_path / "out.npy").read_bytes() == b"old"
    assert run(tmp_path / "in", tmp_path / "out.npy", "--overwrite") == 0
    (tmp_path / "folder.npy").mkdir()
    assert run(tmp_path / "in", tmp_path / "folder.npy", "--overwrite") == 1
    assert "is a folder" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ([], "expected `images FOLDER OUT.npy`, found nothing"),
        (["in"], "expected `images FOLDER OUT.npy`, found in"),
        (["in", "out", "more"], "found in out more"),
        (["in", "out.png"], "expected a name that ends in .npy"),
        (["in", "out.npy", "--allow_reject"], "unknown flag --allow_reject. Did you mean --allow_rejects"),
        (["in", "out.npy", "--size=64x"], "expected HEIGHTxWIDTH such as 64x64"),
        (["in", "out.npy", "--size=0"], "expected HEIGHTxWIDTH such as 64x64"),
    ],
)
def test_wrong_command_lines(capsys, arguments, expected):
    assert run(*arguments) == 2
    assert expected in capsys.readouterr().err


def test_a_missing_folder(tmp_path, capsys):
    assert run(tmp_path / "nowhere", tmp_path / "out.npy") == 1
    assert "no folder" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["--help"], ["images", "--help"], ["checkpoint", "-h"], ["lsun", "--help"]])
def test_help_has_all_forms(capsys, arguments):
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "tfgen.convert checkpoint FILE --hps=PRESET" in printed
    assert "tfgen.convert images FOLDER OUT.npy" in printed
    for part in (
        "crops FOLDER OUT.npy --size=R",
        "cifar10 OUT_FOLDER",
        "lsun LMDB_FOLDER OUT_FOLDER",
        "flags of lsun:",
    ):
        assert part in printed
    assert "--[no_]allow_rejects" in printed


def test_other_words_are_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["pictures", "in", "out.npy"])
    message = capsys.readouterr().err
    for part in (
        "`checkpoint FILE --hps=PRESET` or `images FOLDER OUT.npy`",
        "`crops FOLDER OUT.npy --size=R`",
        "`cifar10 OUT_FOLDER`",
        "`lsun LMDB_FOLDER OUT_FOLDER`, found pictures",
    ):
        assert part in message


# Crops --------------------------------------------------------------------------------------------------


def write_pictures(folder, names) -> None:
    folder.mkdir()
    for number, name in enumerate(names):
        (folder / name).write_bytes(encode(pixels(number, height=5 + number, width=9)))


def test_crops_are_those_that_the_folder_gives(tmp_path, capsys):
    write_pictures(tmp_path / "in", [f"{kind}_{number}.png" for kind in ("dog", "cat", "Ant") for number in range(3)])
    out = tmp_path / "out.npy"
    assert run_verb("crops", tmp_path / "in", out, "--size=6", "--labels") == 0
    printed = capsys.readouterr()
    assert f"{out}: uint8 [9, 6, 6, 3], in the order of the original's listing" in printed.out
    assert "out_labels.npy: int32 [9], 3 classes: Ant, cat, dog" in printed.out
    assert "convert: 9/9 (100%)" in printed.err
    assert sorted(os.listdir(tmp_path)) == ["in", "out.npy", "out_labels.npy"]
    stored, folder = open_array(out), open_image_folder(tmp_path / "in", 6, class_cond=True)
    assert stored.spec == folder.spec
    for key, values in folder.read(np.arange(9)).items():
        np.testing.assert_array_equal(stored.read(np.arange(9))[key], values)


def test_rejected_crops_have_no_labels(tmp_path, capsys):
    write_pictures(tmp_path / "in", ["a_1.png", "b_1.png", "b_2.png", "c_1.png", "c_2.png"])
    (tmp_path / "in" / "a_1.png").write_bytes(b"")
    (tmp_path / "in" / "b_2.png").write_bytes(damaged_inside(1))
    arguments = ["crops", tmp_path / "in", tmp_path / "out.npy", "--size=6", "--labels"]
    assert run_verb(*arguments) == 1
    assert "convert them to 8-bit images" in capsys.readouterr().err
    assert os.listdir(tmp_path) == ["in"]
    assert run_verb(*arguments, "--allow_rejects") == 0
    assert "rejected 2 of 5 files:\n  a_1.png  zero bytes\n  b_2.png  truncated" in capsys.readouterr().out
    batch = open_array(tmp_path / "out.npy").read(np.arange(3))
    assert batch["label"].tolist() == [1, 2, 2]
    np.testing.assert_array_equal(
        batch["image"], open_image_folder_without(tmp_path / "in", ["a_1.png", "b_2.png"]).read(np.arange(3))["image"]
    )


def open_image_folder_without(folder, names):
    for name in names:
        (folder / name).unlink()
    return open_image_folder(folder, 6)


def test_old_labels_are_not_those_of_new_crops(tmp_path, capsys):
    write_pictures(tmp_path / "in", ["a_1.png", "a_2.png", "b_1.png"])
    out = tmp_path / "out.npy"
    assert run_verb("crops", tmp_path / "in", out, "--size=6", "--labels") == 0
    for verb in (["crops", "--size=6"], ["crops", "--size=6", "--labels"], ["images", "--allow_rejects"]):
        before = {name: (tmp_path / name).read_bytes() for name in ("out.npy", "out_labels.npy")}
        assert run_verb(*verb, tmp_path / "in", out) == 1
        assert "out.npy exists already" in capsys.readouterr().err
        out.unlink()
        assert run_verb(*verb, tmp_path / "in", out) == 1
        assert "out_labels.npy exists already" in capsys.readouterr().err
        assert run_verb(*verb, tmp_path / "in", out, "--overwrite") == 0
        assert (tmp_path / "out_labels.npy").exists() == ("--labels" in verb)
        for name, content in before.items():
            (tmp_path / name).write_bytes(content)


def test_crops_of_palettes(tmp_path):
    (tmp_path / "in").mkdir()
    image = Image.fromarray(pixels(1, 40, 40)).quantize(16)
    image.save(tmp_path / "in" / "a.png")
    for number, flags in enumerate(([], ["--convert_first"])):
        out = tmp_path / f"{number}.npy"
        assert run_verb("crops", tmp_path / "in", out, "--size=6", *flags) == 0
        folder = open_image_folder(tmp_path / "in", 6, convert_first=bool(flags))
        np.testing.assert_array_equal(np.load(out), folder.read(np.array([0]))["image"])


@pytest.mark.parametrize(
    ("arguments", "code", "expected"),
    [
        (["in", "out.npy"], 2, "type --size=R, such as --size=64"),
        (["in", "out.npy", "--size=0"], 2, "--size=0: expected an integer of at least 1"),
        (["in", "--size=4"], 2, "expected `crops FOLDER OUT.npy --size=R`, found in"),
        (["in", "out.txt", "--size=4"], 2, "expected a name that ends in .npy"),
        (["absent", "out.npy", "--size=4"], 1, "no folder absent"),
        (["empty", "out.npy", "--size=4"], 1, "has no images: looked for .jpg"),
        (["in", "out.npy", "--size=4", "--labels"], 1, "tell a class of its own for every file"),
    ],
)
def test_crops_that_cannot_be_made(tmp_path, monkeypatch, capsys, arguments, code, expected):
    monkeypatch.chdir(tmp_path)
    write_pictures(tmp_path / "in", ["1.png", "2.png"])
    (tmp_path / "empty").mkdir()
    assert run_verb("crops", *arguments) == code
    assert expected in capsys.readouterr().err
    assert sorted(os.listdir(tmp_path)) == ["empty", "in"]


# CIFAR-10 and LSUN --------------------------------------------------------------------------------------


def test_cifar10_becomes_two_folders(tmp_path, capsys):
    write_cifar(tmp_path / "data" / "cifar10")
    arguments = ["cifar10", tmp_path / "out", f"--data_dir={tmp_path / 'data'}"]
    assert run_verb(*arguments) == 0
    printed = capsys.readouterr()
    assert "cifar_train: 20 PNG files CLASS_IIIII.png" in printed.out
    assert "cifar_test: 4/4 (100%)" in printed.err
    assert sorted(os.listdir(tmp_path / "out")) == ["cifar_test", "cifar_train"]
    # Batch k has label k in `write_cifar`.
    assert sorted(os.listdir(tmp_path / "out" / "cifar_test")) == [f"dog_0000{number}.png" for number in range(4)]
    path = tmp_path / "out" / "cifar_train" / "bird_00009.png"
    np.testing.assert_array_equal(np.asarray(Image.open(path)), planar(4, 2)[1].reshape(3, 32, 32).transpose(1, 2, 0))


def test_a_split_that_is_there_is_skipped(tmp_path, capsys):
    write_cifar(tmp_path / "data" / "cifar10")
    (tmp_path / "out" / "cifar_train").mkdir(parents=True)
    arguments = ["cifar10", tmp_path / "out", f"--data_dir={tmp_path / 'data'}"]
    assert run_verb(*arguments) == 0
    assert "cifar_train exists already and is skipped; to write it again, remove it first" in capsys.readouterr().out
    assert os.listdir(tmp_path / "out" / "cifar_train") == []
    assert len(os.listdir(tmp_path / "out" / "cifar_test")) == 4
    assert run_verb("cifar10", tmp_path / "out", f"--data_dir={tmp_path / 'absent'}") == 0  # nothing to do
    assert capsys.readouterr().out.count("is skipped") == 2


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["cifar10"], "expected `cifar10 OUT_FOLDER`, found nothing"),
        (["lsun", "in"], "expected `lsun LMDB_FOLDER OUT_FOLDER`, found in"),
        (["lsun", "in", "out", "--prefix=a/b"], "--prefix=a/b: expected what a file name can begin with"),
        (["lsun", "in", "out", "--image_size=0"], "an integer of at least 1"),
        (["lsun", "in", "out", "--image-size=8"], "unknown flag --image-size. Did you mean --image_size"),
    ],
)
def test_wrong_command_lines_of_other_verbs(capsys, arguments, expected):
    assert run_verb(*arguments) == 2
    assert expected in capsys.readouterr().err
