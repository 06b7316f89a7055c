"""Recurrent layers over whole sequences, each as one operation: the base of all, and the simple one.

In the shape suffixes: B samples, T time steps, D features, U units, G units times gates, N = T B. All
workspaces lie time-major, so that what a step touches is contiguous and the input products of all steps are
one product of matrices.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from storage.errors import ConfigurationError
from workers.nn import activations
from workers.nn.ops import attributes as kinds
from workers.nn.ops.base import Op, Run, Site, apply, register, same_dtype
from workers.nn.tensor import Dims, Spec

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from workers.nn.numerics import Array


class Recurrent(Op):
    """Base of the recurrent operations. A subclass computes one step, forwards and backwards.

    Operands: x (B, T, D), kernel (D, G), recurrent kernel (U, G), and as the attributes say: bias
    ("use_bias"), mask (B, T) of steps that count ("masked"), initial states (B, U) ("initial"; else zeros).
    At a step that does not count, the states stay, and the output is the one before it: zeros at first,
    or always with "zero_output_for_mask".

    Other attributes: "activation" and "recurrent_activation", names of functions whose derivative follows
    from their output; "return_sequences"; "go_backwards"; "recurrent_dropout", the share of each sample's
    state that the recurrent product does not see, the same at all steps and for all gates.

    Outputs: (B, T, U) or, without "return_sequences", the last of it (B, U); then the final states (B, U).
    """

    random = True
    arity = (3, 7)
    attributes: ClassVar = {
        **dict.fromkeys(("use_bias", "masked", "initial", "return_sequences", "go_backwards"), kinds.flag),
        "zero_output_for_mask": kinds.flag,
        "activation": kinds.text,
        "recurrent_activation": kinds.text,
        "recurrent_dropout": kinds.number,
    }
    gates: ClassVar[int] = 1
    num_states: ClassVar[int] = 1

    @classmethod
    def infer(cls, attrs: Mapping[str, Any], *inputs: Spec) -> Spec | tuple[Spec, ...]:
        x, _, recurrent = inputs[:3]
        if len(x.shape) != 3 or x.shape[1] is None:
            raise ConfigurationError(
                f"{cls.name}: an input of shape {x.shape}: give (samples, steps, features) with a known "
                "number of steps, such as nn.Input((steps, features)); pad shorter sequences and mask them"
            )
        units = recurrent.shape[0]
        state = (x.shape[0], units)
        expected: list[Dims] = [(x.shape[2], cls.gates * (units or 0)), (units, cls.gates * (units or 0))]
        expected += [cls.bias_shape(units or 0)] * attrs["use_bias"] + [x.shape[:2]] * attrs["masked"]
        expected += [state] * (cls.num_states * attrs["initial"])
        found = [spec.shape for spec in inputs[1:]]
        if found != expected or (attrs["masked"] and inputs[3 + attrs["use_bias"]].dtype != "bool"):
            raise ConfigurationError(
                f"{cls.name}: operands of shapes {found} do not fit an input of shape {x.shape}: it takes "
                f"{expected}"
            )
        for key in ("activation", "recurrent_activation"):
            if activations.fused(attrs[key]).needs_input:
                raise ConfigurationError(
                    f"{cls.name}: the derivative of {attrs[key]!r} does not follow from its output"
                )
        dtype = same_dtype(*(spec for spec in inputs if spec.dtype != "bool"))
        sequence = (*x.shape[:2], units)
        return (
            Spec(sequence if attrs["return_sequences"] else state, dtype),
            *[Spec(state, dtype)] * cls.num_states,
        )

    def __init__(self, site: Site) -> None:
        super().__init__(site)
        attrs, dtype = site.attrs, site.outputs[0].dtype
        B, T, D = site.inputs[0].dims
        U, G = site.inputs[2].dims
        self.units = U
        self.activation = activations.fused(attrs["activation"])
        self.recurrent_activation = activations.fused(attrs["recurrent_activation"])
        self._mask_place = 3 + attrs["use_bias"]
        self._initial_place = self._mask_place + attrs["masked"]
        self._x_TBD = site.workspace((T, B, D), dtype)
        self.z_TBG = site.workspace((T, B, G), dtype)
        self.states = [site.workspace((T + 1, B, U), dtype) for _ in range(self.num_states)]
        self._rate = attrs["recurrent_dropout"]
        self._dropped_BU = site.workspace((B, U), dtype)
        self._draws_BU = site.workspace((B, U), "float32")  # whatever the dtype, so that the mask is the same
        self.h_TBU = site.workspace((T, B, U), dtype) if self._rate else self.states[0][:T]
        self._y = site.empty()
        self.kernel = self.recurrent = self._y  # of the last forward; any array until then
        self.bias: Array | None = None
        self._skipped_TB1: Array | None = None
        self._hidden_TB1: Array | None = None
        self._dx = site.like(0) if site.needs[0] else self._y
        if any(site.needs):
            self.dz_TBG = site.workspace((T, B, G), dtype)
            self._dx_TBD = site.workspace((T, B, D), dtype)
            self._d_states = [site.workspace((B, U), dtype) for _ in range(self.num_states)]
            self._staying = [site.workspace((B, U), dtype) for _ in range(self.num_states)]

    # -- what a subclass gives ----------------------------------------------------------------------------

    @classmethod
    def bias_shape(cls, units: int) -> tuple[int, ...]:
        """The shape of the bias."""
        return (cls.gates * units,)

    def step(self, t: int) -> None:
        """In place. Write `states[...][t + 1]`, from `z_TBG[t]`, which holds the input's product with its
        bias, `h_TBU[t]`, what the recurrent product sees, and `states[...][t]`."""
        raise NotImplementedError

    def step_back(self, t: int, d_states: list[Array]) -> None:
        """In place. Write `dz_TBG[t]`, and turn the gradients of `states[...][t + 1]` into those of
        `states[...][t]`."""
        raise NotImplementedError

    def input_bias(self) -> Array | None:
        """What is added to the input's product."""
        return self.bias

    def recurrent_gradient(self, into: Array | None) -> Array:
        """The gradient of the recurrent kernel."""
        return np.matmul(self.as_rows(self.h_TBU).T, self.as_rows(self.dz_TBG), out=into)

    def bias_gradient(self, into: Array | None) -> Array:
        """The gradient of the bias."""
        return self.as_rows(self.dz_TBG).sum(axis=0, out=into)

    # -- what a subclass uses -----------------------------------------------------------------------------

    def gate(self, array: Array, first: int, stop: int | None = None) -> Array:
        """The columns of gate `first`, or of all up to `stop`."""
        return array[..., first * self.units : (first + 1 if stop is None else stop) * self.units]

    def through_dropout(self, dh: Array) -> None:
        """In place. The gradient of the state, from that of what the recurrent product sees of it."""
        if self._rate:
            dh *= self._dropped_BU

    @staticmethod
    def as_rows(array_TBX: Array) -> Array:
        """All steps of all samples as the rows of a matrix."""
        T, B, X = array_TBX.shape
        return array_TBX.reshape(T * B, X)

    # -- the operation ------------------------------------------------------------------------------------

    def forward(self, run: Run, *inputs: Array) -> tuple[Array, ...]:
        self.kernel, self.recurrent = inputs[1:3]
        self.bias = inputs[3] if self.site.attrs["use_bias"] else None
        np.copyto(self._x_TBD, self._in_time(inputs[0]))
        np.matmul(self.as_rows(self._x_TBD), self.kernel, out=self.as_rows(self.z_TBG))
        bias = self.input_bias()
        if bias is not None:
            self.z_TBG += bias
        initial = inputs[self._initial_place :]
        for i, state in enumerate(self.states):
            state[0] = initial[i] if initial else 0
        if self.site.attrs["masked"]:
            self._take_mask(inputs[self._mask_place], bool(initial))
        if self._rate:
            self._draw(run)
        for t in range(len(self.z_TBG)):
            if self._rate:
                np.multiply(self.states[0][t], self._dropped_BU, out=self.h_TBU[t])
            self.step(t)
            if self._skipped_TB1 is not None:
                for state in self.states:
                    np.copyto(state[t + 1], state[t], where=self._skipped_TB1[t])
        return (self._output(), *(state[-1] for state in self.states))

    def backward(self, dy: Any, into: Sequence[Array | None]) -> Sequence[Array | None]:
        d_sequence, d_states = self._d_sequence(dy[0]), self._d_states
        for d, given in zip(d_states, dy[1:], strict=True):
            d[...] = 0 if given is None else given
        if dy[0] is not None and d_sequence is None:
            d_states[0] += dy[0]
        for t in range(len(self.z_TBG) - 1, -1, -1):
            if d_sequence is not None:
                d_states[0] += d_sequence[t]
            if self._skipped_TB1 is None:
                self.step_back(t, d_states)
                continue
            for d, stays in zip(d_states, self._staying, strict=True):
                np.multiply(d, self._skipped_TB1[t], out=stays)
                np.copyto(d, 0, where=self._skipped_TB1[t])
            self.step_back(t, d_states)
            for d, stays in zip(d_states, self._staying, strict=True):
                d += stays
        return self._gradients(into)

    def _gradients(self, into: Sequence[Array | None]) -> list[Array | None]:
        """Of all operands, once those of all steps are known."""
        needs, dz_NG = self.site.needs, self.as_rows(self.dz_TBG)
        found: list[Array | None] = [None] * len(needs)
        if needs[0]:
            np.matmul(dz_NG, self.kernel.T, out=self.as_rows(self._dx_TBD))
            dx = self._dx if into[0] is None else into[0]
            np.copyto(self._in_time(dx), self._dx_TBD)
            found[0] = dx
        if needs[1]:
            found[1] = np.matmul(self.as_rows(self._x_TBD).T, dz_NG, out=into[1])
        if needs[2]:
            found[2] = self.recurrent_gradient(into[2])
        if self.bias is not None and needs[3]:
            found[3] = self.bias_gradient(into[3])
        for i, d in enumerate(self._d_states, self._initial_place):
            if i < len(needs) and needs[i]:
                target = into[i]
                found[i] = d.copy() if target is None else target
                if target is not None:
                    target[...] = d
        return found

    def _in_time(self, array: Array) -> Array:
        """A view of (B, T, ...) with the axis of time first, in the order in which it is gone through."""
        in_time = array.swapaxes(0, 1)
        return in_time[::-1] if self.site.attrs["go_backwards"] else in_time

    def _take_mask(self, mask: Array, initial: bool) -> None:
        """Which steps leave the states as they are, and which show zeros."""
        counts_TB1 = np.ascontiguousarray(self._in_time(mask))[..., None]
        self._skipped_TB1 = ~counts_TB1
        if self.site.attrs["zero_output_for_mask"]:
            self._hidden_TB1 = self._skipped_TB1
        elif initial:  # else the state is zeros until the first step that counts
            self._hidden_TB1 = ~np.logical_or.accumulate(counts_TB1, axis=0)

    def _draw(self, run: Run) -> None:
        assert run.streams is not None
        run.streams.generator(self.site.attrs.get("stream", 0)).random(out=self._draws_BU, dtype=np.float32)
        np.less(self._draws_BU, np.float32(1 - self._rate), out=self._dropped_BU)
        self._dropped_BU *= 1 / (1 - self._rate)

    def _output(self) -> Array:
        h_TBU = self.states[0][1:]
        if self.site.attrs["return_sequences"]:
            np.copyto(self._y, h_TBU.swapaxes(0, 1))
            if self._hidden_TB1 is not None:
                np.copyto(self._y, 0, where=self._hidden_TB1.swapaxes(0, 1))
        else:
            np.copyto(self._y, h_TBU[-1])
            if self._hidden_TB1 is not None:
                np.copyto(self._y, 0, where=self._hidden_TB1[-1])
        return self._y

    def _d_sequence(self, dy: Array | None) -> Array | None:
        """In place. The gradient of the outputs, time-major; None where there is only a last one."""
        sequences = self.site.attrs["return_sequences"]
        if dy is not None and self._hidden_TB1 is not None:
            np.copyto(dy, 0, where=self._hidden_TB1.swapaxes(0, 1) if sequences else self._hidden_TB1[-1])
        return dy.swapaxes(0, 1) if sequences and dy is not None else None


