"""`fit`, `evaluate`, `predict` and their like, as Keras has them, on this machine alone.

A step is what a step of a distributed job is: the batch of step s is a function of the seed and s, it is
cut into microbatches, their gradients are added along the tree, and one update follows. So
`orchestrator.fit` of the same microbatches gives the same weights to the last bit, and training that goes
on later goes on exactly.
"""

from __future__ import annotations

import contextlib
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import ConfigurationError
from workers.nn import random
from workers.nn.callbacks import CallbackList, History, ProgbarLogger
from workers.nn.feeding import Feed, as_feed, held_out, validation_parts, with_class_weight
from workers.nn.local import LocalTraining
from workers.nn.lookup import check
from workers.nn.position import Fit, Position
from workers.nn.tensor import Tensor, leaves, map_structure
from workers.reports import results
from workers.schedule import combine

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Mapping, Sequence

    from workers.engine import Sums
    from workers.nn.callbacks import Callback
    from workers.nn.compiled import Compiled


class Trainer:
    """What a model can do once it is compiled."""

    _compiled: Compiled | None
    _local: LocalTraining | None = None
    stop_training = False
    seed: int | None = None
    """Of order, dropout and the like in `fit`; drawn by the first one that is not given any."""

    # -- training -----------------------------------------------------------------------------------------

    def fit(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        epochs: int = 1,
        verbose: int | str = "auto",
        callbacks: Iterable[Callback] | None = None,
        validation_split: float = 0.0,
        validation_data: Any = None,
        shuffle: bool = True,
        class_weight: Mapping[int, float] | None = None,
        sample_weight: Any = None,
        initial_epoch: int = 0,
        steps_per_epoch: int | None = None,
        validation_steps: int | None = None,
        validation_batch_size: int | None = None,
        validation_freq: int | Sequence[int] = 1,
        *,
        microbatches: int = 1,
        seed: int | None = None,
    ) -> History:
        """Train for some epochs; returns what `history` each metric had.

        `x` is an array (a structure of them for several inputs), a `workers.data` dataset, or an iterable
        of batches `(x, y)` or `(x, y, sample_weight)`. The last batch of an epoch may be short, and counts
        by its samples. With an optimizer that averages (`use_ema=True`) the model ends with the averages, as
        in Keras: training that goes on after that goes on from them.
        """
        if seed is not None:
            self.seed = seed
        elif self.seed is None:
            self.seed = random.next_seed()
        if validation_split:
            check(
                0 < validation_split < 1,
                f"fit: validation_split must be between 0 and 1, not {validation_split}",
            )
            (x, y, sample_weight), validation_data = held_out(x, y, sample_weight, validation_split)
        if class_weight is not None:
            sample_weight = with_class_weight(y, sample_weight, class_weight)
        feed = as_feed(x, y, sample_weight, batch_size, steps_per_epoch, shuffle=shuffle)
        validation = self._validation(validation_data, validation_batch_size or batch_size, validation_steps)
        training = self._training(feed)
        history = History()
        told = CallbackList(
            [*self._progress(verbose), *(callbacks or ()), history],
            self,  # type: ignore[arg-type]  # a Model
            {"verbose": verbose, "epochs": epochs, "steps": feed.steps},
        )
        self.stop_training = False
        position = Position(initial_epoch)
        fit = Fit(self, told, feed, position, seed)  # type: ignore[arg-type]  # a Model
        with told.undoing():
            told.tell("on_train_begin", None)
            with contextlib.ExitStack() as stack:
                for keeper in told.keepers:
                    stack.enter_context(keeper.following(fit))
                self._epochs(training, validation, fit, epochs, microbatches, validation_freq)
            self._finalize()
            told.tell("on_train_end", position.logs)
        return history

    def _epochs(
        self,
        training: LocalTraining | None,
        validation: Feed | None,
        fit: Fit,
        epochs: int,
        microbatches: int,
        validation_freq: int | Sequence[int],
    ) -> None:
        """The rest of the epochs."""
        told, position, every = fit.told, fit.position, validation_freq
        while position.epoch < epochs and not (self.stop_training and position.is_between_epochs):
            epoch = position.epoch
            if position.is_between_epochs:
                told.tell("on_epoch_begin", epoch, None)
            logs = self._epoch(training, fit, microbatches)
            due = (epoch + 1) % every == 0 if isinstance(every, int) else epoch + 1 in every
            if validation is not None and due:
                found = self._validated(validation, fit)
                logs |= {f"val_{name}": value for name, value in found.items()}
            told.tell("on_epoch_end", epoch, logs)
            position.end_epoch(logs)
            for keeper in told.keepers:
                keeper.between(fit, epoch_ended=True)

    def _validated(self, feed: Feed, fit: Fit) -> dict[str, float]:
        """The metrics of the validation data. A keeper that is told to stop does so between two batches.

        What it keeps then is where the pass over the training data ended: the validation begins anew.
        """
        told, keepers = fit.told, fit.told.keepers
        states = told.get_state() if keepers else []
        found = self._evaluate(feed, told, lambda: any(keeper.is_told_to_stop for keeper in keepers))
        if found is not None:
            return found
        told.undo()
        told.set_state(states)
        for keeper in keepers:
            keeper.between(fit, epoch_ended=False)
        raise AssertionError("a keeper that is told to stop stops")

    def _finalize(self) -> None:
        """In place. Where the optimizer averages the weights, end with the averages, as Keras does."""
        optimizer = self._ready().optimizer
        if optimizer.use_ema and optimizer.built and optimizer.steps:
            trained = {id(variable) for variable in optimizer.targets}
            weights = self.trainable_weights  # type: ignore[attr-defined]  # a Layer
            optimizer.finalize_variable_values([each for each in weights if id(each) in trained])

    def _epoch(self, training: LocalTraining | None, fit: Fit, microbatches: int) -> dict[str, float]:
        """The rest of a pass over the data; the metrics over all of its samples."""
        assert self.seed is not None
        told, position = fit.told, fit.position
        begins, ends = told.listening("on_train_batch_begin"), told.listening("on_train_batch_end")
        keepers = told.keepers
        is_over = self.stop_training and not position.is_between_epochs
        if position.is_between_epochs:
            position.begin_epoch(self._iterations())
            for metric in self.metrics:
                metric.reset_state()
        batches = fit.feed.epoch(position.first_step, self.seed, position.batch)
        for batch in () if is_over else batches:
            number, logs = position.batch, position.logs
            for callback in begins:
                callback.on_train_batch_begin(number, logs)
            if training is None:
                logs = {name: float(value) for name, value in self.train_step(batch).items()}
            else:
                sums = training.step(batch, self.seed, microbatches)
                sums = position.add(sums)
                if ends:
                    logs = results(training.reports, sums)
            position.end_batch(logs)
            for callback in ends:
                callback.on_train_batch_end(number, dict(logs))
            for keeper in keepers:
                keeper.between(fit, epoch_ended=False)
            if self.stop_training:
                break
        if training is not None and position.sums is not None:
            return results(training.reports, position.sums)
        return position.logs

    def train_on_batch(
        self,
        x: Any,
        y: Any = None,
        sample_weight: Any = None,
        class_weight: Mapping[int, float] | None = None,
        return_dict: bool = False,
    ) -> Any:
        """One step on these samples; the metrics of this batch."""
        if class_weight is not None:
            sample_weight = with_class_weight(y, sample_weight, class_weight)
        self.seed = random.next_seed() if self.seed is None else self.seed
        feed = as_feed(x, y, sample_weight, _rows(x), None, shuffle=False)
        training = self._training(feed)
        batch = next(iter(feed.epoch(0, self.seed)))
        if training is None:
            found = {name: float(value) for name, value in self.train_step(batch).items()}
        else:
            found = results(training.reports, training.step(batch, self.seed, 1))
        return found if return_dict else _listed(found)

    def train_step(self, data: Any) -> dict[str, Any]:
        """One step on a batch `(x, y)` or `(x, y, sample_weight)`; override it for a training loop of one's
        own.

        A `train_step` of one's own runs operation by operation, with a `GradientTape`, and on this machine
        only.
        """
        self.seed = random.next_seed() if self.seed is None else self.seed
        training = self._training(None)
        assert training is not None
        return results(training.reports, training.step(data, self.seed, 1))

    # -- evaluation ---------------------------------------------------------------------------------------

    def evaluate(
        self,
        x: Any = None,
        y: Any = None,
        batch_size: int | None = None,
        verbose: int | str = "auto",
        sample_weight: Any = None,
        steps: int | None = None,
        callbacks: Iterable[Callback] | None = None,
        return_dict: bool = False,
    ) -> Any:
        """The loss and metrics over all samples: a number, a list in the order of `metrics_names`, or by
        name."""
        feed = as_feed(x, y, sample_weight, batch_size, steps, shuffle=False)
        bars: list[Any] = self._progress(verbose)
        told = CallbackList([*bars, *(callbacks or ())], self, {"steps": feed.steps})  # type: ignore[arg-type]
        for bar in bars:
            bar.on_epoch_begin(0)
        with told.undoing():
            found = self._evaluate(feed, told)
        assert found is not None
        for bar in bars:
            bar.on_epoch_end(0, found)
        return found if return_dict else _listed(found)

    def test_on_batch(
        self, x: Any, y: Any = None, sample_weight: Any = None, return_dict: bool = False
    ) -> Any:
        """The metrics of these samples."""
        return self.evaluate(x, y, _rows(x), 0, sample_weight, return_dict=return_dict)

    def _evaluate(
        self, feed: Feed, told: CallbackList, stops: Callable[[], bool] = lambda: False
    ) -> dict[str, float] | None:
        """The metrics of the data; None if `stops` said so after a batch."""
        told.tell("on_test_begin", None)
        training = self._training(feed, evaluates=True)
        assert training is not None
        parts: dict[tuple[int, int], Sums] = {}
        for number, batch in enumerate(feed.in_order()):
            told.tell("on_test_batch_begin", number, None)
            parts[0, number] = training.evaluate(batch)
            told.tell("on_test_batch_end", number, None)
            if stops():
                return None
        found = results(training.reports, combine(parts, len(parts), np.add))
        told.tell("on_test_end", found)
        return found

    # -- prediction ---------------------------------------------------------------------------------------

    def predict(
        self,
        x: Any,
        batch_size: int | None = None,
        verbose: int | str = "auto",
        steps: int | None = None,
        callbacks: Iterable[Callback] | None = None,
    ) -> Any:
        """The outputs for all samples, as arrays."""
        feed = as_feed(x, None, None, batch_size, steps, shuffle=False)
        told = CallbackList(callbacks or (), self, {"steps": feed.steps})  # type: ignore[arg-type]  # a Model
        parts = []
        with told.undoing():
            told.tell("on_predict_begin", None)
            for number, batch in enumerate(feed.in_order()):
                told.tell("on_predict_batch_begin", number, None)
                inputs = batch[0]
                parts.append(map_structure(np.asarray, self(inputs, training=False)))  # type: ignore[operator]
                told.tell("on_predict_batch_end", number, {"outputs": parts[-1]})
            told.tell("on_predict_end", None)
        columns = [np.concatenate(arrays) for arrays in zip(*map(leaves, parts), strict=True)]
        places = iter(columns)
        return map_structure(lambda _: next(places), parts[0])

    def predict_on_batch(self, x: Any) -> Any:
        """The outputs for these samples."""
        return self.predict(x, _rows(x), 0)

    # -- for training loops of one's own ------------------------------------------------------------------

    def compute_loss(
        self, x: Any = None, y: Any = None, y_pred: Any = None, sample_weight: Any = None
    ) -> Any:
        """The loss that the model was compiled with, and what its layers add, as a scalar tensor."""
        compiled = self._ready()
        outputs, trues = leaves(y_pred), leaves(y)
        total: Any = None
        for i, loss in enumerate(compiled.losses):
            if loss is not None:
                value = loss(trues[i], outputs[i], sample_weight) * compiled.weights[i]
                total = value if total is None else total + value
        for penalty in self.losses:  # type: ignore[attr-defined]  # a Layer
            total = penalty if total is None else total + penalty
        if total is None:
            raise ConfigurationError(
                "the model has no loss: compile it with one, or call add_loss in a layer"
            )
        return total

    @property
    def metrics(self) -> list[Any]:
        """The metrics that the model was compiled with."""
        return [] if self._compiled is None else [each.metric for each in self._compiled.measured]

    @property
    def metrics_names(self) -> list[str]:
        """The names of what `evaluate` gives."""
        return ["loss", *(metric.name for metric in self.metrics)]

    # -- parts --------------------------------------------------------------------------------------------

    def _ready(self) -> Compiled:
        if self._compiled is None:
            raise ConfigurationError(
                'the model is not compiled: call compile first, such as model.compile("adam", "mse")'
            )
        return self._compiled

    def _training(self, feed: Feed | None, *, evaluates: bool = False) -> LocalTraining | None:
        """The state of training; None where a `train_step` of one's own does it all."""
        self._ready()
        if feed is not None:
            self._see(feed)
        if type(self).train_step is not Trainer.train_step and not evaluates:
            return None
        if self._local is None or not self._local.fits(self):  # type: ignore[arg-type]  # a Model
            self._local = LocalTraining(self)  # type: ignore[arg-type]  # a Model
        return self._local

    def _see(self, feed: Feed) -> None:
        """In place. Build the model for data like these, if it has not been."""
        inputs = feed.first()[0]
        if not self.built:  # type: ignore[attr-defined]  # a Layer
            self(map_structure(np.asarray, inputs))  # type: ignore[operator]
        compiled = self._ready()
        if not compiled.losses:
            compiled.resolve(self.output_shape)  # type: ignore[attr-defined]  # a Model

    def _iterations(self) -> int:
        return int(self._ready().optimizer.steps)

    def _validation(self, data: Any, batch_size: int | None, steps: int | None) -> Feed | None:
        if data is None:
            return None
        return as_feed(*validation_parts(data), batch_size, steps, shuffle=False)

    @staticmethod
    def _progress(verbose: int | str) -> list[ProgbarLogger]:
        level = 1 if verbose == "auto" else int(verbose)
        return [ProgbarLogger(level)] if level else []


def _listed(found: Mapping[str, float]) -> Any:
    values = list(found.values())
    return values[0] if len(values) == 1 else values


def _rows(x: Any) -> int:
    first = leaves(x)[0]
    return len(first.array if isinstance(first, Tensor) else first)
