"""Layers around other layers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from workers.nn import ops
from workers.nn.layers.base import Layer
from workers.nn.layers.registry import get, serialize
from workers.nn.lookup import check
from workers.nn.tensor import map_structure

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

_MERGES: dict[str | None, Callable[[Any, Any], Any]] = {
    "concat": lambda a, b: ops.concatenate([a, b], axis=-1),
    "sum": lambda a, b: a + b,
    "mul": lambda a, b: a * b,
    "ave": lambda a, b: (a + b) / 2,
    None: lambda a, b: (a, b),
}


class Bidirectional(Layer):
    """A recurrent layer in both directions of time, and the outputs of both put together.

    Both are copies of `layer`, with weights of their own; `backward_layer` gives another for the way back.
    `merge_mode`: "concat", "sum", "mul", "ave", or None for a tuple of both. Of `initial_state`, the first
    half is for the way forward. A step that the mask leaves out gives zeros.
    """

    supports_masking = True

    def __init__(
        self,
        layer: Any,
        merge_mode: str | None = "concat",
        weights: Sequence[Any] | None = None,
        backward_layer: Any = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check(
            all(hasattr(each, "go_backwards") for each in (layer, backward_layer or layer)),
            f"Bidirectional: give recurrent layers, such as nn.LSTM(64), not {layer!r}",
        )
        check(
            merge_mode in _MERGES,
            f"Bidirectional: merge_mode {merge_mode!r} is not one of {', '.join(map(str, _MERGES))}",
        )
        self.merge_mode = merge_mode
        self.forward_layer = _copy(layer, "forward_")
        self.backward_layer = backward_layer or _copy(layer, "backward_", go_backwards=not layer.go_backwards)
        for name in ("return_sequences", "return_state"):
            check(
                getattr(self.forward_layer, name) == getattr(self.backward_layer, name),
                f"Bidirectional: {name} of layer and of backward_layer differ",
            )
        check(
            self.forward_layer.go_backwards != self.backward_layer.go_backwards,
            "Bidirectional: one of layer and backward_layer must have go_backwards=True",
        )
        self.return_sequences = layer.return_sequences
        self.return_state = layer.return_state
        for each in (self.forward_layer, self.backward_layer):
            each.zero_output_for_mask = self.return_sequences
        self._initial_weights = weights

    def build(self, input_shape: Any) -> None:
        """Build both layers."""
        self.forward_layer.build(input_shape)
        self.backward_layer.build(input_shape)
        if self._initial_weights is not None:
            self.set_weights(self._initial_weights)

    def call(
        self, sequences: Any, initial_state: Any = None, mask: Any = None, training: bool = False
    ) -> Any:
        """The outputs put together; with `return_state` a tuple of them and the states of both."""
        halves: list[Any] = [None, None]
        if initial_state is not None:
            half = len(initial_state) // 2
            halves = [initial_state[:half], initial_state[half:]]
        found = [
            layer(sequences, initial_state=state, mask=mask, training=training)
            for layer, state in zip((self.forward_layer, self.backward_layer), halves, strict=True)
        ]
        states: list[Any] = []
        if self.return_state:
            states = [state for _, *own in found for state in own]
            found = [output for output, *_ in found]
        if self.return_sequences:
            found[1] = ops.flip(found[1], axis=1)
        merge: Any = _MERGES[self.merge_mode]
        output = merge(*found)
        if not self.return_state:
            return output
        return (*output, *states) if self.merge_mode is None else (output, *states)

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """That of the input, if all outputs are given."""
        of_output = mask if self.return_sequences else None
        outputs = (of_output, of_output) if self.merge_mode is None else (of_output,)
        if self.return_state:
            count = len(self.forward_layer.compute_mask(inputs, mask)) - 1
            return (*outputs, *[None] * (2 * count))
        return outputs if self.merge_mode is None else of_output

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {
            "merge_mode": self.merge_mode,
            "layer": serialize(self.forward_layer),
            "backward_layer": serialize(self.backward_layer),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> Bidirectional:
        """A new layer of these settings."""
        layers = {key: get(config[key]) for key in ("layer", "backward_layer") if config.get(key)}
        return cls(**{**config, **layers})


def _copy(layer: Layer, prefix: str, **changes: Any) -> Any:
    """A layer of the same settings, with weights of its own."""
    name = prefix + layer.name.removeprefix(prefix)
    return type(layer).from_config({**layer.get_config(), "name": name, **changes})


class TimeDistributed(Layer):
    """A layer applied to every time step: axis 1 of the input is time."""

    supports_masking = True

    def __init__(self, layer: Layer, **kwargs: Any) -> None:
        super().__init__(**kwargs)
        check(isinstance(layer, Layer), f"TimeDistributed: give a layer, such as nn.Dense(8), not {layer!r}")
        self.layer = layer

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Build the layer, for this shape of all steps."""
        check(
            len(input_shape) > 2 and None not in input_shape[1:],
            f"TimeDistributed: an input of shape {tuple(input_shape)}: give (samples, steps, ...), all known "
            "but the first",
        )
        self.layer.build((input_shape[0], *input_shape[2:]))

    def call(self, inputs: Any, training: bool = False) -> Any:
        """The layer's outputs, with time at axis 1."""
        steps = inputs.shape[1]
        outputs = self.layer(ops.reshape(inputs, (-1, *inputs.shape[2:])), training=training)
        return map_structure(lambda y: ops.reshape(y, (-1, steps, *y.shape[1:])), outputs)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {"layer": serialize(self.layer)}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> TimeDistributed:
        """A new layer of these settings."""
        return cls(**{**config, "layer": get(config["layer"])})