@register
class SimpleRNN(Recurrent):
    """h' = activation(x kernel + bias + h recurrent)."""

    name = "simple_rnn"

    def step(self, t: int) -> None:
        h = self.states[0][t + 1]
        np.matmul(self.h_TBU[t], self.recurrent, out=h)
        h += self.z_TBG[t]
        self.activation.forward(h)

    def step_back(self, t: int, d_states: list[Array]) -> None:
        y, dz = self.z_TBG[t], self.dz_TBG[t]
        np.copyto(y, self.states[0][t + 1])  # where the step was skipped it is another, but dz is 0 there
        np.copyto(dz, d_states[0])
        self.activation.backward(y, dz)
        np.matmul(dz, self.recurrent.T, out=d_states[0])
        self.through_dropout(d_states[0])


def recurrent(
    name: str,
    x: Any,
    kernel: Any,
    recurrent_kernel: Any,
    bias: Any = None,
    mask: Any = None,
    initial_state: Sequence[Any] = (),
    **attrs: Any,
) -> tuple[Any, ...]:
    """The output and the final states of a recurrent operation over a sequence; `attrs` as `Recurrent`."""
    operands = [x, kernel, recurrent_kernel, *(each for each in (bias, mask) if each is not None)]
    found: tuple[Any, ...] = apply(
        name,
        *operands,
        *initial_state,
        use_bias=bias is not None,
        masked=mask is not None,
        initial=bool(initial_state),
        **attrs,
    )
    return found
