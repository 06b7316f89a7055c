"""Families of generations: what was saved last in a directory, and removing one."""

from __future__ import annotations

import logging
from typing import TYPE_CHECKING

import pytest

import storage
from storage import families
from storage.bundle import open_files, save_files
from storage.errors import ConfigurationError
from storage.testing import MemoryStore

if TYPE_CHECKING:
    from pathlib import Path

KIND = "checkpoint"


def saved(directory: str, name: str, content: bytes = b"x", keep: int = 1) -> Path | str:
    url = f"{directory}/{name}"
    save_files(url, KIND, {"content": content}, keep=keep)
    return url


def only_file(url: Path, pattern: str) -> Path:
    (found,) = url.glob(pattern)
    return found


def test_the_last_save_of_a_directory_is_found_whatever_the_names_are(tmp_path: Path) -> None:
    place = str(tmp_path / "made")
    assert families.newest(place, {KIND}) is None
    for name in ("ckpt-9", "ckpt-10", "model_final", "ckpt-2"):
        saved(place, name)
        assert families.newest(place, {KIND}) == f"{place}/{name}"
    saved(place, "ckpt-9")
    assert [each.name for each in families.listing(place)] == ["ckpt-10", "model_final", "ckpt-2", "ckpt-9"]


def test_of_equal_steps_the_higher_number_is_the_later(tmp_path: Path) -> None:
    for name in ("ckpt-10", "ckpt-9"):
        storage.save(str(tmp_path / name), {"a": [1.0]})  # knows of no other: each is at step 0
    assert families.newest(str(tmp_path), {"arrays"}) == str(tmp_path / "ckpt-10")


def test_what_else_lies_in_the_directory_is_passed_over(tmp_path: Path) -> None:
    saved(str(tmp_path), "ckpt-1")
    storage.save(str(tmp_path / "arrays"), {"a": [1.0]}, step=99)
    (tmp_path / "checkpoint").write_text("all_model_checkpoint_paths: nothing")
    (tmp_path / "a \\ directory").mkdir()
    assert families.newest(str(tmp_path), {KIND}) == str(tmp_path / "ckpt-1")


def test_a_partial_save_is_skipped_with_its_reason(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    place = str(tmp_path)
    saved(place, "ckpt-1")
    saved(place, "ckpt-2")
    only_file(tmp_path, "ckpt-2/checkpoints/*/manifest.json").unlink()
    with caplog.at_level(logging.WARNING, "storage.families"):
        assert families.newest(place, {KIND}) == f"{place}/ckpt-1"
    assert f"{place}/ckpt-2 is skipped: " in caplog.text


def test_a_damaged_save_is_skipped_and_the_object_is_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    place = str(tmp_path)
    saved(place, "ckpt-1")
    saved(place, "ckpt-2")
    only_file(tmp_path, "ckpt-2/checkpoints/*/content").write_bytes(b"y")
    assert families.newest(place, {KIND}, verify=False) == f"{place}/ckpt-2"
    assert "skipped" not in caplog.text
    assert families.newest(place, {KIND}) == f"{place}/ckpt-1"
    assert "content" in caplog.text
    only_file(tmp_path, "ckpt-2/checkpoints/*/content").write_bytes(b"longer")
    assert families.newest(place, {KIND}, verify=False) == f"{place}/ckpt-1"


def test_where_the_newest_generation_is_damaged_the_one_before_is_told(tmp_path: Path) -> None:
    place = str(tmp_path)
    url = saved(place, "cp.ckpt", b"first", keep=2)
    saved(place, "cp.ckpt", b"second", keep=2)
    newest = max((tmp_path / "cp.ckpt/checkpoints").iterdir())
    (newest / "content").write_bytes(b"spoilt")
    address = families.newest(place, {KIND})
    assert address == f"{url}#0"
    assert open_files(address).read("content") == b"first"


def test_a_family_is_removed_and_nothing_else_is(tmp_path: Path) -> None:
    place = str(tmp_path)
    saved(place, "ckpt-1")
    saved(place, "ckpt-2")
    families.delete(f"{place}/ckpt-1", KIND)
    families.delete(f"{place}/ckpt-1", KIND)
    assert [path.name for path in tmp_path.iterdir()] == ["ckpt-2"]
    with pytest.raises(ConfigurationError, match="directory of a checkpoint"):
        families.delete(f"{place}/ckpt-2", "model")
    (tmp_path / "photos").mkdir()
    families.delete(f"{place}/photos", KIND)
    assert (tmp_path / "photos").is_dir()


def test_families_lie_on_object_stores_too() -> None:
    place = MemoryStore().url
    for name in ("ckpt-1", "ckpt-2"):
        saved(place, name)
    assert families.newest(place, {KIND}) == f"{place}/ckpt-2"
    families.delete(f"{place}/ckpt-2", KIND)
    assert families.newest(place, {KIND}) == f"{place}/ckpt-1"


@pytest.mark.parametrize(
    ("url", "directory", "name"),
    [
        ("s3://bucket/a/b", "s3://bucket/a", "b"),
        ("s3://bucket", None, "bucket"),
        ("/a/b/", "/a", "b"),
        ("file:///a/b", "file:///a", "b"),
    ],
)
def test_a_url_is_a_directory_and_a_name(url: str, directory: str | None, name: str) -> None:
    assert families.split(url) == (directory, name)


def test_a_name_that_no_family_can_have_is_refused() -> None:
    with pytest.raises(ConfigurationError, match="cannot be saved to: bad name"):
        families.check_family("/tmp/.hidden")
