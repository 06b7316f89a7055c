"""Long short-term memory as one operation."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from workers.nn.ops.base import Site, register
from workers.nn.ops.recurrent import Recurrent

if TYPE_CHECKING:
    from workers.nn.numerics import Array


@register
class LSTM(Recurrent):
    """c' = f c + i g and h' = o activation(c'), for gates i, f, g, o of x kernel + bias + h recurrent.

    The gates stand in this order, Keras's (Hochreiter and Schmidhuber, Neural Computation 9, 1997, with the
    forget gate of Gers et al., 2000). States: h, c.
    """

    name = "lstm"
    gates = 4
    num_states = 2

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        self._product_BG = site.workspace(self.z_TBG.shape[1:], site.outputs[0].dtype)
        self._seen_TBU = site.workspace((len(self.z_TBG), *site.outputs[1].dims), site.outputs[0].dtype)

    def step(self, t: int) -> None:
        z, seen = self.z_TBG[t], self._seen_TBU[t]
        h, c = self.states[0][t + 1], self.states[1][t + 1]
        z += np.matmul(self.h_TBU[t], self.recurrent, out=self._product_BG)
        self.recurrent_activation.forward(self.gate(z, 0, 2))
        self.activation.forward(self.gate(z, 2))
        self.recurrent_activation.forward(self.gate(z, 3))
        np.multiply(self.gate(z, 1), self.states[1][t], out=c)
        np.multiply(self.gate(z, 0), self.gate(z, 2), out=seen)
        c += seen
        np.copyto(seen, c)
        self.activation.forward(seen)
        np.multiply(self.gate(z, 3), seen, out=h)

    def step_back(self, t: int, d_states: list[Array]) -> None:
        z, seen = self.z_TBG[t], self._seen_TBU[t]
        if not self.site.reused:  # the derivatives overwrite them, and a tape may come again
            z, seen = z.copy(), seen.copy()
        dz, (dh, dc) = self.dz_TBG[t], d_states
        np.multiply(dh, seen, out=self.gate(dz, 3))
        dh *= self.gate(z, 3)
        self.activation.backward(seen, dh)
        dc += dh
        np.multiply(dc, self.gate(z, 2), out=self.gate(dz, 0))
        np.multiply(dc, self.states[1][t], out=self.gate(dz, 1))
        np.multiply(dc, self.gate(z, 0), out=self.gate(dz, 2))
        dc *= self.gate(z, 1)
        self.recurrent_activation.backward(self.gate(z, 0, 2), self.gate(dz, 0, 2))
        self.activation.backward(self.gate(z, 2), self.gate(dz, 2))
        self.recurrent_activation.backward(self.gate(z, 3), self.gate(dz, 3))
        np.matmul(dz, self.recurrent.T, out=dh)
        self.through_dropout(dh)
