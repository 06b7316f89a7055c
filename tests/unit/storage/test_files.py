"""Files of a user's own: what a URL means, and which names may be read."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING

import pytest

from storage.errors import ConfigurationError, ObjectMissing
from storage.files import RangeReader, file_at, files_at, files_below
from storage.layout import check_key
from storage.store import open_store
from storage.testing import MemoryStore

if TYPE_CHECKING:
    from pathlib import Path

ODD = ["a b.txt", "day=1/ä.TXT", "(x) & 'y' #1?.txt", "-dash.txt"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in [*ODD, ".hidden.txt", ".dir/x.txt", "other.bin"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    return tmp_path


def test_files_of_any_name_are_listed_with_sizes_and_read(folder: Path) -> None:
    found = files_below(str(folder), [".txt"])
    assert {file.key: nbytes for file, nbytes in found.items()} == {name: len(name.encode()) for name in ODD}
    assert [file.key for file in found] == sorted(ODD)
    for file in found:
        assert file.read() == file.key.encode()
        assert file.read(1, 3) == file.key.encode()[1:3]
        assert file.info().nbytes == len(file.key.encode())
        assert file.path == f"{folder}/{file.key}"
        assert file_at(file.url).read() == file.read()


def test_odd_names_can_be_read_but_never_written(folder: Path) -> None:
    store = open_store(str(folder))
    with pytest.raises(ValueError, match="bad name"):
        store.write("a b.txt", [b""])
    with pytest.raises(ValueError, match="bad name"):
        store.delete(["a b.txt"])
    with pytest.raises(ValueError, match="bad name"):
        store.delete_directory("day=1")
    assert store.list("day=1") == {ODD[1]: len(ODD[1].encode())}


def test_a_users_file_on_this_machine_may_have_any_name(folder: Path) -> None:
    file_at(f"{folder}/my file é=1.txt").write(b"mine")
    assert file_at(f"{folder}/my file é=1.txt").read() == b"mine"
    before = sorted(folder.iterdir())
    (folder / "a directory").mkdir()
    with pytest.raises(ConfigurationError, match=r"cannot write .*/a directory: Is a directory"):
        file_at(f"{folder}/a directory").write(b"mine")
    assert sorted(folder.iterdir()) == sorted([*before, folder / "a directory"])
    with pytest.raises(ConfigurationError, match="memory://x/my file cannot be written: bad name 'my file'"):
        file_at("memory://x/my file").write(b"mine")


@pytest.mark.parametrize(
    "key", ["", "/x", "../x", "a/../x", "a//b", ".x", "a/.x", "a\\b", "a\0b", "a\nb", "x" * 300]
)
def test_no_key_leaves_its_directory_or_is_hidden(key: str) -> None:
    with pytest.raises(ValueError, match="bad key"):
        check_key(key)


def test_a_url_is_a_file_or_a_directory_of_files(folder: Path) -> None:
    (one,) = files_at(f"file://{folder}/other.bin", [".txt"])
    assert one.read() == b"other.bin"
    assert [file.key for file in files_at(str(folder), [".txt"])] == sorted(ODD)
    assert [file.key for file in files_at(f"{folder}/day=1/", [".txt"])] == ["ä.TXT"]
    with pytest.raises(
        ConfigurationError, match=r"none: there is no such file, and no directory with files \.txt"
    ):
        files_at(f"{folder}/none", [".txt"])


def test_a_store_elsewhere_has_files_too() -> None:
    store = MemoryStore()
    store.write("d/x.txt", [b"123"])
    assert file_at(f"{store.url}/d/x.txt").read(1, 2) == b"2"
    assert file_at(f"{store.url}/d/x.txt").path is None
    assert [file.key for file in files_at(f"{store.url}/d", [".txt"])] == ["x.txt"]
    with pytest.raises(ObjectMissing, match="none"):
        file_at(f"{store.url}/none").info()


@pytest.mark.parametrize("url", ["s3://bucket", "s3://bucket/", "/tmp/.hidden", ""])
def test_what_is_no_file_is_refused(url: str) -> None:
    with pytest.raises(ConfigurationError):
        file_at(url)


def test_a_range_reader_reads_as_a_file_does() -> None:
    store = MemoryStore()
    data = bytes(range(100))
    store.write("x", [data])
    reader, file = RangeReader(file_at(f"{store.url}/x"), len(data)), io.BytesIO(data)
    for offset, whence, size in [(10, 0, 5), (-3, 1, 4), (-7, 2, 100), (0, 2, 5), (120, 0, 5), (0, 0, -1)]:
        assert reader.seek(offset, whence) == file.seek(offset, whence)
        assert reader.read(size) == file.read(size)
        assert reader.tell() == file.tell()
