"""What a metric is: rows of sums over samples, which microbatches, workers and steps add up.

Source: Keras 3 `keras.metrics`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Self

import numpy as np

from storage.errors import ConfigurationError
from workers import reports
from workers.nn.lookup import deserialize, serialize, snake_case
from workers.nn.losses.base import floating
from workers.nn.losses.reduction import per_sample
from workers.nn.tensor import FLOATX, Tensor
from workers.nn.variables import Variable

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Sequence

    from numpy.typing import ArrayLike, DTypeLike

    from workers.nn.numerics import Array
    from workers.nn.tensor import Dims


class Metric:
    """Base of the metrics.

    Training asks for `sums` alone, and `report` says what they mean; a metric of one's own that gives one
    value per sample, `values(y_true, y_pred)` on arrays, is their mean. By hand, `update_state`, `result`
    and `reset_state` keep the sums of all samples so far; a subclass may give these instead, over variables
    of `add_variable`, and then cannot be used in training.
    """

    def __init__(self, dtype: DTypeLike | None = None, name: str | None = None) -> None:
        self.name = name or snake_case(type(self).__name__)
        self.dtype = np.dtype(dtype or FLOATX).name
        self._variables: list[Variable] = []
        self._state: Variable | None = None

    # -- what training asks -------------------------------------------------------------------------------

    def values(self, y_true: Array, y_pred: Array) -> Array:
        """One value per sample, or several, whose mean is taken."""
        raise self._unfit()

    def build(self, y_pred: Dims) -> None:
        """In place. Take notice of the shape of predictions, where the number of rows depends on it."""

    @property
    def rows(self) -> int:
        """The number of rows of `sums`."""
        return 1

    def sums(
        self,
        y_true: Array,
        y_pred: Array,
        sample_weight: ArrayLike | None = None,
        mask: ArrayLike | None = None,
    ) -> Array:
        """What these samples add: shape (rows, 2), float64. Places where `mask` is 0 have no weight."""
        values = self.values(y_true, y_pred)
        return np.array([sum_and_weight(values, combined(sample_weight, mask))])

    def report(self) -> reports.Report:
        """What the rows mean, for `workers.reports`. ConfigurationError if there are none."""
        if type(self).values is Metric.values:
            raise self._unfit()
        return reports.mean(self.name)

    def _unfit(self) -> ConfigurationError:
        return ConfigurationError(
            f"metric {self.name!r} ({type(self).__name__}) keeps a state of its own, which cannot be "
            "added up over workers: give it values(y_true, y_pred), one value per sample, to use it "
            "in training"
        )

    # -- by hand ------------------------------------------------------------------------------------------

    def add_variable(
        self,
        shape: Sequence[int] = (),
        initializer: Any = "zeros",
        dtype: DTypeLike | None = None,
        aggregation: str = "sum",
        name: str | None = None,
    ) -> Variable:
        """A new variable of the state, to be assigned to in `update_state`. Only sums can be aggregated."""
        if aggregation != "sum":
            raise ConfigurationError(
                f"metric {self.name!r}: aggregation {aggregation!r}; only 'sum' is there"
            )
        variable = Variable(initializer, shape, dtype or self.dtype, trainable=False, name=name or "variable")
        self._variables.append(variable)
        return variable

    def add_weight(
        self,
        shape: Sequence[int] = (),
        initializer: Any = "zeros",
        dtype: DTypeLike | None = None,
        name: str | None = None,
    ) -> Variable:
        """`add_variable`, under its older name."""
        return self.add_variable(shape, initializer, dtype, name=name)

    @property
    def variables(self) -> list[Variable]:
        """The state."""
        return list(self._variables)

    def update_state(self, y_true: Any, y_pred: Any, sample_weight: Any = None) -> None:
        """In place. Take these samples into the state."""
        predictions = np.asarray(y_pred)
        self.build(predictions.shape)
        found = self.sums(np.asarray(y_true), predictions, sample_weight, getattr(y_pred, "mask", None))
        self._add(found)

    def result(self) -> Any:
        """The value so far: a float, or an array of several; 0 before the first sample."""
        if self._state is None or not self._state.array.any():
            return 0.0
        found = reports.result(self.report(), self._state.array)
        return found if found.ndim else float(found)

    def reset_state(self) -> None:
        """In place. Forget all samples."""
        for variable in self._variables:
            variable.assign(np.zeros(variable.spec.dims))

    def merge_state(self, metrics: Iterable[Metric]) -> None:
        """In place. Add the states of other metrics of this kind."""
        for metric in metrics:
            if type(metric) is not type(self) or metric.get_config() != self.get_config():
                raise ConfigurationError(f"metric {self.name!r} cannot take in another one, {metric.name!r}")
            if metric._state is not None:
                self._add(metric._state.array)
            own = [variable for variable in self._variables if variable is not self._state]
            others = [variable for variable in metric._variables if variable is not metric._state]
            for variable, other in zip(own, others, strict=True):
                variable.assign(variable.array + other.array)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        """`update_state`, and then `result`."""
        self.update_state(*args, **kwargs)
        return self.result()

    def remade(self, shape: Sequence[int]) -> Variable:
        """In place. The variable of the sums, as it is once samples were seen."""
        if self._state is None:
            self._state = self.add_variable(shape, dtype=np.float64, name="sums")
        return self._state

    def _add(self, sums: Array) -> None:
        self.remade(sums.shape)
        assert self._state is not None
        if self._state.spec.shape != sums.shape:
            raise ConfigurationError(
                f"metric {self.name!r} has seen predictions of another shape: reset it by making a new one"
            )
        self._state.assign(self._state.array + sums)

    # -- settings -----------------------------------------------------------------------------------------

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {"name": self.name, "dtype": self.dtype}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """A metric of these settings."""
        return cls(**config)


class Mean(Metric):
    """The mean of values that are given, `update_state(values)`: of several values a sample, their mean."""

    def __init__(self, name: str | None = "mean", dtype: DTypeLike | None = None) -> None:
        super().__init__(dtype, name)

    def update_state(self, values: Any, sample_weight: Any = None) -> None:  # type: ignore[override]  # as in Keras
        """In place. Take these values into the state."""
        self._add(np.array([sum_and_weight(np.asarray(values), combined(sample_weight, None))]))

    def report(self) -> reports.Report:
        """What the row means."""
        return reports.mean(self.name)


class Sum(Metric):
    """The sum of values that are given: `update_state(values)`."""

    def __init__(self, name: str | None = "sum", dtype: DTypeLike | None = None) -> None:
        super().__init__(dtype, name)

    def update_state(self, values: Any, sample_weight: Any = None) -> None:  # type: ignore[override]  # as in Keras
        """In place. Take these values into the state."""
        found = np.asarray(values, np.float64)
        if sample_weight is not None:
            found = found * per_sample(np.asarray(sample_weight, np.float64), found.shape)
        self._add(np.array([[found.sum(), 1]]))

    def result(self) -> Any:
        """The sum so far."""
        return 0.0 if self._state is None else float(self._state.array[0, 0])


class MeanMetricWrapper(Metric):
    """The mean of what a function of (y_true, y_pred) gives for each sample; it gets tensors.

    `kwargs` are further arguments of the function.
    """

    def __init__(
        self,
        fn: Callable[..., Any],
        name: str | None = None,
        dtype: DTypeLike | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(dtype, name or getattr(fn, "__name__", None))
        self.fn = fn
        self.kwargs = kwargs

    def values(self, y_true: Array, y_pred: Array) -> Array:
        """What the function gives."""
        return np.asarray(self.fn(Tensor(y_true), Tensor(floating(y_pred)), **self.kwargs))

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values; the function is its name."""
        return {**super().get_config(), "fn": serialize(self.fn), **self.kwargs}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Self:
        """A metric of these settings; ConfigurationError if its function is not known."""
        return cls(**{**config, "fn": deserialize("metric", config["fn"], {})})


