"""Optimizers: named slots, and one elementwise update from old buffers to new ones.

Source: Keras 3 `keras.optimizers` (names, defaults, order of operations). An update works on any piece of the
flat buffers; the caller passes pieces that fit the cache. Each element of the new buffers is written once,
with its final value: work that is done twice by two processes must not show anything between.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np

from workers.nn.lookup import check
from workers.nn.lookup import get as _get
from workers.nn.numerics import quiet

if TYPE_CHECKING:
    from collections.abc import Sequence

    from workers.engine import Flat


class Optimizer:
    """Base of the optimizers."""

    def __init__(self, learning_rate: float, name: str) -> None:
        check(
            isinstance(learning_rate, int | float) and learning_rate >= 0,
            f"{type(self).__name__}: learning_rate must be a number from 0 up, not {learning_rate!r}",
        )
        self.learning_rate = float(learning_rate)
        self.name = name

    @property
    def slots(self) -> tuple[str, ...]:
        """Names of the state arrays kept beside the parameters."""
        return ()

    def update(
        self,
        step: int,
        params: Flat,
        slots: Sequence[Flat],
        grad: Flat,
        new_params: Flat,
        new_slots: Sequence[Flat],
        scratch: Flat,
    ) -> None:
        """Write the state after step `step` (counted from 0) into `new_params` and `new_slots`."""
        raise NotImplementedError

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return {"name": self.name, "learning_rate": self.learning_rate}


class SGD(Optimizer):
    """Gradient descent, with momentum where that is not zero: m = momentum * m - lr * g, w += m.

    Nesterov: w += momentum * m - lr * g, with the new m (Sutskever et al., ICML 2013).
    """

    def __init__(
        self, learning_rate: float = 0.01, momentum: float = 0.0, nesterov: bool = False, name: str = "SGD"
    ) -> None:
        super().__init__(learning_rate, name)
        check(0 <= momentum <= 1, f"SGD: momentum must be from 0 to 1, not {momentum!r}")
        self.momentum = float(momentum)
        self.nesterov = bool(nesterov)
        self._step = np.empty(0, np.float32)

    @property
    def slots(self) -> tuple[str, ...]:
        """The momentum, where there is one."""
        return ("sgd_momentum",) if self.momentum else ()

    def update(
        self,
        step: int,
        params: Flat,
        slots: Sequence[Flat],
        grad: Flat,
        new_params: Flat,
        new_slots: Sequence[Flat],
        scratch: Flat,
    ) -> None:
        """Write the state after step `step` (counted from 0) into `new_params` and `new_slots`."""
        with quiet():
            if not self.momentum:
                np.multiply(grad, self.learning_rate, out=scratch)
                np.subtract(params, scratch, out=new_params)
                return
            if len(self._step) < len(grad):  # a second workspace: a slot must not hold anything in between
                self._step = np.empty(len(grad), np.float32)
            scaled = self._step[: len(grad)]
            (momentum,), (new_momentum,) = slots, new_slots
            np.multiply(grad, self.learning_rate, out=scaled)
            np.multiply(momentum, self.momentum, out=scratch)
            np.subtract(scratch, scaled, out=new_momentum)
            if self.nesterov:
                np.multiply(new_momentum, self.momentum, out=scratch)
                np.subtract(scratch, scaled, out=scratch)
                np.add(params, scratch, out=new_params)
            else:
                np.add(params, new_momentum, out=new_params)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {"momentum": self.momentum, "nesterov": self.nesterov}


class Adam(Optimizer):
    """Adam (Kingma and Ba, ICLR 2015), with AMSGrad (Reddi et al., ICLR 2018) where asked for.

    The bias corrections are folded into the step size, as in Keras: w -= a * m / (sqrt(v) + epsilon).
    """

    def __init__(
        self,
        learning_rate: float = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.999,
        epsilon: float = 1e-7,
        amsgrad: bool = False,
        name: str = "adam",
    ) -> None:
        super().__init__(learning_rate, name)
        check(0 <= float(np.float32(beta_1)) < 1, f"Adam: beta_1 must be from 0 to below 1, not {beta_1!r}")
        check(0 <= float(np.float32(beta_2)) < 1, f"Adam: beta_2 must be from 0 to below 1, not {beta_2!r}")
        check(epsilon > 0, f"Adam: epsilon must be positive, not {epsilon!r}")
        self.beta_1 = float(beta_1)
        self.beta_2 = float(beta_2)
        self.epsilon = float(epsilon)
        self.amsgrad = bool(amsgrad)

    @property
    def slots(self) -> tuple[str, ...]:
        """First and second moment, and the second one's maximum with AMSGrad."""
        return ("adam_m", "adam_v", "adam_vhat") if self.amsgrad else ("adam_m", "adam_v")

    def update(
        self,
        step: int,
        params: Flat,
        slots: Sequence[Flat],
        grad: Flat,
        new_params: Flat,
        new_slots: Sequence[Flat],
        scratch: Flat,
    ) -> None:
        """Write the state after step `step` (counted from 0) into `new_params` and `new_slots`."""
        power_1, power_2 = _power(self.beta_1, step + 1), _power(self.beta_2, step + 1)
        size = self.learning_rate * math.sqrt(1 - power_2) / (1 - power_1)
        m, v, new_m, new_v = slots[0], slots[1], new_slots[0], new_slots[1]
        with quiet():
            np.subtract(grad, m, out=scratch)
            np.multiply(scratch, 1 - self.beta_1, out=scratch)
            np.add(m, scratch, out=new_m)
            np.square(grad, out=scratch)
            np.subtract(scratch, v, out=scratch)
            np.multiply(scratch, 1 - self.beta_2, out=scratch)
            np.add(v, scratch, out=new_v)
            if self.amsgrad:
                new_v = np.maximum(slots[2], new_v, out=new_slots[2])
            np.sqrt(new_v, out=scratch)
            np.add(scratch, self.epsilon, out=scratch)
            np.divide(new_m, scratch, out=scratch)
            np.multiply(scratch, size, out=scratch)
            np.subtract(params, scratch, out=new_params)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {
            "beta_1": self.beta_1,
            "beta_2": self.beta_2,
            "epsilon": self.epsilon,
            "amsgrad": self.amsgrad,
        }


def _power(beta: float, t: int) -> float:
    """beta**t as Keras has it, in float32: 1 - 0.999 is 0.0013 % off there, which shows within 20 steps."""
    return float(np.float32(float(np.float32(beta)) ** t))


_KNOWN: dict[str, type[Optimizer]] = {"adam": Adam, "sgd": SGD, "Adam": Adam, "SGD": SGD}


def get(identifier: object) -> Optimizer:
    """The optimizer of that name, config, or itself."""
    return _get("optimizer", identifier, Optimizer, _KNOWN)
