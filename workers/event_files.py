"""TensorBoard's event files (`holdfast[tensorboard]`)."""

from __future__ import annotations

import time
from typing import Any

from storage.errors import ConfigurationError


class EventFiles:
    """Makes writers in a directory of this machine, which `who` has asked for.

    Raises ConfigurationError without tensorboardX, and for a URL.
    """

    def __init__(self, who: str, directory: str) -> None:
        try:
            from tensorboardX import SummaryWriter
        except ImportError as exc:
            raise ConfigurationError(
                "TensorBoard's events need tensorboardX: pip install 'holdfast[tensorboard]'"
            ) from exc
        if "://" in directory:
            raise ConfigurationError(f"{who} {directory}: give a directory of this machine")
        self._make = SummaryWriter

    def writer(self, folder: str, purge_step: int | None) -> Any:
        """A writer of a new file; TensorBoard discards what older ones say of steps from `purge_step` on."""
        own = f".{time.time_ns()}"  # two that start in one second write to two files
        return self._make(folder, purge_step=purge_step, filename_suffix=own)
