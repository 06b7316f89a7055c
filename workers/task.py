"""The user's job as a worker holds it: engine and data, loaded from what the coordinator shipped."""

from __future__ import annotations

import pickle
import sys
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol

from storage.errors import ConfigurationError
from storage.layout import StateArray
from workers.data import Dataset
from workers.engine import Engine, as_engine
from workers.fingerprint import difference, numeric_fingerprint
from workers.reports import reports_of
from workers.schedule import steps_per_epoch

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from workers.nn.callbacks.jobs import JobCallbacks
    from workers.schedule import Remainder


BEST = "best"
"""The array of the parameters that a callback found to be the best."""


class JobParts(Protocol):
    """The functions of a job that run on every worker."""

    @property
    def model(self) -> Callable[[], object]:
        """Makes the model or engine."""

    @property
    def data(self) -> Callable[[], Dataset]:
        """Opens the training data."""

    @property
    def validation(self) -> Callable[[], Dataset] | None:
        """Opens the validation data, if there is any."""

    @property
    def on_data_error(self) -> str:
        """ "fail" or "skip"."""

    @property
    def callbacks(self) -> Sequence[Any] | None:
        """What is asked at the end of each epoch; None: epochs mean nothing."""

    @property
    def steps(self) -> int:
        """Steps to train."""

    @property
    def batch_size(self) -> int:
        """Samples of a step."""

    @property
    def remainder(self) -> Remainder:
        """What becomes of samples that fill no batch."""


@dataclass(frozen=True, slots=True)
class Task:
    """An engine with its training and validation data."""

    engine: Engine
    data: Dataset
    validation: Dataset | None
    skips_unreadable: bool = False
    """Whether microbatches whose samples cannot be read are left out."""

    callbacks: JobCallbacks | None = None
    """What is asked at the end of each epoch."""

    @classmethod
    def load(cls, source: bytes) -> Task:
        """Load the job from what `shipped` made of it."""
        paths, loader = pickle.loads(source)
        sys.path.extend(path for path in paths if path not in sys.path)
        parts: JobParts = pickle.loads(loader)()
        engine = as_engine(parts.model())
        data = _dataset(parts.data(), "data")
        validation = _dataset(parts.validation(), "validation") if parts.validation is not None else None
        callbacks = callbacks_of(engine, parts, len(data))
        return cls(engine, data, validation, parts.on_data_error == "skip", callbacks)

    def state_arrays(self) -> tuple[StateArray, ...]:
        """The flat arrays of the training state."""
        keeps_best = self.callbacks is not None and self.callbacks.keeps_best
        return state_arrays(self.engine, keeps_best=keeps_best)

    def describe(self) -> dict[str, Any]:
        """What must be equal on all workers and attempts, and what the node's memory is sized by."""
        return {
            "arrays": [array.to_json() for array in self.state_arrays()],
            "whole": [list(ends) for ends in self.engine.optimizer.whole],
            "metrics": reports_of(self.engine),
            "engine": self.engine.config(),
            "optimizer": self.engine.optimizer.get_config(),
            "data": self.data.identity(),
            "samples": len(self.data),
            "validation": None if self.validation is None else self.validation.identity(),
            "validation_samples": 0 if self.validation is None else len(self.validation),
            "callbacks": None if self.callbacks is None else self.callbacks.names(),
            "fingerprint": numeric_fingerprint(),
        }


def shipped(loader: bytes, paths: Sequence[str]) -> bytes:
    """A job as it travels: a pickled function that returns `JobParts`, and the paths of its imports."""
    return pickle.dumps((list(paths), loader))


def state_arrays(engine: Engine, *, keeps_best: bool = False) -> tuple[StateArray, ...]:
    """The flat arrays of a training state: parameters, the optimizer's slots, the best epoch's parameters."""
    names = ["params", *(f"slots/{slot}" for slot in engine.optimizer.slots)]
    if keeps_best:
        names.append(BEST)
    return tuple(StateArray(name, engine.layout) for name in names)


def callbacks_of(engine: Engine, parts: JobParts, samples: int) -> JobCallbacks | None:
    """The callbacks of a job, or None. Raises ConfigurationError if it cannot have them."""
    if parts.callbacks is None:
        return None
    from workers.nn.callbacks.jobs import JobCallbacks
    from workers.nn.engine import ModelEngine

    if not isinstance(engine, ModelEngine):
        raise ConfigurationError("callbacks look at a workers.nn model, and this job trains another engine")
    per_epoch = max(1, steps_per_epoch(samples, parts.batch_size, parts.remainder))
    return JobCallbacks(engine, parts.callbacks, -(-parts.steps // per_epoch), per_epoch)


def _dataset(value: object, what: str) -> Dataset:
    if not isinstance(value, Dataset):
        raise ConfigurationError(
            f"the job's {what} function returned {type(value).__name__}: return a dataset, such as "
            "workers.data.ArrayDataset(x, y)"
        )
    if len(value) == 0:
        raise ConfigurationError(f"the dataset of the job's {what} function is empty")
    return value


def mismatch(expected: dict[str, Any], found: dict[str, Any], who: str) -> ConfigurationError | None:
    """Why a worker cannot take part: its job or its arithmetic differs from the first worker's."""
    if (what := difference(expected["fingerprint"], found["fingerprint"])) is not None:
        return ConfigurationError(
            f"{who} computes with other bits than the first worker: {what}; run all workers on "
            "one kind of processor with one NumPy"
        )
    for key in expected.keys() - {"fingerprint"}:
        if expected[key] != found[key]:
            return ConfigurationError(
                f"{who} loaded another {key} than the first worker: the model and data functions "
                "must give the same on every worker"
            )
    return None
