import stat
import struct
import zipfile

import pytest

from tests.data.images import encode, pixels, write_folder
from tfgen.data import image_files
from tfgen.data.errors import DataError
from tfgen.data.folder import ImageFolder
from tfgen.data.image_files import FolderFiles, ZipFiles

PICTURE = encode(pixels(1))


def archive(path, entries):
    with zipfile.ZipFile(path, "w") as target:
        for entry in entries:
            target.writestr(entry, PICTURE)
    return path


@pytest.mark.parametrize("name", ["../../x.png", "a/../../x.png", "/etc/x.png", "C:\\x.png", "..\\x.png"])
def test_names_that_lead_outside_are_refused(tmp_path, name):
    with pytest.raises(DataError, match="points outside the archive"):
        ZipFiles(archive(tmp_path / "evil.zip", ["good.png", name]))
    assert [path.name for path in tmp_path.iterdir()] == ["evil.zip"]


def test_links_and_encrypted_entries_are_refused(tmp_path):
    link = zipfile.ZipInfo("link.png")
    link.external_attr = (stat.S_IFLNK | 0o777) << 16
    with pytest.raises(DataError, match=r"'link\.png' is a link"):
        ZipFiles(archive(tmp_path / "link.zip", [link]))
    path = archive(tmp_path / "locked.zip", ["a.png"])
    content = bytearray(path.read_bytes())
    content[content.index(b"PK\1\2") + 8] |= 1  # the encryption flag of the directory's entry
    path.write_bytes(content)
    with pytest.raises(DataError, match="encrypted"):
        ZipFiles(path)


def test_absurd_numbers_of_entries_are_refused_before_they_are_loaded(tmp_path, monkeypatch):
    path = archive(tmp_path / "many.zip", [f"{number}.png" for number in range(12)])
    assert len(ZipFiles(path).names) == 12
    monkeypatch.setattr(image_files, "LARGEST_ENTRY_COUNT", 10)
    with monkeypatch.context() as patched:
        patched.setattr(zipfile, "ZipFile", lambda *_: pytest.fail("loaded"))
        with pytest.raises(DataError, match="more than 10 entries; unpack it"):
            ZipFiles(path)
    # An end record that understates the number: found out by what was loaded.
    content = bytearray(path.read_bytes())
    struct.pack_into("<HH", content, content.rindex(b"PK\5\6") + 8, 1, 1)
    path.write_bytes(content)
    with pytest.raises(DataError, match="more than 10 entries"):
        ZipFiles(path)
    # ... or, before that, by the size of the directory.
    monkeypatch.setattr(image_files, "_LARGEST_DIRECTORY", 100)
    monkeypatch.setattr(zipfile, "ZipFile", lambda *_: pytest.fail("loaded"))
    with pytest.raises(DataError, match="more than 10 entries"):
        ZipFiles(path)


def test_the_64_bit_record_counts(tmp_path, monkeypatch):
    path = tmp_path / "wide.zip"
    monkeypatch.setattr(zipfile, "ZIP_FILECOUNT_LIMIT", 4)  # makes `zipfile` write the 64-bit record
    archive(path, [f"{number}.png" for number in range(12)])
    assert b"PK\6\6" in path.read_bytes()
    assert len(ZipFiles(path).names) == 12
    monkeypatch.setattr(image_files, "LARGEST_ENTRY_COUNT", 10)
    monkeypatch.setattr(zipfile, "ZipFile", lambda *_: pytest.fail("loaded"))
    with pytest.raises(DataError, match="more than 10 entries"):
        ZipFiles(path)


def test_entries_that_declare_too_much_or_are_corrupt_are_rejects(tmp_path, monkeypatch):
    names = [f"{number:03}.png" for number in range(200)]
    path = archive(tmp_path / "a.zip", names)
    content = bytearray(path.read_bytes())
    content[content.index(b"007.png") + 30] ^= 0xFF  # in the pixels: the checksum of the entry fails
    path.write_bytes(content)
    source = ImageFolder(ZipFiles(path))
    assert list(source.rejects) == ["007.png"]
    assert "damaged in the archive" in source.rejects["007.png"]
    files = ZipFiles(path)
    files._entries["011.png"].file_size = 2**40
    assert "declares 1099511627776 bytes" in ImageFolder(files).rejects["011.png"]


def test_what_is_no_archive(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"no archive")
    with pytest.raises(DataError, match="not a zip archive"):
        ZipFiles(tmp_path / "a.zip")
    with pytest.raises(DataError, match="no file"):
        ZipFiles(tmp_path / "absent.zip")


def test_hidden_files_are_passed_over(tmp_path):
    names = ["a.png", ".DS_Store", "__MACOSX/._a.png", "x/.git/b.png", "x/b.png"]
    assert ZipFiles(archive(tmp_path / "a.zip", names)).names == ["a.png", "x/b.png"]
    write_folder(tmp_path / "folder", names)
    assert FolderFiles(tmp_path / "folder").names == ["a.png", "x/b.png"]


def test_folder_links_are_followed_once(tmp_path):
    write_folder(tmp_path / "data", ["a/1.png"])
    write_folder(tmp_path / "elsewhere", ["2.png"])
    (tmp_path / "data" / "b").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "data" / "loop").symlink_to(tmp_path / "data")
    assert FolderFiles(tmp_path / "data").names == ["a/1.png", "b/2.png"]