def combined(sample_weight: ArrayLike | None, mask: ArrayLike | None) -> Array | None:
    """One weight for each sample or place, of sample weights and a mask; None if there are neither."""
    if mask is None:
        return None if sample_weight is None else np.asarray(sample_weight, np.float64)
    found = np.asarray(mask, np.float64)
    if sample_weight is None:
        return found
    weight = np.asarray(sample_weight, np.float64)
    if weight.ndim <= found.ndim:
        return found * per_sample(weight, found.shape)
    return per_sample(found, weight.shape) * weight


def sum_and_weight(values: Array, weight: Array | None) -> tuple[float, float]:
    """The weighted sum of values, and the sum of the weights.

    Of several values a sample (all axes but the first) the mean is taken, and so it is of their weights.
    """
    if values.ndim == 0:
        values = values.reshape(1)
    places = float(np.prod(values.shape[1:]))
    if weight is None:
        return float(values.sum(dtype=np.float64)) / places, float(len(values))
    if weight.ndim > values.ndim and weight.shape[-1] == 1:
        weight = weight[..., 0]
    weight = np.broadcast_to(per_sample(weight, values.shape), values.shape)
    return float((values * weight).sum(dtype=np.float64)) / places, float(
        weight.sum(dtype=np.float64)
    ) / places
