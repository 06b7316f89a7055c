"""Recurrent layers over sequences (samples, steps, features)."""

from __future__ import annotations

import math
from contextlib import nullcontext
from typing import TYPE_CHECKING, Any, ClassVar

from workers.nn import ops
from workers.nn.layers.base import Layer
from workers.nn.layers.recurrent_cells import (
    GRUCell,
    LSTMCell,
    RecurrentCell,
    SimpleRNNCell,
    StackedRNNCells,
    state_sizes,
)
from workers.nn.layers.registry import get, serialize
from workers.nn.lookup import check
from workers.nn.lookup import serialize as serialize_object

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence


class RNN(Layer):
    """A cell (or several, one on the other) applied step by step.

    Cells of the package whose activations allow it run as one operation; others are traced once a step. A
    step that the mask leaves out changes no state, and gives the output before it, or zeros with
    `zero_output_for_mask`. `go_backwards` gives the outputs in the order in which it went.
    """

    supports_masking = True

    def __init__(
        self,
        cell: Any,
        return_sequences: bool = False,
        return_state: bool = False,
        go_backwards: bool = False,
        stateful: bool = False,
        unroll: bool = False,
        zero_output_for_mask: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        check(
            not stateful,
            f"{type(self).__name__}: stateful=True is not supported, as a state between steps would depend "
            "on which worker has which samples; give initial_state instead",
        )
        self.cell: Any = StackedRNNCells(cell) if isinstance(cell, list | tuple) else cell
        check(
            isinstance(self.cell, Layer) and hasattr(self.cell, "state_size"),
            f"{type(self).__name__}: a cell is a layer with a state_size and a call (inputs, states), not "
            f"{cell!r}",
        )
        self.return_sequences = bool(return_sequences)
        self.return_state = bool(return_state)
        self.go_backwards = bool(go_backwards)
        self.stateful = False
        self.unroll = bool(unroll)
        self.zero_output_for_mask = bool(zero_output_for_mask)

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Build the cell, for this shape of the input."""
        if isinstance(self.cell, RecurrentCell):
            self.cell.build((input_shape[0], *input_shape[2:]))

    def call(
        self, sequences: Any, initial_state: Any = None, mask: Any = None, training: bool = False
    ) -> Any:
        """The last output or all of them; with `return_state` a tuple of that and the final states."""
        count = len(state_sizes(self.cell))
        initial = [] if initial_state is None else initial_state
        initial = list(initial) if isinstance(initial, list | tuple) else [initial]
        check(
            len(initial) in (0, count),
            f"{self.name}: {len(initial)} initial states were given, and there are {count}",
        )
        if isinstance(self.cell, RecurrentCell) and self.cell.is_one_operation:
            output, *states = self.cell.all_steps(
                sequences,
                initial,
                mask,
                training,
                return_sequences=self.return_sequences,
                go_backwards=self.go_backwards,
                zero_output_for_mask=self.zero_output_for_mask,
            )
        else:
            output, states = self._step_by_step(sequences, initial, mask, training)
        return (output, *states) if self.return_state else output

    def _step_by_step(
        self, sequences: Any, states: list[Any], mask: Any, training: bool
    ) -> tuple[Any, list[Any]]:
        check(
            sequences.shape[1] is not None,
            f"{self.name}: an input of shape {sequences.shape}: the number of steps must be known",
        )
        steps = range(sequences.shape[1])
        states = states or self._zeros(sequences)
        outputs: list[Any] = []
        one_mask = self.cell.same_masks() if isinstance(self.cell, RecurrentCell) else nullcontext()
        with one_mask:
            for t in reversed(steps) if self.go_backwards else steps:
                output, found = self.cell(sequences[:, t], states, training=training)
                new_states = list(found) if isinstance(found, list | tuple) else [found]
                if mask is not None:
                    counts = ops.expand_dims(mask[:, t], -1)
                    before = outputs[-1] if outputs and not self.zero_output_for_mask else None
                    output = ops.where(counts, output, ops.zeros_like(output) if before is None else before)
                    new_states = [ops.where(counts, *pair) for pair in zip(new_states, states, strict=True)]
                outputs.append(output)
                states = new_states
        return ops.stack(outputs, axis=1) if self.return_sequences else outputs[-1], states

    def _zeros(self, sequences: Any) -> list[Any]:
        """States to begin with."""
        flat = ops.reshape(sequences[:, 0], (-1, math.prod(sequences.shape[2:])))
        column = ops.zeros_like(flat[:, :1], self.dtype)
        return [ops.broadcast_to(column, (None, size)) for size in state_sizes(self.cell)]

    def compute_mask(self, inputs: Any, mask: Any = None) -> Any:
        """That of the input, if all outputs are given; states have none."""
        of_output = mask if self.return_sequences else None
        return (of_output, *[None for _ in state_sizes(self.cell)]) if self.return_state else of_output

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {"cell": serialize(self.cell)} | self._settings()

    def _settings(self) -> dict[str, Any]:
        """The layer's own settings, without its cell's."""
        names = ("return_sequences", "return_state", "go_backwards", "stateful", "unroll")
        return {name: getattr(self, name) for name in (*names, "zero_output_for_mask")}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> RNN:
        """A new layer of these settings."""
        return cls(**{**config, "cell": get(config["cell"])})


_OF_THE_LAYER = frozenset(
    {"return_sequences", "return_state", "go_backwards", "stateful", "unroll", "zero_output_for_mask"}
    | {"name", "trainable", "dtype", "activity_regularizer", "input_shape"}
)
"""Settings that are not the cell's."""


class _OfOneCell(RNN):
    """A recurrent layer that makes its cell itself: it takes the cell's settings and those of `RNN`."""

    cell_class: ClassVar[Callable[..., RecurrentCell]]

    def __init__(self, units: int, *args: Any, use_cudnn: Any = "auto", **kwargs: Any) -> None:
        own = {key: kwargs.pop(key) for key in _OF_THE_LAYER & kwargs.keys()}
        kwargs |= {key: own[key] for key in ("trainable", "dtype") if key in own}
        super().__init__(self.cell_class(units, *args, **kwargs), **own)

    @property
    def units(self) -> int:
        """The units of the output."""
        return int(self.cell.units)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        config: dict[str, Any] = self.cell.get_config() | Layer.get_config(self) | self._settings()
        regularizer = {"activity_regularizer": serialize_object(self.activity_regularizer)}
        return config | regularizer

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> _OfOneCell:
        """A new layer of these settings."""
        return cls(**config)


class SimpleRNN(_OfOneCell):
    """A fully-connected recurrent layer: settings of `SimpleRNNCell` and of `RNN`."""

    cell_class = SimpleRNNCell


class LSTM(_OfOneCell):
    """Long short-term memory: settings of `LSTMCell` and of `RNN`. `use_cudnn` is taken for Keras's sake."""

    cell_class = LSTMCell


class GRU(_OfOneCell):
    """Gated recurrent units: settings of `GRUCell` and of `RNN`. `use_cudnn` is taken for Keras's sake."""

    cell_class = GRUCell
