"""Averaged weights in the place of the last ones."""

from __future__ import annotations

from typing import TYPE_CHECKING, ClassVar

from storage.errors import ConfigurationError
from workers.nn.callbacks.base import Callback, Logs

if TYPE_CHECKING:
    from workers.nn.numerics import Array


class SwapEMAWeights(Callback):
    """While the model is evaluated or predicts, it has the averages that the optimizer keeps
    (`use_ema=True`).

    With `swap_on_epoch`, callbacks that come after this one see them at the end of an epoch too. Unlike in
    Keras 3.15, the weights are swapped back after `predict` as well, and where one of these raises.
    """

    holds: ClassVar = ("_kept",)

    def __init__(self, swap_on_epoch: bool = False) -> None:
        super().__init__()
        self.swap_on_epoch = swap_on_epoch
        self._kept: list[Array] | None = None

    def _swap(self) -> None:
        if self._kept is not None:
            return
        optimizer = self.model.optimizer
        if not getattr(optimizer, "use_ema", False):
            raise ConfigurationError(
                "SwapEMAWeights needs an optimizer with averages, such as nn.optimizers.Adam(use_ema=True)"
            )
        variables = self.model.trainable_weights
        self._kept = [variable.numpy().copy() for variable in variables]
        for variable, average in zip(variables, optimizer.averages(variables), strict=True):
            variable.assign(average)

    def _swap_back(self) -> None:
        if self._kept is None:
            return
        for variable, value in zip(self.model.trainable_weights, self._kept, strict=True):
            variable.assign(value)
        self._kept = None

    def undo(self) -> None:
        """Go back to the last weights."""
        self._swap_back()

    def on_epoch_begin(self, epoch: int, logs: Logs | None = None) -> None:
        """Train on the last weights."""
        self._swap_back()

    def on_epoch_end(self, epoch: int, logs: Logs | None = None) -> None:
        """Show the averages, where that was asked for."""
        if self.swap_on_epoch:
            self._swap()

    def on_train_end(self, logs: Logs | None = None) -> None:
        """The model ends with the averages, as in Keras."""
        self._swap()
        self._kept = None

    def on_test_begin(self, logs: Logs | None = None) -> None:
        """Evaluate the averages."""
        self._swap()

    def on_test_end(self, logs: Logs | None = None) -> None:
        """Go back."""
        self._swap_back()

    def on_predict_begin(self, logs: Logs | None = None) -> None:
        """Predict with the averages."""
        self._swap()

    def on_predict_end(self, logs: Logs | None = None) -> None:
        """Go back."""
        self._swap_back()
