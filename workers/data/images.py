"""Images in files, one sample each, decoded when they are taken."""

from __future__ import annotations

import io
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any

import numpy as np
from blake3 import blake3

from storage.errors import ConfigurationError, DataError, MissingExtra
from storage.files import files_below
from workers.data.mapping import Mappable
from workers.data.parts import check_indices

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from workers.engine import Batch

_SUFFIXES = (".png", ".jpg", ".jpeg")
_MODES = {1: "L", 3: "RGB", 4: "RGBA"}


def read_image(
    data: bytes, name: str, size: tuple[int, int] | None = None, channels: int = 3
) -> NDArray[np.uint8]:
    """The picture in the bytes of a PNG or JPEG file, of shape (height, width, channels), from 0 to 255.

    It is brought to `size` (height, width) with Pillow's bilinear filter, which is antialiased, and to 1
    (grey), 3 (RGB) or 4 (RGBA) channels; `name` is for messages. Raises DataError where it is damaged.
    """
    try:
        from PIL import Image, UnidentifiedImageError
    except ImportError as exc:
        raise MissingExtra(
            "images need a package that is not installed: pip install 'holdfast[images]'"
        ) from exc
    try:
        with Image.open(io.BytesIO(data), formats=("PNG", "JPEG")) as image:
            picture = image.convert(_MODES[channels])
    except UnidentifiedImageError as exc:
        raise DataError(f"{name}: not an image, or a damaged one: neither PNG nor JPEG") from exc
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as exc:  # as Pillow has them
        raise DataError(f"{name}: not an image, or a damaged one: {exc}") from exc
    if size is not None and picture.size != size[::-1]:
        picture = picture.resize(size[::-1], Image.Resampling.BILINEAR)
    return np.asarray(picture).reshape(picture.height, picture.width, channels)


class ImageFolderDataset(Mappable):
    """The PNG and JPEG files below a directory at any URL, as `(image, class)`.

    A file's class is the number of the sub-directory that it is below, of all of them sorted by name
    (`classes`), int64. Images are uint8 of shape (height, width, channels), as `read_image` makes them. Only
    those that are taken are read and decoded; a damaged one is a DataError that names it.
    """

    def __init__(self, url: str, size: tuple[int, int], channels: int = 3) -> None:
        if len(size) != 2 or min(size) < 1:
            raise ConfigurationError(f"ImageFolderDataset(size={size!r}): give (height, width)")
        if channels not in _MODES:
            raise ConfigurationError(f"ImageFolderDataset(channels={channels!r}): give 1, 3 or 4")
        self._size = size
        self._channels = channels
        found = {file: nbytes for file, nbytes in files_below(url, _SUFFIXES).items() if "/" in file.key}
        self._files = [*found]
        self._nbytes = [*found.values()]
        names = [file.key.partition("/")[0] for file in self._files]
        self.classes = sorted(set(names))
        if not names:
            raise ConfigurationError(
                f"{url}: there are no images CLASS/NAME.png or .jpg: give the directory of the classes"
            )
        self._labels = np.searchsorted(self.classes, names).astype(np.int64)

    def __len__(self) -> int:
        """The number of samples."""
        return len(self._files)

    def take(self, indices: NDArray[np.int64]) -> Batch:
        """These images, in this order, and their classes."""
        check_indices(indices, len(self))
        images = np.empty((len(indices), *self._size, self._channels), np.uint8)

        def read(place: int) -> None:
            file = self._files[indices[place]]
            images[place] = read_image(file.read(), file.url, self._size, self._channels)

        with ThreadPoolExecutor(self._files[0].store.parallel_reads, "holdfast-images") as pool:
            for _ in pool.map(read, range(len(indices))):
                pass
        return images, self._labels[indices]

    def identity(self) -> dict[str, Any]:
        """Names and sizes of the files: a change within a file that keeps its size is not noticed."""
        digest = blake3()
        for file, nbytes in zip(self._files, self._nbytes, strict=True):
            digest.update(f"{file.key}\0{nbytes}\0".encode())
        return {
            "kind": "images",
            "samples": len(self),
            "shape": [*self._size, self._channels],
            "classes": len(self.classes),
            "blake3": digest.hexdigest(),
        }
