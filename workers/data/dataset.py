"""What a dataset is to the runtime, and how it is read."""

from __future__ import annotations

import sys
import time
from typing import TYPE_CHECKING, Any, Protocol, runtime_checkable

from storage.errors import DataError, StorageError

if TYPE_CHECKING:
    from collections.abc import Callable

    import numpy as np
    from numpy.typing import NDArray

    from workers.engine import Batch
    from workers.rng import Streams
    from workers.schedule import Order


@runtime_checkable
class Dataset(Protocol):
    """Samples that can be taken by number."""

    def __len__(self) -> int:
        """The number of samples."""

    def take(self, indices: NDArray[np.int64]) -> Batch:
        """These samples, in this order, one array for each of the dataset's parts."""

    def identity(self) -> dict[str, Any]:
        """What the data is, as JSON values: equal for equal content, on any machine."""


@runtime_checkable
class DrawsRandomly(Protocol):
    """A dataset whose samples have something random about them, such as augmentation."""

    def take_with(self, indices: NDArray[np.int64], streams: Streams) -> Batch:
        """As `take`, with all that is random drawn from `streams`, those of a microbatch of a step."""


@runtime_checkable
class Ordered(Protocol):
    """A dataset that has its own way to shuffle."""

    def order(self, seed: int, epoch: int) -> Order:
        """All samples, each once: a function of the dataset's identity, the seed and the epoch alone."""


@runtime_checkable
class ReadsAhead(Protocol):
    """A dataset that can read in the background."""

    def prefetch(self, indices: NDArray[np.int64]) -> None:
        """Begin to read samples that will probably be taken next; return at once, and raise nothing."""


REREADS = 3
PAUSE_S = 0.1
"""Seconds before the first of them; each next pause is twice as long."""


def is_unreadable(error: BaseException) -> bool:
    """Whether an exception of a dataset's `take` says that input cannot be read, and not that code is wrong.

    It is a DataError, or one of the operating system, of a store, or of Arrow (which may not have been
    imported).
    """
    arrow = getattr(sys.modules.get("pyarrow"), "ArrowException", None)
    kinds = (OSError, StorageError, DataError, *([arrow] if isinstance(arrow, type) else []))
    return isinstance(error, kinds)


def taken(dataset: Dataset, indices: NDArray[np.int64], streams: Streams | None) -> Batch:
    """Samples of a dataset, drawn with `streams` where they are given and it draws."""
    if streams is not None and isinstance(dataset, DrawsRandomly):
        return dataset.take_with(indices, streams)
    return dataset.take(indices)


def read_patiently(
    dataset: Dataset,
    indices: NDArray[np.int64],
    tell: Callable[[str], None],
    streams: Streams | None = None,
) -> Batch:
    """Take samples; what cannot be read is read again, and `tell` told why.

    Raises DataError with what the dataset raised if that does not help. Other exceptions are the dataset's.
    """
    for tries in range(REREADS + 1):
        try:
            return taken(dataset, indices, streams)
        except Exception as error:
            if not is_unreadable(error):
                raise
            what = str(error) if isinstance(error, DataError) else f"{type(error).__name__}: {error}"
            if tries == REREADS:
                many = f"{REREADS + 1} times"
                raise DataError(f"the data could not be read, which was tried {many}: {what}") from error
            tell(what)
            time.sleep(PAUSE_S * 2**tries)
    raise AssertionError("the last try returns or raises")
