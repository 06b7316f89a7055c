"""`Estimator`: training that keeps its checkpoints in a directory, and goes on from there.

A small facade over `CheckpointManager`, for those who come from TensorFlow 1. There a `model_fn` makes a
graph once and a session runs it for each batch; here it is called once, too, and what was an operation of
the graph is a function of a batch: `train_op(features, labels)`, `loss(features, labels)`,
`predictions(features)`.
"""

from __future__ import annotations

import inspect
import itertools
import tempfile
import time
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from storage.errors import ConfigurationError
from workers.nn import random
from workers.nn.lookup import check
from workers.nn.tensor import map_structure
from workers.nn.train.manager import CheckpointManager
from workers.nn.train.reader import latest_checkpoint, load_checkpoint
from workers.nn.variables import Variable

if TYPE_CHECKING:
    import os
    from collections.abc import Callable, Iterable, Iterator, Mapping

    from workers.nn.numerics import Array
    from workers.nn.train.checkpoint import Checkpoint

_global_step: ContextVar[Variable | None] = ContextVar("global_step", default=None)


class ModeKeys:
    """What a `model_fn` is called for."""

    TRAIN = "train"
    EVAL = "eval"
    PREDICT = "infer"


@dataclass(frozen=True)
class Scaffold:
    """What a training is saved by: a `Checkpoint` of all that it needs to go on."""

    saver: Checkpoint | None = None


