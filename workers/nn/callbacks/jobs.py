"""The callbacks of a job: on a worker, and as a function of what they remember and an epoch's metrics."""

from __future__ import annotations

import copy
import json
from typing import TYPE_CHECKING, Any, TypeGuard

import cloudpickle

from storage.errors import ConfigurationError, UserCodeError
from workers.course import Answer
from workers.nn.callbacks.base import Callback, CallbackList, StateKeeper
from workers.nn.callbacks.checkpoints import ModelCheckpoint
from workers.nn.callbacks.stopping import EarlyStopping, TerminateOnNaN
from workers.nn.lookup import check
from workers.nn.variables import Variable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from workers.course import Question
    from workers.engine import Flat
    from workers.nn.engine import ModelEngine
    from workers.nn.model import Model
    from workers.nn.numerics import Array

STATE_NBYTES = 32 * 1024
"""What all callbacks of a job can remember, as JSON."""

_MOMENTS = ("on_train_begin", "on_epoch_begin", "on_epoch_end", "on_train_end")


def of_job(callbacks: Sequence[Callback]) -> list[Callback]:
    """The callbacks that a job asks at the end of each epoch.

    `TerminateOnNaN` is none of them, because a job judges every step by itself. Raises ConfigurationError for
    one that a job cannot serve: batches and evaluations are computed by many workers at once.
    """
    asked = []
    for callback in callbacks:
        check(isinstance(callback, Callback), f"callbacks: {callback!r} is no nn.callbacks.Callback")
        name = type(callback).__name__
        check(not callback.observes, f"{name} writes down what happens, which no worker sees: see `fit`")
        if isinstance(callback, TerminateOnNaN):
            continue
        if isinstance(callback, ModelCheckpoint | StateKeeper):
            raise ConfigurationError(
                f"{name}: a job saves by itself, and goes on from there: give it checkpoints=Checkpoints(...)"
                ", and save the model that comes of it"
            )
        for moment in [m for m in dir(Callback) if m.startswith("on_") and m not in _MOMENTS]:
            if getattr(type(callback), moment) is not getattr(Callback, moment):
                raise ConfigurationError(
                    f"{name}.{moment}: the callbacks of a job are told of epochs alone, as its batches are "
                    "computed by many workers at once; use the model's own fit for it"
                )
        asked.append(callback)
    keeping = [each for each in asked if keeps_best(each)]
    check(len(keeping) <= 1, "callbacks: only one EarlyStopping can have restore_best_weights")
    return asked


def keeps_best(callback: Callback) -> TypeGuard[EarlyStopping]:
    """Whether it has the weights of its best epoch kept."""
    return isinstance(callback, EarlyStopping) and callback.restore_best_weights


class JobCallbacks:
    """The callbacks of a job, with a model of their own to look at and to say what they want by."""

    def __init__(self, engine: ModelEngine, callbacks: Sequence[Callback], epochs: int, steps: int) -> None:
        self._engine = engine
        self.callbacks = of_job(callbacks)
        self._params = {"verbose": 0, "epochs": epochs, "steps": steps}
        self._keeping = next((each for each in self.callbacks if keeps_best(each)), None)
        self._told: CallbackList | None = None
        self._rate: float | None = None

    @property
    def keeps_best(self) -> bool:
        """Whether the state has to hold the weights of the best epoch, too."""
        return self._keeping is not None

    def names(self) -> list[str]:
        """What they are, in order: a part of the run's identity."""
        return [type(callback).__name__ for callback in self.callbacks]

    def ask(self, question: Question, params: Flat) -> Answer:
        """Tell them that an epoch has ended or begins, with the model at these parameters.

        Raises ConfigurationError if one wants what a job cannot give: other weights, more memory.
        """
        told, first = self._told or self._begin(), self._told is None
        self._told = told
        model = self._model
        weights = list(self._engine.layout.views(params).values())
        for variable, view in zip(model.named_variables().values(), weights, strict=True):
            variable.assign(view)
        self._prepare(question)
        if first or question.state is None:
            told.tell("on_train_begin", None)
        if question.state is not None:
            told.set_state(question.state)
        nothing: list[Array] = []
        if self._keeping is not None:
            self._keeping.best_weights = None if question.kept is None else nothing
        before, logs = self._memories(), dict(question.logs)
        if question.ended is not None:
            told.tell("on_epoch_end", question.ended, logs)
        stop = model.stop_training
        if question.begins is not None and not stop:
            told.tell("on_epoch_begin", question.begins, None)
        self._check_is_remembered(before)
        self._check_weights(weights)
        kept = self._keeping is not None and self._keeping.best_weights not in (None, nothing)
        return Answer(self._state(told), self._knobs(), kept, stop or model.stop_training, logs)

    # -- parts --------------------------------------------------------------------------------------------

    def _begin(self) -> CallbackList:
        """A copy of the model: what is assigned to the engine's would be taken for what a run begins with."""
        self._model: Model = copy.deepcopy(self._engine.model)
        self._rate = self._knobs().get("learning_rate")
        return CallbackList(self.callbacks, self._model, self._params)

    def _prepare(self, question: Question) -> None:
        optimizer = self._model.optimizer
        optimizer.steps = question.step
        rate = question.knobs.get("learning_rate", self._rate)
        if rate is not None:
            optimizer.learning_rate = rate
        self._model.stop_training = False

    def _knobs(self) -> dict[str, float]:
        """What they have set; the rate of a schedule is the optimizer's own affair."""
        rate = self._model.optimizer.learning_rate
        return {"learning_rate": float(rate)} if isinstance(rate, Variable) else {}

    def _memories(self) -> list[dict[str, bytes]]:
        """The attributes of each callback that it does not say it remembers."""
        return [_forgotten(callback) for callback in self.callbacks]

    def _check_is_remembered(self, before: list[dict[str, bytes]]) -> None:
        for callback, old, new in zip(self.callbacks, before, self._memories(), strict=True):
            changed = sorted(name for name in old.keys() | new.keys() if old.get(name) != new.get(name))
            if changed:
                raise ConfigurationError(
                    f"{type(callback).__name__} changed its attribute {changed[0]!r}, which the next epoch's "
                    f"worker would not know of: list it in the class, remembers = ({changed[0]!r},)"
                )

    def _check_weights(self, weights: Sequence[Array]) -> None:
        for variable, view in zip(self._model.named_variables().values(), weights, strict=True):
            if variable.numpy().tobytes() != view.tobytes():
                raise ConfigurationError(
                    f"a callback changed the variable {variable.path!r}, which those of a job cannot: use "
                    "the model's own fit for it"
                )

    def _state(self, told: CallbackList) -> list[dict[str, Any]]:
        state = told.get_state()
        for callback, each in zip(self.callbacks, state, strict=True):
            try:
                json.dumps(each, allow_nan=False)
            except (TypeError, ValueError) as error:
                raise ConfigurationError(
                    f"{type(callback).__name__} remembers what is no JSON value: {error}"
                ) from error
        if (nbytes := len(json.dumps(state))) > STATE_NBYTES:
            raise ConfigurationError(
                f"the callbacks remember {nbytes} bytes, of which a job keeps {STATE_NBYTES} at most"
            )
        return state


def _forgotten(callback: Callback) -> dict[str, bytes]:
    known = {*callback.remembers, "model", "params", "best_weights"}
    found = {}
    for name, value in vars(callback).items():
        if name not in known:
            try:
                found[name] = cloudpickle.dumps(value)
            except Exception as error:
                raise UserCodeError(f"{type(callback).__name__}.{name} cannot be pickled: {error}") from error
    return found
