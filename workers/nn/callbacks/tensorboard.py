"""`TensorBoard`: the metrics of a training as TensorBoard's events (`holdfast[tensorboard]`)."""

from __future__ import annotations

import math
import os
import time
import warnings
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from workers.event_files import EventFiles
from workers.nn.callbacks.base import Callback, Logs
from workers.nn.lookup import check

if TYPE_CHECKING:
    from collections.abc import Mapping


class TensorBoard(Callback):
    """Write scalars of each epoch into `log_dir/train` and `log_dir/validation`, under Keras's names.

    `epoch_loss` and so on at the end of each epoch; with `update_freq` "batch", or a number of batches, also
    `batch_loss` in the course of it, by the optimizer's step. With `histogram_freq` the weights of every so
    many epochs are written as histograms, with `write_steps_per_second` the speed. Images, profiles,
    embeddings and the graph are not written; a warning says so where they are asked for. A training that
    goes on adds a file, and without batches has TensorBoard discard what earlier ones say of the epochs from
    where it begins. Source: Keras 3.
    """

    remembers: ClassVar = ("_step",)
    observes: ClassVar = True

    def __init__(
        self,
        log_dir: str | os.PathLike[str] = "logs",
        histogram_freq: int = 0,
        write_graph: bool = True,
        write_images: bool = False,
        write_steps_per_second: bool = False,
        update_freq: Literal["epoch", "batch"] | int = "epoch",
        profile_batch: Any = 0,
        embeddings_freq: int = 0,
        embeddings_metadata: Any = None,
    ) -> None:
        super().__init__()
        self.log_dir = os.fspath(log_dir)
        self._files = EventFiles("TensorBoard:", self.log_dir)
        fits = update_freq in ("epoch", "batch") or (type(update_freq) is int and update_freq >= 1)
        check(fits, f'TensorBoard: update_freq={update_freq!r}: give "epoch", "batch" or a number from 1')
        check(
            type(histogram_freq) is int and histogram_freq >= 0,
            f"TensorBoard: histogram_freq={histogram_freq!r}: give a whole number of epochs, 0 for none",
        )
        for name, asked in (
            ("write_images", write_images),
            ("profile_batch", profile_batch),
            ("embeddings_freq", embeddings_freq),
            ("embeddings_metadata", embeddings_metadata),
        ):
            if asked:
                warnings.warn(f"TensorBoard: {name} is not written here", stacklevel=2)
        self.histogram_freq = histogram_freq
        self.write_steps_per_second = write_steps_per_second
        self.update_freq = 1 if update_freq == "batch" else update_freq
        self._writers: dict[str, Any] = {}
        self._step = 0
        self._began: tuple[float, int] = (0.0, 0)

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Close what an earlier training has left open."""
        self._close()

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Take the time."""
        self._began = (time.monotonic(), self._step)

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """Write the metrics of a batch, where that was asked for."""
        self._step += 1
        if self.update_freq != "epoch" and self._step % int(self.update_freq) == 0:
            self._scalars("train", {f"batch_{name}": each for name, each in (logs or {}).items()}, self._step)

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Write the metrics of the epoch, and what else was asked for."""
        found = logs or {}
        plain = {f"epoch_{name}": each for name, each in found.items() if not name.startswith("val_")}
        validation = {f"epoch_{name[4:]}": each for name, each in found.items() if name.startswith("val_")}
        if self.write_steps_per_second:
            began, step = self._began
            plain["epoch_steps_per_second"] = (self._step - step) / max(time.monotonic() - began, 1e-9)
        self._scalars("train", plain, epoch)
        self._scalars("validation", validation, epoch)
        if self.histogram_freq and epoch % self.histogram_freq == 0:
            for variable in self.model.weights:
                self._writer("train", epoch).add_histogram(
                    f"{variable.path}/histogram", variable.numpy(), epoch
                )
        for writer in self._writers.values():
            writer.flush()

    def on_train_end(self, logs: Logs | None = None) -> None:
        """Close the files."""
        self._close()

    def _scalars(self, part: str, values: Mapping[str, float], at: int) -> None:
        for name, value in values.items():
            if math.isfinite(value):
                self._writer(part, at).add_scalar(name, value, at)

    def _writer(self, part: str, at: int) -> Any:
        if part not in self._writers:
            folder = os.path.join(self.log_dir, part)
            purged = at if self.update_freq == "epoch" else None  # batches and epochs count differently
            self._writers[part] = self._files.writer(folder, purged)
        return self._writers[part]

    def _close(self) -> None:
        for writer in self._writers.values():
            writer.close()
        self._writers = {}
