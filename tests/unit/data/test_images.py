"""Images in a directory for each class."""

from __future__ import annotations

import io
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest

from storage.errors import ConfigurationError, DataError
from workers.data import Dataset, ImageFolderDataset, read_image

if TYPE_CHECKING:
    from pathlib import Path

Image = pytest.importorskip("PIL.Image")


def encoded(array: np.ndarray, kind: str = "PNG") -> bytes:
    file = io.BytesIO()
    Image.fromarray(array).save(file, kind)
    return file.getvalue()


PICTURE = np.arange(4 * 6 * 3, dtype=np.uint8).reshape(4, 6, 3)


def test_a_picture_is_read_as_it_was_written() -> None:
    assert np.array_equal(read_image(encoded(PICTURE), "x"), PICTURE)
    grey = PICTURE[:, :, 0]
    assert np.array_equal(read_image(encoded(grey), "x", channels=1), grey[:, :, None])
    assert np.array_equal(read_image(encoded(grey), "x"), np.repeat(grey[:, :, None], 3, axis=2))
    found = read_image(encoded(PICTURE), "x", channels=4)
    assert np.array_equal(found[:, :, :3], PICTURE)
    assert (found[:, :, 3] == 255).all()


def test_a_jpeg_is_nearly_what_was_written_and_sizes_are_height_and_width() -> None:
    flat = np.full((8, 12, 3), 90, np.uint8)
    found = read_image(encoded(flat, "JPEG"), "x", size=(5, 3))
    assert found.shape == (5, 3, 3)
    assert np.abs(found.astype(int) - 90).max() <= 2


@pytest.mark.parametrize(
    "data", [b"", b"<html>", encoded(PICTURE)[:50], encoded(PICTURE)[:20], encoded(PICTURE, "JPEG")[:200]]
)
def test_a_damaged_image_is_a_data_error_that_names_it(data: bytes) -> None:
    with pytest.raises(DataError, match=r"^a/b\.png: not an image, or a damaged one"):
        read_image(data, "a/b.png")


NAMES = ["golden retriever/a b.PNG", "cat/1.png", "cat/x/2.jpeg", "äpfel/3.png"]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Pictures of one colour each, and files that are none."""
    for i, name in enumerate(NAMES):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        kind = "JPEG" if name.endswith("jpeg") else "PNG"
        path.write_bytes(encoded(np.full((4, 4, 3), 40 * i, np.uint8), kind))
    (tmp_path / "cat" / "notes.txt").write_text("no image")
    (tmp_path / "loose.png").write_bytes(encoded(PICTURE))
    return tmp_path


def test_classes_are_directories_sorted_by_name(folder: Path) -> None:
    dataset = ImageFolderDataset(f"file://{folder}", (4, 4))
    assert isinstance(dataset, Dataset)
    assert dataset.classes == ["cat", "golden retriever", "äpfel"]
    assert len(dataset) == 4
    images, labels = dataset.take(np.array([3, 0, 2, 1]))
    assert labels.tolist() == [2, 0, 1, 0]
    assert images.shape == (4, 4, 4, 3)
    assert np.abs(images[:, 0, 0, 0].astype(int) - [120, 40, 0, 80]).max() <= 2


def test_only_the_images_that_are_taken_are_read(folder: Path) -> None:
    (folder / NAMES[0]).write_bytes(b"damaged")
    dataset = ImageFolderDataset(str(folder), (4, 4), channels=1)
    assert dataset.take(np.array([0]))[0].shape == (1, 4, 4, 1)
    with pytest.raises(DataError, match=r"golden retriever/a b\.PNG: not an image"):
        dataset.take(np.array([0, 2]))
    with pytest.raises(IndexError):
        dataset.take(np.array([4]))


def test_identity_follows_names_and_sizes(folder: Path) -> None:
    first = ImageFolderDataset(str(folder), (4, 4)).identity()
    assert ImageFolderDataset(f"file://{folder}", (4, 4)).identity() == first
    assert ImageFolderDataset(str(folder), (4, 5)).identity() != first
    assert ImageFolderDataset(str(folder), (4, 4), channels=1).identity() != first
    (folder / "cat" / "1.png").write_bytes(encoded(PICTURE))
    assert ImageFolderDataset(str(folder), (4, 4)).identity() != first


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (((0, 4),), r"size=\(0, 4\)"),
        (((4, 4), 2), "channels=2.*give 1, 3 or 4"),
        (((4, 4),), r"there are no images CLASS/NAME"),
    ],
)
def test_what_makes_no_dataset_is_refused(tmp_path: Path, arguments: Any, message: str) -> None:
    with pytest.raises(ConfigurationError, match=message):
        ImageFolderDataset(str(tmp_path), *arguments)
