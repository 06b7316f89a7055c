"""Gated recurrent units as one operation, in their two forms."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from workers.nn.numerics import aligned_empty
from workers.nn.ops.base import Site, register
from workers.nn.ops.recurrent import Recurrent

if TYPE_CHECKING:
    from workers.nn.numerics import Array


class _Gated(Recurrent):
    """h' = u h + (1 - u) g, for the update gate u, the reset gate r and the candidate g, in this order."""

    gates = 3

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self.scratch_BU = site.workspace(site.outputs[1].dims, site.outputs[0].dtype)

    def mix(self, t: int) -> None:
        """In place. The new state, from the gates in `z_TBG[t]`."""
        z, h = self.z_TBG[t], self.states[0][t + 1]
        np.subtract(self.states[0][t], self.gate(z, 2), out=h)
        h *= self.gate(z, 0)
        h += self.gate(z, 2)

    def mix_back(self, z: Array, t: int, dh: Array) -> None:
        """In place. Write the gradients of u, and of the candidate before its activation, into `dz_TBG[t]`;
        leave in `dh` what goes to the state straight."""
        dz = self.dz_TBG[t]
        u, g = self.gate(z, 0), self.gate(z, 2)
        np.subtract(self.states[0][t], g, out=self.scratch_BU)
        np.multiply(self.scratch_BU, dh, out=self.gate(dz, 0))
        np.multiply(dh, u, out=self.scratch_BU)
        np.subtract(dh, self.scratch_BU, out=self.gate(dz, 2))
        np.copyto(dh, self.scratch_BU)
        self.activation.backward(g, self.gate(dz, 2))

    def gates_of(self, t: int) -> Array:
        """The gates of a step, which derivatives overwrite; a tape may come again, a program does not."""
        gates: Array = self.z_TBG[t]
        return gates if self.site.reused else gates.copy()


@register
class GRU(_Gated):
    """The reset gate works on the recurrent product: g = activation(x kernel + b0 + r (h recurrent + b1)).

    The form of cuDNN, Keras's default (`reset_after=True`). Bias (2, G): b0 and b1.
    """

    name = "gru"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._inner_TBG = site.workspace(self.z_TBG.shape, site.outputs[0].dtype)
        if any(site.needs):
            self._d_inner_TBG = site.workspace(self.z_TBG.shape, site.outputs[0].dtype)

    @classmethod
    def bias_shape(cls, units: int) -> tuple[int, ...]:
        return (2, 3 * units)

    def input_bias(self) -> Array | None:
        return None if self.bias is None else self.bias[0]

    def step(self, t: int) -> None:
        z, inner = self.z_TBG[t], self._inner_TBG[t]
        np.matmul(self.h_TBU[t], self.recurrent, out=inner)
        if self.bias is not None:
            inner += self.bias[1]
        gates = self.gate(z, 0, 2)
        gates += self.gate(inner, 0, 2)
        self.recurrent_activation.forward(gates)
        candidate = self.gate(z, 2)
        candidate += np.multiply(self.gate(z, 1), self.gate(inner, 2), out=self.scratch_BU)
        self.activation.forward(candidate)
        self.mix(t)

    def step_back(self, t: int, d_states: list[Array]) -> None:
        z, inner, dh = self.gates_of(t), self._inner_TBG[t], d_states[0]
        dz, d_inner = self.dz_TBG[t], self._d_inner_TBG[t]
        self.mix_back(z, t, dh)
        np.multiply(self.gate(dz, 2), self.gate(inner, 2), out=self.gate(dz, 1))
        np.multiply(self.gate(dz, 2), self.gate(z, 1), out=self.gate(d_inner, 2))
        self.recurrent_activation.backward(self.gate(z, 0, 2), self.gate(dz, 0, 2))
        np.copyto(self.gate(d_inner, 0, 2), self.gate(dz, 0, 2))
        np.matmul(d_inner, self.recurrent.T, out=self.scratch_BU)
        self.through_dropout(self.scratch_BU)
        dh += self.scratch_BU

    def recurrent_gradient(self, into: Array | None) -> Array:
        return np.matmul(self.as_rows(self.h_TBU).T, self.as_rows(self._d_inner_TBG), out=into)

    def bias_gradient(self, into: Array | None) -> Array:
        gradient = aligned_empty((2, self.dz_TBG.shape[2]), self.dz_TBG.dtype) if into is None else into
        self.as_rows(self.dz_TBG).sum(axis=0, out=gradient[0])
        self.as_rows(self._d_inner_TBG).sum(axis=0, out=gradient[1])
        return gradient


@register
class GRUResetBefore(_Gated):
    """The reset gate works on the state: g = activation(x kernel + bias + (r h) recurrent).

    The form of Cho et al. (EMNLP 2014), Keras's `reset_after=False`. Bias (G,).
    """

    name = "gru_reset_before"

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._product_BG = site.workspace((self.z_TBG.shape[1], 2 * self.units), site.outputs[0].dtype)
        self._reset_TBU = site.workspace((len(self.z_TBG), *site.outputs[1].dims), site.outputs[0].dtype)

    def step(self, t: int) -> None:
        z, reset = self.z_TBG[t], self._reset_TBU[t]
        gates = self.gate(z, 0, 2)
        gates += np.matmul(self.h_TBU[t], self.gate(self.recurrent, 0, 2), out=self._product_BG)
        self.recurrent_activation.forward(gates)
        np.multiply(self.gate(z, 1), self.h_TBU[t], out=reset)
        candidate = self.gate(z, 2)
        candidate += np.matmul(reset, self.gate(self.recurrent, 2), out=self.scratch_BU)
        self.activation.forward(candidate)
        self.mix(t)

    def step_back(self, t: int, d_states: list[Array]) -> None:
        z, dh, dz = self.gates_of(t), d_states[0], self.dz_TBG[t]
        self.mix_back(z, t, dh)
        np.matmul(self.gate(dz, 2), self.gate(self.recurrent, 2).T, out=self.scratch_BU)
        np.multiply(self.scratch_BU, self.h_TBU[t], out=self.gate(dz, 1))
        self.scratch_BU *= self.gate(z, 1)
        self.recurrent_activation.backward(self.gate(z, 0, 2), self.gate(dz, 0, 2))
        self.scratch_BU += np.matmul(self.gate(dz, 0, 2), self.gate(self.recurrent, 0, 2).T)
        self.through_dropout(self.scratch_BU)
        dh += self.scratch_BU

    def recurrent_gradient(self, into: Array | None) -> Array:
        gradient = aligned_empty(self.recurrent.shape, self.recurrent.dtype) if into is None else into
        dz_NG = self.as_rows(self.dz_TBG)
        np.matmul(self.as_rows(self.h_TBU).T, self.gate(dz_NG, 0, 2), out=self.gate(gradient, 0, 2))
        np.matmul(self.as_rows(self._reset_TBU).T, self.gate(dz_NG, 2), out=self.gate(gradient, 2))
        return gradient
