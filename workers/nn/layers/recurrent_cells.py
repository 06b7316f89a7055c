"""One time step of recurrent layers.

A cell is a layer with a `state_size` (a number, or a list of them) and a call (inputs, states) -> (output,
new states), both lists. Cells of your own can be put into `RNN`.
"""

from __future__ import annotations

from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, ClassVar

from workers.nn import activations, ops
from workers.nn.initializers import Initializer
from workers.nn.layers.base import Layer
from workers.nn.layers.parameters import WithParameters
from workers.nn.lookup import check, is_count

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    import numpy as np

    from workers.nn.initializers import Shape, Values
    from workers.nn.variables import Variable


class RecurrentCell(WithParameters):
    """Base of the cells that come with the package; `RNN` runs them as one operation over all steps.

    Variables: `kernel` (features, gates * units), `recurrent_kernel` (units, gates * units), `bias`.
    """

    gates: ClassVar[int] = 1
    bias_initializer: Initializer
    bias_regularizer: Any
    bias_constraint: Any

    def __init__(
        self,
        units: int,
        activation: Any = "tanh",
        use_bias: bool = True,
        kernel_initializer: Any = "glorot_uniform",
        recurrent_initializer: Any = "orthogonal",
        bias_initializer: Any = "zeros",
        kernel_regularizer: Any = None,
        recurrent_regularizer: Any = None,
        bias_regularizer: Any = None,
        kernel_constraint: Any = None,
        recurrent_constraint: Any = None,
        bias_constraint: Any = None,
        dropout: float = 0.0,
        recurrent_dropout: float = 0.0,
        seed: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        kind = type(self).__name__
        check(is_count(units), f"{kind}: units must be a positive integer, not {units!r}")
        for name, rate in (("dropout", dropout), ("recurrent_dropout", recurrent_dropout)):
            check(0 <= rate < 1, f"{kind}: {name} must be from 0 to less than 1, not {rate!r}")
        self.units = units
        self.activation = activations.get(activation)
        self.use_bias = bool(use_bias)
        self.keep("kernel", kernel_initializer, kernel_regularizer, kernel_constraint)
        self.keep("recurrent", recurrent_initializer, recurrent_regularizer, recurrent_constraint)
        self.keep("bias", bias_initializer, bias_regularizer, bias_constraint)
        self.dropout = float(dropout)
        self.recurrent_dropout = float(recurrent_dropout)
        self.seed = seed
        self._masks: dict[str, Any] | None = None

    # -- what a subclass gives ----------------------------------------------------------------------------

    @property
    def state_size(self) -> Any:
        """The units of each state."""
        return self.units

    @property
    def operation(self) -> str:
        """The operation over all steps."""
        raise NotImplementedError

    @property
    def gate_activation(self) -> Any:
        """The activation of the gates; of a cell without gates its only one."""
        return self.activation

    def make_bias(self) -> Variable:
        """The bias."""
        return self.make("bias", (self.gates * self.units,))

    # -- the layer ----------------------------------------------------------------------------------------

    def build(self, input_shape: Sequence[int | None]) -> None:
        """Make the variables, for this shape of one step's input."""
        features = input_shape[-1]
        check(
            features is not None,
            f"{type(self).__name__}({self.units}) needs a known number of features, and a step of its input "
            f"has shape {tuple(input_shape)}",
        )
        width = self.gates * self.units
        self.kernel = self.make("kernel", (features or 0, width))
        self.recurrent_kernel = self.make("recurrent", (self.units, width), "recurrent_kernel")
        self.bias: Any = self.make_bias() if self.use_bias else None

    @property
    def is_one_operation(self) -> bool:
        """Whether an operation has the activations; others go step by step."""
        chosen = (self.activation, self.gate_activation)
        return None not in (activations.fused_name(each, from_output=True) for each in chosen)

    def all_steps(self, sequence: Any, states: Sequence[Any], mask: Any, training: bool, **attrs: Any) -> Any:
        """The outputs and the final states of a whole sequence (samples, steps, features)."""
        if training and self.dropout:
            sequence = ops.dropout(sequence, self.dropout, (None, 1, None))
        return ops.recurrent(
            self.operation,
            sequence,
            self.kernel,
            self.recurrent_kernel,
            self.bias,
            mask,
            states,
            activation=activations.fused_name(self.activation),
            recurrent_activation=activations.fused_name(self.gate_activation),
            recurrent_dropout=self.recurrent_dropout if training else 0.0,
            **attrs,
        )

    @contextmanager
    def same_masks(self) -> Iterator[None]:
        """While it lasts, all steps drop the same units."""
        self._masks = {}
        try:
            yield
        finally:
            self._masks = None

    def drop(self, name: str, x: Any, rate: float, training: bool) -> Any:
        """The input or the state with a share of it dropped."""
        if not training or not rate:
            return x
        masks = {} if self._masks is None else self._masks
        if name not in masks:
            masks[name] = ops.dropout(ops.ones_like(x), rate)
        return x * masks[name]

    def dropped(self, inputs: Any, state: Any, training: bool) -> tuple[Any, Any]:
        """The input and the state as the products see them."""
        return (
            self.drop("inputs", inputs, self.dropout, training),
            self.drop("state", state, self.recurrent_dropout, training),
        )

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return (
            super().get_config()
            | self.kept("kernel", "recurrent", "bias")
            | {
                "units": self.units,
                "activation": activations.serialize(self.activation),
                "use_bias": self.use_bias,
                "dropout": self.dropout,
                "recurrent_dropout": self.recurrent_dropout,
                "seed": self.seed,
            }
        )


class SimpleRNNCell(RecurrentCell):
    """h' = activation(x kernel + h recurrent_kernel + bias)."""

    @property
    def operation(self) -> str:
        """The operation over all steps."""
        return "simple_rnn"

    def call(self, inputs: Any, states: Sequence[Any], training: bool = False) -> tuple[Any, list[Any]]:
        """The output, which is the new state."""
        x, h = self.dropped(inputs, states[0], training)
        h = self.activation(ops.dense(x, self.kernel, self.bias) + ops.matmul(h, self.recurrent_kernel))
        return h, [h]


class LSTMCell(RecurrentCell):
    """Long short-term memory. States h and c; gates in the order i, f, c, o.

    `unit_forget_bias` begins with a bias of 1 for the forget gate. Source: Keras 3 `LSTMCell`.
    """

    gates = 4

    def __init__(
        self,
        units: int,
        activation: Any = "tanh",
        recurrent_activation: Any = "sigmoid",
        use_bias: bool = True,
        *,
        unit_forget_bias: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(units, activation, use_bias, **kwargs)
        self.recurrent_activation = activations.get(recurrent_activation)
        self.unit_forget_bias = bool(unit_forget_bias)

    @property
    def state_size(self) -> Any:
        """The units of both states."""
        return [self.units, self.units]

    @property
    def operation(self) -> str:
        """The operation over all steps."""
        return "lstm"

    @property
    def gate_activation(self) -> Any:
        """The activation of the gates."""
        return self.recurrent_activation

    def make_bias(self) -> Variable:
        """The bias."""
        if not self.unit_forget_bias:
            return super().make_bias()
        return self.add_weight(
            (4 * self.units,),
            _OfForgetGate(self.bias_initializer),
            regularizer=self.bias_regularizer,
            constraint=self.bias_constraint,
            name="bias",
        )

    def call(self, inputs: Any, states: Sequence[Any], training: bool = False) -> tuple[Any, list[Any]]:
        """The output, and the states h and c."""
        x, h = self.dropped(inputs, states[0], training)
        z = ops.dense(x, self.kernel, self.bias) + ops.matmul(h, self.recurrent_kernel)
        i, f, g, o = ops.split(z, 4, axis=-1)
        c = self.recurrent_activation(f) * states[1] + self.recurrent_activation(i) * self.activation(g)
        h = self.recurrent_activation(o) * self.activation(c)
        return h, [h, c]

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {
            "recurrent_activation": activations.serialize(self.recurrent_activation),
            "unit_forget_bias": self.unit_forget_bias,
        }


class GRUCell(RecurrentCell):
    """A gated recurrent unit. Gates in the order z (how much stays), r (reset), h (candidate).

    `reset_after`: the reset gate works on the product of state and kernel, which then has a bias of its own:
    the bias is (2, 3 * units); else on the state before. Source: Keras 3 `GRUCell`.
    """

    gates = 3

    def __init__(
        self,
        units: int,
        activation: Any = "tanh",
        recurrent_activation: Any = "sigmoid",
        use_bias: bool = True,
        *,
        reset_after: bool = True,
        **kwargs: Any,
    ) -> None:
        super().__init__(units, activation, use_bias, **kwargs)
        self.recurrent_activation = activations.get(recurrent_activation)
        self.reset_after = bool(reset_after)

    @property
    def operation(self) -> str:
        """The operation over all steps."""
        return "gru" if self.reset_after else "gru_reset_before"

    @property
    def gate_activation(self) -> Any:
        """The activation of the gates."""
        return self.recurrent_activation

    def make_bias(self) -> Variable:
        """The bias."""
        return self.make("bias", (2, 3 * self.units) if self.reset_after else (3 * self.units,))

    def call(self, inputs: Any, states: Sequence[Any], training: bool = False) -> tuple[Any, list[Any]]:
        """The output, which is the new state."""
        x, h = self.dropped(inputs, states[0], training)
        bias, recurrent_bias = self.bias, None
        if self.use_bias and self.reset_after:
            bias, recurrent_bias = self.bias[0], self.bias[1]
        x_gates, x_candidate = ops.split(ops.dense(x, self.kernel, bias), [2 * self.units], axis=-1)
        if self.reset_after:
            inner = ops.dense(h, self.recurrent_kernel, recurrent_bias)
            h_gates, h_candidate = ops.split(inner, [2 * self.units], axis=-1)
        else:
            h_gates = ops.matmul(h, self.recurrent_kernel[:, : 2 * self.units])
        stay, reset = ops.split(self.recurrent_activation(x_gates + h_gates), 2, axis=-1)
        if self.reset_after:
            seen = reset * h_candidate
        else:
            seen = ops.matmul(reset * h, self.recurrent_kernel[:, 2 * self.units :])
        candidate = self.activation(x_candidate + seen)
        h = stay * states[0] + (1 - stay) * candidate
        return h, [h]

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {
            "recurrent_activation": activations.serialize(self.recurrent_activation),
            "reset_after": self.reset_after,
        }


class StackedRNNCells(Layer):
    """Cells one on the other, as one cell."""

    def __init__(self, cells: Sequence[Layer], **kwargs: Any) -> None:
        super().__init__(**kwargs)
        self.cells = list(cells)
        check(bool(self.cells), "StackedRNNCells: give at least one cell")

    @property
    def state_size(self) -> list[int]:
        """The units of all cells' states, the lowest cell's first."""
        return [size for cell in self.cells for size in state_sizes(cell)]

    def call(self, inputs: Any, states: Sequence[Any], training: bool = False) -> tuple[Any, list[Any]]:
        """The output of the highest cell, and all new states."""
        new_states: list[Any] = []
        for cell in self.cells:
            count = len(state_sizes(cell))
            first = len(new_states)
            inputs, found = cell(inputs, list(states[first : first + count]), training=training)
            new_states += found if isinstance(found, list | tuple) else [found]
        return inputs, new_states

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        from workers.nn.layers.registry import serialize as serialize_layer

        return super().get_config() | {"cells": [serialize_layer(cell) for cell in self.cells]}

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> StackedRNNCells:
        """A new layer of these settings."""
        from workers.nn.layers.registry import get

        return cls(**{**config, "cells": [get(cell) for cell in config["cells"]]})


def state_sizes(cell: Any) -> list[int]:
    """The units of each of a cell's states."""
    size = cell.state_size
    return list(size) if isinstance(size, list | tuple) else [size]


class _OfForgetGate(Initializer):
    """Another initializer's values, with ones for the forget gate."""

    def __init__(self, others: Initializer) -> None:
        self.others = others

    def __call__(self, shape: Shape, rng: np.random.Generator | None = None) -> Values:
        """Draw the values."""
        values = self.others(shape, rng)
        units = shape[0] // LSTMCell.gates
        values[units : 2 * units] = 1
        return values
