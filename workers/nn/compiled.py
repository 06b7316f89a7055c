"""What `compile` was given, and what it means for each output of the model."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from storage.errors import ConfigurationError
from workers.nn import losses, metrics
from workers.nn.lookup import as_json, serialize
from workers.nn.tensor import map_structure

if TYPE_CHECKING:
    from workers.nn.losses import Loss
    from workers.nn.metrics import Metric


@dataclass(frozen=True, slots=True)
class Measured:
    """A metric of one output; sample weights count only for `weighted` ones, as in Keras."""

    output: int
    metric: Metric
    weighted: bool


@dataclass(slots=True)
class Compiled:
    """How a model is trained. `loss` and the metrics are as the user gave them until `resolve`."""

    optimizer: Any
    loss: Any
    loss_weights: Any
    metrics: Any
    weighted_metrics: Any
    losses: list[Loss | None] = field(default_factory=list)
    """One for each output; None for one that is not trained."""
    weights: list[float] = field(default_factory=list)
    """What each output's loss is multiplied by."""
    measured: list[Measured] = field(default_factory=list)
    """The metrics in the order in which they are reported."""

    def resolve(self, output_shape: Any) -> None:
        """In place. Find the losses and metrics for outputs of these shapes.

        Raises ConfigurationError for unknown names, and names that two metrics have.
        """
        names = list(output_shape) if isinstance(output_shape, dict) else None
        several = names is not None or isinstance(output_shape, list) or _is_nested(output_shape)
        count = len(output_shape) if several else 1
        shapes = [output_shape] if not several else list(output_shape.values() if names else output_shape)
        self.losses = [
            None if loss is None else losses.get(loss)
            for loss in _per_output(self.loss, count, names, "losses")
        ]
        weights = _per_output(self.loss_weights, count, names, "loss_weights")
        self.weights = [1.0 if weight is None else float(weight) for weight in weights]
        self.measured = []
        for given, weighted in ((self.metrics, False), (self.weighted_metrics, True)):
            if count == 1:
                per_output = [next(iter(given.values())) if isinstance(given, dict) else given]
            else:
                per_output = _per_output(given or None, count, names, "metrics")
            for i, items in enumerate(per_output):
                for item in items if isinstance(items, list | tuple) else [] if items is None else [items]:
                    metric = metrics.get(item)
                    metric.build(shapes[i])
                    self.measured.append(Measured(i, metric, weighted))
        found = ["loss", *(each.metric.name for each in self.measured)]
        if len(set(found)) != len(found):
            raise ConfigurationError(f"compile: two metrics have the same name in {found}")

    def as_given(self) -> dict[str, Any]:
        """What `compile` was given, as JSON values: names stay names. `config` tells what became of it."""
        names = ("loss", "loss_weights", "metrics", "weighted_metrics")
        given = {name: map_structure(_instance, getattr(self, name)) for name in names}
        written = {name: as_json(value, f"compile: {name}") for name, value in given.items()}
        return {
            "optimizer": serialize(self.optimizer),
            **{name: value or None for name, value in written.items()},
            "run_eagerly": False,
            "steps_per_execution": 1,
            "jit_compile": False,
        }

    def config(self) -> dict[str, Any]:
        """Optimizer, losses and metrics as JSON values, as `compile` takes them."""
        several = len(self.losses) > 1
        loss = [serialize(loss) for loss in self.losses]
        config: dict[str, Any] = {
            "optimizer": serialize(self.optimizer),
            "loss": loss if several else loss[0],
        }
        if several:
            config["loss_weights"] = self.weights
        for key, weighted in (("metrics", False), ("weighted_metrics", True)):
            each = [
                [serialize(m.metric) for m in self.measured if m.output == i and m.weighted is weighted]
                for i in range(len(self.losses))
            ]
            if any(each) or key == "metrics":
                config[key] = each if several else each[0]
        return config


def _instance(value: Any) -> Any:
    return value() if isinstance(value, type) else value


def _is_nested(shape: Any) -> bool:
    return any(n is not None and not isinstance(n, int) for n in shape)


def _per_output(given: Any, count: int, names: list[str] | None, what: str) -> list[Any]:
    """What was given for each output, in their order; one thing for the only output."""
    if given is None:
        return [None] * count
    if count == 1 and not (isinstance(given, list | tuple) and len(given) == 1):
        return [given]
    if isinstance(given, dict) and "class_name" not in given:
        if names is None or not set(given) <= set(names):
            raise ConfigurationError(f"compile: {what} for {sorted(given)}, but the outputs are {names}")
        return [given.get(name) for name in names]
    if not isinstance(given, list | tuple):
        return [given] * count
    if len(given) != count:
        raise ConfigurationError(f"compile: {len(given)} {what} were given for {count} outputs")
    return list(given)
