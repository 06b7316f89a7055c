"""Follow the regularized leader."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Unpack

import numpy as np

from workers.nn.lookup import check
from workers.nn.optimizers.base import Optimizer
from workers.nn.optimizers.flat import Common, Slot

if TYPE_CHECKING:
    from collections.abc import Sequence

    from workers.engine import Flat
    from workers.nn.optimizers.flat import LearningRate


class Ftrl(Optimizer):
    """FTRL-proximal (McMahan et al., KDD 2013): weights that are zero where the sum of gradients is small.

    With n the sum of squares, p = -learning_rate_power and z the sum of g - (n'**p - n**p) / lr * w, a weight
    is (clip(z, -l1, l1) - z) / (n'**p / lr + 2 * l2 + beta / lr). `l2_shrinkage_regularization_strength` adds
    its double times w to g in z.
    """

    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        learning_rate_power: float = -0.5,
        initial_accumulator_value: float = 0.1,
        l1_regularization_strength: float = 0.0,
        l2_regularization_strength: float = 0.0,
        l2_shrinkage_regularization_strength: float = 0.0,
        beta: float = 0.0,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(learning_rate, **common)
        check(
            learning_rate_power <= 0,
            f"Ftrl: learning_rate_power must be from 0 down, not {learning_rate_power!r}",
        )
        strengths = {
            "initial_accumulator_value": initial_accumulator_value,
            "l1_regularization_strength": l1_regularization_strength,
            "l2_regularization_strength": l2_regularization_strength,
            "l2_shrinkage_regularization_strength": l2_shrinkage_regularization_strength,
        }
        for name, value in strengths.items():
            check(value >= 0, f"Ftrl: {name} must be from 0 up, not {value!r}")
        self.learning_rate_power = float(learning_rate_power)
        self.initial_accumulator_value = float(initial_accumulator_value)
        self.l1_regularization_strength = float(l1_regularization_strength)
        self.l2_regularization_strength = float(l2_regularization_strength)
        self.l2_shrinkage_regularization_strength = float(l2_shrinkage_regularization_strength)
        self.beta = float(beta)

    @property
    def groups(self) -> tuple[tuple[Slot, ...], ...]:
        """The sum of squares, and the linear sum z."""
        squares = Slot("ftrl_accumulator", "accumulator", self.initial_accumulator_value)
        return ((squares, Slot("ftrl_linear", "linear")),)

    @property
    def keeps_zeros(self) -> bool:
        """A weight without any gradient is 0 / 0."""
        return False

    def advance(
        self,
        t: int,
        rate: float,
        params: Flat,
        slots: Sequence[Flat],
        grad: Flat,
        new_params: Flat,
        new_slots: Sequence[Flat],
        scratch: Flat,
    ) -> None:
        """Write the weights and sums after update number `t`; ConfigurationError for a rate of zero."""
        check(rate > 0, "Ftrl divides by the learning rate, which is 0: freeze a variable to keep its value")
        (squares, linear), (new_squares, new_linear) = slots, new_slots
        length = len(grad)
        root, change = self.workspace("root", length), self.workspace("change", length)
        if t == 1:
            squares = self.workspace("squares before", length)
            squares[...] = self.initial_accumulator_value
        self._powers(squares, change)
        np.square(grad, out=scratch)
        np.add(squares, scratch, out=new_squares)
        self._powers(new_squares, root)
        np.subtract(root, change, out=change)
        np.divide(change, rate, out=change)
        np.subtract(change, 2 * self.l2_shrinkage_regularization_strength, out=change)
        np.multiply(change, params, out=change)
        np.subtract(grad, change, out=change)
        np.add(linear, change, out=new_linear)
        np.divide(root, rate, out=root)
        np.add(root, 2 * self.l2_regularization_strength + self.beta / rate, out=root)
        bound = self.l1_regularization_strength
        np.clip(new_linear, -bound, bound, out=scratch)
        np.subtract(scratch, new_linear, out=scratch)
        np.divide(scratch, root, out=new_params)

    def _powers(self, values: Flat, out: Flat) -> None:
        if self.learning_rate_power == -0.5:
            np.sqrt(values, out=out)
        else:
            np.power(values, -self.learning_rate_power, out=out)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {
            "learning_rate_power": self.learning_rate_power,
            "initial_accumulator_value": self.initial_accumulator_value,
            "l1_regularization_strength": self.l1_regularization_strength,
            "l2_regularization_strength": self.l2_regularization_strength,
            "l2_shrinkage_regularization_strength": self.l2_shrinkage_regularization_strength,
            "beta": self.beta,
        }
