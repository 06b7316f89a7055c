"""Optimizers whose steps shrink with the squares of past gradients."""

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


class Adagrad(Optimizer):
    """Steps divided by the root of the sum of all squares (Duchi et al., JMLR 2011)."""

    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        initial_accumulator_value: float = 0.1,
        epsilon: float = 1e-7,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(learning_rate, **common)
        check(
            initial_accumulator_value >= 0,
            f"Adagrad: initial_accumulator_value must be from 0 up, not {initial_accumulator_value!r}",
        )
        check(epsilon > 0, f"Adagrad: epsilon must be positive, not {epsilon!r}")
        self.initial_accumulator_value = float(initial_accumulator_value)
        self.epsilon = float(epsilon)

    @property
    def groups(self) -> tuple[tuple[Slot, ...], ...]:
        """The sum of squares."""
        return ((Slot("adagrad_accumulator", "accumulator", self.initial_accumulator_value),),)

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
        """Write the weights and the sum after update number `t`."""
        (new_sum,) = new_slots
        np.square(grad, out=scratch)
        np.add(slots[0] if t > 1 else self.initial_accumulator_value, scratch, out=new_sum)
        np.add(new_sum, self.epsilon, out=scratch)
        np.sqrt(scratch, out=scratch)
        np.divide(grad, scratch, out=scratch)
        np.multiply(scratch, rate, out=scratch)
        np.subtract(params, scratch, out=new_params)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {
            "initial_accumulator_value": self.initial_accumulator_value,
            "epsilon": self.epsilon,
        }


class _Averaging(Optimizer):
    """What has a decay rate `rho` for its averages, and an epsilon."""

    def __init__(
        self, learning_rate: LearningRate, rho: float, epsilon: float, **common: Unpack[Common]
    ) -> None:
        super().__init__(learning_rate, **common)
        check(0 <= rho <= 1, f"{type(self).__name__}: rho must be from 0 to 1, not {rho!r}")
        check(epsilon > 0, f"{type(self).__name__}: epsilon must be positive, not {epsilon!r}")
        self.rho = float(rho)
        self.epsilon = float(epsilon)

    def average(self, old: Flat, value: Flat, new: Flat, scratch: Flat) -> None:
        """new = rho * old + (1 - rho) * value. `value` may be `scratch`."""
        share = self.workspace("share", len(value))
        np.multiply(value, 1 - self.rho, out=share)
        np.multiply(old, self.rho, out=scratch)
        np.add(scratch, share, out=new)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {"rho": self.rho, "epsilon": self.epsilon}


class RMSprop(_Averaging):
    """Steps divided by the root of the mean square, or of the variance where `centered`.

    Source: Hinton, "Neural networks for machine learning", lecture 6e, 2012.
    """

    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        rho: float = 0.9,
        momentum: float = 0.0,
        epsilon: float = 1e-7,
        centered: bool = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(learning_rate, rho, epsilon, **common)
        check(0 <= momentum <= 1, f"RMSprop: momentum must be from 0 to 1, not {momentum!r}")
        self.momentum = float(momentum)
        self.centered = bool(centered)

    @property
    def groups(self) -> tuple[tuple[Slot, ...], ...]:
        """The mean square; the momentum, and the mean gradient, where there are such."""
        found = [(Slot("rmsprop_velocity", "velocity"),)]
        if self.momentum:
            found.append((Slot("rmsprop_momentum", "momentum"),))
        if self.centered:
            found.append((Slot("rmsprop_average_gradient", "average_gradient"),))
        return tuple(found)

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
        """Write the weights, averages and momentum after update number `t`."""
        step = self.workspace("step", len(grad))
        self.average(slots[0], np.square(grad, out=scratch), new_slots[0], scratch)
        if self.centered:
            self.average(slots[-1], grad, new_slots[-1], scratch)
            np.square(new_slots[-1], out=scratch)
            np.subtract(new_slots[0], scratch, out=scratch)
            np.add(scratch, self.epsilon, out=scratch)
        else:
            np.add(new_slots[0], self.epsilon, out=scratch)
        np.sqrt(scratch, out=scratch)
        np.multiply(grad, rate, out=step)
        np.divide(step, scratch, out=step)
        if self.momentum:
            np.multiply(slots[1], self.momentum, out=scratch)
            step = np.add(scratch, step, out=new_slots[1])
        np.subtract(params, step, out=new_params)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {"momentum": self.momentum, "centered": self.centered}


class Adadelta(_Averaging):
    """Steps as large as past steps were against past gradients (Zeiler, arXiv 1212.5701)."""

    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        rho: float = 0.95,
        epsilon: float = 1e-7,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(learning_rate, rho, epsilon, **common)

    @property
    def groups(self) -> tuple[tuple[Slot, ...], ...]:
        """The mean squares of gradients and of steps."""
        gradients = Slot("adadelta_accumulated_grad", "accumulated_grad")
        return ((gradients, Slot("adadelta_accumulated_delta_var", "accumulated_delta_var")),)

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
        """Write the weights and averages after update number `t`."""
        step = self.workspace("step", len(grad))
        self.average(slots[0], np.square(grad, out=scratch), new_slots[0], scratch)
        np.add(slots[1], self.epsilon, out=step)
        np.sqrt(step, out=step)
        np.multiply(step, grad, out=step)
        np.add(new_slots[0], self.epsilon, out=scratch)
        np.sqrt(scratch, out=scratch)
        np.divide(step, scratch, out=step)
        self.average(slots[1], np.square(step, out=scratch), new_slots[1], scratch)
        np.multiply(step, rate, out=step)
        np.subtract(params, step, out=new_params)
