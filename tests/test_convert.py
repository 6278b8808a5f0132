"""`python -m tfgen.convert images`; conversion of checkpoints is in tests/e2e/test_commands.py."""

import numpy as np
import pytest

from tests.data.images import write_folder
from tfgen.convert import main


def run(*arguments) -> int:
    try:
        return main(["images", *map(str, arguments)])
    except SystemExit as error:
        return error.code


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
        ([], "expected `images FOLDER OUT.npy`, found neither"),
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


@pytest.mark.parametrize("arguments", [["--help"], ["images", "--help"], ["checkpoint", "-h"]])
def test_help_has_both_forms(capsys, arguments):
    assert main(arguments) == 0
    printed = capsys.readouterr().out
    assert "tfgen.convert checkpoint FILE --hps=PRESET" in printed
    assert "tfgen.convert images FOLDER OUT.npy" in printed
    assert "--[no_]allow_rejects" in printed


def test_other_words_are_refused(capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["pictures", "in", "out.npy"])
    assert (
        "expected `checkpoint FILE --hps=PRESET` or `images FOLDER OUT.npy`, found pictures" in capsys.readouterr().err
    )
