"""What a callback is, and several as one.

What a callback must remember from one epoch to the next is its state: JSON values, which a checkpoint
holds, so that a resumed training goes on as if it had not been interrupted.
"""

from __future__ import annotations

import math
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from storage.strict_json import spelled, unspelled
from workers.nn.lookup import check

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Mapping, Sequence
    from contextlib import AbstractContextManager

    from workers.nn.model import Model
    from workers.nn.position import Fit

Logs = dict[str, float]
"""The metrics so far, by name; those of validation begin with "val_"."""


class Callback:
    """Base: a subclass overrides the moments it cares for.

    `model` and `params` (verbose, epochs, steps) are set before training begins. To stop, set
    `self.model.stop_training = True`; to change the learning rate, `self.model.optimizer.learning_rate`.
    """

    remembers: ClassVar[tuple[str, ...]] = ()
    """Names of the attributes that are its state: numbers, strings, None, and lists of them.

    In a job each epoch may end on another worker: what is not named here is not remembered there.
    """

    holds: ClassVar[tuple[str, ...]] = ()
    """Names of the attributes of its state that are lists of arrays, or None; a job's have none but those of
    `EarlyStopping`."""

    observes: ClassVar = False
    """Whether it only writes down what happens: that of a job is told where `orchestrator.fit` was called."""

    def __init__(self) -> None:
        self.params: dict[str, Any] = {}
        self.model: Any = None

    def set_params(self, params: Mapping[str, Any]) -> None:
        """In place. Take what is known of the training."""
        self.params = dict(params)

    def set_model(self, model: Model) -> None:
        """In place. Take the model that is trained."""
        self.model = model

    def get_state(self) -> dict[str, Any]:
        """What must be remembered, as JSON values."""
        return {name: spelled(_plain(getattr(self, name))) for name in self.remembers}

    def set_state(self, state: Mapping[str, Any]) -> None:
        """In place. Go on from what `get_state` gave."""
        for name in self.remembers:
            if name in state:
                setattr(self, name, unspelled(state[name]))

    def undo(self) -> None:
        """In place. Put back what was changed for a while: what was begun ended by an exception."""

    def on_train_begin(self, logs: Logs | None = None) -> None:
        """Training begins."""

    def on_train_end(self, logs: Logs | None = None) -> None:
        """Training has ended."""

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Epoch number `epoch`, from 0, begins."""

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """It has ended, with these metrics; validation is done."""

    def on_train_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """Batch number `batch` of the epoch, from 0, begins."""

    def on_train_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """It has ended; the metrics are those of the epoch so far."""

    def on_test_begin(self, logs: Logs | None = None) -> None:
        """An evaluation begins."""

    def on_test_end(self, logs: Logs | None = None) -> None:
        """It has ended."""

    def on_test_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """A batch of an evaluation begins."""

    def on_test_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """It has ended."""

    def on_predict_begin(self, logs: Logs | None = None) -> None:
        """A prediction begins."""

    def on_predict_end(self, logs: Logs | None = None) -> None:
        """It has ended."""

    def on_predict_batch_begin(self, batch: int, logs: Logs | None = None) -> None:
        """A batch of a prediction begins."""

    def on_predict_batch_end(self, batch: int, logs: Logs | None = None) -> None:
        """It has ended."""


class StateKeeper(Callback):
    """Base of what keeps all that a training is made of; see `workers.nn.callbacks.backup`.

    It is told when the training stands between two batches or epochs, after all other callbacks.
    """

    is_told_to_stop = False
    """Whether `between` is to be called as soon as may be: it will end the training."""

    def following(self, fit: Fit) -> AbstractContextManager[None]:
        """What holds while the training lasts; on entering, it may be put where an earlier one stood."""
        raise NotImplementedError

    def between(self, fit: Fit, *, epoch_ended: bool) -> None:
        """The training stands between two batches, or with `epoch_ended` two epochs."""
        raise NotImplementedError


class CallbackList:
    """Several callbacks, told in order."""

    def __init__(self, callbacks: Iterable[Callback], model: Model, params: Mapping[str, Any]) -> None:
        self.callbacks = list(callbacks)
        for callback in self.callbacks:
            check(isinstance(callback, Callback), f"callbacks: {callback!r} is no nn.callbacks.Callback")
            callback.set_params(params)
            callback.set_model(model)
        self._of_batches: dict[str, Sequence[Callback]] = {}

    @contextmanager
    def undoing(self) -> Iterator[None]:
        """While it lasts, an exception has each put back what it has changed for a while."""
        try:
            yield
        except BaseException:
            self.undo()
            raise

    def undo(self) -> None:
        """In place. Have each put back what it has changed for a while."""
        for callback in reversed(self.callbacks):
            callback.undo()

    def tell(self, moment: str, *arguments: Any) -> None:
        """Call the method `moment` of each."""
        for callback in self.callbacks:
            getattr(callback, moment)(*arguments)

    def listening(self, moment: str) -> Sequence[Callback]:
        """Those that override the method `moment`; found once, as most have nothing to do with batches."""
        if moment not in self._of_batches:
            plain = getattr(Callback, moment)
            self._of_batches[moment] = [
                each
                for each in self.callbacks
                if getattr(getattr(each, moment), "__func__", None) is not plain
            ]
        return self._of_batches[moment]

    @property
    def keepers(self) -> list[StateKeeper]:
        """Those that keep the state of all."""
        return [callback for callback in self.callbacks if isinstance(callback, StateKeeper)]

    def get_state(self) -> list[dict[str, Any]]:
        """The states of all, in order."""
        return [callback.get_state() for callback in self.callbacks]

    def set_state(self, states: Sequence[Mapping[str, Any]]) -> None:
        """In place. Go on from what `get_state` gave."""
        for callback, state in zip(self.callbacks, states, strict=True):
            callback.set_state(state)


class Monitor:
    """Whether a metric has become better.

    `mode` "auto" takes higher values for better where the name says so (accuracy and the like), else lower
    ones.
    """

    def __init__(
        self, owner: str, monitor: str, mode: Literal["auto", "min", "max"], min_delta: float = 0.0
    ) -> None:
        check(mode in ("auto", "min", "max"), f'{owner}: mode {mode!r} is not one of "auto", "min", "max"')
        self.name = monitor
        higher = mode == "max" or (mode == "auto" and _is_better_higher(monitor))
        self.sign = 1.0 if higher else -1.0
        self.min_delta = abs(min_delta)

    @property
    def worst(self) -> float:
        """What every value is better than."""
        return -self.sign * math.inf

    def is_better(self, value: float, than: float) -> bool:
        """Whether `value` is better by more than `min_delta`."""
        return self.sign * (value - than) > self.min_delta if math.isfinite(than) else not math.isnan(value)


_HIGHER = (
    "acc",
    "auc",
    "precision",
    "recall",
    "f1",
    "fbeta",
    "iou",
    "r2",
    "true_positives",
    "true_negatives",
)


def _is_better_higher(name: str) -> bool:
    return any(part in name.removeprefix("val_").lower() for part in _HIGHER)


def _plain(value: Any) -> Any:
    """Python's own number for one of NumPy."""
    return value.item() if hasattr(value, "item") else value
