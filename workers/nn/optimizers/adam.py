"""Adam and its kin: first and second moments of the gradient, kept as moving averages."""

from __future__ import annotations

import math
from functools import lru_cache
from typing import TYPE_CHECKING, Any, ClassVar, Unpack

import numpy as np

from workers.nn.lookup import check
from workers.nn.optimizers.base import Optimizer
from workers.nn.optimizers.flat import Common, Slot
from workers.nn.variables import Variable

if TYPE_CHECKING:
    from collections.abc import Sequence

    from workers.engine import Flat
    from workers.nn.optimizers.flat import LearningRate


class _Moments(Optimizer):
    """What has two decay rates and an epsilon, with the same defaults for all, and two slots."""

    own_slots: ClassVar[tuple[Slot, ...]]

    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(learning_rate, **common)
        who = type(self).__name__
        for name, beta in (("beta_1", beta_1), ("beta_2", beta_2)):
            check(0 <= float(np.float32(beta)) < 1, f"{who}: {name} must be from 0 to below 1, not {beta!r}")
        check(epsilon > 0, f"{who}: epsilon must be positive, not {epsilon!r}")
        self.beta_1 = float(beta_1)
        self.beta_2 = float(beta_2)
        self.epsilon = float(epsilon)

    @property
    def groups(self) -> tuple[tuple[Slot, ...], ...]:
        """First and second moment."""
        return (self.own_slots,)

    def average(self, old: Flat, value: Flat, beta: float, new: Flat, scratch: Flat) -> None:
        """new = old + (value - old) * (1 - beta). `value` may be `scratch`."""
        np.subtract(value, old, out=scratch)
        np.multiply(scratch, 1 - beta, out=scratch)
        np.add(old, scratch, out=new)

    def moments(
        self, slots: Sequence[Flat], grad: Flat, new_slots: Sequence[Flat], scratch: Flat
    ) -> tuple[Flat, Flat]:
        """Write the averages of gradient and squared gradient into the first two new slots; returns these."""
        self.average(slots[0], grad, self.beta_1, new_slots[0], scratch)
        self.average(slots[1], np.square(grad, out=scratch), self.beta_2, new_slots[1], scratch)
        return new_slots[0], new_slots[1]

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
        }


class Adam(_Moments):
    """Adam (Kingma and Ba, ICLR 2015), with AMSGrad (Reddi et al., ICLR 2018) where asked for.

    The bias corrections are folded into the step size, as in Keras: w -= a * m / (sqrt(v) + epsilon).
    """

    own_slots = (Slot("adam_m", "momentum"), Slot("adam_v", "velocity"))

    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        amsgrad: bool = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(learning_rate, beta_1, beta_2, epsilon, **common)
        self.amsgrad = bool(amsgrad)

    @property
    def groups(self) -> tuple[tuple[Slot, ...], ...]:
        """First and second moment, and the second one's maximum with AMSGrad."""
        return (self.own_slots, (Slot("adam_vhat", "velocity_hat"),)) if self.amsgrad else (self.own_slots,)

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
        """Write the weights and moments after update number `t`."""
        size = rate * math.sqrt(1 - _power(self.beta_2, t)) / (1 - _power(self.beta_1, t))
        new_m, new_v = self.moments(slots, grad, new_slots, scratch)
        if self.amsgrad:
            new_v = np.maximum(slots[2], new_v, out=new_slots[2])
        np.sqrt(new_v, out=scratch)
        np.add(scratch, self.epsilon, out=scratch)
        np.divide(new_m, scratch, out=scratch)
        np.multiply(scratch, size, out=scratch)
        np.subtract(params, scratch, out=new_params)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {"amsgrad": self.amsgrad}


class AdamW(Adam):
    """Adam with weight decay that does not pass through the moments (Loshchilov and Hutter, ICLR 2019)."""

    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        weight_decay: float = 0.004,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        amsgrad: bool = False,
        **common: Any,
    ) -> None:
        check(weight_decay is not None, "AdamW: weight_decay must be a number; without it, use Adam")
        super().__init__(learning_rate, beta_1, beta_2, epsilon, amsgrad, weight_decay=weight_decay, **common)