@dataclass(frozen=True)
class EstimatorSpec:
    """What a `model_fn` gives: functions of a batch, and how it is saved.

    `train_op(features, labels)` makes a step; it, or the function `loss`, gives the loss. `predictions` is a
    function of the features, each of `eval_metric_ops` one of features and labels.
    """

    mode: str
    predictions: Callable[..., Any] | None = None
    loss: Callable[..., Any] | None = None
    train_op: Callable[..., Any] | None = None
    eval_metric_ops: Mapping[str, Callable[..., Any]] = field(default_factory=dict)
    scaffold: Scaffold = field(default_factory=Scaffold)


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where and how often an estimator saves; by default every ten minutes and at the end.

    `save_checkpoints_steps` goes before `save_checkpoints_secs`; with neither, it saves at the end alone.
    """

    model_dir: str | None = None
    tf_random_seed: int | None = None
    save_checkpoints_steps: int | None = None
    save_checkpoints_secs: float | None = 600
    keep_checkpoint_max: int | None = 5
    keep_checkpoint_every_n_hours: float = 10000.0


class Estimator:
    """Trains what a `model_fn(features, labels, mode)` makes; it may take `params` and `config`, too.

    `features` and `labels` are those of the first batch. An `input_fn` gives batches `(features, labels)`, or
    `features`: an iterable, which `train` begins anew until it has made its steps. The checkpoint that the
    spec's scaffold names is restored before training and saved after it.
    """

    def __init__(
        self,
        model_fn: Callable[..., EstimatorSpec],
        model_dir: str | os.PathLike[str] | None = None,
        config: RunConfig | None = None,
        params: Mapping[str, Any] | None = None,
    ) -> None:
        self.config = config or RunConfig()
        self.params = dict(params or {})
        self._model_fn = model_fn
        self._model_dir = str(model_dir or self.config.model_dir or "")

    @property
    def model_dir(self) -> str:
        """Where the checkpoints are; a temporary directory where none was given."""
        if not self._model_dir:
            self._model_dir = tempfile.mkdtemp(prefix="holdfast-estimator-")
        return self._model_dir

    def train(
        self,
        input_fn: Callable[[], Iterable[Any]],
        hooks: Any = None,
        steps: int | None = None,
        max_steps: int | None = None,
    ) -> Estimator:
        """Go on from the latest checkpoint for so many steps, or to step `max_steps`; without either, to the
        end of the data."""
        check(hooks is None, "Estimator.train: hooks are not called: use what model_fn gives")
        check(steps is None or max_steps is None, "Estimator.train: give steps or max_steps, not both")
        check(all(n is None or n > 0 for n in (steps, max_steps)), "Estimator.train: give a number above 0")
        batches = _batches(input_fn, again=steps is not None or max_steps is not None)
        with _step_of(Variable(np.int64(0), trainable=False, name="global_step")) as step:
            spec, batches = self._made(batches, ModeKeys.TRAIN)
            check(spec.train_op is not None, "Estimator: model_fn gives no train_op")
            manager = self._manager(spec, step)
            manager.restore_or_initialize()
            self._train(spec, batches, manager, step, max_steps if steps is None else int(step) + steps)
        return self

    def evaluate(self, input_fn: Callable[[], Iterable[Any]], steps: int | None = None) -> dict[str, Any]:
        """The mean loss and metrics over the batches, weighted by their samples, and `global_step`."""
        with _step_of(Variable(np.int64(0), trainable=False, name="global_step")) as step:
            spec, batches = self._restored(_batches(input_fn, again=False), ModeKeys.EVAL, step)
            functions = dict(spec.eval_metric_ops) | ({} if spec.loss is None else {"loss": spec.loss})
            totals, rows = dict.fromkeys(functions, 0.0), 0
            for features, labels in itertools.islice(batches, steps):
                count = len(_first(features))
                rows += count
                for name, function in functions.items():
                    totals[name] += count * float(np.asarray(function(features, labels)))
            check(rows > 0, "Estimator.evaluate: input_fn gives no data")
            return {name: total / rows for name, total in totals.items()} | {"global_step": int(step)}

    def predict(self, input_fn: Callable[[], Iterable[Any]]) -> Iterator[Any]:
        """The predictions for each sample, one after the other."""
        with _step_of(Variable(np.int64(0), trainable=False, name="global_step")) as step:
            spec, batches = self._restored(_batches(input_fn, again=False), ModeKeys.PREDICT, step)
            check(spec.predictions is not None, "Estimator: model_fn gives no predictions")
        assert spec.predictions is not None
        for features, _ in batches:
            found = map_structure(np.asarray, spec.predictions(features))
            for i in range(len(_first(found))):
                yield map_structure(lambda array: array[i], found)  # noqa: B023 called at once

    def latest_checkpoint(self) -> str | None:
        """The path of the latest good checkpoint; None if there is none."""
        return latest_checkpoint(self.model_dir)

    def get_variable_names(self) -> list[str]:
        """The names of what is in the latest checkpoint. ConfigurationError if there is none."""
        return sorted(load_checkpoint(self.model_dir))

    def get_variable_value(self, name: str) -> Array:
        """A value in the latest checkpoint."""
        return load_checkpoint(self.model_dir).get_tensor(name)

    # -- parts --------------------------------------------------------------------------------------------

    def _made(self, batches: Iterator[Any], mode: str) -> tuple[EstimatorSpec, Iterator[Any]]:
        """What model_fn gives for the first batch, and the batches with that one."""
        first = next(batches, None)
        if first is None:
            raise ConfigurationError("Estimator: input_fn gives no data")
        features, labels = first
        given = {"features": features, "labels": labels, "mode": mode}
        given |= {"params": self.params, "config": self.config}
        taken = inspect.signature(self._model_fn).parameters
        if self.config.tf_random_seed is not None:
            random.set_seed(self.config.tf_random_seed)
        spec = self._model_fn(**{name: value for name, value in given.items() if name in taken})
        check(isinstance(spec, EstimatorSpec), f"Estimator: model_fn gave {spec!r}, not an EstimatorSpec")
        return spec, itertools.chain([first], batches)

    def _restored(
        self, batches: Iterator[Any], mode: str, step: Variable
    ) -> tuple[EstimatorSpec, Iterator[Any]]:
        spec, batches = self._made(batches, mode)
        if self._manager(spec, step).restore_or_initialize() is None:
            raise ConfigurationError(
                f"Estimator: there is no checkpoint in {self.model_dir}: call train first"
            )
        return spec, batches

    def _manager(self, spec: EstimatorSpec, step: Variable) -> CheckpointManager:
        saver = spec.scaffold.saver
        if saver is None:
            raise ConfigurationError(
                "Estimator: nothing says what is to be saved: give the spec "
                "scaffold=nn.train.Scaffold(saver=nn.train.Checkpoint(...))"
            )
        if all(variable is not step for _, variable in saver.held()):
            saver.global_step = step
        config = self.config
        return CheckpointManager(
            saver, self.model_dir, config.keep_checkpoint_max or None, config.keep_checkpoint_every_n_hours
        )

    def _train(
        self,
        spec: EstimatorSpec,
        batches: Iterator[Any],
        manager: CheckpointManager,
        step: Variable,
        last: int | None,
    ) -> None:
        assert spec.train_op is not None
        every, seconds = self.config.save_checkpoints_steps, self.config.save_checkpoints_secs
        saved, saved_at = int(step), time.monotonic()
        while last is None or int(step) < last:
            batch = next(batches, None)
            if batch is None:
                break
            before = int(step)
            spec.train_op(*batch)
            if int(step) == before:  # it leaves counting to us
                step.assign(np.int64(before + 1))
            late = every is None and seconds is not None and time.monotonic() - saved_at >= seconds
            if late or (every is not None and int(step) - saved >= every):
                manager.save(step)
                saved, saved_at = int(step), time.monotonic()
        if int(step) != saved or manager.latest_checkpoint is None:
            manager.save(step)


def get_global_step() -> Variable | None:
    """Within a `model_fn`: the step, a variable of int64 that is saved. None outside."""
    return _global_step.get()


def get_or_create_global_step() -> Variable:
    """`get_global_step`; outside of a `model_fn` a new variable."""
    return _global_step.get() or Variable(np.int64(0), trainable=False, name="global_step")


@contextmanager
def _step_of(step: Variable) -> Iterator[Variable]:
    token = _global_step.set(step)
    try:
        yield step
    finally:
        _global_step.reset(token)


def _batches(input_fn: Callable[[], Iterable[Any]], *, again: bool) -> Iterator[tuple[Any, Any]]:
    """The batches of an input_fn as (features, labels); with `again`, from the beginning at their end."""
    while True:
        is_empty = True
        for batch in input_fn():
            is_empty = False
            yield batch if isinstance(batch, tuple) else (batch, None)
        if is_empty or not again:
            return


def _first(structure: Any) -> Array:
    while isinstance(structure, dict | list | tuple):
        structure = next(iter(structure.values() if isinstance(structure, dict) else structure))
    return np.asarray(structure)
