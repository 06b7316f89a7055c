"""Gradient descent, with momentum and by signs."""

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


class SGD(Optimizer):
    """Gradient descent, with momentum where that is not zero: m = momentum * m - lr * g, w += m.

    Nesterov: w += momentum * m - lr * g, with the new m (Sutskever et al., ICML 2013).
    """

    def __init__(
        self,
        learning_rate: LearningRate = 0.01,
        momentum: float = 0.0,
        nesterov: bool = False,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(learning_rate, **common)
        check(0 <= momentum <= 1, f"SGD: momentum must be from 0 to 1, not {momentum!r}")
        self.momentum = float(momentum)
        self.nesterov = bool(nesterov)

    @property
    def groups(self) -> tuple[tuple[Slot, ...], ...]:
        """The momentum, where there is one."""
        return ((Slot("sgd_momentum", "momentum"),),) if self.momentum else ()

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
        """Write the weights and the momentum after update number `t`."""
        if not self.momentum:
            np.multiply(grad, rate, out=scratch)
            np.subtract(params, scratch, out=new_params)
            return
        scaled = self.workspace("scaled", len(grad))
        (momentum,), (new_momentum,) = slots, new_slots
        np.multiply(grad, rate, out=scaled)
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


class Lion(Optimizer):
    """Steps of one size, by the sign of a momentum: w -= lr * sign(b1 * m + (1 - b1) * g).

    Source: Chen et al., "Symbolic discovery of optimization algorithms", NeurIPS 2023.
    """

    def __init__(
        self,
        learning_rate: LearningRate = 0.001,
        beta_1: float = 0.9,
        beta_2: float = 0.99,
        **common: Unpack[Common],
    ) -> None:
        super().__init__(learning_rate, **common)
        check(0 < beta_1 <= 1, f"Lion: beta_1 must be above 0 and at most 1, not {beta_1!r}")
        check(0 <= beta_2 <= 1, f"Lion: beta_2 must be from 0 to 1, not {beta_2!r}")
        self.beta_1 = float(beta_1)
        self.beta_2 = float(beta_2)

    @property
    def groups(self) -> tuple[tuple[Slot, ...], ...]:
        """The momentum."""
        return ((Slot("lion_momentum", "momentum"),),)

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
        """Write the weights and the momentum after update number `t`."""
        (momentum,), (new_momentum,) = slots, new_slots
        share = self.workspace("share", len(grad))
        np.multiply(momentum, self.beta_1, out=scratch)
        np.multiply(grad, 1 - self.beta_1, out=share)
        np.add(scratch, share, out=scratch)
        np.sign(scratch, out=scratch)
        np.multiply(scratch, rate, out=scratch)
        np.subtract(params, scratch, out=new_params)
        np.multiply(momentum, self.beta_2, out=scratch)
        np.multiply(grad, 1 - self.beta_2, out=share)
        np.add(scratch, share, out=new_momentum)

    def get_config(self) -> dict[str, Any]:
        """The settings as JSON values."""
        return super().get_config() | {"beta_1": self.beta_1, "beta_2": self.beta_2}