class Adamax(_Moments):
    """Adam by the largest gradient instead of the second moment (Kingma and Ba, ICLR 2015, section 7.1)."""

    own_slots = (Slot("adamax_m", "momentum"), Slot("adamax_u", "norm"))

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
        """Write the weights, the moment and the largest gradient after update number `t`."""
        new_m, new_u = new_slots
        self.average(slots[0], grad, self.beta_1, new_m, scratch)
        size = self.workspace("size", len(grad))
        np.absolute(grad, out=size)
        np.multiply(slots[1], self.beta_2, out=scratch)
        np.maximum(scratch, size, out=new_u)
        np.add(new_u, self.epsilon, out=scratch)
        np.divide(new_m, scratch, out=scratch)
        np.multiply(scratch, rate / (1 - _power(self.beta_1, t)), out=scratch)
        np.subtract(params, scratch, out=new_params)


class Nadam(_Moments):
    """Adam with Nesterov momentum (Dozat, ICLR 2016 workshop), whose momentum rises with the steps."""

    own_slots = (Slot("nadam_m", "momentum"), Slot("nadam_v", "velocity"))

    @property
    def variables(self) -> list[Variable]:
        """The state as Keras stores it. The product of all momenta so far, which is last, is a copy."""
        found = super().variables
        if self.built:
            product = _momenta(self.beta_1, self.iteration(self.steps))
            found.append(Variable(np.float32(product), trainable=False, name="u_product"))
        return found

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
        """Write the weights and moments after update number `t`."""
        new_m, new_v = self.moments(slots, grad, new_slots, scratch)
        now, later = _momentum(self.beta_1, t), _momentum(self.beta_1, t + 1)
        product = _momenta(self.beta_1, t)
        ahead = self.workspace("ahead", len(grad))
        np.multiply(new_m, later / (1 - product * later), out=ahead)
        np.multiply(grad, (1 - now) / (1 - product), out=scratch)
        np.add(ahead, scratch, out=ahead)
        np.divide(new_v, 1 - _power(self.beta_2, t), out=scratch)
        np.sqrt(scratch, out=scratch)
        np.add(scratch, self.epsilon, out=scratch)
        np.divide(ahead, scratch, out=scratch)
        np.multiply(scratch, rate, out=scratch)
        np.subtract(params, scratch, out=new_params)


class Lamb(_Moments):
    """Adam whose steps are scaled by the norm of each variable (You et al., ICLR 2020).

    It looks at whole variables: `update` is for what `for_model` gives.
    """

    own_slots = (Slot("lamb_m", "momentum"), Slot("lamb_v", "velocity"))
    needs_whole_variables = True

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
        """Write a whole variable and its moments after update number `t`."""
        new_m, new_v = self.moments(slots, grad, new_slots, scratch)
        np.divide(new_v, 1 - _power(self.beta_2, t), out=scratch)
        np.sqrt(scratch, out=scratch)
        np.add(scratch, self.epsilon, out=scratch)
        np.divide(new_m, scratch, out=scratch)
        np.divide(scratch, 1 - _power(self.beta_1, t), out=scratch)
        weights, step = self.sum_of_squares(params), self.sum_of_squares(scratch)
        ratio = math.sqrt(weights / step) if weights > 0 and step > 0 else 1.0
        np.multiply(scratch, ratio * rate, out=scratch)
        np.subtract(params, scratch, out=new_params)


def _power(beta: float, t: int) -> float:
    """beta**t as Keras has it, in float32: 1 - 0.999 is 0.0013 % off there, which shows within 20 steps."""
    return float(np.float32(float(np.float32(beta)) ** t))


_SETTLED = 2_000
"""Updates after which 0.96**t is below 1e-35: the momentum has reached beta_1."""


def _momentum(beta: float, t: int) -> float:
    """The momentum of update `t`: it rises to `beta`."""
    return beta * (1 - 0.5 * 0.96**t)


@lru_cache(maxsize=16)
def _momenta(beta: float, t: int) -> float:
    """The product of the momenta of the updates 1 to `t`."""
    rising = math.prod(_momentum(beta, i) for i in range(1, min(t, _SETTLED) + 1))
    return rising * beta ** max(0, t - _SETTLED)
