"""`Sequential`: layers in a row."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from storage.errors import ConfigurationError
from workers.nn.functional import InputLayer
from workers.nn.layers.base import Layer, unique_name
from workers.nn.layers.registry import LAYERS, get, serialize
from workers.nn.lookup import check
from workers.nn.model import Functional, Model
from workers.nn.tensor import KerasTensor, Spec

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator

    from workers.nn.variables import Variable


class Sequential(Model):
    """Layers in a row. The first is `nn.Input`, a layer that was given `input_shape`, or a model that has an
    input; else the model is built when it first sees data.
    """

    def __init__(self, layers: Iterable[Any] = (), trainable: bool = True, name: str | None = None) -> None:
        super().__init__(name=name or "sequential", trainable=trainable)
        self._sequence: list[Layer] = []
        self._source: InputLayer | None = None
        self._tail: Any = None  # the spec of what the last layer gives, once it is known
        for layer in layers or ():
            self.add(layer)

    def add(self, layer: Any) -> None:
        """In place. Put a layer behind the last one."""
        if isinstance(layer, KerasTensor) and layer.history is not None:
            layer = layer.history.layer
        if isinstance(layer, InputLayer):
            check(not self._sequence, "nn.Input must be the first of the model's layers")
            check(self._source is None, "the model has an nn.Input already")
            self._begin(layer)
            return
        if not isinstance(layer, Layer):
            raise ConfigurationError(
                f"a model is made of layers, such as nn.Dense(10), not {type(layer).__name__}"
            )
        if not self._sequence and self._source is None and (source := _source_of(layer)) is not None:
            self._begin(source)
        names = {other.name for other in self._sequence}
        if not layer.is_named:
            layer.name = unique_name(layer.stem, names)
        check(layer.name not in names, f"two layers are named {layer.name!r}: give each its own name=")
        self._sequence.append(layer)
        if self._tail is not None:
            self._tail = layer.compute_output_spec(self._tail)

    def _begin(self, source: InputLayer) -> None:
        self._source = source
        self._tail = self.input_spec
        self._built_with = source.batch_shape
        self.built = True

    def pop(self) -> Layer:
        """In place. Take the last layer out."""
        check(bool(self._sequence), "the model has no layers")
        layer = self._sequence.pop()
        if self._tail is not None:
            self._tail = self.input_spec
            for each in self._sequence:
                self._tail = each.compute_output_spec(self._tail)
        return layer

    @property
    def source(self) -> InputLayer | None:
        """The `Input` that the model begins with, if it does."""
        return self._source

    @property
    def layers(self) -> list[Layer]:
        """The layers in order, without `Input`."""
        return list(self._sequence)

    def children(self) -> Iterator[tuple[str, Layer | Variable]]:
        """The layers by name, and what a subclass keeps as attributes beside them."""
        yield from ((layer.name, layer) for layer in self._sequence)
        yield from self._beside([*self._sequence, *([] if self._source is None else [self._source])])

    @property
    def input_spec(self) -> Any:
        """The spec of what goes in; ConfigurationError if it is not known yet."""
        if self._source is not None:
            return Spec((None, *self._source.shape), self._source.dtype)
        return super().input_spec

    def call(self, inputs: Any) -> Any:
        """What the last layer gives."""
        for layer in self._sequence:
            inputs = layer(inputs)
        return inputs

    def get_config(self) -> dict[str, Any]:
        """The architecture as JSON values: no weights, no compile settings."""
        return {
            "name": self.name,
            "trainable": self.trainable,
            "layers": [
                *([] if self._source is None else [serialize(self._source)]),
                *(serialize(layer) for layer in self._sequence),
            ],
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Sequential:
        """A new, uncompiled model of the same architecture."""
        layers = [get(layer) for layer in config["layers"]]
        return cls(layers, config.get("trainable", True), config["name"])


def _source_of(layer: Layer) -> InputLayer | None:
    """The `Input` that a first layer stands for: one of a known shape, or a model that has one."""
    if layer._input_shape is not None:
        return InputLayer(layer._input_shape)
    if isinstance(layer, Functional) or (isinstance(layer, Sequential) and layer.source is not None):
        spec = layer.input_spec
        if isinstance(spec, Spec):
            return InputLayer(batch_shape=spec.shape, dtype=spec.dtype)
    return None


LAYERS["Sequential"] = Sequential
